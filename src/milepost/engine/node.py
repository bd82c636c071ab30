"""One worker process: its loops in one task group, started in order and stopped in order."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import structlog

from milepost.clock import Clock
from milepost.dispatch import Dispatch
from milepost.engine.attempt import Attempt
from milepost.engine.claimer import Claimer
from milepost.engine.context import Objects
from milepost.engine.courier import Courier, Encode, Manner, Send
from milepost.engine.executor import Executor
from milepost.engine.heartbeat import Heartbeat
from milepost.engine.pruner import Pruner
from milepost.engine.publisher import Publisher
from milepost.engine.rescuer import Rescuer
from milepost.engine.scheduler import Scheduler
from milepost.engine.service import Service
from milepost.engine.stats import EngineStats
from milepost.errors import NotFound, StoreUnavailable
from milepost.job import FINAL, Claim, Job, JobId, ProjectId, Returned, State, WorkerId
from milepost.settings import Settings
from milepost.store import Renewal, Store

log = structlog.get_logger("milepost.engine")


class Node:
    """The engine of one process.  `start`, then `stop`; `failed` is set when a loop broke, which none should."""

    def __init__(
        self,
        store: Store,
        dispatch: Dispatch,
        service: Service,
        clock: Clock,
        settings: Settings,
        *,
        scratch: Path,
        objects: Objects | None,
        send: Send,
        encode_callback: Encode,
        secret_of: Callable[[ProjectId], Awaitable[str]],
        sweep: Callable[[], Awaitable[None]] | None = None,
        limits: dict[str, int] | None = None,
        manner_of: Callable[[Job], Manner | None] | None = None,
    ) -> None:
        self.worker = WorkerId(f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        self.stats = EngineStats()
        self._store, self._dispatch, self._clock, self._settings, self._scratch = store, dispatch, clock, settings, scratch
        self._sweep = sweep
        self.executor = Executor(
            store, service, clock, settings, self.stats, scratch=scratch, objects=objects, on_free=self._on_free
        )
        self.claimer = Claimer(store, dispatch, self.executor, service.kinds, clock, settings, self.worker, limits or {})
        self.heartbeat = Heartbeat(
            store,
            clock,
            settings,
            self.worker,
            self.stats,
            running=self.executor.attempts.copy,
            on_renewal=self._on_renewal,
        )
        self.rescuer = Rescuer(store, service.kinds, clock, settings, self.stats, renew=self.heartbeat.run_once)
        self.scheduler = Scheduler(store, dispatch, clock, settings)
        self.pruner = Pruner(store, clock, settings, self.stats, on_round=self._after_prune)
        self.courier = Courier(
            store,
            dispatch,
            clock,
            settings,
            self.stats,
            send=send,
            encode=encode_callback,
            secret_of=secret_of,
            manner_of=manner_of,
        )
        self.publisher = Publisher(store, dispatch, clock, settings, self.stats)
        self._loops: list[asyncio.Task[None]] = []
        self._claiming: asyncio.Task[None] | None = None
        self._idle_since_s: dict[JobId, float] = {}  # jobs that are leased to this process and do not run in it
        self._returning: asyncio.Future[None] | None = None
        self.failed: BaseException | None = None
        self.running = self.stopping = False

    def _on_free(self, queue: str) -> None:
        self.claimer.on_free(queue)

    def _on_renewal(self, renewal: Renewal, asked: Mapping[JobId, Attempt]) -> None:
        # What the store said may be old by now: an attempt that began since it was asked is none that it spoke of.
        now = self.executor.attempts
        self.executor.lose([id_ for id_, attempt in asked.items() if id_ not in renewal.owned and now.get(id_) is attempt])
        for job_id, reason in renewal.cancel.items():
            self.executor.cancel([job_id], reason)
        # A job that is ours in the store and that nothing here runs would stay running for ever: the heartbeat keeps its lease.
        # One that stays so for a lease is not one whose claim is just on its way.
        now_s = self._clock.monotonic_s()
        idle = renewal.owned - self.executor.attempts.keys()
        self._idle_since_s = {job_id: self._idle_since_s.get(job_id, now_s) for job_id in idle}
        stranded = frozenset(job_id for job_id in idle if now_s - self._idle_since_s[job_id] >= self._settings.lease_s)
        if stranded:
            self._returning = asyncio.ensure_future(self._return(stranded))

    async def _return(self, stranded: frozenset[JobId]) -> None:
        for job_id in stranded - self.executor.attempts.keys():
            job = await self._store.get_job(job_id)
            if isinstance(job, Job) and job.state is State.RUNNING and job.lease_by == self.worker:
                log.error("a claimed job was not running here; it goes back to its queue", job_id=job_id)
                claim = Claim(job_id, job.fence, self.worker)
                await self._store.finish_job(claim, Returned(), now_us=self._clock.now_us())
                self._dispatch.announce(job.queue)

    async def start(self) -> None:
        """Leased, rescued what a dead predecessor left, and claiming."""
        self._store.on_ready(self._dispatch.announce)
        await self.heartbeat.run_once()
        if self._store.exclusive:  # nobody else can be alive: do not wait for their leases to run out
            await self._store.end_other_workers(self.worker)
        await self.rescuer.run_once()
        await self._drop_old_scratch()
        if self._sweep is not None:
            await self._sweep()
        self.heartbeat.start()
        loops = (self.scheduler.run, self.rescuer.run, self.pruner.run, self.publisher.run, self.courier.run, self._watch_cancels)
        self._loops = [self._spawn(loop) for loop in loops]
        self.claimer.register()
        self._claiming = self._spawn(self.claimer.run)
        self._dispatch.announce_queues()
        self.running = True
        log.info("engine started", worker=self.worker)

    def _spawn(self, loop: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(loop())
        task.add_done_callback(self._loop_ended)
        return task

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.failed = task.exception()
            self.running = False
            log.critical("a loop of the engine broke", exc_info=self.failed)

    async def _watch_cancels(self) -> None:
        """A cancel that was asked for here reaches the job now, not at the next heartbeat."""
        while True:
            if await self._dispatch.next_cancel(3600.0):
                try:
                    await self.heartbeat.run_once()
                except StoreUnavailable as error:
                    log.error("cannot read cancels; the next heartbeat will", error=str(error))

    async def stop(self) -> None:
        """No new claims; running jobs get `stop_grace_s`; what is left goes back to its queue.  A second call does nothing."""
        if self.stopping:
            return
        self.stopping, self.running = True, False
        if self._claiming is not None:
            self._claiming.cancel()
            await asyncio.gather(self._claiming, return_exceptions=True)
        await self.claimer.settle()
        returned = await self.executor.drain(self._settings.stop_grace_s)
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self.heartbeat.stop()
        await self._store.end_worker(self.worker)
        log.info("engine stopped", worker=self.worker, returned=returned)

    # --- scratch folders -------------------------------------------------------------------------------------------

    async def _after_prune(self, removed: Sequence[JobId]) -> None:
        await asyncio.to_thread(self._remove_scratch, removed)
        if self._sweep is not None:
            await self._sweep()

    def _remove_scratch(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            shutil.rmtree(self._scratch / job_id, ignore_errors=True)

    async def _drop_old_scratch(self) -> None:
        """Folders of jobs that ended without their worker seeing it."""
        if not self._scratch.is_dir():
            return
        ended: list[str] = []
        for entry in sorted(self._scratch.iterdir()):
            try:
                found = await self._store.get_job(JobId(entry.name))
            except NotFound:
                ended.append(entry.name)
                continue
            if not isinstance(found, Job) or found.state in FINAL:
                ended.append(entry.name)
        await asyncio.to_thread(self._remove_scratch, ended)
