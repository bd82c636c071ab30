"""The job query and the submits of EVS and ECS in a rehearsal.

A submit of many volumes or servers has a sub-job for each unless the scenario says something else of its kind; the ids of what is
made come from the job's own.  Source: as server/facades/huawei.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from milepost.errors import Expired, NotFound
from milepost.rehearsal.http import Answer, Ask, Handler, Route, route
from milepost.rehearsal.scenario import Entry, SubEntry
from milepost.rehearsal.stage import Actor, Facts, Stage
from milepost.wire.huawei import bodies, ecs, evs
from milepost.wire.huawei.errors import FLOW_CONTROL, INTERNAL, Refusal, Service, encode_error, job_unknown
from milepost.wire.huawei.jobs import encode_job, job_hex, order_id

_SINGLE = {
    "batchCreateVolume": ("createVolume", "volume_id"),
    "createServer": ("createSingleServer", "server_id"),
}
SERVER = "/v1/{project_id}/cloudservers/{server_id}"

Read = Callable[[Ask], bodies.Ask]


def routes() -> list[Route]:
    polled = [(f"/{version}/{{project_id}}/jobs/{{job_id}}", show) for version in ("v1", "v1.0")]
    server = "server_id"
    submits: list[tuple[str, str, int, Read]] = [
        ("POST", "/v2/{project_id}/cloudvolumes/delete", 200, lambda a: evs.read_batch_delete(a.body)),
        ("POST", "/v2.1/{project_id}/cloudvolumes", 202, lambda a: evs.read_create(a.body)),
        ("POST", "/v2/{project_id}/cloudvolumes", 200, lambda a: evs.read_create(a.body)),
        ("POST", "/v3/{project_id}/cloudvolumes", 200, lambda a: evs.read_create(a.body)),
        ("DELETE", "/v2/{project_id}/cloudvolumes/{volume_id}", 200, lambda a: evs.read_delete(_volume(a))),
        ("POST", "/v2/{project_id}/cloudvolumes/{volume_id}/action", 200, lambda a: evs.read_extend(a.body, _volume(a))),
        (
            "POST",
            "/v2.1/{project_id}/cloudvolumes/{volume_id}/action",
            202,
            lambda a: evs.read_extend(a.body, _volume(a)),
        ),
        ("POST", "/v2/{project_id}/volumes/{volume_id}/retype", 200, lambda a: evs.read_retype(a.body, _volume(a))),
        ("POST", "/v5/{project_id}/volumes/batch-extend", 200, lambda a: evs.read_batch_extend(a.body)),
        ("POST", "/v1/{project_id}/cloudservers/delete", 200, lambda a: ecs.read_delete(a.body)),
        ("POST", "/v1/{project_id}/cloudservers/action", 200, lambda a: ecs.read_action(a.body)),
        ("POST", "/v1/{project_id}/cloudservers", 200, lambda a: ecs.read_create(a.body)),
        ("POST", "/v1.1/{project_id}/cloudservers", 200, lambda a: ecs.read_create(a.body)),
        ("POST", SERVER + "/resize", 200, lambda a: ecs.read_resize(a.body, a.params[server])),
        ("POST", SERVER + "/nics", 200, lambda a: ecs.read_add_nics(a.body, a.params[server])),
        ("POST", SERVER + "/nics/delete", 200, lambda a: ecs.read_delete_nics(a.body, a.params[server])),
        ("POST", SERVER + "/attachvolume", 200, lambda a: ecs.read_attach(a.body, a.params[server])),
        ("POST", "/v1/{project_id}/batchaction/attachvolumes/{volume_id}", 200, _attach_many),
    ]
    return [
        *(route("huawei", "GET", path, "probe", handler) for path, handler in polled),
        *(route("huawei", method, path, "submit", _submit(status, read)) for method, path, status, read in submits),
    ]


def _attach_many(ask: Ask) -> bodies.Ask:
    return ecs.read_batch_attach(ask.body, _volume(ask))


def _volume(ask: Ask) -> str:
    return evs.read_volume_id(ask.params["volume_id"])


def refuse(ask: Ask, status: int, message: str, headers: dict[str, str]) -> Answer:
    """An error of the services."""
    return refused(ask, Refusal(status, FLOW_CONTROL if status == 429 else INTERNAL, message, headers=headers))


def refused(ask: Ask, refusal: Refusal) -> Answer:
    headers = {name.lower(): value for name, value in refusal.headers.items()}
    return Answer(status=refusal.status, body=encode_error(refusal, f"rehearsal-{ask.number}"), headers=headers)


async def show(stage: Stage, ask: Ask) -> Answer:
    try:
        actor, job, subs = stage.poll(ask.params["job_id"])
    except (NotFound, Expired):
        raise job_unknown(Service.ECS) from None
    return Answer(body=encode_job(job, subs), job=actor.name, job_id=job.id, poll=actor.asked, state=str(job.state), found=True)


def _submit(status: int, read: Read) -> Handler:
    async def submit(stage: Stage, ask: Ask) -> Answer:
        asked = read(ask)
        if asked.dry_run:
            return Answer(status=202, body=b"{}")
        key = ask.headers.get("x-client-token")
        before = stage.keys.get(f"huawei {key}") if key is not None else None
        actor = stage.actors[before[1]] if before is not None else _make(stage, ask, asked)
        if key is not None:
            stage.keys[f"huawei {key}"] = ("", actor.id)
        order, ids = order_id(actor.id) if asked.order else None, _ids(actor)
        if "cloudservers" in ask.path or "batchaction" in ask.path:
            body = ecs.encode_accepted(job_id=job_hex(actor.id), order_id=order, server_ids=ids or None)
        else:
            body = evs.encode_accepted(job_id=job_hex(actor.id), order_id=order, volume_ids=ids or None)
        return Answer(status=status, body=body, job=actor.name, job_id=actor.id)

    return submit


def _make(stage: Stage, ask: Ask, asked: bodies.Ask) -> Actor:
    entry: Entry = stage.scenario.submit_entry(asked.kind)
    single, field = _SINGLE.get(asked.kind, ("", ""))
    count = asked.input.get("count", 1)
    if single and not entry.sub_jobs and not entry.states:
        sub = SubEntry(name="", kind=single, count=count, duration_s=entry.duration_s, queued_s=entry.queued_s, polls=entry.polls)
        sub = msgspec.structs.replace(sub, ends=entry.ends, fails=min(entry.fails, count), error=entry.error)
        entry = msgspec.structs.replace(entry, sub_jobs=[sub], duration_s=None, polls=None, ends="succeeded", fails=0)
    project = ask.project
    actor = stage.add(entry, facts=Facts(kind=asked.kind, input=b"{}", project=project), unique=True)[0]
    volume = asked.input.get("volume", {})
    for place, one in enumerate(actor.subs if single else ()):
        made = {field: _id(actor, place), "name": volume.get("name"), "size": volume.get("size")}
        made["volume_type"] = volume.get("volume_type")
        one.facts = Facts(input=msgspec.json.encode({name: value for name, value in made.items() if value is not None}))
    input: dict[str, Any] = dict(asked.input)
    if asked.kind == "createVolume":
        input["volume_id"] = _id(actor, 0)
    elif single:
        input[f"{field}s"] = [_id(actor, place) for place in range(count)]
    actor.facts = Facts(kind=asked.kind, input=msgspec.json.encode(input), project=project)
    return actor


def _id(actor: Actor, place: int) -> str:
    return str(uuid.uuid5(uuid.UUID(actor.id), str(place)))


class _Made(msgspec.Struct):
    volume_id: str | None = None
    volume_ids: list[str] | None = None
    server_ids: list[str] | None = None


def _ids(actor: Actor) -> list[str]:
    kind = actor.facts.kind or ""
    if kind not in ("createVolume", *_SINGLE):
        return []
    made = msgspec.json.decode(actor.facts.input or b"{}", type=_Made)
    return made.volume_ids or made.server_ids or ([] if made.volume_id is None else [made.volume_id])
