"""100,000 waits at once in one process, against `milepost rehearse`: with a stream of events, and with lists of what changed.

Rules: the rehearsal is a program of its own, so what is measured is the waiting process alone.  Jobs begin to end when all of
them are waited for.
"""

from __future__ import annotations

from bench.figure import Figure, Row
from bench.room import Room, ask
from bench.waiting import scenario

BYTES_A_JOB = 2048
# name, wire, seconds in which the jobs end: without a stream each end is a request of its own, which the rehearsal has to answer
WAYS = (("native, stream", "native", 60.0), ("Glance, lists", "glance", 150.0))


def _measure(room: Room) -> dict[str, float]:
    jobs = room.some(100_000, 5_000)
    found: dict[str, float] = {}
    for name, wire, within_s in WAYS:
        first_s, within_s = (60.0, within_s) if not room.quick else (15.0, 10.0)
        path = room.folder / f"{wire}.toml"
        path.write_text(scenario(jobs, first_s, first_s + within_s), encoding="utf-8")
        with room.rehearsing(path) as server:
            listed = room.run("waiting", "ids", server.url, room.folder / "ids")["jobs"]
            before = _requests(server.url)
            seen = room.run("waiting", "wait", server.url, wire, room.folder / "ids")
            requests = _requests(server.url) - before
        found |= {
            f"{name}: memory a waiting job": seen["bytes_a_job"],
            f"{name}: CPU a job": 1e6 * seen["cpu_s"] / jobs,
            f"{name}: requests a job": requests / jobs,
            f"{name}: requests a second": requests / seen["took_s"],
            f"{name}: lag, p50": seen["lag_p50_s"],
            f"{name}: lag, p99": seen["lag_p99_s"],
            f"{name}: not or wrongly ended": jobs - listed + jobs - seen["ended"] + seen["wrong"],
        }
    return found


def _requests(url: str) -> int:
    """That the rehearsal was asked so far, but for those that read which jobs there are."""
    rows = ask("GET", f"{url}/rehearsal")["requests"]
    return sum(row["count"] for row in rows if row["wire"] != "rehearsal")


FIGURE = Figure(
    "many-waits",
    "100,000 jobs of a rehearsal waited for at once in one process",
    tuple(
        row
        for name, _, _ in WAYS
        for row in (
            Row(f"{name}: memory a waiting job", "B", BYTES_A_JOB, "less"),
            Row(f"{name}: CPU a job", "µs"),
            Row(f"{name}: requests a job", "requests"),
            Row(f"{name}: requests a second", "requests/s"),
            Row(f"{name}: lag, p50", "s"),
            Row(f"{name}: lag, p99", "s"),
            Row(f"{name}: not or wrongly ended", "jobs", 0, "less"),
        )
    ),
    _measure,
    rounds_max=1,
)
