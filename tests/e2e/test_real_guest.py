"""Virtual machines whose guests are asked: a Linux that tells what it sees, and the rescue ISO of a Debian package."""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from guest import RESCUE_ISO, SAYS_S, Console, build_guest, needs_guest

from milepost.compute import VmState
from milepost.machines import Standing
from milepost.machines.command import disk_name

sys.path.append(str(Path(__file__).parents[1] / "unit" / "work"))

from machine_house import ServerHouse, server_house

pytestmark = [needs_guest, pytest.mark.timeout(900)]  # emulated, on a machine that may be busy


@pytest.fixture(scope="module")
def guest_iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest(tmp_path_factory.mktemp("guest"))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ServerHouse]:
    async with server_house(tmp_path, server_stop_s=120) as house:
        yield house


async def listen() -> tuple[asyncio.Server, list[bytes], int]:
    """Something on the host's loopback that no guest should reach."""
    came: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.readline())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return server, came, server.sockets[0].getsockname()[1]


def user_data(port: int) -> str:
    return base64.b64encode(f"#cloud-config\n# port={port}\n".encode()).decode()


async def done(house: ServerHouse, kind: str, **spec: Any) -> Any:
    return await house.done(kind, **spec)


async def test_a_guest_sees_what_is_plugged_in_and_hears_its_power_button(house: ServerHouse, guest_iso: Path) -> None:
    image = await house.image(content=guest_iso.read_bytes())
    listener, came, port = await listen()
    async with listener:
        server = await house.build(image, flavor_id="t6.small.1", user_data=user_data(port))
        console = Console(house.machine(server.id))
        booted = await console.says("guest up")
    assert f"leased {server.nics[0].ip_address}" in booted
    assert "host not reached" in booted, "a guest reached the host's loopback"
    assert came == []
    await console.says(f"sees sda:{1 << 20} eth0:{server.nics[0].mac} .")

    volume = await house.make(size=10)
    attached = await done(house, "attachVolume", server_id=server.id, volume_id=volume.id)
    assert attached["device"] == "/dev/sdb"
    await console.says(f"sdb:{10 << 20} ")
    await done(house, "extendVolume", volume_id=volume.id, new_size=12)
    await console.says(f"sdb:{12 << 20} ")
    added = await done(house, "addNic", server_id=server.id, nics=[{"subnet_id": "net"}])
    nic = (await house.server(server.id)).nics[1]
    await console.says(f"eth1:{nic.mac} ")
    await done(house, "deleteNic", server_id=server.id, nic_ids=added["nic_ids"])
    await done(house, "detachVolume", server_id=server.id, volume_id=volume.id)
    await console.says(f"sees sda:{1 << 20} eth0:{server.nics[0].mac} .")

    await done(house, "rebootServer", server_ids=[server.id], type="SOFT")
    again = Console(house.machine(server.id))
    await again.says("guest up")
    await done(house, "stopServer", server_ids=[server.id], type="SOFT")
    assert (await house.server(server.id)).vm_state is VmState.STOPPED
    assert not house.machine(server.id).look().running
    await done(house, "deleteServer", server_ids=[server.id])
    await done(house, "deleteVolume", volume_id=volume.id)
    assert (await house.servers(), await house.volumes(), house.files(), house.left()) == ([], [], [], [])


async def test_an_open_network_reaches_the_host_because_it_was_asked_for(tmp_path: Path, guest_iso: Path) -> None:
    async with server_house(tmp_path, server_network="nat") as house:
        listener, came, port = await listen()
        async with listener:
            image = await house.image(content=guest_iso.read_bytes())
            server = await house.build(image, flavor_id="t6.small.1", user_data=user_data(port))
            await Console(house.machine(server.id)).says("guest up")
        assert came == [b"hello\n"]


async def test_a_rescue_iso_boots_and_leaves_nothing(house: ServerHouse) -> None:
    image = await house.image("iso", RESCUE_ISO.read_bytes())
    server = await house.build(image)
    machine = house.machine(server.id)
    process = machine.process
    assert process is not None
    assert await machine.status() == "running"
    await screen_says(house, server.id, "GNU GRUB")

    volume = await house.make(size=10)
    await done(house, "attachVolume", server_id=server.id, volume_id=volume.id)
    async with machine.talk() as qemu:
        blocks = {one["inserted"]["node-name"] for one in await qemu.ask("query-block") if "inserted" in one}
    assert disk_name(volume.id) in blocks

    await done(house, "stopServer", server_ids=[server.id], type="HARD")
    assert machine.look().standing is Standing.NONE
    assert not Path(f"/proc/{process.pid}").exists()
    await done(house, "deleteServer", server_ids=[server.id], delete_volume=True)
    assert (await house.servers(), await house.volumes(), house.files(), house.left()) == ([], [], [], [])


async def screen_says(house: ServerHouse, server_id: str, words: str) -> None:
    """The words stand on the machine's text screen."""
    machine = house.machine(server_id)
    text, end_s = b"", time.monotonic() + SAYS_S
    while time.monotonic() < end_s:
        async with machine.talk() as qemu:
            await qemu.ask("pmemsave", val=0xB8000, size=80 * 25 * 2, filename="screen")
        text = (machine.folder / "screen").read_bytes()[::2]  # each letter is followed by its colour
        if words.encode() in text:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"not on the screen: {words}: {text!r}")
