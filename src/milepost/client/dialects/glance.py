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
from milepost.client.dialects import Page, Query, Spec, error_of
from milepost.client.dialects.polled import Polled
from milepost.errors import InvalidInput, MilepostError
from milepost.job import State
from milepost.wire import JobView, Request, Response
from milepost.wire import glance as wire

ACCEPT = {"Accept": "application/json"}
JSON = {**ACCEPT, "Content-Type": "application/json"}


class Glance(Polled):
    """The image service's tasks: polls only."""

    name: ClassVar[str] = "glance"
    title: ClassVar[str] = "the image-task API"
    service_type: ClassVar[str] = "image"
    noun: ClassVar[str] = "task"
    request_id: ClassVar[str] = "x-openstack-request-id"
    changes_max: ClassVar[int] = 200
    lists: ClassVar[bool] = True

    def endpoint(self, url: str) -> str:
        """The unversioned base: catalogs have it with and without the version."""
        return re.sub(r"/v2(\.\d+)?$", "", url.rstrip("/"))

    def submit(self, spec: Spec) -> Request:
        self.refuse_options(spec)
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

    def read_job(self, response: Response) -> JobView:
        try:
            return wire.read_task(response.body)
        except (msgspec.DecodeError, ValueError) as error:
            raise self.not_ours("a task", response, error) from error

    def read_submitted(self, response: Response, spec: Spec) -> JobView:  # noqa: ARG002 - the answer has it all
        return self.read_job(response)

    def read_page(self, response: Response) -> Page:
        try:
            views, next_path = wire.read_task_page(response.body)
        except (msgspec.DecodeError, ValueError) as error:
            raise self.not_ours("a page of tasks", response, error) from error
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
