"""What is left when a part of a server's job does not end as it should: no lock outlives its job, and no part its record."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from machine_house import ServerHouse, needs_machines, new_id, server_house

from milepost import LimitExceeded
from milepost.compute import Server, VmState
from milepost.job import Job, JobId, State
from milepost.machines import Card, DiskPart, Machine, qmp
from milepost.machines.command import backend_name, card_name, disk_name
from milepost.machines.qmp import Conversation
from milepost.store import Queue
from milepost.volume import VolumeStatus
from milepost.work.servers import strays
from milepost.work.volumes import changing

pytestmark = needs_machines


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ServerHouse]:
    async with server_house(tmp_path, server_stop_s=0.5) as house:
        yield house


async def until(true: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(60):
            while not await true():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(what) from None


async def part_of(house: ServerHouse, job_id: JobId, kind: str) -> Job:
    """The first sub-job of this kind that waits, below this job, once there is one."""
    found: list[Job] = []

    async def there() -> bool:
        found[:] = [job for job in await below(house, job_id) if (job.kind, job.state) == (kind, State.READY)]
        return bool(found)

    await until(there, f"a {kind} waits")
    return found[0]


async def below(house: ServerHouse, job_id: JobId) -> list[Job]:
    jobs = []
    for job in await house.store.list_sub_jobs(job_id):
        jobs += [job, *await below(house, job.id)]
    return jobs


async def set_queue(house: ServerHouse, queue: Queue) -> None:
    await house.store.set_queue(queue)
    house.service.dispatch.announce_queues()


async def pause(house: ServerHouse, paused: bool) -> None:
    await set_queue(house, Queue("volumes", paused=paused))


async def unlocked(house: ServerHouse) -> bool:
    return all(one.job_id is None for one in [*await house.servers(), *await house.volumes()])


async def test_a_disk_whose_delete_was_cancelled_is_nobodys_when_its_server_is_gone(house: ServerHouse) -> None:
    server = await house.build()
    await pause(house, True)
    job_id = await house.submit("deleteServer", server_ids=[server.id])
    await house.service.cancel((await part_of(house, job_id, "deleteSingleVolume")).id, project=None)
    job = await house.served.ended(job_id, patience_s=100)
    assert job.state is State.FAILED
    await pause(house, False)
    assert await house.servers() == []
    (volume,) = await house.volumes()
    assert (volume.job_id, volume.status, volume.attachments) == (None, VolumeStatus.AVAILABLE, [])
    await house.done("deleteVolume", volume_id=volume.id)
    assert (house.files(), house.left()) == ([], [])


async def test_a_delete_that_is_cancelled_while_its_disks_wait_gives_everything_back(house: ServerHouse) -> None:
    server = await house.build()
    await pause(house, True)
    job_id = await house.submit("deleteServer", server_ids=[server.id], delete_volume=True)
    await part_of(house, job_id, "deleteSingleVolume")
    await house.service.cancel(job_id, project=None)
    await house.served.ended(job_id, patience_s=100)
    await pause(house, False)
    await until(lambda: unlocked(house), "nobody has them")
    (left,) = await house.servers()
    assert left.vm_state is VmState.STOPPED
    await house.done("deleteServer", server_ids=[server.id])
    assert (await house.servers(), house.left()) == ([], [])


async def test_a_server_whose_part_of_a_delete_was_cancelled_keeps_its_disks(
    house: ServerHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one place, and the part that has it waits until the other one is cancelled."""
    server, other = await house.build(), await house.build()
    await set_queue(house, Queue("servers", limit=1))
    go, stop = asyncio.Event(), Machine.stop

    async def wait_and_stop(machine: Machine) -> None:
        await go.wait()  # its first step: later, while its disks are wiped, it waits without the place
        await stop(machine)

    monkeypatch.setattr(Machine, "stop", wait_and_stop)
    job_id = await house.submit("deleteServer", server_ids=[server.id, other.id])
    await until(lambda: runs_one_of(house, job_id), "one part runs")
    await house.service.cancel((await part_of(house, job_id, "deleteSingleServer")).id, project=None)
    go.set()
    assert (await house.served.ended(job_id, patience_s=100)).state is State.FAILED
    await until(lambda: unlocked(house), "nobody has them")
    assert len(await house.servers()) == 1
    assert [volume.status for volume in await house.volumes()] == [VolumeStatus.IN_USE]


async def runs_one_of(house: ServerHouse, job_id: JobId) -> bool:
    return any(job.state is State.RUNNING for job in await house.store.list_sub_jobs(job_id))


