"""Errors on the native wire: one table from our classes to a status, and the RFC 9457 problem that goes with it."""

from __future__ import annotations

import math
from http import HTTPStatus

from milepost.errors import (
    CallerError,
    Conflict,
    Expired,
    Forbidden,
    InvalidInput,
    LimitExceeded,
    MilepostError,
    NotFound,
    ProtocolError,
    Throttled,
    Unauthenticated,
    Unavailable,
)
from milepost.server.http import Reply
from milepost.wire.native import Problem, encode

STATUS: dict[type[MilepostError], int] = {
    InvalidInput: 400,
    CallerError: 400,
    LimitExceeded: 400,  # but see LIMIT_STATUS
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    Expired: 410,
    Throttled: 429,
    ProtocolError: 502,
    Unavailable: 503,
    MilepostError: 500,
}
LIMIT_STATUS = {
    "body_s_max": 408,
    "body_bytes_max": 413,
    "input_bytes_max": 413,
    "result_bytes_max": 413,
    "streams_max": 503,
    "streams_project_max": 503,
}
BROKEN_OFF = "the body ended before it was whole"
RETRY_AFTER_S = 1.0  # of a 503: the store or the last free stream is expected back soon


class MethodNotAllowed(CallerError):
    """The path exists and has no such method; `allow` lists those it has."""

    code = "method_not_allowed"

    def __init__(self, method: str, allow: str) -> None:
        super().__init__(f"{method} is not allowed here; allowed: {allow}")
        self.allow = allow


class UnsupportedMediaType(CallerError):
    """The body is not JSON."""

    code = "unsupported_media_type"


STATUS[MethodNotAllowed] = 405
STATUS[UnsupportedMediaType] = 415


def status_of(error: MilepostError) -> int:
    """The HTTP status that answers this error."""
    if isinstance(error, LimitExceeded) and error.limit in LIMIT_STATUS:
        return LIMIT_STATUS[error.limit]
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def retry_after_s(error: MilepostError, status: int) -> float | None:
    """When to try again; None: trying again does not help."""
    if isinstance(error, Throttled):
        return error.retry_after_s
    return RETRY_AFTER_S if status == 503 else None


def problem_of(error: MilepostError, status: int, request_id: str) -> Problem:
    """The problem document of an error; what a 500 saw stays in the log."""
    if status == 500:
        return internal_problem(request_id)
    limit = error if isinstance(error, LimitExceeded) else None
    return Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=error.message,
        code=error.code,
        path=getattr(error, "path", None) or error.fields.get("path"),
        hint=error.hint,
        job_id=error.job_id,
        state=str(error.state) if error.state is not None else None,
        request_id=request_id,
        retry_after_s=retry_after_s(error, status),
        limit=limit.limit if limit else None,
        allowed=limit.allowed if limit else None,
        seen=limit.seen if limit else None,
    )


def broken_off(request_id: str) -> Problem:
    """What the sender of half a body is told."""
    return Problem(title="Bad Request", status=400, detail=BROKEN_OFF, code="invalid_input", path="$", request_id=request_id)


def internal_problem(request_id: str) -> Problem:
    """What a caller learns of an error of ours: the id to ask about."""
    return Problem(
        title="Internal Server Error",
        status=500,
        detail="the server failed on this request; its log has the cause under this request id",
        code="internal",
        request_id=request_id,
    )


def reply_of(error: MilepostError, request_id: str) -> Reply:
    """The whole answer to an error."""
    status = status_of(error)
    problem = problem_of(error, status, request_id)
    reply = problem_reply(problem)
    if problem.retry_after_s is not None:
        reply.headers.append((b"retry-after", str(max(1, math.ceil(problem.retry_after_s))).encode()))
    if isinstance(error, MethodNotAllowed):
        reply.headers.append((b"allow", error.allow.encode()))
    if status == 401:
        reply.headers.append((b"www-authenticate", b'Bearer realm="milepost"'))
    return reply


def problem_reply(problem: Problem) -> Reply:
    return Reply(problem.status, encode(problem), type=b"application/problem+json")
