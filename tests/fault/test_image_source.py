"""Imports from a server that lies, breaks, stalls and points elsewhere: the right image, or words and nothing left."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from image_source import Asked, ImageSource, file, in_turn, status

from milepost import Snooze
from milepost.engine.kinds import KINDS
from milepost.errors import Conflict, InvalidInput
from milepost.image import IMAGE, Image, ImageStatus, decode_image
from milepost.job import FINAL, EventType, Job, JobId, State
from milepost.settings import Settings
from milepost.store import Queue
from milepost.wiring import System, running_system
from milepost.work import fetch as fetching
from milepost.work import images, locks
from milepost.work.sweep import sweep

pytestmark = pytest.mark.skipif(
    subprocess.run(["sh", "-c", "command -v qemu-img"], capture_output=True).returncode != 0, reason="needs qemu-img"
)

WAIT_S = 60.0  # for what takes a moment: a machine that is busy with other things makes it long
DATA = random.Random(1).randbytes(3 << 20)  # raw: the mark of no format


@pytest.fixture
def source() -> Iterator[ImageSource]:
    with ImageSource() as running:
        yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same fetch with short pauses between few tries; what it waits for within one is as patient as ever."""
    limit_fetches(monkeypatch)


def limit_fetches(monkeypatch: pytest.MonkeyPatch, **limited: Any) -> None:
    def limits(**given: Any) -> fetching.FetchLimits:
        return fetching.FetchLimits(**{"pause_s": 0.01, "tries_max": 3, **limited, **given})

    monkeypatch.setattr(images, "FetchLimits", limits)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=str(tmp_path / "data"), backoff_s=0.01, progress_every_s=0.0, prune_every_s=3600.0)


@pytest.fixture
async def system(settings: Settings) -> AsyncIterator[System]:
    async with running_system(settings) as running:
        yield running


def spec(url: str, fmt: str = "raw", to: str | None = None, **properties: Any) -> dict[str, Any]:
    return {
        "import_from": url,
        "import_from_format": fmt,
        "image_properties": {"disk_format": to or fmt, "container_format": "bare", **properties},
    }


async def submit(system: System, asked: dict[str, Any], **fields: Any) -> JobId:
    submission = system.service.submission("import", input=msgspec.json.encode(asked), **fields)
    return (await system.service.submit(submission)).job.id


async def until(condition: Callable[[], Any], timeout_s: float = WAIT_S) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "the condition did not come true in time"
        await asyncio.sleep(0.01)


async def seen(system: System, job_id: JobId, condition: Callable[[Job], bool], timeout_s: float = WAIT_S) -> Job:
    """The job as soon as it is so.  An end that nobody waited for is told at once."""
    end_s = time.monotonic() + timeout_s
    while not condition(job := await system.service.get(job_id)):
        assert job.state not in FINAL, f"it ended {job.state}: {job.error}"
        assert time.monotonic() < end_s, f"{job.state}: {job.error} {job.progress}"
        await asyncio.sleep(0.01)
    return job


async def ended(system: System, job_id: JobId) -> Job:
    return await seen(system, job_id, lambda job: job.state in FINAL)


async def run(system: System, asked: dict[str, Any], **fields: Any) -> Job:
    return await ended(system, await submit(system, asked, **fields))


async def image_of(system: System, job: Job) -> tuple[Image, bytes]:
    assert job.state is State.SUCCEEDED, job.error
    assert job.result is not None
    image = decode_image((await system.store.get_resource(IMAGE, json.loads(job.result)["image_id"])).doc)
    assert image.object_key is not None
    assert system.objects is not None
    return image, b"".join([chunk async for chunk in system.objects.read(image.object_key)])


async def assert_nothing_is_left(system: System) -> None:
    assert await system.store.list_resources(IMAGE) == []
    assert await system.objects.list_keys("images") == []  # type: ignore[union-attr]
    scratch = system.settings.data_dir / "scratch"
    await until(lambda: not scratch.exists() or not list(scratch.iterdir()))


async def assert_failed(system: System, job: Job, code: str, *words: str) -> None:
    assert job.state is State.FAILED
    assert job.error is not None
    assert job.error.code == code, job.error
    for word in words:
        assert word in job.error.message
    await assert_nothing_is_left(system)


# --- the good case ---------------------------------------------------------------------------------------------------


