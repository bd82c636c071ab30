"""What the tests of forked children share: where the functions are, and how a test waits for what they do."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from milepost.forkserver import ForkServer
from milepost.process import Limits

MODULE = "forked_functions"
LOOSE = Limits(wall_s=60)


@asynccontextmanager
async def forking() -> AsyncIterator[ForkServer]:
    made = ForkServer([MODULE], path=[str(Path(__file__).parent), *sys.path])
    yield made
    await made.close()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):  # the second when it ends between open and read
        return False


async def until(condition: Callable[[], object], deadline_s: float = 60.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        await asyncio.sleep(0.01)
