"""Audio, video and file commands: any text is a value or BadCommand; any value is arguments that open local files alone."""

from __future__ import annotations

import posixpath
import zipfile
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from milepost.work.media import pfop
from milepost.work.media.adapt import parse_adapt, stream_of
from milepost.work.media.archive import Entry, check_names, pack, parse_index
from milepost.work.media.av import DEMUXERS, Audio, Media, Subtitle, Video, read_media
from milepost.work.media.avargs import Input, output_size, thumb_args
from milepost.work.media.avformats import CONTAINERS
from milepost.work.media.avmarks import KEYS as MARK_KEYS
from milepost.work.media.avmarks import ImageMark
from milepost.work.media.avthumb import _READ, AV_PRESETS, Size, parse_avthumb
from milepost.work.media.commands import COMMANDS, BadCommand, FopFailed
from milepost.work.media.grammar import encode_text
from milepost.work.media.hls import KEYS as HLS_KEYS
from milepost.work.media.hls import relative_to, write_playlist
from milepost.work.media.segment import Segment, segment_args

assert pfop.FAILED  # it registers every family's commands

NAMES = (
    "avinfo", "avthumb", "avwatermarks", "vframe", "vsample", "avconcat", "segment", "adapt", "animate", "qhash", "concat",
    "mkzip", "qrcode", "md2html",
)  # fmt: skip
WORDS = [
    *sorted({*_READ, *MARK_KEYS, *HLS_KEYS, *CONTAINERS, *AV_PRESETS}), "preset", "scodec", "mov_text",
    "vcodec", "acodec", "aq", "audioProfile", "sn", "offset", "interval",
    "frames", "index", "format", "mimeType", "url", "alias", "encoding", "level", "css", "libx264", "copy", "jpg", "png", "md5",
    "envBandWidth", "multiVb", "multiAb", "multiResolution", "multiPrefix", "resolution", "hlstime", "duration", "merge", "key",
    "effect",
]  # fmt: skip
VALUES = st.one_of(
    st.integers(-5, 5000).map(str),
    st.sampled_from(["128k", "1.25m", "640x360", "x360", "640x>", "90", "auto", "4:3", "0", "1", "3.1", "NaN", "", "North"]),
    st.sampled_from(["$(end)", "$(origin)", "200000,800000", "64k,$(origin)", "320:180,$(origin)", "YQ==,Yg==", "1m,2m,3m"]),
    st.text(max_size=12).map(encode_text),
    st.sampled_from(["kodo://b/k", "$(count)", "#ff0000", "utf-8", "0123456789abcdef", "https://k.a"]).map(encode_text),
    st.text(max_size=12),
)  # fmt: skip
ARGS = st.lists(st.one_of(st.sampled_from(WORDS), VALUES), max_size=14)
PAIRS = st.lists(st.tuples(st.sampled_from(WORDS), VALUES), max_size=6).map(
    lambda pairs: [word for pair in pairs for word in pair]
)
VIDEOS = st.builds(
    Video,
    index=st.integers(0, 5),
    codec=st.sampled_from(["h264", "vp8", "gif"]),
    width=st.integers(1, 8192),
    height=st.integers(1, 4320),
    fps=st.none() | st.fractions(Fraction(1, 10), 120),
    bps=st.none() | st.integers(1, 10**9),
)
AUDIOS = st.builds(
    Audio,
    index=st.integers(0, 5),
    codec=st.sampled_from(["aac", "mp3"]),
    channels=st.integers(1, 8),
    bps=st.none() | st.integers(1, 10**6),
)
MEDIA = st.builds(
    Media,
    demuxer=st.sampled_from(DEMUXERS),
    duration_s=st.none() | st.floats(0.01, 1e6),
    video=st.none() | VIDEOS,
    audio=st.none() | AUDIOS,
    subtitles=st.lists(
        st.builds(Subtitle, index=st.integers(0, 9), codec=st.sampled_from(["ass", "dvd_subtitle"])), max_size=3
    ).map(tuple),
)


@settings(max_examples=400)
@given(st.sampled_from(NAMES), ARGS)
def test_any_text_is_a_value_or_a_sentence(name, args):
    try:
        COMMANDS[name].parse(args)
    except BadCommand as told:
        assert str(told).startswith(("avthumb", "avwatermarks", name))
        assert len(str(told)) < 1000


@given(PAIRS, MEDIA)
def test_every_quality_that_is_read_is_a_transcode_within_its_band(pairs, media):
    try:
        spec = parse_adapt(["m3u8", "envBandWidth", "200000,800000", *pairs])
    except BadCommand:
        return
    assert [one.band_bps for one in spec.qualities] == sorted({one.band_bps for one in spec.qualities})
    for quality in spec.qualities:
        stream = stream_of(spec.base, quality, media, "p_$(count).ts")
        asked = quality.video_bps is not None or quality.origin_video
        assert asked or 0 < (stream.video_bps or 0) < quality.band_bps
        assert stream.hls is not None
        assert stream.hls.pattern == "p_$(count).ts"


@given(st.sampled_from(sorted(set(CONTAINERS) - {"gif", "m3u8"})), st.floats(5, 1e6), MEDIA)
def test_a_cut_copies_streams_of_its_one_file(name, length_s, media):
    try:
        args = segment_args(Segment(format=name, length_s=length_s), media, "/in", pixels_max=1_000_000)
    except FopFailed:
        return
    assert [args[at + 1] for at, arg in enumerate(args) if arg == "-i"] == ["file:/in"]
    assert args[args.index("-format_whitelist") + 1] == args[args.index("-f") + 1] == media.demuxer
    assert args[args.index("-c") + 1] == "copy"


