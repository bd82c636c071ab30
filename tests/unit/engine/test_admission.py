"""Admission: what a kind checks and reserves at submit is kept exactly when the job is."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import msgspec
import pytest
from engine_house import House

from milepost import Admission, Admitted, Resource, Running, SubJob, Write
from milepost.engine.service import ADMISSIONS_MAX
from milepost.errors import Conflict, IdempotencyConflict, LimitExceeded, NotFound, VersionConflict
from milepost.job import State
from milepost.store import JobQuery

PLACES = 3


class Take(msgspec.Struct):
    """Take one place, under this name."""

    name: str
    place: int | None = None


def place(ask: Any, name: str) -> Resource:
    return Resource(type="place", id=name, project=ask.project, doc=b"1", created_us=ask.now_us, updated_us=ask.now_us, version=0)


async def admit_take(ask: Admission, spec: Take) -> Admitted:
    taken = await ask.resources.list("place")
    if len(taken) >= PLACES:
        raise LimitExceeded("no place is left", limit="places", allowed=PLACES, seen=len(taken), reason="full")
    try:
        await ask.resources.get("place", spec.name)
    except NotFound:
        pass
    else:
        raise Conflict(f"{spec.name} is taken", reason="taken")
    await asyncio.sleep(0)  # somebody else's turn: what was read may be old now
    return Admitted(input=Take(spec.name, len(taken)), writes=[Write(resource=place(ask, spec.name), if_version=0)])


@pytest.fixture
def takes(house: House) -> list[Take]:
    ran: list[Take] = []

    @house.kind("take", admit=admit_take)
    async def take(job: Running, spec: Take) -> int | None:
        if spec.place is None:
            spec = await job.admit(spec)
        ran.append(spec)
        return spec.place

    return ran


async def names(house: House) -> list[str]:
    return sorted(one.id for one in await house.store.list_resources("place"))


def take(house: House, name: str, **fields: Any) -> Any:
    return house.service.submission("take", input=msgspec.json.encode({"name": name}), **fields)


async def test_the_job_has_the_admitted_input_and_its_reservation_is_stored_with_it(house: House, takes: list[Take]) -> None:
    added = await house.service.submit(take(house, "a"))
    assert await names(house) == ["a"]
    assert msgspec.json.decode(added.job.input) == {"name": "a", "place": 0}
    await house.finish(added.job.id)
    assert takes == [Take("a", 0)]


async def test_a_refusal_leaves_no_job_and_no_reservation(house: House, takes: list[Take]) -> None:
    await house.service.submit(take(house, "a"))
    with pytest.raises(Conflict, match="a is taken") as refused:
        await house.service.submit(take(house, "a"))
    assert refused.value.fields["reason"] == "taken"
    assert await names(house) == ["a"]
    assert len(await house.store.list_jobs(JobQuery())) == 1


async def test_submits_at_the_same_time_never_take_more_than_there_is(house: House, takes: list[Take]) -> None:
    calls = [house.service.submit(take(house, f"n{number}")) for number in range(10)]
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(one, BaseException) for one in ended) == PLACES
    assert all(isinstance(one, LimitExceeded) for one in ended if isinstance(one, BaseException))
    assert len(await names(house)) == PLACES


async def test_a_batch_counts_its_own_jobs_and_is_admitted_whole_or_not_at_all(house: House, takes: list[Take]) -> None:
    with pytest.raises(LimitExceeded):
        await house.service.submit_many([take(house, f"n{number}") for number in range(PLACES + 1)])
    with pytest.raises(Conflict):
        await house.service.submit_many([take(house, "same"), take(house, "same")])
    assert await names(house) == []
    added = await house.service.submit_many([take(house, f"n{number}") for number in range(PLACES)])
    assert [msgspec.json.decode(one.job.input)["place"] for one in added] == [0, 1, 2]


async def test_a_repeated_submit_is_not_admitted_again(house: House, takes: list[Take]) -> None:
    first = await house.service.submit(take(house, "a", idempotency_key="k", body_hash="h"))
    again = await house.service.submit(take(house, "a", idempotency_key="k", body_hash="h"))
    assert (again.created, again.job.id) == (False, first.job.id)
    with pytest.raises(IdempotencyConflict):
        await house.service.submit(take(house, "a", idempotency_key="k", body_hash="another"))
    assert await names(house) == ["a"]


async def test_an_admission_that_read_what_has_changed_since_is_asked_again(house: House, takes: list[Take]) -> None:
    house.store.fail("add_jobs", error=VersionConflict("place a has version 2, not 1"), times=ADMISSIONS_MAX - 1)
    assert (await house.service.submit(take(house, "a"))).created
    house.store.fail("add_jobs", error=VersionConflict("place b has version 2, not 1"), times=ADMISSIONS_MAX)
    with pytest.raises(VersionConflict):
        await house.service.submit(take(house, "b"))
    assert await names(house) == ["a"]


async def test_a_sub_job_whose_parent_reserved_nothing_reserves_by_itself(house: House, takes: list[Take]) -> None:
    @house.kind("many")
    async def many(job: Running) -> list[int]:
        return [one.result for one in await job.try_sub_jobs([SubJob(kind="take", input={"name": f"n{i}"}) for i in range(5)])]

    parent = await house.submit("many")
    await house.finish(parent)
    subs = await house.store.list_sub_jobs(parent)
    assert sorted(str(sub.state) for sub in subs) == ["failed"] * 2 + ["succeeded"] * 3
    assert {sub.error.code for sub in subs if sub.state is State.FAILED} == {"full"}
    assert len(await names(house)) == PLACES


async def test_a_key_that_comes_twice_in_a_batch_reserves_once(house: House, takes: list[Take]) -> None:
    keyed = [take(house, "a", idempotency_key="k", body_hash="h") for _ in range(2)]
    added = await house.service.submit_many([*keyed, take(house, "b")])
    assert [one.created for one in added] == [True, False, True]
    assert added[0].job.id == added[1].job.id
    assert [msgspec.json.decode(one.job.input)["place"] for one in added] == [0, 0, 1]
    assert await names(house) == ["a", "b"]


async def test_a_key_whose_job_goes_between_the_look_and_the_write_is_admitted_after_all(house: House, takes: list[Take]) -> None:
    had, looked = house.store.has_key, []

    async def had_before(project: Any, key: str) -> bool:
        looked.append(key)
        return len(looked) == 1 or await had(project, key)

    house.store.has_key = had_before
    added = await house.service.submit(take(house, "a", idempotency_key="k", body_hash="h"))
    assert (added.created, await names(house)) == (True, ["a"])


async def test_a_submit_that_is_cancelled_while_it_is_written_lets_the_next_one_in_after_that(
    house: House, takes: list[Take]
) -> None:
    add, gate, sent = house.store.add_jobs, asyncio.Event(), asyncio.Event()
    writes: set[asyncio.Task[Any]] = set()

    async def write(*args: Any, **fields: Any) -> Any:
        sent.set()
        await gate.wait()
        return await add(*args, **fields)

    async def slow_add(*args: Any, **fields: Any) -> Any:
        """As the store does it: what was sent is written, whether or not somebody still waits for it."""
        task = asyncio.create_task(write(*args, **fields))
        writes.add(task)
        return await asyncio.shield(task)

    for number in range(PLACES - 1):
        await house.service.submit(take(house, f"n{number}"))
    house.store.add_jobs = slow_add
    last = asyncio.create_task(house.service.submit(take(house, "last")))
    await sent.wait()
    one_more = asyncio.create_task(house.service.submit(take(house, "one more")))
    last.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    gate.set()
    ended = await asyncio.gather(last, one_more, return_exceptions=True)
    assert [type(one) for one in ended] == [asyncio.CancelledError, LimitExceeded]
    assert len(await names(house)) == PLACES


async def test_a_job_that_was_cancelled_before_its_release_is_not_retried(house: House, takes: list[Take]) -> None:
    order = (await house.service.submit(take(house, "a", held=True))).job
    await house.service.cancel(order.id, project=None)
    with pytest.raises(Conflict, match="never released"):
        await house.service.retry(order.id, project=None)
    paid = (await house.service.submit(take(house, "b", held=True))).job
    await house.service.release(paid.id, project=None)
    await house.service.cancel(paid.id, project=None)
    await house.store.delete_resource("place", "b")
    assert (await house.service.retry(paid.id, project=None)).retry_of == paid.id


async def test_jobs_submitted_in_one_turn_of_the_loop_have_one_moment_and_later_ones_their_own(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    @house.kind("quick")
    async def quick(job: Running) -> None:
        pass

    async def moments(jobs: int) -> set[int]:
        ids = await asyncio.gather(*(house.submit("quick") for _ in range(jobs)))
        return {(await house.job(job_id)).created_us for job_id in ids}

    ticks = count(house.clock.now_us())
    monkeypatch.setattr(house.clock, "now_us", lambda: next(ticks))  # no two readings are the same
    first, second = await moments(5), await moments(5)
    assert (len(first), len(second)) == (1, 1)
    assert max(first) < min(second)
