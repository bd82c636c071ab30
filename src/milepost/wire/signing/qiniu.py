"""Qiniu's signatures, made and checked: management requests (two schemes), upload tokens, download URLs, callbacks.

| what | where | signed text |
|---|---|---|
| QBox | `Authorization: QBox AK:SIGN` | path and query, a line feed, the body when it is a form |
| Qiniu | `Authorization: Qiniu AK:SIGN` | method, path and query, Host, Content-Type, `X-Qiniu-*`, the body |
| upload token | form field `token`, `Authorization: UpToken …` | the policy in base64, which the token carries |
| download | `…?e=DEADLINE&token=AK:SIGN` | the URL before `&token=`, as the client wrote it |

SIGN is always the HMAC-SHA1 with the secret, in URL-safe base64 with its padding.

Rules
1. Callbacks to the user's application are signed as management requests are.
2. In the Qiniu scheme a body of a form or of JSON is signed by every SDK.  A body of another type is signed by the Python SDK and
   not by the Go SDK (`application/octet-stream` by neither), so both are accepted.  In QBox only a form is signed.
3. Headers are signed as they come: Host with its port.  A client that wrote the default port signs it and does not send it.
4. A download is signed over the text that the client built, which may hold characters that were escaped on the way, so the
   decoded path is tried too where it cannot be read as anything else.

Source: qiniu/python-sdk qiniu/auth.py; qiniu/go-sdk auth/credentials.go and storagev2/downloader.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from urllib.parse import unquote, urlsplit

import msgspec

from milepost.errors import Unauthenticated
from milepost.wire import Request
from milepost.wire.signing.huawei import Key, Message

FORM, JSON, BYTES = b"application/x-www-form-urlencoded", b"application/json", b"application/octet-stream"
DATE_HEADER, PREFIX = "X-Qiniu-Date", b"x-qiniu-"
DATE = b"x-qiniu-date"
DEFAULT_PORTS = (b":80", b":443")
TOKEN_CHARS_MAX = 64 << 10


class Scheme(StrEnum):
    QBOX = "QBox"
    QINIU = "Qiniu"


class Claim(msgspec.Struct, frozen=True):
    """What an `Authorization` header says; nothing of it is believed before `verify`."""

    scheme: Scheme
    access: str
    signature: str


class UploadToken(msgspec.Struct, frozen=True):
    """An upload token taken apart; `encoded` is the policy as it was signed, `policy` its JSON text."""

    access: str
    signature: str
    encoded: str
    policy: bytes


def urlsafe(data: bytes) -> str:
    """Base64 with `-` and `_`, padding kept."""
    return base64.urlsafe_b64encode(data).decode()


def read_urlsafe(text: str) -> bytes:
    """What `urlsafe` wrote, with or without its padding.  Errors: ValueError."""
    if not text.isascii():
        raise ValueError("not base64")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def sign_text(key: Key, text: bytes) -> str:
    """`AK:SIGN` over these bytes."""
    return f"{key.access}:{_sign(key.secret, text)}"


def _sign(secret: str, text: bytes) -> str:
    return urlsafe(hmac.digest(secret.encode(), text, "sha1"))


def refused(why: str) -> Unauthenticated:
    """The error of a signature that is not accepted."""
    return Unauthenticated(why, reason="signature")


# --- management requests and callbacks -----------------------------------------------------------------------------------


def is_signed(authorization: bytes | None) -> bool:
    """Whether this `Authorization` header claims one of the two schemes."""
    return authorization is not None and authorization.startswith((b"QBox ", b"Qiniu "))


def read_claim(authorization: str) -> Claim:
    """Errors: Unauthenticated with `reason` signature."""
    scheme, _, token = authorization.partition(" ")
    access, mark, signature = token.strip().rpartition(":")
    if scheme not in tuple(Scheme) or not mark or not access or not signature.isascii():
        raise refused("the Authorization header is not of the form `Qiniu AK:SIGN` or `QBox AK:SIGN`")
    return Claim(Scheme(scheme), access, signature)


def sign(request: Request, key: Key, *, scheme: Scheme = Scheme.QINIU, at_us: int | None = None) -> Request:
    """The request with its `Authorization`; in the Qiniu scheme with `X-Qiniu-Date` too when `at_us` is given.

    An `Authorization` or date that it had is replaced, so a request may be signed again at each try.
    """
    again = ("authorization", DATE_HEADER.lower())
    headers = {name: value for name, value in request.headers.items() if name.lower() not in again}
    if scheme is Scheme.QINIU and at_us is not None:
        headers[DATE_HEADER] = date_text(at_us)
    parts = urlsplit(request.url)
    lower = {name.lower().encode(): value.strip().encode() for name, value in headers.items()}
    lower.setdefault(b"host", parts.netloc.rpartition("@")[2].encode())
    message = Message(request.method, parts.path.encode() or b"/", parts.query.encode(), lower, request.body or b"")
    text = next(_qbox_texts(message) if scheme is Scheme.QBOX else _qiniu_texts(message))
    return Request(request.method, request.url, {**headers, "Authorization": f"{scheme} {sign_text(key, text)}"}, request.body)


def verify(claim: Claim, message: Message, secret: str) -> bool:
    """Whether the owner of the secret signed exactly this request; the time that it takes says nothing of the secret."""
    texts = _qbox_texts(message) if claim.scheme is Scheme.QBOX else _qiniu_texts(message)
    right = False
    for text in texts:
        right |= _same(_sign(secret, text), claim.signature)
    return right


def _same(made: str, given: str) -> bool:
    return hmac.compare_digest(made.encode(), given.encode())


def _target(message: Message) -> bytes:
    return message.path + (b"?" + message.query if message.query else b"")


def _qbox_texts(message: Message) -> Iterator[bytes]:
    is_form = message.headers.get(b"content-type", b"").strip() == FORM
    yield _target(message) + b"\n" + ((message.body or b"") if is_form else b"")


def _qiniu_texts(message: Message) -> Iterator[bytes]:
    """Rules 2 and 3; the first is what `sign` takes."""
    content_type, host = message.headers.get(b"content-type", b"").strip(), message.headers.get(b"host", b"")
    own = [
        (_title(name), value) for name, value in message.headers.items() if name.startswith(PREFIX) and len(name) > len(PREFIX)
    ]
    extra = b"".join(b"\n" + name + b": " + value.strip() for name, value in sorted(own))
    typed = b"\nContent-Type: " + content_type if content_type else b""
    body = message.body or b""
    bodies = [body] if content_type and content_type != BYTES else [b""]
    if content_type not in (FORM, JSON) and bodies != [b""]:
        bodies.append(b"")
    hosts = [host] if host.rpartition(b"]")[2].count(b":") else [host, *(host + port for port in DEFAULT_PORTS)]
    for name in hosts:
        for signed in bodies:
            yield message.method.encode() + b" " + _target(message) + b"\nHost: " + name + typed + extra + b"\n\n" + signed


def _title(name: bytes) -> bytes:
    """`x-qiniu-date` as `X-Qiniu-Date`, as Go's `textproto` has it."""
    return b"-".join(part[:1].upper() + part[1:].lower() for part in name.split(b"-"))


