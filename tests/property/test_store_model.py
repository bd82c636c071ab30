"""The store against a small model: whatever happens in whatever order, both agree about every job."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from milepost.errors import Conflict, Expired, NotFound
from milepost.job import (
    FINAL,
    Cancelled,
    Claim,
    Failed,
    Failure,
    Job,
    JobId,
    Progress,
    Retried,
    Returned,
    Snoozed,
    State,
    Submission,
    Succeeded,
    WorkerId,
    may_move,
)
from milepost.store.sqlite import SqliteStore

START_US = 1_790_000_000_000_000
LEASE_S, KEEP_S, CRASHES_MAX = 30, 100, 2
WORKERS = ("a", "b")
WHY = Failure("x", "y")


class Model(msgspec.Struct):
    """What one job should be."""

    state: State
    run_at_us: int
    priority: int
    deadline_us: int | None
    due: bool
    attempt: int = 0
    crashes: int = 0
    fence: int = 0
    owner: str | None = None
    asked: bool = False
    ended_us: int | None = None
    expires_us: int | None = None
    events: int = 1


class StoreMachine(RuleBasedStateMachine):
    """Roots only: trees are in the conformance suite."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = SqliteStore(":memory:")
        self.now_us = START_US
        self.jobs: dict[JobId, Model] = {}
        self.buried: dict[JobId, State] = {}
        self.leases: dict[str, int] = {}
        self.claims: list[Claim] = []  # every claim ever given, stale ones too
        self.final: dict[JobId, Job] = {}

    def call(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    @initialize(priorities=st.lists(st.integers(0, 3), min_size=3, max_size=6))
    def begin(self, priorities: list[int]) -> None:
        self.call(self.store.open())
        for priority in priorities:
            self.submit(held=False, priority=priority, delay_s=0, deadline_s=None)
        for worker in WORKERS:
            self.renew(worker)
            self.claim(worker, 1, False)

    def teardown(self) -> None:
        self.call(self.store.close())
        self.runner.close()

    # --- the model's half ------------------------------------------------------------------------------------------

    def move(self, job_id: JobId, state: State, *, counts: int = 1) -> Model:
        job = self.jobs[job_id]
        assert may_move(job.state, state)
        if job.state is State.RUNNING:
            job.owner = None
            job.attempt += counts - 1
        job.state = state
        job.events += 1
        if state in FINAL:
            job.ended_us, job.expires_us = self.now_us, self.now_us + KEEP_S * 1_000_000
        return job

    def requeue(self, job_id: JobId, run_at_us: int, *, counts: int) -> None:
        if self.jobs[job_id].asked:
            job = self.move(job_id, State.CANCELLED)
            return
        job = self.move(job_id, State.READY, counts=counts)
        job.run_at_us, job.due = run_at_us, run_at_us <= self.now_us

    def holds(self, claim: Claim) -> bool:
        job = self.jobs.get(claim.job_id)
        return job is not None and job.state is State.RUNNING and job.fence == claim.fence

    @property
    def expires_us(self) -> int:
        return self.now_us + KEEP_S * 1_000_000

    # --- what happens ----------------------------------------------------------------------------------------------

    @rule(
        held=st.booleans(),
        priority=st.integers(0, 3),
        delay_s=st.sampled_from([0, 0, 5, 60]),
        deadline_s=st.sampled_from([None, None, 20, 200]),
    )
    def submit(self, held: bool, priority: int, delay_s: int, deadline_s: int | None) -> None:
        run_at_us = self.now_us + delay_s * 1_000_000
        deadline_us = None if deadline_s is None else self.now_us + deadline_s * 1_000_000
        made = Submission(kind="k", held=held, priority=priority, run_at_us=run_at_us, deadline_us=deadline_us, attempts_max=99)
        ((job, _),) = self.call(self.store.add_jobs([made], now_us=self.now_us))
        self.jobs[job.id] = Model(State.HELD if held else State.READY, run_at_us, priority, deadline_us, delay_s == 0)

    @rule(seconds=st.sampled_from([1, 10, 31, 120]))
    def wait(self, seconds: int) -> None:
        self.now_us += seconds * 1_000_000

    @rule(worker=st.sampled_from(WORKERS))
    def renew(self, worker: str) -> None:
        renewal = self.call(self.store.renew_lease(WorkerId(worker), now_us=self.now_us, lease_s=LEASE_S))
        self.leases[worker] = self.now_us + LEASE_S * 1_000_000
        mine = {job_id: job for job_id, job in self.jobs.items() if job.owner == worker}
        assert renewal.owned == mine.keys()
        assert renewal.cancel.keys() == {job_id for job_id, job in mine.items() if job.asked}

    @rule(worker=st.sampled_from(WORKERS), limit=st.integers(1, 4), renewed=st.sampled_from([True, True, False]))
    def claim(self, worker: str, limit: int, renewed: bool) -> None:
        if renewed:
            self.renew(worker)
        claimed = self.call(self.store.claim_jobs("default", worker=WorkerId(worker), now_us=self.now_us, limit=limit))
        due = [
            (job.priority, job.run_at_us, job_id)
            for job_id, job in self.jobs.items()
            if job.state is State.READY and job.due and (job.deadline_us is None or job.deadline_us > self.now_us)
        ]
        alive = self.leases.get(worker, 0) > self.now_us
        expected = [job_id for _, _, job_id in sorted(due)[:limit]] if alive else []
        assert [one.job.id for one in claimed] == expected
        for one in claimed:
            job = self.move(one.job.id, State.RUNNING)
            job.owner, job.attempt, job.fence = worker, job.attempt + 1, job.fence + 1
            assert (one.job.attempt, one.claim.fence) == (job.attempt, job.fence)
            self.claims.append(one.claim)

    @precondition(lambda self: self.claims)
    @rule(
        data=st.data(),
        live=st.sampled_from([True, True, False]),
        what=st.sampled_from(["succeed", "fail", "cancel", "retry", "retry later", "snooze", "return"]),
    )
    def finish(self, data: st.DataObject, live: bool, what: str) -> None:
        current = [claim for claim in self.claims if self.holds(claim)] if live else []
        claim = data.draw(st.sampled_from(current or self.claims))
        later_us = self.now_us + 7_000_000
        outcome, state, run_at_us, counts = {
            "succeed": (Succeeded(b"1"), State.SUCCEEDED, 0, 1),
            "fail": (Failed(WHY), State.FAILED, 0, 1),
            "cancel": (Cancelled(WHY), State.CANCELLED, 0, 1),
            "retry": (Retried(WHY, self.now_us), State.READY, self.now_us, 1),
            "retry later": (Retried(WHY, later_us), State.READY, later_us, 1),
            "snooze": (Snoozed(later_us), State.READY, later_us, 0),
            "return": (Returned(), State.READY, None, 0),
        }[what]
        held = self.holds(claim)
        early_us = self.jobs[claim.job_id].expires_us if held else None
        written = self.call(self.store.finish_job(claim, outcome, now_us=self.now_us, expires_us=self.expires_us))
        assert written == held
        if not held:
            return
        if state in FINAL:
            self.move(claim.job_id, state)
        else:
            self.requeue(claim.job_id, self.jobs[claim.job_id].run_at_us if run_at_us is None else run_at_us, counts=counts)
            if what == "snooze" and (job := self.jobs[claim.job_id]).state is State.READY:
                job.attempt, job.crashes = job.attempt - job.crashes, 0
            if early_us is not None:  # cancelled instead: kept as long as the cancel said
                self.jobs[claim.job_id].expires_us = early_us

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def progress(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        held = self.holds(claim)
        assert self.call(self.store.report_progress(claim, Progress(1, 2), now_us=self.now_us)) == held
        if held:
            self.jobs[claim.job_id].events += 1

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[job_id]
        cancelling = self.store.cancel_job(job_id, project=None, reason="stop", now_us=self.now_us, expires_us=self.expires_us)
        if job.state in (State.SUCCEEDED, State.FAILED):
            try:
                self.call(cancelling)
            except Conflict:
                return
            raise AssertionError("cancelled what had ended")
        self.call(cancelling)
        if job.state is State.RUNNING and not job.asked:
            job.asked, job.expires_us = True, self.expires_us
            job.events += 1
        elif job.state in (State.READY, State.HELD):
            self.move(job_id, State.CANCELLED)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[job_id]
        try:
            self.call(self.store.release_job(job_id, project=None, now_us=self.now_us))
        except Conflict:
            assert job.state is not State.HELD
            return
        assert job.state is State.HELD
        self.move(job_id, State.READY).due = job.run_at_us <= self.now_us

    @rule(after_s=st.sampled_from([0, 15, LEASE_S]))
    def rescue(self, after_s: int) -> None:
        self.now_us += after_s * 1_000_000
        rescued = self.call(self.store.rescue_expired(now_us=self.now_us, crashes_max=CRASHES_MAX, expires_us=self.expires_us))
        dead = {
            job_id for job_id, job in self.jobs.items() if job.owner is not None and self.leases.get(job.owner, 0) <= self.now_us
        }
        assert {job.id for job in rescued} == dead
        for job_id in dead:
            job = self.jobs[job_id]
            if job.asked:
                self.move(job_id, State.CANCELLED)
            elif job.crashes + 1 >= CRASHES_MAX:
                self.move(job_id, State.FAILED)
            else:
                job.crashes += 1
                self.requeue(job_id, min(job.run_at_us, self.now_us), counts=1)

    @rule()
    def promote(self) -> None:
        waiting = [job for job in self.jobs.values() if job.state is State.READY and not job.due]
        due = [job for job in waiting if job.run_at_us <= self.now_us]
        queues, next_us = self.call(self.store.promote_due(now_us=self.now_us, limit=1000))
        assert queues == ({"default"} if due else set())
        for job in due:
            job.due = True
        assert next_us == min((job.run_at_us for job in waiting if not job.due), default=None)

    @rule()
    def deadlines(self) -> None:
        overdue = [
            job_id
            for job_id, job in self.jobs.items()
            if job.deadline_us is not None and job.deadline_us <= self.now_us and job.state in (State.READY, State.HELD)
        ]
        failed = self.call(self.store.fail_overdue(now_us=self.now_us, limit=1000, expires_us=self.expires_us))
        assert failed == len(overdue)
        for job_id in overdue:
            self.move(job_id, State.FAILED)

    @rule(limit=st.integers(1, 5), after_s=st.sampled_from([0, KEEP_S - 1, KEEP_S]))
    def prune(self, limit: int, after_s: int) -> None:
        self.now_us += after_s * 1_000_000
        expired = {
            job_id
            for job_id, job in self.jobs.items()
            if job.state in FINAL and job.expires_us is not None and job.expires_us <= self.now_us
        }
        removed = self.call(self.store.prune(now_us=self.now_us, keep_tombstone_s=1e6, keep_deliveries_s=1e6, limit=limit))
        assert set(removed) <= expired
        assert len(removed) == min(limit, len(expired))
        for job_id in removed:
            self.buried[job_id] = self.jobs.pop(job_id).state

    # --- what must hold --------------------------------------------------------------------------------------------

    @invariant()
    def every_job_is_what_the_model_says(self) -> None:
        for job_id, model in self.jobs.items():
            job = self.call(self.store.get_job(job_id))
            seen = (job.state, job.attempt, job.crashes, job.fence, job.lease_by, job.ended_us, job.run_at_us, job.version)
            m = model
            assert seen == (m.state, m.attempt, m.crashes, m.fence, m.owner, m.ended_us, m.run_at_us, m.events)
            assert job.cancel_requested == model.asked
            if model.state in FINAL:
                assert job.expires_us == model.expires_us
                assert self.final.setdefault(job_id, job) == job, "a final row changed"
        for job_id, state in self.buried.items():
            assert self.call(self.store.get_job(job_id)).state == state

    @invariant()
    def events_have_no_gaps(self) -> None:
        last: dict[JobId, int] = {}
        for event in self.call(self.store.list_events(limit=100_000)):
            assert event.seq == last.get(event.job_id, 0) + 1
            last[event.job_id] = event.seq
        assert last == {job_id: model.events for job_id, model in self.jobs.items()}

    @precondition(lambda self: self.buried)
    @rule(data=st.data())
    def look_for_a_pruned_one(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.buried)))
        for acting in (
            self.store.cancel_job(job_id, project=None, reason="", now_us=self.now_us, expires_us=1),
            self.store.release_job(job_id, project=None, now_us=self.now_us),
        ):
            try:
                self.call(acting)
            except Expired:
                continue
            raise AssertionError("acted on a pruned job")
        try:
            self.call(self.store.get_job(JobId("nobody")))
        except NotFound:
            return
        raise AssertionError("found nobody")


TestStoreModel = StoreMachine.TestCase
TestStoreModel.settings = settings(max_examples=100, stateful_step_count=50, deadline=None, derandomize=True)