@settings(max_examples=400)
@given(st.sampled_from(sorted(CONTAINERS)), PAIRS, MEDIA)
def test_any_command_that_is_read_opens_only_its_files_by_a_forced_demuxer(name, args, media):
    try:
        spec = parse_avthumb([name, *args])
    except BadCommand:
        return
    marks = [Input(f"/mark-{number}", "png_pipe") for number, mark in enumerate(spec.marks) if isinstance(mark, ImageMark)]
    try:
        argv = thumb_args(spec, media, "/in", "/out", marks, pixels_max=1000)
    except FopFailed:
        return
    opened = [argv[index + 1] for index, arg in enumerate(argv) if arg == "-i"]
    assert opened == ["file:/in", *(f"file:{mark.path}" for mark in marks)]
    for index in (index for index, arg in enumerate(argv) if arg == "-i"):
        assert argv[index - 8 : index - 6] == ["-protocol_whitelist", "file,pipe"]
        assert argv[index - 5] == argv[index - 1]
        assert argv[index - 1] in DEMUXERS
    assert argv[-1] == ("playlist.m3u8" if name == "m3u8" else "file:/out")
    assert all("\0" not in arg and "\n" not in arg for arg in argv)
    texts = [mark.text for mark in spec.marks if not isinstance(mark, ImageMark) and len(mark.text) > 3]
    assert not any(text in arg for text in texts for arg in argv)


@given(
    st.none() | st.builds(Size, st.none() | st.integers(20, 8192), st.integers(20, 8192), st.sampled_from(["", "<", ">"])),
    st.booleans(),
    st.integers(1, 30_000),
    st.integers(1, 30_000),
)
def test_a_size_is_even_and_never_nothing(wanted, autoscale, width, height):
    made = output_size(wanted, autoscale, width, height)
    assert all(side >= 2 and side % 2 == 0 for side in made)
    if wanted is not None and autoscale and wanted.width and wanted.height and not wanted.only:
        assert made[0] <= wanted.width + 1
        assert made[1] <= wanted.height + 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
SHORT = st.text(max_size=6)
STREAMS = st.lists(
    st.fixed_dictionaries(
        {"index": st.integers(0, 9), "codec_type": st.sampled_from(["video", "audio", "data"])},
        optional={
            "width": st.integers(0, 9000), "height": st.integers(0, 9000), "bit_rate": SHORT, "duration": SHORT,
            "avg_frame_rate": st.text(max_size=6) | st.sampled_from(["0/0", "25/1", "1/0"]), "sample_rate": SHORT,
            "channels": st.integers(0, 64), "tags": st.dictionaries(st.sampled_from(["rotate", "title"]), SHORT, max_size=2),
        },
    ),
    max_size=3,
)  # fmt: skip


@given(STREAMS, st.text(max_size=8) | st.sampled_from(["mov,mp4", "hls", "concat", "matroska,webm"]), JSON)
def test_whatever_ffprobe_says_is_a_media_or_a_failure(streams: Any, name: str, other: Any):
    try:
        media = read_media({"streams": streams, "format": {"format_name": name, "duration": other, "bit_rate": other}})
    except FopFailed:
        return
    assert media.demuxer in DEMUXERS
    assert media.video or media.audio
    assert media.duration_s is None or 0 < media.duration_s < 1e12


KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30)


@given(KEYS, KEYS)
def test_a_reference_leads_from_the_playlist_to_the_segment(playlist, key):
    parts = [*playlist.split("/"), *key.split("/")]
    assume(not any(part in ("", ".", "..") for part in parts))
    base = "http://h.example/objects/media/"
    reference = relative_to(playlist, key)
    assert "\n" not in reference
    assert not reference.startswith("#")
    assert unquote(urlsplit(urljoin(base + quote(playlist), reference)).path) == f"/objects/media/{key}"


@given(st.lists(st.text(max_size=20), max_size=6))
def test_a_playlist_with_a_line_of_its_own_is_refused(lines):
    text = "\n".join(["#EXTM3U", "a.ts", *lines])
    try:
        made = write_playlist(text, {"a.ts": "b.ts"})
    except ValueError:
        assert any(line and not line.startswith("#") and line != "a.ts" for line in text.splitlines())
    else:
        assert all(line.startswith("#") or line in ("", "b.ts") for line in made.splitlines())


NAME = st.text(max_size=10) | st.sampled_from(["../x", "/x", "a/b", "a", "A", "a/../b", "C:x", "a\\b"])


@settings(max_examples=200, deadline=None)
@given(st.lists(NAME, min_size=1, max_size=4), st.sampled_from(["utf-8", "gbk"]))
def test_an_archive_unpacks_into_its_folder_alone(names, encoding):
    try:
        check_names([Entry("kodo://b/k", name) for name in names], encoding)
    except BadCommand:
        return
    with TemporaryDirectory() as folder:
        source, packed = Path(folder) / "source", Path(folder) / "zip"
        source.write_bytes(b"data")
        pack([(name, source) for name in names], packed, encoding, lambda: None)
        with zipfile.ZipFile(packed, metadata_encoding="gbk" if encoding == "gbk" else None) as archive:
            assert archive.namelist() == names
            assert archive.testzip() is None
        for name in names:
            assert posixpath.normpath(posixpath.join("/safe", name)).startswith("/safe/")


@given(st.text(max_size=200))
def test_any_list_of_files_is_entries_or_a_sentence(text):
    try:
        assert parse_index(text, 10, "utf-8")
    except BadCommand as told:
        assert str(told)
