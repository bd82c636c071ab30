"""Buckets and objects of a Qiniu server, or of Milepost's own: what `milepost bucket` and `milepost object` are made of.

Rules
1. Requests are signed as the SDKs sign them.  A server without auth takes any key, so there none is needed.
2. A file of at most a block is one form; a larger one goes in parts, each of which is tried again when the connection breaks.
Source: qiniu/python-sdk qiniu/services/storage/bucket.py and uploader.py.
"""

from __future__ import annotations

import mimetypes
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from milepost.bucket import BLOCK_BYTES
from milepost.client.open import user_agent
from milepost.client.steps import Ask, Open
from milepost.client.transport import Transport
from milepost.errors import (
    CallerError,
    Conflict,
    Forbidden,
    InvalidInput,
    MilepostError,
    NotFound,
    ProtocolError,
    Unauthenticated,
    Unavailable,
    Unreachable,
)
from milepost.wire import Request, Response
from milepost.wire.qiniu import errors
from milepost.wire.qiniu.objects import encode_entry
from milepost.wire.signing import qiniu as signing

FORM = "application/x-www-form-urlencoded"
ANYONE = signing.Key("anyone", "anyone")
TOKEN_S = 86_400
TIMEOUT_S, SILENCE_S = 300.0, 60.0
PARTS_MAX = 10_000
TRIES = 4
ERRORS: dict[int, type[MilepostError]] = {
    errors.BAD_REQUEST: InvalidInput,
    errors.BAD_TOKEN: Unauthenticated,
    errors.FORBIDDEN: Forbidden,
    errors.NOT_FOUND: NotFound,
    errors.NO_SUCH_ENTRY: NotFound,
    errors.NO_SUCH_BUCKET: NotFound,
    errors.ENTRY_EXISTS: Conflict,
    errors.BAD_MARKER: InvalidInput,
}

Progress = Callable[[int, int], None]


