"""The machine behind a server's record: its folder, and what it is made of."""

from __future__ import annotations

import base64
import contextlib
from pathlib import Path

import msgspec

from milepost import PermanentError
from milepost.compute import FLAVORS, Disk, Nic, Server
from milepost.machines import Card, CdRom, DiskPart, Machine, MachineSpec, Seen
from milepost.machines.command import SEED_FOLDER
from milepost.machines.value import Accel, slot_of
from milepost.settings import Settings
from milepost.volume import Volume
from milepost.work.threads import in_thread
from milepost.work.volumes.disk import DiskFolder

DISC = "cdrom.iso"
MEMORY_KEPT_MIB = 128  # of the host's memory, beside the guest's


def servers_folder(data: Path) -> Path:
    """Where the folders of all machines are."""
    return data / "servers"


def folder_of(data: Path, server_id: str) -> Path:
    return servers_folder(data) / server_id


class Machines:
    """What the servers' machines really do, for whoever shows servers."""

    def __init__(self, data: Path) -> None:
        self._data = data

    async def observe(self, server: Server) -> Seen:
        """Errors: OSError when it cannot be looked at."""
        return await in_thread(Machine(folder_of(self._data, server.id)).look)


def disk_part(data: Path, disk: Disk, volume: Volume) -> DiskPart:
    """The volume as a disk of a machine.  Errors: PermanentError when it has no bytes."""
    slot = slot_of(disk.device)
    if volume.file is None or slot is None:
        raise PermanentError("volume_state", f"Volume {volume.id} is {volume.status} and has no content.")
    return DiskPart(
        id=volume.id,
        path=str(DiskFolder(data).path(volume).resolve()),
        format=volume.format,
        slot=slot,
        boot=disk.boot_index == 0,
        shared=volume.multiattach and volume.format == "raw",
    )


def card_part(nic: Nic, settings: Settings) -> Card:
    return Card(id=nic.id, mac=nic.mac, ip_address=nic.ip_address, open=settings.server_network == "nat")


def machine_spec(data: Path, server: Server, volumes: dict[str, Volume], settings: Settings, accel: Accel) -> MachineSpec:
    """What the record's machine starts with."""
    flavor = FLAVORS[server.flavor_id]
    folder = folder_of(data, server.id)
    return MachineSpec(
        id=server.id,
        vcpus=flavor.vcpus,
        ram_mib=flavor.ram_mib,
        accel=accel,
        disks=[disk_part(data, disk, volumes[disk.volume_id]) for disk in server.disks],
        cards=[card_part(nic, settings) for nic in server.nics],
        cdrom=CdRom(path=DISC) if (folder / DISC).exists() else None,
        seed=(folder / SEED_FOLDER).is_dir(),
    )


def write_seed(folder: Path, server: Server) -> None:
    """The guest's first-boot data, where there is any.  Source: cloud-init's datasource NoCloud."""
    if server.user_data is None:
        return
    seed = folder / SEED_FOLDER
    seed.mkdir(parents=True, exist_ok=True, mode=0o700)
    meta = {"instance-id": server.id, "local-hostname": server.name}
    (seed / "meta-data").write_bytes(msgspec.json.encode(meta))  # JSON is YAML
    (seed / "user-data").write_bytes(base64.b64decode(server.user_data))


def check_memory(ram_mib: int) -> None:
    """The host has the memory now.  Errors: PermanentError (`no_capacity`)."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free_mib = int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) // 1024
        if free_mib < ram_mib + MEMORY_KEPT_MIB:
            raise PermanentError(
                "no_capacity", f"The server needs {ram_mib} MiB of memory; this host has {free_mib} MiB left at the moment."
            )
