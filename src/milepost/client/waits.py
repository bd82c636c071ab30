"""Conversations that wait: for one job, for many, and for each change.

Three different times, never mixed: a request's (`request_timeout_s`), the whole wait's (`timeout_s`), and the job's own
deadline, which is the server's business.  When the wait's is over, `WaitTimeout` says so; the job goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from milepost.client.bulk import Bulk
from milepost.client.cadence import Cadence
from milepost.client.calls import NativeEvents, open_stream
from milepost.client.dialects import Query
from milepost.client.ends import GRACE_S, QUIET_S, Deadline, given_up
from milepost.client.known import Known, absorb, take
from milepost.client.places import LOOK_S, News
from milepost.client.session import Session
from milepost.client.steps import Emit, Inbox, Read, Sleep, Steps
from milepost.errors import (
    JobCancelled,
    JobFailed,
    MilepostError,
    PartialFailure,
    ProtocolError,
)
from milepost.job import State
from milepost.wire import JobView, Response

TREE_MAX = 1000  # jobs of a tree that are shown
REFRESH_S = 0.2  # least time between two looks at a job whose stream is busy


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
    probing = Probing(session, known, cadence, deadline, changes=changes)
    try:
        while True:
            if not known.done:
                yield from probing.step()
            if changes and known.view is not None and known.view != last:
                last = known.view
                yield Emit(last)
            if known.done:
                break
    finally:
        probing.leave()
    assert known.view is not None
    if raise_on_failure:
        yield from check(session, known, deadline.elapsed_s)
    return known.view


class Probing:
    """One wait's part in asking about its job: it asks, when its turn has come, or is told by the wait that does."""

    def __init__(self, session: Session, known: Known, cadence: Cadence, deadline: Deadline, *, changes: bool) -> None:
        self._session, self._known, self._cadence, self._deadline = session, known, cadence, deadline
        self._changes = changes
        # Those that want each change ask otherwise than those that want the end: told apart, neither misses anything.
        self._key = f"{known.id} changes" if changes else known.id
        self._inbox = Inbox()
        self._due_s = deadline.started_s
        self._asked = False

    def step(self) -> Steps[None]:
        """Ask or listen once, or pause.  Errors: WaitTimeout, Unreachable; what ends the wait."""
        session, known, now_s = self._session, self._known, self._session.clock.monotonic_s()
        if news := self._inbox.take():
            for one in news:
                self._hear(one)
            return
        if not session.place.join(self._key, self._inbox, now_s):
            self._asked = True  # by another one
            yield from self._pause(LOOK_S)
            return
        if self._due_s > now_s:
            yield from self._pause(self._due_s - now_s)
            if session.clock.monotonic_s() < self._due_s:
                return  # told meanwhile, or the time is over
        rank_s = self._due_s + self._cadence.share * known.age_s(now_s)
        if (pause_s := session.turn(rank_s, self, self._cadence)) > 0:
            yield from self._pause(pause_s)
            return
        self._asked = True
        self._inbox.quiet_until_s = session.clock.monotonic_s() + session.request_timeout_s + session.dialect.long_poll_s
        delay_s = yield from self._probe()
        self._due_s = session.clock.monotonic_s() + delay_s
        self._inbox.quiet_until_s = self._due_s
        if not known.done:
            self._check_end()

    def _hear(self, news: News) -> None:
        if news.view is not None:
            self._known.in_a_row, self._known.heard_s = 0, self._session.clock.monotonic_s()
            take(self._session, self._known, news.view, news.reply, self._known.heard_s)
        elif news.reply is not None:
            absorb(self._session, self._known, news.reply, self._cadence, probes=0)
        self._asked = True

    def _probe(self) -> Steps[float]:
        session, known = self._session, self._known
        heard: list[Any] = []
        try:
            return (yield from probe(session, known, self._cadence, self._deadline, changes=self._changes, heard=heard))
        finally:
            view = known.view if known.in_a_row == 0 else None
            for reply in heard:
                session.place.tell(News(self._key, reply, view), self._inbox)

    def _pause(self, delay_s: float) -> Steps[None]:
        """Sleep, but not beyond the end.  Errors: WaitTimeout, Unreachable."""
        self._check_end()
        left_s = self._deadline.left_s
        if delay_s > 0:
            yield Sleep(min(delay_s, left_s) if left_s else delay_s, self._inbox)
        if not self._inbox:
            self._check_end()

    def _check_end(self) -> None:
        deadline, known = self._deadline, self._known
        now_s = self._session.clock.monotonic_s()
        quiet_s = now_s - (deadline.started_s if known.heard_s is None else max(known.heard_s, deadline.started_s))
        over = deadline.left_s <= 0 and (self._asked or deadline.over_s >= GRACE_S)  # a wait of no time asks once, if it may
        if over or (deadline.open_ended and known.in_a_row and quiet_s > QUIET_S):
            raise given_up(self._session, known, deadline, quiet_s)

    def leave(self) -> None:
        """The wait is over, whatever ended it."""
        self._session.budget.leave(self)
        self._session.place.leave([self._key], self._inbox)


def probe(
    session: Session, known: Known, cadence: Cadence, deadline: Deadline, *, changes: bool, heard: list[Any] | None = None
) -> Steps[float]:
    """Ask once, as a long poll where the wire has it; returns the pause before the next probe, seconds.  `heard`: the reply."""
    dialect = session.dialect
    long_s = 0.0 if cadence.every_s is not None else min(dialect.long_poll_s, deadline.left_s)
    if known.in_a_row or (changes and known.etag is None):  # a server in trouble is not kept busy; the first view is due at once
        long_s = 0.0
    etag = known.etag if changes else None
    asked_s, before = session.clock.monotonic_s(), known.view
    timeout_s = min(session.request_timeout_s, max(deadline.left_s, 1.0)) + long_s
    reply = yield from session.ask(dialect.probe(known.id, etag=etag, wait_s=long_s), timeout_s=timeout_s)
    if heard is not None:
        heard.append(reply)
    session.heed(reply, asked_s)
    delay_s = absorb(session, known, reply, cadence)
    took_s = session.clock.monotonic_s() - asked_s
    if changes and etag is None and known.etag is not None:
        return 0.0  # the next one waits for a change
    if not known.in_a_row and long_s >= 1 and (took_s >= 0.8 * long_s or (changes and known.view != before)):
        return 0.0  # the server did the waiting
    return delay_s


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

    Theory: `bulk.py`.
    Errors: WaitTimeout naming a job that was not final, with `pending` ids; Unauthenticated.
    """
    return Bulk(session, jobs, timeout_s=timeout_s, cadence=cadence).run()


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
                parser = NativeEvents(last_id)
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
        quiet_s = session.clock.monotonic_s() - max(known.heard_s or deadline.started_s, deadline.started_s)
        if deadline.left_s <= 0 or (deadline.open_ended and known.in_a_row and quiet_s > QUIET_S):
            raise given_up(session, known, deadline, quiet_s)
        if delay_s > 0:
            yield Sleep(min(delay_s, deadline.left_s))


def _show(
    session: Session, known: Known, cadence: Cadence, tree: bool, shown: JobView | None
) -> Steps[tuple[float, JobView | None]]:
    asked_s = session.clock.monotonic_s()
    session.budget.spend(asked_s)
    reply = yield from session.ask(session.dialect.probe(known.id))
    session.heed(reply, asked_s)
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
