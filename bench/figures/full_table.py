"""Whether a table full of finished jobs makes new ones slower: the same throughput with and without them, in turn."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

from bench.figure import Figure, Row
from bench.million import full_database
from bench.room import Room


def _measure(room: Room) -> dict[str, float]:
    full_database(room.jobs_kept)
    empty: list[float] = []
    full: list[float] = []
    for number in range(room.some(2, 1)):  # in turn, and turned round: first one, then the other goes first
        pair = [(empty, room.folder / f"empty-{number}"), (full, _copy(room, number))]
        for samples, data in pair if number % 2 == 0 else pair[::-1]:
            found = room.run("engine", "throughput", "--data", data, "--jobs", room.some(16000, 3200))
            samples.append(found["per_s"])
    with_jobs, without = statistics.mean(full), statistics.mean(empty)
    return {"with a million finished": with_jobs, "with a million / with none": with_jobs / without}


def _copy(room: Room, number: int) -> Path:
    folder = room.folder / f"full-{number}"
    folder.mkdir()
    shutil.copyfile(full_database(room.jobs_kept) / "milepost.db", folder / "milepost.db")
    return folder


FIGURE = Figure(
    "full-table",
    "no-op jobs end to end in process with a million finished ones in the table (a quick run: a hundred thousand)",
    (Row("with a million finished", "jobs/s"), Row("with a million / with none", "ratio", 0.8)),
    _measure,
)
