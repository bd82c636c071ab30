"""A real server process that can be killed, and what must hold in its database afterwards.

`House` is a data folder with everything that the test knows of it from outside: the ids that were acknowledged, which jobs
were final at each kill, and how often each function was run.  `House.check` reads the SQLite file, never the server.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from launcher import Forked, Launcher
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import PyreqwestError

from milepost.job import FINAL, MOVES, State

KINDS = Path(__file__).with_name("fault_kinds.py")
DEADLINE_S = 60.0
FINAL_WORDS = tuple(str(state) for state in FINAL)

FINE = "ok"
# SQLite 3.40 takes a column of a table WITHOUT ROWID for another one when the primary key has them in another order.
MISTAKEN = "NULL value in job_label.project"

FAST = {
    "claim_poll_s": 0.5,
    "progress_every_s": 0,
    "backoff_s": 0.02,
    "callback_backoff_s": 0.05,
    "callback_backoff_s_max": 0.2,
    "callback_timeout_s": 1,
    "crashes_max": 1000,
    "stop_grace_s": 0.2,
    "prune_every_s": 0.2,
    "log_level": "warning",
}


def until(true: Callable[[], Any], *, what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Poll until it is true."""
    end_s = time.monotonic() + deadline_s
    while not (found := true()):
        assert time.monotonic() < end_s, f"not in {deadline_s:g} s: {what}"
        time.sleep(0.01)
    return found


_launcher: list[Launcher] = []


def launcher() -> Launcher:
    """One for the whole run of the tests."""
    if not _launcher:
        _launcher.append(Launcher())
        atexit.register(_launcher[0].close)
    return _launcher[0]


class Server:
    """One run of `milepost serve` as a process of its own."""

    def __init__(self, house: House, fault: str | None, **settings: Any) -> None:
        self.house = house
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MILEPOST_")}
        for name, value in {**FAST, **house.settings, **settings, "data": house.data}.items():
            environment[f"MILEPOST_{name.upper()}"] = str(value)
        if fault is not None:
            environment["MILEPOST_FAULT"] = fault
        number = len(house.servers)
        self.out, self.log = house.folder / f"server-{number}.out", house.folder / f"server-{number}.log"
        self.process = Forked(
            launcher(),
            ["serve", str(KINDS), "--port", str(settings.get("port", 0))],
            environment=environment,
            cwd=house.folder,
            out=self.out,
            log=self.log,
        )
        house.servers.append(self)
        self.url = self._ready()

    def _ready(self) -> str:
        """The URL; the empty string when it died before it was ready."""

        def line() -> str:
            said = self.out.read_text() if self.out.exists() else ""
            return said if said.endswith("\n") or self.dead else ""

        until(lambda: line() or self.dead, what="ready")
        return line().removeprefix("ready ").strip()

    def said(self) -> str:
        return self.log.read_text()[-4000:]

    @property
    def dead(self) -> bool:
        return self.process.poll() is not None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.ended()

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> int:
        return self.process.wait(DEADLINE_S)


class Snapshot:
    """What was final, and how often it had been run, when a server died."""

    def __init__(self, rows: dict[str, tuple[Any, ...]], events: dict[str, list[tuple[Any, ...]]], runs: Counter[str]) -> None:
        self.rows, self.events, self.runs = rows, events, runs


