"""The kinds of volumes.  Source: huaweicloudDocs/evs, "Querying Task Status", its job types."""

from __future__ import annotations

import msgspec

from milepost import Running, SubJob, kind
from milepost.work.volumes.admission import (
    admit_batch_create,
    admit_batch_extend,
    admit_bulk_delete,
    admit_create,
    admit_delete,
    admit_extend,
    admit_retype,
)
from milepost.work.volumes.change import run_work
from milepost.work.volumes.changing import Deleting, Extending, Retyping
from milepost.work.volumes.making import Making
from milepost.work.volumes.spec import (
    BatchCreateVolume,
    BatchExtendVolume,
    BulkDeleteVolume,
    CreateVolume,
    DeleteVolume,
    ExtendVolume,
    RetypeVolume,
    VolumeResult,
    VolumesResult,
    name_in_batch,
    volume_id_of,
)

QUEUE = "volumes"
ATTEMPTS = 3  # only what the store or the system does unexpectedly is tried again; refusals and a full disk are final


@kind("createVolume", queue=QUEUE, attempts=ATTEMPTS, admit=admit_create)
async def create_volume(job: Running, spec: CreateVolume) -> VolumeResult:
    """Make a volume, empty or from an image, and attach it when a server is named."""
    made = await run_work(job, Making(job, spec))
    if spec.volume.server_id is not None:
        attach = {"server_id": spec.volume.server_id, "volume_id": made.volume_id}
        await job.run_sub_jobs([SubJob(kind="attachVolume", input=attach)])
    return made


@kind("batchCreateVolume", queue=QUEUE, attempts=ATTEMPTS, admit=admit_batch_create)
async def batch_create_volume(job: Running, spec: BatchCreateVolume) -> VolumesResult:
    """Make several volumes alike, each as a sub-job createVolume."""
    volume_ids = spec.volume_ids or [volume_id_of(job.id, position) for position in range(spec.count)]
    await job.run_sub_jobs(
        [
            SubJob(
                kind="createVolume",
                input=CreateVolume(
                    volume=msgspec.structs.replace(spec.volume, name=name_in_batch(spec.volume.name, position, spec.count)),
                    volume_id=volume_id,
                ),
            )
            for position, volume_id in enumerate(volume_ids)
        ]
    )
    return VolumesResult(volume_ids=volume_ids)


@kind("extendVolume", queue=QUEUE, attempts=ATTEMPTS, admit=admit_extend)
async def extend_volume(job: Running, spec: ExtendVolume) -> VolumeResult:
    """Make a volume larger, also while a server has it."""
    return await run_work(job, Extending(job, spec))


@kind("batchExtendVolume", queue=QUEUE, attempts=ATTEMPTS, admit=admit_batch_extend)
async def batch_extend_volume(job: Running, spec: BatchExtendVolume) -> VolumesResult:
    """Make several volumes larger, each as a sub-job extendVolume."""
    await job.run_sub_jobs([SubJob(kind="extendVolume", input=one) for one in spec.volumes])
    return VolumesResult(volume_ids=[one.volume_id for one in spec.volumes])


@kind("deleteVolume", queue=QUEUE, attempts=ATTEMPTS, admit=admit_delete)
async def delete_volume(job: Running, spec: DeleteVolume) -> VolumeResult:
    """Wipe and remove a volume."""
    return await run_work(job, Deleting(job, spec))


@kind("deleteSingleVolume", queue=QUEUE, attempts=ATTEMPTS, admit=admit_delete)
async def delete_single_volume(job: Running, spec: DeleteVolume) -> VolumeResult:
    """Wipe and remove one volume of several."""
    return await run_work(job, Deleting(job, spec))


@kind("bulkDeleteVolume", queue=QUEUE, attempts=ATTEMPTS, admit=admit_bulk_delete)
async def bulk_delete_volume(job: Running, spec: BulkDeleteVolume) -> VolumesResult:
    """Wipe and remove several volumes, each as a sub-job deleteSingleVolume."""
    await job.run_sub_jobs(
        [SubJob(kind="deleteSingleVolume", input=DeleteVolume(volume_id=volume_id)) for volume_id in spec.volume_ids]
    )
    return VolumesResult(volume_ids=spec.volume_ids)


@kind("retypeVolume", queue=QUEUE, attempts=ATTEMPTS, admit=admit_retype)
async def retype_volume(job: Running, spec: RetypeVolume) -> VolumeResult:
    """Give a volume another type."""
    return await run_work(job, Retyping(job, spec))


__all__ = [
    "batch_create_volume",
    "batch_extend_volume",
    "bulk_delete_volume",
    "create_volume",
    "delete_single_volume",
    "delete_volume",
    "extend_volume",
    "retype_volume",
]
