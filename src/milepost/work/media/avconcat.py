"""`avconcat/<1|2>/format/<f>/…`: the source and other files one behind the other.

Rules
1. Mode 1 copies the streams, which must be of one sort in all files.  Mode 2 decodes and encodes: every part gets the size and
   the rate of the source (or of `s`), bars where its shape is another, and silence where it has no sound.
2. `index` is the source's place among the parts, from 1.
3. Mode 1 uses ffmpeg's concat reader on a list written here, with names of links in the job's folder; each part was found to be
   of a self-contained format before, and no other format may be opened.

Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/av/avconcat.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from milepost.work.media.av import Media, check_made, open_input, probe, run_ffmpeg
from milepost.work.media.avargs import output_size, seconds
from milepost.work.media.avformats import CONTAINERS, Container, find_container
from milepost.work.media.avthumb import Size, parse_size
from milepost.work.media.commands import BadCommand, Command, FopFailed, Output, Tools, register
from milepost.work.media.grammar import Arguments, decode_text, integer, one_of
from milepost.work.threads import in_thread

OTHERS_MAX = 20
KEYS = frozenset({"format", "index", "s", "addAudio"})
FPS_DEFAULT = 25
SAMPLE_RATE = 48_000
LIST = "parts.txt"


class AvConcat(msgspec.Struct, frozen=True, kw_only=True):
    """The whole command."""

    mode: Literal[1, 2]
    format: str
    urls: tuple[str, ...]
    index: int = 1
    size: Size | None = None
    add_audio: bool = True  # silence where a part has no sound


def parse_avconcat(args: list[str]) -> AvConcat:
    """Errors: BadCommand."""
    given = Arguments("avconcat", args)
    mode: Any = int(one_of(given.next("the mode"), "avconcat: mode", ("1", "2")))
    fields: dict[str, Any] = {}
    while given.peek() in KEYS:
        key = given.next("a parameter")
        value = given.next(f"the value of {key}")
        match key:
            case "format":
                find_container(value, "avconcat", but=("gif", "m3u8"))
                fields["format"] = value
            case "index":
                fields["index"] = integer(value, "avconcat: index", 1, OTHERS_MAX + 1)
            case "s":
                fields["size"] = parse_size(value, "avconcat: s")
            case "addAudio":
                fields["add_audio"] = one_of(value, "avconcat: addAudio", ("0", "1")) == "1"
    if "format" not in fields:
        raise BadCommand("avconcat: format is missing")
    urls = []
    while given:
        urls.append(decode_text(given.next("a URL"), "avconcat: a URL"))
    if not 1 <= len(urls) <= OTHERS_MAX or not all(urls):
        raise BadCommand(f"avconcat: from 1 to {OTHERS_MAX} files follow, each as the base64 of its URL")
    if fields.get("index", 1) > len(urls) + 1:
        raise BadCommand(f"avconcat: index is {fields['index']}, and there are {len(urls) + 1} files")
    if mode == 1 and "size" in fields:
        raise BadCommand("avconcat: s is for mode 2; mode 1 copies what is there")
    return AvConcat(mode=mode, urls=tuple(urls), **fields)


# --- ffmpeg's arguments, mode 1 --------------------------------------------------------------------------------------


def check_alike(parts: Sequence[Media]) -> None:
    """Errors: FopFailed when streams cannot follow each other as they are."""
    for number, part in enumerate(parts[1:], 2):
        if _sort(part) != _sort(parts[0]):
            raise FopFailed(
                f"file {number} is {_told(part)}, the first is {_told(parts[0])}: mode 1 cannot join them, mode 2 can"
            )


def _sort(media: Media) -> tuple[Any, ...]:
    video, audio = media.video, media.audio
    return (
        None if video is None else (video.index, video.codec, video.width, video.height),
        None if audio is None else (audio.index, audio.codec, audio.sample_rate, audio.channels),
    )


def _told(media: Media) -> str:
    video, audio = media.video, media.audio
    words = [] if video is None else [f"{video.codec} {video.width}x{video.height} (stream {video.index})"]
    return " and ".join(words if audio is None else [*words, f"{audio.codec} {audio.sample_rate} Hz (stream {audio.index})"])


def copy_args(spec: AvConcat, parts: Sequence[Media], out: str, *, pixels_max: int) -> list[str]:
    """The arguments behind `ffmpeg`, which reads the list of links in its folder."""
    container = CONTAINERS[spec.format]
    demuxers = ",".join(["concat", *sorted({part.demuxer for part in parts})])
    args = ["-protocol_whitelist", "file,pipe", "-format_whitelist", demuxers, "-max_pixels", str(pixels_max), "-f", "concat"]
    args += ["-safe", "1", "-i", f"file:{LIST}"]
    streams = [stream.index for stream in (parts[0].video, parts[0].audio) if stream is not None]
    for index in sorted(streams):
        args += ["-map", f"0:{index}"]
    return [*args, "-c", "copy", *container.options, "-f", container.muxer, f"file:{out}"]


def link_name(number: int) -> str:
    """Of a part in ffmpeg's folder."""
    return f"part-{number}"


