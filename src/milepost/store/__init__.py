"""What survives a crash: the `Store` protocol.  `sqlite.py` is an implementation; the conformance suite holds all of them to it.

Rules of every implementation
 1. When a method returns, what it wrote is on disk; when it raises, nothing of that call was written
    (StoreUnavailable: it may or may not have been; calling again is safe).
 2. A job's state changes only along `job.MOVES`; a final row never changes again but to be pruned.
 3. `finish_job` and `report_progress` change a row only while `state = running AND fence = claim.fence`.
 4. `claim_jobs` gives a job to one worker only; each claim raises `fence`, and `attempt` for the work it begins.
 5. Every change of state appends exactly one event, in the same transaction; `seq` counts from 1 without gaps.
 6. A worker whose lease was renewed is never rescued; a rescued job is `ready`, or `failed` after `crashes_max`, its kind's
    where it has one.  A job that snoozes has its crashes forgiven; where there is no limit, they are not counted.
 7. A job with a parent that becomes final settles its parent in the same transaction: when no sibling is open, a waiting
    parent becomes ready (or cancelled, when that was asked for).
 8. Cancelling reaches every open sub-job: those not running end now, running ones are asked, waiting ones end after them.
 9. Within a project an idempotency key names one job as long as that job is kept.
10. A read of another project's id is NotFound.  `project=None` reads across projects and is for admins and the engine.
11. Reads never wait for writers.
12. Every method may be called from any event loop of the process.
13. A pruned job leaves a tombstone; its sub-jobs go with their root.
14. The writes that come with a submission are made in its transaction, or not at all; a submission whose idempotency key has a
    job already makes none.
15. Deliveries that are made of events and the cursor behind those events are written together: each event that a subscription
    is about makes exactly one delivery, or, when it was pruned before it was looked at, is within one delivery that says so.
16. With a `Starter`, a submission is claimed in its own transaction, lease, fence and both events, when it is due, no due job
    of its queue stands before it, and the queue is not paused and has a free slot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import msgspec

from milepost.job import (
    Claim,
    Claimed,
    Event,
    EventType,
    Job,
    JobId,
    Outcome,
    Progress,
    ProjectId,
    State,
    Submission,
    Tombstone,
    WorkerId,
)
from milepost.store.push import PushStore
from milepost.store.records import NEVER, AccessKey, Delivery, Grant, Project, Resource, Token, User, Write
from milepost.store.starter import Starter

NO_LIMITS: Mapping[str, float] = MappingProxyType({})


class Added(NamedTuple):
    """What became of one submission: the job, and False when its idempotency key already had it."""

    job: Job
    created: bool


class JobQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs a list shows.  None: no filter.

    `sort` is a column of `SORTABLE`; ties are broken by created_us and id in the same direction, so paging is stable.
    `after` is the last job of the page before: the page starts behind it.
    """

    project: ProjectId | None = None
    kinds: tuple[str, ...] | None = None
    states: tuple[State, ...] | None = None
    queue: str | None = None
    parent_id: JobId | None = None  # None: roots only
    labels: tuple[tuple[str, str], ...] = ()
    ids: tuple[JobId, ...] | None = None  # these only, sub-jobs too
    unexpired_in: ProjectId | None = None  # leave out this project's final and held jobs whose expiry has passed at now_us
    now_us: int = 0
    sort: str = "created_us"
    descending: bool = True
    after: JobId | None = None
    limit: int = 100
    bodies: bool = False  # with input and result


SORTABLE = ("created_us", "id", "kind", "state", "project", "updated_us", "expires_us")


class Ended(NamedTuple):
    """What one attempt came to, and when: the arguments of `finish_job`."""

    claim: Claim
    outcome: Outcome
    now_us: int
    expires_us: int | None = None


class SubCounts(NamedTuple):
    """A parent's sub-jobs by state."""

    total: int
    by_state: dict[State, int]


class Queue(msgspec.Struct, frozen=True):
    """A named lane.  `limit` is concurrent jobs a process; None: the setting's default."""

    name: str
    limit: int | None = None
    paused: bool = False


class QueueDepth(msgspec.Struct, frozen=True):
    """What is in a queue now."""

    name: str
    limit: int | None
    paused: bool
    held: int
    ready: int  # due
    scheduled: int  # ready, later
    running: int
    waiting: int
    oldest_ready_us: int | None  # run_at of the oldest due job


class Renewal(NamedTuple):
    """What a heartbeat learned: the ids this worker still owns, and those of them whose cancel was asked for."""

    owned: frozenset[JobId]
    cancel: dict[JobId, str]


class StoreStats(msgspec.Struct):
    """Counters since open, for metrics: commits, jobs a commit, fsync seconds."""

    commits: int = 0
    operations: int = 0
    commit_s: float = 0.0
    batch_sizes: dict[int, int] = {}  # upper bound (1, 2, 4 … 1024) -> commits
    commit_seconds: dict[float, int] = {}  # upper bound -> commits


