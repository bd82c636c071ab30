"""Faults on demand: of the server as its clients see it (`Faults`), and of a store as the engine sees it (`FaultyStore`)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from milepost.errors import StoreUnavailable

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class _Fault(msgspec.Struct, kw_only=True):
    """One thing that goes wrong, so many times."""

    method: str | None
    path: str
    times: int
    status: int | None = None
    headers: dict[str, str] = {}
    body: bytes = b""
    delay_s: float = 0.0
    lose: bool = False

    def fits(self, scope: Scope) -> bool:
        return self.times > 0 and self.method in (None, scope["method"]) and scope["path"].startswith(self.path)


class Faults:
    """What goes wrong between a client and the server: answers replaced, late, or lost after the server did its work.

    Each fault is for requests whose path begins with `path` (and whose method is `method`), the next `times` of them; the oldest
    that fits is used.  Pass it to `serving(faults=…)`, or wrap any ASGI application: `faults.around(app)`.

        faults = Faults()
        faults.answer(429, path="/jobs", times=2, headers={"retry-after": "1"})
        faults.lose_answer(method="POST", path="/jobs")       # the job is made, the client never hears of it
        async with serving(faults=faults) as server:
            ...
        assert faults.seen == 3
    """

    def __init__(self) -> None:
        self._faults: list[_Fault] = []
        self.seen = 0  # faults that happened

    def answer(
        self,
        status: int,
        *,
        path: str = "/",
        method: str | None = None,
        times: int = 1,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Answered so, and not by the server: it does not see the request."""
        self._faults.append(_Fault(method=method, path=path, times=times, status=status, headers=headers or {}, body=body))

    def lose_answer(self, *, path: str = "/", method: str | None = None, times: int = 1) -> None:
        """The server does what was asked; the connection breaks before its answer is whole."""
        self._faults.append(_Fault(method=method, path=path, times=times, lose=True))

    def delay(self, seconds: float, *, path: str = "/", method: str | None = None, times: int = 1) -> None:
        """The server gets the request so much later."""
        self._faults.append(_Fault(method=method, path=path, times=times, delay_s=seconds))

    def clear(self) -> None:
        """Nothing goes wrong from now on."""
        self._faults.clear()

    def around(self, app: App) -> App:
        """The application with these faults before it."""

        async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
            fault = self._take(scope) if scope["type"] == "http" else None
            if fault is None:
                await app(scope, receive, send)
            elif fault.status is not None:
                await _answer(fault, send)
            elif fault.lose:
                await app(scope, receive, _swallow)
                await _break_off(send)
            else:
                await asyncio.sleep(fault.delay_s)
                await app(scope, receive, send)

        return faulty

    def _take(self, scope: Scope) -> _Fault | None:
        for fault in self._faults:
            if fault.fits(scope):
                fault.times -= 1
                self.seen += 1
                return fault
        return None


async def _answer(fault: _Fault, send: Send) -> None:
    headers = {"content-length": str(len(fault.body)), **{name.lower(): value for name, value in fault.headers.items()}}
    lines = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": fault.status, "headers": lines})
    await send({"type": "http.response.body", "body": fault.body})


async def _swallow(_message: MutableMapping[str, Any]) -> None:
    return


async def _break_off(send: Send) -> None:
    """An answer that ends before its end: the connection is closed, the client cannot know what happened."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000000")]})
    await send({"type": "http.response.body", "body": b"{", "more_body": True})
    raise ConnectionError("the answer is lost, as the test asked")


class FaultyStore:
    """A store of which single calls fail: `fail("finish_job", times=3)`; everything else is the store's own.

    `written=True`: the call does its work first, and then fails, as when the connection to a database breaks after its commit.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self._faults: dict[str, deque[tuple[Exception, bool]]] = {}
        self.calls: dict[str, int] = {}  # by method, those of methods with faults

    def fail(self, method: str, *, times: int = 1, written: bool = False, error: Exception | None = None) -> None:
        """The next calls of this method raise `error` (default: StoreUnavailable)."""
        raised = error or StoreUnavailable("the store is away, as the test asked")
        self._faults.setdefault(method, deque()).extend([(raised, written)] * times)

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if name not in self._faults:
            return real

        async def faulty(*args: Any, **options: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            if not self._faults[name]:
                return await real(*args, **options)
            error, written = self._faults[name].popleft()
            if written:
                await real(*args, **options)
            raise error

        return faulty
