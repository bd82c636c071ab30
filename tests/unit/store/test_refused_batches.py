"""What a batch leaves behind that the database refused: nothing, and the writer goes on."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from milepost.errors import StoreUnavailable
from milepost.job import Event, EventType, JobId, Submission, WorkerId
from milepost.store.sqlite import SqliteStore

NOW = 1_790_000_000_000_000
WORKER = WorkerId("w")


class Refusing:
    """A connection that refuses the next statements that begin with a word."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._refused: list[tuple[str, sqlite3.Error]] = []

    def refuse(self, word: str, error: sqlite3.Error, times: int = 1) -> None:
        self._refused += [(word, error)] * times

    def execute(self, sql: str, *params: Any) -> Any:
        if self._refused and sql.startswith(self._refused[0][0]):
            raise self._refused.pop(0)[1]
        return self._connection.execute(sql, *params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


FULL = sqlite3.OperationalError("database or disk is full")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "milepost.db")
    await opened.open()
    yield opened
    async with asyncio.timeout(60):
        await opened.close()


@pytest.fixture
def disk(store: SqliteStore) -> Refusing:
    refusing = Refusing(store._write)
    store._writer._connection = refusing  # type: ignore[assignment]
    return refusing


async def test_a_batch_whose_commit_fails_is_written_once_and_its_events_have_no_gap(store: SqliteStore, disk: Refusing) -> None:
    told: list[Event] = []
    store.subscribe(told.extend)
    disk.refuse("COMMIT", FULL)
    added = await asyncio.gather(*(store.add_jobs([Submission(kind="k")], now_us=NOW) for _ in range(5)))
    events = await store.list_events()
    assert [event.id for event in events] == [1, 2, 3, 4, 5]
    assert [event.job_id for event in events] == [one.job.id for (one,) in added]
    assert told == events


async def test_a_subscriber_that_comes_before_a_commit_fails_is_told_of_what_is_written_then(
    store: SqliteStore, disk: Refusing
) -> None:
    told: list[Event] = []
    disk.refuse("COMMIT", FULL)
    adding = asyncio.ensure_future(store.add_jobs([Submission(kind="k")], now_us=NOW))
    while not store._write.in_transaction:
        await asyncio.sleep(0)
    store.subscribe(told.extend)
    ((job, _),) = await adding
    assert [(event.job_id, event.type) for event in told] == [(job.id, EventType.SUBMITTED)]


async def test_a_job_that_was_refused_is_not_what_a_worker_gets_under_its_id(store: SqliteStore, disk: Refusing) -> None:
    job_id = JobId("01890000-0000-7000-8000-000000000001")
    disk.refuse("COMMIT", FULL, times=2)
    with pytest.raises(StoreUnavailable):
        await store.add_jobs([Submission(kind="k", id=job_id, input=b"1")], now_us=NOW)
    long = b'"' + b"x" * 5000 + b'"'
    await store.add_jobs([Submission(kind="k", id=job_id, input=long)], now_us=NOW)
    await store.renew_lease(WORKER, now_us=NOW, lease_s=30)
    (claimed,) = await store.claim_jobs("default", worker=WORKER, now_us=NOW, limit=1)
    assert claimed.job.input == long


async def test_a_transaction_that_cannot_begin_fails_its_callers_and_nobody_after_them(
    store: SqliteStore, disk: Refusing
) -> None:
    disk.refuse("BEGIN", sqlite3.DatabaseError("database disk image is malformed"))
    async with asyncio.timeout(60):
        with pytest.raises(StoreUnavailable, match="malformed"):
            await store.add_jobs([Submission(kind="k")], now_us=NOW)
        await store.add_jobs([Submission(kind="k")], now_us=NOW)


async def test_a_listener_that_raises_stops_neither_the_writer_nor_the_other_listeners(store: SqliteStore) -> None:
    told: list[Event] = []
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context["exception"]))

    def broken(_events: Any) -> None:
        raise RuntimeError("broken")

    store.subscribe(broken)
    store.subscribe(told.extend)
    async with asyncio.timeout(60):
        await store.add_jobs([Submission(kind="k")], now_us=NOW)
        await store.add_jobs([Submission(kind="k")], now_us=NOW)
    assert len(told) == 2
    assert [str(one) for one in complaints] == ["broken", "broken"]


async def test_a_job_that_ends_and_is_pruned_in_one_batch_leaves_no_event(store: SqliteStore) -> None:
    ((job, _),) = await store.add_jobs([Submission(kind="k")], now_us=NOW)
    cancelling = asyncio.ensure_future(store.cancel_job(job.id, project=None, reason="", now_us=NOW, expires_us=NOW))
    pruning = asyncio.ensure_future(store.prune(now_us=NOW, keep_tombstone_s=60, keep_deliveries_s=60, limit=10))
    await asyncio.gather(cancelling, pruning, return_exceptions=True)
    assert store._read.execute("SELECT COUNT(*) FROM event").fetchone() == (0,)
