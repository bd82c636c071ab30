"""Streams and pages of events."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from server_house import DEADLINE_S, Crowd, Exchange, House, Web, open_house
from test_server_jobs import next_of, submit

from milepost.server import events


def sent(body: bytes) -> list[dict[str, Any]]:
    """The events of a stream, its comments and bare ids left out."""
    found = []
    for block in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            event = msgspec.json.decode(fields["data"])
            assert (str(event["id"]), event["type"]) == (fields["id"], fields["event"])
            found.append(event)
    return found


def types(body: bytes) -> list[str]:
    return [event["type"] for event in sent(body)]


async def open_stream(house: House, web: Web, url: str, headers: dict[str, str] | None = None) -> Exchange:
    """A stream that has read what there was and now waits."""
    exchange = web.stream(url, headers)
    await exchange.until(b"retry: ")
    return exchange


async def run_one(house: House, web: Web, **fields: Any) -> str:
    job = await submit(web, **fields)
    await house.finish(await house.claim())
    return str(job["id"])


async def test_a_jobs_stream_tells_its_life_in_order_and_ends_with_it(house: House, web: Web) -> None:
    job = await submit(web)
    exchange = await open_stream(house, web, f"/jobs/{job['id']}/events")
    claimed = await house.claim()
    await exchange.until(b"event: started")
    await house.finish(claimed)
    answer = await exchange.end()

    assert answer.headers["content-type"] == "text/event-stream"
    assert "x-request-id" in answer.headers
    assert types(answer.body) == ["submitted", "started", "succeeded"]
    assert [event["seq"] for event in sent(answer.body)] == [1, 2, 3]
    assert house.app.state.slots.open == 0


async def test_a_stream_resumed_after_any_event_gets_exactly_the_rest(house: House, web: Web) -> None:
    id = await run_one(house, web)
    whole = sent((await web.stream(f"/jobs/{id}/events").end()).body)
    for at, event in enumerate(whole[:-1]):
        for url, headers in (
            (f"/jobs/{id}/events", {"last-event-id": str(event["id"])}),
            (f"/jobs/{id}/events?after={event['id']}", {}),
        ):
            assert sent((await web.stream(url, headers).end()).body) == whole[at + 1 :]


async def test_the_header_of_a_reconnect_wins_over_the_url_it_repeats(house: House, web: Web) -> None:
    id = await run_one(house, web)
    first, *rest = sent((await web.stream(f"/jobs/{id}/events").end()).body)
    again = await web.stream(f"/jobs/{id}/events?after=0", {"last-event-id": str(first["id"])}).end()
    assert sent(again.body) == rest


async def test_a_reconnect_after_the_end_is_told_to_stop(house: House, web: Web) -> None:
    id = await run_one(house, web)
    *_, last = sent((await web.stream(f"/jobs/{id}/events").end()).body)
    for url in (f"/jobs/{id}/events", f"/jobs/{id}/events?tree=1"):
        answer = await web.stream(url, {"last-event-id": str(last["id"])}).end()
        assert (answer.status, answer.body) == (204, b"")


async def test_the_first_line_says_where_to_go_on_so_a_reconnect_before_any_event_loses_none(house: House, web: Web) -> None:
    await run_one(house, web)
    exchange = await open_stream(house, web, "/events")
    last = await house.store.last_event_id()
    assert b"id: %d\n\n" % last in exchange.body
    assert sent(exchange.body) == []
    exchange.hang_up()
    await exchange.end()


async def test_a_tree_ends_when_its_last_job_ended_also_when_resumed(house: House, web: Web) -> None:
    job = await submit(web)
    await house.suspend(await house.claim(), 2)
    exchange = await open_stream(house, web, f"/jobs/{job['id']}/events?tree=1")
    await house.finish(await house.claim("default"))
    await exchange.until(b"event: succeeded")
    cut = sent(exchange.body)
    resumed = await open_stream(house, web, f"/jobs/{job['id']}/events?tree=1", {"last-event-id": str(cut[-1]["id"])})
    await house.finish(await house.claim("default"))
    await house.finish(await house.claim())
    whole, rest = sent((await exchange.end()).body), sent((await resumed.end()).body)

    assert whole == cut + rest
    assert len({event["job_id"] for event in whole}) == 3
    assert whole[-1]["job_id"] == job["id"]
    for id in {event["job_id"] for event in whole}:
        seqs = [event["seq"] for event in whole if event["job_id"] == id]
        assert seqs == list(range(1, len(seqs) + 1))


async def test_a_project_stream_begins_now_and_shows_its_own_jobs_only(house: House, web: Web) -> None:
    await run_one(house, web)
    exchange = await open_stream(house, web, "/events")
    await web.post("/jobs", {"kind": "echo"}, {"x-project-id": "elsewhere"})
    job = await submit(web)
    await exchange.until(b"submitted")
    exchange.hang_up()
    assert [event["job_id"] for event in sent((await exchange.end()).body)] == [job["id"]]


async def test_labels_select_jobs_and_what_is_under_them(house: House, web: Web) -> None:
    exchange = await open_stream(house, web, "/events?label=team:a&all_projects=1")
    await submit(web, kind="plain", labels={"team": "b"})
    job = await submit(web, labels={"team": "a", "x": "y"})
    await house.suspend(await house.claim(), 1)
    await exchange.until(b'"waiting"')
    exchange.hang_up()
    seen = sent((await exchange.end()).body)
    assert {event["root_id"] for event in seen} == {job["id"]}
    assert len({event["job_id"] for event in seen}) == 2


async def test_events_between_a_read_and_the_wait_are_not_lost(house: House, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that falls between the empty read and the wait wakes the wait at once."""
    job = await submit(web)
    claimed = await house.claim()
    real, reads = house.store.list_events, 0

    async def read_then_commit(**query: Any) -> Any:
        nonlocal reads
        found = await real(**query)
        reads += 1
        if reads == 2:
            await house.finish(claimed)
        return found

    monkeypatch.setattr(house.store, "list_events", read_then_commit)
    answer = await web.stream(f"/jobs/{job['id']}/events").end()
    assert types(answer.body) == ["submitted", "started", "succeeded"]


