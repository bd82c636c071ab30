"""Subscriptions and what is made of events: on every store."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from store_house import KEEP_S, House, submission

from milepost.errors import LimitExceeded, NotFound
from milepost.job import Callback, Event, EventType, JobId, ProjectId
from milepost.store import Delivery
from milepost.subscription import Filter, JobPublication, Publication, Subscription

URL = "https://example.com/hook"
P = ProjectId("p")
MANY = 10_000


async def subscribed(house: House, **given: Any) -> Subscription:
    fields = {"url": URL, "description": "", "filter": Filter(), "secret": "whsec_eA==", "after_id": None, "most": 50, **given}
    found: Subscription = await house.store.add_subscription(fields.pop("project", P), now_us=house.now_us, **fields)
    return found


async def publish(house: House, *ones: Publication, jobs: JobPublication | None = None, log_max: int = MANY) -> int:
    made: int = await house.store.publish(list(ones), jobs, now_us=house.now_us, log_max=log_max, job_max=MANY)
    return made


async def events_of(house: House, after_id: int = 0) -> list[Event]:
    found: list[Event] = await house.store.list_events(after_id=after_id)
    return found


async def log_of(house: House, one: Subscription) -> list[Delivery]:
    """The oldest first."""
    found: list[Delivery] = await house.store.page_deliveries(one.id, limit=MANY)
    return found[::-1]


async def now(house: House, one: Subscription) -> Subscription:
    found: Subscription = await house.store.get_subscription(one.id)
    return found


async def test_a_subscription_is_kept_as_it_was_made_and_is_its_projects_own(durable: House) -> None:
    house = durable
    await house.add(project="p")
    last = await house.store.last_event_id()
    filter_ = Filter(("running", "final"), ("k",), {"a": "b"}, True)
    one = await subscribed(house, filter=filter_, description="for tests")
    await house.reopen()
    kept = await now(house, one)
    assert kept == one
    assert (kept.filter, kept.state, kept.cursor, kept.made) == (filter_, "active", last, 0)
    assert await house.store.list_subscriptions(project=P) == [one]
    assert await house.store.list_subscriptions(project=ProjectId("q")) == []
    with pytest.raises(NotFound):
        await house.store.get_subscription(one.id, project=ProjectId("q"))


async def test_a_project_has_a_bounded_number_of_them(house: House) -> None:
    await subscribed(house, most=1)
    with pytest.raises(LimitExceeded):
        await subscribed(house, most=1)
    await subscribed(house, most=1, project=ProjectId("q"))


async def test_what_is_published_is_written_with_the_cursor_and_never_twice(house: House) -> None:
    one = await subscribed(house)
    await house.add(project="p")
    events = await events_of(house)
    publication = Publication(one, events, None, events[-1].id)
    assert await publish(house, publication) == 1
    assert (await now(house, one)).cursor == events[-1].id
    assert await publish(house, publication) == 0, "the cursor is not where it was read"
    (made,) = await log_of(house, one)
    assert (made.subscription_id, made.number, made.event, made.url) == (one.id, 1, "submitted", URL)


@pytest.mark.parametrize("change", ["paused", "changed", "removed"])
async def test_nothing_is_published_to_one_that_changed_since_it_was_read(house: House, change: str) -> None:
    one = await subscribed(house)
    await house.add(project="p")
    events = await events_of(house)
    if change == "removed":
        assert await house.store.delete_subscription(one.id)
    else:
        fields: dict[str, Any] = {"state": "paused"} if change == "paused" else {"filter": Filter(("failed",))}
        await house.store.change_subscription(one.id, lambda old: msgspec.structs.replace(old, **fields), now_us=house.now_us)
    assert await publish(house, Publication(one, events, None, events[-1].id)) == 0
    assert await log_of(house, one) == []


async def test_news_are_those_of_the_projects_and_types_with_the_labels_of_job_and_root(house: House) -> None:
    claimed = await house.running(project="p", labels={"a": "b"}, kind="tree")
    await house.split(claimed, submission(), submission())
    await house.add(project="q")
    last = await house.store.last_event_id()
    given = {"after_id": 0, "until_id": last, "types": ["submitted"], "limit": 100}
    news = await house.store.list_news(projects=["p"], **given)
    assert [(one.event.type, one.event.project) for one in news] == [(EventType.SUBMITTED, "p")] * 3
    assert news[0].labels == {"a": "b"}
    assert [one.root_labels for one in news] == [{}, {"a": "b"}, {"a": "b"}]
    assert len(await house.store.list_news(projects=["p", "q"], **given)) == 4
    assert len(await house.store.list_news(projects=["p", "q"], **{**given, "limit": 2})) == 2
    assert len(await house.store.list_news(projects=["p", "q"], **{**given, "until_id": news[0].event.id})) == 1


async def test_the_log_of_a_subscription_is_bounded_and_what_waits_is_kept(house: House) -> None:
    one = await subscribed(house)
    for number in range(1, 8):
        job = await house.add(project="p")
        events = await events_of(house, (await now(house, one)).cursor)
        assert await publish(house, Publication(await now(house, one), events, None, events[-1].id), log_max=3) == 1
        if number > 1:  # the first one is never delivered
            (made,) = [each for each in await log_of(house, one) if each.job_id == job.id]
            await finish(house, made, "delivered")
    assert [each.number for each in await log_of(house, one)] == [1, 5, 6, 7]


async def finish(house: House, delivery: Delivery, state: str, **given: Any) -> bool:
    fields = {"next_us": house.now_us, "status": 200, "error": None, "now_us": house.now_us, **given}
    done: bool = await house.store.finish_delivery(delivery, state=state, **fields)
    return done


async def made(house: House, one: Subscription, count: int) -> list[Delivery]:
    for _ in range(count):
        await house.add(project="p")
    old = await now(house, one)
    events = await events_of(house, old.cursor)
    assert await publish(house, Publication(old, events, None, events[-1].id)) == count
    return await log_of(house, one)


async def test_given_up_ones_in_a_row_pause_it_and_one_that_came_begins_anew(house: House) -> None:
    one = await subscribed(house)
    a, b, c, d, _ = await made(house, one, 5)
    assert not await finish(house, a, "given_up", given_up_max=2)
    assert not await finish(house, b, "delivered", given_up_max=2)
    assert not await finish(house, c, "given_up", given_up_max=2)
    assert (await now(house, one)).given_up == 1
    assert await finish(house, d, "given_up", given_up_max=2)
    paused = await now(house, one)
    assert (paused.state, paused.given_up) == ("paused", 2)
    assert await house.store.claim_deliveries(now_us=house.now_us, lease_s=30, limit=10) == []
    assert await house.store.next_delivery_us() is None, "what is parked does not keep the courier awake"


async def test_what_waits_is_parked_with_its_subscription_and_follows_its_url(house: House) -> None:
    one = await subscribed(house)
    await made(house, one, 2)

    async def put(**fields: Any) -> None:
        await house.store.change_subscription(one.id, lambda old: msgspec.structs.replace(old, **fields), now_us=house.now_us)

    await put(state="paused")
    assert await house.store.claim_deliveries(now_us=house.now_us, lease_s=30, limit=10) == []
    await put(state="active", url=URL + "/2")
    found = await house.store.claim_deliveries(now_us=house.now_us, lease_s=30, limit=10)
    assert [each.url for each in found] == [URL + "/2"] * 2


async def test_one_that_is_removed_takes_its_deliveries_along(house: House) -> None:
    one = await subscribed(house)
    await made(house, one, 2)
    other = await subscribed(house)
    await made(house, other, 1)
    assert await house.store.delete_subscription(one.id)
    assert not await house.store.delete_subscription(one.id)
    assert await log_of(house, one) == []
    assert len(await log_of(house, other)) == 1


async def test_a_ping_is_a_delivery_of_no_event_also_to_one_that_is_paused(house: House) -> None:
    one = await subscribed(house)
    ping = await house.store.ping_subscription(one.id, now_us=house.now_us)
    assert (ping.event, ping.job_id, ping.number) == ("ping", "", 1)
    await house.store.change_subscription(one.id, lambda old: msgspec.structs.replace(old, state="paused"), now_us=house.now_us)
    again = await house.store.ping_subscription(one.id, now_us=house.now_us)
    assert again.number == 2
    assert await house.store.claim_deliveries(now_us=house.now_us, lease_s=30, limit=10) == []


# --- callbacks with filters ------------------------------------------------------------------------------------------------


async def test_a_job_whose_callback_has_words_is_watched_until_its_end_was_told(house: House) -> None:
    callback = Callback(URL, ("running", "final"))
    assert await house.store.watched_after() is None
    before = await house.store.last_event_id()
    claimed = await house.running(callback=callback, project="p")
    assert (await house.job(claimed.job.id)).callback == callback
    assert await house.store.watched_after() == before
    await house.end(claimed)
    assert await house.store.list_deliveries(claimed.job.id) == [], "its end is told like the rest"
    last = await house.store.last_event_id()
    told = await house.store.list_watched_news(after_id=before, until_id=last, limit=100)
    assert [one.event.type.value for one in told] == ["submitted", "started", "succeeded"]
    publication = JobPublication(told, [claimed.job.id], before, last)
    assert await publish(house, jobs=publication) == 2
    assert await publish(house, jobs=publication) == 0
    assert [each.event for each in await house.store.list_deliveries(claimed.job.id)] == ["started", "succeeded"]
    assert await house.store.watched_after() is None


async def test_a_job_that_is_pruned_is_watched_no_more(house: House) -> None:
    claimed = await house.running(callback=Callback(URL, ("running",)))
    await house.end(claimed)
    house.clock.advance(KEEP_S + 1)
    await house.store.prune(now_us=house.now_us, keep_tombstone_s=1e6, keep_deliveries_s=1e6, limit=100)
    assert await house.store.watched_after() is None


# --- what was pruned -------------------------------------------------------------------------------------------------------


async def test_the_last_event_that_went_with_its_job_is_remembered_for_its_project(durable: House) -> None:
    house = durable
    claimed = await house.running(project="p")
    await house.end(claimed)
    last = await house.store.last_event_id()
    await house.add(project="q")
    assert await house.store.pruned_until(P) == 0
    house.clock.advance(KEEP_S + 1)
    await house.store.prune(now_us=house.now_us, keep_tombstone_s=1e6, keep_deliveries_s=1e6, limit=100)
    await house.reopen()
    assert await house.store.pruned_until(P) == last
    assert await house.store.pruned_until(ProjectId("q")) == 0
    assert await house.store.pruned_until(None) == last


async def test_deliveries_of_a_subscription_outlive_the_job_they_tell_of(house: House) -> None:
    one = await subscribed(house)
    claimed = await house.running(project="p", callback=Callback(URL))
    await house.end(claimed)
    events = await events_of(house)
    await publish(house, Publication(one, events, None, events[-1].id))
    house.clock.advance(KEEP_S + 1)
    await house.store.prune(now_us=house.now_us, keep_tombstone_s=1e6, keep_deliveries_s=1e6, limit=100)
    assert [each.event for each in await log_of(house, one)] == ["submitted", "started", "succeeded"]
    assert {each.subscription_id for each in await house.store.list_deliveries(JobId(claimed.job.id))} == {one.id}


# --- receivers -------------------------------------------------------------------------------------------------------------


async def test_a_receiver_gets_no_more_than_its_places_and_the_others_theirs(house: House) -> None:
    one, other = await subscribed(house), await subscribed(house)
    await made(house, one, 40)
    house.clock.advance(1)
    old = await now(house, other)
    events = (await events_of(house))[-1:]
    assert await publish(house, Publication(old, events, None, events[-1].id)) == 1
    given = {"now_us": house.now_us, "lease_s": 30}
    first = await house.store.claim_deliveries(**given, limit=5, most=3)
    assert sorted(each.receiver for each in first) == sorted([one.id] * 3 + [other.id])
    assert await house.store.claim_deliveries(**given, limit=5, most=3, places={one.id: 0}) == []
    assert len(await house.store.claim_deliveries(**given, limit=5, most=3, places={one.id: 1})) == 1


async def test_whoever_is_told_when_events_were_committed_is_told_of_nothing_else(house: House) -> None:
    rung = 0

    def ring() -> None:
        nonlocal rung
        rung += 1

    house.store.on_events(ring)
    await house.add(project="p")
    assert rung == 1
    await subscribed(house)
    assert rung == 1, "this wrote no event"
    house.store.on_events(None)
    await house.add(project="p")
    assert rung == 1
