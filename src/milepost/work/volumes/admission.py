"""What is checked and reserved before a job of volumes is accepted.

Rules
1. `job_id` in the record is the volume's lock: whoever finds it taken is refused (`volume_busy`).  It is written with the
   record's version as the condition, so of two requests at the same time one is accepted and the other finds it taken.
2. Quotas count what is reserved, not what is there: volumes being made, sizes being extended to, orders that are not paid.
3. A volume leaves its stable status when its job is accepted.  While the job is held (an order) it keeps it, and is locked.
4. Every refusal has a `reason`, and names the field in its message and `path`.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from milepost import Admission, Admitted, Conflict, InvalidInput, NotFound, Write
from milepost.compute import SERVER
from milepost.volume import (
    VOLUME,
    Volume,
    VolumeStatus,
)
from milepost.work.volumes.checks import (
    check_free,
    check_image_fits,
    check_quota,
    check_size,
    check_type,
    check_zone,
    find_image,
    find_volume,
    image_metadata,
    volume_resource,
    wrong_state,
)
from milepost.work.volumes.spec import (
    BATCH_NAME_CHARS_MAX,
    COUNT_MAX,
    DESCRIPTION_CHARS_MAX,
    NAME_CHARS_MAX,
    BatchCreateVolume,
    BatchExtendVolume,
    BulkDeleteVolume,
    CreateVolume,
    DeleteVolume,
    ExtendVolume,
    RetypeVolume,
    VolumeSpec,
    name_in_batch,
    volume_id_of,
)

GIB = 1 << 30

EXTENDABLE = frozenset({VolumeStatus.AVAILABLE, VolumeStatus.IN_USE, VolumeStatus.ERROR_EXTENDING})
RETYPABLE = frozenset({VolumeStatus.AVAILABLE, VolumeStatus.IN_USE})
DELETABLE = frozenset({VolumeStatus.AVAILABLE, VolumeStatus.ERROR, VolumeStatus.ERROR_EXTENDING, VolumeStatus.ERROR_DELETING})


# --- create --------------------------------------------------------------------------------------------------------


async def admit_create(ask: Admission, spec: CreateVolume) -> Admitted:
    """Its record, `creating`."""
    volume_id = (
        volume_id_of(ask.job_id) if spec.volume_id is None else await _check_new_id(ask, spec.volume_id, "$.input.volume_id")
    )
    writes = await _reserve_new(ask, spec.volume, [volume_id])
    return Admitted(input=msgspec.structs.replace(spec, volume_id=volume_id), writes=writes)


async def admit_batch_create(ask: Admission, spec: BatchCreateVolume) -> Admitted:
    """A record for each, `creating`."""
    _check_count(spec.count, "count", "$.input.count")
    volume_ids = spec.volume_ids
    if volume_ids is None:
        volume_ids = [volume_id_of(ask.job_id, position) for position in range(spec.count)]
    elif len(set(volume_ids)) != spec.count or len(volume_ids) != spec.count:
        raise InvalidInput(
            f"volume_ids has {len(volume_ids)} entries ({len(set(volume_ids))} different ones), count is {spec.count}",
            path="$.input.volume_ids",
            reason="count_range",
        )
    else:
        for position, volume_id in enumerate(volume_ids):
            await _check_new_id(ask, volume_id, f"$.input.volume_ids[{position}]")
    writes = await _reserve_new(ask, spec.volume, volume_ids)
    return Admitted(input=msgspec.structs.replace(spec, volume_ids=volume_ids), writes=writes)


async def _reserve_new(ask: Admission, spec: VolumeSpec, volume_ids: Sequence[str]) -> list[Write]:
    _check_names(spec, len(volume_ids))
    check_type(spec.volume_type, "$.input.volume.volume_type", "volume_type")
    zone = check_zone(ask, spec.availability_zone, "$.input.volume.availability_zone")
    image = None if spec.image_id is None else await find_image(ask, spec.image_id)
    if spec.multiattach and spec.format == "qcow2":
        raise InvalidInput(
            "format is qcow2, which only one server can have open; a multiattach volume is raw",
            path="$.input.volume.format",
        )
    check_size(spec.size, "$.input.volume.size", "size", of_image=image is not None)
    if image is not None:
        check_image_fits(image, spec.size, "$.input.volume.size")
    if spec.server_id is not None:
        await _check_server(ask, spec.server_id)
    await check_quota(ask, count=len(volume_ids), gib=spec.size * len(volume_ids), path="$.input.volume.size")
    order_id = f"CS{ask.job_id.replace('-', '').upper()}" if ask.held else None
    return [
        _write(
            Volume(
                id=volume_id,
                project=ask.project,
                name=name_in_batch(spec.name, position, len(volume_ids)),
                description=spec.description,
                status=VolumeStatus.CREATING,
                size_gib=spec.size,
                volume_type=spec.volume_type,
                availability_zone=zone,
                format=format_of(spec),
                bootable=image is not None,
                multiattach=spec.multiattach,
                image_id=spec.image_id,
                image_metadata={} if image is None else image_metadata(image),
                metadata=spec.metadata,
                tags=spec.tags,
                job_id=ask.job_id,
                order_id=order_id,
                user_id=ask.origin.get("user_id", ""),
                created_us=ask.now_us,
                updated_us=ask.now_us,
            ),
            if_version=0,
        )
        for position, volume_id in enumerate(volume_ids)
    ]


def format_of(spec: VolumeSpec) -> Any:
    """The disk format that the volume will have.  A shared one is raw: two machines cannot both keep a qcow2 file's tables."""
    if spec.format is not None:
        return spec.format
    if spec.multiattach:
        return "raw"
    return "qcow2" if spec.image_id is not None and not spec.full_clone else "raw"


