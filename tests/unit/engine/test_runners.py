"""Attempts that share a task, and outcomes that share a write."""

from __future__ import annotations

import asyncio
import gc
from contextvars import ContextVar
from typing import Any

import pytest
from engine_house import House

import milepost
from milepost.errors import InvalidInput
from milepost.job import JobId, State
from milepost.store import Renewal

SEEN: ContextVar[str] = ContextVar("SEEN", default="nothing")


async def test_a_job_sees_no_context_variable_of_the_job_before_it(house: House) -> None:
    @house.kind("leaves")
    async def leaves(job: milepost.Running) -> str:
        found = SEEN.get()
        SEEN.set(job.id)
        return found

    ids = [await house.submit("leaves") for _ in range(3)]
    await house.claim()
    await house.idle()
    assert [(await house.job(job_id)).result for job_id in ids] == [b'"nothing"'] * 3


async def test_a_job_that_waits_holds_up_none_of_those_claimed_with_it(house: House) -> None:
    @house.kind("waits")
    async def waits(job: milepost.Running) -> None:
        await house.signals.stop_at(job.id)

    @house.kind("quick")
    async def quick(job: milepost.Running) -> None:
        pass

    kinds = ["quick", "waits", "waits", "quick", "waits", "quick"]
    ids = [await house.submit(kind) for kind in kinds]
    assert await house.claim() == 6
    async with asyncio.timeout(60):
        while len(house.node.executor.attempts) > 3:
            await asyncio.sleep(0)
    states = [await house.state(job_id) for job_id in ids]
    assert states == [State.RUNNING if kind == "waits" else State.SUCCEEDED for kind in kinds]
    for job_id, kind in zip(ids, kinds, strict=True):
        if kind == "waits":
            house.signals.let_go(job_id)
    await house.idle()
    assert {await house.state(job_id) for job_id in ids} == {State.SUCCEEDED}


async def test_cancelling_one_job_stops_no_other_that_began_in_its_task(house: House) -> None:
    @house.kind("waits")
    async def waits(job: milepost.Running) -> None:
        await house.signals.stop_at(job.id)

    @house.kind("quick")
    async def quick(job: milepost.Running) -> None:
        pass

    ids = [await house.submit(kind) for kind in ("quick", "waits", "waits")]
    await house.claim()
    for job_id in ids[1:]:
        await house.signals.reached(job_id)
    house.node.executor.cancel([JobId(ids[0]), JobId(ids[1])], "not wanted")
    house.signals.let_go(ids[2])
    await house.idle()
    assert [await house.state(job_id) for job_id in ids] == [State.SUCCEEDED, State.CANCELLED, State.SUCCEEDED]


async def test_an_outcome_that_is_refused_costs_its_neighbours_nothing(house: House) -> None:
    @house.kind("quick")
    async def quick(job: milepost.Running) -> str:
        return "kept"

    house.store.fail("finish_jobs", error=InvalidInput("one of them cannot be stored"))
    ids = [await house.submit("quick") for _ in range(3)]
    await house.claim()
    await house.idle()
    assert house.store.calls["finish_jobs"] == 1
    assert [(await house.job(job_id)).result for job_id in ids] == [b'"kept"'] * 3


async def test_a_job_that_waited_leaves_its_task_to_no_other(house: House) -> None:
    """A timeout or a task-local that a function left behind would reach a stranger."""
    tasks: list[asyncio.Task[None] | None] = []
    gate = asyncio.Event()

    @house.kind("leaves")
    async def leaves(job: milepost.Running) -> None:
        tasks.append(asyncio.current_task())
        await gate.wait()

    await house.submit("leaves")
    await house.claim()
    async with asyncio.timeout(60):
        while not tasks:
            await asyncio.sleep(0)
    await house.submit("leaves")
    claimed = await house.store.claim_jobs("default", worker=house.node.worker, now_us=house.clock.now_us(), limit=1)
    gate.set()  # the first one goes on before the second one begins
    house.node.executor.start(claimed)
    await house.idle()
    assert len(tasks) == 2
    assert tasks[0] is not tasks[1]


