"""Pictures as libvips makes them: sizes, formats, pixels, orientation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pyvips
from photo_house import LIMITS, animation, color_at, do, jpeg_with_exif, like, look, photo, quarters, with_exif

from milepost.work.media.commands import BadCommand, FopFailed
from milepost.work.media.encode import corrected_quality, source_quality
from milepost.work.media.exif import tags_of
from milepost.work.media.grammar import encode_text
from milepost.work.media.pictures import parse_watermark
from milepost.work.media.raster import sniff
from milepost.work.media.spec import PictureLimits

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
CHINA = photo("china.jpg")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("command", "format_", "size"),
    [
        ("imageView2/1/w/200/h/200", "jpeg", (200, 200)),
        ("imageView2/2/w/200/format/png", "png", (200, 133)),
        ("imageView2/0/w/300/h/100", "jpeg", (150, 100)),
        ("imageView2/4/w/300/h/300", "jpeg", (450, 300)),
        ("imageView2/3/w/200", "jpeg", (300, 200)),
        ("imageView2/5/w/300/h/200", "jpeg", (300, 200)),
        ("imageView2/1/w/4000/h/4000", "jpeg", (640, 427)),
        ("imageView2/0", "jpeg", (640, 427)),
        ("imageView/2/w/200/format/webp", "webp", (200, 133)),
        ("imageView/1/w/100/h/80", "jpeg", (100, 80)),
        ("imageMogr2/thumbnail/!200x200r/gravity/Center/crop/200x200", "jpeg", (200, 200)),
        ("imageMogr2/crop/!300x300a30-100", "jpeg", (300, 200)),
        ("imageMogr2/rotate/90/background/cmVk", "jpeg", (427, 640)),
        ("imageMogr2/auto-orient/thumbnail/!50p/rotate/180/format/avif", "avif", (320, 214)),
        ("imageMogr2/thumbnail/700x", "jpeg", (700, 467)),
        ("imageMogr2/thumbnail/100x100!/thumbnail/!200p", "jpeg", (200, 200)),
        ("imageMogr2/crop/100x100/thumbnail/50x", "jpeg", (50, 50)),
        ("imageMogr2/thumbnail/50x/crop/100x100", "jpeg", (50, 33)),
        ("imageMogr2/border/10x5/bordercolor/cmVk", "jpeg", (660, 437)),
        ("imageMogr2/extent/700x500/background/cmVk", "jpeg", (700, 500)),
        ("imageMogr2/blur/3x2/sharpen/1", "jpeg", (640, 427)),
        ("imageMogr2/format/gif/colors/16", "gif", (640, 427)),
        ("imageMogr2/format/tiff", "tiff", (640, 427)),
        ("imageMogr2/format/bmp", "bmp", (640, 427)),
        ("imageMogr2/rotate/360", "jpeg", (640, 427)),
    ],
)
def test_format_and_size(command, format_, size, out):
    done = do(command, CHINA, out)
    assert done.mime_type == f"image/{format_}"
    assert sniff(str(out)) == format_
    if format_ == "bmp":
        assert do("imageInfo", out, out).result["width"] == 640
        return
    image = look(out)
    assert (image.width, image.height) == size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "command", ["imageView2/2/w/40/format/png", "imageMogr2/auto-orient/format/png", "imageView2/0/format/png"]
)
def test_a_picture_is_turned_as_its_orientation_says(orientation, command, tmp_path, out):
    source = quarters(tmp_path / "in.jpg", 160, 120, orientation=orientation, Q=95)
    upright = look(source).autorot()
    do(command, source, out)
    made = look(out)
    assert (made.width > made.height) == (upright.width > upright.height)
    for across in (0.25, 0.75):
        for down in (0.25, 0.75):
            expected = upright.getpoint(int(across * upright.width), int(down * upright.height))
            seen = color_at(out, int(across * made.width), int(down * made.height))
            assert like(seen, tuple(round(value) for value in expected), 30)


def test_image_mogr2_keeps_the_stored_pixels_without_auto_orient(tmp_path, out):
    source = quarters(tmp_path / "in.jpg", 160, 120, orientation=6, Q=95)
    do("imageMogr2/thumbnail/80x", source, out)
    assert (look(out).width, look(out).height) == (80, 60)
    assert look(out).get("orientation") == 6


def test_keys_are_done_in_the_order_written(tmp_path, out):
    source = quarters(tmp_path / "in.png")
    do("imageMogr2/gravity/SouthEast/crop/40x30/rotate/90", source, out)
    assert like(color_at(out, 15, 20), BLUE)
    do("imageMogr2/rotate/90/gravity/SouthEast/crop/30x40", source, out)
    assert like(color_at(out, 15, 20), GREEN)  # what was at the top right


def test_gravity_counts_for_the_crops_behind_it(tmp_path, out):
    source = quarters(tmp_path / "in.png")
    do("imageMogr2/crop/40x30/gravity/SouthEast", source, out)
    assert like(color_at(out, 20, 15), RED)


def test_rotating_fills_the_corners(tmp_path, out):
    source = quarters(tmp_path / "in.png")
    do("imageMogr2/rotate/45/background/Z3JlZW4=/format/png", source, out)
    assert like(color_at(out, 2, 2), (0, 128, 0))
    do("imageMogr2/rotate/45/format/png", source, out)
    assert like(color_at(out, 2, 2), WHITE)
    do(f"imageMogr2/rotate/45/background/{encode_text('transparent')}/format/png", source, out)
    assert color_at(out, 2, 2)[3] == 0


def test_a_border_has_its_colour_and_gray_is_the_services_own(tmp_path, out):
    source = quarters(tmp_path / "in.png")
    do(f"imageMogr2/border/5x5/bordercolor/{encode_text('gray')}", source, out)
    assert color_at(out, 2, 2) == [0x7E, 0x7E, 0x7E]


def test_what_is_clear_becomes_white_in_jpeg(tmp_path, out):
    clear = look(quarters(tmp_path / "in.png"))
    clear = clear.bandjoin(clear[0] * 0)
    clear.write_to_file(str(tmp_path / "clear.png"))
    do("imageView2/0/format/jpg", tmp_path / "clear.png", out)
    assert like(color_at(out, 10, 10), WHITE, 3)


def test_grey_pictures_take_coloured_canvases(tmp_path, out):
    look(CHINA).colourspace("b-w").write_to_file(str(tmp_path / "grey.jpg"))
    do("imageMogr2/extent/700x500/background/cmVk/format/png", tmp_path / "grey.jpg", out)
    assert like(color_at(out, 3, 3), RED)
    do("imageMogr2/extent/700x500", tmp_path / "grey.jpg", out)
    assert look(out).bands == 1


def test_a_cmyk_photo_can_be_changed(tmp_path, out):
    look(CHINA).colourspace("cmyk").write_to_file(str(tmp_path / "cmyk.jpg"))
    assert do("imageInfo", tmp_path / "cmyk.jpg", out).result["colorModel"] == "cmyk"
    do("imageView2/2/w/100/format/png", tmp_path / "cmyk.jpg", out)
    assert look(out).bands == 3
    assert (look(out).width, look(out).height) == (100, 67)


# --- saving --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [1, 20, 49, 50, 75, 90, 91, 95, 100])
def test_the_quality_of_a_jpeg_is_read_from_its_tables(quality, tmp_path):
    look(CHINA).write_to_file(str(tmp_path / "in.jpg"), Q=quality)
    assert source_quality(str(tmp_path / "in.jpg")) == quality


@pytest.mark.parametrize(
    ("asked", "source", "shrunk", "used"),
    [
        (75, None, 4.0, 75),
        (75, 60, 1.0, 60),  # nothing is gained above the source's
        (75, 40, 2.25, 60),
        (95, 80, 4.0, 90),  # at most 90
        (95, 96, 1.0, 95),
        (100, 96, 4.0, 100),
        (75, 60, 0.25, 30),  # enlarged
        (75, 1, 0.0001, 1),
    ],
)
def test_the_quality_is_corrected_by_the_sources_and_by_how_much_it_was_shrunk(asked, source, shrunk, used):
    assert corrected_quality(asked, source, shrunk) == used


@pytest.mark.parametrize(
    ("command", "used"),
    [
        ("imageView2/0", 50),
        ("imageView2/0/q/90", 50),
        ("imageView2/0/q/30", 30),
        ("imageView2/0/q/90!", 90),
        ("imageMogr2/quality/80!", 80),
        ("imageView2/2/w/320", 75),
    ],
)
def test_the_quality_that_is_used(command, used, tmp_path, out):
    look(CHINA).write_to_file(str(tmp_path / "in.jpg"), Q=50)
    do(command, tmp_path / "in.jpg", out)
    assert source_quality(str(out)) == used


def test_interlace_makes_a_progressive_jpeg(out):
    do("imageView2/2/w/200/interlace/1", CHINA, out)
    assert b"\xff\xc2" in out.read_bytes()
    do("imageView2/2/w/200", CHINA, out)
    assert b"\xff\xc2" not in out.read_bytes()


@pytest.mark.parametrize(("format_", "colors"), [("gif", 8), ("gif", 256), ("png", 2), ("png", 8), ("png", 256)])
def test_no_more_colours_than_asked(format_, colors, out):
    do(f"imageMogr2/thumbnail/100x/format/{format_}/colors/{colors}", CHINA, out)
    image = look(out)
    seen = {tuple(image.getpoint(x, y)[:3]) for x in range(0, image.width, 2) for y in range(0, image.height, 2)}
    assert 1 < len(seen) <= colors


def test_strip_drops_what_the_camera_wrote(tmp_path, out):
    source = with_exif(tmp_path / "in.jpg")
    do("imageMogr2/thumbnail/100x", source, out)
    assert look(out).get_typeof("exif-data")
    do("imageMogr2/thumbnail/100x/strip", source, out)
    assert not look(out).get_typeof("exif-data")


@pytest.mark.parametrize("command", ["imageMogr2/density/96", "imageMogr2/strip/density/96"])
def test_density_is_written(command, tmp_path, out):
    do(command, with_exif(tmp_path / "in.jpg"), out)
    assert look(out).xres * 25.4 == pytest.approx(96, abs=0.5)
    assert ("exif-ifd0-Make" in look(out).get_fields()) == ("strip" not in command)


def test_a_size_limit_lowers_the_quality_until_it_fits(out):
    do("imageMogr2/size-limit/30k", CHINA, out)
    small = out.stat().st_size
    assert small <= 30 << 10
    quality = source_quality(str(out))
    out.unlink()
    do(f"imageMogr2/quality/{quality + 1}!", CHINA, out)
    assert out.stat().st_size > 30 << 10  # the best that fits
    out.unlink()
    do("imageMogr2/size-limit/100", CHINA, out)  # nothing fits: as small as can be
    assert source_quality(str(out)) == 1


def test_a_size_limit_with_a_mark_gives_the_source_when_nothing_was_won(tmp_path, out):
    look(CHINA).write_to_file(str(tmp_path / "in.jpg"), Q=1)
    assert do("imageMogr2/thumbnail/1280x/size-limit/$(fsize)!", tmp_path / "in.jpg", out).unchanged
    assert do("imageMogr2/size-limit/$(fsize)!", CHINA, out).mime_type == "image/jpeg"


def test_a_size_limit_is_for_jpeg(out):
    with pytest.raises(FopFailed, match="format/jpeg"):
        do("imageMogr2/format/png/size-limit/10k", CHINA, out)


# --- animations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["gif", "webp"])
@pytest.mark.parametrize(
    ("command", "size"),
    [
        ("imageView2/2/w/20", (20, 15)),
        ("imageMogr2/thumbnail/!200p", (80, 60)),
        ("imageMogr2/rotate/90", (30, 40)),
        ("imageMogr2/crop/10x10", (10, 10)),
        ("imageMogr2/border/2x2/bordercolor/cmVk", (44, 34)),
    ],
)
def test_all_frames_of_an_animation_are_changed(format_, command, size, tmp_path, out):
    colors = [RED, GREEN, BLUE]
    source = animation(tmp_path / f"in.{format_}", colors, **({"Q": 100} if format_ == "webp" else {}))
    do(command, source, out)
    roll = look(out, n=-1)
    assert roll.get("n-pages") == 3
    assert (roll.width, roll.get("page-height")) == size
    for number, color in enumerate(colors):
        middle = roll.getpoint(roll.width // 2, number * size[1] + size[1] // 2)
        assert like([round(value) for value in middle], color, 25)
    assert roll.get("delay") == [100] * 3


def test_the_first_frame_is_a_still_picture(tmp_path, out):
    source = animation(tmp_path / "in.gif", [RED, GREEN])
    do("imageView2/0/format/png", source, out)
    assert look(out).height == 30
    assert like(color_at(out, 5, 5), RED)


def test_marks_are_drawn_on_every_frame(tmp_path, out):
    source = animation(tmp_path / "in.gif", [RED, GREEN])
    mark = quarters(tmp_path / "mark.png", 10, 10)
    do(f"watermark/1/image/{encode_text('kodo://media/mark.png')}/gravity/NorthWest/dx/0/dy/0", source, out, marks=[mark])
    roll = look(out, n=-1)
    assert roll.get("n-pages") == 2
    for number in range(2):
        assert like([round(value) for value in roll.getpoint(8, number * 30 + 8)], BLUE, 25)


def test_blur_is_not_for_gif(tmp_path, out):
    with pytest.raises(FopFailed, match="gif"):
        do("imageMogr2/blur/3x5", animation(tmp_path / "in.gif", [RED, GREEN]), out)


# --- marks and corners ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gravity", "at"),
    [("NorthWest", (10, 10)), ("NorthEast", (610, 10)), ("SouthWest", (10, 397)), ("SouthEast", (610, 397)), ("", (610, 397))],
)
def test_a_mark_stands_in_its_corner(gravity, at, tmp_path, out):
    mark = quarters(tmp_path / "mark.png", 20, 20)
    keys = f"/gravity/{gravity}" if gravity else ""
    do(f"watermark/1/image/{encode_text('x')}{keys}/format/png", CHINA, out, marks=[mark])
    assert (look(out).width, look(out).height) == (640, 427)
    for dx, dy, color in ((2, 2, RED), (17, 2, GREEN), (17, 17, BLUE), (2, 17, WHITE)):
        assert like(color_at(out, at[0] + dx, at[1] + dy), color)
    untouched = look(CHINA).getpoint(300, 200)
    assert like(color_at(out, 300, 200), tuple(round(value) for value in untouched), 2)


@pytest.mark.parametrize(("wst", "size"), [(0, (37, 25)), (1, (25, 17)), (2, (25, 17)), (3, (37, 25))])
def test_a_mark_is_scaled_by_the_picture(wst, size, tmp_path, out):
    """The example of dcloudio/unidocs-zh: a source of 250×250, a mark of 91×61, ws 0.1."""
    ground = pyvips.Image.black(250, 250, bands=3).copy(interpretation="srgb")
    ground.write_to_file(str(tmp_path / "in.png"))
    white = (pyvips.Image.black(91, 61, bands=3) + 255).cast("uchar").copy(interpretation="srgb")
    white.write_to_file(str(tmp_path / "mark.png"))
    keys = f"ws/0.1/wst/{wst}/gravity/NorthWest/dx/0/dy/0"
    do(f"watermark/1/image/{encode_text('x')}/{keys}", tmp_path / "in.png", out, marks=[tmp_path / "mark.png"])
    left, top, wide, high = look(out).find_trim(background=[0, 0, 0])
    assert (left, top, wide, high) == (0, 0, *size)


def test_dissolve_lets_the_picture_through(tmp_path, out):
    mark = quarters(tmp_path / "mark.png", 100, 100)
    black = pyvips.Image.black(200, 200, bands=3).copy(interpretation="srgb")
    black.write_to_file(str(tmp_path / "in.png"))
    do(f"watermark/1/image/{encode_text('x')}/dissolve/50/gravity/NorthWest/dx/0/dy/0", tmp_path / "in.png", out, marks=[mark])
    assert like(color_at(out, 10, 10), (128, 0, 0), 3)


def test_a_mark_larger_than_the_picture_leaves_the_source(tmp_path, out):
    mark = quarters(tmp_path / "mark.png", 700, 100)
    assert do(f"watermark/1/image/{encode_text('x')}", CHINA, out, marks=[mark]).unchanged


def test_a_text_is_drawn_in_its_colour_and_size(tmp_path, out):
    black = pyvips.Image.black(900, 200, bands=3).copy(interpretation="srgb")
    black.write_to_file(str(tmp_path / "in.png"))
    text = encode_text("<b>Hi & 你好</b>")
    heights = {}
    for twips in (400, 1000):
        do(f"watermark/2/text/{text}/fontsize/{twips}/fill/cmVk/gravity/NorthWest", tmp_path / "in.png", out)
        left, top, _, heights[twips] = look(out).find_trim(background=[0, 0, 0])
        assert left >= 8
        assert top >= 8
        assert look(out)[0].max() > 200
        assert look(out)[1].max() == look(out)[2].max() == 0
    assert heights[1000] == pytest.approx(heights[400] * 2.5, rel=0.25)
    assert heights[1000] < 75


def tiled(path: Path, out: Path, keys: str = "") -> Any:
    """What `watermark/4` adds to a white picture of 300 by 200: how dark each pixel is, 0 to 255."""
    do(f"watermark/4/text/{encode_text('HI')}{keys}", path, out)
    return 255 - look(out).colourspace("b-w")


@pytest.fixture
def white(tmp_path: Path) -> Path:
    path = tmp_path / "white.png"
    (pyvips.Image.black(300, 200, bands=3) + 255).cast("uchar").copy(interpretation="srgb").pngsave(str(path))
    return path


def test_a_tiled_text_stands_in_the_middle_of_every_cell(white: Path, tmp_path: Path) -> None:
    ink = tiled(white, tmp_path / "out")
    assert (ink.width, ink.height) == (300, 200)
    cell = ink.crop(0, 0, 100, 100)
    for left in (0, 100, 200):
        for top in (0, 100):
            assert (ink.crop(left, top, 100, 100) - cell).abs().max() == 0
    left, top, wide, high = cell.find_trim(threshold=20, background=0)
    assert cell.max() > 200, "black, when no colour is said"
    assert 5 < wide < 40
    assert 5 < high < 20
    assert abs(left + wide / 2 - 50) < 3
    assert abs(top + high / 2 - 50) < 4


def test_a_tiles_cell_has_its_own_size_and_scale(white: Path, tmp_path: Path) -> None:
    narrow = tiled(white, tmp_path / "a", "/uw/50/uh/40")
    assert (narrow.crop(0, 0, 50, 40) - narrow.crop(50, 40, 50, 40)).abs().max() == 0
    assert narrow.avg() > 3 * tiled(white, tmp_path / "b").avg()
    twice = tiled(white, tmp_path / "c", "/uw/50/uh/50/resize/2")
    _, _, wide, _ = twice.crop(0, 0, 100, 100).find_trim(threshold=20, background=0)
    _, _, once, _ = narrow.crop(0, 0, 50, 40).find_trim(threshold=20, background=0)
    assert abs(wide - 2 * once) < 6
    grown = tiled(white, tmp_path / "d", "/uw/1/uh/1/fontsize/800")
    _, _, wide, high = grown.crop(0, 0, 70, 60).find_trim(threshold=20, background=0)
    assert wide > 25, "no text is cut"
    assert high > 20


def test_a_tiled_text_is_turned_coloured_and_see_through(white: Path, tmp_path: Path) -> None:
    upright = tiled(white, tmp_path / "a", "/fontsize/400/rotate/90").crop(0, 0, 100, 100)
    _, _, wide, high = upright.find_trim(threshold=20, background=0)
    assert high > wide + 4
    left = tiled(white, tmp_path / "b", "/fontsize/400/rotate/-45").crop(0, 0, 100, 100)
    right = tiled(white, tmp_path / "c", "/fontsize/400/rotate/45").crop(0, 0, 100, 100)
    assert (left - right).abs().max() > 100
    assert tiled(white, tmp_path / "d", "/dissolve/50").max() < 140
    do(f"watermark/4/text/{encode_text('HI')}/fill/cmVk/fontsize/900", white, tmp_path / "e")
    assert look(tmp_path / "e").crop(0, 0, 300, 200)[0].min() > 250, "red ink leaves the red of white as it is"
    assert look(tmp_path / "e")[1].min() < 20


@pytest.mark.parametrize(
    "text",
    [
        "watermark/4/image/eA==", "watermark/4/text/eA==/gravity/North", "watermark/4/text/eA==/dx/1",
        "watermark/4/text/eA==/uw/0", "watermark/4/text/eA==/rotate/181", "watermark/4/text/eA==/resize/0.05",
        "watermark/4/text/eA==/text/eA==", "watermark/2/text/eA==/uw/9", "watermark/5/text/eA==", "watermark/6/method/decode",
    ],
)  # fmt: skip
def test_what_is_no_tiled_text_is_refused(text: str) -> None:
    with pytest.raises(BadCommand):
        parse_watermark(text.split("/")[1:])


def test_several_marks_are_drawn_in_their_order(tmp_path, out):
    mark = quarters(tmp_path / "mark.png", 20, 20)
    image, text = encode_text("x"), encode_text("hello")
    corner = "gravity/NorthWest/dx"
    command = f"watermark/3/image/{image}/{corner}/0/dy/0/text/{text}/gravity/Center/image/{image}/{corner}/5/dy/0"
    do(f"{command}/format/png", CHINA, out, marks=[mark, mark, mark])
    assert like(color_at(out, 2, 2), RED)
    assert like(color_at(out, 7, 2), RED)  # the later one over the first one's green
    assert like(color_at(out, 22, 2), GREEN)


def test_round_corners_are_clear_and_the_output_is_png(out):
    done = do("roundPic/radius/50", CHINA, out)
    assert done.mime_type == "image/png"
    image = look(out)
    assert (image.width, image.height, image.bands) == (640, 427, 4)
    for x, y in ((0, 0), (639, 0), (0, 426), (639, 426)):
        assert image.getpoint(x, y)[3] == 0
    for x, y in ((320, 0), (0, 213), (320, 213), (50, 50), (15, 15)):
        assert image.getpoint(x, y)[3] == (255 if (x, y) != (15, 15) else image.getpoint(15, 15)[3])
    assert 0 < image.getpoint(14, 15)[3] <= 255


def test_half_the_side_makes_an_ellipse(tmp_path, out):
    do("roundPic/radiusx/!50p/radiusy/!50p", quarters(tmp_path / "in.png", 200, 100), out)
    alpha = look(out)[3]
    assert alpha.avg() / 255 == pytest.approx(3.14159 / 4, abs=0.01)


def test_round_corners_are_for_jpeg_and_png(tmp_path, out):
    with pytest.raises(FopFailed, match="gif"):
        do("roundPic/radius/5", animation(tmp_path / "in.gif", [RED]), out)


@pytest.mark.parametrize("command", ["imageslim", "imageslim/zlevel/9"])
def test_slim_makes_fewer_bytes_of_the_same_picture(command, tmp_path, out):
    look(CHINA).write_to_file(str(tmp_path / "in.png"))
    for source in (CHINA, tmp_path / "in.png"):
        out.unlink(missing_ok=True)
        assert do(command, source, out).mime_type == ("image/png" if source.suffix == ".png" else "image/jpeg")
        assert out.stat().st_size < source.stat().st_size
        assert (look(out).width, look(out).height) == (640, 427)
        difference = (look(out)[0:3] - look(source)[0:3]).abs().avg()
        assert difference < 6


def test_slim_leaves_what_cannot_be_made_smaller(tmp_path, out):
    source = quarters(tmp_path / "in.png", 40, 30)
    do("imageslim", source, tmp_path / "slim.png")
    assert do("imageslim", tmp_path / "slim.png", out).unchanged


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_slim_picture_is_held_as_the_camera_was_and_tells_nothing_else(suffix, tmp_path, out):
    image = look(CHINA).copy()
    image.set_type(pyvips.GValue.gint_type, "orientation", 6)
    image.set_type(pyvips.GValue.gstr_type, "exif-ifd0-Model", "Phone (Phone, ASCII, 6 components, 6 bytes)")
    image.write_to_file(str(tmp_path / f"in{suffix}"), **({"Q": 95} if suffix == ".jpg" else {}))
    assert not do("imageslim", tmp_path / f"in{suffix}", out).unchanged
    assert (look(out).width, look(out).get("orientation")) == (640, 6)
    assert not look(out).get_typeof("exif-ifd0-Model")


# --- answers -------------------------------------------------------------------------------------------------


def test_image_info_of_a_photo(out):
    assert do("imageInfo", CHINA, out).result == {
        "size": CHINA.stat().st_size,
        "format": "jpeg",
        "width": 640,
        "height": 427,
        "colorModel": "ycbcr",
    }


def test_image_info_of_other_pictures(tmp_path, out):
    gif = do("imageInfo", animation(tmp_path / "a.gif", [RED, GREEN, BLUE]), out).result
    assert (gif["format"], gif["width"], gif["height"], gif["frameNumber"], gif["colorModel"]) == ("gif", 40, 30, 3, "palette16")
    png = do("imageInfo", quarters(tmp_path / "q.png"), out).result
    assert (png["format"], png["colorModel"]) == ("png", "nrgba")
    look(CHINA).colourspace("b-w").write_to_file(str(tmp_path / "g.jpg"))
    assert do("imageInfo", tmp_path / "g.jpg", out).result["colorModel"] == "gray"


@pytest.mark.parametrize(("number", "word"), [(1, "Top-left"), (3, "Bottom-right"), (6, "Right-top"), (8, "Left-bottom")])
def test_the_orientation_is_told_in_words(number, word, tmp_path, out):
    source = quarters(tmp_path / "in.jpg", orientation=number)
    answer = do("imageInfo", source, out).result
    assert answer["orientation"] == word
    assert (answer["width"], answer["height"]) == (80, 60)  # as stored


def test_exif_is_told_with_types_and_text(tmp_path, out):
    answer = do("exif", with_exif(tmp_path / "in.jpg"), out).result
    assert answer["DateTime"] == {"type": 2, "val": "2011:11:19 17:09:23"}
    assert answer["ExposureTime"] == {"type": 5, "val": "1/50 sec."}
    assert all(isinstance(one["val"], str) and isinstance(one["type"], int) for one in answer.values())


def test_exif_is_told_in_words_and_nothing_is_made_up(tmp_path, out):
    (tmp_path / "in.jpg").write_bytes(jpeg_with_exif(Orientation=6, ExposureProgram=2, MeteringMode=5, Flash=16, Model="A (b) c"))
    assert do("exif", tmp_path / "in.jpg", out).result == {
        "Model": {"type": 2, "val": "A (b) c"},
        "Orientation": {"type": 3, "val": "Right-top"},
        "ExposureProgram": {"type": 3, "val": "Normal program"},
        "MeteringMode": {"type": 3, "val": "Pattern"},
        "Flash": {"type": 3, "val": "Flash did not fire, compulsory flash mode"},
    }


def test_exif_without_a_word_for_a_value_tells_the_number(tmp_path, out):
    (tmp_path / "in.jpg").write_bytes(jpeg_with_exif(Orientation=99))
    assert do("exif", tmp_path / "in.jpg", out).result == {"Orientation": {"type": 3, "val": "99"}}


@pytest.mark.parametrize(
    "data", [b"", b"Exif\0\0", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\x08\0\0\0\0\0\x08\0\0\0", bytes(50)]
)
def test_directories_that_are_broken_or_go_round_end(data):
    assert list(tags_of(data)) == []


def test_no_exif_is_said(out):
    with pytest.raises(FopFailed, match=r"^no exif data$"):
        do("exif", CHINA, out)


def test_the_mean_colour(tmp_path, out):
    assert do("imageAve", quarters(tmp_path / "in.png"), out).result == {"RGB": "0x808080"}
    plain = animation(tmp_path / "a.png", [(0x85, 0x69, 0x4D)])
    assert do("imageAve", plain, out).result == {"RGB": "0x85694d"}


# --- limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits",
    [
        PictureLimits(side_max=639, pixels_max=10**9, frames_max=1),
        PictureLimits(side_max=10**5, pixels_max=640 * 427 - 1, frames_max=1),
    ],
)
def test_a_picture_over_the_limits_is_refused_by_its_header(limits, out):
    with pytest.raises(FopFailed, match="image too large"):
        do("imageView2/2/w/10", CHINA, out, limits=limits)


def test_an_animation_with_too_many_frames_is_refused(tmp_path, out):
    source = animation(tmp_path / "in.gif", [RED, GREEN, BLUE])
    with pytest.raises(FopFailed, match="too many frames: 3"):
        do("imageInfo", source, out, limits=PictureLimits(side_max=100, pixels_max=10**6, frames_max=2))
    with pytest.raises(FopFailed, match="image too large"):
        do("imageInfo", source, out, limits=PictureLimits(side_max=100, pixels_max=40 * 30 * 2, frames_max=9))


@pytest.mark.parametrize(
    "command",
    [
        "imageMogr2/thumbnail/9999x9999!",
        "imageMogr2/thumbnail/!999p/thumbnail/!999p",
        "imageMogr2/extent/9999x9999",
        "imageMogr2/thumbnail/x9999/format/avif",
        "imageMogr2/border/9999x9999",
    ],
)
def test_a_result_over_the_limits_is_refused_before_it_is_made(command, out):
    with pytest.raises(FopFailed, match="image too large"):
        do(command, CHINA, out)
    assert not out.exists()


def test_a_crop_outside_of_the_picture_is_said(out):
    with pytest.raises(FopFailed, match="outside"):
        do("imageMogr2/crop/!10x10a700a0", CHINA, out)


def test_the_limits_here_are_those_of_the_settings():
    from milepost.settings import Settings

    assert PictureLimits.from_settings(Settings()) == LIMITS


@pytest.mark.parametrize(
    "tail",
    ["format/bmp", "format/gif", "format/png/colors/16", "format/webp", "format/avif", "format/tiff", "rotate/33",
     "format/jpg/size-limit/200k",
     "extent/3000x3000", "border/9x9", "blur/9x9/sharpen/1", "thumbnail/500x/rotate/90", "gravity/SouthEast/crop/100x100",
     "thumbnail/!150p/crop/!99x99a5a900"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_large_picture_is_read_in_whatever_order_it_is_needed(tail, kind, tmp_path, out):
    look(CHINA).resize(2).write_to_file(str(tmp_path / f"in.{kind}"))
    assert do(f"imageMogr2/{tail}", tmp_path / f"in.{kind}", out).mime_type
    assert do("imageAve", out, tmp_path / "none").result["RGB"].startswith("0x")


@pytest.mark.parametrize(
    "command", ["roundPic/radius/99", "watermark/2/text/aGk=", "imageslim", "imageAve", "imageView2/1/w/900/h/900"]
)
def test_large_pictures_go_through_every_command(command, tmp_path, out):
    for kind in ("jpg", "png"):
        look(CHINA).resize(2).write_to_file(str(tmp_path / f"in.{kind}"))
        assert do(command, tmp_path / f"in.{kind}", out)
