"""What a camera wrote, as the service tells it: tags by name, each with its EXIF type and a text.  Runs in a child with limits.

Rules
1. libvips' texts are libexif's, built without its table of words: those stand here; a value that has none is told as its number.
2. libexif adds the tags that a standard demands; what is not in the file is not told.

Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/image/exif.md; libexif/libexif libexif/exif-entry.c (words);
Exif 2.32 §4.6 (types, directories).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from milepost.work.media.commands import FopFailed

if TYPE_CHECKING:
    from milepost.work.media.raster import Image

ORIENTATIONS = {
    1: "Top-left", 2: "Top-right", 3: "Bottom-right", 4: "Bottom-left",
    5: "Left-top", 6: "Right-top", 7: "Right-bottom", 8: "Left-bottom",
}  # fmt: skip
TYPES = {
    "Byte": 1, "ASCII": 2, "Short": 3, "Long": 4, "Rational": 5, "SByte": 6, "Undefined": 7, "SShort": 8, "SLong": 9,
    "SRational": 10, "Float": 11, "Double": 12,
}  # fmt: skip
_FIRED = {
    0x01: "", 0x05: ", return light not detected", 0x07: ", return light detected",
    0x09: ", compulsory flash mode", 0x0D: ", compulsory flash mode, return light not detected",
    0x0F: ", compulsory flash mode, return light detected", 0x19: ", auto mode",
    0x1D: ", auto mode, return light not detected", 0x1F: ", auto mode, return light detected",
}  # fmt: skip
_UNFIRED = {0x00: "", 0x08: "", 0x10: ", compulsory flash mode", 0x18: ", auto mode"}
RED_EYE, RED_EYE_WORDS = 0x40, ", red-eye reduction mode"
_GAIN = ("Normal", "Low gain up", "High gain up", "Low gain down", "High gain down")
_UNITS = {2: "Inch", 3: "Centimeter"}
WORDS: dict[str, dict[int, str]] = {
    "Orientation": ORIENTATIONS,
    "YCbCrPositioning": {1: "Centered", 2: "Co-sited"},
    "ResolutionUnit": _UNITS,
    "FocalPlaneResolutionUnit": _UNITS,
    "ColorSpace": {1: "sRGB", 2: "Adobe RGB", 0xFFFF: "Uncalibrated"},
    "Compression": {
        1: "Uncompressed", 5: "LZW compression", 6: "JPEG compression", 7: "JPEG compression", 8: "Deflate/ZIP compression",
        32773: "PackBits compression",
    },
    "PhotometricInterpretation": {
        0: "Reversed mono", 1: "Normal mono", 2: "RGB", 3: "Palette", 5: "CMYK", 6: "YCbCr", 8: "CieLAB",
    },
    "PlanarConfiguration": {1: "Chunky format", 2: "Planar format"},
    "ExposureProgram": dict(enumerate((
        "Not defined", "Manual", "Normal program", "Aperture priority", "Shutter priority",
        "Creative program (biased toward depth of field)", "Creative program (biased toward fast shutter speed)",
        "Portrait mode (for closeup photos with the background out of focus)",
        "Landscape mode (for landscape photos with the background in focus)",
    ))),
    "MeteringMode": {
        **dict(enumerate(("Unknown", "Average", "Center-weighted average", "Spot", "Multi spot", "Pattern", "Partial"))),
        255: "Other",
    },
    "LightSource": {
        0: "Unknown", 1: "Daylight", 2: "Fluorescent", 3: "Tungsten incandescent light", 4: "Flash", 9: "Fine weather",
        10: "Cloudy weather", 11: "Shade", 12: "Daylight fluorescent", 13: "Day white fluorescent", 14: "Cool white fluorescent",
        15: "White fluorescent", 17: "Standard light A", 18: "Standard light B", 19: "Standard light C", 20: "D55", 21: "D65",
        22: "D75", 24: "ISO studio tungsten", 255: "Other",
    },
    "SensingMethod": {
        1: "Not defined", 2: "One-chip color area sensor", 3: "Two-chip color area sensor", 4: "Three-chip color area sensor",
        5: "Color sequential area sensor", 7: "Trilinear sensor", 8: "Color sequential linear sensor",
    },
    "Flash": {
        0x20: "No flash function",
        **{code: f"Flash fired{words}" for code, words in _FIRED.items()},
        **{code: f"Flash did not fire{words}" for code, words in _UNFIRED.items()},
        **{code | RED_EYE: f"Flash fired{words}{RED_EYE_WORDS}" for code, words in _FIRED.items()},
        0x18 | RED_EYE: f"Flash did not fire, auto mode{RED_EYE_WORDS}",
    },
    "CustomRendered": {0: "Normal process", 1: "Custom process"},
    "ExposureMode": {0: "Auto exposure", 1: "Manual exposure", 2: "Auto bracket"},
    "WhiteBalance": {0: "Auto white balance", 1: "Manual white balance"},
    "SceneCaptureType": {0: "Standard", 1: "Landscape", 2: "Portrait", 3: "Night scene"},
    "GainControl": dict(enumerate(_GAIN)),
    "Contrast": {0: "Normal", 1: "Soft", 2: "Hard"},
    "Saturation": {0: "Normal", 1: "Low saturation", 2: "High saturation"},
    "Sharpness": {0: "Normal", 1: "Soft", 2: "Hard"},
    "SubjectDistanceRange": {0: "Unknown", 1: "Macro", 2: "Close view", 3: "Distant view"},
}  # fmt: skip

# Rule 2: the tags that libexif makes up where they are missing, by their numbers.
ADDED = {
    "XResolution": 0x011A, "YResolution": 0x011B, "ResolutionUnit": 0x0128, "YCbCrPositioning": 0x0213, "Compression": 0x0103,
    "ExifVersion": 0x9000, "ComponentsConfiguration": 0x9101, "FlashpixVersion": 0xA000, "ColorSpace": 0xA001,
    "PixelXDimension": 0xA002, "PixelYDimension": 0xA003, "GPSVersionID": 0x0000,
}  # fmt: skip
DIRECTORIES = (0x8769, 0x8825)  # entries that point to another one: Exif, GPS
DIRECTORIES_MAX, ENTRIES_MAX = 8, 4096

_FIELD = re.compile(r"exif-ifd([0234])-(.+)")
_VALUE = re.compile(r"(.*), (\w+), \d+ components?, \d+ bytes?\)", re.DOTALL)  # the value, " (", and what it means


def read_exif(header: Image) -> dict[str, Any]:
    """Every tag by its name, the picture's own before those of its thumbnail.  Errors: FopFailed when there is none."""
    if not header.get_typeof("exif-data"):
        raise FopFailed("no exif data")
    there = set(tags_of(bytes(header.get("exif-data"))))
    found: dict[str, Any] = {}
    for field in header.get_fields():
        if not (tag := _FIELD.fullmatch(field)) or ADDED.get(tag[2], 0xFFFF) not in {*there, 0xFFFF}:
            continue
        value = _VALUE.fullmatch(str(header.get(field)))
        if value is not None:
            found.setdefault(tag[2], {"type": TYPES.get(value[2], 7), "val": _text(tag[2], value[1])})
    if not found:
        raise FopFailed("no exif data")
    return found


