"""A rehearsal as an ASGI application: any wire, scripted jobs, faults, and the record of what was asked.

A request is matched to its route, may be broken by a fault, is answered with the wire's own encoders, and written down.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from email.utils import formatdate
from typing import Any

import msgspec

from milepost.errors import MilepostError
from milepost.rehearsal import faults as broken
from milepost.rehearsal.control import Control
from milepost.rehearsal.faults import Faults
from milepost.rehearsal.http import Answer, Ask, Route, problem_of, refuse_problem
from milepost.rehearsal.record import Asked, Record
from milepost.rehearsal.scenario import Break, Fault, Scenario
from milepost.rehearsal.stage import Stage
from milepost.rehearsal.timeline import Timeline
from milepost.rehearsal.wires import REFUSALS, routes
from milepost.wire import rfc3339
from milepost.wire.glance.errors import Refusal as GlanceRefusal
from milepost.wire.huawei.errors import Refusal as HuaweiRefusal
from milepost.wire.qiniu.errors import Refusal as QiniuRefusal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
BODY_BYTES_MAX = 16 << 20


class RehearsalApp:
    """The application.  `stage`, `record` and `faults` may be used by whoever runs it, on its loop."""

    def __init__(self, scenario: Scenario, *, virtual: bool | None = None) -> None:
        whole = scenario.rehearsal
        self.time = Timeline(
            virtual=whole.virtual if virtual is None else virtual, start_us=scenario.start_us, skew_s=whole.clock_skew_s
        )
        self.stage = Stage(scenario, self.time)
        self.record = Record(whole.requests_kept)
        self.faults = Faults(scenario.faults, whole.seed)
        self._routes = [*routes(whole.wires), *Control(self.stage, self.faults, self.record).routes()]

    def close(self) -> None:
        """End streams and long polls, those to come too."""
        self.time.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun_s = time.monotonic()
        ask = Ask(
            method="GET" if scope["method"] == "HEAD" else scope["method"],
            path=scope["path"],
            query=scope["query_string"].decode("latin-1"),
            headers={name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]},
            body=await _body(receive),
            number=0,
        )
        route = self._match(ask)
        if route is not None and route.action == "control":
            await self._send(await self._answer(route, ask), None, scope, send)
            return
        wire, action = ("native", "unknown") if route is None else (route.wire, route.action)
        ask.number = self.record.next_number()
        at_s = self.time.elapsed_s()
        fault = self.faults.take(ask, wire=wire, action=action, at_s=at_s, job=lambda: self._job_name(ask))
        answer = await self._broken(route, ask, wire, fault)
        lost = fault is not None and fault.do in (Break.RESET, Break.LOSE)
        # Written before it is sent: whoever has the answer finds it in the record.
        self.record.add(
            Asked(
                number=ask.number,
                at_s=round(at_s, 6),
                at=rfc3339(self.time.start_us + round(at_s * 1e6)) or "",
                wire=wire,
                action=action,
                method=ask.method,
                path=f"{ask.path}?{ask.query}" if ask.query else ask.path,
                client=ask.headers.get("x-rehearsal-client") or ask.headers.get("user-agent", ""),
                job=answer.job or self._job_name(ask),
                job_id=answer.job_id,
                poll=answer.poll,
                jobs=answer.jobs,
                state=answer.state,
                found=answer.found,
                status=None if lost else answer.status,
                fault=None if fault is None else fault.do.value,
                took_s=round(time.monotonic() - begun_s, 6),
            )
        )
        await self._send(answer, fault, scope, send, wire=wire, number=ask.number)

    def _match(self, ask: Ask) -> Route | None:
        for route in self._routes:
            if route.method == ask.method and (found := route.pattern.fullmatch(ask.path)):
                ask.params = found.groupdict()
                return route
        return None

    def _job_name(self, ask: Ask) -> str | None:
        """Of the job that the request names, None when it names none."""
        text = ask.params.get("job_id") or ask.params.get("id") or ask.one("id")
        actor = None if text is None else self.stage.find(text)
        return None if actor is None else actor.name

    async def _broken(self, route: Route | None, ask: Ask, wire: str, fault: Fault | None) -> Answer:
        """The answer, or what a fault puts into its place."""
        if fault is not None and fault.do is Break.ANSWER:
            return broken.answer_of(fault, ask, REFUSALS[wire], self.time.now_us() + self.time.skew_us)
        if fault is not None and fault.do is Break.RESET:
            return Answer(status=0)
        answer = await self._answer(route, ask)
        return broken.garbage(fault) if fault is not None and fault.do is Break.GARBAGE else answer

    async def _answer(self, route: Route | None, ask: Ask) -> Answer:
        if route is None:
            return refuse_problem(ask, 404, f"the rehearsal has no {ask.method} {ask.path}", {})
        try:
            return await route.handler(self.stage, ask)
        except HuaweiRefusal as refusal:
            from milepost.rehearsal.wires.huawei import refused

            return refused(ask, refusal)
        except GlanceRefusal as refusal:
            return REFUSALS["glance"](ask, refusal.status, refusal.message, refusal.headers)
        except QiniuRefusal as refusal:
            return REFUSALS["qiniu"](ask, refusal.status, refusal.text, refusal.headers)
        except MilepostError as error:
            return problem_of(error)

    async def _send(
        self, answer: Answer, fault: Fault | None, scope: Scope, send: Send, *, wire: str = "rehearsal", number: int = 0
    ) -> None:
        headers = [(name.encode(), value.encode("latin-1")) for name, value in answer.headers.items()]
        headers += [(name, value.encode()) for name, value in request_ids(wire, number)]
        shown_s = (self.time.now_us() + self.time.skew_us) / 1e6
        headers.append((b"date", formatdate(shown_s, usegmt=True).encode()))
        if answer.stream is not None and fault is None:
            await _stream(answer, headers, send)
            return
        if answer.body:
            headers.append((b"content-type", answer.type.encode()))
        if answer.status not in (204, 304):
            headers.append((b"content-length", b"%d" % len(answer.body)))
        if scope["method"] == "HEAD":
            answer = msgspec.structs.replace(answer, body=b"")
        await broken.send(answer, fault, scope, send, headers)


def request_ids(wire: str, number: int) -> list[tuple[bytes, str]]:
    """The id of a request as its wire tells it; it is the number in the record.

    Qiniu's SDKs take an answer without X-Reqid for one of somebody else's server.
    """
    if wire == "qiniu":
        return [(b"x-reqid", f"rehearsal{number:07d}"), (b"x-log", "rehearsal")]
    if wire in ("glance", "keystone"):
        return [(b"x-openstack-request-id", f"req-{number:032x}")]
    return [(b"x-request-id", f"{number:032x}")]


async def _stream(answer: Answer, headers: list[tuple[bytes, bytes]], send: Send) -> None:
    assert answer.stream is not None
    headers.append((b"content-type", answer.type.encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async for piece in answer.stream:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _body(receive: Receive) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if message["type"] == "http.disconnect" or not message.get("more_body") or size > BODY_BYTES_MAX:
            return b"".join(parts)


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