async def test_an_import_gives_the_image_with_its_checksums(system: System, source: ImageSource) -> None:
    source.answers["/a"] = file(DATA)
    asked = spec(source.url("/a"), name="a", tags=["x", "y", "x"], min_disk=1, os_version=12, note=None, visibility="private")
    job = await run(system, asked, project="p1")
    image, stored = await image_of(system, job)
    assert stored == DATA
    assert image.status is ImageStatus.ACTIVE
    assert (image.size, image.virtual_size) == (len(DATA), len(DATA))
    assert image.checksum == hashlib.md5(DATA).hexdigest()
    assert (image.os_hash_algo, image.os_hash_value) == ("sha512", hashlib.sha512(DATA).hexdigest())
    assert (image.name, image.tags, image.min_disk, image.visibility) == ("a", ["x", "y"], 1, "private")
    assert image.properties == {"os_version": "12", "note": ""}
    assert (image.owner, image.job_id) == ("p1", job.id)
    assert (job.progress.done, job.progress.total, job.progress.unit) == (len(DATA), len(DATA), "bytes")
    assert source.asked[0].headers["accept-encoding"] == "identity"


async def test_another_disk_format_is_converted(system: System, source: ImageSource, tmp_path: Path) -> None:
    raw, qcow2 = tmp_path / "raw", tmp_path / "qcow2"
    raw.write_bytes(DATA)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2], check=True)
    source.answers["/a"] = file(qcow2.read_bytes())
    image, stored = await image_of(system, await run(system, spec(source.url("/a"), "qcow2", "raw")))
    assert stored == DATA
    assert (image.disk_format, image.size) == ("raw", len(DATA))
    image, stored = await image_of(system, await run(system, spec(source.url("/a"), "qcow2")))
    assert stored == qcow2.read_bytes()
    assert (image.size, image.virtual_size) == (len(stored), len(DATA))


async def test_an_empty_file_becomes_an_empty_image(system: System, source: ImageSource) -> None:
    source.answers["/a"] = file(b"")
    image, stored = await image_of(system, await run(system, spec(source.url("/a"))))
    assert (stored, image.size, image.virtual_size) == (b"", 0, None)


async def test_a_source_without_length_is_taken_as_it_ends(system: System, source: ImageSource) -> None:
    def answer(asked: Asked) -> None:
        asked.head("200 OK")
        asked.send(DATA)

    source.answers["/a"] = answer
    assert (await image_of(system, await run(system, spec(source.url("/a")))))[1] == DATA


async def test_a_redirect_is_followed(system: System, source: ImageSource) -> None:
    source.answers["/a"] = status("302 Found", Location="/b")
    source.answers["/b"] = file(DATA)
    assert (await image_of(system, await run(system, spec(source.url("/a")))))[1] == DATA


# --- broken connections ----------------------------------------------------------------------------------------------


async def test_a_broken_connection_is_resumed_where_it_broke(system: System, source: ImageSource) -> None:
    source.answers["/a"] = file(DATA, drop_at=[1_000_000, 1_000_001, 2_500_000])
    job = await run(system, spec(source.url("/a")))
    assert (await image_of(system, job))[1] == DATA
    assert job.attempt == 1
    starts = [asked.start for asked in source.asked]
    assert starts[0] is None
    assert len(starts) == 4
    assert all(later is not None and later > 900_000 for later in starts[1:])
    assert all(asked.headers["if-range"] == '"v1"' for asked in source.asked[1:])


async def test_without_ranges_it_begins_again(system: System, source: ImageSource) -> None:
    source.answers["/a"] = file(DATA, ranges=False, drop_at=[2_000_000])
    assert (await image_of(system, await run(system, spec(source.url("/a")))))[1] == DATA


async def test_without_a_validator_it_never_resumes(system: System, source: ImageSource) -> None:
    source.answers["/a"] = file(DATA, etag=None, drop_at=[2_000_000])
    assert (await image_of(system, await run(system, spec(source.url("/a")))))[1] == DATA
    assert [asked.start for asked in source.asked] == [None, None]


@pytest.mark.parametrize("etag", ['W/"v1"', None])
async def test_a_weak_etag_proves_nothing_and_an_old_date_does(system: System, source: ImageSource, etag: str | None) -> None:
    dates = {"Last_Modified": "Mon, 02 Mar 2026 10:00:00 GMT", "Date": "Mon, 02 Mar 2026 10:00:01 GMT"}
    source.answers["/a"] = file(DATA, etag=etag, drop_at=[2_000_000], **dates)
    await run(system, spec(source.url("/a")))
    assert source.asked[1].headers.get("if-range") == dates["Last_Modified"]


