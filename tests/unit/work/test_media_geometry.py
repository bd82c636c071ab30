"""Golden sizes.  Those of 640×427 marked OLD are printed in qiniu/developer.qiniu.com imageview2.md and imagemogr2.md."""

from __future__ import annotations

import pytest

from milepost.work.media.commands import BadCommand
from milepost.work.media.geometry import (
    Crop,
    Extent,
    View,
    decode_geometry,
    parse_crop,
    parse_extent,
    parse_gravity,
    parse_thumbnail,
    place,
)

WIDE, HIGH = 640, 427


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("!75p", (480, 320)),  # OLD
        ("!75px", (480, 427)),  # by the table; the caption of the sample says otherwise
        ("!x75p", (640, 320)),
        ("75%", (480, 320)),
        ("700x", (700, 467)),  # OLD
        ("x467", (700, 467)),  # OLD
        ("300x300", (300, 200)),
        ("!200x200r", (300, 200)),
        ("200x200^", (300, 200)),
        ("200x300!", (200, 300)),
        ("200x!", (200, 427)),
        ("200x300>", (200, 133)),  # OLD
        ("700x600>", (640, 427)),
        ("700x300>", (450, 300)),
        ("700x600<", (700, 467)),  # OLD
        ("700x300<", (640, 427)),
        ("200x300<", (640, 427)),
        ("350000@", (724, 483)),
        ("1000@", (38, 25)),
        ("!1p", (6, 4)),
        ("1x1", (1, 1)),
        ("1x", (1, 1)),
        ("9999x", (9999, 6671)),
        ("1000x1000", (1000, 667)),
    ],
)
def test_thumbnail(text, size):
    assert parse_thumbnail(text).size_of(WIDE, HIGH) == size


@pytest.mark.parametrize("area", [1, 7, 1000, 12_345, 350_000, 1_000_003, 24_999_999])
@pytest.mark.parametrize("size", [(640, 427), (427, 640), (1, 3000), (5, 5)])
def test_an_area_is_never_exceeded(area, size):
    wide, high = parse_thumbnail(f"{area}@").size_of(*size)
    assert wide * high <= area or (wide, high).count(1) >= 1


@pytest.mark.parametrize(
    "text",
    ["", "x", "!", "0x100", "100x0", "10000x", "x10000", "!0p", "!1000p", "0@", "25000000@", "100", "100x100x", "100x100>>",
     "-5x5", "1e3x", "!100x100a1a1", "75p", "١x١", "100x100!!", " 100x", "100x\n"],
)  # fmt: skip
def test_what_is_no_thumbnail_is_refused(text):
    with pytest.raises(BadCommand):
        parse_thumbnail(text)


@pytest.mark.parametrize(
    ("text", "gravity", "box"),
    [
        ("!300x300a30a100", "NorthWest", (30, 100, 300, 300)),  # OLD
        ("!300x300a30-100", "NorthWest", (30, 0, 300, 200)),  # OLD
        ("!300x300-30a100", "NorthWest", (0, 100, 270, 300)),  # OLD
        ("!300x300-30-100", "NorthWest", (0, 0, 270, 200)),  # OLD
        ("300x", "NorthWest", (0, 0, 300, 427)),  # OLD
        ("x200", "NorthWest", (0, 0, 640, 200)),  # OLD
        ("300x0", "NorthWest", (0, 0, 300, 427)),
        ("!300x400-10a10", "NorthWest", (0, 10, 290, 400)),  # OLD
        ("300x300+30+100", "NorthWest", (30, 100, 300, 300)),
        ("!100x100a10a20", "SouthEast", (530, 307, 100, 100)),
        ("100x100", "SouthEast", (540, 327, 100, 100)),
        ("100x100", "Center", (270, 163, 100, 100)),
        ("!100x100a10a20", "Center", (280, 183, 100, 100)),
        ("100x100", "North", (270, 0, 100, 100)),
        ("100x100", "NorthEast", (540, 0, 100, 100)),
        ("100x100", "West", (0, 163, 100, 100)),
        ("100x100", "East", (540, 163, 100, 100)),
        ("100x100", "SouthWest", (0, 327, 100, 100)),
        ("100x100", "South", (270, 327, 100, 100)),
        ("!100x100a10a20", "NorthEast", (530, 20, 100, 100)),
        ("!100x100-10-20", "SouthEast", (550, 347, 90, 80)),
        ("9999x9999", "Center", (0, 0, 640, 427)),
        ("!10x10a640a0", "NorthWest", None),
        ("!10x10-10a0", "NorthWest", None),
    ],
)
def test_crop(text, gravity, box):
    assert parse_crop(text, gravity).box_of(WIDE, HIGH) == box


