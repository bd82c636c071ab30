"""`vframe` and `vsample`: single pictures out of a video.

Rules
1. vsample's n-th picture is the first one shown at or after ss + n * interval.  `frames` spreads that many over the length.
2. Its names count from 000001, as the service's own example does.
3. There is one picture at least, or the item fails.

Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/av/{vframe,vsample}.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from milepost.work.media.av import Media, Video, check_made, open_input, probe, run_ffmpeg
from milepost.work.media.avargs import TURNS, seconds
from milepost.work.media.avthumb import SECONDS_MAX, Size, Turn, parse_seconds, parse_size, parse_turn
from milepost.work.media.commands import BadCommand, Command, FopFailed, Made, Output, Tools, register
from milepost.work.media.grammar import Arguments, integer, number, one_of
from milepost.work.media.hls import fill_pattern, parse_pattern
from milepost.work.threads import in_thread

SAMPLES_MAX = 1000
SIDE_MAX = 3840
PICTURE_BYTES_MAX = 256 << 20
PictureFormat = Literal["jpg", "png"]
MIME = {"jpg": "image/jpeg", "png": "image/png"}
ENCODE = {"jpg": ["-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p"], "png": ["-c:v", "png"]}


class VFrame(msgspec.Struct, frozen=True, kw_only=True):
    """One picture."""

    format: PictureFormat
    offset_s: float
    size: Size | None = None
    turn: Turn | None = None


class VSample(msgspec.Struct, frozen=True, kw_only=True):
    """Pictures at regular distances."""

    format: PictureFormat
    pattern: str
    start_s: float = 0.0
    length_s: float | None = None
    size: Size | None = None
    turn: Turn | None = None
    interval_s: float = 5.0
    frames: int | None = None


# --- the texts -------------------------------------------------------------------------------------------------------


def _format(given: Arguments) -> Any:
    return one_of(given.next("the format"), f"{given.command}: format", ("jpg", "png"))


def parse_vframe(args: list[str]) -> VFrame:
    """Errors: BadCommand."""
    given = Arguments("vframe", args)
    fields: dict[str, Any] = {"format": _format(given)}
    sides: dict[str, int] = {}
    for key, value in given.pairs():
        match key:
            case "offset":
                fields["offset_s"] = number(value, "vframe: offset", 0, SECONDS_MAX)
            case "w" | "h":
                sides[key] = integer(value, f"vframe: {key}", 1, SIDE_MAX)
            case "rotate":
                fields["turn"] = parse_turn(value, "vframe: rotate")
            case _:
                raise given.unknown(key)
    if "offset_s" not in fields:
        raise BadCommand("vframe: offset is missing")
    return VFrame(**fields, size=Size(sides.get("w"), sides.get("h")) if sides else None)


def parse_vsample(args: list[str]) -> VSample:
    """Errors: BadCommand."""
    given = Arguments("vsample", args)
    fields: dict[str, Any] = {"format": _format(given)}
    for key, value in given.pairs():
        match key:
            case "ss":
                fields["start_s"] = parse_seconds(value, "vsample: ss")
            case "t":
                fields["length_s"] = number(value, "vsample: t", 0.001, SECONDS_MAX)
            case "s":
                fields["size"] = parse_size(value, "vsample: s")
            case "rotate":
                fields["turn"] = parse_turn(value, "vsample: rotate")
            case "interval":
                fields["interval_s"] = number(value, "vsample: interval", 0.1, SECONDS_MAX)
            case "frames":
                fields["frames"] = integer(value, "vsample: frames", 1, SAMPLES_MAX)
            case "pattern" | "savePattern":
                fields["pattern"] = parse_pattern(value, f"vsample: {key}")
            case _:
                raise given.unknown(key)
    if "pattern" not in fields:
        raise BadCommand("vsample: savePattern is missing")
    if "frames" in fields and "interval_s" in fields:
        raise BadCommand("vsample: interval and frames do not go together")
    return VSample(**fields)


# --- ffmpeg's arguments ----------------------------------------------------------------------------------------------


def picture_size(wanted: Size | None, width: int, height: int) -> tuple[int, int]:
    """The picture's size: both sides as given, or one and the other by the ratio.  Pictures may be odd."""
    if wanted is None:
        return width, height
    if wanted.width is not None and wanted.height is not None:
        return wanted.width, wanted.height
    if wanted.width is not None:
        return wanted.width, max(1, round(height * wanted.width / width))
    return max(1, round(width * (wanted.height or height) / height)), wanted.height or height


def _steps(video: Video, size: Size | None, turn: Turn | None) -> list[str]:
    width, height = (video.height, video.width) if turn in ("90", "270") else (video.width, video.height)
    steps = list(TURNS.get(turn or "", []))
    wanted = picture_size(size, width, height)
    return steps if wanted == (width, height) else [*steps, f"scale={wanted[0]}:{wanted[1]}", "setsar=1"]


