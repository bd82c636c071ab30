"""ffmpeg's arguments for one `avthumb`: a value and what the source is, in; the list of arguments, out.  Pure.

Rules
1. No rate is above the source's where both have the same codec; one that nobody asked for never is.
2. Sides are even: H.264 and its like have no others.  Rotation comes before scaling.
3. One video and one audio stream, by number, and subtitles where `scodec` asks for them; data and attached files are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import msgspec

from milepost.work.media import avsubtitles
from milepost.work.media.av import Media, Video, open_input
from milepost.work.media.avformats import CONTAINERS, LOSSLESS, MAKES, Container
from milepost.work.media.avmarks import mark_filters
from milepost.work.media.avthumb import AvThumb, Size
from milepost.work.media.commands import FopFailed

VIDEO_BPS = 1_000_000  # of encoders that have no quality of their own, where the container has no default
VIDEO_BPS_LEAST = 16_000
AUDIO_BPS_LEAST = {"libvorbis": 48_000}  # below, it refuses
GIF_FPS = 10.0
BY_QUALITY = {"libx264": 23, "libx265": 28}
CHANNELS_MAX = {"libmp3lame": 2}
TURNS = {"90": ["transpose=clock"], "180": ["hflip", "vflip"], "270": ["transpose=cclock"]}
SPEED = {
    "libvpx": ["-deadline", "good", "-cpu-used", "2"],
    "libvpx-vp9": ["-deadline", "good", "-cpu-used", "4", "-row-mt", "1"],
}
PLAYLIST, SEGMENT, SEGMENT_NAMES, KEY_INFO = "playlist.m3u8", "segment-{:06d}.ts", "segment-%06d.ts", "key-info"


class Input(msgspec.Struct, frozen=True):
    """A file that ffmpeg reads, and as what."""

    path: str
    demuxer: str


def seconds(value: float) -> str:
    """As ffmpeg takes it, to the microsecond."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def even(value: float) -> int:
    """The nearest even number, at least 2."""
    return max(2, round(value / 2) * 2)


def output_size(wanted: Size | None, autoscale: bool, width: int, height: int) -> tuple[int, int]:
    """The output's size, even, for a source of width x height after its rotation."""
    if wanted is None:
        return max(2, width - width % 2), max(2, height - height % 2)
    ratio_w = None if wanted.width is None else wanted.width / width
    ratio_h = None if wanted.height is None else wanted.height / height
    ratios = [ratio for ratio in (ratio_w, ratio_h) if ratio is not None]
    larger = any(ratio < 1 for ratio in ratios)
    if (wanted.only == ">" and not larger) or (wanted.only == "<" and any(ratio <= 1 for ratio in ratios)):
        return output_size(None, autoscale, width, height)
    if len(ratios) == 1 or autoscale or wanted.only:
        scale = min(ratios)
        return even(width * scale), even(height * scale)
    return even(wanted.width or 0), even(wanted.height or 0)


def expected_s(spec: AvThumb, media: Media) -> float | None:
    """How long the output will be.  Errors: FopFailed when it begins behind the source's end."""
    start = spec.start_s or 0.0
    if media.duration_s is None:
        return spec.length_s
    if start >= media.duration_s:
        raise FopFailed(f"ss is {start:g} s, and the source has {media.duration_s:g} s")
    return min(media.duration_s - start, spec.length_s or media.duration_s)


