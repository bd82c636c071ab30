"""Takes due jobs for this process, as many as its queues have free slots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import copy_context

import structlog

from milepost.clock import Clock
from milepost.dispatch import Dispatch
from milepost.engine.executor import Executor
from milepost.engine.kinds import Kinds
from milepost.errors import StoreUnavailable
from milepost.job import Claimed, WorkerId
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
        self._more: set[str] = set()  # queues that had more due jobs than slots
        self._taken: dict[str, int] = {}  # slots of jobs that are on their way to the disk as running
        self._context = copy_context()  # not that of who submits
        self._settled: asyncio.Future[None] | None = None
        self._open = False  # for jobs that the store starts
        self._end: Callable[[], None] | None = None  # of the registration with the store

    def on_free(self, queue: str) -> None:
        """A slot of this queue is free."""
        if queue in self._more:
            self._dispatch.announce(queue)

    # --- the store's Starter ---------------------------------------------------------------------------------------

    @property
    def worker(self) -> WorkerId:
        return self._worker

    def take(self, queue: str, wanted: int) -> int:
        if not self._open or self._dispatch.queues_changed:
            return 0
        taken = min(wanted, self._free(queue))
        if taken < wanted:
            self._more.add(queue)
        if taken > 0:
            self._taken[queue] = self._taken.get(queue, 0) + taken
        return max(0, taken)

    def give_back(self, queue: str, count: int) -> None:
        self._taken[queue] -= count
        self.on_free(queue)
        self._look_settled()

    def start(self, claimed: Sequence[Claimed]) -> None:
        for one in claimed:
            self._taken[one.job.queue] -= 1
        self._context.run(self._executor.start, claimed)
        self._look_settled()

    def _free(self, name: str) -> int:
        queue = self._queues.get(name)
        if queue is not None and queue.paused:
            return 0
        limit = self._limits.get(name, self._settings.queue_limit) if queue is None or queue.limit is None else queue.limit
        return limit - self._executor.in_queue.get(name, 0) - self._taken.get(name, 0)

    def register(self) -> None:
        """From now on the store starts jobs here."""
        self._open, self._end = True, self._store.start_with(self)

    def _look_settled(self) -> None:
        if self._settled is not None and not self._settled.done() and not any(self._taken.values()):
            self._settled.set_result(None)

    # --- claims ----------------------------------------------------------------------------------------------------

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
            self._more.discard(name)
            queue = self._queues.get(name)
            if queue is not None and queue.paused:
                return taken
            free = min(self._free(name), CLAIM_MAX)
            if free <= 0:
                self._more.add(name)
                return taken
            claimed = await self._claim(name, free)
            taken += claimed
            if claimed < free:
                return taken

    async def settle(self) -> None:
        """No job starts any more, and every one that was on its way has come; call it when `run` has ended."""
        self._open = False
        if any(self._taken.values()):
            self._settled = asyncio.get_running_loop().create_future()
            await self._settled
        if self._end is not None:
            self._end()

    async def _claim(self, name: str, limit: int) -> int:
        told = self._end is not None  # then the store starts them, also if nobody waits for this claim any more
        claimed = await self._store.claim_jobs(
            name,
            worker=self._worker,
            now_us=self._clock.now_us(),
            limit=limit,
            last_chance=max(1, self._settings.crashes_max - 1),
        )
        if not told:
            self._executor.start(claimed)
        return len(claimed)
