"""One native request and its reply: thin slots over ASGI, because the hot routes are counted in microseconds."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from milepost.errors import InvalidInput, LimitExceeded
from milepost.server.auth import Identity, text
from milepost.server.state import AppState

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")

JSON = b"application/json"
TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no", "")


class Disconnected(Exception):
    """The client went away before its request was read, or broke its body off in a way that is no HTTP.

    It is answered 400: who is gone does not hear it, and who is not would be told 500 by the HTTP server.
    """


class Reply:
    """A whole answer; its content type and length are added when it is sent."""

    __slots__ = ("body", "headers", "status", "type")

    def __init__(self, status: int, body: bytes = b"", headers: Headers | None = None, *, type: bytes = JSON) -> None:
        self.status, self.body, self.headers, self.type = status, body, [] if headers is None else headers, type


class Query:
    """The parameters of a URL; reading one marks it, and `done` refuses what nobody read."""

    def __init__(self, raw: bytes) -> None:
        self.pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True) if raw else []
        self._read: set[str] = set()

    def all(self, name: str) -> list[str]:
        self._read.add(name)
        return [value for key, value in self.pairs if key == name]

    def one(self, name: str) -> str | None:
        """Errors: InvalidInput when it is given twice."""
        values = self.all(name)
        if len(values) > 1:
            raise InvalidInput(f"{name} is given {len(values)} times", path=f"?{name}")
        return values[0] if values else None

    def integer(self, name: str) -> int | None:
        """Errors: InvalidInput when it is no whole number from 0."""
        value = self.one(name)
        if value is None:
            return None
        if not (value.isascii() and value.isdigit() and len(value) < 19):
            raise InvalidInput(f"{name} is {value[:40]!r}; it takes a whole number", path=f"?{name}")
        return int(value)

    def flag(self, name: str) -> bool:
        value = self.one(name)
        if value is None or value.lower() in FALSE:
            return False
        if value.lower() in TRUE:
            return True
        raise InvalidInput(f"{name} is {value[:40]!r}; it takes 1 or 0", path=f"?{name}")

    def choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        value = self.one(name)
        if value is not None and value not in allowed:
            raise InvalidInput(f"{name} is {value[:40]!r}; it takes {' or '.join(allowed)}", path=f"?{name}")
        return value

    def done(self) -> None:
        """Errors: InvalidInput naming a parameter that this request does not have: a mistyped filter must not show everything."""
        for key, _ in self.pairs:
            if key not in self._read:
                known = ", ".join(sorted(self._read))
                raise InvalidInput(f"there is no parameter {key[:40]!r} here; known: {known}", path=f"?{key[:40]}")


class Call:
    """One native request."""

    __slots__ = ("_query", "headers", "identity", "method", "param", "receive", "request_id", "scope", "send", "state")

    identity: Identity

    def __init__(
        self,
        state: AppState,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: dict[bytes, bytes],
        request_id: str,
        param: str,
    ) -> None:
        self.state, self.scope, self.receive, self.send = state, scope, receive, send
        self.headers, self.request_id, self.param = headers, request_id, param
        self._query: Query | None = None

    @property
    def query(self) -> Query:
        if self._query is None:
            self._query = Query(self.scope["query_string"])
        return self._query

    def header(self, name: bytes) -> str | None:
        return text(self.headers.get(name))

    async def body(self) -> bytes:
        """The whole body.  Errors: LimitExceeded, Disconnected."""
        settings = self.state.settings
        return await read_body(self.receive, self.headers, limit_bytes=settings.body_bytes_max, limit_s=settings.body_s_max)

    def wait_s(self) -> float | None:
        """What `Prefer: wait=N` asks for, at most the server's own limit; None when it is not asked for (RFC 7240)."""
        prefer = self.headers.get(b"prefer")
        if prefer is None:
            return None
        found = WAIT(prefer)
        return None if found is None else min(float(found[1]), self.state.settings.wait_s_max)


WAIT = re.compile(rb"(?i)(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9}(?:\.\d{1,6})?)").search


async def read_body(receive: Receive, headers: dict[bytes, bytes], *, limit_bytes: int, limit_s: float) -> bytes:
    """The whole body, never more than limit_bytes in memory, within limit_s.  Errors: LimitExceeded, Disconnected."""
    length = headers.get(b"content-length")
    declared = int(length) if length is not None and length.isdigit() else None
    if declared is not None and declared > limit_bytes:
        raise _too_large(limit_bytes, declared)
    try:
        async with asyncio.timeout(limit_s):
            return await _read(receive, limit_bytes, declared)
    except TimeoutError:  # a client that stops in the middle must not keep its place for ever
        raise LimitExceeded(
            f"the body did not come within {limit_s:g} s",
            limit="body_s_max",
            allowed=limit_s,
            hint="the server's setting body_s_max",
        ) from None


async def _read(receive: Receive, limit_bytes: int, declared: int | None) -> bytes:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Disconnected
    body: bytes = message.get("body", b"")
    if len(body) != declared and message.get("more_body", False):  # what is whole is not asked whether it is
        body = await _read_rest(receive, body, limit_bytes)
    if len(body) > limit_bytes:
        raise _too_large(limit_bytes, len(body))
    return body


async def _read_rest(receive: Receive, first: bytes, limit_bytes: int) -> bytes:
    parts, size, more = [first], len(first), True
    while more:
        if size > limit_bytes:
            raise _too_large(limit_bytes, size)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        more = message.get("more_body", False)
    return b"".join(parts)


def _too_large(allowed: int, seen: int) -> LimitExceeded:
    return LimitExceeded(
        f"the body has more than {allowed} bytes",
        limit="body_bytes_max",
        allowed=allowed,
        seen=seen,
        hint="the server's setting body_bytes_max",
    )


def decode(decoder: Callable[[bytes], T], body: bytes) -> T:
    """The typed body.  Errors: InvalidInput with the path of the field."""
    try:
        return decoder(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).rpartition(" - at `")
        where = path.removesuffix("`") if message else "$"
        raise InvalidInput(f"{message or error} at {where}", path=where) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        detail = f"the body is not JSON: {error}" if body else "a JSON body is expected"
        raise InvalidInput(detail, path="$") from error
    except RecursionError:
        raise InvalidInput("the body is nested too deeply", path="$") from None


def base_url(scope: Scope, state: AppState) -> str:
    """The URL that this client reaches the server by, without a slash at the end."""
    if state.settings.public_url:
        return state.settings.public_url.rstrip("/")
    for name, value in scope["headers"]:
        if name == b"host":
            return f"{scope['scheme']}://{value.decode('latin-1')}"
    host, port = scope.get("server") or (state.settings.host, state.settings.port)
    return f"{scope['scheme']}://{host}:{port}"
