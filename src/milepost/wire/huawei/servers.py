"""Servers and their lists as ECS shows them.  Pure.

Rules
1. Types are those that Go clients demand: the flavor's numbers, `bootIndex` and `delete_on_termination` are text, `image` is
   always an object.  The newer list has other types, and other keys.
2. `created` and `updated` are RFC 3339 in whole seconds, `launched_at` has microseconds and no zone.
3. The status is a function of what the machine is and what is done to it (`STATUS`); what really runs decides, when nobody
   changes the server: a crashed machine is in ERROR, one whose guest shut it down is SHUTOFF.
4. A page behind the last one is empty; `offset` is the number of a page, from 1 (0 is the first too).

Source: huaweicloudsdkecs ServerDetail, CloudServer; chnsz/golangsdk openstack/ecs/v1/cloudservers;
opentelekomcloud-docs/elastic-cloud-server api-ref, ecs_statuses.rst.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from milepost.compute import Fault, Flavor, Server, VmState
from milepost.wire import rfc3339
from milepost.wire.huawei.bodies import check_number, read_query

LIMIT_DEFAULT, LIMIT_MAX = 25, 1000
MARKER_LIMIT_DEFAULT, MARKER_LIMIT_MAX = 10, 100  # of the newer list
RUNNING, SHUT_DOWN, NO_STATE = 1, 4, 0

_REBOOTING = frozenset({"rebooting", "reboot_pending", "reboot_started"})
_REBOOTING_HARD = frozenset({"rebooting_hard", "reboot_pending_hard", "reboot_started_hard"})
_REBUILDING = frozenset({"rebuilding", "rebuild_block_device_mapping", "rebuild_spawning"})
_RESIZING = frozenset({"resize_prep", "resize_migrating", "resize_migrated", "resize_finish"})
STATUS: dict[VmState, str] = {
    VmState.BUILDING: "BUILD",
    VmState.ACTIVE: "ACTIVE",
    VmState.STOPPED: "SHUTOFF",
    VmState.RESIZED: "VERIFY_RESIZE",
    VmState.ERROR: "ERROR",
    VmState.DELETED: "DELETED",
}

_encode = msgspec.json.Encoder().encode


class Power(msgspec.Struct, frozen=True):
    """What was seen of a server's machine: `running`, `off`, `crashed` or `none`, and why it does not run."""

    standing: str
    words: str = ""


UNSEEN = Power("")  # nobody looked: the record is believed


def see_server(server: Server, power: Power, now_us: int) -> Server:
    """The server as it really is (rule 3)."""
    if server.job_id is not None or not power.standing:
        return server
    if power.standing == "running":
        stopped = server.vm_state is VmState.STOPPED
        return msgspec.structs.replace(server, vm_state=VmState.ACTIVE) if stopped else server
    if server.vm_state is not VmState.ACTIVE:
        return server
    if power.standing == "crashed":
        fault = server.fault or Fault(code=500, message=power.words or "the machine's process has died", created_us=now_us)
        return msgspec.structs.replace(server, vm_state=VmState.ERROR, task_state=None, fault=fault)
    return msgspec.structs.replace(server, vm_state=VmState.STOPPED, task_state=None)


def status_of(server: Server) -> str:
    """Source: Table 4 of ecs_statuses.rst."""
    task, vm = server.task_state or "", server.vm_state
    if task in _REBUILDING and vm in (VmState.ACTIVE, VmState.STOPPED, VmState.ERROR):
        return "REBUILD"
    if vm is VmState.ACTIVE:
        if task in _REBOOTING:
            return "REBOOT"
        if task in _REBOOTING_HARD:
            return "HARD_REBOOT"
    if task in _RESIZING and vm in (VmState.STOPPED, VmState.ACTIVE):
        return "RESIZE"
    if vm is VmState.RESIZED and task == "resize_reverting":
        return "REVERT_RESIZE"
    return STATUS[vm]


def power_of(server: Server, power: Power) -> int:
    if power.standing:
        return RUNNING if power.standing == "running" else NO_STATE if power.standing == "none" and _unborn(server) else SHUT_DOWN
    return RUNNING if server.vm_state is VmState.ACTIVE else SHUT_DOWN if server.vm_state is VmState.STOPPED else NO_STATE


def _unborn(server: Server) -> bool:
    return server.vm_state in (VmState.BUILDING, VmState.ERROR)


# --- servers ---------------------------------------------------------------------------------------------------------


