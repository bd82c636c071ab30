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
from milepost.client.dialects import Page, Query, Spec, error_of, excerpt
from milepost.errors import (
    CallerError,
    Conflict,
    Forbidden,
    InvalidInput,
    MilepostError,
    NotFound,
    ProtocolError,
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


class Qiniu:
    """Persistent processing: polls only."""

    name: ClassVar[str] = "qiniu"
    title: ClassVar[str] = "Qiniu's persistent processing"
    service_type: ClassVar[str] = "media"
    long_poll_s: ClassVar[float] = 0.0
    bulk_max: ClassVar[int] = 0
    changes_max: ClassVar[int] = 0
    streams: ClassVar[bool] = False
    lists: ClassVar[bool] = False
    found_grace_s: ClassVar[float] = 10.0
    submits_once: ClassVar[bool] = False

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
        options = {
            "priority": spec.priority,
            "labels": spec.labels or None,
            "held": spec.held or None,
            "run_at": spec.run_at,
            "attempts_max": spec.attempts_max,
            "timeout_s": spec.timeout_s,
            "deadline_s": spec.deadline_s,
        }
        given = [name for name, value in options.items() if value is not None]
        if given:
            raise InvalidInput(
                f"{self.title} has no {', '.join(given)}", path=f"$.{given[0]}", hint="leave it out, or use wire='native'"
            )
        if spec.kind != prefop.KIND:
            raise InvalidInput(f"{self.title} has no kind {spec.kind!r}; its only one is {prefop.KIND!r}", path="$.kind")
        return pfop.submit_request(_form(spec))

    def probe(self, job_id: str, *, etag: str | None = None, wait_s: float = 0) -> Request:  # noqa: ARG002 - it has neither
        return pfop.status_request(pfop.as_persistent_id(job_id))

    def list_jobs(self, query: Query) -> Request:  # noqa: ARG002 - it has no list
        raise Conflict(
            f"{self.title} cannot list jobs: it knows a job by its persistentId alone",
            hint="keep the persistentId that a submit answers (milepost get ID); a Milepost server lists with --wire native",
        )

    def act(self, job_id: str, verb: str) -> Request:
        raise Conflict(
            f"{self.title} cannot {verb} a job",
            job_id=job_id,
            hint=f"on a Milepost server use its own API: milepost {verb} {_native_id(job_id)} --wire native",
        )

    def events(self, job_id: str, *, after: int = 0, tree: bool = False, stream: bool = False) -> Request:  # noqa: ARG002
        raise Conflict(
            f"{self.title} keeps no history of a job",
            job_id=job_id,
            hint=f"on a Milepost server use its own API: milepost events {_native_id(job_id)} --wire native",
        )

    def read_job(self, response: Response) -> JobView:
        try:
            found = msgspec.json.decode(response.body)
            return prefop.to_view(prefop.read_status(found), raw=found)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise self._not_ours("the status of a job", response, error) from error

    def read_submitted(self, response: Response, spec: Spec) -> JobView:
        """The job that the answer names; it says nothing else of it."""
        try:
            id = pfop.read_submitted(response.body)
        except (msgspec.DecodeError, ValueError) as error:
            raise self._not_ours("the answer to a submit", response, error) from error
        raw = msgspec.json.decode(response.body)
        return JobView(id=id, kind=spec.kind, state=State.READY, status=str(prefop.WAITING), raw=raw)

    def read_page(self, response: Response) -> Page:
        raise self._not_ours("a page of jobs", response, ValueError("there are none"))

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

    def _not_ours(self, what: str, response: Response, error: Exception) -> ProtocolError:
        return ProtocolError(
            f"the answer is not {what}: {error}; it begins {excerpt(response.body, 80)!r}",
            status=response.status,
            request_id=response.headers.get("x-reqid"),
            hint=f"is this the endpoint of {self.title}?",
        )


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


def _native_id(id: str) -> str:
    return read_persistent_id(id) or id
