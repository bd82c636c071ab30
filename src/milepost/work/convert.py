"""One disk format into another, by qemu-img in a limited subprocess.

Rules
1. Only a local file that passed inspection is converted, and qemu-img is told its format (`-f`): it never guesses from the
   content.
2. It runs with limits of memory, processor time and file size, in a process group of its own, without this server's environment,
   and dies with whoever started it.
3. A qcow2 or vmdk is checked before (`qemu-img check`): where one is cut off, qemu-img reads zeros and reports no error.
4. The result is inspected like a file from outside before anybody sees it.

Errors: PermanentError: qemu_img_missing, image_damaged, conversion_failed, converted_too_large.  RetryableError: no_space.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from milepost import Limits, PermanentError, RetryableError
from milepost.process import Ended, ProgramMissing, run_process
from milepost.work.fetch import NO_SPACE_DELAY_S, SPACE_LEFT_BYTES
from milepost.work.inspection import Inspected, inspect_image
from milepost.work.threads import Stop, in_thread

TARGETS = ("raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi")

QEMU_NAMES = {"raw": "raw", "iso": "raw", "qcow2": "qcow2", "vmdk": "vmdk", "vhd": "vpc", "vhdx": "vhdx", "vdi": "vdi"}
# Without force_size a vhd's size is rounded up to cylinders, and the machine sees another disk than the one that was imported.
OPTIONS = {"vhd": ("-o", "subformat=dynamic,force_size=on"), "vmdk": ("-o", "subformat=monolithicSparse")}

SPACE_CHECK_S = 0.5
OVERHEAD_BYTES = 64 << 20  # of any format's own tables, beside an eighth of the virtual size

CHECKED = ("qcow2", "vmdk")
LEAKS_ONLY, NOT_SUPPORTED = 3, 63  # exit codes of qemu-img check that are no damage

_PERCENT = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")


def needs_conversion(found: str, wanted: str) -> bool:
    """Whether the bytes must change: those of an iso are raw already."""
    return QEMU_NAMES[found] != QEMU_NAMES[wanted]


async def check_image(source: Path, image: Inspected, *, limits: Limits) -> None:
    """The image's own tables are whole.  Without qemu-img nothing is checked: storing an image as it is does not need it.

    Errors: PermanentError with image_damaged.
    """
    if image.format not in CHECKED:
        return
    command = ["qemu-img", "check", "-f", QEMU_NAMES[image.format], str(source)]
    try:
        ended = await run_process(command, limits=_limits(limits, 0), cwd=source.parent)
    except ProgramMissing:
        return
    if ended.code not in (0, LEAKS_ONLY, NOT_SUPPORTED):
        said = " ".join(ended.stderr.decode("utf-8", "replace").split())[:300] or ended.describe()
        raise PermanentError(
            "image_damaged", f"The {image.format} image is damaged or incomplete: {said}", {"format": image.format}
        )


def _limits(limits: Limits, file_bytes: int) -> Limits:
    return Limits(
        memory_bytes=limits.memory_bytes, cpu_s=limits.cpu_s, wall_s=limits.wall_s, file_bytes=file_bytes, open_files=64
    )


async def convert_image(
    source: Path,
    target: Path,
    image: Inspected,
    wanted: str,
    *,
    limits: Limits,
    bytes_max: int,
    on_progress: Callable[[int, int], Awaitable[None]],
) -> Inspected:
    """The image is at `target` in the format `wanted`, checked.  Nothing is at `target` when it raises."""
    room = min(bytes_max, image.virtual_size + image.virtual_size // 8 + OVERHEAD_BYTES)
    command = ["qemu-img", "convert", "-p", "-f", QEMU_NAMES[image.format], "-O", QEMU_NAMES[wanted], *OPTIONS.get(wanted, ())]

    async def read_percent(output: bytes) -> None:
        if found := _PERCENT.findall(output):
            await on_progress(int(image.virtual_size * float(found[-1]) / 100), image.virtual_size)

    made = False
    try:
        converting = run_process(
            [*command, str(source), str(target)],
            limits=_limits(limits, room),
            cwd=target.parent,
            on_output=read_percent,
        )
        ended = await _while_there_is_space(target.parent, converting)
        if not ended.ok:
            raise _failure(ended, image.format, wanted, room)
        result = await _check(target, image, wanted)
        made = True
        return result
    except ProgramMissing:
        raise PermanentError(
            "qemu_img_missing",
            f"The image is {image.format} and {wanted} was asked for, but qemu-img is not installed on this server: "
            "install the package qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL), "
            "or ask for the format that the source has.",
            {"program": "qemu-img", "package": "qemu-utils"},
        ) from None
    finally:
        if not made:
            await in_thread(lambda: target.unlink(missing_ok=True))


async def _while_there_is_space(folder: Path, running: Coroutine[Any, Any, Ended]) -> Ended:
    """What it came to; killed before it takes the last of the disk, which the database may be on.  Errors: RetryableError."""
    task = asyncio.ensure_future(running)
    try:
        while not (await asyncio.wait([task], timeout=SPACE_CHECK_S))[0]:
            if (await in_thread(shutil.disk_usage, folder)).free < SPACE_LEFT_BYTES:
                raise _no_space()
        return task.result()
    finally:
        task.cancel()
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])


async def _check(target: Path, image: Inspected, wanted: str) -> Inspected:
    stop = Stop()
    result = await in_thread(lambda: inspect_image(target, wanted, virtual_bytes_max=1 << 62, stop=stop), stop=stop)
    if result.virtual_size < image.virtual_size:
        raise PermanentError(
            "conversion_failed",
            f"The converted image has a virtual size of {result.virtual_size} bytes, the source {image.virtual_size}.",
        )
    return result


def _no_space() -> RetryableError:
    return RetryableError(
        "no_space",
        "The disk got full while the image was converted: free some space.",
        delay_s=NO_SPACE_DELAY_S,
    )


def _failure(ended: Ended, found: str, wanted: str, room: int) -> Exception:
    if b"No space left on device" in ended.stderr:
        return _no_space()
    if ended.reason == "file_size" or b"File too large" in ended.stderr:
        return PermanentError(
            "converted_too_large",
            f"As {wanted} the image would have more than the {room} bytes that are allowed.",
            {"allowed": room},
        )
    return PermanentError(
        "conversion_failed",
        f"qemu-img could not convert the image from {found} to {wanted} ({ended.describe()}).",
        {"exit_code": ended.code, "reason": ended.reason},
    )


__all__ = ["TARGETS", "check_image", "convert_image", "needs_conversion"]
