"""Formats that the bundled libvips does not decode, read by Pillow and pillow-heif where they are installed: HEIC, PSD and all
sorts of BMP.  Runs in a child with limits, and is imported there only when such a file comes.

Rules
1. A file is opened as the format that its first bytes say, and by no other reader.
2. Size and colours are known from the header; pixels are decoded when they are asked for.
3. A HEIC picture stands as its container says (its `irot`, `imir`), and EXIF's orientation beside it is no order: HEIF, ISO/IEC
   23008-12 §6.5.10.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyvips

from milepost.work.media.commands import FopFailed

if TYPE_CHECKING:
    from milepost.work.media.raster import Image

MISSING = "{} is not read on this server: it lacks the package {}"
HEIC_PRESET = "superfast"  # of x265: a photo of 12 megapixels takes seconds, not half a minute, and a tenth more bytes
_BANDS = {"L": 1, "RGB": 3, "RGBA": 4}


class Foreign:
    """One file.  `header` has its size and colours and what its camera wrote, and no pixels."""

    def __init__(self, path: str, format: str) -> None:
        self._opened, self.size, self.mode = (_open_heic if format == "heic" else _open_pillow)(path, format)
        info: dict[str, Any] = self._opened.info
        self._icc = info.get("icc_profile") if self._opened.mode in _BANDS else None  # it is of the colours that were there
        self._exif = info.get("exif")
        self.header = self._tagged(pyvips.Image.black(*self.size, bands=_BANDS[self.mode]))

    def load(self) -> Image:
        """The pixels.  Errors: FopFailed."""
        try:
            data, stride = _pixels(self._opened, self.mode)
        except (OSError, ValueError, RuntimeError, SyntaxError, struct.error) as error:
            raise FopFailed(f"invalid picture: {error}"[:300]) from None
        bands, (wide, high) = _BANDS[self.mode], self.size
        image = pyvips.Image.new_from_memory(data, stride, high, 1, "uchar")
        return self._tagged(image.crop(0, 0, wide * bands, high).bandfold(factor=bands))

    def _tagged(self, image: Image) -> Image:
        image = image.copy(interpretation="b-w" if self.mode == "L" else "srgb")
        if self._icc:
            image.set_type(pyvips.GValue.blob_type, "icc-profile-data", bytes(self._icc))
        if self._exif:
            image.set_type(pyvips.GValue.blob_type, "exif-data", bytes(self._exif))
            if image.get_typeof("orientation"):
                image.set_type(pyvips.GValue.gint_type, "orientation", 1)  # rule 3
        return image


def _open_heic(path: str, format: str) -> tuple[Any, tuple[int, int], str]:
    try:
        import pillow_heif
    except ImportError:
        raise FopFailed(MISSING.format(format, "pillow-heif")) from None
    try:
        opened = pillow_heif.open_heif(path, convert_hdr_to_8bit=True)
    except (OSError, ValueError, RuntimeError, SyntaxError) as error:
        raise FopFailed(f"invalid picture: {error}"[:300]) from None
    mode = opened.mode
    if mode not in _BANDS:
        raise FopFailed(f"unsupported format: heic in colours of {mode}")
    return opened, (opened.size[0], opened.size[1]), mode


def _open_pillow(path: str, format: str) -> tuple[Any, tuple[int, int], str]:
    try:
        from PIL import Image
    except ImportError:
        raise FopFailed(MISSING.format(format, "pillow")) from None
    Image.MAX_IMAGE_PIXELS = None  # its size is held against this server's limits instead
    try:
        opened = Image.open(path, formats=(format.upper(),))
    except (OSError, ValueError, SyntaxError, struct.error) as error:
        raise FopFailed(f"invalid picture: {error}"[:300]) from None
    mode = {"1": "L", "L": "L", "RGBA": "RGBA", "LA": "RGBA"}.get(opened.mode, "RGB")
    return opened, opened.size, mode


def _pixels(opened: Any, mode: str) -> tuple[bytes, int]:
    """The picture's bytes, and how many a row has."""
    if hasattr(opened, "stride"):
        return bytes(opened.data), opened.stride
    data = (opened if opened.mode == mode else opened.convert(mode)).tobytes()
    return data, opened.size[0] * _BANDS[mode]


def save_heic(image: Image, out: str, quality: int, *, keep_tags: bool) -> None:
    """The picture is a HEIC file.  Errors: FopFailed."""
    try:
        import pillow_heif
    except ImportError:
        raise FopFailed(MISSING.replace("read", "written").format("heic", "pillow-heif")) from None
    image = image.colourspace("srgb" if image.bands > 2 else "b-w").cast("uchar")
    if image.bands == 2:
        image = image.colourspace("srgb")
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[image.bands]
    tags: dict[str, bytes] = {}
    if keep_tags and image.get_typeof("icc-profile-data"):
        tags["icc_profile"] = bytes(image.get("icc-profile-data"))
    if keep_tags and image.get_typeof("exif-data"):
        tags["exif"] = _written_exif(image)
    made = pillow_heif.from_bytes(mode, (image.width, image.height), bytes(image.write_to_memory()))
    made.info.update(tags)
    try:
        with Path(out).open("wb") as file:
            made.save(file, quality=quality, enc_params={"preset": HEIC_PRESET})
    except (ValueError, RuntimeError) as error:
        raise FopFailed(f"heic cannot be written: {error}"[:300]) from None


def _written_exif(image: Image) -> bytes:
    """EXIF as libvips would write it now, with the orientation that the picture has: what a small JPEG begins with."""
    small = pyvips.Image.black(8, 8).copy()
    for field in image.get_fields():
        if field.startswith("exif-"):
            small.set_type(image.get_typeof(field), field, image.get(field))
    turned = image.get("orientation") if image.get_typeof("orientation") else 1  # none is left of one that was turned
    small.set_type(pyvips.GValue.gint_type, "orientation", turned)
    data = bytes(small.jpegsave_buffer(keep="exif"))
    at = data.find(b"\xff\xe1")
    return b"" if at < 0 else data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]


__all__ = ["Foreign", "save_heic"]