class House:
    """A data folder, its servers one after another, and what was promised to the test."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.settings = folder, settings
        folder.mkdir(parents=True, exist_ok=True)
        self.data = folder / "data"
        self.runs_file = folder / "runs"
        self.runs_file.touch()
        self.servers: list[Server] = []
        self.acknowledged: list[str] = []
        self.acknowledged_file = folder / "acknowledged"
        self.keys: dict[str, str] = {}  # idempotency key: the id that was answered
        self.snapshots: list[Snapshot] = []
        self.counted: Counter[str] = Counter()

    # --- servers -------------------------------------------------------------------------------------------------------

    def start(self, fault: str | None = None, **settings: Any) -> Server:
        return Server(self, fault, **settings)

    def die(self, server: Server, *, why: int = -signal.SIGKILL) -> None:
        """The server has died by itself, or is killed now; remember what was final."""
        if not server.dead:
            server.kill()
        assert server.ended() == why, server.said()
        self.counted["kills"] += 1
        self.snapshots.append(self.look())

    def close(self) -> None:
        for server in self.servers:
            if not server.dead:
                server.kill()

    # --- the database ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """A reader beside a running server, or of a copy where none runs: opening the file would repair what a crash left."""
        alive = any(not server.dead for server in self.servers)
        copy = self.folder / "copy"
        if not alive:
            shutil.rmtree(copy, ignore_errors=True)
            copy.mkdir()
            for name in ("milepost.db", "milepost.db-wal"):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(self.data / name, copy / name)
        path = self.data / "milepost.db" if alive else copy / "milepost.db"
        connection = sqlite3.connect(path, isolation_level=None, timeout=5)
        connection.execute("PRAGMA query_only = 1")
        try:
            yield connection
        finally:
            connection.close()

    def ask(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        with self.database() as database:
            return database.execute(sql, params).fetchall()

    def look(self) -> Snapshot:
        runs = self.runs()
        with self.database() as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'job'").fetchall():
                return Snapshot({}, {}, runs)
            rows = {row[0]: row for row in database.execute("SELECT * FROM job WHERE ended_us IS NOT NULL")}
            events: dict[str, list[tuple[Any, ...]]] = {}
            for row in database.execute("SELECT * FROM event ORDER BY job_id, seq"):
                if row[1] in rows:
                    events.setdefault(row[1], []).append(row)
        return Snapshot(rows, events, runs)

    def runs(self) -> Counter[str]:
        """How often each job's function was begun."""
        lines = self.runs_file.read_text().splitlines()
        return Counter(line.removeprefix("begin ") for line in lines if line.startswith("begin "))

    def wait_all(self, *, but: str = "", deadline_s: float = DEADLINE_S) -> None:
        """Every job is final, but those of the kind `but`."""

        def open_jobs() -> int:
            found: int = self.ask("SELECT COUNT(*) FROM job WHERE ended_us IS NULL AND kind <> ?", but)[0][0]
            return found

        end_s = time.monotonic() + deadline_s
        while open_jobs():
            assert not self.servers[-1].dead, self.servers[-1].said()
            if time.monotonic() > end_s:
                left = self.ask("SELECT id, kind, state, due, attempt, crashes, lease_by FROM job WHERE ended_us IS NULL LIMIT 5")
                raise AssertionError(f"not final in {deadline_s:g} s: {left}; {self.servers[-1].said()}")
            time.sleep(0.02)

    # --- what must hold --------------------------------------------------------------------------------------------

    def check(self) -> Counter[str]:
        """Nothing acknowledged is lost, nothing stale was written, nothing final has changed.  Returns the numbers."""
        with self.database() as database:
            database.row_factory = sqlite3.Row
            assert [said for (said,) in database.execute("PRAGMA integrity_check") if said not in (FINE, MISTAKEN)] == []
            assert database.execute("SELECT COUNT(*) FROM job_label WHERE project IS NULL").fetchone()[0] == 0
            jobs = {row["id"]: row for row in database.execute("SELECT * FROM job")}
            buried = {row["id"]: row["state"] for row in database.execute("SELECT id, state FROM tombstone")}
            events: dict[str, list[sqlite3.Row]] = {}
            for row in database.execute("SELECT * FROM event ORDER BY job_id, seq"):
                events.setdefault(row["job_id"], []).append(row)
        self._check_acknowledged(jobs, buried)
        for job_id, job in jobs.items():
            self._check_history(job, events.get(job_id, []))
        assert set(events) == set(jobs), "events without a job"
        self._check_trees(jobs)
        self._check_snapshots(jobs, buried, events)
        self._check_runs(jobs)
        counted = self.counted
        counted["acknowledged"], counted["jobs"], counted["events"] = (
            len(self.acknowledged),
            len(jobs),
            sum(map(len, events.values())),
        )
        print(f"\n{self.folder.name}: {dict(counted)}")
        bad = {
            name: counted[name] for name in ("lost", "not final", "stale writes", "finals changed", "run again") if counted[name]
        }
        assert not bad, bad
        return counted

    def _check_acknowledged(self, jobs: dict[str, sqlite3.Row], buried: dict[str, str]) -> None:
        kept = self.acknowledged_file.read_text().split() if self.acknowledged_file.exists() else []
        assert kept == self.acknowledged
        assert len(set(kept)) == len(set(kept) & (set(jobs) | set(buried))) + self._count(
            "lost", set(kept) - set(jobs) - set(buried)
        )
        self._count("not final", {job_id for job_id in kept if job_id in jobs and jobs[job_id]["state"] not in FINAL_WORDS})

    def _count(self, name: str, which: set[str]) -> int:
        if which:
            print(f"{name}: {sorted(which)[:5]}")
        self.counted[name] += len(which)
        return len(which)

    def _check_history(self, job: sqlite3.Row, events: list[sqlite3.Row]) -> None:
        """The events are a walk through the state machine that ends where the row is."""
        assert [event["seq"] for event in events] == list(range(1, job["version"] + 1)), f"gap in the events of {job['id']}"
        assert events[0]["type"] == "submitted"
        assert events[-1]["state"] == job["state"], dict(job)
        ids = [event["id"] for event in events]
        assert ids == sorted(ids)
        finals = [event for event in events if event["state"] in FINAL_WORDS]
        assert len(finals) <= 1, f"{job['id']} became final {len(finals)} times"
        # Each claim raises the fence by one and is one `started` event, so the fences grow along the history.
        assert job["fence"] == sum(event["type"] == "started" for event in events)
        state = State(events[0]["state"])
        for event in events[1:]:
            new = State(event["state"])
            same = event["type"] == "cancel_requested" or (event["type"] == "progress" and state is State.RUNNING)
            if not (new in MOVES[state] if new is not state else same):
                self._count("stale writes", {f"{job['id']} {state} -> {event['type']} {new}"})
            state = new

    def _check_trees(self, jobs: dict[str, sqlite3.Row]) -> None:
        subs: dict[str, list[int]] = {}
        for job in jobs.values():
            if job["parent_id"] is not None:
                assert job["parent_id"] in jobs, f"sub-job {job['id']} without its parent"
                subs.setdefault(job["parent_id"], []).append(job["position"])
        for job_id, job in jobs.items():
            assert sorted(subs.get(job_id, [])) == list(range(job["sub_total"])), f"sub-jobs of {job_id}"

    def _check_snapshots(
        self, jobs: dict[str, sqlite3.Row], buried: dict[str, str], events: dict[str, list[sqlite3.Row]]
    ) -> None:
        for snapshot in self.snapshots:
            for job_id, row in snapshot.rows.items():
                if job_id not in jobs:
                    assert job_id in buried, f"{job_id} was final and is gone without a tombstone"
                    changed = buried[job_id] not in row
                else:
                    changed = tuple(jobs[job_id]) != row or [tuple(one) for one in events[job_id]] != snapshot.events[job_id]
                if changed:
                    self._count("finals changed", {job_id})

    def _check_runs(self, jobs: dict[str, sqlite3.Row]) -> None:
        runs = self.runs()
        for snapshot in self.snapshots:
            self._count("run again", {job_id for job_id in snapshot.rows if runs[job_id] != snapshot.runs[job_id]})
        for job_id, count in runs.items():
            if job_id in jobs:
                assert count <= jobs[job_id]["fence"], f"{job_id} was run {count} times in {jobs[job_id]['fence']} claims"


