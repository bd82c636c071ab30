"""What is SQLite's own: the file's life, its migrations, its plans, and renewals beside a blocked loop."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from milepost.errors import StoreUnavailable
from milepost.job import State, Submission, WorkerId
from milepost.store import JobQuery
from milepost.store.migrate import migrate_sqlite, migrations
from milepost.store.sqlite import SqliteStore
from milepost.store.sqlite_jobs import JOB_COLUMNS, SQL
from milepost.store.sqlite_lists import list_sql
from milepost.store.sqlite_publish import SQL as DELIVERY_SQL
from milepost.store.sqlite_records import SQL as RECORD_SQL
from milepost.store.statements import load, parse

NOW = 1_790_000_000_000_000


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "milepost.db")
    await opened.open()
    yield opened
    await opened.close()


# --- the file --------------------------------------------------------------------------------------------------------------


async def test_a_second_server_on_the_same_folder_is_refused(store: SqliteStore) -> None:
    second = SqliteStore(store.path)
    with pytest.raises(StoreUnavailable, match="another server"):
        await second.open()
    await store.add_jobs([Submission(kind="k")], now_us=NOW)


async def test_a_file_that_cannot_be_locked_is_not_taken_for_another_server_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StoreUnavailable, match="cannot be locked: No locks available") as refused:
        await SqliteStore(tmp_path / "milepost.db").open()
    assert refused.value.hint == "use a local disk"


async def test_a_command_beside_the_server_reads_and_writes(store: SqliteStore) -> None:
    beside = SqliteStore(store.path, lock=False)
    await beside.open()
    assert (store.exclusive, beside.exclusive) == (True, False)
    ((job, _),) = await beside.add_jobs([Submission(kind="k")], now_us=NOW)
    assert (await store.get_job(job.id)).id == job.id
    await beside.close()


async def test_the_lock_is_free_again_after_a_close(tmp_path: Path) -> None:
    for _ in range(3):
        store = SqliteStore(tmp_path / "milepost.db")
        await store.open()
        await store.close()


async def test_a_newer_schema_is_refused_and_the_lock_given_back(tmp_path: Path) -> None:
    path = tmp_path / "milepost.db"
    store = SqliteStore(path)
    await store.open()
    await store.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 9999")
    connection.close()
    refused = SqliteStore(path)
    with pytest.raises(StoreUnavailable, match="schema 9999"):
        await refused.open()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {migrations('sqlite')[-1][0]}")
    connection.close()
    again = SqliteStore(path)
    await again.open()
    await again.close()


async def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "milepost.db"
    path.write_bytes(b"this is no database" * 1000)
    with pytest.raises(StoreUnavailable):
        await SqliteStore(path).open()


async def test_commits_are_durable(store: SqliteStore) -> None:
    assert store._write.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._write.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"


async def test_operations_that_come_together_share_a_commit(store: SqliteStore) -> None:
    before = store.stats.commits
    await asyncio.gather(*(store.add_jobs([Submission(kind="k")], now_us=NOW) for _ in range(200)))
    assert store.stats.commits - before <= 5
    assert sum(store.stats.batch_sizes.values()) == store.stats.commits


async def test_a_caller_that_was_cancelled_hurts_nobody(store: SqliteStore) -> None:
    calls = [asyncio.ensure_future(store.add_jobs([Submission(kind="k")], now_us=NOW)) for _ in range(10)]
    await asyncio.sleep(0)
    calls[3].cancel()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(one, list) for one in done) == 9
    await store.ping()


async def test_a_write_waits_for_another_process_that_holds_the_lock(store: SqliteStore) -> None:
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    adding = asyncio.ensure_future(store.add_jobs([Submission(kind="k")], now_us=NOW))
    await store.list_jobs(JobQuery())
    assert not adding.done()
    other.execute("COMMIT")
    other.close()
    async with asyncio.timeout(60):
        assert (await adding)[0].created


async def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "milepost.db")
    await store.open()
    pages = store._write.execute("PRAGMA page_count").fetchone()[0]
    store._write.execute(f"PRAGMA max_page_count = {pages + 40}")
    kept, refused = [], 0
    for _ in range(60):
        try:
            ((job, _),) = await store.add_jobs([Submission(kind="k", input=b'"' + b"x" * 9000 + b'"')], now_us=NOW)
        except StoreUnavailable as error:
            assert error.hint is not None
            assert "free disk space" in error.hint
            refused += 1
        else:
            kept.append(job.id)
    assert kept
    assert refused
    store._write.execute("PRAGMA max_page_count = 1000000")
    await store.add_jobs([Submission(kind="after")], now_us=NOW)
    await store.close()
    await store.open()
    found = {job.id for job in await store.list_jobs(JobQuery(kinds=("k",), limit=1000))}
    assert found == set(kept)
    await store.close()


async def test_a_lease_is_renewed_while_the_loop_is_blocked(store: SqliteStore) -> None:
    worker = WorkerId("w")

    def renew() -> float:
        started_s = time.monotonic()
        asyncio.run(store.renew_lease(worker, now_us=NOW, lease_s=10))
        return time.monotonic() - started_s

    writing = [asyncio.ensure_future(store.add_jobs([Submission(kind="k")], now_us=NOW)) for _ in range(5)]
    await asyncio.sleep(0)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        took_s = threads.submit(renew).result(60)  # the loop stands still until the other thread has renewed
    assert took_s < 30
    await asyncio.gather(*writing)
    assert len(await store.claim_jobs("default", worker=worker, now_us=NOW, limit=9)) == 5


# --- migrations ------------------------------------------------------------------------------------------------------------


def schema(connection: sqlite3.Connection) -> set[tuple[Any, ...]]:
    return set(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'"))


def test_a_fresh_schema_is_all_migrations_applied_one_by_one() -> None:
    fresh, stepped = sqlite3.connect(":memory:", isolation_level=None), sqlite3.connect(":memory:", isolation_level=None)
    newest = migrate_sqlite(fresh)
    for number, sql in migrations("sqlite"):
        stepped.executescript(f"BEGIN; {sql}; PRAGMA user_version = {number}; COMMIT;")
    assert schema(fresh) == schema(stepped)
    assert fresh.execute("PRAGMA user_version").fetchone() == (newest,)
    assert migrate_sqlite(fresh) == newest, "twice is once"


def test_migrations_are_numbered_without_gaps() -> None:
    numbers = [number for number, _ in migrations("sqlite")]
    assert numbers == list(range(1, len(numbers) + 1))


# --- plans -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planner() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate_sqlite(connection)
    return connection


def plan(connection: sqlite3.Connection, sql: str, params: int) -> str:
    rows = connection.execute(f"EXPLAIN QUERY PLAN {sql}", [None] * params).fetchall()
    return " | ".join(row[3] for row in rows)


HOT: dict[str, tuple[str, int, str]] = {
    # what: statement, parameters, and what its plan must use
    "get a job": (SQL.get_job, 1, "PRIMARY KEY"),
    "get a tombstone": (SQL.get_tombstone, 1, "PRIMARY KEY"),
    "find what to claim": (SQL.find_claimable, 5, "job_due"),
    "count what is due of a project": (SQL.count_due, 2, "job_due"),
    "claim": (SQL.claim_jobs, 3, "PRIMARY KEY"),
    "find what ends": (SQL.find_ending, 1, "PRIMARY KEY"),
    "events of many jobs": (SQL.add_events, 3, "PRIMARY KEY"),
    "finish": (SQL.finish_job, 7, "PRIMARY KEY"),
    "report progress": (SQL.report_progress, 4, "PRIMARY KEY"),
    "settle a parent": (SQL.settle_parent, 2, "job_open_sub"),
    "open sub-jobs": (SQL.list_open_subs, 1, "job_open_sub"),
    "sub-jobs": (SQL.list_subs, 1, "job_sub"),
    "count sub-jobs": (SQL.count_subs, 1, "job_sub"),
    "find an idempotency key": (SQL.find_key, 2, "job_idempotency"),
    "events of a job": (SQL.list_job_events, 3, "event_job"),
    "events of a tree": (SQL.list_tree_events, 3, "event_job"),
    "owned by a worker": (SQL.list_owned, 1, "job_running"),
    "dead workers": (SQL.list_dead_workers, 1, "job_running"),
    "promote": (SQL.promote_due, 2, "job_scheduled"),
    "next schedule": (SQL.next_schedule, 0, "job_scheduled"),
    "next deadline": (SQL.next_deadline, 0, "job_deadline"),
    "overdue": (SQL.list_overdue, 2, "job_deadline"),
    "expired": (SQL.list_expired, 2, "job_expiry"),
    "a tree": (SQL.list_tree, 2, "job_tree"),
    "due deliveries": (DELIVERY_SQL.find_due, 2, "delivery_due"),
    "due deliveries of a receiver": (DELIVERY_SQL.find_due_of, 3, "delivery_receiver"),
    "claim deliveries": (DELIVERY_SQL.claim_deliveries, 2, "PRIMARY KEY"),
    "pending of a receiver": (DELIVERY_SQL.count_pending, 1, "delivery_receiver"),
    "next delivery": (DELIVERY_SQL.next_delivery, 0, "delivery_due"),
    "deliveries of a job": (DELIVERY_SQL.list_deliveries, 1, "delivery_job"),
    "deliveries of a subscription": (DELIVERY_SQL.page_deliveries, 4, "delivery_subscription"),
    "trim a subscription's log": (DELIVERY_SQL.trim_log, 2, "delivery_subscription"),
    "one on its way": (DELIVERY_SQL.has_pending, 3, "delivery_"),
    "news for subscriptions": (DELIVERY_SQL.list_news, 5, "SEARCH event USING INTEGER PRIMARY KEY"),
    "news for jobs": (DELIVERY_SQL.list_watched_news, 3, "SEARCH event USING INTEGER PRIMARY KEY"),
    "first watched": (DELIVERY_SQL.first_watched, 0, "callback_watch_first"),
    "pruned of a project": (DELIVERY_SQL.pruned_until, 1, "pruned"),
    "a token": (RECORD_SQL.get_token, 1, "PRIMARY KEY"),
}
# Read whole, but through an index that has only the rows in question.
SORTED = {"events of a tree", "deliveries of a job"}  # few rows, sorted when found
SMALL = {"job_running", "job_scheduled", "job_deadline", "job_due", "job_crashed", "delivery_due"}
SMALL |= {"callback_watch_first", "pruned"}


@pytest.mark.parametrize("what", HOT)
def test_a_hot_statement_uses_its_index_and_reads_no_table_whole(planner: sqlite3.Connection, what: str) -> None:
    sql, params, index = HOT[what]
    steps = plan(planner, sql, params)
    assert index in steps, steps
    for step in steps.split(" | "):
        if step.startswith("SCAN") and "VIRTUAL TABLE" not in step:  # json_each is one
            assert any(name in step for name in SMALL), steps
    assert "TEMP B-TREE FOR ORDER BY" not in steps or what in SORTED, steps


LISTS: dict[str, JobQuery] = {
    "newest of a project": JobQuery(project="p"),  # type: ignore[arg-type]
    "oldest of a project": JobQuery(project="p", descending=False),  # type: ignore[arg-type]
    "newest of a kind and project": JobQuery(project="p", kinds=("k",)),  # type: ignore[arg-type]
    "failed of a project": JobQuery(project="p", states=(State.FAILED,)),  # type: ignore[arg-type]
    "running of a project": JobQuery(project="p", states=(State.RUNNING,)),  # type: ignore[arg-type]
    "sub-jobs of a parent": JobQuery(parent_id="x"),  # type: ignore[arg-type]
    "by label": JobQuery(project="p", labels=(("a", "b"),)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", LISTS)
def test_a_hot_list_uses_an_index(planner: sqlite3.Connection, what: str) -> None:
    sql, params = list_sql(LISTS[what], planner, columns=JOB_COLUMNS)
    steps = plan(planner, sql, len(params))
    assert "SEARCH job" in steps, steps
    assert "SCAN job |" not in steps + " |", steps


def test_a_page_of_a_label_is_the_beginning_of_its_rows(planner: sqlite3.Connection) -> None:
    query = JobQuery(project="p", labels=(("a", "b"), ("c", "d")))  # type: ignore[arg-type]
    sql, params = list_sql(query, planner, columns=JOB_COLUMNS)
    steps = plan(planner, sql, len(params))
    assert "SEARCH job_label USING PRIMARY KEY (key=? AND value=?) | SEARCH job USING PRIMARY KEY (id=?)" in steps, steps
    assert "TEMP B-TREE" not in steps, steps


# --- statements ------------------------------------------------------------------------------------------------------------


def test_statements_are_rewritten_to_the_drivers_marks() -> None:
    source = "-- name: one\n-- params: id, name\nSELECT :name, ':id', x FROM t WHERE id = :id AND n = :name; -- :no\n"
    with pytest.raises(ValueError):
        parse(source.replace("params: id, name", "params: id"), "?")
    blocks = parse(source.replace("':id'", "1"), "?")
    assert blocks["one"].text == "SELECT ?2, 1, x FROM t WHERE id = ?1 AND n = ?2"
    assert parse(source.replace("':id'", "1"), "$")["one"].text.endswith("id = $1 AND n = $2")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("-- name: a\n-- params: x\nSELECT 1;\n", "declared"),
        ("-- name: a\nSELECT :x;\n", "used"),
        ("-- name: a\nSELECT 1;\n-- name: a\nSELECT 2;\n", "twice"),
    ],
)
def test_a_wrong_statement_file_fails_at_import(source: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(source, "?")


def test_a_missing_or_spare_statement_fails_at_import() -> None:
    class Short(NamedTuple):
        get_job: str
        no_such: str

    with pytest.raises(ValueError, match="no_such"):
        load("sqlite", "job", Short)
