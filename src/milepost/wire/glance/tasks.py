"""Image tasks: jobs as Glance shows them.

Source: openstack/glance glance/api/v2/tasks.py (ResponseSerializer, RequestDeserializer), glance/domain/__init__.py (Task);
openstack/tempest tempest/lib/services/image/v2/tasks_client.py; gophercloud/gophercloud openstack/image/v2/tasks.
Instants have whole seconds and a Z, `message` is never null, `first`, `next`, `self` and `schema` are paths.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from milepost.job import FINAL, Failure, Job, Progress, State
from milepost.wire import FIRST_S, LAST_S, JobView, from_rfc3339
from milepost.wire.glance.query import TaskQuery, page_links

STATUS = {
    State.HELD: "pending",
    State.READY: "pending",
    State.RUNNING: "processing",
    State.WAITING: "processing",
    State.SUCCEEDED: "success",
    State.FAILED: "failure",
    State.CANCELLED: "failure",  # this wire has no cancelled: told apart by its message
}
STATE = {"pending": State.READY, "processing": State.RUNNING, "success": State.SUCCEEDED, "failure": State.FAILED}
_STATES_OF = {status: tuple(state for state in State if STATUS[state] == status) for status in STATE}

NULL = msgspec.Raw(b"null")


class Stub(msgspec.Struct, kw_only=True):
    """A task inside a list, keys in Glance's order."""

    id: str
    type: str
    status: str
    owner: str
    created_at: str
    updated_at: str
    self: str
    schema: str = "/v2/schemas/task"
    expires_at: str | msgspec.UnsetType = msgspec.UNSET


class Task(msgspec.Struct, kw_only=True):
    """One task whole, keys in Glance's order; the last four only when there is something to say."""

    id: str
    input: msgspec.Raw
    type: str
    status: str
    owner: str
    message: str
    result: msgspec.Raw
    created_at: str
    updated_at: str
    self: str
    schema: str = "/v2/schemas/task"
    image_id: str | msgspec.UnsetType = msgspec.UNSET
    request_id: str | msgspec.UnsetType = msgspec.UNSET
    user_id: str | msgspec.UnsetType = msgspec.UNSET
    expires_at: str | msgspec.UnsetType = msgspec.UNSET


class TaskPage(msgspec.Struct, kw_only=True):
    """A page of a list."""

    tasks: list[Stub]
    first: str
    schema: str = "/v2/schemas/tasks"
    next: str | msgspec.UnsetType = msgspec.UNSET


class _Read(msgspec.Struct, kw_only=True):
    """A task or stub of any Glance release, as leniently as its clients read it."""

    id: str
    type: str
    status: str
    owner: str | None = None
    message: str | None = None
    input: Any = None
    result: Any = None
    created_at: str | None = None
    updated_at: str | None = None


class _ReadPage(msgspec.Struct):
    tasks: list[msgspec.Raw]
    next: str | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Read).decode
_decode_page = msgspec.json.Decoder(_ReadPage).decode


# --- the server's side ----------------------------------------------------------------------------------------------


def encode_task(job: Job) -> bytes:
    """The body of create and show."""
    return _encode(
        Task(
            id=job.id,
            input=_object(job.input, "input"),
            type=job.kind,
            status=STATUS[job.state],
            owner=job.project,
            message=message_of(job),
            result=_object(job.result, "result") if job.state is State.SUCCEEDED else NULL,
            created_at=at_second(job.created_us),
            updated_at=at_second(job.updated_us),
            self=f"/v2/tasks/{job.id}",
            image_id=job.origin.get("image_id") or msgspec.UNSET,
            request_id=job.origin.get("request_id") or msgspec.UNSET,
            user_id=job.origin.get("user_id") or msgspec.UNSET,
            expires_at=_expires_at(job),
        )
    )


def encode_task_page(jobs: list[Job], query: TaskQuery) -> bytes:
    """The body of list.  Rules: `next` only when the page is full, also when nothing follows it."""
    last_id = jobs[-1].id if jobs and len(jobs) == query.limit else None
    first, following = page_links("/v2/tasks", list(query.params.items()), last_id)
    return _encode(TaskPage(tasks=[_stub(job) for job in jobs], first=first, next=following or msgspec.UNSET))


