"""The store on SQLite: one file in WAL with `synchronous=FULL`, or `:memory:` for tests.

Theory: writes go through the group-committing `Writer`; point reads run on the loop with a connection of their own (some
microseconds, and WAL readers never wait for the writer); reads of many rows run in a thread and come back as one JSON text, so
that Python's lock is taken once and not once a row.  The lease is renewed on a third connection from whatever thread asks, so
that a blocked event loop does not cost a worker its lease.

Failure modes: a full or failing disk gives StoreUnavailable and leaves what was acknowledged; a database of a newer Milepost is
refused; a second server on the same folder is refused by a lock file.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from milepost.errors import Conflict, Expired, IdempotencyConflict, NotFound, StoreUnavailable, VersionConflict
from milepost.job import (
    FINAL,
    Cancelled,
    Claim,
    Claimed,
    Event,
    EventType,
    Failed,
    Failure,
    Job,
    JobId,
    Outcome,
    Progress,
    ProjectId,
    Retried,
    Returned,
    Snoozed,
    State,
    Submission,
    Succeeded,
    Suspended,
    Tombstone,
    WorkerId,
    new_job_id,
)
from milepost.store import (
    EVERY_TYPE,
    NEVER,
    Added,
    Ended,
    JobQuery,
    Listener,
    Queue,
    QueueDepth,
    Renewal,
    StoreStats,
    SubCounts,
    Write,
)
from milepost.store.migrate import migrate_sqlite
from milepost.store.rows import event_from_row, job_from_row, job_params, new_job, plain_params, text
from milepost.store.sqlite_lists import depths_of, list_sql
from milepost.store.sqlite_records import SQL as RECORD_SQL
from milepost.store.sqlite_records import SqliteRecords, apply_writes, check_writes
from milepost.store.statements import load
from milepost.store.writer import Transaction, Writer, unavailable


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
    add_delivery: str


SQL = load("sqlite", "job", JobSql)

JOB_COLUMNS = SQL.get_job.removeprefix("SELECT ").partition(" FROM job")[0]
_decode_rows = msgspec.json.Decoder(list[tuple[Any, ...]]).decode
FRESH_MAX, FRESH_BYTES_MAX = 16_384, 1024  # jobs kept from their submit to their claim, and the input of one
_FINAL_TYPES = {
    State.SUCCEEDED: EventType.SUCCEEDED,
    State.FAILED: EventType.FAILED,
    State.CANCELLED: EventType.CANCELLED,
}


class SqliteStore(SqliteRecords):
    """See `Store` for the rules.  `path` is a file, or `:memory:`.

    `lock`: refuse a second server on the same file (admin commands pass False).
    """

    def __init__(self, path: str | Path, *, lock: bool = True) -> None:
        self.path = str(path)
        self.in_memory = self.path == ":memory:"
        self.stats = StoreStats()
        self._lock_wanted = lock and not self.in_memory
        self._lock_file: Any = None
        self._readers: ThreadPoolExecutor | None = None
        self._local = threading.local()
        self._thread_connections: list[sqlite3.Connection] = []
        self._lease_guard = threading.Lock()
        self._lease_connection: sqlite3.Connection | None = None
        self._closed = False

    # --- life ------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Errors: StoreUnavailable when the file cannot be opened, is newer than this code, or has a server already."""
        if self._lock_wanted:
            self._take_lock()
        self._closed = False
        try:
            self._open_connections()
        except StoreUnavailable:
            self._unlock()
            raise
        self._writer = Writer(
            self._write,
            in_memory=self.in_memory,
            last_event_id=SQL.last_event_id,
            flush_added=_flush_added,
            flush_events=_flush_events,
            finish_all=_finish_all,
            stats=self.stats,
        )
        self._writer.read_events = self._events_after
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="milepost-read")

    async def close(self) -> None:
        """Return when everything accepted is on disk and the files are closed."""
        await self._writer.close()
        if self._readers is not None:
            self._readers.shutdown()
        await asyncio.to_thread(self._close_lease)
        for connection in (*self._thread_connections, self._read, self._write):
            connection.close()
        self._unlock()

    def _open_connections(self) -> None:
        opened: list[sqlite3.Connection] = []
        try:
            opened.append(self._connect())
            migrate_sqlite(opened[0])
            opened.append(opened[0] if self.in_memory else self._connect())
        except (sqlite3.Error, StoreUnavailable) as error:
            for connection in opened:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise unavailable(error) from error
            raise
        self._write, self._read = opened

    def _unlock(self) -> None:
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def _close_lease(self) -> None:
        """A renewal whose caller was cancelled goes on in its thread: closing the connection under it would crash the process."""
        with self._lease_guard:
            self._closed = True
            if self._lease_connection is not None:
                self._lease_connection.close()
                self._lease_connection = None

    async def ping(self) -> None:
        await self._writer.do(lambda tx: tx.execute(SQL.prove_write, (1,)) and None)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=512,
            timeout=0.0 if self._lock_wanted else 5.0,
        )
        if not self.in_memory:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA wal_autocheckpoint = 4000")  # runs in the commit thread
            connection.execute("PRAGMA journal_size_limit = 67108864")
            connection.execute("PRAGMA mmap_size = 268435456")
        connection.execute("PRAGMA cache_size = -32768")
        connection.execute("PRAGMA temp_store = MEMORY")
        return connection

    def _take_lock(self) -> None:
        import fcntl

        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        self._lock_file = Path(self.path + ".lock").open("a+")  # noqa: SIM115  (held as long as the store is open)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock_file.close()
            self._lock_file = None
            raise StoreUnavailable(
                f"another server has {self.path} open", hint="stop it, or give --data another folder"
            ) from error
        self._lock_file.truncate(0)
        self._lock_file.write(f"{os.getpid()}\n")
        self._lock_file.flush()

    @property
    def exclusive(self) -> bool:
        """Whether no other process can be a worker of this store: then a lease that is not ours is a dead one's."""
        return self.in_memory or self._lock_file is not None

    async def _read_thread(self, read: Callable[[sqlite3.Connection], Any]) -> Any:
        """Run a longer read in a thread, on a connection of that thread."""
        if self.in_memory:
            return read(self._read)
        assert self._readers is not None
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._with_reader, read)

    def _with_reader(self, read: Callable[[sqlite3.Connection], Any]) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
            self._thread_connections.append(connection)
        try:
            return read(connection)
        except sqlite3.Error as error:
            raise unavailable(error) from error

    # --- submit and read -------------------------------------------------------------------------------------------

    async def add_jobs(
        self, submissions: Sequence[Submission], *, now_us: int, writes: Sequence[Sequence[Write] | None] = ()
    ) -> list[Added]:
        if writes or any(one.idempotency_key is not None for one in submissions):
            return await self._writer.do(_add_checked, submissions, now_us, writes)  # type: ignore[no-any-return]
        return await self._writer.add(_add_plain, submissions, now_us)  # type: ignore[no-any-return]

    async def has_key(self, project: ProjectId, key: str) -> bool:
        return self._read.execute(SQL.find_key, (project, key)).fetchone() is not None

    async def get_job(self, job_id: JobId, *, project: ProjectId | None = None) -> Job | Tombstone:
        row = self._read.execute(SQL.get_job, (job_id,)).fetchone()
        if row is None:
            row = self._read.execute(SQL.get_tombstone, (job_id,)).fetchone()
            found: Job | Tombstone | None = None if row is None else _tombstone(row)
        else:
            found = job_from_row(row)
        if found is None or (project is not None and found.project != project):
            raise NotFound(f"no job {job_id}", job_id=job_id)
        return found

    async def list_jobs(self, query: JobQuery) -> list[Job]:
        sql, params = list_sql(query, self._read, columns=JOB_COLUMNS)
        rows = await self._read_thread(lambda connection: connection.execute(sql, params).fetchone()[0])
        return [job_from_row(row) for row in _decode_rows(rows)]

    async def count_sub_jobs(self, parent_ids: Sequence[JobId]) -> dict[JobId, SubCounts]:
        counts: dict[JobId, dict[State, int]] = {parent_id: {} for parent_id in parent_ids}
        for parent_id, state, count in self._read.execute(SQL.count_subs, (text(list(parent_ids)),)):
            counts[parent_id][State(state)] = count
        return {parent_id: SubCounts(sum(states.values()), states) for parent_id, states in counts.items()}

    async def list_sub_jobs(self, parent_id: JobId) -> list[Job]:
        rows = await self._read_thread(lambda connection: connection.execute(SQL.list_subs, (parent_id,)).fetchall())
        return [job_from_row(row) for row in rows]

    async def list_events(
        self,
        *,
        after_id: int = 0,
        job_id: JobId | None = None,
        root_id: JobId | None = None,
        project: ProjectId | None = None,
        limit: int = 1000,
    ) -> list[Event]:
        sql: str
        params: tuple[Any, ...]
        if job_id is not None:
            sql, params = SQL.list_job_events, (job_id, after_id, limit)
        elif root_id is not None:
            sql, params = SQL.list_tree_events, (root_id, after_id, limit)
        else:
            sql, params = SQL.list_project_events, (project, after_id, limit)
        rows = await self._read_thread(lambda connection: connection.execute(sql, params).fetchall())
        return [event_from_row(row) for row in rows]

    def _events_after(self, after_id: int, count: int) -> list[Event]:
        return [event_from_row(row) for row in self._read.execute(SQL.list_project_events, (None, after_id, count))]

    async def last_event_id(self) -> int:
        return int(self._read.execute(SQL.last_event_id).fetchone()[0])

    def on_ready(self, tell: Callable[[str], None]) -> None:
        self._writer.on_ready = tell

    def subscribe(self, listener: Listener, *, types: frozenset[EventType] = EVERY_TYPE) -> Callable[[], None]:
        home, tell = asyncio.get_running_loop(), listener
        if home is not self._writer.loop:

            def tell(events: Sequence[Event]) -> None:
                if not home.is_closed():
                    home.call_soon_threadsafe(listener, events)

        return self._writer.listen(tell, types)

    # --- worker ----------------------------------------------------------------------------------------------------

    async def claim_jobs(
        self, queue: str, *, worker: WorkerId, now_us: int, limit: int, last_chance: int = NEVER
    ) -> list[Claimed]:
        return await self._writer.do(_claim, queue, worker, now_us, limit, last_chance)  # type: ignore[no-any-return]

    async def renew_lease(self, worker: WorkerId, *, now_us: int, lease_s: float) -> Renewal:
        if self.in_memory:
            return await self._writer.do(_renew, worker, now_us, lease_s)  # type: ignore[no-any-return]
        return await asyncio.to_thread(self._renew_here, worker, now_us, lease_s)

    def _renew_here(self, worker: WorkerId, now_us: int, lease_s: float) -> Renewal:
        with self._lease_guard:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            try:
                if self._lease_connection is None:
                    self._lease_connection = self._connect()
                    self._lease_connection.execute("PRAGMA busy_timeout = 5000")
                connection = self._lease_connection
                connection.execute(SQL.renew_lease, (worker, now_us + int(lease_s * 1e6)))
                return _renewal(connection.execute(SQL.list_owned, (worker,)).fetchall())
            except sqlite3.Error as error:
                raise unavailable(error) from error

    async def end_worker(self, worker: WorkerId) -> None:
        await self._writer.do(lambda tx: tx.execute(SQL.end_worker, (worker,)) and None)

    async def end_other_workers(self, worker: WorkerId) -> None:
        await self._writer.do(_end_others, worker)

    async def report_progress(self, claim: Claim, progress: Progress, *, now_us: int) -> bool:
        return await self._writer.do(_report, claim, progress, now_us)  # type: ignore[no-any-return]

    async def finish_job(self, claim: Claim, outcome: Outcome, *, now_us: int, expires_us: int | None = None) -> bool:
        held: list[bool] = await self._writer.finish([Ended(claim, outcome, now_us, expires_us)])
        return held[0]

    async def finish_jobs(self, ended: Sequence[Ended]) -> list[bool]:
        return await self._writer.finish(ended)  # type: ignore[no-any-return]

    # --- operators -------------------------------------------------------------------------------------------------

    async def cancel_job(self, job_id: JobId, *, project: ProjectId | None, reason: str, now_us: int, expires_us: int) -> Job:
        await self._writer.do(_cancel, job_id, project, reason, now_us, expires_us)
        return self._read_job(job_id)

    async def release_job(self, job_id: JobId, *, project: ProjectId | None, now_us: int) -> Job:
        await self._writer.do(_release, job_id, project, now_us)
        return self._read_job(job_id)

    def _read_job(self, job_id: JobId) -> Job:
        return job_from_row(self._read.execute(SQL.get_job, (job_id,)).fetchone())

    # --- loops -----------------------------------------------------------------------------------------------------

    async def rescue_expired(self, *, now_us: int, crashes_max: int, expires_us: int) -> list[Job]:
        ids = await self._writer.do(_rescue, now_us, crashes_max, expires_us)
        return [self._read_job(job_id) for job_id in ids]

    async def promote_due(self, *, now_us: int, limit: int) -> tuple[set[str], int | None]:
        return await self._writer.do(_promote, now_us, limit)  # type: ignore[no-any-return]

    async def fail_overdue(self, *, now_us: int, limit: int, expires_us: int) -> int:
        return await self._writer.do(_fail_overdue, now_us, limit, expires_us)  # type: ignore[no-any-return]

    async def next_deadline_us(self) -> int | None:
        found: int | None = self._read.execute(SQL.next_deadline).fetchone()[0]
        return found

    async def prune(self, *, now_us: int, keep_tombstone_s: float, keep_deliveries_s: float, limit: int) -> list[JobId]:
        keeping = (now_us, keep_tombstone_s, keep_deliveries_s, limit)
        removed: list[JobId] = await self._writer.do(_prune, now_us, limit)
        while await self._writer.do(_prune_rest, *keeping):
            pass
        return removed

    # --- queues ----------------------------------------------------------------------------------------------------

    async def list_queues(self) -> list[Queue]:
        return [Queue(name, limit, bool(paused)) for name, limit, paused in self._read.execute(SQL.list_queues)]

    async def set_queue(self, queue: Queue) -> None:
        await self._writer.do(lambda tx: tx.execute(SQL.set_queue, (queue.name, queue.limit, int(queue.paused))) and None)

    async def queue_depths(self) -> list[QueueDepth]:
        rows = await self._read_thread(lambda connection: connection.execute(SQL.queue_depths).fetchall())
        return depths_of(await self.list_queues(), rows)


