"""What a client knows of one job, and how the answer to a probe changes it.

Rules
1. A job that was seen final stays final.
2. An answer that may pass (none, 5xx, 408, 429) is counted and survived, an unreadable one too: of a job that was never seen
   only a few times, because then it is rather the wrong URL.
3. 401, 403, 404 and 410 are raised as what they are; "not found" is survived for the dialect's grace after a submit.
4. A status that nobody knows is a job that still runs.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

from milepost.client.cadence import Cadence, retry_after_s
from milepost.client.session import Reply, Session
from milepost.errors import InvalidInput, MilepostError, NotFound, ProtocolError
from milepost.job import State
from milepost.wire import JobView, Response

log = logging.getLogger("milepost.client")

UNREADABLE_MAX = 3  # answers in a row that are none of the API's, before the wait gives up
WORDS = frozenset(
    {*State, "pending", "processing", "success", "failure"}
    | {"init", "fail", "pending_payment", "initializing", "completed", "1", "2"}
)


class Stats(msgspec.Struct):
    """What a wait cost: requests put, those that had no usable answer, and of these those that asked to slow down."""

    probes: int = 0
    failures: int = 0
    throttled: int = 0
    last_error: str | None = None
    request_id: str | None = None


class Known(msgspec.Struct):
    """One job, as far as this client has seen it."""

    id: str
    view: JobView | None = None
    etag: str | None = None
    submitted_s: float | None = None  # monotonic; None: not submitted by this client
    error: MilepostError | None = None  # why nothing more can be learnt of it
    stats: Stats = msgspec.field(default_factory=Stats)
    first_s: float | None = None  # monotonic instant of the first answer
    first_age_s: float = 0.0  # the job's age at that instant, by the server's own clock
    heard_s: float | None = None  # monotonic instant of the last answer
    asked_s: float | None = None  # monotonic instant of the last answer to a probe of this job alone
    in_a_row: int = 0  # probes without a usable answer
    unreadable: int = 0

    @property
    def done(self) -> bool:
        return self.view is not None and self.view.done

    @property
    def state(self) -> str:
        return "unknown" if self.view is None else str(self.view.state)

    def age_s(self, now_s: float) -> float:
        """Of the job, seconds: independent of this machine's wall clock."""
        return 0.0 if self.first_s is None else self.first_age_s + now_s - self.first_s

    def slim(self) -> None:
        """Of a job that is not final, keep what a bulk wait needs: no raw answer, no texts of its own."""
        if self.view is not None and not self.view.done and self.view.raw is not None:
            self.view = slimmed(self.view)

    def learn(self, view: JobView) -> bool:
        """Take a view; False when it says nothing new."""
        if self.done and not view.done:
            return False
        old, self.view = self.view, view
        return old is None or old != view


def slimmed(view: JobView) -> JobView:
    """The view without what the cloud may have written much of; the words that many jobs share are kept once."""
    return JobView(
        id=view.id,
        kind=sys.intern(view.kind),
        state=view.state,
        status=sys.intern(view.status),
        project=None if view.project is None else sys.intern(view.project),
        parent_id=view.parent_id,
        created_us=view.created_us,
        started_us=view.started_us,
        updated_us=view.updated_us,
    )


def take_listed(session: Session, known: Known, view: JobView, reply: Response, *, probes: int = 1) -> None:
    """Learn from a view out of a list's answer."""
    now_s = session.clock.monotonic_s()
    known.stats.probes += probes
    known.in_a_row, known.heard_s = 0, now_s
    take(session, known, view, reply, now_s)
    known.slim()


