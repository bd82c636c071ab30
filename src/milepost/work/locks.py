"""Locks between attempts of one job, in whatever process: held on a file, let go of by the system when a process dies."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

from milepost import Snooze

LOCK_WAIT_S = 10.0
LOCK_POLL_S = 0.02


@contextlib.asynccontextmanager
async def locked(
    path: Path, *, wait_s: float = LOCK_WAIT_S, note: str = "another attempt has not stopped yet"
) -> AsyncIterator[None]:
    """Nobody else holds the file's lock inside the block.  Errors: Snooze after `wait_s`.

    Polled, because a thread that waits for the lock would take a place that its holder may need.
    """
    with path.open("wb") as file:
        for _ in range(int(wait_s / LOCK_POLL_S) + 1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(LOCK_POLL_S)
        else:
            raise Snooze(wait_s, note)
        yield


async def finish_anyway(cleanup: Coroutine[Any, Any, Any]) -> None:
    """The cleanup ends also when its task is cancelled once more."""
    task = asyncio.ensure_future(cleanup)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()


__all__ = ["finish_anyway", "locked"]
