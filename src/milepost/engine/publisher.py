"""Makes deliveries of events, for those who subscribed to them and for jobs whose callbacks have filters.

Theory: a subscription is a cursor in the log of events.  A stretch of the log behind the cursor is read, and the deliveries that
come of it are written together with the cursor behind it: whatever dies in between, each event makes one delivery.  Submits and
ends know nothing of this; a commit with events rings a bell, and only while somebody is subscribed.

Rules
1. Subscriptions that have been told as much share one read of the log.  One that lags behind is read for by itself, a page at a
   time, and delays nobody.
2. A subscription with `subscription_pending_max` deliveries to be sent is not read for: the log is its buffer.
3. When events were pruned before they were looked at, one delivery says which.
4. A cursor that moved without a delivery is written after `SAVE_EVENTS` events or `SAVE_S`, not each time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import structlog

from milepost.clock import Clock
from milepost.dispatch import Dispatch
from milepost.engine.stats import EngineStats
from milepost.errors import NotFound, StoreUnavailable
from milepost.job import FINAL, ProjectId
from milepost.settings import Settings
from milepost.store import Store
from milepost.subscription import STAYING, JobPublication, News, Publication, Subscription, matches, types_of

log = structlog.get_logger("milepost.engine")

PAGE = 500
GATHER_S = 0.02  # after a commit: the next ones are read with it
LOOK_S = 5.0  # a hint may be lost
BLOCKED_S = 0.5  # until a subscription with too much to be sent is looked at again
SAVE_EVENTS, SAVE_S = 10_000, 30.0


class Publisher:
    """Reads on wherever somebody has not been told everything.  Ends only by cancellation."""

    def __init__(self, store: Store, dispatch: Dispatch, clock: Clock, settings: Settings, stats: EngineStats) -> None:
        self._store, self._dispatch, self._clock, self._settings, self._stats = store, dispatch, clock, settings, stats
        self._active: dict[str, Subscription] = {}
        self._read_s = float("-inf")  # when the subscriptions were read
        self._at: dict[str, int] = {}  # how far each was looked at for; its cursor may be behind
        self._saved_s: dict[str, float] = {}
        self._blocked_s: dict[str, float] = {}  # until when
        self._jobs_at = 0
        self._more = False

    async def run(self) -> None:
        try:
            while True:
                pause_s = LOOK_S
                try:
                    await self.run_once()
                    if self._more:
                        pause_s = 0.0
                    elif self._blocked_s:
                        pause_s = BLOCKED_S
                except StoreUnavailable as error:
                    log.error("cannot make deliveries of events, trying again", error=str(error))
                    pause_s = 1.0
                if not pause_s:
                    await self._clock.sleep(0)
                elif await self._dispatch.next_events(pause_s):
                    await self._clock.sleep(GATHER_S)
        finally:
            self._store.on_events(None)

    async def run_once(self) -> int:
        """Look at one page for each subscription that lacks one; returns how many deliveries were made."""
        self._more = False
        await self._read_subscriptions()
        watched_after = await self._store.watched_after()
        self._store.on_events(self._dispatch.announce_events if self._active or watched_after is not None else None)
        until_id = await self._store.last_event_id()
        publications = await self._look(until_id)
        jobs = None if watched_after is None else await self._look_for_jobs(watched_after, until_id)
        if not publications and jobs is None:
            return 0
        settings = self._settings
        made = await self._store.publish(
            publications,
            jobs,
            now_us=self._clock.now_us(),
            log_max=settings.subscription_log_max,
            job_max=settings.callbacks_job_max,
        )
        for one in publications:
            await self._learn(one)
        if made:
            self._stats.published += made
            self._dispatch.announce_delivery()
        return made

    async def _read_subscriptions(self) -> None:
        now_s = self._clock.monotonic_s()
        if not self._dispatch.subscriptions_changed and now_s - self._read_s < LOOK_S:
            return
        self._dispatch.subscriptions_changed, self._read_s = False, now_s
        found = await self._store.list_subscriptions()
        self._active = {one.id: one for one in found if one.state == "active"}
        known = {one.id for one in found}
        self._at = {id_: at for id_, at in self._at.items() if id_ in known}
        self._saved_s = {id_: self._saved_s.get(id_, now_s) for id_ in self._active}
        self._blocked_s = {id_: until_s for id_, until_s in self._blocked_s.items() if id_ in self._active}

    async def _learn(self, publication: Publication) -> None:
        """How the subscription stands after it was written, or was not because it had changed."""
        id_ = publication.subscription.id
        self._at.pop(id_, None)
        try:
            one = await self._store.get_subscription(id_)
        except NotFound:
            self._active.pop(id_, None)
            return
        if one.state == "active":
            self._active[id_], self._saved_s[id_] = one, self._clock.monotonic_s()
        else:
            self._active.pop(id_, None)

    # --- subscriptions ---------------------------------------------------------------------------------------------

    async def _look(self, until_id: int) -> list[Publication]:
        """What is to be written, one page on for each."""
        now_s = self._clock.monotonic_s()
        self._blocked_s = {id_: until_s for id_, until_s in self._blocked_s.items() if until_s > now_s}
        groups: dict[int, list[Subscription]] = defaultdict(list)
        for one in self._active.values():
            if one.id not in self._blocked_s:
                groups[max(one.cursor, self._at.get(one.id, 0))].append(one)
        found: list[Publication] = []
        for at, group in sorted(groups.items()):
            found += await self._look_at(group, at, until_id)
        return found

    async def _look_at(self, group: Sequence[Subscription], at: int, until_id: int) -> list[Publication]:
        news: list[News] = []
        end_id = max(at, until_id)
        if at < until_id:
            news = await self._store.list_news(
                after_id=at,
                until_id=until_id,
                projects=sorted({one.project for one in group}),
                types=sorted({type_.value for one in group for type_ in types_of(one.filter.on)}),
                limit=PAGE,
            )
            if len(news) == PAGE:
                end_id, self._more = news[-1].event.id, True
        by_project: dict[ProjectId, list[News]] = defaultdict(list)
        for one_news in news:
            by_project[one_news.event.project].append(one_news)
        # Read after the events: what was pruned before they were read is in it.
        pruned = {project: await self._store.pruned_until(project) for project in {one.project for one in group}}
        found = []
        for one in group:
            publication = await self._publication(one, by_project[one.project], at, end_id, pruned[one.project])
            if publication is not None:
                found.append(publication)
        return found

    async def _publication(
        self, one: Subscription, news: Sequence[News], at: int, end_id: int, pruned_until: int
    ) -> Publication | None:
        """What is to be written for this subscription; None: nothing now."""
        events = [each.event for each in news if matches(one.filter, each)]
        told_id = max(at, one.missed_until)
        missed = (told_id + 1, pruned_until) if pruned_until > told_id else None
        if events or missed is not None:
            room = self._settings.subscription_pending_max - await self._store.count_pending(one.id)
            if room <= 0:
                self._blocked_s[one.id] = self._clock.monotonic_s() + BLOCKED_S
                return None
            if len(events) > room:
                events, self._more = events[:room], True
                end_id = events[-1].id
            return Publication(one, events, missed, end_id)
        self._at[one.id] = end_id
        old = self._clock.monotonic_s() - self._saved_s.get(one.id, 0.0) >= SAVE_S
        if end_id - one.cursor >= SAVE_EVENTS or (old and end_id > one.cursor):
            return Publication(one, [], None, end_id)
        return None

    # --- callbacks with filters ------------------------------------------------------------------------------------

    async def _look_for_jobs(self, watched_after: int, until_id: int) -> JobPublication | None:
        at = max(watched_after, self._jobs_at)
        if at >= until_id:
            return None
        told = await self._store.list_watched_news(after_id=at, until_id=until_id, limit=PAGE)
        end_id = until_id
        if len(told) == PAGE:
            end_id, self._more = told[-1].event.id, True
        if not told and end_id - watched_after < SAVE_EVENTS:
            self._jobs_at = end_id
            return None
        self._jobs_at = 0  # the store's own cursor is right again
        ended = [one.event.job_id for one in told if one.event.state in FINAL and one.event.type not in STAYING]
        return JobPublication(told, ended, at, end_id)
