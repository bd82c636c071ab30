"""What a facade, a command or a kind may do with jobs: submit, read, cancel, release, retry.

One object with the rules that every wire shares, so that no facade has its own idea of them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from milepost.dispatch import Dispatch
from milepost.engine.admission import Admission, View
from milepost.engine.kinds import Kind, Kinds
from milepost.errors import CallerError, Conflict, Expired, InvalidInput, LimitExceeded, PermanentError, VersionConflict
from milepost.job import (
    FINAL,
    PRIORITY_FIRST,
    PRIORITY_LAST,
    EventType,
    Job,
    JobId,
    ProjectId,
    State,
    Submission,
    Tombstone,
    new_job_id,
)
from milepost.store import Added, JobQuery, Store, Write
from milepost.subscription import WORDS, unknown_words

if TYPE_CHECKING:
    from milepost.clock import Clock
    from milepost.engine.context import Resources
    from milepost.settings import Settings


T = TypeVar("T")
ADMISSIONS_MAX = 40  # times an admission is asked again when another write came between
ADMISSION_PAUSE_S = 0.02  # at most: processes that add to one project come out of step


class Service:
    """The one way in.  `project=None` in any call means across projects: admins only."""

    def __init__(self, store: Store, dispatch: Dispatch, kinds: Kinds, clock: Clock, settings: Settings) -> None:
        self.store, self.dispatch, self.kinds, self.clock, self.settings = store, dispatch, kinds, clock, settings
        self._gates: WeakValueDictionary[ProjectId, asyncio.Lock] = WeakValueDictionary()
        self._turn: tuple[asyncio.AbstractEventLoop, int] | None = None

    # --- submit ----------------------------------------------------------------------------------------------------

    def check(self, submission: Submission, *, path: str = "$") -> None:
        """Fill what the kind decides and refuse what is wrong.  Errors: InvalidInput, UnknownKind, LimitExceeded."""
        kind = self.kinds.get(submission.kind)
        s = self.settings
        if len(submission.input) > s.input_bytes_max:
            raise _too_much(
                "input_bytes_max", s.input_bytes_max, len(submission.input), "input is larger than", "bytes", f"{path}.input"
            )
        if kind.decoder is not None:
            kind.read_input(submission.input)
        if not PRIORITY_FIRST <= submission.priority <= PRIORITY_LAST:
            raise InvalidInput(
                f"priority is {submission.priority}; it goes from {PRIORITY_FIRST} (first) to {PRIORITY_LAST}",
                path=f"{path}.priority",
            )
        if not 1 <= submission.attempts_max <= s.attempts_limit:
            raise InvalidInput(
                f"attempts_max is {submission.attempts_max}; it goes from 1 to {s.attempts_limit}", path=f"{path}.attempts_max"
            )
        for name, value in (("queue", submission.queue), ("idempotency_key", submission.idempotency_key)):
            if value is not None and not 0 < len(value) <= s.name_chars_max:
                raise InvalidInput(
                    f"{name} has {len(value)} characters; 1 to {s.name_chars_max} are allowed", path=f"{path}.{name}"
                )
        if submission.labels:
            self._check_labels(submission.labels, path)
        if submission.timeout_s is not None and submission.timeout_s <= 0:
            raise InvalidInput("timeout_s must be above 0", path=f"{path}.timeout_s")
        if submission.callback is not None and not submission.callback.url.startswith(("http://", "https://")):
            raise InvalidInput("callback.url must be an http or https URL", path=f"{path}.callback.url")
        if submission.callback is not None and submission.callback.on:
            check_words(submission.callback.on, f"{path}.callback.on")

    def _check_labels(self, labels: dict[str, str], path: str) -> None:
        s = self.settings
        if len(labels) > s.labels_max:
            raise _too_much("labels_max", s.labels_max, len(labels), "there are more than", "labels", f"{path}.labels")
        for key, value in labels.items():
            if not key:
                raise InvalidInput(f"a label's key is empty; it has 1 to {s.label_chars_max} characters", path=f"{path}.labels")
            if len(key) > s.label_chars_max or len(value) > s.label_chars_max:
                raise InvalidInput(
                    f"label {key[:40]!r}: key and value have at most {s.label_chars_max} characters", path=f"{path}.labels"
                )

    def submission(self, kind_name: str, **fields: Any) -> Submission:
        """A submission with the kind's own queue, priority, attempts and timeout where `fields` has none (or None)."""
        kind: Kind = self.kinds.get(kind_name)
        given = {name: value for name, value in fields.items() if value is not None}
        given.setdefault("queue", kind.queue)
        given.setdefault("priority", kind.priority)
        given.setdefault("attempts_max", kind.attempts)
        given.setdefault("timeout_s", kind.timeout_s)
        return Submission(kind=kind_name, **given)

    async def submit(self, submission: Submission) -> Added:
        """On disk when it returns.  Errors: those of `check` and of the kind's `admit`, IdempotencyConflict, StoreUnavailable."""
        self.check(submission)
        if self.kinds.get(submission.kind).admit is None:
            (added,) = await self.store.add_jobs((submission,), now_us=self._turn_us())
        else:
            (added,) = await self._add_admitted((submission,))
        if added.created:
            self._hint(added.job)
        return added

    def _turn_us(self) -> int:
        """The time when this turn of the loop first submitted: jobs of one moment are alike, and the store writes them as one."""
        loop = asyncio.get_running_loop()
        if self._turn is None or self._turn[0] is not loop:
            self._turn = loop, self.clock.now_us()
            loop.call_soon(self._end_turn)
        return self._turn[1]

    def _end_turn(self) -> None:
        self._turn = None

    async def rehearse(self, submission: Submission) -> None:
        """What `submit` would refuse is refused; nothing is made.  Errors: as submit."""
        self.check(submission)
        await self._admit(submission, View(self.store, submission.project), self.clock.now_us())

    async def submit_many(self, submissions: Sequence[Submission]) -> list[Added]:
        """All or none.  Errors: as submit; the path names the entry, `$[3].input.size`."""
        if len(submissions) > self.settings.batch_max:
            raise _too_much(
                "batch_max", self.settings.batch_max, len(submissions), "there are more than", "jobs in the batch", "$"
            )
        for index, submission in enumerate(submissions):
            try:
                self.check(submission)
            except InvalidInput as error:
                error.path = f"$[{index}]{error.path.removeprefix('$')}"
                raise
            except LimitExceeded as error:
                error.fields["path"] = f"$[{index}]{error.fields['path'].removeprefix('$')}"
                raise
        if any(self.kinds.get(one.kind).admit is not None for one in submissions):
            added = await self._add_admitted(submissions)
        else:
            added = await self.store.add_jobs(submissions, now_us=self.clock.now_us())
        if any(one.job.run_at_us > one.job.created_us for one in added):
            self.dispatch.reschedule()
        if any(one.job.callback is not None and one.job.callback.on for one in added):
            self.dispatch.announce_events()
        return added

    async def _add_admitted(self, submissions: Sequence[Submission]) -> list[Added]:
        """The jobs with what their kinds reserve for them, in one transaction.  All are of one project."""
        project = submissions[0].project
        async with self._gates.setdefault(project, asyncio.Lock()):
            for tries_left in reversed(range(ADMISSIONS_MAX)):
                now_us = self.clock.now_us()
                asked = await self._admit_all(submissions, now_us)
                adding = self.store.add_jobs([one for one, _ in asked], now_us=now_us, writes=[writes for _, writes in asked])
                try:
                    return await _whole(adding)
                except VersionConflict:
                    await _pause(tries_left)
        raise AssertionError("unreachable")

    async def _admit_all(self, submissions: Sequence[Submission], now_us: int) -> list[tuple[Submission, Sequence[Write] | None]]:
        view = View(self.store, submissions[0].project)
        asked: list[tuple[Submission, Sequence[Write] | None]] = []
        keys: set[str] = set()
        for one in submissions:
            key = one.idempotency_key
            asked.append((one, ()) if key in keys else await self._admit(one, view, now_us))
            if key is not None:
                keys.add(key)
        for at, (one, writes) in enumerate(asked):
            if writes:  # with the first that writes: all are stored, or none
                asked[at] = (one, [*view.guards(now_us), *writes])
                break
        return asked

    async def _admit(self, submission: Submission, view: View, now_us: int) -> tuple[Submission, Sequence[Write] | None]:
        """The submission as admitted, and its writes; None: its key has a job, as long as that one is kept."""
        kind = self.kinds.get(submission.kind)
        key = submission.idempotency_key
        if kind.admit is None:
            return submission, ()
        if key is not None and await self.store.has_key(submission.project, key):
            return submission, None
        job_id = submission.id or new_job_id()
        ask = Admission(
            job_id=job_id,
            project=submission.project,
            origin=submission.origin,
            held=submission.held,
            now_us=now_us,
            settings=self.settings,
            resources=view,
        )
        admitted = await kind.admit(ask, kind.read_input(submission.input))
        await view.add(admitted.writes)
        return msgspec.structs.replace(submission, id=job_id, input=msgspec.json.encode(admitted.input)), admitted.writes

    async def reserve(self, job: Job, resources: Resources, spec: Any) -> Any:
        """What a submit would have reserved, now, for a running sub-job; see `Running.admit`."""
        admit = self.kinds.get(job.kind).admit
        assert admit is not None, f"kind {job.kind!r} has no admit function"
        async with self._gates.setdefault(job.project, asyncio.Lock()):
            for tries_left in reversed(range(ADMISSIONS_MAX)):
                now_us, view = self.clock.now_us(), View(self.store, job.project)
                ask = Admission(
                    job_id=job.id,
                    project=job.project,
                    origin=job.origin,
                    held=False,
                    now_us=now_us,
                    settings=self.settings,
                    resources=view,
                )
                try:
                    admitted = await admit(ask, spec)
                except CallerError as error:
                    raise PermanentError(error.fields.get("reason", error.code), error.message) from error
                try:
                    await _whole(resources.write([*view.guards(now_us), *admitted.writes] if admitted.writes else []))
                except VersionConflict:
                    await _pause(tries_left)
                else:
                    return admitted.input
        raise AssertionError("unreachable")

    def _hint(self, job: Job) -> None:
        """What the store does not tell of by itself: it announces queues that got a due job."""
        if job.callback is not None and job.callback.on:
            self.dispatch.announce_events()
        if job.run_at_us > job.created_us:
            self.dispatch.reschedule()

    # --- read ------------------------------------------------------------------------------------------------------

    async def get(self, job_id: JobId, *, project: ProjectId | None = None) -> Job:
        """Errors: NotFound, Expired (its tombstone, or its expiry has passed)."""
        return self._live(await self.store.get_job(job_id, project=project))

    def _live(self, found: Job | Tombstone) -> Job:
        if isinstance(found, Job):
            may_expire = found.state in FINAL or found.state is State.HELD
            if not may_expire or found.expires_us is None or found.expires_us > self.clock.now_us():
                return found
        raise Expired(f"job {found.id} has expired; it was {found.state}", job_id=found.id, state=found.state)

    async def list(self, query: JobQuery) -> list[Job]:
        return await self.store.list_jobs(query)

    # --- operators -------------------------------------------------------------------------------------------------

    async def cancel(self, job_id: JobId, *, project: ProjectId | None, reason: str = "cancelled on request") -> Job:
        """Ended now, or asked to end (`cancel_requested`).  Errors: NotFound, Expired, Conflict when it ended otherwise."""
        now_us = self.clock.now_us()
        job = await self.store.cancel_job(
            job_id,
            project=project,
            reason=reason,
            now_us=now_us,
            expires_us=now_us + int(self.settings.keep_cancelled_s * 1e6),
        )
        self.dispatch.announce_cancel()
        self.dispatch.announce_delivery()
        return job

    async def release(self, job_id: JobId, *, project: ProjectId | None) -> Job:
        """Held becomes ready.  Errors: NotFound, Expired, Conflict."""
        job = await self.store.release_job(job_id, project=project, now_us=self.clock.now_us())
        self.dispatch.announce(job.queue)
        self.dispatch.reschedule()
        return job

    async def retry(self, job_id: JobId, *, project: ProjectId | None, role: str | None = None) -> Job:
        """A new job with the same request, `retry_of` the failed or cancelled one: a final state never changes.

        Rules: `role` is who asks where that is less than an admin: what only admins may do is not done for anybody else.
        Errors: NotFound, Expired, Conflict when it did not fail, was held and never released, or is a sub-job.
        """
        job = await self.get(job_id, project=project)
        if job.state not in (State.FAILED, State.CANCELLED):
            raise Conflict(
                f"job {job_id} is {job.state}; only a failed or cancelled job is retried", job_id=job_id, state=job.state
            )
        if job.parent_id is not None:
            raise Conflict(
                f"job {job_id} is a sub-job; retry its root {job.root_id}", job_id=job_id, hint=f"milepost retry {job.root_id}"
            )
        if await self._was_never_released(job):  # else a cancel and a retry would go around the approval, or the payment
            raise Conflict(f"job {job_id} was held and never released", job_id=job_id, hint="submit it again")
        submission = Submission(
            kind=job.kind,
            input=job.input or b"{}",
            project=job.project,
            queue=job.queue,
            priority=job.priority,
            labels=job.labels,
            attempts_max=job.attempts_max,
            timeout_s=job.timeout_s,
            callback=job.callback,
            origin=job.origin if role is None else {**job.origin, "role": role},
            retry_of=job.id,
        )
        return (await self.submit(submission)).job

    async def _was_never_released(self, job: Job) -> bool:
        events = await self.store.list_events(job_id=job.id, limit=2)
        return bool(events) and events[0].state is State.HELD and all(event.type is not EventType.RELEASED for event in events)


