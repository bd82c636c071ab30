"""The parameters of avthumb, and ffmpeg's arguments that they become, literally."""

# ruff: noqa: E501  (arguments as they are)

from __future__ import annotations

from fractions import Fraction

import msgspec
import pytest

from milepost.work.media.av import Audio, Media, Subtitle, Video, read_media
from milepost.work.media.avargs import Input, output_size, thumb_args
from milepost.work.media.avconcat import copy_args, join_args, parse_avconcat
from milepost.work.media.avmarks import ImageMark, Place, TextMark
from milepost.work.media.avthumb import AvThumb, Size, parse_avthumb, parse_rate
from milepost.work.media.commands import BadCommand, FopFailed
from milepost.work.media.frames import parse_vframe, parse_vsample, picture_size, vframe_args, vsample_args
from milepost.work.media.grammar import encode_text
from milepost.work.media.hls import fill_pattern, relative_to

BUNNY = Media(
    demuxer="mov",
    duration_s=5.28,
    video=Video(index=0, codec="h264", width=1280, height=720, fps=Fraction(25), bps=1_205_959),
    audio=Audio(index=1, codec="aac", sample_rate=48_000, channels=6, bps=384_828),
)
SILENT = Media(demuxer="mov", duration_s=10.0, video=BUNNY.video)
SOUND = Media(demuxer="mp3", duration_s=60.0, audio=Audio(index=0, codec="mp3", sample_rate=44_100, channels=2, bps=64_000))

OPEN = "-protocol_whitelist file,pipe -format_whitelist {0} -max_pixels 1000000 -f {0} -i file:/in"
MOV = OPEN.format("mov")
VIDEO = "-map 0:0 -c:v libx264 -pix_fmt yuv420p"
CRF = "-crf 23 -maxrate 1205959 -bufsize 1205959"
AAC = "-map 0:1 -c:a aac -b:a 128000"
END = "-sn -dn -movflags +faststart -f mp4 file:/out"


