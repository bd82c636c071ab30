"""How long one job takes from its submit to its final state, at a steady 50 jobs a second."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from bench.figure import Figure, Row
from bench.machine import percentile
from bench.room import Room

RATE_PER_S = 50
P50_MS, P99_MS = 8, 30


def _rows(name: str) -> tuple[Row, Row]:
    return Row(f"submit to final, {name}, p50", "ms", P50_MS, "less"), Row(f"submit to final, {name}, p99", "ms", P99_MS, "less")


def _over_http(room: Room) -> list[float]:
    with room.serving(room.folder / "data") as server:
        room.run("load", "latency", server.url, "--count", 20)
        found: list[float] = room.run("load", "latency", server.url, "--count", _count(room), "--rate", RATE_PER_S)["ms"]
    return found


def _in_process(room: Room) -> list[float]:
    data = room.folder / "data"
    found: list[float] = room.run("engine", "latency", "--data", data, "--jobs", _count(room), "--rate", RATE_PER_S)["ms"]
    return found


def _count(room: Room) -> int:
    return RATE_PER_S * room.some(15, 4)


def _figure(key: str, name: str, about: str, samples: Callable[[Room], list[float]]) -> Figure:
    rows = _rows(name)

    def measure(room: Room) -> dict[str, float]:
        found = samples(room)
        return {rows[0].name: statistics.median(found), rows[1].name: percentile(found, 99)}

    return Figure(key, about, rows, measure)


HTTP = _figure("latency-http", "over HTTP", "POST /jobs until GET with Prefer: wait says that it is final, 50 jobs/s", _over_http)
IN_PROCESS = _figure(
    "latency-in-process", "in process", "submit until a subscriber of the store sees the final event, 50 jobs/s", _in_process
)
