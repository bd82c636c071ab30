"""The picture commands' texts as values, and their registration.  The work itself is done by `vips.py`, in a child.

Rules
1. imageMogr2 does what its keys say in the order written; `gravity` counts for the crops behind it; colours, format and all
   that concerns saving count wherever they stand.
2. A key written twice: the later one counts (except for what imageMogr2 does: that is done twice).
3. Where a limit or a choice of the service is not documented, `docs/reference/media-commands.md` says what is done here.

Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/image/*.md; dcloudio/unidocs-zh docs/uniCloud/ext-storage/dev.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from milepost.work.media.commands import BadCommand, Command, FopFailed, Output, Tools, register
from milepost.work.media.geometry import View, parse_crop, parse_extent, parse_gravity, parse_thumbnail
from milepost.work.media.grammar import Arguments, decode_text, integer, number, one_of, shown
from milepost.work.media.spec import (
    AutoOrient,
    Average,
    Blur,
    Border,
    Color,
    Done,
    Exif,
    ImageInfo,
    ImageMark,
    Mark,
    Op,
    Picture,
    PictureLimits,
    Rotate,
    RoundPic,
    Save,
    Sharpen,
    SizeLimit,
    Slim,
    Spec,
    TextMark,
    Tile,
    Watermark,
    Work,
)

if find_spec("pyvips") is None:  # it is used in the children, and never loaded where the server runs
    raise ImportError("pictures need pyvips", name="pyvips")

MARKS_MAX = 20
TEXT_CHARS_MAX = 500

# Source: dcloudio/unidocs-zh docs/uniCloud/ext-storage/dev.md, the table of colour names; gray is theirs, not CSS's.
COLORS = {
    "white": (255, 255, 255), "black": (0, 0, 0), "red": (255, 0, 0), "orange": (255, 165, 0), "yellow": (255, 255, 0),
    "green": (0, 128, 0), "blue": (0, 0, 255), "purple": (128, 0, 128), "gray": (0x7E, 0x7E, 0x7E), "grey": (0x7E, 0x7E, 0x7E),
    "pink": (255, 0xC0, 0xCB),
}  # fmt: skip
FORMATS = {
    "jpg": "jpeg", "jpeg": "jpeg", "png": "png", "gif": "gif", "webp": "webp", "avif": "avif", "tiff": "tiff", "tif": "tiff",
    "bmp": "bmp", "heic": "heic", "heif": "heic", "copy": "copy",
}  # fmt: skip
_HEX = re.compile(r"#([0-9a-fA-F]{6}|[0-9a-fA-F]{3})")
_SIZE_LIMIT = re.compile(r"(?:(\$\(fsize\))|([0-9]{1,12})([kKmM]?))(!?)", re.ASCII)
_BLUR = re.compile(r"([0-9.]{1,10})x([0-9.]{1,10})", re.ASCII)
_BORDER = re.compile(r"([0-9]{1,4})x([0-9]{1,4})", re.ASCII)
_BLACK = "IzAwMDAwMA=="  # base64 of #000000
_FLAGS = frozenset({"auto-orient", "strip"})


# --- saving, which most commands share ------------------------------------------------------------------------------


class _Saving:
    """Collects what concerns the output's file."""

    def __init__(self, command: str, quality: int | None = None) -> None:
        self._command = command
        self._values: dict[str, Any] = {} if quality is None else {"quality": quality}

    def take(self, key: str, value: str) -> bool:
        """Whether the key is one of these.  Errors: BadCommand."""
        what = f"{self._command}: {key}"
        match key:
            case "format":
                self._values["format"] = parse_format(value, what)
            case "q" | "quality":
                bare = value.removesuffix("!")
                self._values |= {"quality": integer(bare, what, 1, 100), "forced": bare != value}
            case "interlace":
                self._values["interlace"] = one_of(value, what, ("0", "1")) == "1"
            case "colors":
                self._values["colors"] = integer(value, what, 2, 256)
            case "ignore-error":
                self._values["ignore_error"] = one_of(value, what, ("0", "1")) == "1"
            case _:
                return False
        return True

    def set(self, key: str, value: Any) -> None:
        self._values[key] = value

    def save(self) -> Save:
        return Save(**self._values)


