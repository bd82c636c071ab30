"""`avthumb/<format>/…`: a video or a sound in another format.  The text as a value; `avargs.py` makes ffmpeg's arguments of it.

Rules
1. Parameters come in any order; written twice, the later one counts, but for marks (`avmarks.py`).
2. What the format cannot take is said now, not by ffmpeg later.
3. `m` in a rate is a million: to ffmpeg a small m would be a thousandth.

Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/av/avthumb.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from milepost.work.media import avmarks, avsubtitles, hls
from milepost.work.media.avformats import AUDIO_CODECS, VIDEO_CODECS, Container, find_codec, find_container
from milepost.work.media.commands import BadCommand
from milepost.work.media.grammar import Arguments, integer, number, one_of, shown

SIDE_LEAST, SIDE_MAX = 20, 8192
SECONDS_MAX = 1e6
RATE_LEAST, RATE_MAX = 1000, 1_000_000_000

# Source: FFmpeg/FFmpeg libavutil/parseutils.c, the names that are still in use.
PRESETS = {
    "sqcif": (128, 96), "qcif": (176, 144), "cif": (352, 288), "4cif": (704, 576), "qqvga": (160, 120), "qvga": (320, 240),
    "vga": (640, 480), "svga": (800, 600), "xga": (1024, 768), "wvga": (852, 480), "wxga": (1366, 768), "ntsc": (720, 480),
    "pal": (720, 576), "hd480": (852, 480), "hd720": (1280, 720), "hd1080": (1920, 1080), "2k": (2048, 1080),
    "uhd2160": (3840, 2160),
}  # fmt: skip

# Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/av/segtime.md.  They stand behind the key `preset`, or alone.
AV_PRESETS: dict[str, dict[str, Any]] = {
    **{f"audio_{rate}k": {"audio_bps": rate * 1000, "no_video": True} for rate in (32, 48, 64)},
    **{f"video_{rate}k": {"video_bps": rate * 1000} for rate in (150, 240, 440, 640, 1000, 1500)},
}

_RATE = re.compile(r"([0-9]{1,10}(?:\.[0-9]{1,6})?)([kKmM]?)", re.ASCII)
_SIZE = re.compile(r"([0-9]{0,5})x([0-9]{0,5})([<>]?)", re.ASCII)
_ASPECT = re.compile(r"([1-9][0-9]{0,3}):([1-9][0-9]{0,3})", re.ASCII)
_LEVEL = re.compile(r"[1-6](?:\.[0-3])?|1b", re.ASCII)

Turn = Literal["90", "180", "270", "auto"]


class Size(msgspec.Struct, frozen=True):
    """A wanted size; a side that is None follows from the other.  `only`: when the source is larger (>) or smaller (<)."""

    width: int | None
    height: int | None
    only: Literal["", "<", ">"] = ""


for _shape, _sides in (("16x9", (400, 224)), ("4x3", (400, 300))):
    for _k in (150, 240, 440, 640):
        AV_PRESETS[f"video_{_shape}_{_k}k"] = {"video_bps": _k * 1000, "size": Size(*_sides)}


class AvThumb(msgspec.Struct, frozen=True, kw_only=True):
    """The whole command."""

    format: str
    video_codec: str | None = None
    audio_codec: str | None = None
    video_bps: int | None = None
    audio_bps: int | None = None
    audio_quality: float | None = None
    sample_rate: int | None = None
    channels: int | None = None
    fps: float | None = None
    faster: bool = False  # hr: more pictures a second than the source has
    size: Size | None = None
    autoscale: bool = False
    aspect: str | None = None
    start_s: float | None = None
    length_s: float | None = None
    no_audio: bool = False
    no_video: bool = False
    no_subtitles: bool = False
    turn: Turn | None = None
    strip: bool = False
    crf: int | None = None
    profile: str | None = None
    level: str | None = None
    gop: int | None = None
    xing: bool = True
    hls: hls.Hls | None = None
    marks: tuple[avmarks.Mark, ...] = ()
    subtitle: str | None = None  # the URL of a file that is drawn into the pictures
    subtitle_codec: str | None = None  # in which the source's subtitles are kept


# --- single values ---------------------------------------------------------------------------------------------------


def parse_rate(value: str, what: str) -> int:
    """Bits a second: `128k`, `1.25m` or plain.  Errors: BadCommand."""
    found = _RATE.fullmatch(value)
    rate = 0 if found is None else round(float(found[1]) * {"": 1, "k": 1000, "m": 1_000_000}[found[2].lower()])
    if not RATE_LEAST <= rate <= RATE_MAX:
        raise BadCommand(f"{what} must be a rate such as 128k or 1.25m, not {shown(value)}")
    return rate


def parse_size(value: str, what: str) -> Size:
    """`<w>x<h>`, one of them perhaps left out, with `>` or `<` behind; or a name.  Errors: BadCommand."""
    if value in PRESETS:
        return Size(*PRESETS[value])
    found = _SIZE.fullmatch(value)
    if found is None or not (found[1] or found[2]):
        raise BadCommand(f"{what} must be a size such as 640x360, not {shown(value)}")
    sides = [int(side) if side else None for side in found.group(1, 2)]
    if any(side is not None and not SIDE_LEAST <= side <= SIDE_MAX for side in sides):
        raise BadCommand(f"{what}: a side has from {SIDE_LEAST} to {SIDE_MAX} pixels, not {shown(value)}")
    return Size(sides[0], sides[1], found[3])  # type: ignore[arg-type]


def _parse_aspect(value: str, what: str) -> str:
    if not _ASPECT.fullmatch(value):
        raise BadCommand(f"{what} must be a ratio such as 4:3, not {shown(value)}")
    return value


def _parse_level(value: str, what: str) -> str:
    if not _LEVEL.fullmatch(value):
        raise BadCommand(f"{what} must be a level such as 3.1, not {shown(value)}")
    return value


def _flag(value: str, what: str) -> bool:
    return one_of(value, what, ("0", "1")) == "1"


def parse_seconds(value: str, what: str) -> float:
    """Errors: BadCommand."""
    return number(value, what, 0, SECONDS_MAX)


def parse_turn(value: str, what: str) -> Turn | None:
    """Errors: BadCommand."""
    return one_of(value, what, ("90", "180", "270", "auto"))  # type: ignore[return-value]


# key: the field it sets, and how its value is read
_READ: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "vb": ("video_bps", parse_rate),
    "ab": ("audio_bps", parse_rate),
    "ar": ("sample_rate", lambda value, what: integer(value, what, 4000, 192_000)),
    "ac": ("channels", lambda value, what: integer(value, what, 1, 8)),
    "r": ("fps", lambda value, what: number(value, what, 0.1, 120)),
    "hr": ("faster", _flag),
    "s": ("size", parse_size),
    "autoscale": ("autoscale", _flag),
    "aspect": ("aspect", _parse_aspect),
    "ss": ("start_s", parse_seconds),
    "t": ("length_s", parse_seconds),
    "an": ("no_audio", _flag),
    "vn": ("no_video", _flag),
    "rotate": ("turn", parse_turn),
    "stripmeta": ("strip", _flag),
    "crf": ("crf", lambda value, what: integer(value, what, 0, 63)),
    "h264Crf": ("crf", lambda value, what: integer(value, what, 0, 51)),
    "h264Profile": ("profile", lambda value, what: one_of(value, what, ("baseline", "main", "high"))),
    "h264Level": ("level", _parse_level),
    "gop": ("gop", lambda value, what: integer(value, what, 0, 3000)),
    "writeXing": ("xing", _flag),
    "subtitle": ("subtitle", avsubtitles.parse_subtitle),
}
_QUALITY = {"libmp3lame": (0.0, 9.0), "aac": (10.0, 500.0), "libvorbis": (0.0, 10.0)}
_WITH_CRF = ("libx264", "libx265", "libvpx", "libvpx-vp9")


# --- the command -----------------------------------------------------------------------------------------------------


def parse_avthumb(args: list[str], command: str = "avthumb") -> AvThumb:
    """Errors: BadCommand."""
    given = Arguments(command, args)
    name = given.next("the format")
    container = find_container(name, command)
    fields: dict[str, Any] = {"format": name}
    marks, segments = avmarks.MarkReader(command), hls.HlsReader(command)
    preset: dict[str, Any] = {}
    for key, value in given.pairs(frozenset(AV_PRESETS)):
        what = f"{command}: {key}"
        if key == "preset" or key in AV_PRESETS:
            preset = find_preset(key if key in AV_PRESETS else value, container, what)
        elif key in _READ:
            field, read = _READ[key]
            fields[field] = read(value, what)
        elif key in avmarks.KEYS:
            marks.take(key, value)
        elif key in hls.KEYS and name == "m3u8":
            segments.take(key, value)
        elif not _read_codec(fields, key, value, container, what):
            raise given.unknown(key)
    if name == "m3u8":
        fields["hls"] = segments.hls()
    if "crf" in fields:
        preset.pop("video_bps", None)
    if "audio_quality" in fields:
        preset.pop("audio_bps", None)
    spec = AvThumb(**{**preset, **fields}, marks=marks.marks())
    _check(spec, container, command)
    return spec


def find_preset(name: str, container: Container, what: str) -> dict[str, Any]:
    """What a preset says, each part of which the command's own keys replace.  Errors: BadCommand."""
    if name not in AV_PRESETS:
        raise BadCommand(f"{what} must be one of {', '.join(AV_PRESETS)}, not {shown(name)}")
    if name.startswith("video") and not container.video:
        raise BadCommand(f"{what}: {name} is for formats with pictures")
    return dict(AV_PRESETS[name])