async def test_a_file_that_changed_in_between_is_fetched_whole(system: System, source: ImageSource) -> None:
    new = DATA[::-1]
    source.answers["/a"] = in_turn(file(DATA, drop_at=[2_000_000]), file(new, etag='"v2"'))
    assert (await image_of(system, await run(system, spec(source.url("/a")))))[1] == new


def partial(data: bytes, start: int, **headers: Any) -> Callable[[Asked], None]:
    def answer(asked: Asked) -> None:
        asked.head("206 Partial Content", **{"Content_Length": len(data) - start, "ETag": '"v1"', **headers})
        asked.send(data[start:])

    return answer


@pytest.mark.parametrize(
    "lie",
    [
        {"Content_Range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}"},
        {"Content_Range": f"bytes 1048577-{len(DATA) - 1}/{len(DATA)}"},
        {"Content_Range": f"bytes 1048576-{len(DATA) - 1}/{len(DATA) + 1}"},
        {"Content_Range": f"bytes 1048576-{len(DATA)}/{len(DATA)}"},
        {"Content_Range": f"bytes 1048576-{len(DATA) - 2}/{len(DATA)}"},
        {"Content_Range": "bytes nonsense"},
        {"Content_Range": None},
        {"Content_Range": f"bytes 1048576-{len(DATA) - 1}/{len(DATA)}", "ETag": '"v2"'},
    ],
)
async def test_a_part_that_does_not_fit_is_thrown_away_with_what_was_there(
    system: System, source: ImageSource, lie: dict[str, Any]
) -> None:
    whole = file(DATA, drop_at=[1 << 20])
    source.answers["/a"] = in_turn(whole, partial(DATA, 1 << 20, **lie), file(DATA))
    assert (await image_of(system, await run(system, spec(source.url("/a")))))[1] == DATA
    assert source.asked[0].start is None
    assert source.asked[2].start is None  # after the lie, from zero


async def test_a_server_that_gives_less_than_the_rest_is_asked_for_more(system: System, source: ImageSource) -> None:
    def piece(asked: Asked) -> None:
        start = asked.start or 0
        end = min(start + (1 << 20), len(DATA))
        span = f"bytes {start}-{end - 1}/{len(DATA)}"
        asked.head("206 Partial Content", Content_Length=end - start, Content_Range=span, ETag='"v1"')
        asked.send(DATA[start:end])

    source.answers["/a"] = in_turn(file(DATA, drop_at=[1 << 20]), piece)
    assert (await image_of(system, await run(system, spec(source.url("/a")))))[1] == DATA


async def test_a_range_that_is_not_satisfiable_begins_again(system: System, source: ImageSource) -> None:
    source.answers["/a"] = in_turn(file(DATA, drop_at=[1 << 20]), status("416 Range Not Satisfiable"), file(DATA))
    assert (await image_of(system, await run(system, spec(source.url("/a")))))[1] == DATA


# --- lies and refusals -----------------------------------------------------------------------------------------------


async def test_a_body_that_is_always_shorter_than_promised_fails(system: System, source: ImageSource) -> None:
    def short(asked: Asked) -> None:
        asked.head("200 OK", Content_Length=len(DATA))
        asked.send(DATA[: 1 << 20])

    source.answers["/a"] = short
    job = await run(system, spec(source.url("/a")), attempts_max=2)
    assert job.attempt == 2
    assert job.error is not None
    assert job.error.code in ("source_truncated", "source_unreachable")
    await assert_failed(system, job, job.error.code)


async def test_a_reset_connection_fails_in_words(system: System, source: ImageSource) -> None:
    source.answers["/a"] = lambda asked: asked.reset()
    job = await run(system, spec(source.url("/a")), attempts_max=1)
    await assert_failed(system, job, "source_unreachable", "127.0.0.1")


async def test_nobody_listening_fails_in_words(system: System, source: ImageSource) -> None:
    job = await run(system, spec("http://127.0.0.1:9/a"), attempts_max=1)
    await assert_failed(system, job, "source_unreachable", "127.0.0.1:9")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("404 File not found", "source_not_found"),
        ("410 Gone", "source_not_found"),
        ("403 Forbidden", "source_answered"),
        ("401 Unauthorized", "source_answered"),
        ("400 Bad Request", "source_answered"),
        ("204 No Content", "source_answered"),
        ("206 Partial Content", "source_answered"),
        ("304 Not Modified", "source_answered"),
    ],
)
async def test_a_refusal_is_final_and_names_the_status(system: System, source: ImageSource, line: str, code: str) -> None:
    source.answers["/a"] = status(line)
    job = await run(system, spec(source.url("/a")))
    await assert_failed(system, job, code, line[:3])
    assert (job.attempt, source.count("/a")) == (1, 1)


