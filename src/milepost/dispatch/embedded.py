"""Hints within one process and one event loop."""

from __future__ import annotations

import asyncio

from milepost.clock import Clock, SystemClock


class _Bell:
    """Rung any number of times, heard once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rung = False
        self._waiter: asyncio.Future[bool] | None = None

    def ring(self) -> None:
        self._rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    async def wait(self, timeout_s: float) -> bool:
        if not self._rung:
            self._waiter = asyncio.get_running_loop().create_future()
            timer = self._clock.call_later(timeout_s, self._expire, self._waiter)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        rung, self._rung = self._rung, False
        return rung

    @staticmethod
    def _expire(waiter: asyncio.Future[bool]) -> None:
        if not waiter.done():
            waiter.set_result(False)


class EmbeddedDispatch:
    """See `Dispatch` for the rules."""

    def __init__(self, clock: Clock | None = None) -> None:
        clock = clock or SystemClock()
        self._queues: set[str] = set()
        self._work, self._schedule, self._cancel, self._delivery, self._events = (_Bell(clock) for _ in range(5))
        self.queues_changed = self.subscriptions_changed = True

    def announce(self, queue: str) -> None:
        self._queues.add(queue)
        self._work.ring()

    def reschedule(self) -> None:
        self._schedule.ring()

    def announce_cancel(self) -> None:
        self._cancel.ring()

    def announce_delivery(self) -> None:
        self._delivery.ring()

    def announce_queues(self) -> None:
        self.queues_changed = True
        self._work.ring()

    def announce_events(self) -> None:
        self._events.ring()

    def announce_subscriptions(self) -> None:
        self.subscriptions_changed = True
        self._events.ring()

    async def next_work(self, timeout_s: float) -> frozenset[str] | None:
        if not await self._work.wait(timeout_s):
            return None
        queues, self._queues = frozenset(self._queues), set()
        return queues

    async def next_schedule(self, timeout_s: float) -> bool:
        return await self._schedule.wait(timeout_s)

    async def next_cancel(self, timeout_s: float) -> bool:
        return await self._cancel.wait(timeout_s)

    async def next_delivery(self, timeout_s: float) -> bool:
        return await self._delivery.wait(timeout_s)

    async def next_events(self, timeout_s: float) -> bool:
        return await self._events.wait(timeout_s)
