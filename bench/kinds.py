"""The kind that the figures run: it does nothing, durably, so that what is measured is everything around it."""

from __future__ import annotations

import milepost


@milepost.kind("noop")
async def noop(_job: milepost.Running) -> None:
    """Does nothing."""
