"""One conversation that waits for many jobs at one place: 100,000 of them cost one heap, not one task or thread each.

Theory
Every job that is not final has one entry in a heap, by the instant at which it is due.  What is due competes for the budget by
rank: the instant it became due plus a share of the job's age; so young jobs go first and nobody starves.  Three ways to ask, the
cheapest that the wire has:
- a stream (`feed.py`): after one look at each job nothing is asked until the stream says that a job ended;
- a list: by ids, or of what changed since the last one (`sweep.py`); then one request answers for many jobs;
- each job by its id, some at a time.
The results of what ended are fetched by lists, too, where a list can have them.

Rules
1. A job comes out once: final, or with the `error` that says why nothing more can be learnt of it.
2. What ends a single wait ends it for that job alone; only a refused identity ends them all.
3. Of a job that is not final nothing is kept but its state: no raw answers.
4. While the server does not answer at all it is asked by one request at a time, whatever the number of jobs.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import msgspec

from milepost.client.cadence import Cadence
from milepost.client.dialects import Query
from milepost.client.ends import GRACE_S, QUIET_S, Deadline, many_given_up
from milepost.client.feed import Feed, Opened
from milepost.client.health import Garbage, Health
from milepost.client.known import Known, absorb, take_listed
from milepost.client.places import LOOK_S, News
from milepost.client.roster import FLYING, FOLLOWED, OPEN, Roster
from milepost.client.session import Reply, Session, throttles
from milepost.client.steps import Collect, Emit, Inbox, Steps
from milepost.client.sweep import Sweep
from milepost.errors import MilepostError, ProtocolError, Unauthenticated
from milepost.job import FINAL
from milepost.wire import Request, Response

FLIGHTS_MAX = 16  # requests under way at the same time
LISTS_MAX = 4  # of them lists
SOON_S = 0.5  # a probe due so soon joins a list that goes out now
COVERED_S = 900.0  # a job that a stream or a sweep tells of is asked for by its id so often, to be sure
LARGE_BYTES = 4_000_000  # a list of results that is larger is asked for in smaller parts


class Flight(msgspec.Struct, eq=False):
    """A request under way: which way of asking (one, list, full, sweep), and about which jobs."""

    way: str
    jobs: list[int]
    asked_s: float
    token: str | None


class Bulk:
    """Waits for many jobs; `run` is the conversation."""

    def __init__(self, session: Session, jobs: Sequence[Known], *, timeout_s: float | None, cadence: Cadence | None) -> None:
        self.session, self.jobs = session, jobs
        self.cadence = cadence or session.cadence
        self.deadline = Deadline(session, timeout_s)
        self.roster = Roster(jobs)
        self._ready: dict[str, list[tuple[float, int]]] = {"one": [], "list": [], "sweep": []}  # by rank
        self._singly: set[int] = set()  # not in any list
        self._flights: set[Flight] = set()
        self._lists = session.dialect.bulk_max > 0
        self._full_max = session.dialect.bulk_max
        self._health, self._garbage = Health(session, self.cadence), Garbage()
        self._token_s, self._asked = 0.0, False
        self._inbox, self._stopped = Inbox(), False
        self._feed = Feed(session) if session.dialect.streams and self.cadence.every_s is None and len(jobs) > 1 else None
        self._sweep = Sweep(session) if session.dialect.changes_max and len(jobs) > 2 else None

    # --- the conversation -------------------------------------------------------------------------------------------

    def run(self) -> Steps[None]:
        """Emits each Known once it is over.  Errors: WaitTimeout or Unreachable with `pending` ids; Unauthenticated."""
        try:
            yield from self.session.ensure_token()
            self._join()
            while True:
                yield from self._emit()
                if not self.roster.left or self._stopped:
                    return
                self._read_inbox()
                delay_s = yield from self._send_due()
                if self.roster.over:
                    continue
                self._check_end()
                self._inbox.quiet_until_s = self._now_s() + delay_s
                for flight, reply in (yield Collect(delay_s, self._inbox)):
                    yield from self._receive(flight, reply)
        finally:
            self.session.budget.leave(self)
            self.session.place.leave((self.jobs[index].id for index in self.roster), self._inbox)

    def stop(self) -> None:
        """End the conversation soon, from any thread."""
        self._stopped = True
        self._inbox.put(None)

    def _join(self) -> None:
        now_s = self._now_s()
        for index in self.roster:
            known = self.jobs[index]
            known.error = None  # of an earlier wait: this one asks for itself
            if known.done:
                self.roster.finish(index)
            elif self.session.place.join(known.id, self._inbox, now_s):
                self.roster.schedule(index, now_s)
            else:
                self.roster.follow(index, now_s + LOOK_S)

    def _emit(self) -> Steps[None]:
        over, self.roster.over = self.roster.over, []
        for known in over:
            self._inbox.quiet_until_s = self._now_s()  # the caller may take its time
            yield Emit(known)

    def _now_s(self) -> float:
        return self.session.clock.monotonic_s()

    # --- what others hear -------------------------------------------------------------------------------------------

    def _read_inbox(self) -> None:
        for news in self._inbox.take():
            if news is None:  # told to stop
                return
            index = self.roster.index_of(news.job_id)
            if index is None or self.roster.at(index) != FOLLOWED:
                continue
            if news.reply is None:
                self.roster.schedule(index, self._now_s())
                continue
            known = self.jobs[index]
            try:
                if news.view is None:
                    absorb(self.session, known, news.reply, self.cadence, probes=0)
                else:
                    take_listed(self.session, known, news.view, news.reply, probes=0)
            except MilepostError as error:
                self._keep_error(known, error)
            if known.done or known.error is not None:
                self._finish(index)

    def _leads(self, index: int, now_s: float) -> bool:
        """Whether it is ours to ask about this job; else somebody else does, and we are told."""
        if self.session.place.join(self.jobs[index].id, self._inbox, now_s):
            self.roster.move(index, OPEN)
            return True
        self.roster.follow(index, now_s + LOOK_S)
        return False

    # --- asking -----------------------------------------------------------------------------------------------------

    def _send_due(self) -> Steps[float]:
        """Send what is due and may be sent; returns how long nothing more will be."""
        now_s = self._now_s()
        if self.deadline.left_s <= 0 and self._asked:
            return max(0.0, GRACE_S - self.deadline.over_s) if self._flights else 0.0
        if self._feed is not None and self._feed.next_s <= now_s:
            self._cover(opened=False)
            yield from self._feed.open(self.deadline.left_s)
        if self._hold_s <= now_s:
            yield from self._send_ready(now_s)
        now_s, hold_s = self._now_s(), self._hold_s
        waits = [now_s + self.deadline.left_s if self.deadline.left_s else now_s + GRACE_S]
        if self._feed is not None:
            waits.append(self._feed.next_s)
        if hold_s > now_s:
            waits.append(hold_s)
        elif self._room():
            # What becomes due before there is a token competes for it.
            waits.append(self._token_s if self._token_s < float("inf") else self.roster.next_s)
        return max(0.0, min(waits) - now_s)

    @property
    def _hold_s(self) -> float:
        return max(self._health.hold_s, self._feed.hold_s if self._feed is not None else 0.0)

    def _room(self) -> bool:
        return len(self._flights) < (1 if self._health.down else FLIGHTS_MAX)

    def _send_ready(self, now_s: float) -> Steps[None]:
        self._wake_due(now_s)
        self._token_s = float("inf")  # unless the budget says when
        while self._room() and self._health.hold_s <= now_s and (way := self._next_way()) is not None:
            rank_s = self.deadline.started_s if way == "full" else self._ready[way][0][0]
            pause_s = self.session.turn(rank_s, self, self.cadence)
            if pause_s > 0:
                self._token_s = now_s + pause_s
                return
            yield from self._send_next(way, now_s)

    def _next_way(self) -> str | None:
        """A sweep, because it tells of many; then what is known to have ended; then the smallest rank: while there is room."""
        lists = sum(flight.way in ("list", "full") for flight in self._flights)
        closed = {"list": lists >= LISTS_MAX, "sweep": any(flight.way == "sweep" for flight in self._flights)}
        for heap in self._ready.values():
            while heap and not self.roster.counts(heap[0]):
                heapq.heappop(heap)
        if self._ready["sweep"] and not closed["sweep"]:
            return "sweep"
        if self.roster.ended and (lists < LISTS_MAX or not self._lists):
            return "full"
        heads = [(heap[0][0], way) for way, heap in self._ready.items() if heap and not closed.get(way)]
        return min(heads)[1] if heads else None

    def _wake_due(self, now_s: float) -> None:
        """What is due becomes ready, ordered by rank."""
        while (entry := self.roster.take_due(now_s)) is not None:
            due_s, index = entry
            if self.roster.at(index) == OPEN or self._leads(index, now_s):
                self._make_ready(index, due_s, now_s)

    def _make_ready(self, index: int, due_s: float, now_s: float) -> None:
        known, way = self.jobs[index], "one"
        age_s = known.age_s(now_s)
        if index not in self._singly:
            if self._lists:
                way = "list"
            elif self._sweep is not None and (self._sweep.begins or self._sweep.covers(known, now_s)):
                usual_s = self.cadence.after_answer(age_s, None, self.session.random, self.session.durations(known.view))
                if now_s - self._sweep.swept_s < usual_s / 2:  # another job's turn has answered for this one, too
                    self.roster.schedule(index, self._sweep.swept_s + usual_s)
                    return
                way = "sweep"
        self.roster.line_up(self._ready[way], due_s + self.cadence.share * age_s, index)

    def _send_next(self, way: str, now_s: float) -> Steps[None]:
        if way == "sweep":
            assert self._sweep is not None
            yield from self._send(Flight("sweep", [], now_s, None), self._sweep.page(now_s))
            return
        if way == "full":
            most = self._full_max if self._lists else 1
            batch = [self.roster.ended.popleft() for _ in range(min(len(self.roster.ended), most))]
        else:
            batch = self._pick(way, now_s)
        streamed = self._feed is not None and self._feed.covered_s is not None
        if len(batch) == 1 and not (way == "list" and streamed):  # being in the list says that the stream will tell
            yield from self._send_one(batch[0], now_s)
        elif batch:
            ids = tuple(self.jobs[index].id for index in batch)
            query = Query(ids=ids, page_size=len(ids), full=way == "full")
            yield from self._send(Flight(way, batch, now_s, None), self.session.dialect.list_jobs(query))

    def _pick(self, way: str, now_s: float) -> list[int]:
        """Jobs that are still ours to ask about: one, or for a list those that are ready and those that are due soon."""
        most, heap = (self.session.dialect.bulk_max if way == "list" else 1), self._ready[way]
        found: list[int] = []
        while heap and len(found) < most:
            first = heapq.heappop(heap)
            index = first[1]
            if self.roster.counts(first) and self._leads(index, now_s):
                self.roster.move(index, FLYING)
                found.append(index)
        while way == "list" and len(found) < most and (entry := self.roster.take_due(now_s + SOON_S)) is not None:
            index = entry[1]
            if not self._leads(index, now_s):
                continue
            if index in self._singly:
                self._make_ready(index, now_s, now_s)
            else:
                self.roster.move(index, FLYING)
                found.append(index)
        return found

    def _send_one(self, index: int, now_s: float) -> Steps[None]:
        """By its id; the last job of all as a long poll, where the wire has it."""
        long_s = 0.0
        if self.roster.left == 1 and not self._health.failures and self.cadence.every_s is None:
            long_s = min(self.session.dialect.long_poll_s, self.deadline.left_s)
        probe = self.session.dialect.probe(self.jobs[index].id, wait_s=long_s)
        yield from self._send(Flight("one", [index], now_s, None), probe, long_s)

    def _send(self, flight: Flight, request: Request, long_s: float = 0.0) -> Steps[None]:
        self._asked = True
        for index in flight.jobs:
            self.roster.move(index, FLYING)
        timeout_s = min(self.session.request_timeout_s, max(self.deadline.left_s, GRACE_S)) + long_s
        refused = yield from self.session.send(flight, request, timeout_s=timeout_s)
        flight.token = self.session.token
        if refused is None:
            self._flights.add(flight)
        else:
            self._health.judge(refused)
            self._health.hold(self._health.failures)
            self._fail(flight, refused)

    # --- answers ----------------------------------------------------------------------------------------------------

    def _receive(self, flight: Flight | Opened, answer: Any) -> Steps[None]:
        if isinstance(flight, Opened):
            if isinstance(answer, Response):
                answer = yield from self.session.received(answer, flight.token)
            self._hear_feed(flight, answer)
            return
        self._flights.discard(flight)
        reply = yield from self.session.received(answer, flight.token)
        if reply is None:  # the token had expired
            for index in flight.jobs:
                self._schedule(index, 0.0)
            return
        self.session.heed(reply, flight.asked_s)
        self._health.judge(reply)
        if flight.way == "one":
            self._take_one(flight.jobs[0], reply, flight.asked_s)
        elif flight.way == "sweep":
            self._take_sweep(reply)
        else:
            self._take_list(reply, flight)

    def _take_one(self, index: int, reply: Reply, asked_s: float) -> None:
        known, delay_s = self.jobs[index], 0.0
        try:
            delay_s = absorb(self.session, known, reply, self.cadence)
        except MilepostError as error:
            self._keep_error(known, error)
        self._health.forgive(known)
        self.session.place.tell(News(known.id, reply=reply), self._inbox)
        if known.done or known.error is not None:
            self._finish(index)
            return
        if self.roster.left == 1 and not known.in_a_row and self._now_s() - asked_s >= 0.8 * self.session.dialect.long_poll_s > 0:
            delay_s = 0.0  # the server did the waiting
        known.slim()
        self._schedule(index, self._paced_s(delay_s) if throttles(reply) else delay_s)

    def _take_list(self, reply: Reply, flight: Flight) -> None:
        if not (isinstance(reply, Response) and reply.status == 200):
            self._fail(flight, reply)
            return
        try:
            views = {view.id: view for view in self.session.dialect.read_page(reply).views}
        except ProtocolError:
            if self._garbage.more():
                self._refuse_lists(flight)
                return
            self._health.hold(self._garbage.in_a_row)
            for index in flight.jobs:
                self._schedule(index, 0.0)
            return
        self._garbage.none()
        if flight.way == "full":
            large = len(reply.body) > LARGE_BYTES
            self._full_max = max(1, self._full_max // 2) if large else min(self._full_max * 2, self.session.dialect.bulk_max)
        covered = self._feed is not None and self._feed.covered_s is not None and flight.asked_s >= self._feed.covered_s
        for index in flight.jobs:
            known = self.jobs[index]
            view = views.get(known.id)
            if view is None:  # not in the list: of another project, expired, or never there
                self._singly.add(index)
                self._schedule(index, 0.0)
            elif view.done and flight.way != "full":
                self.roster.fetch(index)
            else:
                take_listed(self.session, known, view, reply)
                self.session.place.tell(News(known.id, reply=reply, view=known.view), self._inbox)
                if known.done:
                    self._finish(index)
                else:
                    self._schedule(index, self._usual_s(known), covered=covered)

    def _take_sweep(self, reply: Reply) -> None:
        """After the last page all that wait for the sweep have their answer."""
        assert self._sweep is not None
        if not isinstance(reply, Response) or reply.status in (408, 429) or reply.status >= 500:
            self._health.hold(self._health.failures)
            return
        try:
            ended, last = self._sweep.read(reply, self.roster)
        except ProtocolError:  # it begins again
            self._health.hold(self._sweep.garbage.in_a_row)
            return
        for index in ended:
            self.roster.hear_end(index)
        if not last:
            return
        now_s, waiting = self._now_s(), self._ready["sweep"]
        self._ready["sweep"] = []
        if self._sweep.refused:
            self._sweep = None
        for entry in waiting:
            index = entry[1]
            known = self.jobs[index]
            if not self.roster.counts(entry):
                continue
            if self._sweep is not None and self._sweep.covers(known, now_s):
                known.stats.probes += 1
                self._schedule(index, self._usual_s(known))
            else:
                self.roster.line_up(self._ready["one"], now_s, index)

    def _usual_s(self, known: Known) -> float:
        age_s = known.age_s(self._now_s())
        return self.cadence.after_answer(age_s, None, self.session.random, self.session.durations(known.view))

    def _fail(self, flight: Flight, reply: Reply) -> None:
        """No list this time; when it never will be one, each job is asked for by its id."""
        if isinstance(reply, Response) and not self.session.dialect.read_error(reply, None).retryable:
            self._refuse_lists(flight)
            return
        throttled = throttles(reply)
        if flight.way == "full" and not throttled:
            self._full_max = max(1, self._full_max // 2)
        for index in flight.jobs:
            known = self.jobs[index]
            delay_s = absorb(self.session, known, reply, self.cadence)
            self._health.forgive(known)
            if throttled and flight.way == "full":
                self.roster.fetch(index)
            else:
                self._schedule(index, self._paced_s(delay_s) if throttled else delay_s)

    def _paced_s(self, delay_s: float) -> float:
        """After a 429 or 503: the budget says when, for all jobs; only a user's own interval has no budget."""
        return 0.0 if self.cadence.every_s is None else delay_s

    def _refuse_lists(self, flight: Flight) -> None:
        self._lists = False
        waiting, self._ready["list"] = self._ready["list"], []
        self._ready["one"] = list(heapq.merge(self._ready["one"], sorted(waiting)))
        for index in flight.jobs:
            self._schedule(index, 0.0)

    # --- the stream -------------------------------------------------------------------------------------------------

    def _hear_feed(self, opened: Opened, reply: Any) -> None:
        feed = self._feed
        if feed is None:
            return
        was_s = feed.covered_s
        for event in feed.receive(opened, reply):
            if event.state in FINAL:
                self.roster.hear_end(self.roster.index_of(event.job_id))
        if was_s is None and feed.covered_s is not None:
            self._cover(opened=True)
        if feed.missed:
            feed.missed, now_s = False, self._now_s()
            self.roster.reschedule(lambda _, so_far_s: min(so_far_s, now_s))
        if feed.refused:
            self._cover(opened=False)
            self._feed = None

    def _cover(self, *, opened: bool) -> None:
        """The stream is there again, or not any more: every job that was looked at is due at another time."""
        assert self._feed is not None
        if opened and not self._feed.resumed:
            return  # each has to be looked at once
        now_s = self._now_s()

        def due_s(index: int, so_far_s: float) -> float:
            known = self.jobs[index]
            if not opened:
                return min(so_far_s, now_s + self._usual_s(known))
            return self._sure_s(now_s) if known.view is not None and index not in self._singly else so_far_s

        self.roster.reschedule(due_s)

    def _sure_s(self, now_s: float) -> float:
        return now_s + COVERED_S * (0.9 + 0.2 * self.session.random())

    # --- where a job goes -------------------------------------------------------------------------------------------

    def _schedule(self, index: int, delay_s: float, *, covered: bool = False) -> None:
        now_s = self._now_s()
        self.roster.schedule(index, self._sure_s(now_s) if covered else now_s + delay_s)

    def _finish(self, index: int) -> None:
        """It comes out; whoever still waits for it asks about it now."""
        self.roster.finish(index)
        self.session.place.leave((self.jobs[index].id,), self._inbox)

    def _keep_error(self, known: Known, error: MilepostError) -> None:
        if isinstance(error, Unauthenticated):  # the same for every job: nothing is left to wait for
            raise error
        known.error = error

    # --- the end of the wait ----------------------------------------------------------------------------------------

    def _check_end(self) -> None:
        """Errors: WaitTimeout, Unreachable: when the time is over, or nothing was heard for long."""
        late = self.deadline.over_s >= GRACE_S or (self._asked and not self._flights)
        if self.deadline.left_s <= 0 and late:
            raise self._given_up()
        quiet_s = self._now_s() - max(self._health.heard_s, self.deadline.started_s)
        if self.deadline.open_ended and self._health.failures and quiet_s > QUIET_S:
            raise self._given_up()

    def _given_up(self) -> MilepostError:
        return many_given_up(self.session, self.roster.pending(), self.deadline)
