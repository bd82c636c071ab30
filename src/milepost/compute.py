"""What a server (a virtual machine) and a flavor are: the value behind the resource type `server`.  Imports nothing of ours.

The server kinds write it, the compute facade shows it; behind it is a QEMU process.  Status words are the compute API's own,
because the record exists to be shown there.  Source: opentelekomcloud-docs/elastic-cloud-server api-ref, appendix ecs_statuses.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

SERVER = "server"  # the resource type in the store


class VmState(StrEnum):
    """What the record says the machine is; whether it really runs is asked of its process."""

    BUILDING = "building"
    ACTIVE = "active"
    STOPPED = "stopped"
    RESIZED = "resized"
    ERROR = "error"
    DELETED = "deleted"


class Nic(msgspec.Struct, frozen=True, kw_only=True):
    """One network card: `id` is its port, `ip_address` what the guest is given."""

    id: str
    subnet_id: str
    vpc_id: str
    mac: str
    ip_address: str
    security_groups: list[str] = []
    primary: bool = False


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """One attached volume: `boot_index` 0 is the system disk, None a data disk."""

    volume_id: str
    device: str
    boot_index: int | None = None
    delete_on_termination: bool = False


class Flavor(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine gets: processors and memory in MiB."""

    id: str
    vcpus: int
    ram_mib: int


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why a server is in error."""

    code: int
    message: str
    created_us: int


class Server(msgspec.Struct, kw_only=True):
    """One virtual machine.

    `job_id` is the job that changes it now; None while nobody does, so it is the server's lock.  `task_state` is what is being
    done to it, in Nova's words.
    """

    id: str
    project: str
    name: str
    description: str = ""
    vm_state: VmState = VmState.BUILDING
    task_state: str | None = None
    flavor_id: str
    flavor_asked_id: str | None = None  # being resized to this one: quotas count the larger of both
    image_id: str
    image_name: str = ""
    vpc_id: str = ""
    availability_zone: str = ""
    nics: list[Nic] = []
    disks: list[Disk] = []
    security_groups: list[str] = []
    metadata: dict[str, str] = {}
    tags: dict[str, str] = {}
    key_name: str | None = None
    user_data: str | None = None  # base64
    fault: Fault | None = None
    job_id: str | None = None
    order_id: str | None = None
    user_id: str = ""
    created_us: int
    updated_us: int
    launched_us: int | None = None


FLAVORS = {
    flavor.id: flavor
    for flavor in (
        Flavor(id="s6.small.1", vcpus=1, ram_mib=1024),
        Flavor(id="s6.medium.2", vcpus=1, ram_mib=2048),
        Flavor(id="s6.large.2", vcpus=2, ram_mib=4096),
        Flavor(id="s6.xlarge.2", vcpus=4, ram_mib=8192),
        Flavor(id="s6.2xlarge.2", vcpus=8, ram_mib=16384),
        Flavor(id="t6.small.1", vcpus=1, ram_mib=512),
        Flavor(id="t6.nano.1", vcpus=1, ram_mib=128),
    )
}

encode_server = msgspec.json.Encoder().encode
decode_server = msgspec.json.Decoder(Server).decode
