"""What every Glance URL does around its handler: the token, the request id, the method, and errors in Glance's manner.

Rules
1. The token comes first: without a valid one the answer is 401 and has no request id, as behind keystonemiddleware.
2. Everything after it carries `x-openstack-request-id`: the client's own, with `req-` in front, or the server's.
Source: openstack/glance glance/api/middleware/context.py; openstack/keystonemiddleware keystonemiddleware/auth_token/__init__.py.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from starlette.responses import Response

from milepost.errors import Expired, MilepostError, NotFound, Unauthenticated
from milepost.job import ProjectId
from milepost.server.auth import Identity, identify, text
from milepost.server.errors import BROKEN_OFF, retry_after_s, status_of
from milepost.server.http import Disconnected, Receive, Scope, Send, base_url, read_body
from milepost.server.state import AppState
from milepost.wire.glance.errors import INTERNAL, ROUTE_NOT_FOUND, UNAUTHORIZED, Refusal, encode_error, method_not_allowed

log = structlog.get_logger(__name__)

REQUEST_ID_CHARS_MAX = 64


class Call:
    """One request to this facade, from a known caller."""

    __slots__ = ("headers", "identity", "params", "receive", "request_id", "scope", "state")

    def __init__(self, scope: Scope, receive: Receive, headers: dict[bytes, bytes], identity: Identity, request_id: str) -> None:
        self.scope, self.receive, self.headers, self.identity, self.request_id = scope, receive, headers, identity, request_id
        self.state: AppState = scope["app"].state
        self.params: dict[str, Any] = scope.get("path_params", {})

    @property
    def query(self) -> str:
        raw: bytes = self.scope["query_string"]
        return raw.decode("latin-1")

    @property
    def visible(self) -> ProjectId | None:
        """The project whose jobs the caller sees; None for all.

        An admin sees every project, as in Glance; without auth everybody is an admin, so each keeps to the project it names.
        """
        return None if self.identity.is_admin and self.state.settings.auth == "required" else self.identity.project

    @property
    def base_url(self) -> str:
        return base_url(self.scope, self.state)

    def header(self, name: bytes) -> str | None:
        return text(self.headers.get(name))

    async def body(self) -> bytes:
        """Errors: LimitExceeded, Disconnected."""
        settings = self.state.settings
        return await read_body(self.receive, self.headers, limit_bytes=settings.body_bytes_max, limit_s=settings.body_s_max)


Handler = Callable[[Call], Awaitable[Response]]


class Endpoint:
    """One URL with its methods, as an ASGI application.  Without methods it is a URL that does not exist."""

    def __init__(self, *, allow: str | None = None, **handlers: Handler) -> None:
        self._handlers = handlers
        self._allow = allow or ", ".join(handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = scope.get("headers_by_name") or dict(scope["headers"])
        accept = text(headers.get(b"accept"))
        request_id: str | None = None
        try:
            identity = await identify(scope)
            request_id = _request_id(text(headers.get(b"x-openstack-request-id")), scope)
            response = await self._answer(Call(scope, receive, headers, identity, request_id))
        except Disconnected:
            response = refuse(Refusal(400, BROKEN_OFF), accept)
        except Refusal as refusal:
            response = refuse(refusal, accept)
        except MilepostError as error:
            response = refuse(refusal_of(error, base_url(scope, scope["app"].state)), accept)
        except Exception:
            log.exception("request failed", request_id=request_id or scope.get("request_id"), path=scope["path"])
            response = refuse(Refusal(500, INTERNAL), accept)
        if request_id is not None:
            response.headers["x-openstack-request-id"] = request_id
        await response(scope, receive, send)

    async def _answer(self, call: Call) -> Response:
        if not self._handlers:
            raise Refusal(404, ROUTE_NOT_FOUND)
        method = call.scope["method"]
        handler = self._handlers.get(method)
        if handler is None:
            raise method_not_allowed(method, self._allow)
        return await handler(call)


def json_response(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`Content-Type: application/json`, without a charset."""
    return Response(body, status, {"content-type": "application/json", **(headers or {})})


def refuse(refusal: Refusal, accept: str | None) -> Response:
    """The error in the form that the client accepts."""
    content_type, body = encode_error(refusal, accept)
    return Response(body, refusal.status, {"content-type": content_type, **refusal.headers})


def refusal_of(error: MilepostError, url: str) -> Refusal:
    """Our error in Glance's words; what it has no word for keeps ours.  `url` is the server's own."""
    if isinstance(error, Unauthenticated):
        return Refusal(401, UNAUTHORIZED, headers={"WWW-Authenticate": f'Keystone uri="{url}/v3"'})
    if isinstance(error, NotFound | Expired):
        return Refusal(404, error.message)
    status = status_of(error)
    if status >= 500 and not error.retryable:
        log.error("request failed", code=error.code, error=error.message)
        return Refusal(500, INTERNAL)
    pause_s = retry_after_s(error, status)
    return Refusal(status, error.message, headers={} if pause_s is None else {"Retry-After": str(max(1, math.ceil(pause_s)))})


def _request_id(asked: str | None, scope: Scope) -> str:
    """Errors: Refusal 431."""
    if not asked:
        own: str = scope["request_id"]
        return own
    if len(asked) > REQUEST_ID_CHARS_MAX:
        raise Refusal(431, f"The request id has {len(asked)} characters; at most {REQUEST_ID_CHARS_MAX} are allowed.")
    return asked if asked.startswith("req-") else f"req-{asked}"
