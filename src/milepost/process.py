"""Programs run with limits: what heavy or untrusted work runs in.  Imports nothing of ours."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one subprocess may take; None: no limit of ours."""

    memory_bytes: int | None = None  # address space
    cpu_s: int | None = None  # processor time
    file_bytes: int | None = None  # largest file it may write
    wall_s: float | None = None
    open_files: int | None = 256
