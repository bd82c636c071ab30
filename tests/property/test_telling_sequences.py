"""Publisher and courier against a plain list of what happened: in whatever order things happen, each event is told once.

A sequence is made of events of jobs, of changes of subscriptions, of rounds of the publisher with something happening in their
middle, of failing writes, of processes that die, and of receivers that answer or do not.  Then all goes well, until there is
nothing more to do, and every receiver must have been told what it asked for.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any, NamedTuple
from unittest import mock

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.dispatch.embedded import EmbeddedDispatch
from milepost.engine import publisher as publishing
from milepost.engine.courier import Courier
from milepost.engine.publisher import Publisher
from milepost.engine.stats import EngineStats
from milepost.errors import StoreUnavailable
from milepost.job import (
    Callback,
    Claim,
    Event,
    EventType,
    Failed,
    Failure,
    JobId,
    Outcome,
    Progress,
    ProjectId,
    Retried,
    State,
    Submission,
    Succeeded,
    WorkerId,
)
from milepost.settings import Settings
from milepost.store import Delivery
from milepost.store.sqlite import SqliteStore
from milepost.subscription import Filter, Subscription
from milepost.testing import FaultyStore, ManualClock

START_US = 1_790_000_000_000_000
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
WORKER = WorkerId("w")
WHY = Failure("x", "y")
PROJECTS = (ProjectId("p"), ProjectId("q"))
PAGE, SAVE_EVENTS = 4, 6
FOR_EVER_S = 1e9


class Made(NamedTuple):
    """A job as it was submitted."""

    kind: str
    project: ProjectId
    labels: dict[str, str]
    on: tuple[str, ...] | None  # None: no callback


class Row(NamedTuple):
    """What happened, and to what."""

    event: Event
    job: Made


def ends(row: Row) -> bool:
    return row.event.type in (EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED)


# What a filter says, twice: in Milepost's words and in ours.
FILTERS: list[tuple[Filter, Callable[[Row], bool]]] = [
    (Filter(), ends),
    (Filter(on=("all",)), lambda _: True),
    (Filter(on=("running", "final")), lambda row: ends(row) or row.event.type is EventType.STARTED),
    (Filter(on=("all",), kinds=("b",)), lambda row: row.job.kind == "b"),
    (Filter(on=("all",), labels={"env": "prod"}), lambda row: row.job.labels.get("env") == "prod"),
    (Filter(on=("progress",)), lambda row: row.event.type is EventType.PROGRESS),
    (Filter(on=("retrying", "submitted")), lambda row: row.event.type in (EventType.RETRYING, EventType.SUBMITTED)),
]
CALLBACKS: list[tuple[tuple[str, ...] | None, Callable[[Row], bool]]] = [
    (None, lambda _: False),
    ((), ends),
    (("all",), lambda _: True),
    (("running",), lambda row: row.event.type is EventType.STARTED),
]


class Subscriber(msgspec.Struct):
    """A subscription as its owner remembers it.

    Of what happened until event `after_id` it may have been told `told_then`; after that, when it was not `skipped`, of what it
    wants now as well.  Of what happened later it is told all that it wants.
    """

    project: ProjectId
    wants: Callable[[Row], bool]
    after_id: int
    told_then: list[int] = []
    skipped: bool = True


class Between:
    """A store in which something happens just before the next call of one of its methods."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if name not in self.before:
            return real

        async def later(*args: Any, **options: Any) -> Any:
            happen = self.before.pop(name, None)
            if happen is not None:
                await happen()
            return await real(*args, **options)

        return later


