"""Milepost's own wire: the native job as JSON.

Source: this project's `docs/reference/http.md` and the OpenAPI document made from these structs.  Instants are RFC 3339 in UTC
with six digits, ids canonical UUID text, errors RFC 9457 problems.
"""

from __future__ import annotations

import msgspec

from milepost.job import Callback, Event, EventType, Failure, Job, JobId, Progress, ProjectId, State
from milepost.wire import JobView, from_rfc3339, rfc3339


class SubJobs(msgspec.Struct, frozen=True):
    """How many sub-jobs there are, by state."""

    total: int = 0
    by_state: dict[str, int] = {}


class NativeJob(msgspec.Struct, kw_only=True):
    """A job.  `input` and `result` are left out of listings unless asked for with `view=full`."""

    id: str
    kind: str
    state: State
    project: str
    queue: str
    priority: int
    labels: dict[str, str]
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: Failure | None = None
    progress: Progress
    attempt: int
    attempts_max: int
    parent_id: str | None = None
    sub_jobs: SubJobs
    retry_of: str | None = None
    cancel_requested: bool = False
    created_at: str
    started_at: str | None = None
    ended_at: str | None = None
    updated_at: str
    expires_at: str | None = None
    run_at: str


class JobRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What `POST /jobs` takes.  What is left out, the kind decides."""

    kind: str
    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    queue: str | None = None
    priority: int | None = None
    labels: dict[str, str] = {}
    held: bool = False
    run_at: str | None = None  # RFC 3339
    attempts_max: int | None = None
    timeout_s: float | None = None
    deadline_s: float | None = None  # from now
    callback: Callback | None = None
    idempotency_key: str | None = None  # of one entry of a batch; the header is for a single submit


class JobPage(msgspec.Struct):
    """A page of jobs; the next one is in the `Link` header."""

    jobs: list[NativeJob]


class NativeEvent(msgspec.Struct, kw_only=True):
    """One entry of a job's history; `seq` has no gaps within a job, `id` grows over all jobs."""

    id: int
    job_id: str
    root_id: str
    seq: int
    type: EventType
    state: State
    at: str
    data: msgspec.Raw | None = None


class Problem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An error, as RFC 9457 has it, with our stable `code`, the `path` of the field and a `hint`."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    path: str | None = None
    hint: str | None = None
    job_id: str | None = None
    state: str | None = None
    request_id: str | None = None
    retry_after_s: float | None = None
    limit: str | None = None
    allowed: float | None = None
    seen: float | None = None


encode = msgspec.json.Encoder().encode
decode_job = msgspec.json.Decoder(NativeJob).decode
decode_page = msgspec.json.Decoder(JobPage).decode
decode_request = msgspec.json.Decoder(JobRequest).decode
decode_batch = msgspec.json.Decoder(list[JobRequest]).decode
decode_event = msgspec.json.Decoder(NativeEvent).decode
decode_problem = msgspec.json.Decoder(Problem).decode

NULL = msgspec.Raw(b"null")


def from_job(job: Job, sub_by_state: dict[State, int] | None = None, *, bodies: bool = True) -> NativeJob:
    """The job as it goes out; `sub_by_state` counts its sub-jobs."""
    native = NativeJob(
        id=job.id,
        kind=job.kind,
        state=job.state,
        project=job.project,
        queue=job.queue,
        priority=job.priority,
        labels=job.labels,
        error=job.error,
        progress=job.progress,
        attempt=job.attempt,
        attempts_max=job.attempts_max,
        parent_id=job.parent_id,
        sub_jobs=SubJobs(job.sub_total, {str(state): count for state, count in (sub_by_state or {}).items()}),
        retry_of=job.retry_of,
        cancel_requested=job.cancel_requested,
        created_at=rfc3339(job.created_us),  # type: ignore[arg-type]
        started_at=rfc3339(job.started_us),
        ended_at=rfc3339(job.ended_us),
        updated_at=rfc3339(job.updated_us),  # type: ignore[arg-type]
        expires_at=rfc3339(job.expires_us),
        run_at=rfc3339(job.run_at_us),  # type: ignore[arg-type]
    )
    if bodies:
        native.input = msgspec.Raw(job.input) if job.input is not None else NULL
        native.result = msgspec.Raw(job.result) if job.result is not None else NULL
    return native


def to_view(native: NativeJob) -> JobView:
    """The job as the client shows it."""
    return JobView(
        id=native.id,
        kind=native.kind,
        state=native.state,
        status=str(native.state),
        project=native.project,
        progress=native.progress,
        result=None if native.result is msgspec.UNSET else msgspec.json.decode(native.result),
        error=native.error,
        parent_id=native.parent_id,
        sub_counts=native.sub_jobs.by_state,
        created_us=from_rfc3339(native.created_at),
        started_us=from_rfc3339(native.started_at),
        ended_us=from_rfc3339(native.ended_at),
        updated_us=from_rfc3339(native.updated_at),
        raw=msgspec.to_builtins(native),
    )


def from_event(event: Event) -> NativeEvent:
    return NativeEvent(
        id=event.id,
        job_id=event.job_id,
        root_id=event.root_id,
        seq=event.seq,
        type=event.type,
        state=event.state,
        at=rfc3339(event.at_us),  # type: ignore[arg-type]
        data=None if event.data is None else msgspec.Raw(event.data),
    )


def to_event(native: NativeEvent, project: str) -> Event:
    at_us = from_rfc3339(native.at)
    assert at_us is not None
    return Event(
        native.id,
        JobId(native.job_id),
        JobId(native.root_id),
        ProjectId(project),
        native.seq,
        native.type,
        native.state,
        at_us,
        None if native.data is None else bytes(native.data),
    )


def view_from_bytes(body: bytes) -> JobView:
    """Errors: msgspec.ValidationError when it is no native job."""
    return to_view(decode_job(body))
