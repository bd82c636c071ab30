"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any


class _Call:
    """One call that is due at an instant of the clock."""

    __slots__ = ("args", "callback", "due_s", "loop", "off")

    def __init__(
        self, due_s: float, loop: asyncio.AbstractEventLoop, callback: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        self.due_s, self.loop, self.callback, self.args = due_s, loop, callback, args
        self.off = False

    def cancel(self) -> None:
        self.off = True

    def run(self) -> None:
        if not self.off:
            self.callback(*self.args)


class ManualClock:
    """Time passes when the test says so: `advance` moves both clocks and wakes what is due, `jump` moves the wall clock alone.

    Rules
    1. `advance` returns at once; what it woke runs when the test next awaits.  So wait for what should follow, do not sleep.
    2. The wall clock starts at `start_us` (default: the machine's, to the second), the monotonic one at 0.
    3. Both may be read, and moved, from any thread; a call runs on the loop that asked for it.

    A test of an expiry:

        clock = ManualClock()
        async with serving(clock=clock) as server:
            job = (await server.service.submit(Submission(kind="echo"))).job
            await server.ended(job.id)
            clock.advance(49 * 3600)
            with pytest.raises(milepost.Expired):
                await server.service.get(job.id)
    """

    def __init__(self, start_us: int | None = None) -> None:
        self._wall_us = int(time.time()) * 1_000_000 if start_us is None else start_us
        self._passed_s = 0.0
        self._lock = threading.Lock()
        self._calls: list[tuple[float, int, _Call]] = []
        self._number = itertools.count()

    def now_us(self) -> int:
        return self._wall_us

    def monotonic_s(self) -> float:
        return self._passed_s

    async def sleep(self, delay_s: float) -> None:
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.call_later(delay_s, _wake, woken)
        try:
            await woken
        finally:
            timer.cancel()

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> _Call:
        loop = asyncio.get_running_loop()
        with self._lock:
            call = _Call(self._passed_s + max(0.0, delay_s), loop, callback, args)
            if delay_s > 0:
                heapq.heappush(self._calls, (call.due_s, next(self._number), call))
                return call
        loop.call_soon(call.run)
        return call

    def advance(self, seconds: float) -> None:
        """Both clocks are `seconds` later; whoever slept until then is woken, in the order of their times."""
        with self._lock:
            self._passed_s += seconds
            self._wall_us += round(seconds * 1e6)
            due: list[_Call] = []
            while self._calls and self._calls[0][0] <= self._passed_s + 1e-9:
                due.append(heapq.heappop(self._calls)[2])
        for call in due:
            if not call.off and not call.loop.is_closed():
                call.loop.call_soon_threadsafe(call.run)

    def jump(self, seconds: float) -> None:
        """The wall clock is set `seconds` forward, or back when negative; the monotonic clock and sleepers do not notice."""
        with self._lock:
            self._wall_us += round(seconds * 1e6)

    @property
    def sleepers(self) -> int:
        """How many sleeps and timers wait for `advance`."""
        with self._lock:
            return sum(not call.off for _, _, call in self._calls)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
