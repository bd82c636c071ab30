"""Flavors, network cards and block devices as ECS and Nova show them.  Pure.

Rules
1. Types are those that Go clients demand: a flavor's `ram` is a number and its `vcpus` text; `size` and `bootIndex` of a block
   device are numbers, or null: they stop at a text.

Source: huaweicloudsdkecs Flavor, InterfaceAttachment, ServerBlockDevice; chnsz/golangsdk
openstack/ecs/v1/flavors, openstack/ecs/v1/block_devices, openstack/compute/v2/extensions/attachinterfaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from milepost.compute import Disk, Flavor, Nic, Server
from milepost.wire.huawei.bodies import check_number, read_query

DISKS_MAX, NICS_MAX = 24, 12
LIMIT_MAX = 1000

_encode = msgspec.json.Encoder().encode


# --- flavors ---------------------------------------------------------------------------------------------------------


def show_flavor(flavor: Flavor, url: str, project: str) -> dict[str, Any]:
    return {
        "id": flavor.id,
        "name": flavor.id,
        "vcpus": str(flavor.vcpus),
        "ram": flavor.ram_mib,
        "disk": "0",
        "swap": "",
        "links": [{"rel": "self", "href": f"{url}/v1/{project}/cloudservers/flavors/{flavor.id}", "type": None}],
        "OS-FLV-EXT-DATA:ephemeral": 0,
        "OS-FLV-DISABLED:disabled": False,
        "rxtx_factor": 1,
        "rxtx_quota": None,
        "rxtx_cap": None,
        "os-flavor-access:is_public": True,
    }


def encode_flavors(flavors: Iterable[Flavor], url: str, project: str, *, resize: bool = False) -> bytes:
    """`{"flavors": […]}`; those to resize to have their properties under another key."""
    key = "extra_specs" if resize else "os_extra_specs"
    return _encode({"flavors": [{**show_flavor(one, url, project), key: _specs(one)} for one in flavors]})


def _specs(flavor: Flavor) -> dict[str, str]:
    generation = flavor.id.partition(".")[0]
    return {
        "ecs:performancetype": "normal",
        "ecs:generation": generation,
        "ecs:virtualization_env_types": "QEMU",
        "ecs:instance_architecture": "x86_64",
        "resource_type": "IOoptimized",
        "cond:operation:status": "normal",
        "quota:vif_max_num": str(NICS_MAX),
    }


def select_flavors(flavors: Iterable[Flavor], raw: str, *, besides: str | None = None) -> list[Flavor]:
    """Filters and a page.  `besides`: the flavor that a server has already.  Errors: Refusal."""
    query = read_query(raw)
    found = [one for one in flavors if one.id != besides and query.get("flavor_id") in (None, "", one.id)]
    marker = query.get("marker")
    if marker:
        start = next((index + 1 for index, one in enumerate(found) if one.id == marker), len(found))
        found = found[start:]
    return found[: check_number(query.get("limit"), "limit", LIMIT_MAX, 1, LIMIT_MAX)]


# --- network cards and block devices -----------------------------------------------------------------------------------


def show_nic(nic: Nic) -> dict[str, Any]:
    """As Nova and ECS show it; ECS adds keys that are null here."""
    return {
        "port_state": "ACTIVE",
        "fixed_ips": [{"subnet_id": nic.subnet_id, "ip_address": nic.ip_address}],
        "net_id": nic.subnet_id,
        "port_id": nic.id,
        "mac_addr": nic.mac,
    }


def encode_nics(server: Server) -> bytes:
    """ECS's list, with how many more there may be."""
    more = {"delete_on_termination": False, "driver_mode": None, "min_rate": None, "multiqueue_num": None, "pci_address": None}
    return _encode(
        {
            "attachableQuantity": {"free_nic": max(0, NICS_MAX - len(server.nics)), "free_efi_nic": 0},
            "interfaceAttachments": [{**show_nic(nic), **more} for nic in server.nics],
        }
    )


def encode_nova_nics(server: Server) -> bytes:
    """Nova's list."""
    return _encode({"interfaceAttachments": [show_nic(nic) for nic in server.nics]})


def show_device(server: Server, disk: Disk, size_gib: int) -> dict[str, Any]:
    return {
        "volumeId": disk.volume_id,
        "serverId": server.id,
        "id": disk.volume_id,
        "device": disk.device,
        "pciAddress": "",
        "size": size_gib,
        "bootIndex": disk.boot_index,
        "bus": "scsi",
    }


def encode_devices(server: Server, sizes_gib: Mapping[str, int]) -> bytes:
    """The block devices of a server, with how many more there may be."""
    free = max(0, DISKS_MAX - len(server.disks))
    return _encode(
        {
            "attachableQuantity": {"free_scsi": free, "free_blk": 0, "free_disk": free},
            "volumeAttachments": [show_device(server, disk, sizes_gib.get(disk.volume_id, 0)) for disk in server.disks],
        }
    )


def encode_device(server: Server, disk: Disk, size_gib: int) -> bytes:
    """One block device."""
    return _encode({"volumeAttachment": show_device(server, disk, size_gib)})


def encode_attachments(server: Server) -> bytes:
    """Nova's list of attached volumes."""
    return _encode(
        {
            "volumeAttachments": [
                {"volumeId": disk.volume_id, "serverId": server.id, "id": disk.volume_id, "device": disk.device}
                for disk in server.disks
            ]
        }
    )
