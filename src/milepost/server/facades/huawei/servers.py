"""Servers over HTTP, looked at: show, lists, flavors, network cards and block devices, with what their machines really do.

Source: huaweicloudsdkecs EcsClient; chnsz/golangsdk openstack/ecs/v1, openstack/compute/v2/extensions/attachinterfaces.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import structlog
from starlette.routing import BaseRoute, Route

from milepost.compute import FLAVORS, SERVER, Server, decode_server
from milepost.errors import NotFound
from milepost.server.facades.huawei.endpoint import Call, Endpoint
from milepost.server.http import Reply
from milepost.volume import VOLUME, decode_volume
from milepost.wire.huawei import flavors
from milepost.wire.huawei import servers as wire
from milepost.wire.huawei.bodies import read_query
from milepost.wire.huawei.errors import Form, Refusal, Service

log = structlog.get_logger(__name__)

ONE = "/v1/{project_id}/cloudservers/{server_id}"
Show = Callable[..., dict[str, Any]]


def routes() -> list[BaseRoute]:
    """What the clients poll comes first among those that may."""
    own: list[tuple[str, dict[str, Any]]] = [
        ("/v1/{project_id}/cloudservers/detail", {"GET": list_servers}),
        ("/v1.1/{project_id}/cloudservers/detail", {"GET": list_servers_by_marker}),
        ("/v1/{project_id}/cloudservers/flavors", {"GET": list_flavors}),
        ("/v1/{project_id}/cloudservers/resize_flavors", {"GET": list_resize_flavors}),
        (ONE + "/os-interface", {"GET": list_nics}),
        (ONE + "/block_device", {"GET": list_devices}),
        (ONE + "/block_device/{volume_id}", {"GET": show_device}),
        (ONE + "/os-volume_attachments", {"GET": list_attachments}),
    ]
    return [
        *(Route(path, Endpoint(Service.ECS, **handlers)) for path, handlers in own),
        # Behind the fixed words; `delete` and `action` are only posted to.
        Route(ONE + "", Endpoint(Service.ECS, GET=show_server), methods=["GET", "HEAD"]),
        Route("/v2.1/{project_id}/servers/{server_id}/os-interface", Endpoint(Service.ECS, form=Form.NOVA, GET=list_nova_nics)),
    ]


# --- servers ---------------------------------------------------------------------------------------------------------


async def find_server(call: Call) -> Server:
    """The path's server, as it is stored.  Errors: Refusal 404 for what never was, is deleted, or is another project's."""
    server_id = call.params["server_id"]
    try:
        stored = await call.state.store.get_resource(SERVER, server_id.lower())
    except NotFound:
        raise _unknown(server_id) from None
    if stored.project != call.identity.project:
        raise _unknown(server_id)
    return decode_server(stored.doc)


def _unknown(server_id: str) -> Refusal:
    return Refusal(404, "Ecs.0114", f"Instance[{server_id[:80]}] could not be found.")


async def see(call: Call, server: Server) -> tuple[Server, wire.Power]:
    """The server as it really is, and what was seen of its machine."""
    machines = call.state.machines
    if machines is None:
        return server, wire.UNSEEN
    try:
        seen = await machines.observe(server)
    except Exception:  # what cannot be looked at is shown as it is stored: the record is no secret
        log.exception("cannot look at a machine", server_id=server.id)
        return server, wire.UNSEEN
    power = wire.Power(str(seen.standing), seen.words)
    return wire.see_server(server, power, call.state.clock.now_us()), power


async def show_server(call: Call) -> Reply:
    server, power = await see(call, await find_server(call))
    return Reply(200, wire.encode_server(wire.show_server(server, FLAVORS.get(server.flavor_id), power)))


async def list_servers(call: Call) -> Reply:
    shown, total, _ = await _page(call, wire.read_server_query(call.query), wire.show_server)
    return Reply(200, wire.encode_server_page(shown, total))


async def list_servers_by_marker(call: Call) -> Reply:
    query = wire.read_marker_query(call.query)
    shown, _, more = await _page(call, query, wire.show_cloud_server)
    following = None
    if more:
        asked = {**read_query(call.query), "marker": shown[-1]["id"], "limit": str(query.limit)}
        following = f"{call.url}{call.scope['path']}?{urlencode(asked)}"
    return Reply(200, wire.encode_marker_page(shown, following, call.scope["request_id"]))


async def _page(call: Call, query: wire.ServerQuery, show: Show) -> tuple[list[dict[str, Any]], int, bool]:
    """A status filter is about what really is, so it needs all of them looked at; else only those of the page are."""
    stored = await call.state.store.list_resources(SERVER, project=call.identity.project)
    servers = [decode_server(one.doc) for one in stored]
    seen: dict[str, wire.Power] = {}
    if query.status is not None:
        servers = await _see_all(call, servers, seen)
    page, total, more = wire.select_servers(servers, query)
    if query.status is None:
        page = await _see_all(call, page, seen)
    shown = [show(one, FLAVORS.get(one.flavor_id), seen.get(one.id, wire.UNSEEN)) for one in page]
    return shown, total, more


async def _see_all(call: Call, servers: list[Server], seen: dict[str, wire.Power]) -> list[Server]:
    found = await asyncio.gather(*(see(call, one) for one in servers))
    seen.update({server.id: power for server, power in found})
    return [server for server, _ in found]


# --- flavors ---------------------------------------------------------------------------------------------------------


async def list_flavors(call: Call) -> Reply:
    found = flavors.select_flavors(FLAVORS.values(), call.query)
    return Reply(200, flavors.encode_flavors(found, call.url, call.identity.project))


async def list_resize_flavors(call: Call) -> Reply:
    """Those that a server, or one of a flavor, can change to."""
    query = read_query(call.query)
    besides = query.get("source_flavor_id") or query.get("source_flavor_name")
    if query.get("instance_uuid"):
        call.params = {**call.params, "server_id": query["instance_uuid"]}
        besides = (await find_server(call)).flavor_id
    found = flavors.select_flavors(FLAVORS.values(), call.query, besides=besides)
    return Reply(200, flavors.encode_flavors(found, call.url, call.identity.project, resize=True))


# --- network cards and block devices -----------------------------------------------------------------------------------


async def list_nics(call: Call) -> Reply:
    return Reply(200, flavors.encode_nics(await find_server(call)))


async def list_nova_nics(call: Call) -> Reply:
    return Reply(200, flavors.encode_nova_nics(await find_server(call)))


async def list_devices(call: Call) -> Reply:
    server = await find_server(call)
    sizes = {disk.volume_id: await _size_gib(call, disk.volume_id) for disk in server.disks}
    return Reply(200, flavors.encode_devices(server, sizes))


async def show_device(call: Call) -> Reply:
    server, volume_id = await find_server(call), call.params["volume_id"].lower()
    for disk in server.disks:
        if disk.volume_id == volume_id:
            return Reply(200, flavors.encode_device(server, disk, await _size_gib(call, volume_id)))
    raise Refusal(404, "Ecs.0114", f"Volume {volume_id[:80]} is not attached to instance {server.id}.")


async def list_attachments(call: Call) -> Reply:
    return Reply(200, flavors.encode_attachments(await find_server(call)))


async def _size_gib(call: Call, volume_id: str) -> int:
    try:
        return decode_volume((await call.state.store.get_resource(VOLUME, volume_id)).doc).size_gib
    except NotFound:  # it is being deleted with its server
        return 0
