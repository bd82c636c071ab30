"""Real clips through the real ffmpeg: codec, size, length, number of pictures, and what is to be seen in them."""

from __future__ import annotations

import hashlib
import re
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
from clip_house import Clips, ask, clip, color, frames, lavfi, look

from milepost.work.media.commands import FopFailed
from milepost.work.media.grammar import encode_text

BIKES, BUNNY, CAR = clip("bikes"), clip("bigbuckbunny"), clip("carphone_pristine")


@pytest.fixture
def clips(tmp_path: Path) -> Clips:
    return Clips(tmp_path)


def red(path: Path, size: str = "40x20") -> Path:
    return lavfi(path, "-f", "lavfi", "-i", f"color=red:s={size}", "-frames:v", "1")


def is_red(seen: tuple[int, int, int]) -> bool:
    return seen[0] > 180 and seen[1] < 80 and seen[2] < 80


# --- avinfo --------------------------------------------------------------------------------------------------------------


async def test_avinfo_tells_streams_and_format_and_no_path(clips):
    output = await clips.do("avinfo", BUNNY)
    video, audio = output.result["streams"]
    assert (video["codec_name"], video["width"], video["height"], video["nb_frames"]) == ("h264", 1280, 720, "132")
    assert (audio["codec_name"], audio["channels"], audio["sample_rate"]) == ("aac", 6, "48000")
    assert output.result["format"]["size"] == "1055736"
    assert "filename" not in output.result["format"]
    assert str(BUNNY.parent) not in str(output.result)


# --- avthumb -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "demuxer", "video", "audio"),
    [
        ("avthumb/mp4/t/1/s/320x180", "mov", ("h264", 320, 180), ("aac", 6)),
        ("avthumb/mp4/t/1/s/320x320/autoscale/1/an/1", "mov", ("h264", 320, 180), None),
        ("avthumb/mp4/t/1/s/180x/rotate/90/ac/1", "mov", ("h264", 180, 320), ("aac", 1)),
        ("avthumb/mp4/t/1/s/160x/vcodec/libx265", "mov", ("hevc", 160, 90), ("aac", 6)),
        ("avthumb/webm/t/1/s/160x", "matroska", ("vp8", 160, 90), ("vorbis", 6)),
        ("avthumb/webm/t/1/s/160x/vcodec/libvpx-vp9/acodec/libopus", "matroska", ("vp9", 160, 90), ("opus", 6)),
        ("avthumb/flv/t/1/s/160x", "flv", ("flv1", 160, 90), ("mp3", 2)),
        ("avthumb/avi/t/1/s/160x", "avi", ("mpeg4", 160, 90), ("mp3", 2)),
        ("avthumb/mkv/t/1/s/160x/acodec/flac", "matroska", ("h264", 160, 90), ("flac", 6)),
        ("avthumb/mov/t/1/s/160x", "mov", ("h264", 160, 90), ("aac", 6)),
        ("avthumb/ogv/t/1/s/160x", "ogg", ("theora", 160, 90), ("vorbis", 6)),
        ("avthumb/ts/t/1/s/160x", "mpegts", ("h264", 160, 90), ("aac", 6)),
        ("avthumb/gif/t/1/s/160x", "gif", ("gif", 160, 90), None),
        ("avthumb/mp4/t/1/vcodec/copy/acodec/copy", "mov", ("h264", 1280, 720), ("aac", 6)),
        ("avthumb/mp3/t/1", "mp3", None, ("mp3", 2)),
        ("avthumb/aac/t/1", "aac", None, ("aac", 6)),
        ("avthumb/m4a/t/1/ac/2", "mov", None, ("aac", 2)),
        ("avthumb/wav/t/1", "wav", None, ("pcm_s16le", 6)),
        ("avthumb/flac/t/1", "flac", None, ("flac", 6)),
        ("avthumb/ogg/t/1", "ogg", None, ("vorbis", 6)),
        ("avthumb/opus/t/1", "ogg", None, ("opus", 6)),
    ],
)
async def test_every_format_has_its_codecs_its_size_and_its_length(command, demuxer, video, audio, clips):
    found = look(await clips.make(command, BUNNY))
    assert found.demuxer == demuxer
    assert (found.video and (found.video.codec, found.video.width, found.video.height)) == video
    assert (found.audio and (found.audio.codec, found.audio.channels)) == audio
    assert found.duration_s == pytest.approx(1, abs=0.3)


