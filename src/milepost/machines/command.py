"""QEMU's command line, and what is hot-plugged, as pure functions of a value.

Rules
1. Nothing that QEMU would add by itself: no default devices, no user configuration.
2. Parts with caller's words in them are JSON, so that no comma or quote in a path can add an option.
3. Files of the machine itself are named relative to its folder, which is QEMU's working folder: a socket's path has at most 107
   bytes, a data folder's may have more.
4. Disks sit on one SCSI controller: dozens of them can come and go without a PCI slot each, and leave without asking the guest.
5. What the guest prints is kept in a ring in QEMU's memory, not in a file: a guest cannot fill the host's disk with words.

Source: qemu docs/system/invocation, docs/system/security (sandbox), qapi/block-core.json, qapi/net.json.
"""

from __future__ import annotations

import ipaddress
import uuid
from typing import Any

import msgspec

from milepost.machines.value import Card, DiskPart, MachineSpec

PROGRAM = "qemu-system-x86_64"
PACKAGE = "qemu-system-x86"  # Debian's and Ubuntu's

PROCESS_FILE, PID_FILE, QMP_SOCKET, CONSOLE_SOCKET, SEED_FOLDER = "process", "pid", "qmp.sock", "console.sock", "seed"
CONTROLLER = "scsi0"
CONSOLE = "console"
CONSOLE_BYTES = 64 << 10
TRANSLATED_MIB = 128  # emulated code that is kept translated

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


def command_line(spec: MachineSpec) -> list[str]:
    """What starts the machine; run in its folder."""
    argv = [PROGRAM, "-nodefaults", "-no-user-config", "-sandbox", SANDBOX]
    argv += ["-name", f"milepost-{spec.id}", "-uuid", str(uuid.UUID(spec.id))]
    argv += ["-machine", "pc,usb=off,vmport=off,graphics=on", *_accel(spec)]
    argv += ["-smp", str(spec.vcpus), "-m", f"{spec.ram_mib}M", "-rtc", "base=utc"]
    argv += ["-pidfile", PID_FILE, "-display", "none", "-boot", "strict=on"]
    argv += ["-chardev", f"socket,id=qmp,path={QMP_SOCKET},server=on,wait=off", "-mon", "chardev=qmp,mode=control"]
    argv += ["-chardev", f"ringbuf,id={CONSOLE},size={CONSOLE_BYTES}", "-serial", f"chardev:{CONSOLE}"]
    argv += ["-chardev", f"socket,id=login,path={CONSOLE_SOCKET},server=on,wait=off", "-serial", "chardev:login"]
    argv += _device({"driver": "VGA", "vgamem_mb": 16})
    argv += ["-object", _json({"qom-type": "rng-builtin", "id": "rng0"}), *_device({"driver": "virtio-rng-pci", "rng": "rng0"})]
    argv += _device({"driver": "virtio-scsi-pci", "id": CONTROLLER})
    for disk in sorted(spec.disks, key=lambda disk: disk.slot):
        argv += ["-blockdev", _json(block_node(disk)), *_device(disk_device(disk))]
    if spec.cdrom is not None:
        argv += ["-blockdev", _json(_cdrom_node(spec.cdrom.path))]
        argv += _device({"driver": "ide-cd", "id": "cdrom", "drive": "cdrom", "bus": "ide.0", "bootindex": 1})
    if spec.seed:
        argv += ["-blockdev", _json(_seed_node()), *_device({"driver": "virtio-blk-pci", "drive": "seed", "id": "seed"})]
    for card in spec.cards:
        argv += ["-netdev", _json(net_backend(card)), *_device(card_device(card))]
    return argv


def _accel(spec: MachineSpec) -> list[str]:
    if spec.accel == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", f"tcg,thread=multi,tb-size={TRANSLATED_MIB}", "-cpu", "max"]


def part_name(prefix: str, id: str) -> str:
    """What QEMU calls a part: the names of block nodes have at most 31 characters."""
    return f"{prefix}{uuid.UUID(id).hex[:28]}"


def disk_name(volume_id: str) -> str:
    return part_name("d", volume_id)


def card_name(card_id: str) -> str:
    return part_name("n", card_id)


def backend_name(card_id: str) -> str:
    return part_name("b", card_id)


def block_node(disk: DiskPart) -> dict[str, Any]:
    """The argument of blockdev-add.  The format is said, never guessed: a guest could write another one's header."""
    file = {"driver": "file", "filename": disk.path, "locking": "on", "discard": "unmap"}
    if disk.shared:
        file["locking"] = "off"  # its guests agree among themselves
    return {"driver": disk.format, "node-name": disk_name(disk.id), "discard": "unmap", "file": file}


def disk_device(disk: DiskPart) -> dict[str, Any]:
    """The argument of device_add."""
    device = {
        "driver": "scsi-hd",
        "id": disk_name(disk.id),
        "drive": disk_name(disk.id),
        "bus": f"{CONTROLLER}.0",
        "scsi-id": disk.slot,
        "lun": 0,
        "serial": disk.id,
        "share-rw": disk.shared,
    }
    return {**device, "bootindex": 0} if disk.boot else device


def net_backend(card: Card) -> dict[str, Any]:
    """The argument of netdev_add: a network with this one guest, whose DHCP hands out this one address.

    restrict: the guest reaches neither the host nor anything behind it.
    """
    network = ipaddress.ip_network(f"{card.ip_address}/24", strict=False)
    return {
        "type": "user",
        "id": backend_name(card.id),
        "restrict": not card.open,
        "ipv6": False,
        "net": str(network),
        "host": str(network[2]),
        "dns": str(network[3]),
        "dhcpstart": card.ip_address,
    }


def card_device(card: Card) -> dict[str, Any]:
    """The argument of device_add.  No boot ROM: nobody boots from this network."""
    return {
        "driver": "virtio-net-pci",
        "id": card_name(card.id),
        "netdev": backend_name(card.id),
        "mac": card.mac,
        "romfile": "",
    }


def usable_address(address: str) -> bool:
    """Whether a guest can have it: private, and not one that its network's gateway, DNS or broadcast has."""
    try:
        ip = ipaddress.IPv4Address(address)
    except ValueError:
        return False
    private = any(ip in ipaddress.ip_network(net) for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
    return private and ip.packed[3] not in (0, 1, 2, 3, 255)


def _cdrom_node(path: str) -> dict[str, Any]:
    return {"driver": "raw", "node-name": "cdrom", "read-only": True, "file": {"driver": "file", "filename": path}}


def _seed_node() -> dict[str, Any]:
    file = {"driver": "vvfat", "dir": SEED_FOLDER, "label": "CIDATA", "rw": False}
    return {"driver": "raw", "node-name": "seed", "read-only": True, "file": file}


def _device(properties: dict[str, Any]) -> list[str]:
    return ["-device", _json(properties)]


def _json(value: dict[str, Any]) -> str:
    return msgspec.json.encode(value).decode()


__all__ = [
    "PACKAGE",
    "PROGRAM",
    "backend_name",
    "block_node",
    "card_device",
    "card_name",
    "command_line",
    "disk_device",
    "disk_name",
    "net_backend",
    "usable_address",
]
