"""What a volume is: the value behind the resource type `volume`.  Imports nothing of ours.

The volume kinds write it, the block-storage facade shows it; its bytes are a disk image among the server's files.
Status words are the block-storage API's own, because the record exists to be shown there.
Source: opentelekomcloud-docs/elastic-volume-service api-ref, appendix "EVS Disk Status".
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

VOLUME = "volume"  # the resource type in the store

DiskFormat = Literal["raw", "qcow2"]

# Source: the same api-ref and huaweicloudsdkevs; they differ in speed where the disks do: here all are files.
VOLUME_TYPES = ("SATA", "SAS", "GPSSD", "SSD", "ESSD", "GPSSD2", "ESSD2")
SYSTEM_GIB_MAX = 1024
DATA_GIB_MIN, DATA_GIB_MAX = 10, 32768


class VolumeStatus(StrEnum):
    """Where a volume is in its life."""

    CREATING = "creating"
    DOWNLOADING = "downloading"  # its image is copied into it
    AVAILABLE = "available"
    ATTACHING = "attaching"
    IN_USE = "in-use"
    DETACHING = "detaching"
    EXTENDING = "extending"
    RETYPING = "retyping"
    DELETING = "deleting"
    ERROR = "error"
    ERROR_EXTENDING = "error_extending"
    ERROR_DELETING = "error_deleting"


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A server that has the volume, and the name of its device there."""

    id: str
    server_id: str
    device: str
    attached_us: int


class Volume(msgspec.Struct, kw_only=True):
    """One volume.  `size_gib` is what a guest sees; `file` is the name of the disk image in the folder `volumes`.

    `job_id` is the job that changes it now; None while nobody does, so it is the volume's lock.  `status_before` is what its
    status was then, and what it is again when that job never ran; `size_asked_gib` is what it is being extended to.
    """

    id: str
    project: str
    name: str = ""
    description: str = ""
    status: VolumeStatus = VolumeStatus.CREATING
    size_gib: int
    volume_type: str
    availability_zone: str = ""
    format: DiskFormat = "raw"
    file: str | None = None  # None while there are no bytes
    bootable: bool = False
    multiattach: bool = False
    image_id: str | None = None
    backing_file: str | None = None  # in the folder `volumes`, of a copy-on-write volume
    image_metadata: dict[str, str] = {}
    metadata: dict[str, str] = {}
    tags: dict[str, str] = {}
    attachments: list[Attachment] = []
    job_id: str | None = None
    status_before: VolumeStatus | None = None
    size_asked_gib: int | None = None
    order_id: str | None = None
    user_id: str = ""
    fault: str | None = None  # why its status is an error
    created_us: int
    updated_us: int


encode_volume = msgspec.json.Encoder().encode
decode_volume = msgspec.json.Decoder(Volume).decode