async def test_a_whole_clip_keeps_its_length_its_pictures_and_its_rate(clips):
    path = await clips.make("avthumb/mp4/gop/25", BIKES)
    found = look(path)
    assert found.duration_s == pytest.approx(10, abs=0.05)
    assert frames(path) == 250
    assert found.video is not None
    assert (found.video.bps or 0) <= 404_874 * 1.05


async def test_a_rate_that_is_asked_for_is_met(clips):
    found = look(await clips.make("avthumb/mp4/vb/100k/r/10", BIKES))
    assert found.video is not None
    assert found.video.bps == pytest.approx(100_000, rel=0.3)
    assert found.video.fps == Fraction(10)


async def test_a_part_is_as_long_as_asked_and_begins_there(clips):
    path = await clips.make("avthumb/mp4/ss/4/t/2", BIKES)
    assert look(path).duration_s == pytest.approx(2, abs=0.05)
    assert frames(path) == 50


async def test_metadata_is_kept_or_dropped(clips, tmp_path):
    named = lavfi(tmp_path / "named.mp4", "-i", str(CAR), "-c", "copy", "-metadata", "title=a secret title")
    kept = await clips.make("avthumb/mp4/t/1", named)
    dropped = await clips.make("avthumb/mp4/t/1/stripmeta/1", named)
    assert ask(kept)["format"]["tags"]["title"] == "a secret title"
    assert b"a secret title" not in dropped.read_bytes()


async def test_progress_comes_from_ffmpeg_and_ends_at_the_end(clips):
    await clips.make("avthumb/mp4", BIKES)
    assert clips.hands is not None
    done = [step[0] for step in clips.hands.seen]
    assert done == sorted(done)
    assert len(done) > 2
    assert clips.hands.seen[-1] == (10_000, 10_000, "transcoding to mp4", "ms")


async def test_only_local_files_are_opened_and_nothing_is_asked(clips):
    await clips.make("avthumb/mp4/t/1", BIKES)
    assert clips.hands is not None
    for argv in clips.hands.ran:
        assert argv[argv.index("-protocol_whitelist") + 1] == "file,pipe"
        assert "-format_whitelist" in argv
    ffmpeg = clips.hands.ran[-1]
    assert "-nostdin" in ffmpeg
    assert ffmpeg[ffmpeg.index("-f") + 1] == "mov"


async def test_a_picture_stands_where_it_was_put(clips, tmp_path):
    logo, url = red(tmp_path / "logo.png"), encode_text("kodo://media/logo.png")
    path = await clips.make(f"avthumb/mp4/t/1/wmImage/{url}", BIKES, files={"kodo://media/logo.png": logo})
    assert is_red(color(path, 620, 10, at_s=0.5))  # at the top right, unless said otherwise
    assert not is_red(color(path, 20, 260, at_s=0.5))
    moved = f"avthumb/mp4/t/1/wmImage/{url}/wmGravity/SouthWest/wmOffsetX/100/wmOffsetY/-50"
    path = await clips.make(moved, BIKES, files={"kodo://media/logo.png": logo})
    assert is_red(color(path, 120, 212, at_s=0.5))
    assert not is_red(color(path, 20, 260, at_s=0.5))


async def test_a_moving_mark_ends_with_the_video(clips, tmp_path):
    logo = lavfi(tmp_path / "logo.gif", "-f", "lavfi", "-i", "color=red:s=40x20:r=5:d=0.4")
    path = await clips.make(f"avthumb/mp4/wmImage/{encode_text('u')}", CAR, files={"u": logo})
    assert look(path).duration_s == pytest.approx(4, abs=0.1)
    assert is_red(color(path, 160, 10, at_s=3))


async def test_text_is_drawn_as_it_is_and_nothing_of_it_is_a_filter(clips):
    text = encode_text("██ 50% 'it' %{localtime} [x]; \\ 你")
    path = await clips.make(
        f"avthumb/mp4/t/1/wmText/{text}/wmGravityText/NorthWest/wmFontColor/{encode_text('red')}/wmFontSize/1200", BIKES
    )
    assert is_red(color(path, 20, 30, at_s=0.5))


