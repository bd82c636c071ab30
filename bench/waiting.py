"""What many waits in one process cost: `python -m bench.waiting wait URL WIRE FILE` waits for the jobs of a rehearsal and tells.

The jobs are those of `scenario`: they end evenly between two instants; those of the kind `bad` fail.  `… ids URL FILE` writes
their ids; it is a process of its own, so that its memory is not that of the waits.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import time
import tracemalloc
from pathlib import Path

import milepost
from bench.machine import percentile

PAGE = 1000
FIRST = 50  # one job in so many has ended when memory is measured: nearly all wait, and each was looked at


def scenario(jobs: int, first_s: float, last_s: float) -> str:
    """Jobs that end between these instants, one in a hundred badly."""
    spread = f'{{ distribution = "uniform", min_s = {first_s}, max_s = {last_s} }}'
    bad = max(1, jobs // 100)
    return f"""
[rehearsal]
wires = ["native", "glance"]
requests_kept = 1000
[[jobs]]
name = "good"
kind = "good"
count = {jobs - bad}
duration_s = {spread}
[[jobs]]
name = "bad"
kind = "bad"
count = {bad}
ends = "failed"
duration_s = {spread}
"""


def resident_bytes() -> int:
    """What this process holds now: its high-water mark would be that of the program that started it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def write_ids(url: str, path: Path) -> dict[str, float]:
    async with milepost.AsyncClient(url) as client:
        ids = [job.id async for job in client.list(page_size=PAGE)]
    path.write_text("\n".join(ids), encoding="utf-8")
    return {"jobs": len(ids)}


async def wait(url: str, wire: str, ids: list[str], *, traced: bool) -> dict[str, float]:
    """Wait for all; memory is what a job costs before the first of them ended."""
    async with milepost.AsyncClient(url, wire=wire, token="any") as client:
        await client.get(ids[0])  # what the first request of a process costs is not a job's
        gc.collect()
        before = resident_bytes()
        if traced:
            tracemalloc.start()
        handles = [client.attach(one) for one in ids]
        started_s, cpu_s = time.monotonic(), time.process_time()
        lags_s: list[float] = []
        wrong = held = 0
        async for job in client.as_completed(handles):
            wrong += str(job.state) != ("failed" if job.kind == "bad" else "succeeded")
            ended_us = job.view.ended_us or job.view.updated_us or 0
            lags_s.append(time.time() - ended_us / 1e6)
            if len(lags_s) == max(1, len(ids) // FIRST):
                held = tracemalloc.get_traced_memory()[0] if traced else resident_bytes() - before
            job.forget()
        return {
            "bytes_a_job": held / len(ids),
            "took_s": time.monotonic() - started_s,
            "cpu_s": time.process_time() - cpu_s,
            "ended": len(lags_s),
            "wrong": wrong,
            "lag_p50_s": percentile(lags_s, 50),
            "lag_p99_s": percentile(lags_s, 99),
        }


def main() -> dict[str, float]:
    if sys.argv[1] == "ids":
        return asyncio.run(write_ids(sys.argv[2], Path(sys.argv[3])))
    ids = Path(sys.argv[4]).read_text(encoding="utf-8").split()
    return asyncio.run(wait(sys.argv[2], sys.argv[3], ids, traced="--traced" in sys.argv))


if __name__ == "__main__":
    print(json.dumps(main()))