def args_of(command: str, media: Media = BUNNY, marks: tuple[Input, ...] = ()) -> str:
    return " ".join(thumb_args(parse_avthumb(command.split("/")[1:]), media, "/in", "/out", marks, pixels_max=1_000_000))


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("avthumb/mp4", f"{MOV} {VIDEO} {CRF} {AAC} {END}"),
        ("avthumb/mp4/", f"{MOV} {VIDEO} {CRF} {AAC} {END}"),
        # rates: a small m is a million; never above the source's, where the codec stays
        ("avthumb/mp4/vb/500k/ab/64k", f"{MOV} {VIDEO} -b:v 500000 -map 0:1 -c:a aac -b:a 64000 {END}"),
        ("avthumb/mp4/vb/1.25m/ab/1m", f"{MOV} {VIDEO} -b:v 1205959 -map 0:1 -c:a aac -b:a 384828 {END}"),
        ("avthumb/mp4/vb/1.1m", f"{MOV} {VIDEO} -b:v 1100000 {AAC} {END}"),
        (
            "avthumb/mp4/vcodec/libx265/vb/2M",
            f"{MOV} -map 0:0 -c:v libx265 -pix_fmt yuv420p -b:v 2000000 -tag:v hvc1 {AAC} {END}",
        ),
        ("avthumb/mp4/crf/28/an/1", f"{MOV} {VIDEO} -crf 28 -an {END}"),
        ("avthumb/mp4/h264Crf/20/an/1", f"{MOV} {VIDEO} -crf 20 -an {END}"),
        ("avthumb/mp4/r/10/an/1", f"{MOV} -map 0:0 -c:v libx264 -r 10 -pix_fmt yuv420p {CRF} -an {END}"),
        ("avthumb/mp4/r/50/an/1", f"{MOV} -map 0:0 -c:v libx264 -r 25 -pix_fmt yuv420p {CRF} -an {END}"),
        ("avthumb/mp4/r/50/hr/1/an/1", f"{MOV} -map 0:0 -c:v libx264 -r 50 -pix_fmt yuv420p {CRF} -an {END}"),
        # sizes
        ("avthumb/mp4/s/640x480/an/1", f"{MOV} -map 0:0 -vf scale=640:480,setsar=1 -c:v libx264 -pix_fmt yuv420p {CRF} -an {END}"),
        (
            "avthumb/mp4/s/640x480/autoscale/1/an/1",
            f"{MOV} -map 0:0 -vf scale=640:360,setsar=1 -c:v libx264 -pix_fmt yuv420p {CRF} -an {END}",
        ),
        (
            "avthumb/mp4/rotate/90/s/360x/an/1",
            f"{MOV} -map 0:0 -vf transpose=clock,scale=360:640,setsar=1 -c:v libx264 -pix_fmt yuv420p {CRF} -an {END}",
        ),
        ("avthumb/mp4/rotate/180/an/1", f"{MOV} -map 0:0 -vf hflip,vflip -c:v libx264 -pix_fmt yuv420p {CRF} -an {END}"),
        ("avthumb/mp4/rotate/270/an/1", f"{MOV} -map 0:0 -vf transpose=cclock -c:v libx264 -pix_fmt yuv420p {CRF} -an {END}"),
        ("avthumb/mp4/rotate/auto/an/1", f"{MOV} {VIDEO} {CRF} -an {END}"),
        ("avthumb/mp4/aspect/4:3/an/1", f"{MOV} {VIDEO} {CRF} -aspect 4:3 -an {END}"),
        # time
        ("avthumb/mp4/ss/1.5/t/3.345/an/1", f"-ss 1.5 {MOV} {VIDEO} {CRF} -an -sn -dn -t 3.345 -movflags +faststart -f mp4 file:/out"),
        # what the encoder is told
        (
            "avthumb/mp4/gop/50/h264Profile/baseline/h264Level/3.1/an/1",
            f"{MOV} {VIDEO} {CRF} -profile:v baseline -level 3.1 -g 50 -an {END}",
        ),
        ("avthumb/mp4/gop/0/an/1", f"{MOV} {VIDEO} {CRF} -an {END}"),
        (
            "avthumb/mp4/stripmeta/1/an/1",
            f"{MOV} {VIDEO} {CRF} -an -sn -dn -map_metadata -1 -map_chapters -1 -movflags +faststart -f mp4 file:/out",
        ),
        ("avthumb/mp4/vcodec/copy/acodec/copy", f"{MOV} -map 0:0 -c:v copy -map 0:1 -c:a copy {END}"),
        ("avthumb/mp4/vn/1", f"{MOV} -vn {AAC} {END}"),
        # sound alone
        ("avthumb/mp3", f"{MOV} -vn -map 0:1 -c:a libmp3lame -b:a 128000 -ar 44100 -ac 2 -sn -dn -f mp3 file:/out"),
        ("avthumb/mp3/aq/2/writeXing/0", f"{MOV} -vn -map 0:1 -c:a libmp3lame -q:a 2 -ar 44100 -ac 2 -sn -dn -write_xing 0 -f mp3 file:/out"),
        ("avthumb/aac/acodec/libfaac/aq/100", f"{MOV} -vn -map 0:1 -c:a aac -q:a 1 -sn -dn -f adts file:/out"),
        ("avthumb/m4a/acodec/libfdk_aac/audioProfile/aac_he/ac/1/ar/22050", f"{MOV} -vn {AAC} -ar 22050 -ac 1 -sn -dn -movflags +faststart -f ipod file:/out"),
        ("avthumb/wav/ar/16000/ac/1", f"{MOV} -vn -map 0:1 -c:a pcm_s16le -ar 16000 -ac 1 -sn -dn -f wav file:/out"),
        # other containers
        (
            "avthumb/webm",
            f"{MOV} -map 0:0 -c:v libvpx -pix_fmt yuv420p -b:v 700000 -deadline good -cpu-used 2 "
            "-map 0:1 -c:a libvorbis -b:a 128000 -ar 48000 -sn -dn -f webm file:/out",
        ),
        ("avthumb/flv", f"{MOV} -map 0:0 -c:v flv -pix_fmt yuv420p -b:v 512000 -map 0:1 -c:a libmp3lame -b:a 64000 -ar 44100 -ac 2 -sn -dn -f flv file:/out"),
        (
            "avthumb/gif/s/160x",
            f"{MOV} -filter_complex [0:0]fps=10,scale=160:90,setsar=1[v0];[v0]split[a][b];[a]palettegen=stats_mode=single[p];"
            "[b][p]paletteuse=new=1[g] -map [g] -c:v gif -an -sn -dn -f gif file:/out",
        ),
        (
            "avthumb/m3u8/segtime/5/an/1",
            f"{MOV} {VIDEO} {CRF} -force_key_frames expr:gte(t,n_forced*5) -an -sn -dn -f hls -hls_time 5 -hls_list_size 0 "
            "-hls_allow_cache 1 -hls_segment_filename segment-%06d.ts playlist.m3u8",
        ),
    ],
)  # fmt: skip
def test_a_command_is_these_arguments(command, args):
    assert args_of(command) == args