async def test_avwatermarks_is_the_same_by_another_name(clips, tmp_path):
    logo = red(tmp_path / "logo.png")
    path = await clips.make(f"avwatermarks/mp4/t/1/wmImage/{encode_text('u')}/wmGravity/NorthWest", CAR, files={"u": logo})
    assert is_red(color(path, 10, 10))


# --- hls -----------------------------------------------------------------------------------------------------------------


def lay_out(root: Path, playlist: Path, name: str, segments: dict[str, Path]) -> Path:
    """The objects as files under their keys."""
    for key, path in {name: playlist, **segments}.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(path.read_bytes())
    return root / name


async def test_a_playlist_plays_with_its_segments_beside_it(clips, tmp_path):
    command = f"avthumb/m3u8/noDomain/1/segtime/2/s/160x/pattern/{encode_text('seg/$(keybase) $(count).ts')}"
    output = await clips.do(command, BIKES, target="out/b.m3u8")
    first, *segments = output.files
    assert (first.key, first.mime_type) == (None, "application/x-mpegurl")
    assert [made.key for made in segments] == [f"seg/a clip {number:06d}.ts" for number in range(5)]
    assert {made.mime_type for made in segments} == {"video/mp2t"}
    text = first.path.read_text()
    assert re.findall(r"#EXTINF:([\d.]+)", text) == ["2.000000"] * 5
    assert "../seg/a%20clip%20000000.ts" in text
    for made in segments:
        assert look(made.path).video is not None
        assert look(made.path).demuxer == "mpegts"
    plain = {made.key or "": made.path for made in segments}
    played = lay_out(tmp_path / "bucket", first.path, "out/b.m3u8", plain)
    played.write_text(text.replace("%20", " "))  # ffmpeg reads names of files, not URLs
    found = ask(played, "-allowed_extensions", "ALL")
    assert float(found["format"]["duration"]) == pytest.approx(10, abs=0.1)


async def test_automatic_segments_lie_under_the_playlists_key(clips):
    output = await clips.do("avthumb/m3u8/noDomain/1/segtime/2/s/160x", CAR)
    assert clips.hands is not None
    key = clips.hands.target.key
    assert [made.key for made in output.files[1:]] == [f"{key}/000000.ts", f"{key}/000001.ts"]


async def test_a_playlist_has_whole_urls_unless_they_shall_be_relative(clips):
    output = await clips.do("avthumb/m3u8/segtime/2/s/160x", CAR, target="b.m3u8", public_url="https://jobs.example.test")
    key = output.files[1].key
    assert f"\nhttps://jobs.example.test/objects/media/{key}\n" in output.files[0].path.read_text()
    output = await clips.do(f"avthumb/m3u8/s/160x/domain/{encode_text('cdn.example.test')}", CAR, target="b.m3u8")
    assert f"\nhttp://cdn.example.test/{output.files[1].key}\n" in output.files[0].path.read_text()


async def test_segments_are_encrypted_with_the_key_and_players_are_told_where_it_is(clips, tmp_path):
    key = b"0123456789abcdef"
    asked = f"hlsKey/{encode_text(key.decode())}/hlsKeyUrl/{encode_text('https://keys.example.test/1')}"
    output = await clips.do(f"avthumb/m3u8/noDomain/1/segtime/2/s/160x/{asked}", CAR, target="b.m3u8")
    text = output.files[0].path.read_text()
    found = re.search(r'#EXT-X-KEY:METHOD=AES-128,URI="https://keys.example.test/1",IV=0x([0-9a-f]{32})', text)
    assert found is not None
    sealed = output.files[1].path
    assert sealed.read_bytes()[:1] != b"G"  # where each packet of a transport stream begins
    opened = tmp_path / "opened.ts"
    openssl = ["openssl", "enc", "-d", "-aes-128-cbc", "-K", key.hex(), "-iv", found[1], "-in", str(sealed), "-out", str(opened)]
    subprocess.run(openssl, check=True, timeout=60)
    assert look(opened).demuxer == "mpegts"
    assert key.decode() not in text


