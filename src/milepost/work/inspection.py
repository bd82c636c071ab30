"""What a disk image file really is, and whether it is safe to open.

Theory: an image is untrusted input, and the formats can point at other files: a qcow2 or vmdk may name a backing file or a data
file on the server, which a converter would open and copy into the image for the caller to download.  So the file's own bytes
decide what it is, before any tool opens it, and every tool is told the format instead of guessing it again.

Rules
1. oslo.utils' inspectors (OpenStack's own, made for this) detect the format and run their safety checks; every failed one
   refuses the image.
2. Beside them, what they leave open is checked here: a vmdk whose descriptor names a parent; vhd, vhdx and vdi that are
   differences to a parent; a vhd whose only header is its last sector (a fixed vhd, which otherwise passes for raw).
3. Memory is bounded by the inspectors (at most about 1 MiB of descriptor each); the file is read in pieces, and no further than
   until all of them are sure.  A hostile file can make it read to its end, once; the caller can stop it between pieces.

Formats: raw, qcow2, vmdk (monolithicSparse and streamOptimized), vhd, vhdx, vdi, iso.  A partition table makes no other format:
raw.  Not ami, ari, aki (kernels and file systems without a mark of their own) and ploop (a folder of files): refused at submit.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import msgspec
from oslo_utils.imageutils import format_inspector

from milepost import PermanentError
from milepost.work.threads import Stop

FORMATS = ("raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi", "iso")

PIECE_BYTES = 256 << 10
SECTOR = 512


class Inspected(msgspec.Struct, frozen=True):
    """A file that is what it was said to be and passed every check.  Sizes are bytes; `size` is the file's own."""

    format: str
    size: int
    virtual_size: int


def inspect_image(path: Path, declared: str, *, virtual_bytes_max: int, stop: Stop | None = None) -> Inspected:
    """Blocking.  Errors: PermanentError with format_mismatch, image_unsafe, image_damaged or virtual_size_too_large."""
    size = path.stat().st_size
    inspectors = _read(path, stop)
    footer = _vhd_footer(path, size)
    found = _choose(inspectors, footer)
    _check_match(found, declared, inspectors)
    inspector = inspectors.get("gpt" if found == "raw" and "gpt" in inspectors else found)
    if inspector is not None:
        _check_safety(inspector, found)
    virtual_size = _virtual_size(inspector, found, size, footer)
    _check_parents(inspector, found, path, footer)
    if found == "vdi" and inspector is not None:
        _check_vdi_blocks(inspector.region("header").data, size)
    if virtual_size > virtual_bytes_max:
        raise PermanentError(
            "virtual_size_too_large",
            f"The image's virtual size is {virtual_size} bytes; at most {virtual_bytes_max} are allowed here.",
            {"virtual_size": virtual_size, "allowed": virtual_bytes_max},
        )
    return Inspected(found, size, virtual_size)


def _read(path: Path, stop: Stop | None) -> dict[str, Any]:
    """The inspectors whose format the content has, by name; only `raw` when no other matches."""
    with path.open("rb") as file:
        wrapper = format_inspector.InspectWrapper(file)
        try:
            while wrapper.read(PIECE_BYTES):
                if stop is not None:
                    stop.check()
                if wrapper.formats:
                    break
        finally:
            wrapper.close()
        return {str(inspector): inspector for inspector in wrapper.formats or []}


def _choose(inspectors: dict[str, Any], footer: bytes | None) -> str:
    specific = set(inspectors) - {"raw", "gpt"}
    if len(specific) > 1:
        raise PermanentError(
            "image_unsafe",
            f"The file is several formats at once ({', '.join(sorted(specific))}), as only a disguised image is.",
            {"formats": sorted(specific)},
        )
    if specific:
        return specific.pop()
    if footer is not None:
        return "vhd"
    return "raw"


def _check_match(found: str, declared: str, inspectors: dict[str, Any]) -> None:
    if found == declared:
        return
    seen = "raw data without the mark of any image format" if found == "raw" else found
    raise PermanentError(
        "format_mismatch",
        f"The file was announced as {declared}, but its content is {seen}.",
        {"announced": declared, "found": found, "matched": sorted(inspectors)},
    )


def _check_safety(inspector: Any, found: str) -> None:
    try:
        inspector.safety_check()
    except format_inspector.SafetyCheckFailed as error:
        reasons = "; ".join(sorted(f"{name}: {reason}" for name, reason in error.failures.items()))
        raise PermanentError(
            "image_unsafe",
            f"The {found} image is refused because it failed a safety check ({reasons}).",
            {"checks": sorted(error.failures), "format": found},
        ) from error
    except (format_inspector.ImageFormatError, KeyError, ValueError, struct.error, AttributeError) as error:
        raise _damaged(found, str(error)) from error


