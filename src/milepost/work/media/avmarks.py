"""Marks on videos: the `wm…` parameters as values, and values as FFmpeg's filters.  Pure.

Rules
1. Each `wmImage` and each `wmText` begins a mark; the parameters behind it are its own.  Those in front of the first are the
   first's; the text's (`wmGravityText`, `wmFont…`) in front of their text are the next text's.
2. Marks stand at the top right unless said otherwise; an offset moves right and down, whatever the gravity.
3. `wmPos/$(end)` with a negative `wmDuration` is the last seconds of the output.
4. A text reaches ffmpeg in a file and is not expanded; a font's name has letters, digits, spaces and hyphens only.

Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/av/video-watermark.md.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from milepost.work.media.commands import BadCommand, FopFailed
from milepost.work.media.grammar import decode_text, integer, number, shown

MARKS_MAX = 20
END = "$(end)"  # of wmPos
TEXT_CHARS_MAX = 500
TWIPS_DEFAULT = 320
FONT = "DejaVu Sans"

KEYS = frozenset(
    {
        "wmImage", "wmGravity", "wmText", "wmGravityText", "wmFont", "wmFontColor", "wmFontSize", "wmOffsetX", "wmOffsetY",
        "wmScale", "wmAlpha", "wmPos", "wmDuration", "wmIgnoreLoop",
    }
)  # fmt: skip
_TEXT_KEYS = frozenset({"wmGravityText", "wmFont", "wmFontColor", "wmFontSize"})

_LEAST, _MIDDLE, _MOST = "0", "({all}-{own})/2", "{all}-{own}"
GRAVITY = {
    "NorthWest": (_LEAST, _LEAST), "North": (_MIDDLE, _LEAST), "NorthEast": (_MOST, _LEAST),
    "West": (_LEAST, _MIDDLE), "Center": (_MIDDLE, _MIDDLE), "East": (_MOST, _MIDDLE),
    "SouthWest": (_LEAST, _MOST), "South": (_MIDDLE, _MOST), "SouthEast": (_MOST, _MOST),
}  # fmt: skip
_GRAVITY_LOWER = {name.lower(): name for name in GRAVITY}

# Names of HTML colours that FFmpeg knows too; gray as the service has it.
COLORS = {
    "black": "000000", "white": "FFFFFF", "red": "FF0000", "orange": "FFA500", "yellow": "FFFF00", "green": "008000",
    "blue": "0000FF", "purple": "800080", "gray": "7E7E7E", "grey": "7E7E7E", "pink": "FFC0CB",
}  # fmt: skip
_HEX = re.compile(r"#([0-9a-fA-F]{6})")
_FONT = re.compile(r"[\w -]{1,100}")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where and when a mark is seen."""

    gravity: str = "NorthEast"
    dx: int = 0
    dy: int = 0
    alpha: float = 1.0
    from_s: float | None = None
    for_s: float | None = None
    last_s: float | None = None  # seen in so many seconds before the end

    def within(self, length_s: float | None) -> Place:
        """The same of a video that is so long.  Errors: FopFailed where the end has to be known and is not."""
        if self.last_s is None:
            return self
        if length_s is None:
            raise FopFailed("the length of the source is not known: wmPos cannot be $(end)")
        return msgspec.structs.replace(self, from_s=max(0.0, length_s - self.last_s), last_s=None)

    def position(self, width: str, height: str, own_width: str, own_height: str) -> tuple[str, str]:
        """x and y as FFmpeg's expressions, of what the filter calls the video's size and the mark's."""
        x, y = GRAVITY[self.gravity]
        return (
            f"{x.format(all=width, own=own_width)}{self.dx:+d}",
            f"{y.format(all=height, own=own_height)}{self.dy:+d}",
        )

    def enable(self) -> str:
        """The filter's `enable` option, or nothing."""
        if self.from_s is None and self.for_s is None:
            return ""
        start = self.from_s or 0.0
        return f":enable='gte(t,{start:g})'" if self.for_s is None else f":enable='between(t,{start:g},{start + self.for_s:g})'"