def parse_format(value: str, what: str = "format") -> str:
    """Errors: BadCommand."""
    found = FORMATS.get(value.lower())
    if found is None:
        raise BadCommand(f"{what} must be one of {', '.join(FORMATS)}, not {shown(value)}")
    return found


def parse_color(value: str, what: str) -> Color:
    """The base64 of a name or of #RRGGBB.  Errors: BadCommand."""
    text = decode_text(value, what).strip()
    if text.lower() in ("transparent", "none"):
        return Color(255, 255, 255, 0)
    if text.lower() in COLORS:
        return Color(*COLORS[text.lower()])
    if found := _HEX.fullmatch(text):
        digits = found[1] if len(found[1]) == 6 else "".join(digit * 2 for digit in found[1])
        return Color(*bytes.fromhex(digits))
    raise BadCommand(f"{what} must be a colour's name or #RRGGBB, not {shown(text)}")


# --- the commands -----------------------------------------------------------------------------------------------------


def parse_image_view2(args: list[str]) -> Picture:
    """imageView2/<mode>/w/<n>/h/<n>/…"""
    given, saving = Arguments("imageView2", args), _Saving("imageView2")
    mode = integer(given.next("the mode"), "imageView2: the mode", 0, 5)
    return _view(given, saving, mode)


def parse_image_view(args: list[str]) -> Picture:
    """imageView/<1|2>/w/<n>/h/<n>/q/<n>/format/<f>, the older command."""
    given, saving = Arguments("imageView", args), _Saving("imageView", quality=85)
    mode = integer(given.next("the mode"), "imageView: the mode", 1, 2)
    return _view(given, saving, mode)


def _view(given: Arguments, saving: _Saving, mode: int) -> Picture:
    sides: dict[str, int | None] = {"w": None, "h": None}
    for key, value in given.pairs():
        if key in sides:
            sides[key] = integer(value, f"{given.command}: {key}", 0, 9999) or None
        elif not saving.take(key, value):
            raise given.unknown(key)
    return Picture(ops=(AutoOrient(), View(mode, sides["w"], sides["h"])), save=saving.save())


def parse_image_mogr2(args: list[str]) -> Picture:
    """imageMogr2/auto-orient/thumbnail/<g>/gravity/<g>/crop/<g>/…"""
    given, saving = Arguments("imageMogr2", args), _Saving("imageMogr2")
    ops: list[Op] = []
    gravity, colors = "NorthWest", {"background": Color(), "bordercolor": Color()}
    for key, value in given.pairs(_FLAGS):
        what = f"imageMogr2: {key}"
        match key:
            case "auto-orient" | "strip":
                on = one_of(value, what, ("0", "1")) == "1"
                if key == "strip":
                    saving.set("strip", on)
                elif on:
                    ops.append(AutoOrient())
            case "thumbnail":
                ops.append(parse_thumbnail(value))
            case "gravity":
                gravity = parse_gravity(value)
            case "crop":
                ops.append(parse_crop(value, gravity))
            case "rotate":
                ops.append(Rotate(integer(value, what, 0, 360)))
            case "blur":
                ops.append(_parse_blur(value))
            case "sharpen":
                if one_of(value, what, ("0", "1")) == "1":
                    ops.append(Sharpen())
            case "extent":
                ops.append(parse_extent(value))
            case "border":
                ops.append(_parse_border(value))
            case "background" | "bordercolor":
                colors[key] = parse_color(value, what)
            case "size-limit":
                saving.set("size_limit", _parse_size_limit(value))
            case "density":
                saving.set("density", integer(value, what, 1, 1200))
            case _:
                if not saving.take(key, value):
                    raise given.unknown(key)
    return Picture(ops=tuple(ops), save=saving.save(), background=colors["background"], border_color=colors["bordercolor"])


def _parse_blur(value: str) -> Blur:
    found = _BLUR.fullmatch(value)
    if found is None:
        raise BadCommand(f"imageMogr2: blur must be <radius>x<sigma>, not {shown(value)}")
    number(found[1], "imageMogr2: the radius of blur", 0, 50)
    return Blur(number(found[2], "imageMogr2: the sigma of blur", 0.01, 1000))


def _parse_border(value: str) -> Border:
    found = _BORDER.fullmatch(value)
    if found is None:
        raise BadCommand(f"imageMogr2: border must be <w>x<h>, not {shown(value)}")
    return Border(int(found[1]), int(found[2]))


