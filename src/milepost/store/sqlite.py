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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from milepost.errors import NotFound, StoreUnavailable
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
from milepost.store import (
    EVERY_TYPE,
    NEVER,
    NO_LIMITS,
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
    sqlite_ends,
    sqlite_jobs,
)
from milepost.store.migrate import migrate_sqlite
from milepost.store.rows import event_from_row, job_from_row, text
from milepost.store.sqlite_deliveries import SqliteDeliveries
from milepost.store.sqlite_jobs import JOB_COLUMNS, SQL
from milepost.store.sqlite_lists import depths_of, list_sql
from milepost.store.sqlite_records import SqliteRecords
from milepost.store.starter import Starter
from milepost.store.writer import Writer, unavailable

_decode_rows = msgspec.json.Decoder(list[tuple[Any, ...]]).decode


class SqliteStore(SqliteRecords, SqliteDeliveries):
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
            flush_added=sqlite_jobs.flush_added,
            flush_events=sqlite_jobs.flush_events,
            finish_all=sqlite_ends.finish_all,
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
            if not isinstance(error, BlockingIOError):
                raise StoreUnavailable(f"{self.path}.lock cannot be locked: {error.strerror}", hint="use a local disk") from error
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
            return await self._writer.do(sqlite_jobs.add_checked, submissions, now_us, writes)  # type: ignore[no-any-return]
        return await self._writer.add(sqlite_jobs.add_plain, submissions, now_us)  # type: ignore[no-any-return]

    async def has_key(self, project: ProjectId, key: str) -> bool:
        return self._read.execute(SQL.find_key, (project, key)).fetchone() is not None

    async def get_job(self, job_id: JobId, *, project: ProjectId | None = None) -> Job | Tombstone:
        row = self._read.execute(SQL.get_job, (job_id,)).fetchone()
        if row is None:
            row = self._read.execute(SQL.get_tombstone, (job_id,)).fetchone()
            found: Job | Tombstone | None = None if row is None else sqlite_jobs.tombstone_of(row)
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

    def start_with(self, starter: Starter) -> Callable[[], None]:
        return self._writer.start_with(starter)

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
        return await self._writer.do(sqlite_jobs.claim_jobs, queue, worker, now_us, limit, last_chance)  # type: ignore[no-any-return]

    async def renew_lease(self, worker: WorkerId, *, now_us: int, lease_s: float) -> Renewal:
        if self.in_memory:
            return await self._writer.do(sqlite_jobs.renew_lease, worker, now_us, lease_s)  # type: ignore[no-any-return]
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
                return sqlite_jobs.renewal_of(connection.execute(SQL.list_owned, (worker,)).fetchall())
            except sqlite3.Error as error:
                raise unavailable(error) from error

    async def end_worker(self, worker: WorkerId) -> None:
        await self._writer.do(lambda tx: tx.execute(SQL.end_worker, (worker,)) and None)

    async def end_other_workers(self, worker: WorkerId) -> None:
        await self._writer.do(sqlite_jobs.end_other_workers, worker)

    async def report_progress(self, claim: Claim, progress: Progress, *, now_us: int) -> bool:
        return await self._writer.do(sqlite_jobs.report_progress, claim, progress, now_us)  # type: ignore[no-any-return]

    async def finish_job(self, claim: Claim, outcome: Outcome, *, now_us: int, expires_us: int | None = None) -> bool:
        held: list[bool] = await self._writer.finish([Ended(claim, outcome, now_us, expires_us)])
        return held[0]

    async def finish_jobs(self, ended: Sequence[Ended]) -> list[bool]:
        return await self._writer.finish(ended)  # type: ignore[no-any-return]

    # --- operators -------------------------------------------------------------------------------------------------

    async def cancel_job(self, job_id: JobId, *, project: ProjectId | None, reason: str, now_us: int, expires_us: int) -> Job:
        await self._writer.do(sqlite_ends.cancel_job, job_id, project, reason, now_us, expires_us)
        return self._read_job(job_id)

    async def release_job(self, job_id: JobId, *, project: ProjectId | None, now_us: int) -> Job:
        await self._writer.do(sqlite_ends.release_job, job_id, project, now_us)
        return self._read_job(job_id)

    def _read_job(self, job_id: JobId) -> Job:
        return job_from_row(self._read.execute(SQL.get_job, (job_id,)).fetchone())

    # --- loops -----------------------------------------------------------------------------------------------------

    async def rescue_expired(
        self, *, now_us: int, crashes_max: float, expires_us: int, crashes_max_of: Mapping[str, float] = NO_LIMITS
    ) -> list[Job]:
        ids = await self._writer.do(sqlite_ends.rescue_expired, now_us, crashes_max, crashes_max_of, expires_us)
        return [self._read_job(job_id) for job_id in ids]

    async def promote_due(self, *, now_us: int, limit: int) -> tuple[set[str], int | None]:
        return await self._writer.do(sqlite_jobs.promote_due, now_us, limit)  # type: ignore[no-any-return]

    async def fail_overdue(self, *, now_us: int, limit: int, expires_us: int) -> int:
        return await self._writer.do(sqlite_ends.fail_overdue, now_us, limit, expires_us)  # type: ignore[no-any-return]

    async def next_deadline_us(self) -> int | None:
        found: int | None = self._read.execute(SQL.next_deadline).fetchone()[0]
        return found

    async def prune(self, *, now_us: int, keep_tombstone_s: float, keep_deliveries_s: float, limit: int) -> list[JobId]:
        keeping = (now_us, keep_tombstone_s, keep_deliveries_s, limit)
        removed: list[JobId] = await self._writer.do(sqlite_ends.prune_expired, now_us, limit)
        while await self._writer.do(sqlite_ends.prune_rest, *keeping):
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

    async def count_due(self, queue: str, *, project: ProjectId) -> dict[str, int]:
        rows = await self._read_thread(lambda connection: connection.execute(SQL.count_due, (project, queue)).fetchall())
        return dict(rows)
