"""One process without its loops."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from engine_house import House, open_house


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path / "scratch") as opened:
        yield opened


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is logged is not what is tested here, and the default form of a traceback costs seconds."""
    before = structlog.get_config()
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])
    yield
    structlog.configure(**before)
