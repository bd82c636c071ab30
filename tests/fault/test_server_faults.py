"""Kills of the service and of QEMU in the middle of work on servers: nothing runs twice, nothing is lost, nothing is orphaned.

What must hold is read from the database file, the folder and the host's processes, never from the server.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_rig import House, Server, traffic, until
from test_full_disk import fill, small_disk
from test_volume_faults import check_volumes, ended, files, make_image, submit, volumes

from milepost.machines import Machine
from milepost.machines.command import card_name, disk_name
from milepost.testing import killpoints
from milepost.work.servers.sweep import stop_machines

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None or shutil.which("qemu-img") is None,
        reason="needs qemu-system-x86_64 and qemu-img (packages qemu-system-x86 and qemu-utils)",
    ),
]

__all__ = ["small_disk"]

CREATE = ["taken", "disc", "launched", "booted", "noted", "released"]
ATTACH = ["taken", "plugged", "noted"]
DETACH = ["taken", "unplugged", "noted"]
REBOOT = ["taken", "halted", "launched", "booted", "noted", "released"]
CARDS = ["carded", "noted", "released"]
DELETE = ["taken", "cleared", "parted", "noted"]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "house", server_accel="tcg", server_stop_s=30)
    yield house
    house.close()
    asyncio.run(stop_machines(house.data))


def test_every_point_of_the_work_on_servers_is_in_a_chain() -> None:
    points = {point.removeprefix("server.") for point in killpoints.points() if point.startswith("server.")}
    assert points == {*CREATE, *ATTACH, *DETACH, *REBOOT, *CARDS, *DELETE}


def servers(house: House) -> list[dict[str, Any]]:
    return [json.loads(row[0]) for row in house.ask("SELECT doc FROM resource WHERE type = 'server' ORDER BY created_us, id")]


def running(house: House) -> list[int]:
    """Every QEMU process of this house, whether or not anybody knows of it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(house.data / "servers"):
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


def machine(house: House, server_id: str) -> Machine:
    return Machine(house.data / "servers" / server_id)


async def devices(house: House, server_id: str) -> set[str]:
    async with machine(house, server_id).talk() as qemu:
        return await qemu.devices()


def spec(image_id: str) -> dict[str, Any]:
    return {
        "name": "web",
        "image_id": image_id,
        "flavor_id": "t6.nano.1",
        "vpc_id": "vpc",
        "nics": [{"subnet_id": "net"}],
        "root_volume": {"volume_type": "SSD", "size": 1},
    }


async def built(house: House, server: Server) -> dict[str, Any]:
    image_id = await make_image(house, server, bytes(1 << 20))
    async with traffic(house, server) as calls:
        await submit(calls, "createServer", server=spec(image_id))
    house.wait_all()
    assert house.ask("SELECT error FROM job WHERE kind = 'createServer'") == [(None,)]
    (made,) = servers(house)
    return made


async def kill_at_each(house: House, points: list[str], kind: str, sub_kind: str | None, **spec: Any) -> None:
    """A chain of services that each die at their point, and one that lives to the end."""
    for number, point in enumerate(points):
        server = house.start(f"server.{point}")
        if number == 0:
            async with traffic(house, server) as calls:
                await submit(calls, kind, **spec)
        until(lambda: house.servers[-1].dead, what=point, deadline_s=60)
        house.die(server)
        # What starts a machine has children for a moment; a second machine would stay, now that nobody is there to end it.
        until(lambda: len(running(house)) <= 1, what=f"one machine after {point}")
    server = house.start()
    house.wait_all()
    assert server.stop() == 0, server.said()
    assert house.check()["kills"] == len(points)
    for which in (kind, sub_kind or kind):
        assert house.ask("SELECT state, error FROM job WHERE kind = ?", which) == [("succeeded", None)]
    for server_doc in servers(house):
        assert (server_doc["job_id"], server_doc["task_state"]) == (None, None)


