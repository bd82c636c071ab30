"""What uploads leave behind when nobody ends them: expired ones with their parts, bytes without an object, unfinished files."""

from __future__ import annotations

import asyncio

from milepost.server.facades.qiniu.blocks import sweep_blocks
from milepost.server.facades.qiniu.incoming import objects_of, sweep_spool
from milepost.server.facades.qiniu.parts import sweep_uploads
from milepost.server.state import AppState
from milepost.store import loose

FILE_S = 3600.0  # a file that nobody wrote to for so long is nobody's


async def sweep(state: AppState) -> int:
    """Run by the engine's pruner.  How many things were removed."""
    if state.objects is None:
        return 0
    object_store, now_us = objects_of(state), state.clock.now_us()
    count = await sweep_uploads(state.store, object_store, now_us=now_us)
    count += await sweep_blocks(state.store, object_store, now_us=now_us)
    count += await loose.sweep(state.store, object_store, now_us=now_us)
    return count + await asyncio.to_thread(sweep_spool, state, older_s=FILE_S)


__all__ = ["sweep"]
