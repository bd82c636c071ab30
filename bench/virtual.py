"""Virtual time for conversations of the client: requests are answered by a function, and time passes only by waiting."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator
from typing import Any

from milepost.client.budget import Budgets, Limit
from milepost.client.cadence import Cadence
from milepost.client.dialects import dialect
from milepost.client.places import Places
from milepost.client.session import Session
from milepost.client.steps import Ask, Collect, Emit, Send, Sleep
from milepost.clock import Timer
from milepost.wire import Request, Response

RTT_S = 0.05


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def now_us(self) -> int:
        return int(self.s * 1e6)

    def monotonic_s(self) -> float:
        return self.s

    async def sleep(self, delay_s: float) -> None:
        self.s += delay_s

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> Timer:
        raise NotImplementedError  # a conversation waits by its steps


class Virtual:
    """One client of one cloud; `answer(request, now_s)` is the cloud."""

    def __init__(
        self,
        wire: str,
        answer: Callable[[Request, float], Response],
        roll: Callable[[], float],
        *,
        limit: Limit | None = None,
        cadence: Cadence | None = None,
    ) -> None:
        self.clock = Clock()
        self._answer = answer
        self._back: list[tuple[float, int, Any, Response]] = []
        self._order = 0
        self.session = Session(
            dialect(wire),
            "https://cloud.example.test",
            clock=self.clock,
            project="p",
            random=roll,
            limit=limit,
            cadence=cadence,
            budgets=Budgets(),
            places=Places(),
        )

    def run(self, steps: Generator[Any, Any, Any], emitted: Callable[[Any], None]) -> None:
        reply: Any = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration:
                return
            reply = None
            if isinstance(step, Send):
                assert isinstance(step.request, Ask)
                self._order += 1
                answer = self._answer(step.request.request, self.clock.s + RTT_S / 2)
                heapq.heappush(self._back, (self.clock.s + RTT_S, self._order, step.tag, answer))
            elif isinstance(step, Collect):
                reply = self._collect(step.delay_s)
            elif isinstance(step, Sleep):
                self.clock.s += step.delay_s
            elif isinstance(step, Emit):
                emitted(step.value)
            else:
                raise AssertionError(f"a bulk wait does not ask for {step}")

    def _collect(self, delay_s: float) -> list[tuple[Any, Response]]:
        end_s = self.clock.s + delay_s
        if not self._back or self._back[0][0] > end_s:
            self.clock.s = end_s
            return []
        self.clock.s = max(self.clock.s, self._back[0][0])
        found = []
        while self._back and self._back[0][0] <= self.clock.s:
            _, _, tag, answer = heapq.heappop(self._back)
            found.append((tag, answer))
        return found
