"""Sizes and boxes of picture commands: what their texts mean, and what they make of a picture of W×H.  Pure.

Theory: two families.  imageView2 has six modes and never enlarges.  imageMogr2 has ImageMagick's geometries and does enlarge.
Sides are rounded half up and are at least one pixel, as ImageMagick has it.

A geometry that begins with `!` is written without characters that URLs do not like: `p` is `%`, `r` is `^`, `a` is `+`.

Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/image/{imageview2,imagemogr2}.md; dcloudio/unidocs-zh
docs/uniCloud/ext-storage/dev.md.
"""

from __future__ import annotations

import math
import re
from typing import Literal

import msgspec

from milepost.work.media.commands import BadCommand
from milepost.work.media.grammar import shown

SIDE_MAX = 9999  # of a written side
AREA_MAX = 24_999_999

GRAVITIES = ("NorthWest", "North", "NorthEast", "West", "Center", "East", "SouthWest", "South", "SouthEast")
_GRAVITY = {name.lower(): name for name in GRAVITIES}

Resizing = Literal["percent", "percent_width", "percent_height", "fit", "cover", "exact", "shrink", "enlarge", "area"]


class Thumbnail(msgspec.Struct, frozen=True, tag=True):
    """imageMogr2's `thumbnail`: how a picture is resized.  For percentages `width` and `height` are percent; area: pixels."""

    how: Resizing
    width: int | None = None
    height: int | None = None

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """The size that a picture of this size gets."""
        match self.how:
            case "percent" | "percent_width" | "percent_height":
                across = 100 if self.width is None else self.width
                down = 100 if self.height is None else self.height
                return _side(width * across / 100), _side(height * down / 100)
            case "exact":
                return self.width or width, self.height or height
            case "area":
                return _within_area(width, height, self.width or 1)
        factors = [asked / has for asked, has in ((self.width, width), (self.height, height)) if asked is not None]
        larger = any(factor < 1 for factor in factors)
        smaller = all(factor > 1 for factor in factors)
        if (self.how == "shrink" and not larger) or (self.how == "enlarge" and not smaller):
            return width, height
        factor = max(factors) if self.how == "cover" else min(factors)
        return _side(width * factor), _side(height * factor)


class Crop(msgspec.Struct, frozen=True, tag=True):
    """imageMogr2's `crop`.  A side of None is the picture's own.  Offsets are from the corner, edge or middle of `gravity`."""

    width: int | None
    height: int | None
    dx: int = 0
    dy: int = 0
    gravity: str = "NorthWest"

    def box_of(self, width: int, height: int) -> tuple[int, int, int, int] | None:
        """left, top, width, height within a picture of this size; None when the box is outside of it."""
        wide, high = self.width or width, self.height or height
        left, top = place(self.gravity, width, height, wide, high, self.dx, self.dy)
        right, bottom = min(left + wide, width), min(top + high, height)
        left, top = max(left, 0), max(top, 0)
        if right <= left or bottom <= top:
            return None
        return left, top, right - left, bottom - top


class Extent(msgspec.Struct, frozen=True, tag=True):
    """imageMogr2's `extent`: a canvas.  With offsets the picture stands at (dx, dy) of it, without in its middle.

    add: the canvas is the picture with so many pixels more on the left, right, top and bottom.
    """

    width: int | None = None
    height: int | None = None
    dx: int | None = None
    dy: int | None = None
    add: tuple[int, int, int, int] | None = None

    def canvas_of(self, width: int, height: int) -> tuple[int, int, int, int]:
        """left, top of the picture and width, height of the canvas."""
        if self.add is not None:
            left, right, top, bottom = self.add
            return left, top, width + left + right, height + top + bottom
        wide, high = self.width or width, self.height or height
        if self.dx is not None and self.dy is not None:
            return self.dx, self.dy, wide, high
        return (wide - width) // 2, (high - height) // 2, wide, high


