"""What an attempt comes to: every way a function can end, each style, and everything that can stop it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import isolated_kinds
import msgspec
import pytest
from engine_house import House, open_house

import milepost
from milepost.engine.kinds import KINDS
from milepost.errors import LimitExceeded
from milepost.job import Progress, State, SubJob


def use_isolated(house: House) -> None:
    for name in isolated_kinds.ALL:
        house.kinds.add(KINDS.get(name))


async def poll(condition: Any, patience_s: float = 60.0) -> None:
    """Return once the condition holds: for what a real subprocess does."""
    async with asyncio.timeout(patience_s):
        while not condition():
            await asyncio.sleep(0.01)


# --- how a function ends ---------------------------------------------------------------------------------------------------


class Point(msgspec.Struct):
    x: int
    y: list[str]


async def test_what_a_coroutine_returns_is_the_result(house: House) -> None:
    @house.kind("point")
    async def point(job: milepost.Running, spec: Point) -> Point:
        return Point(spec.x + job.attempt, spec.y)

    job = await house.run("point", b'{"x":1,"y":["a"]}')
    assert (job.state, job.result, job.error, job.attempt) == (State.SUCCEEDED, b'{"x":2,"y":["a"]}', None, 1)
    assert job.expires_us == house.clock.now_us() + int(house.settings.keep_succeeded_s * 1e6)


async def test_what_a_plain_function_returns_is_the_result(house: House) -> None:
    @house.kind("plain")
    def plain(job: milepost.RunningInThread, spec: dict[str, int]) -> int:
        job.progress(1, 2, "on the way", unit="steps")
        return spec["n"] * 2

    job = await house.run("plain", b'{"n":21}')
    assert (job.state, job.result) == (State.SUCCEEDED, b"42")
    assert job.progress == Progress(1, 2, "steps", "on the way")


async def test_what_an_isolated_function_returns_is_the_result(house: House) -> None:
    use_isolated(house)
    job = await house.run("isolated.double", b'{"number":21}')
    assert (job.state, job.result, job.progress.note) == (State.SUCCEEDED, b"42", "doubling")


async def test_a_function_without_input_and_result(house: House) -> None:
    @house.kind("none")
    async def none(job: milepost.Running) -> None: ...

    assert (await house.run("none")).result == b"null"


RAISED: list[tuple[str, BaseException, State, str]] = [
    ("permanent", milepost.PermanentError("no_disk", "there is none", {"disk": 1}), State.FAILED, "no_disk"),
    ("retryable", milepost.RetryableError("busy", "try later", delay_s=60), State.READY, "busy"),
    ("any other", ValueError("what?"), State.READY, "exception"),
    ("cancel", milepost.Cancel("not needed"), State.CANCELLED, "cancelled"),
    ("a limit", LimitExceeded("too many", limit="sub_jobs_max", allowed=1), State.FAILED, "limit_exceeded"),
    ("cancelled error", asyncio.CancelledError(), State.READY, "exception"),
    ("system exit", SystemExit(3), State.READY, "exception"),
    ("keyboard interrupt", KeyboardInterrupt(), State.READY, "exception"),
    ("stop iteration", StopIteration(1), State.READY, "exception"),
    ("out of memory", MemoryError(), State.READY, "exception"),
    ("lone surrogates", OSError("no file caf\udce9"), State.READY, "exception"),
    ("lone surrogates in a failure", milepost.PermanentError("gone", "no caf\udce9", {"p": "caf\udce9"}), State.FAILED, "gone"),
    ("details that are not JSON", milepost.PermanentError("odd", "see details", {"o": object()}), State.FAILED, "odd"),
]


@pytest.mark.parametrize("style", ["async", "thread"])
@pytest.mark.parametrize(("error", "state", "code"), [row[1:] for row in RAISED], ids=[row[0] for row in RAISED])
async def test_what_is_raised_decides(house: House, style: str, error: BaseException, state: State, code: str) -> None:
    if style == "async":

        @house.kind("raises", attempts=2)
        async def raises(job: milepost.Running) -> None:
            raise error
    else:

        @house.kind("raises", attempts=2)
        def raises_too(job: milepost.RunningInThread) -> None:
            raise error

    async with asyncio.timeout(60):
        job = await house.run("raises")
    assert job.state is state, job
    assert job.error is not None
    assert job.error.code == code
    if state is State.READY:
        house.clock.advance(61)
        job = await house.again(job.id)
        assert (job.state, job.attempt) == (State.FAILED, 2)


@pytest.mark.parametrize("how", ["raised", "returned"])
async def test_a_snooze_runs_again_later_without_counting(house: House, how: str) -> None:
    @house.kind("snoozes")
    async def snoozes(job: milepost.Running) -> Any:
        if len(await house.history(job.id)) > 4:
            return "done"
        if how == "raised":
            raise milepost.Snooze(30, "not yet")
        return milepost.Snooze(30, "not yet")

    job = await house.run("snoozes")
    assert (job.state, job.attempt, job.run_at_us) == (State.READY, 0, house.clock.now_us() + 30_000_000)
    house.clock.advance(29)
    assert (await house.again(job.id)).version == job.version
    for _ in range(2):
        house.clock.advance(30)
        job = await house.again(job.id)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 1)


@pytest.mark.parametrize("delay_s", [float("inf"), float("nan"), 1e30])
@pytest.mark.parametrize("error", [milepost.Snooze, lambda delay_s: milepost.RetryableError("x", "y", delay_s=delay_s)])
async def test_an_instant_that_cannot_be_fails_the_job(house: House, error: Any, delay_s: float) -> None:
    @house.kind("odd", attempts=5)
    async def odd(job: milepost.Running) -> None:
        raise error(delay_s)

    async with asyncio.timeout(60):
        job = await house.run("odd")
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, "bad_result")


async def test_a_returned_cancel_ends_the_job_as_cancelled(house: House) -> None:
    @house.kind("gives_up")
    async def gives_up(job: milepost.Running) -> Any:
        return milepost.Cancel("the volume is gone")

    job = await house.run("gives_up")
    assert job.state is State.CANCELLED
    assert job.error is not None
    assert job.error.message == "the volume is gone"


@pytest.mark.parametrize("value", [object(), {1, object()}, msgspec.Raw(b"{not json"), msgspec.Raw(b'"\xff"'), "caf\udce9"])
async def test_a_result_that_is_not_json_fails_for_good(house: House, value: Any) -> None:
    @house.kind("odd", attempts=5)
    async def odd(job: milepost.Running) -> Any:
        return value

    async with asyncio.timeout(60):
        job = await house.run("odd")
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.code == "bad_result"


async def test_a_result_that_is_too_large_fails_for_good_and_says_the_limit(tmp_path: Path) -> None:
    async with open_house(tmp_path, result_bytes_max=100) as house:

        @house.kind("large", attempts=5)
        async def large(job: milepost.Running, spec: int) -> str:
            return "x" * spec

        assert (await house.run("large", b"98")).state is State.SUCCEEDED
        job = await house.run("large", b"99")
        assert job.state is State.FAILED
        assert job.error is not None
        assert job.error.code == "result_too_large"
        assert job.error.details == {"limit": "result_bytes_max", "allowed": 100, "seen": 101}


async def test_an_error_text_is_bounded(house: House) -> None:
    @house.kind("talks")
    async def talks(job: milepost.Running) -> None:
        raise milepost.PermanentError("talks", "x" * 10_000_000, {"more": "y" * 10_000_000})

    job = await house.run("talks")
    assert job.error is not None
    assert job.error.code == "talks"
    assert len(msgspec.json.encode(job.error)) < house.settings.result_bytes_max


async def test_an_input_that_no_longer_fits_its_kind_fails_with_its_path(house: House) -> None:
    from milepost.job import Submission

    @house.kind("point")
    async def point(job: milepost.Running, spec: Point) -> None: ...

    (added,) = await house.store.add_jobs([Submission(kind="point", input=b'{"x":"no"}')], now_us=house.clock.now_us())
    job = await house.again(added.job.id)
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.code == "invalid_input"
    assert job.error.details == {"path": "$.input.x"}


async def test_a_kind_that_this_process_does_not_know_waits_for_one_that_does(house: House) -> None:
    from milepost.job import Submission

    (added,) = await house.store.add_jobs([Submission(kind="later")], now_us=house.clock.now_us())
    job = await house.again(added.job.id)
    assert (job.state, job.attempt) == (State.READY, 0)
    assert job.run_at_us > house.clock.now_us()

    @house.kind("later")
    async def later(job: milepost.Running) -> None: ...

    house.clock.advance(60)
    assert (await house.again(job.id)).state is State.SUCCEEDED


# --- attempts and backoff --------------------------------------------------------------------------------------------------


async def test_backoff_doubles_with_jitter_up_to_its_limit(house: House) -> None:
    @house.kind("fails", attempts=12)
    async def fails(job: milepost.Running) -> None:
        raise ValueError("no")

    job = await house.run("fails")
    for tried in range(1, 12):
        assert (job.state, job.attempt) == (State.READY, tried)
        pause_s = (job.run_at_us - house.clock.now_us()) / 1e6
        full_s = min(10.0 * 2 ** (tried - 1), house.settings.backoff_s_max)
        assert full_s / 2 <= pause_s <= full_s
        house.clock.advance(pause_s)
        job = await house.again(job.id)
    assert (job.state, job.attempt) == (State.FAILED, 12)
    assert (await house.history(job.id)).count("retrying") == 11


async def test_a_delay_of_its_own_replaces_the_backoff(house: House) -> None:
    @house.kind("busy", attempts=2)
    async def busy(job: milepost.Running) -> None:
        raise milepost.RetryableError("busy", "later", delay_s=1234.5)

    job = await house.run("busy")
    assert job.run_at_us == house.clock.now_us() + 1_234_500_000


async def test_a_crash_of_the_worker_does_not_use_up_an_attempt(house: House) -> None:
    @house.kind("once", attempts=1)
    async def once(job: milepost.Running) -> int:
        if job.job.crashes == 0:
            await house.signals.stop_at("forever")
        assert job.attempt == 2
        assert job.last_attempt
        raise milepost.RetryableError("busy", "later")

    other = house.process()
    job_id = await house.submit("once")
    await house.claim(other)
    await house.signals.reached("forever")
    house.clock.advance(31)
    await house.node.heartbeat.run_once()
    assert await house.node.rescuer.run_once() == 1
    job = await house.again(job_id)
    assert (job.state, job.attempt, job.crashes) == (State.FAILED, 2, 1)
    other.executor.lose([job_id])
    await house.idle(other)


async def test_an_attempt_knows_whether_it_is_the_last_one(house: House) -> None:
    seen = []

    @house.kind("thrice", attempts=3)
    async def thrice(job: milepost.Running) -> None:
        seen.append((job.attempt, job.last_attempt))
        raise milepost.RetryableError("busy", "later", delay_s=0)

    job = await house.run("thrice")
    assert (await house.finish(job.id)).state is State.FAILED
    assert seen == [(1, False), (2, False), (3, True)]


# --- time limits -----------------------------------------------------------------------------------------------------------


async def test_an_attempt_that_takes_too_long_is_tried_again(house: House) -> None:
    @house.kind("slow", attempts=2, timeout_s=60)
    async def slow(job: milepost.Running) -> None:
        await house.signals.stop_at("slow")

    job_id = await house.started("slow", "slow")
    house.clock.advance(59)
    await asyncio.sleep(0)
    assert await house.state(job_id) is State.RUNNING
    house.clock.advance(1)
    await house.idle()
    job = await house.job(job_id)
    assert (job.state, job.attempt) == (State.READY, 1)
    assert job.error is not None
    assert job.error.code == "attempt_timeout"


async def test_a_plain_function_that_takes_too_long_is_asked_to_stop(house: House) -> None:
    @house.kind("slow", timeout_s=60)
    def slow(job: milepost.RunningInThread) -> None:
        house.signals.stop_thread_at("slow")
        assert job.cancel_requested
        job.raise_if_cancelled()

    job_id = await house.started("slow", "slow")
    house.clock.advance(61)
    await asyncio.sleep(0)
    house.signals.let_go("slow")
    await house.idle()
    job = await house.job(job_id)
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.code == "attempt_timeout"


async def test_an_isolated_function_that_takes_too_long_is_killed(house: House, tmp_path: Path) -> None:
    use_isolated(house)
    pid_file = tmp_path / "pid"
    job_id = await house.submit("isolated.hang", msgspec.json.encode({"path": str(pid_file)}), timeout_s=60)
    await house.claim()
    await poll(lambda: pid_file.exists() and pid_file.read_text())
    house.clock.advance(60)
    await house.idle()
    job = await house.job(job_id)
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, "attempt_timeout")
    await poll(lambda: not alive(int(pid_file.read_text())))


async def test_a_running_job_fails_at_its_deadline_whatever_attempts_are_left(house: House) -> None:
    @house.kind("slow", attempts=9)
    async def slow(job: milepost.Running) -> None:
        await house.signals.stop_at("slow")

    job_id = await house.started("slow", "slow", deadline_us=house.clock.now_us() + 5_000_000)
    house.clock.advance(5)
    await house.idle()
    job = await house.job(job_id)
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, "deadline_exceeded")


# --- cancel ----------------------------------------------------------------------------------------------------------------


async def test_a_running_coroutine_is_cancelled_at_its_next_await(house: House) -> None:
    cleaned: list[str] = []

    @house.kind("works", attempts=5)
    async def works(job: milepost.Running) -> None:
        try:
            await house.signals.stop_at("works")
        finally:
            cleaned.append(job.id)

    job_id = await house.started("works", "works")
    await house.service.cancel(job_id, project=None)
    await house.node.heartbeat.run_once()
    await house.idle()
    job = await house.job(job_id)
    assert job.error is not None
    assert (job.state, job.error.code, cleaned) == (State.CANCELLED, "cancelled", [job_id])


async def test_a_plain_function_is_asked_and_ends_as_cancelled(house: House) -> None:
    @house.kind("works")
    def works(job: milepost.RunningInThread) -> None:
        house.signals.stop_thread_at("works")
        job.progress(1)

    job_id = await house.started("works", "works")
    await house.service.cancel(job_id, project=None)
    await house.node.heartbeat.run_once()
    assert await house.state(job_id) is State.RUNNING
    house.signals.let_go("works")
    await house.idle()
    assert await house.state(job_id) is State.CANCELLED


async def test_an_isolated_function_is_killed_at_once(house: House, tmp_path: Path) -> None:
    use_isolated(house)
    pid_file = tmp_path / "pid"
    job_id = await house.submit("isolated.hang", msgspec.json.encode({"path": str(pid_file)}))
    await house.claim()
    await poll(lambda: pid_file.exists() and pid_file.read_text())
    await house.service.cancel(job_id, project=None)
    await house.node.heartbeat.run_once()
    await house.idle()
    assert await house.state(job_id) is State.CANCELLED
    await poll(lambda: not alive(int(pid_file.read_text())))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second when it ends between open and read
        return False


async def test_a_cancel_before_the_first_step_of_a_job_reaches_it(house: House) -> None:
    ran: list[str] = []

    @house.kind("works")
    async def works(job: milepost.Running) -> None:
        ran.append(job.id)

    job_id = await house.submit("works")
    await house.node.heartbeat.run_once()
    claimed = await house.store.claim_jobs("default", worker=house.node.worker, now_us=house.clock.now_us(), limit=1)
    await house.service.cancel(job_id, project=None)
    house.node.executor.start(claimed)
    house.node.executor.cancel([job_id], "as asked")  # the task has not run a step yet
    await house.idle()
    assert await house.state(job_id) is State.CANCELLED
    assert house.node.executor.in_queue["default"] == 0
    assert ran == []


async def test_a_job_that_ends_in_spite_of_a_cancel_has_ended_so(house: House) -> None:
    @house.kind("stubborn")
    async def stubborn(job: milepost.Running) -> str:
        try:
            await house.signals.stop_at("here")
        except asyncio.CancelledError:
            return "done all the same"
        return "not asked"

    job_id = await house.started("stubborn", "here")
    await house.service.cancel(job_id, project=None)
    await house.node.heartbeat.run_once()
    await house.idle()
    job = await house.job(job_id)
    assert (job.state, job.result) == (State.SUCCEEDED, b'"done all the same"')


# --- leases and store failures ---------------------------------------------------------------------------------------------


async def test_a_worker_that_lost_its_lease_writes_nothing(house: House) -> None:
    @house.kind("works")
    async def works(job: milepost.Running) -> str:
        await house.signals.stop_at("works")
        return "from the old one"

    job_id = await house.started("works", "works")
    await house.store.end_worker(house.node.worker)
    await house.store.rescue_expired(now_us=house.clock.now_us(), crashes_max=3, expires_us=1)
    other = house.process()
    await house.claim(other)
    await house.signals.reached("works")

    await house.node.heartbeat.run_once()
    await house.idle()
    assert house.node.stats.lost_leases == 1
    job = await house.job(job_id)
    assert (job.state, job.lease_by) == (State.RUNNING, other.worker)
    house.signals.let_go("works")
    await house.idle(other)
    assert await house.state(job_id) is State.SUCCEEDED


async def test_a_worker_that_does_not_know_yet_writes_nothing_either(house: House) -> None:
    @house.kind("works")
    async def works(job: milepost.Running) -> str:
        await house.signals.stop_at("works")
        return "late"

    job_id = await house.started("works", "works")
    await house.store.end_worker(house.node.worker)
    await house.store.rescue_expired(now_us=house.clock.now_us(), crashes_max=3, expires_us=1)
    house.signals.let_go("works")
    await house.idle()
    assert await house.state(job_id) is State.READY
    assert house.node.stats.lost_leases == 1


async def test_an_outcome_is_kept_until_the_store_takes_it(house: House) -> None:
    @house.kind("works")
    async def works(job: milepost.Running) -> str:
        return "kept"

    house.store.fail("finish_job", times=4)
    job_id = await house.submit("works")
    await house.claim()
    async with asyncio.timeout(60):
        while house.node.executor.attempts:
            house.clock.advance(5)
            await asyncio.sleep(0)
    job = await house.job(job_id)
    assert (job.state, job.result) == (State.SUCCEEDED, b'"kept"')
    assert house.store.calls["finish_job"] == 5


async def test_an_outcome_that_was_written_though_the_store_failed_is_not_written_twice(house: House) -> None:
    @house.kind("works")
    async def works(job: milepost.Running) -> str:
        return "once"

    house.store.fail("finish_job", written=True)
    job_id = await house.submit("works")
    await house.claim()
    async with asyncio.timeout(60):
        while house.node.executor.attempts:
            house.clock.advance(5)
            await asyncio.sleep(0)
    assert await house.history(job_id) == ["submitted", "started", "succeeded"]


async def test_a_store_that_is_away_while_a_parent_resumes_costs_nothing(house: House) -> None:
    @house.kind("leaf")
    async def leaf(job: milepost.Running) -> int:
        return 1

    @house.kind("parent")
    async def parent(job: milepost.Running) -> list[int]:
        return await job.run_sub_jobs([SubJob(kind="leaf")])

    job_id = await house.submit("parent")
    await house.again(job_id)
    await house.again(job_id)
    house.store.fail("list_sub_jobs")
    job = await house.again(job_id)
    assert job.state is State.READY
    assert (await house.finish(job_id)).result == b"[1]"


# --- progress --------------------------------------------------------------------------------------------------------------


async def test_progress_is_written_once_a_second_and_the_last_one_always(house: House) -> None:
    @house.kind("counts")
    async def counts(job: milepost.Running) -> None:
        for step in range(1, 1001):
            await job.progress(step, 1000, unit="steps")
            if step == 500:
                await house.signals.stop_at("half")

    job_id = await house.started("counts", "half")
    assert (await house.job(job_id)).progress.done == 1
    house.clock.advance(1)
    await wait_for_progress(house, job_id, 500)
    house.signals.let_go("half")
    await house.idle()
    job = await house.job(job_id)
    assert (job.state, job.progress.done) == (State.SUCCEEDED, 1000)
    assert (await house.history(job_id)).count("progress") == 3


async def wait_for_progress(house: House, job_id: str, done: int) -> None:
    async with asyncio.timeout(60):
        while (await house.job(job_id)).progress.done != done:
            await asyncio.sleep(0)


async def test_a_progress_report_that_cannot_be_written_does_not_hurt_the_job(house: House) -> None:
    @house.kind("counts")
    async def counts(job: milepost.Running) -> str:
        await job.progress(1)
        return "done"

    house.store.fail("report_progress")
    assert (await house.run("counts")).state is State.SUCCEEDED


async def test_progress_under_a_lost_lease_stops_the_function(house: House) -> None:
    @house.kind("works")
    async def works(job: milepost.Running) -> None:
        await house.signals.stop_at("one")
        await job.progress(1)
        await house.signals.stop_at("two")

    job_id = await house.started("works", "one")
    await house.store.end_worker(house.node.worker)
    await house.store.rescue_expired(now_us=house.clock.now_us(), crashes_max=3, expires_us=1)
    house.signals.let_go("one")
    await house.idle()
    assert (await house.job(job_id)).progress == Progress()
    assert await house.state(job_id) is State.READY


# --- sub-jobs --------------------------------------------------------------------------------------------------------------


def family(house: House, calls: list[str]) -> None:
    @house.kind("leaf")
    async def leaf(job: milepost.Running, spec: int) -> int:
        calls.append(f"leaf {spec}")
        if spec < 0:
            raise milepost.PermanentError("negative", f"{spec} is negative")
        return spec * 10

    @house.kind("sum")
    async def total(job: milepost.Running, spec: list[int]) -> int:
        calls.append("sum")
        first = await job.run_sub_jobs([SubJob(kind="leaf", input=one) for one in spec])
        second = await job.run_sub_jobs([SubJob(kind="leaf", input=sum(first))])
        return int(second[0])

    @house.kind("tries")
    async def tries(job: milepost.Running, spec: list[int]) -> list[str]:
        found = await job.try_sub_jobs([SubJob(kind="leaf", input=one) for one in spec])
        return [one.state if one.error is None else one.error.code for one in found]

    @house.kind("deep")
    async def deep(job: milepost.Running, spec: int) -> int:
        if spec == 0:
            return 1
        return 1 + sum(await job.run_sub_jobs([SubJob(kind="deep", input=spec - 1)] * 2))


async def test_a_parent_finds_the_results_of_its_sub_jobs_when_it_runs_again(house: House) -> None:
    calls: list[str] = []
    family(house, calls)
    job = await house.finish(await house.submit("sum", b"[1,2,3]"))
    assert (job.state, job.result, job.attempt, job.sub_total) == (State.SUCCEEDED, b"600", 1, 4)
    assert sorted(calls) == sorted(["sum", "leaf 1", "leaf 2", "leaf 3", "sum", "leaf 60", "sum"])
    subs = await house.store.list_sub_jobs(job.id)
    assert [(sub.position, sub.kind, sub.parent_id) for sub in subs] == [(at, "leaf", job.id) for at in range(4)]


async def test_sub_jobs_may_have_sub_jobs(house: House) -> None:
    family(house, [])
    job = await house.finish(await house.submit("deep", b"4"))
    assert (job.state, job.result) == (State.SUCCEEDED, b"31")
    assert len(await house.store.list_events(root_id=job.id, limit=10_000)) > 31 * 3


async def test_run_sub_jobs_says_which_did_not_succeed(house: House) -> None:
    family(house, [])
    job = await house.finish(await house.submit("sum", b"[1,-2,3]"))
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, "sub_jobs_failed")
    assert job.error.details is not None
    (bad,) = job.error.details["failed"]
    assert (bad["kind"], bad["state"], bad["error"]["code"]) == ("leaf", "failed", "negative")
    assert [sub.state for sub in await house.store.list_sub_jobs(job.id)] == ["succeeded", "failed", "succeeded"]


async def test_try_sub_jobs_raises_nothing(house: House) -> None:
    family(house, [])
    job = await house.finish(await house.submit("tries", b"[1,-2]"))
    assert (job.state, job.result) == (State.SUCCEEDED, b'["succeeded","negative"]')


async def test_a_partial_failure_carries_both_lists(house: House) -> None:
    family(house, [])
    seen: list[milepost.PartialFailure] = []

    @house.kind("looks")
    async def looks(job: milepost.Running) -> str:
        try:
            await job.run_sub_jobs([SubJob(kind="leaf", input=number) for number in (1, -1)])
        except milepost.PartialFailure as failure:
            seen.append(failure)
        return "went on"

    job = await house.finish(await house.submit("looks"))
    assert job.result == b'"went on"'
    assert [one.result for one in seen[0].succeeded] == [10]
    assert [one.error.code for one in seen[0].failed] == ["negative"]


async def test_a_parent_that_asks_in_another_order_is_told_so(house: House) -> None:
    family(house, [])
    first: list[bool] = [True]

    @house.kind("fickle")
    async def fickle(job: milepost.Running) -> None:
        kind = "leaf" if first.pop() else "tries"
        first.append(False)
        await job.run_sub_jobs([SubJob(kind=kind, input=1 if kind == "leaf" else [1])])

    job = await house.finish(await house.submit("fickle"))
    assert job.error is not None
    assert job.state is State.FAILED
    assert "same order" in job.error.message


@pytest.mark.parametrize(
    ("sub", "code"),
    [
        (SubJob(kind="nobody"), "unknown_kind"),
        (SubJob(kind="leaf", input="no number"), "invalid_input"),
        (SubJob(kind="leaf", input=object()), "invalid_input"),
        (SubJob(kind="leaf", input=1, labels={"k": "caf\udce9"}), "invalid_input"),
    ],
    ids=["unknown kind", "wrong input", "input that is not JSON", "labels with surrogates"],
)
async def test_a_sub_job_that_cannot_be_fails_its_parent_and_says_which(house: House, sub: SubJob, code: str) -> None:
    family(house, [])

    @house.kind("wrong", attempts=5)
    async def wrong(job: milepost.Running) -> None:
        await job.run_sub_jobs([SubJob(kind="leaf", input=1), sub])

    async with asyncio.timeout(60):
        job = await house.run("wrong")
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, code)
    assert "sub-job 1" in job.error.message
    assert await house.store.list_sub_jobs(job.id) == []


async def test_a_plain_function_may_have_sub_jobs(house: House) -> None:
    family(house, [])

    @house.kind("threaded")
    def threaded(job: milepost.RunningInThread) -> int:
        return int(sum(job.run_sub_jobs([SubJob(kind="leaf", input=number) for number in (1, 2)])))

    assert (await house.finish(await house.submit("threaded"))).result == b"30"


async def test_too_many_sub_jobs_are_refused(tmp_path: Path) -> None:
    async with open_house(tmp_path, sub_jobs_max=3) as house:
        family(house, [])
        job = await house.finish(await house.submit("tries", b"[1,2,3,4]"))
        assert job.error is not None
        assert (job.state, job.error.code) == (State.FAILED, "limit_exceeded")


# --- stop ------------------------------------------------------------------------------------------------------------------


async def test_a_graceful_stop_waits_for_what_runs(house: House) -> None:
    @house.kind("works")
    async def works(job: milepost.Running) -> str:
        await house.signals.stop_at("works")
        return "done in time"

    job_id = await house.started("works", "works")
    draining = asyncio.ensure_future(house.node.executor.drain(10.0))
    await asyncio.sleep(0)
    house.signals.let_go("works")
    assert await draining == 0
    assert await house.state(job_id) is State.SUCCEEDED


async def test_what_is_left_at_a_stop_goes_back_without_counting(house: House, tmp_path: Path) -> None:
    use_isolated(house)

    @house.kind("works")
    async def works(job: milepost.Running) -> None:
        await house.signals.stop_at("works")

    pid_file = tmp_path / "pid"
    isolated = await house.submit("isolated.hang", msgspec.json.encode({"path": str(pid_file)}))
    job_id = await house.started("works", "works")
    await poll(lambda: pid_file.exists() and pid_file.read_text())
    assert await house.node.executor.drain(0.0) == 2
    for one in (job_id, isolated):
        job = await house.job(one)
        assert (job.state, job.attempt, job.error) == (State.READY, 0, None)
        assert (await house.history(one))[-1] == "returned"
    await poll(lambda: not alive(int(pid_file.read_text())))


async def test_jobs_claimed_just_before_a_stop_go_back_too(house: House) -> None:
    @house.kind("works")
    async def works(job: milepost.Running) -> None: ...

    job_id = await house.submit("works")
    await house.node.heartbeat.run_once()
    claimed = await house.store.claim_jobs("default", worker=house.node.worker, now_us=house.clock.now_us(), limit=1)
    house.node.executor.start(claimed)
    assert await house.node.executor.drain(0.0) == 1
    job = await house.job(job_id)
    assert (job.state, job.attempt) == (State.READY, 0)
    assert house.node.executor.attempts == {}


# --- isolated --------------------------------------------------------------------------------------------------------------


async def test_an_isolated_failure_is_the_jobs(house: House) -> None:
    use_isolated(house)
    job = await house.run("isolated.fails")
    assert job.error is not None
    assert (job.state, job.error.code, job.error.details) == (State.FAILED, "no_such_volume", {"volume": "v1"})


async def test_an_isolated_process_that_dies_is_tried_again(house: House) -> None:
    use_isolated(house)
    job = await house.run("isolated.exits")
    assert job.error is not None
    assert (job.state, job.error.code) == (State.READY, "worker_process_died")
    assert "exit code 7" in job.error.message


async def test_an_isolated_function_that_burns_its_processor_time_is_stopped(house: House) -> None:
    use_isolated(house)
    job = await house.run("isolated.burns")
    assert job.error is not None
    assert (job.state, job.error.code) == (State.FAILED, "limit_exceeded")
