"""Rows to structs and back, in the column order of `sql/*/job.sql`.  The same for every dialect."""

from __future__ import annotations

from typing import Any

import msgspec

from milepost.job import Callback, Event, EventType, Failure, Job, JobId, Progress, State, Submission

decode_labels = msgspec.json.Decoder(dict[str, str]).decode
decode_failure = msgspec.json.Decoder(Failure).decode
_decode_callback = msgspec.json.Decoder(Callback).decode
decode_progress = msgspec.json.Decoder(Progress).decode
encode = msgspec.json.Encoder().encode

_NO_PROGRESS = Progress()
_STATES = {str(state): state for state in State}
_EVENT_TYPES = {str(type_): type_ for type_ in EventType}


def text(value: Any) -> str:
    """JSON text of a value."""
    return encode(value).decode()


def job_from_row(row: tuple[Any, ...]) -> Job:
    """One row of `get_job`, `claim_jobs` or `list_subs`."""
    (
        id_, kind, state, project, queue, priority, run_at_us, attempt, attempts_max, crashes, timeout_s, deadline_us,
        parent_id, root_id, position, sub_total, retry_of, cancel_reason, callback_url, created_us, started_us, ended_us,
        updated_us, expires_us, version, fence, lease_by, labels, origin, progress, error, input_, result,
    ) = row  # fmt: skip
    return Job(
        id=id_,
        kind=kind,
        state=_STATES[state],
        project=project,
        queue=queue,
        priority=priority,
        labels=decode_labels(labels) if labels else {},
        input=input_.encode() if input_ is not None else None,
        result=result.encode() if result is not None else None,
        error=decode_failure(error) if error else None,
        progress=decode_progress(progress) if progress else _NO_PROGRESS,
        attempt=attempt,
        attempts_max=attempts_max,
        crashes=crashes,
        timeout_s=timeout_s,
        deadline_us=deadline_us,
        parent_id=parent_id,
        root_id=root_id,
        position=position,
        sub_total=sub_total,
        retry_of=retry_of,
        cancel_requested=cancel_reason is not None,
        callback=read_callback(callback_url) if callback_url else None,
        origin=decode_labels(origin) if origin else {},
        created_us=created_us,
        run_at_us=run_at_us,
        started_us=started_us,
        ended_us=ended_us,
        updated_us=updated_us,
        expires_us=expires_us,
        version=version,
        fence=fence,
        lease_by=lease_by,
    )


def read_callback(stored: str) -> Callback:
    """What `callback_url` has: a URL, or the JSON of a callback with a filter; no URL begins with a brace."""
    return _decode_callback(stored) if stored[0] == "{" else Callback(stored)


def write_callback(callback: Callback) -> str:
    return text(callback) if callback.on else callback.url


def new_job(submission: Submission, job_id: JobId, now_us: int) -> Job:
    """The root job that a submission becomes."""
    run_at_us = now_us if submission.run_at_us is None else max(submission.run_at_us, now_us)
    return Job(
        id=job_id,
        kind=submission.kind,
        state=State.HELD if submission.held else State.READY,
        project=submission.project,
        queue=submission.queue,
        priority=submission.priority,
        labels=submission.labels,
        input=submission.input,
        result=None,
        error=None,
        progress=_NO_PROGRESS,
        attempt=0,
        attempts_max=submission.attempts_max,
        crashes=0,
        timeout_s=submission.timeout_s,
        deadline_us=submission.deadline_us,
        parent_id=None,
        root_id=job_id,
        position=0,
        sub_total=0,
        retry_of=submission.retry_of,
        cancel_requested=False,
        callback=submission.callback,
        origin=submission.origin,
        created_us=now_us,
        run_at_us=run_at_us,
        started_us=None,
        ended_us=None,
        updated_us=now_us,
        expires_us=submission.expires_us if submission.held else None,
        version=1,
        fence=0,
        lease_by=None,
    )


def job_params(job: Job, submission: Submission) -> tuple[Any, ...]:
    """The parameters of `add_job`, in order."""
    return (
        job.id,
        job.kind,
        job.state._value_,  # sqlite3 binds an exact str several times faster than an enum
        job.project,
        job.queue,
        job.priority,
        1 if job.run_at_us <= job.created_us else 0,
        job.run_at_us,
        job.attempts_max,
        job.timeout_s,
        job.deadline_us,
        job.parent_id,
        job.root_id,
        job.position,
        job.retry_of,
        None if job.callback is None else write_callback(job.callback),
        submission.idempotency_key,
        submission.body_hash,
        job.created_us,
        text(job.labels) if job.labels else None,
        text(job.origin) if job.origin else None,
        submission.input.decode(),
        job.expires_us,
    )


def plain_params(job: Job, submission: Submission) -> tuple[Any, ...] | None:
    """The parameters of `add_plain_job`, in order; None for a job with more than it has columns for."""
    if (
        job.timeout_s is not None
        or job.deadline_us is not None
        or job.callback is not None
        or job.retry_of is not None
        or job.expires_us is not None
        or submission.idempotency_key is not None
    ):
        return None
    return (
        job.id,
        job.kind,
        job.state._value_,
        job.project,
        job.queue,
        job.priority,
        1 if job.run_at_us <= job.created_us else 0,
        job.run_at_us,
        job.attempts_max,
        job.created_us,
        text(job.labels) if job.labels else None,
        text(job.origin) if job.origin else None,
        submission.input.decode(),
    )


def event_from_row(row: tuple[Any, ...]) -> Event:
    """One row of the `list_*_events` statements."""
    id_, job_id, root_id, project, seq, type_, state, at_us, data = row
    return Event(
        id_,
        job_id,
        root_id,
        project,
        seq,
        _EVENT_TYPES[type_],
        _STATES[state],
        at_us,
        data.encode() if data is not None else None,
    )