def _text(name: str, value: str) -> str:
    """Rule 1."""
    half = len(value) // 2 - 1
    if value[:half] == value[half + 2 :]:  # a text means itself, and may hold any character
        return value[:half].strip()
    raw, _, told = value.partition(" (")
    if name in WORDS and raw.isdecimal():
        return WORDS[name].get(int(raw), raw)
    return raw if told.startswith("Internal error") else told.strip()


def tags_of(data: bytes) -> Iterator[int]:
    """The numbers of all tags in the file's directories; what cannot be read ends it."""
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return
    ahead, seen = list(struct.unpack_from(f"{order}I", data, 4)), set[int]()
    while ahead and len(seen) < DIRECTORIES_MAX:
        at = ahead.pop()
        if at in seen or not 0 < at <= len(data) - 2:
            continue
        seen.add(at)
        count = min(struct.unpack_from(f"{order}H", data, at)[0], ENTRIES_MAX, (len(data) - at - 2) // 12)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHII", data, entry)
            yield tag
            if tag in DIRECTORIES:
                ahead.append(value)
        behind = at + 2 + 12 * count
        if behind + 4 <= len(data):
            ahead += struct.unpack_from(f"{order}I", data, behind)


__all__ = ["ORIENTATIONS", "WORDS", "read_exif", "tags_of"]