@pytest.mark.parametrize(
    "text", ["", "x", "0x0", "!300x300a30", "300x300+30", "10000x", "!300x300", "300", "a300x300", "300x300!"]
)
def test_what_is_no_crop_is_refused(text):
    if text == "!300x300":
        assert parse_crop(text) == Crop(300, 300)
        return
    with pytest.raises(BadCommand):
        parse_crop(text)


@pytest.mark.parametrize(
    ("mode", "w", "h", "size", "scaled", "box"),
    [
        (0, 300, 100, (640, 427), (150, 100), (150, 100)),
        (0, 300, None, (640, 427), (300, 200), (300, 200)),
        (0, None, 100, (640, 427), (150, 100), (150, 100)),
        (0, 300, 100, (427, 640), (100, 150), (100, 150)),
        (1, 200, 200, (640, 427), (300, 200), (200, 200)),  # OLD
        (1, 200, None, (640, 427), (300, 200), (200, 200)),
        (1, None, 200, (640, 427), (300, 200), (200, 200)),
        (1, 200, 100, (640, 427), (200, 133), (200, 100)),
        (1, 200, 200, (100, 300), (100, 300), (100, 200)),  # never enlarged: the box is clipped
        (1, 2000, 2000, (640, 427), (640, 427), (640, 427)),
        (2, 200, None, (640, 427), (200, 133), (200, 133)),  # OLD
        (2, None, 200, (640, 427), (300, 200), (300, 200)),  # OLD
        (2, 200, 300, (640, 427), (200, 133), (200, 133)),
        (2, 1000, 1000, (640, 427), (640, 427), (640, 427)),
        (3, 200, 200, (640, 427), (300, 200), (300, 200)),
        (3, 200, None, (640, 427), (300, 200), (300, 200)),
        (3, 320, 100, (640, 427), (320, 214), (320, 214)),
        (4, 300, 300, (640, 427), (450, 300), (450, 300)),
        (4, 300, 200, (427, 640), (200, 300), (200, 300)),
        (4, 300, None, (427, 640), (300, 450), (300, 450)),
        (5, 300, 200, (427, 640), (200, 300), (200, 300)),
        (5, 300, 200, (640, 427), (300, 200), (300, 200)),
        (5, 300, 100, (427, 640), (200, 300), (100, 300)),
        (5, 300, None, (640, 427), (450, 300), (300, 300)),
        *((mode, None, None, (640, 427), (640, 427), (640, 427)) for mode in range(6)),
    ],
)
def test_image_view2(mode, w, h, size, scaled, box):
    assert View(mode, w, h).size_of(*size) == (scaled, box)


@pytest.mark.parametrize(
    ("text", "extent", "canvas"),
    [
        ("700x500", Extent(700, 500), (30, 36, 700, 500)),
        ("!700x500a3a4", Extent(700, 500, 3, 4), (3, 4, 700, 500)),
        ("700x", Extent(700), (30, 0, 700, 427)),
        ("!-3a0", Extent(add=(3, 0, 0, 0)), (3, 0, 643, 427)),
        ("!a3-0", Extent(add=(0, 3, 0, 0)), (0, 0, 643, 427)),
        ("!a0-3", Extent(add=(0, 0, 3, 0)), (0, 3, 640, 430)),
        ("!-0a3", Extent(add=(0, 0, 0, 3)), (0, 0, 640, 430)),
    ],
)
def test_extent(text, extent, canvas):
    assert parse_extent(text) == extent
    assert extent.canvas_of(WIDE, HIGH) == canvas


def test_escapes_are_undone_only_behind_an_exclamation_mark():
    assert decode_geometry("!200x200r") == "200x200^"
    assert decode_geometry("!300x300a30-100") == "300x300+30-100"
    assert decode_geometry("200x200r") == "200x200r"


def test_gravity_is_read_in_any_case():
    assert parse_gravity("center") == "Center"
    assert parse_gravity("SOUTHEAST") == "SouthEast"
    with pytest.raises(BadCommand):
        parse_gravity("Centre")


def test_offsets_go_inward_from_edges_and_right_and_down_from_the_middle():
    assert place("NorthWest", 100, 100, 10, 10, 5, 6) == (5, 6)
    assert place("SouthEast", 100, 100, 10, 10, 5, 6) == (85, 84)
    assert place("Center", 100, 100, 10, 10, 5, 6) == (50, 51)
    assert place("North", 100, 100, 10, 10, 5, 6) == (50, 6)
