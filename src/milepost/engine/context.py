"""What a job function is given: `Running` on the loop, `RunningInThread` for plain functions.

A parent asks for sub-jobs with `run_sub_jobs`.  The first time, that call does not return: the job is suspended, its slot is
free, and when all its sub-jobs are final the function is called again from the top.  This time the same call finds the
results of the sub-jobs at the same positions and returns them.  So the calls of `run_sub_jobs` must come in the same order
each time; what lies between them may run more than once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from milepost.errors import Conflict, JobCancelled, JobFailed, PartialFailure
from milepost.job import Claim, Failure, Job, Progress, ProjectId, State, SubJob

if TYPE_CHECKING:
    from milepost.settings import Settings
    from milepost.store import Resource, Write
    from milepost.store.buckets import Buckets

T = TypeVar("T")


class Suspend(BaseException):
    """Leaves the function of a parent whose sub-jobs are not final.  No Exception, so that `except Exception` lets it pass."""

    def __init__(self, sub_jobs: Sequence[SubJob]) -> None:
        super().__init__()
        self.sub_jobs = list(sub_jobs)


class Snooze(BaseException):
    """Raise or return it to run the job again after `delay_s`, without counting the attempt."""

    def __init__(self, delay_s: float, note: str = "") -> None:
        super().__init__(delay_s, note)
        self.delay_s, self.note = delay_s, note


class Cancel(BaseException):
    """Return or raise it to end the job as cancelled, with a reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Objects(Protocol):
    """Where big results are stored: see `store/objects.py`."""

    async def size_bytes(self, key: str) -> int | None:
        """None: no such object."""
        ...

    def local_path(self, key: str) -> Path | None:
        """The object's file on local storage, to be read or linked to and never written; None elsewhere."""
        ...

    async def put_file(self, key: str, path: Path, *, on_progress: Callable[[int], Awaitable[None]] | None = None) -> None:
        """The file's bytes become the object, whole or not at all; on local storage the file is moved."""
        ...

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> Any:
        """An async iterator over chunks of bytes."""
        ...

    async def delete(self, key: str) -> bool: ...


class SubOutcome(msgspec.Struct, frozen=True):
    """How one sub-job ended."""

    job_id: str
    kind: str
    position: int
    state: State
    result: Any
    error: Failure | None

    @property
    def ok(self) -> bool:
        return self.state is State.SUCCEEDED


class Resources:
    """Things that jobs make, written under the job's fence: a worker that lost its lease cannot write them."""

    def __init__(self, store: Any, claim: Claim, project: str) -> None:
        self._store, self._claim, self._project = store, claim, project

    async def put(self, resource: Resource, *, if_version: int | None = None) -> Resource:
        """Errors: VersionConflict when the stored version is not if_version (0: must be new), Conflict for a lost lease."""
        stored: Resource = await self._store.put_resource(resource, claim=self._claim, if_version=if_version)
        return stored

    async def write(self, writes: Sequence[Write]) -> None:
        """All of them in one transaction, or none.  Errors: VersionConflict, Conflict when the lease was lost."""
        await self._store.write_resources(writes, claim=self._claim)

    async def list(self, type: str) -> list[Resource]:
        """The project's own, oldest first."""
        found: list[Resource] = await self._store.list_resources(type, project=self._project)
        return found

    async def get(self, type: str, id: str) -> Resource:
        """Errors: NotFound."""
        found: Resource = await self._store.get_resource(type, id)
        return found

    async def delete(self, type: str, id: str) -> bool:
        deleted: bool = await self._store.delete_resource(type, id, claim=self._claim)
        return deleted


class JobFacts:
    """What every running function can ask about its job, whatever it runs in."""

    job: Job

    @property
    def id(self) -> str:
        """The job's id, the same in each attempt."""
        return self.job.id

    @property
    def project(self) -> str:
        """Whose job it is."""
        return self.job.project

    @property
    def attempt(self) -> int:
        """Number of this try, from 1."""
        return self.job.attempt

    @property
    def last_attempt(self) -> bool:
        """Whether a failure of this attempt is the job's; attempts that died with their worker are not counted."""
        return self.job.attempt - self.job.crashes >= self.job.attempts_max