# --- operations: what the writer runs; each checks before it writes ----------------------------------------------------


def _emit(
    tx: Transaction, job: tuple[str, str, str], seq: int, type_: EventType, state: State, at_us: int, data: str | None
) -> None:
    """Append one event; `job` is (id, root id, project)."""
    event_id = tx.next_event_id
    tx.next_event_id = event_id + 1
    tx.event_rows.append((event_id, job[0], seq, type_._value_, state._value_, at_us, data))
    if type_ in tx.watched:
        raw = None if data is None else data.encode()
        tx.events.append(Event(event_id, JobId(job[0]), JobId(job[1]), ProjectId(job[2]), seq, type_, state, at_us, raw))


def _flush_events(tx: Transaction) -> None:
    if tx.event_rows:
        tx.connection.executemany(SQL.add_event, tx.event_rows)
        tx.event_rows.clear()


def _emit_all(tx: Transaction, ids: list[str], type_: EventType | None) -> int:
    """Append the event of what these jobs' rows just became, None: of their end.  The first one's id; the others follow it."""
    first_id = tx.next_event_id
    tx.next_event_id = first_id + len(ids)
    tx.execute(SQL.add_events, (first_id, text(ids), None if type_ is None else type_._value_))
    return first_id


def _tell_all(tx: Transaction, first_id: int, jobs: Iterable[Job], type_: EventType) -> None:
    """To subscribers, what `_emit_all` wrote of these jobs."""
    tx.events += [
        Event(event_id, job.id, job.root_id, job.project, job.version, type_, job.state, job.updated_us, None)
        for event_id, job in enumerate(jobs, first_id)
    ]


