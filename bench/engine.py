"""No-op jobs end to end: submitted, run, final state on disk.  In one process, on SQLite with synchronous=FULL."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from milepost.engine.context import Running
from milepost.engine.kinds import Kinds
from milepost.job import Submission
from milepost.settings import Settings
from milepost.store import Queue
from milepost.wiring import running_system

KINDS = Kinds()


@KINDS.kind("noop")
async def noop(_job: Running) -> None:
    """Does nothing, durably."""


async def measure(jobs: int, submitters: int, batch: int, data: str) -> float:
    """Jobs a second from the first submit to the last final state on disk."""
    settings = Settings(data=data, log_level="warning", image_concurrency=1)
    async with running_system(settings, kinds=KINDS) as system:
        await system.store.set_queue(Queue("default", limit=500))
        system.dispatch.announce_queues()
        share = jobs // submitters

        async def submit() -> None:
            for start in range(0, share, batch):
                size = min(batch, share - start)
                if size == 1:
                    await system.service.submit(Submission(kind="noop"))
                else:
                    await system.service.submit_many([Submission(kind="noop") for _ in range(size)])

        started_s = time.perf_counter()
        await asyncio.gather(*(submit() for _ in range(submitters)))
        while system.node.stats.outcomes["noop", "succeeded"] < share * submitters:  # counted once written
            await asyncio.sleep(0.001)
        took_s = time.perf_counter() - started_s
    return share * submitters / took_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=16000)
    parser.add_argument("--submitters", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--data", default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        per_s = uvloop.run(measure(args.jobs, args.submitters, args.batch, args.data or folder))
    json.dump({"jobs_per_s": round(per_s)}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
