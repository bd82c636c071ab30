"""FFmpeg on local files: what a source is, as values, and runs with limits and progress.

Rules
1. Only files of the job's folder are opened.  Inputs are named `file:…`, the only protocols are `file` and `pipe`, and the
   demuxer is forced to the one that ffprobe found among `DEMUXERS`: formats that hold everything themselves.  Playlists, concat
   scripts, image patterns, session descriptions, SVG and the like name other files and are not among them.
2. The size of a video's pictures is known and bounded before anything is decoded, and decoders are told the bound as well.
3. An output that is shorter than its source promised, where ffmpeg complained, is a failure, not a result.
4. What ffmpeg says is told without paths of this machine.

Source: FFmpeg/FFmpeg libavformat/options_table.h (protocol_whitelist, format_whitelist), libavcodec/options_table.h (max_pixels),
fftools/ffmpeg.c (-progress).
"""

from __future__ import annotations

import contextlib
import re
import signal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from milepost import RetryableError
from milepost.process import Ended, Limits
from milepost.work.media.commands import FopFailed, Tools

if TYPE_CHECKING:
    from milepost.settings import Settings

PICTURES = ("png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "gif")
DEMUXERS = (
    "mov", "matroska", "avi", "flv", "live_flv", "mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc", "obu", "ivf", "asf", "rm",
    "mxf", "nut", "dv", "mp3", "aac", "ac3", "eac3", "dts", "wav", "w64", "aiff", "au", "caf", "ogg", "flac", "ape", "tta", "wv",
    "amr", *PICTURES,
)  # fmt: skip

TEXT_SUBTITLES = frozenset({"subrip", "srt", "ass", "ssa", "mov_text", "webvtt", "text"})

PROBE_BYTES_MAX = 128 << 10  # of ffprobe's answer: it is a result of a job
PROBE_CPU_S = 60
PROBE_WALL_S = 120.0
NO_SPACE_DELAY_S = 60.0
SHORT = 0.9  # less than this part of what the source promised is short
TOO_LARGE = b"exceeds specified max pixel count"
STOPPED_CODE = 255  # ffmpeg's own exit code after SIGXCPU, which it handles

_PATH = re.compile(r"(?:file:)?(?<![\w.])/[^\s:'\",;]+")
_ADDRESS = re.compile(r"\s*@ 0x[0-9a-f]+")


# --- what a source is ------------------------------------------------------------------------------------------------


class Video(msgspec.Struct, frozen=True, kw_only=True):
    """A video stream.  Width and height are as shown: after `rotation`, degrees clockwise."""

    index: int
    codec: str
    width: int
    height: int
    fps: Fraction | None = None
    bps: int | None = None


class Audio(msgspec.Struct, frozen=True, kw_only=True):
    """An audio stream."""

    index: int
    codec: str
    sample_rate: int = 0
    channels: int = 0
    bps: int | None = None


class Subtitle(msgspec.Struct, frozen=True, kw_only=True):
    """A stream of subtitles.  Those that are pictures have no text."""

    index: int
    codec: str

    @property
    def is_text(self) -> bool:
        return self.codec in TEXT_SUBTITLES


class Media(msgspec.Struct, frozen=True, kw_only=True):
    """A file that ffprobe could read: its demuxer, its first streams of each sort, and all its subtitles."""

    demuxer: str
    duration_s: float | None = None
    video: Video | None = None
    audio: Audio | None = None
    subtitles: tuple[Subtitle, ...] = ()

    @property
    def is_picture(self) -> bool:
        return self.demuxer in PICTURES and self.demuxer != "gif"


def read_media(answer: dict[str, Any]) -> Media:
    """ffprobe's JSON as a value.  Errors: FopFailed when there is neither audio nor video in it."""
    shape = answer.get("format", {})
    video = next((_video(stream) for stream in answer.get("streams", ()) if _is_video(stream)), None)
    audio = next((_audio(stream) for stream in answer.get("streams", ()) if stream.get("codec_type") == "audio"), None)
    if video is None and audio is None:
        raise FopFailed("invalid media: it has neither audio nor video")
    names = str(shape.get("format_name", "")).split(",")
    demuxer = next((name for name in names if name in DEMUXERS), None)
    if demuxer is None:
        raise FopFailed(f"invalid media: files of the format {names[0]!r} are not read")
    lengths = [_float(shape.get("duration")), *(_float(stream.get("duration")) for stream in answer.get("streams", ()))]
    duration_s = next((length for length in lengths if length is not None and length > 0), None)
    return Media(demuxer=demuxer, duration_s=duration_s, video=video, audio=audio, subtitles=read_subtitles(answer))


def read_subtitles(answer: dict[str, Any]) -> tuple[Subtitle, ...]:
    """The streams of subtitles in ffprobe's JSON."""
    streams = [stream for stream in answer.get("streams", ()) if stream.get("codec_type") == "subtitle"]
    return tuple(Subtitle(index=int(one["index"]), codec=str(one.get("codec_name", "unknown"))) for one in streams)


def _is_video(stream: dict[str, Any]) -> bool:
    cover = stream.get("disposition", {}).get("attached_pic")
    return stream.get("codec_type") == "video" and not cover and bool(stream.get("width")) and bool(stream.get("height"))


def _video(stream: dict[str, Any]) -> Video:
    width, height = int(stream["width"]), int(stream["height"])
    if _rotation(stream) % 180 == 90:
        width, height = height, width
    fps = _fraction(stream.get("avg_frame_rate")) or _fraction(stream.get("r_frame_rate"))
    return Video(
        index=int(stream["index"]),
        codec=str(stream.get("codec_name", "unknown")),
        width=width,
        height=height,
        fps=fps,
        bps=_int(stream.get("bit_rate")),
    )


def _audio(stream: dict[str, Any]) -> Audio:
    return Audio(
        index=int(stream["index"]),
        codec=str(stream.get("codec_name", "unknown")),
        sample_rate=_int(stream.get("sample_rate")) or 0,
        channels=_int(stream.get("channels")) or 0,
        bps=_int(stream.get("bit_rate")),
    )


def _rotation(stream: dict[str, Any]) -> int:
    for side in stream.get("side_data_list", ()):
        if "rotation" in side:
            return round(_float(side["rotation"]) or 0.0)
    return round(_float(stream.get("tags", {}).get("rotate")) or 0.0)


def _float(value: object) -> float | None:
    try:
        found = float(str(value))
    except ValueError:
        return None
    return found if abs(found) < 1e12 else None  # neither NaN nor endless


def _int(value: object) -> int | None:
    found = _float(value)
    return int(found) if found is not None and found > 0 else None


def _fraction(value: object) -> Fraction | None:
    try:
        found = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        return None
    return found if 0 < found <= 1000 else None


def check_made(out: Path, why: str = "invalid media: nothing could be made of it") -> None:
    """Errors: FopFailed when the file is not there, or empty."""
    if size_of(out) == 0:
        raise FopFailed(why)


def size_of(path: Path) -> int:
    """Bytes; 0 when there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


# --- asking and running ----------------------------------------------------------------------------------------------


async def ask_ffprobe(source: Path, tools: Tools, demuxers: tuple[str, ...] = DEMUXERS) -> dict[str, Any]:
    """ffprobe's own JSON about streams and format.  Errors: FopFailed; RetryableError."""
    if size_of(source) == 0:
        raise FopFailed("source data is empty or fail to get source data")
    said = bytearray()

    async def collect(chunk: bytes) -> None:
        said.extend(chunk)
        if len(said) > PROBE_BYTES_MAX:
            raise FopFailed(f"invalid media: its description has more than {PROBE_BYTES_MAX} bytes")

    asked = ["ffprobe", "-v", "error", "-print_format", "json", "-show_format", "-show_streams"]
    limits = Limits(memory_bytes=tools.settings.av_memory_bytes, cpu_s=PROBE_CPU_S, wall_s=PROBE_WALL_S, file_bytes=0)
    only = ["-protocol_whitelist", "file,pipe", "-format_whitelist", ",".join(demuxers)]
    ended = await tools.run_program([*asked, *only, f"file:{source}"], limits=limits, on_output=collect)
    if not ended.ok:
        raise failed(ended, "invalid media")
    try:
        answer = msgspec.json.decode(bytes(said), type=dict[str, Any])
    except msgspec.DecodeError:
        raise FopFailed("invalid media: its description cannot be read") from None
    return answer


async def probe(source: Path, tools: Tools, demuxers: tuple[str, ...] = DEMUXERS) -> Media:
    """What the file is, its pictures no larger than allowed.  Errors: FopFailed; RetryableError."""
    media = read_media(await ask_ffprobe(source, tools, demuxers))
    limit = tools.settings.av_pixels_max
    if media.video is not None and media.video.width * media.video.height > limit:
        raise FopFailed(f"invalid media: its pictures of {media.video.width}x{media.video.height} have more than {limit} pixels")
    return media


def open_input(path: str, demuxer: str, pixels_max: int) -> list[str]:
    """The arguments that open one input, in the only way in which any is opened."""
    only = ["-protocol_whitelist", "file,pipe", "-format_whitelist", demuxer, "-max_pixels", str(pixels_max)]
    return [*only, "-f", demuxer, "-i", f"file:{path}"]


class Progress:
    """Reads what `-progress` prints: key=value lines, a block each half second."""

    def __init__(self, tools: Tools, total_s: float | None, note: str, part: tuple[int, int] = (0, 1)) -> None:
        self._tools, self._total_s, self._note, self._part = tools, total_s, note, part
        self._rest = b""
        self.done_s = 0.0

    async def read(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        moved = False
        for line in lines:
            key, _, value = line.partition(b"=")
            if key == b"out_time_us":
                with contextlib.suppress(ValueError):  # N/A, before the first packet
                    self.done_s, moved = max(self.done_s, int(value) / 1e6), True
        if moved:
            await self._tell()

    async def finish(self) -> None:
        """It is done: the last block is of some pictures before the end."""
        if self._total_s is not None:
            self.done_s = max(self.done_s, self._total_s)
            await self._tell()

    async def _tell(self) -> None:
        before, parts = self._part
        total = None if self._total_s is None else max(1, round(self._total_s * 1000))
        done = max(0, round(self.done_s * 1000))
        if total is not None:
            done, total = min(done, total) + before * total, total * parts
        await self._tools.progress(done, total, self._note, unit="ms")


async def run_ffmpeg(
    args: list[str],
    tools: Tools,
    *,
    total_s: float | None,
    note: str,
    file_bytes: int | None = None,
    whole: bool = True,
    part: tuple[int, int] = (0, 1),
) -> None:
    """ffmpeg has made its output.  `whole`: the output is as long as `total_s`; `part`: runs done before, and all of them.

    Errors: FopFailed; RetryableError when the disk is full.
    """
    settings: Settings = tools.settings
    progress = Progress(tools, total_s, note, part)
    ended = await tools.run_program(
        ["ffmpeg", "-hide_banner", "-nostdin", "-loglevel", "error", "-nostats", "-progress", "pipe:1", *args],
        limits=Limits(
            memory_bytes=settings.av_memory_bytes,
            cpu_s=settings.av_cpu_s,
            file_bytes=file_bytes or settings.media_file_bytes_max,
            wall_s=settings.media_wall_s,
        ),
        on_output=progress.read,
    )
    if not ended.ok:
        raise failed(ended, "ffmpeg could not do it")
    if TOO_LARGE in ended.stderr:  # its pictures grew behind the beginning
        raise FopFailed(f"invalid media: it has pictures of more than {settings.av_pixels_max} pixels")
    if whole and ended.stderr and total_s is not None and progress.done_s < total_s * SHORT - 0.5:
        raise FopFailed(f"invalid media: only {progress.done_s:.2f} s of {total_s:.2f} s could be read: {plain(ended.stderr)}")
    await progress.finish()


def failed(ended: Ended, what: str) -> Exception:
    """Why a program of FFmpeg's failed, as the error to raise."""
    if b"No space left on device" in ended.stderr:
        return RetryableError("no_space", "The disk got full; free some space, it is tried again.", delay_s=NO_SPACE_DELAY_S)
    if ended.code == STOPPED_CODE:
        return FopFailed(f"{what}: it used more processor time than it may")
    if ended.reason == "signal" and ended.code == -signal.SIGKILL:  # the kernel's: a second above the limit, or no memory left
        return FopFailed(f"{what}: it used more processor time than it may, or more memory than there is")
    if ended.reason != "exit":
        return FopFailed(f"{what}: {msgspec.structs.replace(ended, stderr=b'').describe()}")
    return FopFailed(f"{what}: {plain(ended.stderr) or f'exit code {ended.code}'}")


def plain(said: bytes) -> str:
    """What ffmpeg printed, in one short line without paths and addresses."""
    lines = _ADDRESS.sub("", _PATH.sub("the file", said.decode("utf-8", "replace"))).splitlines()
    text = "; ".join(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
    return "".join(char if char.isprintable() else "?" for char in text[:500])


__all__ = [
    "DEMUXERS",
    "PICTURES",
    "Audio",
    "Media",
    "Subtitle",
    "Video",
    "ask_ffprobe",
    "check_made",
    "failed",
    "open_input",
    "plain",
    "probe",
    "read_media",
    "read_subtitles",
    "run_ffmpeg",
    "size_of",
]
