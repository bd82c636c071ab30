"""The native API as a table: every route with its handler and what its documentation says.  `app` dispatches by it,
`openapi` describes it; the handlers of most are in `jobs`, `subscriptions` and `tracked`, the others here.
"""

from __future__ import annotations

from collections.abc import Callable

from milepost import console
from milepost.engine.kinds import Kind
from milepost.errors import Forbidden, InvalidInput
from milepost.server import health, jobs, metrics, subscriptions, tracked
from milepost.server.http import JSON, Call, Reply, decode
from milepost.server.pipelines import is_foreign
from milepost.server.route import ALL_PROJECTS, LIMIT, Parameter, Route
from milepost.store import Queue, QueueDepth
from milepost.wire import rfc3339
from milepost.wire.native import (
    EventPage,
    JobPage,
    JobRequest,
    KindList,
    NativeJob,
    NativeKind,
    NativeQueue,
    QueueCounts,
    QueueList,
    QueueRequest,
    decode_queue_request,
    encode,
)

# --- kinds and queues ----------------------------------------------------------------------------------------------


async def list_kinds(call: Call) -> Reply:
    """What this server can run."""
    call.query.done()
    return Reply(200, encode(KindList([_kind(kind) for kind in call.state.kinds])))


def _kind(kind: Kind) -> NativeKind:
    input_schema, result_schema = kind.schemas()
    return NativeKind(
        name=kind.name,
        description=kind.description,
        queue=kind.queue,
        priority=kind.priority,
        attempts=kind.attempts,
        timeout_s=kind.timeout_s,
        style=kind.style,
        input_schema=input_schema,
        result_schema=result_schema,
    )


async def list_queues(call: Call) -> Reply:
    """Every queue that was set or is a kind's; for admins those with open jobs too, and how many are in each, across projects."""
    call.query.done()
    depths = {depth.name: depth for depth in await call.state.store.queue_depths()}
    of_kinds = {kind.queue for kind in call.state.kinds}
    if not call.identity.is_admin:  # a name that another project made up is that project's own affair
        made = {queue.name for queue in await call.state.store.list_queues()}
        known = {name for name in made | of_kinds if not is_foreign(name, call.identity.project)}
        depths = {name: depth for name, depth in depths.items() if name in known}
    found = [depths.get(name) or _empty_queue(name) for name in sorted(depths.keys() | of_kinds)]
    return Reply(200, encode(QueueList([_queue(depth, counts=call.identity.is_admin) for depth in found])))


def _empty_queue(name: str) -> QueueDepth:
    return QueueDepth(name, limit=None, paused=False, held=0, ready=0, scheduled=0, running=0, waiting=0, oldest_ready_us=None)


def _queue(depth: QueueDepth, *, counts: bool) -> NativeQueue:
    jobs = QueueCounts(
        held=depth.held,
        ready=depth.ready,
        scheduled=depth.scheduled,
        running=depth.running,
        waiting=depth.waiting,
        oldest_ready_at=rfc3339(depth.oldest_ready_us),
    )
    return NativeQueue(name=depth.name, limit=depth.limit, paused=depth.paused, jobs=jobs if counts else None)


async def put_queue(call: Call) -> Reply:
    """The queue has this limit and pause from now on."""
    jobs.check_json(call.headers.get(b"content-type", JSON))
    request = decode(decode_queue_request, await call.body())
    return await _set_queue(call, limit=lambda _: request.limit, paused=request.paused)


async def pause_queue(call: Call) -> Reply:
    """No job of the queue starts; those running go on."""
    return await _set_queue(call, limit=lambda old: old, paused=True)


async def resume_queue(call: Call) -> Reply:
    """Jobs of the queue start again."""
    return await _set_queue(call, limit=lambda old: old, paused=False)


