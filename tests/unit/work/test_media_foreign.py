"""Pictures that libvips cannot open: HEIC as phones write it, PSD, and BMP of all sorts, made by other programs' writers."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from photo_house import LIMITS, color_at, do, like, look, photo
from PIL import Image

from milepost.work.media.commands import FopFailed
from milepost.work.media.spec import PictureLimits

pillow_heif = pytest.importorskip("pillow_heif")
CHINA = photo("china.jpg")
RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def halves(path: Path, *, wide: int = 64, high: int = 32, exif: bytes | None = None) -> Path:
    """Red on the left, blue on the right, as HEIC."""
    image = Image.new("RGB", (wide, high), RED)
    image.paste(BLUE, (wide // 2, 0, wide, high))
    made = pillow_heif.from_pillow(image)
    if exif is not None:
        made.info["exif"] = exif
    made.save(path, quality=95)
    return path


def exif_of(orientation: int) -> bytes:
    image = Image.new("RGB", (1, 1)).getexif()
    image[0x0112], image[0x0110] = orientation, "Phone"
    return b"Exif\0\0" + image.tobytes().removeprefix(b"Exif\0\0")


def psd(path: Path, wide: int = 20, high: int = 10, mode: int = 3) -> Path:
    """A Photoshop file without layers: its picture in planes, uncompressed."""
    planes = {3: [255, 0, 0], 1: [128], 4: [255, 0, 0, 255]}[mode]
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, len(planes), high, wide, 8, mode) + bytes(12)
    path.write_bytes(header + bytes(2) + b"".join(bytes([value]) * (wide * high) for value in planes))
    return path


@pytest.mark.parametrize(
    ("command", "mime", "size"),
    [
        ("imageView2/1/w/100/h/100", "image/jpeg", (100, 100)),
        ("imageMogr2/thumbnail/!50p", "image/jpeg", (320, 214)),
        ("imageView2/2/w/200/format/webp", "image/webp", (200, 133)),
        ("imageView2/2/w/200/format/copy", "image/heic", (200, 133)),
    ],
)
def test_a_heic_photo_is_made_smaller_and_becomes_a_jpeg_unless_asked(command, mime, size, tmp_path, out):
    pillow_heif.from_pillow(Image.open(CHINA)).save(tmp_path / "in.heic", quality=80)
    assert do(command, tmp_path / "in.heic", out).mime_type == mime
    made = pillow_heif.open_heif(out).to_pillow() if mime == "image/heic" else Image.open(out)
    assert made.size == size
    reference = Image.open(CHINA).convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    assert like(list(made.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))), reference)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_heic_photo_stands_as_its_container_says_and_is_turned_once(orientation, tmp_path, out):
    source = halves(tmp_path / "in.heic", exif=exif_of(orientation))
    shown = pillow_heif.open_heif(source).to_pillow()
    for command in ("imageView2/0/format/png", "imageMogr2/format/png", "imageMogr2/auto-orient/format/png"):
        out.unlink(missing_ok=True)
        do(command, source, out)
        assert (look(out).width, look(out).height) == shown.size
        assert like(color_at(out, 4, 4), shown.getpixel((4, 4)), 30)


@pytest.mark.parametrize("command", ["imageMogr2/format/heic", "imageMogr2/auto-orient/format/heic", "imageView2/0/format/heic"])
def test_a_photo_that_lies_is_a_heic_that_stands(command, tmp_path, out):
    image = Image.new("RGB", (64, 32), RED)
    image.paste(BLUE, (32, 0, 64, 32))
    image.save(tmp_path / "in.jpg", exif=exif_of(6), quality=95)
    do(f"{command}/quality/90" if "Mogr2" in command else f"{command}/q/90", tmp_path / "in.jpg", out)
    shown = pillow_heif.open_heif(out).to_pillow()
    assert shown.size == (32, 64)
    assert like(list(shown.getpixel((16, 8))), RED, 30)
    assert like(list(shown.getpixel((16, 56))), BLUE, 30)


def test_what_a_phone_wrote_is_told_and_can_be_stripped(tmp_path, out):
    source = halves(tmp_path / "in.heic", exif=exif_of(1))
    assert do("exif", source, out).result["Model"] == {"type": 2, "val": "Phone"}
    info = do("imageInfo", source, out).result
    assert (info["format"], info["width"], info["height"], info["colorModel"]) == ("heic", 64, 32, "ycbcr")
    do("imageMogr2/format/heic", source, out)
    assert b"Phone" in out.read_bytes()
    do("imageMogr2/strip/format/heic", source, out)
    assert b"Phone" not in out.read_bytes()


@pytest.mark.parametrize("mode", [3, 1, 4])
def test_a_photoshop_file_is_read_as_it_looks(mode, tmp_path, out):
    assert do("imageView2/2/w/10", psd(tmp_path / "in.psd", mode=mode), out).mime_type == "image/jpeg"
    assert (look(out).width, look(out).height) == (10, 5)
    if mode == 3:
        assert like(color_at(out, 5, 2), RED)
    assert do("imageInfo", tmp_path / "in.psd", out).result["format"] == "psd"


@pytest.mark.parametrize("mode", ["P", "1", "L"])
def test_a_bmp_of_few_colours_is_read(mode, tmp_path, out):
    Image.open(CHINA).convert(mode).save(tmp_path / "in.bmp")
    do("imageView2/2/w/64/format/png", tmp_path / "in.bmp", out)
    assert (look(out).width, look(out).height) == (64, 43)


@pytest.mark.parametrize("format", ["heic", "psd"])
def test_limits_count_before_anything_is_decoded(format, tmp_path, out):
    source = halves(tmp_path / "in") if format == "heic" else psd(tmp_path / "in", 64, 32)
    with pytest.raises(FopFailed, match="too large"):
        do("imageView2/0", source, out, limits=PictureLimits(side_max=63, pixels_max=10**6, frames_max=9))
    with pytest.raises(FopFailed, match="too large"):
        do("imageView2/0", source, out, limits=PictureLimits(side_max=1000, pixels_max=2047, frames_max=9))


def _hostile(tmp_path: Path) -> dict[str, bytes]:
    heic, other = halves(tmp_path / "h").read_bytes(), psd(tmp_path / "p").read_bytes()
    return {
        "half a heic": heic[: len(heic) // 2],
        "a heic of its first box": heic[:40],
        "a heic with noise for its pixels": heic[:-200] + bytes(range(200)),
        "half a psd": other[:100],
        "a psd of its header": other[:26],
        "a psd of 2^31 pixels": other[:14] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + other[22:],
        "a bmp of runs that ends": b"BM" + struct.pack("<IIIIiiHHI", 100, 0, 54, 40, 100, 100, 1, 8, 1) + bytes(20),
        "a bmp of 2^31": b"BM" + struct.pack("<IIIIiiHHI", 100, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 8, 0) + bytes(20),
    }


@pytest.mark.parametrize("name", ["half a heic", "a heic of its first box", "a heic with noise for its pixels", "half a psd", "a psd of its header", "a psd of 2^31 pixels", "a bmp of runs that ends", "a bmp of 2^31"])  # fmt: skip  # noqa: E501
def test_what_is_broken_is_a_failure_and_no_other_error(name, tmp_path, out):
    (tmp_path / "in").write_bytes(_hostile(tmp_path)[name])
    if name == "a heic with noise for its pixels":  # a decoder may make a picture of it
        try:
            do("imageView2/2/w/10", tmp_path / "in", out)
        except FopFailed:
            pass
        return
    with pytest.raises(FopFailed):
        do("imageView2/2/w/10", tmp_path / "in", out)


@pytest.mark.parametrize(("format", "package"), [("heic", "pillow_heif"), ("psd", "PIL")])
def test_a_missing_package_is_named(format, package, tmp_path, out, monkeypatch):
    source = halves(tmp_path / "in") if format == "heic" else psd(tmp_path / "in")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FopFailed, match="lacks the package pillow"):
        do("imageView2/0", source, out, limits=LIMITS)


def test_neither_is_opened_by_another_reader(tmp_path: Path, out: Path, monkeypatch: Any) -> None:
    (tmp_path / "in").write_bytes(b"8BPS" + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(FopFailed):
        do("imageInfo", tmp_path / "in", out)
