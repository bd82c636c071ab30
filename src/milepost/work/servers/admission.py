"""What is checked and reserved before a job of servers is accepted.

Rules
1. `job_id` in the record is the server's lock: whoever finds it taken is refused (`server_busy`).  Records are written with their
   version as the condition, so of two requests at the same time one is accepted and the other finds it taken.
2. Quotas count what is reserved, not what runs: servers being made, stopped ones, orders that are not paid.
3. A create reserves its volumes too: their records are there, `creating`, before the job is.
4. Every refusal has a `reason`, and names the field in its message and `path`.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import uuid
from collections.abc import Collection, Sequence

import msgspec

from milepost import Admission, Admitted, Conflict, InvalidInput, LimitExceeded, NotFound, Resource, Write
from milepost.compute import FLAVORS, SERVER, Disk, Flavor, Nic, Server, VmState, decode_server, encode_server
from milepost.image import Image
from milepost.machines import QemuMissing, check_installed
from milepost.machines.command import usable_address
from milepost.machines.value import CARDS_MAX, device_name
from milepost.volume import Volume, VolumeStatus
from milepost.work.servers.spec import (
    COUNT_MAX,
    DATA_VOLUMES_MAX,
    NAME_CHARS_MAX,
    CreateServer,
    CreateSingleServer,
    DiskSpec,
    NicSpec,
    ServerSpec,
    id_of,
    mac_of,
    name_in_batch,
)
from milepost.work.volumes.admission import (
    check_image_fits,
    check_quota,
    check_size,
    check_type,
    check_zone,
    find_image,
    find_volume,
    image_metadata,
    volume_resource,
)
from milepost.work.volumes.checks import check_free as check_volume_free

FIRST_ADDRESS = ipaddress.IPv4Address("192.168.0.10")


# --- create --------------------------------------------------------------------------------------------------------


async def admit_create_server(ask: Admission, spec: CreateServer) -> Admitted:
    """A record for each server, `building`, and one for each of their volumes, `creating`."""
    if not 1 <= spec.count <= COUNT_MAX:
        raise InvalidInput(f"count is {spec.count}; 1 to {COUNT_MAX} at once", path="$.input.count", reason="count_range")
    server_ids = spec.server_ids or [id_of(ask.job_id, "server", position) for position in range(spec.count)]
    if len(set(server_ids)) != spec.count or len(server_ids) != spec.count:
        raise InvalidInput("server_ids are not as many different ones as count says", path="$.input.server_ids")
    writes = await _reserve_new(ask, spec.server, server_ids)
    return Admitted(input=msgspec.structs.replace(spec, server_ids=server_ids), writes=writes)


async def admit_create_single(ask: Admission, spec: CreateSingleServer) -> Admitted:
    """A record of the server, and one for each of its volumes."""
    server_id = spec.server_id or id_of(ask.job_id, "server")
    writes = await _reserve_new(ask, spec.server, [server_id])
    return Admitted(input=msgspec.structs.replace(spec, server_id=server_id), writes=writes)


async def _reserve_new(ask: Admission, spec: ServerSpec, server_ids: Sequence[str]) -> list[Write]:
    check_qemu()
    _check_name(spec.name, len(server_ids))
    flavor = find_flavor(spec.flavor_id, "$.input.server.flavor_id")
    zone = check_zone(ask, spec.availability_zone, "$.input.server.availability_zone")
    _check_user_data(spec.user_data)
    image = await find_image(ask, spec.image_id, "$.input.server.image_id")
    check_ram(image, flavor, "$.input.server.flavor_id")
    _check_disks(spec, image)
    for server_id in server_ids:
        await _check_new_id(ask, server_id)
    servers = [decode_server(resource.doc) for resource in await ask.resources.list(SERVER)]
    check_server_quota(ask, servers, [flavor] * len(server_ids), count=len(server_ids))
    disks = [spec.root_volume, *spec.data_volumes]
    await check_quota(
        ask,
        count=len(disks) * len(server_ids),
        gib=sum(disk.size for disk in disks) * len(server_ids),
        path="$.input.server.root_volume.size",
    )
    taken = used_addresses(servers)
    writes: list[Write] = []
    for position, server_id in enumerate(server_ids):
        name = name_in_batch(spec.name, position, len(server_ids))
        server = _new_server(ask, spec, server_id, name, zone, image)
        server.nics = [
            new_nic(id_of(server_id, "nic", at), nic, spec.vpc_id, taken, f"$.input.server.nics[{at}]", primary=at == 0)
            for at, nic in enumerate(spec.nics)
        ]
        writes.append(server_write(server, if_version=0))
        writes += [
            Write(resource=volume_resource(new_volume(ask, server, place, disk, image, volume.volume_id)), if_version=0)
            for place, (disk, volume) in enumerate(zip(disks, server.disks, strict=True))
        ]
    return writes


def _new_server(ask: Admission, spec: ServerSpec, server_id: str, name: str, zone: str, image: Image) -> Server:
    if not 1 <= len(spec.nics) <= CARDS_MAX:
        raise InvalidInput(
            f"nics: {len(spec.nics)} network cards; a server has 1 to {CARDS_MAX}",
            path="$.input.server.nics",
            reason="nic_limit",
        )
    return Server(
        id=server_id,
        project=ask.project,
        name=name,
        description=spec.description,
        vm_state=VmState.BUILDING,
        task_state="scheduling",
        flavor_id=spec.flavor_id,
        image_id=image.id,
        image_name=image.name or "",
        vpc_id=spec.vpc_id,
        availability_zone=zone,
        disks=[
            Disk(
                volume_id=id_of(server_id, "volume", slot),
                device=device_name(slot),
                boot_index=0 if slot == 0 else None,
                delete_on_termination=slot == 0,
            )
            for slot in range(1 + len(spec.data_volumes))
        ],
        security_groups=spec.security_groups,
        metadata=spec.metadata,
        tags=spec.tags,
        key_name=spec.key_name,
        user_data=spec.user_data,
        job_id=ask.job_id,
        order_id=f"CS{ask.job_id.replace('-', '').upper()}" if ask.held else None,
        user_id=ask.origin.get("user_id", ""),
        created_us=ask.now_us,
        updated_us=ask.now_us,
    )


def new_volume(ask: Admission, server: Server, slot: int, disk: DiskSpec, image: Image | None, volume_id: str) -> Volume:
    """The record of a volume that is made with a server: slot 0 is the system disk, made from the image.

    A system disk beside an ISO is empty: the disc is what boots, until something was installed.
    """
    source = image if slot == 0 and image is not None and image.disk_format != "iso" else None
    return Volume(
        id=volume_id,
        project=ask.project,
        name=f"{server.name}-volume-{slot:04d}",
        status=VolumeStatus.CREATING,
        size_gib=disk.size,
        volume_type=disk.volume_type,
        availability_zone=server.availability_zone,
        format="raw" if source is None else "qcow2",
        bootable=slot == 0,
        image_id=None if source is None else source.id,
        image_metadata={} if source is None else image_metadata(source),
        job_id=ask.job_id,
        order_id=f"CS{ask.job_id.replace('-', '').upper()}" if ask.held else None,
        user_id=ask.origin.get("user_id", ""),
        created_us=ask.now_us,
        updated_us=ask.now_us,
    )


def _check_disks(spec: ServerSpec, image: Image) -> None:
    check_type(spec.root_volume.volume_type, "$.input.server.root_volume.volume_type", "volume_type")
    check_size(spec.root_volume.size, "$.input.server.root_volume.size", "size", of_image=True)
    check_image_fits(image, spec.root_volume.size, "$.input.server.root_volume.size")
    if len(spec.data_volumes) > DATA_VOLUMES_MAX:
        raise InvalidInput(
            f"data_volumes: {len(spec.data_volumes)}; a server has at most {DATA_VOLUMES_MAX}",
            path="$.input.server.data_volumes",
            reason="device_limit",
        )
    for position, disk in enumerate(spec.data_volumes):
        check_type(disk.volume_type, f"$.input.server.data_volumes[{position}].volume_type", "volume_type")
        check_size(disk.size, f"$.input.server.data_volumes[{position}].size", "size", of_image=False)


def _check_name(name: str, count: int) -> None:
    most = NAME_CHARS_MAX if count == 1 else NAME_CHARS_MAX - 5
    if not 1 <= len(name) <= most:
        raise InvalidInput(f"name has {len(name)} characters; 1 to {most} are allowed", path="$.input.server.name")


def _check_user_data(user_data: str | None) -> None:
    try:
        base64.b64decode(user_data or "", validate=True)
    except binascii.Error as error:
        raise InvalidInput(f"user_data is no base64: {error}", path="$.input.server.user_data") from None


async def _check_new_id(ask: Admission, server_id: str) -> None:
    """An id that was chosen by whoever asks: it becomes the name of a folder."""
    try:
        plain = str(uuid.UUID(server_id)) == server_id
    except ValueError:
        plain = False
    if not plain:
        raise InvalidInput(f"server_id {server_id[:80]!r} is no UUID in small letters with dashes", path="$.input")
    try:
        await ask.resources.get(SERVER, server_id)
    except NotFound:
        return
    raise Conflict(f"server_id {server_id} is taken", path="$.input", reason="server_busy", server_id=server_id)


# --- checks, also of the parts -------------------------------------------------------------------------------------


def check_qemu() -> None:
    """Errors: Conflict (`qemu_missing`), naming the package."""
    try:
        check_installed()
    except QemuMissing as error:
        raise Conflict(str(error), reason="qemu_missing") from None


def find_flavor(flavor_id: str, path: str) -> Flavor:
    """Errors: InvalidInput (`flavor_unknown`)."""
    flavor = FLAVORS.get(flavor_id)
    if flavor is None:
        raise InvalidInput(f"flavor_id is {flavor_id[:80]!r}; there are {', '.join(FLAVORS)}", path=path, reason="flavor_unknown")
    return flavor


def check_ram(image: Image, flavor: Flavor, path: str) -> None:
    """Errors: InvalidInput (`image_too_large`)."""
    if image.min_ram > flavor.ram_mib:
        raise InvalidInput(
            f"image {image.id} needs {image.min_ram} MiB of memory, flavor {flavor.id} has {flavor.ram_mib}",
            path=path,
            reason="image_too_large",
        )


def check_server_quota(ask: Admission, servers: Sequence[Server], flavors: Sequence[Flavor], *, count: int) -> None:
    """The project may have these flavors more.  Errors: LimitExceeded (`server_quota`, `cpu_quota`, `memory_quota`)."""
    have = [_reserved(server) for server in servers]
    limits = ask.settings
    for name, allowed, used, more, reason, unit in (
        ("servers_max", limits.servers_max, len(servers), count, "server_quota", "servers"),
        ("server_vcpus_max", limits.server_vcpus_max, *_sums(have, flavors, "vcpus"), "cpu_quota", "vCPUs"),
        ("server_ram_mib_max", limits.server_ram_mib_max, *_sums(have, flavors, "ram_mib"), "memory_quota", "MiB of memory"),
    ):
        if more > 0 and used + more > allowed:
            raise LimitExceeded(
                f"the project's servers have {used} {unit} and {more} more were asked for; {allowed} are allowed"
                if unit != "servers"
                else f"the project has {used} servers and {more} more were asked for; {allowed} are allowed",
                limit=name,
                allowed=allowed,
                seen=used + more,
                reason=reason,
            )


def _reserved(server: Server) -> Flavor:
    """What counts of a server: of one that is being resized the larger numbers of both flavors."""
    flavors = [FLAVORS[id] for id in (server.flavor_id, server.flavor_asked_id) if id in FLAVORS]
    vcpus, ram_mib = (max((getattr(one, field) for one in flavors), default=0) for field in ("vcpus", "ram_mib"))
    return Flavor(id=server.flavor_id, vcpus=vcpus, ram_mib=ram_mib)


def _sums(have: Sequence[Flavor], more: Sequence[Flavor], field: str) -> tuple[int, int]:
    return sum(getattr(one, field) for one in have), sum(getattr(one, field) for one in more)


def used_addresses(servers: Sequence[Server]) -> set[tuple[str, str]]:
    """Subnet and address of each card."""
    return {(nic.subnet_id, nic.ip_address) for server in servers for nic in server.nics}


def new_nic(nic_id: str, spec: NicSpec, vpc_id: str, taken: set[tuple[str, str]], path: str, *, primary: bool = False) -> Nic:
    """A card with an address that no other in its subnet has; the address is taken then.  Errors: InvalidInput, Conflict."""
    address = spec.ip_address
    if address is not None and not usable_address(address):
        raise InvalidInput(
            f"ip_address {address[:40]!r} is no private IPv4 address that a guest can have", path=f"{path}.ip_address"
        )
    if address is not None and (spec.subnet_id, address) in taken:
        raise Conflict(
            f"ip_address {address} is taken in subnet {spec.subnet_id}", path=f"{path}.ip_address", reason="nic_failed"
        )
    if address is None:
        free = FIRST_ADDRESS
        while (spec.subnet_id, str(free)) in taken or not usable_address(str(free)):
            free += 1
        address = str(free)
    taken.add((spec.subnet_id, address))
    return Nic(
        id=nic_id,
        subnet_id=spec.subnet_id,
        vpc_id=vpc_id,
        mac=mac_of(nic_id),
        ip_address=address,
        security_groups=spec.security_groups,
        primary=primary,
    )


async def find_server(ask: Admission, server_id: str, path: str) -> tuple[Server, int]:
    """The project's server and its version.  Errors: NotFound (`server_not_found`)."""
    try:
        resource = await ask.resources.get(SERVER, server_id)
    except NotFound:
        resource = None
    if resource is None or resource.project != ask.project:
        raise NotFound(f"server_id: no server {server_id[:80]}", path=path, reason="server_not_found", server_id=server_id[:80])
    return decode_server(resource.doc), resource.version


