"""The kinds of volumes on a real engine: what the record says and what the files are agree, whatever happens."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from volume_house import CONTENT, GIB, MIB, VolumeHouse, needs_qemu, volume_house

from milepost.errors import NotFound
from milepost.job import Job, JobId, State
from milepost.volume import Attachment, VolumeStatus
from milepost.work.volumes import base, changing, disk, making

SPEC = {"size": 10, "volume_type": "SSD", "name": "disk"}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[VolumeHouse]:
    async with volume_house(tmp_path) as opened:
        yield opened


async def subs(house: VolumeHouse, job: Job) -> list[Job]:
    return await house.store.list_sub_jobs(job.id)


# --- create --------------------------------------------------------------------------------------------------------


async def test_a_created_volume_is_a_sparse_file_and_available(house: VolumeHouse) -> None:
    made = await house.result("createVolume", volume={**SPEC, "metadata": {"a": "b"}, "tags": {"k": "v"}})
    volume = await house.volume(made["volume_id"])
    assert made == {"volume_id": volume.id, "name": "disk", "size": 10, "volume_type": "SSD"}
    assert (volume.status, volume.job_id, volume.fault) == ("available", None, None)
    assert (volume.availability_zone, volume.metadata, volume.tags) == ("az-1", {"a": "b"}, {"k": "v"})
    assert house.files() == [volume.file] == [f"{volume.id}.raw"]
    assert house.path(volume).stat().st_size == 10 * GIB
    assert house.path(volume).stat().st_blocks * 512 <= 4096


@needs_qemu
async def test_a_qcow2_volume_is_made_when_it_is_asked_for(house: VolumeHouse) -> None:
    volume = await house.make(format="qcow2")
    shown = json.loads(subprocess.run(["qemu-img", "info", "--output=json", house.path(volume)], capture_output=True).stdout)
    assert (shown["format"], shown["virtual-size"]) == ("qcow2", 10 * GIB)


@needs_qemu
@pytest.mark.parametrize("disk_format", ["raw", "iso", "qcow2", "vmdk", "vhd", "vhdx", "vdi"])
async def test_a_volume_on_top_of_an_image_of_any_format_has_its_content(house: VolumeHouse, disk_format: str) -> None:
    image = await house.image(disk_format)
    volume = await house.make(image_id=image.id, size=2)
    assert (volume.format, volume.bootable, volume.image_metadata["disk_format"]) == ("qcow2", True, disk_format)
    assert volume.backing_file == f"base/{volume.id}.{disk_format}"
    assert house.files() == [volume.file, volume.backing_file] or house.files() == [volume.backing_file, volume.file]
    assert house.content(volume, 2 * MIB) == CONTENT
    assert virtual_size(house, volume) == 2 * GIB
    base_file = house.folder / volume.backing_file
    assert base_file.stat().st_nlink == 2, "the image was copied"


def virtual_size(house: VolumeHouse, volume: Any) -> int:
    return disk.virtual_bytes(house.path(volume), volume.format)


@needs_qemu
@pytest.mark.parametrize(("disk_format", "format"), [("qcow2", None), ("raw", None), ("vmdk", "qcow2"), ("iso", "raw")])
async def test_a_full_clone_stands_alone(house: VolumeHouse, disk_format: str, format: str | None) -> None:
    image = await house.image(disk_format)
    made = await house.run("createVolume", volume={**SPEC, "size": 3, "image_id": image.id, "full_clone": True, "format": format})
    assert made.state is State.SUCCEEDED, made.error
    assert (made.progress.total, made.progress.unit) == (len(CONTENT), "bytes")
    (volume,) = await house.volumes()
    assert (volume.format, volume.backing_file) == (format or "raw", None)
    assert house.files() == [volume.file]
    assert house.content(volume, 2 * MIB) == CONTENT
    assert virtual_size(house, volume) == 3 * GIB


@needs_qemu
async def test_raw_on_an_image_is_a_full_clone(house: VolumeHouse) -> None:
    volume = await house.make(image_id=(await house.image()).id, format="raw", size=1)
    assert (volume.format, volume.backing_file) == ("raw", None)
    assert house.content(volume, 2 * MIB) == CONTENT


@needs_qemu
async def test_the_image_may_be_deleted_while_volumes_are_backed_by_it(house: VolumeHouse) -> None:
    image = await house.image()
    volumes = [await house.make(image_id=image.id, size=1) for _ in range(2)]
    await house.store.delete_resource("image", image.id)
    await house.served.system.objects.delete(image.object_key)  # type: ignore[union-attr, arg-type]
    for volume in volumes:
        assert house.content(volume, 2 * MIB) == CONTENT
        await house.result("deleteVolume", volume_id=volume.id)
    assert house.files() == []


@needs_qemu
async def test_an_image_that_is_elsewhere_is_downloaded_once_and_goes_with_its_last_volume(
    house: VolumeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await house.image()
    objects: Any = house.served.system.objects
    reads: list[str] = []
    real = objects.read

    def read(key: str) -> Any:
        reads.append(key)
        return real(key)

    monkeypatch.setattr(objects, "local_path", lambda key: None)
    monkeypatch.setattr(objects, "read", read)
    await house.result("batchCreateVolume", volume={**SPEC, "size": 1, "image_id": image.id}, count=4)
    assert reads == [image.object_key]
    volumes = await house.volumes()
    assert f"base/image-{image.id}.qcow2" in house.files()
    assert {(house.folder / str(volume.backing_file)).stat().st_ino for volume in volumes} == {
        (house.folder / f"base/image-{image.id}.qcow2").stat().st_ino
    }
    for volume in volumes[:3]:
        await house.result("deleteVolume", volume_id=volume.id)
    assert f"base/image-{image.id}.qcow2" in house.files()
    assert house.content(volumes[3], 2 * MIB) == CONTENT
    await house.result("deleteVolume", volume_id=volumes[3].id)
    assert house.files() == []


@needs_qemu
async def test_a_file_system_without_hard_links_gets_copies(house: VolumeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_link", lambda source, target: False)
    volume = await house.make(image_id=(await house.image()).id, size=1)
    assert house.files() == sorted([str(volume.file), str(volume.backing_file)])
    assert house.content(volume, 2 * MIB) == CONTENT


@needs_qemu
async def test_an_image_deleted_before_the_volume_is_made_fails_it_by_name(house: VolumeHouse) -> None:
    image = await house.image()
    order = await house.submit("createVolume", volume={**SPEC, "image_id": image.id}, held=True)
    await house.store.delete_resource("image", image.id)
    await house.service.release(order, project=None)
    job = await house.served.ended(order)
    assert job.error is not None
    assert job.error.code == "image_not_found"
    (volume,) = await house.volumes()
    assert (volume.status, volume.fault, volume.file) == ("error", job.error.message, None)
    assert house.files() == []


async def test_the_volumes_of_a_batch_are_numbered_and_known_at_once(house: VolumeHouse) -> None:
    job_id = await house.submit("batchCreateVolume", volume=SPEC, count=3)
    (asked,) = [json.loads(job.input or b"{}") for job in [await house.service.get(job_id)]]
    assert len(asked["volume_ids"]) == 3
    job = await house.served.ended(job_id)
    assert json.loads(job.result or b"")["volume_ids"] == asked["volume_ids"]
    names = {volume.id: volume.name for volume in await house.volumes()}
    assert [names[volume_id] for volume_id in asked["volume_ids"]] == ["disk-0001", "disk-0002", "disk-0003"]
    assert [(sub.kind, sub.state) for sub in await subs(house, job)] == [("createVolume", "succeeded")] * 3


async def test_a_sub_job_for_which_nothing_was_reserved_reserves_by_itself(house: VolumeHouse) -> None:
    """As the kinds of others ask for volumes; here the parent's reservation is taken away first."""
    order = await house.submit("batchCreateVolume", volume=SPEC, count=2, held=True)
    for volume in await house.volumes():
        await house.store.delete_resource("volume", volume.id)
    await house.service.release(order, project=None)
    job = await house.served.ended(order)
    assert job.state is State.SUCCEEDED, job.error
    assert [volume.status for volume in await house.volumes()] == ["available"] * 2