def test_keys_come_in_any_order_and_the_later_one_counts():
    assert args_of("avthumb/mp4/t/2/ss/1/vb/100k") == args_of("avthumb/mp4/vb/900k/ss/1/vb/100k/t/2")


@pytest.mark.parametrize("preset", ["video_240k", "preset/video_240k"])
def test_a_preset_is_what_it_stands_for_and_every_key_beside_it_counts_more(preset):
    assert args_of(f"avthumb/m3u8/segtime/15/{preset}") == args_of("avthumb/m3u8/segtime/15/vb/240k")
    assert args_of(f"avthumb/m3u8/vb/500k/{preset}/ab/64k") == args_of("avthumb/m3u8/vb/500k/ab/64k")
    assert args_of(f"avthumb/mp4/{preset}/crf/20") == args_of("avthumb/mp4/crf/20")


def test_presets_of_a_shape_and_of_sound():
    assert args_of("avthumb/mp4/video_16x9_440k") == args_of("avthumb/mp4/vb/440k/s/400x224")
    assert args_of("avthumb/mp4/preset/video_4x3_150k") == args_of("avthumb/mp4/vb/150k/s/400x300")
    assert args_of("avthumb/m3u8/audio_48k") == args_of("avthumb/m3u8/ab/48k/vn/1")
    assert args_of("avthumb/mp3/audio_32k") == args_of("avthumb/mp3/ab/32k")


def test_subtitles_of_text_are_kept_in_the_codec_that_is_asked_for():
    subtitled = msgspec.structs.replace(
        BUNNY,
        subtitles=(Subtitle(index=2, codec="dvd_subtitle"), Subtitle(index=3, codec="ass"), Subtitle(index=4, codec="subrip")),
    )
    assert " -sn -dn " in args_of("avthumb/mp4", subtitled)
    assert " -map 0:3 -map 0:4 -c:s mov_text -dn " in args_of("avthumb/mp4/scodec/mov_text", subtitled)
    assert " -sn -dn " in args_of("avthumb/mkv/scodec/srt", BUNNY)  # it has none


def test_a_sound_has_no_more_bits_than_its_source():
    assert " -b:a 64000 " in args_of("avthumb/mp3/ab/320k", SOUND)
    assert " -b:a 64000 " in args_of("avthumb/m4a", SOUND)
    assert " -b:a 320000 " in args_of("avthumb/m4a/ab/320k", SOUND)  # asked for, and another codec
    assert " -b:a 48000 " in args_of("avthumb/webm/vn/1", Media(demuxer="mp3", audio=Audio(index=0, codec="mp3", bps=8000)))