@pytest.mark.parametrize("line", ["500 Internal Server Error", "503 Service Unavailable", "429 Too Many Requests", "408 Timeout"])
async def test_a_busy_server_is_asked_again(system: System, source: ImageSource, line: str) -> None:
    source.answers["/a"] = in_turn(status(line, Retry_After="0"), file(DATA))
    job = await run(system, spec(source.url("/a")))
    assert (await image_of(system, job))[1] == DATA
    assert job.attempt == 2


async def test_a_server_that_stays_busy_fails_after_all_attempts(system: System, source: ImageSource) -> None:
    source.answers["/a"] = status("503 Service Unavailable", Retry_After="0")
    job = await run(system, spec(source.url("/a")))
    assert job.attempt == 3
    await assert_failed(system, job, "source_busy", "503 Service Unavailable")


async def test_retry_after_is_honoured(system: System, source: ImageSource) -> None:
    source.answers["/a"] = status("429 Too Many Requests", Retry_After="1000")
    job_id = await submit(system, spec(source.url("/a")))
    job = await seen(system, job_id, lambda job: job.error is not None)
    assert job.state is State.READY
    assert 990e6 < job.run_at_us - system.clock.now_us() <= 1000e6
    await system.service.cancel(job_id, project=None)  # between two attempts: nobody runs it
    assert await sweep(system.store, system.objects) >= 1  # type: ignore[arg-type]
    assert await system.store.list_resources(IMAGE) == []