EVERY_TYPE = frozenset(EventType)

Listener = Callable[[Sequence[Event]], None]


class Store(PushStore, Protocol):
    """See the rules at the top.  All instants are Unix µs (UTC) from the caller's clock."""

    stats: StoreStats

    @property
    def exclusive(self) -> bool:
        """Whether no other process can be a worker of this store: then a lease that is not ours is a dead one's."""
        ...

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def ping(self) -> None:
        """Prove that a write reaches the disk.  Errors: StoreUnavailable."""

    # --- submit and read -------------------------------------------------------------------------------------------

    async def add_jobs(
        self, submissions: Sequence[Submission], *, now_us: int, writes: Sequence[Sequence[Write] | None] = ()
    ) -> list[Added]:
        """All are stored, or none.  `writes`, where given, has the resource writes of each submission.

        Rules: None for the writes of a submission whose idempotency key must have a job: VersionConflict when it has none.
        Errors: IdempotencyConflict (names the key and the job that has it), VersionConflict.
        """
        ...

    async def has_key(self, project: ProjectId, key: str) -> bool:
        """Whether a job has this idempotency key."""
        ...

    async def get_job(self, job_id: JobId, *, project: ProjectId | None = None) -> Job | Tombstone:
        """Errors: NotFound."""
        ...

    async def list_jobs(self, query: JobQuery) -> list[Job]:
        """Errors: NotFound when `after` does not exist, InvalidInput when `sort` is not sortable."""
        ...

    async def count_sub_jobs(self, parent_ids: Sequence[JobId]) -> dict[JobId, SubCounts]: ...

    async def list_sub_jobs(self, parent_id: JobId) -> list[Job]:
        """Whole (with bodies), by position."""
        ...

    async def list_events(
        self,
        *,
        after_id: int = 0,
        job_id: JobId | None = None,
        root_id: JobId | None = None,
        project: ProjectId | None = None,
        limit: int = 1000,
    ) -> list[Event]:
        """Oldest first.  `root_id` gives the events of a whole tree."""
        ...

    async def last_event_id(self) -> int: ...

    def on_ready(self, tell: Callable[[str], None]) -> None:
        """Call `tell(queue)` when a queue got a due job: one was added, a parent resumed, a job was rescued."""

    def start_with(self, starter: Starter) -> Callable[[], None]:
        """Rule 16 holds until what it returns is called.  What the starter's worker claims is told to it too.

        Called on the loop that opened the store.
        """
        ...

    def subscribe(self, listener: Listener, *, types: frozenset[EventType] = EVERY_TYPE) -> Callable[[], None]:
        """Call `listener` on the subscriber's loop with the events of these types of each commit, in order; returns what ends it.

        Whoever listens all the time names the types: an event that nobody waits for is written and costs no more than that.
        """
        ...

    # --- worker ----------------------------------------------------------------------------------------------------

    async def claim_jobs(
        self, queue: str, *, worker: WorkerId, now_us: int, limit: int, last_chance: int = NEVER
    ) -> list[Claimed]:
        """Lease the first due jobs by (priority, run_at, id).  The lease is the worker's: see renew_lease.

        Of the jobs with `last_chance` crashes or more only one runs at a time, so that the one that kills its worker takes no
        innocent one with it.
        """
        ...

    async def renew_lease(self, worker: WorkerId, *, now_us: int, lease_s: float) -> Renewal:
        """Every job of this worker is its own until now + lease_s."""
        ...

    async def end_worker(self, worker: WorkerId) -> None:
        """Its lease ends now; what it still owns will be rescued."""

    async def end_other_workers(self, worker: WorkerId) -> None:
        """The leases of all others end now, of jobs and of deliveries: for a process that knows that it is alone."""

    async def report_progress(self, claim: Claim, progress: Progress, *, now_us: int) -> bool: ...

    async def finish_job(self, claim: Claim, outcome: Outcome, *, now_us: int, expires_us: int | None = None) -> bool:
        """Write what the attempt came to, once; False means the lease was lost and nothing was written.

        Rules: final outcomes set ended_us = now_us, and expires_us for roots; a final job with a callback gets its delivery in
        the same transaction; Succeeded of a job whose cancel was asked for is still Succeeded.
        """
        ...

    async def finish_jobs(self, ended: Sequence[Ended]) -> list[bool]:
        """`finish_job` of each, in one transaction: one whose lease was lost is False, and the others are written."""
        ...

    # --- operators -------------------------------------------------------------------------------------------------

    async def cancel_job(self, job_id: JobId, *, project: ProjectId | None, reason: str, now_us: int, expires_us: int) -> Job:
        """Errors: NotFound, Expired (also a held one's whose expiry has passed), Conflict when it already ended.

        One that was already cancelled is returned.
        """
        ...

    async def release_job(self, job_id: JobId, *, project: ProjectId | None, now_us: int) -> Job:
        """Held becomes ready, and its expiry is forgotten.  Errors: NotFound, Expired, Conflict when it is not held."""
        ...

    # --- loops -----------------------------------------------------------------------------------------------------

    async def rescue_expired(
        self, *, now_us: int, crashes_max: float, expires_us: int, crashes_max_of: Mapping[str, float] = NO_LIMITS
    ) -> list[Job]:
        """The jobs of dead workers go back to their queues, or fail as poison; returns them as they are now.

        `crashes_max_of` is by kind and goes before `crashes_max`; infinity: such a job is as before the attempt that died.
        """
        ...

    async def promote_due(self, *, now_us: int, limit: int) -> tuple[set[str], int | None]:
        """Make scheduled jobs due; returns the queues that got some and the next run_at after now."""
        ...

    async def fail_overdue(self, *, now_us: int, limit: int, expires_us: int) -> int:
        """Jobs that nobody runs and whose deadline passed become failed (`deadline_exceeded`), their sub-jobs cancelled."""
        ...

    async def next_deadline_us(self) -> int | None: ...
    async def prune(self, *, now_us: int, keep_tombstone_s: float, keep_deliveries_s: float, limit: int) -> list[JobId]:
        """Remove expired roots (held ones too) with their trees, old tombstones and old deliveries; the ids of removed jobs."""
        ...

    # --- queues ----------------------------------------------------------------------------------------------------

    async def list_queues(self) -> list[Queue]: ...
    async def set_queue(self, queue: Queue) -> None: ...
    async def queue_depths(self) -> list[QueueDepth]:
        """Every queue that has a row or an open job, by name."""
        ...

    async def count_due(self, queue: str, *, project: ProjectId) -> dict[str, int]:
        """How many of the project's jobs are due in this queue and in those whose names begin with it and a dot, by queue."""
        ...

    # --- resources -------------------------------------------------------------------------------------------------

    async def put_resource(self, resource: Resource, *, claim: Claim | None = None, if_version: int | None = None) -> Resource:
        """Write it whole; `version` of the argument is ignored.  `if_version`: 0 for «must be new».

        Errors: VersionConflict when if_version is not the stored one, Conflict when `claim` no longer holds its job.
        """
        ...

    async def write_resources(self, writes: Sequence[Write], *, claim: Claim | None = None) -> None:
        """All of them, or none.  Errors: as put_resource."""
        ...

    async def get_resource(self, type: str, id: str) -> Resource:
        """Errors: NotFound."""
        ...

    async def list_resources(self, type: str, *, project: ProjectId | None = None) -> list[Resource]:
        """By created_us, then id."""
        ...

    async def page_resources(self, type: str, *, prefix: str = "", after: str | None = None, limit: int = 1000) -> list[Resource]:
        """By the bytes of their ids, those that begin with `prefix`, behind `after`."""
        ...

    async def delete_resource(self, type: str, id: str, *, claim: Claim | None = None) -> bool: ...

    # --- identity --------------------------------------------------------------------------------------------------

    async def add_project(self, project: Project) -> None:
        """Errors: Conflict when the id, or the name within its domain, is taken."""

    async def get_project(self, id_or_name: str, *, domain: str | None = None) -> Project:
        """By id, else by name.  Errors: NotFound."""
        ...

    async def list_projects(self) -> list[Project]: ...
    async def update_project(self, project: Project) -> None: ...
    async def add_user(self, user: User) -> None: ...
    async def get_user(self, id_or_name: str, *, domain: str | None = None) -> User: ...
    async def list_users(self) -> list[User]: ...
    async def update_user(self, user: User) -> None: ...
    async def set_grant(self, user_id: str, project: ProjectId, role: str, *, present: bool = True) -> None: ...
    async def list_grants(self, user_id: str) -> list[Grant]: ...
    async def add_token(self, token: Token) -> None: ...
    async def get_token(self, digest: str) -> Token:
        """Errors: NotFound.  Fast: read on every authenticated request."""
        ...

    async def revoke_token(self, digest: str) -> bool: ...
    async def list_tokens(self, user_id: str) -> list[Token]: ...
    async def add_access_key(self, key: AccessKey) -> None: ...
    async def get_access_key(self, id: str) -> AccessKey: ...
    async def list_access_keys(self, *, user_id: str | None = None) -> list[AccessKey]: ...
    async def delete_access_key(self, id: str) -> bool: ...
    async def use_signature(self, digest: str, *, expires_us: int) -> bool:
        """Whether this signature was not used before; it is now.  What expired is forgotten by prune."""
        ...


__all__ = [
    "EVERY_TYPE",
    "NEVER",
    "SORTABLE",
    "AccessKey",
    "Added",
    "Delivery",
    "Ended",
    "Grant",
    "JobQuery",
    "Listener",
    "Project",
    "Queue",
    "QueueDepth",
    "Renewal",
    "Resource",
    "Starter",
    "Store",
    "StoreStats",
    "SubCounts",
    "Token",
    "User",
    "Write",
]
