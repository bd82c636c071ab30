"""Subscriptions and callbacks with filters: each event that was asked for makes one delivery, and nobody waits for another."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from engine_house import House

import milepost
from milepost.engine.courier import sign
from milepost.job import Callback, EventType, ProjectId
from milepost.store import Delivery
from milepost.subscription import Filter, Subscription

URL = "http://127.0.0.1:9/hook"
PROJECT = ProjectId("default")
KEYS = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")


async def subscribed(house: House, *on: str, **fields: Any) -> Subscription:
    given = {"url": URL, "description": "", "filter": Filter(on=on), "secret": KEYS[0], "after_id": None, "most": 50, **fields}
    found: Subscription = await house.store.add_subscription(given.pop("project", PROJECT), now_us=house.clock.now_us(), **given)
    house.dispatch.announce_subscriptions()
    return found


async def published(house: House) -> int:
    """Everything that there is to publish is published."""
    made = 0
    for _ in range(200):
        before = made
        made += await house.node.publisher.run_once()
        if made == before and not house.node.publisher._more:
            return made
    raise AssertionError("it goes on for ever")


async def told(house: House, one: Subscription) -> list[str]:
    """The types of a subscription's deliveries, the first one first."""
    found: list[Delivery] = await house.store.page_deliveries(one.id, limit=5000)
    assert [each.number for each in found] == sorted((each.number or 0 for each in found), reverse=True)
    return [each.event for each in reversed(found)]


def kinds(house: House) -> None:
    @house.kind("quick")
    async def quick(job: milepost.Running) -> int:
        return 42

    @house.kind("bad")
    async def bad(job: milepost.Running) -> None:
        raise milepost.PermanentError("broken", "it broke")

    @house.kind("parent")
    async def parent(job: milepost.Running) -> int:
        return len(await job.run_sub_jobs([milepost.SubJob(kind="quick", labels={"part": "1"}), milepost.SubJob(kind="quick")]))


async def test_each_event_that_was_asked_for_makes_one_delivery(house: House) -> None:
    kinds(house)
    ends, starts, everything = await subscribed(house), await subscribed(house, "running"), await subscribed(house, "all")
    await house.run("quick")
    await house.run("bad")
    assert await published(house) == 2 + 2 + 6
    assert await published(house) == 0
    assert await told(house, ends) == ["succeeded", "failed"]
    assert await told(house, starts) == ["started", "started"]
    assert await told(house, everything) == ["submitted", "started", "succeeded", "submitted", "started", "failed"]


async def test_a_subscription_is_about_its_project_its_kinds_its_labels_and_roots(house: House) -> None:
    kinds(house)
    other = await subscribed(house, project=ProjectId("other"))
    quick = await subscribed(house, filter=Filter(kinds=("quick",)))
    labelled = await subscribed(house, filter=Filter(labels={"a": "b"}, sub_jobs=True))
    trees = await subscribed(house, filter=Filter(sub_jobs=True))
    part = await subscribed(house, filter=Filter(labels={"part": "1"}, sub_jobs=True))
    await house.finish(await house.submit("parent", labels={"a": "b", "c": "d"}))
    await house.run("quick")
    await published(house)
    assert await told(house, other) == []
    assert await told(house, quick) == ["succeeded"], "a sub-job is none of its business"
    assert await told(house, labelled) == ["succeeded"] * 3, "sub-jobs have their root's labels too"
    assert await told(house, trees) == ["succeeded"] * 4
    assert await told(house, part) == ["succeeded"]


async def test_it_begins_when_it_is_made_or_behind_the_event_that_was_named(house: House) -> None:
    kinds(house)
    await house.run("quick")
    now, from_begin = await subscribed(house), await subscribed(house, after_id=0)
    await published(house)
    assert await told(house, now) == []
    assert await told(house, from_begin) == ["succeeded"]


async def test_what_is_sent_names_the_event_and_is_signed_with_the_subscriptions_own_secret(house: House) -> None:
    kinds(house)
    one = await subscribed(house, "running")
    job = await house.run("quick", labels={"a": "b"})
    await published(house)
    assert await house.node.courier.run_once() == 1
    ((url, headers, body),) = house.post.came
    said = json.loads(body)
    (event,) = [each for each in await house.store.list_events(job_id=job.id) if each.type is EventType.STARTED]
    assert (url, said["type"], said["subscription"]) == (URL, "job.started", one.id)
    assert (said["event"]["id"], said["event"]["seq"], said["event"]["state"]) == (event.id, 2, "running")
    assert (said["data"]["id"], said["data"]["state"]) == (job.id, "succeeded"), "the job as it is now"
    stamp = int(headers["webhook-timestamp"])
    assert headers["webhook-signature"] == sign(KEYS[0], headers["webhook-id"], stamp, body)


