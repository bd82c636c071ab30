"""Persistent processing as the status query and the callback show it, both ways.

A job of the kind `pfop` has an item for each command.  A job of any other kind can be shown here too: its sub-jobs are its items.

Rules
1. Items stand in the order in which they were asked for, from the moment the job is accepted.
2. Codes: 0 done, 1 waiting, 2 executing, 3 failed, 4 done but its notification cannot be delivered.  The job has 1 until
   something of it began, 3 when anything failed, and 4 only where all else would be 0.  There is no code for a cancel: it is 3.
3. Absent, not null: `hash`, `key`, `keys` and `result` of what did not succeed, `error` and `errorIndex` of what did not fail,
   `type` of what is not idle, `taskFrom` of what was asked for by its commands.  `returnOld` is there in each item.
4. `errorIndex` 0 is written, and may be missing in what is read.

Source: qiniu/api-specs media/prefop.yml; qiniu/go-sdk media/apis/prefop and storage/pfop.go, whose `Prefop` fails without a
creationDate.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from milepost.job import FINAL, Failure, Job, Progress, State
from milepost.wire import EPOCH, FIRST_S, LAST_S, JobView
from milepost.wire.qiniu.ids import persistent_id
from milepost.wire.qiniu.pfop import pipeline_shown

DONE, WAITING, EXECUTING, FAILED, CALLBACK_FAILED, CANCELLED = 0, 1, 2, 3, 4, 5  # 5: of a newer query, read and never written

DESC = {
    DONE: "The fop was completed successfully",
    WAITING: "The fop is waiting for execution",
    EXECUTING: "The fop is executing now",
    FAILED: "The fop is failed",
    CALLBACK_FAILED: "Callback failed",
}
CODE = {
    State.HELD: WAITING,
    State.READY: WAITING,
    State.RUNNING: EXECUTING,
    State.WAITING: EXECUTING,
    State.SUCCEEDED: DONE,
    State.FAILED: FAILED,
    State.CANCELLED: FAILED,
}
STATE = {
    DONE: State.SUCCEEDED,
    WAITING: State.READY,
    EXECUTING: State.RUNNING,
    FAILED: State.FAILED,
    CALLBACK_FAILED: State.SUCCEEDED,
    CANCELLED: State.CANCELLED,
}

KIND, ITEM_KIND = "pfop", "fop"
FOP_FAILED = "fop_failed"
PREFIX = "execute fop cmd failed: "
NO_SUCH_ID = "not such id in prefop"  # the service's own spelling


class Item(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """One command's status, keys in the documents' order."""

    cmd: str
    code: int
    desc: str
    error: str | UnsetType = UNSET
    error_index: int | UnsetType = msgspec.field(default=UNSET, name="errorIndex")
    hash: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    keys: list[str] | UnsetType = UNSET
    result: Any = UNSET
    return_old: int = msgspec.field(name="returnOld")

    @property
    def state(self) -> State:
        """In our words; a code that nobody knows still runs."""
        return STATE.get(self.code, State.RUNNING)


class Status(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """The answer to the status query, and the body of a callback."""

    id: str
    pipeline: str | UnsetType = UNSET
    code: int
    desc: str
    reqid: str
    input_bucket: str = msgspec.field(name="inputBucket")
    input_key: str = msgspec.field(name="inputKey")
    type: int = 0
    creation_date: str | UnsetType = msgspec.field(default=UNSET, name="creationDate")
    task_from: str | UnsetType = msgspec.field(default=UNSET, name="taskFrom")
    items: list[Item]

    @property
    def state(self) -> State:
        """In our words; a code that nobody knows still runs."""
        return STATE.get(self.code, State.RUNNING)


_encode = msgspec.json.Encoder().encode


def encode(value: Any) -> bytes:
    """The body that a value has."""
    return _encode(value)


# --- the server's side -----------------------------------------------------------------------------------------------------


class _Asked(msgspec.Struct, gc=False):
    """What of a job's input is shown."""

    bucket: str = ""
    key: str = ""
    cmd: str = ""
    fops: list[str] = []
    idle: bool = False
    pipeline: str = ""
    task_from: str | None = None


class _Made(msgspec.Struct, gc=False):
    """What of an item's result is shown."""

    key: str | None = None
    keys: list[str] | None = None
    hash: str | None = None
    result: Any = UNSET
    return_old: int = 0


_asked = msgspec.json.Decoder(_Asked).decode
_made = msgspec.json.Decoder(_Made).decode


