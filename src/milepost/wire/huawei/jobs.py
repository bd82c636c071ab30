"""The one job shape of Huawei Cloud's services, both ways.

`HuaweiJob` is the body of `GET /v1/{project_id}/jobs/{job_id}` as a value.  The server makes it of a job and its sub-jobs and
encodes it (`encode_job`); the client decodes it as leniently as it must (`decode`) and shows it in our words (`to_view`).

Rules
1. All eight keys are always there: Go clients demand some, no client minds the others.  `error_code` and `fail_reason` are null
   when all is well, `end_time` is `""` until the end.
2. Two forms of `entities`.  ECS: a job with sub-jobs has `sub_jobs_total` and `sub_jobs` beside its own ids.  EVS: when
   `sub_jobs` is there, nothing else is, no total either.  The kind decides; what is none of EVS's has the ECS form.
3. `sub_jobs` is an array or absent, never null or "": Go clients index it.
4. A job shows SUCCESS only when none of the sub-jobs shown with it still runs: Go clients then read the first one's resource id.
5. A failed parent has `Common.0021` and the counts; each sub-job has its own code and reason.  One level: no client knows more.

Source: huaweicloud/huaweicloud-sdk-go openstack/ecs/v1/job; chnsz/golangsdk openstack/ecs/v1/jobs, openstack/evs/v1/jobs;
huaweicloudsdkecs and huaweicloudsdkevs ShowJobResponse, JobEntities, SubJob.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from milepost.job import FINAL, Failure, Job, JobId, State
from milepost.wire import JobView
from milepost.wire.huawei.errors import CANCELLED, SUB_JOB_FAILS, Service, error_in, job_code, reason_of
from milepost.wire.huawei.times import at_ms, read_time

STATUS = {
    State.HELD: "PENDING_PAYMENT",
    State.READY: "INIT",
    State.RUNNING: "RUNNING",
    State.WAITING: "RUNNING",
    State.SUCCEEDED: "SUCCESS",
    State.FAILED: "FAIL",
    State.CANCELLED: "FAIL",  # this wire has no cancelled: told apart by error_code
}
STATE = {
    "PENDING_PAYMENT": State.HELD,
    "INIT": State.READY,
    "RUNNING": State.RUNNING,
    "SUCCESS": State.SUCCEEDED,
    "FAIL": State.FAILED,
}

EVS_KINDS = frozenset(
    {
        "createVolume",
        "batchCreateVolume",
        "extendVolume",
        "batchExtendVolume",
        "deleteVolume",
        "bulkDeleteVolume",
        "deleteSingleVolume",
        "retypeVolume",
    }
)
# Kinds whose work is done by sub-jobs: `sub_jobs` is there from the start, empty until they are.
PARENTS = frozenset(
    {
        "batchCreateVolume",
        "batchExtendVolume",
        "bulkDeleteVolume",
        "createServer",
        "deleteServer",
        "startServer",
        "stopServer",
        "rebootServer",
        "addNic",
        "deleteNic",
        "batchAttachVolume",
        "batchDetachVolume",
        "batchResizeServer",
    }
)


class Entities(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """What a job is about.  What a service does not show is None and not written."""

    sub_jobs_total: int | None = None
    sub_jobs: list[HuaweiJob] | None = None
    server_id: str | None = None
    nic_id: str | None = None
    volume_id: str | None = None
    name: str | None = None
    size: int | None = None  # GiB
    volume_type: str | None = None
    image_id: str | None = None
    errorcode_message: str | None = None
    # Of other services; see other.py.
    server_group_id: str | None = None
    protected_instance_id: str | None = None
    replication_pair_id: str | None = None
    disaster_recovery_drill_id: str | None = None
    backup_id: str | None = None
    snapshot_id: str | None = None
    publicip_id: str | None = None
    loadbalancer_id: str | None = None
    instance_id: str | None = None
    data_images: str | None = msgspec.field(default=None, name="__data_images")


class HuaweiJob(msgspec.Struct, kw_only=True, gc=False):
    """A job or sub-job as this wire has it, keys in the documents' order."""

    status: str
    entities: Entities = msgspec.field(default_factory=Entities)
    job_id: str
    job_type: str
    begin_time: str
    end_time: str = ""
    error_code: str | None = None
    fail_reason: str | None = None

    @property
    def state(self) -> State:
        """In our words; a status that nobody knows is a job that still runs."""
        state = STATE.get(self.status.upper(), State.RUNNING)
        return State.CANCELLED if state is State.FAILED and self.error_code == CANCELLED else state


_encode = msgspec.json.Encoder().encode


def service_of(kind: str) -> Service:
    """Whose form and codes a job of this kind has."""
    return Service.EVS if kind in EVS_KINDS else Service.ECS


# --- ids ------------------------------------------------------------------------------------------------------------

_HEX = re.compile(r"[0-9a-f]{32}")
_ORDER = re.compile(r"CS([0-9A-F]{32})")


def job_hex(job_id: str) -> str:
    """A job's id as this wire shows it: 32 hex digits."""
    return job_id.replace("-", "")


