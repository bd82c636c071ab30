"""The state machine is the table: every (state, event) pair, through the store, does what `MOVES` says and nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from milepost.errors import Conflict
from milepost.job import (
    FINAL,
    MOVES,
    Cancelled,
    Claim,
    Failed,
    Failure,
    Job,
    JobId,
    Retried,
    Returned,
    Snoozed,
    State,
    Submission,
    Succeeded,
    Suspended,
    WorkerId,
    is_final,
    may_move,
)
from milepost.store.sqlite import SqliteStore

NOW, LATER, EXPIRES = 1_000_000_000, 2_000_000_000, 9_000_000_000
WORKER = WorkerId("w")
WHY = Failure("x", "y")


class Bench:
    """One job brought into a state, and one event thrown at it."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.id = JobId("")
        self.now_us = NOW

    async def bring(self, state: State) -> None:
        made = Submission(kind="k", queue="lane", held=state is State.HELD, attempts_max=9, deadline_us=LATER)
        (added,) = await self.store.add_jobs([made], now_us=NOW)
        self.id = added.job.id
        if state in (State.HELD, State.READY):
            return
        claim = await self.claim()
        if state is State.WAITING:
            await self.store.finish_job(claim, Suspended([Submission(kind="sub", queue="subs")]), now_us=NOW)
        elif state is not State.RUNNING:
            outcome = {
                State.SUCCEEDED: Succeeded(b"1"),
                State.FAILED: Failed(WHY),
                State.CANCELLED: Cancelled(WHY),
            }[state]
            await self.store.finish_job(claim, outcome, now_us=NOW, expires_us=EXPIRES)

    async def claim(self, queue: str = "lane") -> Claim:
        await self.store.renew_lease(WORKER, now_us=NOW, lease_s=100)
        (claimed,) = await self.store.claim_jobs(queue, worker=WORKER, now_us=NOW, limit=1)
        return claimed.claim

    async def job(self) -> Job:
        found = await self.store.get_job(self.id)
        assert isinstance(found, Job)
        return found


def finish(outcome: Any) -> Callable[[Bench], Awaitable[None]]:
    async def act(bench: Bench) -> None:
        job = await bench.job()
        held = await bench.store.finish_job(Claim(job.id, job.fence, WORKER), outcome, now_us=NOW, expires_us=EXPIRES)
        assert held == (job.state is State.RUNNING), "a claim counts while the job is running"

    return act


async def claim(bench: Bench) -> None:
    await bench.store.renew_lease(WORKER, now_us=NOW, lease_s=100)
    await bench.store.claim_jobs("lane", worker=WORKER, now_us=NOW, limit=10)


async def release(bench: Bench) -> None:
    await bench.store.release_job(bench.id, project=None, now_us=NOW)


async def cancel(bench: Bench) -> None:
    await bench.store.cancel_job(bench.id, project=None, reason="stop", now_us=NOW, expires_us=EXPIRES)


async def rescue(bench: Bench) -> None:
    await bench.store.end_worker(WORKER)
    await bench.store.rescue_expired(now_us=NOW, crashes_max=3, expires_us=EXPIRES)


async def rescue_poison(bench: Bench) -> None:
    await bench.store.end_worker(WORKER)
    await bench.store.rescue_expired(now_us=NOW, crashes_max=1, expires_us=EXPIRES)


async def deadline(bench: Bench) -> None:
    await bench.store.fail_overdue(now_us=LATER, limit=10, expires_us=EXPIRES)


async def promote(bench: Bench) -> None:
    await bench.store.promote_due(now_us=LATER, limit=10)


async def last_sub_ends(bench: Bench) -> None:
    if (await bench.job()).state is State.WAITING:
        await bench.store.finish_job(await bench.claim("subs"), Succeeded(b"1"), now_us=NOW)


EVENTS: dict[str, tuple[Callable[[Bench], Awaitable[None]], dict[State, State]]] = {
    # what happens: how, and where each state goes (states that are missing stay)
    "claim": (claim, {State.READY: State.RUNNING}),
    "release": (release, {State.HELD: State.READY}),
    "succeed": (finish(Succeeded(b"1")), {State.RUNNING: State.SUCCEEDED}),
    "fail": (finish(Failed(WHY)), {State.RUNNING: State.FAILED}),
    "end as cancelled": (finish(Cancelled(WHY)), {State.RUNNING: State.CANCELLED}),
    "retry": (finish(Retried(WHY, NOW)), {State.RUNNING: State.READY}),
    "snooze": (finish(Snoozed(LATER)), {State.RUNNING: State.READY}),
    "return": (finish(Returned()), {State.RUNNING: State.READY}),
    "suspend": (finish(Suspended([Submission(kind="sub", queue="subs")])), {State.RUNNING: State.WAITING}),
    "cancel": (cancel, {State.HELD: State.CANCELLED, State.READY: State.CANCELLED, State.WAITING: State.CANCELLED}),
    "rescue": (rescue, {State.RUNNING: State.READY}),
    "rescue once too often": (rescue_poison, {State.RUNNING: State.FAILED}),
    "deadline": (deadline, {State.HELD: State.FAILED, State.READY: State.FAILED, State.WAITING: State.FAILED}),
    "promote": (promote, {}),
    "last sub-job ends": (last_sub_ends, {State.WAITING: State.READY}),
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", State)
async def test_every_event_in_every_state(state: State, event: str) -> None:
    store = SqliteStore(":memory:")
    await store.open()
    try:
        bench = Bench(store)
        await bench.bring(state)
        before = await bench.job()
        assert before.state is state
        act, moves = EVENTS[event]
        try:
            await act(bench)
        except Conflict:
            assert state not in moves
        after = await bench.job()
    finally:
        await store.close()

    assert after.state is moves.get(state, state)
    assert after.state is state or may_move(state, after.state)
    if state in FINAL:
        assert after == before, "a final row never changes"


def test_every_move_of_the_table_is_made_by_some_event() -> None:
    made = {(old, new) for _, moves in EVENTS.values() for old, new in moves.items()}
    assert made == {(old, new) for old, news in MOVES.items() for new in news}


def test_final_states_have_no_move_and_every_state_is_in_the_table() -> None:
    assert set(MOVES) == set(State)
    assert {state for state in State if not MOVES[state]} == FINAL
    assert {state for state in State if is_final(state)} == FINAL
