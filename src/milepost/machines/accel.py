"""Whether KVM really works here: asked by running something on it.

A /dev/kvm that can be opened says little: inside of some virtual machines it is there and its guests stand still, or run forty
times slower than emulated ones.  So a machine of 512 bytes is booted, whose only act is to end QEMU with a certain code.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from milepost.machines.command import PROGRAM
from milepost.machines.value import Accel
from milepost.process import Limits, ProgramMissing, run_process

PROBE_S = 3.0  # where KVM works this takes a quarter of a second
WRITES = 0x10
ENDS_WITH = WRITES << 1 | 1  # what isa-debug-exit makes of it
# mov al, 0x10; out 0xf4, al; hlt; jmp -3
BOOT_SECTOR = bytes([0xB0, WRITES, 0xE6, 0xF4, 0xF4, 0xEB, 0xFD]).ljust(510, b"\0") + b"\x55\xaa"

_found: list[Accel] = []  # what was found out, once a process


async def find_accel() -> Accel:
    """`kvm` where it works, else `tcg`; found out once.  Errors: ProgramMissing."""
    if not _found:
        _found.append("kvm" if await _kvm_works() else "tcg")
    return _found[0]


async def _kvm_works() -> bool:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    with tempfile.TemporaryDirectory(prefix="milepost-kvm-") as folder:
        disk = Path(folder) / "boot"
        disk.write_bytes(BOOT_SECTOR)
        argv = [PROGRAM, "-nodefaults", "-no-user-config", "-machine", "pc,accel=kvm", "-m", "16", "-display", "none"]
        argv += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-drive", "file=boot,format=raw,if=ide"]
        ended = await run_process(argv, limits=Limits(wall_s=PROBE_S), cwd=Path(folder))
    return ended.code == ENDS_WITH


__all__ = ["ProgramMissing", "find_accel"]
