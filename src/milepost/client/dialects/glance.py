"""How to talk to any OpenStack image service about its tasks.

Glance has no cancel, no retry, no history and no idempotency key.  A submit names its request (`X-Openstack-Request-ID`), and
Glance keeps that name in the task: so a submit whose answer was lost can be found again instead of being sent twice.

Source: openstack/glance glance/api/v2/tasks.py, glance/api/middleware/context.py.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import msgspec

from milepost.client.cadence import retry_after_s
from milepost.client.dialects import Page, Query, Spec, error_of, excerpt
from milepost.errors import Conflict, InvalidInput, MilepostError, ProtocolError
from milepost.job import State
from milepost.wire import JobView, Request, Response
from milepost.wire import glance as wire

ACCEPT = {"Accept": "application/json"}
JSON = {**ACCEPT, "Content-Type": "application/json"}


class Glance:
    """The image service's tasks: polls only."""

    name: ClassVar[str] = "glance"
    title: ClassVar[str] = "the image-task API"
    service_type: ClassVar[str] = "image"
    long_poll_s: ClassVar[float] = 0.0
    bulk_max: ClassVar[int] = 0
    changes_max: ClassVar[int] = 200
    streams: ClassVar[bool] = False
    lists: ClassVar[bool] = True
    found_grace_s: ClassVar[float] = 10.0
    submits_once: ClassVar[bool] = False

    def endpoint(self, url: str) -> str:
        """The unversioned base: catalogs have it with and without the version."""
        return re.sub(r"/v2(\.\d+)?$", "", url.rstrip("/"))

    def base(self, endpoint: str, path: str) -> str:  # noqa: ARG002 - it has one host
        return endpoint

    def identify(self, token: str | None, project: str | None) -> dict[str, str]:
        headers = {"X-Auth-Token": token} if token else {}
        return {**headers, "X-Project-Id": project} if project else headers

    def submit(self, spec: Spec) -> Request:
        options = {
            "queue": spec.queue,
            "priority": spec.priority,
            "labels": spec.labels or None,
            "held": spec.held or None,
            "run_at": spec.run_at,
            "attempts_max": spec.attempts_max,
            "timeout_s": spec.timeout_s,
            "deadline_s": spec.deadline_s,
            "callback": spec.callback_url,
        }
        given = [name for name, value in options.items() if value is not None]
        if given:
            raise InvalidInput(
                f"{self.title} has no {', '.join(given)}", path=f"$.{given[0]}", hint="leave it out, or use wire='native'"
            )
        input = msgspec.json.decode(spec.input) if spec.input is not None else {}
        headers = {**JSON, "X-Openstack-Request-ID": request_id_of(spec)}
        return Request("POST", "/v2/tasks", headers, wire.encode_create(spec.kind, input))

    def probe(self, job_id: str, *, etag: str | None = None, wait_s: float = 0) -> Request:  # noqa: ARG002 - it has neither
        return Request("GET", f"/v2/tasks/{quote(job_id, safe='')}", ACCEPT)

    def list_jobs(self, query: Query) -> Request:
        unknown = [name for name in ("queue", "labels", "parent_id", "ids") if getattr(query, name)]
        if unknown:
            raise InvalidInput(f"{self.title} cannot filter by {', '.join(unknown)}", path=f"$.{unknown[0]}")
        pairs: list[tuple[str, Any]] = [("sort_dir", "asc" if query.oldest_first else "desc")]
        if query.by_change:
            pairs.insert(0, ("sort_key", "updated_at"))
        statuses = {_status(state) for state in query.states}
        if len(statuses) > 1:
            raise InvalidInput(
                f"{self.title} filters by one status at a time, not {', '.join(sorted(statuses))}", path="$.states"
            )
        pairs += [("status", status) for status in statuses]
        if query.kind is not None:
            pairs.append(("type", query.kind))
        if query.page_size is not None:
            pairs.append(("limit", query.page_size))
        return Request("GET", "/v2/tasks?" + urlencode(pairs), ACCEPT)

    def act(self, job_id: str, verb: str) -> Request:
        raise Conflict(
            f"{self.title} cannot {verb} a task",
            job_id=job_id,
            hint=f"on a Milepost server use its own API: milepost {verb} {job_id} --wire native",
        )

    def events(self, job_id: str, *, after: int = 0, tree: bool = False, stream: bool = False) -> Request:  # noqa: ARG002
        raise Conflict(
            f"{self.title} keeps no history of a task",
            job_id=job_id,
            hint=f"on a Milepost server use its own API: milepost events {job_id} --wire native",
        )

    def read_job(self, response: Response) -> JobView:
        try:
            return wire.read_task(response.body)
        except (msgspec.DecodeError, ValueError) as error:
            raise _not_ours("a task", response, error) from error

    def read_submitted(self, response: Response, spec: Spec) -> JobView:  # noqa: ARG002 - the answer has it all
        return self.read_job(response)

    def read_page(self, response: Response) -> Page:
        try:
            views, next_path = wire.read_task_page(response.body)
        except (msgspec.DecodeError, ValueError) as error:
            raise _not_ours("a page of tasks", response, error) from error
        return Page(tuple(views), next_path if views else None)

    def read_error(self, response: Response, job_id: str | None) -> MilepostError:
        text = wire.read_error(response.body, response.headers.get("content-type", ""))
        return error_of(
            response.status,
            text or f"HTTP {response.status} without a reason",
            job_id=job_id,
            request_id=response.headers.get("x-openstack-request-id"),
            retry_after_s=retry_after_s(response.headers),
        )


def request_id_of(spec: Spec) -> str:
    """The request's own name, made from the idempotency key: at most 64 characters, as Glance demands."""
    return f"req-{spec.idempotency_key}"[:64]


def _status(word: str) -> str:
    """Glance's word for one of our states; its own words pass."""
    try:
        return wire.STATUS[State(word)]
    except ValueError:
        return word


def _not_ours(what: str, response: Response, error: Exception) -> ProtocolError:
    return ProtocolError(
        f"the answer is not {what}: {error}; it begins {excerpt(response.body, 80)!r}",
        status=response.status,
        request_id=response.headers.get("x-openstack-request-id"),
        hint="is this an image service's URL?",
    )
