"""No-op jobs end to end in one process: submitted, run, final state on disk, SQLite with `synchronous=FULL`.

The processor time of a job stands beside it: it says what the code costs where the disk or other programs set the pace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bench.figure import Figure, Row
from bench.room import Room


def beside_sketch(row: str, measure: Callable[[Room], Mapping[str, float]]) -> Callable[[Room], dict[str, float]]:
    """The same measure with the sketch of SQLite alone before it and after it, as `row`: the machine's speed in those minutes."""

    def both(room: Room) -> dict[str, float]:
        before, found, after = _sketch(room, "before"), measure(room), _sketch(room, "after")
        return {**found, row: (before + after) / 2}

    return both


def _sketch(room: Room, when: str) -> float:
    return float(room.run("sketch", "--data", room.folder / f"sketch-{when}", "--jobs", room.some(16000, 6400))["per_s"])


def _singly(room: Room) -> dict[str, float]:
    found = room.run("engine", "throughput", "--data", room.folder / "data", "--jobs", room.some(16000, 3200))
    return {"in process, singly": found["per_s"], "processor time of a job, singly": found["cpu_us"]}


def _batches(room: Room) -> dict[str, float]:
    jobs = room.some(32000, 8000)
    found = room.run("engine", "throughput", "--data", room.folder / "data", "--jobs", jobs, "--submitters", 4, "--batch", 500)
    return {"in process, batches of 500": found["per_s"], "processor time of a job, batches": found["cpu_us"]}


SINGLY = Figure(
    "throughput-singly",
    "no-op jobs end to end, 32 submitters that each wait for their submit",
    (
        Row("in process, singly", "jobs/s", 8000, beside="sketch beside singly"),
        Row("sketch beside singly", "jobs/s"),
        Row("processor time of a job, singly", "µs", None, "less"),
    ),
    beside_sketch("sketch beside singly", _singly),
)
BATCHES = Figure(
    "throughput-batches",
    "no-op jobs end to end, 4 submitters of batches of 500",
    (
        Row("in process, batches of 500", "jobs/s", 12000, beside="sketch beside batches"),
        Row("sketch beside batches", "jobs/s"),
        Row("processor time of a job, batches", "µs", None, "less"),
    ),
    beside_sketch("sketch beside batches", _batches),
)
