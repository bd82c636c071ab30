"""Persistent processing over HTTP: submit, and the status by id.

Rules
1. What can be refused is refused now: a missing parameter (400), an unknown bucket (631), object or workflow (612), a notify URL
   that the egress guard would not ask (400).  A wrong or unknown command is accepted and fails its item.
2. As at Qiniu, a persistentId is all that its status asks for; it has 62 random bits.  That holds for processing that was asked
   for here and without credentials only; whatever else has an id is shown to its own project, as is all where `prefop_open` is
   false.  Credentials that are given have to be right, and show what is their project's.
3. The answer is made once for each version of the job's tree; whether a notification troubles is read each time.
Source: qiniu/api-specs media/{pfop,prefop}.yml; qiniu/python-sdk qiniu/services/processing/pfop.py.
"""

from __future__ import annotations

import hashlib

from starlette.responses import Response

from milepost.errors import Expired, NotFound
from milepost.job import Job, State
from milepost.server.facades.qiniu.endpoint import Call, identify_signed, json_response
from milepost.server.facades.qiniu.incoming import buckets_of
from milepost.server.facades.qiniu.persist import KIND, pfop_submission, submit
from milepost.server.http import read_body
from milepost.server.texts import Texts
from milepost.store import Store
from milepost.wire.qiniu import errors
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.qiniu.ids import persistent_id, read_persistent_id
from milepost.wire.qiniu.pfop import encode_submitted, read_form
from milepost.wire.qiniu.prefop import NO_SUCH_ID, encode_status


async def start_pfop(call: Call) -> Response:
    """On disk before the 200."""
    form = read_form(call.fields())
    buckets = buckets_of(call)
    place = await buckets.find_bucket(form.bucket, project=call.identity.project)
    key = call.header(b"idempotency-key")
    submission = await pfop_submission(
        call,
        bucket=form.bucket,
        key=form.key,
        fops=form.fops,
        notify_url=form.notify_url,
        pipeline=form.pipeline,
        force=form.force,
        idle=form.idle,
        workflow_id=form.workflow_id,
        idempotency_key=key,
        body_hash=hashlib.sha256(call.body).hexdigest() if key is not None else None,
    )
    await buckets.find(place, form.key)
    job = await submit(call, submission)
    return json_response(encode_submitted(persistent_id(job.id, place.bucket.region)))


class StatusQuery:
    """The handler of the status query, with the texts that its answers share."""

    def __init__(self, store: Store) -> None:
        self._texts = {troubled: Texts(store) for troubled in (False, True)}

    async def show(self, call: Call) -> Response:
        """Any job of the caller's project, whatever wire it came by; of this wire's own the id is enough (rule 2)."""
        project = None
        if b"authorization" in call.headers or b"x-auth-token" in call.headers:
            await identify_signed(call)
            project = call.identity.project
        elif call.method == "POST":
            s = call.state.settings
            call.body = await read_body(call.receive, call.headers, limit_bytes=s.body_bytes_max, limit_s=s.body_s_max)
        id = call.fields().get("id", "")
        if not id:
            raise Refusal(errors.BAD_REQUEST, "this needs the parameter id")
        job_id = read_persistent_id(id)
        if job_id is None:
            raise no_such_id()
        try:
            job = await call.state.service.get(job_id, project=project)
        except (NotFound, Expired):
            raise no_such_id() from None
        if project is None and not _is_open(call, job):
            raise no_such_id()
        return json_response(await self._text_of(call.state.store, job, id.partition(".")[0]))

    async def _text_of(self, store: Store, job: Job, region: str) -> bytes:
        """The answer, which names the region that the id named."""
        undelivered = await is_undelivered(store, job)
        texts = self._texts[undelivered]
        text = texts.get(job) if region == "z0" else None
        if text is None:
            place = texts.expect(job) if region == "z0" else None
            subs = await store.list_sub_jobs(job.id) if job.sub_total else ()
            text = encode_status(job, subs, undelivered=undelivered, region=region)
            texts.keep(job, place, text)
        return text


def _is_open(call: Call, job: Job) -> bool:
    """Rule 2."""
    if call.state.settings.auth == "none":
        return True
    return call.state.settings.prefop_open and job.kind == KIND and "reqid" in job.origin


def no_such_id() -> Refusal:
    """The answer for an id that nobody has, another project's, or an expired job's."""
    return Refusal(errors.NO_SUCH_ENTRY, NO_SUCH_ID)


async def is_undelivered(store: Store, job: Job) -> bool:
    """Whether its notification failed so far, also while it is tried again."""
    if job.callback is None or job.state is not State.SUCCEEDED:
        return False
    deliveries = await store.list_deliveries(job.id)
    return any(one.state == "given_up" or (one.state == "pending" and one.last_error is not None) for one in deliveries)


__all__ = ["StatusQuery", "is_undelivered", "start_pfop"]
