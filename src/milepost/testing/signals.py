"""Named points in job functions at which a test can stop them and let them go on."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future

PATIENCE_S = 10.0


class _Turnstile:
    """Passes given and taken one for one; whoever takes before one was given waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._given = 0
        self._open = False
        self._waiting: deque[Future[None]] = deque()

    def give(self) -> None:
        with self._lock:
            while self._waiting:
                one = self._waiting.popleft()
                if one.set_running_or_notify_cancel():
                    one.set_result(None)
                    return
            self._given += 1

    def open(self) -> None:
        with self._lock:
            self._open = True
            waiting, self._waiting = self._waiting, deque()
        for one in waiting:
            if one.set_running_or_notify_cancel():
                one.set_result(None)

    def take(self) -> Future[None]:
        future: Future[None] = Future()
        with self._lock:
            if self._open or self._given:
                self._given -= 0 if self._open else 1
                future.set_result(None)
            else:
                self._waiting.append(future)
        return future


class Signals:
    """Lets a test step job functions: they stop at named points until the test lets them go on.

    Works for coroutines and plain functions, from any thread, without sleeping:

        signals = Signals()

        @kinds.kind("copy")
        async def copy(job: milepost.Running) -> None:
            await signals.stop_at("before the copy")
            ...

        await signals.reached("before the copy")      # the test: the function is there now
        ...                                           # look at the job while it is running
        signals.let_go("before the copy")
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrivals: dict[str, _Turnstile] = {}
        self._passes: dict[str, _Turnstile] = {}

    def _of(self, where: dict[str, _Turnstile], name: str) -> _Turnstile:
        with self._lock:
            return where.setdefault(name, _Turnstile())

    async def stop_at(self, name: str) -> None:
        """In a coroutine: say that it arrived, and wait until the test lets it go."""
        self._of(self._arrivals, name).give()
        await asyncio.wrap_future(self._of(self._passes, name).take())

    def stop_thread_at(self, name: str, *, patience_s: float = PATIENCE_S) -> None:
        """The same in a plain function.  Errors: TimeoutError when nobody lets it go, so that no thread stays for ever."""
        self._of(self._arrivals, name).give()
        self._of(self._passes, name).take().result(patience_s)

    def say(self, name: str) -> None:
        """In any function: arrived here, without stopping."""
        self._of(self._arrivals, name).give()

    async def reached(self, name: str, *, patience_s: float = PATIENCE_S) -> None:
        """In the test: return when a function arrived there; each arrival counts once.  Errors: TimeoutError."""
        try:
            async with asyncio.timeout(patience_s):
                await asyncio.wrap_future(self._of(self._arrivals, name).take())
        except TimeoutError:
            raise TimeoutError(f"no function reached {name!r} within {patience_s:g} s") from None

    def let_go(self, name: str, times: int = 1) -> None:
        """So many may pass this point: those that wait there, or the next to come."""
        for _ in range(times):
            self._of(self._passes, name).give()

    def open(self, name: str) -> None:
        """From now on nobody stops at this point."""
        self._of(self._passes, name).open()