class ImageMark(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A picture; animated GIFs play again and again."""

    url: str
    place: Place = Place()
    scale: float | None = None  # its short side over the video's


class TextMark(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A line of text."""

    text: str
    place: Place = Place()
    font: str = FONT
    color: str = COLORS["black"]
    size_px: float = TWIPS_DEFAULT / 20


Mark = ImageMark | TextMark


class MarkReader:
    """Collects the marks of one command, parameter by parameter."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._groups: list[tuple[str, str, dict[str, str]]] = []
        self._first: dict[str, str] = {}
        self._text: dict[str, str] = {}

    def take(self, key: str, value: str) -> None:
        """Errors: BadCommand."""
        if key in ("wmImage", "wmText"):
            waiting = dict(self._text) if key == "wmText" else {}
            if key == "wmText":
                self._text = {}
            waiting, self._first = {**self._first, **waiting}, {}
            self._groups.append((key, decode_text(value, f"{self._command}: {key}"), waiting))
            if len(self._groups) > MARKS_MAX:
                raise BadCommand(f"{self._command}: at most {MARKS_MAX} marks")
        elif key in _TEXT_KEYS and (not self._groups or self._groups[-1][0] == "wmImage"):
            self._text[key] = value
        elif not self._groups:
            self._first[key] = value
        else:
            self._groups[-1][2][key] = value

    def marks(self) -> tuple[Mark, ...]:
        """Errors: BadCommand, also for parameters without a mark."""
        if self._first or self._text:
            raise BadCommand(
                f"{self._command}: {next(iter({**self._first, **self._text}))} belongs to a wmImage or wmText, and there is none"
            )
        return tuple(self._mark(kind, value, given) for kind, value, given in self._groups)

    def _mark(self, kind: str, value: str, given: dict[str, str]) -> Mark:
        place = self._place(given, text=kind == "wmText")
        if kind == "wmImage":
            if not value:
                raise BadCommand(f"{self._command}: wmImage is empty")
            scale = None if "wmScale" not in given else number(given["wmScale"], f"{self._command}: wmScale", 0.001, 1)
            return ImageMark(url=value, place=place, scale=scale)
        if not 0 < len(value) <= TEXT_CHARS_MAX or "\0" in value:
            raise BadCommand(f"{self._command}: wmText has from 1 to {TEXT_CHARS_MAX} characters")
        more: dict[str, Any] = {}
        if "wmFont" in given:
            more["font"] = self._font(decode_text(given["wmFont"], f"{self._command}: wmFont"))
        if "wmFontColor" in given:
            more["color"] = self._color(decode_text(given["wmFontColor"], f"{self._command}: wmFontColor"))
        if given.get("wmFontSize", "0") != "0":
            more["size_px"] = integer(given["wmFontSize"], f"{self._command}: wmFontSize", 20, 40_000) / 20
        return TextMark(text=value, place=place, **more)

    def _place(self, given: dict[str, str], *, text: bool) -> Place:
        values: dict[str, Any] = {}
        gravity = (given.get("wmGravityText") if text else None) or given.get("wmGravity")
        if gravity is not None:
            if gravity.lower() not in _GRAVITY_LOWER:
                raise BadCommand(f"{self._command}: gravity must be one of {', '.join(GRAVITY)}, not {shown(gravity)}")
            values["gravity"] = _GRAVITY_LOWER[gravity.lower()]
        for key, field in (("wmOffsetX", "dx"), ("wmOffsetY", "dy")):
            if key in given:
                values[field] = integer(given[key], f"{self._command}: {key}", -10_000, 10_000)
        at_end = given.get("wmPos") == END
        if at_end:
            values["last_s"] = -number(
                given.get("wmDuration", ""), f"{self._command}: wmDuration behind wmPos/{END}", -1e6, -0.001
            )
        for key, field, high in (("wmAlpha", "alpha", 1.0), ("wmPos", "from_s", 1e6), ("wmDuration", "for_s", 1e6)):
            if key in given and not (at_end and key != "wmAlpha"):
                values[field] = number(given[key], f"{self._command}: {key}", 0, high)
        return Place(**values)

    def _font(self, name: str) -> str:
        if not _FONT.fullmatch(name):
            raise BadCommand(f"{self._command}: wmFont has letters, digits, spaces and hyphens, not {shown(name)}")
        return name

    def _color(self, text: str) -> str:
        found = _HEX.fullmatch(text.strip())
        code = found[1].upper() if found else COLORS.get(text.strip().lower())
        if code is None:
            raise BadCommand(f"{self._command}: wmFontColor is #RRGGBB or one of {', '.join(COLORS)}, not {shown(text)}")
        return code


def mark_filters(marks: tuple[Mark, ...], size: tuple[int, int], *, first_input: int, label_in: str, label_out: str) -> list[str]:
    """The filters that draw the marks one over the other, from one label to another.

    The n-th picture is the input `first_input` + n; the n-th text is in the file `text-<n>` of ffmpeg's folder.
    """
    chains: list[str] = []
    before, pictures, texts = label_in, first_input, 0
    for index, mark in enumerate(marks):
        after = label_out if index == len(marks) - 1 else f"m{index}"
        if isinstance(mark, ImageMark):
            chains += _draw_picture(mark, size, pictures, index, before, after)
            pictures += 1
        else:
            chains.append(_draw_text(mark, texts, before, after))
            texts += 1
        before = after
    return chains


def _draw_picture(mark: ImageMark, size: tuple[int, int], number: int, index: int, before: str, after: str) -> list[str]:
    steps = ["format=rgba"]
    if mark.scale is not None:
        short = max(1, round(min(size) * mark.scale))
        steps.append(f"scale=w='if(lt(iw,ih),{short},-1)':h='if(lt(iw,ih),-1,{short})'")
    if mark.place.alpha < 1:
        steps.append(f"colorchannelmixer=aa={mark.place.alpha:g}")
    x, y = mark.place.position("W", "H", "w", "h")
    return [
        f"[{number}:v]{','.join(steps)}[p{index}]",
        f"[{before}][p{index}]overlay=x={x}:y={y}:eof_action=repeat{mark.place.enable()}[{after}]",
    ]


def _draw_text(mark: TextMark, number: int, before: str, after: str) -> str:
    x, y = mark.place.position("w", "h", "text_w", "text_h")
    return (
        f"[{before}]drawtext=font='{mark.font}':textfile=text-{number}:expansion=none:fontcolor=0x{mark.color}@{mark.place.alpha:g}"
        f":fontsize={mark.size_px:g}:x={x}:y={y}{mark.place.enable()}[{after}]"
    )


__all__ = ["KEYS", "ImageMark", "Mark", "MarkReader", "Place", "TextMark", "mark_filters"]