async def test_a_replaced_secret_signs_beside_the_new_one_until_its_time_is_over(house: House) -> None:
    kinds(house)
    one = await subscribed(house)

    def renew(old: Subscription) -> Subscription:
        until_us = house.clock.now_us() + 60_000_000
        return msgspec.structs.replace(old, secret=KEYS[1], old_secret=old.secret, old_secret_until_us=until_us)

    await house.store.change_subscription(one.id, renew, now_us=house.clock.now_us())
    for expected in (2, 1):
        await house.run("quick")
        await published(house)
        await house.node.courier.run_once()
        _, headers, body = house.post.came[-1]
        stamp = int(headers["webhook-timestamp"])
        both = [sign(key, headers["webhook-id"], stamp, body) for key in (KEYS[1], KEYS[0])]
        assert headers["webhook-signature"].split() == both[:expected]
        house.clock.advance(61)


async def test_a_tale_of_many_pages_is_told_once_and_in_order(house: House) -> None:
    kinds(house)
    ids = [await house.submit("quick", held=True) for _ in range(700)]
    one, lagging = await subscribed(house, "submitted", after_id=0), await subscribed(house, "cancelled", after_id=0)
    for id in ids[:600]:
        await house.service.cancel(id, project=None)
    await published(house)
    found = await house.store.page_deliveries(one.id, limit=5000)
    assert [each.job_id for each in reversed(found)] == ids
    assert len(await told(house, lagging)) == 600


async def test_one_whose_receiver_is_dead_lags_behind_and_loses_nothing_and_delays_nobody(house: House) -> None:
    limit = house.settings.subscription_pending_max
    kinds(house)
    dead, live = await subscribed(house, "submitted"), await subscribed(house, "submitted")
    ids = [await house.submit("quick", held=True) for _ in range(limit + 30)]

    async def take_all(one: Subscription) -> None:
        await published(house)
        now_us = house.clock.now_us()
        for each in await house.store.page_deliveries(one.id, state="pending", limit=5000):
            await house.store.finish_delivery(each, state="delivered", next_us=0, status=200, error=None, now_us=now_us)
        house.clock.advance(1)

    for _ in range(3):
        await take_all(live)
    assert [each.job_id for each in reversed(await house.store.page_deliveries(live.id, limit=5000))] == ids
    assert await house.store.count_pending(dead.id) == limit
    for _ in range(3):
        await take_all(dead)
    assert [each.job_id for each in reversed(await house.store.page_deliveries(dead.id, limit=5000))] == ids


@pytest.mark.parametrize("status", [410, 503])
async def test_a_receiver_that_is_gone_or_never_takes_anything_has_its_subscription_paused(house: House, status: int) -> None:
    kinds(house)
    one = await subscribed(house)
    house.post.answers = [status] * 10_000
    rounds = 1 if status == 410 else house.settings.subscription_given_up_max
    for _ in range(rounds):
        await house.run("quick")
    await published(house)
    for _ in range(3000):
        await house.node.courier.run_once()
        if (await house.store.get_subscription(one.id)).state == "paused":
            break
        house.clock.advance(house.settings.callback_backoff_s_max)
    found = await house.store.get_subscription(one.id)
    assert found.state == "paused"
    assert (found.reason or "").startswith("gone" if status == 410 else "unreachable")
    sent = len(house.post.came)
    await house.run("quick")
    await published(house)
    house.clock.advance(1e6)
    assert await house.node.courier.run_once() == 0
    assert len(house.post.came) == sent, "nothing is sent to a paused one"


async def test_a_paused_one_goes_on_where_it_was(house: House) -> None:
    kinds(house)
    one = await subscribed(house)

    async def put(state: str, *, to_now: bool = False) -> None:
        await house.store.change_subscription(
            one.id, lambda old: msgspec.structs.replace(old, state=state), to_now=to_now, now_us=house.clock.now_us()
        )
        house.dispatch.announce_subscriptions()

    await house.run("quick")
    await published(house)
    await put("paused")
    await house.run("bad")
    assert await published(house) == 0
    assert await house.node.courier.run_once() == 0, "what was pending waits, too"
    await put("active")
    assert await published(house) == 1
    assert await house.node.courier.run_once() == 2
    await put("paused")
    await house.run("bad")
    await put("active", to_now=True)
    assert await published(house) == 0
    assert await told(house, one) == ["succeeded", "failed"]


async def test_events_that_were_pruned_before_they_could_be_told_are_named_once(house: House) -> None:
    kinds(house)
    early, late = await subscribed(house, after_id=0), await subscribed(house, after_id=0)
    await house.run("quick")
    first = await house.store.last_event_id()
    house.clock.advance(house.settings.keep_succeeded_s + 1)
    assert await house.node.pruner.run_once() == 1
    job = await house.run("quick")
    assert await published(house) == 4
    assert await published(house) == 0
    for one in (early, late):
        assert await told(house, one) == ["missed", "succeeded"]
    await house.node.courier.run_once()
    said = [json.loads(body) for _, _, body in house.post.came]
    missed = [one for one in said if one["type"] == "events.missed"]
    assert [(one["data"]["from_id"], one["data"]["to_id"]) for one in missed] == [(1, first)] * 2
    assert {one["data"]["id"] for one in said if one["type"] == "job.succeeded"} == {job.id}


