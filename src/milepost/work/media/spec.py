"""What a picture command shall do, as values: made by `pictures.py`, carried to a child, done by `vips.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from milepost.work.media.geometry import Crop, Extent, Thumbnail, View

if TYPE_CHECKING:
    from milepost.settings import Settings

OUT_SIDE_MAX = 14_999
OUT_PIXELS_MAX = 59_999_999


class Color(msgspec.Struct, frozen=True):
    """White unless said otherwise."""

    red: int = 255
    green: int = 255
    blue: int = 255
    alpha: int = 255


class AutoOrient(msgspec.Struct, frozen=True, tag=True):
    """Turn the picture as its EXIF orientation says."""


class Rotate(msgspec.Struct, frozen=True, tag=True):
    """Turn it clockwise."""

    degrees: int


class Blur(msgspec.Struct, frozen=True, tag=True):
    """Gaussian blur."""

    sigma: float


class Sharpen(msgspec.Struct, frozen=True, tag=True):
    """Sharpen it."""


class Border(msgspec.Struct, frozen=True, tag=True):
    """Draw a border around it."""

    width: int
    height: int


Op = View | Thumbnail | Crop | Extent | AutoOrient | Rotate | Blur | Sharpen | Border


class SizeLimit(msgspec.Struct, frozen=True):
    """At most so many bytes (None: the source's).  only_smaller: the source, when the output is not smaller than it."""

    size_bytes: int | None
    only_smaller: bool = False


class Save(msgspec.Struct, frozen=True, kw_only=True):
    """How the output is written.  None: the default of the format."""

    format: str | None = None  # None: the source's, and jpeg for avif, heic and psd; "copy": the source's
    quality: int | None = None
    forced: bool = False  # the quality is not corrected by the source's
    interlace: bool = False
    colors: int | None = None
    strip: bool = False
    density: int | None = None
    size_limit: SizeLimit | None = None
    ignore_error: bool = False


class Picture(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """imageView2, imageView and imageMogr2."""

    ops: tuple[Op, ...] = ()
    save: Save = Save()
    background: Color = Color()
    border_color: Color = Color()


class ImageMark(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A picture laid over another.  `ws` scales it: the side that `wst` says becomes so much of the picture's."""

    url: str
    dissolve: int = 100
    gravity: str = "SouthEast"
    dx: int = 10
    dy: int = 10
    ws: float | None = None
    wst: int = 0


class Tile(msgspec.Struct, frozen=True, kw_only=True):
    """The mark is turned clockwise, put into the middle of a cell, scaled with it, and the cells cover the picture."""

    rotate: int = 0
    width: int = 100
    height: int = 100
    resize: float = 1.0


class TextMark(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A text laid over a picture.  `fontsize` is in twentieths of a point, at 72 dots an inch."""

    text: str
    font: str = ""
    fontsize: int | None = None
    fill: Color = Color()
    dissolve: int = 100
    gravity: str = "SouthEast"
    dx: int = 10
    dy: int = 10
    tile: Tile | None = None  # all over the picture: no gravity, dx, dy


Mark = ImageMark | TextMark


class Watermark(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Marks, drawn in their order."""

    marks: tuple[Mark, ...]
    save: Save = Save()


class RoundPic(msgspec.Struct, frozen=True, tag=True):
    """Round corners: pixels, or percent of the side when negative."""

    radius_x: float
    radius_y: float


class Slim(msgspec.Struct, frozen=True, tag=True):
    """The same picture in fewer bytes, or as it is."""

    level: int = 3


class Animate(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The source and the objects of these keys one after the other."""

    keys: tuple[str, ...]
    delay_ms: int
    backwards: bool = False


class ImageInfo(msgspec.Struct, frozen=True, tag=True):
    """Format and size."""


class Exif(msgspec.Struct, frozen=True, tag=True):
    """What the camera wrote."""


class Average(msgspec.Struct, frozen=True, tag=True):
    """The mean colour."""


Spec = Picture | Watermark | RoundPic | Slim | Animate | ImageInfo | Exif | Average


class PictureLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked at before anything is decoded, and before anything is made."""

    side_max: int
    pixels_max: int
    frames_max: int
    out_side_max: int = OUT_SIDE_MAX
    out_pixels_max: int = OUT_PIXELS_MAX

    @classmethod
    def from_settings(cls, settings: Settings) -> PictureLimits:
        return cls(
            side_max=settings.picture_side_max, pixels_max=settings.picture_pixels_max, frames_max=settings.picture_frames_max
        )


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One command with its files."""

    source: str
    out: str
    spec: Spec
    limits: PictureLimits
    temporary: str
    marks: list[str | None] = []  # the files of the image marks, or of the pictures behind the source


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: a file of this type at `out`, an answer, or the source as it was."""

    mime_type: str | None = None
    result: Any = None
    unchanged: bool = False


__all__ = [
    "Animate",
    "AutoOrient",
    "Average",
    "Blur",
    "Border",
    "Color",
    "Done",
    "Exif",
    "ImageInfo",
    "ImageMark",
    "Mark",
    "Op",
    "Picture",
    "PictureLimits",
    "Rotate",
    "RoundPic",
    "Save",
    "Sharpen",
    "SizeLimit",
    "Slim",
    "Spec",
    "TextMark",
    "Tile",
    "Watermark",
    "Work",
]
