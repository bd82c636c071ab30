"""Who has a volume's file open: a disk that somebody may still write to is neither freed nor deleted.

Theory: two looks, because each misses something.  QEMU locks a file that it has open, which the kernel tells everybody, also of a
process in another container; a file of a volume that machines share is not locked.  /proc names every open file of a process, but
only of those that this user may look at.
Source: qemu block/file-posix.c, "raw_check_lock_bytes" (open file description locks on bytes 100 to 299).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

FLOCK = "hhqqi4x"  # struct flock of Linux on 64 bits: type, whence, start, length, pid
LOCKED_FROM, LOCKED_BYTES = 100, 200


def opener_of(path: Path) -> str | None:
    """Who, beside this process, has the file open, in words for a log or a fault; None: nobody that can be seen."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return None
    for pid in _processes(there):
        return f"process {pid} ({_name(pid)})"
    return "a process that has locked it" if _is_locked(path) else None


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, LOCKED_FROM, LOCKED_BYTES, 0)
        told = struct.unpack(FLOCK, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
    except OSError:  # a file system without such locks
        return False
    finally:
        os.close(descriptor)
    return bool(told[0] != fcntl.F_UNLCK)


def _processes(there: os.stat_result) -> Iterator[int]:
    own = os.getpid()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != own and _has(entry.name, there):
            yield int(entry.name)


def _has(pid: str, there: os.stat_result) -> bool:
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:  # it ended, or is somebody else's
        for entry in entries:
            with contextlib.suppress(OSError):
                found = Path(entry.path).stat()
                if (found.st_dev, found.st_ino) == (there.st_dev, there.st_ino):
                    return True
    return False


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "ended"


__all__ = ["opener_of"]
