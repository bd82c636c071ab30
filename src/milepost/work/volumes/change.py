"""A volume in the hands of a running job: taken, changed under the job's fence, given back.

Rules
1. Every write carries the job's fence: a worker that lost the job changes nothing.
2. Others may write what is not the lock's, as a name: a change reads, changes and writes, and does so again when it came second.
3. `done.json` in the job's folder says that the work was done, and what it came to.  It is written before the record is given
   back, so an attempt that finds the volume in other hands, or gone, knows whether it has anything to do.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

import msgspec

from milepost import Conflict, NotFound, PermanentError, RetryableError, Running, VersionConflict
from milepost.volume import VOLUME, Volume, VolumeStatus, decode_volume
from milepost.work.locks import locked
from milepost.work.threads import in_thread
from milepost.work.undo import undone
from milepost.work.volumes.checks import volume_resource
from milepost.work.volumes.disk import DiskFolder, named_errors, write_durably
from milepost.work.volumes.spec import VolumeResult

CHANGE_TRIES = 16


class Change:
    """One job's work on one volume."""

    def __init__(self, job: Running, volume_id: str) -> None:
        self.job, self.volume_id = job, volume_id
        self.disks = DiskFolder(job.folder)
        self._done = job.scratch / "done.json"

    async def take(self, spec: Any, status: VolumeStatus) -> Volume | VolumeResult:
        """The volume is this job's and shows `status`; or what an earlier attempt came to.

        Errors: PermanentError with the reason, where nothing was reserved and it cannot be now.
        """
        volume = await self.find()
        if volume is None or not self.holds(volume):
            done = await in_thread(self._find_done)
            if done is not None:
                return done
            await self.job.admit(spec)
        return await self.change(job_id=self.job.id, status=status)

    def holds(self, volume: Volume) -> bool:
        """Whether it is locked for this job: by itself, or by its parent or root, which reserved for it."""
        return volume.job_id is not None and volume.job_id in (self.job.id, self.job.job.parent_id, self.job.job.root_id)

    async def find(self) -> Volume | None:
        try:
            return decode_volume((await self.job.resources.get(VOLUME, self.volume_id)).doc)
        except NotFound:
            return None

    async def change(self, **values: Any) -> Volume:
        """Errors: PermanentError when it is gone, Conflict when another worker has the job."""
        for tries_left in reversed(range(CHANGE_TRIES)):
            try:
                found = await self.job.resources.get(VOLUME, self.volume_id)
            except NotFound:
                raise PermanentError("volume_not_found", f"Volume {self.volume_id} is gone.") from None
            volume = msgspec.structs.replace(decode_volume(found.doc), updated_us=self.job.now_us(), **values)
            try:
                await self.job.resources.put(volume_resource(volume), if_version=found.version)
            except VersionConflict:
                if not tries_left:
                    raise
            else:
                return volume
        raise AssertionError("unreachable")

    async def finish(self, volume: Volume, **values: Any) -> VolumeResult:
        """The work is done: noted, then given back with these values."""
        result = result_of(msgspec.structs.replace(volume, **values))
        await in_thread(write_durably, self._done, msgspec.json.encode(result))
        await self.change(**RELEASED, **values)
        return result

    async def finish_removed(self, volume: Volume) -> VolumeResult:
        """The work is done: noted, then the record is gone."""
        result = result_of(volume)
        await in_thread(write_durably, self._done, msgspec.json.encode(result))
        await self.job.resources.delete(VOLUME, self.volume_id)
        return result

    def _find_done(self) -> VolumeResult | None:
        try:
            return msgspec.json.decode(self._done.read_bytes(), type=VolumeResult)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def forget_done(self) -> None:
        self._done.unlink(missing_ok=True)


RELEASED: dict[str, Any] = {"job_id": None, "status_before": None, "size_asked_gib": None}


def settled_status(volume: Volume) -> VolumeStatus:
    """What its status is when nobody changes it and nothing is wrong."""
    return VolumeStatus.IN_USE if volume.attachments else VolumeStatus.AVAILABLE


def result_of(volume: Volume) -> VolumeResult:
    return VolumeResult(volume_id=volume.id, name=volume.name, size=volume.size_gib, volume_type=volume.volume_type)


class Work(Protocol):
    """What a job does to a volume, and how it leaves it when that does not end well."""

    failure: str  # the code of what fails without a better name

    async def run(self) -> VolumeResult: ...

    async def undo(self, fault: str | None) -> None:
        """The volume is as it was, or shows why not.  `fault` is None when the job was cancelled."""


async def run_work(job: Running, work: Work) -> VolumeResult:
    """What the work came to; when it fails for good or is cancelled it is undone first."""

    async def undo(error: Exception | None) -> None:
        with contextlib.suppress(Conflict):  # another worker has the job, and the volume with it
            await work.undo(_told(error))

    async with locked(job.scratch / "lock"), undone(job, undo):
        with named_errors(work.failure):
            result = await work.run()
    return result


def _told(error: Exception | None) -> str | None:
    if error is None or isinstance(error, (PermanentError, RetryableError)):
        return None if error is None else str(error)
    return f"{type(error).__name__}: {error}"


__all__ = ["RELEASED", "Change", "Work", "result_of", "run_work", "settled_status"]
