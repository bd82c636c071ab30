"""Writes what attempts came to: those that ended in the same round of the loop together, and what is refused alone.

Rules
1. An outcome is kept and written again until the store takes it or says that the lease was lost: a full disk loses no result.
2. Nothing that stops an attempt stops the write of what it came to.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from pathlib import Path

import structlog

from milepost.clock import Clock
from milepost.engine.attempt import Attempt, storable_failure
from milepost.engine.service import Service
from milepost.engine.stats import EngineStats
from milepost.errors import InvalidInput, StoreUnavailable
from milepost.job import Cancelled, Failed, Outcome, Retried, Returned, Snoozed, State, Succeeded, Suspended
from milepost.settings import Settings
from milepost.store import Ended, Store

log = structlog.get_logger("milepost.engine")

NAMES = {one: one.__name__.lower() for one in (Succeeded, Failed, Retried, Cancelled, Snoozed, Returned, Suspended)}


class Finisher:
    """`put` an outcome; `on_ended` is called once it is written, or never will be because the lease was lost."""

    def __init__(
        self,
        store: Store,
        service: Service,
        clock: Clock,
        settings: Settings,
        stats: EngineStats,
        *,
        scratch: Path,
        on_ended: Callable[[Attempt], None],
    ) -> None:
        self._store, self._dispatch, self._kinds, self._clock = store, service.dispatch, service.kinds, clock
        self._stats, self._scratch, self._on_ended = stats, scratch, on_ended
        self._keep_s = {
            Succeeded: (State.SUCCEEDED, settings.keep_succeeded_s),
            Failed: (State.FAILED, settings.keep_failed_s),
            Cancelled: (State.CANCELLED, settings.keep_cancelled_s),
        }
        self._context = copy_context()  # not one that a function may have changed
        self._waiting: list[tuple[Attempt, Outcome]] = []
        self._writes: set[asyncio.Task[None]] = set()

    def put(self, attempt: Attempt, outcome: Outcome) -> None:
        """Write it in the next round of the loop; of an attempt that lost its lease there is nothing to write."""
        if attempt.lost:
            self._on_ended(attempt)
            return
        if not self._waiting:
            self._begin(self._write_waiting())
        self._waiting.append((attempt, outcome))

    async def _write_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        await (self._write_alone(*waiting[0]) if len(waiting) == 1 else self._write_together(waiting))

    def _begin(self, write: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(write, context=self._context)
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _write_together(self, waiting: list[tuple[Attempt, Outcome]]) -> None:
        now_us = self._clock.now_us()
        ended = [
            Ended(attempt.claimed.claim, outcome, now_us, self._expires_us(attempt, outcome, now_us))
            for attempt, outcome in waiting
        ]
        try:
            written = await self._store.finish_jobs(ended)
        except (InvalidInput, StoreUnavailable):  # each finds out alone whether it is to blame
            for attempt, outcome in waiting:
                self._begin(self._write_alone(attempt, outcome))
            return
        for (attempt, outcome), held in zip(waiting, written, strict=True):
            self._written(attempt, outcome, held)

    async def _write_alone(self, attempt: Attempt, outcome: Outcome) -> None:
        claim, pause_s = attempt.claimed.claim, 0.05
        while not attempt.lost:
            now_us = self._clock.now_us()
            try:
                expires_us = self._expires_us(attempt, outcome, now_us)
                held = await self._store.finish_job(claim, outcome, now_us=now_us, expires_us=expires_us)
            except InvalidInput as error:  # the store cannot keep this, however often it is asked
                log.error("an outcome cannot be stored", job_id=claim.job_id, error=str(error))
                outcome = Failed(storable_failure("bad_result", f"what the function asked for cannot be stored: {error.message}"))
            except StoreUnavailable as error:
                log.error("cannot write an outcome, trying again", job_id=claim.job_id, error=str(error), pause_s=pause_s)
                await self._clock.sleep(pause_s)
                pause_s = min(pause_s * 2, 5.0)
            else:
                self._written(attempt, outcome, held)
                return
        self._on_ended(attempt)

    def _written(self, attempt: Attempt, outcome: Outcome, held: bool) -> None:
        job, name = attempt.claimed.job, NAMES[type(outcome)]
        self._stats.outcomes[job.kind, name] += 1
        self._stats.ran[job.kind].add(self._clock.monotonic_s() - attempt.started_s)
        if held:
            self._follow(attempt, outcome)
        else:
            self._stats.lost_leases += 1
            log.warning("lease lost", job_id=job.id, fence=attempt.claimed.claim.fence, outcome=name)
        self._on_ended(attempt)

    def _expires_us(self, attempt: Attempt, outcome: Outcome, now_us: int) -> int | None:
        job = attempt.claimed.job
        kept = self._keep_s.get(type(outcome))
        if kept is None or job.parent_id is not None:
            return None
        state, keep_s = kept
        if job.kind in self._kinds:
            keep_s = self._kinds.get(job.kind).keep_s.get(state, keep_s)
        return now_us + int(keep_s * 1e6)

    def _follow(self, attempt: Attempt, outcome: Outcome) -> None:
        """Hints about what the outcome made possible, and the end of the scratch folder."""
        job = attempt.claimed.job
        match outcome:
            case Retried(_, at_us) | Snoozed(at_us, _):
                self._dispatch.reschedule()
                if at_us <= self._clock.now_us():  # due already: the schedule does not hold it
                    self._dispatch.announce(job.queue)
            case Returned():
                pass
            case Suspended(sub_jobs):
                for queue in {sub.queue for sub in sub_jobs}:
                    self._dispatch.announce(queue)
            case Succeeded() | Failed() | Cancelled():
                if job.callback is not None:
                    self._dispatch.announce_delivery()
                if attempt.running is not None and (attempt.running.scratch_used or job.attempt > 1):
                    self._drop_scratch(self._scratch / job.id)

    def _drop_scratch(self, scratch: Path) -> None:
        asyncio.get_running_loop().run_in_executor(None, lambda: shutil.rmtree(scratch, ignore_errors=True))
