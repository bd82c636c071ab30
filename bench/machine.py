"""What the figures depend on.  No names and no paths: the history is public."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import time
from pathlib import Path
from typing import Any

BLOCK = b"\0" * 4096


def sync_samples_ms(folder: Path, count: int) -> list[float]:
    """How long `fdatasync` takes after each of so many appended blocks of 4 KiB, milliseconds."""
    sync = getattr(os, "fdatasync", os.fsync)
    path = folder / "sync-probe"
    samples = []
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(BLOCK)
            started_s = time.perf_counter()
            sync(file.fileno())
            samples.append((time.perf_counter() - started_s) * 1000)
    path.unlink()
    return samples


def percentile(samples: list[float], percent: float) -> float:
    """The smallest sample that is not exceeded by so many percent of them."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def facts(sync_ms: list[float]) -> dict[str, Any]:
    """The machine's side of one run."""
    return {
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "arch": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "fdatasync_median_ms": round(statistics.median(sync_ms), 3),
        "fdatasync_p99_ms": round(percentile(sync_ms, 99), 3),
    }
