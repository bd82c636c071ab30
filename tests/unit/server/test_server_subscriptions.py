"""Subscriptions over HTTP: made, shown without their secret, changed, paused, and each its project's own."""

from __future__ import annotations

from typing import Any

import pytest
from server_house import Crowd, House, Web
from test_server_events import open_stream, sent
from test_server_jobs import submit

from milepost.subscription import Publication, Subscription

URL = "http://127.0.0.1:9/hook"


async def made(web: Web, **fields: Any) -> Any:
    answer = await web.post("/subscriptions", {"url": URL, **fields})
    assert answer.status == 201, answer.body
    return answer.json


async def told(house: House, id: str, count: int) -> None:
    """So many events of one submitted job are published to it."""
    one: Subscription = await house.store.get_subscription(id)
    events = (await house.store.list_events())[-count:]
    await house.store.publish(
        [Publication(one, events, None, events[-1].id)], None, now_us=house.clock.now_us(), log_max=100, job_max=100
    )


async def test_its_secret_is_in_the_answer_that_made_it_and_nowhere_else(house: House, web: Web) -> None:
    answer = await web.post("/subscriptions", {"url": URL, "on": ["running"], "labels": {"a": "b"}, "sub_jobs": True})
    one = answer.json
    assert answer.status == 201
    assert answer.headers["location"].endswith(f"/subscriptions/{one['id']}")
    assert one["secret"].startswith("whsec_")
    shown = [(await web.get(f"/subscriptions/{one['id']}")).json, *(await web.get("/subscriptions")).json["subscriptions"]]
    assert shown == [{name: value for name, value in one.items() if name != "secret"}] * 2
    assert (shown[0]["on"], shown[0]["labels"], shown[0]["sub_jobs"], shown[0]["state"]) == (
        ["running"],
        {"a": "b"},
        True,
        "active",
    )
    assert one["secret"] not in repr(await house.store.list_subscriptions())
    renewed = (await web.post(f"/subscriptions/{one['id']}/secret")).json
    assert renewed["secret"] not in ("", one["secret"])


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"url": "ftp://x.example/"}, "$.url"),
        ({"url": "http://169.254.169.254/latest/meta-data"}, "$.url"),
        ({"url": "http://10.0.0.1/"}, "$.url"),
        ({"url": URL, "on": ["finnal"]}, "$.on"),
        ({"url": URL, "labels": {"": "x"}}, "$.labels"),
        ({"url": URL, "kinds": [""]}, "$.kinds"),
        ({"url": URL, "secret": "mine"}, "$"),
        ({"url": URL, "after": -1}, "$.after"),
        ({}, "$"),
    ],
)
async def test_what_could_never_work_is_refused_by_name(web: Web, body: Any, path: str) -> None:
    answer = await web.post("/subscriptions", body)
    assert (answer.status, answer.json["path"]) == (400, path)
    assert (await web.get("/subscriptions")).json == {"subscriptions": []}


async def test_what_is_named_changes_and_the_rest_stays(web: Web) -> None:
    one = await made(web, on=["running"], labels={"a": "b"})
    changed = (await web.ask("PATCH", f"/subscriptions/{one['id']}", {"on": ["final"], "description": "mine"})).json
    assert (changed["on"], changed["labels"], changed["description"], changed["url"]) == (["final"], {"a": "b"}, "mine", URL)
    refused = await web.ask("PATCH", f"/subscriptions/{one['id']}", {"url": "http://10.0.0.1/"})
    assert (refused.status, refused.json["path"]) == (400, "$.url")


async def test_it_is_paused_and_goes_on_where_it_was_or_now(house: House, web: Web) -> None:
    one = await made(web)
    assert (await web.post(f"/subscriptions/{one['id']}/pause")).json["state"] == "paused"
    await submit(web)
    resumed = (await web.post(f"/subscriptions/{one['id']}/resume")).json
    assert (resumed["state"], resumed["cursor"]) == ("active", one["cursor"])
    await web.post(f"/subscriptions/{one['id']}/pause")
    skipped = (await web.post(f"/subscriptions/{one['id']}/resume?skip=1")).json
    assert skipped["cursor"] == await house.store.last_event_id()


async def test_its_log_is_paged_and_each_delivery_may_be_sent_again(house: House, web: Web) -> None:
    one = await made(web, on=["all"])
    for _ in range(3):
        job = await submit(web)
        await told(house, one["id"], 1)
    first = await web.get(f"/subscriptions/{one['id']}/deliveries?limit=2")
    assert [each["detail"]["type"] for each in first.json["deliveries"]] == ["submitted", "submitted"]
    assert first.json["deliveries"][0]["job_id"] == job["id"]
    following = first.headers["link"].split(">")[0][1:]
    rest = await web.get(following)
    assert len(rest.json["deliveries"]) == 1
    assert "link" not in rest.headers
    assert (await web.get(f"/subscriptions/{one['id']}/deliveries?state=given_up")).json["deliveries"] == []
    again = await web.post(f"/deliveries/{first.json['deliveries'][0]['id']}/redeliver")
    assert (again.status, again.json["subscription_id"], again.json["attempt"]) == (202, one["id"], 0)
    ping = await web.post(f"/subscriptions/{one['id']}/ping")
    assert (ping.status, ping.json["event"], ping.json["job_id"]) == (202, "ping", None)