def children_of(pid: int) -> list[int]:
    """Every process that this one started, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended while it was looked at
            for child in task.read_text().split():
                found += [int(child), *children_of(int(child))]
    return found


def is_gone(pid: int) -> bool:
    """Ended, whether or not its parent has taken notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# --- what a client does ------------------------------------------------------------------------------------------------


class Traffic:
    """Submits, cancels and releases over HTTP; writes down every id that was acknowledged, before it goes on."""

    def __init__(self, house: House, server: Server, http: Client) -> None:
        self.house, self.server, self.http = house, server, http

    async def post(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """The status and the answer; 0 when the server died on it."""
        try:
            request = self.http.post(self.server.url + path)
            for name, value in headers.items():
                request = request.header(name.replace("_", "-"), value)
            request = request.header("content-type", "application/json").body_bytes(json.dumps(body or {}).encode())
            answer = await request.build().send()
            return answer.status, await answer.json()
        except (PyreqwestError, ValueError):
            return 0, None

    async def submit(self, kind: str, input: Any = None, *, key: str | None = None, **fields: Any) -> str:
        """The acknowledged id, or nothing."""
        headers = {} if key is None else {"idempotency_key": key}
        body = {"kind": kind, "input": {"runs": str(self.house.runs_file), **(input or {})}, **fields}
        status, job = await self.post("/jobs", body, **headers)
        if status not in (200, 202):
            return ""
        if key is not None:
            assert self.house.keys.setdefault(key, job["id"]) == job["id"], "one key, two jobs"
        self.acknowledge([job["id"]])
        return str(job["id"])

    async def submit_many(self, bodies: list[dict[str, Any]]) -> list[str]:
        for body in bodies:
            body["input"] = {"runs": str(self.house.runs_file), **body.get("input", {})}
        status, page = await self.post("/jobs", bodies)
        ids = [job["id"] for job in page["jobs"]] if status == 202 else []
        self.acknowledge(ids)
        return ids

    def acknowledge(self, ids: list[str]) -> None:
        new = [job_id for job_id in ids if job_id not in self.house.acknowledged[-50:]]
        self.house.acknowledged += new
        with self.house.acknowledged_file.open("a") as file:
            file.writelines(f"{job_id}\n" for job_id in new)

    async def mix(self, number: int, callback: str | None = None) -> None:
        """A bit of everything the engine does."""
        back = {} if callback is None else {"callback": {"url": callback}}
        soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + 0.02)) + f".{random.randrange(1000):03d}Z"
        held = await self.submit("work", held=True)
        if not held:
            return
        waiting = await self.submit("work", {"until": "/nonexistent"})
        await asyncio.gather(
            self.submit("work", {"steps": 3, "step_s": 0.002}, **back),
            self.submit("work", key=f"key-{number}"),
            self.submit("work", {"fail_times": 1}),
            self.submit("threaded", {"steps": 2}),
            self.submit("tree", {"width": 2, "depth": 2}, **back),
            self.submit("work", run_at=soon),
            self.submit("work", held=True, deadline_s=0.03),
            self.submit("brief"),
            self.submit_many([{"kind": "work"} for _ in range(5)]),
            self.post(f"/jobs/{held}/release"),
            self.post(f"/jobs/{waiting}/cancel"),
        )

    async def settle(self) -> None:
        """What nobody released or cancelled before a crash is now, so that every job can become final."""
        for (job_id,) in self.house.ask("SELECT id FROM job WHERE state = 'held' AND deadline_us IS NULL"):
            await self.post(f"/jobs/{job_id}/release")
        for (job_id,) in self.house.ask("SELECT id FROM job WHERE ended_us IS NULL AND input LIKE '%nonexistent%'"):
            await self.post(f"/jobs/{job_id}/cancel")


@contextlib.asynccontextmanager
async def traffic(house: House, server: Server) -> AsyncIterator[Traffic]:
    async with ClientBuilder().http1_only().build() as http:
        yield Traffic(house, server, http)
