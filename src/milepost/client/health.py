"""Whether the server of a bulk wait answers at all: what is wrong with one job is told from what is wrong with all."""

from __future__ import annotations

from milepost.client.cadence import Cadence
from milepost.client.known import UNREADABLE_MAX, Known
from milepost.client.session import Reply, Session
from milepost.wire import Response

DOWN = 3  # requests in a row without a usable answer: the server is in trouble, not a job

PAGES_MAX = 8  # lists in a row that are none, from a server that had answered with some


class Garbage:
    """Lists that are none of the API's: something in between may have answered for a while, or there are no such lists."""

    def __init__(self) -> None:
        self.in_a_row, self._most = 0, UNREADABLE_MAX

    def more(self) -> bool:
        """One more; whether those are enough to ask for no more lists."""
        self.in_a_row += 1
        return self.in_a_row >= self._most

    def none(self) -> None:
        """A list as it should be."""
        self.in_a_row, self._most = 0, PAGES_MAX


class Health:
    """What the last requests came to.  A refusal (429, 503) is an answer: the budget's business."""

    def __init__(self, session: Session, cadence: Cadence) -> None:
        self._session, self._cadence = session, cadence
        self.failures = 0  # in a row
        self.hold_s = 0.0  # nothing is asked before
        self.heard_s = float("-inf")  # when it last answered about any job

    @property
    def down(self) -> bool:
        """Whether one request at a time is enough."""
        return self.failures >= DOWN

    def judge(self, reply: Reply) -> None:
        """A server that gives no usable answer time and again is left alone for a while, by all jobs."""
        if isinstance(reply, Response) and (reply.status < 500 or reply.status == 503):
            self.failures, self.hold_s, self.heard_s = 0, 0.0, self._session.clock.monotonic_s()
            return
        self.failures += 1
        if self.down:
            self.hold(self.failures - DOWN + 1)

    def hold(self, failures: int) -> None:
        """Nothing is asked for a while."""
        delay_s = self._cadence.after_failure(max(failures, 1), self._session.random)
        self.hold_s = max(self.hold_s, self._session.clock.monotonic_s() + delay_s)

    def forgive(self, known: Known) -> None:
        """While the server answers about other jobs, bad luck with this one is no reason to leave it alone for longer."""
        if self._session.clock.monotonic_s() - self.heard_s < self._cadence.failure_cap_s:
            known.in_a_row = min(known.in_a_row, 1)
