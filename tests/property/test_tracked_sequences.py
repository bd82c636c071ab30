"""Whatever a cloud answers, in whatever order: a tracked job ends once, as the first final answer said, and not before it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost import Cancel, PermanentError, Snooze, State
from milepost.client.budget import Budget
from milepost.client.dialects import dialect
from milepost.client.session import Session
from milepost.client.steps import Ask
from milepost.errors import NotFound, Unreachable
from milepost.job import Claim, Job, JobId, Progress, ProjectId, WorkerId, new_job_id
from milepost.settings import Settings
from milepost.wire import Response
from milepost.work.track import kinds
from milepost.work.track.channel import Channel, cadence_of
from milepost.work.track.spec import TrackInput

FINALS = {"SUCCESS": State.SUCCEEDED, "FAIL": State.FAILED}
ANSWERS = st.one_of(
    st.sampled_from(["INIT", "RUNNING", "SOMETHING_NEW"]),
    st.sampled_from([0, 400, 401, 403, 404, 429, 500, 503]),
    st.just("garbage"),
)


class Time:
    def __init__(self) -> None:
        self.now_s = 1_790_000_000.0

    def now_us(self) -> int:
        return int(self.now_s * 1e6)

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s
        await asyncio.sleep(0)


class Cloud:
    def __init__(self, answers: list[Any]) -> None:
        self.answers, self.given = answers, 0

    async def send(self, ask: Ask) -> Response:
        answer = self.answers[min(self.given, len(self.answers) - 1)]
        self.given += 1
        if answer == 0:
            raise Unreachable("hung up")
        if answer == "garbage":
            return Response(200, {"content-type": "text/html"}, b"<html>")
        if isinstance(answer, int):
            return Response(answer, {"content-type": "application/json"}, b'{"error":{"code":"x","message":"y"}}')
        job = {"job_id": "a" * 32, "job_type": "k", "status": answer, "begin_time": "2026-01-01T00:00:00Z", "entities": {},
               "error_code": "E", "fail_reason": "why"}  # fmt: skip
        return Response(200, {"content-type": "application/json"}, msgspec.json.encode(job))


class Resources:
    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], Any] = {}

    async def get(self, type: str, id: str) -> Any:
        if (type, id) not in self.kept:
            raise NotFound("not there")
        return self.kept[type, id]

    async def put(self, resource: Any, **_: Any) -> Any:
        self.kept[resource.type, resource.id] = resource
        return resource


class Running:
    """What the function sees of a job; each attempt sees the progress of the one before."""

    def __init__(self, time: Time, options: Settings) -> None:
        self.settings, self.now_us, self.resources, self.project = options, time.now_us, Resources(), "demo"
        self.id = new_job_id()
        self.claim = Claim(JobId(self.id), 1, WorkerId("w"))
        self.job: Any = msgspec.structs.replace(_job(self.id), progress=Progress())

    async def progress(self, done: int, total: int | None = None, note: str = "", *, unit: str = "") -> None:
        self.job = msgspec.structs.replace(self.job, progress=Progress(done, total, unit, note))


def _job(id: str) -> Job:
    blank: dict[str, Any] = dict.fromkeys(Job.__struct_fields__)
    return Job(**{**blank, "id": JobId(id), "project": ProjectId("demo"), "created_us": 1, "progress": Progress()})


async def live(answers: list[Any], restarts: set[int]) -> tuple[list[str], int, Running]:
    """How every attempt ended, and how many answers were taken."""
    time, cloud = Time(), Cloud(answers)
    options = Settings(track_vanished_s=1e9, track_refused_s=5)
    running, ends = Running(time, options), []
    session: list[Channel] = []

    def channel() -> Channel:
        opened = Session(dialect("huawei-ecs"), "http://cloud.example", clock=time, project="p", cadence=cadence_of(1.0, 60.0))
        return Channel(opened, cloud, Budget(), clock=time)

    class Channels:
        def of(self, *_: Any) -> Channel:
            return session[-1]

    session.append(channel())
    original, kinds.channels = kinds.channels, Channels  # type: ignore[assignment]
    try:
        spec = TrackInput(handle={"wire": "huawei-ecs", "endpoint": "http://cloud.example", "project": "p", "id": "a" * 32})
        for number in range(400):
            if number in restarts:
                session.append(channel())  # nothing is remembered but what is in the store
            try:
                ended = await kinds.Tracker(running, spec).run()  # type: ignore[arg-type]
            except Snooze as snooze:
                assert snooze.delay_s >= 0
                time.now_s += snooze.delay_s
                continue
            except PermanentError as error:
                ends.append(f"failed {error.code}")
            else:
                ends.append("cancelled" if isinstance(ended, Cancel) else "succeeded")
            if len(ends) == 2:  # the server died before it wrote the outcome: the attempt runs again
                break
    finally:
        kinds.channels = original
    return ends, cloud.given, running


@settings(max_examples=150, deadline=None)
@given(st.lists(ANSWERS, max_size=12), st.sampled_from(sorted(FINALS)), st.sets(st.integers(0, 20), max_size=4))
def test_the_end_arrives_once_and_is_the_first_that_was_said(before: list[Any], final: str, restarts: set[int]) -> None:
    contrary = "FAIL" if final == "SUCCESS" else "SUCCESS"
    ends, given_, running = asyncio.run(live([*before, final, contrary], restarts))
    wanted = "succeeded" if final == "SUCCESS" else "failed E"
    assert ends == [wanted, wanted], "an attempt that runs again ends the same way"
    assert given_ == len(before) + 1, "asked again after the end"
    assert running.job.progress.note.startswith(final)
