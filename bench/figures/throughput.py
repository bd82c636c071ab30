"""No-op jobs end to end in one process: submitted, run, final state on disk, SQLite with `synchronous=FULL`.

The processor time of a job stands beside it: it says what the code costs where the disk or other programs set the pace.
"""

from __future__ import annotations

from bench.figure import Figure, Row
from bench.room import Room


def _singly(room: Room) -> dict[str, float]:
    found = room.run("engine", "throughput", "--data", room.folder, "--jobs", room.some(16000, 3200))
    return {"in process, singly": found["per_s"], "processor time of a job, singly": found["cpu_us"]}


def _batches(room: Room) -> dict[str, float]:
    jobs = room.some(32000, 8000)
    found = room.run("engine", "throughput", "--data", room.folder, "--jobs", jobs, "--submitters", 4, "--batch", 500)
    return {"in process, batches of 500": found["per_s"], "processor time of a job, batches": found["cpu_us"]}


SINGLY = Figure(
    "throughput-singly",
    "no-op jobs end to end, 32 submitters that each wait for their submit",
    (Row("in process, singly", "jobs/s", 8000), Row("processor time of a job, singly", "µs", None, "less")),
    _singly,
)
BATCHES = Figure(
    "throughput-batches",
    "no-op jobs end to end, 4 submitters of batches of 500",
    (Row("in process, batches of 500", "jobs/s", 12000), Row("processor time of a job, batches", "µs", None, "less")),
    _batches,
)
