"""Subtitles drawn into real clips by the real ffmpeg: where, when, from which sorts of files, and from nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from clip_house import Clips, clip, lavfi, look
from test_av_clips import color, is_red

from milepost.work.media.avsubtitles import sniff
from milepost.work.media.commands import FopFailed
from milepost.work.media.grammar import encode_text

BIKES = clip("bikes")  # 640x272, 10 s
# From 1 s to 2 s a red rectangle from (100, 100) to (300, 200): what stands where and when can be told by a pixel.
SCRIPT = """[Script Info]
ScriptType: v4.00+
PlayResX: 640
PlayResY: 272

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, Alignment, BorderStyle, Outline, Shadow
Style: Default,DejaVu Sans,20,&H00FFFFFF,7,1,0,0

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,{\\pos(100,100)\\c&H0000FF&\\p1}m 0 0 l 200 0 200 100 0 100
"""
LINES = '1\n00:00:00,000 --> 00:00:09,000\n<font color="#ff0000" size="60">\u2588\u2588\u2588\u2588\u2588\u2588</font>\n'
ON = f"subtitle/{encode_text('u')}"


@pytest.fixture
def clips(tmp_path: Path) -> Clips:
    return Clips(tmp_path)


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


async def test_a_subtitle_stands_where_and_as_long_as_its_file_says(clips: Clips, tmp_path: Path) -> None:
    script = written(tmp_path / "s.txt", SCRIPT)  # its name says nothing
    path = await clips.make(f"avthumb/mp4/t/3/{ON}", BIKES, files={"u": script})
    assert is_red(color(path, 200, 150, at_s=1.5))
    assert not is_red(color(path, 200, 150, at_s=0.5))
    assert not is_red(color(path, 200, 150, at_s=2.5))
    assert not is_red(color(path, 400, 150, at_s=1.5))


async def test_its_times_are_the_sources_and_its_place_follows_the_size(clips: Clips, tmp_path: Path) -> None:
    script = written(tmp_path / "s.txt", SCRIPT)
    path = await clips.make(f"avthumb/mp4/ss/0.8/t/2/s/320x136/{ON}", BIKES, files={"u": script})
    assert is_red(color(path, 100, 75, at_s=0.7))
    assert not is_red(color(path, 100, 75, at_s=0.04))
    assert not is_red(color(path, 100, 75, at_s=1.6))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(LINES, "utf-8"), ("\ufeff" + LINES, "utf-8"), (LINES + "\n2\n00:00:09,000 --> 00:00:09,500\n字幕\n", "gb18030")],
    ids=["utf-8", "with a mark in front", "gb18030"],
)
async def test_subrip_is_drawn_at_the_bottom(clips: Clips, tmp_path: Path, text: str, encoding: str) -> None:
    text = text if encoding == "utf-8" else text.replace("\u2588", "■")  # a letter that both have
    path = await clips.make(f"avthumb/mp4/t/1/{ON}", BIKES, files={"u": written(tmp_path / "s", text, encoding)})
    row = [color(path, x, y, at_s=0.5) for x in (300, 320, 340) for y in range(200, 270, 8)]
    assert any(is_red(one) for one in row)


async def test_webvtt_is_drawn_and_marks_over_it(clips: Clips, tmp_path: Path) -> None:
    vtt = "WEBVTT\n\n00:00.000 --> 00:09.000\nsome words\n"
    plain = await clips.make("avthumb/mp4/t/1", BIKES)
    path = await clips.make(f"avthumb/mp4/t/1/{ON}/wmText/{encode_text('x')}", BIKES, files={"u": written(tmp_path / "s", vtt)})
    seen = [(x, y) for x in range(240, 400, 5) for y in range(225, 268, 5)]
    assert sum(min(color(path, *at, at_s=0.5)) > 200 > min(color(plain, *at, at_s=0.5)) for at in seen) > 3


@pytest.mark.parametrize(
    "data",
    [
        b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/x.ts\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"",
        b"\0\1\2\xff",
        b"\xff\xfe" + "1\n00:00:00,000 --> 00:00:01,000\nhi\n".encode("utf-16-le"),
    ],
    ids=["playlist", "concat", "empty", "bytes", "utf-16"],
)
async def test_what_is_no_file_of_subtitles_is_an_item_failure(clips: Clips, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "s").write_bytes(data)
    with pytest.raises(FopFailed, match="subtitle"):
        await clips.make(f"avthumb/mp4/t/1/{ON}", BIKES, files={"u": tmp_path / "s"})


async def test_a_file_of_subtitles_is_opened_by_its_own_reader_alone(clips: Clips, tmp_path: Path) -> None:
    await clips.make(f"avthumb/mp4/t/1/{ON}", BIKES, files={"u": written(tmp_path / "s", LINES)})
    assert clips.hands is not None
    (convert,) = [argv for argv in clips.hands.ran if argv[-1].endswith(".ass")]
    assert convert[convert.index("-format_whitelist") + 1] == convert[convert.index("-f") + 1] == "srt"
    assert convert[convert.index("-protocol_whitelist") + 1] == "file,pipe"


@pytest.fixture
def subtitled(tmp_path: Path) -> Path:
    """The clip with a sound of its own, and two streams of subtitles."""
    script, lines = (
        written(tmp_path / "in.ass", SCRIPT),
        written(tmp_path / "in.srt", "1\n00:00:00,000 --> 00:00:09,000\nwords\n"),
    )
    streams = ["-i", str(BIKES), "-i", str(script), "-i", str(lines), "-map", "0:v", "-map", "1", "-map", "2"]
    return lavfi(tmp_path / "subtitled.mkv", *streams, "-t", "3", "-c:v", "copy", "-c:s", "copy")


@pytest.mark.parametrize("value", ["embed", encode_text("embed")])
async def test_the_sources_own_subtitles_are_drawn(clips: Clips, subtitled: Path, value: str) -> None:
    path = await clips.make(f"avthumb/mp4/ss/0.8/t/2/subtitle/{value}", subtitled)
    assert is_red(color(path, 200, 150, at_s=0.7))
    assert not is_red(color(path, 200, 150, at_s=1.6))


async def test_subtitles_come_from_another_video_too(clips: Clips, subtitled: Path) -> None:
    path = await clips.make(f"avthumb/mp4/t/2/{ON}", BIKES, files={"u": subtitled})
    assert is_red(color(path, 200, 150, at_s=1.5))


@pytest.mark.parametrize("files", [{}, {"u": BIKES}])
async def test_a_video_without_subtitles_is_said(clips: Clips, files: dict[str, Path]) -> None:
    with pytest.raises(FopFailed, match="subtitle"):
        await clips.do(f"avthumb/mp4/t/1/{ON if files else 'subtitle/embed'}", BIKES, files=files)


@pytest.mark.parametrize(
    ("command", "codecs"),
    [("mp4/scodec/mov_text", ["mov_text"] * 2), ("mkv/scodec/webvtt", ["webvtt"] * 2), ("mkv", []), ("mp4/sn/1", [])],
)
async def test_subtitles_are_kept_where_a_codec_is_asked_for(
    clips: Clips, subtitled: Path, command: str, codecs: list[str]
) -> None:
    assert [one.codec for one in look(await clips.make(f"avthumb/{command}", subtitled)).subtitles] == codecs


def test_a_file_says_what_it_is() -> None:
    assert [sniff(text) for text in (SCRIPT, LINES, "WEBVTT\n")] == ["ass", "srt", "webvtt"]
