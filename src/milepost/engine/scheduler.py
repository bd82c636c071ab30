"""Makes scheduled jobs due when their time comes, and fails idle jobs whose deadline has passed."""

from __future__ import annotations

import structlog

from milepost.clock import Clock
from milepost.dispatch import Dispatch
from milepost.errors import StoreUnavailable
from milepost.settings import Settings
from milepost.store import Store

log = structlog.get_logger("milepost.engine")

BATCH = 500
LONGEST_PAUSE_S = 30.0


class Scheduler:
    """Sleeps until the next run_at or deadline, or until a hint says that one may be earlier.  Ends only by cancellation."""

    def __init__(self, store: Store, dispatch: Dispatch, clock: Clock, settings: Settings) -> None:
        self._store, self._dispatch, self._clock, self._settings = store, dispatch, clock, settings

    async def run(self) -> None:
        while True:
            begun_s = self._clock.monotonic_s()
            try:
                pause_s = await self.run_once()
            except StoreUnavailable as error:
                log.error("cannot look for due jobs, trying again", error=str(error))
                pause_s = 1.0
            # The pause counts from the look: a clock that was moved meanwhile must not make it longer.
            passed_s = self._clock.monotonic_s() - begun_s
            await self._dispatch.next_schedule(max(0.0, pause_s - passed_s))

    async def run_once(self) -> float:
        """Returns in how many seconds something is due next."""
        now_us = self._clock.now_us()
        queues, next_us = await self._store.promote_due(now_us=now_us, limit=BATCH)
        for queue in queues:
            self._dispatch.announce(queue)
        failed = await self._store.fail_overdue(
            now_us=now_us, limit=BATCH, expires_us=now_us + int(self._settings.keep_failed_s * 1e6)
        )
        if failed:
            log.warning("deadlines passed", count=failed)
            self._dispatch.announce_delivery()
            self._dispatch.announce_cancel()
        deadline_us = await self._store.next_deadline_us()
        due = [at_us for at_us in (next_us, deadline_us) if at_us is not None]
        return min(max(0.0, (min(due) - now_us) / 1e6), LONGEST_PAUSE_S) if due else LONGEST_PAUSE_S