def test_marks_are_drawn_in_order_each_with_its_own_parameters():
    command = (
        f"avthumb/mp4/an/1/wmImage/{encode_text('kodo://b/a.png')}/wmGravity/SouthWest/wmOffsetX/10/wmOffsetY/-20"
        f"/wmText/{encode_text('Hi')}/wmGravityText/Center/wmFontColor/{encode_text('#ff8800')}/wmFontSize/1000"
        f"/wmImage/{encode_text('kodo://b/b.gif')}/wmScale/0.5/wmAlpha/0.3/wmPos/1/wmDuration/2"
    )
    spec = parse_avthumb(command.split("/")[1:])
    assert spec.marks == (
        ImageMark(url="kodo://b/a.png", place=Place(gravity="SouthWest", dx=10, dy=-20)),
        TextMark(text="Hi", place=Place(gravity="Center"), color="FF8800", size_px=50.0),
        ImageMark(url="kodo://b/b.gif", scale=0.5, place=Place(alpha=0.3, from_s=1.0, for_s=2.0)),
    )
    args = args_of(command, marks=(Input("/a", "png_pipe"), Input("/b", "gif")))
    assert "-format_whitelist png_pipe -max_pixels 1000000 -f png_pipe -i file:/a" in args
    assert "-ignore_loop 0 -protocol_whitelist file,pipe -format_whitelist gif -max_pixels 1000000 -f gif -i file:/b" in args
    assert "-t 5.28 " in args  # the GIF has no end
    graph = args.split("-filter_complex ")[1].split(" -map")[0]
    assert graph == (
        "[0:0]null[v0];"
        "[1:v]format=rgba[p0];[v0][p0]overlay=x=0+10:y=H-h-20:eof_action=repeat[m0];"
        "[m0]drawtext=font='DejaVu Sans':textfile=text-0:expansion=none:fontcolor=0xFF8800@1:fontsize=50:x=(w-text_w)/2+0:y=(h-text_h)/2+0[m1];"
        "[2:v]format=rgba,scale=w='if(lt(iw,ih),360,-1)':h='if(lt(iw,ih),-1,360)',colorchannelmixer=aa=0.3[p2];"
        "[m1][p2]overlay=x=W-w+0:y=0+0:eof_action=repeat:enable='between(t,1,3)'[v1]"
    )


def test_a_mark_of_the_end_counts_from_there():
    command = f"avthumb/mp4/an/1/ss/1/t/4/wmText/{encode_text('x')}/wmPos/$(end)/wmDuration/-1.5"
    assert ":enable='gte(t,2.5)'" in args_of(command)
    assert ":enable='gte(t,0)'" in args_of(command.replace("-1.5", "-60"))
    with pytest.raises(FopFailed, match="length"):
        args_of(command.replace("/t/4", ""), msgspec.structs.replace(BUNNY, duration_s=None))


def test_a_texts_parameters_may_stand_in_front_of_it():
    spec = parse_avthumb(f"mp4/wmGravityText/West/wmFontSize/400/wmText/{encode_text('x')}".split("/"))
    assert spec.marks == (TextMark(text="x", place=Place(gravity="West"), size_px=20.0),)


