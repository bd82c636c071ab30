"""Requests and answers of a rehearsal as values, and the table of its routes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from milepost.errors import MilepostError
from milepost.job import ProjectId
from milepost.wire import native

if TYPE_CHECKING:
    from milepost.rehearsal.scenario import Fault
    from milepost.rehearsal.stage import Stage

JSON = "application/json"


class Ask(msgspec.Struct, dict=True):
    """One request.  Header names are lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    number: int  # in the record
    params: dict[str, str] = {}

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        return parse_qsl(self.query, keep_blank_values=True, errors="replace")

    def one(self, name: str) -> str | None:
        return next((value for key, value in self.pairs if key == name), None)

    def many(self, name: str) -> list[str]:
        """All values, those that are lists with commas taken apart."""
        return [one for key, value in self.pairs if key == name for one in value.split(",")]

    @property
    def base_url(self) -> str:
        return f"http://{self.headers.get('host', '127.0.0.1')}"

    @property
    def project(self) -> ProjectId | None:
        """The one that the request names."""
        named = self.params.get("project_id") or self.headers.get("x-project-id")
        return ProjectId(named) if named else None


class Answer(msgspec.Struct, kw_only=True):
    """What goes out, and what the record says of it."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = {}
    type: str = JSON
    stream: AsyncIterator[bytes] | None = None
    job: str | None = None
    job_id: str | None = None
    poll: int | None = None
    jobs: int | None = None
    state: str | None = None
    found: bool | None = None


Handler = Callable[["Stage", Ask], Awaitable[Answer]]
Refuse = Callable[[Ask, int, str, dict[str, str]], Answer]


class Route(NamedTuple):
    """A path with `{name}` for a segment and `{name:path}` for all the rest, and who answers it."""

    wire: str
    method: str
    pattern: re.Pattern[str]
    action: str
    handler: Handler


def route(wire: str, method: str, path: str, action: str, handler: Handler) -> Route:
    text = re.sub(r"\{(\w+):path\}", r"(?P<\1>.+)", path)
    return Route(wire, method, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", text)), action, handler)


def retry_headers(fault: Fault, date: str | None) -> dict[str, str]:
    """`Retry-After` as the fault wants it."""
    if fault.retry_after_s is None:
        return {}
    return {"retry-after": date if date is not None else f"{fault.retry_after_s:g}"}


_STATUS = {
    "invalid_input": 400,
    "unknown_kind": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "idempotency_conflict": 409,
    "expired": 410,
}
_TITLES = {400: "Bad Request", 404: "Not Found", 409: "Conflict", 410: "Gone", 429: "Too Many Requests"}


def refuse_problem(_: Ask, status: int, message: str, headers: dict[str, str]) -> Answer:
    """An error as the native wire has it."""
    code = "not_found" if status == 404 else "throttled" if status == 429 else "unavailable" if status >= 500 else "caller_error"
    return problem(native.Problem(title=_TITLES.get(status, "Error"), status=status, detail=message, code=code), headers)


def problem_of(error: MilepostError) -> Answer:
    """One of our errors on the native wire."""
    status = _STATUS.get(error.code, 400)
    return problem(
        native.Problem(
            title=_TITLES.get(status, "Error"),
            status=status,
            detail=error.message,
            code=error.code,
            path=getattr(error, "path", None),
            hint=error.hint,
            job_id=error.job_id,
            state=error.state,
        )
    )


def problem(found: native.Problem, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status=found.status, body=native.encode(found), type="application/problem+json", headers=headers or {})
