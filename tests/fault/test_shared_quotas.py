"""Two processes over one database admit together what one would: a quota is the project's, not the process's."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.fault

PROJECTS = 60  # each may have one volume
STEP_S = 0.01
PATIENCE_S = 60

# Opens the store, says so, and asks for one volume in each project, all workers for the same one at the same moment.
WORKER = """
import asyncio, json, sys, time
from milepost.clock import SystemClock
from milepost.dispatch.embedded import EmbeddedDispatch
from milepost.engine.service import Service
from milepost.errors import LimitExceeded
from milepost.job import ProjectId
from milepost.settings import Settings
from milepost.wiring import load_kinds, open_store

async def main(data, projects, step_s):
    settings = Settings(data=data, volumes_max=1)
    clock = SystemClock()
    async with open_store(settings, lock=False) as store:
        service = Service(store, EmbeddedDispatch(clock), load_kinds(), clock, settings)
        print("ready", flush=True)
        begin_s = float(sys.stdin.readline())

        async def one(project):
            given = service.submission(
                "createVolume",
                input=json.dumps({"volume": {"size": 10, "volume_type": "SSD"}}).encode(),
                project=ProjectId(project),
            )
            try:
                return (await service.submit(given)).job.id
            except LimitExceeded as error:
                return error.fields["reason"]

        told = []
        for number in range(projects):
            await asyncio.sleep(max(0, begin_s + number * step_s - time.time()))
            told.append(await one(f"p{number}"))
        print(json.dumps(told), flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
"""


def test_two_processes_admit_no_more_volumes_than_the_quota(tmp_path: Path) -> None:
    """They also open the new database at the same moment."""
    data = tmp_path / "data"
    argv = [sys.executable, "-c", WORKER, str(data), str(PROJECTS), str(STEP_S)]
    workers = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        begin_s = time.time() + 0.1
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(f"{begin_s}\n")
            worker.stdin.flush()
        told: list[list[Any]] = [json.loads(worker.communicate(timeout=PATIENCE_S)[0]) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    for both in zip(*told, strict=True):
        assert both.count("volume_quota") == 1, "both were admitted, or none"
    with sqlite3.connect(data / "milepost.db") as database:
        assert database.execute("SELECT count(*), count(DISTINCT project) FROM resource WHERE type = 'volume'").fetchone() == (
            PROJECTS,
            PROJECTS,
        )
        assert database.execute("SELECT count(*) FROM job WHERE kind = 'createVolume'").fetchone() == (PROJECTS,)
