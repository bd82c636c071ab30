"""Objects read over HTTP: on a path of their own, and on a host of their own for each bucket.

| URL | |
|---|---|
| `/objects/<bucket>/<key>` | on any of the server's hosts |
| `http://<bucket>.<objects_domain>/<key>` | as at Qiniu, where a bucket has a domain and its name is not in the path |

Rules
1. The key is the rest of the path as it was sent, decoded once; nothing in it is a separator or a parent folder.
2. A private bucket is read with a token over the URL as the client wrote it; of a server without auth any token is good, but its
   deadline counts.  A token that is given is checked for a public bucket too.
3. Ranges, conditions and their precedence are those of RFC 9110; of several ranges the whole object is sent.
4. The bytes are opened before the answer begins: who reads goes on reading when the object is overwritten or deleted.
5. What is stored may be a page with scripts: it is served without the right to run them in this server's origin.
Source: qiniu/developer.qiniu.com kodo download-token; qiniu/python-sdk qiniu/auth.py private_download_url; RFC 9110 §13, §14.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from starlette.responses import Response, StreamingResponse

from milepost.bucket import StoredObject
from milepost.errors import NotFound, Unauthenticated
from milepost.server.facades.qiniu.endpoint import Call, open_owner
from milepost.server.facades.qiniu.incoming import buckets_of
from milepost.server.facades.qiniu.playlists import read_command, show_playlist
from milepost.store.buckets import Place
from milepost.wire.qiniu import errors
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.qiniu.policy import EXPIRED, META
from milepost.wire.signing import qiniu as signing

PREFIX = "/objects/"
OPENS_MAX = 5  # times an object is opened again that was overwritten between its record and its bytes
COMMANDS = re.compile(
    r"(imageView2|imageView|imageMogr2|imageInfo|imageAve|exif|watermark|roundPic|image-slim|animate|blend|avinfo|avthumb|vframe"
    r"|vsample|avconcat|adapt|segment|qhash|qrcode|md2html|pm3u8|saveas|mkzip|concat)(/|\||$)"
).match
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})").fullmatch


def bucket_host(host: bytes, domain: str) -> str | None:
    """The bucket that a `Host` header names; None when it is another host."""
    name = host.decode("latin-1").lower().rpartition(":")[0] or host.decode("latin-1").lower()
    bucket, dot, _ = name.partition(".")
    return bucket if bucket and dot and name == f"{bucket}.{domain}" else None


async def download(call: Call) -> Response:
    """GET and HEAD of an object."""
    bucket, key = call.params["bucket"], _key(call)
    buckets = buckets_of(call)
    try:
        place = await buckets.find_bucket(bucket)
    except NotFound:
        raise _not_found() from None
    access = await _check_token(call, place)
    playlist = read_command(call.query, call.state.clock.now_us() // 1_000_000)
    query = dict(parse_qsl(call.query, keep_blank_values=True, max_num_fields=1000))
    if playlist is None and COMMANDS(unquote_to_bytes(call.query.partition("&")[0]).decode("utf-8", "replace")):
        raise Refusal(errors.BAD_REQUEST, "nothing is processed while it is downloaded here: store the result with pfop")
    for _ in range(OPENS_MAX):
        found = await buckets.look_up(place, key)
        if found is None:
            raise _not_found()
        if found.object.disabled:
            raise Refusal(errors.FORBIDDEN, "the file is disabled")
        if playlist is not None:
            return await show_playlist(call, place, found, playlist, access)
        response = await _answer(call, place, found.object, query)
        if response is not None:
            return response
    raise Refusal(errors.SERVER_ERROR, "the object is being overwritten again and again; try again")


def _key(call: Call) -> str:
    """Rule 1.  Errors: Refusal.

    The path is decoded as a whole, as the route and the token's check do it, so that all three speak of the same object.
    """
    raw: bytes = call.scope.get("raw_path") or quote(call.scope["path"]).encode()
    front = "/" if "bucket_host" in call.scope else f"{PREFIX}{call.params['bucket']}/"
    try:
        path = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        raise _not_found() from None
    if not path.startswith(front):
        raise _not_found()
    return path.removeprefix(front)


def _not_found() -> Refusal:
    return Refusal(errors.NOT_FOUND, "Document not found")


async def _check_token(call: Call, place: Place) -> str | None:
    """Rule 2.  The key that signed it, where it is of the bucket's project.

    Errors: Refusal 401, 404 for another project's bucket.
    """
    token = signing.read_download_token(call.query)
    if token is None:
        if place.bucket.private:
            raise errors.bad_token("bad token: the bucket is private, and the URL has no token")
        return None
    state = call.state
    deadline_s = signing.read_deadline(token.query)
    if deadline_s is None:
        raise errors.bad_token("bad token: the URL has no deadline `e`")
    if deadline_s * 1_000_000 <= state.clock.now_us():
        raise errors.bad_token(EXPIRED)
    if state.settings.auth == "none":
        identity = await open_owner(call, token.access)
    else:
        secret, identity = await state.identities.read_access_key(token.access)
        raw = (call.scope.get("raw_path") or quote(call.scope["path"]).encode()).decode("latin-1")
        if not any(signing.verify_download(token, base, raw, secret) for base in _bases(call)):
            raise errors.bad_token()
        state.rates.take(identity.project)
    if place.bucket.private and identity.project != place.project:
        raise Unauthenticated("the token's key is not of the bucket's project")
    return token.access if identity.project == place.project else None


def _bases(call: Call) -> list[str]:
    """`http://host` as the client may have written it: a proxy may have ended its TLS."""
    host = call.header(b"host") or ""
    bases = [f"{call.scope['scheme']}://{host}"]
    if call.state.settings.public_url:
        scheme = call.state.settings.public_url.partition("://")[0]
        bases += [call.state.settings.public_url.rstrip("/"), f"{scheme}://{host}"]
    return list(dict.fromkeys(bases))


# --- the answer ------------------------------------------------------------------------------------------------------------


async def _answer(call: Call, place: Place, found: StoredObject, query: dict[str, str]) -> Response | None:
    """None: it was overwritten before its bytes were opened."""
    headers, etag = _headers(found, query), f'"{found.hash}"'
    if (status := _condition(call, found, etag)) is not None:
        if status == 412:
            raise Refusal(412, "the object does not match the conditions of the request")
        return Response(b"", 304, {name: headers[name] for name in ("etag", "last-modified", "cache-control")})
    asked = _range(call, found, etag)
    start, length = asked or (0, found.size_bytes)
    headers["content-length"] = str(length)
    if asked is not None:
        headers["content-range"] = f"bytes {start}-{start + length - 1}/{found.size_bytes}"
    status = 200 if asked is None else 206
    if call.method == "HEAD" or length == 0:
        return Response(None, status, headers)
    chunks = await buckets_of(call).read(place, found.key, start=start, length=length, expect=found.hash)
    return None if chunks is None else StreamingResponse(chunks, status, headers)


def _headers(found: StoredObject, query: dict[str, str]) -> dict[str, str]:
    headers = {
        "content-type": found.mime_type,
        "etag": f'"{found.hash}"',
        "last-modified": format_datetime(datetime.fromtimestamp(found.put_us // 1_000_000, UTC), usegmt=True),
        "accept-ranges": "bytes",
        "cache-control": "no-cache",
        "content-security-policy": "sandbox",
        "x-content-type-options": "nosniff",
        **{f"{META}{name}": quote(value, safe=" !#$&'()*+,/:;=?@[]<>^`{|}~\"\\") for name, value in found.meta.items()},
    }
    if "attname" in query:
        headers["content-disposition"] = disposition(query["attname"])
    return headers


def disposition(name: str) -> str:
    """RFC 6266, with the name in ASCII for those who read no other."""
    name = "".join(char for char in name if char.isprintable())[:255]
    plain = name.encode("ascii", "replace").decode().replace("\\", "_").replace('"', "_")
    encoded = quote(name, safe="", errors="replace")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}" if name else "attachment"


def _condition(call: Call, found: StoredObject, etag: str) -> int | None:
    """304 or 412 when a condition fails (RFC 9110 §13.2.2)."""
    put_s = found.put_us // 1_000_000
    match = call.header(b"if-match")
    if match is not None:
        if not _names(match, etag):
            return 412
    elif (since := _date_s(call.header(b"if-unmodified-since"))) is not None and put_s > since:
        return 412
    none_match = call.header(b"if-none-match")
    if none_match is not None:
        return 304 if _names(none_match, etag) else None
    since = _date_s(call.header(b"if-modified-since"))
    return 304 if since is not None and put_s <= since else None


def _names(header: str, etag: str) -> bool:
    return header.strip() == "*" or etag in (one.strip().removeprefix("W/") for one in header.split(","))


def _date_s(text: str | None) -> int | None:
    """Unix seconds of an HTTP date; None for anything else."""
    if text is None:
        return None
    try:
        return int(parsedate_to_datetime(text).timestamp())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _range(call: Call, found: StoredObject, etag: str) -> tuple[int, int] | None:
    """Where it begins and how long it is; None for the whole object.  Errors: Refusal 416."""
    header, condition = call.header(b"range"), call.header(b"if-range")
    if header is None or call.method == "HEAD":
        return None
    if condition is not None and condition.strip() != etag and _date_s(condition) != found.put_us // 1_000_000:
        return None
    match = _RANGE(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    size, (first, last) = found.size_bytes, match.groups()
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last), size - 1) if first and last else size - 1
    if start >= size or (not first and int(last) == 0):
        raise Refusal(416, "the range lies behind the object's end", headers={"Content-Range": f"bytes */{size}"})
    if end < start:
        return None
    return start, end - start + 1


def route_to_bucket(scope: Any, domain: str) -> None:
    """A request on a bucket's own host is one of `/objects/<bucket>/…`; what was sent stays in `raw_path`."""
    headers = scope["headers_by_name"]
    bucket = bucket_host(headers.get(b"host", b""), domain)
    if bucket is not None:
        scope["path"], scope["bucket_host"] = f"{PREFIX}{bucket}{scope['path']}", bucket


__all__ = ["bucket_host", "disposition", "download", "route_to_bucket"]