def absorb(session: Session, known: Known, reply: Reply, cadence: Cadence, *, probes: int = 1) -> float:
    """Learn from the reply to a probe; returns the pause before the next one, seconds.  `probes`: 0 for somebody else's.

    Errors: what ends a wait: Unauthenticated, Forbidden, NotFound, Expired, and others of the caller's; ProtocolError when
    the answers are none of the API's.
    """
    now_s = session.clock.monotonic_s()
    known.stats.probes += probes
    if isinstance(reply, Response):
        named = reply.headers.get("x-openstack-request-id") or reply.headers.get("x-request-id")
        known.stats.request_id = named or known.stats.request_id  # the last one that the server itself answered
        if reply.status == 304:
            return _answered(session, known, reply, cadence, now_s)
        if 200 <= reply.status < 300:
            try:
                view = session.dialect.read_job(reply)
            except ProtocolError as error:
                return _unreadable(session, known, error, cadence)
            known.etag = reply.headers.get("etag")
            take(session, known, view, reply, now_s)
            return _answered(session, known, reply, cadence, now_s)
    return _failed(session, known, reply, cadence, now_s)


def take(session: Session, known: Known, view: JobView, reply: Response, now_s: float) -> None:
    """Learn a view from an answer, and the job's age from its date."""
    if known.first_s is None:
        known.first_s, known.first_age_s = now_s, _age_s(view, reply)
    if not view.done and view.status.lower() not in WORDS:
        session.warn_unknown(view.status, known.id)
    known.unreadable = 0
    was_open = known.view is not None and not known.done
    known.learn(view)
    if was_open and view.done:
        session.learn_duration(view, known.age_s(now_s))


def _answered(session: Session, known: Known, reply: Response, cadence: Cadence, now_s: float) -> float:
    known.in_a_row, known.heard_s, known.asked_s = 0, now_s, now_s
    return cadence.after_answer(known.age_s(now_s), retry_after_s(reply.headers), session.random, session.durations(known.view))


def _failed(session: Session, known: Known, reply: Reply, cadence: Cadence, now_s: float) -> float:
    known.in_a_row += 1
    known.stats.failures += 1
    status = reply.status if isinstance(reply, Response) else 0
    error = session.dialect.read_error(reply, known.id) if isinstance(reply, Response) else reply
    known.stats.last_error = error.message
    if known.in_a_row == 1 and error.retryable:
        log.info("job %s: %s; asking on", known.id, error.message)
    if isinstance(error, NotFound) and _is_fresh(session, known, now_s):
        return cadence.after_failure(known.in_a_row, session.random)
    if not error.retryable:
        error.job_id, error.state = error.job_id or known.id, error.state or (known.state if known.view else None)
        error.request_id = error.request_id or known.stats.request_id
        raise error
    if status:
        known.heard_s = now_s
    if status in (429, 503):
        known.stats.throttled += 1
        assert isinstance(reply, Response)
        return cadence.after_throttle(known.in_a_row, retry_after_s(reply.headers), session.random)
    return cadence.after_failure(known.in_a_row, session.random)


def _unreadable(session: Session, known: Known, error: ProtocolError, cadence: Cadence) -> float:
    known.unreadable += 1
    known.in_a_row += 1
    known.stats.failures += 1
    known.stats.last_error = error.message
    if known.unreadable >= UNREADABLE_MAX and known.view is None:
        error.job_id = known.id
        raise error
    return cadence.after_failure(known.in_a_row, session.random)


def _is_fresh(session: Session, known: Known, now_s: float) -> bool:
    return known.submitted_s is not None and now_s - known.submitted_s < session.dialect.found_grace_s


def _age_s(view: JobView, reply: Response) -> float:
    """By the server's clock alone: its `Date` against the job's own instants."""
    if view.created_us is None:
        return 0.0
    now_us = sent_us(reply) or max(view.updated_us or 0, view.created_us)
    return max(0.0, (now_us - view.created_us) / 1e6)


def sent_us(reply: Response) -> int | None:
    """When the server sent it, by its own clock, in whole seconds; None when it does not say."""
    try:
        at = parsedate_to_datetime(reply.headers["date"])
    except (KeyError, ValueError):
        return None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()) * 1_000_000


def parse_instant(value: datetime | str | None) -> str | None:
    """RFC 3339 text of an instant; a datetime without an offset is UTC.  Errors: InvalidInput when it is neither."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, datetime):
        raise InvalidInput(f"an instant is a datetime or RFC 3339 text, not {value!r}", path="$.run_at")
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
