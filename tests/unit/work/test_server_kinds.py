"""The kinds of servers on real machines whose guests have no system: states, parts, refusals, quotas, and what is left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from machine_house import ServerHouse, needs_machines, new_id, server_house
from volume_house import CONTENT

from milepost import CallerError, InvalidInput
from milepost.compute import VmState
from milepost.job import State
from milepost.machines import DiskPart, Machine, Standing
from milepost.machines.command import QMP_SOCKET, card_name, disk_name
from milepost.machines.launch import is_alive
from milepost.testing import serving
from milepost.volume import VolumeStatus
from milepost.work.servers.sweep import stop_machines

pytestmark = needs_machines


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ServerHouse]:
    async with server_house(tmp_path, server_stop_s=0.5) as house:
        yield house


async def until(true: Callable[[], Any], what: str) -> None:
    async with asyncio.timeout(60):
        while True:
            found = true()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.02)
    raise AssertionError(what)


async def refused(house: ServerHouse, reason: str, kind: str, **spec: Any) -> CallerError:
    with pytest.raises(CallerError) as caught:
        await house.submit(kind, **spec)
    assert caught.value.fields.get("reason") == reason, caught.value
    return caught.value


async def test_a_created_server_runs_and_its_delete_leaves_nothing(house: ServerHouse) -> None:
    server = await house.build(data_volumes=[{"volume_type": "SAS", "size": 10}])
    machine = house.machine(server.id)
    assert (server.vm_state, server.task_state, server.job_id) == (VmState.ACTIVE, None, None)
    assert server.launched_us is not None
    assert await machine.status() == "running"
    assert [(disk.device, disk.boot_index) for disk in server.disks] == [("/dev/sda", 0), ("/dev/sdb", None)]
    for disk in server.disks:
        volume = await house.volume(disk.volume_id)
        assert (volume.status, volume.attachments[0].server_id) == (VolumeStatus.IN_USE, server.id)
    assert server.nics[0].primary
    assert server.nics[0].ip_address == "192.168.0.10"
    async with machine.talk() as qemu:
        assert {disk_name(disk.volume_id) for disk in server.disks} <= await qemu.devices()

    await house.done("deleteServer", server_ids=[server.id], delete_volume=True)
    assert await house.servers() == []
    assert await house.volumes() == []
    assert house.files() == []
    assert house.left() == []
    assert machine.look().standing is Standing.NONE


async def test_three_servers_at_once_have_names_and_addresses_of_their_own(house: ServerHouse) -> None:
    image = await house.empty_image()
    await house.done("createServer", server=house.spec(image), count=3)
    servers = await house.servers()
    assert sorted(server.name for server in servers) == ["web-0001", "web-0002", "web-0003"]
    assert len({server.nics[0].ip_address for server in servers}) == 3
    assert all(house.machine(server.id).look().running for server in servers)
    await house.done("deleteServer", server_ids=[server.id for server in servers])
    assert (await house.servers(), await house.volumes(), house.left()) == ([], [], [])


async def test_data_volumes_stay_when_their_server_goes(house: ServerHouse) -> None:
    server = await house.build(data_volumes=[{"volume_type": "SAS", "size": 10}])
    await house.done("deleteServer", server_ids=[server.id])
    (volume,) = await house.volumes()
    assert volume.id == server.disks[1].volume_id
    assert (volume.status, volume.attachments, volume.job_id) == (VolumeStatus.AVAILABLE, [], None)


async def test_stop_start_and_reboot_change_what_runs(house: ServerHouse) -> None:
    server = await house.build()
    machine = house.machine(server.id)
    first = machine.process
    await house.done("rebootServer", server_ids=[server.id], type="HARD")
    assert machine.process != first
    assert machine.look().running
    await house.done("stopServer", server_ids=[server.id], type="HARD")
    assert not machine.look().running
    assert (await house.server(server.id)).vm_state is VmState.STOPPED
    await house.done("startServer", server_ids=[server.id])
    assert await machine.status() == "running"
    assert (await house.server(server.id)).vm_state is VmState.ACTIVE


async def test_a_guest_that_does_not_hear_its_power_button_fails_a_soft_stop_and_goes_on(house: ServerHouse) -> None:
    server = await house.build()
    job = await house.failed("stopSingleServer", server_id=server.id, type="SOFT")
    assert job.error is not None
    assert job.error.code == "server_stop_failed"
    assert "HARD" in job.error.message
    shown = await house.server(server.id)
    assert (shown.vm_state, shown.task_state, shown.job_id) == (VmState.ACTIVE, None, None)
    assert house.machine(server.id).look().running


async def test_a_resize_is_what_the_machine_has_at_its_next_start(house: ServerHouse) -> None:
    server = await house.build()
    await refused(house, "server_state", "resizeServer", server_id=server.id, flavor_id="t6.small.1")
    await house.done("stopServer", server_ids=[server.id], type="HARD")
    await refused(house, "flavor_same", "resizeServer", server_id=server.id, flavor_id="t6.nano.1")
    await refused(house, "flavor_unknown", "resizeServer", server_id=server.id, flavor_id="huge")
    await house.done("resizeServer", server_id=server.id, flavor_id="t6.small.1")
    shown = await house.server(server.id)
    assert (shown.flavor_id, shown.vm_state, shown.task_state) == ("t6.small.1", VmState.STOPPED, None)
    await house.done("startServer", server_ids=[server.id])
    async with house.machine(server.id).talk() as qemu:
        assert (await qemu.ask("query-memory-size-summary"))["base-memory"] == 512 << 20


@pytest.mark.parametrize("runs", [True, False])
async def test_a_volume_is_attached_and_detached(house: ServerHouse, runs: bool) -> None:
    server = await house.build()
    machine = house.machine(server.id)
    volume = await house.make()
    if not runs:
        await house.done("stopServer", server_ids=[server.id], type="HARD")
    result = await house.done("attachVolume", server_id=server.id, volume_id=volume.id)
    assert result == {"server_id": server.id, "volume_id": volume.id, "device": "/dev/sdb"}
    volume = await house.volume(volume.id)
    assert (volume.status, volume.attachments[0].device, volume.job_id) == (VolumeStatus.IN_USE, "/dev/sdb", None)
    await refused(house, "volume_attached", "attachVolume", server_id=server.id, volume_id=volume.id)
    await refused(house, "volume_attached", "deleteVolume", volume_id=volume.id)
    if not runs:
        await house.done("startServer", server_ids=[server.id])
    async with machine.talk() as qemu:
        assert disk_name(volume.id) in await qemu.devices()
    if not runs:
        await house.done("stopServer", server_ids=[server.id], type="HARD")
    await house.done("detachVolume", server_id=server.id, volume_id=volume.id)
    volume = await house.volume(volume.id)
    assert (volume.status, volume.attachments, volume.job_id) == (VolumeStatus.AVAILABLE, [], None)
    if runs:
        async with machine.talk() as qemu:
            assert disk_name(volume.id) not in await qemu.devices() | await qemu.nodes()
    await refused(house, "not_attached", "detachVolume", server_id=server.id, volume_id=volume.id)
    await house.done("deleteVolume", volume_id=volume.id)


async def test_a_shared_volume_of_an_image_is_raw_and_two_running_servers_have_it(house: ServerHouse) -> None:
    image = await house.image()
    volume = await house.make(size=1, image_id=image.id, multiattach=True)
    assert (volume.format, volume.multiattach, volume.backing_file) == ("raw", True, None)
    assert house.content(volume, len(CONTENT)) == CONTENT
    first, second = await house.build(), await house.build()
    for server in (first, second):
        await house.done("attachVolume", server_id=server.id, volume_id=volume.id)
        async with house.machine(server.id).talk() as qemu:
            assert disk_name(volume.id) in await qemu.devices()
    assert {one.server_id for one in (await house.volume(volume.id)).attachments} == {first.id, second.id}


async def test_a_qcow2_volume_is_refused_to_a_second_server_when_it_is_asked_for(house: ServerHouse) -> None:
    """New shared volumes are raw; there may be older ones."""
    with pytest.raises(InvalidInput, match="format is qcow2, which only one server can have open"):
        await house.submit("createVolume", volume={"size": 10, "volume_type": "SSD", "format": "qcow2", "multiattach": True})
    volume = await house.make(size=10, format="qcow2")
    await house.change(volume.id, multiattach=True)
    first, second = await house.build(), await house.build()
    both = [{"server_id": first.id}, {"server_id": second.id}]
    await refused(house, "volume_attached", "batchAttachVolume", volume_id=volume.id, servers=both)
    await house.done("attachVolume", server_id=first.id, volume_id=volume.id)
    await refused(house, "volume_attached", "attachVolume", server_id=second.id, volume_id=volume.id)


async def test_a_volume_that_a_running_server_has_grows_for_its_guest(house: ServerHouse) -> None:
    server = await house.build(data_volumes=[{"volume_type": "SAS", "size": 10}])
    volume_id = server.disks[1].volume_id
    await house.done("extendVolume", volume_id=volume_id, new_size=11)
    assert house.path(await house.volume(volume_id)).stat().st_size == 11 << 30
    async with house.machine(server.id).talk() as qemu:
        sizes = {one["node-name"]: one["image"]["virtual-size"] for one in await qemu.ask("query-named-block-nodes", flat=True)}
    assert sizes[disk_name(volume_id)] == 11 << 30


async def test_a_volume_made_for_a_server_is_attached_to_it(house: ServerHouse) -> None:
    server = await house.build()
    made = await house.done(
        "batchCreateVolume", volume={"size": 10, "volume_type": "SSD", "name": "v", "server_id": server.id}, count=3
    )
    shown = await house.server(server.id)
    assert {disk.volume_id for disk in shown.disks[1:]} == set(made["volume_ids"])
    assert sorted(disk.device for disk in shown.disks) == ["/dev/sda", "/dev/sdb", "/dev/sdc", "/dev/sdd"]


async def test_the_system_disk_is_detached_only_from_a_stopped_server(house: ServerHouse) -> None:
    server = await house.build()
    root = server.disks[0].volume_id
    await refused(house, "server_state", "detachVolume", server_id=server.id, volume_id=root)
    await house.done("stopServer", server_ids=[server.id], type="HARD")
    await house.done("detachVolume", server_id=server.id, volume_id=root)
    assert (await house.server(server.id)).disks == []


async def test_network_cards_are_added_and_the_primary_one_stays(house: ServerHouse) -> None:
    server = await house.build()
    nics = [{"subnet_id": "net"}, {"subnet_id": "net", "ip_address": "192.168.7.7"}]
    added = await house.done("addNic", server_id=server.id, nics=nics)
    shown = await house.server(server.id)
    assert shown.job_id is None
    assert {nic.id for nic in shown.nics[1:]} == set(added["nic_ids"])
    assert {nic.ip_address for nic in shown.nics} == {"192.168.0.10", "192.168.0.11", "192.168.7.7"}
    assert all(nic.mac.startswith("fa:16:3e:") for nic in shown.nics)
    async with house.machine(server.id).talk() as qemu:
        assert {card_name(nic.id) for nic in shown.nics} <= await qemu.devices()
    await refused(house, "nic_primary", "deleteNic", server_id=server.id, nic_ids=[server.nics[0].id])
    await refused(house, "nic_not_found", "deleteNic", server_id=server.id, nic_ids=[new_id()])
    await house.done("stopServer", server_ids=[server.id], type="HARD")
    await house.done("deleteNic", server_id=server.id, nic_ids=added["nic_ids"])
    shown = await house.server(server.id)
    assert (shown.nics, shown.job_id) == (server.nics, None)


async def test_another_system_takes_the_old_ones_place(house: ServerHouse) -> None:
    server = await house.build()
    image = await house.empty_image()
    await refused(house, "server_state", "changeOS", server_id=server.id, image_id=image.id)
    await house.done("stopServer", server_ids=[server.id], type="HARD")
    await house.done("changeOS", server_id=server.id, image_id=image.id)
    shown = await house.server(server.id)
    assert (shown.vm_state, shown.image_id, shown.job_id) == (VmState.ACTIVE, image.id, None)
    assert shown.disks[0].volume_id != server.disks[0].volume_id
    assert [volume.id for volume in await house.volumes()] == [shown.disks[0].volume_id]
    assert house.machine(server.id).look().running
    await house.done("stopServer", server_ids=[server.id], type="HARD")
    await house.done("reInitOs", server_id=server.id)
    assert (await house.server(server.id)).image_id == image.id
    await house.done("deleteServer", server_ids=[server.id])
    assert (await house.volumes(), house.files(), house.left()) == ([], [], [])


async def test_what_is_wrong_with_a_create_is_said_before_anything_is_made(house: ServerHouse) -> None:
    image = await house.empty_image()
    spec = house.spec(image)
    for reason, changed in (
        ("flavor_unknown", {"flavor_id": "huge"}),
        ("image_not_found", {"image_id": new_id()}),
        ("volume_type_unknown", {"root_volume": {"volume_type": "wood", "size": 1}}),
        ("volume_size", {"root_volume": {"volume_type": "SSD", "size": 5000}}),
        ("volume_size", {"data_volumes": [{"volume_type": "SSD", "size": 1}]}),
        ("nic_limit", {"nics": []}),
        ("nic_limit", {"nics": [{"subnet_id": "net"}] * 13}),
        ("zone_unknown", {"availability_zone": "moon"}),
        ("device_limit", {"data_volumes": [{"volume_type": "SSD", "size": 10}] * 24}),
    ):
        await refused(house, reason, "createServer", server={**spec, **changed})
    await refused(house, "count_range", "createServer", server=spec, count=101)
    assert (await house.servers(), await house.volumes()) == ([], [])


async def test_quotas_count_what_is_reserved(tmp_path: Path) -> None:
    async with server_house(tmp_path, servers_max=3, server_vcpus_max=2, server_ram_mib_max=1024, volumes_gib_max=20) as house:
        image = await house.empty_image()
        spec = house.spec(image)
        await refused(house, "server_quota", "createServer", server=spec, count=4)
        await refused(house, "cpu_quota", "createServer", server=spec, count=3)
        await refused(house, "memory_quota", "createServer", server={**spec, "flavor_id": "s6.medium.2"})
        await refused(house, "capacity_quota", "createServer", server={**spec, "root_volume": {"volume_type": "SSD", "size": 21}})
        held = await house.submit("createServer", held=True, server=spec, count=2)
        await refused(house, "cpu_quota", "createServer", server=spec)
        await house.service.cancel(held, project=None)

        async def gone() -> bool:
            return await house.servers() == [] and await house.volumes() == []

        await until(gone, "what was reserved is free")


async def test_a_busy_server_refuses_others(house: ServerHouse) -> None:
    server = await house.build()
    held = await house.submit("stopServer", held=True, server_ids=[server.id])
    await refused(house, "server_busy", "deleteServer", server_ids=[server.id])
    await refused(house, "server_busy", "addNic", server_id=server.id, nics=[{"subnet_id": "net"}])
    await house.service.cancel(held, project=None)

    async def free() -> bool:
        return (await house.server(server.id)).job_id is None

    await until(free, "nobody has it")
    await refused(house, "server_not_found", "deleteServer", server_ids=[new_id()])
    await house.done("deleteServer", server_ids=[server.id])


async def test_a_create_whose_machine_does_not_start_leaves_its_reason_and_nothing_else(
    house: ServerHouse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "bin"
    broken.mkdir()
    program = broken / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\necho the machine is broken >&2\nexit 3\n")
    program.chmod(0o755)
    image = await house.empty_image()
    monkeypatch.setenv("PATH", f"{broken}:{os.environ['PATH']}")
    job = await house.failed("createServer", server=house.spec(image))
    assert job.state is State.FAILED
    (server,) = await house.servers()
    assert (server.vm_state, server.job_id, server.disks) == (VmState.ERROR, None, [])
    assert server.fault is not None
    assert "the machine is broken" in server.fault.message
    assert (await house.volumes(), house.files(), house.left()) == ([], [], [])
    await refused(house, "server_state", "startServer", server_ids=[server.id])
    await house.done("deleteServer", server_ids=[server.id])
    assert await house.servers() == []


async def test_without_qemu_a_create_is_refused_and_names_the_package(
    house: ServerHouse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = await house.empty_image()
    monkeypatch.setenv("PATH", str(tmp_path))
    error = await refused(house, "qemu_missing", "createServer", server=house.spec(image))
    assert "qemu-system-x86" in str(error)


async def test_a_killed_machine_shows_as_an_error_and_can_be_started_again(house: ServerHouse) -> None:
    server = await house.build()
    machine = house.machine(server.id)
    assert machine.process is not None
    os.kill(machine.process.pid, signal.SIGKILL)

    async def shows() -> bool:
        return (await house.server(server.id)).vm_state is VmState.ERROR

    await until(shows, "the crash shows")
    fault = (await house.server(server.id)).fault
    assert fault is not None
    assert "signal 9" in fault.message
    await house.done("startServer", server_ids=[server.id])
    shown = await house.server(server.id)
    assert (shown.vm_state, shown.fault) == (VmState.ACTIVE, None)
    assert machine.look().running


async def test_a_machine_that_is_dying_fails_its_job_once_and_does_not_come_back_as_a_success(
    house: ServerHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process stops answering before it is gone: an undo that took it for alive failed, and the job ran once more."""
    server, volume = await house.build(), await house.make()
    process = house.machine(server.id).process
    assert process is not None
    plug = Machine.plug_disk

    async def killed(machine: Machine, disk: DiskPart) -> None:
        (machine.folder / QMP_SOCKET).unlink()  # it does not answer
        asyncio.get_running_loop().call_later(0.5, os.kill, process.pid, signal.SIGKILL)  # and is gone later
        await plug(machine, disk)

    monkeypatch.setattr(Machine, "plug_disk", killed)
    job = await house.failed("attachVolume", server_id=server.id, volume_id=volume.id)
    assert job.error is not None
    assert (job.error.code, job.attempt) == ("attach_failed", 1)
    assert (await house.server(server.id)).vm_state is VmState.ERROR
    assert (await house.volume(volume.id)).status is VolumeStatus.AVAILABLE


