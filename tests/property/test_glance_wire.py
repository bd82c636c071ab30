"""Glance's wire over all jobs, queries and ranges: what is encoded is decoded again, and links lead where they came from."""

from __future__ import annotations

from urllib.parse import urlencode

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from milepost.image import Image, ImageStatus, Visibility
from milepost.job import FINAL, Failure, Job, JobId, Progress, ProjectId, State
from milepost.wire import glance
from milepost.wire.glance.errors import Refusal
from milepost.wire.glance.images import (
    SORT_KEYS,
    Viewer,
    encode_image_body,
    encode_image_page,
    may_see,
    read_image,
    read_image_query,
    read_range,
    select_images,
)
from milepost.wire.glance.query import read_create, read_task_query

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
INSTANTS = st.integers(0, 4_000_000_000_000_000)
OBJECTS = st.dictionaries(TEXT, st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), TEXT), max_size=4)


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    state = draw(st.sampled_from(State))
    ended_us = draw(INSTANTS) if state in FINAL else None
    id_ = JobId(str(draw(st.uuids())))
    return Job(
        id=id_,
        kind=draw(st.sampled_from(["import", "echo"])),
        state=state,
        project=ProjectId(draw(TEXT)),
        queue="default",
        priority=5,
        labels={},
        input=msgspec.json.encode(draw(OBJECTS)),
        result=msgspec.json.encode(draw(OBJECTS)) if state is State.SUCCEEDED else None,
        error=Failure("x", draw(TEXT)) if state in (State.FAILED, State.CANCELLED) else None,
        progress=Progress(note=draw(TEXT)),
        attempt=1,
        attempts_max=1,
        crashes=0,
        timeout_s=None,
        deadline_us=None,
        parent_id=None,
        root_id=id_,
        position=0,
        sub_total=0,
        retry_of=None,
        cancel_requested=False,
        callback=None,
        origin=draw(st.dictionaries(st.sampled_from(["request_id", "user_id"]), TEXT)),
        created_us=draw(INSTANTS),
        run_at_us=0,
        started_us=None,
        ended_us=ended_us,
        updated_us=draw(INSTANTS) if ended_us is None else ended_us,
        expires_us=None if ended_us is None else ended_us + 1,
        version=1,
        fence=1,
        lease_by=None,
    )