class World:
    """One server's store and the processes that tell of it, one after another."""

    def __init__(self, pending_max: int) -> None:
        self.store = SqliteStore(":memory:")
        self.faulty = FaultyStore(self.store)
        self.between = Between(self.faulty)
        self.clock = ManualClock(START_US)
        self.settings = Settings(
            data=":memory:",
            subscription_pending_max=pending_max,
            subscription_given_up_max=2,
            callback_attempts_max=2,
            callback_receiver_max=2,
        )
        self.log: list[Row] = []
        self.jobs: dict[JobId, Made] = {}
        self.pruned: set[JobId] = set()
        self.running: dict[JobId, Claim] = {}
        self.subscribers: dict[str, Subscriber] = {}
        self.removed: list[str] = []
        self.answers: list[int] = []
        self.taken: set[str] = set()  # ids of deliveries that a receiver said yes to
        self.rival = self.process()[0]  # of a process that should be gone
        self.die()

    def die(self) -> None:
        """The process is gone, and another one begins."""
        self.between.before.clear()
        self.publisher, self.courier = self.process()

    def process(self) -> tuple[Publisher, Courier]:
        self.dispatch = EmbeddedDispatch(self.clock)
        parts = (self.between, self.dispatch, self.clock, self.settings, EngineStats())
        courier = Courier(*parts, send=self.receive, encode=lambda _delivery, _job: b"{}", secret_of=self.secret_of)
        return Publisher(*parts), courier

    async def secret_of(self, _: ProjectId) -> str:
        return SECRET

    async def receive(self, url: str, headers: dict[str, str], body: bytes, *, timeout_s: float) -> tuple[int, str]:
        assert timeout_s > 0 and url.startswith("http://receiver") and body
        status = self.answers.pop(0) if self.answers else 200
        if status == 200:
            self.taken.add(headers["webhook-id"])
        return status, "so it says"

    @property
    def now_us(self) -> int:
        return self.clock.now_us()

    async def act(self, step: tuple[Any, ...]) -> None:
        """One step, and what it led to is noted."""
        name, *given = step
        await getattr(self, name)(*given)
        await self.note()

    async def note(self) -> None:
        last = self.log[-1].event.id if self.log else 0
        for event in await self.store.list_events(after_id=last, limit=1000):
            self.log.append(Row(event, self.jobs[event.job_id]))

    # --- jobs ------------------------------------------------------------------------------------------------------

    async def submit(self, count: int, kind: str, project: int, labelled: bool, callback: int) -> None:
        made = Made(kind, PROJECTS[project], {"env": "prod"} if labelled else {}, CALLBACKS[callback][0])
        told = None if made.on is None else Callback(f"http://receiver/{made.project}", made.on)
        wanted = [
            Submission(kind=kind, project=made.project, labels=dict(made.labels), callback=told, attempts_max=9)
            for _ in range(count)
        ]
        for added in await self.store.add_jobs(wanted, now_us=self.now_us):
            self.jobs[added.job.id] = made

    async def begin(self, limit: int) -> None:
        await self.store.renew_lease(WORKER, now_us=self.now_us, lease_s=FOR_EVER_S)
        await self.store.promote_due(now_us=self.now_us, limit=100)
        claimed = await self.store.claim_jobs("default", worker=WORKER, now_us=self.now_us, limit=limit)
        self.running |= {one.job.id: one.claim for one in claimed}

    async def go_on(self, which: int, what: str, short: bool) -> None:
        """A running job reports, ends, or goes back; one that ends `short` is pruned at the next occasion."""
        if not self.running:
            return
        job_id = sorted(self.running)[which % len(self.running)]
        claim = self.running[job_id]
        if what == "report":
            await self.store.report_progress(claim, Progress(which, 99), now_us=self.now_us)
            return
        outcomes: dict[str, Outcome] = {"succeed": Succeeded(b"1"), "fail": Failed(WHY), "retry": Retried(WHY, self.now_us)}
        assert await self.store.finish_job(claim, outcomes[what], now_us=self.now_us, expires_us=self.expires_us(short))
        del self.running[job_id]

    async def cancel(self, which: int, short: bool) -> None:
        idle = sorted(self.jobs.keys() - self.running.keys() - self.pruned)
        if not idle:
            return
        job = await self.store.get_job(idle[which % len(idle)])
        if job.state is State.READY:
            await self.store.cancel_job(job.id, project=None, reason="", now_us=self.now_us, expires_us=self.expires_us(short))

    def expires_us(self, short: bool) -> int:
        return self.now_us + int((0.5 if short else FOR_EVER_S) * 1e6)

    async def come_and_go(self, project: int, prune: bool) -> None:
        """A job that is cancelled at once, and may be pruned before anybody looks."""
        await self.submit(1, "a", project, False, 0)
        job_id = max(self.jobs)
        await self.store.cancel_job(job_id, project=None, reason="", now_us=self.now_us, expires_us=self.expires_us(True))
        if prune:
            await self.prune()

    async def prune(self) -> None:
        await self.note()
        self.clock.advance(1)
        gone = await self.store.prune(now_us=self.now_us, keep_tombstone_s=FOR_EVER_S, keep_deliveries_s=FOR_EVER_S, limit=1000)
        self.pruned |= set(gone)

    # --- subscriptions ---------------------------------------------------------------------------------------------

    async def subscribe(self, filter_: int, project: int, from_begin: bool) -> None:
        await self.note()
        words, wants = FILTERS[filter_]
        made = await self.store.add_subscription(
            PROJECTS[project],
            url="http://receiver/",
            description="",
            filter=words,
            secret=SECRET,
            after_id=0 if from_begin else None,
            now_us=self.now_us,
            most=1000,
        )
        last = self.log[-1].event.id if self.log else 0
        self.subscribers[made.id] = Subscriber(made.project, wants, 0 if from_begin else last)
        self.dispatch.announce_subscriptions()

    async def change(self, which: int, what: str, filter_: int) -> None:
        if not self.subscribers:
            return
        id_ = list(self.subscribers)[which % len(self.subscribers)]
        if what == "remove":
            assert await self.store.delete_subscription(id_)
            del self.subscribers[id_]
            self.removed.append(id_)
        elif what == "ping":
            await self.store.ping_subscription(id_, now_us=self.now_us)
        else:
            await self.note()
            await self.alter(id_, what, FILTERS[filter_])
        self.dispatch.announce_subscriptions()

    async def alter(self, id_: str, what: str, filter_: tuple[Filter, Callable[[Row], bool]]) -> None:
        def altered(one: Subscription) -> Subscription:
            if what == "move":
                return msgspec.structs.replace(one, url=one.url + "x")
            if what == "narrow":
                return msgspec.structs.replace(one, filter=filter_[0])
            return msgspec.structs.replace(one, state="paused" if what == "pause" else "active", reason=None)

        told_then = [told for told, _ in self.told(await self.deliveries(id_))]
        await self.store.change_subscription(id_, altered, to_now=what == "skip", now_us=self.now_us)
        one = self.subscribers[id_]
        if what in ("skip", "narrow"):
            last = self.log[-1].event.id if self.log else 0
            one.after_id, one.told_then, one.skipped = last, told_then, what == "skip"
        if what == "narrow":
            one.wants = filter_[1]

    # --- telling ---------------------------------------------------------------------------------------------------

    async def publish(self, point: str, meanwhile: tuple[Any, ...] | None) -> None:
        """A round, with something happening before it calls this method of its store."""
        if meanwhile is not None:
            self.between.before[point] = lambda: self.act(meanwhile)
        await self.publisher.run_once()
        self.between.before.clear()

    async def fail(self, written: bool, die: bool) -> None:
        """A round whose write is not known to have been made; perhaps its process is gone."""
        self.faulty.fail("publish", written=written)
        try:
            await self.publisher.run_once()
        except StoreUnavailable:
            pass
        self.faulty._faults["publish"].clear()
        if die:
            self.die()

    async def perish(self) -> None:
        self.die()

    async def compete(self) -> None:
        """A process that should be gone makes deliveries, too."""
        await self.rival.run_once()

    async def deliver(self, answers: list[int], recorded: bool) -> None:
        self.answers = list(answers)
        if not recorded:
            self.faulty.fail("finish_delivery")
        await self.courier.run_once()
        self.faulty._faults.get("finish_delivery", []).clear()
        self.answers = []

    async def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # --- the end ---------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """From now on all goes well; returns when there is nothing more to do."""
        for id_ in self.subscribers:
            if (await self.store.get_subscription(id_)).state == "paused":
                await self.alter(id_, "resume", FILTERS[0])
                self.dispatch.announce_subscriptions()
        idle = 0
        for _ in range(2000):
            made = await self.publisher.run_once()
            sent = await self.courier.run_once()
            self.clock.advance(40)  # also what a dead process was sending is due again
            waits = await self.store.next_delivery_us() is not None
            idle = 0 if made or sent or waits or self.publisher._more or self.publisher._blocked_s else idle + 1
            if idle == 3:
                return
        raise AssertionError("it goes on for ever")

    async def deliveries(self, id_: str) -> list[Delivery]:
        """Those of a subscription, the first one first."""
        return (await self.store.page_deliveries(id_, limit=100_000))[::-1]

    @staticmethod
    def told(deliveries: list[Delivery]) -> list[tuple[int, Delivery]]:
        """With the ids of the events that they tell of."""
        return [(json.loads(one.detail)["id"], one) for one in deliveries if one.event not in ("missed", "ping") and one.detail]

    async def check(self) -> None:
        for id_, one in self.subscribers.items():
            self.check_subscriber(one, await self.deliveries(id_))
        for id_ in self.removed:
            assert await self.deliveries(id_) == []
        for job_id, made in self.jobs.items():
            if made.on is not None and job_id not in self.pruned:
                self.check_callback(job_id, made.on, await self.store.list_deliveries(job_id))

    def check_subscriber(self, one: Subscriber, deliveries: list[Delivery]) -> None:
        assert [each.number for each in deliveries] == list(range(1, len(deliveries) + 1))
        self.check_ended(deliveries)
        ids = [told for told, _ in self.told(deliveries)]
        assert ids == sorted(set(ids)), "twice, or out of order"
        rows = {row.event.id: row for row in self.log}
        early = [told for told in ids if told <= one.after_id]
        assert early[: len(one.told_then)] == one.told_then
        assert all(not one.skipped and one.wants(rows[told]) for told in early[len(one.told_then) :]), (
            "told what was not asked for"
        )
        wanted = [row for row in self.log if row.event.id > one.after_id and row.job.project == one.project and one.wants(row)]
        missed = [json.loads(each.detail or b"") for each in deliveries if each.event == "missed"]
        ranges = [(each["from_id"], each["to_id"]) for each in missed]
        assert all(first <= last for first, last in ranges)
        assert all(before[1] < after[0] for before, after in pairwise(ranges)), "named twice"
        gone = {
            row.event.id
            for row in wanted
            if row.event.job_id in self.pruned and any(first <= row.event.id <= last for first, last in ranges)
        }
        self.check_told(wanted, [told for told in ids if told > one.after_id], gone)

    def check_callback(self, job_id: JobId, on: tuple[str, ...], deliveries: list[Delivery]) -> None:
        own = [one for one in deliveries if one.subscription_id is None]
        self.check_ended(own)
        wants = dict(CALLBACKS)[on]
        wanted = [row for row in self.log if row.event.job_id == job_id and wants(row)]
        if not on:  # in the transaction of the end
            assert [one.event for one in own] == [row.event.type for row in wanted]
        else:
            self.check_told(wanted, [told for told, _ in self.told(own)], set())

    def check_ended(self, deliveries: list[Delivery]) -> None:
        assert all(one.state in ("delivered", "given_up") for one in deliveries)
        assert all(one.id in self.taken for one in deliveries if one.state == "delivered")
        assert len({one.id for one in deliveries}) == len(deliveries)

    @staticmethod
    def check_told(wanted: list[Row], ids: list[int], gone: set[int]) -> None:
        """Each that was wanted, in order; of a job's progress perhaps only some, and those that are gone perhaps not."""
        had: defaultdict[JobId, bool] = defaultdict(bool)
        left = list(ids)
        for row in wanted:
            progress = row.event.type is EventType.PROGRESS
            if left and left[0] == row.event.id:
                left.pop(0)
                had[row.event.job_id] |= progress
            else:
                assert row.event.id in gone or (progress and had[row.event.job_id]), f"lost: {row.event}"
        assert left == [], "told what was not asked for"


