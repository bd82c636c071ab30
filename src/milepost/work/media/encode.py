"""Pictures written: format, quality, size.  Runs in a child with limits.

Theory of the quality rule: a JPEG that was saved at 60 gains nothing at 75.  So the source's own quality Q0 is estimated from its
quantisation tables, corrected by how much the picture was shrunk (Q0·sqrt(W·H / w·h), at most 90 unless Q0 was more), and is
the most that is used unless the caller insists (`q/80!`).

Source: dcloudio/unidocs-zh docs/uniCloud/ext-storage/dev.md (the rule); T.81 annex K (the tables); libjpeg jcparam.c (scaling).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import pyvips

from milepost.work.media.commands import FopFailed
from milepost.work.media.pillow import save_heic
from milepost.work.media.raster import ANIMATED, Image, Photo, flat
from milepost.work.media.spec import Color, Done, Save

MIME = {
    "jpeg": "image/jpeg", "png": "image/png", "gif": "image/gif", "webp": "image/webp", "avif": "image/avif",
    "heic": "image/heic", "tiff": "image/tiff", "bmp": "image/bmp",
}  # fmt: skip
QUALITY = {"jpeg": 75, "webp": 75, "avif": 50, "heic": 35}
WEBP_SIDE_MAX, HEIF_SIDE_MAX, HEIF_PIXELS_MAX = 16_383, 9_999, 30_720_000
GIF_COLORS = 128
KEEP_EXIF, KEEP_PROFILE, _KEEP_ALL = 1, 8, 63  # VipsForeignKeep
HEADER_BYTES = 256 << 10  # of a JPEG, in which its tables are looked for

# fmt: off
_LUMINANCE = (  # in zigzag order, at quality 50
    16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51, 61, 60, 57,
    51, 56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87, 95, 98, 103, 104, 103, 62, 77, 113, 121, 112, 100, 120,
    92, 101, 103, 99,
)
_CHROMINANCE = (17, 18, 18, 24, 21, 24, 47, 26, 26, 47, *([99] * 4), 66, 56, 66, *([99] * 47))
# fmt: on


# --- quality -------------------------------------------------------------------------------------------------------------


def jpeg_tables(file: BinaryIO) -> dict[int, tuple[int, ...]]:
    """The quantisation tables of a JPEG's header by number, in zigzag order; empty when it has none that can be read."""
    tables: dict[int, tuple[int, ...]] = {}
    at = 2
    while at < HEADER_BYTES:
        file.seek(at)
        mark = file.read(4)
        if len(mark) < 4 or mark[0] != 0xFF:
            break
        marker, size = mark[1], int.from_bytes(mark[2:], "big")
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker == 0xDA or size < 2:
            break
        if marker == 0xDB:
            _read_tables(file.read(size - 2), tables)
        at += 2 + size
    return tables


def _read_tables(segment: bytes, tables: dict[int, tuple[int, ...]]) -> None:
    while segment:
        wide = 2 if segment[0] >> 4 else 1
        values, segment = segment[1 : 1 + 64 * wide], segment[1 + 64 * wide :] if len(segment) > 1 + 64 * wide else b""
        if len(values) == 64 * wide:
            tables[len(tables)] = struct.unpack(">64B" if wide == 1 else ">64H", values)


