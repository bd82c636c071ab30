"""The engine of one process without its loops: a test runs each step when it wants to, on a clock that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from milepost.dispatch.embedded import EmbeddedDispatch
from milepost.engine.kinds import Kinds
from milepost.engine.node import Node
from milepost.engine.service import Service
from milepost.job import Job, JobId, State, Submission, is_final
from milepost.settings import Settings
from milepost.store.sqlite import SqliteStore
from milepost.testing import FaultyStore, ManualClock, Signals
from milepost.wiring import encode_callback

START_US = 1_790_000_000_000_000
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Post:
    """Where callbacks go: answers in turn, and keeps what came."""

    def __init__(self) -> None:
        self.answers: list[int | Exception] = []
        self.came: list[tuple[str, dict[str, str], bytes]] = []

    async def __call__(self, url: str, headers: dict[str, str], body: bytes, *, timeout_s: float) -> tuple[int, str]:
        self.came.append((url, headers, body))
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, Exception):
            raise answer
        return answer, "said so"


class House:
    """One process: its store (which can fail on demand), its kinds, and its parts."""

    def __init__(self, store: SqliteStore, settings: Settings, clock: ManualClock, scratch: Path) -> None:
        self.store: Any = FaultyStore(store)
        self.clock, self.settings, self.scratch = clock, settings, scratch
        self.kinds, self.signals, self.post = Kinds(), Signals(), Post()
        self.kind = self.kinds.kind
        self.dispatch = EmbeddedDispatch(clock)
        self.service = Service(self.store, self.dispatch, self.kinds, clock, settings)
        self.node = self.process()

    def process(self) -> Node:
        """One more worker process on the same store."""
        return Node(
            self.store,
            self.dispatch,
            self.service,
            self.clock,
            self.settings,
            scratch=self.scratch,
            objects=None,
            send=self.post,
            encode_callback=encode_callback,
            secret_of=self._secret_of,
        )

    async def _secret_of(self, _project: str) -> str:
        return SECRET

    async def submit(self, kind: str, input: bytes = b"{}", **fields: Any) -> JobId:
        return (await self.service.submit(self.service.submission(kind, input=input, **fields))).job.id

    async def claim(self, node: Node | None = None) -> int:
        """Due jobs begin to run."""
        node = node or self.node
        await node.heartbeat.run_once()
        return await node.claimer.run_once()

    async def idle(self, node: Node | None = None) -> None:
        """Nothing runs any more."""
        async with asyncio.timeout(60):
            while (node or self.node).executor.attempts:
                await asyncio.sleep(0)

    async def run(self, kind: str, input: bytes = b"{}", **fields: Any) -> Job:
        """The job after its first attempt."""
        job_id = await self.submit(kind, input, **fields)
        return await self.again(job_id)

    async def again(self, job_id: JobId) -> Job:
        """The job after one more round of claims."""
        await self.node.scheduler.run_once()
        await self.claim()
        await self.idle()
        return await self.job(job_id)

    async def finish(self, job_id: JobId) -> Job:
        """The job, once it is final; round by round, the clock standing still."""
        for _ in range(100):
            job = await self.again(job_id)
            if is_final(job.state):
                return job
        raise AssertionError(f"not final after 100 rounds: {job}")

    async def started(self, kind: str, at: str, *, node: Node | None = None, **fields: Any) -> JobId:
        """A job whose function is at this point now, in this process or another."""
        job_id = await self.submit(kind, **fields)
        await self.node.scheduler.run_once()
        await self.claim(node)
        await self.signals.reached(at)
        return job_id

    async def job(self, job_id: str) -> Job:
        found = await self.store.get_job(JobId(job_id))
        assert isinstance(found, Job)
        return found

    async def state(self, job_id: str) -> State:
        return (await self.job(job_id)).state

    async def history(self, job_id: str) -> list[str]:
        return [str(event.type) for event in await self.store.list_events(job_id=JobId(job_id))]


@asynccontextmanager
async def open_house(scratch: Path, **given: Any) -> AsyncIterator[House]:
    store = SqliteStore(":memory:")
    await store.open()
    house = House(store, Settings(**{"data": ":memory:", "backoff_s": 10.0, **given}), ManualClock(START_US), scratch)
    try:
        yield house
    finally:
        for attempt in list(house.node.executor.attempts.values()):
            if attempt.task is not None:
                attempt.task.cancel()
        await house.node.executor.drain(0.0)
        await store.close()


__all__ = ["SECRET", "START_US", "House", "Post", "Submission", "open_house"]