async def _set_queue(call: Call, *, limit: Callable[[int | None], int | None], paused: bool) -> Reply:
    if not call.identity.is_admin:
        raise Forbidden("queues are changed by admins")
    call.query.done()
    name, longest = call.param, call.state.settings.name_chars_max
    if not 1 <= len(name) <= longest:
        raise InvalidInput(f"a queue name has 1 to {longest} characters", path="name")
    old = next((one.limit for one in await call.state.store.list_queues() if one.name == name), None)
    queue = Queue(name, limit(old), paused)
    await call.state.store.set_queue(queue)
    call.state.service.dispatch.announce_queues()
    return Reply(200, encode(NativeQueue(name=name, limit=queue.limit, paused=queue.paused)))


# --- the server itself ---------------------------------------------------------------------------------------------


async def show_metrics(call: Call) -> Reply:
    """Counters and gauges as Prometheus reads them; with auth an admin's token is needed."""
    if not call.identity.is_admin:
        raise Forbidden("metrics cover all projects, so they need the admin role")
    return Reply(200, await metrics.render(call.state), type=metrics.CONTENT_TYPE)


async def show_openapi(call: Call) -> Reply:
    """This API as an OpenAPI 3.1 document."""
    from milepost.server import openapi  # it reads the table below

    return Reply(200, openapi.document(token=call.state.settings.auth != "none"), [(b"cache-control", b"no-cache")])


async def show_docs(_: Call) -> Reply:
    """The OpenAPI document as a page; it needs nothing from anywhere else."""
    headers = [(b"cache-control", b"no-cache"), *console.SECURITY_HEADERS]
    return Reply(200, console.docs_page(), headers, type=b"text/html; charset=utf-8")


# --- the table -----------------------------------------------------------------------------------------------------

