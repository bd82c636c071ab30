"""What is checked and reserved before servers that are there are started, stopped, rebooted, resized or deleted."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from milepost import Admission, Admitted, Conflict, InvalidInput, NotFound, Write
from milepost.compute import SERVER, Server, VmState, decode_server
from milepost.volume import VolumeStatus
from milepost.work.servers.admission import check_qemu, check_server_quota, find_flavor, server_write, take_server, take_volume
from milepost.work.servers.spec import (
    SERVERS_AT_ONCE_MAX,
    BatchResizeServer,
    DeleteServer,
    DeleteSingleServer,
    PowerSingle,
    RebootServer,
    ResizeServer,
    StartServer,
    StopServer,
)

RUNNABLE = frozenset({VmState.STOPPED, VmState.ERROR})
STOPPABLE = frozenset({VmState.ACTIVE, VmState.ERROR})
DELETABLE = frozenset({VmState.ACTIVE, VmState.STOPPED, VmState.ERROR, VmState.RESIZED})


async def _take_all(
    ask: Admission, server_ids: Sequence[str], *, allowed: Collection[VmState], verb: str, task: str
) -> list[Write]:
    writes = []
    for server_id, path in zip(server_ids, _paths_of(server_ids), strict=True):
        server, version = await take_server(ask, server_id, path, allowed=allowed, verb=verb, task=task)
        _check_built(server, verb, path)
        writes.append(server_write(server, if_version=version))
    return writes


def _paths_of(server_ids: Sequence[str]) -> list[str]:
    """Where each stands in the input.  Errors: InvalidInput when there are none, too many, or one comes twice."""
    if not 1 <= len(server_ids) <= SERVERS_AT_ONCE_MAX:
        raise InvalidInput(
            f"{len(server_ids)} servers; 1 to {SERVERS_AT_ONCE_MAX} at once", path="$.input.server_ids", reason="count_range"
        )
    paths, seen = [], set()
    for position, server_id in enumerate(server_ids):
        paths.append(f"$.input.server_ids[{position}]")
        if server_id in seen:
            raise InvalidInput(f"server {server_id[:80]} is named twice", path=paths[-1], reason="server_busy")
        seen.add(server_id)
    return paths


def _check_built(server: Server, verb: str, path: str) -> None:
    """One whose making failed has nothing to run."""
    if server.vm_state is VmState.ERROR and not server.disks and verb != "deleted":
        raise Conflict(
            f"server {server.id} was never made; it can only be deleted", path=path, reason="server_state", server_id=server.id
        )


async def admit_start(ask: Admission, spec: StartServer) -> Admitted:
    """The servers are being started."""
    check_qemu()
    return Admitted(
        input=spec, writes=await _take_all(ask, spec.server_ids, allowed=RUNNABLE, verb="started", task="powering-on")
    )


async def admit_stop(ask: Admission, spec: StopServer) -> Admitted:
    """The servers are being stopped."""
    return Admitted(
        input=spec, writes=await _take_all(ask, spec.server_ids, allowed=STOPPABLE, verb="stopped", task="powering-off")
    )


async def admit_reboot(ask: Admission, spec: RebootServer) -> Admitted:
    """The servers are being rebooted."""
    check_qemu()
    task = "rebooting" if spec.type == "SOFT" else "rebooting_hard"
    allowed = {VmState.ACTIVE} if spec.type == "SOFT" else STOPPABLE
    return Admitted(input=spec, writes=await _take_all(ask, spec.server_ids, allowed=allowed, verb="rebooted", task=task))


async def admit_start_single(ask: Admission, spec: PowerSingle) -> Admitted:
    """One server is being started."""
    return _single(spec, await admit_start(ask, StartServer(server_ids=[spec.server_id])))


async def admit_stop_single(ask: Admission, spec: PowerSingle) -> Admitted:
    """One server is being stopped."""
    return _single(spec, await admit_stop(ask, StopServer(server_ids=[spec.server_id], type=spec.type)))


async def admit_reboot_single(ask: Admission, spec: PowerSingle) -> Admitted:
    """One server is being rebooted."""
    return _single(spec, await admit_reboot(ask, RebootServer(server_ids=[spec.server_id], type=spec.type)))


def _single(spec: Any, admitted: Admitted) -> Admitted:
    return Admitted(input=spec, writes=admitted.writes)


async def admit_resize(ask: Admission, spec: ResizeServer) -> Admitted:
    """The server is being resized; its new flavor counts."""
    return Admitted(input=spec, writes=await _reserve_resizes(ask, [spec.server_id], ["$.input.server_id"], spec.flavor_id))


async def admit_batch_resize(ask: Admission, spec: BatchResizeServer) -> Admitted:
    """All of them are being resized, or none."""
    paths = _paths_of(spec.server_ids)
    return Admitted(input=spec, writes=await _reserve_resizes(ask, spec.server_ids, paths, spec.flavor_id))


async def _reserve_resizes(ask: Admission, server_ids: Sequence[str], paths: Sequence[str], flavor_id: str) -> list[Write]:
    flavor, writes = find_flavor(flavor_id, "$.input.flavor_id"), []
    for server_id, path in zip(server_ids, paths, strict=True):
        server, version = await take_server(ask, server_id, path, allowed={VmState.STOPPED}, verb="resized", task="resize_prep")
        if server.flavor_id == flavor_id:
            raise InvalidInput(
                f"flavor_id is {flavor_id}, which server {server.id} has already", path="$.input.flavor_id", reason="flavor_same"
            )
        writes.append(server_write(msgspec.structs.replace(server, flavor_asked_id=flavor_id), if_version=version))
    others = [decode_server(one.doc) for one in await ask.resources.list(SERVER) if one.id not in server_ids]
    check_server_quota(ask, others, [flavor] * len(server_ids), count=0)
    return writes


async def admit_delete_server(ask: Admission, spec: DeleteServer) -> Admitted:
    """The servers are being deleted, their volumes are being detached."""
    writes = await _take_all(ask, spec.server_ids, allowed=DELETABLE, verb="deleted", task="deleting")
    return Admitted(input=spec, writes=[*writes, *await _take_disks(ask, writes)])


async def admit_delete_single(ask: Admission, spec: DeleteSingleServer) -> Admitted:
    """The server is being deleted, its volumes are being detached."""
    return _single(spec, await admit_delete_server(ask, DeleteServer(server_ids=[spec.server_id])))


async def _take_disks(ask: Admission, taken: Sequence[Write]) -> list[Write]:
    """The volumes of these servers are this job's.  Errors: Conflict (`volume_busy`)."""
    volumes: dict[str, Write] = {}
    for write in taken:
        server = decode_server(write.resource.doc)
        for disk in server.disks:
            with contextlib.suppress(NotFound):  # one that is gone already keeps no server from being deleted
                if disk.volume_id not in volumes:
                    volumes[disk.volume_id] = await take_volume(ask, disk.volume_id, VolumeStatus.DETACHING, "$.input")
    return list(volumes.values())
