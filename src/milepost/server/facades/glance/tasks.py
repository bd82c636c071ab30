"""Image tasks over HTTP: create, show, list, and the refusal to delete.

Source: openstack/glance glance/api/v2/tasks.py.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from starlette.responses import Response

from milepost.egress import EgressPolicy, resolve_checked
from milepost.errors import Forbidden, InvalidInput, NotFound, Unreachable
from milepost.image import IMAGE, Visibility, decode_image
from milepost.job import Job, JobId
from milepost.server.facades.glance.endpoint import Call, json_response
from milepost.store import JobQuery
from milepost.wire.glance.errors import Refusal
from milepost.wire.glance.query import (
    TYPES,
    TaskQuery,
    location_filtered,
    marker_not_found,
    owner_of,
    read_create,
    read_task_query,
)
from milepost.wire.glance.tasks import at_second, encode_image_tasks, encode_task, encode_task_page, states_of

NOT_ADMIN = "You are not authorized to complete tasks_api_access action."
NO_DELETE = (
    "This operation is currently not permitted on Glance Tasks. They are auto deleted after reaching the time based on their "
    "expires_at property."
)
RESOLVE_S = 5.0  # longest time that a create waits for the name of its source
SCAN_PAGE = 1000  # rows read at once where a filter has no index of ours


async def create_task(call: Call) -> Response:
    """Accept the job; it is on disk before the 201."""
    check_policy(call)
    body = await call.body()
    asked = read_create(body, types=own_kinds(call))
    state = call.state
    if asked.type not in state.kinds:
        raise Refusal(
            400, f"Task type '{asked.type}' is not offered by this server; it offers: {', '.join(k.name for k in state.kinds)}"
        )
    if asked.type == "import":
        input = msgspec.json.decode(asked.input)
        _check_properties(call, input.get("image_properties"))
        await _check_source(call, input["import_from"])
    key = call.header(b"idempotency-key")
    submission = state.service.submission(
        asked.type,
        input=asked.input,
        project=call.identity.project,
        origin={"request_id": call.request_id, "user_id": call.identity.user_id}
        | ({} if call.identity.is_admin else {"role": "member"}),
        idempotency_key=key,
        body_hash=hashlib.sha256(body).hexdigest() if key is not None else None,
    )
    job = (await state.service.submit(submission)).job
    return json_response(encode_task(job), 201, {"location": f"{call.base_url}/v2/tasks/{job.id}"})


def _check_properties(call: Call, properties: Any) -> None:
    """Errors: Refusal 403 for an image that only an admin may make; all else is the kind's to judge."""
    if call.identity.is_admin or not isinstance(properties, dict):
        return
    if properties.get("visibility") == Visibility.PUBLIC:
        raise Refusal(403, "You are not authorized to complete publicize_image action.")
    owner = properties.get("owner")
    if owner is not None and owner != call.identity.project:
        raise Refusal(403, f"You are not permitted to create images owned by '{owner}'.")


async def _check_source(call: Call, url: str) -> None:
    """Errors: Refusal 400 when the guard would not fetch it.  A resolver that does not answer now is the job's own affair."""
    try:
        await resolve_checked(url, EgressPolicy.from_settings(call.state.settings), timeout_s=RESOLVE_S)
    except Unreachable as error:
        if error.fields.get("passing", True):
            return
        raise location_filtered(url, error.message) from None
    except (InvalidInput, Forbidden) as error:
        raise location_filtered(url, error.message) from None


async def show_task(call: Call) -> Response:
    """Any job that the caller sees, whatever wire it came by, until it is pruned."""
    check_policy(call)
    return json_response(encode_task(await find_task(call, call.params["id"])))


async def refuse_delete(call: Call) -> Response:
    """Tasks go by themselves; whether this one exists is not looked at."""
    check_policy(call)
    raise Refusal(405, NO_DELETE, headers={"Allow": "GET"}, end="")


async def list_tasks(call: Call) -> Response:
    """A page of image tasks, without those of the caller's own project whose time is over."""
    check_policy(call)
    query = read_task_query(call.query, types=own_kinds(call))
    return json_response(encode_task_page(await find_tasks(call, query), query))


async def find_task(call: Call, task_id: str) -> Job:
    """Errors: Refusal 404 for what never was, is another project's, or has been pruned."""
    try:
        found = await call.state.store.get_job(JobId(task_id), project=call.visible)
    except NotFound:
        found = None
    if not isinstance(found, Job):
        raise Refusal(404, f"Could not find task {task_id}")
    return found


async def find_tasks(call: Call, query: TaskQuery) -> list[Job]:
    """The page's jobs.  Errors: Refusal 400 when the marker is none of the caller's tasks."""
    if query.marker is not None:
        await _check_marker(call, query.marker)
    asked = await _job_query(call, query)
    if asked is None or query.limit == 0:
        return []
    if query.created_at is None:
        return await call.state.store.list_jobs(asked)
    return await _scan(call, asked, query.created_at)


async def _check_marker(call: Call, marker: str) -> None:
    try:
        await find_task(call, marker)
    except Refusal:
        raise marker_not_found(marker) from None


async def _job_query(call: Call, query: TaskQuery) -> JobQuery | None:
    """The store's query, None when nothing can match."""
    own = call.identity.project
    project, possible = owner_of(query, own, admin=call.visible is None)
    states = states_of(query.status)
    ids = await _ids(call, query)
    if not possible or states == () or query.type == "" or ids == ():
        return None
    return JobQuery(
        project=project,
        kinds=TYPES if query.type is None else (query.type,),
        states=states,
        ids=ids,
        unexpired_in=own,
        now_us=call.state.clock.now_us(),
        sort=query.sort,
        descending=query.descending,
        after=None if query.marker is None else JobId(query.marker),
        limit=query.limit,
    )


async def _ids(call: Call, query: TaskQuery) -> tuple[JobId, ...] | None:
    """The only ids that can match, None for no such filter."""
    if query.image_id is None:
        return None if query.id is None else (JobId(query.id),)
    try:
        image = decode_image((await call.state.store.get_resource(IMAGE, query.image_id)).doc)
    except NotFound:
        return ()
    if image.job_id is None or query.id not in (None, image.job_id):
        return ()
    return (JobId(image.job_id),)


async def _scan(call: Call, asked: JobQuery, created_at: str) -> list[Job]:
    """The first jobs that were created in this second, found by reading on."""
    found: list[Job] = []
    after = asked.after
    while len(found) < asked.limit:
        page = await call.state.store.list_jobs(msgspec.structs.replace(asked, after=after, limit=SCAN_PAGE))
        found += [job for job in page if at_second(job.created_us) == created_at]
        if len(page) < SCAN_PAGE:
            break
        after = page[-1].id
    return found[: asked.limit]


async def list_image_tasks(call: Call, image_id: str, job_id: str | None) -> Response:
    """The import that made this image, as a raw record."""
    jobs: list[Job] = []
    if job_id is not None:
        try:
            jobs = [await find_task(call, job_id)]
        except Refusal:  # expired, the image outlives it
            pass
    return json_response(encode_image_tasks(jobs, image_id))


def own_kinds(call: Call) -> list[str]:
    """The kinds of this server, which its schema names besides Glance's types."""
    return [kind.name for kind in call.state.kinds]


def check_policy(call: Call) -> None:
    """Errors: Refusal 403 when the task API is for admins and the caller is none."""
    if call.state.settings.tasks_admin_only and not call.identity.is_admin:
        raise Refusal(403, NOT_ADMIN)
