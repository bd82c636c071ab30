"""What ended jobs left, and what became of machines while nobody looked.

Theory: a running job cleans up after itself under its fence.  What is left are records locked for a job that is final or gone,
and folders of machines without a record.  A final state never changes, so they are nobody's; each write has the record's version
as its condition.

| record                                   | what becomes of it                                                        |
|------------------------------------------|---------------------------------------------------------------------------|
| `building`, its job failed               | `error` with the job's reason; its machine and volumes go                 |
| `building`, its job cancelled or gone    | removed, with its machine and volumes                                     |
| `deleting`, past its point of no return  | removed, with its machine; disks that are left are nobody's (see `deleting`) |
| any other, locked by an ended job        | unlocked; its state is what its machine shows; it has the disks that are there |
| volume `attaching` or `detaching` for an ended job, whose servers are nobody's or gone | unlocked; its attachments decide |
| `active`, nobody's, its guest shut down  | `stopped`                                                                 |
| `active`, nobody's, its machine crashed  | `error` with a fault                                                      |
| `stopped`, nobody's, its machine runs    | `active`                                                                  |

A volume that would be free is kept while a process has its file open: a machine that stands still may go on.
A part of a running machine that no record names is unplugged (see `strays`).
A machine whose folder has no record is stopped, and the folder is removed: records come before folders and go after them.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from milepost import NotFound, Resource, StoreUnavailable, VersionConflict, Write
from milepost.compute import SERVER, Disk, Fault, Server, VmState, decode_server
from milepost.job import FINAL, Job, JobId, State
from milepost.machines import Machine, Standing, list_machines
from milepost.volume import VOLUME, Volume, VolumeStatus, decode_volume
from milepost.work.servers.admission import server_resource
from milepost.work.servers.change import FREED, join, state_of
from milepost.work.servers.deleting import is_doomed, parted
from milepost.work.servers.house import folder_of, servers_folder
from milepost.work.servers.power import settle
from milepost.work.servers.strays import unplug_strays
from milepost.work.threads import in_thread
from milepost.work.volumes.admission import volume_resource
from milepost.work.volumes.disk import DiskFolder
from milepost.work.volumes.making import remove_files
from milepost.work.volumes.sweep import OF_SERVERS, is_open

if TYPE_CHECKING:
    from milepost.store import Store

log = structlog.get_logger("milepost.servers")


async def sweep(store: Store, data: Path, *, now_us: int) -> int:
    """No server is locked for a job that has ended, none shows what it is not, no machine is nobody's.  How many were changed."""
    settled = await settle_servers(store, data, now_us=now_us)
    parts = await _unplug_parts(store, data)
    return settled + parts + await observe(store, data, now_us=now_us) + await _remove_strays(store, data)


async def _unplug_parts(store: Store, data: Path) -> int:
    """No machine of a server that nobody changes has a part that its record does not name.  How many were unplugged."""
    count = 0
    for resource in await store.list_resources(SERVER):
        server = decode_server(resource.doc)
        if server.job_id is None:
            count += await unplug_strays(data, server.id, functools.partial(_unlocked, store, server.id))
    return count


async def _unlocked(store: Store, server_id: str) -> Server | None:
    """The server as it is now, unless somebody changes it."""
    try:
        server = decode_server((await store.get_resource(SERVER, server_id)).doc)
    except NotFound:
        return None
    return server if server.job_id is None else None


async def settle_servers(store: Store, data: Path, *, now_us: int) -> int:
    """No server is locked for a job that has ended.  How many were changed."""
    count = 0
    for resource in await store.list_resources(SERVER):
        server = decode_server(resource.doc)
        if server.job_id is None:
            continue
        ended = await _ended(store, server.job_id)
        if ended is not None:
            count += await _tried(_settle(store, data, resource, server, ended, now_us))
    return count + await _settle_volumes(store, data, now_us)


