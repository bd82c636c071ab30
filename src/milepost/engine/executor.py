"""Runs claimed jobs: coroutines on the loop, plain functions in threads, isolated ones in subprocesses.

Rules
1. What an attempt came to is a value (`Outcome`), decided in `_outcome_of…` and written by the `Finisher`, nowhere else.
2. A cancelled coroutine or subprocess stops at once; a plain function is asked (`cancel_requested`) and waited for, because a
   thread cannot be killed and starting it again beside itself would be worse.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from functools import partial
from pathlib import Path
from typing import Any, assert_never

import msgspec
import structlog

from milepost.clock import Clock
from milepost.engine import isolated
from milepost.engine.attempt import Attempt, Reporter, storable_failure, storable_text
from milepost.engine.context import Cancel, Objects, Running, RunningInThread, Snooze, SubOutcome, Suspend
from milepost.engine.finisher import Finisher
from milepost.engine.kinds import Kind
from milepost.engine.service import Service
from milepost.engine.stats import EngineStats
from milepost.errors import (
    InvalidInput,
    JobError,
    LimitExceeded,
    PermanentError,
    RetryableError,
    StoreUnavailable,
    UnknownKind,
)
from milepost.job import (
    Cancelled,
    Claimed,
    Failed,
    Failure,
    JobId,
    Outcome,
    Progress,
    Retried,
    Returned,
    Snoozed,
    Submission,
    Succeeded,
    Suspended,
)
from milepost.settings import Settings
from milepost.store import Store

log = structlog.get_logger("milepost.engine")

UNKNOWN_KIND_PAUSE_S = 30.0
_encode = msgspec.json.Encoder().encode


class Executor:
    """Holds the running attempts of this process; knows how many of each queue there are."""

    def __init__(
        self,
        store: Store,
        service: Service,
        clock: Clock,
        settings: Settings,
        stats: EngineStats,
        *,
        scratch: Path,
        objects: Objects | None,
        on_free: Callable[[str], None],
    ) -> None:
        self._store, self._service, self._clock, self._settings, self._stats = store, service, clock, settings, stats
        self._kinds = service.kinds
        self._scratch, self._folder, self._objects, self._on_free = scratch, scratch.parent, objects, on_free
        self._threads: ThreadPoolExecutor | None = None
        self.attempts: dict[JobId, Attempt] = {}
        self._waiting: deque[Attempt] = deque()  # claimed, not begun
        self._runners: set[asyncio.Task[None]] = set()
        self._rounds = 0  # how often the loop came round behind a runner
        self._emptied: asyncio.Future[None] | None = None  # somebody waits until nothing runs
        self._finisher = Finisher(store, service, clock, settings, stats, scratch=scratch, on_ended=self._ended)
        self.in_queue: dict[str, int] = {}

    def start(self, claimed: Iterable[Claimed]) -> None:
        """Begin these; each frees its slot when it ends."""
        now_s = self._clock.monotonic_s()
        for one in claimed:
            job = one.job
            attempt = Attempt(one, now_s)
            self.attempts[job.id] = attempt
            self.in_queue[job.queue] = self.in_queue.get(job.queue, 0) + 1
            self._stats.claims += 1
            self._stats.attempts[job.kind] += 1
            self._waiting.append(attempt)
        self._run_waiting()

    def _run_waiting(self) -> None:
        if self._waiting:
            runner = asyncio.create_task(self._run_in_turn())
            self._runners.add(runner)
            runner.add_done_callback(self._runners.discard)

    async def _run_in_turn(self) -> None:
        """Run attempts one after the other until one has to wait: many jobs end without that, and a task for each costs more.

        The next runner is made when the loop comes round and finds attempts waiting, which is when this one waits itself.  An
        attempt that waited, was interrupted, or changed a context variable is the last one of its task: nothing that it left
        with the task, as a timeout or a library's task-local, reaches a stranger.
        """
        runner, context, rounds = asyncio.current_task(), copy_context(), self._rounds
        assert runner is not None
        asyncio.get_running_loop().call_soon(self._come_round)
        while self._waiting:
            attempt = self._waiting.popleft()
            attempt.task = runner
            await self._run(attempt)
            if self._rounds != rounds or runner.cancelling() or not _is_same(copy_context(), context):
                context.run(self._run_waiting)
                return

    def _come_round(self) -> None:
        self._rounds += 1
        self._run_waiting()

    # --- one attempt -----------------------------------------------------------------------------------------------

    async def _run(self, attempt: Attempt) -> None:
        job = attempt.claimed.job
        attempt.begun = True
        try:
            asked = attempt.cancel_reason is not None or attempt.lost or attempt.stopping
            outcome = self._outcome_of_cancel(attempt) if asked else await self._attempt(attempt)
        except asyncio.CancelledError:
            outcome = self._outcome_of_cancel(attempt)
        except StoreUnavailable as error:  # while the attempt was prepared: nothing of it ran
            log.error("cannot begin an attempt; the job goes back to its queue", job_id=job.id, error=str(error))
            outcome = Returned()
        except Exception as error:  # what it came to cannot even be said, as a snooze for ever
            log.error("an attempt came to nothing that can be stored", job_id=job.id, kind=job.kind, exc_info=error)
            outcome = Failed(storable_failure("bad_result", f"what the function asked for cannot be: {error}"))
        attempt.finishing = True
        self._finisher.put(attempt, outcome)

    def _ended(self, attempt: Attempt) -> None:
        """What it came to is written, or will never be: its slot is free."""
        job = attempt.claimed.job
        if self.attempts.get(job.id) is attempt:  # else a later attempt runs here: this one had lost its lease
            del self.attempts[job.id]
        attempt.running = attempt.reporter = attempt.task = None  # they know it in turn: a circle would wait for the collector
        self.in_queue[job.queue] -= 1
        if not self.attempts and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)
        self._on_free(job.queue)

    async def _attempt(self, attempt: Attempt) -> Outcome:
        job = attempt.claimed.job
        try:
            kind = self._kinds.get(job.kind)
        except UnknownKind:
            log.warning("no such kind in this process", job_id=job.id, kind=job.kind)
            at_us = self._clock.now_us() + int(UNKNOWN_KIND_PAUSE_S * 1e6)
            return Snoozed(at_us, f"no worker knows the kind {job.kind!r}")
        try:
            spec = kind.read_input(job.input or b"{}")
        except InvalidInput as error:
            return Failed(Failure(error.code, error.message, {"path": error.path}))
        attempt.running = await self._context(attempt)
        try:
            limit_s = self._time_limit(attempt, kind)
            if limit_s is None:
                result = await self._call(attempt, kind, spec)
            else:
                result = await self._call_within(attempt, kind, spec, limit_s)
            if attempt.reporter is not None and attempt.reporter.unwritten:
                await attempt.reporter.settle()
            return self._outcome_of_value(kind, result)
        except asyncio.CancelledError:
            if attempt.cancel_reason is None and not attempt.lost and not attempt.stopping and attempt.timed_out is None:
                return self._retry_or_fail(attempt, Failure("exception", "the function raised CancelledError"), None)
            raise
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                log.warning("a job function tried to end the process", job_id=job.id, kind=job.kind, error=repr(error))
            return self._outcome_of_error(attempt, kind, error)

    async def _context(self, attempt: Attempt) -> Running:
        job = attempt.claimed.job
        outcomes = await self._sub_outcomes(job.id) if job.sub_total else []
        return Running(
            job,
            attempt.claimed.claim,
            report=partial(self._report, attempt),
            sub_outcomes=outcomes,
            scratch=self._scratch,
            folder=self._folder,
            reserve=self._service.reserve,
            settings=self._settings,
            objects=self._objects,
            store=self._store,
            now_us=self._clock.now_us,
        )

    async def _report(self, attempt: Attempt, progress: Progress) -> None:
        if attempt.reporter is None:
            attempt.reporter = Reporter(self._store, self._clock, self._settings, attempt, lose=self._lose)
        await attempt.reporter.report(progress)

    async def _sub_outcomes(self, job_id: JobId) -> list[SubOutcome]:
        return [
            SubOutcome(
                sub.id,
                sub.kind,
                sub.position,
                sub.state,
                None if sub.result is None else msgspec.json.decode(sub.result),
                sub.error,
            )
            for sub in await self._store.list_sub_jobs(job_id)
        ]

    def _time_limit(self, attempt: Attempt, kind: Kind) -> float | None:
        job = attempt.claimed.job
        if job.timeout_s is None and job.deadline_us is None and kind.style != "isolated":
            return None
        limits = [
            limit for limit in (job.timeout_s, kind.limits.wall_s if kind.style == "isolated" else None) if limit is not None
        ]
        if job.deadline_us is not None:
            limits.append(max(0.0, (job.deadline_us - self._clock.now_us()) / 1e6))
        return min(limits) if limits else None

    async def _call_within(self, attempt: Attempt, kind: Kind, spec: Any, limit_s: float) -> Any:
        timer = self._clock.call_later(limit_s, self._time_out, attempt, limit_s)
        try:
            return await self._call(attempt, kind, spec)
        finally:
            timer.cancel()

    def _time_out(self, attempt: Attempt, limit_s: float) -> None:
        job = attempt.claimed.job
        if job.deadline_us is not None and self._clock.now_us() >= job.deadline_us:
            attempt.timed_out = Failure("deadline_exceeded", "the job was not done by its deadline; it was running")
        else:
            attempt.timed_out = Failure("attempt_timeout", f"the attempt took longer than {limit_s:g} s")
        attempt.interrupt()

    async def _call(self, attempt: Attempt, kind: Kind, spec: Any) -> Any:
        running = attempt.running
        assert running is not None
        arguments = () if kind.input_type is None else (spec,)
        match kind.style:
            case "async":
                return await kind.function(running, *arguments)
            case "thread":
                return await self._call_in_thread(attempt, kind, running, arguments)
            case "isolated":
                return await isolated.call(kind, running)
            case _:
                assert_never(kind.style)

    async def _call_in_thread(self, attempt: Attempt, kind: Kind, running: Running, arguments: tuple[Any, ...]) -> Any:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._settings.threads_max, thread_name_prefix="milepost-job")
        loop = asyncio.get_running_loop()
        attempt.flag = threading.Event()
        context = RunningInThread(running, loop, attempt.flag.is_set)
        return await loop.run_in_executor(self._threads, _call_kept, kind.function, context, arguments)

    # --- outcomes --------------------------------------------------------------------------------------------------

    def _outcome_of_value(self, kind: Kind, value: Any) -> Outcome:
        if isinstance(value, (Snooze, Cancel)):
            raise value
        try:
            result = _checked(bytes(value)) if isinstance(value, msgspec.Raw) else _encode(value)
        except (TypeError, ValueError, RecursionError) as error:
            return Failed(Failure("bad_result", f"the function of kind {kind.name!r} returned what is not JSON: {error}"))
        if len(result) > self._settings.result_bytes_max:
            return Failed(
                Failure(
                    "result_too_large",
                    f"the result has {len(result)} bytes; {self._settings.result_bytes_max} are allowed",
                    {"limit": "result_bytes_max", "allowed": self._settings.result_bytes_max, "seen": len(result)},
                )
            )
        return Succeeded(result)

    def _outcome_of_error(self, attempt: Attempt, kind: Kind, error: BaseException) -> Outcome:
        while (
            isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1
        ):  # raised by a task of a group: it means the same
            error = error.exceptions[0]
        if attempt.timed_out is not None and not isinstance(error, (PermanentError, Suspend)):
            return self._outcome_of_cancel(attempt)
        match error:
            case Suspend():
                return self._suspended(attempt, error)
            case Snooze():
                return Snoozed(self._clock.now_us() + int(error.delay_s * 1e6), storable_text(error.note))
            case Cancel():
                if attempt.cancel_reason is None and attempt.stopping:
                    return Returned()
                return Cancelled(storable_failure("cancelled", attempt.cancel_reason or error.reason))
            case PermanentError():
                return Failed(storable_failure(error.code, error.message, error.details))
            case RetryableError():
                return self._retry_or_fail(attempt, storable_failure(error.code, error.message, error.details), error.delay_s)
            case JobError():
                failed = [_sub_failure(sub) for sub in error.fields.get("failed", getattr(error, "failed", []))]
                return Failed(storable_failure("sub_jobs_failed", error.message, {"failed": failed} if failed else None))
            case LimitExceeded():
                return Failed(Failure(error.code, error.message, {"limit": error.limit, "allowed": error.allowed}))
            case _:
                log.warning("a job function raised", job_id=attempt.claimed.job.id, kind=kind.name, exc_info=error)
                return self._retry_or_fail(attempt, storable_failure("exception", f"{type(error).__name__}: {error}"), None)

    def _outcome_of_cancel(self, attempt: Attempt) -> Outcome:
        if attempt.cancel_reason is not None:
            return Cancelled(Failure("cancelled", attempt.cancel_reason))
        if attempt.timed_out is not None:
            if attempt.timed_out.code == "deadline_exceeded":
                return Failed(attempt.timed_out)
            return self._retry_or_fail(attempt, attempt.timed_out, None)
        return Returned()

    def _retry_or_fail(self, attempt: Attempt, failure: Failure, delay_s: float | None) -> Outcome:
        job = attempt.claimed.job
        tried = job.attempt - job.crashes
        if tried >= job.attempts_max:
            return Failed(failure)
        delay_s = self._backoff_s(tried) if delay_s is None else delay_s
        return Retried(failure, self._clock.now_us() + int(delay_s * 1e6))

    def _backoff_s(self, tried: int) -> float:
        """Exponential with jitter: between half and all of backoff_s · 2^(tried-1), at most backoff_s_max."""
        full_s: float = min(self._settings.backoff_s * 2.0 ** min(tried - 1, 40), self._settings.backoff_s_max)
        return full_s * random.uniform(0.5, 1.0)

    def _suspended(self, attempt: Attempt, suspend: Suspend) -> Outcome:
        job = attempt.claimed.job
        total = job.sub_total + len(suspend.sub_jobs)
        if total > self._settings.sub_jobs_max:
            return Failed(Failure("limit_exceeded", f"{total} sub-jobs; {self._settings.sub_jobs_max} are allowed"))
        submissions: list[Submission] = []
        for position, sub in enumerate(suspend.sub_jobs, job.sub_total):
            try:
                submission = self._service.submission(
                    sub.kind,
                    input=_encode({} if sub.input is None else sub.input),
                    queue=sub.queue,
                    labels=sub.labels,
                    deadline_us=job.deadline_us,
                )
                self._service.check(submission)
                _encode(submission.labels)
            except (InvalidInput, LimitExceeded) as error:
                return Failed(storable_failure(error.code, f"sub-job {position} ({sub.kind}): {error.message}"))
            except (TypeError, ValueError, RecursionError) as error:
                return Failed(storable_failure(InvalidInput.code, f"sub-job {position} ({sub.kind}) is not JSON: {error}"))
            submissions.append(submission)
        return Suspended(submissions)

    # --- from outside ----------------------------------------------------------------------------------------------

    def cancel(self, job_ids: Iterable[JobId], reason: str) -> None:
        """Somebody asked these to stop; those that do not run here are passed over."""
        for job_id in job_ids:
            attempt = self.attempts.get(job_id)
            if attempt is not None and attempt.cancel_reason is None:
                attempt.cancel_reason = reason
                attempt.interrupt()

    def lose(self, job_ids: Iterable[JobId]) -> None:
        """These belong to another worker now: stop them, write nothing."""
        for job_id in job_ids:
            attempt = self.attempts.get(job_id)
            if attempt is not None:
                self._lose(attempt)

    def _lose(self, attempt: Attempt) -> None:
        if not attempt.lost and not attempt.finishing:
            log.warning("lease lost", job_id=attempt.claimed.job.id, fence=attempt.claimed.claim.fence)
            self._stats.lost_leases += 1
            attempt.lost = True
            attempt.interrupt()

    async def drain(self, grace_s: float) -> int:
        """Wait for the running ones, then give the rest back to their queues.  Returns how many were given back."""
        if grace_s > 0:
            await self._wait_empty(grace_s)
        left = list(self.attempts.values())
        for attempt in left:
            attempt.stopping = True
            if attempt.running is not None:
                attempt.running.stopping = True
            attempt.interrupt()
        await self._wait_empty(2.0)
        for attempt in list(self.attempts.values()):  # plain functions that do not look at cancel_requested
            with contextlib.suppress(StoreUnavailable):
                await self._store.finish_job(attempt.claimed.claim, Returned(), now_us=self._clock.now_us())
            attempt.lost = True
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        return len(left)

    async def _wait_empty(self, timeout_s: float) -> None:
        if self.attempts:
            self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._emptied], timeout=timeout_s)
            self._emptied = None


def _call_kept(function: Callable[..., Any], context: RunningInThread, arguments: tuple[Any, ...]) -> Any:
    """Call it in its thread.  StopIteration cannot pass through a future, so it is wrapped."""
    try:
        return function(context, *arguments)
    except StopIteration as error:
        raise RuntimeError("the function raised StopIteration") from error


def _is_same(one: Context, other: Context) -> bool:
    """Whether nothing was changed.  Values that cannot be compared, as arrays, are different ones."""
    try:
        return one == other
    except Exception:
        return False


def _checked(raw: bytes) -> bytes:
    """The same bytes.  Errors: ValueError when they are not JSON text."""
    msgspec.json.decode(raw)
    raw.decode()
    return raw


def _sub_failure(sub: Any) -> dict[str, Any]:
    return {"job_id": sub.job_id, "kind": sub.kind, "state": str(sub.state), "error": msgspec.to_builtins(sub.error)}
