"""What a wait needs to know of a cloud: how to ask, and how to read what it answers.  Pure, one file a cloud.

A dialect makes requests whose URL is a path under the endpoint; `session.py` adds the endpoint and the identity, and puts the
project where a path has `PROJECT`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import msgspec

from milepost.errors import (
    CallerError,
    Conflict,
    Expired,
    Forbidden,
    IdempotencyConflict,
    InvalidInput,
    LimitExceeded,
    MilepostError,
    NotFound,
    ProtocolError,
    Throttled,
    Unauthenticated,
    Unavailable,
    UnknownKind,
)
from milepost.wire import JobView, Request, Response

PROJECT = "{project_id}"  # stands in a path for the caller's project, which may be known only after it was authenticated


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """A job to submit.  `input` is JSON text; what is None, the server decides."""

    kind: str
    input: bytes | None = None
    idempotency_key: str
    queue: str | None = None
    priority: int | None = None
    labels: dict[str, str] = {}
    held: bool = False
    run_at: str | None = None  # RFC 3339
    attempts_max: int | None = None
    timeout_s: float | None = None  # of one attempt
    deadline_s: float | None = None  # of the whole job, from now
    callback_url: str | None = None
    callback_on: tuple[str, ...] = ()  # empty: final


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs to list; what is empty matches all.  Newest first."""

    states: tuple[str, ...] = ()
    kind: str | None = None
    queue: str | None = None
    labels: dict[str, str] = {}
    parent_id: str | None = None
    ids: tuple[str, ...] = ()
    page_size: int | None = None
    oldest_first: bool = False
    by_change: bool = False  # what changed last comes first
    full: bool = False  # with input and result, where the wire leaves them out


class Page(msgspec.Struct, frozen=True):
    """Jobs, and the path of the next page."""

    views: tuple[JobView, ...]
    next_path: str | None


class Dialect(Protocol):
    """One cloud's manner.  Reading raises ProtocolError when the answer is not one of its API."""

    name: ClassVar[str]
    title: ClassVar[str]  # for sentences
    service_type: ClassVar[str]  # the service's type in an identity service's catalog
    long_poll_s: ClassVar[float]  # longest wait the server may be asked for; 0: it cannot
    bulk_max: ClassVar[int]  # jobs that one list request can probe; 0: it cannot
    changes_max: ClassVar[int]  # jobs on a page of a list that begins with what changed last; 0: there is no such list
    streams: ClassVar[bool]  # whether changes are pushed
    lists: ClassVar[bool]  # whether jobs can be listed
    found_grace_s: ClassVar[float]  # a job just submitted may be answered as unknown for so long
    submits_once: ClassVar[bool]  # whether an idempotency key makes a repeated submit safe

    def endpoint(self, url: str) -> str:
        """The base that paths are added to, from what a user typed."""
        ...

    def base(self, endpoint: str, path: str) -> str:
        """The part of the endpoint that this path is asked at."""
        ...

    def identify(self, token: str | None, project: str | None) -> dict[str, str]:
        """The headers that say who asks."""
        ...

    def submit(self, spec: Spec) -> Request:
        """Errors: InvalidInput when the cloud has no such option."""
        ...

    def probe(self, job_id: str, *, etag: str | None = None, wait_s: float = 0) -> Request: ...

    def list_jobs(self, query: Query) -> Request:
        """Errors: InvalidInput when the cloud has no such filter."""
        ...

    def act(self, job_id: str, verb: str) -> Request:
        """`cancel`, `retry` or `release`.  Errors: Conflict when the cloud has no such verb."""
        ...

    def events(self, job_id: str, *, after: int = 0, tree: bool = False, stream: bool = False) -> Request:
        """Errors: Conflict when the cloud keeps no history."""
        ...

    def read_job(self, response: Response) -> JobView: ...

    def read_submitted(self, response: Response, spec: Spec) -> JobView:
        """The job that the answer to a submit tells of.  Errors: ProtocolError; Conflict when there is none yet."""
        ...

    def read_page(self, response: Response) -> Page: ...

    def read_error(self, response: Response, job_id: str | None) -> MilepostError: ...


ERRORS: dict[str, type[MilepostError]] = {
    kind.code: kind
    for kind in (
        CallerError,
        InvalidInput,
        UnknownKind,
        NotFound,
        Expired,
        Conflict,
        IdempotencyConflict,
        Unauthenticated,
        Forbidden,
        Unavailable,
        ProtocolError,
    )
}


def error_of(status: int, message: str, *, code: str | None = None, path: str | None = None, **fields: Any) -> MilepostError:
    """The typed error for an HTTP status; `code`, one of ours, decides where the status alone says too little.

    Fields: retry_after_s for 429 and 503; limit, allowed and seen for limit_exceeded; all others become fields of the error.
    """
    retry_after_s = fields.pop("retry_after_s", None)
    limit, allowed, seen = fields.pop("limit", None), fields.pop("allowed", None), fields.pop("seen", None)
    if status in (429, 503):
        return Throttled(message, retry_after_s=retry_after_s or 0.0, status=status, **fields)
    if code == LimitExceeded.code or status == 413:
        return LimitExceeded(message, limit=limit or "body", allowed=allowed or 0, seen=seen, status=status, **fields)
    found = ERRORS.get(code or "") or _by_status(status)
    if issubclass(found, InvalidInput):
        return found(message, path=path or "$", status=status, **fields)
    return found(message, status=status, **fields)


def _by_status(status: int) -> type[MilepostError]:
    exact: dict[int, type[MilepostError]] = {
        400: InvalidInput,
        401: Unauthenticated,
        403: Forbidden,
        404: NotFound,
        409: Conflict,
        410: Expired,
        422: InvalidInput,
    }
    if status in exact:
        return exact[status]
    if status == 408 or status >= 500:
        return Unavailable
    return CallerError if 400 <= status < 500 else ProtocolError


def excerpt(body: bytes, chars: int = 200) -> str:
    """The beginning of an answer that could not be read, on one line, for an error message."""
    text = " ".join(body[: 4 * chars].decode("utf-8", "replace").split())
    return text if len(text) <= chars else text[:chars] + "…"


def dialect(wire: str) -> Dialect:
    """The dialect of this name.  Errors: InvalidInput naming those that exist."""
    from milepost.client.dialects.glance import Glance
    from milepost.client.dialects.huawei import NAMES, huawei
    from milepost.client.dialects.native import Native
    from milepost.client.dialects.qiniu import Qiniu

    known: dict[str, type[Dialect]] = {"native": Native, "glance": Glance, "qiniu": Qiniu}
    if wire in NAMES:
        return huawei(wire)
    if wire not in known:
        raise InvalidInput(f"no wire {wire!r}; known: {', '.join((*known, *NAMES))}", path="$.wire")
    return known[wire]()
