"""Servers over HTTP: what changes one is a job; see `servers` for what only looks.

Every submit answers exactly 200, which the Go clients demand; a dry run 202, as the SDK's documentation says.
Source: chnsz/golangsdk openstack/ecs/v1/cloudservers/requests.go; huaweicloudsdkecs EcsClient.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.routing import BaseRoute, Route

from milepost.errors import NotFound
from milepost.image import IMAGE, decode_image
from milepost.job import Job
from milepost.server.facades.huawei import servers
from milepost.server.facades.huawei.endpoint import Call, Endpoint, rehearse, submit
from milepost.server.facades.huawei.evs import find_volume
from milepost.server.facades.huawei.servers import find_server
from milepost.server.http import Reply
from milepost.wire.huawei import ecs
from milepost.wire.huawei.bodies import Ask, read_query
from milepost.wire.huawei.errors import Service
from milepost.wire.huawei.evs import read_volume_id
from milepost.wire.huawei.jobs import job_hex

GIB = 1 << 30
SERVER = "/{project_id}/cloudservers/{server_id}"


def routes() -> list[BaseRoute]:
    """Fixed words before ids: `/cloudservers/detail` is no server."""
    own: list[tuple[str, dict[str, Any]]] = [
        ("/v1/{project_id}/cloudservers/delete", {"POST": delete_servers}),
        ("/v1/{project_id}/cloudservers/action", {"POST": act_on_servers}),
        ("/v1/{project_id}/cloudservers", {"POST": create_servers}),
        ("/v1.1/{project_id}/cloudservers", {"POST": create_servers}),
        ("/v1/{project_id}/cloudservers/batch-resize", {"POST": resize_servers}),
        ("/v1" + SERVER + "/resize", {"POST": resize_server}),
        ("/v1.1" + SERVER + "/resize", {"POST": resize_server}),
        ("/v1" + SERVER + "/nics", {"POST": add_nics}),
        ("/v1" + SERVER + "/nics/delete", {"POST": delete_nics}),
        ("/v1" + SERVER + "/attachvolume", {"POST": attach_volume}),
        ("/v1" + SERVER + "/detachvolume/{volume_id}", {"DELETE": detach_volume}),
        ("/v1/{project_id}/batchaction/attachvolumes/{volume_id}", {"POST": attach_to_servers}),
        ("/v1/{project_id}/batchaction/detachvolumes/{volume_id}", {"POST": detach_from_servers}),
        ("/v1" + SERVER + "/changeos", {"POST": change_os}),
        ("/v2" + SERVER + "/changeos", {"POST": change_os}),
        ("/v1" + SERVER + "/reinstallos", {"POST": reinstall_os}),
        ("/v2" + SERVER + "/reinstallos", {"POST": reinstall_os}),
    ]
    return [*servers.routes(), *(Route(path, Endpoint(Service.ECS, **handlers)) for path, handlers in own)]


# --- create ----------------------------------------------------------------------------------------------------------


async def create_servers(call: Call) -> Reply:
    """The ids are the job's, so that a repeated request has the same."""
    ask = ecs.read_create(call.body)
    call.kind = ask.kind
    await _fill_root_size(call, ask.input["server"])
    if ask.dry_run:
        return await _rehearsed(call, ask)
    job, order = await submit(call, ask)
    return Reply(200, ecs.encode_accepted(job_id=job_hex(job.id), order_id=order, server_ids=_server_ids(job)))


async def _fill_root_size(call: Call, spec: dict[str, Any]) -> None:
    """A root volume without a size is as large as its image needs.  Errors: NotFound."""
    root = spec["root_volume"]
    if root["size"] is not None:
        return
    try:
        image = decode_image((await call.state.store.get_resource(IMAGE, spec["image_id"])).doc)
    except NotFound:
        raise NotFound(f"image_id: no image {spec['image_id']}", reason="image_not_found") from None  # as another project's
    root["size"] = max(1, image.min_disk, -(-(image.virtual_size or image.size or 0) // GIB))


class _Made(msgspec.Struct):
    server_ids: list[str] | None = None


_read_made = msgspec.json.Decoder(_Made).decode


def _server_ids(job: Job) -> list[str]:
    return _read_made(job.input or b"{}").server_ids or []


async def _rehearsed(call: Call, ask: Ask) -> Reply:
    await rehearse(call, ask)
    return Reply(202, b"{}")


async def _submitted(call: Call, ask: Ask) -> Reply:
    if ask.dry_run:
        return await _rehearsed(call, ask)
    job, order = await submit(call, ask)
    return Reply(200, ecs.encode_accepted(job_id=job_hex(job.id), order_id=order))


# --- changes ---------------------------------------------------------------------------------------------------------


async def delete_servers(call: Call) -> Reply:
    return await _submitted(call, ecs.read_delete(call.body))


async def act_on_servers(call: Call) -> Reply:
    return await _submitted(call, ecs.read_action(call.body))


async def resize_server(call: Call) -> Reply:
    """Of a server that was ordered the resize is an order itself, unpaid when the request says so."""
    server = await find_server(call)
    ask = ecs.read_resize(call.body, server.id)
    return await _submitted(call, msgspec.structs.replace(ask, order=server.order_id is not None))


async def resize_servers(call: Call) -> Reply:
    """Of several servers, the same flavor for all; an order where one of them was ordered, which is paid at once."""
    ask = ecs.read_batch_resize(call.body)
    call.kind = ask.kind
    found = []
    for server_id in ask.input.get("server_ids") or [ask.input["server_id"]]:
        call.params = {**call.params, "server_id": server_id}
        found.append(await find_server(call))
    return await _submitted(call, msgspec.structs.replace(ask, order=any(one.order_id is not None for one in found)))


async def add_nics(call: Call) -> Reply:
    server = await find_server(call)
    return await _submitted(call, ecs.read_add_nics(call.body, server.id))


async def delete_nics(call: Call) -> Reply:
    server = await find_server(call)
    return await _submitted(call, ecs.read_delete_nics(call.body, server.id))


async def attach_volume(call: Call) -> Reply:
    server = await find_server(call)
    return await _submitted(call, ecs.read_attach(call.body, server.id))


async def detach_volume(call: Call) -> Reply:
    server = await find_server(call)
    volume_id = read_volume_id(call.params["volume_id"])
    return await _submitted(call, ecs.read_detach(read_query(call.query), server.id, volume_id))


async def attach_to_servers(call: Call) -> Reply:
    volume, _ = await find_volume(call, read_volume_id(call.params["volume_id"]))
    return await _submitted(call, ecs.read_batch_attach(call.body, volume.id))


async def detach_from_servers(call: Call) -> Reply:
    volume, _ = await find_volume(call, read_volume_id(call.params["volume_id"]))
    return await _submitted(call, ecs.read_batch_detach(call.body, volume.id))


async def change_os(call: Call) -> Reply:
    server = await find_server(call)
    return await _submitted(call, ecs.read_change_os(call.body, server.id))


async def reinstall_os(call: Call) -> Reply:
    server = await find_server(call)
    return await _submitted(call, ecs.read_reinstall(call.body, server.id))