def thumb_args(spec: AvThumb, media: Media, source: str, out: str, marks: Sequence[Input], *, pixels_max: int) -> list[str]:
    """The arguments behind `ffmpeg`.  Errors: FopFailed when the source has nothing of what is wanted."""
    container = CONTAINERS[spec.format]
    with_video = bool(container.video) and not spec.no_video and media.video is not None
    with_audio = bool(container.audio) and not spec.no_audio and media.audio is not None
    if not with_video and not with_audio:
        wanted = "video" if not container.audio or spec.no_audio else "audio" if not container.video or spec.no_video else "media"
        raise FopFailed(f"the source has no {wanted}")
    if (spec.marks or spec.subtitle) and not with_video:
        raise FopFailed("the source has no video for the marks and subtitles to stand on")
    args = [] if spec.start_s is None else ["-ss", seconds(spec.start_s)]
    args += open_input(source, media.demuxer, pixels_max)
    for mark in marks:
        again = ["-ignore_loop", "0"] if mark.demuxer == "gif" else []
        args += [*again, *open_input(mark.path, mark.demuxer, pixels_max)]
    args += video_args(spec, container, media) if with_video else ["-vn"]
    args += audio_args(spec, container, media) if with_audio else ["-an"]
    args += [*subtitle_args(spec, media), "-dn"]
    if spec.length_s is not None or any(mark.demuxer == "gif" for mark in marks):  # a picture that plays on has no end
        length = expected_s(spec, media)
        args += [] if length is None else ["-t", seconds(length)]
    if spec.strip:
        args += ["-map_metadata", "-1", "-map_chapters", "-1"]
    if spec.format == "mp3" and not spec.xing:
        args += ["-write_xing", "0"]
    args += container.options
    if spec.format == "m3u8":
        return [*args, *hls_args(spec)]
    return [*args, "-f", container.muxer, f"file:{out}"]


def subtitle_args(spec: AvThumb, media: Media) -> list[str]:
    """The source's subtitles in another codec, where that was asked for."""
    if spec.subtitle_codec is None:
        return ["-sn"]
    texts = [stream for stream in media.subtitles if stream.is_text]
    return ["-sn"] if not texts else [*(arg for one in texts for arg in ("-map", f"0:{one.index}")), "-c:s", spec.subtitle_codec]


# --- video -----------------------------------------------------------------------------------------------------------


def video_args(spec: AvThumb, container: Container, media: Media) -> list[str]:
    """Mapping, filters and encoder."""
    video = media.video
    assert video is not None
    encoder = spec.video_codec or container.video[0]
    if encoder == "copy":
        return ["-map", f"0:{video.index}", "-c:v", "copy"]
    width, height = (video.height, video.width) if spec.turn in ("90", "270") else (video.width, video.height)
    size = output_size(spec.size, spec.autoscale, width, height)
    steps = [*TURNS.get(spec.turn or "", [])]
    if size != (width, height):
        steps += [f"scale={size[0]}:{size[1]}", "setsar=1"]
    if spec.subtitle is not None:
        steps.append(avsubtitles.FILTER)
    rate = frame_rate(spec, video)
    args = _filters(spec, video, steps, size, rate, expected_s(spec, media))
    args += ["-c:v", encoder]
    if encoder != "gif":
        args += [] if rate is None else ["-r", rate]
        args += ["-pix_fmt", "yuv420p", *_quality(spec, container, encoder, video), *SPEED.get(encoder, [])]
    if spec.profile is not None:
        args += ["-profile:v", spec.profile]
    if spec.level is not None:
        args += ["-level", spec.level]
    if spec.gop:
        args += ["-g", str(spec.gop)]
    if spec.aspect is not None:
        args += ["-aspect", spec.aspect]
    if spec.hls is not None:
        args += ["-force_key_frames", f"expr:gte(t,n_forced*{seconds(spec.hls.segment_s)})"]
    if spec.format in ("mp4", "mov") and encoder == "libx265":
        args += ["-tag:v", "hvc1"]  # the only one that Apple's players take
    return args


def frame_rate(spec: AvThumb, video: Video) -> str | None:
    """Pictures a second, never more than the source has unless `hr`; None: as they come."""
    wanted = spec.fps
    if wanted is None:
        if spec.format != "gif":
            return None
        wanted = GIF_FPS
    if video.fps is not None and video.fps < Fraction(wanted) and not spec.faster:
        return str(video.fps)
    return seconds(wanted)


