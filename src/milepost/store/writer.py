"""Group commit for SQLite: operations that arrive together share one transaction and one fsync.

Theory
- Statements run on the event loop's own thread: each takes some microseconds, and handing them to another thread would cost
  more than running them, because Python's lock would change hands at every step.  The COMMIT, which waits for the disk, runs in a
  thread of its own; while it does, the next batch gathers.
- So a batch grows exactly as large as the disk is slow, and no timer is needed.

Rules
1. An operation's future is resolved only after its transaction is on disk.
2. An operation that raises a MilepostError has written nothing, and fails alone.
3. When SQLite itself refuses a batch (disk full, I/O error), the batch is rolled back and each operation is tried again alone,
   so that one bad operation does not fail its neighbours.

Failure modes: another process holds the write lock (an admin command): the batch is tried again every few milliseconds, up to
`BUSY_S`; then StoreUnavailable.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from milepost.errors import InvalidInput, MilepostError, StoreUnavailable
from milepost.job import Claimed, Event, EventType, Job, Submission, WorkerId
from milepost.store import Ended, Listener, StoreStats
from milepost.store.starter import Starter

BUSY_S = 10.0
BUSY_PAUSE_S = 0.003


class Operation(NamedTuple):
    run: Callable[..., Any]
    args: tuple[Any, ...]
    future: asyncio.Future[Any]


class Transaction:
    """What an operation writes with: the connection, and rows that go in together at the end of its lane or of the batch."""

    __slots__ = (
        "added",
        "begun",
        "connection",
        "event_rows",
        "events",
        "execute",
        "fresh",
        "next_event_id",
        "ready_queues",
        "starters",
        "taken",
        "watched",
    )

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.execute = connection.execute
        self.added: list[tuple[Job, Submission]] = []  # whose rows are not written yet
        self.starters: dict[WorkerId, Starter] = {}
        self.taken: list[tuple[Starter, str, int]] = []  # slots of what begins in this batch
        self.begun: list[Claimed] = []  # for the starters, after the commit
        self.event_rows: list[tuple[Any, ...]] = []
        self.fresh: dict[str, Job] = {}  # ready jobs as they were added: right as long as the row's version is still 1
        self.events: list[Event] = []  # for subscribers; filled only while there are some
        self.next_event_id = 0
        self.watched: frozenset[EventType] = frozenset()  # of which subscribers are told
        self.ready_queues: set[str] = set()  # that got a due job: told to `on_ready` after the commit

    def take(self, starter: Starter, queue: str, wanted: int) -> int:
        """Slots for jobs that begin in this batch; they are given back by themselves when it is not committed."""
        count = starter.take(queue, wanted)
        self.taken.append((starter, queue, count))
        return count

    def give_back(self, starter: Starter, queue: str, count: int) -> None:
        """Slots that were taken in this batch and are not needed."""
        starter.give_back(queue, count)
        self.taken.append((starter, queue, -count))

    def unwritten(self) -> tuple[list[Any], ...]:
        """Everything that is here and not in the database."""
        return self.added, self.event_rows, self.events


class Writer:
    """The one writer of a database in this process.  All methods on the loop that started it, but `call` from any."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        in_memory: bool,
        last_event_id: str,
        flush_added: Callable[[Transaction], None],
        flush_events: Callable[[Transaction], None],
        finish_all: Callable[[Transaction, Sequence[Ended]], list[bool]],
        stats: StoreStats,
    ) -> None:
        self._connection = connection
        self._in_memory = in_memory
        self._last_event_id = last_event_id
        self._flush_added, self._flush_events, self._finish_all = flush_added, flush_events, finish_all
        self._data_version = -1
        self._stats = stats
        self._tx = Transaction(connection)
        self._adding: deque[Operation] = deque()
        self._ending: deque[Operation] = deque()
        self._others: deque[Operation] = deque()
        self.loop = asyncio.get_running_loop()
        self._scheduled = False
        self._busy_since: float | None = None
        self._closed = False
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()
        self._commits: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._commit_loop, name="milepost-commit", daemon=True)
        if not in_memory:
            self._thread.start()
        self._listeners: list[tuple[Listener, frozenset[EventType]]] = []
        self._watched: frozenset[EventType] = frozenset()
        self.next_event_id = 1
        self.read_events: Callable[[int, int], list[Event]] = lambda _after_id, _count: []
        self.on_ready: Callable[[str], None] = lambda _queue: None
        self.on_events: Callable[[], None] | None = None  # called after a commit with events; they are not made for it
        self._told_event_id = 0

    # --- callers ---------------------------------------------------------------------------------------------------

    def add(self, run: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """An operation that only adds jobs through the lists of the transaction: those of a batch go in together."""
        return self._put(self._adding, run, args)

    def finish(self, ended: Sequence[Ended]) -> asyncio.Future[Any]:
        """What attempts came to: those of all the operations of a batch are given to `finish_all` in one call."""
        return self._put(self._ending, self._finish_all, (ended,))

    def do(self, run: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Any other operation: `run(tx, *args)`; it sees what was added and ended before it in the batch."""
        return self._put(self._others, run, args)

    def _put(self, lane: deque[Operation], run: Callable[..., Any], args: tuple[Any, ...]) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._put_here(lane, run, args), self.loop))
        if self._closed:
            raise StoreUnavailable("the store is closed")
        future: asyncio.Future[Any] = loop.create_future()
        lane.append(Operation(run, args, future))
        if not self._scheduled:
            self._scheduled = True
            self._idle.clear()
            self._run_soon()
        return future

    async def _put_here(self, lane: deque[Operation], run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return await self._put(lane, run, args)

    def start_with(self, starter: Starter) -> Callable[[], None]:
        """What begins in the transactions of this process is told to it; returns what ends it."""
        self._tx.starters[starter.worker] = starter

        def end() -> None:
            self._tx.starters.pop(starter.worker, None)

        return end

    def listen(self, listener: Listener, types: frozenset[EventType]) -> Callable[[], None]:
        """Call it with the events of these types of each commit from now on; returns what ends it."""
        entry = (listener, types)
        self._listeners.append(entry)
        self._watched |= types

        def end() -> None:
            self._listeners.remove(entry)
            self._watched = frozenset().union(*(types for _, types in self._listeners))

        return end

    async def close(self) -> None:
        """Return when everything accepted is on disk."""
        self._closed = True
        await self._idle.wait()
        if self._thread.is_alive():
            self._commits.put(None)
            await asyncio.to_thread(self._thread.join)

    # --- batches ---------------------------------------------------------------------------------------------------

    def _run_batch(self) -> None:
        if not self._begin():
            return
        lanes = [list(waiting) for waiting in self._lanes()]
        for waiting in self._lanes():
            waiting.clear()
        operations = [operation for lane in lanes for operation in lane]
        tx = self._tx
        tx.watched = self._watched
        done: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        try:
            self._number_events(tx)
            adding, ending, others = lanes
            for operation in adding:
                self._run_one(tx, operation, done)
            self._flush_added(tx)
            if ending:
                held = iter(self._finish_all(tx, [one for operation in ending for one in operation.args[0]]))
                done += [(operation.future, list(islice(held, len(operation.args[0]))), None) for operation in ending]
            for operation in others:
                self._run_one(tx, operation, done)
            self._flush_events(tx)
        except Exception:  # sqlite3.Error, or a value that has no SQLite form: text with lone surrogates, too large a number
            self._rollback(tx)
            self._one_by_one(operations)
            return
        started_s = time.perf_counter()
        if self._in_memory:
            self._connection.execute("COMMIT")
            self._committed(done, started_s)
        else:
            self._commits.put(lambda: self._commit(done, operations, started_s))

    def _lanes(self) -> tuple[deque[Operation], ...]:
        """In the order in which a batch runs them: they all came at the same time, so any order is right."""
        return self._adding, self._ending, self._others

    def _run_one(
        self, tx: Transaction, operation: Operation, done: list[tuple[asyncio.Future[Any], Any, BaseException | None]]
    ) -> None:
        marks = [(rows, len(rows)) for rows in tx.unwritten()]
        try:
            done.append((operation.future, operation.run(tx, *operation.args), None))
        except sqlite3.Error:
            raise
        except Exception as error:
            # Operations check before they write, so nothing is in the transaction but rows not yet flushed.
            for rows, length in marks:
                del rows[length:]
            if not isinstance(error, MilepostError):
                raise sqlite3.OperationalError(f"operation failed: {error!r}") from error
            done.append((operation.future, None, error))

    def _begin(self) -> bool:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            now_s = time.monotonic()
            self._busy_since = self._busy_since or now_s
            if now_s - self._busy_since < BUSY_S and "locked" in str(error):
                self.loop.call_later(BUSY_PAUSE_S, self._run_batch)
                return False
            self._fail_all(error)
            return False
        self._busy_since = None
        return True

    def _number_events(self, tx: Transaction) -> None:
        """Event ids go on where the database is: behind those of another process, when one wrote since the last batch."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        if version != self._data_version:
            self._data_version = version
            self.next_event_id = self._connection.execute(self._last_event_id).fetchone()[0] + 1
        tx.next_event_id = self.next_event_id

    def _fail_all(self, error: sqlite3.Error) -> None:
        self._busy_since = None
        waiting = [operation for lane in self._lanes() for operation in lane]
        for lane in self._lanes():
            lane.clear()
        for operation in waiting:
            if not operation.future.done():
                operation.future.set_exception(unavailable(error))
        self._next()

    def _rollback(self, tx: Transaction) -> None:
        for rows in tx.unwritten():
            rows.clear()
        tx.ready_queues.clear()
        tx.fresh.clear()  # some of them were not added after all
        tx.begun.clear()
        taken, tx.taken = tx.taken, []
        for starter, name, count in taken:
            starter.give_back(name, count)
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _one_by_one(self, operations: list[Operation]) -> None:
        """After a refused batch: each alone, so that only what is wrong fails.  Rare, so the commits are waited for here."""
        for operation in operations:
            if operation.future.done():
                continue
            tx = self._tx
            tx.watched = self._watched  # somebody may have subscribed since the batch began
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                self._number_events(tx)
                result = operation.run(tx, *operation.args)
                self._flush_added(tx)
                self._flush_events(tx)
                self._connection.execute("COMMIT")
            except Exception as error:
                self._rollback(tx)
                operation.future.set_exception(refused(error))
                continue
            self.next_event_id = tx.next_event_id
            operation.future.set_result(result)
            self._start(tx)
            self._tell(tx)
        self._next()

    # --- commit ----------------------------------------------------------------------------------------------------

    def _commit_loop(self) -> None:
        while (commit := self._commits.get()) is not None:
            commit()

    def _commit(
        self,
        done: list[tuple[asyncio.Future[Any], Any, BaseException | None]],
        operations: list[Operation],
        started_s: float,
    ) -> None:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            self.loop.call_soon_threadsafe(self._commit_failed, operations)
        else:
            self.loop.call_soon_threadsafe(self._committed, done, started_s)

    def _commit_failed(self, operations: list[Operation]) -> None:
        self._rollback(self._tx)
        self._one_by_one(operations)

    def _committed(self, done: list[tuple[asyncio.Future[Any], Any, BaseException | None]], started_s: float) -> None:
        stats, size = self._stats, len(done)
        took_s = time.perf_counter() - started_s
        stats.commits += 1
        stats.operations += size
        stats.commit_s += took_s
        bucket = min(1 << (size - 1).bit_length() if size else 1, 1024)
        stats.batch_sizes[bucket] = stats.batch_sizes.get(bucket, 0) + 1
        for bound in COMMIT_BOUNDS_S:
            if took_s <= bound:
                stats.commit_seconds[bound] = stats.commit_seconds.get(bound, 0) + 1
                break
        first_id, self.next_event_id = self.next_event_id, self._tx.next_event_id
        for future, result, error in done:
            if not future.done():  # a caller that was cancelled does not wait any more
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)
        self._start(self._tx)
        try:
            if not self._watched <= self._tx.watched and self.next_event_id > first_id:
                # Somebody subscribed while this batch was on its way to the disk: its events were not kept, but they are news.
                self._tx.events = self.read_events(first_id - 1, self.next_event_id - first_id)
            self._tell(self._tx)
        finally:
            self._next()

    def _start(self, tx: Transaction) -> None:
        tx.taken.clear()
        if not tx.begun:
            return
        by_worker: dict[WorkerId, list[Claimed]] = {}
        for one in tx.begun:
            by_worker.setdefault(one.claim.worker, []).append(one)
        tx.begun.clear()
        for worker, begun in by_worker.items():
            self._call(tx.starters[worker].start, begun)

    def _tell(self, tx: Transaction) -> None:
        if self.on_events is not None and self.next_event_id != self._told_event_id:
            self._told_event_id = self.next_event_id
            self._call(lambda tell: tell(), self.on_events)
        if tx.ready_queues:
            queues, tx.ready_queues = tx.ready_queues, set()
            for name in queues:
                self._call(self.on_ready, name)
        if tx.events:
            events = tx.events
            tx.events = []
            for listener, types in list(self._listeners):
                if wanted := [event for event in events if event.type in types]:
                    self._call(listener, wanted)

    def _call(self, tell: Callable[[Any], None], news: Any) -> None:
        """A listener that raises is its own trouble: everybody else is told, and the next batch begins."""
        try:
            tell(news)
        except Exception as error:
            self.loop.call_exception_handler({"message": "a listener of the store raised", "exception": error})

    def _run_soon(self) -> None:
        """The next batch, in two rounds of the loop: who was just told goes on in the first, and what that comes to joins it.

        At once, callers would fall into two groups that wait for each other's commits, and each commit would carry half as much.
        """
        self.loop.call_soon(self.loop.call_soon, self._run_batch)

    def _next(self) -> None:
        if any(self._lanes()):
            self._run_soon()
        else:
            self._scheduled = False
            self._idle.set()


COMMIT_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


def refused(error: Exception) -> MilepostError:
    """What an operation's caller is told: its own error, that a value cannot be stored, or that the store is away."""
    if isinstance(error, MilepostError):
        return error
    if isinstance(error, UnicodeError | OverflowError):
        return InvalidInput(f"a value cannot be stored: {error}", hint="text must be valid UTF-8, numbers fit into 64 bits")
    return unavailable(error)


def unavailable(error: Exception) -> StoreUnavailable:
    """A driver's error as ours, with the next thing to do."""
    text = str(error)
    hint = None
    if "full" in text:
        hint = "free disk space in the data folder; nothing accepted is lost"
    elif "locked" in text:
        hint = "another process holds the database's write lock"
    return StoreUnavailable(f"the database refused: {text}", hint=hint)
