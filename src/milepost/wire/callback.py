"""The bodies of callbacks: a job's own, and those of subscriptions.

Source: https://www.standardwebhooks.com (`type`, `timestamp`, `data`); what is in `data` is the native job.  `event` and
`subscription` stand beside them, so that a receiver can put events in order and find what it lacks.
"""

from __future__ import annotations

from typing import Any

import msgspec

from milepost.job import Job, Tombstone
from milepost.wire import rfc3339
from milepost.wire.native import READ_AGAIN, encode, from_job


class Detail(msgspec.Struct):
    """What a delivery keeps of its event, or of what is missing."""

    id: int = 0
    root_id: str = ""
    seq: int = 0
    type: str = ""
    state: str = ""
    at_us: int = 0
    data: Any = None
    from_id: int = 0
    to_id: int = 0


decode_detail = msgspec.json.Decoder(Detail).decode


def encode_end(event: str, job: Job) -> bytes:
    """Of a job whose callback has no filter: it is final."""
    return encode({"type": f"job.{event}", "timestamp": rfc3339(job.ended_us), "data": from_job(job)})


def encode_event(
    event: str, detail: bytes, job: Job | Tombstone | None, job_id: str, *, by_state: Any = None, subscription_id: str | None
) -> bytes:
    """Of one event: what happened, and the job as it is now; of a job that has expired, what is left of it."""
    told = decode_detail(detail)
    body = {
        "type": f"job.{event}",
        "timestamp": rfc3339(told.at_us),
        "data": _job(job, job_id, told.root_id, by_state),
        "event": {
            "id": told.id,
            "seq": told.seq,
            "type": told.type,
            "state": told.state,
            "at": rfc3339(told.at_us),
            "data": told.data,
        },
    }
    return encode(body if subscription_id is None else body | {"subscription": subscription_id})


def _job(job: Job | Tombstone | None, job_id: str, root_id: str, by_state: Any) -> Any:
    if isinstance(job, Job):
        return from_job(job, by_state)
    left: dict[str, Any] = {"id": job_id, "root_id": root_id, "expired": True}
    if job is not None:
        left |= {"kind": job.kind, "state": job.state, "project": job.project, "ended_at": rfc3339(job.ended_us)}
    return left


def encode_missed(detail: bytes, created_us: int, subscription_id: str) -> bytes:
    """Events that were pruned before they could be told."""
    told = decode_detail(detail)
    data = {"from_id": told.from_id, "to_id": told.to_id, "read_again": READ_AGAIN}
    return encode({"type": "events.missed", "timestamp": rfc3339(created_us), "data": data, "subscription": subscription_id})


def encode_ping(created_us: int, subscription_id: str) -> bytes:
    """Of no event: whether it comes, and whether its signature is found right."""
    return encode({"type": "ping", "timestamp": rfc3339(created_us), "data": {}, "subscription": subscription_id})
