"""The containers and codecs of audio and video commands, by the names that their texts use.  Pure.

Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/av/avthumb.md for names and default rates; FFmpeg/FFmpeg
libavformat for which codecs a container takes.
"""

from __future__ import annotations

import msgspec

from milepost.work.media.commands import BadCommand
from milepost.work.media.grammar import shown


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """A format of outputs.  Encoders that it takes, the default first; no video encoders: audio alone."""

    muxer: str
    mime_type: str
    video: tuple[str, ...] = ()
    audio: tuple[str, ...] = ()
    subtitles: tuple[str, ...] = ()  # none unless asked for
    video_bps: int | None = None  # when none is asked for; None: by quality
    audio_bps: int = 128_000
    sample_rate: int | None = None
    options: tuple[str, ...] = ()


_FASTSTART = ("-movflags", "+faststart")
_ALL_VIDEO = ("libx264", "libx265", "mpeg4", "libxvid", "mpeg2video", "libvpx", "libvpx-vp9", "libtheora")
_ALL_AUDIO = ("aac", "libmp3lame", "libvorbis", "libopus", "flac", "ac3", "pcm_s16le")
_MP4_AUDIO = ("aac", "libmp3lame", "ac3", "libopus")

CONTAINERS = {
    "mp4": Container(
        muxer="mp4", mime_type="video/mp4", video=("libx264", "libx265", "mpeg4", "libxvid", "mpeg2video", "libvpx-vp9"),
        audio=_MP4_AUDIO, subtitles=("mov_text",), options=_FASTSTART,
    ),
    "mov": Container(
        muxer="mov", mime_type="video/quicktime", video=("libx264", "libx265", "mpeg4", "libxvid", "mpeg2video"),
        audio=(*_MP4_AUDIO[:3], "pcm_s16le"), subtitles=("mov_text",), options=_FASTSTART,
    ),
    "mkv": Container(
        muxer="matroska", mime_type="video/x-matroska", video=_ALL_VIDEO, audio=_ALL_AUDIO, subtitles=("srt", "ass", "webvtt"),
    ),
    "avi": Container(
        muxer="avi", mime_type="video/x-msvideo", video=("mpeg4", "libxvid", "libx264", "mpeg2video"),
        audio=("libmp3lame", "ac3", "pcm_s16le"), video_bps=1_000_000,
    ),
    "flv": Container(
        muxer="flv", mime_type="video/x-flv", video=("flv", "libx264"), audio=("libmp3lame", "aac"), video_bps=512_000,
        audio_bps=64_000, sample_rate=44_100,
    ),
    "webm": Container(
        muxer="webm", mime_type="video/webm", video=("libvpx", "libvpx-vp9"), audio=("libvorbis", "libopus"), video_bps=700_000,
        sample_rate=48_000,
    ),
    "ogv": Container(
        muxer="ogg", mime_type="video/ogg", video=("libtheora",), audio=("libvorbis", "libopus", "flac"), video_bps=700_000,
    ),
    "ts": Container(
        muxer="mpegts", mime_type="video/mp2t", video=("libx264", "libx265", "mpeg2video"), audio=("aac", "libmp3lame", "ac3")
    ),
    "m3u8": Container(muxer="hls", mime_type="application/x-mpegurl", video=("libx264", "libx265"), audio=("aac", "libmp3lame")),
    "gif": Container(muxer="gif", mime_type="image/gif", video=("gif",)),
    "mp3": Container(muxer="mp3", mime_type="audio/mpeg", audio=("libmp3lame",), sample_rate=44_100),
    "aac": Container(muxer="adts", mime_type="audio/aac", audio=("aac",)),
    "m4a": Container(muxer="ipod", mime_type="audio/mp4", audio=("aac",), options=_FASTSTART),
    "wav": Container(muxer="wav", mime_type="audio/wav", audio=("pcm_s16le",)),
    "flac": Container(muxer="flac", mime_type="audio/flac", audio=("flac",)),
    "ogg": Container(muxer="ogg", mime_type="audio/ogg", audio=("libvorbis", "libopus", "flac")),
    "opus": Container(muxer="opus", mime_type="audio/ogg", audio=("libopus",), sample_rate=48_000),
}  # fmt: skip

VIDEO_CODECS = {
    "libx264": "libx264", "h264": "libx264", "libx265": "libx265", "h265": "libx265", "hevc": "libx265", "libvpx": "libvpx",
    "vp8": "libvpx", "libvpx-vp9": "libvpx-vp9", "vp9": "libvpx-vp9", "libtheora": "libtheora", "libxvid": "libxvid",
    "mpeg4": "mpeg4", "mpeg2video": "mpeg2video", "flv": "flv", "gif": "gif", "copy": "copy",
}  # fmt: skip
# libfaac is gone from FFmpeg and libfdk_aac may not be distributed with it: its own encoder makes what they made.
AUDIO_CODECS = {
    "libmp3lame": "libmp3lame", "mp3": "libmp3lame", "libfaac": "aac", "libfdk_aac": "aac", "aac": "aac",
    "libvorbis": "libvorbis", "vorbis": "libvorbis", "libopus": "libopus", "opus": "libopus", "flac": "flac", "ac3": "ac3",
    "pcm_s16le": "pcm_s16le", "copy": "copy",
}  # fmt: skip

# What ffprobe calls the codec that an encoder makes.
MAKES = {
    "libx264": "h264", "libx265": "hevc", "libvpx": "vp8", "libvpx-vp9": "vp9", "libtheora": "theora", "libxvid": "mpeg4",
    "flv": "flv1", "libmp3lame": "mp3", "libvorbis": "vorbis", "libopus": "opus",
}  # fmt: skip
UNAVAILABLE = {"amr": "FFmpeg as distributions build it reads AMR and has no encoder of it"}
LOSSLESS = frozenset({"pcm_s16le", "flac"})


def find_container(name: str, command: str, *, but: tuple[str, ...] = ()) -> Container:
    """Errors: BadCommand."""
    if name in UNAVAILABLE:
        raise BadCommand(f"{command}: {name} is not supported: {UNAVAILABLE[name]}")
    allowed = [known for known in CONTAINERS if known not in but]
    if name not in allowed:
        raise BadCommand(f"{command}: format must be one of {', '.join(allowed)}, not {shown(name)}")
    return CONTAINERS[name]


def find_codec(name: str, known: dict[str, str], allowed: tuple[str, ...], what: str) -> str:
    """The encoder.  Errors: BadCommand for one that is not known, or not for this container."""
    found = known.get(name)
    if found is None:
        raise BadCommand(f"{what} must be one of {', '.join(known)}, not {shown(name)}")
    if found != "copy" and found not in allowed:
        raise BadCommand(f"{what}: this format takes {', '.join(allowed) or 'none'}, not {shown(name)}")
    return found


__all__ = ["AUDIO_CODECS", "CONTAINERS", "LOSSLESS", "MAKES", "VIDEO_CODECS", "Container", "find_codec", "find_container"]