async def test_a_machine_that_ends_in_order_shows_as_stopped(house: ServerHouse) -> None:
    server = await house.build()
    async with house.machine(server.id).talk() as qemu:
        await qemu.quit()

    async def shows() -> bool:
        return (await house.server(server.id)).vm_state is VmState.STOPPED

    await until(shows, "the end shows")


async def test_running_servers_survive_a_restart_of_the_service(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    try:
        async with serving(data=data, server_accel="tcg") as served:
            server = await ServerHouse(served, tmp_path).build()
        async with serving(data=data, server_accel="tcg") as served:
            house = ServerHouse(served, tmp_path)
            assert (await house.server(server.id)).vm_state is VmState.ACTIVE
            assert await house.machine(server.id).status() == "running"
            await house.done("deleteServer", server_ids=[server.id])
            assert (await house.volumes(), house.left()) == ([], [])
    finally:
        await stop_machines(tmp_path / "data")


async def test_a_service_in_memory_leaves_no_machine_behind(tmp_path: Path) -> None:
    image_store = (tmp_path / "objects").as_uri()
    async with serving(data=":memory:", objects_url=image_store, server_accel="tcg") as served:
        house = ServerHouse(served, tmp_path)
        process = house.machine((await house.build()).id).process
        assert process is not None
        assert is_alive(process)
    assert not is_alive(process)


async def test_a_machine_without_a_record_is_swept_away(house: ServerHouse) -> None:
    server = await house.build()
    machine = house.machine(server.id)
    process = machine.process
    await house.store.delete_resource("server", server.id)
    await house.sweep()
    await until(lambda: house.left() == [], "its folder is gone")  # the server's own sweep may have been first
    assert process is not None
    assert not is_alive(process)


async def test_an_address_is_checked(house: ServerHouse) -> None:
    image = await house.empty_image()
    for address in ("8.8.8.8", "192.168.0.2", "10.0.0.255", "no"):
        with pytest.raises(CallerError):
            await house.submit("createServer", server=house.spec(image, nics=[{"subnet_id": "n", "ip_address": address}]))
