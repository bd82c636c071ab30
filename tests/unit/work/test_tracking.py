"""The tracker in time that the test moves: what is asked, when, how often, and what each answer leads to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from milepost import Cancel, PermanentError, State
from milepost.client.budget import Budget, Limit
from milepost.client.dialects import dialect
from milepost.client.session import Session
from milepost.client.steps import Ask
from milepost.errors import Expired, NotFound, Throttled, Unauthenticated, Unreachable
from milepost.job import Failure, Progress
from milepost.tracking import Tracked
from milepost.wire import JobView, Response
from milepost.work.track.channel import Channel, cadence_of
from milepost.work.track.mirror import decode_view, encode_view, end_of, progress_of, sub_inputs, sub_jobs

ENDPOINT = "http://cloud.example"


class Time:
    """Passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def now_us(self) -> int:
        return int(self.now_s * 1e6)

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s
        await asyncio.sleep(0)


class Cloud:
    """Answers as it is told; keeps what it was asked."""

    def __init__(self, time: Time) -> None:
        self.time, self.asked = time, []
        self.answer: Callable[[Ask], Response] = lambda ask: task(ask.request.url.rpartition("/")[2], "processing")

    async def send(self, ask: Ask) -> Response:
        self.asked.append((self.time.now_s, ask.request.url.removeprefix(ENDPOINT)))
        await asyncio.sleep(0)
        return self.answer(ask)


def task(id: str, status: str, code: int = 200) -> Response:
    body = {"id": id, "type": "import", "status": status, "created_at": "2026-01-01T00:00:00Z",
            "updated_at": "2026-01-01T00:00:00Z", "message": "", "input": {}, "result": None}  # fmt: skip
    return Response(code, {"content-type": "application/json"}, msgspec.json.encode(body))


def page(*tasks: Response) -> Response:
    bodies = [msgspec.json.decode(one.body) for one in tasks]
    shown = {"tasks": bodies, "first": "/v2/tasks", "schema": "/v2/schemas/tasks"}
    return Response(200, {"content-type": "application/json"}, msgspec.json.encode(shown))


class House:
    def __init__(self, wire: str = "huawei-ecs", per_s: float = 1000.0) -> None:
        self.time = Time()
        self.cloud = Cloud(self.time)
        self.session = Session(
            dialect(wire), ENDPOINT, clock=self.time, project="p", cadence=cadence_of(1.0, 120.0), random=lambda: 0.5
        )
        self.budget = Budget(Limit(per_s, 1.0))
        self.channel = Channel(self.session, self.cloud, self.budget, clock=self.time, random=lambda: 0.5)


def huawei(id: str, status: str) -> Response:
    body = {"job_id": id, "job_type": "createServer", "status": status, "begin_time": "2026-01-01T00:00:00Z", "entities": {}}
    return Response(200, {"content-type": "application/json"}, msgspec.json.encode(body))


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    house.cloud.answer = lambda ask: huawei(ask.request.url.rpartition("/")[2], "RUNNING")
    yield house


async def test_two_questions_about_one_job_are_one(house: House) -> None:
    found = await asyncio.gather(*(house.channel.probe("a") for _ in range(10)), house.channel.probe("b"))
    assert len(house.cloud.asked) == 2
    assert {one.view.id for one in found if one.view} == {"a", "b"}


async def test_one_page_of_tasks_answers_for_many() -> None:
    house = House("glance")
    house.cloud.answer = lambda ask: page(*(task(f"t{n}", "processing") for n in range(50)))
    found = await asyncio.gather(*(house.channel.probe(f"t{n}") for n in range(50)))
    assert len(house.cloud.asked) == 1
    assert [one.view.state for one in found if one.view] == [State.RUNNING] * 50


async def test_a_job_that_a_page_shows_ended_is_asked_for_itself() -> None:
    """A page leaves its result out."""
    house = House("glance")
    tasks = [task("t0", "success"), *(task(f"t{n}", "processing") for n in range(1, 5))]
    house.cloud.answer = lambda ask: page(*tasks) if "?" in ask.request.url else task("t0", "success")
    found = await asyncio.gather(*(house.channel.probe(f"t{n}") for n in range(5)))
    assert [path for _, path in house.cloud.asked][1:] == ["/v2/tasks/t0"]
    assert found[0].view is not None
    assert found[0].view.done


async def test_a_thousand_jobs_due_at_once_keep_to_the_budget(house: House) -> None:
    """As after a restart: each comes again when its turn is, and none is turned away twice."""
    house.channel._budget = Budget(Limit(10, 1.0))
    end_s, times_asked = house.time.now_s + 150, dict.fromkeys((f"j{n}" for n in range(1000)), 0)
    due = dict.fromkeys(times_asked, house.time.now_s)
    while due and house.time.now_s < end_s:
        now = [id for id, at_s in due.items() if at_s <= house.time.now_s]
        if not now:
            house.time.now_s = min(due.values())
            continue
        for id, one in zip(now, await asyncio.gather(*map(house.channel.probe, now)), strict=True):
            times_asked[id] += 1
            if one.view is None:
                assert one.error is None
                due[id] = house.time.now_s + one.delay_s
            else:
                del due[id]
    assert due == {}
    assert max(times_asked.values()) <= 3
    sent = [at_s for at_s, _ in house.cloud.asked]
    assert len(sent) == 1000
    assert sent[-1] - sent[0] >= 95
    assert all(later - sooner >= 5 for sooner, later in zip(sent, sent[100:], strict=False)), "a burst"


