"""What every Qiniu URL does around its handler: X-Reqid, who asks, the method, and errors in Qiniu's manner.

Rules
1. Every answer has `X-Reqid`, errors too: the SDKs take one without it for another server's.
2. A signed URL takes `QBox` and `Qiniu` signatures alike, and this server's own tokens (`Authorization: Bearer`).  What costs
   least is checked first; the body is read once the key is known, and the signature checked over it.
3. `X-Qiniu-Date` must lie within `signature_window_s`.  A signature without a date stays good, as at Qiniu: its SDKs send the
   same signed request again when they got no answer, so none is refused for having been used before.
4. With auth `none` every signature and token is accepted; the project is the access key's where it is known, else the one that
   `X-Project-Id` names, else `default`.
Source: qiniu/go-sdk internal/clientv2/interceptor_anti_hijacking.go; qiniu/python-sdk qiniu/http/response.py.
"""

from __future__ import annotations

import base64
import errno
import math
import os
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl

import structlog
from starlette.responses import Response

from milepost.errors import (
    Expired,
    Forbidden,
    LimitExceeded,
    MilepostError,
    NotFound,
    Throttled,
    Unauthenticated,
    VersionConflict,
)
from milepost.server.auth import Identity, identify, open_identity, text
from milepost.server.errors import BROKEN_OFF, retry_after_s, status_of
from milepost.server.http import Disconnected, Receive, Scope, Send, base_url, read_body
from milepost.server.state import AppState
from milepost.wire.qiniu import errors
from milepost.wire.qiniu.errors import Refusal, encode_error
from milepost.wire.signing import qiniu as signing

log = structlog.get_logger(__name__)

# What our errors say of buckets and objects, in Qiniu's codes; no text: the error's own.
REASONS: dict[object, tuple[int, str]] = {
    "bucket_not_found": (errors.NO_SUCH_BUCKET, "no such bucket"),
    "bucket_exists": (errors.ENTRY_EXISTS, "the bucket already exists"),
    "bucket_not_empty": (errors.FORBIDDEN, "drop non empty bucket is not allowed"),
    "bucket_name": (errors.BAD_REQUEST, ""),
    "buckets_max": (errors.TOO_MANY_BUCKETS, "too many buckets"),
    "object_not_found": (errors.NO_SUCH_ENTRY, "no such file or directory"),
    "object_exists": (errors.ENTRY_EXISTS, "file exists"),
}
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Call:
    """One request to this facade.  `identity` is None where the URL is open; `body` is read where it is signed."""

    __slots__ = ("_identity", "access", "body", "body_ended", "headers", "method", "params", "receive", "reqid", "scope", "state")

    def __init__(self, scope: Scope, receive: Receive, headers: dict[bytes, bytes], reqid: str) -> None:
        self.scope, self.receive, self.headers, self.reqid = scope, receive, headers, reqid
        self.method: str = scope["method"]
        self.state: AppState = scope["app"].state
        self.params: dict[str, str] = scope.get("path_params", {})
        self.body, self.body_ended = b"", False
        self.access: str | None = None  # the key that signed it
        self._identity: Identity | None = None

    @property
    def identity(self) -> Identity:
        assert self._identity is not None, "this URL is open"
        return self._identity

    @identity.setter
    def identity(self, identity: Identity) -> None:
        self._identity = identity

    @property
    def query(self) -> str:
        raw: bytes = self.scope["query_string"]
        return raw.decode("latin-1")

    def fields(self) -> dict[str, str]:
        """The parameters of the query and of a form in the body, the body's first.  Errors: Refusal."""
        pairs = _pairs(self.query)
        if self.body and self.headers.get(b"content-type", b"").startswith(signing.FORM):
            pairs += _pairs(self.body.decode("latin-1"))
        return dict(pairs)

    def all(self, name: str) -> list[str]:
        """Every value of one parameter of a form in the body.  Errors: Refusal."""
        return [value for key, value in _pairs(self.body.decode("latin-1")) if key == name]

    @property
    def base_url(self) -> str:
        return base_url(self.scope, self.state)

    def header(self, name: bytes) -> str | None:
        return text(self.headers.get(name))

    def message(self) -> signing.Message:
        """The request as it is signed."""
        raw = self.scope.get("raw_path") or self.scope["path"].encode()
        return signing.Message(self.method, raw, self.scope["query_string"], self.headers, self.body)