def _parse_size_limit(value: str) -> SizeLimit:
    found = _SIZE_LIMIT.fullmatch(value)
    if found is None:
        raise BadCommand(f"imageMogr2: size-limit must be <n>[k|M][!] or $(fsize), not {shown(value)}")
    unit = {"": 1, "k": 1 << 10, "m": 1 << 20}[(found[3] or "").lower()]
    return SizeLimit(None if found[1] else max(1, int(found[2]) * unit), bool(found[4]))


def parse_watermark(args: list[str]) -> Watermark:
    """watermark/1/image/… · watermark/2/text/… · watermark/3/(image|text)/…/(image|text)/… · watermark/4/text/…"""
    given, saving = Arguments("watermark", args), _Saving("watermark")
    mode = integer(given.next("the mode"), "watermark: the mode", 1, 6)
    if mode > 4:
        raise BadCommand(f"watermark/{mode} is not supported: how blind watermarks are hidden is not published; 1 to 4 are")
    one = "image" if mode == 1 else "text"
    groups: list[tuple[str, str, dict[str, str]]] = []
    for key, value in given.pairs():
        if key in ("image", "text"):
            if mode != 3 and (groups or key != one):
                raise BadCommand(f"watermark/{mode} has one {one}")
            groups.append((key, decode_text(value, f"watermark: {key}"), {}))
        elif saving.take(key, value):
            continue
        elif not groups:
            raise BadCommand(f"watermark: {shown(key)} stands before the image or text that it belongs to")
        else:
            groups[-1][2][key] = value
    if not groups:
        raise BadCommand(f"watermark/{mode} needs an image or a text")
    if len(groups) > MARKS_MAX:
        raise BadCommand(f"watermark has {len(groups)} marks; at most {MARKS_MAX} are allowed")
    if mode == 4:
        return Watermark(marks=(_parse_tiled(*groups[0][1:]),), save=saving.save())
    return Watermark(marks=tuple(_parse_mark(*group) for group in groups), save=saving.save())


def _parse_tiled(content: str, keys: dict[str, str]) -> Mark:
    """Black unless said otherwise."""
    cell: dict[str, Any] = {}
    rest: dict[str, str] = {}
    for key, value in keys.items():
        what = f"watermark: {key}"
        match key:
            case "rotate":
                cell["rotate"] = integer(value, what, -180, 180)
            case "uw" | "uh":
                cell["width" if key == "uw" else "height"] = integer(value, what, 1, 10_000)
            case "resize":
                cell["resize"] = number(value, what, 0.1, 10)
            case "gravity" | "dx" | "dy":
                raise BadCommand(f"watermark/4 covers the whole picture: it has no {key}")
            case _:
                rest[key] = value
    return msgspec.structs.replace(_parse_mark("text", content, {"fill": _BLACK, **rest}), tile=Tile(**cell))


def _parse_mark(kind: str, content: str, keys: dict[str, str]) -> Mark:
    values: dict[str, Any] = {}
    for key, value in keys.items():
        what = f"watermark: {key}"
        match kind, key:
            case _, "dissolve":
                values[key] = integer(value, what, 1, 100)
            case _, "gravity":
                values[key] = parse_gravity(value)
            case _, "dx" | "dy":
                values[key] = integer(value, what, -30_000, 30_000)
            case "image", "ws":
                values[key] = number(value, what, 0, 1)
            case "image", "wst":
                values[key] = integer(value, what, 0, 3)
            case "text", "font":
                values[key] = decode_text(value, what)[:100]
            case "text", "fontsize":
                values[key] = integer(value, what, 0, 100_000) or None
            case "text", "fill":
                values[key] = parse_color(value, what)
            case _:
                raise BadCommand(f"watermark: unknown parameter {shown(key)} of {kind}")
    if kind == "image":
        return ImageMark(url=content, **values)
    if not 1 <= len(content) <= TEXT_CHARS_MAX:
        raise BadCommand(f"watermark: the text has {len(content)} characters; 1 to {TEXT_CHARS_MAX} are allowed")
    return TextMark(text=content, **values)