def _filters(
    spec: AvThumb, video: Video, steps: list[str], size: tuple[int, int], rate: str | None, length_s: float | None
) -> list[str]:
    if spec.format == "gif":
        steps = [*([f"fps={rate}"] if rate else []), *steps]
    if not spec.marks and spec.format != "gif":
        return ["-map", f"0:{video.index}", *(["-vf", ",".join(steps)] if steps else [])]
    chains = [f"[0:{video.index}]{','.join(steps) or 'null'}[v0]"]
    if spec.marks:
        marks = tuple(msgspec.structs.replace(mark, place=mark.place.within(length_s)) for mark in spec.marks)
        chains += mark_filters(marks, size, first_input=1, label_in="v0", label_out="v1")
    label = "v1" if spec.marks else "v0"
    if spec.format == "gif":  # a palette for each picture: one for all would keep all of them in memory
        chains.append(f"[{label}]split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1[g]")
        label = "g"
    return ["-filter_complex", ";".join(chains), "-map", f"[{label}]"]


def _quality(spec: AvThumb, container: Container, encoder: str, video: Video) -> list[str]:
    source = None if video.bps is None else max(video.bps, VIDEO_BPS_LEAST)
    if spec.crf is not None:
        free = {"libvpx-vp9": ["-b:v", "0"], "libvpx": ["-b:v", str(source or VIDEO_BPS)]}
        return ["-crf", str(spec.crf), *free.get(encoder, [])]
    if spec.video_bps is not None:
        same = video.codec == MAKES.get(encoder, encoder)
        return ["-b:v", str(min(spec.video_bps, source) if same and source else spec.video_bps)]
    if encoder in BY_QUALITY and container.video_bps is None:
        cap = [] if source is None else ["-maxrate", str(source), "-bufsize", str(source)]
        return ["-crf", str(BY_QUALITY[encoder]), *cap]
    usual = container.video_bps or VIDEO_BPS
    return ["-b:v", str(min(usual, source) if source else usual)]


# --- audio -----------------------------------------------------------------------------------------------------------


def audio_args(spec: AvThumb, container: Container, media: Media) -> list[str]:
    """Mapping and encoder."""
    audio = media.audio
    assert audio is not None
    encoder = spec.audio_codec or container.audio[0]
    args = ["-map", f"0:{audio.index}", "-c:a", encoder]
    if encoder == "copy":
        return args
    if spec.audio_quality is not None:
        args += ["-q:a", f"{spec.audio_quality / 100 if encoder == 'aac' else spec.audio_quality:g}"]
    elif encoder not in LOSSLESS:
        args += ["-b:a", str(_audio_bps(spec, container, encoder, audio.codec, audio.bps))]
    sample_rate = spec.sample_rate or container.sample_rate or (48_000 if encoder == "libopus" else None)
    args += [] if sample_rate is None else ["-ar", str(sample_rate)]
    most = CHANNELS_MAX.get(encoder)
    channels = spec.channels or (most if most is not None and audio.channels > most else None)
    return args if channels is None else [*args, "-ac", str(channels)]


def _audio_bps(spec: AvThumb, container: Container, encoder: str, codec: str, source: int | None) -> int:
    least = AUDIO_BPS_LEAST.get(encoder, VIDEO_BPS_LEAST)
    cap = None if source is None else max(source, least)
    if spec.audio_bps is not None:
        same = codec == MAKES.get(encoder, encoder)
        return min(spec.audio_bps, cap) if same and cap else spec.audio_bps
    return min(container.audio_bps, cap) if cap else container.audio_bps


# --- hls -------------------------------------------------------------------------------------------------------------


def hls_args(spec: AvThumb) -> list[str]:
    """The muxer; it writes into ffmpeg's folder under names of its own."""
    cut = spec.hls
    assert cut is not None
    args = ["-f", "hls", "-hls_time", seconds(cut.segment_s)]
    if cut.first_s is not None:
        args += ["-hls_init_time", seconds(cut.first_s)]
    args += ["-hls_list_size", "0", "-hls_allow_cache", "1", "-hls_segment_filename", SEGMENT_NAMES]
    if cut.key is not None:
        args += ["-hls_key_info_file", KEY_INFO]
    return [*args, PLAYLIST]


__all__ = ["KEY_INFO", "PLAYLIST", "SEGMENT", "Input", "even", "expected_s", "output_size", "seconds", "thumb_args"]
