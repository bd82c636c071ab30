"""Attempts that share a task, and outcomes that share a write."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

from engine_house import House

import milepost
from milepost.errors import InvalidInput
from milepost.job import JobId, State

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
    async with asyncio.timeout(5):
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
