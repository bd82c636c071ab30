"""Whether a table full of finished jobs makes new ones slower: the same throughput with and without them, in turn."""

from __future__ import annotations

import os
import shutil
import statistics
from pathlib import Path

from bench.figure import Figure, Row
from bench.million import full_database
from bench.room import Room


def _measure(room: Room) -> dict[str, float]:
    folder = _copy(room)
    full: list[float] = []
    ratios: list[float] = []
    for number in range(room.some(5, 1)):  # in turn, and turned round: first one, then the other goes first
        pair = [folder, room.folder / f"empty-{number}"]
        found = {data: _per_s(room, data) for data in (pair if number % 2 else pair[::-1])}
        full.append(found[pair[0]])
        ratios.append(found[pair[0]] / found[pair[1]])
    return {"with a million finished": statistics.median(full), "with a million / with none": statistics.median(ratios)}


def _per_s(room: Room, data: Path) -> float:
    return float(room.run("engine", "throughput", "--data", data, "--jobs", room.some(8000, 3200))["per_s"])


def _copy(room: Room) -> Path:
    folder = room.folder / "full"
    folder.mkdir()
    copy = folder / "milepost.db"
    shutil.copyfile(full_database(room.jobs_kept) / "milepost.db", copy)
    with copy.open("rb+") as file:
        os.fsync(file.fileno())  # else its gigabyte is on its way to the disk while the first jobs wait for theirs
    return folder


FIGURE = Figure(
    "full-table",
    "no-op jobs end to end in process with a million finished ones in the table (a quick run: a hundred thousand)",
    (Row("with a million finished", "jobs/s"), Row("with a million / with none", "ratio", 0.8)),
    _measure,
)
