"""Marks laid over pictures, round corners, animations, and smaller files of the same picture.  Runs in a child with limits."""

from __future__ import annotations

import html
from pathlib import Path

import pyvips

from milepost.work.media import encode
from milepost.work.media.commands import FopFailed
from milepost.work.media.geometry import place
from milepost.work.media.raster import Image, Photo, flat, resize
from milepost.work.media.spec import (
    Animate,
    AutoOrient,
    Color,
    Done,
    ImageMark,
    Mark,
    PictureLimits,
    RoundPic,
    Save,
    Slim,
    TextMark,
    Tile,
    Watermark,
)

FONT = "sans"
FONT_TWIPS = 240  # 12 points, ImageMagick's default
SLIM_QUALITY = 80  # a photo is not seen to change above it


def draw_marks(photo: Photo, spec: Watermark, files: list[str | None], out: str) -> Done:
    """The picture with its marks.  A mark that is larger than the picture is left out, and the source stays when all are."""
    photo.change((), animated=encode.output_format(photo, spec.save) in ("gif", "webp"), background=Color(), border=Color())
    wide, high = photo.size
    drawn = 0
    for mark, file in zip(spec.marks, files, strict=True):
        image = _render(mark, file, wide, high, photo.limits)
        if image.width > wide or image.height > high:
            continue
        if isinstance(mark, TextMark) and mark.tile is not None:
            left, top = 0, 0
        else:
            left, top = place(mark.gravity, wide, high, image.width, image.height, mark.dx, mark.dy)
        photo.frames = [_over(frame, image, left, top) for frame in photo.frames]
        drawn += 1
    if not drawn and spec.save.format is None:
        return Done(unchanged=True)
    return encode.write(photo, out, spec.save)


def _render(mark: Mark, file: str | None, wide: int, high: int, limits: PictureLimits) -> Image:
    """The mark as sRGB with alpha, at its size."""
    if isinstance(mark, TextMark):
        image = _text(mark)
        if mark.tile is not None:
            image = _tiled(image, mark.tile, wide, high)
    else:
        assert file is not None
        image = _scaled(_picture(file, limits), mark, wide, high)
    return image if mark.dissolve == 100 else image * [1, 1, 1, mark.dissolve / 100]


def _picture(file: str, limits: PictureLimits) -> Image:
    photo = Photo(file, limits)
    photo.change((), animated=False, background=Color(), border=Color())
    image = _srgb(photo.frames[0])
    return (image if image.hasalpha() else image.addalpha()).copy_memory()  # drawn on each frame


def _srgb(image: Image) -> Image:
    return image if image.interpretation == "srgb" and image.format == "uchar" else image.colourspace("srgb").cast("uchar")


def _scaled(image: Image, mark: ImageMark, wide: int, high: int) -> Image:
    if not mark.ws:
        return image
    sides = (image.width, image.height)
    of_mark, of_source = {
        0: (min(sides), min(wide, high)),
        1: (max(sides), max(wide, high)),
        2: (image.width, wide),
        3: (image.height, high),
    }[mark.wst]
    factor = mark.ws * of_source / of_mark
    return resize(image, *(max(1, round(side * factor)) for side in sides))


def _text(mark: TextMark) -> Image:
    points = (mark.fontsize or FONT_TWIPS) / 20
    text = "".join(char for char in mark.text if char == "\n" or char.isprintable())
    family = "".join(char for char in mark.font if char.isalnum() or char in " -_") or FONT
    if not text.strip():
        raise FopFailed("the text of the watermark is empty")
    shape = pyvips.Image.text(html.escape(text, quote=False), font=f"{family} {points:g}px", dpi=72)
    ink = [mark.fill.red, mark.fill.green, mark.fill.blue]
    color = shape.new_from_image(ink).copy(interpretation="srgb").cast("uchar")
    alpha = shape if mark.fill.alpha == 255 else (shape * (mark.fill.alpha / 255)).cast("uchar")
    return color.bandjoin(alpha).copy_memory()


