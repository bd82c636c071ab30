"""The native job as JSON."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from milepost.job import Event, EventType, Failure, Job, JobId, Progress, ProjectId, State
from milepost.wire import from_rfc3339, native, rfc3339

ID = JobId("01a20000-0000-7000-8000-000000000001")


def job(**given: object) -> Job:
    fields: dict[str, Any] = {
        "id": ID,
        "kind": "echo",
        "state": State.SUCCEEDED,
        "project": ProjectId("demo"),
        "queue": "q",
        "priority": 5,
        "labels": {"a": "b"},
        "input": b'{"x":1}',
        "result": b"[1, 2]",
        "error": None,
        "progress": Progress(1, 2, "bytes", "n"),
        "attempt": 1,
        "attempts_max": 2,
        "crashes": 0,
        "timeout_s": None,
        "deadline_us": None,
        "parent_id": None,
        "root_id": ID,
        "position": 0,
        "sub_total": 3,
        "retry_of": None,
        "cancel_requested": False,
        "callback": None,
        "origin": {},
        "created_us": 1,
        "run_at_us": 1,
        "started_us": 2,
        "ended_us": 3,
        "updated_us": 3,
        "expires_us": 4,
        "version": 7,
        "fence": 1,
        "lease_by": None,
    }
    return Job(**(fields | given))


FIELDS = (
    "id",
    "kind",
    "state",
    "project",
    "queue",
    "priority",
    "labels",
    "input",
    "result",
    "error",
    "progress",
    "attempt",
    "attempts_max",
    "parent_id",
    "sub_jobs",
    "retry_of",
    "cancel_requested",
    "created_at",
    "started_at",
    "ended_at",
    "updated_at",
    "expires_at",
    "run_at",
)


def test_a_job_has_the_documented_fields_in_their_order() -> None:
    shown = msgspec.json.decode(native.encode(native.from_job(job(), {State.FAILED: 1, State.SUCCEEDED: 2})))
    assert tuple(shown) == FIELDS
    assert shown["sub_jobs"] == {"total": 3, "by_state": {"failed": 1, "succeeded": 2}}
    assert (shown["input"], shown["result"], shown["created_at"]) == ({"x": 1}, [1, 2], "1970-01-01T00:00:00.000001Z")


def test_a_listed_job_has_no_bodies_and_a_shown_one_has_null_for_none() -> None:
    listed = msgspec.json.decode(native.encode(native.from_job(job(), bodies=False)))
    assert list(listed) == [field for field in FIELDS if field not in ("input", "result")]
    shown = msgspec.json.decode(native.encode(native.from_job(job(result=None))))
    assert shown["result"] is None


def test_a_view_has_what_was_shown() -> None:
    error = Failure("broken", "it broke", {"at": 3})
    shown = native.encode(native.from_job(job(state=State.FAILED, result=None, error=error)))
    view = native.view_from_bytes(shown)
    assert (view.id, view.state, view.status, view.done, view.error) == (ID, State.FAILED, "failed", True, error)
    assert (view.created_us, view.started_us, view.ended_us, view.updated_us) == (1, 2, 3, 3)


def test_an_event_comes_back_as_it_was() -> None:
    for data in (b'{"a":1}', None):
        event = Event(9, ID, ID, ProjectId("demo"), 3, EventType.PROGRESS, State.RUNNING, 1_700_000_000_000_001, data)
        assert native.to_event(native.decode_event(native.encode(native.from_event(event))), "demo") == event


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T00:00:00", 0),
        ("1970-01-01T00:00:00.000001Z", 1),
        ("2026-03-04T05:06:07.123456Z", 1_772_600_767_123_456),
        (None, None),
        ("", None),
    ],
)
def test_instants_are_read_with_and_without_offset(text: str | None, us: int | None) -> None:
    assert from_rfc3339(text) == us


def test_years_are_written_with_four_digits() -> None:
    assert rfc3339(-62_135_596_800_000_000) == "0001-01-01T00:00:00.000000Z"
    assert rfc3339(None) is None
