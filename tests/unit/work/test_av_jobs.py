"""Audio, video and files as items of a pfop on a whole server: what is stored, what fails where, and what cancel kills."""

from __future__ import annotations

import asyncio
import contextlib
import os
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from clip_house import ask, clip, frames, lavfi, look
from media_house import MediaHouse, media_house

from milepost.bucket import etag
from milepost.work.media.grammar import automatic_key, encode_entry, encode_text

KEY = "in/bikes.mp4"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[MediaHouse]:
    async with media_house(tmp_path) as opened:
        await opened.put(KEY, clip("bikes"), mime="video/mp4")
        yield opened


def saveas(key: str) -> str:
    return "saveas/" + encode_entry("media", key)


async def stored(house: MediaHouse, key: str) -> Path:
    """The object as a file."""
    path = house.folder / f"got-{abs(hash(key))}"
    path.write_bytes(await house.read(key))
    return path


async def test_several_commands_make_what_they_say(house):
    sample = f"vsample/jpg/interval/5/savePattern/{encode_text('shots/$(keybase)-$(count).jpg')}"
    items = await house.run(
        f"avthumb/mp4/s/160x|{saveas('out/small.mp4')}",
        f"vframe/jpg/offset/1/w/320|imageMogr2/rotate/90|{saveas('out/f.jpg')}",
        sample,
        "avinfo",
        "avthumb/mp4/t/1/s/64x|avinfo",
        key=KEY,
    )
    assert [item.error for item in items] == [None] * 5
    video = look(await stored(house, "out/small.mp4")).video
    assert video is not None
    assert (video.codec, video.width, video.height) == ("h264", 160, 68)
    frame = look(await stored(house, "out/f.jpg")).video
    assert frame is not None
    assert (frame.width, frame.height) == (136, 320)
    results = [msgspec.json.decode(item.result) for item in items]
    assert results[2]["keys"] == ["shots/bikes-000001.jpg", "shots/bikes-000002.jpg"]
    assert results[3]["key"] is None
    assert results[3]["result"]["streams"][0]["nb_frames"] == "250"
    assert results[4]["result"]["streams"][0]["width"] == 64
    for key in results[2]["keys"]:
        assert (await house.find(key)).object.mime_type == "image/jpeg"


async def test_a_playlist_is_one_key_and_each_segment_an_object(house):
    command = "avthumb/m3u8/noDomain/1/segtime/5/s/160x"
    found = await house.result(command, key=KEY)
    key = automatic_key(command, etag(clip("bikes").read_bytes()))
    assert (found["key"], found["keys"]) == (key, None)
    assert (await house.find(key)).object.mime_type == "application/x-mpegurl"
    names = [line for line in (await house.read(key)).decode().splitlines() if line and not line.startswith("#")]
    assert len(names) == 2
    for name in names:
        segment = f"{key.rpartition('/')[0]}/{name}"
        assert (await house.find(segment)).object.mime_type == "video/mp2t"
        assert frames(await stored(house, segment)) == 125


async def test_other_objects_come_from_the_projects_buckets(house):
    await house.put("logo.png", lavfi(house.folder / "logo.png", "-f", "lavfi", "-i", "color=red:s=20x10", "-frames:v", "1"))
    mark = encode_text("kodo://media/logo.png")
    await house.result(f"avthumb/mp4/t/1/wmImage/{mark}|{saveas('m.mp4')}", key=KEY)
    assert look(await stored(house, "m.mp4")).duration_s == pytest.approx(1, abs=0.1)
    await house.result(f"avconcat/1/format/mp4/{encode_text('kodo://media/' + KEY)}|{saveas('twice.mp4')}", key=KEY)
    assert float(ask(await stored(house, "twice.mp4"))["format"]["duration"]) == pytest.approx(20, abs=0.1)
    found = await house.result(f"mkzip/2/url/{mark}/url/{encode_text('kodo://media/' + KEY)}", key=KEY)
    assert found["key"] == found["hash"]
    with zipfile.ZipFile(await stored(house, found["key"])) as archive:
        assert archive.namelist() == ["logo.png", "bikes.mp4"]


async def test_another_projects_private_objects_are_not_read(house):
    await house.bucket("theirs", project="other")
    await house.put("secret.mp4", clip("carphone_distorted"), bucket="theirs")
    for command in (
        f"avconcat/2/format/mp4/{encode_text('kodo://theirs/secret.mp4')}",
        f"mkzip/2/url/{encode_text('kodo://theirs/secret.mp4')}",
        f"concat/mimeType/{encode_text('a/b')}/{encode_text('kodo://theirs/secret.mp4')}",
        f"avthumb/mp4/wmImage/{encode_text('kodo://theirs/secret.mp4')}",
    ):
        message, index = await house.failure(command, key=KEY)
        assert message.startswith("failed to GET")
        assert index == 0


async def test_a_failure_has_the_number_of_its_step(house):
    assert (await house.failure("qhash/md5|avinfo", key=KEY))[1] == 1
    assert (await house.failure("avthumb/mp4/t/1/s/64x|avthumb/mp4/vb/fast", key=KEY))[1] == 1
    assert (await house.failure("vframe/jpg/offset/1|vframe/jpg/offset/11", key=KEY))[1] == 1
    message, index = await house.failure("avthumb/mp3", key=KEY)
    assert (message, index) == ("the source has no audio", 0)
    await house.put("text.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    message, index = await house.failure("avthumb/mp4", key="text.mp4")
    assert (message.startswith("invalid media"), index) == (True, 0)


def children() -> list[str]:
    """The command lines of what this process started."""
    found = []
    for task in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        for pid in task.read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended while it was looked at
                found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


async def test_cancel_kills_ffmpeg_at_once_and_nothing_is_stored(house):
    job = await house.submit(f"avthumb/mp4/vcodec/libx265/s/3840x1632|{saveas('slow.mp4')}", key=KEY)

    async def at_work() -> bool:
        return any("-progress" in line and "libx265" in line for line in children())

    await house.until(at_work)
    await house.system.service.cancel(job.id, project=job.project)
    items = await asyncio.wait_for(house.ended(job), 60)
    assert [item.state for item in items] == ["cancelled"]
    assert not await at_work()
    assert await house.find("slow.mp4") is None
