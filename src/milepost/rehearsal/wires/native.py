"""The native API of a rehearsal: jobs with long polls and ETags, lists, batches, verbs, histories and streams."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from urllib.parse import urlencode

import msgspec

from milepost.errors import Conflict, IdempotencyConflict, InvalidInput, NotFound
from milepost.job import FINAL, Event, Job, State
from milepost.rehearsal.http import Answer, Ask, Route, route
from milepost.rehearsal.script import Do
from milepost.rehearsal.stage import Actor, Facts, Stage, sub_states
from milepost.wire import native as wire

LIMIT_DEFAULT, LIMIT_MAX = 100, 1000
WAIT_S_MAX = 60.0
HEARTBEAT_S = 15.0
PAGE = 500
GATHER_S = 0.02  # events of so long go out together
RETRY_AFTER = {"retry-after": "1"}


def routes() -> list[Route]:
    own = (
        ("GET", "/jobs/{id}", "probe", show),
        ("GET", "/jobs", "list", list_jobs),
        ("POST", "/jobs", "submit", submit),
        ("GET", "/jobs/{id}/events", "events", job_events),
        ("GET", "/events", "events", all_events),
        ("GET", "/jobs/{id}/sub-jobs", "list", list_sub_jobs),
        ("POST", "/jobs/{id}/cancel", "act", cancel),
        ("POST", "/jobs/{id}/release", "act", release),
        ("POST", "/jobs/{id}/retry", "act", retry),
        ("GET", "/kinds", "catalog", list_kinds),
        ("GET", "/healthz", "health", health),
        ("GET", "/readyz", "health", health),
    )
    return [route("native", method, path, action, handler) for method, path, action, handler in own]


# --- one job ------------------------------------------------------------------------------------------------------------------


async def show(stage: Stage, ask: Ask) -> Answer:
    """At once, or with `Prefer: wait` when it ended, or is another version than that of `If-None-Match`."""
    seen, wait_s = ask.headers.get("if-none-match"), _wait_s(ask)
    actor, job, subs = stage.poll(ask.params["id"])
    poll, end_s = actor.asked, stage.time.elapsed_s() + (wait_s or 0.0)
    while not stage.time.closed and wait_s is not None and job.state not in FINAL and (seen is None or seen == _etag(job, subs)):
        now_s = stage.time.elapsed_s()
        if now_s >= end_s:
            break
        changes = [c + one.begun_s for one in (actor, *actor.subs) if (c := one.look(now_s).change_s) is not None]
        waited = min([end_s, *changes]) - now_s
        await stage.time.wait(waited + 0.001, real_s=wait_s)
        if stage.time.virtual and stage.time.elapsed_s() == now_s:  # nobody moved time as long as the client waits
            wait_s = None
        now_s = stage.time.elapsed_s()
        job, subs = stage.job(actor, now_s, actor.look(now_s)), stage.subs(actor, now_s)
    found = _answer(job, subs, seen=seen)
    found.job, found.poll, found.found = actor.name, poll, True
    if ask.headers.get("prefer"):
        found.headers["preference-applied"] = ask.headers["prefer"]
    return found


def _wait_s(ask: Ask) -> float | None:
    name, _, value = ask.headers.get("prefer", "").partition("=")
    try:
        return min(float(value), WAIT_S_MAX) if name.strip() == "wait" else None
    except ValueError:
        return None


def _etag(job: Job, subs: tuple[Job, ...]) -> str:
    counts = ".".join(f"{state}{count}" for state, count in sorted(sub_states(subs).items()))
    return f'"{job.id}-{job.version}-{counts}"' if counts else f'"{job.id}-{job.version}"'


def _answer(job: Job, subs: tuple[Job, ...], *, status: int = 200, seen: str | None = None) -> Answer:
    etag = _etag(job, subs)
    headers = {"etag": etag} if job.state in FINAL else {"etag": etag, **RETRY_AFTER}
    told = {"job_id": job.id, "state": str(job.state)}
    if seen == etag:
        return Answer(status=304, headers=headers, **told)  # type: ignore[arg-type]
    body = wire.encode(wire.from_job(job, sub_states(subs)))
    return Answer(status=status, body=body, headers=headers, **told)  # type: ignore[arg-type]


def _act(stage: Stage, ask: Ask, do: Do, *, status: int) -> Answer:
    actor, _, _ = stage.poll(ask.params["id"])
    job = stage.command(actor, do)
    found = _answer(job, stage.subs(actor, stage.time.elapsed_s()), status=status)
    found.job = actor.name
    return found


async def cancel(stage: Stage, ask: Ask) -> Answer:
    """It and its sub-jobs end at once."""
    actor, _, _ = stage.poll(ask.params["id"])
    now_s = stage.time.elapsed_s()
    for sub in actor.subs:
        if not sub.look(now_s).done:
            stage.command(sub, Do.CANCEL)
    if not actor.look(now_s).done:
        return _act(stage, ask, Do.CANCEL, status=200)
    return _answer(stage.job(actor, now_s, actor.look(now_s)), stage.subs(actor, now_s))


async def release(stage: Stage, ask: Ask) -> Answer:
    """On to the next step of a held job."""
    _, job, _ = stage.poll(ask.params["id"])
    if job.state is not State.HELD:
        raise Conflict(f"job {job.id} is {job.state}, not held", job_id=job.id, state=str(job.state))
    return _act(stage, ask, Do.NEXT, status=202)


async def retry(stage: Stage, ask: Ask) -> Answer:
    """A new job with what is scripted for submits of its kind."""
    actor, job, _ = stage.poll(ask.params["id"])
    if job.state not in (State.FAILED, State.CANCELLED):
        raise Conflict(f"job {job.id} is {job.state}; only what failed can be tried again", job_id=job.id, state=str(job.state))
    facts = Facts(kind=job.kind, input=job.input, project=job.project, labels=job.labels, retry_of=job.id)
    made = _submitted(stage, facts)
    found = _answer(made, (), status=202)
    found.headers["location"], found.job = f"{ask.base_url}/jobs/{made.id}", actor.name
    return found


# --- submits ------------------------------------------------------------------------------------------------------------------


async def submit(stage: Stage, ask: Ask) -> Answer:
    """One or many; the same key and body give the same jobs."""
    try:
        one = not ask.body.lstrip().startswith(b"[")
        asked = [wire.decode_request(ask.body)] if one else wire.decode_batch(ask.body)
    except msgspec.DecodeError as error:
        raise InvalidInput(str(error)) from None
    key = ask.headers.get("idempotency-key")
    jobs = []
    for index, request in enumerate(asked):
        own = request.idempotency_key or (key if one or key is None else f"{key}[{index}]")
        jobs.append(_submit(stage, ask, request, own))
    if not one:
        return Answer(
            status=202, body=wire.encode(wire.JobPage([wire.from_job(job, bodies=False) for job in jobs])), jobs=len(jobs)
        )
    found = _answer(jobs[0], stage.subs(stage.actors[jobs[0].id], stage.time.elapsed_s()), status=202)
    found.headers["location"] = f"{ask.base_url}/jobs/{jobs[0].id}"
    found.job = stage.actors[jobs[0].id].name
    return found


def _submit(stage: Stage, ask: Ask, request: wire.JobRequest, key: str | None) -> Job:
    """Errors: IdempotencyConflict."""
    digest = hashlib.sha256(wire.encode(request)).hexdigest()
    before = None if key is None else stage.keys.get(key)
    if before is not None:
        if before[0] != digest:
            raise IdempotencyConflict("the idempotency key was used with another body")
        return _now(stage, stage.actors[before[1]])
    facts = Facts(
        kind=request.kind,
        input=bytes(request.input) if request.input else None,
        project=ask.project,
        labels=request.labels,
        callback=request.callback,
        queue=request.queue or "default",
        priority=5 if request.priority is None else request.priority,
    )
    job = _submitted(stage, facts)
    if key is not None:
        stage.keys[key] = (digest, job.id)
    return job


def _submitted(stage: Stage, facts: Facts) -> Job:
    entry = stage.scenario.submit_entry(facts.kind or "")
    return _now(stage, stage.add(entry, facts=facts, unique=True)[0])


def _now(stage: Stage, actor: Actor) -> Job:
    now_s = stage.time.elapsed_s()
    return stage.job(actor, now_s, actor.look(now_s))


# --- lists --------------------------------------------------------------------------------------------------------------------


async def list_jobs(stage: Stage, ask: Ask) -> Answer:
    """A page, newest first; those of `id` in one request, sub-jobs too."""
    parent = ask.one("parent")
    if parent is not None:
        return _page(stage, ask, list(_parent(stage, parent).subs))
    ids = ask.many("id")
    if ids:
        now_s = stage.time.elapsed_s()
        known = [actor for one in dict.fromkeys(ids) if (actor := stage.find(one)) is not None and actor.root.begun_s <= now_s]
        seen = []
        for actor in known:  # what a list does not find is not found by it: that is a poll, too
            if actor.root.look(now_s).found == "here":
                seen.append(actor)
            else:
                stage.count(actor, now_s)
        return _page(stage, ask, sorted(seen, key=lambda actor: actor.id, reverse=ask.one("order") != "asc"))
    return _page(stage, ask, stage.visible(newest_first=ask.one("order") != "asc", after=ask.one("after")), begun=True)


async def list_sub_jobs(stage: Stage, ask: Ask) -> Answer:
    return _page(stage, ask, list(_parent(stage, ask.params["id"]).subs))


def _parent(stage: Stage, text: str) -> Actor:
    actor = stage.find(text)
    if actor is None:
        raise NotFound(f"no job {text[:80]}", job_id=text[:80])
    return actor


def _page(stage: Stage, ask: Ask, actors: Iterable[Actor], *, begun: bool = False) -> Answer:
    """`begun`: these are behind the one that the page begins after."""
    try:
        limit = max(1, min(int(ask.one("limit") or LIMIT_DEFAULT), LIMIT_MAX))
    except ValueError:
        raise InvalidInput("limit is a number", path="limit") from None
    fits, after = _filter(stage, ask), ask.one("after")
    found: list[Actor] = []
    skipping = after is not None and not begun
    for actor in actors:
        if skipping:
            skipping = actor.id != after
        elif fits(actor):
            found.append(actor)
            if len(found) > limit:
                break
    more, found = len(found) > limit, found[:limit]
    bodies, now_s = ask.one("view") == "full", stage.time.elapsed_s()
    jobs = [
        wire.from_job(job, sub_states(stage.subs(actor, now_s)) if actor.subs else None, bodies=bodies)
        for actor, job in zip(found, stage.show(found), strict=True)
    ]
    headers = {}
    if more:
        pairs = [(name, value) for name, value in ask.pairs if name != "after"]
        headers["link"] = f'<{ask.path}?{urlencode([*pairs, ("after", found[-1].id)])}>; rel="next"'
    return Answer(body=wire.encode(wire.JobPage(jobs)), headers=headers, jobs=len(jobs))


def _filter(stage: Stage, ask: Ask) -> Callable[[Actor], bool]:
    states, kinds, now_s = ask.many("state"), ask.many("kind"), stage.time.elapsed_s()
    labels = [tuple(one.replace("=", ":", 1).split(":", 1)) for name, one in ask.pairs if name == "label"]

    def fits(actor: Actor) -> bool:
        return (
            (not states or actor.look(now_s).state in states)
            and (not kinds or (actor.facts.kind or actor.entry.kind) in kinds)
            and all(len(pair) == 2 and _labels(actor).get(pair[0]) == pair[1] for pair in labels)
        )

    return fits


def _labels(actor: Actor) -> dict[str, str]:
    return actor.entry.labels if actor.facts.labels is None else actor.facts.labels


async def list_kinds(stage: Stage, _: Ask) -> Answer:
    kinds = [
        wire.NativeKind(
            name=name,
            description="as the scenario has it",
            queue="default",
            priority=5,
            attempts=1,
            timeout_s=None,
            style="async",
            input_schema=None,
            result_schema=None,
        )
        for name in sorted(stage.kinds)
    ]
    return Answer(body=wire.encode(wire.KindList(kinds)))


async def health(_: Stage, __: Ask) -> Answer:
    return Answer(body=b'{"status":"ok"}')


# --- histories ----------------------------------------------------------------------------------------------------------------


async def job_events(stage: Stage, ask: Ask) -> Answer:
    """A job's history as a page, or followed to its end as a stream; with `tree` its sub-jobs', too."""
    actor, job, _ = stage.poll(ask.params["id"])
    tree = ask.one("tree") in ("1", "true")

    def fits(event: Event) -> bool:
        return event.root_id == job.root_id if tree else event.job_id == job.id

    def ended() -> bool:
        now_s = stage.time.elapsed_s()
        return all(one.look(now_s).done for one in ((actor, *actor.subs) if tree else (actor,)))

    return _events(stage, ask, fits, ended)


async def all_events(stage: Stage, ask: Ask) -> Answer:
    """Everybody's; with `label`, those of jobs with it.  A stream begins now unless it is told from where."""
    labels = [tuple(one.replace("=", ":", 1).split(":", 1)) for name, one in ask.pairs if name == "label"]

    def fits(event: Event) -> bool:
        actor = stage.actors[event.job_id]
        return all(
            len(pair) == 2 and pair[1] in (_labels(actor).get(pair[0]), _labels(actor.root).get(pair[0])) for pair in labels
        )

    return _events(stage, ask, fits, lambda: False, live=True)


