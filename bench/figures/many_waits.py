"""100,000 waits at once in one process: memory, CPU and requests, with a stream of events and with lists alone."""

from __future__ import annotations

from bench.figure import Figure, Row
from bench.room import Room, ask

WITHIN_S = 60
BYTES_A_JOB = 2048


def _measure(room: Room) -> dict[str, float]:
    jobs = room.some(100_000, 10_000)
    within_s = WITHIN_S if not room.quick else 10
    found: dict[str, float] = {}
    for name, way in (("stream", "stream"), ("lists", "list")):
        with room.program("waiting", "serve", str(jobs), str(within_s), way) as server:
            seen = room.run("waiting", "wait", server.url, jobs)
            asked = ask("GET", f"{server.url}/counts")
        found |= {
            f"{name}: memory a waiting job": seen["bytes_a_job"],
            f"{name}: CPU a job": 1e6 * seen["cpu_s"] / jobs,
            f"{name}: requests a job": sum(asked.values()) / jobs,
            f"{name}: requests a second": sum(asked.values()) / seen["took_s"],
            f"{name}: last one known, after its end": seen["took_s"] - within_s,
            f"{name}: not or wrongly ended": jobs - seen["ended"] + seen["wrong"],
        }
    return found


FIGURE = Figure(
    "many-waits",
    "100,000 jobs waited for at once in one process, while they end within a minute",
    tuple(
        row
        for name in ("stream", "lists")
        for row in (
            Row(f"{name}: memory a waiting job", "B", BYTES_A_JOB, "less"),
            Row(f"{name}: CPU a job", "µs"),
            Row(f"{name}: requests a job", "requests"),
            Row(f"{name}: requests a second", "requests/s"),
            Row(f"{name}: last one known, after its end", "s"),
            Row(f"{name}: not or wrongly ended", "jobs", 0, "less"),
        )
    ),
    _measure,
    rounds_max=1,
)
