"""Kills in the middle of media commands: ended items are not run again, the others are, and each output is there once."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_rig import House, children_of, is_gone, traffic, until

from milepost.bucket import StoredObject, decode_object, etag
from milepost.clock import SystemClock
from milepost.job import ProjectId
from milepost.settings import Settings
from milepost.store.buckets import Buckets
from milepost.store.objects import open_objects
from milepost.testing import killpoints
from milepost.wiring import open_store
from milepost.work.media.grammar import encode_entry

pytestmark = pytest.mark.fault

POINTS = [point for point in killpoints.points() if point.startswith("fop.")]
SLOW = "imageMogr2/thumbnail/6000x/rotate/180/blur/20x9/thumbnail/2000x/format/webp"  # seconds


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "house", media_concurrency=1)
    asyncio.run(furnish(house))
    yield house
    house.close()


async def furnish(house: House) -> None:
    """A bucket with a photo, put there before a server runs."""
    house.data.mkdir(parents=True, exist_ok=True)
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    data = (Path(spec.submodule_search_locations[0]) / "datasets" / "images" / "china.jpg").read_bytes()
    copy = house.folder / "china.jpg"
    copy.write_bytes(data)
    clock, project = SystemClock(), ProjectId("default")
    async with open_store(Settings.read({}, data=str(house.data))) as store:
        buckets = Buckets(store, open_objects(None, house.data), clock.now_us)
        await buckets.create_bucket("media", project, private=True, region="z0", buckets_max=9)
        new = StoredObject(
            key="in.jpg",
            hash=etag(data),
            size_bytes=len(data),
            put_us=clock.now_us(),
            object_key=await buckets.keep(copy, project),
        )
        await buckets.put(await buckets.find_bucket("media"), new, overwrite=True)


async def submit(house: House, server: Any, *cmds: str) -> str:
    async with traffic(house, server) as calls:
        status, job = await calls.post(
            "/jobs", {"kind": "pfop", "input": {"bucket": "media", "key": "in.jpg", "fops": list(cmds)}}
        )
        assert status == 202, job
        calls.acknowledge([job["id"]])
        return str(job["id"])


def objects(house: House) -> dict[str, StoredObject]:
    rows = house.ask("SELECT id, doc FROM resource WHERE type = 'object/media'")
    return {key: decode_object(bytes(doc) if isinstance(doc, bytes) else doc.encode()) for key, doc in rows}


def check_objects(house: House) -> None:
    """Each object has its own whole bytes, and there are no others, once what was left is swept."""
    seen = objects(house)
    for key, stored in seen.items():
        assert etag((house.data / "objects" / stored.object_key).read_bytes()) == stored.hash, key
    files = {
        str(path.relative_to(house.data / "objects"))
        for path in (house.data / "objects" / "buckets").rglob("*")
        if path.is_file()
    }
    loose = {row[0] for row in house.ask("SELECT id FROM resource WHERE type = 'loose'")}
    assert files - {stored.object_key for stored in seen.values()} <= loose, "bytes that nothing knows of"


def items(house: House) -> list[tuple[Any, ...]]:
    return house.ask("SELECT state, result, error FROM job WHERE kind = 'fop' ORDER BY position")


def test_every_point_is_killed_at() -> None:
    assert len(POINTS) == 5


@pytest.mark.parametrize("point", POINTS)
async def test_an_item_that_is_killed_anywhere_stores_its_output_once(house: House, point: str) -> None:
    cmds = [f"imageView2/2/w/{width}|saveas/" + encode_entry("media", f"out/{width}.jpg") for width in (100, 200)]
    server = house.start(point)
    await submit(house, server, *cmds)
    until(lambda: server.dead, what=point)
    house.die(server)
    server = house.start()
    house.wait_all()
    for state, result, error in items(house):
        assert (state, error) == ("succeeded", None)
        found = json.loads(result)
        assert found["return_old"] == 0, "what this very job stored is not old"
        assert objects(house)[found["key"]].hash == found["hash"]
    check_objects(house)
    until(lambda: not list((house.data / "scratch").iterdir()), what="the scratch folder is empty")
    assert server.stop() == 0
    house.check()


@pytest.mark.timeout(600)
async def test_items_that_had_ended_are_not_run_again_after_a_kill_in_the_middle(house: House) -> None:
    server = house.start()
    job_id = await submit(house, server, "imageView2/2/w/100", SLOW, "imageInfo")
    until(lambda: [row[0] for row in items(house)].count("succeeded") >= 1, what="one item has ended")
    until(lambda: any(children_of(child) for child in children_of(server.process.pid)), what="a command runs in a forked child")
    family = [pid for child in children_of(server.process.pid) for pid in (child, *children_of(child))]
    ended = {row[0] for row in house.ask("SELECT id FROM job WHERE kind = 'fop' AND state = 'succeeded'")}
    house.die(server)
    until(lambda: all(is_gone(pid) for pid in family), what="the children have died with the server")
    server = house.start()
    house.wait_all(deadline_s=300)
    assert [row[0] for row in items(house)] == ["succeeded"] * 3
    for item in ended:
        starts = house.ask("SELECT COUNT(*) FROM event WHERE job_id = ? AND type = 'started'", item)
        assert starts == [(1,)], "an item that had ended was run again"
    assert house.ask("SELECT state FROM job WHERE id = ?", job_id) == [("succeeded",)]
    check_objects(house)
    assert server.stop() == 0
    house.check()