@pytest.mark.parametrize(
    "command",
    [
        "avthumb", "avthumb/", "avthumb/exe", "avthumb/mp4/vb", "avthumb/mp4/vb/fast", "avthumb/mp4/vb/-5", "avthumb/mp4/vb/5g",
        "avthumb/mp4/vcodec/libvorbis", "avthumb/webm/vcodec/libx264", "avthumb/mp3/vcodec/libx264", "avthumb/mp4/acodec/pcm_s16le",
        "avthumb/mp4/s/x", "avthumb/mp4/s/10x10", "avthumb/mp4/s/99999x10", "avthumb/mp4/s/640:360", "avthumb/mp4/r/0",
        "avthumb/mp4/r/1e9", "avthumb/mp4/t/0", "avthumb/mp4/ss/nan", "avthumb/mp4/ss/-1", "avthumb/mp4/rotate/45",
        "avthumb/mp4/an/yes", "avthumb/mp4/an/1/vn/1", "avthumb/mp3/an/1", "avthumb/gif/vn/1", "avthumb/mp4/crf/20/vb/1m",
        "avthumb/mp4/crf/64", "avthumb/flv/crf/20", "avthumb/mp4/gop/3001", "avthumb/mp3/aq/10", "avthumb/mp3/aq/2/ab/64k",
        "avthumb/wav/aq/2", "avthumb/mp4/h264Profile/best", "avthumb/mp4/vcodec/libx265/h264Profile/main", "avthumb/mp4/aspect/0:1",
        "avthumb/mp4/vcodec/copy/s/640x360", "avthumb/mp4/acodec/copy/ab/64k", "avthumb/mp4/segtime/5", "avthumb/m3u8/segtime/1",
        "avthumb/m3u8/segtime/121", "avthumb/m3u8/noDomain/2", f"avthumb/m3u8/noDomain/1/domain/{encode_text('a.example')}",
        f"avthumb/m3u8/domain/{encode_text('a b')}", f"avthumb/m3u8/pattern/{encode_text('no count')}",
        f"avthumb/m3u8/hlsKey/{encode_text('short')}", f"avthumb/m3u8/hlsKey/{encode_text('0123456789abcdef')}",
        f"avthumb/m3u8/hlsKeyUrl/{encode_text('https://k.example')}",
        f"avthumb/m3u8/hlsKey/{encode_text('0123456789abcdef')}/hlsKeyUrl/{encode_text('https://k.example')}/hlsKeyType/1.0",
        f"avthumb/m3u8/hlsKey/{encode_text('0123456789abcdef')}/hlsKeyUrl/{encode_text(chr(10) + '/etc/passwd')}",
        "avthumb/m3u8/segtime/15/video_250k", "avthumb/m3u8/preset/fast", "avthumb/mp3/preset/video_240k", "avthumb/video_240k",
        "avthumb/mp4/scodec/ass", "avthumb/webm/scodec/mov_text", "avthumb/mp4/scodec/mov_text/sn/1", "avthumb/amr", f"avthumb/mp3/subtitle/{encode_text('u')}",
        f"avthumb/mp4/vcodec/copy/subtitle/{encode_text('u')}", "avthumb/mp4/subtitle/!", "avthumb/mp4/avsmart/1", "avthumb/mp4/wmGravity/North", "avthumb/mp4/wmImage/!",
        f"avthumb/mp4/wmText/{encode_text('x')}/wmPos/$(end)", f"avthumb/mp4/wmText/{encode_text('x')}/wmPos/$(end)/wmDuration/2",
        f"avthumb/mp4/wmText/{encode_text('x')}/wmPos/1/wmDuration/-2",
        f"avthumb/mp4/wmText/{encode_text('x')}/wmGravity/Up", f"avthumb/mp4/wmText/{encode_text('')}",
        f"avthumb/mp4/wmText/{encode_text('x')}/wmFont/{encode_text('a:file=/etc/passwd')}",
        f"avthumb/mp4/wmText/{encode_text('x')}/wmFontColor/{encode_text('red@0:x=1')}", f"avthumb/mp3/wmText/{encode_text('x')}",
    ],
)  # fmt: skip
def test_a_wrong_command_is_told_what_is_wrong(command):
    with pytest.raises(BadCommand) as told:
        parse_avthumb(command.split("/")[1:])
    assert str(told.value).startswith("avthumb: ")


@pytest.mark.parametrize(
    ("wanted", "autoscale", "source", "size"),
    [
        (None, False, (1280, 720), (1280, 720)),
        (None, False, (641, 427), (640, 426)),
        (None, False, (1, 1), (2, 2)),
        (Size(640, 640), False, (1280, 720), (640, 640)),
        (Size(641, 361), False, (1280, 720), (640, 360)),
        (Size(640, 640), True, (1280, 720), (640, 360)),
        (Size(2560, 2560), True, (1280, 720), (2560, 1440)),
        (Size(640, None), False, (1280, 720), (640, 360)),
        (Size(None, 360), False, (1280, 720), (640, 360)),
        (Size(2000, 2000, ">"), False, (1280, 720), (1280, 720)),
        (Size(640, 640, ">"), False, (1280, 720), (640, 360)),
        (Size(640, 640, "<"), False, (1280, 720), (1280, 720)),
        (Size(2560, 2560, "<"), False, (1280, 720), (2560, 1440)),
        (Size(20, 20), True, (8000, 20), (20, 2)),
    ],
)
def test_sizes_are_even(wanted, autoscale, source, size):
    assert output_size(wanted, autoscale, *source) == size