async def test_a_silent_server_is_given_up(system: System, source: ImageSource, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_fetches(monkeypatch, timeouts=fetching.Timeouts(connect_s=10.0, read_s=0.5))

    def silent(asked: Asked) -> None:
        asked.head("200 OK", Content_Length=len(DATA), ETag='"v1"')
        asked.send(DATA[:1000])
        source.open.wait(30)

    source.answers["/a"] = silent
    job = await run(system, spec(source.url("/a")), attempts_max=1)
    await assert_failed(system, job, "source_unreachable", "in time")


async def test_a_trickle_is_given_up(system: System, source: ImageSource, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_fetches(monkeypatch, rate_window_s=0.3)

    def trickle(asked: Asked) -> None:
        asked.head("200 OK", Content_Length=len(DATA), ETag='"v1"')
        while not source.open.wait(0.05):
            asked.send(b"x")

    source.answers["/a"] = trickle
    job = await run(system, spec(source.url("/a")), attempts_max=1)
    await assert_failed(system, job, "source_too_slow", "bytes in")


async def test_a_file_that_says_it_is_too_large_is_not_fetched(settings: Settings, source: ImageSource) -> None:
    sent: list[int] = []

    def large(asked: Asked) -> None:
        asked.head("200 OK", Content_Length=1 << 30)
        while True:
            asked.send(bytes(1 << 16))
            sent.append(1 << 16)

    source.answers["/a"] = large
    async with running_system(msgspec.structs.replace(settings, image_bytes_max=1 << 20)) as system:
        job = await run(system, spec(source.url("/a")))
        await assert_failed(system, job, "source_too_large", "1048576", str(1 << 30))
    assert sum(sent) < 64 << 20


async def test_a_body_without_end_is_stopped_at_the_limit(settings: Settings, source: ImageSource) -> None:
    def endless(asked: Asked) -> None:
        asked.head("200 OK")
        while True:
            asked.send(bytes(1 << 16))

    source.answers["/a"] = endless
    async with running_system(msgspec.structs.replace(settings, image_bytes_max=8 << 20)) as system:
        job = await run(system, spec(source.url("/a")))
        await assert_failed(system, job, "source_too_large", str(8 << 20))


async def test_a_compressed_answer_is_refused(system: System, source: ImageSource) -> None:
    packed = gzip.compress(DATA)
    source.answers["/a"] = file(packed, Content_Encoding="gzip")
    job = await run(system, spec(source.url("/a")))
    await assert_failed(system, job, "source_encoded", "gzip")


@pytest.mark.parametrize(
    "place", ["http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/", "http://0x7f000001/", "file:///etc/passwd"]
)
async def test_a_redirect_to_a_forbidden_place_is_refused(system: System, source: ImageSource, place: str) -> None:
    source.answers["/a"] = status("302 Found", Location=place)
    job = await run(system, spec(source.url("/a")))
    await assert_failed(system, job, "source_refused", "redirects to")
    assert source.count("/a") == 1


async def test_loopback_is_refused_where_it_is_not_allowed(settings: Settings, source: ImageSource) -> None:
    source.answers["/a"] = file(DATA)
    async with running_system(msgspec.structs.replace(settings, egress_private=False)) as system:
        for url in (source.url("/a"), source.url("/a", "localhost"), source.url("/a", "127.1"), source.url("/a", "[::1]")):
            await assert_failed(system, await run(system, spec(url)), "source_refused")
    assert source.asked == []


async def test_content_of_another_format_is_refused(system: System, source: ImageSource) -> None:
    source.answers["/a"] = file(DATA)
    await assert_failed(system, await run(system, spec(source.url("/a"), "qcow2")), "format_mismatch", "qcow2")


async def test_an_image_that_points_at_a_file_of_the_server_is_refused(
    system: System, source: ImageSource, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/passwd", trap, "1M"], check=True)
    source.answers["/a"] = file(trap.read_bytes())
    job = await run(system, spec(source.url("/a"), "qcow2", "raw"))
    await assert_failed(system, job, "image_unsafe", "backing")


# --- input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"import_from": "ftp://a.example/x"}, "$.input.import_from"),
        ({"import_from": 5}, "$.input.import_from"),
        ({"import_from_format": "garbage"}, "$.input.import_from_format"),
        ({"image_properties": None}, "$.input.image_properties"),
        ({"image_properties": {}}, "$.input.image_properties"),
        ({"image_properties": {"disk_format": "raw"}}, "$.input.image_properties"),
    ],
)
def test_a_bad_input_is_refused_with_its_path(change: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        KINDS.get("import").read_input(msgspec.json.encode({**spec("http://a.example/x"), **change}))
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("properties", "place"),
    [
        ({"disk_format": "zzz"}, ".disk_format"),
        ({"disk_format": "ploop"}, ".disk_format"),
        ({"disk_format": "iso"}, ".disk_format"),
        ({"container_format": "ova"}, ".container_format"),
        ({"visibility": "everybody"}, ".visibility"),
        ({"min_disk": -1}, ".min_disk"),
        ({"min_ram": "1"}, ".min_ram"),
        ({"tags": ["ok", 5]}, ".tags[1]"),
        ({"protected": "yes"}, ".protected"),
        ({"name": "x" * 256}, ".name"),
        ({"id": "x"}, ".id"),
        ({"status": "active"}, ".status"),
        ({"size": 5}, ".size"),
        ({"locations": "x"}, ".locations"),
        ({"custom": {"a": 1}}, ".custom"),
        ({"custom": [1]}, ".custom"),
        ({f"p{number}": "x" for number in range(129)}, ""),
    ],
)
def test_a_bad_property_is_refused_with_its_path(properties: dict[str, Any], place: str) -> None:
    asked = spec("http://a.example/x")
    asked["image_properties"].update(properties)
    with pytest.raises(InvalidInput) as caught:
        KINDS.get("import").read_input(msgspec.json.encode(asked))
    assert caught.value.path == f"$.input.image_properties{place}"


# --- cancel, stop, crash ---------------------------------------------------------------------------------------------


def stalling(data: bytes, at: int, release: Any) -> Callable[[Asked], None]:
    """The first request stalls; later ones are served, from where they ask."""

    def stall(asked: Asked) -> None:
        asked.head("200 OK", Content_Length=len(data), ETag='"v1"')
        asked.send(data[:at])
        release.wait(30)

    return in_turn(stall, file(data))


def fetched_bytes(settings: Settings, job_id: str) -> int:
    path = settings.data_dir / "scratch" / job_id / "source"
    return path.stat().st_size if path.exists() else 0


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fetching.FetchLimits
    monkeypatch.setattr(images, "FetchLimits", lambda **given: real(**given))


@pytest.mark.usefixtures("patient")
async def test_cancelling_while_it_fetches_leaves_nothing(system: System, source: ImageSource) -> None:
    data = random.Random(2).randbytes(9 << 20)
    source.answers["/a"] = stalling(data, 8 << 20, source.open)
    job_id = await submit(system, spec(source.url("/a")))
    await until(lambda: fetched_bytes(system.settings, job_id) >= 4 << 20)
    assert len(await system.store.list_resources(IMAGE)) == 1
    await system.service.cancel(job_id, project=None)
    assert (await ended(system, job_id)).state is State.CANCELLED
    await assert_nothing_is_left(system)


@pytest.mark.parametrize("step", ["inspect_image", "convert_image", "digest", "put_file", "publish"])
async def test_cancelling_at_any_step_leaves_nothing(
    system: System, source: ImageSource, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Each step is held right after its work is done, and the job cancelled there."""
    reached = asyncio.Event()

    def held(function: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            await function(*args, **kwargs)
            reached.set()
            await asyncio.Event().wait()

        return wrapper

    if step == "inspect_image":
        real_thread = images.in_thread

        async def in_thread(function: Any, *args: Any, **kwargs: Any) -> Any:
            found = await real_thread(function, *args, **kwargs)
            if isinstance(found, images.Inspected):
                reached.set()
                await asyncio.Event().wait()
            return found

        monkeypatch.setattr(images, "in_thread", in_thread)
    elif step == "convert_image":
        monkeypatch.setattr(images, "convert_image", held(images.convert_image))
    elif step == "put_file":
        monkeypatch.setattr(system.objects, "put_file", held(system.objects.put_file))  # type: ignore[union-attr]
    else:
        monkeypatch.setattr(images.Import, step, held(getattr(images.Import, step)))
    source.answers["/a"] = file(DATA)
    job_id = await submit(system, spec(source.url("/a"), "raw", "qcow2"))
    async with asyncio.timeout(WAIT_S):
        await reached.wait()
    await system.service.cancel(job_id, project=None)
    assert (await ended(system, job_id)).state is State.CANCELLED
    await assert_nothing_is_left(system)


async def test_an_image_deleted_while_it_is_imported_ends_the_import(
    system: System, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.answers["/a"] = file(DATA)
    real = images.Import.digest

    async def digest(self: images.Import, path: Path, size: int) -> Any:
        await system.store.delete_resource(IMAGE, self.image_id)
        return await real(self, path, size)

    monkeypatch.setattr(images.Import, "digest", digest)
    await assert_failed(system, await run(system, spec(source.url("/a"))), "image_deleted", "deleted")


async def test_a_change_of_the_record_during_the_import_is_kept(
    system: System, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.answers["/a"] = file(DATA)
    real = images.Import.digest

    async def digest(self: images.Import, path: Path, size: int) -> Any:
        found = await system.store.get_resource(IMAGE, self.image_id)
        renamed = msgspec.structs.replace(decode_image(found.doc), name="renamed")
        await system.store.put_resource(self.resource(renamed))
        return await real(self, path, size)

    monkeypatch.setattr(images.Import, "digest", digest)
    image, _ = await image_of(system, await run(system, spec(source.url("/a"), name="first")))
    assert image.name == "renamed"


@pytest.mark.usefixtures("patient")
async def test_a_stopping_server_keeps_what_came_and_the_next_one_goes_on(settings: Settings, source: ImageSource) -> None:
    data = random.Random(3).randbytes(12 << 20)
    source.answers["/a"] = stalling(data, 9 << 20, source.open)
    settings = msgspec.structs.replace(settings, stop_grace_s=0.0)
    async with running_system(settings) as system:
        job_id = await submit(system, spec(source.url("/a")))
        await until(lambda: fetched_bytes(settings, job_id) >= 8 << 20)
    kept = fetched_bytes(settings, job_id)
    assert kept >= 8 << 20
    async with running_system(settings) as system:
        job = await ended(system, job_id)
        assert (await image_of(system, job))[1] == data
        assert job.attempt == 1
    assert source.asked[1].start == kept


SERVER = """
import asyncio, sys
from milepost.settings import Settings
from milepost.wiring import running_system

async def main():
    async with running_system(Settings(data=sys.argv[1], heartbeat_s=1, lease_s=3)):
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.fault
@pytest.mark.usefixtures("patient")
async def test_a_killed_server_resumes_from_the_bytes_it_had(settings: Settings, source: ImageSource) -> None:
    data = random.Random(4).randbytes(12 << 20)
    source.answers["/a"] = stalling(data, 9 << 20, source.open)
    async with running_system(settings) as system:
        await system.store.set_queue(Queue("images", paused=True))
        system.dispatch.announce_queues()
        held = system.service.submission("import", input=msgspec.json.encode(spec(source.url("/a"))), held=True)
        job_id = (await system.service.submit(held)).job.id
        await system.service.release(job_id, project=None)
        await system.store.set_queue(Queue("images", paused=False))
    server = subprocess.Popen([sys.executable, "-c", SERVER, settings.data], stdout=subprocess.PIPE)
    try:
        await until(lambda: fetched_bytes(settings, job_id) >= 8 << 20)
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
    kept = fetched_bytes(settings, job_id)
    async with running_system(settings) as system:
        job = await ended(system, job_id)
        assert (await image_of(system, job))[1] == data
    assert source.asked[-1].start == kept


async def test_a_crash_between_storing_and_publishing_stores_nothing_twice(
    settings: Settings, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.answers["/a"] = file(DATA)
    real, calls = images.Import.publish, 0

    async def publish(self: images.Import, stored: images.Stored) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("the disk went away")
        await real(self, stored)

    monkeypatch.setattr(images.Import, "publish", publish)
    async with running_system(settings) as system:
        job = await run(system, spec(source.url("/a")))
        assert job.attempt == 2
        assert (await image_of(system, job))[1] == DATA
        assert len(await system.objects.list_keys("images")) == 1  # type: ignore[union-attr]
    assert source.count("/a") == 1


async def test_a_full_disk_is_tried_again(system: System, source: ImageSource, monkeypatch: pytest.MonkeyPatch) -> None:
    source.answers["/a"] = file(DATA)
    monkeypatch.setattr(images, "NO_SPACE_DELAY_S", 0.0)
    real, calls = fetching._Partial.append, 0

    def append(self: Any, chunks: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError(28, os.strerror(28))
        real(self, chunks)

    monkeypatch.setattr(fetching._Partial, "append", append)
    job = await run(system, spec(source.url("/a")))
    assert (await image_of(system, job))[1] == DATA
    assert job.attempt == 2


async def test_a_disk_without_room_for_the_image_is_named_before_the_fetch(
    system: System, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.answers["/a"] = file(DATA)
    monkeypatch.setattr(fetching, "SPACE_LEFT_BYTES", 1 << 60)
    job = await run(system, spec(source.url("/a")), attempts_max=1)
    await assert_failed(system, job, "no_space", "MiB left")


async def test_a_body_without_length_never_takes_the_last_of_the_disk(
    system: System, source: ImageSource, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(asked: Asked) -> None:
        asked.head("200 OK")
        for _ in range(8):
            asked.send(DATA)

    source.answers["/a"] = endless
    most, room = 0, 12 << 20

    def usage(folder: Any) -> Any:
        nonlocal most
        taken = sum(entry.stat().st_size for entry in Path(folder).iterdir())
        most = max(most, taken)
        return shutil._ntuple_diskusage(room, taken, room - taken)  # type: ignore[attr-defined]

    monkeypatch.setattr(fetching.shutil, "disk_usage", usage)
    monkeypatch.setattr(fetching, "SPACE_LEFT_BYTES", 2 << 20)
    job = await run(system, spec(source.url("/a")), attempts_max=1)
    await assert_failed(system, job, "no_space", "MiB left")
    assert 0 < most <= room - (2 << 20)


async def test_a_part_of_absurd_numbers_is_no_part(system: System, source: ImageSource) -> None:
    def cut(asked: Asked) -> None:
        asked.head("200 OK", ETag='"a"', Content_Length=len(DATA))
        asked.send(DATA[: 2 << 20])

    def absurd(asked: Asked) -> None:
        asked.head("206 Partial Content", ETag='"a"', Content_Range="bytes " + "9" * 5000 + "-" + "9" * 5000 + "/*")

    source.answers["/a"] = in_turn(cut, absurd, file(DATA))
    assert (await image_of(system, await run(system, spec(source.url("/a")), attempts_max=1)))[1] == DATA


# --- the sweep -------------------------------------------------------------------------------------------------------


async def test_the_sweep_removes_what_dead_imports_left_and_nothing_else(
    settings: Settings, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.answers["/a"] = file(DATA)
    source.answers["/busy"] = status("503 Service Unavailable", Retry_After="1000")
    async with running_system(settings) as system:
        good = await run(system, spec(source.url("/a")))
        waiting = await submit(system, spec(source.url("/busy")))
        dead = await submit(system, spec(source.url("/busy")))
        for job_id in (waiting, dead):
            await seen(system, job_id, lambda job: job.error is not None)
        await system.service.cancel(dead, project=None)
        objects = system.objects
        assert objects is not None
        old, young = (settings.data_dir / name for name in ("old", "young"))
        for path in (old, young):
            path.write_bytes(b"x")
            await objects.put_file(f"images/0000/{path.name}", path)
        stored = settings.data_dir / "objects" / "images"
        for path in (stored / "0000" / "old", *stored.glob("*-*/*")):
            os.utime(path, (time.time() - 7200,) * 2)

        assert await sweep(system.store, objects) == 2  # type: ignore[arg-type]

        left = {resource.id for resource in await system.store.list_resources(IMAGE)}
        assert left == {images.image_id_of(good.id), images.image_id_of(waiting)}
        assert (await image_of(system, good))[1] == DATA
        assert [entry.key for entry in await objects.list_keys("images/0000")] == ["images/0000/young"]  # type: ignore[union-attr]
        assert await sweep(system.store, objects) == 0  # type: ignore[arg-type]


async def test_the_sweep_removes_an_image_whose_import_was_cancelled_after_it_was_published(
    settings: Settings, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.answers["/a"] = file(DATA)
    real = images.Import.publish

    async def publish(self: images.Import, stored: images.Stored) -> None:
        await real(self, stored)
        raise Snooze(1000)  # as when the process dies here: the job is not ended, the image is active

    monkeypatch.setattr(images.Import, "publish", publish)
    async with running_system(settings) as system:
        objects = system.objects
        assert objects is not None
        job_id = await submit(system, spec(source.url("/a")))
        await seen(system, job_id, lambda job: job.state is State.READY and job.run_at_us > job.created_us + 900_000_000)
        (resource,) = await system.store.list_resources(IMAGE)
        assert decode_image(resource.doc).status is ImageStatus.ACTIVE
        assert await sweep(system.store, objects) == 0
        assert len(await objects.list_keys("images")) == 1
        await system.service.cancel(job_id, project=None)
        assert await sweep(system.store, objects) == 2
        assert await system.store.list_resources(IMAGE) == []
        assert await objects.list_keys("images") == []


# --- two workers -----------------------------------------------------------------------------------------------------


async def test_an_attempt_waits_while_another_one_still_holds_the_folder(
    settings: Settings, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a worker was taken for dead and is not: the lock is the system's, so it holds between processes."""
    source.answers["/a"] = file(DATA)
    monkeypatch.setitem(locks.locked.__wrapped__.__kwdefaults__, "wait_s", 0.2)
    async with running_system(settings) as system:
        held = system.service.submission("import", input=msgspec.json.encode(spec(source.url("/a"))), held=True)
        job_id = (await system.service.submit(held)).job.id
        folder = settings.data_dir / "scratch" / job_id
        folder.mkdir(parents=True)
        lock = ["flock", "-x", str(folder / "lock"), "sh", "-c", "echo held; cat"]
        other = subprocess.Popen(lock, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        try:
            assert other.stdout is not None
            assert other.stdout.readline()
            await system.service.release(job_id, project=None)
            end_s = time.monotonic() + WAIT_S
            while EventType.SNOOZED not in [event.type for event in await system.store.list_events(job_id=job_id)]:
                assert time.monotonic() < end_s, "it was not put off in time"
                await asyncio.sleep(0.01)
            assert source.asked == []
        finally:
            os.killpg(other.pid, signal.SIGKILL)
            other.communicate()
        job = await ended(system, job_id)
        assert (await image_of(system, job))[1] == DATA
        assert job.attempt == 1


async def test_a_worker_that_lost_the_job_changes_nothing_of_its_successor(
    settings: Settings, source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.answers["/a"] = file(DATA)
    real, stale = images.Import.publish, []

    async def publish(self: images.Import, stored: images.Stored) -> None:
        if not stale:
            stale.append(self)
            raise OSError("this attempt fails, and its worker comes back later")
        await real(self, stored)

    monkeypatch.setattr(images.Import, "publish", publish)
    async with running_system(settings) as system:
        job = await run(system, spec(source.url("/a")))
        image, stored = await image_of(system, job)
        await stale[0].remove_everything()
        with pytest.raises(Conflict):
            await stale[0].change(name="stale")
        assert await image_of(system, job) == (image, stored)