@given(jobs())
def test_a_task_is_read_as_the_job_that_was_written(job: Job) -> None:
    view = glance.read_task(glance.encode_task(job))
    same = {State.HELD: State.READY, State.WAITING: State.RUNNING, State.CANCELLED: State.FAILED}
    assert (view.id, view.kind, view.project) == (job.id, job.kind, job.project)
    assert (view.state, view.status) == (same.get(job.state, job.state), glance.STATUS[job.state])
    assert view.done == (job.state in FINAL)
    assert view.created_us == job.created_us // 1_000_000 * 1_000_000
    assert view.ended_us == (None if job.ended_us is None else job.ended_us // 1_000_000 * 1_000_000)
    assert view.result == (msgspec.json.decode(job.result) if job.result else None)
    assert (view.error is not None) == (job.state in (State.FAILED, State.CANCELLED))
    if view.error is not None and job.error is not None and job.error.message:
        assert view.error.message == job.error.message
    if job.state is State.RUNNING and job.progress.note:
        assert view.progress == Progress(note=job.progress.note)


@given(jobs())
def test_a_task_has_no_null_where_clients_need_text(job: Job) -> None:
    body = msgspec.json.decode(glance.encode_task(job))
    required = ["id", "input", "type", "status", "owner", "message", "result", "created_at", "updated_at", "self", "schema"]
    assert list(body)[: len(required)] == required
    assert all(isinstance(body[key], str) for key in body if key not in ("input", "result"))
    assert all(body[key] for key in list(body)[len(required) :]), "the optional keys are there only with a value"
    assert ("expires_at" in body) == (job.state in FINAL)


@given(st.lists(jobs(), max_size=4), st.integers(1, 4), st.dictionaries(st.sampled_from("abc"), TEXT))
def test_next_leads_to_the_page_behind_the_last_task(page: list[Job], limit: int, extra: dict[str, str]) -> None:
    page = page[:limit]
    asked = read_task_query(urlencode({**extra, "limit": limit}))
    views, following = glance.read_task_page(glance.encode_task_page(page, asked))
    assert [view.id for view in views] == [job.id for job in page]
    assert (following is not None) == (len(page) == limit)
    if following is not None:
        again = read_task_query(following.partition("?")[2])
        assert (again.marker, again.params) == (page[-1].id, asked.params)
        first = msgspec.json.decode(glance.encode_task_page([], again))["first"]
        assert first == msgspec.json.decode(glance.encode_task_page(page, asked))["first"]


@given(st.sampled_from(["api_image_import", "location_import", "own"]), st.one_of(st.none(), OBJECTS))
def test_a_create_is_read_as_it_was_written(kind: str, input: object) -> None:
    created = read_create(glance.encode_create(kind, input), types=["own"])
    assert (created.type, msgspec.json.decode(created.input)) == (kind, input)


@given(st.binary(max_size=60))
def test_any_body_is_a_create_or_a_400(body: bytes) -> None:
    try:
        read_create(body)
    except Refusal as refusal:
        assert refusal.status == 400


@given(st.text(max_size=60))
def test_any_query_is_read_or_a_400(query: str) -> None:
    for read in (read_task_query, read_image_query):
        try:
            read(query)
        except Refusal as refusal:
            assert refusal.status == 400


@given(st.integers(0, 30), st.one_of(st.none(), st.integers(0, 40)), st.one_of(st.none(), st.integers(0, 40)))
def test_a_range_gives_the_bytes_that_rfc_7233_gives(size: int, first: int | None, last: int | None) -> None:
    data = bytes(range(size))
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    try:
        asked = read_range(header, size)
    except Refusal as refusal:
        assert refusal.status == 416
        nothing = (
            not data[max(size - (last or 0), 0) :] if first is None else first >= size or (last is not None and last < first)
        )
        assert nothing
        return
    assert asked is not None
    start, length = asked
    expected = data[max(size - (last or 0), 0) :] if first is None else data[first : None if last is None else last + 1]
    assert length > 0
    assert data[start : start + length] == expected


@st.composite
def images(draw: st.DrawFn) -> list[Image]:
    return [
        Image(
            id=f"{number:02d}",
            name=draw(st.one_of(st.none(), st.sampled_from("ab"))),
            size=draw(st.one_of(st.none(), st.integers(0, 2))),
            status=draw(st.sampled_from(ImageStatus)),
            visibility=draw(st.sampled_from(Visibility)),
            owner=draw(st.sampled_from(["me", "you", None])),
            disk_format=draw(st.sampled_from(["raw", "qcow2", None])),
            properties=draw(st.dictionaries(st.sampled_from(["x", "y"]), TEXT)),
            created_us=draw(st.integers(0, 2)) * 1_000_000,
            updated_us=draw(st.integers(0, 2)) * 1_000_000,
        )
        for number in range(draw(st.integers(0, 8)))
    ]


SORTS = st.lists(st.tuples(st.sampled_from(SORT_KEYS), st.sampled_from(["asc", "desc"])), min_size=1, max_size=3)


@given(images(), SORTS, st.integers(1, 4), st.booleans())
def test_paging_gives_each_visible_image_once(stored: list[Image], sort: list[tuple[str, str]], limit: int, admin: bool) -> None:
    viewer = Viewer("me", admin)
    query = "visibility=all&limit=" + str(limit) + "&sort=" + ",".join(f"{key}:{way}" for key, way in sort)
    seen: list[str] = []
    while query:
        asked = read_image_query(query)
        page = select_images(stored, asked, viewer)
        seen += [image.id for image in page]
        query = msgspec.json.decode(encode_image_page(page, asked)).get("next", "").partition("?")[2]
    assert len(seen) == len(set(seen))
    assert set(seen) == {image.id for image in stored if may_see(image, viewer)}


@given(images())
def test_an_image_is_read_as_it_was_written(stored: list[Image]) -> None:
    for image in stored:
        assert read_image(encode_image_body(image)) == image
