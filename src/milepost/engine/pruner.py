"""Removes expired jobs, old tombstones and old deliveries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import structlog

from milepost.clock import Clock
from milepost.engine.stats import EngineStats
from milepost.errors import StoreUnavailable
from milepost.job import JobId
from milepost.settings import Settings
from milepost.store import Store

log = structlog.get_logger("milepost.engine")

BATCH = 200


class Pruner:
    """Runs every `prune_every_s`, in small batches; `on_round` runs after each round.  Ends only by cancellation."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        settings: Settings,
        stats: EngineStats,
        *,
        on_round: Callable[[Sequence[JobId]], Awaitable[None]],
    ) -> None:
        self._store, self._clock, self._settings, self._stats, self._on_round = store, clock, settings, stats, on_round

    async def run(self) -> None:
        while True:
            await self._clock.sleep(self._settings.prune_every_s)
            try:
                await self.run_once()
            except (StoreUnavailable, OSError) as error:
                log.error("cannot prune, trying again", error=str(error))

    async def run_once(self) -> int:
        """Returns how many jobs were removed."""
        removed: list[JobId] = []
        while True:
            ids = await self._store.prune(
                now_us=self._clock.now_us(),
                keep_tombstone_s=self._settings.keep_tombstone_s,
                keep_deliveries_s=self._settings.keep_deliveries_s,
                limit=BATCH,
            )
            removed.extend(ids)
            if len(ids) < BATCH:
                break
            await self._clock.sleep(0.01)  # let submits pass between two batches
        self._stats.pruned += len(removed)
        await self._on_round(removed)
        return len(removed)
