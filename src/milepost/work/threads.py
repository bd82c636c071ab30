"""Blocking steps of coroutines, in threads that never outlive the step."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """The caller of this thread was cancelled."""


class Stop:
    """What a long step looks at between its pieces."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Errors: Stopped."""
        if self._event.is_set():
            raise Stopped


async def in_thread(function: Callable[..., T], *args: Any, stop: Stop | None = None) -> T:
    """What the function returns, run in a thread.  When the caller is cancelled, the thread is told and waited for first.

    So nobody cleans up, or starts again, beside a thread that still writes.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if stop is not None:
            stop.set()
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await asyncio.shield(work)
        if not work.cancelled():
            work.exception()  # taken, so that nobody warns of it
        raise
