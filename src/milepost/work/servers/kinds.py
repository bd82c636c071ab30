"""The kinds of servers.  Source: opentelekomcloud-docs/elastic-cloud-server api-ref, "Querying Task Execution Status"."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from milepost import Running, SubJob, kind
from milepost.compute import Server
from milepost.engine.context import results_of
from milepost.work.servers.admission import admit_create_server, admit_create_single
from milepost.work.servers.building import Creating, Rebuilding
from milepost.work.servers.change import Change, run_work
from milepost.work.servers.deleting import Deleting
from milepost.work.servers.parts import (
    admit_add_nic,
    admit_add_single_nic,
    admit_attach,
    admit_change_os,
    admit_delete_nic,
    admit_delete_single_nic,
    admit_detach,
    admit_reinit_os,
)
from milepost.work.servers.plugging import AddingNic, Attaching, DeletingNic, Detaching
from milepost.work.servers.power import Rebooting, Resizing, Starting, Stopping
from milepost.work.servers.power_admission import (
    admit_batch_resize,
    admit_delete_server,
    admit_delete_single,
    admit_reboot,
    admit_reboot_single,
    admit_resize,
    admit_start,
    admit_start_single,
    admit_stop,
    admit_stop_single,
)
from milepost.work.servers.spec import (
    AddNic,
    AddSingleNic,
    AttachResult,
    AttachVolume,
    BatchResizeServer,
    ChangeOs,
    CreateServer,
    CreateSingleServer,
    DeleteNic,
    DeleteServer,
    DeleteSingleNic,
    DeleteSingleServer,
    DetachVolume,
    NicResult,
    NicsResult,
    PowerSingle,
    RebootServer,
    ReInitOs,
    ResizeServer,
    ServerResult,
    ServersResult,
    StartServer,
    StopServer,
    id_of,
    name_in_batch,
)
from milepost.work.servers.strays import unplug_strays

QUEUE = "servers"
ATTEMPTS = 3  # only what the store or the system does unexpectedly is tried again; refusals are final


@kind("createServer", queue=QUEUE, attempts=ATTEMPTS, admit=admit_create_server)
async def create_server(job: Running, spec: CreateServer) -> ServersResult:
    """Make servers from an image, each as a sub-job createSingleServer, and start them."""
    server_ids = spec.server_ids or [id_of(job.id, "server", position) for position in range(spec.count)]
    names = [name_in_batch(spec.server.name, position, spec.count) for position in range(spec.count)]
    await job.run_sub_jobs(
        [
            SubJob(
                kind="createSingleServer",
                input=CreateSingleServer(server=msgspec.structs.replace(spec.server, name=name), server_id=server_id),
            )
            for server_id, name in zip(server_ids, names, strict=True)
        ]
    )
    return ServersResult(server_ids=server_ids)


@kind("createSingleServer", queue=QUEUE, attempts=ATTEMPTS, admit=admit_create_single)
async def create_single_server(job: Running, spec: CreateSingleServer) -> ServerResult:
    """Make one server: its volumes by sub-jobs createVolume, then its machine."""
    result: ServerResult = await run_work(job, Creating(job, spec))
    return result


async def _each(job: Running, server_ids: Sequence[str], sub_jobs: Sequence[SubJob]) -> ServersResult:
    """All of the sub-jobs have succeeded; whatever became of them, no server is left locked."""
    outcomes = await job.try_sub_jobs(sub_jobs)
    for outcome, server_id in zip(outcomes, server_ids, strict=True):
        if not outcome.ok:
            await _give_back(job, server_id)
    results_of(job.job, outcomes)
    return ServersResult(server_ids=list(server_ids))


async def _give_back(job: Running, server_id: str) -> None:
    """A server that this job still has, because a sub-job was cancelled before it ran or all have ended, is nobody's."""
    change = Change(job, server_id)

    async def mine() -> Server | None:
        server = await change.find()
        return server if server is not None and server.job_id == job.id else None

    if await mine() is not None:
        await unplug_strays(job.folder, server_id, mine)
        await change.give_back(**await change.true_state())