def read_job_id(text: str) -> JobId | None:
    """The job's id from 32 hex digits or its dashed form, in any case; None when it is neither."""
    digits = text.replace("-", "").lower() if len(text) in (32, 36) else ""
    if not _HEX.fullmatch(digits):
        return None
    return JobId(f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}")


def order_id(job_id: str) -> str:
    """The order of a held job: `CS` and the id's digits in upper case."""
    return f"CS{job_hex(job_id).upper()}"


def read_order_id(text: str) -> JobId | None:
    """The job of an order id, None when the order is not one of a Milepost server."""
    found = _ORDER.fullmatch(text)
    return None if found is None else read_job_id(found[1])


# --- the server's side ----------------------------------------------------------------------------------------------


class _Volume(msgspec.Struct, gc=False):
    name: str | None = None
    size: int | None = None
    volume_type: str | None = None


class _Facts(msgspec.Struct, gc=False):
    """What is worth showing of a job's input or result."""

    server_id: str | None = None
    nic_id: str | None = None
    volume_id: str | None = None
    image_id: str | None = None
    name: str | None = None
    size: int | None = None
    volume_type: str | None = None
    volume: _Volume | None = None


_NOTHING = _Facts()
_facts = msgspec.json.Decoder(_Facts).decode


def encode_job(job: Job, subs: Sequence[Job] = ()) -> bytes:
    """The answer to the job query.  `subs`: its sub-jobs in order, with their input and result.  Pure, made to be fast."""
    return _encode(show_job(job, subs))


def encode(job: HuaweiJob) -> bytes:
    """The body that a value has."""
    return _encode(job)


def show_job(job: Job, subs: Sequence[Job] = ()) -> HuaweiJob:
    """A job with its sub-jobs as this wire has it."""
    service = service_of(job.kind)
    parent = bool(subs or job.sub_total or (job.kind in PARENTS and job.state is not State.HELD))
    entities = Entities() if parent and service is Service.EVS else _entities(job, service)
    if parent:
        entities.sub_jobs = [_show_sub(sub) for sub in subs]
        if service is Service.ECS:
            entities.sub_jobs_total = max(job.sub_total, len(subs))
    shown = _show(job, service, entities)
    if job.error is not None and job.state is State.FAILED and parent and job.error.code == "sub_jobs_failed":
        shown.fail_reason = _counts(subs) or shown.fail_reason
    if job.state is State.SUCCEEDED and any(sub.state not in FINAL for sub in subs):  # read before the last one ended
        shown.status, shown.end_time = "RUNNING", ""
    return shown


def _show_sub(job: Job) -> HuaweiJob:
    service = service_of(job.kind)
    entities = _entities(job, service)
    shown = _show(job, service, entities)
    if service is Service.ECS and shown.fail_reason is not None:
        entities.errorcode_message = shown.fail_reason
    return shown


def _show(job: Job, service: Service, entities: Entities) -> HuaweiJob:
    code = reason = None
    if job.state is State.FAILED:
        code = job_code(service, job.kind, job.error.code if job.error else "")
        reason = job.error.message if job.error else "the job failed and gave no reason"
    elif job.state is State.CANCELLED:
        code, reason = CANCELLED, job.error.message if job.error else "the job was cancelled"
    return HuaweiJob(
        status=STATUS[job.state],
        entities=entities,
        job_id=job.id.replace("-", ""),
        job_type=job.kind,
        begin_time=at_ms(job.created_us),
        end_time=at_ms(job.ended_us),
        error_code=code,
        fail_reason=reason,
    )


def _counts(subs: Sequence[Job]) -> str | None:
    bad = sum(sub.state in (State.FAILED, State.CANCELLED) for sub in subs)
    good = sum(sub.state is State.SUCCEEDED for sub in subs)
    return f"Subjob fails. {bad} of {len(subs)} sub-jobs failed, {good} succeeded." if bad else None


def _entities(job: Job, service: Service) -> Entities:
    """From the known keys of input and result; the result's win."""
    made = _read_facts(job.result)
    if service is Service.EVS and made.volume_id and made.name is not None and made.size is not None and made.volume_type:
        return Entities(volume_id=made.volume_id, name=made.name, size=made.size, volume_type=made.volume_type)
    asked = _read_facts(job.input)
    if service is Service.ECS:
        return Entities(
            server_id=made.server_id or asked.server_id,
            nic_id=made.nic_id or asked.nic_id,
            volume_id=made.volume_id or asked.volume_id,
            image_id=made.image_id,
        )
    spec = asked.volume or _Volume()
    return Entities(
        volume_id=made.volume_id or asked.volume_id,
        name=_or(made.name, _or(asked.name, spec.name)),
        size=_or(made.size, _or(asked.size, spec.size)),
        volume_type=made.volume_type or asked.volume_type or spec.volume_type,
    )


def _or(first: Any, second: Any) -> Any:
    return second if first is None else first


def _read_facts(text: bytes | None) -> _Facts:
    if not text or text == b"{}" or text == b"null":
        return _NOTHING
    try:
        return _facts(text)
    except msgspec.DecodeError:  # a user's kind may mean something else by these words
        return _read_some_facts(text)


