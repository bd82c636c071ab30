"""The ASGI application: one front for everything, the native routes by a table lookup, the vendors' through Starlette's router.

The front is one coroutine without middleware layers, because it is on the path of every status poll: it names the request,
dispatches, answers errors as problems, and counts.  It owns no lifecycle: the composition root opens the store, starts the
engine, and serves this object.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from http import HTTPStatus
from itertools import count
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import structlog
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from milepost.clock import Clock
from milepost.engine.context import Objects
from milepost.engine.service import Service
from milepost.errors import CallerError, Forbidden, MilepostError, NotFound
from milepost.server import errors
from milepost.server.auth import ANYONE, check_exposure, identify, is_loopback
from milepost.server.events import Hub
from milepost.server.facades import all_routes
from milepost.server.facades.qiniu.downloads import route_to_bucket
from milepost.server.http import Call, Disconnected, Receive, Reply, Scope, Send
from milepost.server.identity import Identities
from milepost.server.limits import Rates, Slots
from milepost.server.metrics import HttpStats
from milepost.server.native import ROUTES
from milepost.server.route import Route
from milepost.server.signatures import Repeats, recorded
from milepost.server.state import AppState
from milepost.settings import Settings
from milepost.wire.native import Problem

log = structlog.get_logger(__name__)

REQUEST_ID_CHARS = 128
REQUEST_ID_ALPHABET = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.:")
OPEN_HEADERS = frozenset({b"x-project-id", b"x-auth-token", b"authorization"})  # that can name a project without auth
UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})
Key = tuple[str, str, int]  # first segment, third segment, number of segments


def create_app(
    service: Service,
    settings: Settings,
    clock: Clock,
    *,
    objects: Objects | None = None,
    identities: Identities | None = None,
    extra_routes: Sequence[BaseRoute] = (),
) -> App:
    """The application over a service.  Errors: InvalidInput when auth is none beyond loopback."""
    check_exposure(settings)
    state = AppState(
        service=service,
        settings=settings,
        clock=clock,
        objects=objects,
        identities=identities or Identities(service.store, clock, settings),
        rates=Rates(clock, settings.rate_per_s, settings.rate_burst),
        slots=Slots(settings.streams_max, settings.streams_project_max),
        hub=Hub(service.store),
        http=HttpStats(),
        repeats=Repeats(clock),
    )
    return App(state, [*all_routes(state), *extra_routes])


class App:
    """See `create_app`.  `state` is what handlers share; `close` ends open streams, so that the server can stop."""

    def __init__(self, state: AppState, routes: Sequence[BaseRoute]) -> None:
        self.state = state
        self._native = _table(ROUTES)
        self._routes = list(routes)
        self._open, self._limited = state.settings.auth == "none", state.settings.rate_per_s > 0
        self._bucket_hosts = f".{state.settings.objects_domain}".encode() if state.settings.objects_domain else None
        self._own_hosts = _own_hosts(state.settings)
        self._known_hosts: set[bytes] = set()
        self._request_ids = map(_request_id(), count(1))

    def close(self) -> None:
        """End every stream and long poll."""
        self.state.hub.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await _no_http(scope, receive, send)
        begin_s = perf_counter()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id")
        request_id = given.decode() if given is not None and _sane(given) else next(self._request_ids)
        scope["app"], scope["headers_by_name"], scope["request_id"] = self, headers, request_id
        if self._bucket_hosts is not None and self._bucket_hosts in headers.get(b"host", b""):
            route_to_bucket(scope, self.state.settings.objects_domain)
        if not self._open and b"authorization" in headers:
            receive = recorded(scope, receive, headers, self.state)
        parts = scope["path"].split("/")
        size = len(parts)
        methods = self._native.get((parts[1], parts[3] if size == 4 else "", size)) if 1 < size < 5 else None
        if methods is None:
            route, status = await self._foreign(scope, receive, send, headers, request_id)
        else:
            call = Call(self.state, scope, receive, send, headers, request_id, parts[2] if size > 2 else "")
            route, status = await self._answer(call, methods)
        self.state.http.count(scope["method"], route, status, perf_counter() - begin_s)
        return None

    # --- native ----------------------------------------------------------------------------------------------------

    async def _answer(self, call: Call, methods: dict[str, Route]) -> tuple[str, int]:
        method = call.scope["method"]
        route = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
        path = next(iter(methods.values())).path if route is None else route.path
        reply: Reply | None
        try:
            if self._open:
                self._check_browser(call.scope, call.headers)
            if route is None:
                raise errors.MethodNotAllowed(method, _allow(methods))
            if not route.open:
                if self._open and OPEN_HEADERS.isdisjoint(call.headers):
                    call.identity = ANYONE
                    if self._limited:
                        self.state.rates.take(ANYONE.project)
                else:
                    call.identity = await identify(call.scope)
            reply = await route.handler(call)
        except MilepostError as error:
            reply = self._problem(error, call.request_id)
        except Disconnected:
            reply = errors.problem_reply(errors.broken_off(call.request_id))
        except Exception:
            log.exception("request failed", request_id=call.request_id, method=method, path=path)
            reply = errors.problem_reply(errors.internal_problem(call.request_id))
        if reply is None:  # it was a stream, and it has ended
            return path, 200
        await _send(call.send, reply, call.request_id, head=method == "HEAD")
        return path, reply.status

    def _problem(self, error: MilepostError, request_id: str) -> Reply:
        reply = errors.reply_of(error, request_id)
        if reply.status >= 500 and not isinstance(error, CallerError):
            log.warning("request refused", request_id=request_id, status=reply.status, code=error.code, error=error.message)
        return reply

    # --- vendors ---------------------------------------------------------------------------------------------------

    async def _foreign(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes], request_id: str
    ) -> tuple[str, int]:
        status, started, id_header = 499, False, (b"x-request-id", request_id.encode())

        async def named(message: Any) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                message["headers"] = [*message.get("headers", ()), id_header]
            elif scope["method"] == "HEAD":
                message["body"] = b""
            await send(message)

        path = "(none)"
        try:
            if self._open:
                self._check_browser(scope, headers)
            route, child = self._match(scope)
            scope.update(child)
            path = getattr(route, "path", path)
            await route.handle(scope, receive, named)
            return path, status
        except MilepostError as error:
            reply = self._problem(error, request_id)
        except HTTPException as error:
            reply = _plain(error, request_id)
        except Disconnected:
            reply = errors.problem_reply(errors.broken_off(request_id))
        except Exception:
            log.exception("request failed", request_id=request_id, method=scope["method"], path=path)
            if started:
                raise  # the server cuts the connection, so the client does not take half an answer for a whole one
            reply = errors.problem_reply(errors.internal_problem(request_id))
        if started:
            return path, status
        await _send(send, reply, request_id, head=scope["method"] == "HEAD")
        return path, reply.status

    def _match(self, scope: Scope) -> tuple[BaseRoute, Any]:
        """The first route that takes the path and the method, else the first that takes the path.  Errors: NotFound."""
        partial: tuple[BaseRoute, Any] | None = None
        allow: set[str] = set()
        for route in self._routes:
            match, child = route.matches(scope)
            if match is Match.FULL:
                return route, child
            if match is Match.PARTIAL:
                partial = partial or (route, child)
                allow |= getattr(route, "methods", None) or set()
        if partial is not None:
            raise errors.MethodNotAllowed(scope["method"], ", ".join(sorted(allow)))
        raise NotFound("there is nothing at this path", hint="GET /openapi.json lists what there is")

    # --- browsers --------------------------------------------------------------------------------------------------

    def _check_browser(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Without auth, any page in the user's browser could reach a server on loopback: refuse names that are not ours
        (DNS rebinding), and changes that another site's page asks for.  Errors: Forbidden.
        """
        host = headers.get(b"host", b"")
        if host not in self._known_hosts:
            self._check_host(host)
        if scope["method"] in UNSAFE:
            origin = headers.get(b"origin")
            if origin is not None and not self._is_own(_host_of(origin.decode("latin-1"))):
                raise Forbidden("a page of another site may not change anything here", hint="use --auth required")

    def _check_host(self, host: bytes) -> None:
        if host and not self._is_own(_host_of("//" + host.decode("latin-1"))):
            raise Forbidden(
                "without auth this server answers to loopback names only", hint="set MILEPOST_PUBLIC_URL, or use --auth required"
            )
        if len(self._known_hosts) < 100:
            self._known_hosts.add(host)

    def _is_own(self, host: str) -> bool:
        return is_loopback(host) or host in self._own_hosts


