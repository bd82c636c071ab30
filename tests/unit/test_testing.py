"""What users test their own kinds with."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import milepost
from milepost.engine.kinds import Kinds
from milepost.job import State
from milepost.store import JobQuery
from milepost.testing import Faults, ManualClock, Signals, serving, serving_in_thread


async def test_a_manual_clock_wakes_sleepers_in_the_order_of_their_times() -> None:
    clock, woken = ManualClock(0), []

    async def sleep(delay_s: float) -> None:
        await clock.sleep(delay_s)
        woken.append(delay_s)

    tasks = [asyncio.ensure_future(sleep(delay_s)) for delay_s in (3.0, 1.0, 2.0, 0.0)]
    while clock.sleepers < 3:
        await asyncio.sleep(0)
    clock.advance(2.5)
    for _ in range(5):
        await asyncio.sleep(0)
    assert woken == [0.0, 1.0, 2.0]
    clock.advance(0.5)
    await asyncio.gather(*tasks)
    assert woken == [0.0, 1.0, 2.0, 3.0]
    assert (clock.now_us(), clock.monotonic_s()) == (3_000_000, 3.0)


async def test_a_jump_moves_the_wall_clock_alone() -> None:
    clock = ManualClock(1_000_000)
    sleeping = asyncio.ensure_future(clock.sleep(10))
    await asyncio.sleep(0)
    clock.jump(3600)
    await asyncio.sleep(0)
    assert (clock.now_us(), clock.monotonic_s(), sleeping.done()) == (3_601_000_000, 0.0, False)
    sleeping.cancel()
    await asyncio.gather(sleeping, return_exceptions=True)
    assert clock.sleepers == 0


async def test_serving_runs_a_users_kinds_on_a_clock_and_through_faults() -> None:
    kinds, signals, clock, faults = Kinds(), Signals(), ManualClock(), Faults()

    @kinds.kind("copy", attempts=2)
    async def copy(job: milepost.Running) -> int:
        if job.attempt == 1:
            raise milepost.RetryableError("busy", "later", delay_s=3600)
        await signals.stop_at("copying")
        return job.attempt

    faults.lose_answer(method="POST", path="/jobs")
    faults.answer(503, method="POST", path="/jobs", headers={"retry-after": "0"})
    async with (
        serving(kinds, clock=clock, faults=faults, data=":memory:") as server,
        milepost.AsyncClient(server.url) as client,
    ):
        handle = await client.submit("copy", {})
        assert faults.seen == 2
        assert len(await server.store.list_jobs(JobQuery())) == 1, "a lost answer does not make a second job"
        async with asyncio.timeout(60):
            while (await server.service.get(handle.id)).attempt == 0 or await running(server, handle.id):
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            while not await running(server, handle.id):
                clock.advance(3600)
                await asyncio.sleep(0)
        await signals.reached("copying")
        signals.let_go("copying")
        assert (await server.ended(handle.id)).result == b"2"


async def running(server: object, job_id: str) -> bool:
    return (await server.service.get(job_id)).state is State.RUNNING  # type: ignore[attr-defined]


def test_serving_in_a_thread_serves_blocking_clients() -> None:
    with serving_in_thread(data=":memory:") as server, milepost.Client(server.url) as client:
        assert client.submit("echo", {"a": 1}).wait().result == {"a": 1}


def test_a_server_that_cannot_start_says_why_in_the_test() -> None:
    with pytest.raises(milepost.InvalidInput, match="no_such_module"), serving_in_thread(["no_such_module"]):
        pass


async def test_a_server_in_memory_leaves_nothing_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kinds, seen = Kinds(), []

    @kinds.kind("scratches")
    async def scratches(job: milepost.Running) -> None:
        (job.scratch / "part").touch()
        seen.append(job.scratch)

    async with serving(kinds, data=":memory:") as server:
        job = (await server.service.submit(server.service.submission("scratches"))).job
        assert (await server.ended(job.id)).error is None
    assert len(seen) == 1
    assert list(tmp_path.iterdir()) == []
