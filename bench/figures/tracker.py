"""10,000 jobs of one Milepost, followed by a second one that is killed and started again at random.

What the following server asks is counted at the followed one, which is never killed.  What arrived is read from the two databases
when all is over: each final state once, the same as over there, at the end of a history without gaps.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
import time
import urllib.request
from bisect import bisect_left
from pathlib import Path
from typing import NamedTuple

from bench.figure import Figure, Row
from bench.machine import percentile
from bench.room import Room, poll

RATE_PER_S = 60  # requests that the followed server is sent at most; at once a second's worth
KILLS = 5
FOLLOWED: dict[str, str | int | float] = {"queue_limit": 20_000, "log_level": "error"}
FOLLOWING: dict[str, str | int | float] = {
    "track_rate_per_s": RATE_PER_S,
    "track_first_s": 1.0,
    "track_cap_s": 10.0,
    "egress_private": "true",
    "log_level": "error",
}
NAP_S = (2.0, 30.0)  # shortest and longest of the jobs
FINAL = "('succeeded', 'failed', 'cancelled')"


class Watch:
    """Requests that a server was sent, by the instant: read from its metrics ten times a second."""

    def __init__(self, url: str) -> None:
        self._url, self._over = url, threading.Event()
        self.samples: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.1):
            self.samples.append((time.monotonic(), _asks(self._url)))

    def asked(self, from_s: float, until_s: float) -> float:
        """Requests between these instants."""
        times = [at_s for at_s, _ in self.samples]
        first, last = bisect_left(times, from_s), min(bisect_left(times, until_s), len(times) - 1)
        return self.samples[last][1] - self.samples[min(first, last)][1]

    def busiest(self, from_s: float, until_s: float) -> float:
        """Requests in the busiest second between these instants."""
        starts = [at_s for at_s, _ in self.samples if from_s <= at_s <= until_s]
        return max((self.asked(at_s, at_s + 1.0) for at_s in starts), default=0.0)


def _asks(url: str) -> float:
    """Questions about jobs that the server was asked so far: all its GETs of jobs."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("milepost_http_requests_total{") and 'method="GET"' in line and 'route="/jobs' in line
    )


class Life(NamedTuple):
    """One run of the following server, from when it was ready."""

    begun_s: float
    ended_s: float


def _measure(room: Room) -> dict[str, float]:
    jobs, dice = room.some(10_000, 1_000), random.Random(5)
    cloud_data, home_data, ids = room.folder / "cloud", room.folder / "home", room.folder / "ids"
    with room.serving(cloud_data, **FOLLOWED) as cloud:
        with Watch(cloud.url) as watch:
            lives = []
            for number in range(KILLS + 1):
                with room.serving(home_data, **FOLLOWING) as home:
                    begun_s = time.monotonic()
                    if number < KILLS:
                        room.run("tracking", "naps", cloud.url, ids, jobs // KILLS, *NAP_S)
                        room.run("tracking", "track", cloud.url, ids, home.url)
                        time.sleep(dice.uniform(0.0, 4.0))
                        os.kill(home.pid, signal.SIGKILL)
                    else:
                        poll(lambda: _left(home_data) == 0, every_s=0.5, limit_s=300.0, what="all tracked jobs have ended")
                lives.append(Life(begun_s, time.monotonic()))
        requests = watch.samples[-1][1]
        busiest = max(watch.busiest(life.begun_s, life.ended_s) for life in lives[1:])
    return {
        **_arrived(cloud_data, home_data, jobs),
        "requests a tracked job": requests / jobs,
        "busiest second after the restarts": busiest,
    }


def _rows(data: Path, sql: str) -> list[tuple[str, ...]]:
    database = sqlite3.connect(f"file:{data / 'milepost.db'}?mode=ro", uri=True, timeout=10)
    try:
        return database.execute(sql).fetchall()
    finally:
        database.close()


def _left(data: Path) -> int:
    return int(_rows(data, "SELECT COUNT(*) FROM job WHERE kind = 'track' AND ended_us IS NULL")[0][0])


def _arrived(cloud: Path, home: Path, jobs: int) -> dict[str, float]:
    there = {row[0]: row[1:] for row in _rows(cloud, "SELECT id, state, ended_us FROM job")}
    here = _rows(home, "SELECT json_extract(input, '$.handle.id'), state, ended_us FROM job WHERE kind = 'track'")
    right = {row[0] for row in here if row[0] in there and there[row[0]][0] == row[1]}
    ends = _rows(home, f"SELECT job_id, COUNT(*) FROM event WHERE state IN {FINAL} GROUP BY job_id HAVING COUNT(*) > 1")
    gaps = _rows(home, "SELECT job_id FROM event GROUP BY job_id HAVING MAX(seq) <> COUNT(*) OR MIN(seq) <> 1")
    last = _rows(
        home,
        f"""SELECT e.job_id FROM event e WHERE e.state IN {FINAL}
            AND EXISTS (SELECT 1 FROM event later WHERE later.job_id = e.job_id AND later.seq > e.seq)""",
    )
    lags_s = [(int(row[2]) - int(there[row[0]][1])) / 1e6 for row in here if row[0] in right]
    return {
        "tracked jobs not or wrongly ended": jobs - len(right) + len(here) - len({row[0] for row in here}),
        "ends told twice, or out of order": len(ends) + len(gaps) + len(last),
        "end known here after it happened, p50": percentile(lags_s, 50),
        "end known here after it happened, p99": percentile(lags_s, 99),
    }


FIGURE = Figure(
    "tracker",
    f"10,000 jobs followed by a second server that is killed {KILLS} times",
    (
        Row("tracked jobs not or wrongly ended", "jobs", 0, "less"),
        Row("ends told twice, or out of order", "jobs", 0, "less"),
        Row("busiest second after the restarts", "requests", 2 * RATE_PER_S, "less"),
        Row("requests a tracked job", "requests"),
        Row("end known here after it happened, p50", "s"),
        Row("end known here after it happened, p99", "s"),
    ),
    _measure,
    rounds_max=1,
)
