"""What is left of jobs that ended while nobody ran them comes to its right end; what is alive is left alone."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from volume_house import GIB, VolumeHouse, volume_house

from milepost.job import Cancelled, Claimed, Failed, Failure, JobId, State, Submission, WorkerId
from milepost.store import Queue
from milepost.volume import VolumeStatus
from milepost.work.volumes.sweep import ORPHAN_S, settle, sweep

WORKER = WorkerId("elsewhere")
BROKEN = Failed(Failure("poison", "3 workers died while they ran it"))
STOPPED = Cancelled(Failure("cancelled", "cancelled on request"))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[VolumeHouse]:
    async with volume_house(tmp_path, prune_every_s=1e6) as opened:
        opened.served.system.node.claimer._limits["elsewhere"] = 0  # it has no place for what another worker shall have
        yield opened


async def left_by(house: VolumeHouse, volume_id: str, *, outcome: Any, **values: Any) -> JobId:
    """The record, locked for a job that ended so: None for one that still runs."""
    now_us = house.served.system.clock.now_us()
    await house.store.renew_lease(WORKER, now_us=now_us, lease_s=1000)
    (added,) = await house.store.add_jobs([Submission(kind="extendVolume", queue="elsewhere")], now_us=now_us)
    (claimed,) = await house.store.claim_jobs("elsewhere", worker=WORKER, now_us=now_us, limit=1)
    await house.change(volume_id, job_id=added.job.id, status_before=VolumeStatus.AVAILABLE, **values)
    await finish(house, claimed, outcome)
    return added.job.id


async def finish(house: VolumeHouse, claimed: Claimed, outcome: Any) -> None:
    if outcome is not None:
        now_us = house.served.system.clock.now_us()
        assert await house.store.finish_job(claimed.claim, outcome, now_us=now_us, expires_us=now_us + 10**9)


async def run_settle(house: VolumeHouse) -> int:
    return await settle(house.store, house.served.system.folder, now_us=1)


@pytest.mark.parametrize("status", [*VolumeStatus])
async def test_what_a_running_job_has_is_left_alone(house: VolumeHouse, status: VolumeStatus) -> None:
    volume = await house.make()
    await left_by(house, volume.id, outcome=None, status=status)
    before = await house.volume(volume.id)
    assert await run_settle(house) == 0
    assert await house.volume(volume.id) == before


@pytest.mark.parametrize(
    ("status", "outcome", "then", "fault"),
    [
        (VolumeStatus.EXTENDING, BROKEN, "error_extending", True),
        (VolumeStatus.EXTENDING, STOPPED, "available", False),
        (VolumeStatus.DELETING, BROKEN, "error_deleting", True),
        (VolumeStatus.DELETING, STOPPED, "error_deleting", True),
        (VolumeStatus.RETYPING, BROKEN, "available", False),
        (VolumeStatus.RETYPING, STOPPED, "available", False),
        (VolumeStatus.AVAILABLE, STOPPED, "available", False),
        (VolumeStatus.CREATING, BROKEN, "error", True),
    ],
)
async def test_a_record_whose_job_ended_comes_to_its_end(
    house: VolumeHouse, status: VolumeStatus, outcome: Any, then: str, fault: bool
) -> None:
    volume = await house.make()
    await left_by(house, volume.id, outcome=outcome, status=status, size_asked_gib=30)
    async for found in changes(house, volume.id):
        if found.job_id is None:
            break
    assert (found.status, found.size_gib, found.size_asked_gib, found.status_before) == (then, 10, None, None)
    assert (found.fault is not None) == fault
    assert bool(house.files()) == (then != "error"), "a volume in error has no bytes"


async def changes(house: VolumeHouse, volume_id: str) -> AsyncIterator[Any]:
    """The record, again and again, settled each time."""
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        await run_settle(house)
        yield await house.volume(volume_id)


@pytest.mark.parametrize("status", [VolumeStatus.CREATING, VolumeStatus.DOWNLOADING])
async def test_a_cancelled_create_leaves_nothing(house: VolumeHouse, status: VolumeStatus) -> None:
    volume = await house.make()
    await left_by(house, volume.id, outcome=STOPPED, status=status)
    await run_settle(house)
    assert (await house.volumes(), house.files()) == ([], [])


async def test_a_volume_that_had_grown_keeps_its_size(house: VolumeHouse) -> None:
    volume = await house.make()
    os.truncate(house.path(volume), 30 * GIB)
    await left_by(house, volume.id, outcome=STOPPED, status=VolumeStatus.EXTENDING, size_asked_gib=30)
    await run_settle(house)
    assert ((await house.volume(volume.id)).size_gib, (await house.volume(volume.id)).status) == (30, "available")


async def test_a_volume_that_was_wiped_and_removed_is_gone(house: VolumeHouse) -> None:
    volume = await house.make()
    house.path(volume).unlink()
    await left_by(house, volume.id, outcome=BROKEN, status=VolumeStatus.DELETING)
    await run_settle(house)
    assert await house.volumes() == []


async def test_a_record_whose_job_is_gone_is_given_back(house: VolumeHouse) -> None:
    volume = await house.make()
    await house.change(
        volume.id, job_id="01999999-0000-7000-8000-000000000000", status=VolumeStatus.DELETING, status_before=VolumeStatus.ERROR
    )
    assert await run_settle(house) == 1
    assert ((await house.volume(volume.id)).status, (await house.volume(volume.id)).job_id) == ("error", None)


async def test_what_servers_do_is_not_settled_here(house: VolumeHouse) -> None:
    volume = await house.make()
    await left_by(house, volume.id, outcome=STOPPED, status=VolumeStatus.ATTACHING)
    assert await run_settle(house) == 0
    assert (await house.volume(volume.id)).status == "attaching"


async def test_the_end_of_the_sub_job_counts_not_that_of_its_parent(house: VolumeHouse) -> None:
    """A batch is cancelled while its sub-jobs wait for a place: none of them ran, so no volume is left."""
    await house.store.set_queue(Queue("volumes", limit=1))
    order = await house.submit("batchCreateVolume", volume={"size": 10, "volume_type": "SSD", "name": "d"}, count=3, held=True)
    assert len(await house.volumes()) == 3
    await house.service.cancel(order, project=None)
    end_s = time.monotonic() + 60
    while await house.volumes() and time.monotonic() < end_s:
        await run_settle(house)
    assert (await house.volumes(), (await house.service.get(order)).state) == ([], State.CANCELLED)


async def test_files_that_are_nobodys_go_and_others_stay(house: VolumeHouse) -> None:
    kept = await house.make()
    live = await house.submit("createVolume", volume={"size": 10, "volume_type": "SSD"}, held=True)
    new, base = house.folder / ".new", house.folder / "base"
    for path in (
        new / f"{live}.disk",
        new / "01999999-0000-7000-8000-000000000000.disk",
        house.folder / "0f0f0f0f-0000-4000-8000-000000000000.raw",
        house.folder / "1f1f1f1f-0000-4000-8000-000000000000.raw",
        base / "0f0f0f0f-0000-4000-8000-000000000000.qcow2",
        base / f"{kept.id}.qcow2",
        base / "image-2f2f2f2f-0000-4000-8000-000000000000.raw",
    ):
        path.write_bytes(b"1")
    old_s = time.time() - ORPHAN_S - 10
    for path in house.folder.rglob("*"):
        if path.is_file() and not path.name.startswith("1f"):
            os.utime(path, (old_s, old_s))
    await sweep(house.store, house.served.system.folder, now_us=1)
    young = "1f1f1f1f-0000-4000-8000-000000000000.raw"
    assert house.files() == sorted([f".new/{live}.disk", f"{kept.id}.raw", young, f"base/{kept.id}.qcow2"])


async def test_a_write_of_somebody_else_wins_over_the_sweep(house: VolumeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = await house.make()
    await left_by(house, volume.id, outcome=None, status=VolumeStatus.RETYPING)
    await house.change(volume.id, job_id="01999999-0000-7000-8000-000000000000")
    real = house.store.put_resource

    async def late(resource: Any, **given: Any) -> Any:
        monkeypatch.setattr(house.store, "put_resource", real)
        await house.change(volume.id, name="renamed")
        return await real(resource, **given)

    monkeypatch.setattr(house.store, "put_resource", late)
    assert await run_settle(house) == 0
    assert (await house.volume(volume.id)).name == "renamed"
    assert await run_settle(house) == 1
    found = await house.volume(volume.id)
    assert (found.name, found.status, found.job_id) == ("renamed", "available", None)
    assert msgspec.to_builtins(found)["status_before"] is None
