"""What is refused at submit, with which reason, and that nothing is written then; what is accepted is reserved."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from volume_house import VolumeHouse, needs_qemu, volume_house

from milepost.errors import CallerError, Conflict, InvalidInput, LimitExceeded, NotFound
from milepost.image import ImageStatus, Visibility
from milepost.job import JobId
from milepost.store import JobQuery, Queue
from milepost.volume import Attachment, VolumeStatus
from milepost.work.volumes.spec import name_in_batch, volume_id_of

SPEC = {"size": 10, "volume_type": "SSD", "name": "disk"}
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[VolumeHouse]:
    async with volume_house(tmp_path, volumes_max=4, volumes_gib_max=200, zones="az-1, az-2") as opened:
        yield opened


async def refusal(house: VolumeHouse, kind: str, **spec: Any) -> CallerError:
    """The refusal; nothing was written with it."""
    records, jobs = await house.volumes(), len(await house.store.list_jobs(JobQuery(limit=1000)))
    with pytest.raises(CallerError) as caught:
        await house.submit(kind, **spec)
    assert await house.volumes() == records
    assert len(await house.store.list_jobs(JobQuery(limit=1000))) == jobs
    return caught.value


def said(error: CallerError) -> tuple[type[CallerError], str | None, str | None]:
    return type(error), error.fields.get("reason"), getattr(error, "path", error.fields.get("path"))


@pytest.mark.parametrize(
    ("wrong", "reason", "field"),
    [
        ({"size": 9}, "volume_size", "size"),
        ({"size": 32769}, "volume_size", "size"),
        ({"size": -1}, "volume_size", "size"),
        ({"volume_type": "FLOPPY"}, "volume_type_unknown", "volume_type"),
        ({"availability_zone": "mars"}, "zone_unknown", "availability_zone"),
        ({"name": "x" * 256}, None, "name"),
        ({"description": "x" * 256}, None, "description"),
    ],
)
async def test_a_wrong_field_is_refused_by_name(
    house: VolumeHouse, wrong: dict[str, Any], reason: str | None, field: str
) -> None:
    error = await refusal(house, "createVolume", volume={**SPEC, **wrong})
    assert said(error) == (InvalidInput, reason, f"$.input.volume.{field}")
    assert field in error.message


@pytest.mark.parametrize("count", [0, 101, -1])
async def test_a_batch_has_one_to_a_hundred(house: VolumeHouse, count: int) -> None:
    error = await refusal(house, "batchCreateVolume", volume=SPEC, count=count)
    assert said(error) == (InvalidInput, "count_range", "$.input.count")


async def test_a_name_in_a_batch_leaves_room_for_its_number(house: VolumeHouse) -> None:
    error = await refusal(house, "batchCreateVolume", volume={**SPEC, "name": "x" * 251}, count=2)
    assert said(error) == (InvalidInput, None, "$.input.volume.name")
    await house.result("batchCreateVolume", volume={**SPEC, "name": "x" * 250}, count=2)
    assert {len(volume.name) for volume in await house.volumes()} == {255}


@pytest.mark.parametrize("volume_id", ["../../etc/passwd", "", NOBODY.upper().replace("0", "A"), "{" + NOBODY + "}"])
async def test_an_id_that_is_chosen_is_a_plain_uuid(house: VolumeHouse, volume_id: str) -> None:
    error = await refusal(house, "createVolume", volume=SPEC, volume_id=volume_id)
    assert said(error)[2] == "$.input.volume_id"


async def test_an_id_is_given_once(house: VolumeHouse) -> None:
    volume_id = str(uuid.uuid4())
    await house.result("createVolume", volume=SPEC, volume_id=volume_id)
    assert said(await refusal(house, "createVolume", volume=SPEC, volume_id=volume_id))[:2] == (Conflict, "volume_busy")
    ids = [str(uuid.uuid4()), volume_id]
    error = await refusal(house, "batchCreateVolume", volume=SPEC, count=2, volume_ids=ids)
    assert said(error) == (Conflict, "volume_busy", "$.input.volume_ids[1]")
    error = await refusal(house, "batchCreateVolume", volume=SPEC, count=2, volume_ids=ids[:1] * 2)
    assert said(error)[1] == "count_range"


async def test_the_first_zone_is_the_default_and_without_zones_any_name_is_one(house: VolumeHouse, tmp_path: Path) -> None:
    assert (await house.make()).availability_zone == "az-1"
    assert (await house.make(availability_zone="az-2")).availability_zone == "az-2"
    async with volume_house(tmp_path, zones="") as free:
        assert (await free.make(availability_zone="mars")).availability_zone == "mars"
        assert (await free.make()).availability_zone == ""


async def test_an_unknown_server_is_refused(house: VolumeHouse) -> None:
    error = await refusal(house, "createVolume", volume={**SPEC, "server_id": NOBODY})
    assert said(error) == (NotFound, "server_not_found", "$.input.volume.server_id")


# --- images --------------------------------------------------------------------------------------------------------


@needs_qemu
async def test_an_image_is_there_ours_active_and_fits(house: VolumeHouse) -> None:
    foreign = await house.image(owner="another")
    saving = await house.image(status=ImageStatus.SAVING)
    inactive = await house.image(status=ImageStatus.DEACTIVATED)
    large = await house.image(virtual_size=(3 << 30) + 1)
    greedy = await house.image(min_disk=7)
    cases = [
        (NOBODY, 10, NotFound, "image_not_found"),
        (foreign.id, 10, NotFound, "image_not_found"),
        (saving.id, 10, Conflict, "image_not_active"),
        (inactive.id, 10, Conflict, "image_not_active"),
        (large.id, 3, InvalidInput, "image_too_large"),
        (greedy.id, 6, InvalidInput, "image_too_large"),
        (large.id, 1025, InvalidInput, "volume_size"),
        (large.id, 0, InvalidInput, "volume_size"),
    ]
    for image_id, size, cls, reason in cases:
        error = await refusal(house, "createVolume", volume={**SPEC, "size": size, "image_id": image_id})
        assert said(error)[:2] == (cls, reason), (reason, error)
    for image, size in ((large, 4), (greedy, 7)):
        assert await house.submit("createVolume", volume={**SPEC, "size": size, "image_id": image.id}, held=True)


@needs_qemu
async def test_a_public_image_of_another_project_may_be_used(house: VolumeHouse) -> None:
    image = await house.image(owner="another", visibility=Visibility.PUBLIC)
    assert (await house.make(image_id=image.id)).image_id == image.id


# --- states --------------------------------------------------------------------------------------------------------

ATTACHED = {
    "status": VolumeStatus.IN_USE,
    "attachments": [Attachment(id="a", server_id=NOBODY, device="/dev/sdb", attached_us=1)],
}
STATES: list[tuple[dict[str, Any], str | None, str | None, str | None]] = [
    # the record, and what becomes of an extend, a delete and a retype
    ({}, None, None, None),
    (ATTACHED, None, "volume_attached", None),
    ({"status": VolumeStatus.ERROR}, "volume_state", None, "volume_state"),
    ({"status": VolumeStatus.ERROR_EXTENDING}, None, None, "volume_state"),
    ({"status": VolumeStatus.ERROR_DELETING}, "volume_state", None, "volume_state"),
    ({"status": VolumeStatus.ATTACHING}, "volume_state", "volume_attached", "volume_state"),
    ({"status": VolumeStatus.DETACHING}, "volume_state", "volume_attached", "volume_state"),
    ({"job_id": "somebody"}, "volume_busy", "volume_busy", "volume_busy"),
    ({**ATTACHED, "job_id": "somebody"}, "volume_busy", "volume_attached", "volume_busy"),
]


@pytest.mark.parametrize(("record", "extend", "delete", "retype"), STATES)
async def test_what_a_volumes_state_allows(
    house: VolumeHouse, record: dict[str, Any], extend: str | None, delete: str | None, retype: str | None
) -> None:
    volume = await house.make()
    await house.change(volume.id, **record)
    asked = [
        ("extendVolume", {"volume_id": volume.id, "new_size": 20}, extend),
        ("batchExtendVolume", {"volumes": [{"volume_id": volume.id, "new_size": 20}]}, extend),
        ("deleteVolume", {"volume_id": volume.id}, delete),
        ("bulkDeleteVolume", {"volume_ids": [volume.id]}, delete),
        ("retypeVolume", {"volume_id": volume.id, "new_type": "SAS"}, retype),
    ]
    for kind, spec, reason in asked:
        if reason is not None:
            error = await refusal(house, kind, **spec)
            assert said(error)[:2] == (Conflict, reason)
            assert volume.id in error.message
            continue
        job_id = await house.submit(kind, **spec, held=True)  # accepted; then as before
        await house.service.cancel(JobId(job_id), project=None)
        await house.change(volume.id, **{"job_id": None, "status_before": None, "size_asked_gib": None, **record})


@pytest.mark.parametrize(
    ("kind", "spec", "status"),
    [
        ("extendVolume", {"new_size": 20}, "extending"),
        ("deleteVolume", {}, "deleting"),
        ("retypeVolume", {"new_type": "SAS"}, "retyping"),
    ],
)
async def test_a_volume_leaves_its_stable_status_when_its_job_is_accepted(
    house: VolumeHouse, kind: str, spec: dict[str, Any], status: str
) -> None:
    volume = await house.make()
    await house.store.set_queue(Queue("volumes", paused=True))
    house.served.system.dispatch.announce("volumes")
    job_id = await house.submit(kind, volume_id=volume.id, **spec)
    changed = await house.volume(volume.id)
    assert (changed.status, changed.status_before, changed.job_id) == (status, "available", job_id)


async def test_a_volume_only_grows_and_within_its_range(house: VolumeHouse) -> None:
    volume = await house.make(size=20)
    for size in (20, 19, -1):
        error = await refusal(house, "extendVolume", volume_id=volume.id, new_size=size)
        assert said(error) == (InvalidInput, "volume_shrink", "$.input.new_size")
    assert said(await refusal(house, "extendVolume", volume_id=volume.id, new_size=32769))[1] == "volume_size"


async def test_a_retype_needs_another_type_that_exists(house: VolumeHouse) -> None:
    volume = await house.make()
    assert said(await refusal(house, "retypeVolume", volume_id=volume.id, new_type="SSD"))[1] == "volume_type_same"
    assert said(await refusal(house, "retypeVolume", volume_id=volume.id, new_type="FLOPPY"))[1] == "volume_type_unknown"


async def test_one_volume_that_is_refused_refuses_the_whole_batch(house: VolumeHouse) -> None:
    free, busy = await house.make(), await house.make()
    await house.change(busy.id, job_id="somebody")
    error = await refusal(house, "bulkDeleteVolume", volume_ids=[free.id, busy.id])
    assert said(error) == (Conflict, "volume_busy", "$.input.volume_ids[1]")
    extends = [{"volume_id": free.id, "new_size": 20}, {"volume_id": busy.id, "new_size": 20}]
    error = await refusal(house, "batchExtendVolume", volumes=extends)
    assert said(error) == (Conflict, "volume_busy", "$.input.volumes[1].volume_id")
    for kind, spec in (("bulkDeleteVolume", {"volume_ids": [free.id] * 2}), ("batchExtendVolume", {"volumes": extends[:1] * 2})):
        assert "twice" in (await refusal(house, kind, **spec)).message
    for kind, spec in (("bulkDeleteVolume", {"volume_ids": []}), ("batchExtendVolume", {"volumes": []})):
        assert said(await refusal(house, kind, **spec))[1] == "count_range"


async def test_another_projects_volume_is_not_found(house: VolumeHouse) -> None:
    volume = await house.make()
    for kind, spec in (
        ("extendVolume", {"volume_id": volume.id, "new_size": 20}),
        ("deleteVolume", {"volume_id": volume.id}),
        ("retypeVolume", {"volume_id": volume.id, "new_type": "SAS"}),
    ):
        assert said(await refusal(house, kind, project="another", **spec)) == (NotFound, "volume_not_found", "$.input.volume_id")


# --- quotas --------------------------------------------------------------------------------------------------------


async def test_quotas_count_what_is_reserved_and_each_project_has_its_own(house: VolumeHouse) -> None:
    made = await house.make(size=50)
    await house.submit("createVolume", volume={**SPEC, "size": 40}, held=True)
    await house.submit("extendVolume", volume_id=made.id, new_size=100, held=True)  # 140 of 200
    error = await refusal(house, "createVolume", volume={**SPEC, "size": 61})
    assert said(error) == (LimitExceeded, "capacity_quota", "$.input.volume.size")
    assert (error.fields["limit"], error.fields["allowed"], error.fields["seen"]) == ("volumes_gib_max", 200, 201)
    error = await refusal(house, "batchCreateVolume", volume=SPEC, count=3)
    assert said(error)[:2] == (LimitExceeded, "volume_quota")
    assert (error.fields["limit"], error.fields["allowed"], error.fields["seen"]) == ("volumes_max", 4, 5)
    await house.submit("batchCreateVolume", volume={**SPEC, "size": 30}, count=2, held=True)  # 200 of 200, 4 of 4
    assert said(await refusal(house, "createVolume", volume=SPEC))[1] == "volume_quota"
    await house.submit("createVolume", project="another", volume=SPEC, held=True)


async def test_an_extend_over_the_quota_is_refused(house: VolumeHouse) -> None:
    volumes = [await house.make(size=50) for _ in range(2)]
    extends = [{"volume_id": volume.id, "new_size": 101} for volume in volumes]
    error = await refusal(house, "batchExtendVolume", volumes=extends)
    assert said(error)[:2] == (LimitExceeded, "capacity_quota")
    assert said(await refusal(house, "extendVolume", volume_id=volumes[0].id, new_size=151))[1] == "capacity_quota"


# --- ids and names -------------------------------------------------------------------------------------------------


def test_ids_are_the_same_each_time_and_look_random() -> None:
    assert volume_id_of("j") == volume_id_of("j", 0) != volume_id_of("j", 1)
    assert uuid.UUID(volume_id_of("j", 3)).version == 4


def test_names_of_a_batch() -> None:
    assert [name_in_batch("d", at, 2) for at in range(2)] == ["d-0001", "d-0002"]
    assert (name_in_batch("d", 0, 1), name_in_batch("", 1, 2)) == ("d", "")
