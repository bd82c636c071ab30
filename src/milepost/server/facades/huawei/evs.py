"""Block storage over HTTP: create, extend, retype and delete are jobs; show, list and rename are not.

Success codes are those that the Go clients demand: 202 for v2.1, exactly 200 for a delete, 200 for what is left.
Source: chnsz/golangsdk openstack/evs/v2/cloudvolumes/requests.go; huaweicloudsdkevs EvsClient.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.routing import BaseRoute, Route

from milepost.errors import Conflict, NotFound, VersionConflict
from milepost.job import Job
from milepost.server.facades.huawei.endpoint import Call, Endpoint, submit
from milepost.server.http import Reply
from milepost.store import Resource
from milepost.volume import VOLUME, Volume, decode_volume, encode_volume
from milepost.wire.huawei import evs, volumes
from milepost.wire.huawei.bodies import Ask
from milepost.wire.huawei.errors import Refusal, Service
from milepost.wire.huawei.jobs import job_hex

WRITES_MAX = 5  # times a change is tried again when another one came between


def routes() -> list[BaseRoute]:
    """What the clients poll comes first."""
    own: list[tuple[str, dict[str, Any]]] = [
        ("/v2/{project_id}/cloudvolumes/detail", {"GET": list_volumes}),
        ("/v2/{project_id}/cloudvolumes/delete", {"POST": delete_volumes}),
        ("/v2/{project_id}/cloudvolumes/{volume_id}", {"GET": show_volume, "DELETE": delete_volume, "PUT": update_volume}),
        ("/v2/{project_id}/cloudvolumes/{volume_id}/action", {"POST": _extend(200)}),
        ("/v2.1/{project_id}/cloudvolumes/{volume_id}/action", {"POST": _extend(202)}),
        ("/v2.1/{project_id}/cloudvolumes", {"POST": _create(202)}),
        ("/v2/{project_id}/cloudvolumes", {"POST": _create(200)}),
        ("/v3/{project_id}/cloudvolumes", {"POST": _create(200)}),
        ("/v2/{project_id}/volumes/{volume_id}/retype", {"POST": retype_volume}),
        ("/v5/{project_id}/volumes/batch-extend", {"POST": extend_volumes}),
        ("/v5/{project_id}/cloudvolumes/{volume_id}/qos", {"PUT": refuse_qos}),
    ]
    return [Route(path, Endpoint(Service.EVS, **handlers)) for path, handlers in own]


# --- jobs ------------------------------------------------------------------------------------------------------------


def _create(status: int) -> Any:
    async def create_volumes(call: Call) -> Reply:
        """One volume or a batch: the ids are the job's, so that a repeated request has the same."""
        job, order = await submit(call, evs.read_create(call.body))
        body = evs.encode_accepted(job_id=job_hex(job.id), order_id=order, volume_ids=_volume_ids(job))
        return Reply(status, body)

    return create_volumes


class _Made(msgspec.Struct):
    volume_id: str | None = None
    volume_ids: list[str] | None = None


_read_made = msgspec.json.Decoder(_Made).decode


def _volume_ids(job: Job) -> list[str]:
    made = _read_made(job.input or b"{}")
    return made.volume_ids or ([] if made.volume_id is None else [made.volume_id])


def _extend(status: int) -> Any:
    async def extend_volume(call: Call) -> Reply:
        volume_id = evs.read_volume_id(call.params["volume_id"])
        return await _change(call, evs.read_extend(call.body, volume_id), volume_id, status=status)

    return extend_volume


async def extend_volumes(call: Call) -> Reply:
    ask = evs.read_batch_extend(call.body)
    return await _change(call, ask, *(one["volume_id"] for one in ask.input["volumes"]), status=200)


async def retype_volume(call: Call) -> Reply:
    volume_id = evs.read_volume_id(call.params["volume_id"])
    return await _change(call, evs.read_retype(call.body, volume_id), volume_id, status=200)


async def _change(call: Call, ask: Ask, *volume_ids: str, status: int) -> Reply:
    """A change of volumes; one of a volume that was ordered is an order itself, unpaid unless the request says so."""
    call.kind = ask.kind
    found = [await find_volume(call, one) for one in volume_ids]
    ordered = any(volume.order_id is not None for volume, _ in found)
    job, order = await submit(call, msgspec.structs.replace(ask, order=ordered))
    return Reply(status, evs.encode_accepted(job_id=job_hex(job.id), order_id=order))


async def delete_volume(call: Call) -> Reply:
    """The query's `cascade` is for snapshots, which are not here."""
    job, _ = await submit(call, evs.read_delete(evs.read_volume_id(call.params["volume_id"])))
    return Reply(200, evs.encode_accepted(job_id=job_hex(job.id), order_id=None))


async def delete_volumes(call: Call) -> Reply:
    job, _ = await submit(call, evs.read_batch_delete(call.body))
    return Reply(200, evs.encode_accepted(job_id=job_hex(job.id), order_id=None))


async def refuse_qos(call: Call) -> Reply:
    """Errors: Refusal, always: all volumes are files, which have no speed to be bought."""
    await find_volume(call, evs.read_volume_id(call.params["volume_id"]))
    raise Refusal(400, "EVS.1052", "qos_modify: this server does not limit the iops and throughput of volumes.")


# --- volumes ---------------------------------------------------------------------------------------------------------


async def show_volume(call: Call) -> Reply:
    volume, _ = await find_volume(call, evs.read_volume_id(call.params["volume_id"]))
    return Reply(200, volumes.encode_volume_body(volume, call.url))


async def list_volumes(call: Call) -> Reply:
    query = volumes.read_volume_query(call.query)
    stored = await call.state.store.list_resources(VOLUME, project=call.identity.project)
    page, total = volumes.select_volumes((decode_volume(one.doc) for one in stored), query)
    return Reply(200, volumes.encode_volume_page(page, total, call.url))


async def update_volume(call: Call) -> Reply:
    """A new name or description, at once.  Errors: Refusal, Conflict after too many tries."""
    name, description = evs.read_update(call.body)
    volume_id = evs.read_volume_id(call.params["volume_id"])
    for _ in range(WRITES_MAX):
        volume, stored = await find_volume(call, volume_id)
        volume.name = volume.name if name is None else name
        volume.description = volume.description if description is None else description
        volume.updated_us = call.state.clock.now_us()
        changed = msgspec.structs.replace(stored, doc=encode_volume(volume), updated_us=volume.updated_us)
        try:
            await call.state.store.put_resource(changed, if_version=stored.version)
        except VersionConflict:
            continue
        return Reply(200, volumes.encode_volume_body(volume, call.url))
    raise Conflict(f"volume {volume_id} is being changed by others; try again")


async def find_volume(call: Call, volume_id: str) -> tuple[Volume, Resource]:
    """Errors: NotFound for what never was, is deleted, or is another project's."""
    try:
        stored = await call.state.store.get_resource(VOLUME, volume_id)
    except NotFound:
        raise volume_unknown(volume_id) from None
    if stored.project != call.identity.project:
        raise volume_unknown(volume_id)
    return decode_volume(stored.doc), stored


def volume_unknown(volume_id: str) -> NotFound:
    """Each service has its own code for it."""
    return NotFound(f"Volume {volume_id} could not be found.", reason="volume_not_found")


__all__ = ["find_volume", "routes", "volume_unknown"]