async def test_one_that_has_been_told_everything_misses_nothing_by_pruning(house: House) -> None:
    kinds(house)
    one, quiet = await subscribed(house), await subscribed(house, "cancelled")
    for _ in range(3):
        await house.run("quick")
        await published(house)
        house.clock.advance(house.settings.keep_succeeded_s + 1)
        await house.node.pruner.run_once()
        await published(house)
    assert await told(house, one) == ["succeeded"] * 3
    assert await told(house, quiet) == []


async def test_a_subscriber_is_told_of_a_job_that_has_expired_meanwhile(house: House) -> None:
    kinds(house)
    await subscribed(house)
    job = await house.run("quick")
    await published(house)
    house.clock.advance(house.settings.keep_succeeded_s + 1)
    await house.node.pruner.run_once()
    assert await house.node.courier.run_once() == 1
    said = json.loads(house.post.came[0][2])
    assert (said["type"], said["data"]["id"], said["data"]["state"], said["data"]["expired"]) == (
        "job.succeeded", job.id, "succeeded", True,
    )  # fmt: skip


# --- callbacks with filters ------------------------------------------------------------------------------------------------


async def test_a_callback_with_words_is_told_of_what_they_name(house: House) -> None:
    kinds(house)
    job = await house.run("quick", callback=Callback(URL, ("running", "final")))
    assert await published(house) == 2
    assert [each.event for each in await house.store.list_deliveries(job.id)] == ["started", "succeeded"]
    assert await house.store.watched_after() is None, "nothing more comes of it"
    assert (await house.job(job.id)).callback == Callback(URL, ("running", "final"))
    await house.node.courier.run_once()
    assert sorted(json.loads(body)["type"] for _, _, body in house.post.came) == ["job.started", "job.succeeded"]


async def test_progress_is_told_as_it_is_when_it_is_sent_and_never_twice_at_a_time(house: House) -> None:
    @house.kind("slow")
    async def slow(job: milepost.Running) -> None:
        for number in range(1, 40):
            await job.progress(number, 40)
            house.clock.advance(2)
            await asyncio.sleep(0)

    job = await house.run("slow", callback=Callback(URL, ("progress",)))
    events = [event for event in await house.store.list_events(job_id=job.id) if event.type is EventType.PROGRESS]
    assert len(events) > 1
    assert await published(house) == 1
    await house.node.courier.run_once()
    assert json.loads(house.post.came[0][2])["type"] == "job.progress"


async def test_a_job_with_very_many_changes_makes_a_bounded_number_of_deliveries_and_its_end_is_told(house: House) -> None:
    tries = 0

    @house.kind("naps")
    async def naps(job: milepost.Running) -> int:
        nonlocal tries
        tries += 1
        if tries < 12:
            raise milepost.Snooze(0.0)
        return 1

    house.settings = house.node.publisher._settings = msgspec.structs.replace(house.settings, callbacks_job_max=5)
    job = await house.submit("naps", callback=Callback(URL, ("running", "final")))
    await house.finish(job)
    await published(house)
    found = [each.event for each in await house.store.list_deliveries(job)]
    assert found == ["started"] * 5 + ["succeeded"]


async def test_an_unknown_word_is_refused_with_those_that_there_are(house: House) -> None:
    kinds(house)
    with pytest.raises(milepost.InvalidInput) as refused:
        await house.submit("quick", callback=Callback(URL, ("finnal",)))
    assert "final" in (refused.value.hint or "")


# --- the courier -----------------------------------------------------------------------------------------------------------


async def test_a_receiver_with_very_many_due_keeps_no_other_waiting(house: House) -> None:
    kinds(house)
    slow, other = await subscribed(house, "submitted", url="http://127.0.0.1:9/slow"), await subscribed(house)
    for _ in range(house.settings.callback_concurrency * 10):
        await house.submit("quick", held=True)
    await published(house)
    house.clock.advance(1)
    await house.run("quick")
    await published(house)
    assert await house.node.courier.run_once() == house.settings.callback_receiver_max + 1
    assert len([url for url, _, _ in house.post.came if url.endswith("/slow")]) == house.settings.callback_receiver_max
    assert (await house.store.page_deliveries(other.id))[0].state == "delivered"
    assert slow.id != other.id


async def test_a_receiver_that_failed_has_one_place_until_it_takes_something(house: House) -> None:
    kinds(house)
    await subscribed(house, "submitted")
    for _ in range(20):
        await house.submit("quick", held=True)
    await published(house)
    most = house.settings.callback_receiver_max
    house.post.answers = [503] * most
    assert await house.node.courier.run_once() == most
    assert await house.node.courier.run_once() == 1
    assert await house.node.courier.run_once() == most