# --- vframe, vsample ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "codec", "size"),
    [
        ("vframe/jpg/offset/1", "mjpeg", (640, 272)),
        ("vframe/png/offset/9.9/w/320", "png", (320, 136)),
        ("vframe/jpg/offset/0/w/100/h/100", "mjpeg", (100, 100)),
        ("vframe/jpg/offset/0/rotate/90/w/272", "mjpeg", (272, 640)),
    ],
)
async def test_a_frame_has_its_format_and_size(command, codec, size, clips):
    found = look(await clips.make(command, BIKES))
    assert found.video is not None
    assert (found.video.codec, (found.video.width, found.video.height)) == (codec, size)


async def test_a_frame_is_the_one_of_that_time(clips, tmp_path):
    turning = lavfi(
        tmp_path / "a.mp4",
        "-f", "lavfi", "-i", "color=red:s=64x64:d=1:r=10", "-f", "lavfi", "-i", "color=blue:s=64x64:d=1:r=10",
        "-filter_complex", "[0][1]concat=n=2", "-g", "100",
    )  # fmt: skip
    assert is_red(color(await clips.make("vframe/png/offset/0.85", turning), 5, 5))
    assert color(await clips.make("vframe/png/offset/1.05", turning), 5, 5)[2] > 180


async def test_samples_are_taken_at_each_interval_and_count_from_one(clips):
    output = await clips.do(f"vsample/jpg/interval/2.5/s/160x/savePattern/{encode_text('shots/$(keybase)-$(count).jpg')}", BIKES)
    assert output.makes == "objects"
    assert [made.key for made in output.files] == [f"shots/a clip-{number:06d}.jpg" for number in (1, 2, 3, 4)]
    assert {look(made.path).video.width for made in output.files} == {160}  # type: ignore[union-attr]
    assert len({hashlib.md5(made.path.read_bytes()).hexdigest() for made in output.files}) == 4


async def test_so_many_frames_are_spread_over_the_part(clips):
    for count in (1, 7):
        output = await clips.do(f"vsample/png/ss/2/t/6/frames/{count}/s/64x/savePattern/{encode_text('$(count)')}", BIKES)
        assert len(output.files) == count


async def test_too_many_samples_are_refused_before_any_is_taken(clips):
    long = f"vsample/jpg/interval/0.1/savePattern/{encode_text('$(count)')}"
    with pytest.raises(FopFailed, match="more than 1000 pictures"):
        await clips.do(long, lavfi(clips.folder / "long.mp4", "-f", "lavfi", "-i", "color=s=16x16:d=120:r=10"))


# --- avconcat -------------------------------------------------------------------------------------------------------------


async def test_mode_one_copies_what_is_alike(clips):
    path = await clips.make(f"avconcat/1/format/mp4/{encode_text('u')}/{encode_text('u')}", CAR, files={"u": CAR})
    assert frames(path) == 360
    assert look(path).duration_s == pytest.approx(12, abs=0.1)


async def test_mode_one_refuses_what_is_not(clips):
    with pytest.raises(FopFailed, match="mode 1 cannot join them, mode 2 can"):
        await clips.do(f"avconcat/1/format/mp4/{encode_text('u')}", CAR, files={"u": BIKES})


async def test_mode_two_joins_all_and_the_source_gives_the_shape(clips, tmp_path):
    short = lavfi(tmp_path / "short.mp4", "-ss", "1", "-t", "1", "-i", str(BUNNY), "-vf", "scale=160:90")
    path = await clips.make(f"avconcat/2/format/mp4/index/2/{encode_text('u')}", CAR, files={"u": short})
    found = look(path)
    assert found.video is not None
    assert found.audio is not None  # silence where there was none
    assert (found.video.width, found.video.height) == (176, 144)
    assert found.duration_s == pytest.approx(5, abs=0.15)


async def test_mode_two_joins_sounds(clips, tmp_path):
    tone = lavfi(tmp_path / "tone.wav", "-f", "lavfi", "-i", "sine=d=1")
    found = look(await clips.make(f"avconcat/2/format/mp3/{encode_text('u')}", tone, files={"u": tone}))
    assert found.duration_s == pytest.approx(2, abs=0.1)


async def test_a_part_that_is_not_there_is_named(clips):
    with pytest.raises(FopFailed, match="failed to GET kodo://media/gone"):
        await clips.do(f"avconcat/2/format/mp4/{encode_text('kodo://media/gone')}", CAR)
