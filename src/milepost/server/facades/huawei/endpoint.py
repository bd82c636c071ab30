"""What every Huawei URL does around its handler: the body, the caller, the request id, and errors in the vendor's manner.

Rules
1. The caller comes first; the body is read after that, unless a signature covers it.
2. The caller's project must be the path's: 400 Common.0018.  A bad token is 401 Common.0013 of the service, a bad signature or
   none of both is 401 APIGW.0301 of the gateway before it.
3. A method that a path does not have is a route that does not exist: the gateway knows routes by both.
4. What `Content-Type` says is not looked at: the SDKs send one with every GET, and one with a charset with every POST.
5. `X-Request-Id` is added to each answer by the application.
Source: huaweicloudsdkcore exceptions; opentelekomcloud-docs/elastic-cloud-server api-ref, common error codes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from milepost.errors import Forbidden, InvalidInput, LimitExceeded, MilepostError, NotFound, Unauthenticated, UnknownKind
from milepost.job import Job, Submission
from milepost.server.auth import Identity, identify, read_token, text
from milepost.server.errors import BROKEN_OFF, retry_after_s, status_of
from milepost.server.http import JSON, Disconnected, Receive, Reply, Scope, Send, base_url, read_body
from milepost.server.state import AppState
from milepost.wire.huawei.bodies import Ask
from milepost.wire.huawei.errors import (
    BODY_TOO_LARGE,
    INTERNAL,
    Form,
    Refusal,
    Service,
    encode_error,
    project_mismatch,
    refusal_of,
    route_unknown,
    signature_invalid,
    token_invalid,
)
from milepost.wire.huawei.jobs import order_id

log = structlog.get_logger(__name__)

ORDER_DAYS = 14  # an order that nobody paid is removed after so long; source: the job query's page, PENDING_PAYMENT
NO_CREDENTIALS = "neither x-auth-token nor authorization is in the request"


class Call:
    """One request to this facade, from a known caller.  `kind` is set once a handler knows it: errors depend on it."""

    __slots__ = ("body", "headers", "identity", "kind", "params", "scope", "service", "state")

    def __init__(self, scope: Scope, headers: dict[bytes, bytes], body: bytes, identity: Identity, service: Service) -> None:
        self.scope, self.headers, self.body, self.identity, self.service = scope, headers, body, identity, service
        self.state: AppState = scope["app"].state
        self.params: dict[str, str] = scope["path_params"]
        self.kind: str | None = None

    @property
    def query(self) -> str:
        raw: bytes = self.scope["query_string"]
        return raw.decode("latin-1")

    @property
    def url(self) -> str:
        """The server's own, without a slash at its end."""
        return base_url(self.scope, self.state)

    def header(self, name: bytes) -> str | None:
        return text(self.headers.get(name))


Handler = Callable[[Call], Awaitable[Reply]]


class Endpoint:
    """One URL with its methods, as an ASGI application.  Without methods it is a URL that does not exist."""

    def __init__(self, service: Service, *, form: Form = Form.NESTED, **handlers: Handler) -> None:
        self._service, self._form, self._handlers = service, form, handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = scope.get("headers_by_name") or dict(scope["headers"])
        call: Call | None = None
        try:
            method = scope["method"]
            handler = self._handlers.get(method) or (self._handlers.get("GET") if method == "HEAD" else None)
            if handler is None:
                raise route_unknown()
            identity = await _identify(scope)
            call = Call(scope, headers, await _read(scope, receive, headers), identity, self._service)
            reply = await handler(call)
        except Disconnected:  # APIGW.0201 is the gateway's word for any request that it cannot read
            reply = self._refuse(Refusal(400, BODY_TOO_LARGE, BROKEN_OFF, form=Form.GATEWAY), scope)
        except Refusal as refusal:
            reply = self._refuse(refusal, scope)
        except MilepostError as error:
            reply = self._refuse(refusal_to(error, self._service, None if call is None else call.kind), scope)
        except Exception:
            log.exception("request failed", request_id=scope.get("request_id"), path=scope["path"])
            reply = self._refuse(Refusal(500, INTERNAL, "Internal system error."), scope)
        await _send(send, reply)

    def _refuse(self, refusal: Refusal, scope: Scope) -> Reply:
        if self._form is Form.NOVA and refusal.form is Form.NESTED and refusal.status == 404:
            refusal.form = Form.NOVA
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in refusal.headers.items()]
        return Reply(refusal.status, encode_error(refusal, scope.get("request_id") or ""), headers)


