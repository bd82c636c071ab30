"""Volumes that running machines have open: only the machine's QEMU may change such a file."""

from __future__ import annotations

from pathlib import Path

from milepost import PermanentError
from milepost.volume import Volume


async def grow_live(data: Path, volume: Volume, size_bytes: int) -> bool:
    """Whether a running machine has the volume; it then has at least this size, and the guest sees it.

    Errors: PermanentError (`volume_extend_failed`) with QEMU's words.
    """
    if not volume.attachments:
        return False
    from milepost.machines import Machine, MachineError

    grown = False
    for attachment in volume.attachments:
        machine = Machine(data / "servers" / attachment.server_id)
        if not machine.look().running:
            continue
        try:
            await machine.resize_disk(volume.id, size_bytes)
        except MachineError as error:
            if machine.look().running:
                raise PermanentError("volume_extend_failed", f"Server {attachment.server_id} has the volume: {error}") from error
        else:
            grown = True
    return grown


__all__ = ["grow_live"]