def _read_some_facts(text: bytes) -> _Facts:
    try:
        found = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        return _NOTHING
    facts = _Facts()
    for key in ("server_id", "nic_id", "volume_id", "image_id", "name", "volume_type"):
        if isinstance(value := found.get(key), str):
            setattr(facts, key, value)
    return facts


# --- the client's side ----------------------------------------------------------------------------------------------

_TEXTS = tuple(
    (field.name, field.encode_name)
    for field in msgspec.structs.fields(Entities)
    if field.name not in ("sub_jobs", "sub_jobs_total", "size")
)


def decode(body: bytes) -> HuaweiJob:
    """A job of any service of this shape, its quirks straightened.

    Rules: nulls, missing keys, "" and keys of a wrong type count as absent; `size` may be text; `sub_jobs` may be "", null, or
    at the top level; the error may be nested in `error`, or be `code` and `message`.
    Errors: msgspec.DecodeError, ValueError when it is no job.
    """
    return read_job(msgspec.json.decode(body))


def read_job(found: Any) -> HuaweiJob:
    """As decode, from what is parsed already."""
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    status = _text(found.get("status"))
    if status is None:
        told = error_in(found)
        raise ValueError(f"it has no status, but says {told.code}: {told.message}" if told else "it has no status")
    raw = found.get("entities")
    entities = _read_entities(raw if isinstance(raw, dict) else {}, found)
    job = HuaweiJob(
        status=status,
        entities=entities,
        job_id=_text(found.get("job_id")) or _text(found.get("id")) or "",
        job_type=_text(found.get("job_type")) or "",
        begin_time=_time(found.get("begin_time")),
        end_time=_time(found.get("end_time")),
        error_code=_text(found.get("error_code")),
        fail_reason=_text(found.get("fail_reason")),
    )
    if job.state in (State.FAILED, State.CANCELLED) and job.error_code is None and job.fail_reason is None:
        told = error_in({key: value for key, value in found.items() if key != "entities"})
        if told is not None:
            job.error_code, job.fail_reason = told.code, told.message or None
    return job


def _read_entities(raw: dict[str, Any], found: dict[str, Any]) -> Entities:
    entities = Entities(size=_size(raw.get("size")))
    for name, key in _TEXTS:
        value = _text(raw.get(key))
        if value is not None:
            setattr(entities, name, value)
    subs = next((value for value in (raw.get("sub_jobs"), found.get("sub_jobs")) if isinstance(value, list)), None)
    if subs is not None:
        entities.sub_jobs = [read_job({"status": "INIT", **_without_nulls(sub)}) for sub in subs if isinstance(sub, dict)]
    entities.sub_jobs_total = _size(raw.get("sub_jobs_total", found.get("sub_jobs_total")))
    return entities


def _without_nulls(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if value is not None and value != ""}


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _time(value: Any) -> str:
    if isinstance(value, str):
        return value
    return at_ms(read_time(value))


def _size(value: Any) -> int | None:
    """A whole number that may be written as text."""
    if isinstance(value, bool):
        return None
    try:
        return int(float(value)) if isinstance(value, str | float) else value if isinstance(value, int) else None
    except (ValueError, OverflowError):
        return None


def to_view(job: HuaweiJob, *, parent_id: str | None = None, raw: Any = None) -> JobView:
    """The job in our words.  `result` is its `Entities`, from the moment that the cloud shows any, always when it succeeded."""
    state = job.state
    begin_us, end_us = read_time(job.begin_time), read_time(job.end_time)
    subs = tuple(to_view(sub, parent_id=job.job_id) for sub in job.entities.sub_jobs or ())
    counts: dict[str, int] = {}
    for sub in subs:
        counts[str(sub.state)] = counts.get(str(sub.state), 0) + 1
    result = msgspec.structs.replace(job.entities, sub_jobs=None, sub_jobs_total=None)
    unseen = (job.entities.sub_jobs_total or 0) - len(subs)
    if subs and unseen > 0:  # announced and not shown yet
        counts[str(State.READY)] = counts.get(str(State.READY), 0) + unseen
    return JobView(
        id=job.job_id,
        kind=job.job_type,
        state=state,
        status=job.status,
        result=result if state is State.SUCCEEDED or result != Entities() else None,
        error=_failure(job) if state in (State.FAILED, State.CANCELLED) else None,
        parent_id=parent_id,
        sub_jobs=subs,
        sub_counts=counts,
        created_us=begin_us,
        started_us=begin_us if state not in (State.HELD, State.READY) else None,
        ended_us=end_us if state in FINAL else None,
        updated_us=end_us if state in FINAL else None,
        raw=raw,
    )


def _failure(job: HuaweiJob) -> Failure:
    """The cloud's own code; our word for it is in `details["reason"]`."""
    reason = "cancelled" if job.error_code == CANCELLED else reason_of(job.error_code)
    text = job.fail_reason or job.entities.errorcode_message
    if text is None:
        text = "Subjob fails." if job.error_code == SUB_JOB_FAILS else "the job failed and gave no reason"
    return Failure(job.error_code or "job_failed", text, None if reason is None else {"reason": reason})
