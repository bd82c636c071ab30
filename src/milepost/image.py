"""What a stored disk image is: the value behind the resource type `image`.  Imports nothing of ours.

The import kind writes it, the Glance wire shows it; its bytes are the `doc` of the resource whose id is the image's.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

IMAGE = "image"  # the resource type in the store

DISK_FORMATS = ("ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop")
CONTAINER_FORMATS = ("ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed")


class Visibility(StrEnum):
    """Who sees an image besides its owner."""

    PUBLIC = "public"  # everybody, in lists too
    COMMUNITY = "community"  # everybody who knows the id, and lists that ask for it
    SHARED = "shared"  # its members
    PRIVATE = "private"  # nobody


class ImageStatus(StrEnum):
    """Where an image is in its life; only an active or deactivated one has bytes."""

    QUEUED = "queued"
    SAVING = "saving"
    ACTIVE = "active"
    DEACTIVATED = "deactivated"


class Image(msgspec.Struct, kw_only=True):
    """One disk image.  `size` and `virtual_size` are bytes, `min_disk` GiB, `min_ram` MiB.

    `object_key` is where its bytes are in object storage; None as long as there are none.
    """

    id: str
    name: str | None = None
    status: ImageStatus = ImageStatus.QUEUED
    visibility: Visibility = Visibility.SHARED
    disk_format: str | None = None
    container_format: str | None = None
    size: int | None = None
    virtual_size: int | None = None
    checksum: str | None = None  # md5, 32 hex digits
    os_hash_algo: str | None = None
    os_hash_value: str | None = None
    owner: str | None = None
    protected: bool = False
    min_ram: int = 0
    min_disk: int = 0
    os_hidden: bool = False
    tags: list[str] = []
    properties: dict[str, str] = {}
    object_key: str | None = None
    job_id: str | None = None  # the import that made it
    created_us: int
    updated_us: int


encode_image = msgspec.json.Encoder().encode
decode_image = msgspec.json.Decoder(Image).decode