async def observe(store: Store, data: Path, *, now_us: int) -> int:
    """Every server that nobody changes shows what its machine is.  How many were changed.

    Cheap enough to be called every few seconds: a few small files a server.
    """
    count = 0
    for resource in await store.list_resources(SERVER):
        server = decode_server(resource.doc)
        if server.job_id is not None or server.vm_state not in (VmState.ACTIVE, VmState.STOPPED):
            continue
        seen = await in_thread(Machine(folder_of(data, server.id)).look)
        state = state_of(seen, now_us)
        if state["vm_state"] is server.vm_state or (server.vm_state is VmState.STOPPED and not seen.running):
            continue
        level = log.warning if seen.standing is Standing.CRASHED else log.info
        level("server changed by itself", server_id=server.id, was=server.vm_state, now=state["vm_state"], why=seen.words)
        count += await _tried(_write(store, resource, server, now_us, state))
    return count


async def stop_machines(data: Path) -> int:
    """No machine of this folder runs: for a server that keeps its data in memory, and for tests.  How many ran."""
    count = 0
    for machine in list_machines(servers_folder(data)):
        count += machine.look().running
        await machine.remove()
    return count


async def _tried(change: Any) -> bool:
    """One that cannot be settled keeps no other from it."""
    try:
        await change
    except VersionConflict:  # somebody changed it just now: the next round looks again
        return False
    except StoreUnavailable:
        raise
    except Exception:
        log.exception("what a job left cannot be settled; it is tried again")
        return False
    return True


async def _ended(store: Store, job_id: str) -> Job | bool | None:
    """The job when it is final, True when it is gone, None while it may still do something."""
    try:
        found = await store.get_job(JobId(job_id))
    except NotFound:
        return True
    if not isinstance(found, Job):
        return True
    return found if found.state in FINAL else None


async def _settle(store: Store, data: Path, resource: Resource, server: Server, ended: Job | bool, now_us: int) -> None:
    log.warning("what was left of a job is settled", server_id=server.id, job_id=server.job_id, task=server.task_state)
    if server.vm_state is VmState.BUILDING:
        await _unmake(store, data, resource, server, ended, now_us)
        return
    volumes = {disk.volume_id: await _find_volume(store, disk.volume_id) for disk in server.disks}
    if is_doomed(server, [None if one is None else decode_volume(one.doc) for one in volumes.values()]):
        await _remove(store, data, resource, server, volumes, now_us)
        return
    machine = Machine(folder_of(data, server.id))
    await unplug_strays(data, server.id, lambda: _found(server))
    disks = [disk for disk in server.disks if await _keep_disk(store, server, disk, now_us)]
    values: dict[str, Any] = {**FREED, "disks": disks}
    if server.disks or server.vm_state is not VmState.ERROR:  # one that was never made stays what it is
        values |= state_of(await in_thread(machine.look), now_us)
    await _write(store, resource, server, now_us, values)


async def _found(server: Server) -> Server:
    return server


async def _remove(
    store: Store, data: Path, resource: Resource, server: Server, volumes: dict[str, Resource | None], now_us: int
) -> None:
    """A server whose delete passed the point of no return: what was left to do is done."""
    for found in volumes.values():
        lock = _decode_lock(found.doc) if found is not None else None
        if lock is not None and lock.status is VolumeStatus.DELETING and lock.job_id is not None:
            return  # whoever wipes it has it, or it is settled first
    await Machine(folder_of(data, server.id)).remove()
    for found in volumes.values():
        if found is not None:
            await _write_volume(store, found, parted(decode_volume(found.doc), server.id), now_us)
    await store.write_resources([Write(resource=resource, if_version=resource.version, delete=True)])


