"""`avthumb` and `avwatermarks` at work: sources and marks looked at, ffmpeg run, HLS segments given their keys."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from urllib.parse import quote

import msgspec

from milepost.work.media import hls
from milepost.work.media.av import PICTURES, Media, check_made, probe, run_ffmpeg
from milepost.work.media.avargs import KEY_INFO, PLAYLIST, SEGMENT, Input, expected_s, thumb_args
from milepost.work.media.avformats import CONTAINERS
from milepost.work.media.avmarks import ImageMark, TextMark
from milepost.work.media.avsubtitles import prepare_subtitles
from milepost.work.media.avthumb import AvThumb, parse_avthumb
from milepost.work.media.commands import Command, FopFailed, Made, Output, Tools, register
from milepost.work.media.grammar import automatic_key
from milepost.work.threads import in_thread

SEGMENTS_MAX = 10_000


class Prepared(msgspec.Struct, frozen=True):
    """What a transcode needs besides its text: what the source is, how long the output will be, and the marks' pictures."""

    media: Media
    length_s: float | None
    marks: list[Input]


async def run_avthumb(spec: AvThumb, source: Path, out: Path, tools: Tools) -> Output:
    """Errors: FopFailed; RetryableError when the disk is full."""
    ready = await prepare(spec, source, tools)
    args = thumb_args(spec, ready.media, str(source), str(out), ready.marks, pixels_max=tools.settings.av_pixels_max)
    await run_ffmpeg(args, tools, total_s=ready.length_s, note=f"transcoding to {spec.format}")
    if spec.hls is not None:
        cut = spec.hls
        if cut.pattern is None:
            cut = msgspec.structs.replace(cut, pattern=f"{automatic_prefix(cut, tools)}/{hls.COUNT}.ts")
        return await collect(cut, tools.folder, out, tools, beside=tools.target.key)
    check_made(out)
    return Output.object(out, CONTAINERS[spec.format].mime_type)


async def prepare(spec: AvThumb, source: Path, tools: Tools) -> Prepared:
    """The source looked at, and the files that ffmpeg reads beside it in its folder.  Errors: FopFailed."""
    media = await probe(source, tools)
    length_s = expected_s(spec, media)
    if spec.hls is not None and length_s is not None and length_s / spec.hls.segment_s > SEGMENTS_MAX:
        raise FopFailed(f"more than {SEGMENTS_MAX} segments; give a larger segtime")
    marks = [await _find_mark(mark, tools) for mark in spec.marks if isinstance(mark, ImageMark)]
    texts = [mark.text for mark in spec.marks if isinstance(mark, TextMark)]
    await in_thread(_write_texts, tools.folder, texts)
    if spec.hls is not None and spec.hls.key is not None:
        await in_thread(_write_key, tools.folder, spec.hls.key, spec.hls.key_url or "")
    if spec.subtitle is not None:
        await prepare_subtitles(spec.subtitle, spec.start_s or 0.0, tools, source, media)
    return Prepared(media, length_s, marks)


async def _find_mark(mark: ImageMark, tools: Tools) -> Input:
    path = await tools.fetch(mark.url)
    try:
        media = await probe(path, tools, PICTURES)
    except FopFailed as failed:
        raise FopFailed(f"wmImage: {failed}") from failed
    return Input(str(path), media.demuxer)


def _write_texts(folder: Path, texts: list[str]) -> None:
    for number, text in enumerate(texts):
        (folder / f"text-{number}").write_text(text)


def _write_key(folder: Path, key: bytes, url: str) -> None:
    (folder / "key").write_bytes(key)
    (folder / KEY_INFO).write_text(f"{url}\nkey\n")


async def collect(cut: hls.Hls, folder: Path, out: Path, tools: Tools, *, beside: str | None) -> Output:
    """The playlist that ffmpeg wrote into the folder, its references rewritten for the key `beside`, and the segments."""
    check_made(folder / PLAYLIST)
    names = await in_thread(_segments, folder)
    if not 0 < len(names) <= SEGMENTS_MAX or names[-1] != SEGMENT.format(len(names) - 1):
        raise FopFailed(f"{len(names)} segments; at most {SEGMENTS_MAX} are allowed")
    keys = hls.segment_keys(cut, len(names), tools.origin.key)
    references = {name: reference_to(cut, key, tools, beside=beside) for name, key in zip(names, keys, strict=True)}
    text = await in_thread((folder / PLAYLIST).read_text)
    await in_thread(out.write_text, hls.write_playlist(text, references))
    segments = [Made(path=folder / name, mime_type=hls.MIME_SEGMENT, key=key) for name, key in zip(names, keys, strict=True)]
    return Output.object(out, CONTAINERS["m3u8"].mime_type, *segments)


def _segments(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("segment-*.ts"))


def automatic_prefix(cut: hls.Hls, tools: Tools) -> str:
    """What the segments' keys begin with when nobody named them: the playlist's key when that is automatic too."""
    key = tools.target.key
    if key is not None and key.endswith(f"/{tools.origin.hash}"):
        return key
    return automatic_key(f"segments of {tools.target.bucket}:{key}:{cut.segment_s}", tools.origin.hash)


def reference_to(cut: hls.Hls, key: str, tools: Tools, *, beside: str | None) -> str:
    """How the playlist of the key `beside` names another key."""
    if cut.domain is not None:
        return f"{cut.domain}/{quote(key, safe=hls.SAFE)}"
    public = tools.settings.public_url
    if public is None or cut.relative:  # a server that does not know its address is found from the playlist's
        return hls.relative_to(beside or "playlist", key)
    return f"{public.rstrip('/')}/objects/{quote(tools.target.bucket, safe='')}/{quote(key, safe=hls.SAFE)}"


register(Command(name="avthumb", makes="object", parse=parse_avthumb, run=run_avthumb))
register(Command(name="avwatermarks", makes="object", parse=partial(parse_avthumb, command="avwatermarks"), run=run_avthumb))

__all__ = ["Prepared", "automatic_prefix", "collect", "prepare", "reference_to", "run_avthumb"]
