"""The engine in one process, without HTTP, on SQLite with `synchronous=FULL`: how many no-op jobs a second, or how late one is.

`throughput` counts from the first submit to the last final state on disk; `latency` submits at a steady rate and takes the time
from each submit to its final event, as a subscriber of the store sees it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Sequence

import structlog
import uvloop

from bench.kinds import noop  # noqa: F401  (registers the kind)
from milepost.engine.kinds import KINDS
from milepost.job import FINAL, Event, Submission
from milepost.settings import Settings
from milepost.store import Queue
from milepost.wiring import System, running_system, tune_process

QUEUE_LIMIT = 500


async def measure_throughput(system: System, jobs: int, submitters: int, batch: int) -> dict[str, float]:
    """Jobs a second, from submitters that each wait for their last submit before the next; and processor time of a job."""
    await system.store.set_queue(Queue("default", limit=QUEUE_LIMIT))
    system.dispatch.announce_queues()
    share = jobs // submitters

    async def submit() -> None:
        for start in range(0, share, batch):
            size = min(batch, share - start)
            if size == 1:
                await system.service.submit(Submission(kind="noop"))
            else:
                await system.service.submit_many([Submission(kind="noop") for _ in range(size)])

    started_s, cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(submit() for _ in range(submitters)))
    while system.node.stats.outcomes["noop", "succeeded"] < share * submitters:  # counted once written
        await asyncio.sleep(0.001)
    jobs = share * submitters
    return {"per_s": jobs / (time.perf_counter() - started_s), "cpu_us": 1e6 * (time.process_time() - cpu_s) / jobs}


async def measure_latency(system: System, rate_per_s: float, jobs: int) -> dict[str, list[float]]:
    """Milliseconds of each job."""
    ended_s: dict[str, float] = {}
    all_ended = asyncio.Event()

    def see(events: Sequence[Event]) -> None:
        now_s = time.perf_counter()
        for event in events:
            if event.state in FINAL:
                ended_s[event.job_id] = now_s
        if len(ended_s) >= jobs:
            all_ended.set()

    begun_s: dict[str, float] = {}

    async def submit() -> None:
        now_s = time.perf_counter()
        begun_s[(await system.service.submit(Submission(kind="noop"))).job.id] = now_s

    stop = system.store.subscribe(see)
    started_s = time.perf_counter()
    async with asyncio.timeout(60 + jobs / rate_per_s), asyncio.TaskGroup() as group:
        for number in range(jobs):
            await asyncio.sleep(max(0.0, started_s + number / rate_per_s - time.perf_counter()))
            group.create_task(submit())
        await all_ended.wait()
    stop()
    return {"ms": [(ended_s[job_id] - begin_s) * 1000 for job_id, begin_s in begun_s.items()]}


async def _measure(args: argparse.Namespace) -> object:
    settings = Settings(data=args.data, log_level="error", image_concurrency=1)
    async with running_system(settings, kinds=KINDS) as system:
        tune_process()
        if args.what == "throughput":
            return await measure_throughput(system, args.jobs, args.submitters, args.batch)
        return await measure_latency(system, args.rate, args.jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["throughput", "latency"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--jobs", type=int, default=16000)
    parser.add_argument("--submitters", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rate", type=float, default=50.0)
    args = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    json.dump(uvloop.run(_measure(args)), sys.stdout)
    print()


if __name__ == "__main__":
    main()
