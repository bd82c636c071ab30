"""All questions about tracked jobs that go to one place as one caller: put together where the wire can, and never too many.

Rules
1. Jobs whose time has come within `GATHER_S` are asked for together: in one list request where the wire lists, else side by
   side, at most `SIDE_BY_SIDE`.  Two questions about one job are one.
2. Requests come out of the budget that the process has for (endpoint, project); who would have to wait for it longer than
   `HOLD_S` goes back to the store and comes again when its turn is.
3. While the place does not answer one question is put at a time; the others are told so at once and hold no slot.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from milepost import Cadence, JobView, MilepostError, PermanentError, ProtocolError, Unreachable
from milepost.client.budget import Budget
from milepost.client.cadence import retry_after_s
from milepost.client.dialects import Query
from milepost.client.known import Known, absorb, take
from milepost.client.session import Reply, Session
from milepost.client.steps import Ask, Sleep, Steps
from milepost.clock import Clock
from milepost.wire import Response

T = TypeVar("T")

GATHER_S = 0.02
HOLD_S = 1.0
SIDE_BY_SIDE = 16
KNOWN_MAX = 100_000
SUB_JOBS_MAX = 1000
LISTED_MIN = 4  # jobs for which a page of all tasks is cheaper than asking for each
PAGE = 100
WHOLE = 10  # jobs on a page with inputs and results: each may be large


class Sends(Protocol):
    """Does the I/O."""

    async def send(self, ask: Ask) -> Response: ...


class Probed(msgspec.Struct):
    """What a question came to.

    `view` is the job as it was seen now, None when nothing was.  `error`: why; None without a view: it was not asked at all.
    """

    delay_s: float
    view: JobView | None = None
    error: MilepostError | PermanentError | None = None


class Channel:
    """One place as one caller."""

    def __init__(
        self,
        session: Session,
        transport: Sends,
        budget: Budget,
        *,
        clock: Clock,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.session, self._transport, self._budget, self._clock, self._random = session, transport, budget, clock, random
        self._known: dict[str, Known] = {}
        self._asked: dict[str, asyncio.Future[Probed]] = {}
        self._missed: dict[str, int] = {}  # job id -> questions in a row without an answer
        self._turns: dict[str, float] = {}  # job id -> when its reserved request may be sent
        self._flushing: asyncio.Task[None] | None = None
        self._entering = asyncio.Lock()
        self._failures = 0  # questions in a row without an answer
        self._down_until_s = 0.0
        self._down_error: Unreachable | None = None
        self.used_s = clock.monotonic_s()
        self.requests = 0

    # --- questions -------------------------------------------------------------------------------------------------

    async def probe(self, job_id: str) -> Probed:
        """What the cloud says of this job now, or why that is not known and when to come again."""
        now_s = self.used_s = self._clock.monotonic_s()
        if now_s < self._down_until_s:
            return self._away(now_s)
        future = self._asked.get(job_id)
        if future is None:
            future = self._asked[job_id] = asyncio.get_running_loop().create_future()
            if self._flushing is None:
                self._flushing = asyncio.create_task(self._flush())
        probed = await asyncio.shield(future)
        if probed.view is not None:
            self._missed.pop(job_id, None)
        return probed

    async def sub_jobs(self, view: JobView) -> tuple[JobView, ...]:
        """The sub-jobs of a job that has ended; as far as one page goes where they are listed.  Errors: MilepostError."""
        dialect = self.session.dialect
        if view.sub_jobs or not view.sub_counts or not dialect.bulk_max:
            return view.sub_jobs
        query = Query(parent_id=view.id, page_size=SUB_JOBS_MAX, oldest_first=True, full=True)
        reply = await self._ask(dialect.list_jobs(query))
        if not isinstance(reply, Response):
            raise reply
        if reply.status != 200:
            raise dialect.read_error(reply, view.id)
        return dialect.read_page(reply).views

    def troubled(self, job_id: str) -> bool:
        """Count a question without an answer; whether the one before it had none either."""
        self._missed[job_id] = self._missed.get(job_id, 0) + 1
        return self._missed[job_id] > 1

    def forget(self, job_id: str) -> None:
        """Nothing more will be asked about it."""
        self._known.pop(job_id, None)
        self._turns.pop(job_id, None)
        self._missed.pop(job_id, None)

    def _away(self, now_s: float) -> Probed:
        """Everybody comes again when the place is tried again, spread over as long a time."""
        left_s = self._down_until_s - now_s
        return Probed(left_s + self._random() * max(left_s, self.session.cadence.first_s), error=self._down_error)

    # --- together --------------------------------------------------------------------------------------------------

    async def _flush(self) -> None:
        try:
            while self._asked:
                await self._clock.sleep(GATHER_S)
                waiting, self._asked = self._asked, {}
                try:
                    await self._answer(waiting)
                except Exception as error:  # nobody may wait for ever
                    self._tell_all(waiting, error)
        finally:
            self._flushing = None

    def _tell_all(self, waiting: dict[str, asyncio.Future[Probed]], error: Exception) -> None:
        told = error if isinstance(error, MilepostError | PermanentError) else ProtocolError(f"{type(error).__name__}: {error}")
        for future in waiting.values():
            if not future.done():
                future.set_result(Probed(self.session.cadence.failure_cap_s, error=told))

    async def _answer(self, waiting: dict[str, asyncio.Future[Probed]]) -> None:
        ids = list(waiting)
        async with self._entering:
            refused = await self._drive(self.session.ensure_token())
        if refused is not None:
            self._fell_silent(refused)
        listed = await self._probe_listed(waiting) if refused is None else set()
        rest = [job_id for job_id in ids if job_id not in listed]
        if self._failures and rest and refused is None:  # a scout
            await self._probe_one(rest[0], waiting[rest[0]])
            rest = rest[1:]
        side_by_side = asyncio.Semaphore(SIDE_BY_SIDE)

        async def one(job_id: str) -> None:
            async with side_by_side:
                now_s = self._clock.monotonic_s()
                if now_s < self._down_until_s:
                    waiting[job_id].set_result(self._away(now_s))
                else:
                    await self._probe_one(job_id, waiting[job_id])

        await asyncio.gather(*map(one, rest))

    async def _probe_one(self, job_id: str, future: asyncio.Future[Probed]) -> None:
        pause_s = self._turn([job_id])
        if pause_s > HOLD_S:
            future.set_result(Probed(pause_s))
            return
        await self._clock.sleep(pause_s)
        known = self._of(job_id)
        try:
            reply = await self._ask(self.session.dialect.probe(job_id))
            self._heard(reply)
            future.set_result(self._absorb(known, reply))
        except (MilepostError, PermanentError) as error:
            future.set_result(Probed(self.session.cadence.failure_cap_s, error=error))

    def _absorb(self, known: Known, reply: Reply) -> Probed:
        try:
            delay_s = absorb(self.session, known, reply, self.session.cadence)
        except MilepostError as error:
            return Probed(self.session.cadence.failure_cap_s, error=error)
        if known.in_a_row:
            return Probed(delay_s, error=Unreachable(known.stats.last_error or "no usable answer"))
        return Probed(delay_s, view=known.view)

    async def _probe_listed(self, waiting: dict[str, asyncio.Future[Probed]]) -> set[str]:
        """Answer those that a list shows as not ended; returns those that were answered."""
        dialect, ids = self.session.dialect, list(waiting)
        answered: set[str] = set()
        if dialect.bulk_max and len(ids) > 1:
            for start in range(0, len(ids), dialect.bulk_max):
                chunk = ids[start : start + dialect.bulk_max]
                ended = await self._take_page(chunk, Query(ids=tuple(chunk), page_size=len(chunk)), waiting, answered)
                for first in range(0, len(ended), WHOLE):  # with their results
                    some = ended[first : first + WHOLE]
                    await self._take_page(some, Query(ids=tuple(some), page_size=WHOLE, full=True), waiting, answered)
        elif dialect.lists and not dialect.bulk_max and len(ids) >= LISTED_MIN:
            await self._take_page(ids, Query(page_size=PAGE), waiting, answered)
        return answered

    async def _take_page(
        self, ids: Sequence[str], query: Query, waiting: dict[str, asyncio.Future[Probed]], answered: set[str]
    ) -> list[str]:
        """Answer as many as a page can; returns those that it shows as ended, without saying how."""
        now_s = self._clock.monotonic_s()
        if now_s < self._down_until_s:
            return []
        pause_s = self._turn(ids)
        if pause_s > HOLD_S:
            for job_id in ids:
                waiting[job_id].set_result(Probed(pause_s))
            answered.update(ids)
            return []
        await self._clock.sleep(pause_s)
        reply = await self._ask(self.session.dialect.list_jobs(query))
        self._heard(reply)
        if not isinstance(reply, Response) or reply.status != 200:
            if not isinstance(reply, Response) or self.session.dialect.read_error(reply, None).retryable:
                for job_id in ids:
                    waiting[job_id].set_result(self._absorb(self._of(job_id), reply))
                answered.update(ids)
            return []
        try:
            views = {view.id: view for view in self.session.dialect.read_page(reply).views}
        except ProtocolError:
            return []
        now_s, cadence = self._clock.monotonic_s(), self.session.cadence
        ended = []
        for job_id in ids:
            view = views.get(job_id)
            if view is None:
                continue
            if view.done and not query.full:
                ended.append(job_id)
                continue
            known = self._of(job_id)
            known.stats.probes += 1
            known.in_a_row, known.heard_s = 0, now_s
            take(self.session, known, view, reply, now_s)
            durations = self.session.durations(view)
            waiting[job_id].set_result(
                Probed(cadence.after_answer(known.age_s(now_s), None, self._random, durations), view=known.view)
            )
            answered.add(job_id)
        return ended

    def _of(self, job_id: str) -> Known:
        known = self._known.get(job_id)
        if known is None:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()  # they are learnt again
            known = self._known[job_id] = Known(job_id)
        return known

    # --- budget and health -----------------------------------------------------------------------------------------

    def _turn(self, ids: Sequence[str]) -> float:
        """The pause before a request for these; a turn that one of them was given before is used."""
        now_s = self._clock.monotonic_s()
        held = min((self._turns[job_id] for job_id in ids if job_id in self._turns), default=None)
        for job_id in ids:
            self._turns.pop(job_id, None)
        pause_s = self._budget.reserve(now_s) if held is None else max(0.0, held - now_s)
        if pause_s > HOLD_S:
            self._turns[ids[0]] = now_s + pause_s
        return pause_s

    def _heard(self, reply: Reply) -> None:
        if not isinstance(reply, Response):
            self._fell_silent(reply)
            return
        self._failures, self._down_error = 0, None
        now_s = self._clock.monotonic_s()
        if reply.status in (429, 503):
            self._budget.slow_down(now_s, retry_after_s(reply.headers))
        elif reply.status < 500:
            self._budget.speed_up(now_s)

    def _fell_silent(self, error: Unreachable) -> None:
        self._failures += 1
        pause_s = self.session.cadence.after_failure(self._failures, self._random)
        self._down_until_s = self._clock.monotonic_s() + pause_s
        self._down_error = error

    # --- I/O -------------------------------------------------------------------------------------------------------

    async def _ask(self, request: Any) -> Reply:
        return await self._drive(self.session.ask(request))

    async def _drive(self, steps: Steps[T]) -> T:
        reply: Any = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as stop:
                result: T = stop.value
                return result
            reply = None
            if isinstance(step, Ask):
                reply = await self._send(step)
            else:
                assert isinstance(step, Sleep), f"a question does not {type(step).__name__}"
                await self._clock.sleep(step.delay_s)

    async def _send(self, ask: Ask) -> Reply:
        self.requests += 1
        try:
            return await self._transport.send(ask)
        except Unreachable as error:
            return error


def cadence_of(first_s: float, cap_s: float) -> Cadence:
    """The pauses between two questions about one job."""
    cap_s = max(first_s, cap_s)
    return Cadence(
        first_s=first_s,
        young_s=max(1.0, first_s),
        cap_s=cap_s,
        failure_s=first_s,
        failure_cap_s=max(first_s, min(60.0, cap_s)),
        throttle_s=first_s,
    )
