"""One store under test with a clock of its own, and short words for what tests do with it.

Guards that stand in every test: the database refuses a change of a final row and every move that `MOVES` does not have, and at
the end the history of every job is read against its row.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from milepost.job import (
    FINAL,
    MOVES,
    Cancelled,
    Claimed,
    Event,
    EventType,
    Failed,
    Failure,
    Job,
    JobId,
    Outcome,
    ProjectId,
    State,
    Submission,
    Succeeded,
    Suspended,
    Tombstone,
    WorkerId,
    is_final,
    may_move,
)
from milepost.store import JobQuery
from milepost.store.sqlite import SqliteStore
from milepost.testing import ManualClock

KEEP_S = 1000.0
OK = Succeeded(b'{"answer":42}')
BROKEN = Failed(Failure("broken", "it broke", {"at": 3}))
STOPPED = Cancelled(Failure("cancelled", "as asked"))
START_US = 1_790_000_000_000_000


class House:
    """The store, the clock, and what a worker, an operator and the loops do."""

    def __init__(self, open_store: Callable[[], Any]) -> None:
        self._open = open_store
        self.clock = ManualClock(START_US)
        self.store: Any = None
        self._leased: set[str] = set()

    async def open(self) -> None:
        self.store = self._open()
        await self.store.open()
        guard(self.store)

    async def reopen(self) -> None:
        await self.store.close()
        await self.open()

    @property
    def now_us(self) -> int:
        return self.clock.now_us()

    # --- callers ---------------------------------------------------------------------------------------------------

    async def add(self, **fields: Any) -> Job:
        (added,) = await self.store.add_jobs([submission(**fields)], now_us=self.now_us)
        return added.job

    async def add_many(self, count: int, **fields: Any) -> list[Job]:
        added = await self.store.add_jobs([submission(**fields) for _ in range(count)], now_us=self.now_us)
        return [one.job for one in added]

    async def job(self, job_id: str) -> Job:
        found = await self.store.get_job(JobId(job_id))
        assert isinstance(found, Job), found
        return found

    async def buried(self, job_id: str) -> Tombstone:
        found = await self.store.get_job(JobId(job_id))
        assert isinstance(found, Tombstone), found
        return found

    async def state(self, job_id: str) -> State:
        return (await self.job(job_id)).state

    async def history(self, job_id: str) -> list[str]:
        return [str(event.type) for event in await self.store.list_events(job_id=JobId(job_id))]

    async def ids(self, **query: Any) -> list[str]:
        return [job.id for job in await self.store.list_jobs(JobQuery(**query))]

    # --- workers ---------------------------------------------------------------------------------------------------

    async def live(self, worker: str = "a", lease_s: float = 30.0) -> Any:
        self._leased.add(worker)
        return await self.store.renew_lease(WorkerId(worker), now_us=self.now_us, lease_s=lease_s)

    async def claim(self, limit: int = 1, *, worker: str = "a", queue: str = "q") -> list[Claimed]:
        if worker not in self._leased:
            await self.live(worker)
        found: list[Claimed] = await self.store.claim_jobs(queue, worker=WorkerId(worker), now_us=self.now_us, limit=limit)
        return found

    async def claim_one(self, *, worker: str = "a", queue: str = "q") -> Claimed:
        (claimed,) = await self.claim(1, worker=worker, queue=queue)
        return claimed

    async def running(self, **fields: Any) -> Claimed:
        """A new job, claimed; on a queue of its own name, so that nothing else is."""
        job = await self.add(**{"queue": "lane", **fields})
        claimed = await self.claim_one(queue=job.queue)
        assert claimed.job.id == job.id
        return claimed

    async def end(self, claimed: Claimed, outcome: Outcome = OK) -> bool:
        final = isinstance(outcome, Succeeded | Failed | Cancelled) and claimed.job.parent_id is None
        expires_us = self.now_us + int(KEEP_S * 1e6) if final else None
        written: bool = await self.store.finish_job(claimed.claim, outcome, now_us=self.now_us, expires_us=expires_us)
        return written

    async def split(self, claimed: Claimed, *subs: Submission) -> list[Job]:
        """The running job waits for these; returns those that are new, by position."""
        before = (await self.job(claimed.job.id)).sub_total
        assert await self.end(claimed, Suspended(list(subs)))
        found: list[Job] = await self.store.list_sub_jobs(claimed.job.id)
        return found[before:]

    # --- operators and loops ---------------------------------------------------------------------------------------

    @property
    def expires_us(self) -> int:
        return self.now_us + int(KEEP_S * 1e6)

    async def cancel(self, job_id: str, *, project: str | None = None, reason: str = "as asked") -> Job:
        found: Job = await self.store.cancel_job(
            JobId(job_id), project=project, reason=reason, now_us=self.now_us, expires_us=self.expires_us
        )
        return found

    async def release(self, job_id: str, *, project: str | None = None) -> Job:
        found: Job = await self.store.release_job(JobId(job_id), project=project, now_us=self.now_us)
        return found

    async def rescue(self, crashes_max: int = 3, crashes_max_of: Mapping[str, float] | None = None) -> list[Job]:
        found: list[Job] = await self.store.rescue_expired(
            now_us=self.now_us, crashes_max=crashes_max, expires_us=self.expires_us, crashes_max_of=crashes_max_of or {}
        )
        return found

    async def promote(self, limit: int = 100) -> tuple[set[str], int | None]:
        found: tuple[set[str], int | None] = await self.store.promote_due(now_us=self.now_us, limit=limit)
        return found

    async def fail_overdue(self, limit: int = 100) -> int:
        found: int = await self.store.fail_overdue(now_us=self.now_us, limit=limit, expires_us=self.expires_us)
        return found

    async def prune(self, *, limit: int = 100, keep_tombstone_s: float = 1e6, keep_deliveries_s: float = 1e6) -> list[JobId]:
        found: list[JobId] = await self.store.prune(
            now_us=self.now_us, keep_tombstone_s=keep_tombstone_s, keep_deliveries_s=keep_deliveries_s, limit=limit
        )
        return found

    # --- what must hold at every moment ----------------------------------------------------------------------------

    async def audit(self) -> None:
        """Every job's history has no gap, goes along MOVES only, and ends where its row is."""
        by_job: dict[JobId, list[Event]] = defaultdict(list)
        last_id = 0
        for event in await self.store.list_events(limit=1_000_000):
            assert event.id > last_id, "event ids grow"
            last_id = event.id
            by_job[event.job_id].append(event)
        for job_id, events in by_job.items():
            assert [event.seq for event in events] == list(range(1, len(events) + 1)), f"the history of {job_id} has gaps"
            assert events[0].type is EventType.SUBMITTED
            for before, after in pairwise(events):
                assert before.state == after.state or may_move(before.state, after.state), (before, after)
                assert not is_final(before.state), f"{job_id}: {after} after its end"
            job = await self.job(job_id)
            assert (job.version, job.state) == (events[-1].seq, events[-1].state), job
            assert (job.ended_us is not None) == is_final(job.state)
            assert (job.lease_by is not None) == (job.state is State.RUNNING)


