"""Bytes to jobs and back, one file a vendor: pure, no I/O, no role.

The server encodes and the client decodes with the same file.

This file has what all wires share: the messages of HTTP as values, and `JobView`, a job as some cloud shows it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from milepost.job import FINAL, Failure, Progress, State

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_S, LAST_S = -62_135_596_800, 253_402_300_799  # of the calendar: the years 1 to 9999


class Request(msgspec.Struct, frozen=True):
    """An HTTP request as a value.  `url` is absolute, or a path under the client's endpoint."""

    method: str
    url: str
    headers: dict[str, str] = {}
    body: bytes | None = None


class Response(msgspec.Struct, frozen=True):
    """An HTTP response as a value; header names are lower case."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job as a cloud shows it, in our words.  `status` is the cloud's own word, `raw` its whole answer."""

    id: str
    kind: str
    state: State
    status: str
    project: str | None = None
    progress: Progress | None = None
    result: Any = None
    error: Failure | None = None
    parent_id: str | None = None
    sub_jobs: tuple[JobView, ...] = ()
    sub_counts: dict[str, int] = {}  # state -> how many, where the wire counts them
    created_us: int | None = None
    started_us: int | None = None
    ended_us: int | None = None
    updated_us: int | None = None
    raw: Any = None

    @property
    def done(self) -> bool:
        """Whether this is its end, well or not."""
        return self.state in FINAL


def rfc3339(at_us: int | None) -> str | None:
    """`2026-03-04T05:06:07.123456Z`, or None.  What lies beyond the calendar is shown as its first or last second."""
    if at_us is None:
        return None
    return f"{_whole_second(at_us // 1_000_000)}.{at_us % 1_000_000:06d}Z"


@functools.lru_cache(maxsize=4096)  # a status has four instants, and most of those shown lie close together: 7 µs each become 0.4
def _whole_second(at_s: int) -> str:
    return datetime.fromtimestamp(min(max(at_s, FIRST_S), LAST_S), UTC).isoformat()[:19]


def from_rfc3339(text: str | None) -> int | None:
    """Unix µs of an RFC 3339 instant; one without an offset is UTC.  Errors: ValueError."""
    if not text:
        return None
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return (at - EPOCH) // timedelta(microseconds=1)