def _tombstone(row: tuple[Any, ...]) -> Tombstone:
    id_, project, kind, state, ended_us, expired_us = row
    return Tombstone(id_, project, kind, State(state), ended_us, expired_us)


def _add_plain(tx: Transaction, submissions: Sequence[Submission], now_us: int) -> list[Added]:
    return [_add_row(tx, one, now_us) for one in submissions]


def _add_row(tx: Transaction, submission: Submission, now_us: int) -> Added:
    job = new_job(submission, submission.id or new_job_id(), now_us)
    plain = plain_params(job, submission)
    if plain is not None:
        tx.plain_rows.append(plain)
    else:
        tx.job_rows.append(job_params(job, submission))
    tx.added.append(job)
    if job.labels:
        _add_labels(tx, job)
    return Added(job, True)


def _flush_added(tx: Transaction) -> None:
    """Write the rows of `added`, and the events that say so."""
    if not tx.added:
        return
    if tx.plain_rows:
        tx.connection.executemany(SQL.add_plain_job, tx.plain_rows)
    if tx.job_rows:
        tx.connection.executemany(SQL.add_job, tx.job_rows)
    first_id = _emit_all(tx, [job.id for job in tx.added], EventType.SUBMITTED)
    if EventType.SUBMITTED in tx.watched:
        _tell_all(tx, first_id, tx.added, EventType.SUBMITTED)
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


