"""Conversations that ask once: submit, get, list, cancel, retry, release, history, catalog."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

from milepost.client.dialects import Query, Spec
from milepost.client.dialects.glance import request_id_of
from milepost.client.dialects.native import Native
from milepost.client.known import Known
from milepost.client.native import answer, native
from milepost.client.session import Session
from milepost.client.steps import Ask, Emit, Open, Read, Sleep, Steps
from milepost.errors import Expired, MilepostError, ProtocolError, Unavailable, Unreachable
from milepost.job import Event, ProjectId
from milepost.wire import Response
from milepost.wire import native as native_wire

SILENCE_S = 45.0  # a stream silent for three of the server's heartbeats is dead
FOREVER_S = 86_400.0 * 365
LOOKS = 2  # times a lost submit is looked for
NEWEST = 20
MISSED = b'{"type":"missed"'
REPEATABLE = "X-Client-Token"  # a submit that carries it may be repeated


def submit(session: Session, spec: Spec) -> Steps[Known]:
    """The job, durable on the server.

    Rules: with an idempotency key the request is repeated while nothing is heard, and makes one job; without one on the wire
    it is looked for among the newest jobs by the name of its request, and never sent twice.
    """
    request = session.dialect.submit(spec)
    submitted_s = session.clock.monotonic_s()
    once = session.dialect.submits_once or REPEATABLE in request.headers
    try:
        response = yield from session.call(request, repeatable=once)
    except (Unavailable, ProtocolError) as error:
        if once or error.fields.get("sent") is False or error.fields.get("status") == 429:
            raise
        if not session.dialect.lists:
            error.hint = "it is not known whether the job was made; look at the resource that it was to make or change"
            raise
        found = yield from _find_lost(session, spec)
        if found is None:
            error.hint = f"it is not known whether the job was made; look for it with {session.command('list')}"
            raise
        return found
    view = session.dialect.read_submitted(response, spec)
    return Known(view.id, view, response.headers.get("etag"), submitted_s)


def _find_lost(session: Session, spec: Spec) -> Steps[Known | None]:
    name = request_id_of(spec)
    for _ in range(LOOKS):
        yield Sleep(1.0)
        try:
            response = yield from session.call(session.dialect.list_jobs(Query(page_size=NEWEST)))
            for stub in session.dialect.read_page(response).views:
                shown = yield from session.call(session.dialect.probe(stub.id))
                view = session.dialect.read_job(shown)
                if isinstance(view.raw, dict) and view.raw.get("request_id") == name:
                    return Known(view.id, view, None, session.clock.monotonic_s())
        except MilepostError:
            continue
    return None


def submit_many(session: Session, specs: Sequence[Spec]) -> Steps[list[Known]]:
    """The jobs, in order; on Milepost's own API in one request, all or none."""
    if not isinstance(session.dialect, Native):
        known: list[Known] = []
        for spec in specs:
            known += [(yield from submit(session, spec))]
        return known
    submitted_s = session.clock.monotonic_s()
    response = yield from session.call(session.dialect.submit_many(list(specs)))
    return [Known(view.id, view, None, submitted_s) for view in session.dialect.read_many(response)]


def get(session: Session, job_id: str) -> Steps[Known]:
    """Errors: NotFound; Expired with the final state; those of `Session.call`."""
    try:
        response = yield from session.call(session.dialect.probe(job_id), job_id=job_id)
    except Expired as error:
        error.hint = error.hint or "its record is gone; only its final state is kept"
        raise
    view = session.dialect.read_job(response)
    return Known(view.id or job_id, view, response.headers.get("etag"))


def list_jobs(session: Session, query: Query, limit: int | None) -> Steps[None]:
    """Emits a Known for each job; the next page is asked for when the one before is used up."""
    request = session.dialect.list_jobs(query)
    left = limit
    while left != 0:
        response = yield from session.call(request)
        page = session.dialect.read_page(response)
        for view in page.views:
            if left == 0:
                return
            left = None if left is None else left - 1
            yield Emit(Known(view.id, view))
        if page.next_path is None:
            return
        request = msgspec.structs.replace(request, url=page.next_path)


def act(session: Session, job_id: str, verb: str) -> Steps[Known]:
    """`cancel` (of a running job: a request), `retry` (a new job) or `release`.

    Errors: NotFound, Expired, Conflict when the job's state or the cloud does not allow it.
    """
    response = yield from session.call(session.dialect.act(job_id, verb), job_id=job_id, repeatable=verb == "cancel")
    view = session.dialect.read_job(response)
    return Known(view.id, view, response.headers.get("etag"), session.clock.monotonic_s() if verb == "retry" else None)