# --- changes of one that is there ------------------------------------------------------------------------------------


async def admit_extend(ask: Admission, spec: ExtendVolume) -> Admitted:
    """The volume is `extending`; its new size counts."""
    writes = await _reserve_extends(ask, [spec], ["$.input"])
    return Admitted(input=spec, writes=writes)


async def admit_batch_extend(ask: Admission, spec: BatchExtendVolume) -> Admitted:
    """All of them are `extending`, or none."""
    _check_count(len(spec.volumes), "volumes", "$.input.volumes")
    _check_once([one.volume_id for one in spec.volumes], "$.input.volumes")
    writes = await _reserve_extends(ask, spec.volumes, [f"$.input.volumes[{at}]" for at in range(len(spec.volumes))])
    return Admitted(input=spec, writes=writes)


async def _reserve_extends(ask: Admission, extends: Sequence[ExtendVolume], paths: Sequence[str]) -> list[Write]:
    writes, more_gib = [], 0
    for one, path in zip(extends, paths, strict=True):
        volume, version = await find_volume(ask, one.volume_id, f"{path}.volume_id")
        check_free(volume, f"{path}.volume_id")
        if volume.status not in EXTENDABLE:
            raise wrong_state(volume, "extended", EXTENDABLE, f"{path}.volume_id")
        if one.new_size <= volume.size_gib:
            raise InvalidInput(
                f"new_size is {one.new_size} GiB, volume {volume.id} has {volume.size_gib} GiB: a volume only grows",
                path=f"{path}.new_size",
                reason="volume_shrink",
            )
        check_size(one.new_size, f"{path}.new_size", "new_size", of_image=volume.image_id is not None)
        more_gib += one.new_size - volume.size_gib
        writes.append(_lock(ask, volume, version, VolumeStatus.EXTENDING, size_asked_gib=one.new_size))
    await check_quota(ask, count=0, gib=more_gib, path=f"{paths[0]}.new_size")
    return writes


async def admit_delete(ask: Admission, spec: DeleteVolume) -> Admitted:
    """The volume is `deleting`."""
    return Admitted(input=spec, writes=[await _reserve_delete(ask, spec.volume_id, "$.input.volume_id")])


async def admit_bulk_delete(ask: Admission, spec: BulkDeleteVolume) -> Admitted:
    """All of them are `deleting`, or none."""
    _check_count(len(spec.volume_ids), "volume_ids", "$.input.volume_ids")
    _check_once(spec.volume_ids, "$.input.volume_ids")
    writes = [
        await _reserve_delete(ask, volume_id, f"$.input.volume_ids[{position}]")
        for position, volume_id in enumerate(spec.volume_ids)
    ]
    return Admitted(input=spec, writes=writes)


