"""Conversations that wait: for one job, for many, and for each change.

Three different times, never mixed: a request's (`request_timeout_s`), the whole wait's (`timeout_s`), and the job's own
deadline, which is the server's business.  When the wait's is over, `WaitTimeout` says so; the job goes on.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import msgspec

from milepost.client.cadence import Cadence
from milepost.client.calls import EventParser, open_stream
from milepost.client.dialects import Query
from milepost.client.known import Known, absorb, take
from milepost.client.session import Session
from milepost.client.steps import Emit, Read, Sleep, Steps
from milepost.errors import (
    JobCancelled,
    JobFailed,
    MilepostError,
    PartialFailure,
    ProtocolError,
    Unauthenticated,
    Unreachable,
    WaitTimeout,
)
from milepost.job import State
from milepost.wire import JobView, Response

QUIET_S = 300.0  # a wait without a timeout gives up on a server that has not answered for so long
TOGETHER = 16  # probes put at once where the wire cannot ask for many jobs in one request
SOON_S = 0.5  # a probe due so soon joins a request that goes out now
TREE_MAX = 1000  # jobs of a tree that are shown
REFRESH_S = 0.2  # least time between two looks at a job whose stream is busy


class Deadline:
    """The end of one wait."""

    def __init__(self, session: Session, timeout_s: float | None) -> None:
        self._now_s = session.clock.monotonic_s
        self.started_s = self._now_s()
        self._end_s = float("inf") if timeout_s is None else self.started_s + timeout_s

    @property
    def left_s(self) -> float:
        return max(0.0, self._end_s - self._now_s())

    @property
    def elapsed_s(self) -> float:
        return self._now_s() - self.started_s

    @property
    def open_ended(self) -> bool:
        return self._end_s == float("inf")


# --- one job ------------------------------------------------------------------------------------------------------------


def wait(
    session: Session,
    known: Known,
    *,
    timeout_s: float | None,
    cadence: Cadence | None,
    raise_on_failure: bool,
    changes: bool = False,
) -> Steps[JobView]:
    """Until the job is final; with `changes`, emits each changed view on the way, the final one too.

    Errors: WaitTimeout; JobFailed, PartialFailure or JobCancelled when raise_on_failure; NotFound, Expired, Unauthenticated,
    Forbidden; Unreachable when not one answer came.
    """
    deadline = Deadline(session, timeout_s)
    cadence = cadence or session.cadence
    last: JobView | None = None
    while True:
        delay_s = 0.0
        if not known.done:
            delay_s = yield from probe(session, known, cadence, deadline, changes=changes)
        if changes and known.view is not None and known.view != last:
            last = known.view
            yield Emit(last)
        if known.done:
            break
        yield from _pause(session, known, deadline, delay_s)
    assert known.view is not None
    if raise_on_failure:
        yield from check(session, known, deadline.elapsed_s)
    return known.view


def probe(session: Session, known: Known, cadence: Cadence, deadline: Deadline, *, changes: bool) -> Steps[float]:
    """Ask once, as a long poll where the wire has it; returns the pause before the next probe, seconds."""
    dialect = session.dialect
    long_s = 0.0 if cadence.every_s is not None else min(dialect.long_poll_s, deadline.left_s)
    if known.in_a_row or (changes and known.etag is None):  # a server in trouble is not kept busy; the first view is due at once
        long_s = 0.0
    etag = known.etag if changes else None
    asked_s, before = session.clock.monotonic_s(), known.view
    timeout_s = min(session.request_timeout_s, max(deadline.left_s, 1.0)) + long_s
    reply = yield from session.ask(dialect.probe(known.id, etag=etag, wait_s=long_s), timeout_s=timeout_s)
    delay_s = absorb(session, known, reply, cadence)
    took_s = session.clock.monotonic_s() - asked_s
    if changes and etag is None and known.etag is not None:
        return 0.0  # the next one waits for a change
    if not known.in_a_row and long_s >= 1 and (took_s >= 0.8 * long_s or (changes and known.view != before)):
        return 0.0  # the server did the waiting
    return delay_s


def _pause(session: Session, known: Known, deadline: Deadline, delay_s: float) -> Steps[None]:
    """Sleep, but not beyond the end.  Errors: WaitTimeout, Unreachable."""
    now_s = session.clock.monotonic_s()
    quiet_s = now_s - (deadline.started_s if known.heard_s is None else max(known.heard_s, deadline.started_s))
    if deadline.left_s <= 0 or (deadline.open_ended and known.in_a_row and quiet_s > QUIET_S):
        raise _given_up(session, known, deadline, quiet_s)
    if delay_s > 0:
        yield Sleep(min(delay_s, deadline.left_s))


def _given_up(session: Session, known: Known, deadline: Deadline, quiet_s: float) -> MilepostError:
    counts: dict[str, Any] = {"probes": known.stats.probes, "failures": known.stats.failures, "throttled": known.stats.throttled}
    hint = session.command("wait", known.id)
    if known.view is None or deadline.open_ended:
        return Unreachable(
            f"no usable answer about job {known.id} for {quiet_s:.0f} s: {known.stats.last_error}",
            job_id=known.id,
            elapsed_s=deadline.elapsed_s,
            hint=hint,
            request_id=known.stats.request_id,
            last_error=known.stats.last_error,
            **counts,
        )
    return WaitTimeout(
        known.id,
        state=known.state,
        waited_s=round(deadline.elapsed_s, 1),
        hint=hint,
        request_id=known.stats.request_id,
        last_error=known.stats.last_error,
        **counts,
    )


def check(session: Session, known: Known, elapsed_s: float) -> Steps[None]:
    """Errors: JobFailed, PartialFailure with both lists of sub-jobs, JobCancelled: when the job did not succeed."""
    view = known.view
    assert view is not None
    if view.state is State.SUCCEEDED:
        return
    failed = view.state is State.FAILED
    succeeded_subs, failed_subs = (yield from _split(session, view)) if failed else ([], [])
    reason = view.error.message if view.error is not None else "no reason was given"
    fields: dict[str, Any] = {
        "job_id": view.id,
        "state": str(view.state),
        "elapsed_s": elapsed_s,
        "request_id": known.stats.request_id,
        "hint": session.command("retry" if session.dialect.name == "native" and view.parent_id is None else "get", view.id),
        "failure": view.error,
        "view": view,
    }
    if not failed:
        raise JobCancelled(f"job {view.id} was cancelled: {reason}", **fields)
    if succeeded_subs:
        raise PartialFailure(
            f"job {view.id} failed in part, {len(succeeded_subs)} sub-jobs succeeded and {len(failed_subs)} did not: {reason}",
            succeeded=succeeded_subs,
            failed=failed_subs,
            **fields,
        )
    raise JobFailed(f"job {view.id} failed: {reason}", **fields)


def _split(session: Session, view: JobView) -> Steps[tuple[list[JobView], list[JobView]]]:
    """The sub-jobs that succeeded, and the others."""
    subs = list(view.sub_jobs)
    if not subs and view.sub_counts.get(State.SUCCEEDED):
        try:
            subs = yield from _sub_jobs(session, view.id, TREE_MAX)
        except MilepostError:  # the job's own failure is what matters
            return [], []
    return [sub for sub in subs if sub.state is State.SUCCEEDED], [sub for sub in subs if sub.state is not State.SUCCEEDED]


def _sub_jobs(session: Session, parent_id: str, limit: int) -> Steps[list[JobView]]:
    request = session.dialect.list_jobs(Query(parent_id=parent_id, page_size=min(limit, TREE_MAX), oldest_first=True))
    found: list[JobView] = []
    while True:
        page = session.dialect.read_page((yield from session.call(request, job_id=parent_id)))
        found += page.views
        if page.next_path is None or len(found) >= limit:
            return found[:limit]
        request = msgspec.structs.replace(request, url=page.next_path)


# --- many jobs ----------------------------------------------------------------------------------------------------------


def as_completed(session: Session, jobs: Sequence[Known], *, timeout_s: float | None, cadence: Cadence | None) -> Steps[None]:
    """Emits each Known once it is final, or once nothing more can be learnt of it (its `error` says why), as it happens.

    Theory: one heap of due probes, no task or thread for a job.  Where the wire can ask for many jobs in one request, what is
    due soon rides along; the last job left is waited for with a long poll.
    Errors: WaitTimeout naming a job that was not final, with `pending` ids; Unauthenticated.
    """
    deadline = Deadline(session, timeout_s)
    cadence = cadence or session.cadence
    bulk = session.dialect.bulk_max
    due: list[tuple[float, int]] = [(deadline.started_s, index) for index in range(len(jobs))]
    heard_s = float("-inf")  # when the server last answered about any of them
    while due:
        now_s = session.clock.monotonic_s()
        if len(due) == 1 and session.dialect.long_poll_s:
            batch = [heapq.heappop(due)[1]]
        else:
            batch = _take_due(due, now_s, bulk or TOGETHER, SOON_S if bulk else 0.0)
        if not batch:
            if deadline.left_s <= 0:
                raise _many_given_up(session, [jobs[index] for _, index in due], deadline)
            yield Sleep(min(due[0][0] - now_s, deadline.left_s))
            continue
        asked = [jobs[index] for index in batch]
        throttled = [known.stats.throttled for known in asked]
        delays = yield from _probe_many(session, asked, cadence, deadline, alone=not due and len(batch) == 1)
        heard_s = session.clock.monotonic_s() if any(known.in_a_row == 0 for known in asked) else heard_s
        if session.clock.monotonic_s() - heard_s < cadence.failure_cap_s:
            _forgive(asked, throttled)
        asked_s = session.clock.monotonic_s()
        for index, delay_s in zip(batch, delays, strict=True):
            if jobs[index].done or jobs[index].error is not None:
                yield Emit(jobs[index])
            else:
                heapq.heappush(due, (asked_s + delay_s, index))
        if due and deadline.left_s <= 0:
            raise _many_given_up(session, [jobs[index] for _, index in due], deadline)
        _check_quiet(session, [jobs[index] for _, index in due], deadline)


def _take_due(due: list[tuple[float, int]], now_s: float, most: int, soon_s: float) -> list[int]:
    batch: list[int] = []
    if due and due[0][0] <= now_s:
        while due and len(batch) < most and due[0][0] <= now_s + soon_s:
            batch.append(heapq.heappop(due)[1])
    return batch


def _forgive(asked: list[Known], throttled: list[int]) -> None:
    """While the server answers about some jobs, bad luck with another one is no reason to leave that one alone for longer."""
    for known, before in zip(asked, throttled, strict=True):
        if known.stats.throttled == before:
            known.in_a_row = min(known.in_a_row, 1)


def _probe_many(session: Session, jobs: list[Known], cadence: Cadence, deadline: Deadline, *, alone: bool) -> Steps[list[float]]:
    """Ask about these jobs; returns their pauses.  A job about which nothing more can be learnt gets its `error`."""
    if alone:
        try:
            return [(yield from probe(session, jobs[0], cadence, deadline, changes=False))]
        except MilepostError as error:
            return [_keep_error(jobs[0], error)]
    if session.dialect.bulk_max and len(jobs) > 1:
        return (yield from _probe_listed(session, jobs, cadence))
    return (yield from _probe_each(session, jobs, cadence))


def _probe_each(session: Session, jobs: list[Known], cadence: Cadence) -> Steps[list[float]]:
    delays = []
    for start in range(0, len(jobs), TOGETHER):
        group = jobs[start : start + TOGETHER]
        replies = yield from session.ask_all([session.dialect.probe(known.id) for known in group])
        for known, reply in zip(group, replies, strict=True):
            try:
                delays.append(absorb(session, known, reply, cadence))
            except MilepostError as error:
                delays.append(_keep_error(known, error))
    return delays


def _probe_listed(session: Session, jobs: list[Known], cadence: Cadence) -> Steps[list[float]]:
    """One list request for all; those that are final, or not in the answer, are then asked for by their id."""
    ids = tuple(known.id for known in jobs)
    reply = yield from session.ask(session.dialect.list_jobs(Query(ids=ids, page_size=len(ids))))
    if not (isinstance(reply, Response) and reply.status == 200):
        retryable = not isinstance(reply, Response) or session.dialect.read_error(reply, None).retryable
        if retryable:
            return [absorb(session, known, reply, cadence) for known in jobs]
        return (yield from _probe_each(session, jobs, cadence))
    try:
        views = {view.id: view for view in session.dialect.read_page(reply).views}
    except ProtocolError:
        return (yield from _probe_each(session, jobs, cadence))
    now_s = session.clock.monotonic_s()
    delays: dict[int, float] = {}
    for index, known in enumerate(jobs):
        view = views.get(known.id)
        if view is not None and not view.done:
            known.stats.probes += 1
            known.in_a_row, known.heard_s = 0, now_s
            take(session, known, view, reply, now_s)
            delays[index] = cadence.after_answer(known.age_s(now_s), None, session.random, session.durations(view))
    rest = [index for index in range(len(jobs)) if index not in delays]
    found = yield from _probe_each(session, [jobs[index] for index in rest], cadence)
    delays.update(zip(rest, found, strict=True))
    return [delays[index] for index in range(len(jobs))]


def _keep_error(known: Known, error: MilepostError) -> float:
    if isinstance(error, Unauthenticated):  # the same for every job: nothing is left to wait for
        raise error
    known.error = error
    return 0.0


def _check_quiet(session: Session, pending: list[Known], deadline: Deadline) -> None:
    if not pending or not deadline.open_ended or not all(known.in_a_row for known in pending):
        return
    heard_s = max((known.heard_s or deadline.started_s for known in pending), default=deadline.started_s)
    if session.clock.monotonic_s() - heard_s > QUIET_S:
        raise _many_given_up(session, pending, deadline)


def _many_given_up(session: Session, pending: list[Known], deadline: Deadline) -> MilepostError:
    first = next((known for known in pending if known.view is not None), pending[0])
    error = _given_up(session, first, deadline, deadline.elapsed_s)
    error.fields["pending"] = [known.id for known in pending]
    error.hint = session.command("wait", *error.fields["pending"])
    if len(pending) > 1:
        error.message = f"{len(pending)} jobs not final after {deadline.elapsed_s:.1f} s, one of them: {error.message}"
    return error


def check_all(session: Session, jobs: Sequence[Known], elapsed_s: float) -> Steps[None]:
    """Errors: when some did not succeed, PartialFailure or, if none did, JobFailed: `succeeded` and `failed` list ids."""
    bad = [known for known in jobs if known.view is None or known.view.state is not State.SUCCEEDED]
    if not bad:
        return
    if len(jobs) == 1:
        if bad[0].error is not None:
            raise bad[0].error
        yield from check(session, bad[0], elapsed_s)
    good = [known.id for known in jobs if known.view is not None and known.view.state is State.SUCCEEDED]
    text = f"{len(bad)} of {len(jobs)} jobs did not succeed; the first: job {bad[0].id} {_reason(bad[0])}"
    fields: dict[str, Any] = {
        "job_id": bad[0].id,
        "state": None if bad[0].view is None else bad[0].state,
        "elapsed_s": elapsed_s,
        "request_id": bad[0].stats.request_id,
        "hint": session.command("get", bad[0].id),
    }
    if good:
        raise PartialFailure(text, succeeded=good, failed=[known.id for known in bad], **fields)
    raise JobFailed(text, succeeded=[], failed=[known.id for known in bad], **fields)


def _reason(known: Known) -> str:
    if known.error is not None:
        return f"is not known any more: {known.error.message}"
    view = known.view
    return f"{known.state}: {view.error.message}" if view is not None and view.error is not None else known.state


# --- each change --------------------------------------------------------------------------------------------------------


def watch(session: Session, known: Known, *, timeout_s: float | None, cadence: Cadence | None, tree: bool) -> Steps[JobView]:
    """Emits the job's view whenever it changed, the final one last; with `tree`, its sub-jobs are in `sub_jobs`.

    Where the wire streams, the stream says when to look; elsewhere the cadence does.
    Errors: as `wait`, without those about the job's outcome.
    """
    if not session.dialect.streams:
        return (yield from wait(session, known, timeout_s=timeout_s, cadence=cadence, raise_on_failure=False, changes=True))
    deadline = Deadline(session, timeout_s)
    cadence = cadence or session.cadence
    shown: JobView | None = None
    last_id = 0
    while True:
        delay_s, shown = yield from _show(session, known, cadence, tree, shown)
        if known.done and shown is not None:
            return shown
        if not known.in_a_row:
            request = session.dialect.events(known.id, after=last_id, tree=True, stream=True)
            reply = yield from open_stream(session, request, deadline.left_s or 0.001)
            if isinstance(reply, Response) and reply.status == 200:
                parser = EventParser(last_id)
                looked_s = session.clock.monotonic_s()
                while isinstance(part := (yield Read()), bytes):
                    if parser.feed(part):
                        busy_s = REFRESH_S - (session.clock.monotonic_s() - looked_s)
                        if busy_s > 0:
                            yield Sleep(busy_s)
                        looked_s = session.clock.monotonic_s()
                        _, shown = yield from _show(session, known, cadence, tree, shown)
                        if known.done and shown is not None:
                            return shown
                last_id, delay_s = parser.last_id, 0.0 if part is None and parser.last_id > last_id else delay_s
        yield from _pause(session, known, deadline, delay_s)


def _show(
    session: Session, known: Known, cadence: Cadence, tree: bool, shown: JobView | None
) -> Steps[tuple[float, JobView | None]]:
    reply = yield from session.ask(session.dialect.probe(known.id))
    delay_s = absorb(session, known, reply, cadence)
    view = known.view
    if view is not None and tree and any(view.sub_counts.values()):
        try:
            view = yield from _with_sub_jobs(session, view, [TREE_MAX])
        except MilepostError as error:
            if not error.retryable and not isinstance(error, ProtocolError):
                raise
    if view is not None and view != shown:
        yield Emit(view)
    return delay_s, view


def _with_sub_jobs(session: Session, view: JobView, room: list[int]) -> Steps[JobView]:
    """The view with its tree below it, at most as many jobs as there is room for."""
    subs = yield from _sub_jobs(session, view.id, room[0])
    room[0] -= len(subs)
    for index, sub in enumerate(subs):
        if room[0] > 0 and any(sub.sub_counts.values()):
            subs[index] = yield from _with_sub_jobs(session, sub, room)
    return msgspec.structs.replace(view, sub_jobs=tuple(subs))
