"""The job routes of the native API: submit, read, list, wait, cancel, retry, release, history.

Each handler reads the request, checks it, acts through the service, and answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from urllib.parse import quote, urlencode

from milepost.egress import EgressPolicy, check_url
from milepost.errors import Forbidden, InvalidInput, LimitExceeded, NotFound, UnknownKind
from milepost.job import FINAL, Job, JobId, ProjectId, State, Submission
from milepost.server import events
from milepost.server.errors import UnsupportedMediaType
from milepost.server.http import JSON, Call, Reply, base_url, decode
from milepost.server.pipelines import is_foreign
from milepost.store import JobQuery
from milepost.wire import FIRST_S, LAST_S, from_rfc3339
from milepost.wire.huawei.jobs import read_order_id
from milepost.wire.native import (
    EventPage,
    JobPage,
    JobRequest,
    Missed,
    decode_batch,
    decode_request,
    encode,
    from_event,
    from_job,
)

RETRY_AFTER = (b"retry-after", b"1")  # of every answer about a job that is not final
DEADLINE_S_MAX = 1e10  # three hundred years: an instant must fit into the store's 64 bits
# Pollers ask again and again for what did not change: the text of a version, which its ETag names, is made once.
SHOWN_MAX, SHOWN_BYTES_MAX = 1024, 4096
SPACE = b" \t\r\n"


def project_of(call: Call) -> ProjectId | None:
    """The caller's project; None, across all of them, when an admin asks for `all_projects`."""
    if call.scope["query_string"] and call.query.flag("all_projects"):
        if not call.identity.is_admin:
            raise Forbidden("all_projects needs the admin role")
        return None
    return call.identity.project


# --- submit --------------------------------------------------------------------------------------------------------


async def submit(call: Call) -> Reply:
    """One job from an object, or up to batch_max jobs, all or none, from an array."""
    content_type = call.headers.get(b"content-type")
    if content_type is not None and content_type != JSON:
        check_json(content_type)
    body = await call.body()
    if call.scope["query_string"]:
        call.query.done()
    if body.lstrip(SPACE)[:1] == b"[":
        return await _submit_batch(call, body)
    return await _submit_one(call, body)


async def _submit_one(call: Call, body: bytes) -> Reply:
    request = decode(decode_request, body)
    key = call.header(b"idempotency-key")
    if request.idempotency_key is not None:
        if key is not None and key != request.idempotency_key:
            raise InvalidInput("idempotency_key is not the Idempotency-Key header's", path="$.idempotency_key")
        key = request.idempotency_key
    submission = submission_of(call, request, key, body)
    await _check_queues(call, [(submission, "$")])
    job, created = await call.state.service.submit(submission)
    wait_s = call.wait_s()
    if wait_s is not None and job.state not in FINAL:
        job = await _wait(call, job, job.project, None, wait_s)
    reply = await _answer(call, job, status=202 if created and job.state not in FINAL else 200)
    reply.headers.append((b"location", f"{base_url(call.scope, call.state)}/jobs/{job.id}".encode("latin-1")))
    if not created:
        reply.headers.append((b"idempotency-replayed", b"true"))
    if wait_s is not None:
        reply.headers.append((b"preference-applied", f"wait={wait_s:g}".encode()))
    return reply


async def _submit_batch(call: Call, body: bytes) -> Reply:
    requests = decode(decode_batch, body)
    if not requests:
        raise InvalidInput("the batch is empty", path="$")
    allowed = call.state.settings.batch_max
    if len(requests) > allowed:
        raise LimitExceeded(
            f"the batch has more than {allowed} jobs", limit="batch_max", allowed=allowed, seen=len(requests), hint="split it"
        )
    key = call.header(b"idempotency-key")
    submissions = []
    for index, request in enumerate(requests):
        own_key, own_body = request.idempotency_key, b""
        if own_key is not None:
            own_body = encode(request)
        elif key is not None:  # one key for the whole batch: the same key and body give the same jobs
            own_key, own_body = f"{key}[{index}]", body
        submissions.append(submission_of(call, request, own_key, own_body, path=f"$[{index}]"))
    await _check_queues(call, [(submission, f"$[{index}]") for index, submission in enumerate(submissions)])
    added = await call.state.service.submit_many(submissions)
    replayed = not any(one.created for one in added)
    page = JobPage([from_job(one.job, bodies=False) for one in added])
    headers = [RETRY_AFTER] if not replayed else [(b"idempotency-replayed", b"true")]
    return Reply(200 if replayed else 202, encode(page), headers)


