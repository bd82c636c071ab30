"""What a server costs that nobody asks anything: memory, and time of a core."""

from __future__ import annotations

import time

from bench.figure import Figure, Row, Unmeasurable
from bench.room import Room, ask


def _measure(room: Room) -> dict[str, float]:
    try:
        import psutil  # type: ignore[import-untyped]
    except ImportError as error:
        raise Unmeasurable("psutil is not installed") from error
    with room.serving(room.folder / "data") as server:
        ask("GET", f"{server.url}/healthz")
        time.sleep(room.some(3, 1))  # what starting leaves to do
        process = psutil.Process(server.pid)
        spent_s, started_s = _cpu_s(process), time.perf_counter()
        time.sleep(room.some(20, 5))
        took_s = time.perf_counter() - started_s
        found = [process, *process.children(recursive=True)]
        return {
            "idle, resident": sum(one.memory_info().rss for one in found) / 1e6,
            "idle, of a core": 100 * (_cpu_s(process) - spent_s) / took_s,
        }


def _cpu_s(process: object) -> float:
    times = process.cpu_times()  # type: ignore[attr-defined]
    return float(times.user + times.system + times.children_user + times.children_system)


FIGURE = Figure(
    "idle",
    "a server that nobody asks anything, over 20 s",
    (Row("idle, resident", "MB", 120, "less"), Row("idle, of a core", "%", 1, "less")),
    _measure,
    rounds_max=2,
)