def _events(stage: Stage, ask: Ask, fits: Callable[[Event], bool], ended: Callable[[], bool], *, live: bool = False) -> Answer:
    asked = ask.headers.get("last-event-id") or ask.one("after")
    try:
        after = int(asked or 0)
    except ValueError:
        raise InvalidInput("after is a number", path="after") from None
    if "text/event-stream" not in ask.headers.get("accept", ""):
        limit = min(int(ask.one("limit") or LIMIT_DEFAULT), LIMIT_MAX)
        events, _ = stage.ledger.read(after, limit + 1, fits)
        headers = {}
        if len(events) > limit:
            pairs = [(name, value) for name, value in ask.pairs if name != "after"]
            headers["link"] = f'<{ask.path}?{urlencode([*pairs, ("after", events[limit - 1].id)])}>; rel="next"'
        page = wire.EventPage([wire.from_event(event) for event in events[:limit]])
        return Answer(body=wire.encode(page), headers=headers)
    if live and asked is None:
        after = stage.ledger.last_id()
    if asked is not None and ended() and not stage.ledger.read(after, 1, fits)[0]:
        return Answer(status=204)
    return Answer(type="text/event-stream", stream=_stream(stage, after, fits, ended), headers={"cache-control": "no-store"})


async def _stream(stage: Stage, after: int, fits: Callable[[Event], bool], ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    yield b"retry: 2000\nid: %d\n\n" % after
    while True:
        over = ended()
        events, cursor = stage.ledger.read(after, PAGE, fits)
        if events:
            yield b"".join(wire.sse(event) for event in events)
        if cursor != after:
            after = cursor
        elif over or stage.time.closed:
            return
        else:
            next_s = stage.ledger.next_s()
            left_s = HEARTBEAT_S if next_s is None else max(0.0, next_s - stage.time.elapsed_s()) + 0.001
            before_s = stage.time.elapsed_s()
            await stage.time.wait(min(max(left_s, GATHER_S), HEARTBEAT_S), real_s=HEARTBEAT_S)
            if stage.time.elapsed_s() - before_s >= HEARTBEAT_S or stage.time.virtual:
                yield b": still here\n\n"


__all__ = ["routes"]
