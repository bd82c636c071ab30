"""Ends that are written together come to what each of them comes to alone, whatever else is in the batch."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.job import (
    Callback,
    Cancelled,
    Claim,
    EventType,
    Failed,
    Failure,
    Job,
    JobId,
    Outcome,
    Returned,
    Submission,
    Succeeded,
    Suspended,
    WorkerId,
)
from milepost.store import Ended
from milepost.store.sqlite import SqliteStore

NOW, EXPIRES = 1_000_000_000, 9_000_000_000
WORKER = WorkerId("w")
OUTCOMES: tuple[Outcome, ...] = (
    Succeeded(b"null"),
    Succeeded(b'"another"'),
    Succeeded(b'"' + b"long" * 2000 + b'"'),
    Failed(Failure("x", "y")),
    Cancelled(Failure("cancelled", "as asked")),
    Returned(),
)


class Planned(msgspec.Struct, frozen=True):
    """One running job, and what is said of it."""

    outcome: Outcome
    shape: str  # plain, calling or sub
    stale: bool = False  # its lease was lost
    twice: bool = False  # it is told twice in the batch


plans = st.lists(
    st.builds(
        Planned,
        outcome=st.sampled_from(OUTCOMES),
        shape=st.sampled_from(["plain"] * 6 + ["calling", "sub"]),
        stale=st.sampled_from([False] * 9 + [True]),
        twice=st.sampled_from([False] * 9 + [True]),
    ),
    min_size=6,  # few ends are not written together
    max_size=24,
)


@given(plans, st.frozensets(st.sampled_from([EventType.SUCCEEDED, EventType.FAILED, EventType.SUBMITTED])))
@settings(max_examples=60)
def test_ends_that_are_written_together_come_to_what_each_comes_to_alone(
    plan: list[Planned], watched: frozenset[EventType]
) -> None:
    together = asyncio.run(_end(plan, watched, together=True))
    alone = asyncio.run(_end(plan, watched, together=False))
    assert together == alone


async def _end(plan: list[Planned], watched: frozenset[EventType], *, together: bool) -> Any:
    store = SqliteStore(":memory:")
    await store.open()
    told: list[tuple[JobId, int, EventType]] = []
    try:
        if watched:
            store.subscribe(lambda events: told.extend((one.job_id, one.seq, one.type) for one in events), types=watched)
        await store.renew_lease(WORKER, now_us=NOW, lease_s=100)
        claims = [await _start(store, number, one) for number, one in enumerate(plan)]
        told.clear()
        ended: list[Ended] = []
        for claim, one in zip(claims, plan, strict=True):
            given = msgspec.structs.replace(claim, fence=claim.fence + 1) if one.stale else claim
            expires_us = None if one.shape == "sub" else EXPIRES
            ended += [Ended(given, one.outcome, NOW + 5, expires_us)] * (2 if one.twice else 1)
        # What is final is written first, so that is the order of those that are told one by one.
        in_order = sorted(range(len(ended)), key=lambda at: isinstance(ended[at].outcome, Returned))
        if together:
            held = await store.finish_jobs(ended)
        else:
            found = {at: (await store.finish_jobs([ended[at]]))[0] for at in in_order}
            held = [found[at] for at in range(len(ended))]
        names = {claim.job_id: f"claimed {number}" for number, claim in enumerate(claims)}
        names |= {_id(number): f"root {number}" for number in range(len(plan))}
        jobs = [await store.get_job(id_) for id_ in names]
        shown = [msgspec.structs.replace(job, id=names[job.id]) for job in jobs if isinstance(job, Job)]
        events = [[(one.seq, one.type, one.state, one.data) for one in await store.list_events(job_id=id_)] for id_ in names]
        delivered = [[(one.event, one.state) for one in await store.list_deliveries(id_)] for id_ in names]
        heard = sorted((names[id_], seq, type_) for id_, seq, type_ in told)
        return held, shown, events, delivered, heard
    finally:
        await store.close()


async def _start(store: SqliteStore, number: int, one: Planned) -> Claim:
    """The job runs; its id is the same in each store."""
    queue = f"lane-{number}"
    callback = Callback("http://127.0.0.1/told") if one.shape == "calling" else None
    made = Submission(kind="k", id=_id(number), queue=queue, callback=callback)
    await store.add_jobs([made], now_us=NOW)
    (claimed,) = await store.claim_jobs(queue, worker=WORKER, now_us=NOW, limit=1)
    if one.shape != "sub":
        return claimed.claim
    subs = f"subs-{number}"
    await store.finish_job(claimed.claim, Suspended([Submission(kind="sub", queue=subs)]), now_us=NOW)
    (claimed,) = await store.claim_jobs(subs, worker=WORKER, now_us=NOW, limit=1)
    return claimed.claim


def _id(number: int) -> JobId:
    return JobId(f"01900000-0000-7000-8000-{number:012x}")
