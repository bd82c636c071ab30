"""A shared volume is given to several servers, or taken from them, by one job with a sub-job for each.

The servers come one after the other, because each attach has the volume to itself.  One that fails does not keep the others from
being tried.  Nothing is reserved for the whole: each sub-job reserves what it needs when its turn comes.
Source: huaweicloudsdkecs BatchAttachSharableVolumes and BatchDetachVolumes; the names of these kinds are our own.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from milepost import Admission, Admitted, Conflict, InvalidInput, Running, SubJob, kind
from milepost.engine.context import SubOutcome, results_of
from milepost.work.servers.admission import find_server
from milepost.work.servers.kinds import QUEUE
from milepost.work.servers.parts import free_device, is_shareable, why_not_shared
from milepost.work.servers.spec import COUNT_MAX, AttachVolume, DetachVolume
from milepost.work.volumes.admission import find_volume

VOLUME_PATH, SERVERS_PATH = "$.input.volume_id", "$.input.servers"


class Place(msgspec.Struct, kw_only=True):
    """One of the servers, and what the volume is there."""

    server_id: str
    device: Annotated[str | None, Meta(description="/dev/sdb … /dev/sdx; default: the first free one")] = None


class BatchAttachVolume(msgspec.Struct, kw_only=True):
    """A shared volume is given to servers."""

    volume_id: str
    servers: Annotated[list[Place], Meta(description=f"1 to {COUNT_MAX}")]


class BatchDetachVolume(msgspec.Struct, kw_only=True):
    """A volume is taken from servers."""

    volume_id: str
    server_ids: Annotated[list[str], Meta(description=f"1 to {COUNT_MAX}")]


class BatchResult(msgspec.Struct, kw_only=True):
    """The volume and the servers that it was about."""

    volume_id: str
    server_ids: list[str]


async def admit_batch_attach(ask: Admission, spec: BatchAttachVolume) -> Admitted:
    """What can be told now is refused now; whoever changes a server meanwhile, its own sub-job is told."""
    _check_servers([one.server_id for one in spec.servers], SERVERS_PATH)
    volume, _ = await find_volume(ask, spec.volume_id, VOLUME_PATH)
    if not is_shareable(volume) and (volume.attachments or len(spec.servers) > 1):
        raise Conflict(
            f"volume {volume.id} can be attached to one server: {why_not_shared(volume)}",
            path=VOLUME_PATH,
            reason="volume_attached",
            volume_id=volume.id,
        )
    for position, one in enumerate(spec.servers):
        server, _ = await find_server(ask, one.server_id, f"{SERVERS_PATH}[{position}].server_id")
        free_device(server, one.device)
    return Admitted(input=spec)


async def admit_batch_detach(ask: Admission, spec: BatchDetachVolume) -> Admitted:
    """The volume is attached to each of the servers."""
    _check_servers(spec.server_ids, "$.input.server_ids")
    await find_volume(ask, spec.volume_id, VOLUME_PATH)
    for position, server_id in enumerate(spec.server_ids):
        path = f"$.input.server_ids[{position}]"
        server, _ = await find_server(ask, server_id, path)
        if all(disk.volume_id != spec.volume_id for disk in server.disks):
            raise Conflict(f"volume {spec.volume_id} is not attached to server {server_id}", path=path, reason="not_attached")
    return Admitted(input=spec)


def _check_servers(server_ids: list[str], path: str) -> None:
    if not 1 <= len(server_ids) <= COUNT_MAX:
        raise InvalidInput(f"{len(server_ids)} servers; 1 to {COUNT_MAX} at once", path=path, reason="count_range")
    if len(set(server_ids)) < len(server_ids):
        raise InvalidInput("a server is named twice", path=path)


@kind("batchAttachVolume", queue=QUEUE, admit=admit_batch_attach)
async def batch_attach_volume(job: Running, spec: BatchAttachVolume) -> BatchResult:
    """Give a shared volume to servers, one after the other, each as a sub-job attachVolume."""
    asked = [AttachVolume(server_id=one.server_id, volume_id=spec.volume_id, device=one.device) for one in spec.servers]
    await _in_turn(job, [SubJob(kind="attachVolume", input=one) for one in asked])
    return BatchResult(volume_id=spec.volume_id, server_ids=[one.server_id for one in spec.servers])


@kind("batchDetachVolume", queue=QUEUE, admit=admit_batch_detach)
async def batch_detach_volume(job: Running, spec: BatchDetachVolume) -> BatchResult:
    """Take a volume from servers, one after the other, each as a sub-job detachVolume."""
    asked = [DetachVolume(server_id=server_id, volume_id=spec.volume_id) for server_id in spec.server_ids]
    await _in_turn(job, [SubJob(kind="detachVolume", input=one) for one in asked])
    return BatchResult(volume_id=spec.volume_id, server_ids=spec.server_ids)


async def _in_turn(job: Running, sub_jobs: list[SubJob]) -> None:
    """Errors: JobFailed, PartialFailure."""
    outcomes: list[SubOutcome] = []
    for one in sub_jobs:
        outcomes += await job.try_sub_jobs([one])
    results_of(job.job, outcomes)