def _pairs(raw: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=10_000)
    except ValueError as error:
        raise Refusal(errors.BAD_REQUEST, f"the form cannot be read: {error}") from None


Handler = Callable[[Call], Awaitable[Response]]


class Endpoint:
    """One URL with its methods, as an ASGI application; `signed=False` leaves it to the handler who may ask."""

    def __init__(self, *, signed: bool = True, **handlers: Handler) -> None:
        self._signed, self._handlers = signed, handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = scope.get("headers_by_name") or dict(scope["headers"])
        call = Call(scope, receive, headers, new_reqid())
        try:
            response = await self._answer(call)
        except Exception as error:
            response = response_to(error, call)
        response.headers["X-Reqid"] = call.reqid
        await response(scope, receive, send)

    async def _answer(self, call: Call) -> Response:
        handler = self._handlers.get(call.method) or (self._handlers.get("GET") if call.method == "HEAD" else None)
        if handler is None:
            allow = ", ".join(self._handlers)
            raise Refusal(errors.NOT_ALLOWED, f"{call.method} is not allowed here; allowed: {allow}", headers={"Allow": allow})
        if self._signed:
            await identify_signed(call)
        return await handler(call)


def new_reqid() -> str:
    """16 characters, as Qiniu's are."""
    return base64.urlsafe_b64encode(os.urandom(12)).decode()


def json_response(body: bytes, status: int = 200) -> Response:
    """`Content-Type: application/json`, without a charset."""
    return Response(body, status, {"content-type": "application/json"})


# --- errors ------------------------------------------------------------------------------------------------------------


def response_to(error: Exception, call: Call) -> Response:
    """The answer to whatever a handler raised."""
    refusal = refusal_of(error)
    if refusal is None:
        log.exception("request failed", reqid=call.reqid, request_id=call.scope.get("request_id"), path=call.scope["path"])
        refusal = Refusal(errors.SERVER_ERROR, errors.INTERNAL)
    elif refusal.status == errors.SERVER_ERROR:
        log.error("request failed", reqid=call.reqid, request_id=call.scope.get("request_id"), error=str(error))
    return Response(encode_error(refusal.text), refusal.status, {"content-type": "application/json", **refusal.headers})