async def test_a_cloud_that_does_not_answer_is_asked_by_one_at_a_time(house: House) -> None:
    def away(ask: Ask) -> Response:
        raise Unreachable("the connection failed")

    house.cloud.answer = away
    await house.channel.probe("first")
    asked = len(house.cloud.asked)
    house.time.now_s = house.channel._down_until_s
    found = await asyncio.gather(*(house.channel.probe(f"j{n}") for n in range(100)))
    assert len(house.cloud.asked) == asked + 1
    assert all(isinstance(one.error, Unreachable) for one in found)
    before = len(house.cloud.asked)
    again = await house.channel.probe("j5")
    assert len(house.cloud.asked) == before
    assert again.delay_s > 0


async def test_an_answer_ends_the_outage_for_everybody(house: House) -> None:
    house.channel._fell_silent(Unreachable("away"))
    house.time.now_s = house.channel._down_until_s
    found = await asyncio.gather(*(house.channel.probe(f"j{n}") for n in range(20)))
    assert all(one.view is not None for one in found)


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (401, {}, Unauthenticated),
        (404, {}, NotFound),
        (410, {}, Expired),
        (500, {}, Unreachable),
        (429, {"retry-after": "9"}, None),
    ],
)
async def test_each_refusal_is_told_as_what_it_is(house: House, status: int, headers: dict[str, str], kind: Any) -> None:
    house.cloud.answer = lambda ask: Response(status, headers, b"{}")
    found = await house.channel.probe("a")
    assert found.view is None
    if kind is None:
        assert isinstance(found.error, Unreachable | Throttled)
        assert found.delay_s >= 9
    else:
        assert isinstance(found.error, kind)


async def test_a_place_that_is_not_asked_is_a_permanent_error(house: House) -> None:
    def guarded(ask: Ask) -> Response:
        raise PermanentError("forbidden", "not a public address")

    house.cloud.answer = guarded
    found = await house.channel.probe("a")
    assert isinstance(found.error, PermanentError)


async def test_nobody_waits_for_ever_when_something_unforeseen_happens(house: House) -> None:
    def broken(ask: Ask) -> Response:
        raise ZeroDivisionError

    house.cloud.answer = broken
    async with asyncio.timeout(60):
        found = await house.channel.probe("a")
    assert found.error is not None


# --- from the cloud's view to ours -------------------------------------------------------------------------------------


def view(state: State = State.RUNNING, **more: Any) -> JobView:
    return JobView(id="x", kind="k", state=state, status=str(state).upper(), raw={"big": "raw"}, **more)


def test_the_end_is_the_foreign_end() -> None:
    assert end_of(State.SUCCEEDED, "SUCCESS", {"a": 1}, None, result_bytes_max=100) == {"a": 1}
    with pytest.raises(PermanentError) as failed:
        end_of(State.FAILED, "FAIL", None, Failure("Ecs.0114", "no such flavor", {"a": 1}), result_bytes_max=100)
    assert (failed.value.code, failed.value.message, failed.value.details) == ("Ecs.0114", "no such flavor", {"a": 1})
    assert isinstance(end_of(State.CANCELLED, "FAIL", None, None, result_bytes_max=100), Cancel)
    assert "left_out" in end_of(State.SUCCEEDED, "SUCCESS", "x" * 200, None, result_bytes_max=100)


def test_a_view_is_kept_without_the_raw_answer() -> None:
    kept = decode_view(encode_view(view(sub_jobs=(view(State.FAILED, error=Failure("c", "m")),), result={"a": [1]})))
    assert kept.raw is None
    assert kept.sub_jobs[0].raw is None
    assert kept.sub_jobs[0].error == Failure("c", "m")


def test_sub_jobs_show_as_progress_and_end_as_they_did() -> None:
    whole = view(sub_jobs=(view(State.SUCCEEDED, result={"id": 1}), view(State.RUNNING)))
    record = Tracked(view=encode_view(whole), status="RUNNING")
    assert progress_of(record, None) == Progress(1, 2, "sub-jobs", "RUNNING")
    made = sub_jobs(sub_inputs(whole), bytes_max=10_000)
    assert [one.input.state for one in made] == [State.SUCCEEDED, State.RUNNING]


@pytest.mark.parametrize(
    ("field", "words"),
    [("stale_since_us", "stale since"), ("refused_since_us", "refused since"), ("missing_since_us", "not found")],
)
def test_trouble_is_said_with_what_was_seen_last(field: str, words: str) -> None:
    record = Tracked(view=encode_view(view()), status="RUNNING", trouble="why", **{field: 1})
    note = progress_of(record, "2026-01-01T00:00:00Z").note
    assert words in note
    assert "2026-01-01" in note
    assert "why" in note
    assert "RUNNING" in note
