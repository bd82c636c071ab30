"""The loops of a process, one round at a time: claimer, scheduler, rescuer, pruner, heartbeat."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from engine_house import House, open_house

import milepost
from milepost.clock import SystemClock
from milepost.engine.heartbeat import Heartbeat
from milepost.engine.stats import EngineStats
from milepost.errors import Conflict
from milepost.job import JobId, State, Submission, WorkerId
from milepost.settings import Settings
from milepost.store import Queue
from milepost.store.sqlite import SqliteStore


def stepping(house: House, queue: str = "lane") -> None:
    @house.kind("step", queue=queue)
    async def step(job: milepost.Running) -> None:
        await house.signals.stop_at("step")


async def states(house: House, ids: list[str]) -> list[str]:
    return sorted([await house.state(job_id) for job_id in ids])


# --- claimer ---------------------------------------------------------------------------------------------------------------


async def test_a_queue_runs_as_many_as_its_limit_and_the_next_when_a_slot_is_free(house: House) -> None:
    stepping(house)
    await house.store.set_queue(Queue("lane", limit=2))
    ids = [await house.submit("step") for _ in range(5)]
    assert await house.claim() == 2
    assert await house.claim() == 0
    assert await states(house, ids) == ["ready"] * 3 + ["running"] * 2
    house.signals.let_go("step")
    async with asyncio.timeout(60):
        while house.node.executor.in_queue["lane"] == 2:
            await asyncio.sleep(0)
    assert await house.dispatch.next_work(0.0) == {"lane"}, "the slot that became free is a hint"
    assert await house.claim() == 1


async def test_without_a_limit_of_its_own_the_settings_holds(tmp_path: Path) -> None:
    async with open_house(tmp_path, queue_limit=3) as house:
        stepping(house)
        for _ in range(5):
            await house.submit("step")
        assert await house.claim() == 3


async def test_a_limit_may_be_changed_while_running(house: House) -> None:
    stepping(house)
    await house.store.set_queue(Queue("lane", limit=1))
    for _ in range(6):
        await house.submit("step")
    assert await house.claim() == 1
    await house.store.set_queue(Queue("lane", limit=4))
    house.dispatch.announce_queues()
    assert await house.node.claimer.run_once(await house.dispatch.next_work(0.0)) == 3
    await house.store.set_queue(Queue("lane", limit=1))
    house.dispatch.announce_queues()
    assert await house.node.claimer.run_once(await house.dispatch.next_work(0.0)) == 0
    assert house.node.executor.in_queue["lane"] == 4, "what runs is not stopped"


async def test_a_paused_queue_gives_nothing_until_it_is_resumed(house: House) -> None:
    stepping(house)
    await house.store.set_queue(Queue("lane", paused=True))
    await house.submit("step")
    assert await house.claim() == 0
    await house.store.set_queue(Queue("lane", paused=False))
    house.dispatch.announce_queues()
    assert await house.node.claimer.run_once(await house.dispatch.next_work(0.0)) == 1


async def test_a_pause_leaves_other_queues_alone(house: House) -> None:
    stepping(house)

    @house.kind("other", queue="other")
    async def other(job: milepost.Running) -> None: ...

    await house.store.set_queue(Queue("lane", paused=True))
    waits, runs = await house.submit("step"), await house.submit("other")
    await house.claim()
    await house.idle()
    assert [await house.state(waits), await house.state(runs)] == [State.READY, State.SUCCEEDED]


async def test_without_any_hint_a_due_job_is_found_by_looking(house: House) -> None:
    stepping(house)
    await house.store.add_jobs([Submission(kind="step", queue="unheard-of")], now_us=house.clock.now_us())
    await house.node.heartbeat.run_once()
    assert await house.node.claimer.run_once(None) == 1


@pytest.mark.parametrize("again", [milepost.Snooze(0), milepost.RetryableError("busy", "not now", delay_s=0)])
async def test_a_job_that_is_to_run_again_at_once_is_a_hint(house: House, again: BaseException) -> None:
    @house.kind("twice", queue="lane")
    async def twice(job: milepost.Running) -> None:
        raise again

    await house.submit("twice", attempts_max=2)
    await house.dispatch.next_work(0.0)
    await house.claim()
    await house.idle()
    assert await house.dispatch.next_work(0.0) == {"lane"}, "it would wait until the queue is looked at anyway"
    assert await house.claim() == 1


async def test_the_claimer_goes_on_after_the_store_was_away(house: House) -> None:
    @house.kind("quick")
    async def quick(job: milepost.Running) -> None: ...

    await house.node.heartbeat.run_once()
    house.store.fail("claim_jobs", times=2)
    claiming = asyncio.ensure_future(house.node.claimer.run())
    job_id = await house.submit("quick")
    async with asyncio.timeout(60):
        while await house.state(job_id) is not State.SUCCEEDED:
            house.clock.advance(1)
            await asyncio.sleep(0)
    claiming.cancel()
    await asyncio.gather(claiming, return_exceptions=True)


# --- scheduler -------------------------------------------------------------------------------------------------------------


async def test_a_scheduled_job_runs_at_its_time_and_not_before(house: House) -> None:
    @house.kind("quick", queue="later")
    async def quick(job: milepost.Running) -> None: ...

    job_id = await house.submit("quick", run_at_us=house.clock.now_us() + 20_000_000)
    assert await house.dispatch.next_schedule(0.0), "the scheduler is told of it"
    assert await house.node.scheduler.run_once() == 20.0
    assert await house.claim() == 0
    house.clock.advance(19.5)
    assert await house.node.scheduler.run_once() == 0.5
    house.clock.advance(0.5)
    await house.node.scheduler.run_once()
    assert await house.dispatch.next_work(0.0) == {"later"}
    assert (await house.again(job_id)).state is State.SUCCEEDED


async def test_an_idle_scheduler_looks_again_after_a_while(house: House) -> None:
    assert 0 < await house.node.scheduler.run_once() <= 60


@pytest.mark.parametrize("fields", [{"held": True}, {"run_at_us": 2 * 10**15}, {}], ids=["held", "scheduled", "ready"])
async def test_an_idle_job_fails_at_its_deadline(house: House, fields: dict[str, object]) -> None:
    stepping(house)
    job_id = await house.submit("step", deadline_us=house.clock.now_us() + 7_000_000, **fields)
    assert await house.node.scheduler.run_once() == 7.0
    assert await house.state(job_id) is not State.FAILED
    house.clock.advance(7)
    assert await house.claim() == 0, "nobody starts it any more"
    await house.node.scheduler.run_once()
    job = await house.job(job_id)
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, "deadline_exceeded")


async def test_a_deadline_of_a_parent_stops_its_running_sub_jobs(house: House) -> None:
    stepping(house)

    @house.kind("parent", queue="parents")
    async def parent(job: milepost.Running) -> None:
        await job.run_sub_jobs([milepost.SubJob(kind="step")] * 3)

    await house.store.set_queue(Queue("lane", limit=1))
    job_id = await house.submit("parent", deadline_us=house.clock.now_us() + 7_000_000)
    await house.again(job_id)
    assert await house.claim() == 1
    await house.signals.reached("step")
    house.clock.advance(7)
    await house.node.scheduler.run_once()
    assert await house.dispatch.next_cancel(0.0)
    await house.node.heartbeat.run_once()
    await house.idle()
    assert await house.state(job_id) is State.FAILED
    left = [job.state for job in await house.store.list_sub_jobs(job_id)]
    assert set(left) <= {State.CANCELLED, State.FAILED}
    assert len(left) == 3


# --- rescuer ---------------------------------------------------------------------------------------------------------------


async def test_a_dead_workers_job_is_taken_back_and_its_queue_told(house: House) -> None:
    stepping(house)
    dying = house.process()
    job_id = await house.started("step", "step", node=dying)
    house.store.on_ready(house.dispatch.announce)
    await house.dispatch.next_work(0.0)
    house.clock.advance(29)
    assert await house.node.rescuer.run_once() == 0
    house.clock.advance(1)
    assert await house.node.rescuer.run_once() == 1
    assert house.node.stats.rescued == 1
    assert await house.state(job_id) is State.READY
    assert await house.dispatch.next_work(0.0) == {"lane"}
    dying.executor.lose([job_id])
    await house.idle(dying)


async def test_a_process_that_was_frozen_longer_than_its_lease_keeps_its_jobs(house: House) -> None:
    stepping(house)
    job_id = await house.started("step", "step")
    house.clock.advance(3600)
    assert await house.node.rescuer.run_once() == 0
    assert await house.state(job_id) is State.RUNNING


@pytest.mark.parametrize("jump_s", [3600.0, 86_400.0 * 365, -3600.0, -86_400.0])
async def test_a_clock_that_jumps_declares_no_living_worker_dead(house: House, jump_s: float) -> None:
    stepping(house)
    job_id = await house.started("step", "step")
    house.clock.advance(1)
    assert await house.node.rescuer.run_once() == 0
    house.clock.jump(jump_s)
    for _ in range(20):
        assert await house.node.rescuer.run_once() == 0
        house.clock.advance(4)
        await house.node.heartbeat.run_once()
    assert await house.state(job_id) is State.RUNNING
    house.signals.let_go("step")
    await house.idle()
    assert await house.state(job_id) is State.SUCCEEDED


async def test_after_a_jump_a_dead_worker_is_still_found(house: House) -> None:
    stepping(house)
    dying = house.process()
    job_id = await house.started("step", "step", node=dying)
    house.clock.jump(3600)
    rescued = 0
    for _ in range(20):
        rescued += await house.node.rescuer.run_once()
        house.clock.advance(5)
    assert rescued == 1
    assert await house.state(job_id) is State.READY
    dying.executor.lose([job_id])
    await house.idle(dying)


async def take_worker_down(house: House, job_id: JobId) -> None:
    """A worker of its own claims the job, and dies under it."""
    doomed = house.process()
    await house.claim(doomed)
    await house.store.end_worker(doomed.worker)
    await house.node.rescuer.run_once()
    doomed.executor.lose([job_id])
    await house.idle(doomed)


async def test_a_job_that_takes_its_workers_down_is_failed_as_poison(house: House) -> None:
    stepping(house)
    job_id = await house.submit("step")
    for _ in range(house.settings.crashes_max):
        await take_worker_down(house, job_id)
    job = await house.job(job_id)
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, "poison")


@pytest.mark.parametrize(("crashes_max", "ends"), [(1, [1]), (5, [5]), (math.inf, [])])
async def test_a_kind_says_how_many_of_its_workers_may_die(house: House, crashes_max: float, ends: list[int]) -> None:
    @house.kind("fragile", crashes_max=crashes_max)
    async def fragile(job: milepost.Running) -> None:
        await house.signals.stop_at("fragile")

    job_id = await house.submit("fragile")
    failed_at = []
    for number in range(1, 8):
        await take_worker_down(house, job_id)
        if await house.state(job_id) is State.FAILED:
            failed_at.append(number)
            break
    assert failed_at == ends


def test_a_kind_whose_first_crash_would_be_too_many_is_refused(house: House) -> None:
    with pytest.raises(ValueError, match="crashes_max is 0"):
        house.kind("never", crashes_max=0)


async def test_a_claimed_job_that_runs_nowhere_goes_back_to_its_queue(house: House) -> None:
    stepping(house)
    job_id = await house.submit("step")
    await house.node.heartbeat.run_once()
    await house.store.claim_jobs("lane", worker=house.node.worker, now_us=house.clock.now_us(), limit=1)
    for _ in range(3):  # heartbeats in quick succession say nothing: its claim may be on its way
        await house.node.heartbeat.run_once()
    assert await house.state(job_id) is State.RUNNING
    async with asyncio.timeout(60):
        while await house.state(job_id) is State.RUNNING:
            house.clock.advance(house.settings.heartbeat_s)
            await house.node.heartbeat.run_once()
            await asyncio.sleep(0)
    assert (await house.job(job_id)).attempt == 0


# --- pruner ----------------------------------------------------------------------------------------------------------------


async def test_expired_jobs_are_pruned_in_batches_after_their_own_time(tmp_path: Path) -> None:
    async with open_house(tmp_path, keep_succeeded_s=100.0, keep_failed_s=1000.0, keep_tombstone_s=500.0) as house:

        @house.kind("quick")
        async def quick(job: milepost.Running) -> None: ...

        @house.kind("kept", keep_s={State.SUCCEEDED: 700.0})
        async def kept(job: milepost.Running) -> None: ...

        @house.kind("fails")
        async def fails(job: milepost.Running) -> None:
            raise milepost.PermanentError("x", "y")

        for _ in range(450):
            await house.submit("quick")
        stays, failed = await house.submit("kept"), await house.submit("fails")
        while await house.claim():
            await house.idle()
        house.clock.advance(100)
        pruning = asyncio.ensure_future(house.node.pruner.run_once())
        async with asyncio.timeout(60):
            while not pruning.done():
                house.clock.advance(0.01)
                await asyncio.sleep(0)
        assert pruning.result() == 450
        assert [await house.state(stays), await house.state(failed)] == [State.SUCCEEDED, State.FAILED]
        house.clock.advance(600)
        assert await house.node.pruner.run_once() == 1
        with pytest.raises(milepost.Expired):
            await house.service.get(stays)
        house.clock.advance(500)
        assert await house.node.pruner.run_once() == 1
        for _ in range(3):  # tombstones go in batches too
            await house.node.pruner.run_once()
        with pytest.raises(milepost.NotFound):
            await house.service.get(stays)


async def test_an_expired_job_answers_so_before_it_is_pruned(house: House) -> None:
    @house.kind("quick")
    async def quick(job: milepost.Running) -> None: ...

    job = await house.run("quick")
    house.clock.advance(house.settings.keep_succeeded_s)
    with pytest.raises(milepost.Expired) as raised:
        await house.service.get(job.id)
    assert raised.value.state == "succeeded"


async def test_a_scratch_folder_lives_as_long_as_its_job(house: House) -> None:
    seen: list[Path] = []

    @house.kind("scratches", attempts=2)
    async def scratches(job: milepost.Running) -> None:
        seen.append(job.scratch)
        (job.scratch / "part").touch()
        if job.attempt == 1:
            raise milepost.RetryableError("again", "once more", delay_s=0)

    job = await house.run("scratches")
    assert (seen[0] / "part").exists()
    await house.again(job.id)
    assert seen[0] == seen[1]
    async with asyncio.timeout(60):
        while seen[0].exists():
            await asyncio.sleep(0.005)


# --- heartbeat -------------------------------------------------------------------------------------------------------------


async def test_the_lease_is_renewed_while_user_code_blocks_the_loop(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "milepost.db")
    await store.open()
    settings = Settings(lease_s=30.0, heartbeat_s=0.1)
    stats = EngineStats()
    worker = WorkerId("w")
    beat = Heartbeat(
        store,
        SystemClock(),
        settings,
        worker,
        stats,
        running=frozenset,
        on_renewal=lambda _renewal, _asked: None,
    )
    await beat.run_once()
    beat.start()
    await store.add_jobs([Submission(kind="k")], now_us=SystemClock().now_us())
    (claimed,) = await store.claim_jobs("default", worker=worker, now_us=SystemClock().now_us(), limit=1)
    leases: list[int] = []

    def watch_from_elsewhere() -> None:
        """As a rescuer of another process reads it, while this loop is blocked."""
        connection = sqlite3.connect(tmp_path / "milepost.db")
        end_s = time.monotonic() + 60
        while len(leases) < 6 and time.monotonic() < end_s:
            (lease_until_us,) = connection.execute("SELECT lease_until_us FROM worker").fetchone()
            if lease_until_us not in leases:
                leases.append(lease_until_us)
            time.sleep(0.01)
        connection.close()

    beats = stats.heartbeats
    thread = threading.Thread(target=watch_from_elsewhere)
    thread.start()
    thread.join()  # user code that blocks the event loop: what is tested
    assert len(leases) == 6, "the lease was not renewed while the loop was blocked"
    assert leases == sorted(leases)
    assert stats.heartbeats - beats >= 4  # the last one may not be counted yet
    await beat.stop()
    assert await store.finish_job(claimed.claim, milepost_ok(), now_us=SystemClock().now_us())
    await store.close()


def milepost_ok() -> object:
    from milepost.job import Succeeded

    return Succeeded(b"1")


async def test_a_cancel_by_another_process_arrives_with_the_heartbeat(house: House) -> None:
    stepping(house)
    job_id = await house.started("step", "step")
    await house.store.cancel_job(job_id, project=None, reason="from elsewhere", now_us=house.clock.now_us(), expires_us=1)
    await house.node.heartbeat.run_once()
    await house.idle()
    assert await house.state(job_id) is State.CANCELLED


# --- the whole node --------------------------------------------------------------------------------------------------------


async def test_a_node_starts_runs_and_stops_and_gives_back_what_is_left(tmp_path: Path) -> None:
    async with open_house(tmp_path / "scratch", stop_grace_s=0.0, lease_s=1e9) as house:
        stepping(house)

        @house.kind("quick")
        async def quick(job: milepost.Running) -> None: ...

        await house.node.start()
        ended, left = await house.submit("quick"), await house.submit("step")
        await house.signals.reached("step")
        async with asyncio.timeout(60):
            while await house.state(ended) is not State.SUCCEEDED:
                await asyncio.sleep(0)
        assert house.node.running
        await house.node.stop()
        job = await house.job(left)
        assert (job.state, job.attempt) == (State.READY, 0)
        assert house.node.failed is None


async def test_a_new_node_takes_over_at_once_what_a_dead_one_left(tmp_path: Path) -> None:
    async with open_house(tmp_path / "scratch", stop_grace_s=0.0, lease_s=1e9) as house:
        stepping(house)
        job_id = await house.started("step", "step")
        successor = house.process()
        await successor.start()
        await house.signals.reached("step")
        assert (await house.job(job_id)).crashes == 1
        assert (await house.job(job_id)).lease_by == successor.worker
        house.node.executor.lose([job_id])
        await successor.stop()


# --- service ---------------------------------------------------------------------------------------------------------------


async def test_a_retry_is_a_new_job_with_the_same_request(house: House) -> None:
    @house.kind("fails")
    async def fails(job: milepost.Running, spec: int) -> None:
        raise milepost.PermanentError("no", "no")

    failed = await house.run("fails", b"7", labels={"a": "b"}, priority=2)
    again = await house.service.retry(failed.id, project=None)
    assert (again.retry_of, again.input, again.labels, again.priority) == (failed.id, b"7", {"a": "b"}, 2)
    assert await house.state(failed.id) is State.FAILED
    with pytest.raises(Conflict):
        await house.service.retry(again.id, project=None)