def refusal_of(error: Exception) -> Refusal | None:
    """An error in Qiniu's words; None for one of the server's own."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Disconnected):
        return Refusal(errors.BAD_REQUEST, BROKEN_OFF)
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return errors.no_space()
    return _refusal_of_ours(error) if isinstance(error, MilepostError) else None


def _refusal_of_ours(error: MilepostError) -> Refusal | None:
    status = status_of(error)
    if (reason := REASONS.get(error.fields.get("reason"))) is not None:
        return Refusal(reason[0], reason[1] or error.message)
    if isinstance(error, Unauthenticated):
        return errors.bad_token(f"bad token: {error.message}")
    if isinstance(error, Throttled):
        return Refusal(errors.BUSY, error.message, headers={"Retry-After": str(max(1, math.ceil(error.retry_after_s)))})
    if isinstance(error, NotFound | Expired):
        return Refusal(errors.NO_SUCH_ENTRY, error.message)
    if isinstance(error, VersionConflict):
        return Refusal(errors.MODIFIED, error.message)
    if isinstance(error, Forbidden):
        return Refusal(errors.FORBIDDEN, error.message)
    if isinstance(error, LimitExceeded) and status in (408, 413):
        return Refusal(errors.TOO_LARGE, error.message)
    if status < 500:
        return Refusal(errors.BAD_REQUEST, error.message)
    if error.retryable:
        pause_s = retry_after_s(error, status)
        headers = {} if pause_s is None else {"Retry-After": str(max(1, math.ceil(pause_s)))}
        return Refusal(errors.SERVER_ERROR, error.message, headers=headers)
    return None


# --- who asks ------------------------------------------------------------------------------------------------------------


async def identify_signed(call: Call) -> None:
    """The call has its identity and its body.  Errors: Unauthenticated, Forbidden, LimitExceeded, Throttled, Disconnected."""
    state, authorization = call.state, call.headers.get(b"authorization")
    if not signing.is_signed(authorization):
        if authorization is None and state.settings.auth != "none" and b"x-auth-token" not in call.headers:
            raise errors.bad_token("bad token: this needs an Authorization header with a QBox or Qiniu signature")
        call.identity = await identify(call.scope)
        call.body = await _read(call)
        return
    header = (authorization or b"").decode("latin-1")
    if state.settings.auth == "none":
        call.access = header.partition(" ")[2].partition(":")[0]
        call.identity = await open_owner(call, call.access)
        call.body = await _read(call)
        return
    claim = signing.read_claim(header)
    call.access = claim.access
    _check_date(call)
    secret, identity = await state.identities.read_access_key(claim.access)
    call.body = await _read(call)
    if not signing.verify(claim, call.message(), secret):
        raise signing.refused("it was not made for this request with the secret of this key")
    state.rates.take(identity.project)
    call.identity = identity


async def identify_upload(call: Call, token: str | None) -> bytes:
    """The policy of an upload token, JSON text, once its signature is right; the call has its identity.

    Errors: Refusal, Unauthenticated, Throttled.
    """
    if not token:
        raise errors.bad_token("token not specified")
    read = signing.read_upload_token(token)
    call.access = read.access
    if call.state.settings.auth == "none":
        call.identity = await open_owner(call, read.access)
        return read.policy
    secret, identity = await call.state.identities.read_access_key(read.access)
    if not signing.verify_upload_token(read, secret):
        raise signing.refused("the upload token was not signed with the secret of this key")
    call.state.rates.take(identity.project)
    call.identity = identity
    return read.policy


def header_token(call: Call) -> str | None:
    """The token of `Authorization: UpToken …`."""
    scheme, _, token = (call.header(b"authorization") or "").partition(" ")
    return token.strip() if scheme == "UpToken" else None


async def open_owner(call: Call, access: str) -> Identity:
    """Who this access key stands for on a server without auth (rule 4).  Errors: InvalidInput (no project id), Throttled."""
    try:
        _, identity = await call.state.identities.read_access_key(access)
    except Unauthenticated:
        identity = open_identity(call.header(b"x-project-id"), None)
    call.state.rates.take(identity.project)
    return identity


def _check_date(call: Call) -> None:
    signed_us = signing.read_date(call.headers)
    if signed_us is None:
        return
    away_s = abs(call.state.clock.now_us() - signed_us) / 1e6
    window_s = call.state.settings.signature_window_s
    if away_s > window_s:
        raise signing.refused(
            f"{signing.DATE_HEADER} is {away_s:.0f} s away from this server's time; at most {window_s:g} s are allowed"
        )


async def _read(call: Call) -> bytes:
    """The body; a GET without a length has none.  Errors: LimitExceeded, Disconnected."""
    headers, settings = call.headers, call.state.settings
    if call.method in ("GET", "HEAD") and b"content-length" not in headers and b"transfer-encoding" not in headers:
        return b""
    return await read_body(call.receive, headers, limit_bytes=settings.body_bytes_max, limit_s=settings.body_s_max)


__all__ = [
    "Call",
    "Endpoint",
    "Handler",
    "header_token",
    "identify_signed",
    "identify_upload",
    "json_response",
    "new_reqid",
    "open_owner",
]