def encode_status(job: Job, subs: Sequence[Job] = (), *, undelivered: bool = False, region: str = "z0") -> bytes:
    """The answer about a job.  `subs`: its sub-jobs in order, whole.  `undelivered`: its notification failed until now."""
    return _encode(show_status(job, subs, undelivered=undelivered, region=region))


def show_status(job: Job, subs: Sequence[Job] = (), *, undelivered: bool = False, region: str = "z0") -> Status:
    """A job with its items as this wire has it."""
    asked = _read_asked(job.input)
    items = _items(job, subs, asked)
    code = _code(job, items)
    if code == DONE and undelivered:
        code = CALLBACK_FAILED
    return Status(
        id=persistent_id(job.id, region),
        pipeline=pipeline_shown(asked.pipeline, job.project),
        code=code,
        desc=DESC[code],
        reqid=job.origin.get("reqid") or _reqid(job.id),
        input_bucket=asked.bucket,
        input_key=asked.key,
        type=1 if asked.idle else 0,
        creation_date=creation_date(job.created_us),
        task_from=asked.task_from or UNSET,
        items=items,
    )


def _code(job: Job, items: Sequence[Item]) -> int:
    """Rule 2."""
    if job.state in FINAL or not items:
        return CODE[job.state]
    return WAITING if all(item.code == WAITING for item in items) else EXECUTING


def _items(job: Job, subs: Sequence[Job], asked: _Asked) -> list[Item]:
    if subs:
        return [_item(sub) for sub in subs]
    if job.kind == ITEM_KIND:
        return [_item(job)]
    code = FAILED if job.state in (State.FAILED, State.CANCELLED) else WAITING
    error = _error(job) if code == FAILED else UNSET
    return [Item(cmd=cmd, code=code, desc=DESC[code], error=error, return_old=0) for cmd in asked.fops]


def _item(job: Job) -> Item:
    code = CODE[job.state]
    cmd = _read_asked(job.input).cmd if job.kind == ITEM_KIND else job.kind
    if code == FAILED:
        index = (job.error.details or {}).get("error_index") if job.error is not None else None
        shown = index if isinstance(index, int) and not isinstance(index, bool) else UNSET
        return Item(cmd=cmd, code=code, desc=DESC[code], error=_error(job), error_index=shown, return_old=0)
    if code != DONE:
        return Item(cmd=cmd, code=code, desc=DESC[code], return_old=0)
    made = _read_made(job)
    answer = made.result if made.result is not None or (made.key is None and made.keys is None) else UNSET
    return Item(
        cmd=cmd,
        code=code,
        desc=DESC[code],
        hash=_or_unset(made.hash),
        key=_or_unset(made.key),
        keys=UNSET if made.keys is None else made.keys,
        result=answer,
        return_old=made.return_old,
    )


def _or_unset(value: str | None) -> str | UnsetType:
    return UNSET if value is None else value


def _error(job: Job) -> str:
    return PREFIX + (job.error.message if job.error is not None else "no reason was given")


def _read_asked(text: bytes | None) -> _Asked:
    try:
        return _asked(text or b"{}")
    except msgspec.DecodeError:  # another kind means something else by these words
        return _Asked()


def _read_made(job: Job) -> _Made:
    """What an item made; the result of any other kind is an answer as a whole."""
    text = job.result or b"null"
    if job.kind == ITEM_KIND:
        try:
            return _made(text)
        except msgspec.DecodeError:  # a kind of this name that is somebody's own
            pass
    return _Made(result=msgspec.json.decode(text))


def _reqid(job_id: str) -> str:
    """16 characters for a job that came by no request of this wire, always the same."""
    return base64.urlsafe_b64encode(hashlib.sha256(job_id.encode()).digest()[:12]).decode()


_CHINA = timezone(timedelta(hours=8))


