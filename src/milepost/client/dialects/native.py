"""How to talk to a Milepost server."""

from __future__ import annotations

import re
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import msgspec

from milepost.client.cadence import retry_after_s
from milepost.client.dialects import Page, Query, Spec, error_of, excerpt
from milepost.errors import MilepostError, ProtocolError
from milepost.job import Callback, State
from milepost.wire import JobView, Request, Response
from milepost.wire import native as wire

JSON = {"Content-Type": "application/json", "Accept": "application/json"}
ACCEPT = {"Accept": "application/json"}
STATES = frozenset(str(state) for state in State)


class Native:
    """Milepost's own API: long polls, streams, idempotent submits."""

    name: ClassVar[str] = "native"
    title: ClassVar[str] = "Milepost's API"
    service_type: ClassVar[str] = "image"  # a Milepost server's catalog has its one address under this name
    long_poll_s: ClassVar[float] = 20.0
    bulk_max: ClassVar[int] = 100
    changes_max: ClassVar[int] = 0
    streams: ClassVar[bool] = True
    lists: ClassVar[bool] = True
    found_grace_s: ClassVar[float] = 0.0  # a 2xx means that the job is on disk
    submits_once: ClassVar[bool] = True

    def endpoint(self, url: str) -> str:
        return url.rstrip("/")

    def base(self, endpoint: str, path: str) -> str:  # noqa: ARG002 - it has one host
        return endpoint

    def identify(self, token: str | None, project: str | None) -> dict[str, str]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return {**headers, "X-Project-Id": project} if project else headers

    def submit(self, spec: Spec) -> Request:
        body = wire.encode(_job_request(spec))
        return Request("POST", "/jobs", {**JSON, "Idempotency-Key": spec.idempotency_key}, body)

    def submit_many(self, specs: list[Spec]) -> Request:
        """One request, all or none; each entry carries its own idempotency key."""
        entries = [{**_job_request(spec), "idempotency_key": spec.idempotency_key} for spec in specs]
        return Request("POST", "/jobs", JSON, wire.encode(entries))

    def probe(self, job_id: str, *, etag: str | None = None, wait_s: float = 0) -> Request:
        headers = dict(ACCEPT)
        if etag is not None:
            headers["If-None-Match"] = etag
        if wait_s >= 1:
            headers["Prefer"] = f"wait={int(wait_s)}"
        return Request("GET", _path(job_id), headers)

    def list_jobs(self, query: Query) -> Request:
        pairs: list[tuple[str, Any]] = [("state", state) for state in query.states]
        pairs += [("id", job_id) for job_id in query.ids]
        pairs += [("label", f"{key}={value}") for key, value in query.labels.items()]
        named = {"kind": query.kind, "queue": query.queue, "parent": query.parent_id}
        pairs += [(name, value) for name, value in named.items() if value is not None]
        if query.page_size is not None:
            pairs.append(("limit", query.page_size))
        if query.oldest_first:
            pairs.append(("order", "asc"))
        if query.full:
            pairs.append(("view", "full"))
        return Request("GET", "/jobs?" + urlencode(pairs) if pairs else "/jobs", ACCEPT)

    def catalog(self, what: str) -> Request:
        """What the server has: `kinds` or `queues`."""
        return Request("GET", f"/{what}", ACCEPT)

    def set_queue(self, name: str, change: dict[str, Any] | str) -> Request:
        """Put a queue's whole setting (`limit`, `paused`), or `pause` or `resume` it."""
        path = f"/queues/{quote(name, safe='')}"
        if isinstance(change, str):
            return Request("POST", f"{path}/{change}", JSON, b"{}")
        return Request("PUT", path, JSON, wire.encode(change))

    def act(self, job_id: str, verb: str) -> Request:
        return Request("POST", f"{_path(job_id)}/{verb}", JSON, b"{}")

    def events(self, job_id: str, *, after: int = 0, tree: bool = False, stream: bool = False) -> Request:
        pairs = {"after": after} if after and not stream else {}
        if tree:
            pairs["tree"] = 1
        path = f"{_path(job_id)}/events" + ("?" + urlencode(pairs) if pairs else "")
        if not stream:
            return Request("GET", path, ACCEPT)
        headers = {"Accept": "text/event-stream"}
        return Request("GET", path, {**headers, "Last-Event-ID": str(after)} if after else headers)

    def project_events(self, *, after: int = 0) -> Request:
        """The stream of the project's events: from the one after `after`, or from now on."""
        headers = {"Accept": "text/event-stream"}
        return Request("GET", "/events", {**headers, "Last-Event-ID": str(after)} if after else headers)

    def read_job(self, response: Response) -> JobView:
        try:
            return wire.view_from_bytes(response.body)
        except msgspec.DecodeError as error:  # ValidationError is one
            known = _unknown_state(response.body)
            if known is None:
                raise _not_ours("a job", response, error) from error
            return known

    def read_submitted(self, response: Response, spec: Spec) -> JobView:  # noqa: ARG002 - the answer has it all
        return self.read_job(response)

    def read_page(self, response: Response) -> Page:
        try:
            page = wire.decode_page(response.body)
        except msgspec.DecodeError as error:
            raise _not_ours("a page of jobs", response, error) from error
        return Page(tuple(wire.to_view(job) for job in page.jobs), next_link(response.headers.get("link", "")))

    def read_many(self, response: Response) -> tuple[JobView, ...]:
        """The answer to `submit_many`, in the order of its entries."""
        return self.read_page(response).views

    def read_events(self, response: Response) -> tuple[list[wire.NativeEvent], str | None]:
        """The events of a page, oldest first, and the path of the next one."""
        try:
            page = wire.decode_events(response.body)
        except msgspec.DecodeError as error:
            raise _not_ours("a page of events", response, error) from error
        return page.events, next_link(response.headers.get("link", ""))

    def read_error(self, response: Response, job_id: str | None) -> MilepostError:
        try:
            problem = wire.decode_problem(response.body)
        except msgspec.DecodeError:
            text = excerpt(response.body) or "no body"
            return error_of(
                response.status,
                f"HTTP {response.status} and no problem document: {text}",
                job_id=job_id,
                request_id=response.headers.get("x-request-id"),
                retry_after_s=retry_after_s(response.headers),
            )
        given = retry_after_s(response.headers)
        return error_of(
            response.status,
            problem.detail or problem.title,
            code=problem.code,
            path=problem.path,
            hint=problem.hint,
            job_id=problem.job_id or job_id,
            state=problem.state,
            request_id=problem.request_id or response.headers.get("x-request-id"),
            retry_after_s=problem.retry_after_s if given is None else given,
            limit=problem.limit,
            allowed=problem.allowed,
            seen=problem.seen,
        )


