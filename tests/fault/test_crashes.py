"""Kills at random moments, power cuts, frozen processes, and what a stale worker may still do: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fault_rig import KINDS, House, children_of, is_gone, traffic, until

from milepost.clock import SystemClock
from milepost.errors import StoreUnavailable
from milepost.job import Progress, Submission, Succeeded, WorkerId
from milepost.process import Limits, run_process
from milepost.store.sqlite import SqliteStore

pytestmark = pytest.mark.fault

NOW_US = 1_700_000_000_000_000


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "house")
    yield house
    house.close()


async def test_kills_at_random_moments_lose_nothing_and_run_nothing_ended_again(house: House) -> None:
    dice = random.Random(20261121)
    for round_ in range(8):
        server = house.start()
        async with traffic(house, server) as calls:
            mixes = asyncio.gather(*(calls.mix(round_ * 100 + number) for number in range(16)))
            bulk = asyncio.gather(*(calls.submit_many([{"kind": "work"} for _ in range(20)]) for _ in range(5)))
            await asyncio.sleep(dice.uniform(0.02, 0.9))  # the moment is the test's subject
            house.die(server)
            await asyncio.gather(mixes, bulk)
    server = house.start()
    async with traffic(house, server) as calls:
        for _ in range(2):
            await calls.submit_many([{"kind": "work"} for _ in range(300)])
        await calls.mix(1)
        await calls.settle()
        for key in list(house.keys):  # a client that did not hear the answer asks again
            await calls.submit("work", key=key)
    house.wait_all()
    assert server.stop() == 0
    counted = house.check()
    assert counted["kills"] == 8
    assert counted["acknowledged"] > 1000
    keyed = house.ask(
        "SELECT idempotency_key, COUNT(*) FROM job WHERE idempotency_key IS NOT NULL GROUP BY 1 HAVING COUNT(*) > 1"
    )
    assert keyed == []


async def test_what_was_acknowledged_is_in_a_copy_of_the_files_made_at_that_moment(house: House, tmp_path: Path) -> None:
    """A power cut keeps what was fsynced: here, the database and its log as they are when the last answer came."""
    server = house.start()
    held = 0
    async with traffic(house, server) as calls:
        for cut in range(12):
            pending = asyncio.gather(*(calls.submit("work") for _ in range(40)))
            while len(house.acknowledged) < held + 5:
                await asyncio.sleep(0)
            known, copy = list(house.acknowledged), tmp_path / f"cut-{cut}"
            copy.mkdir()
            # First the database, then the log: a checkpoint between the two moves pages the log still has.
            for name in ("milepost.db", "milepost.db-wal"):
                shutil.copyfile(house.data / name, copy / name)
            with contextlib.closing(sqlite3.connect(copy / "milepost.db")) as database:
                assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
                there = {row[0] for row in database.execute("SELECT id FROM job")}
            assert set(known) <= there, f"{len(set(known) - there)} acknowledged jobs lost"
            await pending
            held = len(house.acknowledged)
    house.wait_all()
    assert server.stop() == 0
    house.check()


async def test_every_commit_that_is_acknowledged_was_synced(house: House) -> None:
    """The promise rests on these two settings of every connection that writes."""
    store = SqliteStore(house.folder / "settings.db")
    await store.open()
    await store.renew_lease(WorkerId("w"), now_us=NOW_US, lease_s=1)
    for connection in (store._write, store._lease_connection):
        assert connection is not None
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    await store.close()


# --- two owners --------------------------------------------------------------------------------------------------------


def test_a_second_server_on_the_folder_is_refused_and_says_so(house: House) -> None:
    server = house.start()
    second = subprocess.run(
        [str(Path(sys.executable).with_name("milepost")), "serve", str(KINDS), "--port", "0", "--data", str(house.data)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode not in (0, -signal.SIGSEGV)
    assert "another server has" in second.stderr
    assert "--data" in second.stderr
    assert "Traceback" not in second.stderr
    assert server.stop() == 0
    third = house.start()
    assert third.url
    assert third.stop() == 0


@contextlib.asynccontextmanager
async def two_handles(path: Path) -> AsyncIterator[tuple[SqliteStore, SqliteStore]]:
    one, two = SqliteStore(path), SqliteStore(path, lock=False)
    await one.open()
    await two.open()
    try:
        yield one, two
    finally:
        await two.close()
        await one.close()


async def test_a_stale_worker_on_another_handle_writes_nothing(tmp_path: Path) -> None:
    async with two_handles(tmp_path / "milepost.db") as (new, stale):
        await stale.renew_lease(WorkerId("stale"), now_us=NOW_US, lease_s=10)
        (added,) = await stale.add_jobs([Submission(kind="work")], now_us=NOW_US)
        (old,) = await stale.claim_jobs("default", worker=WorkerId("stale"), now_us=NOW_US, limit=1)
        later_us = NOW_US + 11_000_000
        await new.renew_lease(WorkerId("new"), now_us=later_us, lease_s=10)
        assert [job.id for job in await new.rescue_expired(now_us=later_us, crashes_max=3, expires_us=later_us)] == [added.job.id]
        (claimed,) = await new.claim_jobs("default", worker=WorkerId("new"), now_us=later_us, limit=1)

        assert not await stale.report_progress(old.claim, Progress(1), now_us=later_us)
        assert not await stale.finish_job(old.claim, Succeeded(b"1"), now_us=later_us)
        assert await new.finish_job(claimed.claim, Succeeded(b"2"), now_us=later_us)
        assert not await stale.finish_job(old.claim, Succeeded(b"1"), now_us=later_us)
        assert not await new.finish_job(claimed.claim, Succeeded(b"3"), now_us=later_us)
        assert (await new.get_job(added.job.id)).result == b"2"  # type: ignore[union-attr]


async def test_a_renewal_after_the_store_was_closed_is_refused(tmp_path: Path) -> None:
    """Its caller may be cancelled while it runs in its thread; on a closed connection it would crash the process."""
    store = SqliteStore(tmp_path / "milepost.db")
    await store.open()
    renewing = asyncio.ensure_future(store.renew_lease(WorkerId("w"), now_us=NOW_US, lease_s=1))
    await asyncio.sleep(0)
    renewing.cancel()
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.renew_lease(WorkerId("w"), now_us=SystemClock().now_us(), lease_s=1)


@pytest.mark.parametrize("kind", ["work", "threaded"])
async def test_a_process_that_was_frozen_longer_than_its_lease_goes_on_with_its_jobs(kind: str, house: House) -> None:
    """Nobody else took them meanwhile: they are still its own, and must not be begun a second time beside themselves."""
    server = house.start(lease_s=0.6, heartbeat_s=0.1, rescue_every_s=0.05)
    async with traffic(house, server) as calls:
        ids = [await calls.submit(kind, {"steps": 40, "step_s": 0.05}) for _ in range(4)]
        until(lambda: sum(house.runs().values()) == 4, what="all run")
        for _ in range(2):
            server.signal(signal.SIGSTOP)
            await asyncio.sleep(1.0)  # longer than the lease: the freeze is the test's subject
            server.signal(signal.SIGCONT)
            await asyncio.sleep(0.2)
    house.wait_all()
    assert server.stop() == 0
    house.check()
    assert house.runs() == dict.fromkeys(ids, 1)
    assert house.ask("SELECT COUNT(*) FROM event WHERE type = 'rescued'") == [(0,)]


# --- poison, and work that takes its process down -----------------------------------------------------------------------


async def test_a_job_that_kills_its_worker_each_time_is_failed_as_poison_and_others_go_on(house: House) -> None:
    server = house.start(crashes_max=3)
    async with traffic(house, server) as calls:
        before = [await calls.submit("work", held=True) for _ in range(3)]
        poison = await calls.submit("poison", held=True)
        await calls.post(f"/jobs/{poison}/release", {})  # it may be dead before it answers
    for death in range(3):
        until(lambda: house.servers[-1].dead, what=f"death {death}")
        house.die(server)
        server = house.start(crashes_max=3)
    async with traffic(house, server) as calls:
        after = [await calls.submit("work") for _ in range(3)]
        await calls.settle()
    house.wait_all()
    assert server.stop() == 0
    house.check()
    (row,) = house.ask("SELECT state, crashes, json_extract(error, '$.code') FROM job WHERE id = ?", poison)
    assert row[0] == "failed"
    assert row[2] == "poison"
    assert house.runs()[poison] == 3
    states = dict(house.ask("SELECT id, state FROM job WHERE kind = 'work'"))
    assert states == dict.fromkeys([*before, *after], "succeeded")


async def test_an_isolated_function_that_takes_too_much_fails_its_job_and_not_the_worker(house: House) -> None:
    server = house.start()
    async with traffic(house, server) as calls:
        whats = ("kill", "memory", "cpu", "file", "fine")
        ids = {what: await calls.submit("greedy", {"what": what}) for what in whats}
        await calls.mix(1)
        await calls.settle()
        house.wait_all()
    assert not server.dead
    assert server.stop() == 0
    house.check()
    rows = house.ask("SELECT id, state, attempt, json_extract(error, '$.code') FROM job WHERE kind = 'greedy'")
    found = {row[0]: row[1:] for row in rows}
    assert found[ids["kill"]] == ("failed", 2, "worker_process_died")
    assert found[ids["memory"]][:2] == ("failed", 2)
    assert found[ids["memory"]][2] in ("out_of_memory", "worker_process_died")
    assert found[ids["cpu"]] == ("failed", 2, "limit_exceeded")
    assert found[ids["file"]][:2] == ("failed", 2)
    assert found[ids["fine"]] == ("succeeded", 1, None)


async def test_an_isolated_function_dies_with_its_server_and_is_run_again(house: House) -> None:
    server = house.start()
    async with traffic(house, server) as calls:
        job_id = await calls.submit("greedy", {"what": "wait"})
        until(lambda: house.runs()[job_id] == 1, what="it runs")
        children = children_of(server.process.pid)
        assert children
        house.die(server)
        until(lambda: all(map(is_gone, children)), what="it died too")
        server = house.start()
    async with traffic(house, server) as calls:
        until(lambda: house.runs()[job_id] == 2, what="it runs again")
        children = children_of(server.process.pid)
        started_s = time.monotonic()
        await calls.post(f"/jobs/{job_id}/cancel")
        house.wait_all()
        assert time.monotonic() - started_s < 50  # its function would have waited for a minute
    until(lambda: all(map(is_gone, children)), what="it was killed")
    assert server.stop() == 0
    house.check()


async def test_a_program_does_not_begin_when_its_server_died_before_it_could_ask_to_die_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel sends the signal of a parent's death only to who asked before."""
    told = ["/bin/sh", "-c", f"touch {tmp_path}/begun"]
    monkeypatch.setattr("os.getpid", lambda: 1)  # as the program sees it whose parent is another one than it was started by
    assert (await run_process(told, limits=Limits())).code == 126
    assert not (tmp_path / "begun").exists()
    monkeypatch.undo()
    assert (await run_process(told, limits=Limits())).code == 0
    assert (tmp_path / "begun").exists()