def submission_of(call: Call, request: JobRequest, key: str | None, body: bytes, *, path: str = "$") -> Submission:
    """What the service takes, with what the kind decides filled in.  Errors: InvalidInput, UnknownKind."""
    service, identity = call.state.service, call.identity
    try:
        submission = service.submission(
            request.kind,
            queue=request.queue,
            priority=request.priority,
            attempts_max=request.attempts_max,
            timeout_s=request.timeout_s,
        )
    except UnknownKind as error:
        error.path = f"{path}.kind"
        raise
    if request.input:
        submission.input = bytes(request.input)
    submission.project = identity.project
    submission.origin = {"request_id": call.request_id, "user_id": identity.user_id}
    if not identity.is_admin:
        submission.origin["role"] = "member"  # for kinds that allow admins more
    submission.labels, submission.held, submission.callback = request.labels, request.held, request.callback
    if request.callback is not None:
        check_callback(call, request.callback.url, f"{path}.callback.url")
    if key is not None:
        submission.idempotency_key = key
        submission.body_hash = hashlib.sha256(body).hexdigest()
    if request.run_at is not None:
        submission.run_at_us = _instant(request.run_at, f"{path}.run_at")
    if request.deadline_s is not None:
        if not 0 < request.deadline_s <= DEADLINE_S_MAX:
            raise InvalidInput(f"deadline_s must be above 0 and at most {DEADLINE_S_MAX:g}", path=f"{path}.deadline_s")
        submission.deadline_us = call.state.clock.now_us() + int(request.deadline_s * 1e6)
    return submission


async def _check_queues(call: Call, submissions: Sequence[tuple[Submission, str]]) -> None:
    """Members use the queues that there are: each queue runs jobs beside the others, so inventing one is a way around every
    limit, such as that of imports at the same time.  Errors: InvalidInput.
    """
    if call.identity.is_admin:
        return
    asked = [(one, path) for one, path in submissions if one.queue != call.state.kinds.get(one.kind).queue]
    if not asked:
        return
    made = {queue.name for queue in await call.state.store.list_queues()}
    for submission, path in asked:
        if submission.queue not in made or is_foreign(submission.queue, call.identity.project):
            raise InvalidInput(
                f"queue {submission.queue[:80]!r} is neither this kind's own nor one that an admin made",
                path=f"{path}.queue",
                hint="an admin makes it with PUT /queues/NAME",
            )


def check_callback(call: Call, url: str, path: str, *, what: str = "callback.url") -> None:
    """Errors: InvalidInput when no try could ever be sent there.  What a name resolves to is looked at when it is sent."""
    try:
        check_url(url, EgressPolicy.from_settings(call.state.settings))
    except (InvalidInput, Forbidden) as error:
        raise InvalidInput(f"{what}: {error.message}", path=path, hint=error.hint) from None


def _instant(text: str, path: str) -> int | None:
    try:
        at_us = from_rfc3339(text)
    except (ValueError, OverflowError):
        raise InvalidInput(f"{text[:40]!r} is no instant like 2026-03-04T05:06:07Z", path=path) from None
    if at_us is not None and not FIRST_S <= at_us // 1_000_000 <= LAST_S:  # with its offset it is in no year that can be shown
        raise InvalidInput(f"{text[:40]!r} is not within the years 1 to 9999 in UTC", path=path)
    return at_us


def check_json(content_type: bytes) -> None:
    """Errors: UnsupportedMediaType when it is something else than JSON."""
    name = content_type.partition(b";")[0].strip().lower()
    if name != JSON and not (name.startswith(b"application/") and name.endswith(b"+json")):
        raise UnsupportedMediaType(
            f"the body is {name.decode('latin-1')[:80]}; it must be JSON", hint="send Content-Type: application/json"
        )


# --- read ----------------------------------------------------------------------------------------------------------


async def show(call: Call) -> Reply:
    """One job; 304 when it is the version that the client has, and with `Prefer: wait` not before it changed or time is over."""
    project = project_of(call)
    if call.scope["query_string"]:
        call.query.done()
    job = await call.state.service.get(JobId(call.param), project=project)
    seen, wait_s = call.headers.get(b"if-none-match"), call.wait_s()
    if wait_s is not None and job.state not in FINAL:
        job = await _wait(call, job, project, seen, wait_s)
    reply = await _answer(call, job, status=200, seen=seen)
    if wait_s is not None:
        reply.headers.append((b"preference-applied", f"wait={wait_s:g}".encode()))
    return reply


async def _answer(call: Call, job: Job, *, status: int, seen: bytes | None = None) -> Reply:
    """The job with its ETag and, while it is not final, Retry-After; 304 when `seen` has that ETag."""
    by_state = None
    if job.sub_total:
        counts = (await call.state.store.count_sub_jobs((job.id,))).get(job.id)
        by_state = {} if counts is None else counts.by_state
    etag = etag_of(job, by_state)
    headers = [(b"etag", etag)] if job.state in FINAL else [(b"etag", etag), RETRY_AFTER]
    if seen is not None and etag_matches(seen, etag):
        return Reply(304, b"", headers)
    shown = call.state.shown
    body = shown.get(etag)
    if body is None:
        body = encode(from_job(job, by_state))
        if len(body) <= SHOWN_BYTES_MAX:
            if len(shown) >= SHOWN_MAX:
                shown.clear()
            shown[etag] = body
    return Reply(status, body, headers)


