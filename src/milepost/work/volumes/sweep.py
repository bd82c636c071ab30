"""What jobs leave behind when they end while nobody runs them: cancelled before they ran, failed as poison, orders that expired.

Theory: a running job cleans up after itself under its fence.  What is left are records locked for a job that is final or gone.  A
final state never changes, so such a record is nobody's; it is written with its version as the condition.

| status                   | its job never ran, or is gone     | it was cancelled           | it failed                         |
|--------------------------|-----------------------------------|----------------------------|-----------------------------------|
| creating, downloading    | removed                           | removed                    | `error` with the job's reason     |
| extending                | as before                         | as before, as far as grown | `error_extending`                 |
| deleting                 | as before                         | `error_deleting`           | `error_deleting`; gone if wiped   |
| retyping                 | as before                         | as before                  | as before                         |
| any other (held order)   | unlocked                          | unlocked                   | unlocked                          |

A job that failed before its first attempt (its deadline passed) never ran, but a create that failed leaves its record even so.
`attaching` and `detaching` belong to the kinds of servers.

Files: what a job was making goes when the job has ended; a volume or base without a record goes when it is an hour old.  (A
record comes before its file and goes after it, so such a file is nobody's; the hour is for whoever puts a backup back.)
A file that a process has open is neither removed nor given away: it is logged, and looked at again with the next sweep.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from milepost import NotFound, Resource, VersionConflict, Write
from milepost.job import FINAL, Job, JobId, State
from milepost.volume import VOLUME, Volume, VolumeStatus, decode_volume
from milepost.work.threads import in_thread
from milepost.work.volumes.base import drop_base, drop_downloads
from milepost.work.volumes.change import RELEASED
from milepost.work.volumes.changing import extend_undone, given_back
from milepost.work.volumes.checks import volume_resource
from milepost.work.volumes.disk import DiskFolder, remove
from milepost.work.volumes.making import remove_files
from milepost.work.volumes.openers import opener_of

if TYPE_CHECKING:
    from milepost.store import Store

log = structlog.get_logger("milepost.volumes")

ORPHAN_S = 3600.0
MAKING = (VolumeStatus.CREATING, VolumeStatus.DOWNLOADING)
OF_SERVERS = (VolumeStatus.ATTACHING, VolumeStatus.DETACHING)


async def sweep(store: Store, data: Path, *, now_us: int) -> int:
    """No volume is locked for a job that has ended, and no file is nobody's.  How many records and files were changed."""
    disks = DiskFolder(data)
    return await settle(store, data, now_us=now_us) + await _sweep_files(store, disks)


async def settle(store: Store, data: Path, *, now_us: int) -> int:
    """No volume is locked for a job that has ended.  How many records were changed."""
    disks, count = DiskFolder(data), 0
    for resource in await store.list_resources(VOLUME):
        if _decode_lock(resource.doc).job_id is None:
            continue
        try:
            count += await _settle_one(store, disks, resource, now_us)
        except VersionConflict:
            continue  # somebody changed it just now: the next round looks again
    return count


class _Lock(msgspec.Struct):
    """What says whether a record has to be looked at."""

    job_id: str | None = None


_decode_lock = msgspec.json.Decoder(_Lock).decode


async def _settle_one(store: Store, disks: DiskFolder, resource: Resource, now_us: int) -> bool:
    volume = decode_volume(resource.doc)
    if volume.status in OF_SERVERS:
        return False
    job = await _job_of(store, volume)
    if job is not None and job.state not in FINAL:
        return False
    if volume.status in MAKING and await is_open(disks, volume):
        return False
    values = await in_thread(_end_of, disks, volume, job)
    log.warning(
        "what a job left of a volume is settled",
        volume_id=volume.id,
        was=volume.status,
        job_id=volume.job_id,
        status="removed" if values is None else values.get("status", volume.status),
    )
    if values is None:
        await in_thread(remove_files, disks, volume)
        await store.write_resources([Write(resource=resource, if_version=resource.version, delete=True)])
    else:
        changed = msgspec.structs.replace(volume, **RELEASED, **values, updated_us=now_us)
        await store.put_resource(volume_resource(changed), if_version=resource.version)
    return True


