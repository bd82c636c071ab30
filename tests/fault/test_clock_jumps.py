"""A wall clock that jumps: no living worker loses its jobs, no job is lost, ids and events stay in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from milepost.engine.kinds import Kinds
from milepost.job import FINAL, EventType, JobId, State, Submission, Succeeded, WorkerId
from milepost.settings import Settings
from milepost.testing import ManualClock
from milepost.wiring import System, running_system

pytestmark = pytest.mark.fault

HOUR_S = 3600.0


class Bench:
    """A running system whose clock the test moves, and a gate that its jobs wait at."""

    def __init__(self, system: System, clock: ManualClock, gate: asyncio.Event) -> None:
        self.system, self.clock, self.gate = system, clock, gate
        self.begun: list[str] = []

    async def submit(self, **fields: Any) -> JobId:
        return (await self.system.service.submit(Submission(kind="gated", **fields))).job.id

    async def until(self, job_id: JobId, *states: State) -> Any:
        async with asyncio.timeout(60):
            while (job := await self.system.service.get(job_id)).state not in states:
                await asyncio.sleep(0.005)
        return job


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    kinds, gate, clock = Kinds(), asyncio.Event(), ManualClock()

    async def gated(job: Any) -> None:
        bench.begun.append(job.id)
        await gate.wait()

    kinds.kind("gated")(gated)
    settings = Settings(data=str(tmp_path / "data"), stop_grace_s=0, lease_s=30, heartbeat_s=5)
    async with running_system(settings, kinds=kinds, clock=clock) as system:
        bench = Bench(system, clock, gate)
        yield bench


@pytest.mark.parametrize("jump_s", [HOUR_S, 31.0, -HOUR_S, 400 * 24 * HOUR_S])
async def test_a_running_job_is_not_taken_from_its_living_worker(bench: Bench, jump_s: float) -> None:
    job_id = await bench.submit()
    await bench.until(job_id, State.RUNNING)
    bench.clock.jump(jump_s)
    for _ in range(3):
        assert await bench.system.node.rescuer.run_once() == 0
        await bench.system.node.heartbeat.run_once()
    later = await bench.submit()
    bench.gate.set()
    assert (await bench.until(job_id, *FINAL)).state is State.SUCCEEDED
    if jump_s < 400 * HOUR_S:
        assert (await bench.until(later, *FINAL)).attempt == 1
    assert bench.begun.count(job_id) == 1
    events = await bench.system.store.list_events(job_id=job_id)
    assert [event.type for event in events] == [EventType.SUBMITTED, EventType.STARTED, EventType.SUCCEEDED]
    assert later > job_id


async def test_after_a_jump_another_living_worker_has_a_lease_s_time_to_renew_and_a_dead_one_is_found(bench: Bench) -> None:
    store, clock = bench.system.store, bench.clock
    await store.renew_lease(WorkerId("living"), now_us=clock.now_us(), lease_s=30)
    await store.renew_lease(WorkerId("dead"), now_us=clock.now_us(), lease_s=30)
    claims = {}
    for worker in ("living", "dead"):
        bench.system.node.claimer._limits[f"of-{worker}"] = 0  # its own worker has no place for them
        submission = Submission(kind="gated", queue=f"of-{worker}")
        await store.add_jobs([submission], now_us=clock.now_us())
        (claims[worker],) = await store.claim_jobs(f"of-{worker}", worker=WorkerId(worker), now_us=clock.now_us(), limit=1)
    clock.jump(HOUR_S)
    assert await bench.system.node.rescuer.run_once() == 0
    await store.renew_lease(WorkerId("living"), now_us=clock.now_us(), lease_s=300)
    clock.advance(31)
    async with asyncio.timeout(60):  # its own loop may have been woken by the clock, and been faster
        while not [event for event in await store.list_events(job_id=claims["dead"].job.id) if event.type is EventType.RESCUED]:
            await bench.system.node.rescuer.run_once()
            await asyncio.sleep(0.005)
    assert not await store.finish_job(claims["dead"].claim, Succeeded(b"1"), now_us=clock.now_us())
    assert await store.finish_job(claims["living"].claim, Succeeded(b"1"), now_us=clock.now_us())


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
async def test_a_scheduled_job_runs_when_the_new_clock_says_so(bench: Bench, jump_s: float) -> None:
    bench.gate.set()
    run_at_us = bench.clock.now_us() + 600_000_000
    job_id = await bench.submit(run_at_us=run_at_us)
    bench.clock.jump(jump_s)
    await bench.system.node.scheduler.run_once()
    if jump_s < 0:
        assert (await bench.system.service.get(job_id)).state is State.READY
        assert bench.begun == []
        bench.clock.advance(HOUR_S + 601)
        await bench.system.node.scheduler.run_once()
    await bench.system.node.heartbeat.run_once()
    # A claim before that renewal found the lease over; the next look, `claim_poll_s` later, is made now.
    bench.system.dispatch.announce_queues()
    assert (await bench.until(job_id, *FINAL)).state is State.SUCCEEDED
