"""A new volume's bytes.

| step     | what it leaves                                                           | where                                |
|----------|--------------------------------------------------------------------------|--------------------------------------|
| take     | the record, `creating` (`downloading` while an image is read), its job's | the store                            |
| base     | of a copy-on-write volume: a link to the image                           | `base/<volume_id>.<format>`          |
| make     | the disk image, or a converted copy of the image                         | `.new/<job_id>.disk`                 |
| place    | the same, under its name, durable                                        | `<volume_id>.<format>`               |
| note     | what the job came to                                                     | `done.json` in the job's folder      |
| publish  | the record, `available`, nobody's                                        | the store                            |

Rules
1. Each step may be done again from the start; the volume has no bytes that anybody sees before `publish`.
2. A cancelled create leaves no file and no record; a failed one the record, in `error` with its fault, and no file.
"""

from __future__ import annotations

from milepost import Limits, NotFound, PermanentError, RetryableError, Running
from milepost.image import IMAGE, Image, decode_image
from milepost.volume import VOLUME, Volume, VolumeStatus
from milepost.work.threads import in_thread
from milepost.work.volumes.base import base_name, drop_base, link_base, link_source
from milepost.work.volumes.change import RELEASED, Change
from milepost.work.volumes.disk import (
    GIB,
    DiskFolder,
    OnBytes,
    disk_full,
    grow,
    make_qcow2,
    make_raw,
    place,
    qemu_missing,
    remove,
)
from milepost.work.volumes.spec import CreateVolume, VolumeResult, volume_id_of


class Making(Change):
    """One attempt of one create."""

    failure = "volume_error"

    def __init__(self, job: Running, spec: CreateVolume) -> None:
        super().__init__(job, spec.volume_id or volume_id_of(job.id))
        self.spec = spec
        self.limits = limits_of(job)

    async def run(self) -> VolumeResult:
        """The volume is `available`."""
        volume = await self.take(self.spec, VolumeStatus.CREATING)
        if isinstance(volume, VolumeResult):
            return volume
        await in_thread(self.disks.make)
        backing = await self.make(volume)
        target = self.disks.path(volume)
        await in_thread(place, self.disks.of_job(self.job.id), target)
        return await self.finish(volume, status=VolumeStatus.AVAILABLE, file=target.name, backing_file=backing, fault=None)

    async def make(self, volume: Volume) -> str | None:
        """The disk image, under the job's name; the name of its base when it has one."""
        if volume.image_id is None:
            await self.make_empty(volume)
            return None
        image = await self.read_image(volume.image_id)
        if volume.format == "qcow2" and not self.spec.volume.full_clone:
            return await self.make_on_top(volume, image)
        await self.clone(volume, image)
        return None

    async def make_empty(self, volume: Volume) -> None:
        new, size_bytes = self.disks.of_job(self.job.id), volume.size_gib * GIB
        if volume.format == "raw":
            await in_thread(make_raw, new, size_bytes)
        else:
            await make_qcow2(new, size_bytes, limits=self.limits)

    async def read_image(self, image_id: str) -> Image:
        try:
            image = decode_image((await self.job.resources.get(IMAGE, image_id)).doc)
        except NotFound:
            image = None
        if image is None or image.object_key is None:
            raise PermanentError("image_not_found", f"Image {image_id} was deleted before the volume was made.")
        await self.change(status=VolumeStatus.DOWNLOADING)
        return image

    async def make_on_top(self, volume: Volume, image: Image) -> str:
        """An empty file that reads from the image what was not written; the base's name."""
        from milepost.work.convert import QEMU_NAMES

        await link_base(self.job, self.disks, image, volume.id, self.report("downloading"))
        backing = base_name(image, volume.id)
        await make_qcow2(
            self.disks.of_job(self.job.id),
            volume.size_gib * GIB,
            limits=self.limits,
            backing=backing,
            backing_format=QEMU_NAMES[image.disk_format or "raw"],
        )
        return backing

    async def clone(self, volume: Volume, image: Image) -> None:
        """A copy of the image in the volume's format, as large as the volume."""
        from milepost.work.convert import convert_image
        from milepost.work.inspection import Inspected

        new = self.disks.of_job(self.job.id)
        source = await link_source(self.job, self.disks, image, self.report("downloading"))
        size = image.size or 0
        report = self.report("copying the image")
        try:
            await convert_image(
                source,
                new,
                Inspected(image.disk_format or "raw", size, image.virtual_size or size),
                volume.format,
                limits=self.limits,
                bytes_max=1 << 62,
                on_progress=report,
            )
        except (PermanentError, RetryableError) as error:
            raise _named(error) from error
        await in_thread(self.drop_source)
        await grow(new, volume.format, volume.size_gib * GIB, limits=self.limits)

    def report(self, note: str) -> OnBytes:
        async def on_bytes(done: int, total: int) -> None:
            await self.job.progress(done, total, note, unit="bytes")

        return on_bytes

    def drop_source(self) -> None:
        drop_base(self.disks, str(self.disks.of_job(self.job.id, "source").relative_to(self.disks.root)))

    # --- when it does not end well --------------------------------------------------------------------------------------

    async def undo(self, fault: str | None) -> None:
        volume = await self.find()
        if volume is None or not self.holds(volume):
            return
        await self.change(fault=fault or "cancelled")  # under the fence: from here on the files are this attempt's to remove
        await in_thread(self.remove_files, volume)
        if fault is None:
            await self.job.resources.delete(VOLUME, self.volume_id)
        else:
            await self.change(**RELEASED, status=VolumeStatus.ERROR, file=None, backing_file=None)

    def remove_files(self, volume: Volume) -> None:
        self.drop_source()
        remove_files(self.disks, volume)
        self.disks.remove_new(self.job.id)
        self.forget_done()


def remove_files(disks: DiskFolder, volume: Volume) -> None:
    """What was made of a volume that nobody has seen, or what is left of one that was wiped."""
    for name in (f"{volume.id}.raw", f"{volume.id}.qcow2"):
        remove(disks.root / name)
    for base in disks.base.glob(f"{volume.id}.*"):
        drop_base(disks, f"base/{base.name}")


def limits_of(job: Running) -> Limits:
    """What a qemu-img may take."""
    return Limits(memory_bytes=job.settings.convert_memory_bytes, cpu_s=job.settings.convert_cpu_s, open_files=64)


def _named(error: PermanentError | RetryableError) -> PermanentError:
    """A conversion's failure in the words of volumes."""
    if error.code == "no_space":
        return disk_full(error.message)
    if error.code == "qemu_img_missing":
        return qemu_missing()
    return PermanentError("volume_error", error.message, {"cause": error.code, **(error.details or {})})


__all__ = ["Making", "limits_of", "remove_files"]