class Running(JobFacts):
    """One attempt of one job, as its function sees it.

    job: the whole record.  settings: the server's.  now_us: the server's clock, Unix µs.  A cancel or a timeout stops the
    function at its next `await`, with `asyncio.CancelledError`.
    """

    def __init__(
        self,
        job: Job,
        claim: Claim,
        *,
        report: Callable[[Progress], Awaitable[None]],
        sub_outcomes: list[SubOutcome],
        scratch: Path,
        settings: Settings,
        objects: Objects | None,
        store: Any,
        now_us: Callable[[], int],
        folder: Path | None = None,
        reserve: Callable[[Job, Resources, Any], Awaitable[Any]] | None = None,
    ) -> None:
        self.job = job
        self._folder, self._reserve = folder, reserve
        self.claim = claim
        self.settings = settings
        self.now_us = now_us
        self.scratch_used = False
        self.stopping = False  # the process is stopping: this attempt is given back and another one follows
        self._report = report
        self._sub_outcomes = sub_outcomes
        self._next_position = 0
        self._scratch = scratch
        self._objects = objects
        self._store = store

    @property
    def scratch(self) -> Path:
        """A folder of this job's own, the same in each attempt, also after a crash; removed when the job is final."""
        self.scratch_used = True
        folder = self._scratch / self.job.id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def folder(self) -> Path:
        """Where files lie that outlive their job: the server's data folder, a temporary one when it keeps its data in memory."""
        assert self._folder is not None
        return self._folder

    async def waiting_in(self, queue: str, *, but: str = "") -> int:
        """How many of this project's jobs wait to run in this queue and in those whose names begin with it and a dot.

        Those of the queue `but` are not counted.
        """
        due = await self._store.count_due(queue, project=ProjectId(self.project))
        return sum(count for name, count in due.items() if name != but)

    @property
    def objects(self) -> Objects:
        """Object storage.  Errors: Conflict when the server has none."""
        if self._objects is None:
            raise Conflict("this server has no object storage", hint="pip install 'milepost[images]'")
        return self._objects

    @property
    def resources(self) -> Resources:
        """Things that jobs make and that outlive them."""
        return Resources(self._store, self.claim, self.project)

    @property
    def buckets(self) -> Buckets:
        """Buckets and their objects; what is written with `claim=job.claim` is written under the job's fence.

        Errors: Conflict when the server has no object storage.
        """
        from milepost.store.buckets import Buckets

        return Buckets(self._store, self.objects, self.now_us)  # type: ignore[arg-type]  # there is one implementation

    async def admit(self, spec: Any) -> Any:
        """Reserve now what a submit reserves: for a sub-job whose parent did not.  The input as it was admitted.

        Errors: PermanentError with the reason of the refusal, Conflict when the lease was lost.
        """
        assert self._reserve is not None
        return await self._reserve(self.job, self.resources, spec)

    async def progress(self, done: int, total: int | None = None, note: str = "", *, unit: str = "") -> None:
        """Say how far it is; cheap to call often: at most one write a second is made, and the last one always."""
        await self._report(Progress(done, total, unit, note))

    async def run_sub_jobs(self, sub_jobs: Sequence[SubJob]) -> list[Any]:
        """The results of these sub-jobs, in order, once all of them succeeded.

        Rules: 1. the first time it leaves the function, which is called again from the top when they have ended.
               2. each run of the function asks for the same kinds in the same order.
        Errors: PartialFailure or JobFailed when some failed, JobCancelled when some were cancelled; all siblings end first.
        """
        return results_of(self.job, await self.try_sub_jobs(sub_jobs))

    async def try_sub_jobs(self, sub_jobs: Sequence[SubJob]) -> list[SubOutcome]:
        """How each of these sub-jobs ended, in order; a failed one raises nothing."""
        return self._take(sub_jobs)

    def _take(self, sub_jobs: Sequence[SubJob]) -> list[SubOutcome]:
        start, end = self._next_position, self._next_position + len(sub_jobs)
        found = self._sub_outcomes[start:end]
        for asked, had in zip(sub_jobs, found, strict=False):
            if asked.kind != had.kind:
                raise RuntimeError(
                    f"sub-job {had.position} of job {self.job.id} was a {had.kind!r} before and is a {asked.kind!r} now: "
                    "the function must ask for its sub-jobs in the same order each time"
                )
        if len(found) < len(sub_jobs):
            raise Suspend(sub_jobs[len(found) :])
        self._next_position = end
        return found


def results_of(job: Job, outcomes: list[SubOutcome]) -> list[Any]:
    """The results, or the error that says which sub-jobs did not succeed."""
    bad = [outcome for outcome in outcomes if not outcome.ok]
    if not bad:
        return [outcome.result for outcome in outcomes]
    first = bad[0].error.message if bad[0].error else bad[0].state
    text = f"{len(bad)} of {len(outcomes)} sub-jobs did not succeed; the first: {first}"
    if all(outcome.state is State.CANCELLED for outcome in bad):
        raise JobCancelled(text, job_id=job.id, failed=bad)
    if len(bad) == len(outcomes):
        raise JobFailed(text, job_id=job.id, failed=bad)
    raise PartialFailure(text, succeeded=[o for o in outcomes if o.ok], failed=bad, job_id=job.id)


class RunningInThread(JobFacts):
    """`Running` for a plain function in a thread: the same calls, blocking.

    A thread cannot be killed: a long function looks at `cancel_requested`, or reports progress, which raises when it shall stop.
    """

    def __init__(self, running: Running, loop: asyncio.AbstractEventLoop, cancelled: Callable[[], bool]) -> None:
        self._running, self._loop, self._cancelled = running, loop, cancelled
        self.job, self.claim, self.settings, self.now_us = running.job, running.claim, running.settings, running.now_us

    @property
    def scratch(self) -> Path:
        """A folder of this job's own; see `Running.scratch`."""
        return self._running.scratch

    @property
    def objects(self) -> Objects:
        """Object storage, whose calls are awaited with `block_on`.  Errors: Conflict when the server has none."""
        return self._running.objects

    @property
    def resources(self) -> Resources:
        """Things that jobs make and that outlive them; the calls are awaited with `block_on`."""
        return self._running.resources

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody asked this job to stop, or its time is over."""
        return self._cancelled()

    def raise_if_cancelled(self) -> None:
        """Errors: Cancel, which ends the job as cancelled."""
        if self._cancelled():
            raise Cancel("cancelled on request")

    def progress(self, done: int, total: int | None = None, note: str = "", *, unit: str = "") -> None:
        """Say how far it is.  Errors: Cancel when the job was asked to stop."""
        self.raise_if_cancelled()
        self.block_on(self._running.progress(done, total, note, unit=unit))

    def run_sub_jobs(self, sub_jobs: Sequence[SubJob]) -> list[Any]:
        """See `Running.run_sub_jobs`."""
        return results_of(self.job, self.try_sub_jobs(sub_jobs))

    def try_sub_jobs(self, sub_jobs: Sequence[SubJob]) -> list[SubOutcome]:
        """See `Running.try_sub_jobs`."""
        return self._running._take(sub_jobs)

    def block_on(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result, run on the server's loop: `job.block_on(job.objects.put_file(key, file))`."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
