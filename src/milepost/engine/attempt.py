"""One claimed job while it runs in this process, and what it says about itself before it ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from milepost.clock import Clock, Timer
from milepost.engine.context import Running
from milepost.errors import StoreUnavailable
from milepost.job import Claimed, Failure, Progress
from milepost.settings import Settings
from milepost.store import Store

log = structlog.get_logger("milepost.engine")

FAILURE_CHARS_MAX = 4000
DETAILS_BYTES_MAX = 64 << 10
_encode = msgspec.json.Encoder().encode


class Attempt:
    """One claimed job while it runs here."""

    __slots__ = (
        "begun",
        "cancel_reason",
        "claimed",
        "finishing",
        "flag",
        "lost",
        "reporter",
        "running",
        "started_s",
        "stopping",
        "task",
        "timed_out",
    )

    def __init__(self, claimed: Claimed, started_s: float) -> None:
        self.claimed, self.started_s = claimed, started_s
        self.task: asyncio.Task[None] | None = None
        self.running: Running | None = None
        self.reporter: Reporter | None = None
        self.flag: threading.Event | None = None  # what a plain function looks at
        self.cancel_reason: str | None = None
        self.begun = self.lost = self.stopping = self.finishing = False
        self.timed_out: Failure | None = None

    def interrupt(self) -> None:
        """Stop the function.  One that has not begun looks by itself; once its outcome is known there is nothing to stop."""
        if self.finishing or not self.begun:
            return
        if self.flag is not None:
            self.flag.set()
        elif self.task is not None:
            self.task.cancel()


class Reporter:
    """Progress of one attempt, coalesced: at most one write every `progress_every_s`, and the last one always."""

    def __init__(
        self, store: Store, clock: Clock, settings: Settings, attempt: Attempt, *, lose: Callable[[Attempt], None]
    ) -> None:
        self._store, self._clock, self._settings, self._attempt, self._lose = store, clock, settings, attempt, lose
        self._last_s = float("-inf")
        self.kept: Progress | None = None
        self._timer: Timer | None = None
        self._writing: asyncio.Task[None] | None = None  # by the timer

    @property
    def unwritten(self) -> bool:
        """Whether there is progress that is not on disk, or on its way there with nobody waiting for it."""
        return self.kept is not None or self._writing is not None

    async def report(self, progress: Progress) -> None:
        every_s = self._settings.progress_every_s
        now_s = self._clock.monotonic_s()
        self.kept = progress
        if now_s - self._last_s >= every_s:
            await self.flush()
        elif self._timer is None:
            delay_s = every_s - (now_s - self._last_s)
            self._timer = self._clock.call_later(delay_s, self._flush_soon)

    def _flush_soon(self) -> None:
        self._timer = None
        if self.kept is not None and not self._attempt.finishing:
            self._writing = asyncio.ensure_future(self.flush())
            self._writing.add_done_callback(self._written)

    def _written(self, writing: asyncio.Task[None]) -> None:
        if self._writing is writing:
            self._writing = None
        if not writing.cancelled():
            writing.exception()

    async def settle(self) -> None:
        """Return when the last progress is written.  What is under way goes first: the store may write outcomes before it."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
        await self.flush()

    async def flush(self) -> None:
        """Write what was kept.  A store that is away for a moment costs a progress report, not the job."""
        progress, self.kept = self.kept, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if progress is None:
            return
        self._last_s = self._clock.monotonic_s()
        try:
            held = await self._store.report_progress(self._attempt.claimed.claim, progress, now_us=self._clock.now_us())
        except StoreUnavailable as error:
            log.warning("progress not written", job_id=self._attempt.claimed.job.id, error=str(error))
            return
        if not held:
            self._lose(self._attempt)


def storable_text(text: str) -> str:
    """Text that can be stored: not endless, and without the lone surrogates that names of files bring along."""
    return text[:FAILURE_CHARS_MAX].encode("utf-8", "backslashreplace").decode()


def storable_failure(code: str, message: str, details: dict[str, Any] | None = None) -> Failure:
    """A failure that can be stored, whatever the function put into it: what cannot be is left out and said."""
    if details is not None:
        try:
            size_bytes = len(_encode(details))
        except (TypeError, ValueError, RecursionError) as error:
            details = {"left_out": storable_text(f"details are not JSON: {error}")}
        else:
            if size_bytes > DETAILS_BYTES_MAX:
                details = {"left_out": f"details have {size_bytes} bytes; {DETAILS_BYTES_MAX} are kept"}
    return Failure(storable_text(code), storable_text(message), details)