@kind("deleteServer", queue=QUEUE, attempts=ATTEMPTS, admit=admit_delete_server)
async def delete_server(job: Running, spec: DeleteServer) -> ServersResult:
    """Delete servers with their system disks, each as a sub-job deleteSingleServer."""
    inputs = [DeleteSingleServer(server_id=server_id, delete_volume=spec.delete_volume) for server_id in spec.server_ids]
    return await _each(job, spec.server_ids, [SubJob(kind="deleteSingleServer", input=one) for one in inputs])


@kind("deleteSingleServer", queue=QUEUE, attempts=ATTEMPTS, admit=admit_delete_single)
async def delete_single_server(job: Running, spec: DeleteSingleServer) -> ServerResult:
    """Delete one server and its system disk, and its data disks where asked."""
    result: ServerResult = await run_work(job, Deleting(job, spec))
    return result


@kind("startServer", queue=QUEUE, attempts=ATTEMPTS, admit=admit_start)
async def start_server(job: Running, spec: StartServer) -> ServersResult:
    """Start stopped servers, each as a sub-job startSingleServer."""
    return await _power(job, "startSingleServer", spec.server_ids, "SOFT")


@kind("startSingleServer", queue=QUEUE, attempts=ATTEMPTS, admit=admit_start_single)
async def start_single_server(job: Running, spec: PowerSingle) -> ServerResult:
    """Start one server."""
    result: ServerResult = await run_work(job, Starting(job, spec))
    return result


@kind("stopServer", queue=QUEUE, attempts=ATTEMPTS, admit=admit_stop)
async def stop_server(job: Running, spec: StopServer) -> ServersResult:
    """Stop servers, each as a sub-job stopSingleServer: SOFT presses the power button, HARD does not ask the guest."""
    return await _power(job, "stopSingleServer", spec.server_ids, spec.type)


@kind("stopSingleServer", queue=QUEUE, attempts=ATTEMPTS, admit=admit_stop_single)
async def stop_single_server(job: Running, spec: PowerSingle) -> ServerResult:
    """Stop one server."""
    result: ServerResult = await run_work(job, Stopping(job, spec))
    return result


@kind("rebootServer", queue=QUEUE, attempts=ATTEMPTS, admit=admit_reboot)
async def reboot_server(job: Running, spec: RebootServer) -> ServersResult:
    """Stop servers and start them again, each as a sub-job rebootSingleServer."""
    return await _power(job, "rebootSingleServer", spec.server_ids, spec.type)


@kind("rebootSingleServer", queue=QUEUE, attempts=ATTEMPTS, admit=admit_reboot_single)
async def reboot_single_server(job: Running, spec: PowerSingle) -> ServerResult:
    """Stop one server and start it again."""
    result: ServerResult = await run_work(job, Rebooting(job, spec))
    return result


async def _power(job: Running, kind: str, server_ids: Sequence[str], type: str) -> ServersResult:
    inputs = [{"server_id": server_id, "type": type} for server_id in server_ids]
    return await _each(job, server_ids, [SubJob(kind=kind, input=one) for one in inputs])


@kind("resizeServer", queue=QUEUE, attempts=ATTEMPTS, admit=admit_resize)
async def resize_server(job: Running, spec: ResizeServer) -> ServerResult:
    """Give a stopped server another flavor."""
    result: ServerResult = await run_work(job, Resizing(job, spec))
    return result


@kind("batchResizeServer", queue=QUEUE, attempts=ATTEMPTS, admit=admit_batch_resize)
async def batch_resize_server(job: Running, spec: BatchResizeServer) -> ServersResult:
    """Give stopped servers another flavor, each as a sub-job resizeServer."""
    inputs = [ResizeServer(server_id=server_id, flavor_id=spec.flavor_id) for server_id in spec.server_ids]
    return await _each(job, spec.server_ids, [SubJob(kind="resizeServer", input=one) for one in inputs])


