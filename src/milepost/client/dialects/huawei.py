"""How to talk to Huawei Cloud's services about their jobs: one dialect, one name a service (`huawei-ecs`, `huawei-rds`, …).

A job is known by its id alone: these services list no jobs, cancel none and keep no history.  A submit goes where its kind is
made; only those that take `X-Client-Token` may be repeated when their answer was lost.

Source: wire/huawei/other.py has the services; huaweicloudsdkcore the errors.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar
from urllib.parse import quote

import msgspec

from milepost.client.cadence import retry_after_s
from milepost.client.dialects import PROJECT, Spec, error_of, excerpt
from milepost.client.dialects.polled import Polled
from milepost.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    LimitExceeded,
    MilepostError,
    NotFound,
    ProtocolError,
    Unauthenticated,
)
from milepost.job import State
from milepost.wire import JobView, Request, Response
from milepost.wire import huawei as wire
from milepost.wire.huawei.errors import JOB_UNKNOWN, PROJECT_MISMATCH, ROUTE_UNKNOWN, TOKEN_REFUSED, reason_of
from milepost.wire.huawei.other import SERVICES, Difference, Shape, read_view
from milepost.wire.huawei.submits import ROUTES, read_submitted, submit_request

ACCEPT = {"Accept": "application/json", "Content-Type": "application/json"}  # the SDKs send the type on a GET, too
PREFIX = "huawei-"
NAMES = tuple(PREFIX + service for service in SERVICES)

_BY_CODE: dict[str, type[MilepostError]] = {
    JOB_UNKNOWN: NotFound,
    TOKEN_REFUSED: Unauthenticated,
    "EVS.0002": Unauthenticated,
    "EVS.5401": Unauthenticated,
    "Ecs.0004": Unauthenticated,
    PROJECT_MISMATCH: InvalidInput,
    "Ecs.0023": InvalidInput,
    "EVS.0001": InvalidInput,
    ROUTE_UNKNOWN: ProtocolError,
    "Ecs.0003": Forbidden,
    "Pdp.0001": Forbidden,
}
_BY_REASON: dict[str, type[MilepostError]] = {
    "volume_not_found": NotFound,
    "server_not_found": NotFound,
    "volume_attached": Conflict,
    "volume_busy": Conflict,
    "volume_state": Conflict,
    "server_state": Conflict,
    "not_attached": Conflict,
    "volume_quota": LimitExceeded,
    "capacity_quota": LimitExceeded,
    "server_quota": LimitExceeded,
    "nic_limit": LimitExceeded,
    "device_limit": LimitExceeded,
}


class Huawei(Polled):
    """The jobs of one service: polls only.  `huawei(name)` makes one."""

    service: ClassVar[str]
    difference: ClassVar[Difference]
    name: ClassVar[str]
    title: ClassVar[str]
    service_type: ClassVar[str]
    request_id: ClassVar[str] = "x-request-id"

    def endpoint(self, url: str) -> str:
        """The unversioned base: catalogs have it with version and project, users without."""
        return re.sub(r"/v\d+(\.\d+)?(/[^/]+)?$", "", url.rstrip("/"))

    def submit(self, spec: Spec) -> Request:
        self.refuse_options(spec)
        routes = ROUTES.get(wire.Service(self.service), {}) if self.service in ("ecs", "evs") else {}
        if spec.kind not in routes:
            raise self._no_submit(spec.kind, sorted(routes))
        body = msgspec.json.decode(spec.input) if spec.input is not None else {}
        if not isinstance(body, dict):
            raise InvalidInput(f"the input of {spec.kind} is the vendor's body, an object", path="$.input")
        try:
            return submit_request(routes[spec.kind], body, project=PROJECT, token=spec.idempotency_key)
        except KeyError as error:
            key = error.args[0]
            raise InvalidInput(
                f"{spec.kind} needs {key!r} in its input: the vendor's own body, and beside it the ids that stand in the path",
                path=f"$.input.{key}",
            ) from None

    def _no_submit(self, kind: str, known: list[str]) -> InvalidInput:
        if not known:
            return InvalidInput(
                f"nothing can be submitted to {self.title} by the name of its job; its jobs can be waited for",
                path="$.kind",
                hint="submit with the vendor's own SDK and wait for the job_id that it answers",
            )
        return InvalidInput(
            f"{self.title} has no call that makes a {kind!r}; known: {', '.join(known)}",
            path="$.kind",
            hint="sub-jobs are made by their parent; this server's other kinds need wire='native'",
        )

    def probe(self, job_id: str, *, etag: str | None = None, wait_s: float = 0) -> Request:  # noqa: ARG002 - it has neither
        if self.difference.shape is Shape.JOB and (ours := wire.read_job_id(job_id)) is not None:
            job_id = wire.job_hex(ours)
        path = self.difference.path.replace("{job_id}", quote(job_id, safe=""))
        return Request("GET", path, ACCEPT)

    def read_job(self, response: Response) -> JobView:
        try:
            return read_view(self.service, response.body)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise self.not_ours("a job", response, error) from error

    def read_submitted(self, response: Response, spec: Spec) -> JobView:
        """The job that the answer names; it says nothing else of it.  Errors: Conflict for an order that is no job yet."""
        try:
            told = read_submitted(response.body)
        except (msgspec.DecodeError, ValueError) as error:
            raise self.not_ours("the answer to a submit", response, error) from error
        held = told.job_id is None
        job_id = told.job_id or wire.read_order_id(told.order_id or "")
        if job_id is None:
            raise Conflict(
                f"{self.title} took the request as order {told.order_id}: there is no job until it is paid",
                order_id=told.order_id,
                hint="pay the order; then wait for its resource with the vendor's SDK",
            )
        named = wire.Entities()
        if len(told.ids) == 1:
            named = wire.Entities(volume_id=told.ids[0]) if self.service == "evs" else wire.Entities(server_id=told.ids[0])
        return JobView(
            id=wire.job_hex(job_id) if held else job_id,
            kind=spec.kind,
            state=State.HELD if held else State.READY,
            status=wire.STATUS[State.HELD if held else State.READY],
            result=named if told.ids else None,
            raw=msgspec.json.decode(response.body),
        )

    def read_error(self, response: Response, job_id: str | None) -> MilepostError:
        told = wire.read_error(response.body)
        request_id = response.headers.get("x-request-id")
        if told is None:
            text = excerpt(response.body) or "no body"
            return self._error(response, f"HTTP {response.status} and no error of this API: {text}", None, job_id, request_id)
        text = told.message or "no reason was given"
        if told.code and told.code != str(response.status):
            text = f"{text} ({told.code})"
        return self._error(response, text, told.code, job_id, request_id or told.request_id)

    def _error(
        self, response: Response, text: str, code: str | None, job_id: str | None, request_id: str | None
    ) -> MilepostError:
        reason = reason_of(code) if code != JOB_UNKNOWN else None
        found = _BY_CODE.get(code or "") or _BY_REASON.get(reason or "")
        if response.status in (401, 429) or response.status >= 500:  # these say it better than any code
            found = None
        fields: dict[str, Any] = {"limit": reason} if found is LimitExceeded else {}
        if found is InvalidInput:
            fields |= {"path": "$.project", "hint": "is this the project that the token or the key is of?"}
        if found is ProtocolError:
            fields["hint"] = f"is this the endpoint of {self.title}?"
        return error_of(
            response.status,
            text,
            code=found.code if found is not None else None,
            job_id=job_id,
            request_id=request_id,
            retry_after_s=retry_after_s(response.headers),
            **{key: value for key, value in {"cloud_code": code, "reason": reason, **fields}.items() if value is not None},
        )


def huawei(name: str) -> Huawei:
    """The dialect of `huawei-<service>`.  Errors: KeyError."""
    service = name.removeprefix(PREFIX)
    difference = SERVICES[service]
    own = {
        "service": service,
        "difference": difference,
        "name": name,
        "title": difference.title,
        "service_type": difference.catalog,
    }
    made: Huawei = type("Huawei", (Huawei,), own)()
    return made
