"""Volumes as files of one folder: made, grown, wiped, removed.

| path                            | what                                                            |
|---------------------------------|-----------------------------------------------------------------|
| `<volume_id>.<raw or qcow2>`    | a volume                                                        |
| `base/<image_id>.<format>`      | an image that volumes are backed by; never written              |
| `.new/<job_id>…`                | what a job is making; nobody else looks at it                   |

Rules
1. A file is made under `.new`, fsynced, renamed into its place, and then its folder is fsynced: after a power cut there is the
   whole file or none.
2. A file only grows.
3. Wiping overwrites what is allocated, found with SEEK_DATA and SEEK_HOLE: the holes of a sparse file have nothing to overwrite.
4. A qcow2 file names its base by a path relative to its own folder, so that the folder may be moved.

Errors: PermanentError: disk_full, qemu_missing, volume_error.  RetryableError: the code of the work that met it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from milepost import Limits, PermanentError, RetryableError
from milepost.process import ProgramMissing, run_process
from milepost.volume import DiskFormat, Volume
from milepost.work.threads import in_thread

GIB = 1 << 30
WIPE_STEP_BYTES = 64 << 20  # between two looks at whether to stop
ZEROS = memoryview(bytes(1 << 20))
FULL = (errno.ENOSPC, errno.EDQUOT)
QCOW2_MAGIC = b"QFI\xfb"

OnBytes = Callable[[int, int], Awaitable[None]]


class DiskFolder:
    """The folder of all volumes below the server's data folder."""

    def __init__(self, data: Path) -> None:
        self.root = data / "volumes"
        self.base = self.root / "base"
        self.new = self.root / ".new"

    def make(self) -> None:
        """The folders are there, also after a power cut."""
        for folder in (self.root, self.base, self.new):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                fsync(folder.parent)

    def path(self, volume: Volume) -> Path:
        """Where its bytes are, or will be."""
        return self.root / (volume.file or f"{volume.id}.{volume.format}")

    def of_job(self, job_id: str, what: str = "disk") -> Path:
        """A file that this job is making."""
        return self.new / f"{job_id}.{what}"

    def remove_new(self, job_id: str) -> None:
        """Whatever the job was making."""
        if self.new.is_dir():
            for path in self.new.glob(f"{job_id}.*"):
                path.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """The file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place(new: Path, target: Path) -> None:
    """The file is at `target`, whole and durable."""
    fsync(new)
    new.replace(target)
    fsync(target.parent)


def write_durably(path: Path, data: bytes) -> None:
    """The file has this content, or what it had before."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(data)
    place(temporary, path)


def remove(path: Path) -> None:
    """The file is gone, also after a power cut."""
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        fsync(path.parent)


# --- make ----------------------------------------------------------------------------------------------------------


def make_raw(path: Path, size_bytes: int) -> None:
    """A sparse file: its size, and no blocks."""
    with path.open("wb") as file:
        file.truncate(size_bytes)


async def make_qcow2(
    path: Path, size_bytes: int, *, limits: Limits, backing: str | None = None, backing_format: str | None = None
) -> None:
    """An empty qcow2 file, on top of `backing` (a path relative to where the file will be) when there is one.

    The base is not opened (`-u`): the new size is given, and its format is not guessed.
    """
    on_top = [] if backing is None or backing_format is None else ["-u", "-F", backing_format, "-b", backing]
    await _qemu_img(["create", "-q", "-f", "qcow2", *on_top, str(path), str(size_bytes)], limits=limits, cwd=path.parent)


async def _qemu_img(arguments: list[str], *, limits: Limits, cwd: Path) -> None:
    try:
        ended = await run_process(["qemu-img", *arguments], limits=limits, cwd=cwd)
    except ProgramMissing:
        raise qemu_missing() from None
    if ended.ok:
        return
    if b"No space left on device" in ended.stderr or b"Disk quota exceeded" in ended.stderr:
        raise disk_full(f"qemu-img {arguments[0]}: {ended.describe()}")
    raise PermanentError(
        "volume_error", f"qemu-img {arguments[0]} failed ({ended.describe()}).", {"exit_code": ended.code, "reason": ended.reason}
    )


def qemu_missing() -> PermanentError:
    """The package is named."""
    return PermanentError(
        "qemu_missing",
        "qemu-img is not installed on this server, and a qcow2 volume or a copy of an image needs it: install the package "
        "qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL).",
        {"program": "qemu-img", "package": "qemu-utils"},
    )


def disk_full(what: str) -> PermanentError:
    """The server's disk, not the volume's."""
    return PermanentError("disk_full", f"The server's disk is full ({what}); free some space and ask again.")


@contextlib.contextmanager
def named_errors(code: str) -> Iterator[None]:
    """What the file system says, as what a job can fail with: `code` for what may go better the next time."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(str(error.strerror)) from error
        if error.errno == errno.EFBIG:
            raise PermanentError(
                "volume_error",
                "The server's file system has no files as large as that; a qcow2 volume takes only what is written to it.",
            ) from error
        raise RetryableError(code, f"The server's file system refused it: {error}", {"errno": error.errno}) from error


# --- grow ----------------------------------------------------------------------------------------------------------


def virtual_bytes(path: Path, format: DiskFormat) -> int:
    """What a guest sees.  Errors: FileNotFoundError, PermanentError for a qcow2 file that is none."""
    if format == "raw":
        return path.stat().st_size
    with path.open("rb") as file:
        head = file.read(32)
    if len(head) < 32 or not head.startswith(QCOW2_MAGIC):
        raise PermanentError("volume_error", f"The volume's file {path.name} is no qcow2 file any more.")
    return int.from_bytes(head[24:32])


async def grow(path: Path, format: DiskFormat, size_bytes: int, *, limits: Limits) -> None:
    """It has at least this size, durably.  Nobody may have it open."""
    if await in_thread(virtual_bytes, path, format) < size_bytes:
        if format == "raw":
            await in_thread(os.truncate, path, size_bytes)
        else:
            await _qemu_img(["resize", "-q", "-f", "qcow2", str(path), str(size_bytes)], limits=limits, cwd=path.parent)
    await in_thread(fsync, path)


# --- wipe ----------------------------------------------------------------------------------------------------------


async def wipe(path: Path, on_bytes: OnBytes) -> None:
    """Everything allocated in it is zeros on disk; a file that is not there has nothing.  Its size stays."""
    try:
        descriptor = await in_thread(os.open, path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        total = await in_thread(lambda: os.fstat(descriptor).st_blocks * 512)
        at, done = 0, 0
        while True:
            at, wiped = await in_thread(_wipe_step, descriptor, at)
            done += wiped
            await on_bytes(min(done, total), total)
            if at < 0:
                break
        await in_thread(os.fsync, descriptor)
    finally:
        os.close(descriptor)


def _wipe_step(descriptor: int, at: int) -> tuple[int, int]:
    """Overwrite the next pieces of data from `at`; where to go on (-1: nowhere) and how many bytes it were."""
    left = WIPE_STEP_BYTES
    while left > 0:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more data
                return -1, WIPE_STEP_BYTES - left
            raise
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), start + left)
        at = start
        while at < end:
            at += os.pwrite(descriptor, ZEROS[: end - at], at)
        left -= end - start
    return at, WIPE_STEP_BYTES


__all__ = [
    "GIB",
    "DiskFolder",
    "OnBytes",
    "disk_full",
    "fsync",
    "grow",
    "make_qcow2",
    "make_raw",
    "named_errors",
    "place",
    "qemu_missing",
    "remove",
    "virtual_bytes",
    "wipe",
    "write_durably",
]