# --- ffmpeg's arguments, mode 2 --------------------------------------------------------------------------------------


def join_args(spec: AvConcat, parts: Sequence[Media], paths: Sequence[str], out: str, *, pixels_max: int) -> list[str]:
    """The arguments behind `ffmpeg`.  Errors: FopFailed when the parts have nothing in common."""
    container = CONTAINERS[spec.format]
    with_video = bool(container.video) and all(part.video is not None for part in parts)
    sounding = [part.audio is not None for part in parts]
    with_audio = bool(container.audio) and (all(sounding) or (spec.add_audio and with_video and any(sounding)))
    if container.video and not with_video and any(part.video is not None for part in parts):
        raise FopFailed("some of the files have no video")
    if not with_video and not with_audio:
        raise FopFailed("the files have nothing in common that this format can hold")
    args = [arg for path, part in zip(paths, parts, strict=True) for arg in open_input(path, part.demuxer, pixels_max)]
    chains, labels = [], ""
    lead = parts[spec.index - 1]
    for number, part in enumerate(parts):
        if with_video:
            chains.append(_picture_chain(spec, number, part, lead))
            labels += f"[v{number}]"
        if with_audio:
            chains.append(_sound_chain(number, part))
            labels += f"[a{number}]"
    ends = ("[v]" if with_video else "") + ("[a]" if with_audio else "")
    chains.append(f"{labels}concat=n={len(parts)}:v={int(with_video)}:a={int(with_audio)}{ends}")
    args += ["-filter_complex", ";".join(chains)]
    if with_video:
        args += ["-map", "[v]", "-c:v", container.video[0], "-pix_fmt", "yuv420p", *_video_rate(container)]
    if with_audio:
        args += ["-map", "[a]", "-c:a", container.audio[0], "-b:a", str(container.audio_bps)]
        args += ["-ar", str(container.sample_rate or SAMPLE_RATE)]
    return [*args, *container.options, "-f", container.muxer, f"file:{out}"]


def _picture_chain(spec: AvConcat, number: int, part: Media, lead: Media) -> str:
    assert part.video is not None
    assert lead.video is not None
    width, height = output_size(spec.size, False, lead.video.width, lead.video.height)
    fit = f"scale={width}:{height}:force_original_aspect_ratio=decrease,pad={width}:{height}:-1:-1,setsar=1"
    fps = lead.video.fps or FPS_DEFAULT
    return f"[{number}:{part.video.index}]fps={fps},{fit},format=yuv420p[v{number}]"


def _sound_chain(number: int, part: Media) -> str:
    same = f"aresample={SAMPLE_RATE},aformat=sample_fmts=fltp:channel_layouts=stereo"
    if part.audio is not None:
        return f"[{number}:{part.audio.index}]{same}[a{number}]"
    length = seconds(part.duration_s or 0.04)
    return f"anullsrc=r={SAMPLE_RATE}:cl=stereo,atrim=duration={length},{same}[a{number}]"


def _video_rate(container: Container) -> list[str]:
    return [] if container.video_bps is None else ["-b:v", str(container.video_bps)]


# --- the command -----------------------------------------------------------------------------------------------------


async def run_avconcat(spec: AvConcat, source: Path, out: Path, tools: Tools) -> Output:
    """Errors: FopFailed; RetryableError when the disk is full."""
    paths = [await tools.fetch(url) for url in spec.urls]
    paths.insert(spec.index - 1, source)
    parts = [await _probe(number, path, tools) for number, path in enumerate(paths, 1)]
    limit = tools.settings.av_pixels_max
    if spec.mode == 1:
        check_alike(parts)
        await in_thread(_link, paths, tools.folder)
        args = copy_args(spec, parts, str(out), pixels_max=limit)
    else:
        args = join_args(spec, parts, [str(path) for path in paths], str(out), pixels_max=limit)
    lengths = [part.duration_s for part in parts]
    total_s = None if None in lengths else sum(length or 0.0 for length in lengths)
    await run_ffmpeg(args, tools, total_s=total_s, note=f"joining {len(parts)} files")
    check_made(out)
    return Output.object(out, CONTAINERS[spec.format].mime_type)


async def _probe(number: int, path: Path, tools: Tools) -> Media:
    try:
        return await probe(path, tools)
    except FopFailed as failed:
        raise FopFailed(f"file {number}: {failed}") from failed


def _link(paths: list[Path], folder: Path) -> None:
    for number, path in enumerate(paths):
        (folder / link_name(number)).symlink_to(path)
    (folder / LIST).write_text("ffconcat version 1.0\n" + "".join(f"file {link_name(number)}\n" for number in range(len(paths))))


register(Command(name="avconcat", makes="object", parse=parse_avconcat, run=run_avconcat))

__all__ = ["AvConcat", "check_alike", "copy_args", "join_args", "parse_avconcat"]
