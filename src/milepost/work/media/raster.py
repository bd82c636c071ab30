"""Pictures opened with libvips, or with Pillow where it cannot, and changed.  Runs in a child with limits; nothing of it is
imported where the server runs.

Rules
1. What a file is, its first bytes say; neither its name nor its stored type.  Only the loaders of those formats are unblocked.
2. Size and frames are read from the header and held against the limits before a pixel is decoded.
3. An animation is a list of frames while it is changed, so that no crop or blur reaches from one into the next.
4. A damaged file is an error: libvips would fill what is missing with grey.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyvips

from milepost.work.media.commands import FopFailed
from milepost.work.media.geometry import Crop, Extent, Thumbnail, View
from milepost.work.media.pillow import Foreign
from milepost.work.media.spec import AutoOrient, Blur, Border, Color, Op, PictureLimits, Rotate, Sharpen

Image = Any  # pyvips has no types

LOADERS = {
    "jpeg": "jpegload", "png": "pngload", "gif": "gifload", "webp": "webpload", "tiff": "tiffload", "avif": "heifload",
    "bmp": "",
}  # fmt: skip
FOREIGN = frozenset({"heic", "psd"})
ANIMATED = frozenset({"gif", "webp"})
FAIL_ON = "error"
_UNBLOCKED = ("Jpeg", "Png", "Nsgif", "Webp", "Tiff", "Heif", "Raw")
_AVIF, _HEIC = frozenset({b"avif", b"avis"}), frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})


def restrict() -> None:
    """libvips refuses whatever it marks as untrusted and every loader that is not ours."""
    pyvips.block_untrusted_set(True)
    pyvips.operation_block_set("VipsForeignLoad", True)
    for name in _UNBLOCKED:
        pyvips.operation_block_set(f"VipsForeignLoad{name}", False)
    pyvips.cache_set_max(0)


def sniff(path: str) -> str:
    """The format by the file's first bytes.  Errors: FopFailed."""
    with Path(path).open("rb") as file:
        head = file.read(64)
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if head.startswith(b"8BPS"):
        return "psd"
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, len(head), 4))}
        if brands & _AVIF:
            return "avif"
        if brands & _HEIC:
            return "heic"
    if head.startswith(b"BM"):
        return "bmp"
    raise FopFailed(
        "source data is empty or fail to get source data"
        if not head
        else "unsupported format: not a picture that can be read here"
    )


