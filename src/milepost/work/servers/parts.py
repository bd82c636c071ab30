"""What is checked and reserved before disks and network cards of a server come or go, or its system is replaced."""

from __future__ import annotations

import msgspec

from milepost import Admission, Admitted, Conflict, Forbidden, InvalidInput, NotFound, Write
from milepost.compute import Disk, Server, VmState
from milepost.image import Image
from milepost.machines.command import usable_address
from milepost.machines.value import CARDS_MAX, DISKS_MAX, device_name, slot_of
from milepost.volume import Volume, VolumeStatus, decode_volume
from milepost.work.servers.admission import (
    check_qemu,
    check_ram,
    find_flavor,
    new_volume,
    server_write,
    take_server,
    take_volume,
)
from milepost.work.servers.spec import (
    AddNic,
    AddSingleNic,
    AttachVolume,
    ChangeOs,
    DeleteNic,
    DeleteSingleNic,
    DetachVolume,
    DiskSpec,
    ReInitOs,
    id_of,
)
from milepost.work.volumes.admission import check_image_fits, check_quota, find_image, find_volume, volume_resource

SETTLED = frozenset({VmState.ACTIVE, VmState.STOPPED})
ATTACHABLE = frozenset({VolumeStatus.AVAILABLE, VolumeStatus.IN_USE})
SERVER_PATH, VOLUME_PATH = "$.input.server_id", "$.input.volume_id"


# --- disks ---------------------------------------------------------------------------------------------------------


async def admit_attach(ask: Admission, spec: AttachVolume) -> Admitted:
    """The volume is `attaching`, and the device is chosen."""
    server, version = await take_server(ask, spec.server_id, SERVER_PATH, allowed=SETTLED, verb="given a volume", task=None)
    volume, _ = await find_volume(ask, spec.volume_id, VOLUME_PATH)
    _check_attachable(volume, server)
    write = await take_volume(ask, spec.volume_id, VolumeStatus.ATTACHING, VOLUME_PATH)
    device = free_device(server, spec.device)
    return Admitted(input=msgspec.structs.replace(spec, device=device), writes=[server_write(server, if_version=version), write])


def _check_attachable(volume: Volume, server: Server) -> None:
    if any(one.server_id == server.id for one in volume.attachments):
        raise Conflict(
            f"volume {volume.id} is attached to server {server.id} already", path=VOLUME_PATH, reason="volume_attached"
        )
    if volume.attachments and not is_shareable(volume):
        raise Conflict(
            f"volume {volume.id} is attached to server {volume.attachments[0].server_id}, and {why_not_shared(volume)}",
            path=VOLUME_PATH,
            reason="volume_attached",
            volume_id=volume.id,
        )
    if volume.job_id is None and volume.status not in ATTACHABLE:
        raise Conflict(
            f"volume {volume.id} is {volume.status}; it is attached only while {' or '.join(sorted(ATTACHABLE))}",
            path=VOLUME_PATH,
            reason="volume_state",
            volume_id=volume.id,
        )


def is_shareable(volume: Volume) -> bool:
    """Whether several servers can have it: of one that was made as qcow2 the second machine could not open the file."""
    return volume.multiattach and volume.format == "raw"


def why_not_shared(volume: Volume) -> str:
    return "its format is qcow2, which only one server can have open" if volume.multiattach else "it is not multiattach"


def free_device(server: Server, asked: str | None) -> str:
    """The device that the volume will be.  Errors: InvalidInput, Conflict (`device_limit`)."""
    taken = {slot_of(disk.device) for disk in server.disks}
    if asked:
        slot = slot_of(asked)
        if slot is None:
            raise InvalidInput(
                f"device is {asked[:40]!r}; there are /dev/sda … {device_name(DISKS_MAX - 1)}",
                path="$.input.device",
                reason="device_limit",
            )
        if slot in taken:
            raise Conflict(
                f"server {server.id} has a volume as {device_name(slot)} already", path="$.input.device", reason="device_limit"
            )
        return device_name(slot)
    free = next((slot for slot in range(DISKS_MAX) if slot not in taken), None)
    if free is None:
        raise Conflict(f"server {server.id} has {DISKS_MAX} volumes, more do not fit", path=SERVER_PATH, reason="device_limit")
    return device_name(free)


async def admit_detach(ask: Admission, spec: DetachVolume) -> Admitted:
    """The volume is `detaching`."""
    server, version = await take_server(ask, spec.server_id, SERVER_PATH, allowed=SETTLED, verb="parted from a volume", task=None)
    await find_volume(ask, spec.volume_id, VOLUME_PATH)
    disk = next((disk for disk in server.disks if disk.volume_id == spec.volume_id), None)
    if disk is None:
        raise Conflict(f"volume {spec.volume_id} is not attached to server {server.id}", path=VOLUME_PATH, reason="not_attached")
    if disk.boot_index == 0 and server.vm_state is not VmState.STOPPED:
        raise Conflict(
            f"volume {spec.volume_id} is the system disk of server {server.id}: stop the server first",
            path=VOLUME_PATH,
            reason="server_state",
        )
    write = await take_volume(ask, spec.volume_id, VolumeStatus.DETACHING, VOLUME_PATH)
    return Admitted(input=spec, writes=[server_write(server, if_version=version), write])