def etag_of(job: Job, by_state: dict[State, int] | None) -> bytes:
    """The job's version; a parent's also has what its sub-jobs come to, which changes without the parent's row."""
    if not by_state:
        return b'"%s-%d"' % (job.id.encode(), job.version)
    counts = ".".join(f"{state}{by_state[state]}" for state in sorted(by_state))
    return f'"{job.id}-{job.version}-{counts}"'.encode()


def etag_matches(header: bytes, etag: bytes) -> bool:
    """The weak comparison of If-None-Match (RFC 9110, section 13.1.2)."""
    return header == etag or any(one.strip().removeprefix(b"W/") in (etag, b"*") for one in header.split(b","))


async def _wait(call: Call, job: Job, project: ProjectId | None, seen: bytes | None, wait_s: float) -> Job:
    """The job once it is final; with an ETag, as soon as it is another version than that."""
    state = call.state

    async def read() -> Job:
        return await state.service.get(job.id, project=project)

    async def enough(now: Job) -> bool:
        if now.state in FINAL:
            return True
        if seen is None:
            return False
        by_state = (await state.store.count_sub_jobs((now.id,)))[now.id].by_state if now.sub_total else None
        return not etag_matches(seen, etag_of(now, by_state))

    key = events.tree_key(job.root_id) if seen is not None and job.sub_total else job.id
    return await events.wait_job(call, key, read, enough, wait_s)


# --- list ----------------------------------------------------------------------------------------------------------


async def list_jobs(call: Call) -> Reply:
    """A page of jobs, newest first unless told otherwise; sub-jobs only when `parent` or `id` asks for them."""
    parent = call.query.one("parent")
    ids = tuple(JobId(id) for value in call.query.all("id") for id in value.split(",")) or None
    return await _page(call, parent_id=None if parent is None else JobId(parent), descending=parent is None, ids=ids)


async def list_sub_jobs(call: Call) -> Reply:
    """A page of a job's sub-jobs, in their order."""
    await call.state.service.get(JobId(call.param), project=project_of(call))
    return await _page(call, parent_id=JobId(call.param), descending=False)


async def _page(call: Call, *, parent_id: JobId | None, descending: bool, ids: tuple[JobId, ...] | None = None) -> Reply:
    query, state = call.query, call.state
    order = query.choice("order", ("asc", "desc"))
    bodies = query.choice("view", ("basic", "full")) == "full"
    after, limit = query.one("after"), page_limit(call)
    asked = JobQuery(
        project=project_of(call),
        kinds=tuple(query.all("kind")) or None,
        states=states_of(query.all("state")),
        queue=query.one("queue"),
        parent_id=parent_id,
        labels=labels_of(query.all("label"), most=state.settings.labels_max),
        ids=ids,
        descending=descending if order is None else order == "desc",
        after=await cursor_of(call, after),
        limit=limit + 1,
        bodies=bodies,
    )
    query.done()
    jobs = await state.service.list(asked)
    more = len(jobs) > limit
    jobs = jobs[:limit]
    parents = [job.id for job in jobs if job.sub_total]
    counts = await state.store.count_sub_jobs(parents) if parents else {}
    page = JobPage([from_job(job, counts[job.id].by_state if job.id in counts else None, bodies=bodies) for job in jobs])
    return Reply(200, encode(page), [next_link(call, after=jobs[-1].id)] if more else [])


async def cursor_of(call: Call, after: str | None) -> JobId | None:
    """Errors: InvalidInput when the cursor's job is gone: the page after it is not known any more."""
    if after is None:
        return None
    try:
        found = await call.state.store.get_job(JobId(after), project=project_of(call))
    except NotFound:
        found = None
    if not isinstance(found, Job):
        raise InvalidInput(
            f"the job {after[:40]!r} that this page starts after is gone", path="?after", hint="start again without after"
        )
    return found.id


def page_limit(call: Call) -> int:
    """How many entries the page shall have.  Errors: InvalidInput, LimitExceeded."""
    settings, limit = call.state.settings, call.query.integer("limit")
    if limit is None:
        return settings.page_default
    if not 1 <= limit <= settings.page_max:
        raise LimitExceeded(
            f"limit goes from 1 to {settings.page_max}", limit="page_max", allowed=settings.page_max, seen=limit, path="?limit"
        )
    return limit


