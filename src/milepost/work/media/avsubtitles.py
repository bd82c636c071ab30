"""Subtitles that `avthumb` draws into pictures: `subtitle/<base64 of a URL>`, a file of SubRip, WebVTT, ASS or Matroska, or the
source's own: `subtitle/<base64 of embed>`.

Rules
1. What sort of file it is, its text says; it is read by that reader alone and becomes ASS.  ffmpeg's filter `subtitles` would try
   every format it knows on it, playlists with addresses among them; `ass` reads nothing but ASS.
2. Its times are those of the source, also where the output begins later.
3. Of several streams of text in a video the first is taken; subtitles that are pictures are none.

Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/av/avthumb.md; FFmpeg/FFmpeg libavfilter/vf_subtitles.c.
"""

from __future__ import annotations

from pathlib import Path

from milepost.process import Limits
from milepost.work.media.av import Media, Subtitle, ask_ffprobe, failed, read_subtitles
from milepost.work.media.commands import BadCommand, FopFailed, Tools
from milepost.work.media.grammar import decode_text
from milepost.work.threads import in_thread

BYTES_MAX, ASS_BYTES_MAX = 4 << 20, 32 << 20
CPU_S, WALL_S = 60, 120.0
READ, DRAWN = "subtitles", "subtitles.ass"  # in ffmpeg's folder
EMBED = "embed"  # the source's own
_MATROSKA = b"\x1aE\xdf\xa3"  # how EBML begins
FILTER = f"ass=filename={DRAWN}"


def parse_subtitle(value: str, what: str) -> str:
    """Its URL, or `EMBED`, which is taken in the clear as well.  Errors: BadCommand."""
    if value == EMBED:
        return EMBED
    url = decode_text(value, what)
    if not url:
        raise BadCommand(f"{what} is the base64 of a URL")
    return url


async def prepare_subtitles(url: str, start_s: float, tools: Tools, source: Path, media: Media) -> None:
    """The subtitles are the file `DRAWN` of ffmpeg's folder, from `start_s` of the source on.

    Errors: FopFailed; RetryableError.
    """
    if url == EMBED:
        await _draw(source, media.demuxer, first_text(media.subtitles), start_s, tools)
        return
    path = await tools.fetch(url)
    if await in_thread(_is_matroska, path):
        answer = await ask_ffprobe(path, tools, ("matroska",))
        await _draw(path, "matroska", first_text(read_subtitles(answer)), start_s, tools)
        return
    demuxer = await in_thread(_rewrite, path, tools.folder / READ)
    await _draw(tools.folder / READ, demuxer, 0, start_s, tools)


def first_text(streams: tuple[Subtitle, ...]) -> int:
    """The number of the first stream of text.  Errors: FopFailed."""
    found = next((stream for stream in streams if stream.is_text), None)
    if found is None:
        raise FopFailed(
            "subtitle: the video has none" if not streams else "subtitle: the video has pictures for subtitles, no text"
        )
    return found.index


def _is_matroska(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == _MATROSKA


async def _draw(path: Path, demuxer: str, stream: int, start_s: float, tools: Tools) -> None:
    asked = ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error", "-y", "-protocol_whitelist", "file,pipe"]
    begin = [] if not start_s else ["-ss", f"{start_s:.6f}"]
    source = [*begin, "-format_whitelist", demuxer, "-f", demuxer, "-i", f"file:{path}"]
    ended = await tools.run_program(
        [*asked, *source, "-map", f"0:{stream}", "-c:s", "ass", "-f", "ass", f"file:{tools.folder / DRAWN}"],
        limits=Limits(memory_bytes=tools.settings.av_memory_bytes, cpu_s=CPU_S, wall_s=WALL_S, file_bytes=ASS_BYTES_MAX),
    )
    if not ended.ok:
        raise failed(ended, "subtitle")


def _rewrite(path: Path, to: Path) -> str:
    """The text as UTF-8; ffmpeg's name of its format.  Errors: FopFailed."""
    if path.stat().st_size > BYTES_MAX:
        raise FopFailed(f"subtitle: the file has more than {BYTES_MAX} bytes")
    data = path.read_bytes()
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        raise FopFailed("subtitle: the file is no text in utf-8 or gb18030")
    demuxer = sniff(text)
    to.write_text(text, encoding="utf-8")
    return demuxer


def sniff(text: str) -> str:
    """srt, webvtt or ass.  Errors: FopFailed."""
    head = text.lstrip()[:4096]
    if head.startswith("WEBVTT"):
        return "webvtt"
    if head.startswith("[Script Info]"):
        return "ass"
    if "-->" in head and "\0" not in text:
        return "srt"
    raise FopFailed("subtitle: the file is neither SubRip, WebVTT nor ASS")


__all__ = ["DRAWN", "EMBED", "FILTER", "READ", "first_text", "parse_subtitle", "prepare_subtitles", "sniff"]
