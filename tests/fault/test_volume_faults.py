"""Kills, a full disk and lost files in the middle of work on volumes: nothing is lost, nothing is orphaned.

What must hold is read from the database file and the folder, never from the server.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_rig import House, Server, Traffic, traffic, until
from image_source import ImageSource, file
from test_full_disk import fill, small_disk

from milepost.testing import killpoints

pytestmark = [pytest.mark.fault, pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")]

MIB, GIB = 1 << 20, 1 << 30
SPEC = {"size": 10, "volume_type": "SSD", "name": "disk"}
CREATE = ["taken", "linked", "made", "placed", "noted", "released"]
EXTEND = ["taken", "grown", "noted", "released"]
DELETE = ["taken", "wiping", "wiped", "removed", "noted", "gone"]
__all__ = ["small_disk"]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "house")
    yield house
    house.close()


def test_every_point_of_the_work_on_volumes_is_in_a_chain() -> None:
    points = {point.removeprefix("volume.") for point in killpoints.points() if point.startswith("volume.")}
    assert points == {*CREATE, *EXTEND, *DELETE}


async def submit(calls: Traffic, kind: str, **spec: Any) -> str:
    status, job = await calls.post("/jobs", {"kind": kind, "input": spec})
    assert status == 202, job
    calls.acknowledge([job["id"]])
    return str(job["id"])


async def ended(house: House, server: Server, kind: str, /, **spec: Any) -> dict[str, Any]:
    """The job, once it and all others are final."""
    async with traffic(house, server) as calls:
        job_id = await submit(calls, kind, **spec)
    house.wait_all()
    ((state, result, error),) = house.ask("SELECT state, result, error FROM job WHERE id = ?", job_id)
    return {"state": state, "result": json.loads(result or "null"), "error": json.loads(error or "null")}


def volumes(house: House) -> list[dict[str, Any]]:
    return [json.loads(row[0]) for row in house.ask("SELECT doc FROM resource WHERE type = 'volume' ORDER BY created_us, id")]


def files(house: House) -> list[str]:
    folder = house.data / "volumes"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def check_volumes(house: House) -> list[dict[str, Any]]:
    """Every record is at rest and has its file, of its size; every file has its record."""
    found = volumes(house)
    expected = []
    for volume in found:
        assert (volume["job_id"], volume["size_asked_gib"], volume["status_before"]) == (None, None, None), volume
        if volume["status"] == "available":
            expected += [name for name in (volume["file"], volume["backing_file"]) if name is not None]
            path = house.data / "volumes" / volume["file"]
            shown = json.loads(
                subprocess.run(["qemu-img", "info", "--output=json", path], capture_output=True, check=True).stdout
            )
            assert (shown["format"], shown["virtual-size"]) == (volume["format"], volume["size_gib"] * GIB)
            if volume["format"] == "qcow2":
                subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], check=True)
        else:
            assert volume["status"].startswith("error"), volume
            expected += [volume["file"]] if volume["file"] is not None else []
    assert files(house) == sorted(expected)
    return found


async def make_image(house: House, server: Server, data: bytes) -> str:
    with ImageSource() as source:
        source.answers["/disk"] = file(data)
        properties = {"disk_format": "raw", "container_format": "bare"}
        wanted = {"import_from": source.url("/disk"), "import_from_format": "raw", "image_properties": properties}
        job = await ended(house, server, "import", **wanted)
    return str(job["result"]["image_id"])


async def kill_at_each(house: House, points: list[str], kind: str, **spec: Any) -> None:
    """A chain of servers that each die at their point, and one that lives to the end."""
    for number, point in enumerate(points):
        server = house.start(f"volume.{point}")
        if number == 0:
            async with traffic(house, server) as calls:
                await submit(calls, kind, **spec)
        until(lambda: house.servers[-1].dead, what=point, deadline_s=60)
        house.die(server)
    server = house.start()
    house.wait_all()
    assert server.stop() == 0, server.said()
    assert house.check()["kills"] == len(points)
    (row,) = house.ask("SELECT state, error, crashes FROM job WHERE kind = ?", kind)
    assert row == ("succeeded", None, len(points))


async def test_a_create_that_is_killed_at_every_step_makes_one_whole_volume(house: House) -> None:
    data = random.Random(1).randbytes(3 * MIB)
    server = house.start()
    image_id = await make_image(house, server, data)
    assert server.stop() == 0
    await kill_at_each(house, CREATE, "createVolume", volume={**SPEC, "image_id": image_id})
    (volume,) = check_volumes(house)
    assert (volume["status"], volume["name"]) == ("available", "disk")
    raw = house.folder / "raw"
    command = ["qemu-img", "dd", "-f", "qcow2", "-O", "raw", "bs=1M", "count=3"]
    subprocess.run([*command, f"if={house.data / 'volumes' / volume['file']}", f"of={raw}"], check=True, capture_output=True)
    assert raw.read_bytes() == data


@pytest.mark.parametrize("format", ["raw", "qcow2"])
async def test_an_extend_that_is_killed_at_every_step_grows_the_volume_once(house: House, format: str) -> None:
    server = house.start()
    made = await ended(house, server, "createVolume", volume={**SPEC, "format": format})
    assert server.stop() == 0
    await kill_at_each(house, EXTEND, "extendVolume", volume_id=made["result"]["volume_id"], new_size=25)
    (volume,) = check_volumes(house)
    assert (volume["size_gib"], volume["status"]) == (25, "available")


async def test_a_delete_that_is_killed_at_every_step_leaves_nothing(house: House) -> None:
    server = house.start()
    made = await ended(house, server, "createVolume", volume=SPEC)
    path = house.data / "volumes" / f"{made['result']['volume_id']}.raw"
    with path.open("r+b") as volume:
        volume.write(b"secret" * MIB)
    kept = house.folder / "kept"
    kept.hardlink_to(path)
    assert server.stop() == 0
    await kill_at_each(house, DELETE, "deleteVolume", volume_id=made["result"]["volume_id"])
    assert (check_volumes(house), files(house)) == ([], [])
    with kept.open("rb") as wiped:
        assert wiped.read(6 * MIB) == bytes(6 * MIB)


@pytest.mark.parametrize(
    "point", ["volume.taken:3", "volume.placed:5", "volume.released:9", "suspend.half:4", "settle.committed:2"]
)
async def test_a_batch_of_ten_that_is_killed_in_its_middle_makes_ten_volumes(house: House, point: str) -> None:
    server = house.start(point)
    async with traffic(house, server) as calls:
        await submit(calls, "batchCreateVolume", volume=SPEC, count=10)
    until(lambda: server.dead, what=point)
    house.die(server)
    server = house.start()
    house.wait_all()
    assert server.stop() == 0
    house.check()
    assert sorted(volume["name"] for volume in check_volumes(house)) == [f"disk-{number:04d}" for number in range(1, 11)]


async def test_a_create_whose_workers_all_die_is_left_in_error_without_a_file(house: House) -> None:
    house.settings["crashes_max"] = 2
    for number in range(2):
        server = house.start("volume.made")
        if number == 0:
            async with traffic(house, server) as calls:
                await submit(calls, "createVolume", volume=SPEC)
        until(lambda: house.servers[-1].dead, what="it died")
        house.die(server)
    server = house.start()
    house.wait_all()
    until(lambda: [volume["status"] for volume in volumes(house)] == ["error"], what="the volume shows why")
    assert server.stop() == 0
    (volume,) = check_volumes(house)
    assert volume["fault"]
    assert house.ask("SELECT state FROM job") == [("failed",)]


@pytest.mark.parametrize("kind", ["createVolume", "extendVolume", "deleteVolume"])
async def test_a_job_cancelled_before_it_ran_leaves_the_volume_as_it_was(house: House, kind: str) -> None:
    """Killed with the job accepted and not begun; cancelled by the next server, whose queue is paused."""
    server = house.start()
    made = await ended(house, server, "createVolume", volume=SPEC)
    before = volumes(house)
    async with traffic(house, server) as calls:
        request = calls.http.put(f"{server.url}/queues/volumes").header("content-type", "application/json")
        answer = await request.body_bytes(b'{"paused": true}').build().send()
        assert answer.status in (200, 204), await answer.text()
        volume_id = made["result"]["volume_id"]
        specs = {"createVolume": {"volume": SPEC}, "extendVolume": {"volume_id": volume_id, "new_size": 20}}
        job_id = await submit(calls, kind, **specs.get(kind, {"volume_id": volume_id}))
        assert volumes(house) != before
        house.die(server)
    server = house.start()
    async with traffic(house, server) as calls:
        await calls.post(f"/jobs/{job_id}/cancel")
    until(lambda: [one["job_id"] for one in volumes(house)] == [None], what="it is given back")
    assert server.stop() == 0
    house.check()
    (volume,) = check_volumes(house)
    assert {**volume, "updated_us": 0} == {**before[0], "updated_us": 0}


async def test_a_full_disk_fails_by_name_and_hurts_no_other_volume(house: House, small_disk: Path) -> None:
    """The small disk holds the volumes alone; the database has room."""
    house.data.mkdir()
    (house.data / "volumes").symlink_to(small_disk)
    server = house.start()
    made = await ended(house, server, "createVolume", volume={**SPEC, "format": "qcow2"})
    volume_id = made["result"]["volume_id"]
    filler = small_disk / "filler"
    fill(filler)
    failed = await ended(house, server, "createVolume", volume={**SPEC, "format": "qcow2"})
    assert (failed["state"], failed["error"]["code"]) == ("failed", "disk_full")
    grown = await ended(house, server, "extendVolume", volume_id=volume_id, new_size=32768 - 10)
    assert (grown["state"], grown["error"]["code"]) == ("failed", "disk_full")
    assert sorted((volume["status"], volume["size_gib"]) for volume in volumes(house)) == [("error", 10), ("error_extending", 10)]
    filler.unlink()
    assert files(house) == [f"{volume_id}.qcow2"]
    assert (await ended(house, server, "extendVolume", volume_id=volume_id, new_size=20))["state"] == "succeeded"
    ids = [volume["id"] for volume in volumes(house)]
    assert (await ended(house, server, "bulkDeleteVolume", volume_ids=ids))["state"] == "succeeded"
    assert server.stop() == 0
    assert (check_volumes(house), files(house)) == ([], [])


async def test_one_of_ten_that_fails_ends_its_parent_and_not_its_siblings(house: House) -> None:
    server = house.start()
    made = await ended(house, server, "batchCreateVolume", volume=SPEC, count=10)
    ids = made["result"]["volume_ids"]
    (house.data / "volumes" / f"{ids[3]}.raw").unlink()
    job = await ended(house, server, "batchExtendVolume", volumes=[{"volume_id": one, "new_size": 11} for one in ids])
    assert server.stop() == 0
    house.check()
    assert job["error"]["code"] == "sub_jobs_failed"
    assert "1 of 10" in job["error"]["message"]
    states = house.ask(
        "SELECT position, state, json_extract(error, '$.code') FROM job WHERE kind = 'extendVolume' ORDER BY position"
    )
    assert states == [(at, "failed" if at == 3 else "succeeded", "volume_extend_failed" if at == 3 else None) for at in range(10)]
    by_id = {volume["id"]: volume for volume in volumes(house)}
    assert {by_id[one]["size_gib"] for one in ids if one != ids[3]} == {11}
    assert by_id[ids[3]]["status"] == "error_extending"
