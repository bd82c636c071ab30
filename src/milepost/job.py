"""What a job is: its states, the moves between them, and the values that describe one.  Imports nothing of ours.

Rules
1. A state changes only along `MOVES`; a final state has no move out of it.
2. Instants are integers, Unix microseconds UTC (`*_us`); durations are float seconds (`*_s`).
3. A job's id is a UUIDv7 in canonical text: time-ordered, so that sorting by id is sorting by creation.

The structs are plain values without reference cycles, so those that are made for every job are kept from the garbage collector
(`gc=False`).
"""

from __future__ import annotations

import os
import time
from enum import StrEnum
from typing import Any, NewType

import msgspec

JobId = NewType("JobId", str)
ProjectId = NewType("ProjectId", str)
WorkerId = NewType("WorkerId", str)


class State(StrEnum):
    """Where a job is in its life."""

    HELD = "held"  # waits for a release: an unpaid order, an approval
    READY = "ready"  # may run now, or at run_at
    RUNNING = "running"  # leased to a worker
    WAITING = "waiting"  # a parent whose sub-jobs are not all final; holds no worker slot
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

MOVES: dict[State, frozenset[State]] = {
    State.HELD: frozenset({State.READY, State.FAILED, State.CANCELLED}),  # failed: its deadline passed
    State.READY: frozenset({State.RUNNING, State.FAILED, State.CANCELLED}),  # failed: its deadline passed
    State.RUNNING: frozenset({State.READY, State.WAITING, *FINAL}),
    State.WAITING: frozenset({State.READY, State.FAILED, State.CANCELLED}),  # failed: its deadline passed
    **{final: frozenset() for final in FINAL},
}


def is_final(state: State) -> bool:
    """Whether a job in this state has ended for good."""
    return state in FINAL


def may_move(old: State, new: State) -> bool:
    """Whether the state machine has this move."""
    return new in MOVES[old]


PRIORITY_FIRST, PRIORITY_DEFAULT, PRIORITY_LAST = 0, 5, 9


class EventType(StrEnum):
    """What can happen to a job, in the words of its history."""

    SUBMITTED = "submitted"
    RELEASED = "released"  # held → ready
    STARTED = "started"
    PROGRESS = "progress"
    RETRYING = "retrying"  # the attempt failed and will be tried again
    SNOOZED = "snoozed"
    WAITING = "waiting"  # sub-jobs were added
    RESUMED = "resumed"  # the last sub-job ended
    RETURNED = "returned"  # given back to its queue by a worker that stops
    RESCUED = "rescued"  # taken back from a worker whose lease ran out
    CANCEL_REQUESTED = "cancel_requested"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Progress(msgspec.Struct, frozen=True, gc=False):
    """How far a job is.  `total` is None while unknown; `unit` is a plural noun such as `bytes`."""

    done: int = 0
    total: int | None = None
    unit: str = ""
    note: str = ""


class Failure(msgspec.Struct, frozen=True):
    """Why a job or an attempt failed: a stable code, a sentence a user can act on, and structured details."""

    code: str
    message: str
    details: dict[str, Any] | None = None