def show_server(server: Server, flavor: Flavor | None, power: Power) -> dict[str, Any]:
    """A server as ECS has it, keys in the documents' order."""
    return {
        "id": server.id,
        "name": server.name,
        "status": status_of(server),
        "created": _second(server.created_us),
        "updated": _second(server.updated_us),
        "tenant_id": server.project,
        "user_id": server.user_id,
        "hostId": "",
        "addresses": _addresses(server, version="4"),
        "flavor": {
            "id": server.flavor_id,
            "name": server.flavor_id,
            "disk": "0",
            "vcpus": str(flavor.vcpus if flavor else 0),
            "ram": str(flavor.ram_mib if flavor else 0),
        },
        "image": {"id": server.image_id},
        "key_name": server.key_name,
        "security_groups": [{"name": one, "id": one} for one in server.security_groups],
        "metadata": _metadata(server),
        "OS-EXT-STS:vm_state": server.vm_state,
        "OS-EXT-STS:task_state": server.task_state,
        "OS-EXT-STS:power_state": power_of(server, power),
        "OS-EXT-AZ:availability_zone": server.availability_zone,
        "OS-DCF:diskConfig": "MANUAL",
        "OS-SRV-USG:launched_at": _micro(server.launched_us),
        "OS-SRV-USG:terminated_at": None,
        "OS-EXT-SRV-ATTR:host": "",
        "OS-EXT-SRV-ATTR:instance_name": f"instance-{server.id[:8]}",
        "OS-EXT-SRV-ATTR:hypervisor_hostname": "",
        "OS-EXT-SRV-ATTR:hostname": server.name.lower(),
        "OS-EXT-SRV-ATTR:reservation_id": "",
        "OS-EXT-SRV-ATTR:launch_index": 0,
        "OS-EXT-SRV-ATTR:kernel_id": "",
        "OS-EXT-SRV-ATTR:ramdisk_id": "",
        "OS-EXT-SRV-ATTR:root_device_name": _root_device(server),
        "OS-EXT-SRV-ATTR:user_data": server.user_data or "",
        "os-extended-volumes:volumes_attached": [
            {
                "id": disk.volume_id,
                "delete_on_termination": "true" if disk.delete_on_termination else "false",
                "bootIndex": "" if disk.boot_index is None else str(disk.boot_index),
                "device": disk.device,
            }
            for disk in server.disks
        ],
        "accessIPv4": "",
        "accessIPv6": "",
        "config_drive": "",
        "fault": _fault(server),
        "progress": 0,
        "locked": False,
        "description": server.description,
        "host_status": "UP",
        "enterprise_project_id": "0",
        "auto_terminate_time": "",
        "hypervisor": {"hypervisor_type": "QEMU"},
        "tags": _tags(server),
        "sys_tags": [],
        "os:scheduler_hints": {},
    }


def show_cloud_server(server: Server, flavor: Flavor | None, power: Power) -> dict[str, Any]:
    """A server as the newer list has it.  Source: huaweicloudsdkecs CloudServer and its parts."""
    return {
        "id": server.id,
        "name": server.name,
        "status": status_of(server),
        "tenant_id": server.project,
        "user_id": server.user_id,
        "availability_zone": server.availability_zone,
        "vm_state": server.vm_state,
        "task_state": server.task_state,
        "power_state": power_of(server, power),
        "created": _second(server.created_us),
        "updated": _second(server.updated_us),
        "launched_at": _micro(server.launched_us),
        "in_recycle_bin": False,
        "description": server.description,
        "key_name": server.key_name,
        "locked": False,
        "root_device_name": _root_device(server),
        "enterprise_project_id": "0",
        "metadata": _metadata(server),
        "tags": _tags(server),
        "addresses": _addresses(server, version=4),
        "security_groups": [{"name": one, "id": one} for one in server.security_groups],
        "volumes_attached": [
            {
                "id": disk.volume_id,
                "delete_on_termination": disk.delete_on_termination,
                "device": disk.device,
                "bootIndex": "" if disk.boot_index is None else str(disk.boot_index),
            }
            for disk in server.disks
        ],
        "image": {"id": server.image_id},
        "flavor": {
            "id": server.flavor_id,
            "name": server.flavor_id,
            "vcpus": flavor.vcpus if flavor else 0,
            "ram": flavor.ram_mib if flavor else 0,
            "disk": 0,
        },
        "fault": _fault(server),
    }


