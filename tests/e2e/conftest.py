from __future__ import annotations

from collections.abc import Iterator

import pytest
from rig import Server

KINDS = '''
import asyncio
import milepost

class Fan(milepost.Struct):
    n: int = 3
    fail: list[int] = []

class Part(milepost.Struct):
    fail: bool = False

@milepost.kind("part")
async def part(job: milepost.Running, spec: Part) -> str:
    """One part."""
    if spec.fail:
        raise milepost.PermanentError("broken", "the part is broken")
    return "ok"

@milepost.kind("fan")
async def fan(job: milepost.Running, spec: Fan) -> list[str]:
    """Several parts."""
    return await job.run_sub_jobs([milepost.SubJob(kind="part", input={"fail": i in spec.fail}) for i in range(spec.n)])
'''


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that do not hurt it."""
    folder = tmp_path_factory.mktemp("e2e")
    (folder / "fankinds.py").write_text(KINDS)
    one = Server(folder, "fankinds.py", MILEPOST_STOP_GRACE_S="1")  # of jobs that no test waits for
    one.start()
    yield one
    assert one.end() == 0


@pytest.fixture
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that the test may kill; not started."""
    one = Server(tmp_path_factory.mktemp("own"))
    yield one
    one.end()