def _tiled(mark: Image, tile: Tile, wide: int, high: int) -> Image:
    """Cells from the top left corner on.  One that is smaller than what stands in it grows to that, so that no text is cut."""
    if tile.rotate:
        mark = mark.premultiply().rotate(tile.rotate).unpremultiply().cast("uchar").copy(interpretation="srgb")
    across, down = max(tile.width, mark.width), max(tile.height, mark.height)
    cell = mark.embed((across - mark.width) // 2, (down - mark.height) // 2, across, down, extend="black")
    if tile.resize != 1:
        cell = resize(cell, *(max(1, round(side * tile.resize)) for side in (across, down)))
    cell = cell.copy_memory()  # drawn again and again
    return cell.replicate(-(-wide // cell.width), -(-high // cell.height)).crop(0, 0, wide, high)


def _over(frame: Image, mark: Image, left: int, top: int) -> Image:
    frame = _srgb(frame)
    had_alpha = frame.hasalpha()
    drawn = frame.composite2(mark, "over", x=left, y=top).cast("uchar")
    return drawn if had_alpha else drawn[0:3]


def round_corners(photo: Photo, spec: RoundPic, out: str) -> Done:
    """A PNG whose corners are clear."""
    if photo.format not in ("jpeg", "png"):
        raise FopFailed(f"roundPic takes jpeg and png, not {photo.format}")
    photo.change((), animated=False, background=Color(), border=Color())
    image = photo.frames[0]
    wide, high = image.width, image.height
    across, down = (
        min(-radius / 100 * side if radius < 0 else radius, side / 2)
        for radius, side in ((spec.radius_x, wide), (spec.radius_y, high))
    )
    mask = _corners(wide, high, across, down)
    if image.format == "ushort":
        image = _srgb(image)
    if image.hasalpha():
        alpha = (image[image.bands - 1] * mask / 255).cast("uchar")
        image = image[0 : image.bands - 1].bandjoin(alpha)
    else:
        image = image.bandjoin(mask)
    photo.frames = [image]
    return encode.write(photo, out, Save(format="png"))


def _corners(wide: int, high: int, across: float, down: float) -> Image:
    """255 inside of the rounded rectangle, 0 outside, and between on the edge: by each pixel's distance from the arc."""
    at = pyvips.Image.xyz(wide, high) + 0.5
    x, y = at[0], at[1]
    out_x = (x < across).ifthenelse(across - x, (x > wide - across).ifthenelse(x - (wide - across), 0)) / across
    out_y = (y < down).ifthenelse(down - y, (y > high - down).ifthenelse(y - (high - down), 0)) / down
    inside = (1 - (out_x * out_x + out_y * out_y) ** 0.5) * min(across, down) + 0.5
    inside = (inside > 1).ifthenelse(1, (inside < 0).ifthenelse(0, inside))
    return (inside * 255).rint().cast("uchar").copy(interpretation="b-w")


def animate(photo: Photo, spec: Animate, files: list[str], out: str) -> Done:
    """A GIF of the source and the files, each turned as its EXIF says.  Errors: FopFailed when one has another size."""
    frames = [_frame(photo)]
    wide, high = frames[0].width, frames[0].height
    if wide * high * (len(files) + 1) > photo.limits.pixels_max:
        raise FopFailed(f"image too large: {len(files) + 1} frames of {wide}x{high} pixels")
    for number, file in enumerate(files, 2):
        frame = _frame(Photo(file, photo.limits))
        if (frame.width, frame.height) != (wide, high):
            raise FopFailed(f"picture {number} has {frame.width}x{frame.height} pixels, the first has {wide}x{high}")
        frames.append(frame)
    photo.frames = frames[::-1] if spec.backwards else frames
    roll = photo.joined().copy()
    roll.set_type(pyvips.GValue.array_int_type, "delay", [spec.delay_ms] * len(frames))
    roll.set_type(pyvips.GValue.gint_type, "loop", 0)
    encode.encode(roll, out, "gif", encode.QUALITY["jpeg"], Save(strip=True), Color())
    return Done(mime_type=encode.MIME["gif"])


def _frame(photo: Photo) -> Image:
    photo.change((AutoOrient(),), animated=False, background=Color(), border=Color())
    image = _srgb(photo.frames[0])
    return (image if image.hasalpha() else image.addalpha()).copy_memory()


def slim(photo: Photo, spec: Slim, out: str) -> Done:
    """The same picture, format and size in fewer bytes; the source when that is not to be had."""
    if photo.format not in ("jpeg", "png"):
        raise FopFailed(f"imageslim takes jpeg and png, not {photo.format}")
    try:
        photo.change((), animated=False, background=Color(), border=Color())
        image, keep = _only_turned(photo.frames[0], photo.orientation)
        if photo.format == "jpeg":
            quality = min(encode.source_quality(photo.path) or SLIM_QUALITY, SLIM_QUALITY)
            flat(image).jpegsave(out, Q=quality, optimize_coding=True, interlace=True, keep=keep)
        else:
            level = min(9, spec.level or 1)
            image.pngsave(out, palette=image.format == "uchar", Q=90, bitdepth=8, compression=max(level, 6), effort=7, keep=keep)
    except pyvips.Error:
        return Done(unchanged=True)
    if Path(out).stat().st_size >= Path(photo.path).stat().st_size:
        return Done(unchanged=True)
    return Done(mime_type=encode.MIME[photo.format])


def _only_turned(image: Image, orientation: int) -> tuple[Image, int]:
    """The picture with its profile and nothing of what the camera wrote, but for how it is to be held."""
    if orientation == 1:
        return image, encode.KEEP_PROFILE
    image = image.copy()
    for field in image.get_fields():
        if field.startswith("exif-"):
            image.remove(field)
    image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    return image, encode.KEEP_PROFILE | encode.KEEP_EXIF


__all__ = ["animate", "draw_marks", "round_corners", "slim"]