def _with_filters(steps: list[str]) -> list[str]:
    return ["-vf", ",".join(steps)] if steps else []


def vframe_args(spec: VFrame, media: Media, source: str, out: str, *, pixels_max: int) -> list[str]:
    """The arguments behind `ffmpeg`."""
    video = need_video(media)
    args = ["-ss", seconds(spec.offset_s), *open_input(source, media.demuxer, pixels_max), "-map", f"0:{video.index}"]
    args += [*_with_filters(_steps(video, spec.size, spec.turn)), "-frames:v", "1", "-an", "-sn", "-dn", *ENCODE[spec.format]]
    return [*args, "-f", "image2pipe", f"file:{out}"]


def vsample_args(spec: VSample, media: Media, source: str, *, pixels_max: int) -> list[str]:
    """The arguments behind `ffmpeg`; it writes `sample-1`, `sample-2` … into its folder.

    Errors: FopFailed when there would be too many.
    """
    video = need_video(media)
    length_s = length_of(spec, media)
    if spec.frames is not None:
        if length_s is None:
            raise FopFailed("the length of the source is not known: give t, or interval instead of frames")
        interval_s, most = length_s / spec.frames, spec.frames
    else:
        interval_s, most = spec.interval_s, SAMPLES_MAX + 1
        if length_s is not None and length_s / interval_s > SAMPLES_MAX:
            raise FopFailed(f"more than {SAMPLES_MAX} pictures; give a longer interval")
    args = ["-ss", seconds(spec.start_s)] if spec.start_s else []
    args += open_input(source, media.demuxer, pixels_max)
    args += [] if spec.length_s is None else ["-t", seconds(spec.length_s)]
    steps = [f"select='gte(t,selected_n*{seconds(interval_s)})'", *_steps(video, spec.size, spec.turn)]
    args += ["-map", f"0:{video.index}", *_with_filters(steps), "-fps_mode", "vfr", "-frames:v", str(most), "-an", "-sn", "-dn"]
    return [*args, *ENCODE[spec.format], "-f", "image2", "sample-%d"]


def need_video(media: Media) -> Video:
    """Errors: FopFailed when there is none."""
    if media.video is None:
        raise FopFailed("the source has no video")
    return media.video


def length_of(spec: VSample, media: Media) -> float | None:
    """Of the part that is sampled.  Errors: FopFailed when it begins behind the end."""
    if media.duration_s is None:
        return spec.length_s
    if spec.start_s >= media.duration_s:
        raise FopFailed(f"ss is {spec.start_s:g} s, and the source has {media.duration_s:g} s")
    return min(media.duration_s - spec.start_s, spec.length_s or media.duration_s)


# --- the commands ----------------------------------------------------------------------------------------------------


async def run_vframe(spec: VFrame, source: Path, out: Path, tools: Tools) -> Output:
    """Errors: FopFailed, also when no picture is shown at that time."""
    media = await probe(source, tools)
    args = vframe_args(spec, media, str(source), str(out), pixels_max=tools.settings.av_pixels_max)
    await run_ffmpeg(args, tools, total_s=None, note="taking a picture", file_bytes=PICTURE_BYTES_MAX, whole=False)
    length = "" if media.duration_s is None else f", and the source has {media.duration_s:g} s"
    check_made(out, f"there is no picture at {spec.offset_s:g} s{length}")
    return Output.object(out, MIME[spec.format])


async def run_vsample(spec: VSample, source: Path, _out: Path, tools: Tools) -> Output:
    """Errors: FopFailed, also when there are no pictures or too many."""
    media = await probe(source, tools)
    args = vsample_args(spec, media, str(source), pixels_max=tools.settings.av_pixels_max)
    await run_ffmpeg(
        args, tools, total_s=length_of(spec, media), note="taking pictures", file_bytes=PICTURE_BYTES_MAX, whole=False
    )
    paths = await in_thread(_samples, tools.folder)
    if len(paths) > SAMPLES_MAX:
        raise FopFailed(f"more than {SAMPLES_MAX} pictures; give a longer interval")
    keys = [fill_pattern(spec.pattern, count, tools.origin.key) for count in range(1, len(paths) + 1)]
    return Output.objects(*(Made(path=path, mime_type=MIME[spec.format], key=key) for path, key in zip(paths, keys, strict=True)))


def _samples(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("sample-*"), key=lambda path: int(path.name.removeprefix("sample-")))
    if not paths:
        raise FopFailed("there are no pictures in that part of the source")
    for path in paths:
        check_made(path)
    return paths


register(Command(name="vframe", makes="object", parse=parse_vframe, run=run_vframe))
register(Command(name="vsample", makes="objects", parse=parse_vsample, run=run_vsample))

__all__ = ["VFrame", "VSample", "parse_vframe", "parse_vsample", "picture_size", "vframe_args", "vsample_args"]