async def test_one_that_is_removed_is_gone(web: Web) -> None:
    one = await made(web)
    assert (await web.ask("DELETE", f"/subscriptions/{one['id']}")).status == 204
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/ping"), ("GET", "/deliveries")):
        assert (await web.ask(method, f"/subscriptions/{one['id']}{path}")).status == 404


async def test_another_projects_subscription_is_not_found(crowd: Crowd) -> None:
    member, stranger, admin = (crowd.house.web_as(one) for one in (crowd.member, crowd.stranger, crowd.admin))
    one = await made(member, url="https://example.com/hook")
    delivery = (await member.post(f"/subscriptions/{one['id']}/ping")).json
    assert (await stranger.get("/subscriptions")).json == {"subscriptions": []}
    for method, path in (
        ("GET", f"/subscriptions/{one['id']}"),
        ("PATCH", f"/subscriptions/{one['id']}"),
        ("DELETE", f"/subscriptions/{one['id']}"),
        ("POST", f"/subscriptions/{one['id']}/pause"),
        ("POST", f"/subscriptions/{one['id']}/resume"),
        ("POST", f"/subscriptions/{one['id']}/secret"),
        ("POST", f"/subscriptions/{one['id']}/ping"),
        ("GET", f"/subscriptions/{one['id']}/deliveries"),
        ("POST", f"/deliveries/{delivery['id']}/redeliver"),
    ):
        assert (await stranger.ask(method, path, {})).status == 404, path
        assert (await stranger.ask(method, path + "?all_projects=1", {})).status == 403, path
    assert (await admin.get("/subscriptions?all_projects=1")).json["subscriptions"][0]["id"] == one["id"]
    assert (await member.get(f"/subscriptions/{one['id']}")).json["state"] == "active"


# --- streams and pages of what was pruned ------------------------------------------------------------------------------------


async def expire(house: House) -> None:
    house.clock.advance(1e9)
    await house.store.prune(now_us=house.clock.now_us(), keep_tombstone_s=1e9, keep_deliveries_s=1e9, limit=1000)


async def run_one(house: House, web: Web, **fields: Any) -> str:
    job = await submit(web, **fields)
    await house.finish(await house.claim())
    return str(job["id"])


async def test_a_stream_resumed_from_before_what_was_pruned_says_which_and_goes_on(house: House, web: Web) -> None:
    await run_one(house, web)
    last = await house.store.last_event_id()
    await expire(house)
    exchange = await open_stream(house, web, "/events", {"last-event-id": "1"})
    await exchange.until(b"event: missed")
    job = await submit(web)
    await exchange.until(b"event: submitted")
    exchange.hang_up()
    body = (await exchange.end()).body
    (block,) = [block for block in body.split(b"\n\n") if b"event: missed" in block]
    assert block.startswith(b"id: 1\n"), "who comes back is told again what came behind"
    assert b'"from_id":2,"to_id":%d,' % last in block
    rest = body.replace(block + b"\n\n", b"")
    assert [event["job_id"] for event in sent(rest)] == [job["id"]]


async def test_one_who_was_told_everything_is_told_of_nothing_missing(house: House, web: Web) -> None:
    await run_one(house, web)
    last = await house.store.last_event_id()
    await expire(house)
    exchange = await open_stream(house, web, "/events", {"last-event-id": str(last)})
    await submit(web)
    await exchange.until(b"event: submitted")
    exchange.hang_up()
    assert b"missed" not in (await exchange.end()).body


async def test_another_projects_expired_jobs_are_nobody_elses_missing_events(house: House, web: Web) -> None:
    await web.post("/jobs", {"kind": "echo"}, {"x-project-id": "elsewhere"})
    await house.finish(await house.claim())
    await expire(house)
    assert await house.store.pruned_until(None) > 0
    exchange = await open_stream(house, web, "/events", {"last-event-id": "0"})
    await submit(web)
    await exchange.until(b"event: submitted")
    exchange.hang_up()
    assert b"missed" not in (await exchange.end()).body


async def test_a_jobs_stream_ends_when_the_job_went_under_its_reader(
    house: House, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    from milepost.server import events

    monkeypatch.setattr(events, "PAGE", 1)
    id = await run_one(house, web)
    first = (await house.store.list_events())[0].id
    real, reads = events.JobFeed.read, 0

    async def slow(feed: Any, after_id: int, limit: int) -> Any:
        nonlocal reads
        reads += 1
        if reads == 2:
            await expire(house)
        return await real(feed, after_id, limit)

    monkeypatch.setattr(events.JobFeed, "read", slow)
    body = (await web.stream(f"/jobs/{id}/events").end()).body
    assert b"event: missed" in body
    assert b"id: %d\nevent: submitted" % first in body
    assert b"event: succeeded" not in body
    assert (await web.get(f"/jobs/{id}")).status == 410


async def test_a_page_behind_an_event_says_what_is_missing(house: House, web: Web) -> None:
    await run_one(house, web)
    last = await house.store.last_event_id()
    await expire(house)
    assert (await web.get("/events?after=1")).json["missed"] == {"from_id": 2, "to_id": last}
    assert "missed" not in (await web.get("/events")).json
    assert "missed" not in (await web.get(f"/events?after={last}")).json