async def is_open(disks: DiskFolder, volume: Volume) -> bool:
    """Whether a process still has the volume's file open, which is logged: what it has is kept, and looked at again."""
    opener = await in_thread(opener_of, disks.path(volume))
    if opener is not None:
        log.warning("a volume is kept: its file is open", volume_id=volume.id, status=volume.status, opener=opener)
    return opener is not None


async def _job_of(store: Store, volume: Volume) -> Job | None:
    """The job that had to do it: the one that has the lock, or its sub-job for this volume.  None: it is gone."""
    try:
        job = await store.get_job(JobId(volume.job_id or ""))
    except NotFound:
        return None
    if not isinstance(job, Job):
        return None
    return await _sub_job_for(store, job, f'"{volume.id}"'.encode()) or job


async def _sub_job_for(store: Store, job: Job, named: bytes) -> Job | None:
    if job.sub_total == 0:
        return None
    subs = [sub for sub in await store.list_sub_jobs(job.id) if named in (sub.input or b"")]
    for sub in subs:  # one that is open decides: it may still take the volume
        if sub.state not in FINAL:
            return sub
    return subs[-1] if subs else None


def _end_of(disks: DiskFolder, volume: Volume, job: Job | None) -> dict[str, Any] | None:
    """The record's right end, as the table says; None: it is removed."""
    ran = job is not None and job.attempt > 0
    failed = job if job is not None and job.state is State.FAILED else None
    reason = _reason(failed) if failed is not None else None
    path = disks.path(volume)
    if volume.status in MAKING:
        if reason is None:
            return None
        remove_files(disks, volume)
        return {"status": VolumeStatus.ERROR, "fault": reason, "file": None, "backing_file": None}
    if volume.status is VolumeStatus.EXTENDING:
        return extend_undone(path, volume, volume.size_asked_gib or volume.size_gib, reason if ran else None)
    if volume.status is VolumeStatus.DELETING and ran:
        if volume.file is not None and not path.exists():
            return None
        return {"status": VolumeStatus.ERROR_DELETING, "fault": reason or "its delete was cancelled: delete it again"}
    if volume.status in (VolumeStatus.DELETING, VolumeStatus.RETYPING):
        return {"status": given_back(volume)}
    return {}


def _reason(job: Job) -> str:
    return job.error.message if job.error is not None else "its job failed"


# --- files ---------------------------------------------------------------------------------------------------------


async def _sweep_files(store: Store, disks: DiskFolder) -> int:
    if not disks.root.is_dir():
        return 0
    count = 0
    making = await in_thread(_listed, disks.new)
    for job_id in {path.name.partition(".")[0] for path in making}:
        if await _is_over(store, job_id):
            await in_thread(disks.remove_new, job_id)
            count += 1
    old = await in_thread(_old_files, disks)  # listed before the records are read: a record comes before its file
    if old:
        known = {resource.id for resource in await store.list_resources(VOLUME)}
        for path, drop in old:
            if path.name.partition(".")[0] not in known:
                opener = await in_thread(opener_of, path)
                if opener is not None:
                    log.warning("a file without a volume is kept: it is open", file=path.name, opener=opener)
                    continue
                log.warning("a file without a volume is removed", file=path.name)
                await in_thread(drop, path)
                count += 1
    return count + await in_thread(drop_downloads, disks)


async def _is_over(store: Store, job_id: str) -> bool:
    try:
        found = await store.get_job(JobId(job_id))
    except NotFound:
        return True
    return not isinstance(found, Job) or found.state in FINAL


def _listed(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def _old_files(disks: DiskFolder) -> list[tuple[Path, Callable[[Path], None]]]:
    """Volumes and bases that nobody has written for an hour, and how each is removed."""
    oldest_s = time.time() - ORPHAN_S
    bases = [path for path in _listed(disks.base) if not path.name.startswith("image-")]
    found: list[tuple[Path, Callable[[Path], None]]] = [
        *((path, remove) for path in _listed(disks.root)),
        *((path, lambda path: drop_base(disks, f"base/{path.name}")) for path in bases),
    ]
    return [(path, drop) for path, drop in found if path.stat().st_mtime < oldest_s]


__all__ = ["is_open", "settle", "sweep"]