def scaled_table(base: tuple[int, ...], quality: int) -> tuple[int, ...]:
    """libjpeg's table for this quality."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return tuple(min(max((value * scale + 50) // 100, 1), 255) for value in base)


# The sum of each table at each quality: what the tables of a file are compared by.  Made once, before anything is forked.
_SUMS = tuple(tuple(sum(scaled_table(base, quality)) for quality in range(1, 101)) for base in (_LUMINANCE, _CHROMINANCE))


def estimate_quality(tables: dict[int, tuple[int, ...]]) -> int | None:
    """The quality that these tables are nearest to, 1 to 100; None without tables."""
    pairs = [(sum(tables[number]), sums) for number, sums in enumerate(_SUMS) if number in tables]
    if not pairs:
        return None
    distances = [sum(off) for off in zip(*([abs(one - has) for one in sums] for has, sums in pairs), strict=True)]
    return 100 - distances[::-1].index(min(distances))  # the higher one of two that are as near


def source_quality(path: str) -> int | None:
    """The quality that this JPEG was saved with, as far as its tables say."""
    with Path(path).open("rb") as file:
        return estimate_quality(jpeg_tables(file))


def corrected_quality(asked: int, source: int | None, shrunk: float) -> int:
    """What is used.  `shrunk`: how many pixels of the source became one."""
    if source is None:
        return asked
    corrected = source * math.sqrt(shrunk)
    if source <= 90:
        corrected = min(90.0, corrected)
    return max(1, min(asked, math.floor(corrected + 0.5), 100))


# --- saving ----------------------------------------------------------------------------------------------------------------


def output_format(photo: Photo, save: Save) -> str:
    """Errors: FopFailed when the source's own format cannot be written."""
    if save.format is not None and save.format != "copy":
        return save.format
    if save.format is None and photo.format in ("avif", "heic", "psd"):
        return "jpeg"
    if photo.format not in MIME:
        raise FopFailed(f"{photo.format} cannot be written here")
    return photo.format


def write(photo: Photo, out: str, save: Save, background: Color = Color()) -> Done:
    """The picture is a file at `out`.  Errors: FopFailed."""
    made = output_format(photo, save)
    _check_output(photo, made)
    image = photo.joined() if made in ANIMATED else photo.frames[0]
    image = _tagged(image, save)
    quality = _quality_for(photo, made, save)
    if save.size_limit is not None:
        return _write_within(photo, image, out, made, save, quality, background)
    encode(image, out, made, quality, save, background)
    return Done(mime_type=MIME[made])


def _quality_for(photo: Photo, made: str, save: Save) -> int:
    asked = save.quality or QUALITY.get(made, 75)
    if save.forced or made != "jpeg" or photo.format != "jpeg":
        return asked
    wide, high = photo.size
    return corrected_quality(asked, source_quality(photo.path), photo.width * photo.page_height / (wide * high))


def _check_output(photo: Photo, made: str) -> None:
    wide, high = photo.size
    limits = photo.limits
    if max(wide, high) > limits.out_side_max or wide * high > limits.out_pixels_max:
        raise FopFailed(f"image too large: the result would have {wide}x{high} pixels")
    if made == "webp" and max(wide, high) > WEBP_SIDE_MAX:
        raise FopFailed(f"image too large for webp: {wide}x{high}, a side has at most {WEBP_SIDE_MAX} pixels")
    if made in ("avif", "heic") and (max(wide, high) > HEIF_SIDE_MAX or wide * high > HEIF_PIXELS_MAX):
        raise FopFailed(f"image too large for {made}: {wide}x{high}, at most {HEIF_SIDE_MAX} a side and {HEIF_PIXELS_MAX} pixels")


def _tagged(image: Image, save: Save) -> Image:
    if save.strip and image.get_typeof("icc-profile-data"):
        try:  # without its profile the picture would have other colours
            image = image.icc_transform("srgb", embedded=True)
        except pyvips.Error:
            pass
    if save.density is not None:
        image = image.copy(xres=save.density / 25.4, yres=save.density / 25.4)
        if save.strip and image.get_typeof("exif-data"):
            for field in [name for name in image.get_fields() if name.startswith("exif-")]:
                image.remove(field)
        image.set_type(pyvips.GValue.gstr_type, "resolution-unit", "in")
    return image


