"""What the writer runs for jobs that begin: submissions, claims, leases and progress, and the events that tell of them.

Rules
1. An operation checks before it writes: when it raises, nothing of it is in the transaction.
2. Rows of added jobs and events wait in the lists of the transaction; whoever needs them in the database flushes them first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter, itemgetter
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
from milepost.store.alike import split_alike
from milepost.store.rows import job_from_row, job_params, new_job, plain_params, text
from milepost.store.sqlite_publish import SQL as DELIVERY_SQL
from milepost.store.sqlite_records import apply_writes, check_writes
from milepost.store.sqlite_starts import begun, choose, claimed, kept, started
from milepost.store.statements import load
from milepost.store.writer import Transaction


class JobSql(NamedTuple):
    """The statements of `sql/sqlite/job.sql`."""

    add_job: str
    add_plain_job: str
    begin_plain_job: str
    add_alike: str
    begin_alike: str
    first_waiting: str
    add_begun_events: str
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
    finish_alike: str
    finish_same: str
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
    tx.added.append((job, submission))
    if job.callback is not None and job.callback.on:
        tx.execute(DELIVERY_SQL.add_watch, (job.id, tx.next_event_id - 1))
    if job.labels:
        add_labels(tx, job)
    return Added(job, True)


def flush_added(tx: Transaction) -> None:
    """Write the rows of `added`, and the events that say so.  What can begin at once is running then."""
    if not tx.added:
        return
    ready = tx.added
    for worker, starter in tx.starters.items():
        chosen = {job.id for job in choose(tx, SQL.first_waiting, starter, [job for job, _ in ready])}
        if chosen:
            add_begun(tx, [one for one in ready if one[0].id in chosen], worker)
            ready = [one for one in ready if one[0].id not in chosen]
    if ready:
        _add_ready(tx, ready)
    tx.added.clear()


def add_begun(tx: Transaction, added: Sequence[tuple[Job, Submission]], worker: WorkerId) -> None:
    jobs = [job for job, _ in added]
    for job in _add_rows(tx, added, worker):  # those added as any other are claimed in the same breath
        tx.execute(SQL.claim_jobs, (text([job.id]), worker, job.created_us))
    tx.begun += [begun(job, worker) for job in jobs]
    first_id = tx.next_event_id
    for at_us, together in groupby(jobs, _created_us):
        ids = [job.id for job in together]
        tx.execute(SQL.add_begun_events, (tx.next_event_id, text(ids), at_us))
        tx.next_event_id += 2 * len(ids)
    if EventType.SUBMITTED in tx.watched or EventType.STARTED in tx.watched:
        for at, job in enumerate(jobs):
            for step, type_, state in ((0, EventType.SUBMITTED, State.READY), (1, EventType.STARTED, State.RUNNING)):
                if type_ in tx.watched:
                    event_id = first_id + 2 * at + step
                    tx.events.append(
                        Event(event_id, job.id, job.root_id, job.project, 1 + step, type_, state, job.created_us, None)
                    )


def _add_ready(tx: Transaction, added: Sequence[tuple[Job, Submission]]) -> None:
    jobs = [job for job, _ in added]
    _add_rows(tx, added, None)
    first_id = emit_all(tx, [job.id for job in jobs], EventType.SUBMITTED)
    if EventType.SUBMITTED in tx.watched:
        tell_all(tx, first_id, jobs, EventType.SUBMITTED)
    due = [job for job in jobs if job.state is State.READY]
    if len(tx.fresh) < FRESH_MAX:  # else a long backlog is here, whose first jobs are claimed first
        tx.fresh.update((job.id, kept(job)) for job in due if len(job.input or b"") <= FRESH_BYTES_MAX)
    tx.ready_queues.update(job.queue for job in due if job.run_at_us <= job.created_us)


def _add_rows(tx: Transaction, added: Sequence[tuple[Job, Submission]], worker: WorkerId | None) -> list[Job]:
    """The rows are in the database, plain ones claimed if there is a worker.  Those that are not plain, which are as added."""
    plain_rows: list[tuple[Any, ...]] = []
    wide_rows: list[tuple[Any, ...]] = []
    wide: list[Job] = []
    for job, submission in added:
        row = plain_params(job, submission)
        if row is None:
            wide_rows.append(job_params(job, submission))
            wide.append(job)
        else:
            plain_rows.append(row)
    if plain_rows:
        if worker is not None:  # it stands where the state does
            plain_rows = [(*row[:2], worker, *row[3:]) for row in plain_rows]
        alike, single = split_alike(plain_rows, _but_id_and_input, -1)
        for shared, inputs in alike:
            tx.execute(SQL.add_alike if worker is None else SQL.begin_alike, (text(inputs), *shared))
        if single:
            tx.connection.executemany(SQL.add_plain_job if worker is None else SQL.begin_plain_job, single)
    if wide_rows:
        tx.connection.executemany(SQL.add_job, wide_rows)
    return wide


_created_us = attrgetter("created_us")
_but_id_and_input = itemgetter(slice(1, -1))


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
    starter = tx.starters.get(worker)
    if starter is not None:
        limit = tx.take(starter, queue, limit)
        if not limit:
            return []
    rows = tx.execute(SQL.find_claimable, (queue, worker, now_us, limit, last_chance)).fetchall()
    if starter is not None and len(rows) < limit:
        tx.give_back(starter, queue, limit - len(rows))
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
    jobs = [read[ids[at]] if job is None else started(job, worker, now_us) for at, job in enumerate(fresh)]
    taken = [claimed(job, worker) for job in jobs]
    if starter is not None:
        tx.begun += taken
    first_id = emit_all(tx, ids, EventType.STARTED)
    if EventType.STARTED in tx.watched:
        tell_all(tx, first_id, (one.job for one in taken), EventType.STARTED)
    return taken


def _read_claimed(tx: Transaction, ids: list[str]) -> dict[str, Job]:
    return {row[0]: job_from_row(row) for row in tx.execute(SQL.get_jobs, (text(ids),))}


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
