"""The numbered rules of `milepost.store`, one by one, on every store."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from store_house import BROKEN, KEEP_S, OK, STOPPED, House, ids_of, submission, subs

from milepost.errors import (
    Conflict,
    Expired,
    IdempotencyConflict,
    MilepostError,
    NotFound,
    StoreUnavailable,
    VersionConflict,
)
from milepost.job import (
    FINAL,
    Callback,
    Claim,
    EventType,
    Failure,
    JobId,
    Outcome,
    Progress,
    ProjectId,
    Retried,
    Returned,
    Snoozed,
    State,
    Suspended,
    WorkerId,
)
from milepost.store import Ended, JobQuery, Resource, Write
from milepost.subscription import Filter, Publication

# --- 1: on disk when it returns, nothing when it raises --------------------------------------------------------------------


async def test_rule_1_what_a_call_wrote_is_there_after_a_reopen(durable: House) -> None:
    added = await durable.add_many(3, labels={"a": "b"}, input=b'{"x":1}')
    claimed = await durable.claim_one()
    await durable.store.report_progress(claimed.claim, Progress(1, 2, "rows", "half"), now_us=durable.now_us)
    before = [await durable.job(job.id) for job in added]
    events = await durable.store.list_events()

    await durable.reopen()

    assert [await durable.job(job.id) for job in added] == before
    assert await durable.store.list_events() == events


async def test_rule_1_a_batch_is_stored_whole_or_not_at_all(house: House) -> None:
    await house.add(idempotency_key="taken", body_hash="old")
    batch = [submission(), submission(idempotency_key="taken", body_hash="new"), submission()]
    with pytest.raises(IdempotencyConflict):
        await house.store.add_jobs(batch, now_us=house.now_us)
    assert len(await house.ids(queue="q")) == 1
    assert len(await house.store.list_events()) == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "lone \ud800 surrogate"},
        {"priority": 2**80},
        {"labels": {"k": "\udfff"}},
        {"input": b"\xff\xfe"},
    ],
    ids=["surrogate", "too large a number", "surrogate in a label", "input that is not text"],
)
async def test_rule_1_what_the_database_cannot_store_fails_alone_and_leaves_its_neighbours(
    house: House, bad: dict[str, object]
) -> None:
    calls = [
        house.store.add_jobs([submission(kind="before")], now_us=house.now_us),
        house.store.add_jobs([submission(kind="half"), submission(**bad)], now_us=house.now_us),
        house.store.add_jobs([submission(kind="after")], now_us=house.now_us),
    ]
    async with asyncio.timeout(60):
        before, failed, after = await asyncio.gather(*calls, return_exceptions=True)

    assert isinstance(failed, MilepostError)
    assert [before[0].created, after[0].created] == [True, True]
    assert {job.kind for job in await house.store.list_jobs(JobQuery())} == {"before", "after"}
    async with asyncio.timeout(60):
        assert (await house.add(kind="later")).kind == "later"


async def test_rule_1_a_refused_operation_leaves_other_operations_of_its_batch(house: House) -> None:
    one, other = await house.running(), await house.running()
    lost = Claim(one.job.id, one.claim.fence + 7, one.claim.worker)
    calls = [
        house.store.report_progress(one.claim, Progress(1), now_us=house.now_us),
        house.store.finish_job(other.claim, BROKEN, now_us=house.now_us),
        house.store.finish_job(lost, OK, now_us=house.now_us),
        house.store.cancel_job(JobId("nobody"), project=None, reason="", now_us=house.now_us, expires_us=1),
        house.add(),
    ]
    progress, ended, stale, unknown, added = await asyncio.gather(*calls, return_exceptions=True)
    assert (progress, ended, stale) == (True, True, False)
    assert isinstance(unknown, NotFound)
    assert await house.state(added.id) is State.READY
    assert await house.history(other.job.id) == ["submitted", "started", "failed"]


async def test_rule_3_outcomes_that_are_given_together_are_each_judged_alone(house: House) -> None:
    one, other, third = [await house.running() for _ in range(3)]
    parent = await house.running()
    (sub,) = await house.split(parent, *subs(1))
    child = await house.claim_one(queue=sub.queue)
    stale = Claim(one.job.id, one.claim.fence + 7, one.claim.worker)
    claims = [
        (stale, OK),
        (one.claim, OK),
        (one.claim, BROKEN),  # a second end of the same attempt
        (other.claim, Returned()),
        (third.claim, STOPPED),
        (child.claim, OK),
    ]
    ended = [Ended(claim, outcome, house.now_us, house.expires_us) for claim, outcome in claims]
    assert await house.store.finish_jobs(ended) == [False, True, False, True, True, True]
    assert await house.history(one.job.id) == ["submitted", "started", "succeeded"]
    assert await house.history(other.job.id) == ["submitted", "started", "returned"]
    assert await house.history(third.job.id) == ["submitted", "started", "cancelled"]
    assert await house.history(parent.job.id) == ["submitted", "started", "waiting", "resumed"]
    assert await house.store.finish_jobs([]) == []


async def test_rule_3_a_lost_lease_among_many_ends_costs_the_others_nothing(house: House) -> None:
    held = [await house.running() for _ in range(8)]
    taken = held[3]
    await house.end(taken, Returned())
    again = await house.claim_one(queue=taken.job.queue)
    ended = [Ended(one.claim, OK, house.now_us, house.expires_us) for one in [*held, held[0]]]
    assert again.job.id == taken.job.id
    assert await house.store.finish_jobs(ended) == [one is not taken for one in held] + [False]
    for one in held:
        expected = ["returned", "started"] if one is taken else ["succeeded"]
        assert await house.history(one.job.id) == ["submitted", "started", *expected]
    assert await house.state(taken.job.id) is State.RUNNING
    seqs = [[event.seq for event in await house.store.list_events(job_id=one.job.id)] for one in held]
    assert all(found == list(range(1, len(found) + 1)) for found in seqs)


async def test_rule_3_callbacks_and_parents_follow_in_a_large_batch_of_ends(house: House) -> None:
    plain = [await house.running() for _ in range(8)]
    calling = await house.running(callback=Callback("http://127.0.0.1/told"))
    parent = await house.running()
    (sub,) = await house.split(parent, *subs(1))
    child = await house.claim_one(queue=sub.queue)
    mixed = [*plain[:4], calling, *plain[4:], child]
    ended = [Ended(one.claim, BROKEN if one is plain[2] else OK, house.now_us, house.expires_us) for one in mixed]
    assert await house.store.finish_jobs(ended) == [True] * len(mixed)
    assert [one.job_id for one in await house.store.list_deliveries(calling.job.id)] == [calling.job.id]
    assert await house.history(parent.job.id) == ["submitted", "started", "waiting", "resumed"]
    assert [await house.state(one.job.id) for one in plain] == [
        State.FAILED if one is plain[2] else State.SUCCEEDED for one in plain
    ]


async def test_rule_1_a_closed_store_says_so(durable: House) -> None:
    await durable.store.close()
    with pytest.raises(StoreUnavailable):
        await durable.add()
    await durable.open()


# --- 2: states move along MOVES; final is final -----------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [OK, BROKEN, STOPPED], ids=["succeeded", "failed", "cancelled"])
async def test_rule_2_a_final_row_never_changes_again(house: House, outcome: Outcome) -> None:
    claimed = await house.running(deadline_us=house.now_us + 5_000_000, run_at_us=house.now_us)
    assert await house.end(claimed, outcome)
    final = await house.job(claimed.job.id)
    assert final.state in FINAL

    for again in (OK, BROKEN, STOPPED, Snoozed(1), Retried(Failure("x", "y"), 1), Returned(), Suspended(subs(1))):
        assert not await house.end(claimed, again)
    assert not await house.store.report_progress(claimed.claim, Progress(9), now_us=house.now_us)
    with pytest.raises(Conflict):
        await house.release(final.id)
    if final.state is State.CANCELLED:
        assert await house.cancel(final.id) == final
    else:
        with pytest.raises(Conflict):
            await house.cancel(final.id)
    house.clock.advance(100)
    assert await house.rescue() == []
    assert await house.fail_overdue() == 0
    assert (await house.promote())[0] == set()
    assert await house.claim(10, queue="lane") == []

    assert await house.job(final.id) == final


# --- 3: the fence ------------------------------------------------------------------------------------------------------------


async def test_rule_3_a_stale_worker_cannot_finish_a_rescued_job(house: House) -> None:
    await house.add()
    old = await house.claim_one(worker="a")
    house.clock.advance(31)
    await house.rescue()
    new = await house.claim_one(worker="b")

    assert not await house.end(old)
    assert not await house.store.report_progress(old.claim, Progress(99), now_us=house.now_us)
    assert await house.end(new)
    assert (await house.job(new.job.id)).progress == Progress()


async def test_rule_3_a_stale_worker_writes_nothing_between_its_rescue_and_the_next_claim(house: House) -> None:
    old = await house.running()
    house.clock.advance(31)
    await house.rescue()
    before = await house.job(old.job.id)
    for outcome in (OK, BROKEN, STOPPED, Snoozed(1), Retried(Failure("x", "y"), 1), Returned(), Suspended(subs(2))):
        assert not await house.end(old, outcome)
    assert await house.job(old.job.id) == before
    assert await house.store.list_sub_jobs(old.job.id) == []


async def test_rule_3_the_same_worker_with_an_old_fence_is_stale_too(house: House) -> None:
    await house.add()
    first = await house.claim_one()
    await house.end(first, Returned())
    second = await house.claim_one()
    assert second.claim.fence == first.claim.fence + 1
    assert not await house.end(first)
    assert await house.end(second)


async def test_rule_3_progress_and_outcome_are_written_under_the_right_fence(house: House) -> None:
    claimed = await house.running()
    assert await house.store.report_progress(claimed.claim, Progress(5, 10, "rows", "halfway"), now_us=house.now_us)
    assert (await house.job(claimed.job.id)).progress == Progress(5, 10, "rows", "halfway")
    assert await house.end(claimed)
    ended = await house.job(claimed.job.id)
    assert (ended.state, ended.result, ended.error) == (State.SUCCEEDED, b'{"answer":42}', None)
    assert (ended.ended_us, ended.expires_us) == (house.now_us, house.now_us + int(KEEP_S * 1e6))


# --- 4: claims ---------------------------------------------------------------------------------------------------------------


async def test_rule_4_two_workers_never_get_the_same_job(house: House) -> None:
    jobs = await house.add_many(40)
    await house.live("a")
    await house.live("b")
    taken = await asyncio.gather(*(house.claim(3, worker=worker) for _ in range(10) for worker in ("a", "b")))
    got = [job_id for claims in taken for job_id in ids_of(claims)]
    assert sorted(got) == sorted(ids_of(jobs))


async def test_rule_4_each_claim_raises_fence_and_attempt(house: House) -> None:
    job = await house.add(attempts_max=5)
    for number in (1, 2, 3):
        claimed = await house.claim_one()
        assert (claimed.job.attempt, claimed.job.fence, claimed.claim.fence) == (number, number, number)
        assert claimed.job == await house.job(job.id)
        await house.end(claimed, Retried(Failure("x", "again"), house.now_us))


async def test_rule_4_a_worker_without_a_lease_gets_nothing(house: House) -> None:
    await house.add()
    assert await house.store.claim_jobs("q", worker=WorkerId("unknown"), now_us=house.now_us, limit=1) == []
    await house.live("a", lease_s=10)
    house.clock.advance(10)
    assert await house.claim(worker="a") == []
    await house.live("a", lease_s=10)
    assert len(await house.claim(worker="a")) == 1


# --- 5: events ---------------------------------------------------------------------------------------------------------------


async def test_rule_5_every_change_of_state_is_one_event(house: House) -> None:
    job = await house.add(held=True, attempts_max=9)
    await house.release(job.id)
    await house.end(await house.claim_one(), Snoozed(house.now_us, "later"))
    await house.end(await house.claim_one(), Retried(Failure("x", "again"), house.now_us))
    await house.end(await house.claim_one(), Returned())
    claimed = await house.claim_one()
    await house.store.report_progress(claimed.claim, Progress(1, 2), now_us=house.now_us)
    (sub,) = await house.split(claimed, submission(queue="subs"))
    await house.end(await house.claim_one(queue="subs"))
    house.clock.advance(31)
    await house.live()
    await house.claim_one()
    house.clock.advance(31)
    await house.rescue()
    await house.live()
    await house.end(await house.claim_one())

    assert await house.history(job.id) == [
        "submitted", "released", "started", "snoozed", "started", "retrying", "started", "returned", "started", "progress",
        "waiting", "resumed", "started", "rescued", "started", "succeeded",
    ]  # fmt: skip
    assert await house.history(sub.id) == ["submitted", "started", "succeeded"]


async def test_rule_5_each_end_has_its_own_event(house: House) -> None:
    for outcome, word in ((OK, "succeeded"), (BROKEN, "failed"), (STOPPED, "cancelled")):
        claimed = await house.running()
        await house.end(claimed, outcome)
        assert (await house.history(claimed.job.id))[-1] == word


async def test_rule_5_events_that_were_not_written_leave_no_gap(house: House) -> None:
    claimed = await house.running()
    calls = [
        house.store.finish_job(Claim(claimed.job.id, 99, claimed.claim.worker), OK, now_us=house.now_us),
        house.store.report_progress(claimed.claim, Progress(1), now_us=house.now_us),
        house.store.cancel_job(JobId("nobody"), project=None, reason="", now_us=house.now_us, expires_us=1),
        house.store.report_progress(claimed.claim, Progress(2), now_us=house.now_us),
    ]
    await asyncio.gather(*calls, return_exceptions=True)
    seqs = [event.seq for event in await house.store.list_events(job_id=claimed.job.id)]
    assert seqs == [1, 2, 3, 4]


# --- 6: rescue ---------------------------------------------------------------------------------------------------------------


async def test_rule_6_a_worker_that_renews_is_never_rescued(house: House) -> None:
    claimed = await house.running()
    for _ in range(20):
        house.clock.advance(29)
        renewal = await house.live()
        assert renewal.owned == {claimed.job.id}
        assert await house.rescue() == []
    assert await house.end(claimed)


async def test_rule_6_a_rescued_job_is_ready_and_counts_the_crash(house: House) -> None:
    claimed = await house.running()
    house.clock.advance(30)
    (rescued,) = await house.rescue()
    assert (rescued.state, rescued.crashes, rescued.lease_by) == (State.READY, 1, None)
    assert rescued == await house.job(claimed.job.id)
    again = await house.claim_one(worker="b", queue="lane")
    assert (again.job.attempt, again.job.crashes) == (2, 1)


async def test_rule_6_after_crashes_max_it_is_failed_as_poison(house: House) -> None:
    job = await house.add(attempts_max=100)
    for crash in (1, 2, 3):
        await house.live("a")
        await house.claim_one(worker="a")
        house.clock.advance(31)
        (rescued,) = await house.rescue(crashes_max=3)
        assert rescued.state is (State.FAILED if crash == 3 else State.READY)
    failed = await house.job(job.id)
    assert failed.error is not None
    assert failed.error.code == "poison"
    assert failed.error.details == {"crashes": 3, "last_worker": "a"}
    assert failed.expires_us == house.expires_us


async def test_rule_6_a_job_that_snoozes_has_its_crashes_forgiven(house: House) -> None:
    job = await house.add()
    for _ in range(2):
        await house.live("a")
        await house.claim_one(worker="a")
        house.clock.advance(31)
        await house.rescue(crashes_max=3)
    await house.live("b")
    assert await house.end(await house.claim_one(worker="b"), Snoozed(house.now_us))
    left = await house.job(job.id)
    assert (left.state, left.attempt, left.crashes) == (State.READY, 0, 0)


async def test_rule_6_only_the_dead_workers_jobs_are_rescued(house: House) -> None:
    await house.add_many(4)
    dead = await house.claim(2, worker="dead")
    house.clock.advance(15)
    alive = await house.claim(2, worker="alive")
    house.clock.advance(16)
    assert sorted(ids_of(await house.rescue())) == sorted(ids_of(dead))
    assert all([await house.end(one) for one in alive])


async def test_rule_6_a_rescued_job_whose_cancel_was_asked_for_is_cancelled(house: House) -> None:
    claimed = await house.running()
    await house.cancel(claimed.job.id)
    house.clock.advance(31)
    (rescued,) = await house.rescue()
    assert rescued.state is State.CANCELLED
    assert rescued.expires_us is not None


async def test_rule_6_a_worker_that_ended_is_rescued_at_once(house: House) -> None:
    one, other = await house.running(), await house.running()
    await house.store.end_worker(WorkerId("a"))
    assert sorted(ids_of(await house.rescue())) == sorted([one.job.id, other.job.id])


async def test_rule_6_ending_all_others_keeps_ones_own(house: House) -> None:
    await house.add_many(3)
    for worker in ("a", "b", "c"):
        await house.claim_one(worker=worker)
    await house.store.end_other_workers(WorkerId("b"))
    assert len(await house.rescue()) == 2
    assert len((await house.live("b")).owned) == 1


# --- 7: parents settle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [OK, BROKEN, STOPPED], ids=["succeeds", "fails", "is cancelled"])
async def test_rule_7_a_parent_resumes_when_its_last_sub_job(house: House, outcome: Outcome) -> None:
    parent = await house.running()
    await house.split(parent, *subs(2))
    assert await house.end(await house.claim_one())
    assert await house.state(parent.job.id) is State.WAITING
    assert await house.end(await house.claim_one(), outcome)

    assert await house.state(parent.job.id) is State.READY
    again = await house.claim_one(queue="lane")
    assert (again.job.attempt, again.job.sub_total, again.claim.fence) == (1, 2, 2)


async def test_rule_7_a_parent_without_sub_jobs_to_wait_for_resumes_at_once(house: House) -> None:
    parent = await house.running()
    assert await house.split(parent) == []
    assert await house.state(parent.job.id) is State.READY


async def test_rule_7_a_sub_job_that_is_rescued_as_poison_settles_its_parent(house: House) -> None:
    parent = await house.running()
    await house.split(parent, *subs(1))
    await house.claim_one(worker="dying")
    house.clock.advance(31)
    await house.rescue(crashes_max=1)
    assert await house.state(parent.job.id) is State.READY


# --- 8: cancel reaches every open sub-job ------------------------------------------------------------------------------------


async def test_rule_8_cancelling_ends_idle_sub_jobs_asks_running_ones_and_the_parent_ends_after_them(house: House) -> None:
    parent = await house.running(callback=None)
    made = await house.split(parent, *subs(4, queue="subs"))
    done = await house.claim_one(queue="subs")
    await house.end(done)
    busy = await house.claim_one(queue="subs")

    asked = await house.cancel(parent.job.id)

    assert (asked.state, asked.cancel_requested) == (State.WAITING, True)
    states = [await house.state(job.id) for job in made]
    assert sorted(states) == sorted([State.SUCCEEDED, State.RUNNING, State.CANCELLED, State.CANCELLED])
    assert (await house.live()).cancel == {busy.job.id: "as asked"}
    assert await house.end(busy, STOPPED)
    ended = await house.job(parent.job.id)
    assert (ended.state, ended.error) == (State.CANCELLED, Failure("cancelled", "as asked"))
    assert ended.expires_us is not None


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("leaf", ["ready", "scheduled", "held", "running", "ended"])
async def test_rule_8_a_cancel_goes_down_the_whole_tree(house: House, depth: int, leaf: str) -> None:
    line = [await house.running()]
    for level in range(depth - 1):
        await house.split(line[-1], submission(kind=f"level{level + 1}"))
        line.append(await house.claim_one())
    more = {"scheduled": {"run_at_us": house.now_us + 10**9}, "held": {"held": True}}.get(leaf, {})
    (last, *_) = await house.split(line[-1], submission(kind="leaf", **more), submission(kind="beside", queue="beside"))
    claimed = await house.claim_one() if leaf in ("running", "ended") else None
    if leaf == "ended":
        assert claimed is not None
        await house.end(claimed)
    assert (await house.job(last.id)).root_id == line[0].job.id

    await house.cancel(line[0].job.id)

    if leaf == "running":
        assert claimed is not None
        assert [await house.state(one.job.id) for one in line] == [State.WAITING] * depth
        assert (await house.live()).cancel == {last.id: "as asked"}
        await house.end(claimed, STOPPED)
    assert [await house.state(one.job.id) for one in line] == [State.CANCELLED] * depth
    assert await house.state(last.id) is (State.SUCCEEDED if leaf == "ended" else State.CANCELLED)
    assert (await house.job(line[0].job.id)).expires_us is not None
    assert all([(await house.job(one.job.id)).expires_us is None for one in line[1:]])


async def test_rule_8_a_running_job_is_asked_and_may_still_succeed(house: House) -> None:
    claimed = await house.running()
    asked = await house.cancel(claimed.job.id)
    assert (asked.state, asked.cancel_requested) == (State.RUNNING, True)
    assert (await house.cancel(claimed.job.id)).version == asked.version, "asked twice is asked once"
    assert await house.end(claimed, OK)
    assert await house.state(claimed.job.id) is State.SUCCEEDED


@pytest.mark.parametrize(
    "outcome",
    [Retried(Failure("x", "y"), 0), Snoozed(0), Returned(), Suspended([submission()])],
    ids=["retried", "snoozed", "returned", "suspended"],
)
async def test_rule_8_a_job_that_was_asked_to_stop_does_not_run_again(house: House, outcome: Outcome) -> None:
    claimed = await house.running()
    await house.cancel(claimed.job.id, reason="not needed any more")
    assert await house.end(claimed, outcome)
    ended = await house.job(claimed.job.id)
    assert (ended.state, ended.error) == (State.CANCELLED, Failure("cancelled", "not needed any more"))
    assert ended.expires_us is not None
    assert ended.sub_total == 0


@pytest.mark.parametrize("fields", [{}, {"held": True}, {"run_at_us": 2 * 10**15}], ids=["ready", "held", "scheduled"])
async def test_rule_8_an_idle_job_is_cancelled_at_once(house: House, fields: dict[str, object]) -> None:
    job = await house.add(**fields)
    ended = await house.cancel(job.id, reason="why not")
    assert (ended.state, ended.error, ended.expires_us) == (State.CANCELLED, Failure("cancelled", "why not"), house.expires_us)
    assert await house.claim(5) == []


# --- 9: idempotency keys -----------------------------------------------------------------------------------------------------


async def test_rule_9_the_same_key_and_body_is_the_same_job(house: House) -> None:
    first, second = [
        (await house.store.add_jobs([submission(idempotency_key="k", body_hash="h")], now_us=house.now_us))[0] for _ in range(2)
    ]
    assert (first.created, second.created) == (True, False)
    assert first.job.id == second.job.id
    assert await house.history(first.job.id) == ["submitted"]


async def test_rule_9_another_body_is_a_conflict_that_names_the_job(house: House) -> None:
    job = await house.add(idempotency_key="k", body_hash="h")
    with pytest.raises(IdempotencyConflict) as raised:
        await house.add(idempotency_key="k", body_hash="other")
    assert raised.value.job_id == job.id
    assert "k" in raised.value.message


async def test_rule_9_a_key_belongs_to_its_project(house: House) -> None:
    one = await house.add(idempotency_key="k", body_hash="h", project="one")
    two = await house.add(idempotency_key="k", body_hash="other", project="two")
    assert one.id != two.id


async def test_rule_9_within_one_batch(house: House) -> None:
    batch = [submission(idempotency_key="k", body_hash="h"), submission(), submission(idempotency_key="k", body_hash="h")]
    added = await house.store.add_jobs(batch, now_us=house.now_us)
    assert [one.created for one in added] == [True, True, False]
    assert added[0].job.id == added[2].job.id
    batch = [submission(idempotency_key="n", body_hash="h"), submission(idempotency_key="n", body_hash="other")]
    with pytest.raises(IdempotencyConflict):
        await house.store.add_jobs(batch, now_us=house.now_us)
    assert len(await house.ids()) == 2


async def test_rule_9_at_the_same_time_from_many_callers(house: House) -> None:
    calls = [house.store.add_jobs([submission(idempotency_key="k", body_hash="h")], now_us=house.now_us) for _ in range(20)]
    added = [one for (one,) in await asyncio.gather(*calls)]
    assert sum(one.created for one in added) == 1
    assert len({one.job.id for one in added}) == 1


async def test_rule_9_a_key_is_free_again_once_its_job_is_pruned(house: House) -> None:
    job = await house.add(idempotency_key="k", body_hash="h")
    await house.end(await house.claim_one())
    assert (await house.add(idempotency_key="k", body_hash="h")).id == job.id, "kept while the job is kept"
    house.clock.advance(KEEP_S)
    await house.prune()
    assert (await house.add(idempotency_key="k", body_hash="other")).id != job.id


# --- 10: projects ------------------------------------------------------------------------------------------------------------


async def test_rule_10_another_projects_id_is_not_found(house: House) -> None:
    job = await house.add(project="mine", held=True)
    mine, other = ProjectId("mine"), ProjectId("other")
    assert (await house.store.get_job(job.id, project=mine)).id == job.id
    assert (await house.store.get_job(job.id, project=None)).id == job.id
    with pytest.raises(NotFound):
        await house.store.get_job(job.id, project=other)
    with pytest.raises(NotFound):
        await house.cancel(job.id, project="other")
    with pytest.raises(NotFound):
        await house.release(job.id, project="other")
    assert await house.state(job.id) is State.HELD


async def test_rule_10_tombstones_too(house: House) -> None:
    job = await house.add(project="mine")
    await house.end(await house.claim_one())
    house.clock.advance(KEEP_S)
    await house.prune()
    assert (await house.store.get_job(job.id, project=ProjectId("mine"))).id == job.id
    with pytest.raises(NotFound):
        await house.store.get_job(job.id, project=ProjectId("other"))
    with pytest.raises(Expired):
        await house.cancel(job.id, project="mine")
    with pytest.raises(NotFound):
        await house.cancel(job.id, project="other")


async def test_rule_10_lists_and_events_show_one_project(house: House) -> None:
    mine, other = await house.add(project="mine"), await house.add(project="other")
    assert await house.ids(project="mine") == [mine.id]
    assert await house.ids(project="mine", ids=(mine.id, other.id)) == [mine.id]
    assert {event.job_id for event in await house.store.list_events(project=ProjectId("mine"))} == {mine.id}


async def test_rule_10_a_page_does_not_start_behind_another_projects_job(house: House) -> None:
    await house.add(project="mine")
    other = await house.add(project="other")
    with pytest.raises(NotFound):
        await house.ids(project="mine", after=other.id)


# --- 11: reads do not wait for writers -----------------------------------------------------------------------------------------


async def test_rule_11_a_read_is_answered_while_another_holds_the_write_lock(durable: House) -> None:
    import sqlite3

    job = await durable.add()
    other = sqlite3.connect(durable.store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.ensure_future(durable.add())
    async with asyncio.timeout(60):
        assert (await durable.job(job.id)).id == job.id
        assert await durable.ids() == [job.id]
        assert len(await durable.store.list_events(job_id=job.id)) == 1
        assert await durable.store.last_event_id() >= 1
        assert len(await durable.store.queue_depths()) == 1
    assert not writing.done()
    other.execute("ROLLBACK")
    other.close()
    assert await durable.state((await writing).id) is State.READY


# --- 12: from any loop --------------------------------------------------------------------------------------------------------


async def test_rule_12_every_call_works_from_another_loop(house: House) -> None:
    async def elsewhere() -> list[str]:
        claimed = await house.running(held=False, callback=None)
        await house.store.report_progress(claimed.claim, Progress(1), now_us=house.now_us)
        assert await house.state(claimed.job.id) is State.RUNNING
        (sub,) = await house.split(claimed, submission(held=True))
        await house.release(sub.id)
        await house.end(await house.claim_one())
        await house.end(await house.claim_one(queue="lane"))
        made = Resource(type="t", id="1", project="p", doc=b"{}", created_us=1, updated_us=1, version=0)
        await house.store.put_resource(made)
        assert [one.id for one in await house.store.list_resources("t")] == ["1"]
        assert (await house.store.count_sub_jobs([claimed.job.id]))[claimed.job.id].total == 1
        await house.store.ping()
        with pytest.raises(NotFound):
            await house.cancel("nobody")
        assert await house.ids() == [claimed.job.id]
        return await house.history(claimed.job.id)

    async with asyncio.timeout(60):
        seen = await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
    assert seen == ["submitted", "started", "progress", "waiting", "resumed", "started", "succeeded"]


async def test_rule_12_a_listener_is_called_on_the_loop_that_subscribed(house: House) -> None:
    seen: list[tuple[int, int]] = []
    ready, done = threading.Event(), threading.Event()

    async def listen() -> None:
        got = asyncio.Event()

        def listener(events: object) -> None:
            seen.append((threading.get_ident(), len(list(events))))  # type: ignore[call-overload]
            got.set()

        end = house.store.subscribe(listener)
        ready.set()
        async with asyncio.timeout(60):
            await got.wait()
        end()
        done.set()

    thread = threading.Thread(target=lambda: asyncio.run(listen()))
    thread.start()
    await asyncio.to_thread(ready.wait, 5)
    await house.add_many(2)
    await asyncio.to_thread(done.wait, 5)
    assert seen == [(thread.ident, 2)]
    await asyncio.to_thread(thread.join, 5)


async def test_rule_12_reads_from_several_threads_at_once_do_not_mix(durable: House) -> None:
    jobs = await durable.add_many(50)

    async def read_all() -> bool:
        return all([(await durable.job(job.id)).id == job.id for _ in range(10) for job in jobs])

    answers = await asyncio.gather(*(asyncio.to_thread(lambda: asyncio.run(read_all())) for _ in range(4)))
    assert answers == [True] * 4


# --- 13: pruning ---------------------------------------------------------------------------------------------------------------


async def test_rule_13_a_pruned_job_leaves_a_tombstone(house: House) -> None:
    claimed = await house.running(project="p", labels={"a": "b"})
    await house.end(claimed, BROKEN)
    ended_us = house.now_us
    house.clock.advance(KEEP_S)
    assert await house.prune() == [claimed.job.id]
    left = await house.buried(claimed.job.id)
    assert (left.project, left.kind, left.state, left.ended_us, left.expired_us) == ("p", "k", "failed", ended_us, house.now_us)
    assert await house.ids() == []
    assert await house.ids(labels=(("a", "b"),)) == []
    assert await house.store.list_events() == []
    with pytest.raises(Expired) as raised:
        await house.cancel(claimed.job.id)
    assert raised.value.state == "failed"
    with pytest.raises(Expired):
        await house.release(claimed.job.id)


async def test_rule_13_not_before_its_time_and_never_while_it_is_open(house: House) -> None:
    claimed, idle = await house.running(), await house.add()
    await house.end(claimed)
    house.clock.advance(KEEP_S - 1)
    assert await house.prune() == []
    house.clock.advance(1)
    assert await house.prune() == [claimed.job.id]
    house.clock.advance(1e6)
    assert await house.prune() == []
    assert await house.state(idle.id) is State.READY


async def test_rule_13_sub_jobs_go_with_their_root_and_not_before_it(house: House) -> None:
    root = await house.running()
    (middle,) = await house.split(root, submission(kind="middle"))
    below = await house.split(await house.claim_one(), *subs(3))
    for _ in below:
        await house.end(await house.claim_one())
    await house.end(await house.claim_one())
    await house.end(await house.claim_one(queue="lane"))
    house.clock.advance(KEEP_S)
    removed = await house.prune()
    assert sorted(removed) == sorted([root.job.id, middle.id, *ids_of(below)])
    assert all([(await house.buried(job_id)).state is State.SUCCEEDED for job_id in removed])


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_rule_13_a_big_tree_goes_in_small_bites(house: House, limit: int) -> None:
    root = await house.running()
    made = await house.split(root, *subs(20))
    for _ in made:
        await house.end(await house.claim_one())
    await house.end(await house.claim_one(queue="lane"))
    other = await house.running()
    await house.end(other)
    house.clock.advance(KEEP_S)

    removed: list[str] = []
    for _ in range(100):
        bite = await house.prune(limit=limit)
        assert len(bite) <= limit
        removed += bite
        if not bite:
            break
    assert sorted(removed) == sorted([root.job.id, other.job.id, *ids_of(made)])
    assert len(set(removed)) == len(removed)
    for job_id in removed:
        await house.buried(job_id)


async def test_rule_13_a_tree_with_a_sub_job_that_still_runs_waits_for_it(house: House) -> None:
    deadline_us = house.now_us + 1_000_000
    root = await house.running(deadline_us=deadline_us)
    await house.split(root, submission())
    busy = await house.claim_one()
    house.clock.advance(1)
    assert await house.fail_overdue() == 1
    assert await house.state(root.job.id) is State.FAILED
    assert (await house.live()).cancel == {busy.job.id: "its parent's deadline passed"}
    await house.live("a", lease_s=1e6)
    house.clock.advance(KEEP_S)
    assert await house.prune() == []
    other = await house.running()
    await house.end(other)
    assert await house.end(busy, STOPPED)
    house.clock.advance(KEEP_S)
    assert sorted(await house.prune()) == sorted([root.job.id, busy.job.id, other.job.id])
    assert (await house.buried(busy.job.id)).state is State.CANCELLED


async def test_rule_13_tombstones_go_after_their_own_time(house: House) -> None:
    claimed = await house.running()
    await house.end(claimed)
    house.clock.advance(KEEP_S)
    await house.prune()
    house.clock.advance(99)
    await house.prune(keep_tombstone_s=100)
    await house.buried(claimed.job.id)
    house.clock.advance(1)
    await house.prune(keep_tombstone_s=100)
    with pytest.raises(NotFound):
        await house.store.get_job(claimed.job.id)


async def test_rule_13_a_held_job_that_nobody_released_goes_at_its_expiry_and_a_released_one_stays(house: House) -> None:
    until_us = house.now_us + 10_000_000
    unpaid = await house.add(held=True, expires_us=until_us)
    paid = await house.add(held=True, expires_us=until_us)
    patient = await house.add(held=True)
    ready = await house.add(expires_us=until_us)  # only of a held job
    await house.store.release_job(paid.id, project=None, now_us=house.now_us)
    house.clock.advance(9)
    assert await house.prune() == []
    house.clock.advance(1)
    with pytest.raises(Expired):
        await house.store.release_job(unpaid.id, project=None, now_us=house.now_us)
    assert await house.prune() == [unpaid.id]
    assert (await house.buried(unpaid.id)).state is State.HELD
    assert [await house.state(job.id) for job in (paid, patient, ready)] == [State.READY, State.HELD, State.READY]


# --- 14: writes that come with a submission ---------------------------------------------------------------------------------


def thing(id: str = "r", doc: bytes = b"1", project: str = "p") -> Resource:
    return Resource(type="thing", id=id, project=ProjectId(project), doc=doc, created_us=1, updated_us=1, version=0)


async def test_rule_14_the_writes_of_a_submission_are_made_with_it(house: House) -> None:
    old = await house.store.put_resource(thing("old"))
    writes = [Write(resource=thing("new"), if_version=0), Write(resource=old, if_version=1, delete=True)]
    (added,) = await house.store.add_jobs([submission(id=JobId("chosen"))], now_us=house.now_us, writes=[writes])
    assert (added.created, added.job.id) == (True, "chosen")
    assert [one.id for one in await house.store.list_resources("thing")] == ["new"]


@pytest.mark.parametrize("if_version", [0, 2])
async def test_rule_14_one_stale_write_refuses_all_jobs_and_all_writes(house: House, if_version: int) -> None:
    await house.store.put_resource(thing("old"))
    batch = [submission(), submission()]
    writes = [[Write(resource=thing("new"), if_version=0)], [Write(resource=thing("old", b"2"), if_version=if_version)]]
    with pytest.raises(VersionConflict):
        await house.store.add_jobs(batch, now_us=house.now_us, writes=writes)
    assert await house.store.list_jobs(JobQuery()) == []
    assert [(one.id, one.doc) for one in await house.store.list_resources("thing")] == [("old", b"1")]


async def test_rule_14_writes_of_one_call_build_on_each_other(house: House) -> None:
    chain = [
        Write(resource=thing("r", b"1"), if_version=0),
        Write(resource=thing("r", b"2"), if_version=1),
        Write(resource=thing("r"), if_version=2, delete=True),
        Write(resource=thing("r", b"3"), if_version=0),
    ]
    await house.store.add_jobs([submission(), submission()], now_us=house.now_us, writes=[chain[:1], chain[1:]])
    found = await house.store.get_resource("thing", "r")
    assert (found.doc, found.version) == (b"3", 1)


async def test_rule_14_a_submission_whose_key_has_a_job_writes_nothing(house: House) -> None:
    keyed = submission(idempotency_key="k", body_hash="h")
    (first,) = await house.store.add_jobs([keyed], now_us=house.now_us, writes=[[Write(resource=thing("one"), if_version=0)]])
    assert await house.store.has_key(first.job.project, "k")
    assert not await house.store.has_key(ProjectId("another"), "k")
    again = [Write(resource=thing("one"), if_version=0), Write(resource=thing("two"), if_version=0)]
    (second,) = await house.store.add_jobs([keyed], now_us=house.now_us, writes=[again])
    assert (second.created, second.job.id) == (False, first.job.id)
    assert [one.id for one in await house.store.list_resources("thing")] == ["one"]


async def test_rule_14_several_writes_of_a_running_job_are_one_and_fenced(house: House) -> None:
    claimed = await house.running()
    good, stale = Write(resource=thing("a"), if_version=0), Write(resource=thing("b"), if_version=7)
    with pytest.raises(VersionConflict):
        await house.store.write_resources([good, stale], claim=claimed.claim)
    lost = Claim(claimed.job.id, claimed.claim.fence + 1, claimed.claim.worker)
    with pytest.raises(Conflict):
        await house.store.write_resources([good], claim=lost)
    assert await house.store.list_resources("thing") == []
    await house.store.write_resources([good, Write(resource=thing("b"))], claim=claimed.claim)
    assert [one.id for one in await house.store.list_resources("thing")] == ["a", "b"]


async def test_rule_15_an_event_makes_one_delivery_or_is_within_one_that_says_it_is_missing(house: House) -> None:
    fields = {"url": "https://example.com/", "description": "", "filter": Filter(), "secret": "whsec_eA==", "most": 9}
    one = await house.store.add_subscription(ProjectId("p"), after_id=0, now_us=house.now_us, **fields)
    await house.add(project="p")
    events = await house.store.list_events()
    keeping = {"now_us": house.now_us, "log_max": 9, "job_max": 9}
    publication = Publication(one, events, (1, 3), events[-1].id)
    both = await asyncio.gather(*(house.store.publish([publication], None, **keeping) for _ in range(2)))
    assert sorted(both) == [0, 2], "two that read the same write once"
    made = await house.store.page_deliveries(one.id)
    assert [delivery.event for delivery in reversed(made)] == ["missed", "submitted"]
    now = await house.store.get_subscription(one.id)
    assert (now.cursor, now.missed_until, now.made) == (events[-1].id, 3, 2)


def test_every_numbered_rule_has_a_test() -> None:
    import re

    import milepost.store

    rules = set(re.findall(r"^\s?(\d+)\. ", milepost.store.__doc__ or "", re.MULTILINE))
    suite = [path.read_text() for path in Path(__file__).parent.glob("test_*.py")]
    tested = {found for source in suite for found in re.findall(r"^async def test_rule_(\d+)_", source, re.MULTILINE)}
    assert rules == tested
    assert EventType.SUBMITTED == "submitted"


async def test_rule_13_a_held_job_whose_expiry_has_passed_is_neither_listed_nor_cancelled(house: House) -> None:
    unpaid = await house.add(held=True, expires_us=house.now_us + 10_000_000)
    query = {"unexpired_in": unpaid.project, "project": unpaid.project}
    assert await house.ids(now_us=house.now_us, **query) == [unpaid.id]
    house.clock.advance(10)
    assert await house.ids(now_us=house.now_us, **query) == []
    with pytest.raises(Expired):
        await house.cancel(unpaid.id)
    assert await house.state(unpaid.id) is State.HELD


async def test_rule_14_a_key_that_comes_twice_in_a_call_makes_the_writes_of_its_first(house: House) -> None:
    def write(id_: str) -> Write:
        resource = Resource(
            type="t", id=id_, project=ProjectId("default"), doc=b"1", created_us=house.now_us, updated_us=house.now_us, version=0
        )
        return Write(resource=resource, if_version=0)

    same = [submission(idempotency_key="k", body_hash="h") for _ in range(2)]
    elsewhere = submission(idempotency_key="k", body_hash="h", project=ProjectId("other"))
    added = await house.store.add_jobs(
        [*same, elsewhere], now_us=house.now_us, writes=[[write("first")], [write("second")], [write("elsewhere")]]
    )
    assert [one.created for one in added] == [True, False, True]
    assert [one.id for one in await house.store.list_resources("t")] == ["elsewhere", "first"]


async def test_rule_14_a_submission_that_must_have_a_job_already_makes_none(house: House) -> None:
    keyed = submission(idempotency_key="k", body_hash="h")
    with pytest.raises(VersionConflict):
        await house.store.add_jobs([keyed], now_us=house.now_us, writes=[None])
    assert await house.store.list_events() == []
    made = await house.add(idempotency_key="k", body_hash="h")
    (again,) = await house.store.add_jobs([keyed], now_us=house.now_us, writes=[None])
    assert (again.created, again.job.id) == (False, made.id)


async def test_what_a_submitter_does_with_its_job_reaches_no_worker(house: House) -> None:
    job = await house.add(labels={"a": "b"}, origin={"c": "d"}, input=b"1")
    job.labels["a"], job.origin["c"], job.input = "changed", "changed", b"2"
    claimed = await house.claim_one()
    assert (claimed.job.labels, claimed.job.origin, claimed.job.input) == ({"a": "b"}, {"c": "d"}, b"1")
