"""The kinds for trying out, on the real engine in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from milepost.errors import InvalidInput
from milepost.job import FINAL, EventType, Job, State
from milepost.settings import Settings
from milepost.wiring import System, running_system


@pytest.fixture
async def system() -> AsyncIterator[System]:
    async with running_system(Settings(data=":memory:", backoff_s=0.01, progress_every_s=0.0)) as running:
        yield running


async def run(system: System, kind: str, asked: Any, **fields: Any) -> Job:
    submission = system.service.submission(kind, input=msgspec.json.encode(asked), **fields)
    job = (await system.service.submit(submission)).job
    end_s = time.monotonic() + 60
    while job.state not in FINAL:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.005)
        job = await system.service.get(job.id)
    return job


@pytest.mark.parametrize("value", [{"a": [1, None, "x"]}, [], "text", 5, None])
async def test_echo_returns_its_input(system: System, value: Any) -> None:
    job = await run(system, "echo", value)
    assert (job.state, msgspec.json.decode(job.result or b"")) == (State.SUCCEEDED, value)


async def test_sleep_reports_every_step(system: System) -> None:
    job = await run(system, "sleep", {"duration_s": 0.02, "steps": 4})
    assert msgspec.json.decode(job.result or b"") == {"slept_s": 0.02}
    assert (job.progress.done, job.progress.total, job.progress.unit) == (4, 4, "steps")
    events = await system.store.list_events(job_id=job.id)
    assert sum(event.type is EventType.PROGRESS for event in events) == 5


async def test_sleep_is_cancelled_at_once(system: System) -> None:
    submission = system.service.submission("sleep", input=b'{"duration_s": 600}')
    job = (await system.service.submit(submission)).job
    end_s = time.monotonic() + 60
    while job.state is not State.RUNNING:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.005)
        job = await system.service.get(job.id)
    await system.service.cancel(job.id, project=None)
    while job.state not in FINAL:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.005)
        job = await system.service.get(job.id)
    assert job.state is State.CANCELLED


async def test_flaky_fails_as_often_as_asked_and_then_succeeds(system: System) -> None:
    job = await run(system, "flaky", {"fail_times": 2})
    assert (job.state, job.attempt, msgspec.json.decode(job.result or b"")) == (State.SUCCEEDED, 3, {"attempt": 3})


async def test_flaky_fails_for_good_when_attempts_run_out_or_when_asked(system: System) -> None:
    job = await run(system, "flaky", {"fail_times": 3})
    assert (job.state, job.attempt) == (State.FAILED, 3)
    job = await run(system, "flaky", {"permanent": True})
    assert (job.state, job.attempt, job.error and job.error.code) == (State.FAILED, 1, "asked_to_fail")


@pytest.mark.parametrize(
    ("kind", "asked", "path"),
    [
        ("sleep", {"duration_s": -1}, "$.input.duration_s"),
        ("sleep", {"steps": 0}, "$.input.steps"),
        ("sleep", {"second": 1}, "$.input"),
        ("flaky", {"fail_times": "x"}, "$.input.fail_times"),
    ],
)
async def test_a_bad_input_is_refused_with_its_path(system: System, kind: str, asked: Any, path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await run(system, kind, asked)
    assert caught.value.path == path
