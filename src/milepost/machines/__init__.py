"""Virtual machines: one QEMU process each, started with the least it needs, controlled over QMP.  Knows no jobs and no store.

| module     | what it does                                                                     |
|------------|----------------------------------------------------------------------------------|
| value      | what a machine is to be made of                                                  |
| command    | the command line and the hot-plugged parts as pure functions of that value       |
| accel      | whether KVM really works here                                                    |
| launch     | starts the process: detached, limited, without privileges; knows it again later  |
| qmp        | one conversation with a running QEMU                                             |
| machine    | a machine in its folder: start, find again, observe, stop, kill, plug and unplug |

Rules
1. A machine is its folder.  What is in it (`process`, `pid`, `qmp.sock`) is enough to find the process again after a restart of
   whoever started it; nothing is kept in memory that is needed later.
2. A process is known by its number, its start time and the boot of the host: a reused number is never taken for a machine.
3. QEMU removes `pid` when it ends in order.  So: process gone and `pid` gone is a machine that was shut down; process gone and
   `pid` there is one that crashed or was killed.
4. Every call may be repeated: what is done already is found done.
"""

from __future__ import annotations

from milepost.machines.machine import Machine, MachineError, QemuMissing, Seen, Standing, check_installed, list_machines
from milepost.machines.value import Card, CdRom, DiskPart, MachineSpec

__all__ = [
    "Card",
    "CdRom",
    "DiskPart",
    "Machine",
    "MachineError",
    "MachineSpec",
    "QemuMissing",
    "Seen",
    "Standing",
    "check_installed",
    "list_machines",
]