def submission(**fields: Any) -> Submission:
    return Submission(**{"kind": "k", "queue": "q", **fields})


def subs(count: int, **fields: Any) -> list[Submission]:
    return [submission(**{"kind": f"sub{index}", **fields}) for index in range(count)]


def ids_of(jobs: Sequence[Job | Claimed]) -> list[str]:
    return [one.job.id if isinstance(one, Claimed) else one.id for one in jobs]


def guard(store: Any) -> None:
    """The database itself refuses what no code may do."""
    assert isinstance(store, SqliteStore), "a second store brings its own guard"
    final = ", ".join(f"'{state}'" for state in sorted(FINAL))
    moves = " OR ".join(f"(OLD.state = '{old}' AND NEW.state = '{new}')" for old in MOVES for new in MOVES[old])
    store._write.executescript(
        f"""
        CREATE TEMP TRIGGER IF NOT EXISTS final_rows_stay BEFORE UPDATE ON main.job WHEN OLD.state IN ({final})
        BEGIN SELECT RAISE(ABORT, 'a final row was changed'); END;
        CREATE TEMP TRIGGER IF NOT EXISTS moves_only BEFORE UPDATE ON main.job WHEN OLD.state <> NEW.state AND NOT ({moves})
        BEGIN SELECT RAISE(ABORT, 'a move that MOVES does not have'); END;
        """
    )


def sqlite_file(folder: Path) -> Callable[[], Any]:
    return lambda: SqliteStore(folder / "milepost.db")


def sqlite_memory(_folder: Path) -> Callable[[], Any]:
    return lambda: SqliteStore(":memory:")


STORES: dict[str, Callable[[Path], Callable[[], Any]]] = {"sqlite-file": sqlite_file, "sqlite-memory": sqlite_memory}
DURABLE = ("sqlite-file",)


@contextlib.asynccontextmanager
async def open_house(name: str, folder: Path) -> AsyncIterator[House]:
    house = House(STORES[name](folder))
    await house.open()
    try:
        yield house
        await house.audit()
    finally:
        await house.store.close()


__all__ = [
    "BROKEN",
    "DURABLE",
    "KEEP_S",
    "OK",
    "STOPPED",
    "STORES",
    "House",
    "ProjectId",
    "ids_of",
    "open_house",
    "submission",
    "subs",
]