def encode(image: Image, out: str, made: str, quality: int, save: Save, background: Color) -> None:
    """Write it in this format and quality."""
    keep = _kept(image, save)
    match made:
        case "jpeg":
            flat(image, background).jpegsave(out, Q=quality, interlace=save.interlace, keep=keep)
        case "png" if save.colors is not None:
            _few_colors(image, save.colors).pngsave(out, palette=True, bitdepth=_bits(save.colors, (1, 2, 4, 8)), keep=keep)
        case "png":
            image.pngsave(out, keep=keep)
        case "gif":
            image.gifsave(out, bitdepth=_bits(save.colors or GIF_COLORS, range(1, 9)), keep=keep)
        case "webp":
            image.webpsave(out, Q=quality, keep=keep)
        case "avif":
            image.heifsave(out, Q=quality, compression="av1", keep=keep)
        case "heic":
            save_heic(image, out, quality, keep_tags=not save.strip)
        case "tiff":
            image.tiffsave(out, compression="deflate", keep=keep)
        case "bmp":
            _save_bmp(flat(image, background), out)


def _kept(image: Image, save: Save) -> int:
    """Which metadata is written.  libvips makes up EXIF for a picture that had none: it is where the density stands."""
    if save.strip:
        return 0 if save.density is None else KEEP_EXIF
    return _KEEP_ALL if save.density is not None or image.get_typeof("exif-data") else _KEEP_ALL & ~KEEP_EXIF


def _bits(colors: int, allowed: Iterable[int]) -> int:
    return next(bits for bits in allowed if 1 << bits >= colors)


def _few_colors(image: Image, colors: int) -> Image:
    """No more colours than that: a PNG's palette has 2, 4, 16 or 256, a GIF's any power of two."""
    small = image.copy()
    return pyvips.Image.gifload_buffer(small.gifsave_buffer(bitdepth=_bits(colors, range(1, 9)), keep="none"))


def _write_within(photo: Photo, image: Image, out: str, made: str, save: Save, quality: int, background: Color) -> Done:
    """As good as fits into the limit; the least quality when nothing does."""
    assert save.size_limit is not None
    if made != "jpeg":
        raise FopFailed("size-limit is for jpeg: set format/jpeg")
    source_bytes = Path(photo.path).stat().st_size
    limit = save.size_limit.size_bytes or source_bytes
    image = flat(image, background).copy_memory()
    keep = _kept(image, save)

    def encoded(tried: int) -> bytes:
        return bytes(image.jpegsave_buffer(Q=tried, interlace=save.interlace, keep=keep))

    best = encoded(quality)
    low, high = 1, quality - 1
    while len(best) > limit and low <= high:
        least = encoded(low)
        if len(least) > limit:
            best = least
            break
        best = least
        while low < high:
            middle = (low + high + 1) // 2
            data = encoded(middle)
            if len(data) <= limit:
                low, best = middle, data
            else:
                high = middle - 1
        break
    if save.size_limit.only_smaller and len(best) >= source_bytes:
        return Done(unchanged=True)
    Path(out).write_bytes(best)
    return Done(mime_type=MIME[made])


def _save_bmp(image: Image, out: str) -> None:
    """24 bits a pixel, from the bottom to the top, rows of a multiple of four bytes."""
    image = image.colourspace("srgb").cast("uchar").copy_memory()  # it is read from its end
    wide, high = image.width, image.height
    stride = (wide * 3 + 3) // 4 * 4
    rows = image[2].bandjoin([image[1], image[0]]).flipver().bandunfold().embed(0, 0, stride, high)
    size = 54 + stride * high
    header = b"BM" + size.to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    header += wide.to_bytes(4, "little") + high.to_bytes(4, "little") + b"\x01\0\x18\0" + bytes(4)
    header += (stride * high).to_bytes(4, "little") + (2835).to_bytes(4, "little") * 2 + bytes(8)
    Path(out).write_bytes(header + bytes(rows.write_to_memory()))


__all__ = [
    "corrected_quality",
    "encode",
    "estimate_quality",
    "jpeg_tables",
    "output_format",
    "scaled_table",
    "source_quality",
    "write",
]