async def _unmake(store: Store, data: Path, resource: Resource, server: Server, ended: Job | bool, now_us: int) -> None:
    """A server whose making ended: nothing of it is left but its reason."""
    await Machine(folder_of(data, server.id)).remove()
    for disk in server.disks:
        found = await _find_volume(store, disk.volume_id)
        if found is None:
            continue
        volume = decode_volume(found.doc)
        if volume.job_id in (None, server.job_id) and all(one.server_id == server.id for one in volume.attachments):
            await store.delete_resource(VOLUME, volume.id)
            await in_thread(remove_files, DiskFolder(data), volume)
    if isinstance(ended, Job) and ended.state is State.FAILED:
        message = ended.error.message if ended.error is not None else "its job failed"
        fault = Fault(code=500, message=message, created_us=now_us)
        values = {"vm_state": VmState.ERROR, "fault": fault, "disks": [], "job_id": None, "task_state": None}
        await _write(store, resource, server, now_us, values)
    else:
        await store.delete_resource(SERVER, server.id)


async def _keep_disk(store: Store, server: Server, disk: Disk, now_us: int) -> bool:
    """Whether the server still has the disk: a delete that did not come to its end may have let go of it, or deleted it."""
    found = await _find_volume(store, disk.volume_id)
    if found is None:
        return False
    volume = decode_volume(found.doc)
    if volume.status in OF_SERVERS and volume.job_id is not None and await _ended(store, volume.job_id) is not None:
        await _write_volume(store, found, join(volume, server.id, disk, now_us), now_us)
        return True
    return any(one.server_id == server.id for one in volume.attachments)


async def _settle_volumes(store: Store, data: Path, now_us: int) -> int:
    """No volume is being attached or detached for a job that has ended, once its servers are settled.  How many were changed."""
    count, open_trees = 0, None
    for resource in await store.list_resources(VOLUME):
        lock = _decode_lock(resource.doc)
        if lock.status not in OF_SERVERS or lock.job_id is None or await _ended(store, lock.job_id) is None:
            continue
        open_trees = await _trees_of_servers(store) if open_trees is None else open_trees
        if await _tree_of(store, lock.job_id) in open_trees:
            continue
        volume = decode_volume(resource.doc)
        if not volume.attachments and await is_open(DiskFolder(data), volume):
            continue
        log.warning("what was left of a job is settled", volume_id=volume.id, job_id=volume.job_id, was=volume.status)
        count += await _tried(_write_volume(store, resource, settle(volume), now_us))
    return count


class _Lock(msgspec.Struct):
    """What says whether a volume has to be looked at."""

    status: VolumeStatus
    job_id: str | None = None


_decode_lock = msgspec.json.Decoder(_Lock).decode


async def _trees_of_servers(store: Store) -> set[str]:
    """The trees of jobs that servers are locked for."""
    locks = {decode_server(one.doc).job_id for one in await store.list_resources(SERVER)}
    return {await _tree_of(store, job_id) for job_id in locks if job_id is not None}


async def _tree_of(store: Store, job_id: str) -> str:
    """The root of the job's tree; of one that is gone its own id."""
    try:
        found = await store.get_job(JobId(job_id))
    except NotFound:
        return job_id
    return found.root_id if isinstance(found, Job) else job_id


async def _write_volume(store: Store, resource: Resource, changed: Volume, now_us: int) -> None:
    changed = msgspec.structs.replace(changed, updated_us=now_us)
    await store.write_resources([Write(resource=volume_resource(changed), if_version=resource.version)])


async def _find_volume(store: Store, volume_id: str) -> Resource | None:
    try:
        return await store.get_resource(VOLUME, volume_id)
    except NotFound:
        return None


async def _remove_strays(store: Store, data: Path) -> int:
    count = 0
    for machine in list_machines(servers_folder(data)):
        try:
            await store.get_resource(SERVER, machine.folder.name)
        except NotFound:
            log.warning("a machine without a server is removed", folder=machine.folder.name)
            await machine.remove()
            count += 1
    return count


async def _write(store: Store, resource: Resource, server: Server, now_us: int, values: dict[str, Any]) -> None:
    changed = msgspec.structs.replace(server, updated_us=now_us, **values)
    await store.write_resources([Write(resource=server_resource(changed), if_version=resource.version)])


__all__ = ["observe", "settle_servers", "stop_machines", "sweep"]
