"""Gives the jobs of dead workers back to their queues."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from milepost.clock import Clock
from milepost.engine.kinds import Kinds
from milepost.engine.stats import EngineStats
from milepost.errors import StoreUnavailable
from milepost.settings import Settings
from milepost.store import Store

log = structlog.get_logger("milepost.engine")


class Rescuer:
    """Looks for expired leases every `rescue_every_s`.  Ends only by cancellation.

    Failure mode: a wall clock that jumps forward makes every lease look expired.  A jump shows as wall time that passed without
    monotonic time; after one, this loop holds still for a lease, until every living worker has renewed by the new clock.
    A process that was frozen for longer than its lease wakes up here before its heartbeat may: so each round renews first, and
    then looks with an instant from before.  What nobody else has taken meanwhile is still its own.
    """

    def __init__(
        self,
        store: Store,
        kinds: Kinds,
        clock: Clock,
        settings: Settings,
        stats: EngineStats,
        *,
        renew: Callable[[], Awaitable[object]],
    ) -> None:
        self._store, self._kinds, self._clock, self._settings = store, kinds, clock, settings
        self._stats, self._renew = stats, renew
        self._seen_us, self._seen_s = clock.now_us(), clock.monotonic_s()
        self._still_until_s = float("-inf")

    async def run(self) -> None:
        while True:
            await self._clock.sleep(self._settings.rescue_every_s)
            try:
                await self.run_once()
            except StoreUnavailable as error:
                log.error("cannot look for dead workers, trying again", error=str(error))

    async def run_once(self) -> int:
        """Returns how many jobs were taken back."""
        now_us, now_s = self._clock.now_us(), self._clock.monotonic_s()
        jump_s = (now_us - self._seen_us) / 1e6 - (now_s - self._seen_s)
        self._seen_us, self._seen_s = now_us, now_s
        if abs(jump_s) > self._settings.lease_s / 3:
            log.warning("the wall clock jumped; no worker is declared dead for one lease", jump_s=round(jump_s, 1))
            self._still_until_s = now_s + self._settings.lease_s
        if now_s < self._still_until_s:
            return 0
        await self._renew()
        rescued = await self._store.rescue_expired(
            now_us=now_us,
            crashes_max=self._settings.crashes_max,
            crashes_max_of={kind.name: kind.crashes_max for kind in self._kinds if kind.crashes_max is not None},
            expires_us=now_us + int(self._settings.keep_failed_s * 1e6),
        )
        self._stats.rescued += len(rescued)
        for job in rescued:
            log.warning("job rescued", job_id=job.id, kind=job.kind, state=str(job.state), crashes=job.crashes)
        return len(rescued)
