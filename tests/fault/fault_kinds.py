"""Kinds for fault tests: each run of a function leaves a line in a file that the test reads."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import milepost


class Work(milepost.Struct):
    """What a run does, in this order."""

    runs: str  # the file that each run writes a line to
    steps: int = 1  # progress reports
    step_s: float = 0.0
    fail_times: int = 0
    until: str | None = None  # runs until there is this file
    answer: int = 1


class Tree(milepost.Struct):
    """Two rounds of sub-jobs, `width` each, `depth` levels deep."""

    runs: str
    width: int = 2
    depth: int = 1


class Greedy(milepost.Struct):
    """What an isolated function takes too much of."""

    runs: str
    what: str


def note(runs: str, job_id: str, what: str) -> None:
    """One line, whole, in one write."""
    file = os.open(runs, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(file, f"{what} {job_id}\n".encode())
    finally:
        os.close(file)


@milepost.kind("work", attempts=5)
async def work(job: milepost.Running, spec: Work) -> int:
    note(spec.runs, job.id, "begin")
    for step in range(spec.steps):
        await asyncio.sleep(spec.step_s)
        await job.progress(step + 1, spec.steps)
    while spec.until is not None and not Path(spec.until).exists():
        await asyncio.sleep(0.01)
    if job.attempt - job.job.crashes <= spec.fail_times:
        raise milepost.RetryableError("asked", "asked to fail", delay_s=0.01)
    note(spec.runs, job.id, "end")
    return spec.answer


@milepost.kind("threaded", attempts=5)
def threaded(job: milepost.RunningInThread, spec: Work) -> int:
    note(spec.runs, job.id, "begin")
    for step in range(spec.steps):
        time.sleep(spec.step_s)
        job.progress(step + 1, spec.steps)
    note(spec.runs, job.id, "end")
    return spec.answer


@milepost.kind("tree", attempts=2)
async def tree(job: milepost.Running, spec: Tree) -> int:
    note(spec.runs, job.id, "begin")
    total = 0
    for _ in range(2):
        if spec.depth > 1:
            inner = Tree(spec.runs, spec.width, spec.depth - 1)
            subs = [milepost.SubJob(kind="tree", input=inner)] + [
                milepost.SubJob(kind="work", input=Work(spec.runs)) for _ in range(spec.width - 1)
            ]
        else:
            subs = [milepost.SubJob(kind="work", input=Work(spec.runs, steps=2)) for _ in range(spec.width)]
        total += sum(await job.run_sub_jobs(subs))
    note(spec.runs, job.id, "end")
    return total


@milepost.kind("brief", keep_s={milepost.State.SUCCEEDED: 0.05})
async def brief(job: milepost.Running, spec: Work) -> int:
    """Is forgotten soon after its end."""
    note(spec.runs, job.id, "begin")
    return spec.answer


@milepost.kind("poison")
async def poison(job: milepost.Running, spec: Work) -> None:
    note(spec.runs, job.id, "begin")
    os.kill(os.getpid(), signal.SIGKILL)


LIMITS = milepost.Limits(memory_bytes=512 << 20, cpu_s=1, file_bytes=1 << 20, wall_s=30)


@milepost.kind("greedy", isolated=True, limits=LIMITS, attempts=2)
def greedy(job: Any, spec: Greedy) -> str:
    note(spec.runs, job.id, "begin")
    match spec.what:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "memory":
            bytearray(2 << 30)
        case "cpu":
            while True:
                pass
        case "file":
            (job.scratch / "large").write_bytes(bytes(2 << 20))
        case "wait":
            time.sleep(60)
    note(spec.runs, job.id, "end")
    return spec.what