async def test_an_old_system_disk_whose_delete_was_cancelled_is_a_volume_like_others(house: ServerHouse) -> None:
    image = await house.empty_image()
    server = await house.build(image)
    old_id = server.disks[0].volume_id
    await house.done("stopServer", server_ids=[server.id], type="HARD")
    await pause(house, True)
    job_id = await house.submit("changeOS", server_id=server.id, image_id=image.id)
    create = await part_of(house, job_id, "createVolume")
    await set_queue(house, Queue("servers", paused=True))
    await pause(house, False)

    async def made() -> bool:
        return (await house.service.get(create.id)).state is State.SUCCEEDED

    await until(made, "the new disk is made")
    await pause(house, True)
    await set_queue(house, Queue("servers"))
    await house.service.cancel((await part_of(house, job_id, "deleteSingleVolume")).id, project=None)
    await pause(house, False)
    assert (await house.served.ended(job_id, patience_s=100)).state is State.SUCCEEDED
    old = await house.volume(old_id)
    assert (old.job_id, old.status, old.attachments) == (None, VolumeStatus.AVAILABLE, [])
    await house.done("deleteVolume", volume_id=old_id)


async def test_two_resizes_at_once_do_not_both_take_the_last_place(tmp_path: Path) -> None:
    async with server_house(tmp_path, server_ram_mib_max=1024) as house:
        image = await house.empty_image()
        ids = (await house.result("createServer", server=house.spec(image), count=2))["server_ids"]
        await house.done("stopServer", server_ids=ids, type="HARD")
        first = await house.submit("resizeServer", held=True, server_id=ids[0], flavor_id="t6.small.1")
        with pytest.raises(LimitExceeded, match="1024 are allowed"):
            await house.submit("createServer", server=house.spec(image, flavor_id="t6.small.1"))
        with pytest.raises(LimitExceeded, match="1024 are allowed"):
            await house.submit("resizeServer", server_id=ids[1], flavor_id="s6.small.1")
        await house.service.cancel(first, project=None)
        await until(lambda: unlocked(house), "the order is gone")
        await house.done("resizeServer", server_id=ids[1], flavor_id="t6.small.1")
        await house.done("resizeServer", server_id=ids[0], flavor_id="t6.small.1")


# --- whole, or gone ------------------------------------------------------------------------------------------------------


async def test_a_cancelled_delete_that_wiped_nothing_gives_back_all_of_the_server(house: ServerHouse) -> None:
    """Its folder too: what the machine boots from beside its disks is there."""
    server = await house.build(user_data="IyEvYmluL3NoCg==")
    data = await house.make()
    await house.done("attachVolume", server_id=server.id, volume_id=data.id)
    before = await house.server(server.id)
    seed = house.machine(server.id).folder / "seed" / "user-data"
    assert seed.exists()
    await pause(house, True)
    job_id = await house.submit("deleteServer", server_ids=[server.id])
    await part_of(house, job_id, "deleteSingleVolume")
    await house.service.cancel(job_id, project=None)
    await house.served.ended(job_id, patience_s=100)
    await pause(house, False)
    await until(lambda: unlocked(house), "nobody has them")
    after = await house.server(server.id)
    assert (after.disks, after.vm_state, seed.exists()) == (before.disks, VmState.STOPPED, True)
    assert {one.status for one in await house.volumes()} == {VolumeStatus.IN_USE}
    await house.done("startServer", server_ids=[server.id])
    assert await house.machine(server.id).status() == "running"