def _add_labels(tx: Transaction, job: Job) -> None:
    for key, value in job.labels.items():
        tx.execute(SQL.add_label, (job.project, key, value, job.id))


def _add_checked(
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
        _flush_added(tx)
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


def _claim(tx: Transaction, queue: str, worker: WorkerId, now_us: int, limit: int, last_chance: int) -> list[Claimed]:
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
    first_id = _emit_all(tx, ids, EventType.STARTED)
    if EventType.STARTED in tx.watched:
        _tell_all(tx, first_id, (one.job for one in claimed), EventType.STARTED)
    return claimed


def _read_claimed(tx: Transaction, ids: list[str]) -> dict[str, Job]:
    return {row[0]: job_from_row(row) for row in tx.execute(SQL.get_jobs, (text(ids),))}


def _started(job: Job, worker: WorkerId, now_us: int) -> Job:
    """What `claim_jobs` just made of the row of a job that was added here and has not changed since: nothing is read back."""
    job.state, job.lease_by, job.updated_us, job.started_us = State.RUNNING, worker, now_us, now_us
    job.attempt = job.fence = 1
    job.version = 2
    return job


def _end_others(tx: Transaction, worker: WorkerId) -> None:
    tx.execute(SQL.end_other_workers, (worker,))
    tx.execute(RECORD_SQL.release_deliveries)


def _renewal(rows: list[tuple[str, str | None]]) -> Renewal:
    return Renewal(
        frozenset(JobId(job_id) for job_id, _ in rows), {JobId(job_id): reason for job_id, reason in rows if reason is not None}
    )


def _renew(tx: Transaction, worker: WorkerId, now_us: int, lease_s: float) -> Renewal:
    tx.execute(SQL.renew_lease, (worker, now_us + int(lease_s * 1e6)))
    return _renewal(tx.execute(SQL.list_owned, (worker,)).fetchall())


def _report(tx: Transaction, claim: Claim, progress: Progress, now_us: int) -> bool:
    held = tx.execute(SQL.get_running, (claim.job_id, claim.fence)).fetchone()
    if held is None:
        return False
    project, _, root_id, *_rest = held
    shown = text(progress)
    (version,) = tx.execute(SQL.report_progress, (claim.job_id, claim.fence, shown, now_us)).fetchone()
    _emit(tx, (claim.job_id, root_id, project), version, EventType.PROGRESS, State.RUNNING, now_us, shown)
    return True


class Ending(NamedTuple):
    """A final outcome, as it is written."""

    claim: Claim
    state: State
    result: str | None
    error: str | None
    now_us: int
    expires_us: int | None


def _ending(claim: Claim, outcome: Outcome, now_us: int, expires_us: int | None) -> Ending | None:
    match outcome:
        case Succeeded(result):
            return Ending(claim, State.SUCCEEDED, result.decode(), None, now_us, expires_us)
        case Failed(failure):
            return Ending(claim, State.FAILED, None, text(failure), now_us, expires_us)
        case Cancelled(failure):
            return Ending(claim, State.CANCELLED, None, text(failure), now_us, expires_us)
    return None


def _finish_all(tx: Transaction, outcomes: Sequence[Ended]) -> list[bool]:
    """What these attempts came to; the final ones first, together."""
    endings = [_ending(*one) for one in outcomes]
    ended = iter(_end_all(tx, [ending for ending in endings if ending is not None]))
    return [_finish(tx, *one) if ending is None else next(ended) for one, ending in zip(outcomes, endings, strict=True)]


def _finish(tx: Transaction, claim: Claim, outcome: Outcome, now_us: int, expires_us: int | None) -> bool:
    """An outcome that is not final."""
    held = tx.execute(SQL.get_running, (claim.job_id, claim.fence)).fetchone()
    if held is None:
        return False
    project, priority, root_id, sub_total, cancel_reason, run_at_us, parent_id, early_expires_us, _ = held
    if cancel_reason is not None:  # it would run again only to be cancelled
        failure = Failure("cancelled", cancel_reason)
        expires_us = early_expires_us if parent_id is None else None
        return _end(tx, claim, State.CANCELLED, None, failure, now_us, expires_us)
    job = (claim.job_id, root_id, project)
    match outcome:
        case Retried(failure, at_us):
            data = text({"error": failure, "run_at_us": at_us})
            _requeue(tx, claim, job, EventType.RETRYING, at_us, now_us, counts=1, error=text(failure), data=data)
        case Snoozed(at_us, note):
            data = text({"run_at_us": at_us, "note": note})
            _requeue(tx, claim, job, EventType.SNOOZED, at_us, now_us, counts=0, snoozed=1, data=data)
        case Returned():
            _requeue(tx, claim, job, EventType.RETURNED, run_at_us, now_us, counts=0)
        case Suspended(sub_jobs):
            _suspend(tx, claim, job, sub_jobs, priority, sub_total, now_us)
    return True


def _end(
    tx: Transaction, claim: Claim, state: State, result: str | None, failure: Failure | None, now_us: int, expires_us: int | None
) -> bool:
    error = None if failure is None else text(failure)
    return _end_all(tx, [Ending(claim, state, result, error, now_us, expires_us)])[0]


def _end_all(tx: Transaction, endings: list[Ending]) -> list[bool]:
    """End those whose lease still holds; all of them are over before what follows from the end of each."""
    if not endings:
        return []
    found = {row[0]: row for row in tx.execute(SQL.find_ending, (text([one.claim.job_id for one in endings]),))}
    held: list[bool] = []
    rows: list[tuple[Any, ...]] = []
    over: list[tuple[Ending, tuple[Any, ...]]] = []
    for one in endings:
        claim, state, result, error, now_us, expires_us = one
        row = found.get(claim.job_id)
        if row is None or row[1] != claim.fence:
            held.append(False)
            continue
        del found[claim.job_id]  # a second end in the same batch comes too late
        held.append(True)
        rows.append((claim.job_id, claim.fence, state._value_, result, error, now_us, expires_us))
        over.append((one, row))
    if not rows:
        return held
    tx.connection.executemany(SQL.finish_job, rows)
    first_id = _emit_all(tx, [row[0] for row in rows], None)
    if tx.watched:
        tx.events += [
            Event(
                event_id, row[0], row[6], row[5], row[2] + 1, _FINAL_TYPES[one.state], one.state, one.now_us,
                None if one.error is None else one.error.encode(),
            )
            for event_id, (one, row) in enumerate(over, first_id)
            if _FINAL_TYPES[one.state] in tx.watched
        ]  # fmt: skip
    for one, (job_id, _, _, parent_id, callback_url, project, root_id) in over:
        if callback_url is not None or parent_id is not None:
            _follow(tx, job_id, parent_id, callback_url, project, root_id, one.state, one.now_us)
    return held


def _ended(tx: Transaction, job_id: str, row: tuple[Any, ...], state: State, error: str | None, now_us: int) -> None:
    """What goes with the end of a job that nobody ran: its event, its callback, and its parent's turn."""
    version, parent_id, callback_url, project, root_id = row
    _emit(tx, (job_id, root_id, project), version, _FINAL_TYPES[state], state, now_us, error)
    _follow(tx, job_id, parent_id, callback_url, project, root_id, state, now_us)


def _follow(
    tx: Transaction,
    job_id: str,
    parent_id: str | None,
    callback_url: str | None,
    project: str,
    root_id: str,
    state: State,
    now_us: int,
) -> None:
    """A job's callback, and its parent's turn, once it has ended."""
    if callback_url is not None:
        delivery = (f"dlv_{new_job_id().replace('-', '')}", job_id, project, callback_url, _FINAL_TYPES[state].value, now_us)
        tx.execute(SQL.add_delivery, delivery)
    if parent_id is not None:
        _settle(tx, parent_id, root_id, now_us)


def _settle(tx: Transaction, parent_id: str, root_id: str, now_us: int) -> None:
    row = tx.execute(SQL.settle_parent, (parent_id, now_us)).fetchone()
    if row is None:
        return
    version, state, grandparent_id, callback_url, project, queue, error = row
    if state == State.READY:
        _emit(tx, (parent_id, root_id, project), version, EventType.RESUMED, State.READY, now_us, text({"queue": queue}))
        tx.ready_queues.add(queue)
    else:
        _ended(tx, parent_id, (version, grandparent_id, callback_url, project, root_id), State.CANCELLED, error, now_us)


def _requeue(
    tx: Transaction,
    claim: Claim,
    job: tuple[str, str, str],
    type_: EventType,
    run_at_us: int,
    now_us: int,
    *,
    counts: int,
    crashed: int = 0,
    snoozed: int = 0,
    error: str | None = None,
    data: str | None = None,
) -> None:
    due = 1 if run_at_us <= now_us else 0
    params = (claim.job_id, claim.fence, run_at_us, due, counts, crashed, snoozed, error, now_us)
    (version,) = tx.execute(SQL.requeue_job, params).fetchone()
    _emit(tx, job, version, type_, State.READY, now_us, data)


def _suspend(
    tx: Transaction,
    claim: Claim,
    job: tuple[str, str, str],
    sub_jobs: list[Submission],
    priority: int,
    sub_total: int,
    now_us: int,
) -> None:
    _, root_id, project = job
    params = (claim.job_id, claim.fence, len(sub_jobs), now_us)
    (version,) = tx.execute(SQL.suspend_job, params).fetchone()
    _emit(tx, job, version, EventType.WAITING, State.WAITING, now_us, text({"sub_jobs": len(sub_jobs)}))
    for position, submission in enumerate(sub_jobs, sub_total):
        sub = new_job(submission, new_job_id(), now_us)
        sub.project, sub.priority = ProjectId(project), priority
        sub.parent_id, sub.root_id, sub.position = claim.job_id, JobId(root_id), position
        _add_sub_job(tx, sub, submission)
    if not sub_jobs:
        _settle(tx, claim.job_id, root_id, now_us)


def _add_sub_job(tx: Transaction, sub: Job, submission: Submission) -> None:
    tx.execute(SQL.add_job, job_params(sub, submission))
    _emit(tx, (sub.id, sub.root_id, sub.project), 1, EventType.SUBMITTED, sub.state, sub.created_us, None)
    if sub.labels:
        _add_labels(tx, sub)


def _find(tx: Transaction, job_id: JobId, project: ProjectId | None) -> Job:
    row = tx.execute(SQL.get_job, (job_id,)).fetchone()
    if row is not None:
        job = job_from_row(row)
        if project is None or job.project == project:
            return job
    buried = tx.execute(SQL.get_tombstone, (job_id,)).fetchone()
    if row is None and buried is not None and (project is None or buried[1] == project):
        raise Expired(f"job {job_id} has expired; it was {buried[3]}", job_id=job_id, state=buried[3])
    raise NotFound(f"no job {job_id}", job_id=job_id)


def _cancel(tx: Transaction, job_id: JobId, project: ProjectId | None, reason: str, now_us: int, expires_us: int) -> None:
    job = _find(tx, job_id, project)
    if job.state is State.CANCELLED:
        return
    if job.state in FINAL:
        raise Conflict(f"job {job_id} already ended: {job.state}", job_id=job_id, state=job.state)
    _refuse_expired(job, now_us)
    _cancel_tree(tx, job.id, job.root_id, job.project, job.state, reason, now_us, expires_us if job.parent_id is None else None)


def _refuse_expired(job: Job, now_us: int) -> None:
    if job.state is State.HELD and job.expires_us is not None and job.expires_us <= now_us:
        raise Expired(f"job {job.id} has expired; it was never released", job_id=job.id, state=job.state)


def _cancel_tree(
    tx: Transaction, job_id: str, root_id: str, project: str, state: State, reason: str, now_us: int, expires_us: int | None
) -> None:
    """End it now if nobody runs it, else ask; sub-jobs likewise, and a waiting parent ends when the last of them has."""
    if state in (State.HELD, State.READY):
        error = text(Failure("cancelled", reason))
        row = tx.execute(SQL.end_idle_job, (job_id, State.CANCELLED.value, error, now_us, expires_us)).fetchone()
        _ended(tx, job_id, row, State.CANCELLED, error, now_us)
        return
    asked = tx.execute(SQL.ask_cancel, (job_id, reason, now_us, expires_us)).fetchone()
    if asked is not None:
        _emit(tx, (job_id, root_id, project), asked[0], EventType.CANCEL_REQUESTED, state, now_us, text({"reason": reason}))
    if state is State.WAITING:
        for sub_id, sub_state in tx.execute(SQL.list_open_subs, (job_id,)).fetchall():
            _cancel_tree(tx, sub_id, root_id, project, State(sub_state), reason, now_us, None)


def _release(tx: Transaction, job_id: JobId, project: ProjectId | None, now_us: int) -> None:
    job = _find(tx, job_id, project)
    if job.state is not State.HELD:
        raise Conflict(f"job {job_id} is {job.state}, not held", job_id=job_id, state=job.state)
    _refuse_expired(job, now_us)
    (version,) = tx.execute(SQL.release_job, (job_id, 1 if job.run_at_us <= now_us else 0, now_us)).fetchone()
    _emit(tx, (job.id, job.root_id, job.project), version, EventType.RELEASED, State.READY, now_us, None)


def _rescue(tx: Transaction, now_us: int, crashes_max: int, expires_us: int) -> list[JobId]:
    rescued: list[JobId] = []
    for (worker,) in tx.execute(SQL.list_dead_workers, (now_us,)).fetchall():
        for job_id, _ in tx.execute(SQL.list_owned, (worker,)).fetchall():
            job = job_from_row(tx.execute(SQL.get_job, (job_id,)).fetchone())
            _rescue_one(tx, job, Claim(job.id, job.fence, worker), now_us, crashes_max, expires_us)
            rescued.append(job.id)
        tx.execute(SQL.end_worker, (worker,))
    return rescued


def _rescue_one(tx: Transaction, job: Job, claim: Claim, now_us: int, crashes_max: int, expires_us: int) -> None:
    until_us = expires_us if job.parent_id is None else None
    if job.cancel_requested:
        failure = Failure("cancelled", "cancelled on request; its worker died")
        _end(tx, claim, State.CANCELLED, None, failure, now_us, until_us)
    elif job.crashes + 1 >= crashes_max:
        failure = Failure(
            "poison",
            f"{job.crashes + 1} workers died while they ran this job; it is not tried again",
            {"crashes": job.crashes + 1, "last_worker": claim.worker},
        )
        _end(tx, claim, State.FAILED, None, failure, now_us, until_us)
    else:
        data = text({"worker": claim.worker, "crashes": job.crashes + 1})
        who = (job.id, job.root_id, job.project)
        _requeue(tx, claim, who, EventType.RESCUED, min(job.run_at_us, now_us), now_us, counts=1, crashed=1, data=data)
        tx.ready_queues.add(job.queue)


def _promote(tx: Transaction, now_us: int, limit: int) -> tuple[set[str], int | None]:
    queues = {row[0] for row in tx.execute(SQL.promote_due, (now_us, limit)).fetchall()}
    return queues, tx.execute(SQL.next_schedule).fetchone()[0]


def _fail_overdue(tx: Transaction, now_us: int, limit: int, expires_us: int) -> int:
    overdue = tx.execute(SQL.list_overdue, (now_us, limit)).fetchall()
    for job_id, parent_id in overdue:
        job = job_from_row(tx.execute(SQL.get_job, (job_id,)).fetchone())
        if job.state in FINAL:  # ended by an earlier one of this round
            continue
        failure = Failure("deadline_exceeded", f"the job was not done by its deadline; it was {job.state}")
        error = text(failure)
        until_us = expires_us if parent_id is None else None
        row = tx.execute(SQL.end_idle_job, (job_id, State.FAILED.value, error, now_us, until_us)).fetchone()
        _ended(tx, job_id, row, State.FAILED, error, now_us)
        for sub_id, sub_state in tx.execute(SQL.list_open_subs, (job_id,)).fetchall():
            _cancel_tree(tx, sub_id, job.root_id, job.project, State(sub_state), "its parent's deadline passed", now_us, None)
    return len(overdue)


def _prune(tx: Transaction, now_us: int, limit: int) -> list[JobId]:
    ids: list[JobId] = []
    for (root_id,) in tx.execute(SQL.list_expired, (now_us, limit)).fetchall():
        subs = [JobId(row[0]) for row in tx.execute(SQL.list_tree, (root_id, limit - len(ids))).fetchall()]
        ids.extend(subs)
        if len(ids) >= limit:
            break  # the rest of this tree, and its root, in the next round
        ids.append(JobId(root_id))
        if len(ids) >= limit:
            break
    if ids:
        _flush_events(tx)  # what this batch did to them goes with them
        packed = text(ids)
        tx.execute(SQL.keep_event_id, (tx.next_event_id - 1,))
        tx.execute(SQL.bury_jobs, (packed, now_us))
        for statement in (SQL.delete_events, SQL.delete_labels, SQL.delete_deliveries, SQL.delete_jobs):
            tx.execute(statement, (packed,))
    return ids


def _prune_rest(tx: Transaction, now_us: int, keep_tombstone_s: float, keep_deliveries_s: float, limit: int) -> bool:
    """Old tombstones, deliveries, tokens and signatures; whether there may be more."""
    tombstones = tx.execute(SQL.delete_tombstones, (now_us - int(keep_tombstone_s * 1e6), limit)).rowcount
    deliveries = tx.execute(SQL.delete_old_deliveries, (now_us - int(keep_deliveries_s * 1e6), limit)).rowcount
    tx.execute(SQL.delete_old_tokens, (now_us,))
    signatures = tx.execute(SQL.delete_old_signatures, (now_us, limit)).rowcount
    return bool(max(tombstones, deliveries, signatures) >= limit)