WAIT = Parameter("Prefer", "wait=N: answer when the job is final, or after N seconds", place="header")
KEY = Parameter("Idempotency-Key", "the same key and body give the same job; another body is 409", place="header")
STREAM = Parameter("Accept", "text/event-stream for a stream", place="header")
RESUME = Parameter("Last-Event-ID", "go on after this event, as `after`", place="header")
AFTER_EVENT = Parameter("after", "id of the last event seen", "integer")
PAGING = (
    Parameter("state", "in this state; more than one with commas", many=True),
    Parameter("kind", "of this kind", many=True),
    Parameter("queue", "in this queue"),
    Parameter("label", "with this label, as key:value; all of them must match", many=True),
    Parameter("order", "by creation", choices=("asc", "desc")),
    Parameter("view", "full: with input and result", choices=("basic", "full")),
    LIMIT,
    Parameter("after", "id of the last job of the page before; `Link` has the whole URL"),
    ALL_PROJECTS,
)
JOB = {200: (NativeJob, "the job")}
ASKED = {200: (NativeJob, "it ended"), 202: (NativeJob, "it was asked to end")}

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/jobs",
        jobs.submit,
        "jobs",
        "Submit a job, or an array of jobs: all of them or none",
        {
            202: (NativeJob | JobPage, "accepted: it is on disk; `Location` names it"),
            200: (NativeJob | JobPage, "accepted before, by its idempotency key; or final, with `Prefer: wait`"),
        },
        (KEY, WAIT),
        JobRequest | list[JobRequest],
        (400, 409, 413, 415),
    ),
    Route(
        "GET",
        "/jobs",
        jobs.list_jobs,
        "jobs",
        "List jobs, newest first",
        {200: (JobPage, "a page; `Link: rel=next` while there are more")},
        (*PAGING, Parameter("parent", "sub-jobs of this job"), Parameter("id", "these jobs only, sub-jobs too", many=True)),
        errors=(400,),
    ),
    Route(
        "GET",
        "/jobs/{id}",
        jobs.show,
        "jobs",
        "Read a job, at once or when it changed",
        {
            200: (NativeJob, "the job, with `ETag`, and `Retry-After` while it is not final"),
            304: (None, "unchanged since the version in If-None-Match"),
        },
        (
            WAIT,
            Parameter("If-None-Match", "the ETag you have; with Prefer: wait, answer when the job has another", place="header"),
            ALL_PROJECTS,
        ),
        errors=(404, 410),
    ),
    Route(
        "POST",
        "/jobs/{id}/cancel",
        jobs.cancel,
        "jobs",
        "Cancel a job and its sub-jobs",
        ASKED,
        (ALL_PROJECTS,),
        errors=(404, 409, 410),
    ),
    Route(
        "POST",
        "/jobs/{id}/retry",
        jobs.retry,
        "jobs",
        "Run a failed or cancelled job again, as a new job",
        {202: (NativeJob, "the new job; `retry_of` names the old one")},
        (ALL_PROJECTS,),
        errors=(404, 409, 410),
    ),
    Route(
        "POST",
        "/jobs/{id}/release",
        jobs.release,
        "jobs",
        "Let a held job run",
        {202: (NativeJob, "it is ready")},
        (ALL_PROJECTS,),
        errors=(404, 409, 410),
    ),
    Route(
        "GET",
        "/jobs/{id}/sub-jobs",
        jobs.list_sub_jobs,
        "jobs",
        "List a job's sub-jobs, in their order",
        {200: (JobPage, "a page")},
        PAGING,
        errors=(400, 404, 410),
    ),
    Route(
        "GET",
        "/jobs/{id}/events",
        jobs.job_events,
        "events",
        "A job's history, as a page or followed to its end as a stream",
        {200: (EventPage, "a page, or the stream"), 204: (None, "a resumed stream has nothing more to say")},
        (STREAM, RESUME, AFTER_EVENT, LIMIT, Parameter("tree", "1: with the events of the whole tree", "boolean"), ALL_PROJECTS),
        errors=(404, 410, 503),
    ),
    Route(
        "GET",
        "/events",
        jobs.all_events,
        "events",
        "The project's history from its begin as a page, or from now on as a stream",
        {200: (EventPage, "a page, or the stream")},
        (
            STREAM,
            RESUME,
            AFTER_EVENT,
            LIMIT,
            Parameter("label", "of jobs with this label, as key:value", many=True),
            ALL_PROJECTS,
        ),
        errors=(400, 503),
    ),
    *subscriptions.ROUTES,
    *tracked.ROUTES,
    Route("GET", "/kinds", list_kinds, "kinds", "What this server can run, with JSON Schemas", {200: (KindList, "by name")}),
    Route(
        "GET",
        "/queues",
        list_queues,
        "queues",
        "Queues and, for admins, how many jobs are in them",
        {200: (QueueList, "by name")},
    ),
    Route(
        "PUT",
        "/queues/{name}",
        put_queue,
        "queues",
        "Set a queue's limit and pause (admins)",
        {200: (NativeQueue, "as it is now")},
        body=QueueRequest,
        errors=(400, 403),
    ),
    Route(
        "POST",
        "/queues/{name}/pause",
        pause_queue,
        "queues",
        "Start no more jobs of a queue (admins)",
        {200: (NativeQueue, "as it is now")},
        errors=(403,),
    ),
    Route(
        "POST",
        "/queues/{name}/resume",
        resume_queue,
        "queues",
        "Start jobs of a queue again (admins)",
        {200: (NativeQueue, "as it is now")},
        errors=(403,),
    ),
    Route("GET", "/healthz", health.healthz, "server", "The process is alive", {200: (health.Health, "it is")}, open=True),
    Route(
        "GET",
        "/readyz",
        health.readyz,
        "server",
        "The store takes writes and the engine runs",
        {200: (health.Health, "ready"), 503: (health.Health, "not ready, and why")},
        open=True,
    ),
    Route(
        "GET",
        "/metrics",
        show_metrics,
        "server",
        "Metrics for Prometheus (admins)",
        {200: (str, "the exposition text")},
        errors=(403,),
    ),
    Route("GET", "/openapi.json", show_openapi, "server", "This document", {200: (dict, "OpenAPI 3.1")}, open=True),
    Route("GET", "/docs", show_docs, "server", "This document as a page", {200: (str, "HTML")}, open=True),
)
