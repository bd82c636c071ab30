"""SQLite alone, as a measure of the minute: the least program that does to the database what a job needs, and nothing else.

One writer thread with group commit, UUIDv7 keys, fenced claims in batches, three writes of each job's row and an event row for
each of them, `synchronous=FULL`; 32 submitters that each wait for their submit.  No kinds, no inputs read, no projects, lists,
labels, retries, parents, callbacks, leases or errors.  Its rate says how fast this machine is now at what Milepost asks of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import queue
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import Any

import uvloop

from milepost.job import new_job_id

SUBMITTERS, CLAIM_MAX = 32, 500
SCHEMA = """
CREATE TABLE job (id TEXT PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, queue TEXT NOT NULL, priority INTEGER NOT NULL,
                  run_at_us INTEGER NOT NULL, lease_by TEXT, fence INTEGER NOT NULL DEFAULT 0, created_us INTEGER NOT NULL,
                  ended_us INTEGER, input TEXT NOT NULL, result TEXT) WITHOUT ROWID;
CREATE INDEX job_due ON job (queue, priority, run_at_us, id) WHERE state = 'ready';
CREATE TABLE event (id INTEGER PRIMARY KEY, job_id TEXT NOT NULL, seq INTEGER NOT NULL, type TEXT NOT NULL,
                    at_us INTEGER NOT NULL);
CREATE UNIQUE INDEX event_job ON event (job_id, seq);
"""
ADD = """
INSERT INTO job (id, kind, state, queue, priority, run_at_us, created_us, input)
VALUES (?1, 'noop', 'ready', 'q', 5, ?2, ?2, '{}')
"""
FIND = "SELECT id, fence FROM job WHERE queue = 'q' AND state = 'ready' ORDER BY priority, run_at_us, id LIMIT ?"
CLAIM = "UPDATE job SET state = 'running', lease_by = 'w', fence = fence + 1 WHERE id = ? AND state = 'ready'"
FINISH = """
UPDATE job SET state = 'succeeded', lease_by = NULL, ended_us = ?3, result = 'null'
 WHERE id = ?1 AND state = 'running' AND fence = ?2
"""
EVENT = "INSERT INTO event (job_id, seq, type, at_us) VALUES (?, ?, ?, ?)"


class Sketch:
    """The writer's thread takes the operations that have gathered, commits them, and tells the loop."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asked: queue.SimpleQueue[tuple[str, Any, asyncio.Future[Any]]] = queue.SimpleQueue()
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 4000", "mmap_size = 268435456"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(SCHEMA)
        self._next_event_id = 1
        threading.Thread(target=self._write, daemon=True).start()

    def ask(self, what: str, given: Any = None) -> asyncio.Future[Any]:
        told: asyncio.Future[Any] = self._loop.create_future()
        self._asked.put((what, given, told))
        return told

    def _write(self) -> None:
        while True:
            batch = [self._asked.get()]
            while not self._asked.empty():
                batch.append(self._asked.get())
            self._connection.execute("BEGIN IMMEDIATE")
            now_us = time.time_ns() // 1000
            events: list[tuple[str, int, str, int]] = []
            answers = [(told, getattr(self, "_" + what)(given, now_us, events)) for what, given, told in batch]
            self._connection.executemany(EVENT, events)
            self._connection.execute("COMMIT")
            self._loop.call_soon_threadsafe(self._tell, answers)

    @staticmethod
    def _tell(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
        for told, answer in answers:
            told.set_result(answer)

    def _add(self, job_id: str, now_us: int, events: list[tuple[str, int, str, int]]) -> None:
        self._connection.execute(ADD, (job_id, now_us))
        events.append((job_id, 1, "submitted", now_us))

    def _claim(self, limit: int, now_us: int, events: list[tuple[str, int, str, int]]) -> list[tuple[str, int]]:
        found = self._connection.execute(FIND, (limit,)).fetchall()
        self._connection.executemany(CLAIM, [(job_id,) for job_id, _ in found])
        events += [(job_id, 2, "started", now_us) for job_id, _ in found]
        return [(job_id, fence + 1) for job_id, fence in found]

    def _finish(self, claim: tuple[str, int], now_us: int, events: list[tuple[str, int, str, int]]) -> bool:
        held = self._connection.execute(FINISH, (*claim, now_us)).rowcount == 1
        if held:
            events.append((claim[0], 3, "succeeded", now_us))
        return held


async def _measure(path: Path, jobs: int) -> dict[str, float]:
    share, ended, hinted = jobs // SUBMITTERS, 0, asyncio.Event()
    sketch = Sketch(path, asyncio.get_running_loop())

    async def submit() -> None:
        for _ in range(share):
            await sketch.ask("add", new_job_id())
            hinted.set()

    async def work(claim: tuple[str, int]) -> None:
        nonlocal ended
        held = await sketch.ask("finish", claim)
        ended += held

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            begun = 0
            while begun < share * SUBMITTERS:
                await hinted.wait()
                hinted.clear()
                claims = await sketch.ask("claim", CLAIM_MAX)
                begun += len(claims)
                for claim in claims:
                    tasks.create_task(work(claim))

    started_s, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(run(), *(submit() for _ in range(SUBMITTERS)))
    if ended != share * SUBMITTERS:
        raise RuntimeError(f"{ended} of {share * SUBMITTERS} jobs ended")
    return {"per_s": ended / (time.perf_counter() - started_s), "cpu_us": 1e6 * (time.process_time() - cpu_s) / ended}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--jobs", type=int, default=16000)
    args = parser.parse_args()
    folder = Path(args.data)
    folder.mkdir(parents=True, exist_ok=True)
    sys.setswitchinterval(0.0001)  # as in a server
    json.dump(uvloop.run(_measure(folder / "sketch.db", args.jobs)), sys.stdout)
    print()


if __name__ == "__main__":
    main()