async def _read(scope: Scope, receive: Receive, headers: dict[bytes, bytes]) -> bytes:
    """The body; a GET without a length has none.  Errors: LimitExceeded, Disconnected."""
    if scope["method"] in ("GET", "HEAD") and b"content-length" not in headers and b"transfer-encoding" not in headers:
        return b""
    settings = scope["app"].state.settings
    return await read_body(receive, headers, limit_bytes=settings.body_bytes_max, limit_s=settings.body_s_max)


async def _identify(scope: Scope) -> Identity:
    """Errors: Refusal, LimitExceeded (a signed body), Throttled."""
    try:
        return await identify(scope, project=scope["path_params"]["project_id"])
    except Unauthenticated as error:
        if error.fields.get("reason") == "signature":
            raise signature_invalid(error.message) from error
        has_token = read_token(scope["headers_by_name"]) is not None
        raise (token_invalid() if has_token else signature_invalid(NO_CREDENTIALS)) from error
    except (Forbidden, InvalidInput, NotFound) as error:  # not found: a project that an admin names and that is not there
        raise project_mismatch() from error


def refusal_to(error: MilepostError, service: Service, kind: str | None) -> Refusal:
    """Our error in the service's words, what its gateway would have refused in the gateway's."""
    status = status_of(error)
    if isinstance(error, LimitExceeded) and status in (408, 413):
        return Refusal(413, BODY_TOO_LARGE, error.message, form=Form.GATEWAY)
    if isinstance(error, UnknownKind):
        return Refusal(503, INTERNAL, f"This server does not offer {kind or 'this'}: {error.message}")
    refusal = refusal_of(error, service, kind=kind)
    if refusal.status >= 500 and not error.retryable:
        log.error("request failed", code=error.code, error=error.message)
    pause_s = retry_after_s(error, status)
    if pause_s is not None:
        refusal.headers = {"Retry-After": str(max(1, math.ceil(pause_s)))}
    return refusal


async def submit(call: Call, ask: Ask) -> tuple[Job, str | None]:
    """The job, on disk, and its order's id when it has one.  A repeated X-Client-Token gives the same job.

    Errors: those of `Service.submit`.
    """
    submission = _submission(call, ask)
    token = call.header(b"x-client-token")
    if token is not None:
        submission.idempotency_key = token
        submission.body_hash = hashlib.sha256(call.scope["path"].encode() + b"\n" + call.body).hexdigest()
    if ask.held:
        submission.expires_us = call.state.clock.now_us() + ORDER_DAYS * 86_400_000_000
    job = (await call.state.service.submit(submission)).job
    return job, order_id(job.id) if ask.order else None


async def rehearse(call: Call, ask: Ask) -> None:
    """Errors: those that `submit` would have; nothing is made."""
    await call.state.service.rehearse(_submission(call, ask))


def _submission(call: Call, ask: Ask) -> Submission:
    call.kind = ask.kind
    role = {} if call.identity.is_admin else {"role": "member"}
    return call.state.service.submission(
        ask.kind,
        input=msgspec.json.encode(ask.input),
        project=call.identity.project,
        held=ask.held,
        origin={"request_id": call.scope["request_id"], "user_id": call.identity.user_id, **role},
    )


async def _send(send: Send, reply: Reply) -> None:
    headers, body = reply.headers, reply.body
    if body:
        headers.append((b"content-type", JSON))
        headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