def catalog(session: Session, what: str) -> Steps[list[Any]]:
    """The server's `kinds` or `queues`.  Errors: Conflict when the wire has none."""
    request = native(session, f"has no {what}").catalog(what)
    if what == "kinds":
        return list((yield from answer(session, request, native_wire.decode_kinds)).kinds)
    return list((yield from answer(session, request, native_wire.decode_queues)).queues)


def set_queue(session: Session, name: str, change: dict[str, Any] | str) -> Steps[native_wire.NativeQueue]:
    """Put a whole setting, or `pause` or `resume`.  Errors: Forbidden for those who are no admin."""
    request = native(session, "has no queues").set_queue(name, change)
    return (yield from answer(session, request, native_wire.decode_queue))


def events(session: Session, job_id: str, *, after: int, tree: bool) -> Steps[None]:
    """Emits the Event values of a job's history so far, oldest first."""
    dialect = native(session, "has no history")
    request = dialect.events(job_id, after=after, tree=tree)
    while True:
        response = yield from session.call(request, job_id=job_id)
        page, next_path = dialect.read_events(response)
        for one in page:
            yield Emit(_event(session, one))
        if next_path is None:
            return
        request = msgspec.structs.replace(request, url=next_path)


def follow_events(session: Session, job_id: str, *, after: int, tree: bool) -> Steps[None]:
    """Emits the Event values of a job's history as they happen, each once, until the job (or its tree) has ended.

    Rules: a broken stream is opened again behind the last event; given up after `patience_s` without an answer.
    """
    dialect = native(session, "has no history")
    failures, failing_since_s = 0, 0.0
    while True:
        reply = yield from open_stream(session, dialect.events(job_id, after=after, tree=tree, stream=True), FOREVER_S)
        if isinstance(reply, Response) and reply.status == 204:
            return
        if isinstance(reply, Response) and reply.status == 200:
            parser, part = NativeEvents(after), b""
            while isinstance(part := (yield Read()), bytes):
                failures = 0
                for one in parser.feed(part):
                    if isinstance(one, native_wire.Missed):  # some of the project's events are gone: perhaps this job is
                        yield from get(session, job_id)
                    else:
                        yield Emit(_event(session, one))
            if part is None and parser.last_id == after:  # ended and nothing new: there is nothing more to come
                known = yield from get(session, job_id)
                if known.done:
                    return
            after = parser.last_id
            reply = part if isinstance(part, Unreachable) else Unreachable("the stream ended early", endpoint=session.endpoint)
            if part is None:
                continue
        now_s = session.clock.monotonic_s()
        failing_since_s = now_s if failures == 0 else failing_since_s
        failures += 1
        error, delay_s = session.judge(reply, failures, job_id)
        if not error.retryable or now_s - failing_since_s > session.patience_s:
            raise error
        yield Sleep(delay_s)


def open_stream(session: Session, request: Any, timeout_s: float) -> Steps[Any]:
    """The first part of the answer of a stream: its status and headers.  `Read` steps bring its body."""
    refused = yield from session.ensure_token()
    if refused is not None:
        return refused
    reply = yield Open(Ask(session.addressed(request), timeout_s), min(SILENCE_S, timeout_s))
    return reply


E = TypeVar("E")


class EventParser(Generic[E]):
    """Server-sent events from bytes that arrive in any pieces.  Source: the HTML standard, section 9.2.6."""

    def __init__(self, last_id: int = 0) -> None:
        self.last_id = last_id
        self.last_known = False  # whether the stream said where it is
        self._rest = b""

    def feed(self, part: bytes) -> list[E]:
        """The events that are complete now.  Errors: ProtocolError."""
        *blocks, self._rest = (self._rest + part).replace(b"\r\n", b"\n").split(b"\n\n")
        found = []
        for block in blocks:
            data = []
            for line in block.split(b"\n"):
                name, _, value = line.partition(b":")
                value = value.removeprefix(b" ")
                if name == b"id" and value.isdigit():
                    self.last_id, self.last_known = int(value), True
                elif name == b"data":
                    data.append(value)
            if data:
                found.append(self._event(b"\n".join(data)))
        return found

    def _event(self, data: bytes) -> E:
        raise NotImplementedError


class NativeEvents(EventParser[native_wire.NativeEvent | native_wire.Missed]):
    """Whole events, and which of them are gone."""

    def _event(self, data: bytes) -> native_wire.NativeEvent | native_wire.Missed:
        try:
            if data.startswith(MISSED):
                return native_wire.decode_missed(data).missed
            return native_wire.decode_event(data)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"an event of the stream cannot be read: {error}") from error


def _event(session: Session, one: native_wire.NativeEvent) -> Event:
    return native_wire.to_event(one, ProjectId(session.project or "default"))
