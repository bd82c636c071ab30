"""The store against a small model: whatever happens in whatever order, both agree about every job."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from milepost.errors import Conflict, Expired, NotFound, VersionConflict
from milepost.job import (
    FINAL,
    Cancelled,
    Claim,
    Failed,
    Failure,
    Job,
    JobId,
    Progress,
    ProjectId,
    Retried,
    Returned,
    Snoozed,
    State,
    Submission,
    Succeeded,
    WorkerId,
    may_move,
)
from milepost.store import Ended, JobQuery, Resource, Write
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
    key: str | None = None


class Asked(msgspec.Struct, frozen=True):
    """A submission of a call with keys and writes; a write is (resource, the version it wants, whether it deletes)."""

    key: str | None
    held_s: int | None
    must_exist: bool
    writes: list[tuple[str, int | None, bool]]


FINISHES = ["succeed", "fail", "cancel", "retry", "retry later", "snooze", "return"]
ASKED = st.builds(
    Asked,
    key=st.sampled_from([None, None, "k1", "k2"]),
    held_s=st.sampled_from([None, None, 20, 200]),
    must_exist=st.sampled_from([False, False, False, True]),
    writes=st.lists(st.tuples(st.sampled_from(["r1", "r2"]), st.sampled_from([None, None, 0, 1, 2]), st.booleans()), max_size=3),
)


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
        self.resources: dict[str, int] = {}  # id -> version

    def call(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    @initialize(priorities=st.lists(st.integers(0, 3), min_size=3, max_size=6))
    def begin(self, priorities: list[int]) -> None:
        self.call(self.store.open())
        for priority in priorities:
            self.submit(held=False, priority=priority, delay_s=0, deadline_s=None, held_s=None)
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
        held_s=st.sampled_from([None, 20, 200]),
    )
    def submit(self, held: bool, priority: int, delay_s: int, deadline_s: int | None, held_s: int | None) -> None:
        run_at_us = self.now_us + delay_s * 1_000_000
        deadline_us = None if deadline_s is None else self.now_us + deadline_s * 1_000_000
        expires_us = None if held_s is None else self.now_us + held_s * 1_000_000
        made = Submission(
            kind="k",
            held=held,
            priority=priority,
            run_at_us=run_at_us,
            deadline_us=deadline_us,
            attempts_max=99,
            expires_us=expires_us,
        )
        ((job, _),) = self.call(self.store.add_jobs([made], now_us=self.now_us))
        state = State.HELD if held else State.READY
        self.jobs[job.id] = Model(state, run_at_us, priority, deadline_us, delay_s == 0, expires_us=expires_us if held else None)

    @rule(asked=st.lists(ASKED, min_size=1, max_size=3))
    def submit_with_writes(self, asked: list[Asked]) -> None:
        """All of it or nothing: keys that have a job make none and write nothing, also those of the same call."""
        had: dict[str | None, JobId] = {job.key: job_id for job_id, job in self.jobs.items() if job.key is not None}
        known: set[str | None] = set(had)
        versions, refused = dict(self.resources), False
        new = []
        for one in asked:
            new.append(one.key is None or one.key not in known)
            known.add(one.key)
            if not new[-1]:
                continue
            refused = refused or one.must_exist
            for id_, if_version, delete in one.writes:
                refused = refused or (if_version is not None and if_version != versions.get(id_, 0))
                versions[id_] = 0 if delete else versions.get(id_, 0) + 1
        try:
            added = self.call(
                self.store.add_jobs(
                    [self.submission_of(one) for one in asked],
                    now_us=self.now_us,
                    writes=[None if one.must_exist else [self.write_of(write) for write in one.writes] for one in asked],
                )
            )
        except VersionConflict:
            assert refused
            return
        assert not refused
        assert [one.created for one in added] == new
        self.resources = {id_: version for id_, version in versions.items() if version}
        for one, (job, created) in zip(asked, added, strict=True):
            if created:
                expires_us = None if one.held_s is None else self.now_us + one.held_s * 1_000_000
                state = State.READY if one.held_s is None else State.HELD
                self.jobs[job.id] = Model(state, self.now_us, 5, None, True, expires_us=expires_us, key=one.key)
                had[one.key] = job.id
            else:
                assert job.id == had[one.key]

    def submission_of(self, one: Asked) -> Submission:
        expires_us = None if one.held_s is None else self.now_us + one.held_s * 1_000_000
        held = one.held_s is not None
        return Submission(kind="k", held=held, expires_us=expires_us, idempotency_key=one.key, body_hash="h", attempts_max=99)

    def write_of(self, write: tuple[str, int | None, bool]) -> Write:
        id_, if_version, delete = write
        project = ProjectId("default")
        resource = Resource(
            type="t", id=id_, project=project, doc=b"1", created_us=self.now_us, updated_us=self.now_us, version=0
        )
        return Write(resource=resource, if_version=if_version, delete=delete)

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
        what=st.sampled_from(FINISHES),
    )
    def finish(self, data: st.DataObject, live: bool, what: str) -> None:
        current = [claim for claim in self.claims if self.holds(claim)] if live else []
        claim = data.draw(st.sampled_from(current or self.claims))
        outcome, *_ = self.outcome_of(what)
        written = self.call(self.store.finish_job(claim, outcome, now_us=self.now_us, expires_us=self.expires_us))
        assert written == self.finish_in_model(claim, what)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), whats=st.lists(st.sampled_from(FINISHES), min_size=2, max_size=5))
    def finish_together(self, data: st.DataObject, whats: list[str]) -> None:
        """The final outcomes of a batch are written first; of two that end the same attempt one is too late."""
        current = [claim for claim in self.claims if self.holds(claim)]
        ended = [(data.draw(st.sampled_from((current or []) + self.claims[-3:])), what) for what in whats]
        given = [Ended(claim, self.outcome_of(what)[0], self.now_us, self.expires_us) for claim, what in ended]
        written = self.call(self.store.finish_jobs(given))
        expected: dict[int, bool] = {}
        for finals in (True, False):
            for at, (claim, what) in enumerate(ended):
                if (self.outcome_of(what)[1] in FINAL) == finals:
                    expected[at] = self.finish_in_model(claim, what)
        assert written == [expected[at] for at in range(len(ended))]

    def outcome_of(self, what: str) -> tuple[Any, State, int | None, int]:
        later_us = self.now_us + 7_000_000
        return {
            "succeed": (Succeeded(b"1"), State.SUCCEEDED, 0, 1),
            "fail": (Failed(WHY), State.FAILED, 0, 1),
            "cancel": (Cancelled(WHY), State.CANCELLED, 0, 1),
            "retry": (Retried(WHY, self.now_us), State.READY, self.now_us, 1),
            "retry later": (Retried(WHY, later_us), State.READY, later_us, 1),
            "snooze": (Snoozed(later_us), State.READY, later_us, 0),
            "return": (Returned(), State.READY, None, 0),
        }[what]

    def finish_in_model(self, claim: Claim, what: str) -> bool:
        if not self.holds(claim):
            return False
        _, state, run_at_us, counts = self.outcome_of(what)
        early_us = self.jobs[claim.job_id].expires_us
        if state in FINAL:
            self.move(claim.job_id, state)
        else:
            self.requeue(claim.job_id, self.jobs[claim.job_id].run_at_us if run_at_us is None else run_at_us, counts=counts)
            if what == "snooze" and (job := self.jobs[claim.job_id]).state is State.READY:
                job.attempt, job.crashes = job.attempt - job.crashes, 0
            if early_us is not None:  # cancelled instead: kept as long as the cancel said
                self.jobs[claim.job_id].expires_us = early_us
        return True

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
        if self.is_gone(job):
            try:
                self.call(cancelling)
            except Expired:
                return
            raise AssertionError("cancelled what had expired")
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
        except Expired:
            assert self.is_gone(job)
            return
        assert job.state is State.HELD
        assert not self.is_gone(job)
        self.move(job_id, State.READY).due = job.run_at_us <= self.now_us
        job.expires_us = None

    @precondition(lambda self: any(job.state is State.HELD and job.expires_us is not None for job in self.jobs.values()))
    @rule(data=st.data(), after_s=st.sampled_from([0, 20, 200]))
    def act_on_an_order(self, data: st.DataObject, after_s: int) -> None:
        """Cancelled or released in time, and never after it."""
        self.now_us += after_s * 1_000_000
        orders = [id_ for id_, job in self.jobs.items() if job.state is State.HELD and job.expires_us is not None]
        job_id = data.draw(st.sampled_from(sorted(orders)))
        if not self.is_gone(self.jobs[job_id]):
            return
        cancelling = self.store.cancel_job(job_id, project=None, reason="stop", now_us=self.now_us, expires_us=self.expires_us)
        for acting in (cancelling, self.store.release_job(job_id, project=None, now_us=self.now_us)):
            try:
                self.call(acting)
            except Expired:
                continue
            raise AssertionError("acted on an order that had expired")

    def is_gone(self, job: Model) -> bool:
        """Never released, and not pruned yet."""
        return job.state is State.HELD and job.expires_us is not None and job.expires_us <= self.now_us

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
            if (job.state in FINAL or job.state is State.HELD) and job.expires_us is not None and job.expires_us <= self.now_us
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
            assert job.expires_us == model.expires_us
            if model.state in FINAL:
                assert self.final.setdefault(job_id, job) == job, "a final row changed"
        for job_id, state in self.buried.items():
            assert self.call(self.store.get_job(job_id)).state == state

    @invariant()
    def resources_are_what_was_written_with_jobs(self) -> None:
        stored = self.call(self.store.list_resources("t"))
        assert {one.id: one.version for one in stored} == self.resources

    @invariant()
    def a_list_leaves_out_what_has_expired(self) -> None:
        project = ProjectId("default")
        query = JobQuery(project=project, unexpired_in=project, now_us=self.now_us, limit=1000)
        shown = {
            job_id
            for job_id, job in self.jobs.items()
            if not self.is_gone(job) and not (job.state in FINAL and (job.expires_us or 0) <= self.now_us)
        }
        assert {job.id for job in self.call(self.store.list_jobs(query))} == shown

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
