"""What is left when a part of a server's job does not end as it should: no lock outlives its job, and no part its record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from machine_house import ServerHouse, needs_machines, server_house

from milepost import LimitExceeded
from milepost.compute import VmState
from milepost.job import Job, JobId, State
from milepost.machines import Machine
from milepost.store import Queue
from milepost.volume import VolumeStatus

pytestmark = needs_machines


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ServerHouse]:
    async with server_house(tmp_path, server_stop_s=0.5) as house:
        yield house


async def until(true: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(15):
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
    job = await house.served.ended(job_id, patience_s=30)
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
    await house.served.ended(job_id, patience_s=30)
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
    go, remove = asyncio.Event(), Machine.remove

    async def wait_and_remove(machine: Machine) -> None:
        await go.wait()
        await remove(machine)

    monkeypatch.setattr(Machine, "remove", wait_and_remove)
    job_id = await house.submit("deleteServer", server_ids=[server.id, other.id])
    await until(lambda: runs_one_of(house, job_id), "one part runs")
    await house.service.cancel((await part_of(house, job_id, "deleteSingleServer")).id, project=None)
    go.set()
    assert (await house.served.ended(job_id, patience_s=30)).state is State.FAILED
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
    assert (await house.served.ended(job_id, patience_s=30)).state is State.SUCCEEDED
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