def check_free(server: Server, path: str) -> None:
    """Nobody else changes it.  Errors: Conflict (`server_busy`)."""
    if server.job_id is not None:
        raise Conflict(
            f"server {server.id} is {server.vm_state} ({server.task_state}) and job {server.job_id} has it: wait for its end",
            path=path,
            reason="server_busy",
            server_id=server.id,
            hint=f"milepost wait {server.job_id}",
        )


def check_state(server: Server, allowed: Collection[VmState], verb: str, path: str) -> None:
    """Errors: Conflict (`server_state`)."""
    if server.vm_state not in allowed:
        raise Conflict(
            f"server {server.id} is {server.vm_state}; it is {verb} only while {' or '.join(sorted(allowed))}",
            path=path,
            reason="server_state",
            server_id=server.id,
            status=str(server.vm_state),
        )


async def take_server(
    ask: Admission, server_id: str, path: str, *, allowed: Collection[VmState], verb: str, task: str | None
) -> tuple[Server, int]:
    """The server, locked for this job and in this task; and its version.  Errors: NotFound, Conflict."""
    server, version = await find_server(ask, server_id, path)
    check_free(server, path)
    check_state(server, allowed, verb, path)
    if ask.held:
        task = server.task_state
    return msgspec.structs.replace(server, job_id=ask.job_id, task_state=task, updated_us=ask.now_us), version


def server_write(server: Server, *, if_version: int) -> Write:
    return Write(resource=server_resource(server), if_version=if_version)


def server_resource(server: Server) -> Resource:
    """The record as the store keeps it."""
    return Resource(
        type=SERVER,
        id=server.id,
        project=server.project,  # type: ignore[arg-type]
        doc=encode_server(server),
        created_us=server.created_us,
        updated_us=server.updated_us,
        version=0,
    )


async def take_volume(ask: Admission, volume_id: str, status: VolumeStatus, path: str) -> Write:
    """The volume, locked for this job.  Errors: NotFound, Conflict (`volume_busy`)."""
    volume, version = await find_volume(ask, volume_id, path)
    check_volume_free(volume, path)
    changed = msgspec.structs.replace(
        volume, status=status, status_before=volume.status, job_id=ask.job_id, updated_us=ask.now_us
    )
    return Write(resource=volume_resource(changed), if_version=version)
