"""`adapt/m3u8/envBandWidth/<a,b,…>/…`: one video as HLS in two to five qualities, and the playlist that names them all.

Rules
1. The n-th quality takes the n-th value of each `multi…` list; `$(origin)` is the source's own.  Lists are as long as
   `envBandWidth`, which rises.
2. A video rate that is neither in `multiVb` nor `vb` is what the band leaves beside the sound.
3. All qualities are cut at the same times: key frames are forced there.
4. The item names the master playlist alone.  Beside it lie, for a prefix P of `multiPrefix`, `P.m3u8` and `P_000000.ts` and on.

Source: qiniu/developer.qiniu.com dora/1245 (adapt).
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from milepost.work.media import avmarks
from milepost.work.media.av import Media, run_ffmpeg
from milepost.work.media.avargs import PLAYLIST, output_size, thumb_args
from milepost.work.media.avformats import CONTAINERS
from milepost.work.media.avthumb import SIDE_LEAST, SIDE_MAX, AvThumb, Size, parse_avthumb, parse_rate, parse_size
from milepost.work.media.commands import BadCommand, Command, FopFailed, Made, Output, Tools, register
from milepost.work.media.grammar import Arguments, decode_text, integer, one_of, shown
from milepost.work.media.hls import COUNT, fill_pattern
from milepost.work.media.transcode import automatic_prefix, collect, prepare, reference_to
from milepost.work.threads import in_thread

LEAST, MOST = 2, 5
BAND_LEAST, BAND_MOST = 50_000, 30_000_000
ORIGIN = "$(origin)"
VIDEO_SHARE, VIDEO_LEAST = 0.9, 32_000  # of a band that is left by the sound: segments are packed, and rates swing
SHARED = frozenset(
    {
        "r", "hr", "vcodec", "acodec", "ar", "ac", "ss", "t", "rotate", "gop", "stripmeta", "an", "h264Profile", "h264Level",
        "subtitle", "noDomain", "domain", "hlsKey", "hlsKeyType", "hlsKeyUrl", *avmarks.KEYS,
    }
)  # fmt: skip


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """One of the streams.  None: the source's own, or by the band."""

    band_bps: int
    video_bps: int | None = None
    origin_video: bool = False
    audio_bps: int | None = None
    size: Size | None = None
    prefix: str | None = None


class Adapt(msgspec.Struct, frozen=True, kw_only=True):
    """The whole command: what all streams share, and what each has of its own."""

    base: AvThumb
    qualities: tuple[Quality, ...]


# --- the text ----------------------------------------------------------------------------------------------------------


def parse_adapt(args: list[str]) -> Adapt:
    """Errors: BadCommand."""
    given = Arguments("adapt", args)
    one_of(given.next("the format"), "adapt: format", ("m3u8",))
    own: dict[str, str] = {}
    shared: list[str] = []
    for key, value in given.pairs():
        if key in SHARED:
            shared += [key, value]
        elif key in _ALONE or key in _LISTS or key in ("envBandWidth", "hlstime"):
            own[key] = value
        else:
            raise given.unknown(key)
    base = parse_avthumb(["m3u8", *shared, "segtime", own.get("hlstime", "10")], "adapt")
    if base.video_codec == "copy" or base.audio_codec == "copy":
        raise BadCommand("adapt: copy would make all streams alike")
    bands = _bands(own.get("envBandWidth"))
    columns = {field: _column(field, key, own, len(bands)) for key, field in _FIELDS.items()}
    rows = [{field: values[number] for field, values in columns.items()} for number in range(len(bands))]
    origin = own.get("multiVb", own.get("vb", "")).split(",")
    keeps = [one == ORIGIN for one in (origin if len(origin) == len(bands) else origin * len(bands))]
    return Adapt(
        base=base,
        qualities=tuple(
            Quality(band_bps=band, origin_video=keep, **row) for band, keep, row in zip(bands, keeps, rows, strict=True)
        ),
    )


def _bands(value: str | None) -> list[int]:
    if value is None:
        raise BadCommand("adapt: envBandWidth is missing")
    bands = [integer(one, "adapt: envBandWidth", BAND_LEAST, BAND_MOST) for one in value.split(",")]
    if not LEAST <= len(bands) <= MOST or bands != sorted(set(bands)):
        raise BadCommand(f"adapt: envBandWidth has from {LEAST} to {MOST} rates, each higher than the one before")
    return bands


def _column(field: str, key: str, own: dict[str, str], count: int) -> list[Any]:
    """The field's value for each quality."""
    alone = {"multiVb": "vb", "multiAb": "ab", "multiResolution": "resolution"}.get(key)
    if alone in own:
        if key in own:
            raise BadCommand(f"adapt: {key} and {alone} do not go together")
        return [_LISTS[key](own[alone], f"adapt: {alone}")] * count
    if key not in own:
        return [None] * count
    values = own[key].split(",")
    if len(values) != count:
        raise BadCommand(f"adapt: {key} has {len(values)} values, and envBandWidth {count}")
    read = [_LISTS[key](value, f"adapt: {key}") for value in values]
    if field == "prefix" and len(set(read)) < count:
        raise BadCommand("adapt: multiPrefix has the same name twice")
    return read


