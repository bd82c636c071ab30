"""What the volume kinds take and give.  Ranges and names are checked at admission, where a refusal has its reason.

Source: opentelekomcloud-docs/elastic-volume-service api-ref, "Creating EVS Disks"; huaweicloudsdkevs v2 model.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Annotated

import msgspec
from msgspec import Meta

from milepost.volume import DiskFormat

COUNT_MAX = 100  # volumes of one batch
NAME_CHARS_MAX = 255
BATCH_NAME_CHARS_MAX = 250  # and five for `-0001`
DESCRIPTION_CHARS_MAX = 255


class VolumeSpec(msgspec.Struct, kw_only=True):
    """What a volume shall be."""

    size: Annotated[int, Meta(description="GiB")]
    volume_type: Annotated[str, Meta(description="SATA, SAS, GPSSD, SSD, ESSD, GPSSD2 or ESSD2")]
    name: str = ""
    description: str = ""
    availability_zone: Annotated[str, Meta(description="one of the setting `zones`; empty: the first of them")] = ""
    image_id: Annotated[str | None, Meta(description="the image whose content it has")] = None
    full_clone: Annotated[bool, Meta(description="copy the image instead of keeping what differs from it")] = False
    format: Annotated[
        DiskFormat | None, Meta(description="default: qcow2 on top of an image, else raw; raw of an image is a full clone")
    ] = None
    multiattach: Annotated[bool, Meta(description="several servers may have it at the same time; its format is raw")] = False
    metadata: dict[str, str] = {}
    tags: dict[str, str] = {}
    server_id: Annotated[str | None, Meta(description="attached to this server once it is made")] = None


class CreateVolume(msgspec.Struct, kw_only=True):
    """One volume.  `volume_id` is chosen at admission when there is none."""

    volume: VolumeSpec
    volume_id: str | None = None


class BatchCreateVolume(msgspec.Struct, kw_only=True):
    """Several volumes alike, named name-0001, name-0002 …"""

    volume: VolumeSpec
    count: Annotated[int, Meta(description=f"1 to {COUNT_MAX}")]
    volume_ids: list[str] | None = None


class ExtendVolume(msgspec.Struct, kw_only=True):
    """A volume gets larger."""

    volume_id: str
    new_size: Annotated[int, Meta(description="GiB, more than it has")]


class BatchExtendVolume(msgspec.Struct, kw_only=True):
    """Several volumes get larger, each by its own measure."""

    volumes: list[ExtendVolume]


class DeleteVolume(msgspec.Struct, kw_only=True):
    """A volume is wiped and removed."""

    volume_id: str


class BulkDeleteVolume(msgspec.Struct, kw_only=True):
    """Several volumes are wiped and removed."""

    volume_ids: list[str]


class RetypeVolume(msgspec.Struct, kw_only=True):
    """A volume gets another type."""

    volume_id: str
    new_type: str


class VolumeResult(msgspec.Struct, kw_only=True):
    """The volume that it was about."""

    volume_id: str
    name: str
    size: Annotated[int, Meta(description="GiB")]
    volume_type: str


class VolumesResult(msgspec.Struct, kw_only=True):
    """The volumes that it was about, in the order of the request."""

    volume_ids: list[str]


def volume_id_of(job_id: str, position: int = 0) -> str:
    """The id of a volume that this job makes: the same whenever it is asked for, in the form of a random UUID."""
    digest = hashlib.sha256(f"volume {job_id} {position}".encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


def name_in_batch(name: str, position: int, count: int) -> str:
    """What the volume at this position, from 0, is called.  One alone keeps its name, and without a name all have none."""
    return f"{name}-{position + 1:04d}" if name and count > 1 else name


__all__ = [
    "BATCH_NAME_CHARS_MAX",
    "COUNT_MAX",
    "DESCRIPTION_CHARS_MAX",
    "NAME_CHARS_MAX",
    "BatchCreateVolume",
    "BatchExtendVolume",
    "BulkDeleteVolume",
    "CreateVolume",
    "DeleteVolume",
    "ExtendVolume",
    "RetypeVolume",
    "VolumeResult",
    "VolumeSpec",
    "VolumesResult",
    "name_in_batch",
    "volume_id_of",
]