class Callback(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where to tell of a job: that it became final, or what `on` names in the words of `subscription`."""

    url: str
    on: tuple[str, ...] = ()


class Submission(msgspec.Struct, kw_only=True, gc=False):
    """The request that asks for a job.  `input` is the JSON text of the kind's input, already validated.

    A facade fills it; `store.add_jobs` turns it into a job.
    """

    kind: str
    id: JobId | None = None  # None: the store makes one
    input: bytes = b"{}"
    project: ProjectId = ProjectId("default")
    queue: str = "default"
    priority: int = PRIORITY_DEFAULT
    labels: dict[str, str] = {}
    held: bool = False
    run_at_us: int | None = None  # None: now
    attempts_max: int = 1
    timeout_s: float | None = None  # of one attempt
    deadline_us: int | None = None  # of the whole job
    expires_us: int | None = None  # of a held job: not released by then, it is removed
    idempotency_key: str | None = None
    body_hash: str | None = None  # of the request that carried the key
    callback: Callback | None = None
    origin: dict[str, str] = {}  # facts of the request that a wire shows again: request_id, user_id
    retry_of: JobId | None = None


class Job(msgspec.Struct, kw_only=True, gc=False):
    """One accepted piece of slow work, as the store has it."""

    id: JobId
    kind: str
    state: State
    project: ProjectId
    queue: str
    priority: int
    labels: dict[str, str]
    input: bytes | None  # JSON text; None in listings
    result: bytes | None  # JSON text; None until succeeded, and in listings
    error: Failure | None  # of the job once failed or cancelled; of the last attempt while it is retried
    progress: Progress
    attempt: int  # of the current try, 1-based; 0 before the first
    attempts_max: int
    crashes: int  # workers that died under it
    timeout_s: float | None
    deadline_us: int | None
    parent_id: JobId | None
    root_id: JobId  # itself for a root
    position: int  # among its siblings, from 0
    sub_total: int  # sub-jobs it has
    retry_of: JobId | None
    cancel_requested: bool
    callback: Callback | None
    origin: dict[str, str]
    created_us: int
    run_at_us: int
    started_us: int | None  # of the first attempt
    ended_us: int | None
    updated_us: int
    expires_us: int | None
    version: int  # grows with each change of the row: the ETag
    fence: int
    lease_by: WorkerId | None


class Tombstone(msgspec.Struct, frozen=True, gc=False):
    """What is left of a job after its expiry."""

    id: JobId
    project: ProjectId
    kind: str
    state: State
    ended_us: int
    expired_us: int


class Event(msgspec.Struct, frozen=True, gc=False):
    """One entry of a job's history.  `seq` counts from 1 without gaps within the job; `id` grows over all jobs."""

    id: int
    job_id: JobId
    root_id: JobId
    project: ProjectId
    seq: int
    type: EventType
    state: State  # after it
    at_us: int
    data: bytes | None  # JSON text


class Claim(msgspec.Struct, frozen=True, gc=False):
    """The right to write one running job: its fence must still be the store's."""

    job_id: JobId
    fence: int
    worker: WorkerId
    alone: bool = False  # known to have no parent and no callback: nothing follows its end


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """A job just leased, with what its function needs."""

    job: Job
    claim: Claim


class SubJob(msgspec.Struct, kw_only=True):
    """A sub-job that a running parent asks for; its place in the list is its position."""

    kind: str
    input: Any = None
    queue: str | None = None  # None: the kind's own
    labels: dict[str, str] = {}


# What one attempt came to: a value, matched in one place (`engine/executor.py`).


class Succeeded(msgspec.Struct, frozen=True, gc=False):
    """The function returned; `result` is JSON text."""

    result: bytes


class Failed(msgspec.Struct, frozen=True, gc=False):
    """The job failed for good."""

    failure: Failure


class Retried(msgspec.Struct, frozen=True, gc=False):
    """The attempt failed and another follows at `run_at_us`."""

    failure: Failure
    run_at_us: int


class Cancelled(msgspec.Struct, frozen=True, gc=False):
    """The job stopped because somebody asked for it."""

    failure: Failure


class Snoozed(msgspec.Struct, frozen=True, gc=False):
    """Run again at `run_at_us`; the attempt does not count."""

    run_at_us: int
    note: str = ""


class Returned(msgspec.Struct, frozen=True, gc=False):
    """Given back unfinished by a worker that stops; the attempt does not count."""


class Suspended(msgspec.Struct, frozen=True):
    """Wait for these new sub-jobs; the attempt does not count again when it resumes."""

    sub_jobs: list[Submission]


Outcome = Succeeded | Failed | Retried | Cancelled | Snoozed | Returned | Suspended


class _Ids:
    """UUIDv7 text that only grows within the process, also when the wall clock goes back."""

    __slots__ = ("_last", "_process", "_tails")

    def __init__(self) -> None:
        self._last = 0
        self._process = 0
        self._tails: list[str] = []  # the random halves, made many at a time

    def new(self) -> JobId:
        # 48 bits of Unix ms, 12 bits of its fraction, then 62 random bits; RFC 9562 section 6.2, method 3.
        now_ns = time.time_ns()
        stamp = (now_ns // 1_000_000 << 12) | ((now_ns % 1_000_000) * 4096 // 1_000_000)
        if stamp <= self._last:
            stamp = self._last + 1
        self._last = stamp
        if not self._tails or self._process != os.getpid():  # a fork must not hand out its parent's
            self._refill()
        head = f"{stamp:015x}"
        return JobId(f"{head[:8]}-{head[8:12]}-7{head[12:]}-{self._tails.pop()}")

    def _refill(self) -> None:
        self._process = os.getpid()
        digits = os.urandom(8 * 256).hex()
        # The variant's two bits are `10`, so its digit is one of 8, 9, a, b.
        self._tails = [
            f"{'89ab'[int(digits[at], 16) & 3]}{digits[at + 1 : at + 4]}-{digits[at + 4 : at + 16]}"
            for at in range(0, len(digits), 16)
        ]


new_job_id = _Ids().new