async def test_history_longer_than_a_page_arrives_whole(house: House, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PAGE", 2)
    jobs = [await submit(web) for _ in range(7)]
    answer = web.stream("/events?after=0")
    await answer.until(jobs[-1]["id"].encode())
    answer.hang_up()
    assert [event["job_id"] for event in sent((await answer.end()).body)] == [job["id"] for job in jobs]


async def test_pages_of_events_link_to_the_next(house: House, web: Web) -> None:
    id = await run_one(house, web)
    first = await web.get(f"/jobs/{id}/events?limit=2")
    second = await web.get(next_of(first.headers["link"]))
    assert [event["type"] for event in first.json["events"] + second.json["events"]] == ["submitted", "started", "succeeded"]
    assert "link" not in second.headers
    everything = await web.get("/events")
    assert len(everything.json["events"]) == 3


async def test_one_stream_more_than_allowed_is_503_and_a_slot_comes_back() -> None:
    async with open_house(streams_max=1) as house:
        first = await open_stream(house, house.web, "/events")
        refused = await house.web.stream("/events").end()
        first.hang_up()
        await first.end()
        second = await open_stream(house, house.web, "/events")
        second.hang_up()
        await second.end()
    assert (refused.status, refused.json["limit"], refused.headers["retry-after"]) == (503, "streams_max", "1")


async def test_closing_the_application_ends_streams_old_and_new(house: House, web: Web) -> None:
    exchange = await open_stream(house, web, "/events")
    house.app.close()
    assert (await exchange.end()).status == 200
    assert (await web.stream("/events").end()).status == 200


async def test_a_silent_stream_sends_comments_and_ends_when_its_token_is_revoked(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.01)
    exchange = crowd.house.web_as(crowd.member).stream("/events")
    await exchange.until(b": still here")
    await crowd.house.identities.revoke(crowd.member)
    assert (await exchange.end()).body.endswith(b": unauthenticated\n\n")


async def test_a_stream_of_a_job_that_was_removed_ends(house: House, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.01)
    job = await submit(web, held=True)
    exchange = await open_stream(house, web, f"/jobs/{job['id']}/events")

    async def gone(*_: Any, **__: Any) -> Any:
        from milepost.errors import NotFound

        raise NotFound("gone")

    monkeypatch.setattr(house.store, "get_job", gone)
    assert (await exchange.end()).body.endswith(b": not_found\n\n")


async def test_a_store_that_is_away_for_a_while_does_not_end_a_stream(
    house: House, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    from milepost.errors import StoreUnavailable

    monkeypatch.setattr(events, "HEARTBEAT_S", 0.01)
    job = await submit(web)
    exchange = await open_stream(house, web, f"/jobs/{job['id']}/events")
    real, failed = house.store.list_events, asyncio.Event()

    async def away(**_: Any) -> Any:
        failed.set()
        raise StoreUnavailable("away")

    monkeypatch.setattr(house.store, "list_events", away)
    claimed = await house.claim()
    async with asyncio.timeout(DEADLINE_S):
        await failed.wait()
    monkeypatch.setattr(house.store, "list_events", real)
    await house.finish(claimed)
    assert types((await exchange.end()).body) == ["submitted", "started", "succeeded"]


async def test_the_hub_listens_to_the_store_only_while_somebody_watches(house: House) -> None:
    subscribed: list[int] = []
    real = house.store.subscribe

    def counting(listener: Any) -> Any:
        subscribed.append(1)
        end = real(listener)

        def stop() -> None:
            subscribed.pop()
            end()

        return stop

    house.store.subscribe = counting  # type: ignore[method-assign]
    hub = events.Hub(house.store)
    with hub.watch("a"), hub.watch("a"), hub.watch("b"):
        assert len(subscribed) == 1
    assert not subscribed
