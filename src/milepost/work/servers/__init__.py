"""Servers: virtual machines on this host, run by QEMU.

| module    | what it does                                                                   |
|-----------|--------------------------------------------------------------------------------|
| spec      | inputs and results of the kinds                                                |
| admission | what is checked and reserved at submit: states, names, quotas                  |
| power_admission, parts | the same for servers that are there; for their disks and network cards |
| kinds     | the kinds                                                                      |
| change    | a server in the hands of a running job: taken, changed, given back             |
| house     | the record's machine: what it is made of, its folder                           |
| building  | create, another system on the same server                                      |
| power     | start, stop, reboot, resize, delete                                            |
| plugging  | disks and network cards come and go                                            |
| shared    | a volume that several servers have                                             |
| sweep     | what ended jobs left, and what became of machines that nobody looked at        |
"""

from __future__ import annotations

import milepost.work.servers.kinds
import milepost.work.servers.shared  # noqa: F401  (both register theirs)
