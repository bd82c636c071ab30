"""Where Huawei Cloud's services differ, in one table, and the decoders of the two other job shapes.

| shape | services | a job is | it ends with |
|---|---|---|---|
| `job` | ECS, EVS, BMS, IMS, SDRS, VBS, EIP, classic ELB | the body itself, see jobs.py | `SUCCESS`, `FAIL` |
| `envelope` | RDS, DDS, TaurusDB | `{"job": {…}}`, asked for with `?id=` | `Completed`, `Failed` |
| `phase` | CCE | `metadata`, `spec`, `status`, as in Kubernetes | `Success`, `Failed` |

A word that is none of the table's is a job that still runs.

Source: chnsz/golangsdk openstack/{ecs,bms,evs,ims,sdrs,vbs,rds,dds,taurusdb,cce} and networking/v2/extensions/elbaas/job.go.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

import msgspec

from milepost.job import FINAL, Failure, Progress, State
from milepost.wire import JobView
from milepost.wire.huawei.errors import error_in
from milepost.wire.huawei.jobs import Entities, read_job, to_view
from milepost.wire.huawei.times import read_time

JOB_PATH = "/v1/{project_id}/jobs/{job_id}"
QUERY_PATH = "/v3/{project_id}/jobs?id={job_id}"


class Shape(StrEnum):
    """What a job looks like."""

    JOB = "job"
    ENVELOPE = "envelope"
    PHASE = "phase"


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One service.  `catalog`: its type in IAM's catalog.  `entities`: what its jobs name besides sub-jobs."""

    title: str  # for sentences
    catalog: str
    path: str = JOB_PATH
    shape: Shape = Shape.JOB
    entities: tuple[str, ...] = ()
    quirk: str = ""


SERVICES: dict[str, Difference] = {
    "ecs": Difference(
        title="Huawei's compute API",
        catalog="ecs",
        entities=("server_id", "nic_id"),
        quirk="a sub-job may carry `errorcode_message`",
    ),
    "evs": Difference(
        title="Huawei's block-storage API",
        catalog="evs",
        entities=("volume_id", "name", "size", "volume_type"),
        quirk="no `sub_jobs_total`; `size` may be text; newer words `WAITING_EXECUTE`, `LISTENING`",
    ),
    "bms": Difference(
        title="Huawei's bare-metal API", catalog="bms", entities=("server_id",), quirk="`PENDING_PAYMENT` as in ECS"
    ),
    "ims": Difference(
        title="Huawei's image API",
        catalog="ims",
        entities=("image_id", "data_images"),
        quirk="asked at v1, submitted at v2; `__data_images` is text",
    ),
    "sdrs": Difference(
        title="Huawei's disaster-recovery API",
        catalog="sdrs",
        entities=("server_group_id", "protected_instance_id", "replication_pair_id", "disaster_recovery_drill_id"),
    ),
    "vbs": Difference(
        title="Huawei's volume-backup API",
        catalog="vbs",
        entities=("backup_id", "volume_id", "snapshot_id"),
        quirk="`sub_jobs` is at the top level, beside `entities`",
    ),
    "eip": Difference(
        title="Huawei's public-IP API", catalog="vpc", entities=("publicip_id",), quirk="`createBatchPublicip` has sub-jobs"
    ),
    "elb": Difference(
        title="Huawei's classic load-balancer API",
        catalog="elb",
        path="/v1.0/{project_id}/jobs/{job_id}",
        entities=("loadbalancer_id",),
        quirk="no begin_time and end_time; a submit answers `uri` and `job_id`",
    ),
    "rds": Difference(
        title="Huawei's relational-database API",
        catalog="rds",
        path=QUERY_PATH,
        shape=Shape.ENVELOPE,
        entities=("instance_id", "name"),
        quirk="a submit answers `job_id` or `jobId`; `process` is a percentage as text",
    ),
    "dds": Difference(
        title="Huawei's document-database API",
        catalog="dds",
        path=QUERY_PATH,
        shape=Shape.ENVELOPE,
        entities=("instance_id", "name"),
        quirk="`progress` is a percentage as text; times without milliseconds",
    ),
    "taurusdb": Difference(
        title="Huawei's TaurusDB API",
        catalog="gaussdb",
        path=QUERY_PATH,
        shape=Shape.ENVELOPE,
        entities=("instance_id", "name"),
        quirk="may have no times",
    ),
    "cce": Difference(
        title="Huawei's container-engine API",
        catalog="cce",
        path="/api/v3/projects/{project_id}/jobs/{job_id}",
        shape=Shape.PHASE,
        entities=("instance_id", "name"),
        quirk="sub-jobs are in `spec.subJobs`, a parent in `spec.ownerJob`",
    ),
}