def states_of(values: Sequence[str]) -> tuple[State, ...] | None:
    """The states that `state=` asks for, None for all.  Errors: InvalidInput."""
    names = [name for value in values for name in value.split(",")]
    try:
        return tuple(State(name) for name in names) or None
    except ValueError as error:
        raise InvalidInput(f"{error}; the states are {', '.join(State)}", path="?state") from None


def labels_of(values: Sequence[str], *, most: int) -> tuple[tuple[str, str], ...]:
    """`label=key:value` or `label=key=value`, each a condition.  Errors: InvalidInput, LimitExceeded."""
    if len(values) > most:  # no job has so many
        raise LimitExceeded(
            f"label is given more than {most} times", limit="labels_max", allowed=most, seen=len(values), path="?label"
        )
    labels = []
    for value in values:
        cut = min((at for at in (value.find(":"), value.find("=")) if at > 0), default=0)
        if not cut:
            raise InvalidInput(f"label is {value[:40]!r}; it takes key:value", path="?label")
        labels.append((value[:cut], value[cut + 1 :]))
    return tuple(labels)


def next_link(call: Call, *, after: str | int, name: str = "after") -> tuple[bytes, bytes]:
    """The `Link` header of the next page: this request with another `after`."""
    pairs = [(key, value) for key, value in call.query.pairs if key != name]
    path = quote(call.scope["path"], safe="/")
    return b"link", f'<{path}?{urlencode([*pairs, (name, after)])}>; rel="next"'.encode()


# --- act -----------------------------------------------------------------------------------------------------------


async def cancel(call: Call) -> Reply:
    """The job ended now (200), or was asked to end (202)."""
    job = await call.state.service.cancel(JobId(call.param), project=_own(call))
    return await _answer(call, job, status=200 if job.state in FINAL else 202)


async def retry(call: Call) -> Reply:
    """A new job with the failed one's request."""
    job = await call.state.service.retry(JobId(call.param), project=_own(call), role=None if call.identity.is_admin else "member")
    reply = await _answer(call, job, status=202)
    reply.headers.append((b"location", f"{base_url(call.scope, call.state)}/jobs/{job.id}".encode("latin-1")))
    return reply


async def release(call: Call) -> Reply:
    """The held job is ready; it may be named by its order."""
    job_id = read_order_id(call.param) or JobId(call.param)
    return await _answer(call, await call.state.service.release(job_id, project=_own(call)), status=202)


def _own(call: Call) -> ProjectId | None:
    project = project_of(call)
    if call.scope["query_string"]:
        call.query.done()
    return project


# --- history -------------------------------------------------------------------------------------------------------


async def job_events(call: Call) -> Reply | None:
    """A job's history as a page, or followed to its end as a stream."""
    query = call.query
    job = await call.state.service.get(JobId(call.param), project=project_of(call))
    tree, limit, (after_id, resumed) = query.flag("tree"), page_limit(call), _after(call)
    query.done()
    if not tree:
        return await _events(call, events.JobFeed(call.state.store, job), after_id, limit, resumed)
    feed = events.TreeFeed(call.state.store, job)
    if after_id:
        await feed.skip_to(after_id)
    return await _events(call, feed, after_id, limit, resumed)


async def all_events(call: Call) -> Reply | None:
    """The project's history as a page from its begin, or followed from now on as a stream."""
    query = call.query
    feed = events.ProjectFeed(
        call.state.store, project_of(call), labels_of(query.all("label"), most=call.state.settings.labels_max)
    )
    limit, (after_id, resumed) = page_limit(call), _after(call)
    query.done()
    if wants_stream(call) and not resumed:
        after_id = await call.state.store.last_event_id()
    return await _events(call, feed, after_id, limit, resumed)


def _after(call: Call) -> tuple[int, bool]:
    """Where to go on: `Last-Event-ID`, which a reconnect sends, before `after`; and whether one of them was given."""
    asked, last = call.query.integer("after"), call.header(b"last-event-id")
    if last is not None and last.isascii() and last.isdigit() and len(last) < 19:
        return int(last), True
    return asked or 0, asked is not None


def wants_stream(call: Call) -> bool:
    return b"text/event-stream" in call.headers.get(b"accept", b"") and call.scope["method"] != "HEAD"


async def _events(call: Call, feed: events.Feed, after_id: int, limit: int, resumed: bool) -> Reply | None:
    if wants_stream(call):
        return await events.stream(call, feed, after_id, resumed=resumed)
    found, cursor = await feed.read(after_id, limit)
    missed = await feed.missed(after_id) if after_id else None
    page = EventPage(
        [from_event(event) for event in found], None if missed is None else Missed(from_id=missed[0], to_id=missed[1])
    )
    full = cursor != after_id and not feed.ended
    return Reply(200, encode(page), [next_link(call, after=cursor)] if full else [])