def _read_codec(fields: dict[str, Any], key: str, value: str, container: Container, what: str) -> bool:
    match key:
        case "vcodec":
            fields["video_codec"] = find_codec(value, VIDEO_CODECS, container.video, what)
        case "acodec":
            fields["audio_codec"] = find_codec(value, AUDIO_CODECS, container.audio, what)
        case "aq":
            fields["audio_quality"] = number(value, what, 0, 500)
        case "audioProfile":  # the encoder at hand makes AAC-LC, which whatever plays HE-AAC plays as well
            one_of(value, what, ("aac_low", "aac_he", "aac_he_v2"))
        case "scodec":
            if value not in container.subtitles:
                raise BadCommand(f"{what}: this format takes {', '.join(container.subtitles) or 'none'}, not {shown(value)}")
            fields["subtitle_codec"] = value
        case "sn":
            fields["no_subtitles"] = _flag(value, what)
        case _:
            return False
    return True


def _check(spec: AvThumb, container: Container, command: str) -> None:
    """What does not go together.  Errors: BadCommand."""
    video = spec.video_codec or next(iter(container.video), None)
    audio = spec.audio_codec or next(iter(container.audio), None)
    if spec.crf is not None and spec.video_bps is not None:
        raise BadCommand(f"{command}: crf and vb do not go together")
    if spec.crf is not None and video not in _WITH_CRF:
        raise BadCommand(f"{command}: crf is for {', '.join(_WITH_CRF)}")
    if (spec.profile or spec.level) and video != "libx264":
        raise BadCommand(f"{command}: h264Profile and h264Level are for libx264")
    if spec.audio_quality is not None:
        if spec.audio_bps is not None:
            raise BadCommand(f"{command}: aq and ab do not go together")
        low, high = _QUALITY.get(audio or "", (1.0, 0.0))
        if not low <= spec.audio_quality <= high:
            raise BadCommand(f"{command}: aq is from 0 to 9 for mp3, from 10 to 500 for aac, from 0 to 10 for vorbis")
    if spec.no_audio and (spec.no_video or not container.video):
        raise BadCommand(f"{command}: neither audio nor video is left")
    if spec.no_video and not container.audio:
        raise BadCommand(f"{command}: {spec.format} has no audio")
    if spec.subtitle_codec and spec.no_subtitles:
        raise BadCommand(f"{command}: scodec and sn/1 do not go together")
    if spec.length_s == 0:
        raise BadCommand(f"{command}: t must be more than 0")
    drawn = spec.marks or spec.subtitle
    changes = spec.size or spec.turn not in (None, "auto") or drawn or spec.fps or spec.video_bps or spec.crf is not None
    if spec.video_codec == "copy" and changes:
        raise BadCommand(f"{command}: vcodec/copy leaves the pictures as they are")
    if spec.audio_codec == "copy" and (spec.audio_bps or spec.audio_quality or spec.sample_rate or spec.channels):
        raise BadCommand(f"{command}: acodec/copy leaves the sound as it is")
    if drawn and (not container.video or spec.no_video):
        raise BadCommand(f"{command}: marks and subtitles need pictures to stand on")


__all__ = ["AvThumb", "Size", "Turn", "parse_avthumb", "parse_rate", "parse_seconds", "parse_size", "parse_turn"]
