"""HTTP as two methods: `send` and `stream`.  The only file that knows the driver, pyreqwest, and its errors.

Redirects are never followed: a token must not travel to a host that nobody named.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, Protocol

from pyreqwest.client import Client as HttpClient
from pyreqwest.client import ClientBuilder, SyncClientBuilder
from pyreqwest.client import SyncClient as SyncHttpClient
from pyreqwest.exceptions import ConnectError, PyreqwestError

from milepost.client.steps import Ask, Open
from milepost.errors import InvalidInput, Unreachable
from milepost.wire import Response

YEAR_S = 31_536_000.0  # as good as no timeout
SENSITIVE = ("authorization", "x-auth-token", "x-security-token")


class Parts(Protocol):
    """An answer that is read in parts."""

    response: Response  # without its body

    def read(self) -> bytes | None:
        """The next part, None at the end.  Errors: Unreachable."""
        ...


class AsyncParts(Protocol):
    response: Response

    async def read(self) -> bytes | None: ...


class Transport:
    """Sends requests, blocking.  Safe to use from several threads."""

    def __init__(self, *, user_agent: str, verify: bool = True, ca_pem: bytes | None = None) -> None:
        self._tls = (user_agent, verify, ca_pem)
        self._http: SyncHttpClient | None = None

    def send(self, ask: Ask) -> Response:
        """Errors: Unreachable; InvalidInput when the URL or a header cannot be sent at all."""
        self._http = self._http or _configure(SyncClientBuilder(), *self._tls).build()
        try:
            answer = _build(self._http, ask).timeout(_seconds(ask.timeout_s)).build().send()
            return _response(answer, bytes(answer.bytes()))
        except (PyreqwestError, ValueError) as error:
            raise _mapped(error, ask) from error

    @contextmanager
    def stream(self, opening: Open) -> Iterator[Parts]:
        """Errors: as `send`.  Rules: a client of its own, so that closing it ends the stream at once."""
        ask = opening.ask
        try:
            http = _configure(SyncClientBuilder(), *self._tls).read_timeout(_seconds(opening.silence_s)).build()
            request = _build_stream(http, ask)
            with http, request as answer:
                yield _Parts(answer, ask)
        except (PyreqwestError, ValueError) as error:
            raise _mapped(error, ask) from error

    def close(self) -> None:
        if self._http is not None:
            self._http.close()


class AsyncTransport:
    """Sends requests on the running loop."""

    def __init__(self, *, user_agent: str, verify: bool = True, ca_pem: bytes | None = None) -> None:
        self._tls = (user_agent, verify, ca_pem)
        self._http: HttpClient | None = None

    async def send(self, ask: Ask) -> Response:
        """Errors: Unreachable; InvalidInput when the URL or a header cannot be sent at all."""
        self._http = self._http or _configure(ClientBuilder(), *self._tls).build()
        try:
            answer = await _build(self._http, ask).timeout(_seconds(ask.timeout_s)).build().send()
            return _response(answer, bytes(await answer.bytes()))
        except (PyreqwestError, ValueError) as error:
            raise _mapped(error, ask) from error

    @asynccontextmanager
    async def stream(self, opening: Open) -> AsyncIterator[AsyncParts]:
        """Errors: as `send`.  Rules: a client of its own, so that closing it ends the stream at once."""
        ask = opening.ask
        try:
            http = _configure(ClientBuilder(), *self._tls).read_timeout(_seconds(opening.silence_s)).build()
            request = _build_stream(http, ask)
            async with http, request as answer:
                yield _AsyncParts(answer, ask)
        except (PyreqwestError, ValueError) as error:
            raise _mapped(error, ask) from error

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()


class _Parts:
    def __init__(self, answer: Any, ask: Ask) -> None:
        self._reader, self._ask = answer.body_reader, ask
        self.response = _response(answer, b"")

    def read(self) -> bytes | None:
        try:
            part = self._reader.read_chunk()
        except PyreqwestError as error:
            raise _mapped(error, self._ask) from error
        return None if part is None else bytes(part)


class _AsyncParts:
    def __init__(self, answer: Any, ask: Ask) -> None:
        self._reader, self._ask = answer.body_reader, ask
        self.response = _response(answer, b"")

    async def read(self) -> bytes | None:
        try:
            part = await self._reader.read_chunk()
        except PyreqwestError as error:
            raise _mapped(error, self._ask) from error
        return None if part is None else bytes(part)


def _configure(builder: Any, user_agent: str, verify: bool, ca_pem: bytes | None) -> Any:
    builder = builder.user_agent(user_agent).follow_redirects(False).connect_timeout(_seconds(10))
    if ca_pem is not None:
        builder = builder.add_root_certificate_pem(ca_pem)
    if not verify:
        builder = builder.danger_accept_invalid_certs(True)
    return builder


def _build(http: Any, ask: Ask) -> Any:
    builder = http.request(ask.request.method, ask.request.url)
    for name, value in ask.request.headers.items():
        builder = builder.header(name, value, is_sensitive=name.lower() in SENSITIVE)
    return builder if ask.request.body is None else builder.body_bytes(ask.request.body)


def _build_stream(http: Any, ask: Ask) -> Any:
    """Without a read buffer: with one, the first part comes only when the buffer is full or the stream has ended."""
    return _build(http, ask).timeout(_seconds(ask.timeout_s)).streamed_read_buffer_limit(0).build_streamed()


def _response(answer: Any, body: bytes) -> Response:
    headers: dict[str, str] = {}
    for name, value in answer.headers.items():
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return Response(answer.status, headers, body)


def _mapped(error: Exception, ask: Ask) -> Exception:
    where = _origin(ask.request.url)
    if not isinstance(error, PyreqwestError):
        return InvalidInput(f"{ask.request.method} {ask.request.url} cannot be sent: {error}", path="$.url")
    causes: list[Any] = (getattr(error, "details", None) or {}).get("causes") or []
    cause = causes[-1]["message"] if causes else error.message
    # `sent` is False only where the request surely never left: a submit without an idempotency key may then be sent again.
    return Unreachable(f"no answer from {where}: {cause}", endpoint=where, sent=not isinstance(error, ConnectError))


def _origin(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    return scheme + mark + rest.partition("/")[0].rpartition("@")[2]


def _seconds(value_s: float) -> timedelta:
    return timedelta(seconds=min(max(value_s, 0.001), YEAR_S))