def _table(routes: Sequence[Route]) -> dict[Key, dict[str, Route]]:
    """Every native path has its one parameter as the second segment, so three values say which it is."""
    table: dict[Key, dict[str, Route]] = {}
    for route in routes:
        parts = route.path.split("/")
        assert len(parts) < 5
        assert len(parts) == 2 or parts[2].startswith("{")
        table.setdefault((parts[1], parts[3] if len(parts) == 4 else "", len(parts)), {})[route.method] = route
    return table


def _allow(methods: dict[str, Route]) -> str:
    return ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods))


def _host_of(url: str) -> str:
    """The URL's host without its port; empty when it is no URL."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _own_hosts(settings: Settings) -> frozenset[str]:
    return frozenset(host for host in (_host_of(settings.public_url or ""), settings.host) if host)


def _request_id() -> Any:
    """Ids that are unique and cheap: a random UUID of this process whose last 48 bits count requests."""
    head = f"req-{str(uuid.uuid4())[:24]}"
    return lambda number: f"{head}{number:012x}"


def _sane(request_id: bytes) -> bool:
    return 0 < len(request_id) <= REQUEST_ID_CHARS and REQUEST_ID_ALPHABET.issuperset(request_id)


def _plain(error: HTTPException, request_id: str) -> Reply:
    """An error of the router or an endpoint that Starlette raised."""
    status = error.status_code
    problem = Problem(
        title=HTTPStatus(status).phrase, status=status, detail=error.detail, code=f"http_{status}", request_id=request_id
    )
    reply = errors.problem_reply(problem)
    reply.headers.extend((name.lower().encode(), value.encode("latin-1")) for name, value in (error.headers or {}).items())
    return reply


async def _send(send: Send, reply: Reply, request_id: str, *, head: bool) -> None:
    headers, body = reply.headers, reply.body
    if body:
        headers.append((b"content-type", reply.type))
        headers.append((b"content-length", b"%d" % len(body)))
    headers.append((b"x-request-id", request_id.encode()))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})


async def _no_http(scope: Scope, receive: Receive, send: Send) -> None:
    """Lifespan is acknowledged and means nothing here; websockets are refused."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000})
        return
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
