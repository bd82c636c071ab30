"""A server made of a function, and a driver in virtual time: conversations run without sockets and without sleeping."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator
from typing import Any

import msgspec

from milepost.client.budget import Budgets
from milepost.client.cadence import Cadence
from milepost.client.dialects import dialect
from milepost.client.places import Places
from milepost.client.session import Session
from milepost.client.steps import Ask, Collect, Emit, Open, Read, Send, Sleep
from milepost.errors import Unreachable
from milepost.job import Progress, State
from milepost.wire import Request, Response
from milepost.wire import native as wire

URL = "http://jobs.example.test"
ID = "0197a000-0000-7000-8000-000000000001"
Server = Callable[[Request], Any]


class VirtualClock:
    """Seconds that pass only when a conversation sleeps or a request takes time."""

    def __init__(self) -> None:
        self.s = 1000.0

    def now_us(self) -> int:
        return int(self.s * 1e6)

    def monotonic_s(self) -> float:
        return self.s

    async def sleep(self, delay_s: float) -> None:
        self.s += delay_s


class Talk:
    """Runs conversations against `server`, which answers a Request with a Response, an Unreachable, or (seconds, either)."""

    def __init__(
        self, server: Server, *, wire: str = "native", stream: Callable[[Request], Any] | None = None, **options: Any
    ) -> None:
        self.clock = VirtualClock()
        self.server, self.stream = server, stream
        self.asked: list[tuple[float, Request]] = []
        self.opened: list[tuple[float, Request]] = []  # streams
        self.slept: list[float] = []
        self._back: list[tuple[float, int, Any, Any]] = []
        self._order = 0
        self.emitted: list[Any] = []
        options.setdefault("cadence", Cadence(jitter=0.0))
        options.setdefault("endpoint", URL)
        options.setdefault("budgets", Budgets())
        options.setdefault("places", Places())
        self.session = Session(dialect(wire), options.pop("endpoint"), clock=self.clock, random=lambda: 0.5, **options)

    def run(self, steps: Generator[Any, Any, Any], *, steps_max: int = 100_000) -> Any:
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
                self.clock.s += step.delay_s
            elif isinstance(step, Ask):
                reply = self._ask(step)
            elif isinstance(step, Send):
                self._begin(step)
            elif isinstance(step, Collect):
                reply = self._collect(step)
            elif isinstance(step, Emit):
                self.emitted.append(step.value)
            elif isinstance(step, Open):
                self.asked.append((self.clock.s, step.ask.request))
                assert self.stream is not None
                reply, parts = self.stream(step.ask.request)
                parts = list(parts)
            elif isinstance(step, Read):
                reply = parts.pop(0) if parts else None
        raise AssertionError("the conversation does not end")

    def _begin(self, step: Send) -> None:
        """What comes back, and when, is known at once."""
        request = step.request
        if isinstance(request, Ask):
            self.asked.append((self.clock.s, request.request))
            took_s, answer = self._answer(request)
            self._put(took_s, step.tag, answer)
            return
        self.opened.append((self.clock.s, request.ask.request))
        if self.stream is None:
            self._put(0.01, step.tag, Response(404, {}, b""))
            return
        answer, parts = self.stream(request.ask.request)
        self._put(0.01, step.tag, answer)
        if isinstance(answer, Response) and answer.status == 200:
            at_s = 0.01
            for part in parts:
                after_s, part = part if isinstance(part, tuple) else (0.0, part)
                at_s += after_s
                self._put(at_s, step.tag, part)

    def _put(self, after_s: float, tag: Any, reply: Any) -> None:
        self._order += 1
        heapq.heappush(self._back, (self.clock.s + after_s, self._order, tag, reply))

    def _collect(self, step: Collect) -> list[Any]:
        end_s = self.clock.s + step.delay_s
        if not (self._back and self._back[0][0] <= end_s):
            assert step.delay_s < float("inf"), "nothing will ever come"
            self.clock.s = end_s
            return []
        self.clock.s = max(self.clock.s, self._back[0][0])
        found = []
        while self._back and self._back[0][0] <= self.clock.s:
            _, _, tag, reply = heapq.heappop(self._back)
            found.append((tag, reply))
        return found

    def _answer(self, ask: Ask) -> tuple[float, Any]:
        assert ask.timeout_s > 0
        answer = self.server(ask.request)
        took_s, answer = answer if isinstance(answer, tuple) else (0.0, answer)
        if took_s >= ask.timeout_s:
            return ask.timeout_s, Unreachable("no answer: timed out", sent=True)
        return took_s, answer

    def _ask(self, ask: Ask) -> Any:
        self.asked.append((self.clock.s, ask.request))
        took_s, answer = self._answer(ask)
        self.clock.s += took_s
        return answer

    @property
    def paths(self) -> list[str]:
        return [request.url.removeprefix(URL) for _, request in self.asked]


def native_body(state: str = "running", id: str = ID, **fields: Any) -> bytes:
    """A job as the native API shows it."""
    body = {
        "id": id,
        "kind": "echo",
        "state": state,
        "project": "default",
        "queue": "default",
        "priority": 5,
        "labels": {},
        "input": {},
        "result": None,
        "progress": Progress(),
        "attempt": 1,
        "attempts_max": 1,
        "sub_jobs": {"total": 0, "by_state": {}},
        "created_at": "2026-03-04T05:06:07.000000Z",
        "updated_at": "2026-03-04T05:06:07.000000Z",
        "run_at": "2026-03-04T05:06:07.000000Z",
        **fields,
    }
    return msgspec.json.encode(body)


def job(
    state: str = "running", id: str = ID, *, status: int = 200, headers: dict[str, str] | None = None, **fields: Any
) -> Response:
    etag = {"etag": f'"{id}-{state}"'}
    return Response(status, {**etag, **(headers or {})}, native_body(state, id, **fields))


def problem(status: int, code: str, detail: str = "no", headers: dict[str, str] | None = None, **fields: Any) -> Response:
    body = wire.Problem(title="", status=status, detail=detail, code=code, **fields)
    return Response(status, {"x-request-id": "req-1", **(headers or {})}, msgspec.json.encode(body))


def task_body(status: str = "processing", id: str = ID, **fields: Any) -> bytes:
    return msgspec.json.encode(
        {
            "id": id,
            "input": {},
            "type": "import",
            "status": status,
            "owner": "p",
            "message": "",
            "result": None,
            "created_at": "2026-03-04T05:06:07Z",
            "updated_at": "2026-03-04T05:06:07Z",
            "self": f"/v2/tasks/{id}",
            "schema": "/v2/schemas/task",
            **fields,
        }
    )


def task(status: str = "processing", id: str = ID, *, http: int = 200, **fields: Any) -> Response:
    return Response(http, {"content-type": "application/json"}, task_body(status, id, **fields))


def lost(*, sent: bool = True) -> Unreachable:
    return Unreachable("no answer from jobs.example.test: connection reset", endpoint=URL, sent=sent)


def script(*answers: Any) -> Server:
    """Answers in turn; the last one for ever."""
    left = list(answers)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]


SUCCEEDED = State.SUCCEEDED
