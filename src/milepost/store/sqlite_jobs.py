"""What the writer runs for jobs that begin: submissions, claims, leases and progress, and the events that tell of them.

Rules
1. An operation checks before it writes: when it raises, nothing of it is in the transaction.
2. Rows of added jobs and events wait in the lists of the transaction; whoever needs them in the database flushes them first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any, NamedTuple

from milepost.errors import IdempotencyConflict, VersionConflict
from milepost.job import (
    Claim,
    Claimed,
    Event,
    EventType,
    Job,
    JobId,
    Progress,
    ProjectId,
    State,
    Submission,
    Tombstone,
    WorkerId,
    new_job_id,
)
from milepost.store import (
    Added,
    Renewal,
    Write,
)
from milepost.store.rows import job_from_row, job_params, new_job, plain_params, text
from milepost.store.sqlite_deliveries import SQL as DELIVERY_SQL
from milepost.store.sqlite_records import apply_writes, check_writes
from milepost.store.statements import load
from milepost.store.writer import Transaction


class JobSql(NamedTuple):
    """The statements of `sql/sqlite/job.sql`."""

    add_job: str
    add_plain_job: str
    add_label: str
    add_event: str
    add_events: str
    find_key: str
    get_job: str
    get_jobs: str
    get_tombstone: str
    find_claimable: str
    claim_jobs: str
    renew_lease: str
    list_owned: str
    end_worker: str
    end_other_workers: str
    list_dead_workers: str
    report_progress: str
    find_ending: str
    finish_job: str
    requeue_job: str
    suspend_job: str
    get_running: str
    settle_parent: str
    end_idle_job: str
    ask_cancel: str
    list_open_subs: str
    release_job: str
    promote_due: str
    next_schedule: str
    next_deadline: str
    list_overdue: str
    count_subs: str
    list_subs: str
    list_job_events: str
    list_tree_events: str
    list_project_events: str
    list_expired: str
    list_tree: str
    bury_jobs: str
    delete_jobs: str
    delete_events: str
    delete_labels: str
    delete_deliveries: str
    delete_tombstones: str
    delete_old_deliveries: str
    delete_old_tokens: str
    delete_old_signatures: str
    last_event_id: str
    keep_event_id: str
    prove_write: str
    list_queues: str
    set_queue: str
    queue_depths: str
    count_due: str


SQL = load("sqlite", "job", JobSql)

JOB_COLUMNS = SQL.get_job.removeprefix("SELECT ").partition(" FROM job")[0]
FRESH_MAX, FRESH_BYTES_MAX = 16_384, 1024  # jobs kept from their submit to their claim, and the input of one
FINAL_TYPES = {
    State.SUCCEEDED: EventType.SUCCEEDED,
    State.FAILED: EventType.FAILED,
    State.CANCELLED: EventType.CANCELLED,
}


def emit(
    tx: Transaction, job: tuple[str, str, str], seq: int, type_: EventType, state: State, at_us: int, data: str | None
) -> None:
    """Append one event; `job` is (id, root id, project)."""
    event_id = tx.next_event_id
    tx.next_event_id = event_id + 1
    tx.event_rows.append((event_id, job[0], seq, type_._value_, state._value_, at_us, data))
    if type_ in tx.watched:
        raw = None if data is None else data.encode()
        tx.events.append(Event(event_id, JobId(job[0]), JobId(job[1]), ProjectId(job[2]), seq, type_, state, at_us, raw))


def flush_events(tx: Transaction) -> None:
    """The events of the batch so far are in the database."""
    if tx.event_rows:
        tx.connection.executemany(SQL.add_event, tx.event_rows)
        tx.event_rows.clear()


def emit_all(tx: Transaction, ids: list[str], type_: EventType | None) -> int:
    """Append the event of what these jobs' rows just became, None: of their end.  The first one's id; the others follow it."""
    first_id = tx.next_event_id
    tx.next_event_id = first_id + len(ids)
    tx.execute(SQL.add_events, (first_id, text(ids), None if type_ is None else type_._value_))
    return first_id


def tell_all(tx: Transaction, first_id: int, jobs: Iterable[Job], type_: EventType) -> None:
    """To subscribers, what `emit_all` wrote of these jobs."""
    tx.events += [
        Event(event_id, job.id, job.root_id, job.project, job.version, type_, job.state, job.updated_us, None)
        for event_id, job in enumerate(jobs, first_id)
    ]


def tombstone_of(row: tuple[Any, ...]) -> Tombstone:
    id_, project, kind, state, ended_us, expired_us = row
    return Tombstone(id_, project, kind, State(state), ended_us, expired_us)


def add_plain(tx: Transaction, submissions: Sequence[Submission], now_us: int) -> list[Added]:
    """Submissions without keys and writes: nothing can be wrong with them."""
    return [_add_row(tx, one, now_us) for one in submissions]


def _add_row(tx: Transaction, submission: Submission, now_us: int) -> Added:
    job = new_job(submission, submission.id or new_job_id(), now_us)
    plain = plain_params(job, submission)
    if plain is not None:
        tx.plain_rows.append(plain)
    else:
        tx.job_rows.append(job_params(job, submission))
        if job.callback is not None and job.callback.on:
            tx.execute(DELIVERY_SQL.add_watch, (job.id, tx.next_event_id - 1))
    tx.added.append(job)
    if job.labels:
        add_labels(tx, job)
    return Added(job, True)


def flush_added(tx: Transaction) -> None:
    """Write the rows of `added`, and the events that say so."""
    if not tx.added:
        return
    if tx.plain_rows:
        tx.connection.executemany(SQL.add_plain_job, tx.plain_rows)
    if tx.job_rows:
        tx.connection.executemany(SQL.add_job, tx.job_rows)
    first_id = emit_all(tx, [job.id for job in tx.added], EventType.SUBMITTED)
    if EventType.SUBMITTED in tx.watched:
        tell_all(tx, first_id, tx.added, EventType.SUBMITTED)
    if len(tx.fresh) < FRESH_MAX:  # else a long backlog is here, whose first jobs are claimed first
        tx.fresh.update(
            (job.id, _kept(job)) for job in tx.added if job.state is State.READY and len(job.input or b"") <= FRESH_BYTES_MAX
        )
    tx.added.clear()
    tx.plain_rows.clear()
    tx.job_rows.clear()


def _kept(job: Job) -> Job:
    """The same job for its worker: its submitter has the other one."""
    job = copy(job)
    if job.labels or job.origin:
        job.labels, job.origin = dict(job.labels), dict(job.origin)
    return job


def add_labels(tx: Transaction, job: Job) -> None:
    for key, value in job.labels.items():
        tx.execute(SQL.add_label, (job.project, key, value, job.id))


def add_checked(
    tx: Transaction, submissions: Sequence[Submission], now_us: int, writes: Sequence[Sequence[Write] | None]
) -> list[Added]:
    """Submissions with idempotency keys or writes: all are checked before anything is written."""
    wanted: list[Write] = []
    for one, is_new, own in zip(submissions, _are_new(tx, submissions), writes or [()] * len(submissions), strict=True):
        if is_new and own is None:
            raise VersionConflict(f"no job has the idempotency key {one.idempotency_key!r} any more")
        if is_new and own:
            wanted += own
    check_writes(tx, wanted)
    made: list[Added] = []
    for one in submissions:
        row = None
        if one.idempotency_key is not None:
            row = tx.execute(SQL.find_key, (one.project, one.idempotency_key)).fetchone()
        if row is not None:
            made.append(Added(job_from_row(tx.execute(SQL.get_job, (row[0],)).fetchone()), False))
            continue
        made.append(_add_row(tx, one, now_us))
        flush_added(tx)
    apply_writes(tx, wanted)
    return made


def _are_new(tx: Transaction, submissions: Sequence[Submission]) -> list[bool]:
    """Which of them become jobs: their key has none, here or further up in the list.  Errors: IdempotencyConflict."""
    new: list[bool] = []
    known: dict[tuple[str, str], tuple[str, str | None]] = {}
    for one in submissions:
        if one.idempotency_key is None:
            new.append(True)
            continue
        place = (one.project, one.idempotency_key)
        had = known.get(place) or tx.execute(SQL.find_key, place).fetchone()
        new.append(had is None)
        if had is not None and had[1] != one.body_hash:
            raise IdempotencyConflict(
                f"idempotency key {one.idempotency_key!r} was used with another body" + (f" by job {had[0]}" if had[0] else ""),
                job_id=had[0] or None,
                hint="send the same body, or another key",
            )
        known[place] = had or ("", one.body_hash)
    return new


def claim_jobs(tx: Transaction, queue: str, worker: WorkerId, now_us: int, limit: int, last_chance: int) -> list[Claimed]:
    rows = tx.execute(SQL.find_claimable, (queue, worker, now_us, limit, last_chance)).fetchall()
    if not rows:
        return []
    ids = [row[0] for row in rows]
    packed = text(ids)
    tx.execute(SQL.claim_jobs, (packed, worker, now_us))
    fresh = [tx.fresh.pop(job_id, None) if version == 1 else None for job_id, version in rows]
    missing = [job_id for job_id, job in zip(ids, fresh, strict=True) if job is None]
    if len(missing) == len(ids) and len(tx.fresh) >= FRESH_MAX:
        tx.fresh.clear()  # full of jobs that are not claimed: cancelled, or of a paused queue
    read = _read_claimed(tx, missing) if missing else {}
    jobs = [read[ids[at]] if job is None else _started(job, worker, now_us) for at, job in enumerate(fresh)]
    claimed = [Claimed(job, Claim(job.id, job.fence, worker)) for job in jobs]
    first_id = emit_all(tx, ids, EventType.STARTED)
    if EventType.STARTED in tx.watched:
        tell_all(tx, first_id, (one.job for one in claimed), EventType.STARTED)
    return claimed


def _read_claimed(tx: Transaction, ids: list[str]) -> dict[str, Job]:
    return {row[0]: job_from_row(row) for row in tx.execute(SQL.get_jobs, (text(ids),))}


def _started(job: Job, worker: WorkerId, now_us: int) -> Job:
    """What `claim_jobs` just made of the row of a job that was added here and has not changed since: nothing is read back."""
    job.state, job.lease_by, job.updated_us, job.started_us = State.RUNNING, worker, now_us, now_us
    job.attempt = job.fence = 1
    job.version = 2
    return job


def end_other_workers(tx: Transaction, worker: WorkerId) -> None:
    tx.execute(SQL.end_other_workers, (worker,))
    tx.execute(DELIVERY_SQL.release_deliveries)


def renewal_of(rows: list[tuple[str, str | None]]) -> Renewal:
    return Renewal(
        frozenset(JobId(job_id) for job_id, _ in rows), {JobId(job_id): reason for job_id, reason in rows if reason is not None}
    )


def renew_lease(tx: Transaction, worker: WorkerId, now_us: int, lease_s: float) -> Renewal:
    tx.execute(SQL.renew_lease, (worker, now_us + int(lease_s * 1e6)))
    return renewal_of(tx.execute(SQL.list_owned, (worker,)).fetchall())


def report_progress(tx: Transaction, claim: Claim, progress: Progress, now_us: int) -> bool:
    held = tx.execute(SQL.get_running, (claim.job_id, claim.fence)).fetchone()
    if held is None:
        return False
    project, _, root_id, *_rest = held
    shown = text(progress)
    (version,) = tx.execute(SQL.report_progress, (claim.job_id, claim.fence, shown, now_us)).fetchone()
    emit(tx, (claim.job_id, root_id, project), version, EventType.PROGRESS, State.RUNNING, now_us, shown)
    return True


def promote_due(tx: Transaction, now_us: int, limit: int) -> tuple[set[str], int | None]:
    queues = {row[0] for row in tx.execute(SQL.promote_due, (now_us, limit)).fetchall()}
    return queues, tx.execute(SQL.next_schedule).fetchone()[0]