async def _pause(tries_left: int) -> None:
    """Before it is asked again.  Errors: the one that is being handled, after the last try."""
    if not tries_left:
        raise
    await asyncio.sleep(random.uniform(0, ADMISSION_PAUSE_S))


async def _whole(writing: Coroutine[Any, Any, T]) -> T:
    """Its result.  A cancelled caller goes on when it has ended: what was sent to the store is written or refused by then."""
    task = asyncio.ensure_future(writing)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.exception()  # nobody is there to be told
        raise cancelled
    return task.result()


def check_words(on: Sequence[str], path: str) -> None:
    """Errors: InvalidInput when a filter has a word that is no event, no state, not `final` and not `all`."""
    unknown = unknown_words(on)
    if unknown:
        raise InvalidInput(f"{unknown[0][:40]!r} is no state and no event", path=path, hint=f"words: {', '.join(WORDS)}")
    if len(on) > len(WORDS):
        raise InvalidInput("there are more words than there are", path=path)


def _too_much(limit: str, allowed: int, seen: int, text: str, unit: str, path: str) -> LimitExceeded:
    return LimitExceeded(
        f"{text} {allowed} {unit} ({seen})",
        limit=limit,
        allowed=allowed,
        seen=seen,
        hint=f"the server's setting {limit}",
        path=path,
    )


__all__ = ["Service", "check_words"]
