"""Takes due jobs for this process, as many as its queues have free slots."""

from __future__ import annotations

import asyncio

import structlog

from milepost.clock import Clock
from milepost.dispatch import Dispatch
from milepost.engine.executor import Executor
from milepost.engine.kinds import Kinds
from milepost.errors import StoreUnavailable
from milepost.job import WorkerId
from milepost.settings import Settings
from milepost.store import Queue, Store

log = structlog.get_logger("milepost.engine")

CLAIM_MAX = 500


class Claimer:
    """Claims when there is a hint, and every `claim_poll_s` without one.  Ends only by cancellation."""

    def __init__(
        self,
        store: Store,
        dispatch: Dispatch,
        executor: Executor,
        kinds: Kinds,
        clock: Clock,
        settings: Settings,
        worker: WorkerId,
        limits: dict[str, int],
    ) -> None:
        self._store, self._dispatch, self._executor, self._kinds = store, dispatch, executor, kinds
        self._clock, self._settings, self._worker = clock, settings, worker
        self._queues: dict[str, Queue] = {}
        self._limits = limits  # of queues that no operator has set
        self._sent: set[asyncio.Task[int]] = set()  # claims under way
        self._more: set[str] = set()  # queues that had more due jobs than slots

    def on_free(self, queue: str) -> None:
        """A slot of this queue is free."""
        if queue in self._more:
            self._dispatch.announce(queue)

    async def run(self) -> None:
        while True:
            hinted = await self._dispatch.next_work(self._settings.claim_poll_s)
            try:
                await self.run_once(hinted)
            except StoreUnavailable as error:
                log.error("cannot claim, trying again", error=str(error))
                await self._clock.sleep(0.2)
                for queue in hinted or ():
                    self._dispatch.announce(queue)

    async def run_once(self, hinted: frozenset[str] | None = None) -> int:
        """Fill the free slots of the queues hinted at, or of all.  Returns how many were taken."""
        if hinted is None or self._dispatch.queues_changed:
            hinted = await self._read_queues()
        if len(hinted) == 1:
            return await self._fill(*hinted)
        return sum(await asyncio.gather(*(self._fill(queue) for queue in hinted)))

    async def _read_queues(self) -> frozenset[str]:
        self._dispatch.queues_changed = False
        self._queues = {queue.name: queue for queue in await self._store.list_queues()}
        depths = await self._store.queue_depths()
        return frozenset(self._queues) | {depth.name for depth in depths if depth.ready} | {kind.queue for kind in self._kinds}

    async def _fill(self, name: str) -> int:
        taken = 0
        while True:
            queue = self._queues.get(name)
            if queue is not None and queue.paused:
                self._more.discard(name)
                return taken
            limit = self._limits.get(name, self._settings.queue_limit) if queue is None or queue.limit is None else queue.limit
            free = min(limit - self._executor.in_queue.get(name, 0), CLAIM_MAX)
            if free <= 0:
                self._more.add(name)
                return taken
            # Shielded: what a claim that was sent brings must run, or be given back, also when this loop is being stopped.
            sent = asyncio.ensure_future(self._claim(name, free))
            self._sent.add(sent)
            sent.add_done_callback(self._sent.discard)
            claimed = await asyncio.shield(sent)
            taken += claimed
            if claimed < free:
                self._more.discard(name)
                return taken

    async def settle(self) -> None:
        """Every claim that was sent has come back; call it when `run` has ended."""
        await asyncio.gather(*self._sent, return_exceptions=True)

    async def _claim(self, name: str, limit: int) -> int:
        claimed = await self._store.claim_jobs(
            name,
            worker=self._worker,
            now_us=self._clock.now_us(),
            limit=limit,
            last_chance=max(1, self._settings.crashes_max - 1),
        )
        self._executor.start(claimed)
        return len(claimed)