async def test_a_delete_that_is_cancelled_behind_its_first_wipe_leaves_no_server(
    house: ServerHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system disk is wiped, the data disk was to go too and waits: it stays, as a volume of nobody."""
    server, data = await house.build(), await house.make()
    await house.done("attachVolume", server_id=server.id, volume_id=data.id)
    await set_queue(house, Queue("volumes", limit=1))
    job_id = await house.submit("deleteServer", server_ids=[server.id], delete_volume=True)
    behind, go, wipe = asyncio.Event(), asyncio.Event(), changing.wipe

    async def wipe_and_wait(path: Path, on_bytes: Any) -> None:
        await wipe(path, on_bytes)
        behind.set()
        await go.wait()

    monkeypatch.setattr(changing, "wipe", wipe_and_wait)
    async with asyncio.timeout(60):  # a sub-job that runs has not wiped yet, and may still leave all as it was
        await behind.wait()
    await house.service.cancel(job_id, project=None)
    go.set()
    job = await house.served.ended(job_id, patience_s=100)
    assert job.state is State.CANCELLED

    async def gone() -> bool:
        await house.sweep()
        return await house.servers() == []

    await until(gone, "the server is gone")
    assert house.left() == []
    assert [(one.job_id, one.attachments) for one in await house.volumes() if one.id == data.id] == [(None, [])]
    assert all(one.status in (VolumeStatus.AVAILABLE, VolumeStatus.ERROR_DELETING) for one in await house.volumes())


# --- parts that no record names --------------------------------------------------------------------------------------------


async def stray_card(house: ServerHouse, server: Server) -> Card:
    """A card that a worker plugged in before it died for good."""
    card = Card(id=new_id(), mac="fa:16:3e:00:00:01", ip_address="192.168.0.99")
    await house.machine(server.id).plug_card(card)
    return card


async def parts(house: ServerHouse, server: Server) -> set[str]:
    async with house.machine(server.id).talk() as qemu:
        return await qemu.devices() | await qemu.backends()


async def test_a_disk_that_no_record_names_is_unplugged_and_those_of_the_record_stay(house: ServerHouse) -> None:
    server, volume = await house.build(), await house.make()
    own = {card_name(one.id) for one in server.nics} | {disk_name(one.volume_id) for one in server.disks}
    part = DiskPart(id=volume.id, path=str(house.path(volume)), format="raw", slot=5)
    await house.machine(server.id).plug_disk(part)
    await house.sweep()
    left = await parts(house, server)
    assert disk_name(volume.id) not in left
    assert own <= left


async def test_a_card_that_no_record_names_is_cut_off_and_asked_to_go(
    house: ServerHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest has no system and keeps it; its link is down at least, and it is asked each time."""
    monkeypatch.setattr(strays, "LET_GO_S", 0.1)
    server = await house.build()
    card = await stray_card(house, server)
    asked: list[tuple[str, str]] = []
    ask = Conversation.ask

    async def listen(self: Conversation, command: str, **arguments: Any) -> Any:
        asked.append((command, str(arguments.get("id") or arguments.get("name"))))
        return await ask(self, command, **arguments)

    monkeypatch.setattr(Conversation, "ask", listen)
    await house.sweep()
    assert ("set_link", backend_name(card.id)) in asked
    assert ("device_del", card_name(card.id)) in asked
    assert {name for command, name in asked if command == "set_link"} == {backend_name(card.id)}, "another card was cut off"


async def test_a_network_whose_guest_let_go_of_its_card_later_is_dropped(house: ServerHouse) -> None:
    server = await house.build()
    nic = new_id()
    async with house.machine(server.id).talk() as qemu:
        await qemu.ask("netdev_add", type="user", id=backend_name(nic))
    assert backend_name(nic) in await parts(house, server)
    await house.sweep()
    left = await parts(house, server)
    assert backend_name(nic) not in left
    assert backend_name(server.nics[0].id) in left


async def test_a_part_is_nobodys_only_while_nobody_changes_its_server(house: ServerHouse) -> None:
    server, volume = await house.build(), await house.make()
    part = DiskPart(id=volume.id, path=str(house.path(volume)), format="raw", slot=5)
    await house.machine(server.id).plug_disk(part)
    held = await house.submit("stopServer", held=True, server_ids=[server.id], type="HARD")
    await house.sweep()
    assert disk_name(volume.id) in await parts(house, server)
    await house.service.cancel(held, project=None)


# --- a machine that stands still --------------------------------------------------------------------------------------------


async def test_a_disk_is_not_free_while_a_machine_that_stands_still_has_it_open(
    house: ServerHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qmp, "CONNECT_S", 0.3)
    monkeypatch.setattr(qmp, "ANSWER_S", 0.3)
    server, volume = await house.build(), await house.make()
    machine = house.machine(server.id)
    await machine.plug_disk(DiskPart(id=volume.id, path=str(house.path(volume)), format="raw", slot=5))
    ended = await house.run("echo")  # the job that plugged it in, and died
    await house.change_server(server.id, job_id=ended.id)
    await house.change(volume.id, job_id=ended.id, status=VolumeStatus.ATTACHING, status_before=VolumeStatus.AVAILABLE)
    process = machine.process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        await house.sweep()
        assert (await house.server(server.id)).job_id is None
        assert (await house.volume(volume.id)).status is VolumeStatus.ATTACHING
        await house.change(volume.id, job_id=None, status=VolumeStatus.AVAILABLE)  # as if somebody had freed it
        job = await house.failed("deleteVolume", volume_id=volume.id)
        assert job.error is not None
        assert (job.error.code, str(process.pid) in job.error.message) == ("volume_in_use", True)
        assert house.path(volume).stat().st_size == volume.size_gib << 30
        await house.change(volume.id, job_id=ended.id, status=VolumeStatus.ATTACHING)
    finally:
        os.kill(process.pid, signal.SIGCONT)

    async def free() -> bool:
        await house.sweep()
        return (await house.volume(volume.id)).status is VolumeStatus.AVAILABLE

    await until(free, "it is free once the machine has let go of it")
    assert disk_name(volume.id) not in await parts(house, server)
    await house.done("deleteVolume", volume_id=volume.id)