# --- network cards ---------------------------------------------------------------------------------------------------


async def admit_add_nic(ask: Admission, spec: AddNic) -> Admitted:
    """The server is locked."""
    server, version = await take_server(ask, spec.server_id, SERVER_PATH, allowed=SETTLED, verb="given a network card", task=None)
    if not spec.nics or len(server.nics) + len(spec.nics) > CARDS_MAX:
        raise Conflict(
            f"server {server.id} has {len(server.nics)} network cards, {len(spec.nics)} were asked for; {CARDS_MAX} are allowed",
            path="$.input.nics",
            reason="nic_limit",
        )
    for position, nic in enumerate(spec.nics):
        if nic.ip_address is not None and not usable_address(nic.ip_address):
            raise InvalidInput(
                f"ip_address {nic.ip_address[:40]!r} is no private IPv4 address that a guest can have",
                path=f"$.input.nics[{position}].ip_address",
            )
    return Admitted(input=spec, writes=[server_write(server, if_version=version)])


async def admit_add_single_nic(ask: Admission, spec: AddSingleNic) -> Admitted:
    """The server is locked."""
    admitted = await admit_add_nic(ask, AddNic(server_id=spec.server_id, nics=[spec.nic]))
    return Admitted(input=spec, writes=admitted.writes)


async def admit_delete_nic(ask: Admission, spec: DeleteNic) -> Admitted:
    """The server is locked."""
    server, version = await take_server(
        ask, spec.server_id, SERVER_PATH, allowed=SETTLED, verb="parted from a network card", task=None
    )
    if not spec.nic_ids:
        raise InvalidInput("nic_ids is empty", path="$.input.nic_ids", reason="nic_not_found")
    cards = {nic.id: nic for nic in server.nics}
    for position, nic_id in enumerate(spec.nic_ids):
        path = f"$.input.nic_ids[{position}]"
        if nic_id not in cards or nic_id in spec.nic_ids[:position]:
            raise NotFound(f"server {server.id} has no network card {nic_id[:80]}", path=path, reason="nic_not_found")
        if cards[nic_id].primary:
            raise Forbidden(
                f"network card {nic_id} is the primary one of server {server.id}, and stays", path=path, reason="nic_primary"
            )
    return Admitted(input=spec, writes=[server_write(server, if_version=version)])


async def admit_delete_single_nic(ask: Admission, spec: DeleteSingleNic) -> Admitted:
    """The server is locked."""
    admitted = await admit_delete_nic(ask, DeleteNic(server_id=spec.server_id, nic_ids=[spec.nic_id]))
    return Admitted(input=spec, writes=admitted.writes)


# --- another system --------------------------------------------------------------------------------------------------


async def admit_change_os(ask: Admission, spec: ChangeOs) -> Admitted:
    """The server is `rebuilding`, and its new system disk's record is there."""
    server, writes, old, new = await _replace_root(ask, spec.server_id, spec.image_id)
    del server
    return Admitted(input=msgspec.structs.replace(spec, new_volume_id=new, old_volume_id=old), writes=writes)


async def admit_reinit_os(ask: Admission, spec: ReInitOs) -> Admitted:
    """The server is `rebuilding`, and its new system disk's record is there."""
    server, writes, old, new = await _replace_root(ask, spec.server_id, None)
    spec = msgspec.structs.replace(spec, image_id=server.image_id, new_volume_id=new, old_volume_id=old)
    return Admitted(input=spec, writes=writes)


async def _replace_root(ask: Admission, server_id: str, image_id: str | None) -> tuple[Server, list[Write], str, str]:
    check_qemu()
    allowed = {VmState.STOPPED, VmState.ERROR}
    server, version = await take_server(
        ask, server_id, SERVER_PATH, allowed=allowed, verb="given another system", task="rebuilding"
    )
    root = _root_of(server)
    image = await find_image(ask, image_id or server.image_id, "$.input.image_id")
    check_ram(image, find_flavor(server.flavor_id, SERVER_PATH), "$.input.image_id")
    old = await take_volume(ask, root.volume_id, VolumeStatus.DETACHING, SERVER_PATH)
    volume = decode_volume(old.resource.doc)
    check_image_fits(image, volume.size_gib, "$.input.image_id")
    await check_quota(ask, count=1, gib=volume.size_gib, path="$.input.image_id")  # both are there for a while
    new = _new_root(ask, server, volume, image)
    writes = [
        server_write(server, if_version=version),
        old,
        Write(resource=volume_resource(new), if_version=0),
    ]
    return server, writes, root.volume_id, new.id


def _new_root(ask: Admission, server: Server, old: Volume, image: Image) -> Volume:
    disk = DiskSpec(volume_type=old.volume_type, size=old.size_gib)
    return new_volume(ask, server, 0, disk, image, id_of(ask.job_id, "volume"))


def _root_of(server: Server) -> Disk:
    root = next((disk for disk in server.disks if disk.boot_index == 0), None)
    if root is None:
        raise Conflict(f"server {server.id} has no system disk", path=SERVER_PATH, reason="server_state", server_id=server.id)
    return root