class Incomparable:
    """As an array of NumPy: `==` gives no bool."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value of an array is ambiguous")

    __hash__ = None  # type: ignore[assignment]


ARRAY: ContextVar[Incomparable] = ContextVar("ARRAY")


async def test_a_context_variable_that_cannot_be_compared_stops_no_job(house: House) -> None:
    @house.kind("sets")
    async def sets(job: milepost.Running) -> None:
        ARRAY.set(Incomparable())

    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    ARRAY.set(Incomparable())
    ids = [await house.submit("sets") for _ in range(3)]
    await house.claim()
    await house.idle()
    await asyncio.sleep(0)
    gc.collect()
    assert [await house.state(job_id) for job_id in ids] == [State.SUCCEEDED] * 3
    assert complaints == [], "a runner broke"


async def test_an_answer_about_an_attempt_that_has_ended_does_not_stop_the_next_one(house: House) -> None:
    """The heartbeat asked while the first attempt ran, and its answer comes while the second one does."""

    @house.kind("twice")
    async def twice(job: milepost.Running) -> None:
        await house.signals.stop_at(f"attempt {job.attempt}")
        if job.attempt == 1:
            raise milepost.RetryableError("again", "once more", delay_s=0.0)

    job_id = await house.started("twice", "attempt 1", attempts_max=2)
    asked = house.node.executor.attempts.copy()
    house.signals.let_go("attempt 1")
    await house.idle()
    await house.claim()
    await house.signals.reached("attempt 2")
    house.node._on_renewal(Renewal(frozenset(), {}), asked)
    house.signals.let_go("attempt 2")
    await house.idle()
    assert await house.state(job_id) == State.SUCCEEDED


async def test_the_last_progress_is_written_before_the_outcome_also_when_its_write_is_under_way(house: House) -> None:
    """Both could come into the same batch of the store, which writes outcomes first."""
    begun, gate = asyncio.Event(), asyncio.Event()
    report = house.store.report_progress

    async def slow_report(*args: Any, **fields: Any) -> Any:
        if args[1].done == 2:
            begun.set()
            await gate.wait()
        return await report(*args, **fields)

    @house.kind("reports")
    async def reports(job: milepost.Running) -> None:
        await job.progress(1)
        await job.progress(2)
        house.clock.advance(house.settings.progress_every_s)
        await begun.wait()

    house.store.report_progress = slow_report
    job_id = await house.submit("reports")
    await house.claim()
    await begun.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    gate.set()
    await house.idle()
    job = await house.job(job_id)
    assert (job.state, job.progress.done) == (State.SUCCEEDED, 2)


@pytest.mark.parametrize(
    ("raised", "state"),
    [
        (milepost.PermanentError("no_such_volume", "it is gone"), State.FAILED),
        (milepost.Cancel("not needed"), State.CANCELLED),
        (milepost.Snooze(5.0), State.READY),
    ],
)
async def test_what_one_task_of_a_group_raises_is_what_the_attempt_came_to(
    house: House, raised: BaseException, state: State
) -> None:
    async def fail() -> None:
        raise raised

    @house.kind("grouped")
    async def grouped(job: milepost.Running) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(3600))
            group.create_task(fail())

    job = await house.run("grouped", attempts_max=3)
    assert job.state == state
    if state is State.READY:
        assert (await house.history(job.id))[-1] == "snoozed"


async def test_a_job_that_ended_leaves_nothing_for_the_garbage_collector(house: House) -> None:
    @house.kind("quick")
    async def quick(job: milepost.Running) -> None:
        await job.progress(1, 2)

    @house.kind("plain")
    def plain(job: milepost.RunningInThread) -> None:
        pass

    @house.kind("bad")
    async def bad(job: milepost.Running) -> None:
        raise milepost.PermanentError("no", "never")

    async def run_some() -> None:
        for kind in ("quick", "plain", "bad"):
            await house.run(kind)

    await run_some()
    gc.collect()
    gc.disable()
    try:
        gc.set_debug(gc.DEBUG_SAVEALL)
        for _ in range(5):
            await run_some()
        gc.collect()
        left = {type(one).__name__ for one in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left.isdisjoint({"Attempt", "Running", "Job", "Reporter"})
