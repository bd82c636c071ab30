"""The job ids in the answers to submits, whatever the request was: for a proxy that sees both and changes neither.

Source: per wire, what its SDK reads: `job_id` or `jobId` (chnsz/golangsdk openstack/ecs/v1/cloudservers/results_job.go), the
task itself (openstack/glance glance/api/v2/tasks.py), `persistentId` (qiniu/python-sdk qiniu/services/processing/pfop.py), the
native job.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

PROJECT = re.compile(r"^/v\d+(?:\.\d+)?/([^/]+)/")
CHANGES = frozenset({"POST", "PUT", "DELETE", "PATCH"})
RUNS = re.compile(r"/jobs(?:/[^/]+/retry)?")


def may_submit(wire: str, method: str, path: str) -> bool:
    """Whether a job may come of this request: then it is worth to note it before it is sent."""
    if method not in CHANGES:
        return False
    if wire == "native":
        return method == "POST" and RUNS.fullmatch(path.rstrip("/")) is not None
    if wire == "glance":
        return method == "POST" and path.rstrip("/") == "/v2/tasks"
    if wire == "qiniu":
        return method == "POST"  # an upload's policy may ask for processing
    return True


class Found(msgspec.Struct, frozen=True):
    """A job that an answer tells of."""

    id: str
    project: str | None = None
    kind: str | None = None


def jobs_in_answer(wire: str, method: str, path: str, status: int, body: bytes) -> list[Found]:
    """Every job that this exchange made, as far as its answer names it; what is no JSON names none."""
    if method not in CHANGES or not 200 <= status < 300:
        return []
    try:
        told = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    if not isinstance(told, dict):
        return []
    if wire == "native":
        return _native(path, told)
    if wire == "glance":
        return _named(told.get("id"), kind=told.get("type")) if path.rstrip("/") == "/v2/tasks" else []
    if wire == "qiniu":
        return _named(told.get("persistentId"))
    found = PROJECT.match(path)
    return _named(told.get("job_id") or told.get("jobId"), project=found[1] if found else None)


def _native(path: str, told: dict[str, Any]) -> list[Found]:
    if RUNS.fullmatch(path.rstrip("/")) is None:
        return []
    entries = told.get("jobs") if isinstance(told.get("jobs"), list) else [told]
    return [
        one
        for entry in entries or ()
        if isinstance(entry, dict)
        for one in _named(entry.get("id"), project=entry.get("project"), kind=entry.get("kind"))
    ]


def _named(id: Any, *, project: Any = None, kind: Any = None) -> list[Found]:
    if not isinstance(id, str) or not 0 < len(id) <= 255:
        return []
    return [Found(id, project if isinstance(project, str) else None, kind if isinstance(kind, str) else None)]
