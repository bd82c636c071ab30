"""Requests that nobody sends by mistake: each is refused with the field it is about, and none is an error of the server's."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from server_house import Crowd, House, Web, open_house

from milepost.image import Image
from milepost.server import openapi
from milepost.wire import rfc3339
from milepost.wire.glance.errors import Refusal
from milepost.wire.glance.images import read_range
from milepost.wire.glance.patch import Change, apply_patch
from milepost.wire.glance.tasks import at_second
from milepost.work.images import ImportInput


@pytest.mark.parametrize(
    "body",
    [
        b'{"kind":"echo","input":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'[{"kind":"echo","input":' + b"[" * 100_000 + b"]" * 100_000 + b"}]",
        b'{"kind":"echo","input":{"text":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}}",
    ],
)
async def test_a_body_nested_beyond_reason_is_400(web: Web, body: bytes) -> None:
    answer = await web.ask("POST", "/jobs", raw=body)
    assert (answer.status, answer.json["code"]) == (400, "invalid_input")
    assert answer.json["path"].startswith("$")


async def test_a_login_nested_beyond_reason_is_400(crowd: Crowd) -> None:
    domain = b'{"domain":' * 5_000 + b"null" + b"}" * 5_000
    body = b'{"auth":{"identity":{"methods":["password"],"password":{"user":{"password":"x","domain":' + domain + b"}}}}}"
    assert (await Web(crowd.house.app).ask("POST", "/v3/auth/tokens", raw=body)).status == 400


@pytest.mark.parametrize("run_at", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"])
async def test_an_instant_beyond_the_calendar_is_refused_and_does_not_spoil_the_list(web: Web, run_at: str) -> None:
    answer = await web.post("/jobs", {"kind": "echo", "run_at": run_at})
    assert (answer.status, answer.json["path"]) == (400, "$.run_at")
    assert (await web.get("/jobs")).status == 200


def test_what_lies_beyond_the_calendar_is_shown_as_its_end() -> None:
    assert rfc3339(10**18) == "9999-12-31T23:59:59.000000Z"
    assert rfc3339(-(10**18)) == "0001-01-01T00:00:00.000000Z"
    assert at_second(10**18) == "9999-12-31T23:59:59Z"


@pytest.mark.parametrize("path", ["/jobs", "/events"])
async def test_more_label_conditions_than_a_job_has_labels_are_400(web: Web, path: str) -> None:
    answer = await web.get(f"{path}?" + "&".join(["label=a:b"] * 2_000))
    assert (answer.status, answer.json["limit"], answer.json["path"]) == (400, "labels_max", "?label")


@pytest.mark.parametrize("value", ["in:a%0Db", "in:a%0Ab"])
async def test_a_line_break_in_an_image_filter_is_400(web: Web, value: str) -> None:
    assert (await web.get(f"/v2/images?name={value}")).status == 400


async def test_a_queue_has_a_name(web: Web) -> None:
    assert (await web.ask("PUT", "/queues/", {"limit": 1})).status == 400


async def test_a_kind_that_is_not_there_is_not_echoed_whole(web: Web) -> None:
    answer = await web.post("/jobs", {"kind": "k" * 100_000})
    assert (answer.status, answer.json["path"]) == (400, "$.kind")
    assert len(answer.body) < 2_000


async def test_a_limit_names_the_field_and_the_entry_of_the_batch() -> None:
    async with open_house(input_bytes_max=64, labels_max=1) as house:
        large = {"kind": "echo", "input": {"text": "x" * 100}}
        many = {"kind": "echo", "labels": {"a": "1", "b": "2"}}
        one = await house.web.post("/jobs", large)
        second = await house.web.post("/jobs", [{"kind": "echo"}, large])
        third = await house.web.post("/jobs", [{"kind": "echo"}, {"kind": "echo"}, many])
    assert [answer.json["path"] for answer in (one, second, third)] == ["$.input", "$[1].input", "$[2].labels"]


@pytest.mark.parametrize(
    "url",
    ["http://", "http://a b/", "http://x.test/" + "a" * 9000, "http://169.254.169.254/", "http://127.0.0.1/", "http://0x7f.1/"],
)
async def test_a_callback_that_could_never_be_sent_is_refused_at_once(crowd: Crowd, url: str) -> None:
    answer = await crowd.house.web_as(crowd.member).post("/jobs", {"kind": "echo", "callback": {"url": url}})
    assert (answer.status, answer.json["path"]) == (400, "$.callback.url")


async def test_invented_methods_are_counted_as_one(house: House, web: Web) -> None:
    for number in range(20):
        assert (await web.ask(f"X{number}", "/jobs")).status == 405
    assert {method for method, _, _ in house.app.state.http.requests} == {"(other)"}


async def test_head_of_a_stream_ends(house: House, web: Web) -> None:
    answer = await web.begin("HEAD", "/events", headers={"accept": "text/event-stream"}).end()
    assert (answer.status, answer.body, house.app.state.slots.open) == (200, b"", 0)


def test_every_answer_that_a_guarded_route_gives_is_in_the_document() -> None:
    document: dict[str, Any] = msgspec.json.decode(openapi.document())
    guarded = [operation for path in document["paths"].values() for operation in path.values() if operation.get("security") != []]
    assert guarded
    for operation in guarded:
        assert {"400", "401", "403", "429", "503"} <= operation["responses"].keys()


@pytest.mark.parametrize("path", ["/jobs", "/v2/tasks", "/v3/auth/tokens"])
async def test_a_body_that_stops_in_the_middle_is_408(path: str) -> None:
    async with open_house(body_s_max=0.05) as house:
        exchange = house.web.begin("POST", path, raw=[b'{"kind":', b""])
        exchange._incoming.get_nowait()
        exchange._incoming.get_nowait()
        exchange._incoming.put_nowait({"type": "http.request", "body": b'{"kind":', "more_body": True})
        assert (await exchange.end()).status == 408


@pytest.mark.parametrize("path", ["/jobs", "/v2/tasks", "/v3/auth/tokens"])
async def test_a_body_that_is_broken_off_is_no_error_of_the_servers(web: Web, path: str) -> None:
    exchange = web.begin("POST", path, raw=[])
    exchange.hang_up()
    assert (await exchange.end()).status == 400


@pytest.mark.parametrize("header", ["bytes=" + "9" * 5000 + "-", "bytes=-" + "9" * 5000])
def test_a_range_of_absurd_numbers_is_416(header: str) -> None:
    with pytest.raises(Refusal) as caught:
        read_range(header, 10)
    assert caught.value.status == 416


@pytest.mark.parametrize(("size", "allowed"), [(65_535, True), (65_536, False)])
def test_a_property_of_an_image_is_bounded(size: int, allowed: bool) -> None:
    image = Image(id="i", disk_format="raw", container_format="bare", created_us=0, updated_us=0)
    changes = [Change("add", "p", "x" * size)]
    if allowed:
        assert len(apply_patch(image, changes, admin=False, now_us=1).properties["p"]) == size
        return
    with pytest.raises(Refusal, match="at most 65535"):
        apply_patch(image, changes, admin=False, now_us=1)


@pytest.mark.parametrize(("size", "allowed"), [(65_535, True), (65_536, False)])
def test_a_property_that_an_import_gives_is_bounded_alike(size: int, allowed: bool) -> None:
    properties = {"disk_format": "raw", "container_format": "bare", "p": "x" * size}
    asked = {"import_from": "http://a.test/x", "import_from_format": "raw", "image_properties": properties}
    if allowed:
        assert len(msgspec.convert(asked, ImportInput).custom_properties()["p"]) == size
        return
    with pytest.raises(msgspec.ValidationError, match=r"more than 65535 characters - at `\$\.image_properties\.p`"):
        msgspec.convert(asked, ImportInput)
