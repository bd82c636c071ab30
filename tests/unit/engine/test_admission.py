"""Admission: what a kind checks and reserves at submit is kept exactly when the job is."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from engine_house import House

from milepost import Admission, Admitted, Resource, Running, SubJob, Write
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
    house.store.fail("add_jobs", error=VersionConflict("place a has version 2, not 1"), times=7)
    assert (await house.service.submit(take(house, "a"))).created
    house.store.fail("add_jobs", error=VersionConflict("place b has version 2, not 1"), times=8)
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