async def test_a_create_that_is_killed_at_every_step_makes_one_server_and_starts_it_once(house: House) -> None:
    server = house.start()
    image_id = await make_image(house, server, bytes(1 << 20))
    assert server.stop() == 0
    await kill_at_each(house, CREATE, "createServer", "createSingleServer", server=spec(image_id))
    (made,) = servers(house)
    assert (made["vm_state"], made["fault"]) == ("active", None)
    process = machine(house, made["id"]).process
    assert process is not None
    assert running(house) == [process.pid]
    assert await machine(house, made["id"]).status() == "running"
    (volume,) = volumes(house)
    assert (volume["status"], volume["attachments"][0]["server_id"]) == ("in-use", made["id"])


async def test_a_delete_that_is_killed_at_every_step_leaves_nothing(house: House) -> None:
    server = house.start()
    made = await built(house, server)
    assert server.stop() == 0
    await kill_at_each(house, DELETE, "deleteServer", "deleteSingleServer", server_ids=[made["id"]])
    assert (servers(house), check_volumes(house), files(house), running(house)) == ([], [], [], [])
    assert list((house.data / "servers").iterdir()) == []


async def test_attach_and_detach_that_are_killed_at_every_step_are_done_once(house: House) -> None:
    server = house.start()
    made = await built(house, server)
    volume_id = (await ended(house, server, "createVolume", volume={"size": 10, "volume_type": "SSD"}))["result"]["volume_id"]
    assert server.stop() == 0
    await kill_at_each(house, ATTACH, "attachVolume", None, server_id=made["id"], volume_id=volume_id)
    (shown,) = servers(house)
    assert [disk["device"] for disk in shown["disks"]] == ["/dev/sda", "/dev/sdb"]
    assert disk_name(volume_id) in await devices(house, made["id"])
    house.snapshots.clear()
    house.counted["kills"] = 0
    await kill_at_each(house, DETACH, "detachVolume", None, server_id=made["id"], volume_id=volume_id)
    (shown,) = servers(house)
    assert [disk["device"] for disk in shown["disks"]] == ["/dev/sda"]
    assert disk_name(volume_id) not in await devices(house, made["id"])
    assert {volume["id"]: volume["status"] for volume in volumes(house)}[volume_id] == "available"


async def test_a_card_whose_service_is_killed_is_plugged_once_and_recorded_as_it_is(house: House) -> None:
    server = house.start()
    made = await built(house, server)
    assert server.stop() == 0
    await kill_at_each(house, CARDS, "addNic", "addSingleNic", server_id=made["id"], nics=[{"subnet_id": "net"}])
    (shown,) = servers(house)
    assert len(shown["nics"]) == 2
    cards = {name for name in await devices(house, made["id"]) if name.startswith("n")}
    assert cards == {card_name(nic["id"]) for nic in shown["nics"]}


async def test_a_reboot_that_is_killed_at_every_step_ends_with_a_machine_that_runs(house: House) -> None:
    server = house.start()
    made = await built(house, server)
    before = running(house)
    assert server.stop() == 0
    await kill_at_each(house, REBOOT, "rebootServer", "rebootSingleServer", server_ids=[made["id"]], type="HARD")
    (after,) = running(house)
    assert after not in before
    assert [one["vm_state"] for one in servers(house)] == ["active"]


async def test_qemu_killed_under_a_job_fails_it_by_name_and_the_server_shows_it(house: House) -> None:
    server = house.start()
    made = await built(house, server)
    volume_id = (await ended(house, server, "createVolume", volume={"size": 10, "volume_type": "SSD"}))["result"]["volume_id"]
    (pid,) = running(house)
    os.kill(pid, signal.SIGSTOP)  # the job waits for its answer
    async with traffic(house, server) as calls:
        await submit(calls, "attachVolume", server_id=made["id"], volume_id=volume_id)
    until(lambda: house.ask("SELECT 1 FROM job WHERE kind = 'attachVolume' AND progress LIKE '%plugging in%'"), what="it waits")
    os.kill(pid, signal.SIGKILL)
    house.wait_all()
    ((state, error),) = house.ask("SELECT state, error FROM job WHERE kind = 'attachVolume'")
    assert (state, json.loads(error)["code"]) == ("failed", "attach_failed"), error
    (shown,) = servers(house)
    assert (shown["vm_state"], shown["job_id"], len(shown["disks"])) == ("error", None, 1)
    assert "signal 9" in shown["fault"]["message"]
    assert {volume["id"]: volume["status"] for volume in volumes(house)}[volume_id] == "available"
    assert (await ended(house, server, "startServer", server_ids=[made["id"]]))["state"] == "succeeded"
    assert (await ended(house, server, "deleteServer", server_ids=[made["id"]]))["state"] == "succeeded"
    assert server.stop() == 0
    assert running(house) == []


