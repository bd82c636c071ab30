"""What crashes do to jobs that were only there: the innocent are not failed with the guilty, and callbacks do not wait."""

from __future__ import annotations

import math

from store_house import House, ids_of

from milepost.job import Callback, Claim, EventType, State, Succeeded

LAST = 2  # crashes_max is 3: a job with two crashes has one chance left


async def crash(house: House, worker: str) -> None:
    """The worker dies and its jobs are rescued."""
    await house.store.end_worker(worker)
    await house.rescue(crashes_max=3)


async def take(house: House, worker: str, limit: int = 10, queue: str = "q") -> list[str]:
    await house.live(worker)
    claimed = await house.store.claim_jobs(queue, worker=worker, now_us=house.now_us, limit=limit, last_chance=LAST)
    return ids_of(claimed)


async def succeed(house: House, job_id: str) -> None:
    job = await house.job(job_id)
    assert job.lease_by is not None
    claim = Claim(job.id, job.fence, job.lease_by)
    assert await house.store.finish_job(claim, Succeeded(b"{}"), now_us=house.now_us, expires_us=house.expires_us)


async def test_jobs_on_their_last_chance_run_one_at_a_time_and_others_beside_them(house: House) -> None:
    crashed = [job.id for job in await house.add_many(3)]
    for worker in ("first", "second"):
        assert await take(house, worker) == crashed, "before the last chance all run together"
        await crash(house, worker)
    fresh = [job.id for job in await house.add_many(2)]

    assert await take(house, "third") == [crashed[0], *fresh]
    assert await take(house, "third") == []


async def test_the_job_that_kills_its_workers_takes_no_innocent_one_with_it(house: House) -> None:
    guilty, *innocent = [job.id for job in await house.add_many(4)]
    for number in range(20):
        taken = await take(house, f"worker-{number}")
        if guilty in taken:
            await crash(house, f"worker-{number}")
            continue
        for job_id in taken:
            await succeed(house, job_id)
        if not taken:
            break

    assert await house.state(guilty) is State.FAILED
    assert [await house.state(job_id) for job_id in innocent] == [State.SUCCEEDED] * 3


async def test_a_running_job_on_its_last_chance_holds_back_those_of_other_queues(house: House) -> None:
    one, other = (await house.add(queue="q")).id, (await house.add(queue="other")).id
    for worker in ("first", "second"):
        assert await take(house, worker) == [one]
        assert await take(house, worker, queue="other") == [other]
        await crash(house, worker)

    assert await take(house, "third") == [one]
    assert await take(house, "third", queue="other") == []
    await succeed(house, one)
    assert await take(house, "third", queue="other") == [other]


async def test_a_kind_has_its_own_number_of_crashes(house: House) -> None:
    own, other = await house.add(kind="fragile"), await house.add()
    await take(house, "first")
    await house.store.end_worker("first")
    await house.rescue(crashes_max=3, crashes_max_of={"fragile": 1})

    failed = await house.job(own.id)
    assert failed.error is not None
    assert (failed.state, failed.error.code) == (State.FAILED, "poison")
    assert await house.state(other.id) is State.READY


async def test_where_there_is_no_limit_a_crash_leaves_the_job_as_it_was_before_the_attempt(house: House) -> None:
    spared, other = await house.add(kind="spared"), await house.add(kind="spared")
    for number in range(10):  # together each time: neither is on a last chance
        assert await take(house, f"worker-{number}") == [spared.id, other.id]
        await house.store.end_worker(f"worker-{number}")
        await house.rescue(crashes_max=3, crashes_max_of={"spared": math.inf})

    job = await house.job(spared.id)
    assert (job.state, job.attempt, job.crashes) == (State.READY, 0, 0)
    history = [event.type for event in await house.store.list_events(job_id=spared.id)]
    assert history.count(EventType.RESCUED) == 10


async def test_a_callback_that_a_dead_process_was_sending_is_due_at_once_for_its_successor(house: House) -> None:
    await house.end(await house.running(callback=Callback("http://receiver/")))
    (sending,) = await house.store.claim_deliveries(now_us=house.now_us, lease_s=35, limit=1)
    assert await house.store.claim_deliveries(now_us=house.now_us, lease_s=35, limit=1) == []

    await house.store.end_other_workers("successor")

    (again,) = await house.store.claim_deliveries(now_us=house.now_us, lease_s=35, limit=1)
    assert (again.id, again.attempt) == (sending.id, 2)


async def test_a_callback_that_waits_for_its_next_try_still_waits_after_a_restart(house: House) -> None:
    await house.end(await house.running(callback=Callback("http://receiver/")))
    (failed,) = await house.store.claim_deliveries(now_us=house.now_us, lease_s=35, limit=1)
    later_us = house.now_us + 60_000_000
    await house.store.finish_delivery(failed, state="pending", next_us=later_us, status=500, error="no", now_us=house.now_us)

    await house.store.end_other_workers("successor")

    assert await house.store.claim_deliveries(now_us=house.now_us, lease_s=35, limit=1) == []
    assert await house.store.next_delivery_us() == later_us
