"""Videos cut into files, and into HLS of several qualities, by the real ffmpeg on real clips."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest
from clip_house import Clips, ask, clip, frames, look

from milepost.work.media.adapt import parse_adapt, stream_of
from milepost.work.media.av import Audio, Media, Video
from milepost.work.media.avthumb import Size
from milepost.work.media.commands import BadCommand, FopFailed
from milepost.work.media.grammar import encode_text
from milepost.work.media.segment import parse_segment

BIKES, BUNNY, CAR = clip("bikes"), clip("bigbuckbunny"), clip("carphone_pristine")
SOURCE = Media(
    demuxer="mov",
    duration_s=10.0,
    video=Video(index=0, codec="h264", width=1280, height=720, fps=Fraction(25), bps=1_205_959),
    audio=Audio(index=1, codec="aac", sample_rate=48_000, channels=2, bps=384_828),
)
BANDS = "envBandWidth/200000,800000"


@pytest.fixture
def clips(tmp_path: Path) -> Clips:
    return Clips(tmp_path)


# --- segment -------------------------------------------------------------------------------------------------------------


async def test_a_video_is_cut_at_key_frames_and_nothing_of_it_is_lost(clips: Clips) -> None:
    source = await clips.make("avthumb/mp4/gop/25/vcodec/libx264", BIKES)
    output = await clips.do(f"segment/mp4/segtime/5/savePattern/{encode_text('cut/$(keybase)-$(count).mp4')}", source)
    assert [made.key for made in output.files] == ["cut/a clip-000000.mp4", "cut/a clip-000001.mp4"]
    assert [(one["index"], one["segment_filename"]) for one in output.result] == list(
        enumerate(made.key for made in output.files)
    )
    times = [(one["segment_start_time"], one["segment_end_time"]) for one in output.result]
    assert all(re.fullmatch(r"\d+\.\d{6}", time) for pair in times for time in pair)
    assert [tuple(map(float, pair)) for pair in times] == [pytest.approx((0, 5), abs=0.15), pytest.approx((5, 10), abs=0.15)]
    assert sum(frames(made.path) for made in output.files) == frames(source) == 250
    for made in output.files:
        assert float(ask(made.path)["format"]["start_time"]) == pytest.approx(0, abs=0.1)
        assert (made.mime_type, look(made.path).demuxer) == ("video/mp4", "mov")


async def test_without_a_pattern_pieces_have_automatic_keys_and_keep_their_codecs_in_another_container(clips: Clips) -> None:
    output = await clips.do("segment/mkv/segtime/5", BUNNY)
    assert clips.hands is not None
    assert output.files[0].key == f"{clips.hands.target.key}/000000.mkv"
    found = look(output.files[0].path)
    assert (found.demuxer, found.video and found.video.codec, found.audio and found.audio.codec) == ("matroska", "h264", "aac")


async def test_only_the_sound_is_cut_for_a_format_of_sound(clips: Clips) -> None:
    output = await clips.do("segment/aac/segtime/5", BUNNY)
    assert look(output.files[0].path).video is None


@pytest.mark.parametrize(("command", "source"), [("segment/webm/segtime/5", BIKES), ("segment/mp3/segtime/5", BIKES)])
async def test_what_a_format_cannot_hold_is_a_failure(clips: Clips, command: str, source: Path) -> None:
    with pytest.raises(FopFailed):
        await clips.do(command, source)


@pytest.mark.parametrize(
    "text", ["", "exe", "gif", "m3u8", "mp4/segtime/4", "mp4/segtime/x", f"mp4/pattern/{encode_text('x')}", "mp4/vb/1m"]
)
def test_a_wrong_segment_is_told(text: str) -> None:
    with pytest.raises(BadCommand, match=r"^segment: "):
        parse_segment(text.split("/"))


# --- adapt ---------------------------------------------------------------------------------------------------------------


async def test_every_quality_is_a_playlist_of_its_own_size_and_the_master_names_them_all(clips: Clips) -> None:
    names = f"{encode_text('hls/low')},{encode_text('hls/$(keybase) high')}"
    command = f"adapt/m3u8/{BANDS}/multiResolution/88:72,$(origin)/multiVb/60k,200k/hlstime/2/multiPrefix/{names}/noDomain/1"
    output = await clips.do(command, CAR, target="out/master.m3u8")
    master, *beside = output.files
    assert (master.key, master.mime_type) == (None, "application/x-mpegurl")
    assert master.path.read_text() == (
        "#EXTM3U\n#EXT-X-VERSION:3\n"
        "#EXT-X-STREAM-INF:PROGRAM-ID=1,BANDWIDTH=200000,RESOLUTION=88x72\n../hls/low.m3u8\n"
        "#EXT-X-STREAM-INF:PROGRAM-ID=1,BANDWIDTH=800000,RESOLUTION=176x144\n../hls/a%20clip%20high.m3u8\n"
    )
    assert [made.key for made in beside] == [
        "hls/low.m3u8", "hls/low_000000.ts", "hls/low_000001.ts",
        "hls/a clip high.m3u8", "hls/a clip high_000000.ts", "hls/a clip high_000001.ts",
    ]  # fmt: skip
    low, high = beside[0].path.read_text(), beside[3].path.read_text()
    assert re.findall(r"#EXTINF:[\d.]+", low) == re.findall(r"#EXTINF:[\d.]+", high)  # players change between them there
    assert "\nlow_000001.ts\n" in low
    assert "\na%20clip%20high_000001.ts\n" in high
    shapes = [look(made.path).video for made in (beside[1], beside[4])]
    assert [(shape.width, shape.height) for shape in shapes if shape is not None] == [(88, 72), (176, 144)]


async def test_progress_goes_through_all_qualities_once(clips: Clips) -> None:
    await clips.do(f"adapt/m3u8/{BANDS}", CAR)
    assert clips.hands is not None
    done = [(at, total) for at, total, _, _ in clips.hands.seen]
    assert done == sorted(done)
    assert done[-1][0] == done[-1][1]


async def test_automatic_names_lie_under_the_masters(clips: Clips) -> None:
    output = await clips.do(f"adapt/m3u8/{BANDS}/r/10", CAR)
    assert clips.hands is not None
    key = clips.hands.target.key
    assert [made.key for made in output.files[1:]] == [f"{key}/{n}{rest}" for n in (0, 1) for rest in (".m3u8", "_000000.ts")]


def test_rates_are_asked_for_or_the_sources_or_what_the_band_leaves() -> None:
    spec = parse_adapt(f"m3u8/{BANDS}/multiVb/128k,$(origin)/multiAb/64k,$(origin)".split("/"))
    made = [stream_of(spec.base, one, SOURCE, "x$(count)") for one in spec.qualities]
    assert [(one.video_bps, one.audio_bps) for one in made] == [(128_000, 64_000), (None, None)]
    spec = parse_adapt(f"m3u8/{BANDS}/ab/64k/resolution/640:360".split("/"))
    made = [stream_of(spec.base, one, SOURCE, "x$(count)") for one in spec.qualities]
    assert [(one.video_bps, one.size) for one in made] == [(122_400, Size(640, 360)), (662_400, Size(640, 360))]


@pytest.mark.parametrize(
    "text",
    [
        "", "mpd", "m3u8", "m3u8/envBandWidth/200000", "m3u8/envBandWidth/1,2", "m3u8/envBandWidth/800000,200000",
        "m3u8/envBandWidth/60000,70000,80000,90000,100000,110000", f"m3u8/{BANDS}/multiVb/1m",
        f"m3u8/{BANDS}/multiVb/1m,2m/vb/1m",
        f"m3u8/{BANDS}/multiResolution/320x240,10:10", f"m3u8/{BANDS}/multiPrefix/{encode_text('a')},{encode_text('a')}",
        f"m3u8/{BANDS}/multiPrefix/{encode_text('$(count)')},{encode_text('b')}", f"m3u8/{BANDS}/hlstime/1",
        f"m3u8/{BANDS}/vcodec/copy", f"m3u8/{BANDS}/s/640x360", f"m3u8/{BANDS}/segtime/5",
    ],
)  # fmt: skip
def test_a_wrong_adapt_is_told(text: str) -> None:
    with pytest.raises(BadCommand, match=r"^adapt: "):
        parse_adapt(text.split("/"))


async def test_a_sound_has_no_qualities(clips: Clips) -> None:
    sound = await clips.make("avthumb/mp3/t/1", BUNNY)
    with pytest.raises(FopFailed, match="no video"):
        await clips.do(f"adapt/m3u8/{BANDS}", sound)
