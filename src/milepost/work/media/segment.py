"""`segment/<format>/segtime/<s>/savePattern/<…>`: a video or a sound cut into files, its streams as they are.

Rules
1. Nothing is encoded, so each file begins at a key frame and is as long as `segtime` or longer.
2. Every file begins at 0 of its own time; when it began in the source, the answer says.
3. Numbers count from 000000.  Without a pattern the keys begin with the automatic key.

Source: qiniu/developer.qiniu.com dora/4154 (segment).
"""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec

from milepost.work.media.av import Media, open_input, probe, run_ffmpeg
from milepost.work.media.avargs import seconds
from milepost.work.media.avformats import CONTAINERS, find_container
from milepost.work.media.commands import Command, FopFailed, Made, Output, Tools, register
from milepost.work.media.grammar import Arguments, automatic_key, number
from milepost.work.media.hls import COUNT, fill_pattern, parse_pattern
from milepost.work.threads import in_thread

PIECES_MAX = 10_000
SECONDS_LEAST, SECONDS_MAX = 5.0, 1e6
NAMES, LIST = "piece-%06d", "pieces.csv"  # in ffmpeg's folder


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """The whole command."""

    format: str
    length_s: float = SECONDS_LEAST
    pattern: str | None = None


class Piece(msgspec.Struct, frozen=True):
    """One file, as the answer has it."""

    index: int
    segment_filename: str
    segment_start_time: str
    segment_end_time: str


def parse_segment(args: list[str]) -> Segment:
    """Errors: BadCommand."""
    given = Arguments("segment", args)
    name = given.next("the format")
    find_container(name, "segment", but=("gif", "m3u8"))
    length_s, pattern = SECONDS_LEAST, None
    for key, value in given.pairs():
        match key:
            case "segtime":
                length_s = number(value, "segment: segtime", SECONDS_LEAST, SECONDS_MAX)
            case "pattern" | "savePattern":
                pattern = parse_pattern(value, f"segment: {key}")
            case _:
                raise given.unknown(key)
    return Segment(format=name, length_s=length_s, pattern=pattern)


def segment_args(spec: Segment, media: Media, source: str, *, pixels_max: int) -> list[str]:
    """The arguments behind `ffmpeg`; it writes into its folder.  Errors: FopFailed when the format takes none of the streams."""
    container = CONTAINERS[spec.format]
    streams = [
        stream.index
        for stream, taken in ((media.video, container.video), (media.audio, container.audio))
        if stream is not None and taken
    ]
    if not streams:
        raise FopFailed(f"the source has nothing that {spec.format} holds")
    args = [*open_input(source, media.demuxer, pixels_max), *(arg for index in streams for arg in ("-map", f"0:{index}"))]
    args += ["-c", "copy", "-f", "segment", "-segment_format", container.muxer, "-segment_time", seconds(spec.length_s)]
    return [*args, "-reset_timestamps", "1", "-segment_list", LIST, "-segment_list_type", "csv", NAMES]


async def run_segment(spec: Segment, source: Path, _out: Path, tools: Tools) -> Output:
    """Errors: FopFailed, also when the format does not take the source's codecs; RetryableError when the disk is full."""
    media = await probe(source, tools)
    if media.duration_s is not None and media.duration_s / spec.length_s > PIECES_MAX:
        raise FopFailed(f"more than {PIECES_MAX} files; give a longer segtime")
    args = segment_args(spec, media, str(source), pixels_max=tools.settings.av_pixels_max)
    await run_ffmpeg(args, tools, total_s=media.duration_s, note="cutting")
    pattern = (
        spec.pattern or f"{tools.target.key or automatic_key(f'segment of {spec}', tools.origin.hash)}/{COUNT}.{spec.format}"
    )
    found = await in_thread(_read_list, tools.folder)
    pieces = [Piece(index, fill_pattern(pattern, index, tools.origin.key), *times) for index, (_, *times) in enumerate(found)]
    files = [
        Made(path=path, mime_type=CONTAINERS[spec.format].mime_type, key=piece.segment_filename)
        for (path, *_), piece in zip(found, pieces, strict=True)
    ]
    return msgspec.structs.replace(Output.objects(*files), result=[msgspec.to_builtins(piece) for piece in pieces])


def _read_list(folder: Path) -> list[tuple[Path, str, str]]:
    """Each file with its beginning and end.  Errors: FopFailed."""
    with (folder / LIST).open(newline="") as file:
        rows = [(folder / name, start, end) for name, start, end in csv.reader(file)]
    if not 0 < len(rows) <= PIECES_MAX:
        raise FopFailed(f"{len(rows)} files; at most {PIECES_MAX} are allowed")
    return rows


register(Command(name="segment", makes="objects", parse=parse_segment, run=run_segment))

__all__ = ["Piece", "Segment", "parse_segment", "segment_args"]