@pytest.mark.parametrize(
    ("text", "bps"), [("128k", 128_000), ("1.25m", 1_250_000), ("5M", 5_000_000), ("64000", 64_000), ("64K", 64_000)]
)
def test_rates(text, bps):
    assert parse_rate(text, "vb") == bps


def test_what_the_source_lacks_is_a_failure_of_the_item():
    for command, media in (
        ("avthumb/mp3", SILENT),
        ("avthumb/gif", SOUND),
        ("avthumb/mp4/ss/60", SOUND),
        ("avthumb/mp4/vn/1", SILENT),
    ):
        with pytest.raises(FopFailed):
            spec = parse_avthumb([*command.split("/")[1:], *(["t", "1"] if "ss" in command else [])])
            thumb_args(spec, media, "/in", "/out", (), pixels_max=1)


# --- frames ------------------------------------------------------------------------------------------------------------


def test_vframe_is_these_arguments():
    spec = parse_vframe(["jpg", "offset", "1.5", "w", "320", "rotate", "90"])
    assert " ".join(vframe_args(spec, BUNNY, "/in", "/out", pixels_max=1_000_000)) == (
        f"-ss 1.5 {MOV} -map 0:0 -vf transpose=clock,scale=320:569,setsar=1 -frames:v 1 -an -sn -dn "
        "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p -f image2pipe file:/out"
    )


def test_vsample_is_these_arguments():
    spec = parse_vsample(f"png/ss/1/t/4/s/320x/interval/0.5/savePattern/{encode_text('$(count)')}".split("/"))
    assert " ".join(vsample_args(spec, BUNNY, "/in", pixels_max=1_000_000)) == (
        f"-ss 1 {MOV} -t 4 -map 0:0 -vf select='gte(t,selected_n*0.5)',scale=320:180,setsar=1 -fps_mode vfr -frames:v 1001 "
        "-an -sn -dn -c:v png -f image2 sample-%d"
    )
    spread = parse_vsample(f"png/ss/1/t/4/frames/8/pattern/{encode_text('$(count)')}".split("/"))
    assert "-vf select='gte(t,selected_n*0.5)' -fps_mode vfr -frames:v 8 " in " ".join(
        vsample_args(spread, BUNNY, "/in", pixels_max=1)
    )


@pytest.mark.parametrize(
    ("size", "made"), [(None, (1280, 720)), (Size(100, None), (100, 56)), (Size(None, 100), (178, 100)), (Size(99, 99), (99, 99))]
)
def test_a_pictures_size(size, made):
    assert picture_size(size, 1280, 720) == made


@pytest.mark.parametrize(
    ("parse", "args"),
    [
        (parse_vframe, "jpg"), (parse_vframe, "gif/offset/1"), (parse_vframe, "jpg/offset/x"), (parse_vframe, "jpg/offset/1/w/0"),
        (parse_vframe, "jpg/offset/1/w/9999"), (parse_vframe, "jpg/offset/1/q/5"), (parse_vsample, "jpg"),
        (parse_vsample, f"jpg/pattern/{encode_text('a')}"), (parse_vsample, f"jpg/pattern/{encode_text('$(count)')}/frames/0"),
        (parse_vsample, f"jpg/pattern/{encode_text('$(count)')}/frames/5/interval/1"),
        (parse_vsample, f"jpg/pattern/{encode_text('$(count)')}/interval/0.01"),
        (parse_vsample, f"jpg/pattern/{encode_text('$(count)$(count)')}"),
    ],
)  # fmt: skip
def test_wrong_frames_are_told(parse, args):
    with pytest.raises(BadCommand):
        parse(args.split("/"))


# --- concat, playlists -------------------------------------------------------------------------------------------------


def test_avconcat_copies_by_a_list_of_its_own():
    spec = parse_avconcat(f"1/format/mp4/index/2/{encode_text('kodo://b/x')}".split("/"))
    assert (spec.mode, spec.index, spec.urls) == (1, 2, ("kodo://b/x",))
    assert " ".join(copy_args(spec, [BUNNY, BUNNY], "/out", pixels_max=1)) == (
        "-protocol_whitelist file,pipe -format_whitelist concat,mov -max_pixels 1 -f concat -safe 1 -i file:parts.txt "
        "-map 0:0 -map 0:1 -c copy -movflags +faststart -f mp4 file:/out"
    )