async def test_a_failed_create_leaves_its_record_with_the_fault_and_no_file(
    house: VolumeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, size_bytes: int) -> None:
        path.write_bytes(b"begun")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(making, "make_raw", full)
    job = await house.run("createVolume", volume=SPEC)
    assert job.error is not None
    assert (job.state, job.error.code, job.attempt) == ("failed", "disk_full", 1)
    (volume,) = await house.volumes()
    assert (volume.status, volume.job_id, volume.file) == ("error", None, None)
    assert "disk is full" in str(volume.fault)
    assert house.files() == []
    await house.result("deleteVolume", volume_id=volume.id)
    assert await house.volumes() == []


async def test_what_fails_unexpectedly_is_tried_again_and_then_explained(
    house: VolumeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def broken(path: Path, size_bytes: int) -> None:
        calls.append(size_bytes)
        raise PermissionError(13, "no")

    monkeypatch.setattr(making, "make_raw", broken)
    job = await house.run("createVolume", volume=SPEC)
    assert (job.state, len(calls)) == ("failed", 3)
    (volume,) = await house.volumes()
    assert job.error is not None
    assert (job.error.code, volume.status) == ("volume_error", "error")
    assert volume.fault == job.error.message == "The server's file system refused it: [Errno 13] no"


# --- extend and retype ---------------------------------------------------------------------------------------------


async def test_an_extended_volume_is_larger_and_keeps_its_content(house: VolumeHouse) -> None:
    volume = await house.make()
    with house.path(volume).open("r+b") as file:
        file.write(CONTENT)
    assert (await house.result("extendVolume", volume_id=volume.id, new_size=25))["size"] == 25
    volume = await house.volume(volume.id)
    assert (volume.size_gib, volume.status, volume.size_asked_gib) == (25, "available", None)
    assert house.path(volume).stat().st_size == 25 * GIB
    assert house.content(volume, len(CONTENT)) == CONTENT


@needs_qemu
async def test_an_extended_volume_on_top_of_an_image_keeps_its_base(house: VolumeHouse) -> None:
    volume = await house.make(image_id=(await house.image()).id, size=1)
    await house.result("extendVolume", volume_id=volume.id, new_size=4)
    assert virtual_size(house, volume) == 4 * GIB
    assert house.content(volume, 2 * MIB) == CONTENT


async def test_a_volume_in_use_of_a_server_that_is_off_is_extended_and_stays_in_use(house: VolumeHouse) -> None:
    volume = await house.make()
    attachment = Attachment(id="a", server_id="11111111-1111-4111-8111-111111111111", device="/dev/sdb", attached_us=1)
    await house.change(volume.id, status=VolumeStatus.IN_USE, attachments=[attachment])
    await house.result("extendVolume", volume_id=volume.id, new_size=20)
    volume = await house.volume(volume.id)
    assert (volume.status, volume.size_gib, len(volume.attachments)) == ("in-use", 20, 1)
    assert house.path(volume).stat().st_size == 20 * GIB


async def test_a_retyped_volume_has_its_new_type(house: VolumeHouse) -> None:
    volume = await house.make()
    assert (await house.result("retypeVolume", volume_id=volume.id, new_type="SAS"))["volume_type"] == "SAS"
    assert ((await house.volume(volume.id)).volume_type, (await house.volume(volume.id)).status) == ("SAS", "available")


async def test_one_failing_sub_job_of_ten_fails_its_parent_and_the_others_end_well(house: VolumeHouse) -> None:
    made = await house.result("batchCreateVolume", volume=SPEC, count=10)
    lost = await house.volume(made["volume_ids"][6])
    house.path(lost).unlink()
    extends = [{"volume_id": volume_id, "new_size": 12} for volume_id in made["volume_ids"]]
    job = await house.run("batchExtendVolume", volumes=extends)
    assert job.error is not None
    assert (job.state, job.error.code) == ("failed", "sub_jobs_failed")
    outcomes = [(sub.state, sub.error.code if sub.error else None) for sub in await subs(house, job)]
    assert outcomes == [("succeeded", None)] * 6 + [("failed", "volume_extend_failed")] + [("succeeded", None)] * 3
    by_id = {volume.id: volume for volume in await house.volumes()}
    assert by_id[lost.id].status == "error_extending"
    assert "no file" in str(by_id[lost.id].fault)
    assert {by_id[one].size_gib for one in made["volume_ids"] if one != lost.id} == {12}
    assert {volume.job_id for volume in by_id.values()} == {None}


async def test_a_failed_extend_may_be_tried_again(house: VolumeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = await house.make()

    async def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(changing, "grow", full)
    job = await house.run("extendVolume", volume_id=volume.id, new_size=20)
    assert job.error is not None
    assert job.error.code == "disk_full"
    volume = await house.volume(volume.id)
    assert (volume.status, volume.size_gib, volume.size_asked_gib) == ("error_extending", 10, None)
    monkeypatch.undo()
    await house.result("extendVolume", volume_id=volume.id, new_size=20)
    volume = await house.volume(volume.id)
    assert (volume.status, volume.fault, volume.size_gib) == ("available", None, 20)


# --- delete --------------------------------------------------------------------------------------------------------


async def test_a_deleted_volume_is_wiped_before_it_is_removed(house: VolumeHouse, tmp_path: Path) -> None:
    volume = await house.make()
    with house.path(volume).open("r+b") as file:
        file.write(b"secret" * 100_000)
    kept = tmp_path / "kept"
    kept.hardlink_to(house.path(volume))  # the same bytes under a name of ours
    made = await house.run("deleteVolume", volume_id=volume.id)
    assert json.loads(made.result or b"") == {"volume_id": volume.id, "name": "", "size": 10, "volume_type": "SSD"}
    assert made.progress.note == "wiping"
    with kept.open("rb") as file:
        assert file.read(600_000) == bytes(600_000)
    assert (await house.volumes(), house.files()) == ([], [])


@needs_qemu
async def test_a_delete_never_writes_to_the_image(house: VolumeHouse) -> None:
    image = await house.image()
    stored = house.served.system.objects.local_path(image.object_key)  # type: ignore[union-attr, arg-type]
    assert stored is not None
    before = stored.read_bytes()
    volume = await house.make(image_id=image.id, size=1)
    await house.result("deleteVolume", volume_id=volume.id)
    assert stored.read_bytes() == before
    assert stored.stat().st_nlink == 1


async def test_a_bulk_delete_has_a_sub_job_for_each(house: VolumeHouse) -> None:
    ids = (await house.result("batchCreateVolume", volume=SPEC, count=3))["volume_ids"]
    job = await house.run("bulkDeleteVolume", volume_ids=ids)
    assert [(sub.kind, sub.state) for sub in await subs(house, job)] == [("deleteSingleVolume", "succeeded")] * 3
    assert {json.loads(sub.result or b"")["volume_id"] for sub in await subs(house, job)} == set(ids)
    assert (await house.volumes(), house.files()) == ([], [])


# --- cancel --------------------------------------------------------------------------------------------------------


class Gate:
    """Holds a step until the test opens it, and says that it was reached."""

    def __init__(self) -> None:
        self.reached, self.open = asyncio.Event(), asyncio.Event()

    async def __call__(self, *_: Any, **__: Any) -> None:
        self.reached.set()
        await self.open.wait()


async def settled(house: VolumeHouse, volume_id: str) -> Any:
    """The record once nobody has it; None when it is gone."""
    async with asyncio.timeout(60):
        while True:
            try:
                volume = await house.volume(volume_id)
            except NotFound:
                return None
            if volume.job_id is None:
                return volume
            await asyncio.sleep(0.01)


async def test_a_cancelled_create_leaves_no_file_and_no_record(house: VolumeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    real = making.Making.make_empty

    async def slow(self: Any, volume: Any) -> None:
        await real(self, volume)
        await gate()

    monkeypatch.setattr(making.Making, "make_empty", slow)
    job_id = await house.submit("createVolume", volume=SPEC)
    await gate.reached.wait()
    assert len(house.files()) == 1
    await house.service.cancel(job_id, project=None)
    assert (await house.served.ended(job_id)).state is State.CANCELLED
    assert (await house.volumes(), house.files()) == ([], [])


async def test_a_cancelled_extend_gives_the_volume_back(house: VolumeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = await house.make()
    gate = Gate()
    monkeypatch.setattr(changing, "grow", gate)
    job_id = await house.submit("extendVolume", volume_id=volume.id, new_size=20)
    await gate.reached.wait()
    assert (await house.volume(volume.id)).status == "extending"
    await house.service.cancel(job_id, project=None)
    await house.served.ended(job_id)
    volume = await house.volume(volume.id)
    assert (volume.status, volume.size_gib, volume.job_id, volume.size_asked_gib) == ("available", 10, None, None)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_cancelled_delete_gives_the_volume_back_unless_it_is_half_wiped(
    house: VolumeHouse, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    volume = await house.make()
    gate = Gate()
    if begun:
        monkeypatch.setattr(changing, "wipe", gate)
    else:
        real = changing.Deleting.take

        async def slow(self: Any, *given: Any) -> Any:
            taken = await real(self, *given)
            await gate()
            return taken

        monkeypatch.setattr(changing.Deleting, "take", slow)
    job_id = await house.submit("deleteVolume", volume_id=volume.id)
    await gate.reached.wait()
    await house.service.cancel(job_id, project=None)
    await house.served.ended(job_id)
    volume = await house.volume(volume.id)
    assert (volume.status, volume.job_id) == ("error_deleting" if begun else "available", None)
    monkeypatch.undo()
    await house.result("deleteVolume", volume_id=volume.id)
    assert house.files() == []


async def test_what_was_reserved_for_a_job_that_never_ran_is_given_back_at_once(house: VolumeHouse) -> None:
    volume = await house.make()
    order = await house.submit("createVolume", volume=SPEC, held=True)
    (new,) = [one for one in await house.volumes() if one.id != volume.id]
    assert (new.status, new.order_id) == ("creating", f"CS{order.replace('-', '').upper()}")
    extend = await house.submit("extendVolume", volume_id=volume.id, new_size=20, held=True)
    assert (await house.volume(volume.id)).status == "available"
    assert (await house.volume(volume.id)).job_id == extend
    await house.service.cancel(JobId(order), project=None)
    await house.service.cancel(JobId(extend), project=None)
    assert await settled(house, new.id) is None
    volume = await settled(house, volume.id)
    assert (volume.status, volume.size_gib, volume.size_asked_gib) == ("available", 10, None)


async def test_a_paid_order_makes_its_volume(house: VolumeHouse) -> None:
    order = await house.submit("createVolume", volume=SPEC, held=True)
    await house.service.release(order, project=None)
    assert (await house.served.ended(order)).state is State.SUCCEEDED
    (volume,) = await house.volumes()
    assert (volume.status, volume.order_id is not None) == ("available", True)


# --- repeated ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["extendVolume", "retypeVolume"])
async def test_an_attempt_that_finds_its_work_done_changes_nothing(
    house: VolumeHouse, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The first attempt ends after the record is free: somebody else has extended the volume before the second one begins."""
    volume = await house.make()
    spec = {"extendVolume": {"new_size": 20}, "retypeVolume": {"new_type": "SAS"}}[kind]
    cls: Any = {"extendVolume": changing.Extending, "retypeVolume": changing.Retyping}[kind]
    real = cls.finish
    ended: list[str] = []

    async def finish(self: Any, *given: Any, **values: Any) -> Any:
        result = await real(self, *given, **values)
        if not ended:
            ended.append(self.job.id)
            await house.change(volume.id, size_gib=40, volume_type="ESSD")
            raise RuntimeError("the worker had died here")
        return result

    monkeypatch.setattr(cls, "finish", finish)
    job = await house.run(kind, volume_id=volume.id, **spec)
    assert (job.state, job.attempt) == ("succeeded", 2)
    shown = json.loads(job.result or b"")
    assert (shown["size"], shown["volume_type"]) == {"extendVolume": (20, "SSD"), "retypeVolume": (10, "SAS")}[kind]
    volume = await house.volume(volume.id)
    assert (volume.size_gib, volume.volume_type, volume.status) == (40, "ESSD", "available")
