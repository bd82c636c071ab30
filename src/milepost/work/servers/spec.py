"""What the server kinds take and give.  Ranges and names are checked at admission, where a refusal has its reason.

Source: opentelekomcloud-docs/elastic-cloud-server api-ref, "Creating an ECS"; huaweicloudsdkecs v2 model.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

COUNT_MAX = 100
SERVERS_AT_ONCE_MAX = 1000
NAME_CHARS_MAX = 64
DATA_VOLUMES_MAX = 23
USER_DATA_CHARS_MAX = 64 << 10

PowerType = Literal["SOFT", "HARD"]


class NicSpec(msgspec.Struct, kw_only=True):
    """One network card."""

    subnet_id: Annotated[str, Meta(max_length=64)]
    ip_address: Annotated[str | None, Meta(description="private IPv4; default: the first free one")] = None
    security_groups: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=32)] = []


class DiskSpec(msgspec.Struct, kw_only=True):
    """One volume that is made with the server."""

    volume_type: str
    size: Annotated[int, Meta(description="GiB")]


class ServerSpec(msgspec.Struct, kw_only=True):
    """What a server shall be."""

    name: Annotated[str, Meta(description=f"1 to {NAME_CHARS_MAX} characters")]
    image_id: str
    flavor_id: str
    vpc_id: Annotated[str, Meta(max_length=64)]
    nics: Annotated[list[NicSpec], Meta(description="the first is the primary one")]
    root_volume: DiskSpec
    data_volumes: list[DiskSpec] = []
    availability_zone: Annotated[str, Meta(description="one of the setting `zones`; empty: the first of them")] = ""
    metadata: Annotated[dict[str, str], Meta(max_length=64)] = {}
    tags: Annotated[dict[str, str], Meta(max_length=64)] = {}
    user_data: (
        Annotated[
            str, Meta(max_length=USER_DATA_CHARS_MAX, description="base64; the guest's cloud-init finds it on a disk CIDATA")
        ]
        | None
    ) = None
    key_name: Annotated[str, Meta(max_length=64)] | None = None
    description: Annotated[str, Meta(max_length=255)] = ""
    security_groups: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=32)] = []


class CreateServer(msgspec.Struct, kw_only=True):
    """Servers alike, named name-0001, name-0002 … when there is more than one."""

    server: ServerSpec
    count: Annotated[int, Meta(description=f"1 to {COUNT_MAX}")] = 1
    server_ids: list[str] | None = None


class CreateSingleServer(msgspec.Struct, kw_only=True):
    """One server.  `server_id` is chosen at admission when there is none."""

    server: ServerSpec
    server_id: str | None = None


class DeleteServer(msgspec.Struct, kw_only=True):
    """Servers are deleted with their system disks, and with their data disks where asked."""

    server_ids: list[str]
    delete_volume: Annotated[bool, Meta(description="the data disks too")] = False


class DeleteSingleServer(msgspec.Struct, kw_only=True):
    """One server is deleted."""

    server_id: str
    delete_volume: bool = False


class StartServer(msgspec.Struct, kw_only=True):
    """Stopped servers run again."""

    server_ids: list[str]


class StopServer(msgspec.Struct, kw_only=True):
    """Servers stop: SOFT asks the guest, HARD does not."""

    server_ids: list[str]
    type: PowerType = "SOFT"


class RebootServer(msgspec.Struct, kw_only=True):
    """Servers stop and run again."""

    server_ids: list[str]
    type: PowerType = "SOFT"


class PowerSingle(msgspec.Struct, kw_only=True):
    """One server; `type` says how one that runs is stopped."""

    server_id: str
    type: PowerType = "SOFT"


class ResizeServer(msgspec.Struct, kw_only=True):
    """A stopped server gets another flavor."""

    server_id: str
    flavor_id: str


class BatchResizeServer(msgspec.Struct, kw_only=True):
    """Stopped servers get another flavor, the same for all."""

    server_ids: Annotated[list[str], Meta(description=f"1 to {SERVERS_AT_ONCE_MAX}")]
    flavor_id: str


class AttachVolume(msgspec.Struct, kw_only=True):
    """A server gets a volume."""

    server_id: str
    volume_id: str
    device: Annotated[str | None, Meta(description="/dev/sdb … /dev/sdx; default: the first free one")] = None


class DetachVolume(msgspec.Struct, kw_only=True):
    """A volume leaves its server."""

    server_id: str
    volume_id: str
    force: Annotated[bool, Meta(description="also when the machine does not let go of it: it is stopped then")] = False


class AddNic(msgspec.Struct, kw_only=True):
    """A server gets network cards."""

    server_id: str
    nics: list[NicSpec]


class AddSingleNic(msgspec.Struct, kw_only=True):
    """A server gets one network card."""

    server_id: str
    nic: NicSpec
    nic_id: str | None = None


class DeleteNic(msgspec.Struct, kw_only=True):
    """Network cards leave a server; the primary one stays."""

    server_id: str
    nic_ids: list[str]


class DeleteSingleNic(msgspec.Struct, kw_only=True):
    """One network card leaves a server."""

    server_id: str
    nic_id: str


class ChangeOs(msgspec.Struct, kw_only=True):
    """A stopped server gets a new system disk from another image, and is started."""

    server_id: str
    image_id: str
    new_volume_id: Annotated[str | None, Meta(description="chosen at admission")] = None
    old_volume_id: Annotated[str | None, Meta(description="chosen at admission")] = None


class ReInitOs(msgspec.Struct, kw_only=True):
    """A stopped server gets a new system disk from its own image, and is started."""

    server_id: str
    image_id: Annotated[str | None, Meta(description="chosen at admission")] = None
    new_volume_id: Annotated[str | None, Meta(description="chosen at admission")] = None
    old_volume_id: Annotated[str | None, Meta(description="chosen at admission")] = None


class ServerResult(msgspec.Struct, kw_only=True):
    """The server that it was about."""

    server_id: str


class ServersResult(msgspec.Struct, kw_only=True):
    """The servers that it was about, in the order of the request."""

    server_ids: list[str]


class AttachResult(msgspec.Struct, kw_only=True):
    """What is attached where."""

    server_id: str
    volume_id: str
    device: str


class NicResult(msgspec.Struct, kw_only=True):
    """The network card of the server that it was about."""

    server_id: str
    nic_id: str


class NicsResult(msgspec.Struct, kw_only=True):
    """The network cards of the server that it was about."""

    server_id: str
    nic_ids: list[str]


def id_of(job_id: str, what: str, position: int = 0) -> str:
    """An id that this job chooses: the same whenever it is asked for, in the form of a random UUID."""
    digest = hashlib.sha256(f"{what} {job_id} {position}".encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


def mac_of(nic_id: str) -> str:
    """The card's address: the prefix is the one that OpenStack's clouds use for their guests."""
    digest = hashlib.sha256(nic_id.encode()).digest()
    return "fa:16:3e:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def name_in_batch(name: str, position: int, count: int) -> str:
    """What the server at this position, from 0, is called; one alone keeps its name."""
    return f"{name}-{position + 1:04d}" if count > 1 else name
