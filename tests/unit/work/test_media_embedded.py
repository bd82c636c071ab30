"""Commands behind a URL that stands inside of a command."""

from __future__ import annotations

import pytest
from media_house import media_house
from photo_house import color_at, like, look
from test_media_animate import plain

from milepost.work.media.grammar import encode_text
from milepost.work.media.tools import commands_behind

RED, GREEN = (255, 0, 0), (0, 128, 0)


def mark(url: str) -> str:
    return f"watermark/1/image/{encode_text(url)}/gravity/NorthWest/dx/0/dy/0"


@pytest.fixture
async def house(tmp_path):
    async with media_house(tmp_path) as opened:
        await opened.put("logo.png", plain(tmp_path / "logo.png", RED, 40, 40))
        yield opened


async def test_an_object_is_processed_before_it_is_used(house, tmp_path):
    made = await house.result(mark("kodo://media/logo.png?imageMogr2/crop/20x10|imageMogr2/thumbnail/!200p"))
    (tmp_path / "out").write_bytes(await house.read(made["key"]))
    assert like(color_at(tmp_path / "out", 36, 16), RED, 40)
    assert not like(color_at(tmp_path / "out", 45, 16), RED, 40)
    assert not like(color_at(tmp_path / "out", 36, 24), RED, 40)


async def test_so_is_one_that_is_named_by_an_address_with_a_token(house, tmp_path):
    settings = house.system.settings
    url = f"http://localhost:{settings.port}/objects/media/logo.png?imageMogr2%2Fcrop%2F20x10&e=1&token=a:b"
    made = await house.result(mark(url))
    (tmp_path / "out").write_bytes(await house.read(made["key"]))
    assert not like(color_at(tmp_path / "out", 30, 5), RED, 40)


async def test_a_key_with_a_question_mark_is_that_object(house, tmp_path):
    await house.put("logo.png?imageMogr2/crop/20x10", plain(tmp_path / "b.png", GREEN, 40, 40))
    made = await house.result(mark("kodo://media/logo.png?imageMogr2/crop/20x10"))
    (tmp_path / "out").write_bytes(await house.read(made["key"]))
    assert like(color_at(tmp_path / "out", 30, 30), GREEN, 40)


async def test_commands_go_so_deep_and_no_deeper(house, tmp_path):
    inner = "kodo://media/logo.png?imageMogr2/crop/10x10"
    middle = f"kodo://media/logo.png?{mark(inner)}"
    made = await house.result(mark(middle))
    (tmp_path / "out").write_bytes(await house.read(made["key"]))
    assert look(tmp_path / "out").width == 640
    message, _ = await house.failure(mark(f"kodo://media/logo.png?{mark(middle)}"))
    assert "deep" in message


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("kodo://media/logo.png?imageView2/9", "imageView2: the mode"),
        ("kodo://media/logo.png?imageInfo", "one file"),
        (f"kodo://media/logo.png?imageView2/0|saveas/{encode_text('media:x')}", "no saveas"),
        ("kodo://media/logo.png?unknown/1", "failed to GET"),
        ("kodo://media/nowhere.png?imageView2/0", "failed to GET"),
    ],
)
async def test_what_cannot_be_done_fails_the_item(house, url, why):
    message, index = await house.failure(mark(url))
    assert why in message
    assert index == 0


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("kodo://b/k?imageView2/1|roundPic/radius/2", ("kodo://b/k", "imageView2/1|roundPic/radius/2")),
        ("http://h/k?roundPic%2Fradius%2F2&e=1&token=x", ("http://h/k", "roundPic/radius/2")),
        ("http://h/k?e=1&token=x", ("http://h/k?e=1&token=x", "")),
        ("kodo://b/what?", ("kodo://b/what?", "")),
        ("kodo://b/k", ("kodo://b/k", "")),
    ],
)
def test_where_commands_begin(url, parts):
    assert commands_behind(url) == parts
