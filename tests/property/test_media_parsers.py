"""Whatever is written: a value that can be run, or BadCommand with a sentence; and what is written back is read as the same."""

from __future__ import annotations

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from milepost.work.media import pictures  # noqa: F401  (registers its commands)
from milepost.work.media.commands import COMMANDS, BadCommand
from milepost.work.media.geometry import Crop, Thumbnail, View, parse_crop, parse_extent, parse_thumbnail
from milepost.work.media.grammar import (
    BadFop,
    SaveAs,
    automatic_key,
    decode_bytes,
    decode_entry,
    decode_text,
    encode_entry,
    encode_text,
    parse_fop,
    split_fops,
)
from milepost.work.media.spec import Spec

PICTURES = ("imageInfo", "exif", "imageAve", "imageView2", "imageView", "imageMogr2", "watermark", "roundPic", "imageslim")
WORDS = [
    "w",
    "h",
    "q",
    "format",
    "interlace",
    "colors",
    "ignore-error",
    "auto-orient",
    "strip",
    "thumbnail",
    "gravity",
    "crop",
    "rotate",
    "blur",
    "sharpen",
    "extent",
    "border",
    "background",
    "bordercolor",
    "size-limit",
    "density",
    "quality",
    "image",
    "text",
    "font",
    "fontsize",
    "fill",
    "dissolve",
    "dx",
    "dy",
    "ws",
    "wst",
    "radius",
    "radiusx",
    "radiusy",
    "zlevel",
    "0",
    "1",
    "2",
    "3",
    "5",
    "75",
    "80!",
    "200",
    "!75p",
    "!50x50r",
    "200x300>",
    "300x",
    "jpg",
    "png",
    "Center",
    "SouthEast",
    "cmVk",
    "Z3JlZW4=",
    "YQ",
    "a29kbzovL20vaw==",
    "3x2",
    "$(fsize)!",
    "10k",
    "saveas",
    "sign",
]

odd = st.text(max_size=12)
word = st.sampled_from(WORDS)
segment = st.builds(lambda name, args: "/".join([name, *args]), st.sampled_from(PICTURES) | odd, st.lists(word | odd, max_size=9))
fop_text = st.lists(segment, min_size=1, max_size=4).map("|".join)


@settings(max_examples=500)
@given(st.text() | fop_text)
@example("imageMogr2/thumbnail/" + "9" * 5000 + "x")
@example("imageMogr2/rotate/-0")
@example("watermark/3/" + "text/YQ/" * 30)
def test_any_text_is_a_fop_or_a_bad_fop(text):
    try:
        fop = parse_fop(text)
    except BadFop as error:
        assert str(error)
        assert error.index >= 0
        return
    assert fop.steps
    assert len(automatic_key(fop.text, "hash").split("/")[0]) == 28
    assert parse_fop(fop.text).steps == fop.steps


@given(st.text())
def test_any_text_is_split(text):
    try:
        commands = split_fops(text)
    except BadCommand:
        return
    assert all(command and ";" not in command for command in commands)


@settings(max_examples=300)
@given(st.sampled_from(PICTURES), st.lists(word | odd, max_size=10))
def test_a_spec_goes_to_a_child_and_is_the_same_there(name, args):
    try:
        spec = COMMANDS[name].parse(args)
    except BadCommand:
        return
    assert msgspec.json.decode(msgspec.json.encode(spec), type=Spec) == spec


@given(st.text())
def test_text_survives_base64_with_and_without_padding(text):
    try:
        encoded = encode_text(text)
    except UnicodeEncodeError:
        return
    assert decode_text(encoded) == decode_text(encoded.rstrip("=")) == text


@given(st.text())
def test_any_text_is_base64_or_refused(text):
    try:
        decode_bytes(text)
    except BadCommand as error:
        assert str(error)


@given(
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters=":"), min_size=1, max_size=40),
    st.none() | st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=100),
)
def test_an_entry_leads_where_it_was_written_for(bucket, key):
    assert decode_entry(encode_entry(bucket, key)) == SaveAs(bucket, key)


sides = st.none() | st.integers(1, 9999)
sizes = st.integers(1, 30_000)
MARKS = {"fit": "", "cover": "^", "exact": "!", "shrink": ">", "enlarge": "<"}


def written(one: Thumbnail) -> str:
    side = lambda value: "" if value is None else str(value)  # noqa: E731
    match one.how:
        case "percent":
            return f"!{one.width}p"
        case "percent_width":
            return f"!{one.width}px"
        case "percent_height":
            return f"!x{one.height}p"
        case "area":
            return f"{one.width}@"
    return f"{side(one.width)}x{side(one.height)}{MARKS[one.how]}"


percents = st.integers(1, 999)
thumbnails = (
    percents.map(lambda p: Thumbnail("percent", p, p))
    | percents.map(lambda p: Thumbnail("percent_width", p))
    | percents.map(lambda p: Thumbnail("percent_height", None, p))
    | st.integers(1, 24_999_999).map(lambda area: Thumbnail("area", area))
    | st.builds(Thumbnail, st.sampled_from(list(MARKS)), sides, sides).filter(lambda t: t.width or t.height)
)


@given(thumbnails)
def test_a_thumbnail_that_is_written_is_read_as_the_same(one):
    assert parse_thumbnail(written(one)) == one


@given(thumbnails, sizes, sizes)
def test_a_thumbnail_has_at_least_a_pixel_and_keeps_its_promise(one, wide, high):
    to_wide, to_high = one.size_of(wide, high)
    assert min(to_wide, to_high) >= 1
    match one.how:
        case "exact":
            assert (to_wide, to_high) == (one.width or wide, one.height or high)
        case "fit" | "shrink":
            if one.how == "fit" or (to_wide, to_high) != (wide, high):
                assert to_wide <= (one.width or to_wide)
                assert to_high <= (one.height or to_high)
        case "cover":
            assert to_wide >= (one.width or 0) - 1
            assert to_high >= (one.height or 0) - 1
        case "enlarge":
            assert to_wide >= wide
            assert to_high >= high


crops = st.builds(
    Crop, sides, sides, st.integers(-9999, 9999), st.integers(-9999, 9999), st.sampled_from(["NorthWest", "Center", "SouthEast"])
).filter(lambda c: c.width or c.height)


@given(crops, sizes, sizes)
def test_a_crop_is_read_as_written_and_stays_inside(one, wide, high):
    text = f"!{one.width or ''}x{one.height or ''}" + "".join(f"{'a' if d >= 0 else '-'}{abs(d)}" for d in (one.dx, one.dy))
    assert parse_crop(text, one.gravity) == one
    box = one.box_of(wide, high)
    if box is not None:
        left, top, cut_wide, cut_high = box
        assert left >= 0
        assert top >= 0
        assert cut_wide >= 1
        assert cut_high >= 1
        assert left + cut_wide <= wide
        assert top + cut_high <= high


@given(st.integers(0, 5), sides, sides, sizes, sizes)
def test_image_view2_never_enlarges_and_its_box_is_inside(mode, w, h, wide, high):
    scaled, box = View(mode, w, h).size_of(wide, high)
    assert 1 <= scaled[0] <= wide
    assert 1 <= scaled[1] <= high
    assert 1 <= box[0] <= scaled[0]
    assert 1 <= box[1] <= scaled[1]


@given(st.text(max_size=20) | st.text("0123456789x!apr<>@^%+-", max_size=14))
def test_any_text_is_a_geometry_or_refused(text):
    for parse in (parse_thumbnail, parse_crop, parse_extent):
        try:
            parse(text)
        except BadCommand as error:
            assert str(error)
