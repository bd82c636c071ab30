"""Real photographs and what the picture tests make of them."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import msgspec
import pyvips

from milepost.work.media import (
    child,
    pictures,  # noqa: F401  (registers its commands)
    vips,
)
from milepost.work.media.commands import COMMANDS
from milepost.work.media.spec import Done, PictureLimits, Work

LIMITS = PictureLimits(side_max=30_000, pixels_max=150_000_000, frames_max=500)


def photo(name: str) -> Path:
    """china.jpg and flower.jpg, 640×427, which ship inside scikit-learn's package (which is not imported)."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "datasets" / "images" / name


def do(command: str, source: Path, out: Path, *, marks: list[Path] | None = None, limits: PictureLimits = LIMITS) -> Done:
    """What one picture command comes to, done in this process."""
    name, *args = command.split("/")
    spec = COMMANDS[name].parse(args)
    files: list[str | None] = [str(mark) for mark in marks or []]
    work = Work(
        source=str(source),
        out=str(out),
        spec=spec,
        limits=limits,
        temporary=str(out.parent),
        marks=files + [None] * (len(getattr(spec, "marks", ())) - len(files)),
    )
    return child.read(vips.work(msgspec.json.encode(work)), Done)


def look(path: Path, **options: Any) -> pyvips.Image:
    """The picture at the path."""
    return pyvips.Image.new_from_file(str(path), **options)


def color_at(path: Path, x: int, y: int) -> list[int]:
    return [round(value) for value in look(path).getpoint(x, y)]


def like(seen: list[int], color: tuple[int, ...], within: int = 12) -> bool:
    return len(seen) >= len(color) and all(abs(a - b) <= within for a, b in zip(seen, color, strict=False))


def quarters(path: Path, wide: int = 80, high: int = 60, **save: Any) -> Path:
    """Red, green, blue and white quarters, from the top left clockwise: which way is up can be seen."""
    half = (wide // 2, high // 2)

    def plain(color: list[int]) -> pyvips.Image:
        return pyvips.Image.black(*half, bands=3).linear([0] * 3, color).cast("uchar").copy(interpretation="srgb")

    red, green, blue, white = (plain(one) for one in ([255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]))
    image = pyvips.Image.arrayjoin([red, green, white, blue], across=2)
    orientation = save.pop("orientation", None)
    if orientation is not None:
        image = image.copy()
        image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    image.write_to_file(str(path), **save)
    return path


def animation(path: Path, colors: list[tuple[int, int, int]], wide: int = 40, high: int = 30, **save: Any) -> Path:
    """One plain frame of each colour."""
    frames = [
        pyvips.Image.black(wide, high, bands=3).linear([0] * 3, list(color)).cast("uchar").copy(interpretation="srgb")
        for color in colors
    ]
    roll = pyvips.Image.arrayjoin(frames, across=1).copy()
    roll.set_type(pyvips.GValue.gint_type, "page-height", high)
    roll.set_type(pyvips.GValue.array_int_type, "delay", [100] * len(colors))
    roll.write_to_file(str(path), **save)
    return path


def with_exif(path: Path) -> Path:
    """The photo, as a camera would have written it."""
    image = look(photo("china.jpg")).copy()
    for name, value in {
        "exif-ifd0-DateTime": "2011:11:19 17:09:23",
        "exif-ifd0-Make": "Camera & Co",
        "exif-ifd2-ExposureTime": "1/50",
    }.items():
        image.set_type(pyvips.GValue.gstr_type, name, value)
    image.write_to_file(str(path), Q=90)
    return path


_TAGS = {
    "Model": (0, 0x0110),
    "Orientation": (0, 0x0112),
    "ExposureProgram": (1, 0x8822),
    "MeteringMode": (1, 0x9207),
    "Flash": (1, 0x9209),
}


def jpeg_with_exif(**tags: int | str) -> bytes:
    """A small picture with these tags and no others: texts of up to 100 characters, and short numbers."""
    directories: tuple[dict[int, int | str], ...] = ({}, {})
    for name, value in tags.items():
        where, number = _TAGS[name]
        directories[where][number] = value
    lengths = [2 + 12 * (len(directories[0]) + bool(directories[1])) + 4, 2 + 12 * len(directories[1]) + 4]
    if directories[1]:
        directories[0][0x8769] = 8 + lengths[0]
    texts, packed = b"", b""
    for directory in directories:
        packed += struct.pack(">H", len(directory))
        for number, value in sorted(directory.items()):
            if isinstance(value, str):
                packed += struct.pack(">HHII", number, 2, len(value) + 1, 8 + sum(lengths) + len(texts))
                texts += value.encode() + b"\0"
            elif number == 0x8769:
                packed += struct.pack(">HHII", number, 4, 1, value)
            else:
                packed += struct.pack(">HHIHH", number, 3, 1, value, 0)
        packed += bytes(4)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + packed + texts
    plain: bytes = pyvips.Image.black(16, 12, bands=3).copy(interpretation="srgb").jpegsave_buffer(keep="none")
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
