"""A full disk refuses what is new and keeps what was accepted; what jobs came to is written once there is space again."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_rig import House, Server, Traffic, traffic, until

pytestmark = pytest.mark.fault

DISK_BYTES = 24 << 20
SIZE_BYTES = 32 << 10  # the log of the database is larger after some jobs; the file that runs leave a line in is not
LEASE = {"lease_s": 0.9, "heartbeat_s": 0.2, "rescue_every_s": 0.1, "prune_every_s": 60}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no right to mount a small disk here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Disk:
    """Makes the server's disk full, and gives the space back."""

    def __init__(self, fill: Callable[[Server], None], free: Callable[[Server], None]) -> None:
        self.fill, self.free = fill, free


@pytest.fixture(params=["no space left", "file size limit"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[House, Disk]]:
    if request.param == "no space left":
        folder = request.getfixturevalue("small_disk")
        house = House(tmp_path / "house", **LEASE)
        house.data = folder / "data"
        filler = folder / "filler"
        disk = Disk(lambda _: fill(filler), lambda _: filler.unlink())
    else:  # what a quota does: writes fail with another error than ENOSPC
        house = House(tmp_path / "house", **LEASE)
        disk = Disk(lambda server: limit_files(server, SIZE_BYTES), lambda server: limit_files(server, resource.RLIM_INFINITY))
    yield house, disk
    house.close()


def fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def limit_files(server: Server, size: int) -> None:
    if server.dead:
        return
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def submit_until_refused(house: House, calls: Traffic) -> dict[str, str]:
    """Submits until one is refused with 503; the headers of that answer."""
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        request = calls.http.post(calls.server.url + "/jobs").header("content-type", "application/json")
        body = b'{"kind": "work", "held": true, "input": {"runs": "%s"}, "labels": {"pad": "%s"}}'
        answer = await request.body_bytes(body % (str(house.runs_file).encode(), b"x" * 250)).build().send()
        told = await answer.json()
        if answer.status == 503:
            assert told["code"] == "store_unavailable", told
            return {name.lower(): value for name, value in answer.headers.items()}
        assert answer.status == 202, told
        calls.acknowledge([told["id"]])
    raise AssertionError("the disk never got full")


async def test_a_full_disk_refuses_submits_and_loses_no_outcome(disk: tuple[House, Disk]) -> None:
    house, space = disk
    server = house.start()
    gate = house.folder / "gate"
    async with traffic(house, server) as calls:
        ended = await calls.submit("work")
        running = [await calls.submit("work", {"until": str(gate), "steps": 0, "answer": 7}) for _ in range(5)]
        until(lambda: sum(house.runs().values()) == 6, what="all run")
        space.fill(server)
        headers = await submit_until_refused(house, calls)
        assert int(headers["retry-after"]) >= 1
        gate.touch()
        lines = house.runs_file.read_text
        until(lambda: lines().count("end ") == 6, what="the functions ended, with the disk full")
        full_s = time.monotonic()
        until(lambda: time.monotonic() - full_s > 1.2, what="the lease ran out on the full disk")
        shown = await calls.http.get(f"{server.url}/jobs/{ended}").build().send()
        assert (shown.status, (await shown.json())["state"]) == (200, "succeeded")  # reads go on
        assert not server.dead
        space.free(server)
        until(lambda: house.ask("SELECT COUNT(*) FROM job WHERE result = '7'") == [(5,)], what="the outcomes are written")
        after = ""
        end_s = time.monotonic() + 60
        while not after and time.monotonic() < end_s:
            after = await calls.submit("work")
        assert after
        await calls.settle()
        house.wait_all()
    assert server.stop() == 0, server.said()
    house.check()
    runs = house.runs()
    assert [runs[job_id] for job_id in running] == [1] * 5, "a job was run again although its worker lived"


async def test_a_kill_on_a_full_disk_loses_nothing(disk: tuple[House, Disk]) -> None:
    house, space = disk
    server = house.start()
    async with traffic(house, server) as calls:
        await calls.mix(1)
        space.fill(server)
        await submit_until_refused(house, calls)
        house.die(server)
    space.free(server)
    server = house.start()
    async with traffic(house, server) as calls:
        await calls.settle()
    house.wait_all()
    assert server.stop() == 0
    house.check()
