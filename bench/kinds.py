"""The kinds that the figures run: one does nothing, so that all that is measured is around it; one takes its time."""

from __future__ import annotations

import asyncio

import milepost


@milepost.kind("noop")
async def noop(_job: milepost.Running) -> None:
    """Does nothing."""


class Nap(milepost.Struct):
    seconds: float
    fails: bool = False


@milepost.kind("nap")
async def nap(_job: milepost.Running, spec: Nap) -> float:
    """Takes its time, for those who wait for it."""
    await asyncio.sleep(spec.seconds)
    if spec.fails:
        raise milepost.PermanentError("asked_to_fail", "as its input says")
    return spec.seconds