def encode_image_tasks(jobs: list[Job], image_id: str) -> bytes:
    """The body of `GET /v2/images/{id}/tasks`: raw records, whose instants have microseconds and no Z."""
    return _encode({"tasks": [_record(job, image_id) for job in jobs]})


def states_of(status: str | None) -> tuple[State, ...] | None:
    """The states that a status filter means; None for no filter, none of them for the empty word."""
    return None if status is None else _STATES_OF.get(status, ())


def message_of(job: Job) -> str:
    """Why it failed; else what a running attempt says of itself; else empty."""
    if job.state in (State.FAILED, State.CANCELLED):
        return job.error.message if job.error else ""
    return job.progress.note if job.state is State.RUNNING else ""


def at_second(at_us: int) -> str:
    """`2026-03-04T05:06:07Z`, cut, not rounded."""
    return f"{_whole_second(at_us)}Z"


def _whole_second(at_us: int) -> str:
    at_s = min(max(at_us // 1_000_000, FIRST_S), LAST_S)  # an expiry may lie beyond the calendar
    return datetime.fromtimestamp(at_s, UTC).isoformat()[:19]


def _at_micros(at_us: int) -> str:
    return f"{_whole_second(at_us)}.{at_us % 1_000_000:06d}"


def _expires_at(job: Job) -> str | msgspec.UnsetType:
    return at_second(job.expires_us) if job.expires_us is not None and job.state in FINAL else msgspec.UNSET


def _object(raw: bytes | None, name: str) -> msgspec.Raw:
    """An object or null, as every Glance client demands; another value goes under its own name."""
    text = (raw or b"null").strip()
    if text == b"null" or text.startswith(b"{"):
        return msgspec.Raw(text)
    return msgspec.Raw(b'{"' + name.encode() + b'":' + text + b"}")


def _stub(job: Job) -> Stub:
    return Stub(
        id=job.id,
        type=job.kind,
        status=STATUS[job.state],
        owner=job.project,
        created_at=at_second(job.created_us),
        updated_at=at_second(job.updated_us),
        self=f"/v2/tasks/{job.id}",
        expires_at=_expires_at(job),
    )


def _record(job: Job, image_id: str) -> dict[str, Any]:
    ended = job.state in FINAL
    return {
        "id": job.id,
        "type": job.kind,
        "status": STATUS[job.state],
        "owner": job.project,
        "expires_at": _at_micros(job.expires_us) if ended and job.expires_us is not None else None,
        "created_at": _at_micros(job.created_us),
        "updated_at": _at_micros(job.updated_us),
        "deleted_at": None,
        "deleted": False,
        "image_id": image_id,
        "request_id": job.origin.get("request_id"),
        "user_id": job.origin.get("user_id"),
        "input": _object(job.input, "input"),
        "result": _object(job.result, "result") if job.state is State.SUCCEEDED else None,
        "message": message_of(job),
    }


# --- the client's side ----------------------------------------------------------------------------------------------


def encode_create(kind: str, input: Any) -> bytes:
    """The body of `POST /v2/tasks`."""
    return _encode({"type": kind, "input": input})


def read_task(body: bytes) -> JobView:
    """A task or stub as the client shows it.  Errors: msgspec.DecodeError, ValueError when it is no task.

    Rules: a status of a later release is not final: the job shows as running, with the cloud's word in `status`.
    """
    read = _decode(body)
    word = read.status.lower()
    state = STATE.get(word, State.RUNNING)
    updated_us = from_rfc3339(read.updated_at)
    message = read.message or ""
    return JobView(
        id=read.id,
        kind=read.type,
        state=state,
        status=read.status,
        project=read.owner,
        progress=Progress(note=message) if state is State.RUNNING and message else None,
        result=read.result if state is State.SUCCEEDED else None,
        error=Failure("task_failed", message or "the task failed and gave no reason") if state is State.FAILED else None,
        created_us=from_rfc3339(read.created_at),
        ended_us=updated_us if state in FINAL else None,  # its last change was its end
        updated_us=updated_us,
        raw=msgspec.json.decode(body),
    )


def read_task_page(body: bytes) -> tuple[list[JobView], str | None]:
    """The tasks of a page, and the path of the next one.  Errors: as read_task."""
    page = _decode_page(body)
    return [read_task(bytes(raw)) for raw in page.tasks], page.next or None