class Storage:
    """One server's buckets, with one key.  `project` is for servers without auth."""

    def __init__(self, url: str, key: signing.Key | None = None, *, project: str | None = None) -> None:
        self._url, self._key = url.rstrip("/"), key or ANYONE
        self._headers = {"X-Project-Id": project} if project else {}
        self._http = Transport(user_agent=user_agent())

    def close(self) -> None:
        self._http.close()

    # --- buckets -----------------------------------------------------------------------------------------------------

    def create_bucket(self, name: str, *, private: bool | None = None) -> dict[str, Any]:
        """`private` None: as the server makes them.  Errors: MilepostError."""
        self._call("POST", f"/mkbucketv3/{_segment(name)}/region/z0")
        if private is not None:
            self._call("POST", f"/private?{urlencode({'bucket': name, 'private': int(private)})}")
        return self.bucket(name)

    def bucket(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._call("POST", f"/v2/bucketInfo?{urlencode({'bucket': name})}")
        return found

    def buckets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("GET", "/v3/buckets")
        return found

    def delete_bucket(self, name: str) -> None:
        self._call("POST", f"/drop/{_segment(name)}")

    # --- objects -----------------------------------------------------------------------------------------------------

    def stat(self, bucket: str, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self._call("GET", f"/stat/{encode_entry(bucket, key)}")
        return found

    def delete(self, bucket: str, key: str) -> None:
        self._call("POST", f"/delete/{encode_entry(bucket, key)}")

    def list(self, bucket: str, *, prefix: str = "", delimiter: str = "") -> Iterator[dict[str, Any]]:
        """Every object, and every folded prefix as `{"prefix": …}`, page by page."""
        asked = {"bucket": bucket, "prefix": prefix, "delimiter": delimiter, "limit": "1000"}
        while True:
            page = self._call("GET", f"/list?{urlencode(asked)}")
            yield from ({"prefix": one} for one in page.get("commonPrefixes", ()))
            yield from page["items"]
            if not page.get("marker"):
                return
            asked["marker"] = page["marker"]

    def put(
        self, bucket: str, key: str, path: Path, *, mime_type: str | None = None, on_progress: Progress | None = None
    ) -> dict[str, Any]:
        """The file is the object; an object of this key is replaced.  Errors: MilepostError, OSError."""
        mime_type = mime_type or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        policy = {"scope": f"{bucket}:{key}", "deadline": int(time.time()) + TOKEN_S}
        token = signing.upload_token(self._key, msgspec.json.encode(policy))
        size_bytes = path.stat().st_size
        if size_bytes <= BLOCK_BYTES:
            return self._put_form(token, key, path, mime_type)
        return self._put_parts(token, bucket, key, path, mime_type, size_bytes, on_progress)

    def _put_form(self, token: str, key: str, path: Path, mime_type: str) -> dict[str, Any]:
        boundary = f"milepost-{uuid.uuid4().hex}"
        fields = "".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in (("token", token), ("key", key))
        )
        name = quote(path.name, safe=" ()[]{}")
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: {mime_type}\r\n\r\n'
        )
        body = (fields + head).encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", **self._headers}
        stored: dict[str, Any] = _json(self._send(Request("POST", f"{self._url}/", headers, body)))
        return stored

    def _put_parts(
        self, token: str, bucket: str, key: str, path: Path, mime_type: str, size_bytes: int, on_progress: Progress | None
    ) -> dict[str, Any]:
        base = f"{self._url}/buckets/{_segment(bucket)}/objects/{signing.urlsafe(key.encode())}/uploads"
        headers = {"Authorization": f"UpToken {token}", "Content-Type": "application/octet-stream", **self._headers}
        upload = f"{base}/{_json(self._send(Request('POST', base, headers)))['uploadId']}"
        part_bytes = BLOCK_BYTES * -(-size_bytes // (BLOCK_BYTES * PARTS_MAX))
        parts: list[dict[str, Any]] = []
        done = 0
        with path.open("rb") as file:
            while data := file.read(part_bytes):
                number = len(parts) + 1
                answer = _json(self._send(Request("PUT", f"{upload}/{number}", headers, data)))
                parts.append({"partNumber": number, "etag": answer["etag"]})
                done += len(data)
                if on_progress is not None:
                    on_progress(done, size_bytes)
        body = msgspec.json.encode({"parts": parts, "fname": path.name, "mimeType": mime_type})
        stored: dict[str, Any] = _json(
            self._send(Request("POST", upload, {**headers, "Content-Type": "application/json"}, body), tries=1)
        )
        return stored

    def get(self, bucket: str, key: str, write: Callable[[bytes], Any]) -> int:
        """Its bytes are written piece by piece; how many they were.  Errors: MilepostError."""
        url = f"{self._url}/objects/{_segment(bucket)}/{quote(key, safe='/')}"
        url = signing.sign_url(url, self._key, deadline_s=int(time.time()) + TOKEN_S)
        size_bytes = 0
        opening = Open(Ask(Request("GET", url, dict(self._headers)), TOKEN_S), SILENCE_S)
        with self._http.stream(opening) as parts:
            if parts.response.status != 200:
                body = b"".join(iter(lambda: parts.read() or b"", b""))
                raise _error(Response(parts.response.status, parts.response.headers, body))
            while (part := parts.read()) is not None:
                write(part)
                size_bytes += len(part)
            expected = parts.response.headers.get("content-length", str(size_bytes))
        if str(size_bytes) != expected:
            raise Unreachable(f"the connection broke after {size_bytes} bytes of {expected}")
        return size_bytes

    # --- requests ----------------------------------------------------------------------------------------------------

    def _call(self, method: str, target: str) -> Any:
        """A signed request without a body."""
        request = Request(method, f"{self._url}{target}", {"Content-Type": FORM, **self._headers})
        signed = signing.sign(request, self._key, at_us=int(time.time() * 1e6))
        return _json(self._send(signed, tries=TRIES if method == "GET" else 1))

    def _send(self, request: Request, *, tries: int = TRIES) -> Response:
        """Errors: MilepostError."""
        for left in reversed(range(tries)):
            try:
                response = self._http.send(Ask(request, TIMEOUT_S))
            except Unreachable:
                if not left:
                    raise
            else:
                if response.status == 200:
                    return response
                error = _error(response)
                if not left or not error.retryable:
                    raise error
            time.sleep(0.5 * 2 ** (tries - left - 1))
        raise AssertionError("unreachable")


def _segment(text: str) -> str:
    return quote(text, safe="")


def _json(response: Response) -> Any:
    """Errors: ProtocolError."""
    try:
        return msgspec.json.decode(response.body) if response.body else {}
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the server's answer is no JSON: {error}") from error


def _error(response: Response) -> MilepostError:
    """What the server refused, as one of ours."""
    try:
        said: Mapping[str, Any] = msgspec.json.decode(response.body)
        text = str(said.get("error") or said.get("detail") or response.status)
    except (msgspec.DecodeError, AttributeError):
        text = f"the server answered {response.status}"
    hint = "milepost key create --pair" if response.status == errors.BAD_TOKEN else None
    kind = ERRORS.get(response.status, Unavailable if response.status in (503, errors.SERVER_ERROR) else CallerError)
    return kind(text, hint=hint, request_id=response.headers.get("x-reqid"))


__all__ = ["Storage"]