def parse_round_pic(args: list[str]) -> RoundPic:
    """roundPic/radius/<n|!<p>p> · roundPic/radiusx/<n|!<p>p>/radiusy/<n|!<p>p>"""
    given = Arguments("roundPic", args)
    radii = {key: _parse_radius(key, value) for key, value in given.pairs()}
    if set(radii) == {"radius"}:
        return RoundPic(radii["radius"], radii["radius"])
    if set(radii) == {"radiusx", "radiusy"}:
        return RoundPic(radii["radiusx"], radii["radiusy"])
    raise BadCommand("roundPic takes radius, or radiusx and radiusy")


def _parse_radius(key: str, value: str) -> float:
    """Pixels, or minus percent."""
    if key not in ("radius", "radiusx", "radiusy"):
        raise BadCommand(f"roundPic: unknown parameter {shown(key)}")
    if value.startswith("!") and value.endswith("p"):
        return -number(value[1:-1], f"roundPic: {key}", 1, 50)
    return number(value, f"roundPic: {key}", 1, 30_000)


def parse_slim(args: list[str]) -> Slim:
    """imageslim[/zlevel/<0-10>]"""
    given, level = Arguments("imageslim", args), 3
    for key, value in given.pairs():
        if key != "zlevel":
            raise given.unknown(key)
        level = integer(value, "imageslim: zlevel", 0, 10)
    return Slim(level)


def _parse_nothing(name: str, spec: Spec) -> Any:
    def parse(args: list[str]) -> Spec:
        given = Arguments(name, args)
        if given:
            raise BadCommand(f"{name} takes no arguments, got {shown(given.next(''))}")
        return spec

    return parse


# --- running them -----------------------------------------------------------------------------------------------------


async def run_picture(spec: Spec, source: Path, out: Path, tools: Tools) -> Output:
    """What libvips makes of the source, in a child with limits."""
    _check_bytes(source, tools.settings.picture_bytes_max)
    marks = spec.marks if isinstance(spec, Watermark) else ()
    try:
        files = await _fetch_marks(marks, tools)
        done = await tools.fork(
            "milepost.work.media.vips:work",
            Work(
                source=str(source),
                out=str(out),
                spec=spec,
                limits=PictureLimits.from_settings(tools.settings),
                marks=[None if file is None else str(file) for file in files],
                temporary=str(out.parent),
            ),
            Done,
            alone=bool(marks),
        )
    except FopFailed:
        save = getattr(spec, "save", None)
        if save is None or not save.ignore_error:
            raise
        done = Done(unchanged=True)
    if done.unchanged:
        return msgspec.structs.replace(Output.object(source, tools.mime_type), unchanged=True)
    if done.mime_type is None:
        return Output.info(done.result)
    return Output.object(out, done.mime_type)


def _check_bytes(source: Path, most: int) -> None:
    size_bytes = source.stat().st_size  # not in a thread: the file was put here just now, and this is some microseconds
    if size_bytes > most:
        raise FopFailed(f"image too large: {size_bytes} bytes, at most {most} are read")


async def _fetch_marks(marks: Sequence[Mark], tools: Tools) -> list[Path | None]:
    return [await tools.fetch(mark.url) if isinstance(mark, ImageMark) else None for mark in marks]


register(Command(name="imageInfo", makes="info", parse=_parse_nothing("imageInfo", ImageInfo()), run=run_picture))
register(Command(name="exif", makes="info", parse=_parse_nothing("exif", Exif()), run=run_picture))
register(Command(name="imageAve", makes="info", parse=_parse_nothing("imageAve", Average()), run=run_picture))
register(Command(name="imageView2", makes="object", parse=parse_image_view2, run=run_picture))
register(Command(name="imageView", makes="object", parse=parse_image_view, run=run_picture))
register(Command(name="imageMogr2", makes="object", parse=parse_image_mogr2, run=run_picture))
register(Command(name="watermark", makes="object", parse=parse_watermark, run=run_picture))
register(Command(name="roundPic", makes="object", parse=parse_round_pic, run=run_picture))
for _name in ("imageslim", "image-slim"):
    register(Command(name=_name, makes="object", parse=parse_slim, run=run_picture))

__all__ = [
    "parse_color",
    "parse_format",
    "parse_image_mogr2",
    "parse_image_view",
    "parse_image_view2",
    "parse_round_pic",
    "parse_slim",
    "parse_watermark",
    "run_picture",
]