class View(msgspec.Struct, frozen=True, tag=True):
    """imageView2's mode with its sides, as written."""

    mode: int
    width: int | None = None
    height: int | None = None

    def size_of(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The size that a picture is shrunk to, and the size of the box that is then cut from its middle."""
        whole = (width, height)
        if self.width is None and self.height is None:
            return whole, whole
        across, down = self.width, self.height
        if self.mode in (1, 3, 4, 5):  # one side alone: a square
            across, down = across or down, down or across
        sides = whole if self.mode in (1, 2, 3) else (max(whole), min(whole))
        factors = [asked / has for asked, has in zip((across, down), sides, strict=True) if asked is not None]
        factor = min(1.0, min(factors) if self.mode in (0, 2) else max(factors))
        scaled = (_side(width * factor), _side(height * factor))
        if self.mode not in (1, 5):
            return scaled, scaled
        assert across is not None
        assert down is not None
        box = (down, across) if self.mode == 5 and height > width else (across, down)
        return scaled, (min(box[0], scaled[0]), min(box[1], scaled[1]))


def place(gravity: str, width: int, height: int, wide: int, high: int, dx: int, dy: int) -> tuple[int, int]:
    """Where a box of wide×high stands in a picture: offsets go inward from the edges, right and down from the middle."""
    left, top = dx, dy
    if gravity in ("North", "Center", "South"):
        left = (width - wide) // 2 + dx
    elif gravity.endswith("East"):
        left = width - wide - dx
    if gravity in ("West", "Center", "East"):
        top = (height - high) // 2 + dy
    elif gravity.startswith("South"):
        top = height - high - dy
    return left, top


def parse_gravity(value: str) -> str:
    """One of the nine, in any case.  Errors: BadCommand."""
    try:
        return _GRAVITY[value.lower()]
    except KeyError:
        raise BadCommand(f"gravity must be one of {', '.join(GRAVITIES)}, not {shown(value)}") from None


_THUMBNAIL = re.compile(
    r"(?P<percent>\d{1,4})%|(?P<across>\d{1,4})%x|x(?P<down>\d{1,4})%"
    r"|(?P<area>\d{1,9})@|(?P<width>\d{0,5})x(?P<height>\d{0,5})(?P<mark>[!<>^]?)",
    re.ASCII,
)
_CROP = re.compile(r"(\d{0,5})x(\d{0,5})(?:([+-]\d{1,5})([+-]\d{1,5}))?", re.ASCII)
_ADD = re.compile(r"([+-])(\d{1,5})([+-])(\d{1,5})", re.ASCII)
_MARKS: dict[str, Resizing] = {"": "fit", "^": "cover", "!": "exact", ">": "shrink", "<": "enlarge"}


def decode_geometry(text: str) -> str:
    """ImageMagick's geometry: what follows a leading `!`, with `p`, `r` and `a` as `%`, `^` and `+`."""
    return text[1:].translate({ord("p"): "%", ord("r"): "^", ord("a"): "+"}) if text.startswith("!") else text


def parse_thumbnail(text: str) -> Thumbnail:
    """Errors: BadCommand."""
    found = _THUMBNAIL.fullmatch(decode_geometry(text))
    if found is None:
        raise _bad("thumbnail", text)
    if found["percent"]:
        percent = _ranged(found["percent"], "a percentage", 999)
        return Thumbnail("percent", percent, percent)
    if found["across"]:
        return Thumbnail("percent_width", _ranged(found["across"], "a percentage", 999))
    if found["down"]:
        return Thumbnail("percent_height", None, _ranged(found["down"], "a percentage", 999))
    if found["area"]:
        return Thumbnail("area", _ranged(found["area"], "an area", AREA_MAX))
    width, height = _sides("thumbnail", text, found["width"], found["height"])
    if width is None and height is None:
        raise _bad("thumbnail", text)
    return Thumbnail(_MARKS[found["mark"]], width, height)


def parse_crop(text: str, gravity: str = "NorthWest") -> Crop:
    """Errors: BadCommand."""
    found = _CROP.fullmatch(decode_geometry(text))
    if found is None:
        raise _bad("crop", text)
    width, height = _sides("crop", text, *(side if side.strip("0") else "" for side in found.group(1, 2)))
    if width is None and height is None:
        raise _bad("crop", text)
    return Crop(width, height, int(found[3] or 0), int(found[4] or 0), gravity)


def parse_extent(text: str) -> Extent:
    """Errors: BadCommand."""
    decoded = decode_geometry(text)
    if text.startswith("!") and (found := _ADD.fullmatch(decoded)):
        across, down = int(found[2]), int(found[4])
        sides = [0, 0, 0, 0]
        sides[0 if found[1] == "-" else 1] = across
        sides[3 if found[1] == "-" and not across else 2 if found[3] == "-" else 3] = down
        return Extent(add=(sides[0], sides[1], sides[2], sides[3]))
    found = _CROP.fullmatch(decoded)
    if found is None:
        raise _bad("extent", text)
    width, height = _sides("extent", text, found[1], found[2])
    if width is None and height is None:
        raise _bad("extent", text)
    if found[3] is None:
        return Extent(width, height)
    return Extent(width, height, int(found[3]), int(found[4]))


def _sides(what: str, text: str, width: str, height: str) -> tuple[int | None, int | None]:
    for side in (width, height):
        if side and not 1 <= int(side) <= SIDE_MAX:
            raise BadCommand(f"a side of {what} is from 1 to {SIDE_MAX}: {shown(text)}")
    return int(width) if width else None, int(height) if height else None


def _ranged(digits: str, what: str, most: int) -> int:
    if not 1 <= int(digits) <= most:
        raise BadCommand(f"thumbnail takes {what} from 1 to {most}, not {digits}")
    return int(digits)


def _bad(what: str, text: str) -> BadCommand:
    return BadCommand(f"{what} does not know the geometry {shown(text)}")


def _side(length: float) -> int:
    return max(1, math.floor(length + 0.5))


def _within_area(width: int, height: int, area: int) -> tuple[int, int]:
    factor = math.sqrt(area / (width * height))
    wide, high = _side(width * factor), _side(height * factor)
    if wide * high > area:  # rounded up over what was asked
        wide, high = max(1, math.floor(width * factor)), max(1, math.floor(height * factor))
    return wide, high


__all__ = [
    "GRAVITIES",
    "Crop",
    "Extent",
    "Thumbnail",
    "View",
    "decode_geometry",
    "parse_crop",
    "parse_extent",
    "parse_gravity",
    "parse_thumbnail",
    "place",
]
