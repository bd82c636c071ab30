"""Pictures one after the other as a GIF: their order, their times, their limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from media_house import media_house
from photo_house import color_at, like, look, quarters

from milepost.work.media.animate import parse_animate
from milepost.work.media.commands import BadCommand
from milepost.work.media.grammar import encode_text

RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(path: Path, color: tuple[int, int, int], wide: int = 40, high: int = 30) -> Path:
    import pyvips

    image = pyvips.Image.black(wide, high, bands=3).linear([0] * 3, list(color)).cast("uchar").copy(interpretation="srgb")
    image.write_to_file(str(path))
    return path


async def test_pictures_play_in_their_order_and_backwards(tmp_path):
    async with media_house(tmp_path) as house:
        await house.put("red", plain(tmp_path / "a.png", RED))
        await house.put("a b/blue", plain(tmp_path / "b.jpg", BLUE))
        command = f"animate/duration/25/merge/key/{encode_text('a b/blue')}/key/{encode_text('red')}"
        made = await house.result(command, key="red")
        path = tmp_path / "out.gif"
        path.write_bytes(await house.read(made["key"]))
        roll = look(path, n=-1)
        assert (roll.get("page-height"), roll.get("n-pages"), roll.get("delay"), roll.get("loop")) == (30, 3, [250] * 3, 0)
        assert like(roll.getpoint(5, 5), RED)
        assert like(roll.getpoint(5, 35), BLUE)
        assert like(roll.getpoint(5, 65), RED)
        assert (await house.find(made["key"])).object.mime_type == "image/gif"
        made = await house.result(f"animate/duration/25/merge/key/{encode_text('a b/blue')}/effect/1", key="red")
        path.write_bytes(await house.read(made["key"]))
        assert like(color_at(path, 5, 5), BLUE)


async def test_what_cannot_be_one_animation_is_said(tmp_path):
    async with media_house(tmp_path) as house:
        await house.put("red", plain(tmp_path / "a.png", RED))
        await house.put("large", plain(tmp_path / "b.png", BLUE, 41, 30))
        await house.put("noise", b"noise")
        for key, why in (("large", "41x30"), ("noise", "not a picture"), ("nowhere", "failed to GET")):
            message, index = await house.failure(f"animate/duration/1/merge/key/{encode_text(key)}", key="red")
            assert why in message
            assert index == 0


async def test_a_photo_stands_as_its_camera_was_held(tmp_path):
    async with media_house(tmp_path) as house:
        await house.put("lying", quarters(tmp_path / "q.jpg", orientation=6))
        made = await house.result("animate/duration/1", key="lying")
        (tmp_path / "out").write_bytes(await house.read(made["key"]))
        assert (look(tmp_path / "out").width, look(tmp_path / "out").height) == (60, 80)


@pytest.mark.parametrize(
    "text",
    [
        "", "duration/0", "duration/x", "merge/key", "duration/1/merge", "duration/1/merge/url/x", "duration/1/effect/2",
        "duration/1/merge/key/!", "duration/1/" + "/".join(["key", encode_text("k")] * 20), "duration/1/speed/2",
    ],
)  # fmt: skip
def test_a_wrong_animation_is_told(text):
    with pytest.raises(BadCommand, match=r"^animate: "):
        parse_animate(text.split("/"))
