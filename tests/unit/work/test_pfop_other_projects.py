"""Media commands between projects: what a command names of another project's bucket is not read, written or packed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from clip_house import clip
from media_house import MediaHouse, media_house
from photo_house import photo

from milepost.work.media.grammar import encode_entry, encode_text

SECRET = encode_text("kodo://secrets/in/china.jpg")
BEHIND = encode_text("http://localhost:8080/objects/secrets/in/china.jpg")  # an address of this server, as it is bound
UNSEEN = "failed to GET"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[MediaHouse]:
    """The default project's server, where somebody else has a private bucket."""
    async with media_house(tmp_path, port=8080) as opened:
        await opened.bucket("secrets", project="somebody")
        await opened.put("in/china.jpg", photo("china.jpg"), bucket="secrets", mime="image/jpeg")
        await opened.put("clip.mp4", clip("carphone_distorted"), bucket="secrets", mime="video/mp4")
        yield opened


@pytest.mark.parametrize("url", [SECRET, BEHIND])
@pytest.mark.parametrize(
    "command",
    [
        "watermark/1/image/{url}",
        "watermark/3/text/{text}/image/{url}",
        "concat/mimeType/{mime}/{url}",
        "mkzip/2/url/{url}",
        "mkzip/2/url/{url}/alias/{text}",
    ],
)
async def test_a_command_reads_no_private_object_of_another_project(house: MediaHouse, command: str, url: str) -> None:
    cmd = command.format(url=url, text=encode_text("a.jpg"), mime=encode_text("text/plain"))
    message, index = await house.failure(f"{cmd}|saveas/" + encode_entry("media", "stolen"))
    assert message.startswith(UNSEEN), message
    assert index == 0
    assert await house.find("stolen") is None


@pytest.mark.parametrize("command", ["avthumb/mp4/wmImage/{url}", "avconcat/2/format/mp4/{url}"])
async def test_a_video_command_reads_no_private_object_of_another_project(house: MediaHouse, command: str) -> None:
    await house.put("in.mp4", clip("carphone_distorted"), mime="video/mp4")
    url = SECRET if "wmImage" in command else encode_text("kodo://secrets/clip.mp4")
    message, _ = await house.failure(command.format(url=url), key="in.mp4")
    assert message.startswith(UNSEEN), message


async def test_the_index_of_an_archive_names_no_file_of_another_bucket_even_a_public_one(house: MediaHouse) -> None:
    await house.bucket("open", project="somebody", private=False)
    await house.put("a.jpg", photo("china.jpg"), bucket="open")
    for bucket, key in (("secrets", "in/china.jpg"), ("open", "a.jpg")):
        await house.put("index.txt", f"/url/{encode_text(f'kodo://{bucket}/{key}')}\n".encode())
        message, _ = await house.failure("mkzip/4", key="index.txt")
        assert message.startswith(UNSEEN), message


async def test_the_same_words_say_whether_a_private_object_exists_or_not(house: MediaHouse) -> None:
    there, _ = await house.failure(f"watermark/1/image/{SECRET}")
    gone, _ = await house.failure("watermark/1/image/" + encode_text("kodo://secrets/in/nothing.jpg"))
    assert there.rpartition(": ")[2] == gone.rpartition(": ")[2] == "no such object"


async def test_a_job_of_one_project_reads_no_source_of_another(house: MediaHouse) -> None:
    items = await house.run("imageInfo", bucket="secrets", key="in/china.jpg")
    assert [(item.state, item.error and item.error.message) for item in items] == [
        ("failed", "source data is empty or fail to get source data")
    ]


async def test_an_output_is_stored_in_no_bucket_of_another_project_and_replaces_nothing_there(house: MediaHouse) -> None:
    before = await house.read("in/china.jpg", bucket="secrets")
    for name in ("secrets:in/china.jpg", "secrets"):
        message, _ = await house.failure("imageView2/2/w/10|saveas/" + encode_text(name), force=True)
        assert "no bucket" in message
    assert await house.read("in/china.jpg", bucket="secrets") == before
    assert len(await house.store.list_resources("object/secrets")) == 2