async def test_a_create_whose_workers_all_die_leaves_its_reason_and_no_machine(house: House) -> None:
    house.settings["crashes_max"] = 2
    server = house.start()
    image_id = await make_image(house, server, bytes(1 << 20))
    assert server.stop() == 0
    for number in range(2):
        server = house.start("server.booted")
        if number == 0:
            async with traffic(house, server) as calls:
                await submit(calls, "createServer", server=spec(image_id))
        until(lambda: house.servers[-1].dead, what="it died", deadline_s=60)
        house.die(server)
    server = house.start()
    house.wait_all()
    until(lambda: [one["vm_state"] for one in servers(house)] == ["error"], what="the server shows why")
    until(lambda: running(house) == [], what="its machine is gone")
    assert servers(house)[0]["fault"]["message"]
    until(lambda: volumes(house) == [], what="its volumes are gone")
    assert server.stop() == 0
    assert (files(house), list((house.data / "servers").iterdir())) == ([], [])


async def test_machines_killed_while_the_service_was_down_show_when_it_is_back(house: House) -> None:
    server = house.start()
    made = await built(house, server)
    (pid,) = running(house)
    house.die(server)
    assert running(house) == [pid], "a machine did not outlive its service"
    os.kill(pid, signal.SIGKILL)
    server = house.start()
    until(lambda: servers(house)[0]["vm_state"] == "error", what="the crash shows")
    assert servers(house)[0]["id"] == made["id"]
    assert server.stop() == 0


async def test_a_full_disk_fails_a_create_by_name_and_leaves_nothing_of_it(house: House, small_disk: Path) -> None:
    """The small disk holds the machines' folders alone; the database and the volumes have room."""
    house.data.mkdir()
    (house.data / "servers").symlink_to(small_disk)
    server = house.start()
    image_id = await make_image(house, server, bytes(1 << 20))
    wanted = {**spec(image_id), "user_data": base64.b64encode(bytes(8192)).decode()}
    made = await ended(house, server, "createServer", server=wanted)
    filler = small_disk / "filler"
    fill(filler)
    failed = await ended(house, server, "createServer", server=wanted)
    assert (failed["state"], failed["error"]["code"]) == ("failed", "sub_jobs_failed")
    ((error,),) = house.ask("SELECT error FROM job WHERE kind = 'createSingleServer' AND state = 'failed'")
    assert json.loads(error)["code"] == "disk_full"
    alive, broken = servers(house)
    assert (alive["vm_state"], broken["vm_state"], broken["disks"], broken["job_id"]) == ("active", "error", [], None)
    assert "disk is full" in broken["fault"]["message"]
    assert [one["attachments"][0]["server_id"] for one in volumes(house)] == [alive["id"]]
    assert (machine(house, alive["id"]).look().running, sorted(small_disk.iterdir())) == (
        True,
        [small_disk / alive["id"], filler],
    )
    filler.unlink()
    assert (await ended(house, server, "deleteServer", server_ids=[broken["id"]]))["state"] == "succeeded"
    assert (await ended(house, server, "createServer", server=wanted))["state"] == "succeeded"
    assert (await ended(house, server, "deleteServer", server_ids=[one["id"] for one in servers(house)]))["state"] == "succeeded"
    assert server.stop() == 0
    assert made["state"] == "succeeded"
    assert (servers(house), check_volumes(house), files(house), list(small_disk.iterdir())) == ([], [], [], [])