def creation_date(at_us: int) -> str:
    """`2026-03-04T13:06:07.123456000+08:00`: nanoseconds, and China's time."""
    at_s = min(max(at_us // 1_000_000, FIRST_S), LAST_S - 8 * 3600)
    whole = datetime.fromtimestamp(at_s, UTC).astimezone(_CHINA)
    return f"{whole.isoformat()[:19]}.{at_us % 1_000_000:06d}000+08:00"


_INSTANT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


def read_date(text: object) -> int | None:
    """Unix µs of RFC 3339 text with any number of digits; None when it is none."""
    found = _INSTANT.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    try:
        at = datetime.fromisoformat(found[1] + ("+00:00" if found[3] == "Z" else found[3]))
        return (at - EPOCH) // timedelta(microseconds=1) + int((found[2] or "").ljust(6, "0")[:6])
    except (ValueError, OverflowError):
        return None


# --- the client's side -----------------------------------------------------------------------------------------------------


def decode(body: bytes) -> Status:
    """A status of this API, its quirks straightened: nulls and empty texts count as absent, a missing number is 0.

    Errors: msgspec.DecodeError, ValueError when it is no status.
    """
    return read_status(msgspec.json.decode(body))


def read_status(found: Any) -> Status:
    """As decode, from what is parsed already."""
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    items, id = found.get("items"), found.get("id")
    if not isinstance(id, str) or not id:
        raise ValueError("it has no id")
    code = _whole(found.get("code", 0))  # Go's encoders leave a zero out
    return Status(
        id=id,
        pipeline=_text(found, "pipeline"),
        code=code,
        desc=_or(_text(found, "desc"), DESC.get(code, "")),
        reqid=_or(_text(found, "reqid"), ""),
        input_bucket=_or(_text(found, "inputBucket"), ""),
        input_key=_or(_text(found, "inputKey"), ""),
        type=_whole(found.get("type") or 0),
        creation_date=_text(found, "creationDate"),
        task_from=_text(found, "taskFrom"),
        items=[_read_item(item) for item in items if isinstance(item, dict)] if isinstance(items, list) else [],
    )


def _read_item(found: dict[str, Any]) -> Item:
    code = _whole(found.get("code", 0))
    index, keys = found.get("errorIndex"), found.get("keys")
    return Item(
        cmd=_or(_text(found, "cmd"), ""),
        code=code,
        desc=_or(_text(found, "desc"), DESC.get(code, "")),
        error=_text(found, "error"),
        error_index=UNSET if index is None else _whole(index),
        hash=_text(found, "hash"),
        key=_text(found, "key", empty=bool(found.get("hash"))),
        keys=[one for one in keys if isinstance(one, str)] if isinstance(keys, list) else UNSET,
        result=found.get("result", UNSET),
        return_old=_whole(found.get("returnOld") or 0),
    )


def _text(found: dict[str, Any], name: str, *, empty: bool = False) -> str | UnsetType:
    value = found.get(name)
    return value if isinstance(value, str) and (value or empty) else UNSET


def _or(value: str | UnsetType, otherwise: str) -> str:
    return otherwise if value is UNSET else value


def _whole(value: Any) -> int:
    """Errors: ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} stands for a number")
    return value


def to_view(status: Status, *, raw: Any = None) -> JobView:
    """The job in our words.  Its items are its sub-jobs, `<id>#0` and on, each with its `Item` as result, the job with all."""
    state, created_us = status.state, read_date(status.creation_date)
    subs = tuple(_sub_view(status, index, item, created_us) for index, item in enumerate(status.items))
    counts: dict[str, int] = {}
    for sub in subs:
        counts[str(sub.state)] = counts.get(str(sub.state), 0) + 1
    ended = sum(sub.done for sub in subs)
    return JobView(
        id=status.id,
        kind=KIND,
        state=state,
        status=str(status.code),
        progress=Progress(ended, len(subs), "items") if subs else None,
        result=list(status.items) if state is State.SUCCEEDED else None,
        error=_failure_of(status) if state in (State.FAILED, State.CANCELLED) else None,
        sub_jobs=subs,
        sub_counts=counts,
        created_us=created_us,
        raw=raw,
    )


def _sub_view(status: Status, index: int, item: Item, created_us: int | None) -> JobView:
    state = item.state
    failed = state in (State.FAILED, State.CANCELLED)
    return JobView(
        id=f"{status.id}#{index}",
        kind=re.split(r"[/|]", item.cmd, maxsplit=1)[0] or ITEM_KIND,
        state=state,
        status=str(item.code),
        progress=Progress(1 if state in FINAL else 0, 1, note=item.cmd),
        result=item if state is State.SUCCEEDED else None,
        error=_item_failure(item) if failed else None,
        parent_id=status.id,
        created_us=created_us,
    )


def _item_failure(item: Item) -> Failure:
    details: dict[str, Any] = {"cmd": item.cmd}
    if item.error_index is not UNSET:
        details["error_index"] = item.error_index
    return Failure(FOP_FAILED, _or(item.error, item.desc).removeprefix(PREFIX), details)


def _failure_of(status: Status) -> Failure:
    failed = [item for item in status.items if item.state in (State.FAILED, State.CANCELLED)]
    if not failed:
        return Failure(FOP_FAILED, status.desc)
    first = failed[0]
    text = _or(first.error, first.desc).removeprefix(PREFIX)
    return Failure("sub_jobs_failed", f"{len(failed)} of {len(status.items)} commands failed; the first, {first.cmd}: {text}")
