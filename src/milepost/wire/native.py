"""Milepost's own wire: the native job as JSON.

Source: this project's `docs/reference/http.md` and the OpenAPI document made from these structs.  Instants are RFC 3339 in UTC
with six digits, ids canonical UUID text, errors RFC 9457 problems.
"""

from __future__ import annotations

from typing import Annotated, Any

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
    # A union with None would not be decoded as raw text.
    data: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))


class Missed(msgspec.Struct, frozen=True, kw_only=True):
    """Events with ids within these bounds went with jobs that have expired, before they were sent."""

    from_id: int
    to_id: int


class EventPage(msgspec.Struct, omit_defaults=True):
    """A page of events, oldest first; the next one is in the `Link` header.  `missed`: some behind `after` are gone."""

    events: list[NativeEvent]
    missed: Missed | None = None


class NativeKind(msgspec.Struct, kw_only=True):
    """What the server can run: a kind, its defaults, and the JSON Schemas of its input and result."""

    name: str
    description: str
    queue: str
    priority: int
    attempts: int
    timeout_s: float | None
    style: str  # async, thread or isolated
    input_schema: dict[str, Any] | None
    result_schema: dict[str, Any] | None


class KindList(msgspec.Struct):
    kinds: list[NativeKind]


class QueueCounts(msgspec.Struct, frozen=True):
    """Open jobs of a queue by what they wait for; `oldest_ready_at` is since when the first due job waits."""

    held: int
    ready: int
    scheduled: int
    running: int
    waiting: int
    oldest_ready_at: str | None = None


class NativeQueue(msgspec.Struct, kw_only=True):
    """A named lane.  `limit` is concurrent jobs a process, null for the server's default; admins see `jobs`."""

    name: str
    limit: int | None = None
    paused: bool = False
    jobs: QueueCounts | None = None


class QueueList(msgspec.Struct):
    queues: list[NativeQueue]


class QueueRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What `PUT /queues/{name}` takes: the whole setting of the queue."""

    limit: Annotated[int, msgspec.Meta(ge=0, le=100_000)] | None = None
    paused: bool = False


class NativeDelivery(msgspec.Struct, kw_only=True):
    """One event for one receiver, with what its last attempt came to.

    `job_id` is null for `missed` and `ping`; `subscription_id` for the callback of a job.  `detail` is the event, where one is
    kept, or the ids of those that are missing.
    """

    id: str
    job_id: str | None = None
    subscription_id: str | None = None
    url: str
    event: str
    detail: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    state: str  # pending, delivered or given_up
    attempt: int
    next_at: str | None = None  # of the next attempt, while pending
    created_at: str
    ended_at: str | None = None
    last_status: int | None = None
    last_error: str | None = None


class DeliveryList(msgspec.Struct):
    deliveries: list[NativeDelivery]


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
decode_events = msgspec.json.Decoder(EventPage).decode
decode_kinds = msgspec.json.Decoder(KindList).decode
decode_queues = msgspec.json.Decoder(QueueList).decode
decode_queue = msgspec.json.Decoder(NativeQueue).decode
decode_queue_request = msgspec.json.Decoder(QueueRequest).decode
decode_delivery = msgspec.json.Decoder(NativeDelivery).decode
decode_deliveries = msgspec.json.Decoder(DeliveryList).decode
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
        raw=msgspec.json.decode(encode(native)),  # to_builtins does not take Raw fields
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
        data=NULL if event.data is None else msgspec.Raw(event.data),
    )


def sse(event: Event) -> bytes:
    """One event as a stream of server-sent events has it."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.id, event.type.value.encode(), encode(from_event(event)))


class NativeMissed(msgspec.Struct, kw_only=True):
    """The `missed` event of a stream."""

    type: str
    from_id: int
    to_id: int
    read_again: str

    @property
    def missed(self) -> Missed:
        return Missed(from_id=self.from_id, to_id=self.to_id)


READ_AGAIN = "list /jobs again, and read /jobs/{id} of each that you wait for: 410 has the final state of one that has expired"
decode_missed = msgspec.json.Decoder(NativeMissed).decode


def sse_missed(at_id: int, from_id: int, to_id: int) -> bytes:
    """What a stream says in place of events that are gone; `at_id` is where it was."""
    told = NativeMissed(type="missed", from_id=from_id, to_id=to_id, read_again=READ_AGAIN)
    return b"id: %d\nevent: missed\ndata: %s\n\n" % (at_id, encode(told))


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
        None if native.data == NULL else bytes(native.data),
    )


def view_from_bytes(body: bytes) -> JobView:
    """Errors: msgspec.ValidationError when it is no native job."""
    return to_view(decode_job(body))
