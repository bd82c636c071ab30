"""Renews this process's lease from a thread of its own: user code that blocks the event loop does not cost it its jobs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import structlog

from milepost.clock import Clock
from milepost.engine.attempt import Attempt
from milepost.engine.stats import EngineStats
from milepost.errors import StoreUnavailable
from milepost.job import JobId, WorkerId
from milepost.settings import Settings
from milepost.store import Renewal, Store

log = structlog.get_logger("milepost.engine")


class Heartbeat:
    """`run_once` renews; `start` does so every `heartbeat_s` in a thread until `stop`.

    `on_renewal` is called with what the store said and the attempts that were running before it was asked.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        settings: Settings,
        worker: WorkerId,
        stats: EngineStats,
        *,
        running: Callable[[], dict[JobId, Attempt]],
        on_renewal: Callable[[Renewal, dict[JobId, Attempt]], None],
    ) -> None:
        self._store, self._clock, self._settings, self._worker, self._stats = store, clock, settings, worker, stats
        self._running, self._on_renewal = running, on_renewal
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._home: asyncio.AbstractEventLoop | None = None

    async def run_once(self) -> Renewal:
        running = self._running()
        renewal = await self._store.renew_lease(self._worker, now_us=self._clock.now_us(), lease_s=self._settings.lease_s)
        self._stats.heartbeats += 1
        if self._home is None:
            self._on_renewal(renewal, running)
        else:
            self._home.call_soon_threadsafe(self._on_renewal, renewal, running)
        return renewal

    def start(self) -> None:
        self._home = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._beat, name="milepost-heartbeat", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        with asyncio.Runner() as runner:
            while not self._stop.wait(self._settings.heartbeat_s):
                try:
                    runner.run(self.run_once())
                except StoreUnavailable as error:
                    log.error("cannot renew the lease, trying again", error=str(error))
                except RuntimeError as error:  # the home loop is closed: the process is ending
                    log.debug("heartbeat ends", error=str(error))
                    return

    async def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 10.0)
