"""Damaged and hostile files on a whole server: each fails its item with a reason, and the next photo is done as always."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from media_house import MediaHouse, media_house
from photo_house import animation, look, photo

from milepost.work.media.tools import workshop

CHINA = photo("china.jpg")
COMMANDS = (
    "imageInfo",
    "exif",
    "imageAve",
    "imageView2/2/w/100",
    "imageMogr2/auto-orient/thumbnail/!50p/rotate/30/format/webp",
    "roundPic/radius/10",
    "imageslim",
    "watermark/2/text/aGk=",
)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))


def png(wide: int, high: int, data: bytes) -> bytes:
    head = struct.pack("!IIBBBBB", wide, high, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_that_says(wide: int, high: int) -> bytes:
    """The photo, whose header says another size."""
    data = bytearray(CHINA.read_bytes())
    at = next(at for mark in (b"\xff\xc0", b"\xff\xc2") if (at := data.find(mark)) > 0)
    data[at + 5 : at + 9] = struct.pack("!HH", high, wide)
    return bytes(data)


def hostile_files(folder: Path) -> dict[str, bytes]:
    """By name; all of them must fail a change of the picture."""
    photo_bytes = CHINA.read_bytes()
    secret = folder / "secret.png"
    look(CHINA).write_to_file(str(secret))
    animation(folder / "a.gif", [(255, 0, 0), (0, 255, 0)])
    gif = (folder / "a.gif").read_bytes()
    look(CHINA).write_to_file(str(folder / "a.webp"))
    webp = (folder / "a.webp").read_bytes()
    look(CHINA).write_to_file(str(folder / "a.tif"))
    tiff = (folder / "a.tif").read_bytes()
    bomb = zlib.compress(bytes(50_000_000), 9)
    noise = os.urandom(5000)
    uri = secret.as_uri()
    return {
        "empty": b"",
        "one byte": b"\xff",
        "noise": noise,
        "text named jpg": b"this is no picture\n" * 100,
        "jpeg cut in the middle": photo_bytes[: len(photo_bytes) // 2],
        "jpeg cut in its header": photo_bytes[:200],
        "jpeg of a head and noise": photo_bytes[:600] + noise,
        "jpeg of 65500 x 65500": jpeg_that_says(65_500, 65_500),
        "jpeg of 20000 x 7000": jpeg_that_says(20_000, 7_000),
        "jpeg of 0 x 0": jpeg_that_says(0, 0),
        "png bomb": png(30_000, 30_000, bomb),
        "png of 2^31": png(2**31 - 1, 2**31 - 1, bomb),
        "png without data": png(100, 100, b""),
        "png of the wrong sum": secret.read_bytes()[:-20] + b"x" * 20,
        "png cut": secret.read_bytes()[:30_000],
        "gif of 65535 x 65535": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + gif[10:],
        "gif without frames": gif[:13] + b";",
        "webp cut": webp[: len(webp) // 2],
        "webp of nothing": b"RIFF\x10\0\0\0WEBPVP8L\x04\0\0\0\x2f\xff\xff\xff",
        "tiff cut": tiff[:3000],
        "tiff with a loop": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "heif of nothing": b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + noise,
        "bmp cut": b"BM" + struct.pack("<IIIIiiHHI", 100, 0, 54, 40, 100, 100, 1, 24, 0) + bytes(20),
        "bmp of 2^31": b"BM" + struct.pack("<IIIIiiHHI", 100, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24, 0) + bytes(20),
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"><image href="{uri}"/></svg>'.encode(),
        "svg with an entity": f'<!DOCTYPE x [<!ENTITY e SYSTEM "{uri}">]><svg width="9" height="9">&e;</svg>'.encode(),
        "xml bomb": b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">]><svg>&b;</svg>',
        "imagemagick script": b"push graphic-context\nfill 'url(https://127.0.0.1/x.jpg\"|id\")'\npop graphic-context",
        "imagemagick caption": b"caption:@/etc/passwd",
        "pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>",
        "postscript": b"%!PS\n(/etc/passwd) (r) file",
        "ppm": b"P6\n9 9\n255\n" + bytes(243),
        "vips's own": b"\xb6\xa6\xf2\x08" + bytes(200),
        "csv": b"1,2,3\n4,5,6\n",
        "zip": b"PK\x03\x04" + noise,
        "html with a picture behind": b"<html><script>1</script></html>" + photo_bytes,
        "hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n" + bytes(4),
    }


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[MediaHouse]:
    async with media_house(tmp_path, picture_cpu_s=20, media_wall_s=30) as opened:
        yield opened


async def test_hostile_files_fail_their_items_and_nothing_else(house, tmp_path):
    files = hostile_files(tmp_path)
    jobs = {}
    for number, (name, data) in enumerate(files.items()):
        await house.put(f"hostile/{number}", data, mime="image/jpeg")
        jobs[name] = await house.submit(*COMMANDS, key=f"hostile/{number}")
    answers_allowed = {"imageInfo", "exif"}  # a header may be whole where the pixels are not
    # libjpeg takes data that ends early for a warning, and libnsgif goes by the frames where the screen's size is absurd.
    readable = {"jpeg of 20000 x 7000", "gif of 65535 x 65535"}
    wrong = []
    for name, job in jobs.items():
        for cmd, item in zip(COMMANDS, await house.ended(job, 120), strict=True):
            if item.state == "succeeded":
                if cmd == "imageslim":  # by its rule the source, when it cannot be read
                    assert await house.find(_key(item)) is not None
                elif cmd not in answers_allowed and name not in readable:
                    wrong.append((name, cmd, item.result))
                continue
            error = item.error
            said = error.code == "fop_failed" and error.message and error.details == {"error_index": 0}
            crashed = item.attempt > 1  # of ours
            if not said or crashed or str(tmp_path) in error.message:
                wrong.append((name, cmd, error))
    assert not wrong
    assert (await house.result("imageView2/2/w/100"))["key"]


def _key(item) -> str:
    import msgspec

    return msgspec.json.decode(item.result)["key"]


async def test_a_polyglot_is_what_its_first_bytes_say(house):
    await house.put("polyglot", CHINA.read_bytes() + b"<script>alert(1)</script>" + b"PK\x03\x04" + bytes(1000))
    await house.put("wrong.png", CHINA, mime="image/png")
    for key in ("polyglot", "wrong.png"):
        found = await house.result("imageView2/2/w/100", key=key)
        stored = (await house.find(found["key"])).object
        assert stored.mime_type == "image/jpeg"
        assert b"script" not in await house.read(found["key"])


async def test_a_command_that_needs_more_memory_than_it_may_fails(tmp_path):
    async with media_house(tmp_path, picture_memory_bytes=1 << 28) as house:
        look(CHINA).resize(20).write_to_file(str(tmp_path / "big.png"), compression=1)
        await house.put("big", tmp_path / "big.png")
        message, index = await house.failure("imageMogr2/rotate/31", key="big")
        assert message
        assert index == 0
        assert (await house.result("imageView2/2/w/100"))["key"]


async def test_a_command_that_takes_too_much_processor_time_is_stopped(tmp_path):
    async with media_house(tmp_path, picture_cpu_s=1) as house:
        await house.result("imageInfo")
        look(CHINA).resize(16).write_to_file(str(tmp_path / "big.jpg"))
        await house.put("big", tmp_path / "big.jpg")
        message, _ = await house.failure(
            "imageMogr2/rotate/180/blur/50x50/blur/50x50/sharpen/1/thumbnail/5000x/format/avif", key="big"
        )
        assert "processor time" in message


async def test_a_command_that_takes_too_long_is_stopped(tmp_path):
    async with media_house(tmp_path, media_wall_s=0.5) as house:
        look(CHINA).resize(16).write_to_file(str(tmp_path / "big.jpg"))
        await house.put("big", tmp_path / "big.jpg")
        message, _ = await house.failure(
            "imageMogr2/rotate/180/blur/50x50/blur/50x50/sharpen/1/thumbnail/5000x/format/avif", key="big"
        )
        assert "longer than it may" in message


async def test_an_output_file_that_is_too_large_is_not_written(tmp_path):
    async with media_house(tmp_path, media_file_bytes_max=1 << 20) as house:
        look(CHINA).resize(4).write_to_file(str(tmp_path / "big.jpg"))
        await house.put("big", tmp_path / "big.jpg")
        message, _ = await house.failure("imageMogr2/format/bmp", key="big")
        assert "larger file" in message
        assert await house.store.list_resources("loose") == []


async def test_a_file_that_is_too_large_is_not_read(tmp_path):
    async with media_house(tmp_path, picture_bytes_max=100_000) as house:
        message, _ = await house.failure("imageInfo")
        assert message == "image too large: 196653 bytes, at most 100000 are read"


async def test_children_see_no_secret(house, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    await house.result("imageInfo")
    pid = workshop(house.system.settings).forks.pid
    assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