# --- SIGTERM -----------------------------------------------------------------------------------------------------------


async def test_a_stop_lets_jobs_end_and_gives_the_rest_back_uncounted(house: House) -> None:
    server = house.start(stop_grace_s=1.0)
    gate = house.folder / "gate"
    async with traffic(house, server) as calls:
        soon = await calls.submit("work", {"steps": 10, "step_s": 0.05})
        never = [await calls.submit("work", {"until": str(gate)}) for _ in range(3)]
        until(lambda: sum(house.runs().values()) == 4, what="all run")
        assert server.stop() == 0
    rows = {row[0]: row[1:] for row in house.ask("SELECT id, state, attempt, crashes FROM job")}
    assert rows[soon][0] == "succeeded"
    assert [rows[job_id] for job_id in never] == [("ready", 0, 0)] * 3
    assert house.ask("SELECT COUNT(*) FROM worker") == [(0,)]
    gate.touch()
    server = house.start()
    house.wait_all()
    assert server.stop() == 0
    house.check()
    assert house.ask("SELECT DISTINCT state, attempt FROM job") == [("succeeded", 1)]
    assert house.runs()[soon] == 1


# --- the checks themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM job WHERE id = (SELECT MIN(id) FROM job)",
        "UPDATE job SET state = 'ready', ended_us = NULL WHERE id = (SELECT MIN(id) FROM job)",
        "UPDATE job SET result = '7' WHERE id = (SELECT MIN(id) FROM job)",
        "UPDATE event SET state = 'failed' WHERE seq = 2",
        "DELETE FROM event WHERE seq = 2",
        "UPDATE job SET fence = fence + 1",
        "INSERT INTO event (job_id, seq, type, state, at_us) SELECT id, version + 1, 'progress', 'running', 1 FROM job;"
        "UPDATE job SET version = version + 1",
    ],
)
async def test_the_checks_find_damage(damage: str, house: House) -> None:
    store = SqliteStore(house.data / "milepost.db")
    await store.open()
    await store.renew_lease(WorkerId("w"), now_us=NOW_US, lease_s=10)
    added = await store.add_jobs([Submission(kind="work") for _ in range(3)], now_us=NOW_US)
    for one in await store.claim_jobs("default", worker=WorkerId("w"), now_us=NOW_US, limit=3):
        assert await store.finish_job(one.claim, Succeeded(b"1"), now_us=NOW_US)
    await store.close()
    house.acknowledged = [one.job.id for one in added]
    house.acknowledged_file.write_text("\n".join(house.acknowledged))
    house.snapshots.append(house.look())
    house.check()
    with contextlib.closing(sqlite3.connect(house.data / "milepost.db")) as database:
        database.executescript(damage)
    with pytest.raises(AssertionError):
        house.check()
