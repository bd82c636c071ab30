"""Lists of what changed, for clouds that list by the time of the last change but not by ids: Glance.

Theory: the jobs that changed since the last look stand on top of a list by the time of their last change.  So one page, mostly,
tells of all jobs, however many are waited for: what is not on it has not changed.  The first sweep goes down as long as its
pages are full of jobs that are waited for.

Failure modes: a job that no list has shown yet (of another owner, deleted, or older than the first sweep went) is asked for by
its id; so is each of the others now and then, because one that is deleted later is on no list either.  Servers write the time of
a change in whole seconds, and not all at the same time: each sweep reads on for `MARGIN_US` below the newest change of the one
before.  The clock that dates answers may be ahead of the one that dates changes: a sweep reads on while the last job on its page
brings news.  A page may go wrong, or the job behind which it begins may be gone: the sweep begins again.
"""

from __future__ import annotations

import msgspec

from milepost.client.dialects import Query
from milepost.client.health import Garbage
from milepost.client.known import Known, sent_us, take_listed
from milepost.client.roster import Roster
from milepost.client.session import Session
from milepost.errors import ProtocolError
from milepost.wire import Request, Response

MARGIN_US = 5_000_000
SURE_S = 3600.0  # a job that no list tells of is asked for by its id after so long
POOR = 2  # of the jobs that are waited for on a page: with fewer the first sweep does not pay
POOR_MAX = 2  # such pages, before it ends
PAGES_MAX = 50  # such pages of one later sweep: others change more than it is worth to read


class Sweep:
    """What the lists of one cloud told so far."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._owners: set[str | None] = set()
        self._since_us: int | None = None  # newest change that was seen
        self._newest_us = 0  # of this sweep, or when the server answered it
        self._first_s = 0.0  # when this sweep began
        self._pages = self._poor = 0
        self._request: Request | None = None
        self.swept_s = float("-inf")  # when the last whole sweep began
        self._news = False  # the last job on the page that is waited for had changed
        self.garbage = Garbage()
        self.begins = True  # no sweep was made yet
        self.refused = False  # this cloud does not let us

    def covers(self, known: Known, now_s: float) -> bool:
        """Whether a list would have told of a change of this job."""
        if known.view is None or known.asked_s is None or known.view.project not in self._owners:
            return False
        return now_s - known.asked_s < SURE_S

    def page(self, now_s: float) -> Request:
        """The request for the next page, or for the first one of a new sweep."""
        if self._request is None:
            self._first_s, self._pages, self._poor, self._newest_us = now_s, 0, 0, 0
            self._request = self._session.dialect.list_jobs(Query(by_change=True, page_size=self._session.dialect.changes_max))
        return self._request

    def read(self, reply: Response, roster: Roster) -> tuple[list[int], bool]:
        """The jobs that ended, and whether that was the last page.

        Rules: an answer that is no list, and will not be one later, makes `refused` true.
        Errors: ProtocolError: not a page this time.
        """
        if reply.status != 200 and self._pages == 0:
            self.refused = True
            return [], True
        try:
            if reply.status != 200:
                raise ProtocolError(f"the next page was answered with {reply.status}", status=reply.status)
            page = self._session.dialect.read_page(reply)
        except ProtocolError:
            self._request, self.refused = None, self.garbage.more()
            if not self.refused:
                raise
            return [], True
        ended: list[int] = []
        found, oldest_us, self._news = 0, None, False
        if self._pages == 0:  # what changes later is later than this, by the server's own clock
            self._newest_us = sent_us(reply) or 0
        for view in page.views:
            oldest_us = view.updated_us
            self._newest_us = max(self._newest_us, view.updated_us or 0)
            if (index := roster.index_of(view.id)) is None:
                continue
            found += 1
            self._owners.add(view.project)
            known = roster.jobs[index]
            self._news = not known.done and (known.view is None or known.view.updated_us != view.updated_us)
            if view.done:
                ended.append(index)
            else:
                take_listed(self._session, known, view, reply)
                if known.asked_s is None:
                    known.asked_s = self._first_s - self._session.random() * SURE_S / 2  # not all at once
        self._pages += 1
        self._poor += found < POOR
        if page.next_path is None or self._reached(oldest_us):
            self._end(whole=True)
        elif self._poor >= PAGES_MAX and not self.begins:
            self._end(whole=False)
        else:
            assert self._request is not None
            self._request = msgspec.structs.replace(self._request, url=page.next_path)
        return ended, self._request is None

    def _reached(self, oldest_us: int | None) -> bool:
        """Whether what is below was seen before; on the first sweep: whether more pages are not worth it."""
        if self._since_us is None:
            return self._poor >= POOR_MAX
        return oldest_us is not None and oldest_us < self._since_us - MARGIN_US and not self._news

    def _end(self, *, whole: bool) -> None:
        self._request = None
        self.garbage.none()
        if whole:
            self.swept_s = self._first_s
            self.begins = False
            self._since_us = max(self._since_us or 0, self._newest_us)
        else:  # what is known of all is not up to date any more
            self.begins, self._since_us = True, None
            self._owners.clear()
