"""Every test of this folder runs on every store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from store_house import DURABLE, STORES, House, open_house


@pytest.fixture(params=STORES)
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
def store(house: House) -> Any:
    return house.store


@pytest.fixture(params=DURABLE)
async def durable(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    """A store that survives its process."""
    async with open_house(request.param, tmp_path) as opened:
        yield opened