def _virtual_size(inspector: Any, found: str, size: int, footer: bytes | None) -> int:
    if found in ("raw", "iso"):
        return size  # what a machine sees is the file, also where it is longer than the file system in it
    try:
        if found == "vhd":  # its current size; the inspector gives the one it was made with
            announced = int.from_bytes((footer or inspector.region("header").data)[48:56])
        else:
            announced = int(inspector.virtual_size)
    except (KeyError, ValueError, struct.error, AttributeError) as error:
        raise _damaged(found, str(error)) from error
    if announced <= 0:
        raise _damaged(found, "its header names no virtual size")
    return announced


def _damaged(found: str, reason: str) -> PermanentError:
    return PermanentError("image_damaged", f"The {found} image is damaged or incomplete: {reason}.", {"format": found})


# --- what oslo.utils leaves open ------------------------------------------------------------------------------------


def _check_parents(inspector: Any, found: str, path: Path, footer: bytes | None) -> None:
    match found:
        case "vmdk":
            parent = _vmdk_parent(inspector.desc_text or "")
        case "vhd":
            parent = _vhd_parent(footer or inspector.region("header").data)
        case "vdi":
            parent = _vdi_parent(inspector.region("header").data)
        case "vhdx":
            parent = _vhdx_parent(inspector, path)
        case _:
            return
    if parent:
        raise PermanentError(
            "image_unsafe",
            f"The {found} image is refused because {parent}: its content would come from another file.",
            {"checks": ["parent"], "format": found},
        )


def _vmdk_parent(descriptor: str) -> str | None:
    """Source: VMware Virtual Disk Format 1.1, `parentCID` and `parentFileNameHint`; the text is in lower case here."""
    for line in descriptor.splitlines():
        name, _, value = line.strip().partition("=")
        if name.strip() == "parentfilenamehint":
            return "its descriptor names a parent file"
        if name.strip() == "parentcid" and value.strip() not in ("ffffffff", ""):
            return "its descriptor names a parent"
    return None


def _vhd_footer(path: Path, size: int) -> bytes | None:
    """The last sector when it is a vhd's footer.  Source: Virtual Hard Disk Image Format Specification, «Hard Disk Footer»."""
    if size < SECTOR:
        return None
    with path.open("rb") as file:
        file.seek(-SECTOR, os.SEEK_END)
        last = file.read(SECTOR)
    return last if last.startswith(b"conectix") else None


def _vhd_parent(footer: bytes) -> str | None:
    (disk_type,) = struct.unpack(">I", bytes(footer[60:64]))
    return None if disk_type in (2, 3) else f"its disk type is {disk_type}, neither fixed (2) nor dynamic (3)"


def _vdi_parent(header: bytes) -> str | None:
    """Source: qemu block/vdi.c: image types 1 dynamic, 2 static, 3 undo, 4 difference."""
    (image_type,) = struct.unpack("<I", bytes(header[0x4C:0x50]))
    return None if image_type in (1, 2) else f"its image type is {image_type}, neither dynamic (1) nor static (2)"


def _check_vdi_blocks(header: bytes, size: int) -> None:
    """A vdi that was cut off: qemu-img would read zeros there.  Source: qemu block/vdi.c, VdiHeader."""
    (data_start,) = struct.unpack("<I", bytes(header[0x158:0x15C]))
    block_bytes, _, _, allocated = struct.unpack("<IIII", bytes(header[0x178:0x188]))
    if data_start + allocated * block_bytes > size:
        raise _damaged("vdi", f"its {allocated} blocks of {block_bytes} bytes do not fit into {size} bytes")


_FILE_PARAMETERS = "CAA16737-FA36-4D43-B3B6-33F0AA44E76B"


def _vhdx_parent(inspector: Any, path: Path) -> str | None:
    """Source: [MS-VHDX] 2.6.2.1 File Parameters: a 32-bit block size, then flags whose second bit is HasParent."""
    table = inspector.region("metadata")
    (count,) = struct.unpack("<H", bytes(table.data[10:12]))
    for start in range(32, 32 + 32 * count, 32):
        entry = bytes(table.data[start : start + 32])
        if len(entry) == 32 and inspector._guid(entry[:16]) == _FILE_PARAMETERS:
            (offset,) = struct.unpack("<I", entry[16:20])
            with path.open("rb") as file:
                file.seek(table.offset + offset)
                parameters = file.read(8)
            if len(parameters) == 8 and not struct.unpack("<II", parameters)[1] & 2:
                return None
            return "it has a parent"
    return "it lacks its file parameters"


__all__ = ["FORMATS", "Inspected", "inspect_image"]
