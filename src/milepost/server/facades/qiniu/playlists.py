"""`GET <playlist>?pm3u8/0/expires/<s>&e=…&token=…`: a private HLS playlist whose segments can be fetched for a while.

Rules
1. Only what lies in the bucket of the playlist is signed, with the key that signed the request, and the bucket is of its project:
   a playlist can name anything, and would else have objects of others signed for whoever reads it.  Other lines stay as they are.
2. A playlist inside of a playlist is signed together with the same command, so that its own segments can be fetched too.
3. `deadline` counts more than `expires`.  It may lie behind that of the request itself.
Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/av/pm3u8.md.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, unquote_to_bytes, urljoin, urlsplit

import msgspec
from starlette.responses import Response

from milepost.server.facades.qiniu.endpoint import Call
from milepost.server.facades.qiniu.incoming import buckets_of
from milepost.store.buckets import Place, Stored
from milepost.wire.qiniu import errors
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.signing import qiniu as signing

PLAYLIST_BYTES_MAX = 4 << 20
EXPIRES_DEFAULT_S, EXPIRES_MAX_S = 43_200, 10 * 366 * 86_400
_COMMAND = re.compile(
    r"pm3u8/(?P<mode>[^/]*)(?:/(?:expires/(?P<expires>[0-9]{1,9})|deadline/(?P<deadline>[0-9]{1,12})))*/?"
).fullmatch


class Asked(msgspec.Struct, frozen=True):
    """Until when the segments can be fetched, Unix seconds."""

    deadline_s: int


def read_command(query: str, now_s: int) -> Asked | None:
    """None when the query asks for something else.  Errors: Refusal 400."""
    command = unquote(query.partition("&")[0])
    if not command.startswith("pm3u8/"):
        return None
    found = _COMMAND(command)
    if found is None or found["mode"] != "0":
        raise Refusal(errors.BAD_REQUEST, "it is pm3u8/0/expires/<seconds> or pm3u8/0/deadline/<Unix seconds>")
    if found["deadline"]:
        return Asked(int(found["deadline"]))
    return Asked(now_s + min(int(found["expires"] or EXPIRES_DEFAULT_S), EXPIRES_MAX_S))


class Around(msgspec.Struct, frozen=True):
    """Where the playlist was asked for, and whose addresses are this bucket's: `fronts` are what their paths begin with."""

    url: str
    fronts: dict[str, str]  # host: path


def sign_playlist(text: str, around: Around, key: signing.Key, asked: Asked) -> str:
    """The playlist with every reference into its bucket signed (rules 1 and 2).  Errors: Refusal 400 when it is none."""
    if not text.lstrip("\ufeff").startswith("#EXTM3U"):
        raise Refusal(errors.BAD_REQUEST, "the object is no playlist: pm3u8 takes m3u8 files")
    return (
        "\n".join(line if line.startswith("#") or not line else _signed(line, around, key, asked) for line in text.splitlines())
        + "\n"
    )


def _signed(line: str, around: Around, key: signing.Key, asked: Asked) -> str:
    try:
        url = urljoin(around.url, line.strip())
        parts = urlsplit(url)
    except ValueError:
        return line
    front = around.fronts.get(parts.netloc.lower())
    path = unquote_to_bytes(parts.path)
    if front is None or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        return line
    if not path.startswith(front.encode()) or b".." in path.split(b"/"):
        return line
    command = f"?pm3u8/0/deadline/{asked.deadline_s}" if path.lower().endswith(b".m3u8") else ""
    return signing.sign_url(f"{url}{command}", key, deadline_s=asked.deadline_s)


async def show_playlist(call: Call, place: Place, found: Stored, asked: Asked, access: str | None) -> Response:
    """The answer.  `access`: the key of the request's token, where it is of the bucket's project.  Errors: Refusal 400."""
    if access is None:
        raise Refusal(errors.BAD_REQUEST, "pm3u8 needs a token, signed with a key of the bucket's project")
    if found.object.size_bytes > PLAYLIST_BYTES_MAX:
        raise Refusal(errors.BAD_REQUEST, f"the playlist has more than {PLAYLIST_BYTES_MAX} bytes")
    chunks = await buckets_of(call).read(
        place, found.object.key, start=0, length=found.object.size_bytes, expect=found.object.hash
    )
    if chunks is None:
        raise Refusal(errors.SERVER_ERROR, "the object was overwritten meanwhile; try again")
    try:
        text = b"".join([bytes(chunk) async for chunk in chunks]).decode()
    except UnicodeDecodeError:
        raise Refusal(errors.BAD_REQUEST, "the object is no playlist: it is no UTF-8 text") from None
    key = signing.Key(access, "")
    if call.state.settings.auth != "none":
        key = signing.Key(access, (await call.state.identities.read_access_key(access))[0])
    body = sign_playlist(text, _around(call), key, asked)
    headers = {"content-type": found.object.mime_type, "cache-control": "no-store", "x-content-type-options": "nosniff"}
    return Response(body, 200, {**headers, "content-security-policy": "sandbox"})


def _around(call: Call) -> Around:
    settings, host, bucket = call.state.settings, (call.header(b"host") or "").lower(), call.params["bucket"]
    raw: bytes = call.scope.get("raw_path") or call.scope["path"].encode()
    scheme = settings.public_url.partition("://")[0] if settings.public_url else call.scope["scheme"]
    objects = f"/objects/{bucket}/"
    fronts = {host: "/" if "bucket_host" in call.scope else objects}
    if settings.public_url:
        fronts.setdefault(urlsplit(settings.public_url).netloc.lower(), objects)
    if settings.objects_domain:
        fronts.setdefault(f"{bucket}.{settings.objects_domain}", "/")
    return Around(f"{scheme}://{host}{raw.decode('latin-1')}", fronts)


__all__ = ["Around", "Asked", "read_command", "show_playlist", "sign_playlist"]