def _job_request(spec: Spec) -> dict[str, Any]:
    body: dict[str, Any] = {"kind": spec.kind}
    if spec.input is not None:
        body["input"] = msgspec.Raw(spec.input)
    for name in ("queue", "priority", "run_at", "attempts_max", "timeout_s", "deadline_s"):
        if (value := getattr(spec, name)) is not None:
            body[name] = value
    if spec.labels:
        body["labels"] = spec.labels
    if spec.held:
        body["held"] = True
    if spec.callback_url is not None:
        body["callback"] = Callback(spec.callback_url, spec.callback_on)
    return body


PLAIN = re.compile(r"([0-9a-fA-F]{8})([0-9a-fA-F]{4})([0-9a-fA-F]{4})([0-9a-fA-F]{4})([0-9a-fA-F]{12})")


def _path(job_id: str) -> str:
    """An id as Huawei's wire shows it, without dashes, is the same id."""
    if plain := PLAIN.fullmatch(job_id):
        job_id = "-".join(plain.groups()).lower()
    return f"/jobs/{quote(job_id, safe='')}"


def _unknown_state(body: bytes) -> JobView | None:
    """The job when only its state is a word that this version does not know: it still runs, as far as we can tell."""
    try:
        raw = msgspec.json.decode(body, type=dict[str, Any])
        word = raw.get("state")
        if not isinstance(word, str) or word in STATES:
            return None
        native = wire.decode_job(wire.encode({**raw, "state": State.RUNNING}))
    except msgspec.DecodeError:
        return None
    return msgspec.structs.replace(wire.to_view(native), status=word, raw=raw)


def _not_ours(what: str, response: Response, error: Exception) -> ProtocolError:
    return ProtocolError(
        f"the answer is not {what}: {error}; it begins {excerpt(response.body, 80)!r}",
        status=response.status,
        request_id=response.headers.get("x-request-id"),
        hint="is this a Milepost server's URL?",
    )


LINK = re.compile(r'<([^>]*)>\s*(?:;[^,]*)?;\s*rel="?next"?')


def next_link(header: str) -> str | None:
    """The target of `rel=next` in a `Link` header.  Source: RFC 8288."""
    found = LINK.search(header)
    return found[1] if found else None
