"""Taking back what a job has done when it does not go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from milepost import PermanentError, Running
from milepost.work.locks import finish_anyway


@contextlib.asynccontextmanager
async def undone(job: Running, undo: Callable[[Exception | None], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Undoes what the block did when the job ends by it: cancelled (with None), failed for good, or failed in its last attempt.

    An attempt that another one follows undoes nothing: after a failure that is tried again, and when the server stops.
    """
    try:
        yield
    except asyncio.CancelledError:
        if not job.stopping:
            await finish_anyway(undo(None))
        raise
    except Exception as error:
        if job.last_attempt or isinstance(error, PermanentError):
            await finish_anyway(undo(error))
        raise


__all__ = ["undone"]
