"""Files that are damaged, or made to reach others: an item's failure with its reason, and nothing of any other file."""

from __future__ import annotations

from pathlib import Path

import pytest
from clip_house import Clips, clip, lavfi, look

from milepost.work.media.commands import FopFailed
from milepost.work.media.grammar import encode_text

SECRET = "the content of a secret file"


@pytest.fixture
def clips(tmp_path: Path) -> Clips:
    (tmp_path / "work").mkdir()
    return Clips(tmp_path / "work")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A playable file that nobody may reach, with a text in its tags."""
    return lavfi(
        tmp_path / "secret.ts",
        "-f", "lavfi", "-i", "testsrc2=s=64x64:r=10:d=1", "-metadata", f"service_name={SECRET}", "-f", "mpegts",
    )  # fmt: skip


def scripts(secret: Path) -> dict[str, str]:
    """Texts that make ffmpeg open other files, if it is let."""
    return {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\nfile:{secret}\n#EXT-X-ENDLIST\n",
        "hls over http": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "hls concat": f"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.0,\nconcat:{secret}|{secret}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile '{secret}'\n",
        "concat beside": "ffconcat version 1.0\nfile secret.ts\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "dash": f'<?xml version="1.0"?><MPD type="static" mediaPresentationDuration="PT1S"><Period>'
        f'<AdaptationSet mimeType="video/mp2t"><Representation id="0" bandwidth="1">'
        f"<BaseURL>file:{secret}</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "svg": f'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="9" height="9"><image xlink:href="file://{secret}" width="9" height="9"/></svg>',
        "imf": f'<?xml version="1.0"?><AssetMap><AssetList><Asset><Path>{secret}</Path></Asset></AssetList></AssetMap>',
        "subtitles": "1\n00:00:00,000 --> 00:00:01,000\nhello\n",
        "text": "just a text that somebody called a.mp4\n" * 50,
        "lavfi": "testsrc2=s=64x64:d=1",
    }


COMMANDS = [
    "avinfo",
    "avthumb/mp4",
    "avthumb/m3u8/noDomain/1",
    "vframe/jpg/offset/0",
    f"vsample/jpg/savePattern/{encode_text('$(count).jpg')}",
]


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_script_is_no_video_and_opens_nothing(command, clips, secret, tmp_path):
    for name, text in scripts(secret).items():
        source = secret.parent / f"{name}.mp4"
        source.write_text(text)
        with pytest.raises(FopFailed) as failed:
            await clips.do(command, source)
        assert str(failed.value).startswith("invalid media"), (name, failed.value)
        assert SECRET not in str(failed.value)
        assert str(tmp_path) not in str(failed.value)


async def test_the_secret_could_be_played_itself(clips, secret):
    """So that what is refused above is refused for its way of being reached."""
    assert look(await clips.make("avthumb/mp4", secret)).duration_s == pytest.approx(1, abs=0.2)


async def test_a_script_among_the_parts_is_not_followed(clips, secret, tmp_path):
    script = tmp_path / "script"
    script.write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    car = clip("carphone_distorted")
    for mode in (1, 2):
        with pytest.raises(FopFailed, match="file 2: invalid media"):
            await clips.do(f"avconcat/{mode}/format/mp4/{encode_text('u')}", car, files={"u": script})


async def test_a_mark_is_a_picture_and_no_playlist_or_drawing(clips, secret, tmp_path):
    for name in ("hls", "concat", "svg"):
        mark = tmp_path / f"{name}.png"
        mark.write_text(scripts(secret)[name])
        with pytest.raises(FopFailed, match="wmImage: invalid media"):
            await clips.do(f"avthumb/mp4/wmImage/{encode_text('u')}", clip("carphone_distorted"), files={"u": mark})


@pytest.mark.parametrize("command", COMMANDS)
async def test_nothing_and_noise_are_no_media(command, clips, tmp_path):
    empty, noise = tmp_path / "empty", tmp_path / "noise"
    empty.touch()
    noise.write_bytes(bytes(range(256)) * 64)
    with pytest.raises(FopFailed, match="source data is empty"):
        await clips.do(command, empty)
    with pytest.raises(FopFailed, match="invalid media"):
        await clips.do(command, noise)


async def test_a_truncated_clip_fails_and_says_so(clips, tmp_path):
    whole = clip("bikes").read_bytes()
    without_index = tmp_path / "a.mp4"  # its index is at the end
    without_index.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FopFailed, match="invalid media"):
        await clips.do("avthumb/mp4", without_index)
    front = lavfi(tmp_path / "front.mp4", "-i", str(clip("bikes")), "-c", "copy", "-movflags", "+faststart")
    data = front.read_bytes()
    front.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(FopFailed, match=r"only .* s of 10.00 s could be read"):
        await clips.do("avthumb/mp4/s/160x", front)


async def test_a_file_of_another_kind_than_its_name_says_is_read_for_what_it_is(clips, tmp_path):
    wav = lavfi(tmp_path / "a.wav", "-f", "lavfi", "-i", "sine=d=1")
    named = wav.rename(tmp_path / "a.mp4")
    found = look(await clips.make("avthumb/mp3", named))
    assert found.audio is not None
    assert found.audio.codec == "mp3"


async def test_huge_pictures_are_refused_before_they_are_decoded(clips, tmp_path):
    big = lavfi(tmp_path / "big.mp4", "-f", "lavfi", "-i", "color=s=1280x720:d=0.2:r=10")
    with pytest.raises(FopFailed, match="1280x720 have more than 100000 pixels"):
        await clips.do("avthumb/mp4", big, av_pixels_max=100_000)


async def test_the_decoder_is_told_the_bound_too(clips, tmp_path):
    """A stream whose pictures grow behind its beginning."""
    small = lavfi(tmp_path / "small.h264", "-f", "lavfi", "-i", "color=s=64x64:d=0.5:r=10", "-c:v", "libx264", "-f", "h264")
    big = lavfi(tmp_path / "big.h264", "-f", "lavfi", "-i", "color=s=1280x720:d=0.5:r=10", "-c:v", "libx264", "-f", "h264")
    grown = tmp_path / "grown.h264"
    grown.write_bytes(small.read_bytes() + big.read_bytes())
    assert look(grown).video == look(small).video
    with pytest.raises(FopFailed, match="it has pictures of more than 100000 pixels"):
        await clips.do("avthumb/mp4", grown, av_pixels_max=100_000)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"av_cpu_s": 1}, "it used more processor time than it may"),
        ({"media_wall_s": 0.5}, "it took longer than it may"),
        ({"media_file_bytes_max": 1 << 20}, "it wrote a larger file than it may"),
    ],
)
async def test_an_endless_transcode_is_stopped_by_each_limit(limits, why, clips, tmp_path):
    loud = lavfi(tmp_path / "a.flac", "-f", "lavfi", "-i", "anoisesrc=d=600:c=white:a=0.001:r=8000", "-ar", "8000")
    busy = "avthumb/mp4/vcodec/libx265/s/1920x1080" if "av_cpu_s" in limits or "media_wall_s" in limits else "avthumb/wav"
    source = clip("bikes") if "libx265" in busy else loud
    with pytest.raises(FopFailed) as failed:
        await clips.do(busy, source, **limits)
    assert why in str(failed.value)


async def test_too_little_memory_is_a_failure(clips):
    with pytest.raises(FopFailed):
        await clips.do("avthumb/mp4/vcodec/libx265/s/3840x2160", clip("bikes"), av_memory_bytes=1 << 28)


async def test_a_missing_program_is_named(clips, monkeypatch, tmp_path):
    from milepost.process import ProgramMissing

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramMissing, match="ffprobe is not installed"):  # `StepTools` makes an item's failure of it
        await clips.do("avinfo", clip("bikes"))


async def test_a_start_behind_the_end_is_a_failure(clips):
    for command in ("avthumb/mp4/ss/11", f"vsample/jpg/ss/11/savePattern/{encode_text('$(count).jpg')}", "vframe/jpg/offset/11"):
        with pytest.raises(FopFailed, match=r"10 s"):
            await clips.do(command, clip("bikes"))


async def test_what_the_source_does_not_have_is_said(clips):
    for command, lacks in (("avthumb/mp3", "audio"), ("avthumb/mp4/vn/1", "audio")):
        with pytest.raises(FopFailed, match=f"the source has no {lacks}"):
            await clips.do(command, clip("bikes"))
