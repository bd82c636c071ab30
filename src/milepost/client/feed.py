"""The stream of a project's events, as one of the ways in which a bulk wait learns that jobs ended.

Theory: the server begins a stream with the id of the last event there is.  A job that is looked at after that cannot end unheard:
its event is in the stream.  A stream that broke is opened again behind the last event it brought, so what happened meanwhile is
in it.  Where events went with jobs that have expired the stream says so, and every job is looked at again.  While there is none,
jobs are asked about as if there never had been one.
"""

from __future__ import annotations

from typing import Any

import msgspec

from milepost.client.calls import FOREVER_S, SILENCE_S, EventParser
from milepost.client.dialects.native import Native
from milepost.client.session import Session
from milepost.client.steps import Ask, Open, Send, Steps
from milepost.errors import Unreachable
from milepost.wire import Response

HOLD_S = 2.0  # the first look at the jobs waits so long for the stream to be open
AT_ONCE_S = 0.2  # a stream that had been open is opened again after so long
AGAIN_CAP_S = 60.0


class End(msgspec.Struct, frozen=True):
    """What a bulk wait needs of an event; of one that it cannot read, nothing."""

    job_id: str = ""
    state: str = ""
    type: str = ""


_decode = msgspec.json.Decoder(End).decode


class Ends(EventParser[End]):
    """Reads events of servers that know more states and types than we do."""

    def _event(self, data: bytes) -> End:
        try:
            return _decode(data)
        except msgspec.DecodeError:
            return End()


class Opened(msgspec.Struct, frozen=True, eq=False):
    """One opening of the stream: what comes of an earlier one is not heard any more."""

    feed: Feed
    token: str | None


class Feed:
    """A project's stream: not there, being opened, or open since `covered_s`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._parser = Ends()
        self._opened: Opened | None = None
        self._failures = 0
        self.next_s = session.clock.monotonic_s()  # when it is opened next
        self.hold_s = self.next_s  # nothing is asked before
        self.covered_s: float | None = None  # what was asked since then is kept up to date by the stream
        self.resumed = False  # opened behind an event that was heard: nothing is missing
        self.refused = False  # this server has no such stream
        self.missed = False  # events are gone that were not heard; whoever looks at every job again says that it did

    def open(self, timeout_s: float) -> Steps[None]:
        """Begin to open it."""
        session, dialect, now_s = self._session, self._session.dialect, self._session.clock.monotonic_s()
        assert isinstance(dialect, Native)
        if (yield from session.ensure_token()) is not None:
            self._break()
            return
        self.next_s = float("inf")
        self.hold_s = now_s + HOLD_S if not self._failures and not self._parser.last_id else now_s
        request = dialect.project_events(after=self._parser.last_id)
        timeout_s = min(timeout_s or FOREVER_S, FOREVER_S)
        self._opened = Opened(self, session.token)
        yield Send(self._opened, Open(Ask(session.addressed(request), timeout_s), min(SILENCE_S, timeout_s)))

    def receive(self, opened: Opened, reply: Any) -> list[End]:
        """What the stream brought: its answer, a part, or its end."""
        if opened is not self._opened:
            return []
        if isinstance(reply, bytes):
            events = self._parser.feed(reply)
            if self.covered_s is None and self._parser.last_known:
                self.covered_s = self.hold_s = self._session.clock.monotonic_s()
                self._failures = 0
            if any(event.type == "missed" for event in events):
                self.missed, self.covered_s = True, self._session.clock.monotonic_s()
            return events
        if isinstance(reply, Response):
            if reply.status == 200 and "event-stream" in reply.headers.get("content-type", "text/event-stream"):
                self.resumed = self._parser.last_id > 0
                self._parser = Ends(self._parser.last_id)
                return []
            self.refused = not self._session.dialect.read_error(reply, None).retryable
        if reply is None or isinstance(reply, Response | Unreachable):
            self._break()
        return []

    def _break(self) -> None:
        """It ended, or could not be opened; the same stream brings nothing more."""
        now_s = self._session.clock.monotonic_s()
        was_open, self.covered_s, self.hold_s, self._opened = self.covered_s is not None, None, now_s, None
        self._failures = 0 if was_open else self._failures + 1
        cadence, random = self._session.cadence, self._session.random
        self.next_s = now_s + (AT_ONCE_S if was_open else min(AGAIN_CAP_S, cadence.after_failure(self._failures + 3, random)))
