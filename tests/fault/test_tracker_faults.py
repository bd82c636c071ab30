"""The tracker against a second server: the tracking one is killed at random moments, and nothing is lost or comes twice."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_rig import House, Server, traffic

pytestmark = pytest.mark.fault

JOBS = int(os.environ.get("TRACKED_JOBS", "300"))
DEADLINE_S = max(60.0, JOBS / 40)
KILLS = 6
TRACKING = {
    "track_first_s": 0.05,
    "track_cap_s": 1.0,
    "track_rate_per_s": 40,
    "crashes_max": 1,
}  # of other kinds: these have no limit


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "cloud", claim_poll_s=0.2, queue_limit=2000)
    yield house
    house.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "home", **TRACKING)
    yield house
    house.close()


async def submit_foreign(cloud: House, server: Server, dice: random.Random, count: int) -> list[str]:
    """Sleepers of all lengths, and some that fail."""
    ids: list[str] = []
    async with traffic(cloud, server) as calls:
        for start in range(0, count, 100):
            bodies = []
            for number in range(start, min(start + 100, count)):
                if number % 10 == 0:
                    bodies.append({"kind": "flaky", "input": {"permanent": True}})
                else:
                    bodies.append({"kind": "sleep", "input": {"duration_s": dice.uniform(0, 6), "steps": 2}})
            status, page = await calls.post("/jobs", bodies)
            assert status == 202, page
            ids += [job["id"] for job in page["jobs"]]
    return ids


async def track_all(home: House, server: Server, endpoint: str, ids: list[str]) -> set[str]:
    """Those that were acknowledged; each may be asked for again."""
    told: set[str] = set()
    async with traffic(home, server) as calls:
        for start in range(0, len(ids), 20):
            some = ids[start : start + 20]
            handles = [{"handle": {"wire": "native", "endpoint": endpoint, "id": job_id}} for job_id in some]
            answers = await asyncio.gather(*(calls.post("/tracked", handle) for handle in handles))
            told |= {job_id for job_id, (status, _) in zip(some, answers, strict=True) if status in (200, 202)}
    return told


async def test_every_end_arrives_once_however_often_the_tracker_is_killed(cloud: House, home: House) -> None:
    dice = random.Random(20261122)
    foreign = cloud.start()
    ids = await submit_foreign(cloud, foreign, dice, JOBS)
    left = set(ids)
    for _ in range(KILLS):
        server = home.start()
        asyncio.get_running_loop().call_later(dice.uniform(0.1, 0.8), lambda server=server: home.die(server))
        left -= await track_all(home, server, foreign.url, sorted(left))
        end_s = time.monotonic() + DEADLINE_S
        while not server.dead:
            assert time.monotonic() < end_s, "the server was not killed in time"
            await asyncio.sleep(0.01)
    server = home.start()
    left -= await track_all(home, server, foreign.url, sorted(left))
    assert left == set()
    home.wait_all(deadline_s=DEADLINE_S)
    assert server.stop() == 0
    home.check()
    check_mirror(cloud, home, ids)


def check_mirror(cloud: House, home: House, ids: list[str]) -> None:
    there = {row[0]: row for row in cloud.ask("SELECT id, state, result, error FROM job")}
    here: dict[str, tuple[Any, ...]] = {}
    for input, state, result, error in home.ask("SELECT input, state, result, error FROM job WHERE kind = 'track'"):
        foreign_id = json.loads(input)["handle"]["id"]
        assert foreign_id not in here, "one foreign job, two tracked ones"
        here[foreign_id] = (foreign_id, state, result, error)
    assert set(here) == set(ids)
    for job_id, (_, state, result, error) in here.items():
        assert state == there[job_id][1], error
        assert (result and json.loads(result)) == (there[job_id][2] and json.loads(there[job_id][2]))
        if state == "failed":
            assert json.loads(error)["code"] == json.loads(there[job_id][3])["code"] == "asked_to_fail"
    assert Counter(state for _, state, _, _ in here.values()) == {
        "failed": len(ids) // 10,
        "succeeded": len(ids) - len(ids) // 10,
    }


async def test_a_cloud_that_is_killed_makes_its_jobs_stale_and_goes_on_with_them(cloud: House, home: House) -> None:
    foreign = cloud.start()
    async with traffic(cloud, foreign) as calls:
        status, page = await calls.post("/jobs", [{"kind": "sleep", "input": {"duration_s": 1.5}} for _ in range(50)])
    assert status == 202
    ids, url = [job["id"] for job in page["jobs"]], foreign.url
    server = home.start()
    assert await track_all(home, server, url, ids) == set(ids)
    cloud.die(foreign)

    def stale() -> int:
        found: int = home.ask("SELECT COUNT(*) FROM job WHERE progress LIKE '%stale since%'")[0][0]
        return found

    end_s = time.monotonic() + DEADLINE_S
    while stale() < len(ids):
        assert time.monotonic() < end_s, stale()
        await asyncio.sleep(0.05)
    assert home.ask("SELECT COUNT(*) FROM job WHERE ended_us IS NOT NULL") == [(0,)]
    again = cloud.start(port=int(url.rpartition(":")[2]))
    assert again.url == url
    home.wait_all(deadline_s=DEADLINE_S)
    assert home.ask("SELECT state, COUNT(*) FROM job GROUP BY state") == [("succeeded", len(ids))]
    assert home.ask("SELECT COUNT(*) FROM event WHERE type = 'progress' AND data LIKE '%stale since%'")[0][0] >= len(ids)