WHICH = st.integers(0, 9)
FILTER = st.integers(0, len(FILTERS) - 1)
PROJECT = st.sampled_from([0, 0, 1])
CALM = st.tuples(st.just("wait"), st.sampled_from([0.0, 0.6, 6.0, 40.0]))
DELIVER = st.tuples(st.just("deliver"), st.lists(st.sampled_from([200, 500, 500, 410]), max_size=6), st.booleans())
COMPETE = st.tuples(st.just("compete"))
STORE_STEPS = (
    st.tuples(st.just("submit"), st.integers(1, 6), st.sampled_from("ab"), PROJECT, st.booleans(), st.integers(0, 3)),
    st.tuples(st.just("begin"), st.integers(1, 3)),
    st.tuples(st.just("go_on"), WHICH, st.sampled_from(["report", "report", "succeed", "fail", "retry"]), st.booleans()),
    st.tuples(st.just("cancel"), WHICH, st.booleans()),
    st.tuples(st.just("come_and_go"), PROJECT, st.booleans()),
    st.tuples(st.just("prune")),
    st.tuples(st.just("subscribe"), FILTER, PROJECT, st.booleans()),
    st.tuples(
        st.just("change"),
        WHICH,
        st.sampled_from(["pause", "resume", "skip", "move", "narrow", "narrow", "ping", "remove"]),
        FILTER,
    ),
)
POINTS = st.sampled_from(["last_event_id", "list_news", "pruned_until", "count_pending", "list_watched_news", "publish"])
MEANWHILE = st.one_of(CALM, *STORE_STEPS, DELIVER, COMPETE, STORE_STEPS[-1])
TELLING_STEPS = (
    st.tuples(st.just("publish"), POINTS, st.none()),
    st.tuples(st.just("publish"), POINTS, MEANWHILE),
    st.tuples(st.just("fail"), st.booleans(), st.booleans()),
    st.tuples(st.just("perish")),
    DELIVER,
    COMPETE,
)
STEPS = st.lists(st.one_of(CALM, *STORE_STEPS, *TELLING_STEPS), min_size=20, max_size=80)  # many: few are drawn otherwise


@settings(max_examples=150)
@given(steps=STEPS, pending_max=st.sampled_from([2, 5, 100]))
def test_each_event_that_was_asked_for_is_told_once_and_in_order(steps: list[tuple[Any, ...]], pending_max: int) -> None:
    async def lived() -> None:
        world = World(pending_max)
        await world.store.open()
        try:
            await world.act(("subscribe", 1, 0, True))
            for step in steps:
                await world.act(step)
            await world.settle()
            await world.check()
        finally:
            await world.store.close()

    with mock.patch.multiple(publishing, PAGE=PAGE, SAVE_EVENTS=SAVE_EVENTS):
        asyncio.run(lived())
