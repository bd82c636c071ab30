"""Encode, then decode, is the identity on the native wire and on Keystone's tokens."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from milepost.job import Callback, Event, EventType, Failure, Job, Progress, ProjectId, State, new_job_id
from milepost.wire import from_rfc3339, keystone, native, rfc3339
from milepost.wire.native import JobRequest, Problem

TEXT = st.text(max_size=30)
INSTANT = st.integers(0, 253_402_300_799_999_999)
COUNT = st.integers(0, 2**53)
JSON_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
JSON_TEXT = JSON_VALUE.map(msgspec.json.encode)
STATES = st.sampled_from(list(State))
IDS = st.builds(new_job_id)
FAILURES = st.builds(Failure, code=TEXT, message=TEXT, details=st.none() | st.dictionaries(TEXT, JSON_VALUE, max_size=3))


@st.composite
def jobs(draw: Any) -> Job:
    id = draw(IDS)
    return Job(
        id=id,
        kind=draw(TEXT),
        state=draw(STATES),
        project=ProjectId(draw(TEXT)),
        queue=draw(TEXT),
        priority=draw(st.integers(0, 9)),
        labels=draw(st.dictionaries(TEXT, TEXT, max_size=3)),
        input=draw(JSON_TEXT),
        result=draw(st.none() | JSON_TEXT),
        error=draw(st.none() | FAILURES),
        progress=draw(st.builds(Progress, done=COUNT, total=st.none() | COUNT, unit=TEXT, note=TEXT)),
        attempt=draw(COUNT),
        attempts_max=draw(COUNT),
        crashes=0,
        timeout_s=None,
        deadline_us=None,
        parent_id=draw(st.none() | IDS),
        root_id=id,
        position=0,
        sub_total=draw(COUNT),
        retry_of=draw(st.none() | IDS),
        cancel_requested=draw(st.booleans()),
        callback=None,
        origin={},
        created_us=draw(INSTANT),
        run_at_us=draw(INSTANT),
        started_us=draw(st.none() | INSTANT),
        ended_us=draw(st.none() | INSTANT),
        updated_us=draw(INSTANT),
        expires_us=draw(st.none() | INSTANT),
        version=1,
        fence=0,
        lease_by=None,
    )


@given(jobs(), st.dictionaries(STATES, COUNT, max_size=3), st.booleans())
def test_a_job_comes_back_as_it_went_out(job: Job, by_state: dict[State, int], bodies: bool) -> None:
    shown = native.from_job(job, by_state, bodies=bodies)
    back = native.decode_job(native.encode(shown))
    assert msgspec.json.decode(native.encode(back)) == msgspec.json.decode(native.encode(shown))
    assert native.encode(back) == native.encode(shown)
    view = native.to_view(back)
    assert (view.id, view.kind, view.state, view.project) == (job.id, job.kind, job.state, job.project)
    assert (view.progress, view.error, view.parent_id) == (job.progress, job.error, job.parent_id)
    instants = (view.created_us, view.started_us, view.ended_us, view.updated_us)
    assert instants == (job.created_us, job.started_us, job.ended_us, job.updated_us)
    if bodies and job.result is not None:
        assert view.result == msgspec.json.decode(job.result)


@given(
    st.builds(
        Event,
        id=COUNT,
        job_id=IDS,
        root_id=IDS,
        project=TEXT.map(ProjectId),
        seq=COUNT,
        type=st.sampled_from(list(EventType)),
        state=STATES,
        at_us=INSTANT,
        data=st.none() | JSON_VALUE.filter(lambda value: value is not None).map(msgspec.json.encode),
    )
)
def test_an_event_comes_back_as_it_went_out(event: Event) -> None:
    assert native.to_event(native.decode_event(native.encode(native.from_event(event))), event.project) == event


@given(
    st.builds(
        JobRequest,
        kind=TEXT,
        input=JSON_TEXT.map(msgspec.Raw),
        queue=st.none() | TEXT,
        priority=st.none() | COUNT,
        labels=st.dictionaries(TEXT, TEXT, max_size=3),
        held=st.booleans(),
        run_at=st.none() | TEXT,
        attempts_max=st.none() | COUNT,
        timeout_s=st.none() | st.floats(0, 1e9),
        callback=st.none() | st.builds(Callback, url=TEXT),
        idempotency_key=st.none() | TEXT,
    )
)
def test_a_request_comes_back_as_it_went_out(request: JobRequest) -> None:
    text = native.encode(request)
    assert native.encode(native.decode_request(text)) == text
    assert native.encode(native.decode_batch(b"[" + text + b"," + text + b"]")) == b"[" + text + b"," + text + b"]"


@given(
    st.builds(
        Problem, title=TEXT, status=st.integers(400, 599), detail=TEXT, code=TEXT, path=st.none() | TEXT, hint=st.none() | TEXT
    )
)
def test_a_problem_comes_back_as_it_went_out(problem: Problem) -> None:
    assert native.decode_problem(native.encode(problem)) == problem


@given(INSTANT)
def test_an_instant_comes_back_to_the_microsecond(at_us: int) -> None:
    assert from_rfc3339(rfc3339(at_us)) == at_us


MEMBERS = st.builds(keystone.Member, id=TEXT, name=TEXT)


@given(MEMBERS, st.none() | MEMBERS, st.lists(TEXT, max_size=3), INSTANT, INSTANT, st.frozensets(TEXT, max_size=3))
def test_a_token_comes_back_as_it_went_out(
    user: keystone.Member,
    project: keystone.Member | None,
    methods: list[str],
    issued_us: int,
    expires_us: int,
    roles: frozenset[str],
) -> None:
    text = keystone.token_bytes(
        user=user, methods=methods, audit_ids=["a"], issued_us=issued_us, expires_us=expires_us, project=project, role_names=roles
    )
    token = keystone.decode_token(text).token
    assert (token.user, token.project, token.methods) == (user, project, methods)
    assert (from_rfc3339(token.issued_at), from_rfc3339(token.expires_at)) == (issued_us, expires_us)
    assert {role.name for role in token.roles or []} == (roles if project is not None else frozenset())
    assert keystone.encode(keystone.decode_token(text)) == text


@given(IDS)
def test_ids_sort_as_they_were_made(first: str) -> None:
    assert first < new_job_id()
