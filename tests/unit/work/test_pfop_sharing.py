"""Commands of one job over one photo share children on a whole server; other jobs, sources and files do not come near them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pyvips
from media_house import MediaHouse, media_house
from photo_house import photo

from milepost import forkchild
from milepost.forkchild import Child
from milepost.work.media.grammar import encode_text
from milepost.work.media.tools import workshop

CHINA = photo("china.jpg")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine ends no child between two commands."""
    monkeypatch.setattr(forkchild, "KEEP_S", 600.0)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[MediaHouse]:
    async with media_house(tmp_path, media_concurrency=1) as opened:
        yield opened


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each child that was asked for: how many calls it was forked for."""
    found: list[int] = []
    made = Child.__init__

    def note(self: Child, *args: Any) -> None:
        made(self, *args)
        found.append(self.call.turns)

    monkeypatch.setattr(Child, "__init__", note)
    return found


async def test_the_commands_of_a_job_follow_each_other_in_one_child(house, forked):
    items = await house.run(*(f"imageView2/2/w/{100 + number}" for number in range(10)))
    assert len(forked) == 1
    for number, item in enumerate(items):
        made = pyvips.Image.new_from_buffer(await house.read(msgspec.json.decode(item.result)["key"]), "")
        assert made.width == 100 + number


async def test_what_a_used_child_makes_is_what_a_new_one_makes(house, forked):
    commands = ["imageView2/2/w/120", "imageMogr2/thumbnail/90x/rotate/30", "imageAve", "imageInfo", "imageView2/2/w/120/q/40"]
    together = await house.run(*commands, force=True)
    assert len(forked) == 1
    for command, item in zip(commands, together, strict=True):
        (alone,) = await house.run(command, force=True)
        assert msgspec.json.decode(item.result)["hash"] == msgspec.json.decode(alone.result)["hash"]
        assert msgspec.json.decode(item.result)["result"] == msgspec.json.decode(alone.result)["result"]
    assert len(forked) == 1 + len(commands)


async def test_another_job_has_another_child(house, forked):
    await house.result("imageInfo")
    await house.result("imageAve")
    assert len(forked) == 2


async def test_a_step_behind_another_and_a_command_that_reads_other_files_have_children_of_their_own(house, forked):
    mark = "watermark/1/image/" + encode_text("kodo://media/in/china.jpg")
    await house.run("imageView2/2/w/100|imageView2/2/w/50", f"{mark}/ws/0.2", "imageInfo")
    assert sorted(forked) == sorted([1, 1, max(forked)]), "the second step and the watermark share nothing; the others do"
    assert max(forked) > 1


async def test_a_command_that_fails_fails_alone_and_in_its_own_words(house):
    commands = ["imageInfo", "exif", "imageView2/2/w/100", "imageMogr2/crop/!10x10a9000a9000", "imageView2/2/w/90"]
    items = await house.run(*commands)
    assert [str(item.state) for item in items] == ["succeeded", "failed", "succeeded", "failed", "succeeded"]
    assert [item.error.message for item in items if item.error] == ["no exif data", "the box of crop lies outside of the picture"]


async def test_a_broken_photo_fails_every_command_in_words(house):
    await house.put("broken.jpg", CHINA.read_bytes()[:30_000])
    items = await house.run("imageView2/2/w/100", "imageView2/2/w/90", "imageInfo", key="broken.jpg")
    assert [str(item.state) for item in items] == ["failed", "failed", "succeeded"]
    assert all(item.error.message.startswith("invalid picture: ") for item in items[:2])


async def test_nothing_waits_any_more_when_the_server_has_ended(tmp_path):
    async with media_house(tmp_path / "other") as house:
        await house.run("imageInfo", "imageAve")
        kept, pid = workshop(house.system.settings).forks._kept, workshop(house.system.settings).forks.pid
        assert len(kept) > 0
    assert len(kept) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
