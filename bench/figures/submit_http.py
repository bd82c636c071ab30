"""No-op jobs end to end over HTTP: 32 connections that each submit one job at a time, from another process."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from bench.figure import Figure, Row, Unmeasurable
from bench.figures.throughput import beside_sketch
from bench.room import Room, ask, poll


def _measure(room: Room) -> dict[str, float]:
    with room.serving(room.folder / "data", queue_limit=500) as server:
        room.run("load", "submit", server.url, "--count", 320)  # connections, caches
        poll(lambda: _idle(server.url), every_s=0.01, limit_s=30, what="the first jobs ended")
        sent = room.run("load", "submit", server.url, "--count", room.some(12800, 1600))
        poll(lambda: _idle(server.url), every_s=0.01, limit_s=60, what="all jobs ended")
        count, ended_us = _ended(room.folder / "data" / "milepost.db", sent["began_s"])
    if count != sent["count"]:
        raise Unmeasurable(f"{sent['count']} jobs were accepted and {count} succeeded")
    end_to_end_s = max(ended_us / 1e6 - sent["began_s"], sent["wall_s"])
    return {"over HTTP, singly": count / end_to_end_s}


def _idle(url: str) -> bool:
    queues = ask("GET", f"{url}/queues")["queues"]
    return not any(queue["jobs"]["ready"] or queue["jobs"]["running"] for queue in queues)


def _ended(path: Path, since_s: float) -> tuple[int, int]:
    """How many jobs of the load succeeded, and when the last one did."""
    with closing(sqlite3.connect(path)) as connection:
        sql = "SELECT COUNT(*), MAX(ended_us) FROM job WHERE state = 'succeeded' AND created_us >= ?"
        count, ended_us = connection.execute(sql, (int(since_s * 1e6),)).fetchone()
    return count, ended_us or 0


FIGURE = Figure(
    "throughput-http",
    "no-op jobs end to end, POST /jobs from 32 connections of another process",
    (Row("over HTTP, singly", "jobs/s", 3500, beside="sketch beside HTTP"), Row("sketch beside HTTP", "jobs/s")),
    beside_sketch("sketch beside HTTP", _measure),
)
