"""Kinds for trying things out: `echo`, `sleep` and `flaky`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from milepost import PermanentError, RetryableError, Running, kind


class SleepInput(msgspec.Struct, forbid_unknown_fields=True):
    """How long, in how many steps."""

    duration_s: Annotated[float, Meta(ge=0, le=604_800, description="seconds")] = 1.0
    steps: Annotated[int, Meta(ge=1, le=10_000, description="progress reports")] = 10


class SleepResult(msgspec.Struct):
    """How long it was."""

    slept_s: float


class FlakyInput(msgspec.Struct, forbid_unknown_fields=True):
    """How often it fails before it succeeds, and how."""

    fail_times: Annotated[int, Meta(ge=0, le=1000, description="attempts that fail")] = 1
    permanent: Annotated[bool, Meta(description="the first failure is final")] = False
    delay_s: Annotated[float, Meta(ge=0, le=86_400, description="pause before the next attempt; default: the backoff")] | None = (
        None
    )


class FlakyResult(msgspec.Struct):
    """The attempt that succeeded."""

    attempt: int


@kind("echo")
async def echo(_job: Running, spec: Any) -> Any:
    """Return the input."""
    return spec


@kind("sleep")
async def sleep(job: Running, spec: SleepInput) -> SleepResult:
    """Do nothing for a while, and say how far it is."""
    await job.progress(0, spec.steps, "sleeping", unit="steps")
    for step in range(1, spec.steps + 1):
        await asyncio.sleep(spec.duration_s / spec.steps)
        await job.progress(step, spec.steps, "sleeping", unit="steps")
    return SleepResult(spec.duration_s)


@kind("flaky", attempts=3)
async def flaky(job: Running, spec: FlakyInput) -> FlakyResult:
    """Fail the first attempts, then succeed: shows retries and backoff."""
    if job.attempt <= spec.fail_times:
        message = f"attempt {job.attempt} fails, as {spec.fail_times} were asked to"
        if spec.permanent:
            raise PermanentError("asked_to_fail", message)
        raise RetryableError("asked_to_fail", message, delay_s=spec.delay_s)
    return FlakyResult(job.attempt)
