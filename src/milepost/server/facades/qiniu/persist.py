"""Persistent processing of a stored object as a submission of the kind `pfop`.

Rules
1. A pipeline is a queue: a member uses those that an admin made (`PUT /queues/media.<project>.<name>`), because each queue runs
   beside the others and inventing one would be a way around every limit.  Those who name none share one.
2. Idle work has a queue of its own; the pipeline that it names is shown and not used.
3. A workflow's commands are those of the moment of the submit.
Source: qiniu/python-sdk qiniu/services/processing/pfop.py; the queues are this server's own.
"""

from __future__ import annotations

import re

import msgspec

from milepost.egress import EgressPolicy, check_url
from milepost.errors import Forbidden, InvalidInput
from milepost.job import Callback, Job, Submission
from milepost.server.facades.qiniu.endpoint import Call
from milepost.server.facades.qiniu.workflows import workflow_commands
from milepost.server.pipelines import MEDIA, pipeline_queue
from milepost.wire.qiniu import errors
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.qiniu.pfop import pipeline_name
from milepost.wire.qiniu.policy import Policy

KIND = "pfop"
QUEUE, IDLE_QUEUE = MEDIA, f"{MEDIA}.idle"

_PIPELINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}").fullmatch


async def find_queue(call: Call, pipeline: str, *, idle: bool) -> str:
    """The queue of a pipeline's bare name (rules 1 and 2).  Errors: Refusal 400."""
    if pipeline and not _PIPELINE(pipeline):
        raise Refusal(errors.BAD_REQUEST, f"no pipeline has the name {pipeline[:40]!r}")
    if idle:
        return IDLE_QUEUE
    if not pipeline:
        return QUEUE
    queue = pipeline_queue(call.identity.project, pipeline)
    if not call.identity.is_admin and queue not in {one.name for one in await call.state.store.list_queues()}:
        raise Refusal(errors.BAD_REQUEST, f"no such pipeline: {pipeline}; an admin of this server makes it as the queue {queue}")
    return queue


async def pfop_submission(
    call: Call,
    *,
    bucket: str,
    key: str,
    fops: str,
    notify_url: str = "",
    pipeline: str = "",
    force: bool = False,
    idle: bool = False,
    workflow_id: str = "",
    idempotency_key: str | None = None,
    body_hash: str | None = None,
) -> Submission:
    """What `submit` takes; everything that the request can get wrong is refused now.

    Errors: Refusal 400, 612 (no such workflow), InvalidInput, UnknownKind, LimitExceeded.
    """
    commands = [command for one in fops.split(";") if (command := one.strip())]
    if bool(commands) == bool(workflow_id):
        raise Refusal(errors.BAD_REQUEST, "one of fops and workflowTemplateID is needed, and not both")
    state, project = call.state, call.identity.project
    if workflow_id:
        commands = await workflow_commands(state.store, project, workflow_id, bucket=bucket, key=key)
    pipeline = pipeline_name(pipeline, project)
    if notify_url:
        try:
            check_url(notify_url, EgressPolicy.from_settings(state.settings))
        except (InvalidInput, Forbidden) as error:
            raise Refusal(errors.BAD_REQUEST, f"notifyURL: {error.message}") from None
    asked = {
        "bucket": bucket,
        "key": key,
        "fops": commands,
        "notify_url": notify_url or None,
        "force": force,
        "idle": idle,
        "pipeline": pipeline,
        "workflow_id": workflow_id or None,
        "task_from": f"workflow: {workflow_id}" if workflow_id else None,
    }
    submission = state.service.submission(
        KIND,
        input=msgspec.json.encode(asked),
        project=project,
        queue=await find_queue(call, pipeline, idle=idle),
        callback=Callback(notify_url) if notify_url else None,
        origin=_origin(call),
        idempotency_key=idempotency_key,
        body_hash=body_hash,
    )
    state.service.check(submission)
    return submission


def _origin(call: Call) -> dict[str, str]:
    """Facts of the request; `reqid` tells a job of this wire, and its callback is signed with the key that asked for it."""
    origin = {"request_id": call.scope["request_id"], "reqid": call.reqid, "user_id": call.identity.user_id}
    return origin if call.access is None else {**origin, "access": call.access[:255]}


async def submission_of_policy(call: Call, policy: Policy, key: str) -> Submission | None:
    """What the upload policy asks for after the upload; None when it asks for nothing.  Errors: as `pfop_submission`."""
    if not policy.persistent_ops and not policy.persistent_workflow_template_id:
        return None
    return await pfop_submission(
        call,
        bucket=policy.bucket,
        key=key,
        fops=policy.persistent_ops,
        notify_url=policy.persistent_notify_url,
        pipeline=policy.persistent_pipeline,
        idle=policy.persistent_type == 1,
        workflow_id=policy.persistent_workflow_template_id,
    )


async def submit(call: Call, submission: Submission) -> Job:
    """On disk when it returns."""
    return (await call.state.service.submit(submission)).job
