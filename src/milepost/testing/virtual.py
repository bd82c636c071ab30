"""The driver in virtual time: conversations of the client run against a function, without sockets and without sleeping."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable
from typing import Any

from milepost.client.steps import Ask, Collect, Emit, Open, Read, Send, Sleep
from milepost.errors import Unreachable
from milepost.testing.clock import ManualClock
from milepost.wire import Request, Response

STREAM_S = 0.01  # until a stream answers

Server = Callable[[Request], Any]  # a Response, an Unreachable, or (seconds that it takes, either)
Stream = Callable[[Request], tuple[Any, Iterable[Any]]]  # as a server, and its parts: bytes, or (seconds before it, bytes)


class VirtualDriver:
    """Runs conversations with `server`; time passes only while they sleep or wait for an answer.

    What they did is in `asked` (when, and the request), `opened` (streams that were begun beside other requests), `slept`, and
    `emitted` with `emitted_s`.
    """

    def __init__(self, server: Server, *, stream: Stream | None = None, clock: ManualClock | None = None) -> None:
        self.server, self.stream = server, stream
        self.clock = clock or ManualClock(0)
        self.asked: list[tuple[float, Request]] = []
        self.opened: list[tuple[float, Request]] = []
        self.slept: list[float] = []
        self.emitted: list[Any] = []
        self.emitted_s: list[float] = []
        self._back: list[tuple[float, int, Any, Any]] = []  # what comes back, and when
        self._order = 0

    @property
    def now_s(self) -> float:
        return self.clock.monotonic_s()

    def run(self, steps: Generator[Any, Any, Any], *, steps_max: int = 100_000) -> Any:
        """What the conversation returns.  Errors: its own."""
        reply: Any = None
        parts: list[Any] = []
        for _ in range(steps_max):
            try:
                step = steps.send(reply)
            except StopIteration as stop:
                return stop.value
            reply = None
            if isinstance(step, Sleep):
                self.slept.append(step.delay_s)
                self.clock.advance(step.delay_s)
            elif isinstance(step, Ask):
                reply = self._ask(step)
            elif isinstance(step, Send):
                self._begin(step)
            elif isinstance(step, Collect):
                reply = self._collect(step)
            elif isinstance(step, Emit):
                self.emitted.append(step.value)
                self.emitted_s.append(self.now_s)
            elif isinstance(step, Open):
                self.asked.append((self.now_s, step.ask.request))
                assert self.stream is not None
                reply, given = self.stream(step.ask.request)
                parts = list(given)
            elif isinstance(step, Read):
                reply = parts.pop(0) if parts else None
        raise AssertionError("the conversation does not end")

    def _begin(self, step: Send) -> None:
        """What comes back, and when, is known at once."""
        request = step.request
        if isinstance(request, Ask):
            self.asked.append((self.now_s, request.request))
            took_s, answer = self._answer(request)
            self._put(took_s, step.tag, answer)
            return
        self.opened.append((self.now_s, request.ask.request))
        if self.stream is None:
            self._put(STREAM_S, step.tag, Response(404, {}, b""))
            return
        answer, parts = self.stream(request.ask.request)
        self._put(STREAM_S, step.tag, answer)
        if isinstance(answer, Response) and answer.status == 200:
            at_s = STREAM_S
            for part in parts:
                after_s, part = part if isinstance(part, tuple) else (0.0, part)
                at_s += after_s
                self._put(at_s, step.tag, part)

    def _put(self, after_s: float, tag: Any, reply: Any) -> None:
        self._order += 1
        heapq.heappush(self._back, (self.now_s + after_s, self._order, tag, reply))

    def _collect(self, step: Collect) -> list[Any]:
        end_s = self.now_s + step.delay_s
        if not (self._back and self._back[0][0] <= end_s):
            assert step.delay_s < float("inf"), "nothing will ever come"
            self.clock.advance(step.delay_s)
            return []
        come_s = max(self.now_s, self._back[0][0])
        self.clock.advance(come_s - self.now_s)
        found = []
        while self._back and self._back[0][0] <= come_s:
            _, _, tag, reply = heapq.heappop(self._back)
            found.append((tag, reply))
        return found

    def _ask(self, ask: Ask) -> Any:
        self.asked.append((self.now_s, ask.request))
        took_s, answer = self._answer(ask)
        self.clock.advance(took_s)
        return answer

    def _answer(self, ask: Ask) -> tuple[float, Any]:
        assert ask.timeout_s > 0
        answer = self.server(ask.request)
        took_s, answer = answer if isinstance(answer, tuple) else (0.0, answer)
        if took_s >= ask.timeout_s:
            return ask.timeout_s, Unreachable("no answer: timed out", sent=True)
        return took_s, answer
