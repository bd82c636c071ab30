"""Is the process alive, and can it take and run jobs."""

from __future__ import annotations

import asyncio

import msgspec

from milepost.errors import MilepostError
from milepost.server.http import Call, Reply
from milepost.server.state import AppState
from milepost.wire.native import encode

PING_S = 5.0


class Health(msgspec.Struct, omit_defaults=True):
    """`reasons` says what is missing; it is left out when nothing is."""

    status: str
    reasons: list[str] = []


async def healthz(_: Call) -> Reply:
    """The process answers; nothing else is looked at."""
    return Reply(200, encode(Health("ok")))


async def readyz(call: Call) -> Reply:
    """200 while the store takes writes and the engine runs, else 503 with the reasons."""
    reasons = [reason for reason in (await _store(call.state), _engine(call.state)) if reason is not None]
    if reasons:
        return Reply(503, encode(Health("not ready", reasons)), [(b"retry-after", b"1")])
    return Reply(200, encode(Health("ready")))


async def _store(state: AppState) -> str | None:
    try:
        async with asyncio.timeout(PING_S):
            await state.store.ping()
    except TimeoutError:
        return f"the store did not confirm a write within {PING_S:g} s"
    except MilepostError as error:
        return f"the store does not take writes: {error.code}"
    return None


def _engine(state: AppState) -> str | None:
    if state.engine is None:
        return "the engine has not started"
    if not getattr(state.engine, "running", True):
        return "the engine is stopping"
    return None
