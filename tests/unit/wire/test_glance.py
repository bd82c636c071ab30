"""Glance's wire without a server: what the client reads, and how errors are negotiated."""

from __future__ import annotations

import msgspec
import pytest

from milepost.image import Image
from milepost.job import MOVES, State
from milepost.wire import glance
from milepost.wire.glance.errors import Refusal, encode_error, method_not_allowed, read_error
from milepost.wire.glance.images import encode_image_body, read_image, read_range
from milepost.wire.glance.query import read_params, read_task_query

NOT_FOUND = Refusal(404, "Could not find <it> & so on")


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "text/html; charset=UTF-8"),
        ("text/html", "text/html; charset=UTF-8"),
        ("text/html, application/json", "text/html; charset=UTF-8"),
        ("application/json, */*;q=0.1", "application/json"),
        ("application/json", "application/json"),
        ("application/*", "application/json"),
        ("text/html;q=0.1, application/json", "application/json"),
        ("text/html;q=0, */*", "application/json"),
        ("application/json;q=x", "text/plain; charset=UTF-8"),
        ("text/plain", "text/plain; charset=UTF-8"),
        ("application/xml", "text/plain; charset=UTF-8"),
        ("", "text/plain; charset=UTF-8"),
        (None, "text/plain; charset=UTF-8"),
    ],
)
def test_the_form_of_an_error_follows_accept(accept: str | None, content_type: str) -> None:
    assert encode_error(NOT_FOUND, accept)[0] == content_type


@pytest.mark.parametrize("accept", ["*/*", "application/json", None])
@pytest.mark.parametrize("refusal", [NOT_FOUND, Refusal(405, "No delete.", end=""), method_not_allowed("PUT", "GET")])
def test_the_client_reads_the_sentence_out_of_every_form(refusal: Refusal, accept: str | None) -> None:
    content_type, body = encode_error(refusal, accept)
    assert read_error(body, content_type) == refusal.message.strip()
    assert read_error(body) == refusal.message.strip()


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b'{"error": {"code": 401, "message": "no", "title": "Unauthorized"}}', "application/json", "no"),
        (b'{"error": "no"}', "application/json", '{"error": "no"}'),
        (b"<html><body>502 Bad Gateway</body></html>", "text/html", "502 Bad Gateway"),
        (b"upstream is gone", "text/plain", "upstream is gone"),
        (b"\xff\xfe", "", "��"),
        (b"", "", ""),
        (b"{", "application/json", "{"),
        (b"[1]", "application/json", "[1]"),
    ],
)
def test_the_client_makes_something_of_any_body(body: bytes, content_type: str, message: str) -> None:
    assert read_error(body, content_type) == message


def test_every_state_has_a_status_and_every_status_a_state() -> None:
    assert set(glance.STATUS) == set(MOVES) == set(State)
    assert {glance.STATUS[state] for state in glance.STATE.values()} == set(glance.STATUS.values())


def test_an_unknown_status_is_not_final() -> None:
    view = glance.read_task(b'{"id":"1","type":"import","status":"Pondering"}')
    assert (view.state, view.status, view.done) == (State.RUNNING, "Pondering", False)


def test_an_older_glances_nulls_are_read() -> None:
    view = glance.read_task(b'{"id":"1","type":"import","status":"failure","message":null,"result":null,"owner":null}')
    assert view.error is not None
    assert view.error.message
    assert view.result is None


def test_the_end_of_a_final_task_is_its_last_change() -> None:
    body = b'{"id":"1","type":"import","status":"success","updated_at":"2026-03-04T05:07:00Z","result":{"image_id":"x"}}'
    view = glance.read_task(body)
    assert (view.ended_us, view.result) == (1_772_600_820_000_000, {"image_id": "x"})
    running = glance.read_task(body.replace(b"success", b"processing"))
    assert (running.ended_us, running.result) == (None, None)


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"id":"1"}', b"[]", b'{"versions":[]}'])
def test_what_is_no_task_is_not_taken_for_one(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        glance.read_task(body)
    with pytest.raises(msgspec.DecodeError):
        glance.read_task_page(body)


def test_a_page_has_its_tasks_and_the_next_path() -> None:
    task = '{"id":"1","type":"import","status":"pending"}'
    views, following = glance.read_task_page(f'{{"tasks":[{task}],"next":"/v2/tasks?marker=1"}}'.encode())
    assert ([view.id for view in views], following) == (["1"], "/v2/tasks?marker=1")
    assert glance.read_task_page(b'{"tasks":[]}') == ([], None)


def test_a_create_has_type_and_input() -> None:
    assert glance.encode_create("import", {"import_from": "http://x"}) == b'{"type":"import","input":{"import_from":"http://x"}}'


def test_a_uuid_in_any_spelling_is_a_marker_format() -> None:
    for marker in (
        "11111111222243338444555555555555",
        "{11111111-2222-4333-8444-555555555555}",
        "AAAAAAAA-2222-4333-8444-555555555555",
    ):
        assert read_task_query(f"marker={marker}").marker == marker


def test_a_query_that_is_no_utf8_is_read_all_the_same() -> None:
    assert read_params("x=%ff&y") == {"x": "�", "y": ""}


def test_a_range_of_an_empty_image_cannot_be_sent() -> None:
    for header in ("bytes=0-", "bytes=-1"):
        with pytest.raises(Refusal) as refused:
            read_range(header, 0)
        assert refused.value.status == 416


def test_the_client_reads_what_the_server_shows_of_an_image() -> None:
    image = Image(id="1", name="n", properties={"a": "b"}, tags=["t"], size=3, created_us=1_000_000, updated_us=2_000_000)
    assert read_image(encode_image_body(image)) == image