def date_text(at_us: int) -> str:
    """An instant as `X-Qiniu-Date` has it: `20260102T030405Z`."""
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).strftime("%Y%m%dT%H%M%SZ")


def read_date(headers: Mapping[bytes, bytes]) -> int | None:
    """Unix µs of `X-Qiniu-Date`; None when the request has none.  Errors: Unauthenticated."""
    text = headers.get(DATE)
    if text is None:
        return None
    try:
        at = datetime.strptime(text.decode("latin-1").strip(), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise refused(f"{DATE_HEADER} is {text[:40]!r}; it is written 20260102T030405Z") from None
    return int(at.timestamp()) * 1_000_000


# --- upload tokens ------------------------------------------------------------------------------------------------------


def upload_token(key: Key, policy: bytes) -> str:
    """The token that allows what this policy (JSON text) says."""
    encoded = urlsafe(policy)
    return f"{sign_text(key, encoded.encode())}:{encoded}"


def read_upload_token(text: str) -> UploadToken:
    """Errors: Unauthenticated with `reason` signature.  The policy's own rules are `wire.qiniu.policy`'s."""
    access, first, rest = text.strip().partition(":")
    signature, second, encoded = rest.partition(":")
    if len(text) > TOKEN_CHARS_MAX or not (first and second and access and encoded) or ":" in encoded:
        raise refused("an upload token is AK:SIGN:POLICY")
    try:
        policy = read_urlsafe(encoded)
    except ValueError:
        raise refused("the policy of the upload token is no base64") from None
    return UploadToken(access, signature, encoded, policy)


def verify_upload_token(token: UploadToken, secret: str) -> bool:
    """Whether the owner of the secret signed this policy."""
    return _same(_sign(secret, token.encoded.encode()), token.signature)


# --- downloads ----------------------------------------------------------------------------------------------------------


class DownloadToken(msgspec.Struct, frozen=True):
    """The end of a signed URL's query.  `query` is what stood before it."""

    access: str
    signature: str
    query: str


def sign_url(url: str, key: Key, *, deadline_s: int) -> str:
    """The URL that may be read until the deadline, Unix seconds."""
    text = f"{url}{'&' if '?' in url else '?'}e={deadline_s}"
    return f"{text}&token={sign_text(key, text.encode())}"


def read_download_token(query: str) -> DownloadToken | None:
    """None when the query has no token at its end.  Errors: Unauthenticated."""
    before, mark, token = query.rpartition("token=")
    if not mark or not (before == "" or before.endswith("&")) or "&" in token:
        return None
    access, colon, signature = unquote(token).rpartition(":")
    if not colon or not access:
        raise refused("the token of a download is AK:SIGN")
    return DownloadToken(access, signature, before.removesuffix("&"))


def read_deadline(query: str) -> int | None:
    """The last `e=` of a query, Unix seconds; None when there is none that is a number."""
    values = [part[2:] for part in query.split("&") if part.startswith("e=")]
    if not values or not (values[-1].isascii() and values[-1].isdigit()) or len(values[-1]) > 15:
        return None
    return int(values[-1])


def verify_download(token: DownloadToken, base: str, raw_path: str, secret: str) -> bool:
    """Whether the owner of the secret signed this URL; `base` is `http://host[:port]`, `raw_path` the path as it was sent.

    Rule 4: also as it was before it was escaped, unless its decoded form would have a query or a fragment of its own.
    """
    paths = [raw_path]
    decoded = unquote(raw_path, errors="surrogateescape")
    if decoded != raw_path and not {"?", "#"} & set(decoded):
        paths.append(decoded)
    query = f"?{token.query}" if token.query else ""
    right = False
    for path in paths:
        right |= _same(_sign(secret, f"{base}{path}{query}".encode("utf-8", "surrogateescape")), token.signature)
    return right


__all__ = [
    "Claim",
    "DownloadToken",
    "Key",
    "Message",
    "Scheme",
    "UploadToken",
    "date_text",
    "is_signed",
    "read_claim",
    "read_date",
    "read_deadline",
    "read_download_token",
    "read_upload_token",
    "read_urlsafe",
    "refused",
    "sign",
    "sign_text",
    "sign_url",
    "upload_token",
    "urlsafe",
    "verify",
    "verify_download",
    "verify_upload_token",
]
