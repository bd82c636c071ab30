"""Subtitles that `avthumb` draws into pictures: `subtitle/<base64 of a URL>`, a file of SubRip, WebVTT or ASS.

Rules
1. What sort of file it is, its text says; it is read by that reader alone and becomes ASS.  ffmpeg's filter `subtitles` would try
   every format it knows on it, playlists with addresses among them; `ass` reads nothing but ASS.
2. Its times are those of the source, also where the output begins later.

Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/av/avthumb.md; FFmpeg/FFmpeg libavfilter/vf_subtitles.c.
"""

from __future__ import annotations

from pathlib import Path

from milepost.process import Limits
from milepost.work.media.av import failed
from milepost.work.media.commands import BadCommand, FopFailed, Tools
from milepost.work.media.grammar import decode_text
from milepost.work.threads import in_thread

BYTES_MAX, ASS_BYTES_MAX = 4 << 20, 32 << 20
CPU_S, WALL_S = 60, 120.0
READ, DRAWN = "subtitles", "subtitles.ass"  # in ffmpeg's folder
FILTER = f"ass=filename={DRAWN}"


def parse_subtitle(value: str, what: str) -> str:
    """Its URL.  Errors: BadCommand."""
    if value == "embed":
        raise BadCommand(f"{what}/embed is not supported: name a file of subtitles")
    url = decode_text(value, what)
    if not url:
        raise BadCommand(f"{what} is the base64 of a URL")
    return url


async def prepare_subtitles(url: str, start_s: float, tools: Tools) -> None:
    """The subtitles are the file `DRAWN` of ffmpeg's folder, from `start_s` of the source on.

    Errors: FopFailed; RetryableError.
    """
    path = await tools.fetch(url)
    demuxer = await in_thread(_rewrite, path, tools.folder / READ)
    asked = ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error", "-y", "-protocol_whitelist", "file,pipe"]
    begin = [] if not start_s else ["-ss", f"{start_s:.6f}"]
    source = [*begin, "-format_whitelist", demuxer, "-f", demuxer, "-i", f"file:{tools.folder / READ}"]
    ended = await tools.run_program(
        [*asked, *source, "-map", "0:s:0", "-c:s", "ass", "-f", "ass", f"file:{tools.folder / DRAWN}"],
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


__all__ = ["DRAWN", "FILTER", "READ", "parse_subtitle", "prepare_subtitles", "sniff"]
