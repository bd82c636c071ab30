"""Image tasks of a rehearsal: create, show, list, schemas and versions, as Glance's clients ask for them."""

from __future__ import annotations

import msgspec

from milepost.errors import Expired, NotFound
from milepost.job import Job
from milepost.rehearsal.http import Answer, Ask, Route, route
from milepost.rehearsal.stage import Actor, Facts, Stage
from milepost.wire.glance import schemas
from milepost.wire.glance.errors import Refusal, encode_error
from milepost.wire.glance.query import marker_not_found, read_create, read_task_query
from milepost.wire.glance.tasks import at_second, encode_task, encode_task_page, states_of


def routes() -> list[Route]:
    own = [
        ("GET", "/v2/tasks/{id}", "probe", show),
        ("GET", "/v2/tasks", "list", list_tasks),
        ("POST", "/v2/tasks", "submit", create),
        ("GET", "/v2/schemas/task", "catalog", task_schema),
        ("GET", "/v2/schemas/tasks", "catalog", tasks_schema),
        ("GET", "/", "discovery", choices),
        ("GET", "/versions", "discovery", versions),
    ]
    return [route("glance", *one) for one in own]


def refuse(ask: Ask, status: int, message: str, headers: dict[str, str]) -> Answer:
    """An error in Glance's manner."""
    type_, body = encode_error(Refusal(status, message), ask.headers.get("accept"))
    return Answer(status=status, body=body, type=type_, headers=headers)


async def show(stage: Stage, ask: Ask) -> Answer:
    try:
        actor, job, _ = stage.poll(ask.params["id"])
    except (NotFound, Expired):
        raise Refusal(404, f"Could not find task {ask.params['id']}") from None
    return Answer(body=encode_task(job), job=actor.name, job_id=job.id, poll=actor.asked, state=str(job.state), found=True)


async def create(stage: Stage, ask: Ask) -> Answer:
    """Checked as Glance does; what becomes of it the scenario says."""
    asked = read_create(ask.body, types=_kinds(stage))
    facts = Facts(kind=asked.type, input=asked.input, project=ask.project, origin={"request_id": f"req-{ask.number}"})
    actor = stage.add(stage.scenario.submit_entry(asked.type), facts=facts, unique=True)[0]
    now_s = stage.time.elapsed_s()
    job = stage.job(actor, now_s, actor.look(now_s))
    headers = {"location": f"{ask.base_url}/v2/tasks/{job.id}"}
    return Answer(status=201, body=encode_task(job), headers=headers, job=actor.name, job_id=job.id, state=str(job.state))


async def list_tasks(stage: Stage, ask: Ask) -> Answer:
    query = read_task_query(ask.query, types=_kinds(stage))
    states, now_s = states_of(query.status), stage.time.elapsed_s()

    def fits(actor: Actor) -> bool:
        created = at_second(stage.time.shown_us(actor.begun_s))
        return (
            (states is None or actor.look(now_s).state in states)
            and (query.type is None or (actor.facts.kind or actor.entry.kind) == query.type)
            and query.owner in (None, actor.facts.project or stage.whole.project)
            and query.id in (None, actor.id)
            and query.created_at in (None, created)
        )

    by_change = stage.changed(query.marker) if query.sort == "updated_us" and query.descending else None
    if query.marker is not None and stage.find(query.marker) is None:
        raise marker_not_found(query.marker)
    if query.sort == "created_us":
        ordered = stage.visible(newest_first=query.descending, after=query.marker)
    elif by_change is not None:
        ordered = by_change
    else:
        jobs = {actor.id: stage.job(actor, now_s, actor.look(now_s)) for actor in stage.visible()}
        ordered = iter(
            sorted(
                (stage.actors[id] for id in jobs),
                key=lambda actor: (str(getattr(jobs[actor.id], query.sort)), actor.id),
                reverse=query.descending,
            )
        )
    if query.marker is not None and query.sort != "created_us" and by_change is None:
        for actor in ordered:
            if actor.id == query.marker:
                break
    found: list[Actor] = []
    for actor in ordered:
        if len(found) >= query.limit:
            break
        if fits(actor):
            found.append(actor)
    shown: list[Job] = stage.show(found)
    return Answer(body=encode_task_page(shown, query), jobs=len(shown))


def _kinds(stage: Stage) -> list[str]:
    return sorted(stage.kinds)


async def task_schema(stage: Stage, _: Ask) -> Answer:
    return Answer(body=msgspec.json.encode(schemas.task_schema(_kinds(stage))))


async def tasks_schema(stage: Stage, _: Ask) -> Answer:
    return Answer(body=msgspec.json.encode(schemas.tasks_schema(_kinds(stage))))


async def choices(_: Stage, ask: Ask) -> Answer:
    return Answer(status=300, body=msgspec.json.encode(schemas.versions(ask.base_url)))


async def versions(_: Stage, ask: Ask) -> Answer:
    return Answer(body=msgspec.json.encode(schemas.versions(ask.base_url)))