def _rate(value: str, what: str) -> int | None:
    return None if value == ORIGIN else parse_rate(value, what)


def _resolution(value: str, what: str) -> Size | None:
    """`<w>:<h>`, or a name.  Errors: BadCommand."""
    if value == ORIGIN:
        return None
    wide, colon, high = value.partition(":")
    if not colon:
        return parse_size(value, what)
    return Size(integer(wide, what, SIDE_LEAST, SIDE_MAX), integer(high, what, SIDE_LEAST, SIDE_MAX))


def _prefix(value: str, what: str) -> str:
    prefix = decode_text(value, what)
    if not prefix or any(ord(char) < 32 or ord(char) == 127 for char in prefix) or len(prefix.encode()) > 700 or COUNT in prefix:
        raise BadCommand(f"{what} is a short name without {COUNT}: {shown(prefix)}")
    return prefix


_LISTS = {"multiVb": _rate, "multiAb": _rate, "multiResolution": _resolution, "multiPrefix": _prefix}
_FIELDS = {"multiVb": "video_bps", "multiAb": "audio_bps", "multiResolution": "size", "multiPrefix": "prefix"}
_ALONE = frozenset({"vb", "ab", "resolution"})


# --- one stream as a transcode -----------------------------------------------------------------------------------------


def stream_of(base: AvThumb, quality: Quality, media: Media, pattern: str) -> AvThumb:
    """What `avthumb` would make of it (rule 2)."""
    assert base.hls is not None
    video_bps = quality.video_bps
    if video_bps is None and not quality.origin_video:
        audio = 0 if media.audio is None or base.no_audio else quality.audio_bps or CONTAINERS["m3u8"].audio_bps
        video_bps = max(VIDEO_LEAST, round((quality.band_bps - audio) * VIDEO_SHARE))
    return msgspec.structs.replace(
        base,
        video_bps=video_bps,
        audio_bps=quality.audio_bps,
        size=quality.size,
        hls=msgspec.structs.replace(base.hls, pattern=pattern),
    )


def write_master(streams: list[tuple[Quality, tuple[int, int] | None, str]]) -> str:
    """The playlist of playlists; each with its size, where it has pictures, and what it is named by."""
    lines = ["#EXTM3U", "#EXT-X-VERSION:3"]
    for quality, size, reference in streams:
        shape = "" if size is None else f",RESOLUTION={size[0]}x{size[1]}"
        lines += [f"#EXT-X-STREAM-INF:PROGRAM-ID=1,BANDWIDTH={quality.band_bps}{shape}", reference]
    return "\n".join(lines) + "\n"


# --- the command ---------------------------------------------------------------------------------------------------------


async def run_adapt(spec: Adapt, source: Path, out: Path, tools: Tools) -> Output:
    """Errors: FopFailed; RetryableError when the disk is full."""
    cut = spec.base.hls
    assert cut is not None
    ready = await prepare(spec.base, source, tools)
    if ready.media.video is None:
        raise FopFailed("the source has no video")
    parts, beside, streams = len(spec.qualities), list[Made](), list[tuple[Quality, tuple[int, int] | None, str]]()
    for number, quality in enumerate(spec.qualities):
        prefix = quality.prefix or f"{automatic_prefix(cut, tools)}/{number}"
        pattern, playlist = f"{prefix}_{COUNT}.ts", fill_pattern(f"{prefix}.m3u8", 0, tools.origin.key)
        stream = stream_of(spec.base, quality, ready.media, pattern)
        args = thumb_args(stream, ready.media, str(source), str(out), ready.marks, pixels_max=tools.settings.av_pixels_max)
        note = f"stream {number + 1} of {parts}"
        await run_ffmpeg(args, tools, total_s=ready.length_s, note=note, part=(number, parts))
        folder = tools.folder / f"stream-{number}"
        await in_thread(partial(_put_aside, tools.folder, folder))
        assert stream.hls is not None
        made = await collect(stream.hls, folder, folder / "named.m3u8", tools, beside=playlist)
        beside += [msgspec.structs.replace(made.files[0], key=playlist), *made.files[1:]]
        streams.append((quality, _shown_size(stream, ready.media), reference_to(cut, playlist, tools, beside=tools.target.key)))
    await in_thread(out.write_text, write_master(streams))
    return Output.object(out, CONTAINERS["m3u8"].mime_type, *beside)


def _shown_size(stream: AvThumb, media: Media) -> tuple[int, int] | None:
    assert media.video is not None
    wide, high = media.video.width, media.video.height
    return output_size(stream.size, stream.autoscale, *((high, wide) if stream.turn in ("90", "270") else (wide, high)))


def _put_aside(folder: Path, to: Path) -> None:
    """What ffmpeg wrote under its usual names, before it runs again."""
    to.mkdir()
    for path in [folder / PLAYLIST, *folder.glob("segment-*.ts")]:
        shutil.move(path, to / path.name)


register(Command(name="adapt", makes="object", parse=parse_adapt, run=run_adapt))

__all__ = ["Adapt", "Quality", "parse_adapt", "stream_of", "write_master"]
