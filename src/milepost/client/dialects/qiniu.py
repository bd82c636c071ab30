"""How to talk to Qiniu about persistent processing: submit commands over a stored object, and follow them by the persistentId.

A job is known by its id alone: Qiniu lists none, cancels none and keeps no history.  A persistentId begins with its region; where
the endpoint has hosts for several regions, an id is asked for at its own.

Rules
1. The endpoint is `URL` or `URL,z1=URL,na0=URL…`: the first is for submits and for all ids whose region has no host of its own.
2. Code 4, done but its notification was not taken, is a success; a code that nobody knows still runs.
3. 612 and 631 are «not found»; 573 asks to slow down.  The other codes of three digits are read as HTTP's.

Source: qiniu/python-sdk qiniu/services/processing/pfop.py; qiniu/go-sdk storage/region.go (the regions' hosts).
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from milepost.client.cadence import retry_after_s
from milepost.client.dialects import Spec, error_of, excerpt
from milepost.client.dialects.polled import Polled
from milepost.errors import (
    CallerError,
    Conflict,
    Forbidden,
    InvalidInput,
    MilepostError,
    NotFound,
    Throttled,
)
from milepost.job import State
from milepost.wire import JobView, Request, Response
from milepost.wire.qiniu import errors, pfop, prefop
from milepost.wire.qiniu.ids import read_persistent_id

_BY_STATUS: dict[int, type[MilepostError]] = {
    419: Forbidden,  # the account is frozen
    errors.NO_SUCH_ENTRY: NotFound,
    errors.NO_SUCH_BUCKET: NotFound,
    errors.ENTRY_EXISTS: Conflict,
    errors.TOO_MANY_BUCKETS: CallerError,
    errors.MODIFIED: Conflict,
    errors.CALLBACK_FAILED: CallerError,
}


class PfopInput(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the kind `pfop` takes here: one of `fops` (commands, or their text with `;`) and `workflow_id`."""

    bucket: str
    key: str
    fops: list[str] | str = ""
    workflow_id: str | None = None
    notify_url: str | None = None
    pipeline: str = ""
    force: bool = False
    idle: bool = False


class Qiniu(Polled):
    """Persistent processing: polls only."""

    name: ClassVar[str] = "qiniu"
    title: ClassVar[str] = "Qiniu's persistent processing"
    service_type: ClassVar[str] = "media"
    request_id: ClassVar[str] = "x-reqid"

    def endpoint(self, url: str) -> str:
        """Rule 1, without spaces and trailing slashes.  Errors: InvalidInput."""
        first, *others = (part.strip() for part in url.split(","))
        texts = [first.rstrip("/")]
        for part in others:
            region, mark, base = part.partition("=")
            if not mark or not region or not base.startswith(("http://", "https://")):
                raise InvalidInput(f"{part[:80]!r} is no region's endpoint; it is written z1=https://…", path="$.endpoint")
            texts.append(f"{region.strip()}={base.strip().rstrip('/')}")
        return ",".join(texts)

    def base(self, endpoint: str, path: str) -> str:
        first, *others = endpoint.split(",")
        hosts = dict(part.split("=", 1) for part in others)
        return hosts.get(pfop.region_of(_id_in(path)) or "", first)

    def identify(self, token: str | None, project: str | None) -> dict[str, str]:
        """Requests are signed; a token is a Milepost server's."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return {**headers, "X-Project-Id": project} if project else headers

    def submit(self, spec: Spec) -> Request:
        self.refuse_options(spec, "queue", "callback")
        if spec.kind != prefop.KIND:
            raise InvalidInput(f"{self.title} has no kind {spec.kind!r}; its only one is {prefop.KIND!r}", path="$.kind")
        return pfop.submit_request(_form(spec))

    def probe(self, job_id: str, *, etag: str | None = None, wait_s: float = 0) -> Request:  # noqa: ARG002 - it has neither
        return pfop.status_request(pfop.as_persistent_id(job_id))

    def native_id(self, job_id: str) -> str:
        return read_persistent_id(job_id) or job_id

    def read_job(self, response: Response) -> JobView:
        try:
            found = msgspec.json.decode(response.body)
            return prefop.to_view(prefop.read_status(found), raw=found)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise self.not_ours("the status of a job", response, error) from error

    def read_submitted(self, response: Response, spec: Spec) -> JobView:
        """The job that the answer names; it says nothing else of it."""
        try:
            id = pfop.read_submitted(response.body)
        except (msgspec.DecodeError, ValueError) as error:
            raise self.not_ours("the answer to a submit", response, error) from error
        raw = msgspec.json.decode(response.body)
        return JobView(id=id, kind=spec.kind, state=State.READY, status=str(prefop.WAITING), raw=raw)

    def read_error(self, response: Response, job_id: str | None) -> MilepostError:
        text = errors.read_error(response.body) or f"HTTP {response.status}: {excerpt(response.body) or 'no reason was given'}"
        found = _BY_STATUS.get(response.status)
        fields: dict[str, Any] = {"job_id": job_id, "request_id": response.headers.get("x-reqid")}
        pause_s = retry_after_s(response.headers)
        if response.status == errors.BUSY:
            return Throttled(text, retry_after_s=pause_s or 0.0, status=response.status, **fields)
        if response.status == errors.BAD_TOKEN:
            fields["hint"] = "set QINIU_ACCESS_KEY and QINIU_SECRET_KEY, or give credentials=KeyPair(…)"
        return error_of(response.status, text, code=None if found is None else found.code, retry_after_s=pause_s, **fields)


def _form(spec: Spec) -> pfop.Form:
    """Errors: InvalidInput."""
    try:
        asked = msgspec.json.decode(spec.input or b"{}", type=PfopInput)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the input of {spec.kind}: {error}", path="$.input") from error
    fops = asked.fops if isinstance(asked.fops, str) else ";".join(asked.fops)
    if bool(fops) == bool(asked.workflow_id):
        raise InvalidInput("one of fops and workflow_id is needed, and not both", path="$.input.fops")
    if spec.queue is not None and asked.pipeline:
        raise InvalidInput("queue and pipeline mean the same here; give one of them", path="$.queue")
    if spec.callback_url is not None and asked.notify_url:
        raise InvalidInput("callback_url and notify_url mean the same here; give one of them", path="$.callback_url")
    return pfop.Form(
        bucket=asked.bucket,
        key=asked.key,
        fops=fops,
        workflow_id=asked.workflow_id or "",
        notify_url=asked.notify_url or spec.callback_url or "",
        pipeline=asked.pipeline or spec.queue or "",
        force=asked.force,
        idle=asked.idle,
    )


def _id_in(path: str) -> str:
    """The persistentId that a path asks for."""
    return path.partition("?id=")[2]
