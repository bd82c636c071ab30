"""QEMU's command line, pure: nothing that QEMU adds by itself, no caller's word that is an option, no way out for a guest."""

from __future__ import annotations

import itertools
import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.machines.command import (
    block_node,
    card_device,
    command_line,
    disk_device,
    disk_name,
    net_backend,
    usable_address,
)
from milepost.machines.value import DISKS_MAX, Card, CdRom, DiskPart, MachineSpec, device_name, slot_of

ID, DISK, CARD = (str(uuid.UUID(int=number)) for number in (1, 2, 3))


def spec(**values: Any) -> MachineSpec:
    return MachineSpec(**{"id": ID, "vcpus": 2, "ram_mib": 512, "accel": "tcg", **values})


def options(argv: list[str], name: str) -> list[str]:
    return [value for option, value in itertools.pairwise(argv) if option == name]


def disk(**values: Any) -> DiskPart:
    return DiskPart(**{"id": DISK, "path": "/v/disk.raw", "format": "raw", "slot": 0, **values})


def test_nothing_is_added_by_qemu_and_the_process_may_do_little() -> None:
    argv = command_line(spec())
    assert {"-nodefaults", "-no-user-config"} <= set(argv)
    assert options(argv, "-sandbox") == ["on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    assert options(argv, "-display") == ["none"]
    assert not any("tcp" in word or "vnc" in word for word in argv), "something listens"


def test_what_is_the_machines_own_is_named_relative_to_its_folder() -> None:
    argv = command_line(spec(cdrom=CdRom(path="cdrom.iso"), seed=True, disks=[disk()]))
    assert options(argv, "-pidfile") == ["pid"]
    absolute = [word for word in argv if "/" in word]
    assert all("/v/disk.raw" in word for word in absolute), absolute


@given(path=st.text(min_size=1, max_size=60).filter(lambda text: "\0" not in text))
def test_a_path_is_never_an_option(path: str) -> None:
    argv = command_line(spec(disks=[disk(path=path)]))
    (node,) = options(argv, "-blockdev")
    assert json.loads(node)["file"]["filename"] == path
    assert len(argv) == len(command_line(spec(disks=[disk()])))


def test_a_disks_format_is_said_and_its_name_fits() -> None:
    node = block_node(disk(format="qcow2"))
    assert (node["driver"], node["file"]["locking"]) == ("qcow2", "on")
    assert len(node["node-name"]) <= 31
    device = disk_device(disk(slot=3, boot=True))
    assert (device["scsi-id"], device["bootindex"], device["drive"], device["serial"]) == (3, 0, disk_name(DISK), DISK)
    assert "bootindex" not in disk_device(disk(slot=3))


def test_disks_are_in_the_order_of_their_slots() -> None:
    other = str(uuid.UUID(int=9))
    argv = command_line(spec(disks=[disk(slot=1), disk(id=other, slot=0, boot=True)]))
    slots = [json.loads(one)["scsi-id"] for one in options(argv, "-device") if "scsi-hd" in one]
    assert slots == [0, 1]


@pytest.mark.parametrize("open_network", [False, True])
def test_a_guest_gets_its_address_and_reaches_nothing_unless_it_may(open_network: bool) -> None:
    card = Card(id=CARD, mac="fa:16:3e:00:00:01", ip_address="10.1.2.77", open=open_network)
    backend = net_backend(card)
    assert backend["restrict"] is not open_network
    assert (backend["net"], backend["host"], backend["dns"], backend["dhcpstart"]) == (
        "10.1.2.0/24",
        "10.1.2.2",
        "10.1.2.3",
        "10.1.2.77",
    )
    assert card_device(card)["mac"] == "fa:16:3e:00:00:01"
    assert not any("fwd" in key for key in backend)


def test_kvm_gives_the_hosts_processor_and_emulation_all_that_it_has() -> None:
    assert options(command_line(spec(accel="kvm")), "-cpu") == ["host"]
    assert options(command_line(spec()), "-cpu") == ["max"]
    assert options(command_line(spec()), "-m") == ["512M"]
    assert options(command_line(spec()), "-smp") == ["2"]


def test_devices_and_slots_are_the_same_thing() -> None:
    for slot in range(DISKS_MAX):
        assert slot_of(device_name(slot)) == slot
    assert [slot_of(name) for name in ("/dev/vdb", "xvdc", "sda", "/dev/sdz", "/dev/sdaa", "disk", "")] == [
        1,
        2,
        0,
        None,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("address", "usable"),
    [("192.168.0.10", True), ("10.0.0.4", True), ("172.31.9.9", True), ("172.32.0.9", False), ("8.8.8.8", False)]
    + [(f"192.168.0.{last}", False) for last in (0, 2, 3, 255)]
    + [("::1", False), ("no", False), ("127.0.0.5", False)],
)
def test_only_private_addresses_that_the_network_leaves_are_usable(address: str, usable: bool) -> None:
    assert usable_address(address) is usable
