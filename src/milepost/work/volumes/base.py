"""The images that volumes are made from: linked to where the image's object is a local file, downloaded where it is not.

Theory: a copy-on-write volume has a file of its own under `base`, a hard link, so the file system counts who still needs an
image's bytes: the image may be deleted while volumes are backed by it, and they go with the last of them.  No list is kept
that a crash could make wrong, and no two jobs have to agree about anything.

Rules
1. Nobody ever writes a base.
2. An image that is not on this file system is downloaded once, to `base/image-<id>.<format>`; volumes link to that.  Whoever
   removes the last link of a volume removes the download, too.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from pathlib import Path
from weakref import WeakValueDictionary

from milepost import PermanentError, Running
from milepost.image import Image
from milepost.work.threads import in_thread
from milepost.work.volumes.disk import DiskFolder, OnBytes, disk_full, fsync, place

SPACE_LEFT_BYTES = 64 << 20  # of the disk, that a download never takes: the database may be on it
SPACE_CHECK_BYTES = 64 << 20
NOT_LINKABLE = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)

_downloads: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


def base_name(image: Image, volume_id: str) -> str:
    """The volume's own link to its image, relative to the folder of volumes."""
    return f"base/{volume_id}.{image.disk_format}"


async def link_base(job: Running, disks: DiskFolder, image: Image, volume_id: str, on_bytes: OnBytes) -> None:
    """The image's bytes are at `base_name`, durably."""
    target = disks.root / base_name(image, volume_id)
    await _get(job, disks, image, target, on_bytes)
    await in_thread(fsync, target.parent)


async def link_source(job: Running, disks: DiskFolder, image: Image, on_bytes: OnBytes) -> Path:
    """The image's bytes as a file that only this job has: they stay when the image is deleted meanwhile."""
    target = disks.of_job(job.id, "source")
    await _get(job, disks, image, target, on_bytes)
    return target


async def _get(job: Running, disks: DiskFolder, image: Image, target: Path, on_bytes: OnBytes) -> None:
    assert image.object_key is not None
    local = job.objects.local_path(image.object_key)
    if local is not None and await in_thread(_link, local, target):
        return
    master = disks.base / f"image-{image.id}.{image.disk_format}"
    one_at_a_time = _downloads.setdefault(str(master), asyncio.Lock())
    async with one_at_a_time:
        if await in_thread(_link, master, target):
            return
        partial = disks.of_job(job.id, "download")
        await _download(job, image, partial, on_bytes)
        await in_thread(place, partial, master)
        if not await in_thread(_link, master, target):  # no hard links here: every volume has its own copy
            await in_thread(master.replace, target)


def _link(source: Path, target: Path) -> bool:
    """Whether `target` is the same file as `source` now; False where there is no source, or none that can be linked to."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in NOT_LINKABLE:
            return False
        raise
    return True


async def _download(job: Running, image: Image, partial: Path, on_bytes: OnBytes) -> None:
    assert image.object_key is not None
    done, next_check = 0, 0
    try:
        with await in_thread(partial.open, "wb") as file:
            async for chunk in job.objects.read(image.object_key):
                if done >= next_check:
                    next_check = done + SPACE_CHECK_BYTES
                    if (await in_thread(shutil.disk_usage, partial.parent)).free < SPACE_LEFT_BYTES + len(chunk):
                        raise disk_full(f"{SPACE_LEFT_BYTES >> 20} MiB are left")
                await in_thread(file.write, chunk)
                done += len(chunk)
                await on_bytes(done, image.size or done)
    except FileNotFoundError:
        raise PermanentError("image_not_found", f"Image {image.id} was deleted before its content was read.") from None
    if image.size is not None and done != image.size:
        raise PermanentError("volume_error", f"Image {image.id} has {image.size} bytes, and {done} came.")


def drop_base(disks: DiskFolder, name: str) -> None:
    """The volume's link is gone, and the download of its image when that was the last one."""
    link = disks.root / name
    try:
        inode = link.stat().st_ino
    except FileNotFoundError:
        inode = None
    link.unlink(missing_ok=True)
    if inode is not None:
        drop_downloads(disks, inode)
    if link.parent.is_dir():
        fsync(link.parent)


def drop_downloads(disks: DiskFolder, inode: int | None = None) -> int:
    """Downloads that no volume is linked to any more are gone, or only that of this inode.  How many.

    A link made at the same moment keeps the bytes: the name goes, the file stays.
    """
    count = 0
    for master in disks.base.glob("image-*") if disks.base.is_dir() else ():
        try:
            found = master.stat()
        except FileNotFoundError:
            continue
        if found.st_nlink == 1 and inode in (None, found.st_ino):
            master.unlink(missing_ok=True)
            count += 1
    return count


__all__ = ["base_name", "drop_base", "drop_downloads", "link_base", "link_source"]
