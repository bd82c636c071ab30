"""Jobs as the store has them, for the tests of Huawei's wire."""

from __future__ import annotations

from typing import Any

import msgspec

from milepost.job import FINAL, Failure, Job, JobId, Progress, ProjectId, State

BEGIN_US = 1_772_600_767_001_999  # 2026-03-04T05:06:07.001999Z
END_US = BEGIN_US + 10_099_000


def made(
    kind: str, state: State = State.RUNNING, *, number: int = 1, input: Any = None, result: Any = None, **fields: Any
) -> Job:
    id_ = JobId(f"0197a000-0000-7000-8000-{number:012x}")
    values: dict[str, Any] = {
        "id": id_,
        "kind": kind,
        "state": state,
        "project": ProjectId("p"),
        "queue": "default",
        "priority": 5,
        "labels": {},
        "input": msgspec.json.encode(input if input is not None else {}),
        "result": None if result is None else msgspec.json.encode(result),
        "error": None,
        "progress": Progress(),
        "attempt": 1,
        "attempts_max": 1,
        "crashes": 0,
        "timeout_s": None,
        "deadline_us": None,
        "parent_id": None,
        "root_id": id_,
        "position": 0,
        "sub_total": 0,
        "retry_of": None,
        "cancel_requested": False,
        "callback": None,
        "origin": {},
        "created_us": BEGIN_US,
        "run_at_us": BEGIN_US,
        "started_us": BEGIN_US,
        "ended_us": END_US if state in FINAL else None,
        "updated_us": END_US,
        "expires_us": None,
        "version": 1,
        "fence": 1,
        "lease_by": None,
    }
    return Job(**{**values, **fields})


def failed(code: str, message: str = "no") -> dict[str, Any]:
    return {"state": State.FAILED, "error": Failure(code, message)}
