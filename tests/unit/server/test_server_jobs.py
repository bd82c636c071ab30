"""The job routes of the native API."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from server_house import DEADLINE_S, House, Web, open_house

from milepost.job import ProjectId, State
from milepost.server import jobs
from milepost.server.jobs import etag_matches, labels_of

ECHO = {"kind": "echo", "input": {"text": "hi"}}


async def submit(web: Web, **fields: Any) -> dict[str, Any]:
    answer = await web.post("/jobs", {**ECHO, **fields})
    assert answer.status == 202, answer
    return answer.json  # type: ignore[no-any-return]


def next_of(link: str) -> str:
    found = re.fullmatch(r'<([^>]+)>; rel="next"', link)
    assert found is not None
    return found[1]


# --- submit --------------------------------------------------------------------------------------------------------


async def test_an_accepted_job_is_in_the_store_and_its_location_shows_it(house: House, web: Web) -> None:
    answer = await web.post("/jobs", {**ECHO, "labels": {"a": "b"}, "priority": 2, "attempts_max": 3, "timeout_s": 1.5})

    assert answer.status == 202
    assert answer.headers["retry-after"] == "1"
    shown = await web.get(answer.headers["location"].removeprefix("http://127.0.0.1:8080"))
    assert shown.status == 200
    assert shown.json == answer.json
    job = await house.service.get(answer.json["id"])
    assert (job.queue, job.priority, job.attempts_max, job.timeout_s, job.labels) == ("echoes", 2, 3, 1.5, {"a": "b"})
    assert job.origin == {"request_id": answer.headers["x-request-id"], "user_id": "anyone"}


async def test_what_a_request_leaves_out_the_kind_decides(house: House, web: Web) -> None:
    job = await house.service.get((await submit(web))["id"])
    assert (job.queue, job.attempts_max) == ("echoes", 2)


async def test_instants_and_deadlines_are_those_that_were_asked_for(house: House, web: Web) -> None:
    body = {**ECHO, "run_at": "2031-01-02T03:04:05.678901Z", "deadline_s": 90.0}
    asked_us = house.clock.wall_us
    job = await house.service.get((await web.post("/jobs", body)).json["id"])
    assert job.run_at_us == 1_925_089_445_678_901
    assert job.deadline_us is not None
    assert 0 <= job.deadline_us - asked_us - 90_000_000 < 1000


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"kind": "none"}, "$.kind"),
        ({"kind": "echo", "input": {"size": "x"}}, "$.input.size"),
        ({"kind": "echo", "nonsense": 1}, "$"),
        ({"kind": 7}, "$.kind"),
        ({"input": {}}, "$"),
        ({"kind": "echo", "run_at": "soon"}, "$.run_at"),
        ({"kind": "echo", "deadline_s": 0}, "$.deadline_s"),
        ({"kind": "echo", "priority": 10}, "$.priority"),
        ({"kind": "echo", "callback": {"url": "ftp://x"}}, "$.callback.url"),
        ([], "$"),
        ([{"kind": "echo"}, {"kind": "none"}], "$[1].kind"),
        ([{"kind": "echo"}, {"kind": "echo", "input": {"size": "x"}}], "$[1].input.size"),
        ([{"kind": "echo"}, {"kind": "echo"}, {"kind": "echo", "labels": 3}], "$[2].labels"),
        ([{"kind": "echo"}, {"kind": "echo", "run_at": "soon"}], "$[1].run_at"),
    ],
)
async def test_a_wrong_field_is_400_with_its_path_and_nothing_is_stored(web: Web, body: Any, path: str) -> None:
    answer = await web.post("/jobs", body)
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["path"] == path
    assert (await web.get("/jobs")).json == {"jobs": []}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"nonsense", b'"text"', b"1", b'{"kind": "\xff"}'])
async def test_a_body_that_is_no_json_object_is_400(web: Web, body: bytes) -> None:
    answer = await web.post("/jobs", body)
    assert (answer.status, answer.json["code"]) == (400, "invalid_input")


@pytest.mark.parametrize("given", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
async def test_another_content_type_is_415(web: Web, given: str) -> None:
    answer = await web.post("/jobs", ECHO, {"content-type": given})
    assert (answer.status, answer.json["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("given", ["application/json; charset=utf-8", "application/vnd.x+json", "APPLICATION/JSON"])
async def test_any_json_content_type_is_taken(web: Web, given: str) -> None:
    assert (await web.post("/jobs", ECHO, {"content-type": given})).status == 202


async def test_a_repeated_key_answers_the_same_job_and_another_body_is_409(house: House, web: Web) -> None:
    first = await web.post("/jobs", ECHO, {"idempotency-key": "k"})
    again = await web.post("/jobs", ECHO, {"idempotency-key": "k"})
    other = await web.post("/jobs", {"kind": "echo"}, {"idempotency-key": "k"})
    elsewhere = await web.post("/jobs", ECHO, {"idempotency-key": "k", "x-project-id": "elsewhere"})

    assert (first.status, again.status, other.status, elsewhere.status) == (202, 200, 409, 202)
    assert again.json["id"] == first.json["id"] != elsewhere.json["id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert other.json["code"] == "idempotency_conflict"


async def test_the_key_may_be_in_the_body_and_must_not_differ_from_the_header(web: Web) -> None:
    first = await web.post("/jobs", {**ECHO, "idempotency_key": "k"})
    again = await web.post("/jobs", {**ECHO, "idempotency_key": "k"})
    wrong = await web.post("/jobs", {**ECHO, "idempotency_key": "k"}, {"idempotency-key": "other"})
    assert again.json["id"] == first.json["id"]
    assert wrong.status == 400


async def test_a_batch_is_answered_in_order_and_in_one_piece(web: Web) -> None:
    batch = [{"kind": "echo", "input": {"size": size}, "labels": {"n": str(size)}} for size in range(5)]
    answer = await web.post("/jobs", batch)
    assert answer.status == 202
    assert [job["labels"]["n"] for job in answer.json["jobs"]] == list("01234")
    assert all("input" not in job for job in answer.json["jobs"])


async def test_a_batch_sent_again_under_its_key_gives_the_same_jobs(web: Web) -> None:
    batch = [ECHO, ECHO, {**ECHO, "idempotency_key": "own"}]
    first = await web.post("/jobs", batch, {"idempotency-key": "k"})
    again = await web.post("/jobs", batch, {"idempotency-key": "k"})
    other = await web.post("/jobs", batch[:2], {"idempotency-key": "k"})
    assert (first.status, again.status, other.status) == (202, 200, 409)
    assert [job["id"] for job in again.json["jobs"]] == [job["id"] for job in first.json["jobs"]]
    assert len({job["id"] for job in first.json["jobs"]}) == 3


async def test_limits_are_named_with_what_is_allowed_and_what_came() -> None:
    async with open_house(batch_max=2, body_bytes_max=1024, input_bytes_max=64, page_max=5, page_default=5) as house:
        batch = await house.web.post("/jobs", [ECHO] * 3)
        input = await house.web.post("/jobs", {"kind": "echo", "input": {"text": "x" * 80}})
        declared = await house.web.ask("POST", "/jobs", raw=b"", headers={"content-length": "5000"})
        chunked = await house.web.ask("POST", "/jobs", raw=[b'{"kind":' + b" " * 600, b" " * 600, b'"echo"}'])
        page = await house.web.get("/jobs?limit=6")
    seen = [(one.status, one.json["limit"], one.json["allowed"]) for one in (batch, input, declared, chunked, page)]
    assert seen == [
        (400, "batch_max", 2),
        (413, "input_bytes_max", 64),
        (413, "body_bytes_max", 1024),
        (413, "body_bytes_max", 1024),
        (400, "page_max", 5),
    ]


async def test_a_client_that_hangs_up_while_sending_leaves_nothing_behind(web: Web) -> None:
    exchange = web.begin("POST", "/jobs", raw=[b'{"kind":', b""])
    exchange._incoming = asyncio.Queue()
    exchange.hang_up()
    exchange.task.cancel()
    whole = web.begin("POST", "/jobs", raw=[])
    whole.hang_up()
    assert (await whole.end()).status == 400
    assert (await web.get("/jobs")).json == {"jobs": []}


async def test_a_submit_may_wait_for_the_end(house: House, web: Web) -> None:
    exchange = web.begin("POST", "/jobs", ECHO, {"prefer": "respond-async, wait=9"})
    async with asyncio.timeout(DEADLINE_S):
        while not (listed := (await web.get("/jobs")).json["jobs"]):
            await asyncio.sleep(0)
    await house.finish(await house.claim())
    answer = await exchange.end()
    assert (answer.status, answer.json["state"], answer.json["id"]) == (200, "succeeded", listed[0]["id"])
    assert answer.headers["preference-applied"] == "wait=9"


# --- read ----------------------------------------------------------------------------------------------------------


async def test_unknown_expired_and_pending_are_three_answers(house: House, web: Web) -> None:
    job = await submit(web)
    unknown = await web.get("/jobs/01a20000-0000-7000-8000-000000000000")
    pending = await web.get(f"/jobs/{job['id']}")
    await house.finish(await house.claim())
    house.clock.advance(61)
    expired = await web.get(f"/jobs/{job['id']}")
    await house.store.prune(now_us=house.clock.now_us(), keep_tombstone_s=1e6, keep_deliveries_s=1, limit=10)
    pruned = await web.get(f"/jobs/{job['id']}")

    assert (unknown.status, unknown.json["code"]) == (404, "not_found")
    assert (pending.status, pending.json["state"]) == (200, "ready")
    for gone in (expired, pruned):
        assert (gone.status, gone.json["code"], gone.json["state"]) == (410, "expired", "succeeded")
        assert gone.json["job_id"] == job["id"]


async def test_retry_after_is_on_every_answer_that_is_not_final(house: House, web: Web) -> None:
    job = await submit(web)
    assert "retry-after" in (await web.get(f"/jobs/{job['id']}")).headers
    claimed = await house.claim()
    assert "retry-after" in (await web.get(f"/jobs/{job['id']}")).headers
    await house.finish(claimed)
    assert "retry-after" not in (await web.get(f"/jobs/{job['id']}")).headers


async def test_an_unchanged_job_is_304_and_a_changed_one_is_not(house: House, web: Web) -> None:
    job = await submit(web)
    first = await web.get(f"/jobs/{job['id']}")
    same = await web.get(f"/jobs/{job['id']}", {"if-none-match": first.headers["etag"]})
    weak = await web.get(f"/jobs/{job['id']}", {"if-none-match": f'"x", W/{first.headers["etag"]}'})
    await house.claim()
    changed = await web.get(f"/jobs/{job['id']}", {"if-none-match": first.headers["etag"]})

    assert (same.status, same.body, same.headers["etag"]) == (304, b"", first.headers["etag"])
    assert weak.status == 304
    assert (changed.status, changed.json["state"]) == (200, "running")


async def test_the_text_of_a_version_is_kept_within_bounds_and_never_outlives_it(
    house: House, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SHOWN_MAX", 3)
    ids = [(await submit(web))["id"] for _ in range(5)]
    first = {id: (await web.get(f"/jobs/{id}")).body for id in ids}
    assert len(house.app.state.shown) <= 3
    assert {id: (await web.get(f"/jobs/{id}")).body for id in ids} == first
    large = await web.post("/jobs", {"kind": "echo", "input": {"text": "x" * jobs.SHOWN_BYTES_MAX}})
    assert large.headers["etag"].encode() not in house.app.state.shown
    for id in ids:
        await web.post(f"/jobs/{id}/cancel")
    assert {(await web.get(f"/jobs/{id}")).json["state"] for id in ids} == {"cancelled"}


async def test_a_parent_changes_its_etag_with_its_sub_jobs(house: House, web: Web) -> None:
    job = await submit(web)
    await house.suspend(await house.claim(), 2)
    first = await web.get(f"/jobs/{job['id']}")
    assert first.json["sub_jobs"] == {"total": 2, "by_state": {"ready": 2}}
    exchange = web.begin("GET", f"/jobs/{job['id']}", headers={"if-none-match": first.headers["etag"], "prefer": "wait=9"})
    await asyncio.sleep(0)
    await house.claim("default")
    answer = await exchange.end()
    assert (answer.status, answer.json["sub_jobs"]["by_state"]) == (200, {"ready": 1, "running": 1})


@pytest.mark.parametrize(
    ("header", "matches"),
    [(b'"a-1"', True), (b'W/"a-1"', True), (b'"b", "a-1"', True), (b"*", True), (b'"a-2"', False), (b"", False), (b"a-1", False)],
)
def test_etags_are_compared_weakly(header: bytes, matches: bool) -> None:
    assert etag_matches(header, b'"a-1"') is matches


async def test_a_long_poll_answers_when_the_job_is_final(house: House, web: Web) -> None:
    job = await submit(web)
    exchange = web.begin("GET", f"/jobs/{job['id']}", headers={"prefer": "wait=30"})
    claimed = await house.claim()  # a change, but no end
    await asyncio.sleep(0)
    assert not exchange.task.done()
    await house.finish(claimed)
    answer = await exchange.end()
    assert (answer.status, answer.json["state"]) == (200, "succeeded")
    assert answer.headers["preference-applied"] == "wait=30"
    assert house.app.state.slots.open == 0


async def test_a_long_poll_with_an_etag_answers_at_the_first_change(house: House, web: Web) -> None:
    job = await submit(web)
    etag = (await web.get(f"/jobs/{job['id']}")).headers["etag"]
    exchange = web.begin("GET", f"/jobs/{job['id']}", headers={"prefer": "wait=30", "if-none-match": etag})
    await asyncio.sleep(0)
    await house.claim()
    answer = await exchange.end()
    assert (answer.status, answer.json["state"]) == (200, "running")


async def test_a_long_poll_whose_time_is_over_answers_the_job_as_it_is(web: Web) -> None:
    job = await submit(web)
    plain = await web.get(f"/jobs/{job['id']}", {"prefer": "wait=0.01"})
    known = await web.get(f"/jobs/{job['id']}", {"prefer": "wait=0.01", "if-none-match": plain.headers["etag"]})
    assert (plain.status, plain.json["state"], plain.headers["retry-after"]) == (200, "ready", "1")
    assert known.status == 304


async def test_a_long_poll_is_cut_to_the_longest_allowed_and_takes_a_slot() -> None:
    async with open_house(wait_s_max=0.01, streams_max=1) as house:
        job = await submit(house.web)
        cut = await house.web.get(f"/jobs/{job['id']}", {"prefer": "wait=3600"})
        with house.app.state.slots.hold(ProjectId("other")):
            full = await house.web.get(f"/jobs/{job['id']}", {"prefer": "wait=3600"})
            poll = await house.web.get(f"/jobs/{job['id']}")
    assert (cut.status, cut.headers["preference-applied"]) == (200, "wait=0.01")
    assert (full.status, full.json["limit"], full.headers["retry-after"]) == (503, "streams_max", "1")
    assert poll.status == 200


async def test_closing_the_application_ends_long_polls(house: House, web: Web) -> None:
    job = await submit(web)
    exchange = web.begin("GET", f"/jobs/{job['id']}", headers={"prefer": "wait=30"})
    async with asyncio.timeout(DEADLINE_S):
        while not house.app.state.slots.open:
            await asyncio.sleep(0)
    house.app.close()
    assert (await exchange.end()).json["state"] == "ready"


async def test_head_has_the_headers_of_get_without_its_body(web: Web) -> None:
    job = await submit(web)
    got, head = await web.get(f"/jobs/{job['id']}"), await web.ask("HEAD", f"/jobs/{job['id']}")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(got.body))


# --- list ----------------------------------------------------------------------------------------------------------


async def test_pages_cover_every_job_once_while_new_ones_arrive(web: Web) -> None:
    ids = [(await submit(web))["id"] for _ in range(7)]
    url, seen = "/jobs?limit=3&kind=echo", []
    while True:
        page = await web.get(url)
        seen += [job["id"] for job in page.json["jobs"]]
        if "link" not in page.headers:
            break
        await submit(web)
        url = next_of(page.headers["link"])
        assert "limit=3" in url
        assert "kind=echo" in url
    assert seen == ids[::-1]


async def test_a_last_page_that_is_exactly_full_has_no_next(web: Web) -> None:
    for _ in range(3):
        await submit(web)
    assert "link" not in (await web.get("/jobs?limit=3")).headers


async def test_order_asc_is_the_order_of_submission(web: Web) -> None:
    ids = [(await submit(web))["id"] for _ in range(3)]
    assert [job["id"] for job in (await web.get("/jobs?order=asc")).json["jobs"]] == ids


async def test_filters_select(house: House, web: Web) -> None:
    one = await submit(web, labels={"a": "1", "b:c": "2"})
    two = await submit(web, kind="plain", labels={"a": "1"})
    await house.claim()

    async def listed(query: str) -> set[str]:
        answer = await web.get(f"/jobs?{query}")
        assert answer.status == 200, answer
        return {job["id"] for job in answer.json["jobs"]}

    assert await listed("state=running") == {one["id"]}
    assert await listed("state=ready,held") == {two["id"]}
    assert await listed("state=ready&state=running") == {one["id"], two["id"]}
    assert await listed("kind=plain") == {two["id"]}
    assert await listed("queue=echoes") == {one["id"]}
    assert await listed("label=a:1") == await listed("label=a%3D1") == {one["id"], two["id"]}
    assert await listed("label=a:1&label=b:c=2") == set()
    assert await listed("label=a:2") == set()


async def test_a_list_has_no_bodies_unless_asked_for(house: House, web: Web) -> None:
    await submit(web)
    await house.finish(await house.claim())
    (basic,) = (await web.get("/jobs")).json["jobs"]
    (full,) = (await web.get("/jobs?view=full")).json["jobs"]
    assert not {"input", "result"} & basic.keys()
    assert (full["input"], full["result"]) == ({"text": "hi"}, {"text": "done"})


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=x",
        "limit=-1",
        "state=odd",
        "order=up",
        "label=x",
        "label=:x",
        "nonsense=1",
        "view=all",
        "after=x",
        "queue=a&queue=b",
    ],
)
async def test_a_wrong_parameter_is_400_and_named(web: Web, query: str) -> None:
    answer = await web.get(f"/jobs?{query}")
    assert answer.status == 400
    assert answer.json["path"] == "?" + query.partition("=")[0]


async def test_another_projects_job_is_no_cursor(web: Web) -> None:
    other = await web.post("/jobs", ECHO, {"x-project-id": "elsewhere"})
    assert (await web.get(f"/jobs?after={other.json['id']}")).status == 400


async def test_sub_jobs_are_listed_in_their_order_and_not_among_roots(house: House, web: Web) -> None:
    job = await submit(web)
    await house.suspend(await house.claim(), 3)
    subs = (await web.get(f"/jobs/{job['id']}/sub-jobs")).json["jobs"]
    paged = await web.get(f"/jobs/{job['id']}/sub-jobs?limit=2")
    rest = await web.get(next_of(paged.headers["link"]))

    assert [sub["parent_id"] for sub in subs] == [job["id"]] * 3
    assert [sub["id"] for sub in paged.json["jobs"] + rest.json["jobs"]] == [sub["id"] for sub in subs]
    assert (await web.get(f"/jobs?parent={job['id']}")).json["jobs"] == subs
    (root,) = (await web.get("/jobs")).json["jobs"]
    assert root["sub_jobs"] == {"total": 3, "by_state": {"ready": 3}}
    assert (await web.get("/jobs/01a20000-0000-7000-8000-000000000000/sub-jobs")).status == 404


def test_a_label_is_cut_at_its_first_mark() -> None:
    found = labels_of(["a:b", "a=b", "a:b=c", "a=b:c", "a:"], most=5)
    assert found == (("a", "b"), ("a", "b"), ("a", "b=c"), ("a", "b:c"), ("a", ""))


# --- act -----------------------------------------------------------------------------------------------------------


async def test_cancel_ends_a_ready_job_and_asks_a_running_one(house: House, web: Web) -> None:
    running = await submit(web)
    claimed = await house.claim()
    ready = await submit(web)
    ended = await web.post(f"/jobs/{ready['id']}/cancel")
    asked = await web.post(f"/jobs/{running['id']}/cancel")
    again = await web.post(f"/jobs/{ready['id']}/cancel")
    await house.finish(claimed)
    late = await web.post(f"/jobs/{running['id']}/cancel")

    assert (ended.status, ended.json["state"]) == (200, "cancelled")
    assert (asked.status, asked.json["state"], asked.json["cancel_requested"]) == (202, "running", True)
    assert again.status == 200
    assert (late.status, late.json["code"], late.json["state"]) == (409, "conflict", "succeeded")


async def test_retry_makes_a_new_job_and_leaves_the_old_one_as_it_is(house: House, web: Web) -> None:
    old = await submit(web)
    early = await web.post(f"/jobs/{old['id']}/retry")
    await house.finish(await house.claim(), ok=False)
    new = await web.post(f"/jobs/{old['id']}/retry")

    assert early.status == 409
    assert (new.status, new.json["retry_of"], new.json["input"]) == (202, old["id"], {"text": "hi"})
    assert new.headers["location"].endswith(new.json["id"])
    assert await house.state_of(old["id"]) is State.FAILED


async def test_release_lets_a_held_job_run_once(house: House, web: Web) -> None:
    job = await submit(web, held=True)
    assert job["state"] == "held"
    first, second = await web.post(f"/jobs/{job['id']}/release"), await web.post(f"/jobs/{job['id']}/release")
    assert (first.status, first.json["state"], second.status) == (202, "ready", 409)
    assert (await house.claim()).job.id == job["id"]


@pytest.mark.parametrize("verb", ["cancel", "retry", "release"])
async def test_an_act_on_an_unknown_job_is_404(web: Web, verb: str) -> None:
    assert (await web.post(f"/jobs/01a20000-0000-7000-8000-000000000000/{verb}")).status == 404
