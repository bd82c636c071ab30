"""How others wait, and how Milepost does: the same jobs, at the same time, at one rehearsal in real time, over real sockets.

Each way of waiting is a process of its own, and all begin when the jobs do.  Lag is from the instant that the job's record says
to the one at which the waiting program had the final state in its hands.  Requests are counted by the rehearsal.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.comparing import LOOPS, WIRES
from bench.figure import Figure, Row, Unmeasurable
from bench.machine import percentile
from bench.room import Program, Room, ask, poll
from milepost.wire import from_rfc3339

SCENARIO = '[rehearsal]\nwires = ["native", "glance"]\n'
LONGEST_S = 75.0
# kind, jobs, median s, spread (sigma of the logarithm): seconds to about a minute
KINDS = (("thumbnail", 24, 4.0, 0.5), ("snapshot", 24, 14.0, 0.4), ("image", 12, 35.0, 0.35))
# what tells a way's requests from the others': the wire, and how the user agent begins
AGENTS = {
    "wait_for_task": ("glance", "openstacksdk"),
    "tasks.get": ("glance", "python-glanceclient"),
    "every 5 s": ("glance", "every-5-s"),
    "Milepost, Glance": ("glance", "milepost"),
    "Milepost, native": ("native", "milepost"),
}
PROBES = ("probe", "list", "events")


def _measure(room: Room) -> dict[str, float]:
    path = room.folder / "scenario.toml"
    path.write_text(SCENARIO, encoding="utf-8")
    ways = [*LOOPS, *WIRES]
    with room.rehearsing(path) as server, ThreadPoolExecutor(len(ways)) as threads:
        running = {way: threads.submit(room.run, "comparing", way, server.url, room.folder) for way in ways}
        poll(
            lambda: all((room.folder / f"ready-{way}").exists() for way in ways) or any(one.done() for one in running.values()),
            every_s=0.05,
            limit_s=60.0,
            what="all ways of waiting are ready",
        )
        ids = _begin(server, room.folder, LONGEST_S if not room.quick else 10.0)
        known = {way: one.result() for way, one in running.items()}
        ended = {
            job["id"]: (from_rfc3339(job["ended_at"]) or 0) / 1e6 for job in ask("GET", f"{server.url}/jobs?limit=1000")["jobs"]
        }
        asked = ask("GET", f"{server.url}/rehearsal")["requests"]
    return {name: value for way in ways for name, value in _of(way, known[way], ended, asked, ids).items()}


def _begin(server: Program, folder: Path, longest_s: float) -> list[str]:
    """Make the jobs, and say which they are."""
    ids: list[str] = []
    for kind, count, median_s, sigma in KINDS:
        spread = {"distribution": "lognormal", "median_s": median_s, "sigma": sigma, "max_s": longest_s}
        entry = {"kind": kind, "name": kind, "count": count, "fails": 1, "duration_s": spread}
        ids += [job["id"] for job in ask("POST", f"{server.url}/rehearsal/jobs", entry)["jobs"]]
    (folder / "ids.new").write_text("\n".join(ids), encoding="utf-8")
    (folder / "ids.new").rename(folder / "ids")
    return ids


def _of(way: str, known: dict[str, float], ended: dict[str, float], asked: Any, ids: list[str]) -> dict[str, float]:
    if set(known) != set(ids):
        raise Unmeasurable(f"{way} knows of {len(known)} of {len(ids)} jobs")
    wire, agent = AGENTS[way]
    probes = sum(
        row["count"]
        for row in asked
        if (row["wire"], row["action"]) in {(wire, one) for one in PROBES} and agent in row["client"]
    )
    lags_s = [known[job_id] - ended[job_id] for job_id in ids]
    return {
        f"{way}: probes a job": probes / len(ids),
        f"{way}: lag, p50": statistics.median(lags_s),
        f"{way}: lag, p99": percentile(lags_s, 99),
    }


FIGURE = Figure(
    "sdk-waits",
    "the waits of openstacksdk, of loops that sleep, and of Milepost, side by side for the same jobs",
    tuple(
        row
        for way in (*LOOPS, *WIRES)
        for row in (Row(f"{way}: probes a job", "probes"), Row(f"{way}: lag, p50", "s"), Row(f"{way}: lag, p99", "s"))
    ),
    _measure,
    rounds_max=1,
)
