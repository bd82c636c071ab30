"""What a machine is to be made of, as a value."""

from __future__ import annotations

from typing import Literal

import msgspec

DISKS_MAX = 24  # letters sda … sdx
CARDS_MAX = 12

Accel = Literal["kvm", "tcg"]


class DiskPart(msgspec.Struct, frozen=True, kw_only=True):
    """One disk: an image file and its place on the controller; slot 0 is /dev/sda."""

    id: str  # the volume's
    path: str
    format: Literal["raw", "qcow2"]
    slot: int
    boot: bool = False
    shared: bool = False  # other machines may have it open too

    @property
    def device(self) -> str:
        return device_name(self.slot)


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One network card on a user-mode network of its own."""

    id: str
    mac: str
    ip_address: str  # what the guest is given
    open: bool = False  # it may reach other networks, and the host's


class CdRom(msgspec.Struct, frozen=True, kw_only=True):
    """A read-only disc, booted from when no disk boots."""

    path: str


class MachineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a machine starts with."""

    id: str
    vcpus: int
    ram_mib: int
    accel: Accel
    disks: list[DiskPart] = []
    cards: list[Card] = []
    cdrom: CdRom | None = None
    seed: bool = False  # the folder `seed` holds first-boot data (cloud-init, NoCloud)


def device_name(slot: int) -> str:
    """What Linux calls the disk in this slot: they are numbered in the order of their slots."""
    return f"/dev/sd{chr(ord('a') + slot)}"


def slot_of(device: str) -> int | None:
    """The slot of `/dev/sdb` (also written vdb or xvdb, as other hypervisors name it); None when it names none."""
    name = device.removeprefix("/dev/")
    for prefix in ("sd", "vd", "xvd"):
        letter = name.removeprefix(prefix)
        if len(letter) == 1 and name == prefix + letter and "a" <= letter < chr(ord("a") + DISKS_MAX):
            return ord(letter) - ord("a")
    return None


__all__ = ["CARDS_MAX", "DISKS_MAX", "Accel", "Card", "CdRom", "DiskPart", "MachineSpec", "device_name", "slot_of"]
