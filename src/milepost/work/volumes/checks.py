"""What a volume may be and a project may have: the checks of admission, also for other kinds that make or change volumes."""

from __future__ import annotations

import msgspec

from milepost import Admission, Conflict, InvalidInput, LimitExceeded, NotFound, Resource
from milepost.image import IMAGE, Image, ImageStatus, Visibility, decode_image
from milepost.volume import (
    DATA_GIB_MAX,
    DATA_GIB_MIN,
    SYSTEM_GIB_MAX,
    VOLUME,
    VOLUME_TYPES,
    Volume,
    VolumeStatus,
    decode_volume,
    encode_volume,
)
from milepost.work.volumes.spec import NAME_CHARS_MAX

GIB = 1 << 30


async def find_volume(ask: Admission, volume_id: str, path: str) -> tuple[Volume, int]:
    """The project's volume and its version.  Errors: NotFound (`volume_not_found`)."""
    try:
        resource = await ask.resources.get(VOLUME, volume_id)
    except NotFound:
        resource = None
    if resource is None or resource.project != ask.project:
        raise NotFound(f"volume_id: no volume {volume_id[:80]}", path=path, reason="volume_not_found", volume_id=volume_id[:80])
    return decode_volume(resource.doc), resource.version


def check_free(volume: Volume, path: str) -> None:
    """Nobody else changes it.  Errors: Conflict (`volume_busy`)."""
    if volume.job_id is not None:
        raise Conflict(
            f"volume {volume.id} is {volume.status} and job {volume.job_id} has it: wait until that job has ended",
            path=path,
            reason="volume_busy",
            volume_id=volume.id,
            hint=f"milepost wait {volume.job_id}",
        )


def wrong_state(volume: Volume, verb: str, allowed: frozenset[VolumeStatus], path: str) -> Conflict:
    """The refusal (`volume_state`) of what a volume's status does not allow."""
    return Conflict(
        f"volume {volume.id} is {volume.status}; it is {verb} only while {' or '.join(sorted(allowed))}",
        path=path,
        reason="volume_state",
        volume_id=volume.id,
        status=str(volume.status),
    )


def check_size(size: int, path: str, field: str, *, of_image: bool) -> None:
    """Errors: InvalidInput (`volume_size`)."""
    least, most = (1, SYSTEM_GIB_MAX) if of_image else (DATA_GIB_MIN, DATA_GIB_MAX)
    if not least <= size <= most:
        what = "a volume made from an image" if of_image else "a data volume"
        raise InvalidInput(f"{field} is {size} GiB; {what} has {least} to {most}", path=path, reason="volume_size")


def check_type(volume_type: str, path: str, field: str) -> None:
    """Errors: InvalidInput (`volume_type_unknown`)."""
    if volume_type not in VOLUME_TYPES:
        raise InvalidInput(
            f"{field} is {volume_type[:80]!r}; there are {', '.join(VOLUME_TYPES)}", path=path, reason="volume_type_unknown"
        )


def check_zone(ask: Admission, zone: str, path: str) -> str:
    """The zone that it will be in.  Errors: InvalidInput (`zone_unknown`)."""
    zones = ask.settings.zone_names
    if not zone:
        return zones[0] if zones else ""
    if (zones and zone not in zones) or len(zone) > NAME_CHARS_MAX:
        raise InvalidInput(
            f"availability_zone is {zone[:80]!r}; there are {', '.join(zones) or 'names of at most 255 characters'}",
            path=path,
            reason="zone_unknown",
        )
    return zone


async def find_image(ask: Admission, image_id: str, path: str = "$.input.volume.image_id") -> Image:
    """An image that the project may use and that has its bytes.

    Errors: NotFound (`image_not_found`), Conflict (`image_not_active`).
    """
    try:
        image = decode_image((await ask.resources.get(IMAGE, image_id)).doc)
    except NotFound:
        image = None
    visible = image is not None and (
        image.owner in (None, ask.project) or image.visibility in (Visibility.PUBLIC, Visibility.COMMUNITY)
    )
    if image is None or not visible:
        raise NotFound(f"image_id: no image {image_id[:80]}", path=path, reason="image_not_found", image_id=image_id[:80])
    if image.status is not ImageStatus.ACTIVE or image.object_key is None:
        raise Conflict(
            f"image_id: image {image.id} is {image.status}; only an active one can be used",
            path=path,
            reason="image_not_active",
            image_id=image.id,
        )
    return image


def check_image_fits(image: Image, size_gib: int, path: str) -> None:
    """Errors: InvalidInput (`image_too_large`)."""
    virtual_gib = -(-(image.virtual_size or image.size or 0) // GIB)
    needed = max(virtual_gib, image.min_disk)
    if size_gib < needed:
        why = (
            f"its virtual size is {virtual_gib} GiB" if virtual_gib >= image.min_disk else f"its min_disk is {image.min_disk} GiB"
        )
        raise InvalidInput(
            f"size is {size_gib} GiB; image {image.id} needs {needed} ({why})",
            path=path,
            reason="image_too_large",
            image_id=image.id,
        )


async def check_quota(ask: Admission, *, count: int, gib: int, path: str) -> None:
    """The project may have so much more.  Errors: LimitExceeded (`volume_quota`, `capacity_quota`)."""
    volumes = [_decode_use(resource.doc) for resource in await ask.resources.list(VOLUME)]
    limits = ask.settings
    if count and len(volumes) + count > limits.volumes_max:
        raise LimitExceeded(
            f"the project has {len(volumes)} volumes and {count} more were asked for; {limits.volumes_max} are allowed",
            limit="volumes_max",
            allowed=limits.volumes_max,
            seen=len(volumes) + count,
            path=path,
            reason="volume_quota",
        )
    used = sum(max(volume.size_gib, volume.size_asked_gib or 0) for volume in volumes)
    if used + gib > limits.volumes_gib_max:
        raise LimitExceeded(
            f"the project's volumes have {used} GiB and {gib} more were asked for; {limits.volumes_gib_max} are allowed",
            limit="volumes_gib_max",
            allowed=limits.volumes_gib_max,
            seen=used + gib,
            path=path,
            reason="capacity_quota",
        )


class _Use(msgspec.Struct):
    """What of a volume counts."""

    size_gib: int
    size_asked_gib: int | None = None


_decode_use = msgspec.json.Decoder(_Use).decode


def image_metadata(image: Image) -> dict[str, str]:
    """What a volume keeps of the image that it was made from.  Source: cinder's volume_image_metadata."""
    return {
        **{name: value for name, value in image.properties.items() if len(value) <= NAME_CHARS_MAX},
        "image_id": image.id,
        "image_name": image.name or "",
        "disk_format": image.disk_format or "",
        "container_format": image.container_format or "",
        "size": str(image.size or 0),
        "min_disk": str(image.min_disk),
        "min_ram": str(image.min_ram),
        "checksum": image.checksum or "",
    }


def volume_resource(volume: Volume) -> Resource:
    """The record as the store keeps it."""
    return Resource(
        type=VOLUME,
        id=volume.id,
        project=volume.project,  # type: ignore[arg-type]
        doc=encode_volume(volume),
        created_us=volume.created_us,
        updated_us=volume.updated_us,
        version=0,
    )


__all__ = [
    "check_free",
    "check_image_fits",
    "check_quota",
    "check_size",
    "check_type",
    "check_zone",
    "find_image",
    "find_volume",
    "image_metadata",
    "volume_resource",
    "wrong_state",
]