class Photo:
    """A picture while it is worked on.  `frames` are its pages, each an image; `width` and `height` are those of one."""

    def __init__(self, path: str, limits: PictureLimits) -> None:
        self.path, self.limits = path, limits
        self.format = sniff(path)
        foreign = self.format in FOREIGN or (self.format == "bmp" and not _is_plain_bmp(path))
        self._foreign = Foreign(path, self.format) if foreign else None
        self.header = self._load() if self._foreign is None else self._foreign.header
        header = self.header
        self.width, self.page_height = header.width, _field(header, "page-height", header.height)
        self.pages = _field(header, "n-pages", 1) if self.format in ANIMATED else 1
        self.orientation = _field(header, "orientation", 1)
        self.frames: list[Image] = [header]
        self._check_header()
        self.has_fields = dict.fromkeys(header.get_fields())

    def _check_header(self) -> None:
        limits, wide, high = self.limits, self.width, self.page_height
        if max(wide, high) > limits.side_max:
            raise FopFailed(f"image too large: {wide}x{high}, a side has at most {limits.side_max} pixels")
        if self.pages > limits.frames_max:
            raise FopFailed(f"too many frames: {self.pages}, at most {limits.frames_max} are allowed")
        if wide * high * self.pages > limits.pixels_max:
            raise FopFailed(f"image too large: {wide}x{high} in {self.pages} frame(s), at most {limits.pixels_max} pixels")

    def _load(self, **options: Any) -> Image:
        if self._foreign is not None:
            return self._foreign.load()
        if self.format == "bmp":
            return _load_bmp(self.path)
        return getattr(pyvips.Image, LOADERS[self.format])(self.path, fail_on=FAIL_ON, **options)

    @property
    def size(self) -> tuple[int, int]:
        """Of one frame, now."""
        first = self.frames[0]
        return first.width, first.height

    def change(self, ops: tuple[Op, ...], *, animated: bool, background: Color, border: Color) -> None:
        """Do these in their order.  `animated`: all frames, else the first one alone."""
        ops = self._open(ops, animated=animated)
        for op in ops:
            self.frames = [_change(frame, op, background, border) for frame in self.frames]
            self._check_size()

    def apply(self, function: Callable[[Image], Image]) -> None:
        """The same with every frame."""
        self.frames = [function(frame) for frame in self.frames]

    def _open(self, ops: tuple[Op, ...], *, animated: bool) -> tuple[Op, ...]:
        """Decode, and shrink while decoding where the first thing to do is that.  What is left to be done."""
        if animated and self.pages > 1:
            roll = self._load(n=-1).copy_memory()
            high = self.page_height
            self.frames = [_bare(roll.crop(0, at * high, roll.width, high)) for at in range(self.pages)]
        else:
            shrunk = self._shrink_on_load(ops)
            if shrunk is not None:
                return shrunk
            flowing = not any(isinstance(op, AutoOrient | Rotate | View) for op in ops)
            self.frames = [_bare(self._load(access="sequential" if flowing and self.format != "bmp" else "random"))]
        self.apply(_usual_colors)
        return ops

    def _shrink_on_load(self, ops: tuple[Op, ...]) -> tuple[Op, ...] | None:
        """JPEG and WebP are decoded at a half, a quarter or an eighth of their size when no more is needed."""
        turn = bool(ops) and isinstance(ops[0], AutoOrient)
        first = ops[1:2] if turn else ops[:1]
        if self.format not in ("jpeg", "webp") or not first or not isinstance(first[0], View | Thumbnail):
            return None
        if "[" in self.path or self.header.interpretation == "cmyk":
            return None
        wide, high = self.width, self.page_height
        if turn and self.orientation >= 5:
            wide, high = high, wide
        resize = first[0]
        (to_wide, to_high), box = resize.size_of(wide, high) if isinstance(resize, View) else (resize.size_of(wide, high), None)
        if to_wide >= wide or to_high >= high:
            return None
        image = pyvips.Image.thumbnail(self.path, to_wide, height=to_high, size="force", no_rotate=not turn, fail_on=FAIL_ON)
        self.frames = [_usual_colors(_bare(image))]
        if box is not None:
            self.apply(lambda one: _cut_middle(one, *box))
        return ops[1 + turn :]

    def _check_size(self) -> None:
        wide, high = self.size
        limits = self.limits
        if max(wide, high) > limits.out_side_max or wide * high * len(self.frames) > max(
            limits.out_pixels_max, limits.pixels_max
        ):
            raise FopFailed(f"image too large: the result would have {wide}x{high} pixels")

    def joined(self) -> Image:
        """All frames as one image, as libvips saves animations."""
        if len(self.frames) == 1:
            return self.frames[0]
        high = self.frames[0].height
        roll = pyvips.Image.arrayjoin(self.frames, across=1).copy()
        roll.set_type(pyvips.GValue.gint_type, "page-height", high)
        return roll


def _field(image: Image, name: str, default: int) -> int:
    return int(image.get(name)) if image.get_typeof(name) else default


def _bare(image: Image) -> Image:
    """Without the mark of being one page of many: it would be read again when the size has changed."""
    if not image.get_typeof("page-height"):
        return image
    image = image.copy()
    image.remove("page-height")
    return image


def _usual_colors(image: Image) -> Image:
    """Grey or sRGB, of 8 or 16 bits."""
    if image.interpretation == "cmyk":
        if image.get_typeof("icc-profile-data"):
            try:
                return image.icc_transform("srgb", embedded=True)
            except pyvips.Error:
                pass
        return image.colourspace("srgb")
    if image.format not in ("uchar", "ushort"):
        return image.colourspace("srgb").cast("uchar")
    return image


# --- one frame ----------------------------------------------------------------------------------------------------------


def _change(image: Image, op: Op, background: Color, border: Color) -> Image:
    match op:
        case AutoOrient():
            return image.autorot()
        case View():
            scaled, box = op.size_of(image.width, image.height)
            return _cut_middle(resize(image, *scaled), *box)
        case Thumbnail():
            return resize(image, *op.size_of(image.width, image.height))
        case Crop():
            found = op.box_of(image.width, image.height)
            if found is None:
                raise FopFailed("the box of crop lies outside of the picture")
            return image.crop(*found)
        case Rotate():
            return _rotate(image, op.degrees % 360, background)
        case Blur():
            return _with_alpha_apart(
                image, lambda one: one.gaussblur(op.sigma, precision="approximate" if op.sigma > 20 else "integer")
            )
        case Sharpen():
            return image.sharpen()
        case Border():
            return _embed(image, op.width, op.height, image.width + 2 * op.width, image.height + 2 * op.height, border)
        case Extent():
            return _embed(image, *op.canvas_of(image.width, image.height), background)


