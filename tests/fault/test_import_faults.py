"""Kills and cancels in the middle of an image import: it goes on where it was, or leaves nothing behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_rig import House, Traffic, children_of, is_gone, traffic, until
from image_source import Asked, ImageSource, file

from milepost.testing import killpoints

pytestmark = pytest.mark.fault

MIB = 1 << 20
POINTS = [point for point in killpoints.points() if point.startswith("import.")]
needs_qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "house", progress_every_s=0.05)
    yield house
    house.close()


@pytest.fixture
def source() -> Iterator[ImageSource]:
    with ImageSource() as source:
        yield source


def image(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def stalls_at(data: bytes, offset: int) -> Any:
    """The first request gets the file up to `offset` and then nothing more; later ones get all that they ask for."""
    whole = file(data)

    def answer(asked: Asked) -> None:
        if asked.count > 0:
            whole(asked)
            return
        asked.head("200 OK", Content_Length=len(data), ETag='"v1"', Accept_Ranges="bytes")
        asked.send(data[:offset])
        source_is_gone(asked)

    return answer


def source_is_gone(asked: Asked) -> None:
    """Hold the connection until the other end is gone."""
    asked.sock.settimeout(30)
    asked.sock.recv(1)


async def submit(house: House, calls: Traffic, url: str, disk_format: str = "raw") -> str:
    properties = {"disk_format": disk_format, "container_format": "bare", "name": "disk"}
    wanted = {"import_from": url, "import_from_format": "raw", "image_properties": properties}
    status, job = await calls.post("/jobs", {"kind": "import", "input": wanted})
    assert status == 202, job
    calls.acknowledge([job["id"]])
    return str(job["id"])


def images(house: House) -> list[dict[str, Any]]:
    return [json.loads(row[0]) for row in house.ask("SELECT doc FROM resource WHERE type = 'image'")]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def scratch(house: House) -> list[Path]:
    return files(house.data / "scratch")


def check_image_is_whole(house: House) -> Path:
    """One active image, one object with its checksums, nothing else.  The object's file."""
    (shown,) = images(house)
    (stored,) = files(house.data / "objects")
    data = stored.read_bytes()
    assert shown["status"] == "active", shown
    assert shown["size"] == len(data)
    assert shown["checksum"] == hashlib.md5(data).hexdigest()
    assert shown["os_hash_value"] == hashlib.sha512(data).hexdigest()
    until(lambda: scratch(house) == [], what="the scratch folder is empty")
    return stored


def check_nothing_is_left(house: House) -> None:
    until(lambda: scratch(house) == [], what="the scratch folder is empty")
    assert images(house) == []
    assert files(house.data / "objects") == []


async def test_a_fetch_that_was_killed_goes_on_by_range_from_where_it_was(house: House, source: ImageSource) -> None:
    data = image(24 * MIB)
    source.answers["/disk"] = stalls_at(data, 18 * MIB)
    server = house.start()
    async with traffic(house, server) as calls:
        job_id = await submit(house, calls, source.url("/disk"))
    here = house.data / "scratch" / job_id / "source"
    until(lambda: here.exists() and here.stat().st_size >= 12 * MIB, what="a good part is here")
    house.die(server)
    size = here.stat().st_size
    server = house.start()
    house.wait_all()
    assert house.ask("SELECT state, error FROM job") == [("succeeded", None)]
    assert check_image_is_whole(house).read_bytes() == data
    first, second = source.asked
    assert (first.start, second.start) == (None, size), "bytes that were here were fetched again"
    assert second.headers["if-range"] == '"v1"'
    assert server.stop() == 0
    house.check()


@needs_qemu
async def test_an_import_that_is_killed_at_every_step_in_turn_makes_one_whole_image(house: House, source: ImageSource) -> None:
    data = image(9 * MIB)
    source.answers["/disk"] = file(data)
    for number, point in enumerate(POINTS):
        server = house.start(point)
        if number == 0:
            async with traffic(house, server) as calls:
                await submit(house, calls, source.url("/disk"), "qcow2")
        until(lambda: house.servers[-1].dead, what=point, deadline_s=60)
        house.die(server)
    server = house.start()
    house.wait_all()
    assert house.ask("SELECT state, error FROM job") == [("succeeded", None)]
    stored = check_image_is_whole(house)
    raw = house.folder / "raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", stored, raw], check=True)
    assert raw.read_bytes() == data
    assert server.stop() == 0
    house.check()


async def test_a_cancel_in_the_middle_of_a_fetch_leaves_nothing(house: House, source: ImageSource) -> None:
    source.answers["/disk"] = stalls_at(image(12 * MIB), 10 * MIB)
    server = house.start()
    async with traffic(house, server) as calls:
        job_id = await submit(house, calls, source.url("/disk"))
        here = house.data / "scratch" / job_id / "source"
        until(lambda: here.exists() and here.stat().st_size >= 8 * MIB, what="a part is here")
        await calls.post(f"/jobs/{job_id}/cancel")
    house.wait_all()
    assert house.ask("SELECT state FROM job") == [("cancelled",)]
    check_nothing_is_left(house)
    assert server.stop() == 0
    house.check()


def stopped_conversions(server_pid: int) -> list[int]:
    """The conversions under the server that stand still in their middle."""
    found = []
    for pid in children_of(server_pid):
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "T" and b"convert" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


@needs_qemu
@pytest.mark.parametrize("how", ["cancel", "kill and cancel"])
async def test_a_cancel_in_the_middle_of_a_conversion_leaves_nothing(
    how: str, house: House, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("qemu-img")
    bin_ = house.folder / "bin"
    bin_.mkdir()
    # The real program, stopped before its first instruction when it is to convert: so that the cancel comes in its middle.
    (bin_ / "qemu-img").write_text(f'#!/bin/sh\n[ "$1" != convert ] || kill -STOP $$\nexec {real} "$@"\n')
    (bin_ / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    source.answers["/disk"] = file(image(2 * MIB))
    server = house.start()
    async with traffic(house, server) as calls:
        job_id = await submit(house, calls, source.url("/disk"), "qcow2")
        (pid, *_) = until(lambda: stopped_conversions(server.process.pid), what="it converts")
        if how == "cancel":
            await calls.post(f"/jobs/{job_id}/cancel")
        else:
            house.die(server)
            until(lambda: is_gone(pid), what="qemu-img died with its server")
            server = house.start()
    if how != "cancel":
        (pid, *_) = until(lambda: stopped_conversions(server.process.pid), what="it converts again")
        async with traffic(house, server) as calls:
            await calls.post(f"/jobs/{job_id}/cancel")
    started_s = time.monotonic()
    house.wait_all()
    assert time.monotonic() - started_s < 50
    assert house.ask("SELECT state FROM job") == [("cancelled",)]
    until(lambda: is_gone(pid), what="qemu-img is gone")
    check_nothing_is_left(house)
    assert server.stop() == 0
    house.check()
