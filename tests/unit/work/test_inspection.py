"""What a disk image file is, and which ones are refused: with images made by qemu-img itself."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from milepost.errors import PermanentError
from milepost.work.inspection import inspect_image
from milepost.work.threads import Stop, Stopped

pytestmark = pytest.mark.skipif(
    subprocess.run(["sh", "-c", "command -v qemu-img"], capture_output=True).returncode != 0, reason="needs qemu-img"
)

SIZE = 4 << 20
NO_LIMIT = 1 << 62
GUID_FILE_PARAMETERS = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")


def qemu_img(*args: object) -> None:
    subprocess.run(["qemu-img", *map(str, args)], check=True, capture_output=True)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(range(1, 256)) * 10_000 + bytes(SIZE - 2_550_000))
    return path


def made(raw: Path, qemu_format: str, *options: str) -> Path:
    path = raw.with_name("image")
    qemu_img("convert", "-f", "raw", "-O", qemu_format, *options, raw, path)
    return path


def refusal(path: Path, declared: str, **limits: int) -> PermanentError:
    with pytest.raises(PermanentError) as caught:
        inspect_image(path, declared, virtual_bytes_max=limits.get("virtual_bytes_max", NO_LIMIT))
    return caught.value


GOOD = [
    ("qcow2", "qcow2", ()),
    ("qcow2", "qcow2", ("-c",)),
    ("qcow2", "qcow2", ("-o", "compat=0.10")),
    ("vmdk", "vmdk", ()),
    ("vmdk", "vmdk", ("-o", "subformat=streamOptimized")),
    ("vpc", "vhd", ("-o", "force_size=on")),
    ("vpc", "vhd", ("-o", "subformat=fixed,force_size=on")),
    ("vhdx", "vhdx", ()),
    ("vdi", "vdi", ()),
    ("vdi", "vdi", ("-o", "static=on")),
]


@pytest.mark.parametrize(("qemu_format", "name", "options"), GOOD)
def test_an_image_is_what_it_says(raw: Path, qemu_format: str, name: str, options: tuple[str, ...]) -> None:
    path = made(raw, qemu_format, *options)
    found = inspect_image(path, name, virtual_bytes_max=NO_LIMIT)
    assert (found.format, found.virtual_size, found.size) == (name, SIZE, path.stat().st_size)


@pytest.mark.parametrize(("qemu_format", "name", "options"), GOOD)
def test_an_image_is_no_other_format_and_not_raw(raw: Path, qemu_format: str, name: str, options: tuple[str, ...]) -> None:
    path = made(raw, qemu_format, *options)
    for declared in {"raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "iso"} - {name}:
        error = refusal(path, declared)
        assert error.code == "format_mismatch"
        assert f"announced as {declared}" in error.message
        assert name in error.message


def test_raw_data_is_raw_and_nothing_else(raw: Path) -> None:
    assert inspect_image(raw, "raw", virtual_bytes_max=NO_LIMIT).virtual_size == SIZE
    assert refusal(raw, "qcow2").code == "format_mismatch"


def test_an_empty_file_is_raw(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    assert inspect_image(path, "raw", virtual_bytes_max=NO_LIMIT).virtual_size == 0


def test_a_disk_with_partitions_is_raw(raw: Path) -> None:
    data = bytearray(raw.read_bytes())
    data[440:512] = bytes(72)
    data[446:462] = struct.pack("<B3BB3BII", 0x80, 0, 2, 0, 0x83, 0, 0, 0, 2048, 4096)
    data[510:512] = b"\x55\xaa"
    raw.write_bytes(data)
    assert inspect_image(raw, "raw", virtual_bytes_max=NO_LIMIT).format == "raw"
    data[446] = 0x17  # a boot flag that no partition has
    raw.write_bytes(data)
    assert refusal(raw, "raw").code == "image_unsafe"


def test_an_iso_is_an_iso_also_when_it_boots(tmp_path: Path) -> None:
    path = tmp_path / "cd.iso"
    data = bytearray(1 << 20)
    data[32768:32775] = b"\x01CD001\x01"
    path.write_bytes(data)
    assert inspect_image(path, "iso", virtual_bytes_max=NO_LIMIT).virtual_size == 1 << 20
    data[446:462] = struct.pack("<B3BB3BII", 0x80, 0, 2, 0, 0x17, 0, 0, 0, 0, 4096)
    data[510:512] = b"\x55\xaa"
    path.write_bytes(data)
    assert inspect_image(path, "iso", virtual_bytes_max=NO_LIMIT).format == "iso"
    assert refusal(path, "raw").code == "format_mismatch"


def test_a_qcow2_with_a_backing_file_is_refused(raw: Path) -> None:
    path = raw.with_name("image")
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", raw, path)
    error = refusal(path, "qcow2")
    assert error.code == "image_unsafe"
    assert "backing file" in error.message


def test_a_qcow2_with_a_data_file_is_refused(raw: Path) -> None:
    path = raw.with_name("image")
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={raw.with_name('data')}", path, SIZE)
    error = refusal(path, "qcow2")
    assert error.code == "image_unsafe"
    assert "data_file" in error.message


def test_a_vmdk_with_a_parent_is_refused(raw: Path) -> None:
    parent = made(raw, "vmdk")
    path = raw.with_name("child")
    qemu_img("create", "-f", "vmdk", "-F", "vmdk", "-b", parent, path)
    error = refusal(path, "vmdk")
    assert error.code == "image_unsafe"
    assert "parent" in error.message


def test_a_vmdk_whose_data_is_in_another_file_is_no_vmdk_here(raw: Path) -> None:
    path = made(raw, "vmdk", "-o", "subformat=monolithicFlat")
    assert refusal(path, "vmdk").code in ("format_mismatch", "image_unsafe")


def test_a_vmdk_extent_with_a_path_is_refused(raw: Path) -> None:
    path = made(raw, "vmdk")
    data = path.read_bytes().replace(b'SPARSE "image"', b'SPARSE "/a/bc"', 1)
    assert data != path.read_bytes()
    path.write_bytes(data)
    assert refusal(path, "vmdk").code == "image_unsafe"


@pytest.mark.parametrize(
    ("qemu_format", "name", "offset", "value"),
    [("vdi", "vdi", 0x4C, struct.pack("<I", 4)), ("vpc", "vhd", 60, struct.pack(">I", 4))],
)
def test_a_difference_to_a_parent_is_refused(raw: Path, qemu_format: str, name: str, offset: int, value: bytes) -> None:
    path = made(raw, qemu_format)
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = value
    if name == "vhd":  # the footer says it too
        data[-512 + offset : -512 + offset + 4] = value
    path.write_bytes(data)
    error = refusal(path, name)
    assert (error.code, error.details) == ("image_unsafe", {"checks": ["parent"], "format": name})


def test_a_vhdx_with_a_parent_is_refused(raw: Path) -> None:
    path = made(raw, "vhdx")
    data = bytearray(path.read_bytes())
    entry = data.index(GUID_FILE_PARAMETERS)
    table = data.rindex(b"metadata", 0, entry)
    (offset,) = struct.unpack("<I", data[entry + 16 : entry + 20])
    data[table + offset + 4] |= 2  # HasParent
    path.write_bytes(data)
    assert "it has a parent" in refusal(path, "vhdx").message


def test_formats_that_nobody_should_use_are_refused(raw: Path) -> None:
    path = made(raw, "qed")
    assert refusal(path, "raw").code == "format_mismatch"


def test_a_file_of_two_formats_is_refused(raw: Path) -> None:
    path = made(raw, "qcow2")
    data = bytearray(path.read_bytes())
    data[32768:32775] = b"\x01CD001\x01"
    path.write_bytes(data)
    for declared in ("qcow2", "iso", "raw"):
        error = refusal(path, declared)
        assert error.code == "image_unsafe"
        assert "several formats" in error.message


def test_the_virtual_size_is_limited(raw: Path) -> None:
    path = raw.with_name("image")
    qemu_img("create", "-f", "qcow2", path, "1T")
    error = refusal(path, "qcow2", virtual_bytes_max=1 << 30)
    assert error.code == "virtual_size_too_large"
    assert error.details == {"virtual_size": 1 << 40, "allowed": 1 << 30}


@pytest.mark.parametrize("keep", [0, 4, 63, 511, 600, 70_000])
@pytest.mark.parametrize(("qemu_format", "name"), [("qcow2", "qcow2"), ("vmdk", "vmdk"), ("vhdx", "vhdx"), ("vdi", "vdi")])
def test_a_cut_image_never_passes_with_a_wrong_size(raw: Path, qemu_format: str, name: str, keep: int) -> None:
    path = made(raw, qemu_format)
    path.write_bytes(path.read_bytes()[:keep])
    try:
        found = inspect_image(path, name, virtual_bytes_max=NO_LIMIT)
    except PermanentError as error:
        assert error.code in ("format_mismatch", "image_damaged", "image_unsafe")
    else:
        assert found.virtual_size == SIZE  # its header was whole; `check_image` looks further


def test_a_vdi_that_was_cut_off_is_damaged(raw: Path) -> None:
    path = made(raw, "vdi")
    path.write_bytes(path.read_bytes()[: -(1 << 20)])
    assert refusal(path, "vdi").code == "image_damaged"


def test_inspection_stops_when_it_is_told_to(raw: Path) -> None:
    stop = Stop()
    stop.set()
    with pytest.raises(Stopped):
        inspect_image(raw, "raw", virtual_bytes_max=NO_LIMIT, stop=stop)
