"""Rule 16: a submission that nothing stands before is claimed in its own transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from store_house import OK, House, submission

from milepost.errors import InvalidInput
from milepost.job import Callback, Claimed, Failure, Retried, State, WorkerId
from milepost.store import Queue


class Slots:
    """A worker with so many free slots in each queue."""

    def __init__(self, free: int, worker: str = "a") -> None:
        self.worker, self.free = WorkerId(worker), free
        self.started: list[Claimed] = []

    def take(self, _queue: str, wanted: int) -> int:
        count = min(wanted, self.free)
        self.free -= count
        return count

    def give_back(self, _queue: str, count: int) -> None:
        self.free += count

    def start(self, claimed: Sequence[Claimed]) -> None:
        self.started += claimed

    @property
    def ids(self) -> list[str]:
        return [one.job.id for one in self.started]


async def starter(house: House, free: int = 100) -> Slots:
    slots = Slots(free)
    await house.live("a")
    house.store.start_with(slots)
    return slots


USUAL: dict[str, Any] = {}
RICH: dict[str, Any] = {
    "idempotency_key": "k",
    "body_hash": "h",
    "callback": Callback("https://example.org/told"),
    "timeout_s": 5.0,
    "labels": {"a": "b"},
    "attempts_max": 3,
}


@pytest.mark.parametrize("fields", [USUAL, RICH], ids=["usual", "rich"])
async def test_rule_16_a_submission_begins_in_its_own_transaction(house: House, fields: dict[str, Any]) -> None:
    slots = await starter(house)
    added = await house.add(**fields)
    assert added.state is State.READY, "who submits is shown what was submitted"
    (claimed,) = slots.started
    job = await house.job(added.id)
    assert claimed.job == job
    assert (job.state, job.lease_by, job.fence, job.attempt, job.version) == (State.RUNNING, "a", 1, 1, 2)
    assert (job.started_us, job.updated_us) == (house.now_us, house.now_us)
    assert job.labels == fields.get("labels", {})
    events = await house.store.list_events(job_id=job.id)
    assert [(event.seq, event.type, event.state) for event in events] == [(1, "submitted", "ready"), (2, "started", "running")]
    assert await house.end(claimed)
    assert await house.history(job.id) == ["submitted", "started", "succeeded"]
    assert not await house.end(claimed, OK), "its fence is as good as any"


async def test_rule_16_subscribers_are_told_both_steps_in_order(house: House) -> None:
    told: list[Any] = []
    house.store.subscribe(told.extend)
    await starter(house, 2)
    await house.add_many(3)
    told.sort(key=lambda event: event.id)
    assert told == await house.store.list_events()
    assert sorted(event.type for event in told) == ["started", "started", "submitted", "submitted", "submitted"]


async def test_rule_16_who_waits_before_it_stays_before_it(house: House) -> None:
    first = await house.add(priority=4)
    slots = await starter(house)
    behind = [await house.add(priority=5), await house.add(priority=4)]
    before, elsewhere = await house.add(priority=3), await house.add(queue="other", priority=9)
    assert slots.ids == [before.id, elsewhere.id]
    assert [one.job.id for one in await house.claim(10)] == [first.id, behind[1].id, behind[0].id]


async def test_rule_16_of_one_call_those_begin_that_a_claim_would_take(house: House) -> None:
    slots = await starter(house, 2)
    added = await house.store.add_jobs([submission(priority=number) for number in (7, 3, 5, 3)], now_us=house.now_us)
    jobs = [one.job for one in added]
    assert sorted(slots.ids) == sorted([jobs[1].id, jobs[3].id])
    slots.free = 10
    assert [one.job.id for one in await house.claim(10)] == [jobs[2].id, jobs[0].id]


async def test_rule_16_a_paused_queue_begins_nothing(house: House) -> None:
    slots = await starter(house)
    await house.store.set_queue(Queue("q", paused=True))
    job = await house.add()
    assert (slots.started, slots.free, await house.state(job.id)) == ([], 100, State.READY)
    await house.store.set_queue(Queue("q"))
    assert [one.job.id for one in await house.claim()] == [job.id]


async def test_rule_16_held_scheduled_and_overdue_jobs_do_not_begin(house: House) -> None:
    slots = await starter(house)
    later_us = house.now_us + 1_000_000
    held, later, late = await house.add(held=True), await house.add(run_at_us=later_us), await house.add(deadline_us=house.now_us)
    assert (slots.started, slots.free) == ([], 100)
    assert [await house.state(job.id) for job in (held, later, late)] == [State.HELD, State.READY, State.READY]


async def test_rule_16_a_worker_whose_lease_is_over_begins_nothing(house: House) -> None:
    slots = await starter(house)
    house.clock.advance(31)
    job = await house.add()
    assert (slots.started, slots.free, await house.state(job.id)) == ([], 100, State.READY)


async def test_rule_16_what_was_refused_gives_its_slots_back(house: House) -> None:
    slots = await starter(house)
    with pytest.raises(InvalidInput):
        await house.store.add_jobs([submission(), submission(kind="\ud800")], now_us=house.now_us)
    assert (slots.started, slots.free) == ([], 100)
    assert await house.ids() == []


async def test_rule_16_a_claim_is_told_too_and_takes_no_more_than_is_free(house: House) -> None:
    jobs = await house.add_many(5)
    slots = await starter(house, 3)
    assert [one.job.id for one in await house.claim(5)] == [job.id for job in jobs[:3]] == slots.ids
    assert await house.claim(5) == []
    slots.free = 9
    await house.claim(5)
    assert (slots.ids, slots.free) == ([job.id for job in jobs], 7)


async def test_rule_16_ends_when_it_is_told_so(house: House) -> None:
    slots = Slots(100)
    await house.live("a")
    house.store.start_with(slots)()
    job = await house.add()
    assert (slots.started, await house.state(job.id)) == ([], State.READY)
    assert [one.job.id for one in await house.claim()] == [job.id]
    assert slots.started == []


async def test_rule_16_what_began_is_rescued_and_retried_as_any_other(house: House) -> None:
    slots = await starter(house, 1)
    job = await house.add(attempts_max=3)
    house.clock.advance(31)
    await house.rescue()
    assert (await house.job(job.id)).crashes == 1
    assert not await house.end(slots.started[0]), "its lease was lost"
    slots.free = 1
    await house.live("a")
    (again,) = await house.claim()
    assert (again.job.attempt, again.claim.fence) == (2, 2)
    assert await house.end(again, Retried(Failure("x", "y"), house.now_us))
    assert (await house.history(job.id))[-1] == "retrying"


async def test_a_queue_with_a_due_job_is_told_of_once_a_commit(house: House) -> None:
    told: list[str] = []
    house.store.on_ready(told.append)
    await house.add_many(3)
    await house.add(held=True)
    await house.add(run_at_us=house.now_us + 1)
    assert told == ["q"]
    await starter(house)
    await house.add(queue="empty")
    assert told == ["q"], "what has begun is no hint for anybody"
