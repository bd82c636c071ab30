"""The submit of persistent processing: its form and its answer, both ways, and the ids of its jobs.

Rules
1. `/pfop` and `/pfop/` are one path; it is signed as it was sent, so there is no redirect.
2. `force` and `type` take 0 and 1; what is empty is as if it were not there.
3. A persistentId is opaque and keeps its case; only its prefix means something: the region.

Source: qiniu/api-specs media/pfop.yml; qiniu/python-sdk qiniu/services/processing/pfop.py; qiniu/go-sdk storage/pfop.go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlencode

import msgspec

from milepost.wire import Request
from milepost.wire.qiniu import errors
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.qiniu.ids import persistent_id

SHARED = "0.default"  # the pipeline of those who name none
SHARED_NAMES = frozenset({"", SHARED, "default.sys"})
FORM = "application/x-www-form-urlencoded"
SUBMIT_PATH, STATUS_PATH = "/pfop", "/status/get/prefop"


# --- the submit ------------------------------------------------------------------------------------------------------------


class Form(msgspec.Struct, kw_only=True, frozen=True):
    """What a submit asks for.  Exactly one of `fops` and `workflow_id` is not empty."""

    bucket: str
    key: str
    fops: str = ""
    workflow_id: str = ""
    notify_url: str = ""
    pipeline: str = ""
    force: bool = False
    idle: bool = False


def read_form(fields: Mapping[str, str]) -> Form:
    """Errors: Refusal 400."""
    for name in ("bucket", "key"):
        if name not in fields or (name == "bucket" and not fields[name]):
            raise Refusal(errors.BAD_REQUEST, f"the parameter {name} is missing")
    return Form(
        bucket=fields["bucket"],
        key=fields["key"],
        fops=fields.get("fops", ""),
        workflow_id=fields.get("workflowTemplateID", ""),
        notify_url=fields.get("notifyURL", ""),
        pipeline=fields.get("pipeline", ""),
        force=_flag(fields, "force"),
        idle=_flag(fields, "type"),
    )


def _flag(fields: Mapping[str, str], name: str) -> bool:
    value = fields.get(name, "")
    if value not in ("", "0", "1"):
        raise Refusal(errors.BAD_REQUEST, f"{name} is {value[:20]!r}; it takes 0 or 1")
    return value == "1"


def encode_form(form: Form) -> bytes:
    """The body of a submit; what is empty is left out."""
    pairs = [("bucket", form.bucket), ("key", form.key)]
    optional = (
        ("pipeline", form.pipeline),
        ("notifyURL", form.notify_url),
        ("fops", form.fops),
        ("force", "1" if form.force else ""),
        ("type", "1" if form.idle else ""),
        ("workflowTemplateID", form.workflow_id),
    )
    return urlencode(pairs + [(name, value) for name, value in optional if value]).encode()


def submit_request(form: Form) -> Request:
    """`POST /pfop`."""
    return Request("POST", SUBMIT_PATH, {"Content-Type": FORM, "Accept": "application/json"}, encode_form(form))


def status_request(job_id: str) -> Request:
    """`GET /status/get/prefop?id=…`; the id goes as it is."""
    return Request("GET", f"{STATUS_PATH}?{urlencode({'id': job_id})}", {"Accept": "application/json"})


class _Submitted(msgspec.Struct):
    persistentId: str  # noqa: N815 - the wire's name


def encode_submitted(id: str) -> bytes:
    """The answer to a submit."""
    return msgspec.json.encode(_Submitted(id))


def read_submitted(body: bytes) -> str:
    """The persistentId of that answer.  Errors: msgspec.DecodeError."""
    return msgspec.json.decode(body, type=_Submitted).persistentId


# --- ids -------------------------------------------------------------------------------------------------------------------

_REGION = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*").fullmatch
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


def region_of(id: str) -> str | None:
    """The region in front of a persistentId; None for one of the old form, which has none."""
    region, dot, _ = id.partition(".")
    return region if dot and _REGION(region) else None


def as_persistent_id(id: str) -> str:
    """A job's id of a Milepost server, in whatever form it was given, as this wire has it; all others stay as they are."""
    return persistent_id(id) if _UUID(id) else id


# --- pipelines --------------------------------------------------------------------------------------------------------------


def pipeline_shown(pipeline: str, project: str) -> str:
    """`<project>.<name>`, or the shared one's name."""
    return SHARED if pipeline in SHARED_NAMES else f"{project}.{pipeline}"


def pipeline_name(pipeline: str, project: str) -> str:
    """The bare name of a pipeline that may be written with its project in front; empty for the shared one."""
    name = pipeline.removeprefix(f"{project}.")
    return "" if name in SHARED_NAMES else name
