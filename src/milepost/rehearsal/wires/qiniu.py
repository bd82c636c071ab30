"""Persistent processing in a rehearsal: submit and status query.  A submit has a sub-job for each command."""

from __future__ import annotations

from urllib.parse import parse_qsl

import msgspec

from milepost.errors import Expired, NotFound
from milepost.rehearsal.http import Answer, Ask, Route, route
from milepost.rehearsal.scenario import SubEntry
from milepost.rehearsal.stage import Facts, Stage
from milepost.wire.qiniu import errors
from milepost.wire.qiniu.errors import Refusal, encode_error
from milepost.wire.qiniu.ids import persistent_id
from milepost.wire.qiniu.pfop import STATUS_PATH, SUBMIT_PATH, encode_submitted, read_form
from milepost.wire.qiniu.prefop import ITEM_KIND, KIND, NO_SUCH_ID, encode_status


def routes() -> list[Route]:
    own = [
        ("GET", STATUS_PATH, "probe", show),
        ("POST", STATUS_PATH, "probe", show),
        ("POST", SUBMIT_PATH, "submit", submit),
        ("POST", SUBMIT_PATH + "/", "submit", submit),
    ]
    return [route("qiniu", *one) for one in own]


def refuse(_: Ask, status: int, message: str, headers: dict[str, str]) -> Answer:
    """An error in Qiniu's manner."""
    return Answer(status=status, body=encode_error(message), headers=headers)


async def show(stage: Stage, ask: Ask) -> Answer:
    id = _fields(ask).get("id", "")
    if not id:
        raise Refusal(errors.BAD_REQUEST, "this needs the parameter id")
    try:
        actor, job, subs = stage.poll(id)
    except (NotFound, Expired):
        raise Refusal(errors.NO_SUCH_ENTRY, NO_SUCH_ID) from None
    body = encode_status(job, subs, region=stage.whole.region)
    return Answer(body=body, job=actor.name, job_id=job.id, poll=actor.asked, state=str(job.state), found=True)


def _fields(ask: Ask) -> dict[str, str]:
    return {**dict(ask.pairs), **dict(parse_qsl(ask.body.decode("utf-8", "replace"), keep_blank_values=True))}


async def submit(stage: Stage, ask: Ask) -> Answer:
    """Each command is an item that ends as the scenario says of a submit."""
    form = read_form(_fields(ask))
    commands = [one.strip() for one in form.fops.split(";") if one.strip()]
    if bool(commands) == bool(form.workflow_id):
        raise Refusal(errors.BAD_REQUEST, "one of fops and workflowTemplateID is needed, and not both")
    entry = stage.scenario.submit_entry(KIND)
    if commands and not entry.sub_jobs and not entry.states:
        common = {"duration_s": entry.duration_s, "queued_s": entry.queued_s, "polls": entry.polls, "error": entry.error}
        fails = min(entry.fails, len(commands))
        ends = ["failed" if at >= len(commands) - fails else entry.ends for at in range(len(commands))]
        subs = [
            msgspec.convert({"name": f"item-{at + 1}", "kind": ITEM_KIND, "input": {"cmd": cmd}, "ends": ends[at]}, SubEntry)
            for at, cmd in enumerate(commands)
        ]
        subs = [
            msgspec.structs.replace(sub, result=entry.result or {"key": f"{form.key}.{at}", "hash": "Frehearsed"}, **common)
            for at, sub in enumerate(subs)
        ]
        entry = msgspec.structs.replace(entry, sub_jobs=subs, duration_s=None, polls=None, ends="succeeded", fails=0)
    asked = {
        "bucket": form.bucket,
        "key": form.key,
        "fops": commands,
        "idle": form.idle,
        "pipeline": form.pipeline,
        "task_from": f"workflow: {form.workflow_id}" if form.workflow_id else None,
    }
    facts = Facts(kind=KIND, input=msgspec.json.encode(asked), project=ask.project)
    actor = stage.add(entry, facts=facts, unique=True)[0]
    return Answer(body=encode_submitted(persistent_id(actor.id, stage.whole.region)), job=actor.name, job_id=actor.id)
