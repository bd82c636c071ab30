"""The job query: one job with its sub-jobs, asked again and again until it is final."""

from __future__ import annotations

from milepost.errors import Expired, NotFound
from milepost.job import Job
from milepost.server.facades.huawei.endpoint import Call
from milepost.server.http import Reply
from milepost.server.texts import Texts
from milepost.store import Store
from milepost.wire.huawei.errors import job_unknown
from milepost.wire.huawei.jobs import encode_job, read_job_id


class JobQuery:
    """The handlers of the job query, with the texts that they share."""

    def __init__(self, store: Store) -> None:
        self.texts = Texts(store)

    async def show(self, call: Call) -> Reply:
        """Any job of the project, whatever wire it came by, until it is pruned; a sub-job is asked for like any other."""
        job_id = read_job_id(call.params["job_id"])
        if job_id is None:
            raise job_unknown(call.service)
        try:
            job = await call.state.service.get(job_id, project=call.identity.project)
        except (NotFound, Expired):
            raise job_unknown(call.service) from None
        return Reply(200, await text_of(self.texts, call.state.store, job))


async def text_of(texts: Texts, store: Store, job: Job) -> bytes:
    """The answer about this job, made once for each of its versions."""
    if not job.sub_total:
        return encode_job(job)
    text = texts.get(job)
    if text is None:
        place = texts.expect(job)
        text = encode_job(job, await store.list_sub_jobs(job.id))
        texts.keep(job, place, text)
    return text