def resize(image: Image, width: int, height: int) -> Image:
    """This very size, whatever the ratio."""
    if (width, height) == (image.width, image.height):
        return image
    return image.thumbnail_image(width, height=height, size="force", no_rotate=True)


def _cut_middle(image: Image, width: int, height: int) -> Image:
    if (width, height) == (image.width, image.height):
        return image
    return image.crop((image.width - width) // 2, (image.height - height) // 2, width, height)


def _rotate(image: Image, degrees: int, background: Color) -> Image:
    if degrees % 90 == 0:
        return image if degrees == 0 else image.rot(f"d{degrees}")
    image, ink = paintable(image, background)
    return image.rotate(degrees, background=ink)


def _embed(image: Image, left: int, top: int, width: int, height: int, color: Color) -> Image:
    image, ink = paintable(image, color)
    return image.embed(left, top, width, height, extend="background", background=ink)


def paintable(image: Image, color: Color) -> tuple[Image, list[float]]:
    """The image in colours that can show this one, and the colour in its bands."""
    grey = color.red == color.green == color.blue
    if image.interpretation in ("b-w", "grey16") and not grey:
        image = image.colourspace("srgb" if image.format == "uchar" else "rgb16")
    if color.alpha < 255 and not image.hasalpha():
        image = image.addalpha()
    ink = [color.red] if image.bands < 3 else [color.red, color.green, color.blue]
    if image.hasalpha():
        ink.append(color.alpha)
    factor = 257 if image.format == "ushort" else 1
    return image, [float(value * factor) for value in ink]


def _with_alpha_apart(image: Image, function: Callable[[Image], Image]) -> Image:
    """Colours are weighed by their alpha, so that what cannot be seen does not shine through."""
    if not image.hasalpha():
        return function(image)
    depth = image.format
    return function(image.premultiply()).unpremultiply().cast(depth)


def flat(image: Image, background: Color = Color()) -> Image:
    """Without alpha, on this colour; on white when it is transparent."""
    if not image.hasalpha():
        return image
    if background.alpha < 255:
        background = Color()
    image, ink = paintable(image, background)
    return image.flatten(background=ink[:-1])


# --- what libvips cannot read by itself -----------------------------------------------------------------------------------


def _is_plain_bmp(path: str) -> bool:
    """Whether it is uncompressed, of 24 or 32 bits a pixel, or has no header that another reader could do more with."""
    with Path(path).open("rb") as file:
        head = file.read(54)
    header_bytes, depth, compression = (
        int.from_bytes(head[at : at + size], "little") for at, size in ((14, 4), (28, 2), (30, 4))
    )
    return len(head) < 54 or (header_bytes >= 40 and depth in (24, 32) and compression in (0, 3))


def _load_bmp(path: str) -> Image:
    """Uncompressed, 24 or 32 bits a pixel: what programs write.  Errors: FopFailed."""
    with Path(path).open("rb") as file:
        head = file.read(54)
        size_bytes = file.seek(0, 2)
    if len(head) < 54:
        raise FopFailed("the picture cannot be read: its header is cut off")
    offset, header_bytes, wide, high, _, depth, compression = struct.unpack("<I I i i H H I", head[10:34])
    upside_down, high = high > 0, abs(high)
    if header_bytes < 40 or depth not in (24, 32) or compression not in (0, 3) or wide < 1 or high < 1:
        raise FopFailed(f"unsupported format: a BMP of {depth} bits, compression {compression}")
    bands, stride = depth // 8, (wide * depth // 8 + 3) // 4 * 4
    if max(wide, high) > 1 << 20 or size_bytes < offset + stride * high:
        raise FopFailed("the picture cannot be read: the file is shorter than its header says")
    image = pyvips.Image.rawload(path, stride, high, 1, offset=offset)
    image = image.crop(0, 0, wide * bands, high).bandfold(factor=bands)
    image = image[2].bandjoin([image[1], image[0]]).copy(interpretation="srgb")
    return image.flipver() if upside_down else image


__all__ = ["ANIMATED", "Photo", "flat", "paintable", "resize", "restrict", "sniff"]
