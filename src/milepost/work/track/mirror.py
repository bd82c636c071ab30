"""From a job as its cloud shows it to a Milepost job: progress, sub-jobs, and how it ends.  Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from milepost import Cancel, JobView, PermanentError, Progress, State, SubJob
from milepost.tracking import LABEL_ID, SUB_KIND, Tracked
from milepost.work.track.spec import SubInput

NOTE_CHARS = 300

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(JobView).decode


def encode_view(view: JobView) -> str:
    """The view as JSON, without the cloud's raw answer."""
    return _encode(_bare(view)).decode()


def decode_view(text: str) -> JobView:
    return _decode(text.encode())


def _bare(view: JobView) -> JobView:
    return msgspec.structs.replace(view, raw=None, sub_jobs=tuple(map(_bare, view.sub_jobs)))


def progress_of(record: Tracked, instant: str | None) -> Progress:
    """What is shown of a tracked job that has not ended.  `instant` is since when it is as the record says, as text."""
    view = None if record.view is None else decode_view(record.view)
    done, total, unit = _amount(view)
    words = [record.status or "not seen yet"]
    if view is not None and view.progress is not None and view.progress.note:
        words.append(view.progress.note)
    if instant is not None:
        if record.stale_since_us is not None:
            head = f"stale since {instant}"
        elif record.refused_since_us is not None:
            head = f"credentials refused since {instant}"
        else:
            head = f"not found since {instant}"
        words = [f"{head}: {record.trouble or 'no answer'}", f"last seen: {words[0]}"]
    return Progress(done, total, unit, "; ".join(words)[:NOTE_CHARS])


def _amount(view: JobView | None) -> tuple[int, int | None, str]:
    if view is None:
        return 0, None, ""
    if view.progress is not None and (view.progress.done or view.progress.total):
        return view.progress.done, view.progress.total, view.progress.unit
    if view.sub_jobs:
        return sum(sub.done for sub in view.sub_jobs), len(view.sub_jobs), "sub-jobs"
    if view.sub_counts:
        ended = sum(count for state, count in view.sub_counts.items() if state in ("succeeded", "failed", "cancelled"))
        return ended, sum(view.sub_counts.values()), "sub-jobs"
    return 0, None, ""


def shows(view: JobView) -> tuple[Any, ...]:
    """What of a view is worth writing down when it changes; progress is the job's own."""
    return view.state, view.status, tuple((sub.id, sub.state) for sub in view.sub_jobs), tuple(sorted(view.sub_counts.items()))


def sub_inputs(view: JobView) -> list[SubInput]:
    return [
        SubInput(
            id=sub.id,
            kind=sub.kind,
            state=sub.state,
            status=sub.status,
            result=msgspec.to_builtins(sub.result),
            error=sub.error,
            sub_jobs=sub_inputs(sub),
        )
        for sub in view.sub_jobs
    ]


def sub_jobs(inputs: list[SubInput], *, bytes_max: int) -> list[SubJob]:
    """Sub-jobs that end as these did; what is too large to be kept is left out of them."""
    made = []
    for one in inputs:
        kept = one if len(_encode(one)) <= bytes_max else msgspec.structs.replace(one, result=None, sub_jobs=[])
        made.append(SubJob(kind=SUB_KIND, input=kept, labels={LABEL_ID: one.id[:255]}))
    return made


def end_of(state: State, status: str, result: Any, error: Any, *, result_bytes_max: int) -> Any:
    """The result, as the function of a job that succeeded returns it.

    Errors: PermanentError with the foreign code and reason, Cancel.
    """
    if state is State.SUCCEEDED:
        size_bytes = len(_encode(result))
        if size_bytes > result_bytes_max:
            return {"left_out": f"the result has {size_bytes} bytes; {result_bytes_max} are kept"}
        return result
    if state is State.FAILED:
        if error is None:
            raise PermanentError("failed", f"it ended as {status}; no reason was given")
        raise PermanentError(error.code, error.message, error.details)
    if state is State.CANCELLED:
        return Cancel(error.message if error is not None else f"it ended as {status}")
    return Cancel(f"it was {status} when the job that it is part of ended")
