"""What happens to a volume that is there: extended, retyped, deleted.

Rules
1. A volume grows on disk first and in its record after that; it never shrinks, so growing again after a crash changes nothing.
2. A file that any process has open is not wiped and not removed: whoever reads or writes it goes first.
3. A deleted volume is wiped, then its file is removed, then its base, then its record: what is interrupted is done again.
4. A cancelled job gives the volume back as it was.  A delete that has begun to wipe cannot: it leaves `error_deleting`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from milepost import PermanentError, Running
from milepost.volume import Volume, VolumeStatus
from milepost.work.threads import in_thread
from milepost.work.volumes.change import RELEASED, Change, settled_status
from milepost.work.volumes.disk import GIB, grow, remove, virtual_bytes, wipe
from milepost.work.volumes.live import grow_live
from milepost.work.volumes.making import limits_of, remove_files
from milepost.work.volumes.openers import opener_of
from milepost.work.volumes.spec import DeleteVolume, ExtendVolume, RetypeVolume, VolumeResult

GROW_TRIES = 5
GROW_PAUSE_S = 0.5
CLOSED_TRIES, CLOSED_PAUSE_S = 5, 0.2


class Extending(Change):
    """One attempt of one extend."""

    failure = "volume_extend_failed"

    def __init__(self, job: Running, spec: ExtendVolume) -> None:
        super().__init__(job, spec.volume_id)
        self.spec = spec

    async def run(self) -> VolumeResult:
        """The volume has its new size, and its status of before."""
        volume = await self.take(self.spec, VolumeStatus.EXTENDING)
        if isinstance(volume, VolumeResult):
            return volume
        try:
            await self.grow(volume)
        except FileNotFoundError:
            raise PermanentError("volume_extend_failed", f"Volume {volume.id} has no file on this server.") from None
        except PermanentError as error:
            if error.code == "volume_error":
                raise PermanentError("volume_extend_failed", error.message, error.details) from error
            raise
        return await self.finish(
            volume, status=settled_status(volume), size_gib=max(self.spec.new_size, volume.size_gib), fault=None
        )

    async def grow(self, volume: Volume) -> None:
        """By the machines that have it open, else by ourselves; and told to a machine that was started meanwhile."""
        for tries_left in reversed(range(GROW_TRIES)):
            try:
                await self.grow_once(volume)
            except PermanentError:
                if not tries_left or not volume.attachments:
                    raise
                await asyncio.sleep(GROW_PAUSE_S)  # a machine that is just being started or stopped has locked the file
            else:
                return

    async def grow_once(self, volume: Volume) -> None:
        path = self.disks.path(volume)
        size_bytes = max(self.spec.new_size * GIB, await in_thread(virtual_bytes, path, volume.format))  # QEMU would shrink it
        if not await grow_live(self.job.folder, volume, size_bytes):
            await grow(path, volume.format, size_bytes, limits=limits_of(self.job))
            await grow_live(self.job.folder, volume, size_bytes)

    async def undo(self, fault: str | None) -> None:
        volume = await self.find()
        if volume is None or not self.holds(volume):
            return
        values = await in_thread(extend_undone, self.disks.path(volume), volume, self.spec.new_size, fault)
        await self.change(**RELEASED, **values)
        await in_thread(self.forget_done)


def extend_undone(path: Any, volume: Volume, new_size: int, fault: str | None) -> dict[str, Any]:
    """What the record says of a volume whose extend did not end well: its size is what the file has come to."""
    try:
        grown = virtual_bytes(path, volume.format) >= new_size * GIB
    except (OSError, PermanentError):
        grown = False
    status = given_back(volume) if fault is None else VolumeStatus.ERROR_EXTENDING
    return {"status": status, "fault": fault, "size_gib": max(new_size, volume.size_gib) if grown else volume.size_gib}


def given_back(volume: Volume) -> VolumeStatus:
    """Its status before the job that did nothing."""
    return volume.status_before or settled_status(volume)


class Retyping(Change):
    """One attempt of one retype: the types differ in speed elsewhere, here in their name."""

    failure = "volume_error"

    def __init__(self, job: Running, spec: RetypeVolume) -> None:
        super().__init__(job, spec.volume_id)
        self.spec = spec

    async def run(self) -> VolumeResult:
        """The volume has its new type."""
        volume = await self.take(self.spec, VolumeStatus.RETYPING)
        if isinstance(volume, VolumeResult):
            return volume
        return await self.finish(volume, status=settled_status(volume), volume_type=self.spec.new_type)

    async def undo(self, fault: str | None) -> None:  # noqa: ARG002  (nothing can be half done)
        volume = await self.find()
        if volume is None or not self.holds(volume):
            return
        await self.change(**RELEASED, status=given_back(volume))
        await in_thread(self.forget_done)


class Deleting(Change):
    """One attempt of one delete."""

    failure = "volume_delete_failed"

    def __init__(self, job: Running, spec: DeleteVolume) -> None:
        super().__init__(job, spec.volume_id)
        self.spec = spec
        self._begun = job.scratch / "wiping"

    async def run(self) -> VolumeResult:
        """Nothing of the volume is left."""
        volume = await self.take(self.spec, VolumeStatus.DELETING)
        if isinstance(volume, VolumeResult):
            return volume
        if volume.file is not None:
            await self.check_closed(self.disks.path(volume))
            await in_thread(self._begun.touch)
            await wipe(self.disks.path(volume), self.report)
            await in_thread(remove, self.disks.path(volume))
        await in_thread(remove_files, self.disks, volume)
        return await self.finish_removed(volume)

    async def check_closed(self, path: Path) -> None:
        """Nobody has it open any more.  Errors: PermanentError (`volume_in_use`) naming the process."""
        for tries_left in reversed(range(CLOSED_TRIES)):
            opener = await in_thread(opener_of, path)
            if opener is None:
                return
            if not tries_left:
                raise PermanentError("volume_in_use", f"{opener} still has the volume's file open; nothing of it was wiped.")
            await asyncio.sleep(CLOSED_PAUSE_S)  # one that is just ending

    async def report(self, done: int, total: int) -> None:
        if total:
            await self.job.progress(done, total, "wiping", unit="bytes")

    async def undo(self, fault: str | None) -> None:
        volume = await self.find()
        if volume is None or not self.holds(volume):
            return
        if fault is None and not self._begun.exists():
            await self.change(**RELEASED, status=given_back(volume))
            return
        told = fault or "its delete was cancelled while it was wiped: delete it again"
        await self.change(**RELEASED, status=VolumeStatus.ERROR_DELETING, fault=told)


__all__ = ["Deleting", "Extending", "Retyping", "extend_undone", "given_back"]
