"""Huawei's wire over all values: what is encoded is decoded again, and whatever a cloud answers is a job or a ValueError."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from milepost.job import FINAL, Failure, Job, JobId, Progress, ProjectId, State
from milepost.wire import huawei
from milepost.wire.huawei.jobs import EVS_KINDS, PARENTS, STATE, Entities, HuaweiJob, to_view
from milepost.wire.huawei.other import SERVICES, read_view
from milepost.wire.huawei.times import at_ms, read_time

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
MAYBE = st.none() | TEXT
SIZES = st.none() | st.integers(0, 2**53)
INSTANTS = st.integers(0, 253_402_300_799_999_999)
STATUS = st.sampled_from([*STATE, "WAITING_EXECUTE", "LISTENING"]) | TEXT
NAMED = [field.name for field in msgspec.structs.fields(Entities) if field.type == str | None]


@st.composite
def entities(draw: st.DrawFn, subs: st.SearchStrategy[HuaweiJob] | None) -> Entities:
    named = draw(st.dictionaries(st.sampled_from(NAMED), TEXT, max_size=4))
    if subs is not None:
        named |= {"sub_jobs": draw(st.none() | st.lists(subs, max_size=4)), "sub_jobs_total": draw(SIZES)}
    return Entities(size=draw(SIZES), **named)


def huawei_jobs(subs: st.SearchStrategy[HuaweiJob] | None) -> st.SearchStrategy[HuaweiJob]:
    times = st.just("") | INSTANTS.map(at_ms)
    return st.builds(
        HuaweiJob,
        status=STATUS,
        entities=entities(subs),
        job_id=st.just("") | TEXT,
        job_type=st.just("") | TEXT,
        begin_time=times,
        end_time=times,
        error_code=MAYBE,
        fail_reason=MAYBE,
    )


ANY_JOB = huawei_jobs(huawei_jobs(None))


@given(ANY_JOB)
def test_what_is_encoded_is_decoded_again(job: HuaweiJob) -> None:
    assert huawei.decode(huawei.encode(job)) == job


@given(ANY_JOB)
def test_every_job_has_a_view(job: HuaweiJob) -> None:
    view = to_view(job)
    assert view.done == (job.status.upper() in ("SUCCESS", "FAIL"))
    assert (view.error is not None) == (view.state in (State.FAILED, State.CANCELLED))
    assert len(view.sub_jobs) == len(job.entities.sub_jobs or ())
    assert sum(view.sub_counts.values()) >= len(view.sub_jobs)


@given(INSTANTS)
def test_an_instant_is_read_as_it_was_written(at_us: int) -> None:
    assert read_time(at_ms(at_us)) == at_us // 1000 * 1000


@st.composite
def jobs(draw: st.DrawFn, kinds: list[str], root: bool = True) -> Job:
    state = draw(st.sampled_from(State))
    id_ = JobId(str(draw(st.uuids())))
    input = draw(st.dictionaries(st.sampled_from([*NAMED, "size", "volume", "nics"]), MAYBE | st.integers(0, 99), max_size=4))
    result = draw(st.none() | st.dictionaries(st.sampled_from([*NAMED, "size"]), MAYBE | st.integers(0, 99), max_size=4))
    return Job(
        id=id_,
        kind=draw(st.sampled_from(kinds)),
        state=state,
        project=ProjectId("p"),
        queue="default",
        priority=5,
        labels={},
        input=msgspec.json.encode(input),
        result=None if result is None else msgspec.json.encode(result),
        error=Failure(draw(TEXT), draw(TEXT)) if state in (State.FAILED, State.CANCELLED) else None,
        progress=Progress(),
        attempt=1,
        attempts_max=1,
        crashes=0,
        timeout_s=None,
        deadline_us=None,
        parent_id=None,
        root_id=id_,
        position=0,
        sub_total=draw(st.integers(0, 5)) if root else 0,
        retry_of=None,
        cancel_requested=False,
        callback=None,
        origin={},
        created_us=draw(INSTANTS),
        run_at_us=0,
        started_us=None,
        ended_us=draw(INSTANTS) if state in FINAL else None,
        updated_us=0,
        expires_us=None,
        version=1,
        fence=1,
        lease_by=None,
    )


KINDS = sorted(EVS_KINDS | PARENTS | {"createSingleServer", "attachVolume", "echo", "mine"})


@given(jobs(KINDS), st.lists(jobs(["createVolume", "createSingleServer", "part"], root=False), max_size=4))
def test_a_job_is_read_as_it_was_shown(job: Job, subs: list[Job]) -> None:
    body = huawei.encode_job(job, subs)
    read = huawei.decode(body)
    assert huawei.encode(read) == body
    view = to_view(read)
    assert huawei.read_job_id(view.id) == job.id
    torn = job.state is State.SUCCEEDED and any(sub.state not in FINAL for sub in subs)
    expected = State.RUNNING if job.state is State.WAITING or torn else job.state
    assert view.state is expected
    assert view.kind == job.kind
    assert view.ended_us == (job.ended_us // 1000 * 1000 if job.ended_us is not None and not torn else None)
    waiting = {State.WAITING: State.RUNNING}
    assert [sub.state for sub in view.sub_jobs] == [waiting.get(sub.state, sub.state) for sub in subs]


@given(jobs(KINDS), st.lists(jobs(["createVolume", "createSingleServer", "part"], root=False), max_size=4))
def test_every_shown_job_keeps_the_form_that_go_clients_need(job: Job, subs: list[Job]) -> None:
    found = msgspec.json.decode(huawei.encode_job(job, subs))
    for one in (found, *found["entities"].get("sub_jobs", ())):
        assert isinstance(one["begin_time"], str)
        assert isinstance(one["end_time"], str)
        assert all(one[key] is None or isinstance(one[key], str) for key in ("error_code", "fail_reason"))
        assert one["status"] in STATE
        assert (one["error_code"] is None) == (one["status"] != "FAIL")
        assert isinstance(one["entities"].get("size", 0), int)
    if "sub_jobs" in found["entities"]:
        assert isinstance(found["entities"]["sub_jobs"], list)
        assert ("sub_jobs_total" in found["entities"]) == (job.kind not in EVS_KINDS)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "status",
        "entities",
        "job_id",
        "job_type",
        "begin_time",
        "end_time",
        "error_code",
        "fail_reason",
        "error",
        "code",
        "message",
        "sub_jobs",
        "sub_jobs_total",
        "size",
        "volume_id",
        "job",
        "id",
        "name",
        "process",
        "progress",
        "created",
        "ended",
        "metadata",
        "spec",
        "subJobs",
        "phase",
        "uid",
        "instance",
        "reason",
        "creationTimestamp",
    ]
)
WORDS = st.sampled_from([*STATE, "Running", "Completed", "Failed", "Success", "60%", "2026-03-04T05:06:07Z"])
ODD: st.SearchStrategy[Any] = st.recursive(
    JSON | WORDS, lambda inner: st.dictionaries(KEYS, inner, max_size=6) | st.lists(inner, max_size=3), max_leaves=20
)


@given(st.sampled_from(sorted(SERVICES)), st.dictionaries(KEYS, ODD, max_size=8) | ODD)
def test_whatever_is_answered_is_a_job_or_a_value_error(service: str, value: Any) -> None:
    try:
        body = msgspec.json.encode(value)
        view = read_view(service, body)
    except ValueError:
        return
    assert view.status
    msgspec.json.encode(view)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_job_or_a_value_error(body: bytes) -> None:
    for service in ("ecs", "rds", "cce"):
        try:
            read_view(service, body)
        except ValueError:
            continue
