"""Persistent processing of a stored object as a submission of the kind `pfop`.

Source: qiniu/python-sdk qiniu/services/processing/pfop.py; the queues are this server's own.
"""

from __future__ import annotations

import msgspec

from milepost.egress import EgressPolicy, check_url
from milepost.job import Callback, Job, Submission
from milepost.server.facades.qiniu.endpoint import Call
from milepost.wire.qiniu import errors
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.qiniu.policy import Policy

KIND = "pfop"
SHARED = ("", "0.default")


def queue_of(project: str, pipeline: str, *, idle: bool) -> str:
    """A named pipeline is a queue of its project; all others share one; idle work has its own."""
    if idle:
        return "media.idle"
    return "media" if pipeline in SHARED else f"media.{project}.{pipeline}"


def pfop_submission(
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
) -> Submission:
    """What `submit` takes; everything that the request can get wrong is refused now.

    Errors: Refusal 400, InvalidInput, UnknownKind, LimitExceeded, Forbidden (the notify URL).
    """
    commands = [one for one in fops.split(";") if one.strip()]
    if bool(commands) == bool(workflow_id):
        raise Refusal(errors.BAD_REQUEST, "one of fops and workflowTemplateID is needed, and not both")
    state, project = call.state, call.identity.project
    if notify_url:
        check_url(notify_url, EgressPolicy.from_settings(state.settings))
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
        queue=queue_of(project, pipeline, idle=idle),
        callback=Callback(notify_url) if notify_url else None,
        origin={"request_id": call.scope["request_id"], "reqid": call.reqid, "user_id": call.identity.user_id},
        idempotency_key=idempotency_key,
    )
    state.service.check(submission)
    return submission


def submission_of_policy(call: Call, policy: Policy, key: str) -> Submission | None:
    """What the upload policy asks for after the upload; None when it asks for nothing.  Errors: as `pfop_submission`."""
    if not policy.persistent_ops and not policy.persistent_workflow_template_id:
        return None
    return pfop_submission(
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