@kind("changeOS", queue=QUEUE, attempts=ATTEMPTS, admit=admit_change_os)
async def change_os(job: Running, spec: ChangeOs) -> ServerResult:
    """Give a stopped server a new system disk from another image, delete the old one, and start the server."""
    result: ServerResult = await run_work(job, Rebuilding(job, spec))
    return result


@kind("reInitOs", queue=QUEUE, attempts=ATTEMPTS, admit=admit_reinit_os)
async def reinit_os(job: Running, spec: ReInitOs) -> ServerResult:
    """Give a stopped server a new system disk from its own image, delete the old one, and start the server."""
    asked = ChangeOs(
        server_id=spec.server_id,
        image_id=spec.image_id or "",
        new_volume_id=spec.new_volume_id,
        old_volume_id=spec.old_volume_id,
    )
    result: ServerResult = await run_work(job, Rebuilding(job, asked))
    return result


@kind("attachVolume", queue=QUEUE, attempts=ATTEMPTS, admit=admit_attach)
async def attach_volume(job: Running, spec: AttachVolume) -> AttachResult:
    """Give a server a volume, at once where it runs."""
    result: AttachResult = await run_work(job, Attaching(job, spec))
    return result


@kind("detachVolume", queue=QUEUE, attempts=ATTEMPTS, admit=admit_detach)
async def detach_volume(job: Running, spec: DetachVolume) -> AttachResult:
    """Part a server from a volume, at once where it runs."""
    result: AttachResult = await run_work(job, Detaching(job, spec))
    return result


@kind("addNic", queue=QUEUE, attempts=ATTEMPTS, admit=admit_add_nic)
async def add_nic(job: Running, spec: AddNic) -> NicsResult:
    """Give a server network cards, each as a sub-job addSingleNic."""
    nic_ids = [id_of(job.id, "nic", position) for position in range(len(spec.nics))]
    await _cards(
        job,
        spec.server_id,
        [
            SubJob(kind="addSingleNic", input=AddSingleNic(server_id=spec.server_id, nic=nic, nic_id=nic_id))
            for nic, nic_id in zip(spec.nics, nic_ids, strict=True)
        ],
    )
    return NicsResult(server_id=spec.server_id, nic_ids=nic_ids)


@kind("addSingleNic", queue=QUEUE, attempts=ATTEMPTS, admit=admit_add_single_nic)
async def add_single_nic(job: Running, spec: AddSingleNic) -> NicResult:
    """Give a server one network card, at once where it runs."""
    result: NicResult = await run_work(job, AddingNic(job, spec))
    return result


@kind("deleteNic", queue=QUEUE, attempts=ATTEMPTS, admit=admit_delete_nic)
async def delete_nic(job: Running, spec: DeleteNic) -> NicsResult:
    """Take network cards from a server, each as a sub-job deleteSingleNic; the primary one stays."""
    await _cards(
        job,
        spec.server_id,
        [
            SubJob(kind="deleteSingleNic", input=DeleteSingleNic(server_id=spec.server_id, nic_id=nic_id))
            for nic_id in spec.nic_ids
        ],
    )
    return NicsResult(server_id=spec.server_id, nic_ids=spec.nic_ids)


@kind("deleteSingleNic", queue=QUEUE, attempts=ATTEMPTS, admit=admit_delete_single_nic)
async def delete_single_nic(job: Running, spec: DeleteSingleNic) -> NicResult:
    """Take one network card from a server, at once where it runs."""
    result: NicResult = await run_work(job, DeletingNic(job, spec))
    return result


async def _cards(job: Running, server_id: str, sub_jobs: Sequence[SubJob]) -> None:
    outcomes = await job.try_sub_jobs(sub_jobs)
    await _give_back(job, server_id)
    results_of(job.job, outcomes)