def _addresses(server: Server, *, version: int | str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for nic in server.nics:
        found.setdefault(nic.vpc_id or server.vpc_id, []).append(
            {
                "version": version,
                "addr": nic.ip_address,
                "OS-EXT-IPS:type": "fixed",
                "OS-EXT-IPS-MAC:mac_addr": nic.mac,
                "OS-EXT-IPS:port_id": nic.id,
                "primary": nic.primary,
            }
        )
    return found


def _metadata(server: Server) -> dict[str, str]:
    found = {
        "charging_mode": "0" if server.order_id is None else "1",
        "vpc_id": server.vpc_id,
        "os_type": "Linux",
        "image_name": server.image_name,
        "metering.image_id": server.image_id,
        "metering.imagetype": "private",
        "metering.resourcespeccode": f"{server.flavor_id}.linux",
        "metering.resourcetype": "1",
    }
    if server.order_id is not None:
        found["metering.order_id"] = server.order_id
    return {**found, **server.metadata}


def _tags(server: Server) -> list[str]:
    return [f"{key}={value}" for key, value in server.tags.items()]


def _root_device(server: Server) -> str:
    return next((disk.device for disk in server.disks if disk.boot_index == 0), "")


def _fault(server: Server) -> dict[str, Any] | None:
    fault = server.fault
    if fault is None or server.vm_state is not VmState.ERROR:
        return None
    return {"code": fault.code, "created": _second(fault.created_us), "message": fault.message, "details": ""}


def _second(at_us: int) -> str:
    return f"{(rfc3339(at_us) or '')[:19]}Z"


def _micro(at_us: int | None) -> str | None:
    return None if at_us is None else (rfc3339(at_us) or "")[:26]


# --- lists -----------------------------------------------------------------------------------------------------------


class ServerQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A list's filters and page.  None: no filter.  `page` counts from 1; `marker` is the last server of the page before."""

    limit: int
    page: int = 1
    marker: str | None = None
    name: str | None = None
    status: str | None = None
    flavor: str | None = None
    image_id: str | None = None
    zone: str | None = None
    zone_part: str | None = None
    ip: str | None = None
    ip_part: str | None = None
    tags: tuple[str, ...] = ()
    not_tags: tuple[str, ...] = ()
    server_id: str | None = None
    key_name: str | None = None


def read_server_query(raw: str) -> ServerQuery:
    """The list with pages by number.  Errors: Refusal."""
    query = read_query(raw)
    return ServerQuery(
        limit=check_number(query.get("limit"), "limit", LIMIT_DEFAULT, 1, LIMIT_MAX),
        page=max(1, check_number(query.get("offset"), "offset", 1, 0, 1 << 31)),
        marker=query.get("marker") or None,
        name=query.get("name") or None,
        status=query.get("status") or None,
        flavor=query.get("flavor") or None,
        ip=query.get("ip_eq") or None,
        ip_part=query.get("ip") or None,
        tags=_words(query.get("tags")),
        not_tags=_words(query.get("not-tags")),
        server_id=(query.get("server_id") or "").lower() or None,
    )


def read_marker_query(raw: str) -> ServerQuery:
    """The newer list, with pages by marker.  Errors: Refusal."""
    query = read_query(raw)
    return ServerQuery(
        limit=check_number(query.get("limit"), "limit", MARKER_LIMIT_DEFAULT, 1, MARKER_LIMIT_MAX),
        marker=query.get("marker") or None,
        name=query.get("name") or None,
        status=query.get("status") or None,
        flavor=query.get("flavor_name") or None,
        image_id=query.get("image_id") or None,
        zone=query.get("availability_zone_eq") or None,
        zone_part=query.get("availability_zone") or None,
        tags=_words(query.get("tags")),
        not_tags=_words(query.get("not-tags")),
        server_id=(query.get("id") or "").lower() or None,
        key_name=query.get("key_name") or None,
    )


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word for word in (text or "").split(",") if word)


def select_servers(servers: Iterable[Server], query: ServerQuery) -> tuple[list[Server], int, bool]:
    """One page, newest first; how many there are on all pages; and whether something follows."""
    found = [one for one in servers if _matches(one, query)]
    found.sort(key=lambda one: (one.created_us, one.id), reverse=True)
    total, start = len(found), (query.page - 1) * query.limit
    if query.marker is not None:
        start += next((index + 1 for index, one in enumerate(found) if one.id == query.marker), total)
    return found[start : start + query.limit], total, start + query.limit < total


def _matches(server: Server, query: ServerQuery) -> bool:
    tags = set(_tags(server)) | set(server.tags)
    addresses = [nic.ip_address for nic in server.nics]
    return (
        (query.name is None or query.name in server.name)
        and (query.status is None or query.status == status_of(server))
        and (query.flavor is None or query.flavor == server.flavor_id)
        and (query.image_id is None or query.image_id == server.image_id)
        and (query.zone is None or query.zone == server.availability_zone)
        and (query.zone_part is None or query.zone_part in server.availability_zone)
        and (query.ip is None or query.ip in addresses)
        and (query.ip_part is None or any(query.ip_part in one for one in addresses))
        and tags.issuperset(query.tags)
        and tags.isdisjoint(query.not_tags)
        and (query.server_id is None or query.server_id == server.id)
        and (query.key_name is None or query.key_name == server.key_name)
    )


def encode_server(shown: Mapping[str, Any]) -> bytes:
    """`{"server": …}`."""
    return _encode({"server": shown})


def encode_server_page(shown: Sequence[Mapping[str, Any]], total: int) -> bytes:
    """`{"count", "servers"}`; `total` is that of all pages."""
    return _encode({"count": total, "servers": shown})


def encode_marker_page(shown: Sequence[Mapping[str, Any]], next_url: str | None, request_id: str) -> bytes:
    """The newer list's page."""
    links = [] if next_url is None else [{"rel": "next", "href": next_url}]
    return _encode({"servers": shown, "servers_links": links, "request_id": request_id})