async def _reserve_delete(ask: Admission, volume_id: str, path: str) -> Write:
    volume, version = await find_volume(ask, volume_id, path)
    if volume.attachments or volume.status in (VolumeStatus.IN_USE, VolumeStatus.ATTACHING, VolumeStatus.DETACHING):
        servers = ", ".join(one.server_id for one in volume.attachments) or "a server"
        raise Conflict(
            f"volume {volume.id} is attached to {servers}: detach it first",
            path=path,
            reason="volume_attached",
            volume_id=volume.id,
        )
    check_free(volume, path)
    if volume.status not in DELETABLE:
        raise wrong_state(volume, "deleted", DELETABLE, path)
    return _lock(ask, volume, version, VolumeStatus.DELETING)


async def admit_retype(ask: Admission, spec: RetypeVolume) -> Admitted:
    """The volume is `retyping`."""
    check_type(spec.new_type, "$.input.new_type", "new_type")
    volume, version = await find_volume(ask, spec.volume_id, "$.input.volume_id")
    check_free(volume, "$.input.volume_id")
    if volume.status not in RETYPABLE:
        raise wrong_state(volume, "retyped", RETYPABLE, "$.input.volume_id")
    if volume.volume_type == spec.new_type:
        raise InvalidInput(
            f"new_type is {spec.new_type}, which volume {volume.id} has already",
            path="$.input.new_type",
            reason="volume_type_same",
        )
    return Admitted(input=spec, writes=[_lock(ask, volume, version, VolumeStatus.RETYPING)])


def _lock(ask: Admission, volume: Volume, version: int, status: VolumeStatus, **values: Any) -> Write:
    """The volume is this job's, and shows it unless the job is held."""
    changed = msgspec.structs.replace(
        volume,
        status=volume.status if ask.held else status,
        status_before=volume.status,
        job_id=ask.job_id,
        updated_us=ask.now_us,
        **values,
    )
    return _write(changed, if_version=version)


# --- checks of what is asked for -----------------------------------------------------------------------------------------


def _check_names(spec: VolumeSpec, count: int) -> None:
    most = NAME_CHARS_MAX if count == 1 else BATCH_NAME_CHARS_MAX
    for field, value, allowed in (("name", spec.name, most), ("description", spec.description, DESCRIPTION_CHARS_MAX)):
        if len(value) > allowed:
            raise InvalidInput(
                f"{field} has {len(value)} characters; {allowed} are allowed" + (" in a batch" if allowed == most != 255 else ""),
                path=f"$.input.volume.{field}",
            )


def _check_count(count: int, field: str, path: str) -> None:
    if not 1 <= count <= COUNT_MAX:
        raise InvalidInput(f"{field}: {count} volumes; 1 to {COUNT_MAX} at once", path=path, reason="count_range")


def _check_once(volume_ids: Sequence[str], path: str) -> None:
    twice = sorted({one for one in volume_ids if volume_ids.count(one) > 1})
    if twice:
        raise InvalidInput(f"volume {twice[0][:80]} is named twice", path=path, reason="volume_busy", volume_id=twice[0][:80])


async def _check_new_id(ask: Admission, volume_id: str, path: str) -> str:
    """An id that was chosen by whoever asks: it becomes the name of a file."""
    try:
        plain = str(uuid.UUID(volume_id)) == volume_id
    except ValueError:
        plain = False
    if not plain:
        raise InvalidInput(f"volume_id {volume_id[:80]!r} is no UUID in small letters with dashes", path=path)
    try:
        await ask.resources.get(VOLUME, volume_id)
    except NotFound:
        return volume_id
    raise Conflict(f"volume_id {volume_id} is taken", path=path, reason="volume_busy", volume_id=volume_id)


async def _check_server(ask: Admission, server_id: str) -> None:
    try:
        found = (await ask.resources.get(SERVER, server_id)).project == ask.project
    except NotFound:
        found = False
    if not found:
        raise NotFound(f"server_id: no server {server_id[:80]}", path="$.input.volume.server_id", reason="server_not_found")


def _write(volume: Volume, *, if_version: int) -> Write:
    return Write(resource=volume_resource(volume), if_version=if_version)


__all__ = [
    "admit_batch_create",
    "admit_batch_extend",
    "admit_bulk_delete",
    "admit_create",
    "admit_delete",
    "admit_extend",
    "admit_retype",
    "check_free",
    "check_image_fits",
    "check_quota",
    "check_size",
    "check_type",
    "check_zone",
    "find_image",
    "find_volume",
    "format_of",
    "image_metadata",
    "volume_resource",
]