WORDS: dict[str, State] = {  # of `envelope` and `phase`, in lower case
    "initializing": State.READY,
    "running": State.RUNNING,
    "completed": State.SUCCEEDED,
    "success": State.SUCCEEDED,
    "failed": State.FAILED,
}


def read_view(service: str, body: bytes) -> JobView:
    """A job of this service in our words.  Errors: msgspec.DecodeError, ValueError when it is no job."""
    found = msgspec.json.decode(body)
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    match SERVICES[service].shape:
        case Shape.JOB:
            return to_view(read_job(found), raw=found)
        case Shape.ENVELOPE:
            return _read_envelope(found)
        case Shape.PHASE:
            return _read_phase(found, raw=found)


# --- {"job": …} -----------------------------------------------------------------------------------------------------


def _read_envelope(found: dict[str, Any]) -> JobView:
    job = found.get("job")
    if not isinstance(job, dict):
        raise ValueError(_no_job(found, "`job`"))
    word = _text(job, "status")
    if word is None:
        raise ValueError(_no_job(job, "`job.status`"))
    state = WORDS.get(word.lower(), State.RUNNING)
    created_us, ended_us = read_time(job.get("created")), read_time(job.get("ended"))
    instance = _object(job, "instance")
    entities = Entities(instance_id=_text(instance, "id"), name=_text(instance, "name"))
    return JobView(
        id=_text(job, "id", "job_id", "jobId") or "",
        kind=_text(job, "name") or "",
        state=state,
        status=word,
        progress=None if state in FINAL else _progress(_text(job, "process", "progress")),
        result=_shown(entities, state),
        error=_failed(state, _text(job, "error_code"), _text(job, "fail_reason")),
        created_us=created_us,
        started_us=None if state is State.READY else created_us,
        ended_us=ended_us if state in FINAL else None,
        updated_us=ended_us if state in FINAL else None,
        raw=found,
    )


_PERCENT = re.compile(r"(\d{1,3})(?:\.\d+)?\s*%?")


def _progress(text: str | None) -> Progress | None:
    """Of `60%`, `60`, or some other note."""
    if text is None:
        return None
    percent = _PERCENT.fullmatch(text.strip())
    return Progress(min(int(percent[1]), 100), 100, "%") if percent else Progress(note=text)


# --- status.phase ---------------------------------------------------------------------------------------------------


def _read_phase(found: dict[str, Any], *, parent_id: str | None = None, raw: Any = None) -> JobView:
    metadata, spec, status = _object(found, "metadata"), _object(found, "spec"), _object(found, "status")
    word = _text(status, "phase")
    job_id = _text(metadata, "uid") or ""
    if word is None and parent_id is None:
        raise ValueError(_no_job(found, "`status.phase`"))
    state = WORDS.get((word or "initializing").lower(), State.RUNNING)
    created_us, updated_us = read_time(metadata.get("creationTimestamp")), read_time(metadata.get("updateTimestamp"))
    listed = spec.get("subJobs")
    subs = tuple(
        _read_phase(sub, parent_id=job_id) for sub in (listed if isinstance(listed, list) else ()) if isinstance(sub, dict)
    )
    counts: dict[str, int] = {}
    for sub in subs:
        counts[str(sub.state)] = counts.get(str(sub.state), 0) + 1
    entities = Entities(instance_id=_text(spec, "resourceID"), name=_text(spec, "resourceName"))
    return JobView(
        id=job_id,
        kind=_text(spec, "type") or "",
        state=state,
        status=word or "",
        result=_shown(entities, state),
        error=_failed(state, _text(status, "reason"), _text(status, "message") or _text(status, "reason")),
        parent_id=parent_id or _text(spec, "ownerJob"),
        sub_jobs=subs,
        sub_counts=counts,
        created_us=created_us,
        started_us=None if state is State.READY else created_us,
        ended_us=updated_us if state in FINAL else None,
        updated_us=updated_us,
        raw=raw,
    )


# --- pieces ---------------------------------------------------------------------------------------------------------


def _object(found: dict[str, Any], key: str) -> dict[str, Any]:
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def _text(found: dict[str, Any], *keys: str) -> str | None:
    for key in keys:
        value = found.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


def _shown(entities: Entities, state: State) -> Entities | None:
    return entities if state is State.SUCCEEDED or entities != Entities() else None


def _failed(state: State, code: str | None, reason: str | None) -> Failure | None:
    return Failure(code or "job_failed", reason or "the job failed and gave no reason") if state is State.FAILED else None


def _no_job(found: dict[str, Any], what: str) -> str:
    told = error_in(found)
    return f"it has no {what}, but says {told.code}: {told.message}" if told else f"it has no {what}"
