"""A data folder that the first version wrote is opened by this one: nothing is lost, and what was open goes on to its end."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from receiver import Receiver

import milepost
from milepost.store.migrate import migrations
from milepost.testing import serving_in_thread

ENDED = "01a00000-0000-7000-8000-000000000001"
READY = "01a00000-0000-7000-8000-000000000002"
LEFT = "01a00000-0000-7000-8000-000000000003"
HELD = "01a00000-0000-7000-8000-000000000004"
GONE = "01a00000-0000-7000-8000-000000000005"
DELIVERY = "d-1"


def wait_until(holds: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end_s, what
        time.sleep(0.02)


def write_old(file: Path, callback_url: str) -> None:
    """A database of the first schema, as it was left by a kill: one job ended, one ready, one running, one held, one expired."""
    now_us = int(time.time() * 1e6)
    old = sqlite3.connect(file, isolation_level=None)
    number, sql = migrations("sqlite")[0]
    old.executescript(f"PRAGMA journal_mode = WAL; BEGIN; {sql}; PRAGMA user_version = {number}; COMMIT;")
    rows = [
        (ENDED, "succeeded", 1, now_us, None, '{"n":1}', 3, None),
        (READY, "ready", 0, None, None, None, 1, callback_url),
        (LEFT, "running", 1, None, "a-dead-worker", None, 2, None),
        (HELD, "held", 0, None, None, None, 1, None),
    ]
    for id, state, attempt, ended_us, worker, result, version, url in rows:
        old.execute(
            "INSERT INTO job (id, kind, state, project, queue, priority, due, run_at_us, attempt, attempts_max, root_id, "
            "created_us, started_us, ended_us, updated_us, expires_us, version, fence, lease_by, input, result, callback_url) "
            "VALUES (?, 'echo', ?, 'default', 'default', 5, 1, ?, ?, 3, ?, ?, ?, ?, ?, ?, ?, ?, ?, '{\"n\":1}', ?, ?)",
            (
                *(id, state, now_us, attempt, id, now_us, now_us if attempt else None, ended_us, now_us),
                *(ended_us and ended_us + 10**12, version, attempt, worker, result, url),
            ),
        )
        types = [("submitted", "held" if state == "held" else "ready"), ("started", "running"), ("succeeded", "succeeded")]
        for seq, (type_, then) in enumerate(types[:version], start=1):
            old.execute(
                "INSERT INTO event (job_id, seq, type, state, at_us) VALUES (?, ?, ?, ?, ?)", (id, seq, type_, then, now_us)
            )
    old.execute("INSERT INTO tombstone VALUES (?, 'default', 'echo', 'failed', ?, ?)", (GONE, now_us, now_us))
    old.execute("INSERT INTO queue VALUES ('narrow', 2, 1)")
    old.execute(
        "INSERT INTO delivery (id, job_id, project, url, event, state, next_us, created_us) "
        "VALUES (?, ?, 'default', ?, 'job.succeeded', 'pending', ?, ?)",
        (DELIVERY, ENDED, callback_url, now_us, now_us),
    )
    old.close()


def test_jobs_events_deliveries_and_queues_of_the_first_schema_go_on(tmp_path: Path) -> None:
    with Receiver() as receiver:
        write_old(tmp_path / "milepost.db", receiver.url)
        with serving_in_thread(data=str(tmp_path)) as server, milepost.Client(server.url) as client:
            assert client.get(ENDED).result == {"n": 1}
            assert [event.type for event in client.events(ENDED)] == ["submitted", "started", "succeeded"]
            for id in (READY, LEFT):
                assert client.wait(id, timeout_s=30).result == {"n": 1}
            assert [event.seq for event in client.events(LEFT)] == list(range(1, len(list(client.events(LEFT))) + 1))
            client.release(HELD)
            assert client.wait(HELD, timeout_s=30).result == {"n": 1}
            with pytest.raises(milepost.Expired):
                client.get(GONE)
            assert [(queue.limit, queue.paused) for queue in client.queues() if queue.name == "narrow"] == [(2, True)]
            wait_until(lambda: set(receiver.accepted) == {ENDED, READY}, "both deliveries")
    assert set(receiver.accepted.values()) == {1}


def test_the_upgraded_folder_is_as_one_that_was_made_now(tmp_path: Path) -> None:
    write_old(tmp_path / "milepost.db", "http://127.0.0.1:9/")
    with serving_in_thread(data=str(tmp_path)):
        pass
    upgraded, newest = sqlite3.connect(tmp_path / "milepost.db"), migrations("sqlite")[-1][0]
    assert upgraded.execute("PRAGMA user_version").fetchone() == (newest,)
    assert upgraded.execute("PRAGMA integrity_check").fetchone() == ("ok",)