def test_avconcat_gives_every_part_the_same_shape():
    spec = parse_avconcat(f"2/format/mp4/{encode_text('kodo://b/x')}".split("/"))
    args = join_args(spec, [BUNNY, SILENT], ["/in", "/in"], "/out", pixels_max=1_000_000)
    fit = "scale=1280:720:force_original_aspect_ratio=decrease,pad=1280:720:-1:-1,setsar=1,format=yuv420p"
    same = "aresample=48000,aformat=sample_fmts=fltp:channel_layouts=stereo"
    assert " ".join(args) == (
        f"{MOV} {MOV} -filter_complex [0:0]fps=25,{fit}[v0];[0:1]{same}[a0];[1:0]fps=25,{fit}[v1];"
        f"anullsrc=r=48000:cl=stereo,atrim=duration=10,{same}[a1];[v0][a0][v1][a1]concat=n=2:v=1:a=1[v][a] "
        "-map [v] -c:v libx264 -pix_fmt yuv420p -map [a] -c:a aac -b:a 128000 -ar 48000 -movflags +faststart -f mp4 file:/out"
    )


@pytest.mark.parametrize(
    "args",
    [
        "", "3/format/mp4/YQ==", "mode/2/format/mp4/YQ==", "2/YQ==", "2/format/mp4", "2/format/gif/YQ==", "2/format/mp4/!!",
        "2/format/mp4/index/3/YQ==", "1/format/mp4/s/640x360/YQ==", "2/format/mp4/" + "/".join(["YQ=="] * 21),
    ],
)  # fmt: skip
def test_a_wrong_avconcat_is_told(args):
    with pytest.raises(BadCommand, match="avconcat"):
        parse_avconcat(args.split("/"))


@pytest.mark.parametrize(
    ("playlist", "key", "reference"),
    [
        ("out/b.m3u8", "seg-000000", "../seg-000000"),
        ("out/b.m3u8", "out/000000.ts", "000000.ts"),
        ("b.m3u8", "a/b/000000.ts", "a/b/000000.ts"),
        ("b.m3u8", "a b#?.ts", "a%20b%23%3F.ts"),
        ("b.m3u8", "x:y.ts", "./x:y.ts"),
        ("a//b.m3u8", "c.ts", "/c.ts"),
        ("a/b/c.m3u8", "a/b", "../b"),
        ("a/b.m3u8", "a", "../a"),
    ],
)
def test_a_segment_is_found_from_its_playlist(playlist, key, reference):
    assert relative_to(playlist, key) == reference


def test_a_pattern_is_filled_once():
    assert fill_pattern("$(keybase)-$(count)$(ext)", 7, "in/a$(count).b.mp4") == "a$(count).b-000007.mp4"
    assert fill_pattern("$(key)/$(count)", 1_234_567, "in/x") == "in/x/1234567"


# --- ffprobe -----------------------------------------------------------------------------------------------------------


def test_a_phones_video_is_as_it_is_shown_and_a_cover_is_no_video():
    turned = {
        "format": {"format_name": "mov,mp4,m4a,3gp,3g2,mj2", "duration": "3.5"},
        "streams": [
            {"index": 0, "codec_type": "video", "codec_name": "mjpeg", "width": 9, "height": 9, "disposition": {"attached_pic": 1}},
            {"index": 2, "codec_type": "video", "codec_name": "hevc", "width": 1920, "height": 1080, "avg_frame_rate": "0/0",
             "r_frame_rate": "30000/1001", "side_data_list": [{"rotation": -90}]},
        ],
    }  # fmt: skip
    assert read_media(turned) == Media(
        demuxer="mov", duration_s=3.5, video=Video(index=2, codec="hevc", width=1080, height=1920, fps=Fraction(30000, 1001))
    )


def test_a_default_command_asks_for_nothing():
    assert parse_avthumb(["mp4"]) == AvThumb(format="mp4")
