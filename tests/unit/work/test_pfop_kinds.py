"""The kinds `pfop` and `fop` on a whole server: pipes, saveas, automatic keys, force, failures, cancel."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import pytest
import pyvips
from media_house import MediaHouse, media_house
from photo_house import animation, color_at, like, photo, quarters

from milepost.bucket import etag
from milepost.store.buckets import Buckets
from milepost.work.media import pfop
from milepost.work.media.commands import COMMANDS, BadCommand, Command, Output, Tools, register
from milepost.work.media.grammar import automatic_key, encode_entry, encode_text

OUT = "saveas/" + encode_entry("media", "out/t.jpg")
CHINA = photo("china.jpg")


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[MediaHouse]:
    async with media_house(tmp_path) as opened:
        yield opened


def picture(data: bytes) -> pyvips.Image:
    return pyvips.Image.new_from_buffer(data, "")


# --- where outputs go ----------------------------------------------------------------------------------------


async def test_an_output_is_stored_where_saveas_says(house):
    found = await house.result(f"imageView2/1/w/200/h/200|{OUT}")
    data = await house.read("out/t.jpg")
    assert found == {
        "bucket": "media", "key": "out/t.jpg", "keys": None, "hash": etag(data), "result": None, "return_old": 0
    }  # fmt: skip
    image = picture(data)
    assert (image.width, image.height, image.get("vips-loader")) == (200, 200, "jpegload_buffer")
    stored = (await house.find("out/t.jpg")).object
    assert (stored.mime_type, stored.size_bytes, stored.hash) == ("image/jpeg", len(data), etag(data))


async def test_an_output_that_nobody_named_has_an_automatic_key(house):
    found = await house.result("imageView2/2/w/100")
    assert found["key"] == automatic_key("imageView2/2/w/100", etag(CHINA.read_bytes()))
    assert picture(await house.read(found["key"])).width == 100


async def test_saveas_with_a_bucket_alone_stores_under_the_hash(house):
    found = await house.result("imageView2/2/w/100|saveas/" + encode_text("media"))
    assert found["key"] == found["hash"] == etag(await house.read(found["key"]))


async def test_another_bucket_of_the_project_may_be_saved_to_and_no_other(house):
    await house.bucket("results")
    await house.bucket("foreign", project="somebody")
    found = await house.result("imageView2/2/w/100|saveas/" + encode_entry("results", "a"))
    assert found["bucket"] == "results"
    assert picture(await house.read("a", bucket="results")).width == 100
    for name in ("foreign", "nowhere"):
        message, index = await house.failure("imageView2/2/w/100|imageslim|saveas/" + encode_entry(name, "a"))
        assert "no bucket" in message
        assert index == 1


async def test_any_text_is_a_key(house):
    key = "../../etc/pässwd//图 %2F\u202e"
    found = await house.result("imageView2/2/w/100|saveas/" + encode_entry("media", key))
    assert found["key"] == key
    assert picture(await house.read(key)).width == 100


# --- pipes ---------------------------------------------------------------------------------------------------


async def test_a_pipe_gives_each_steps_output_to_the_next(house):
    found = await house.result("imageMogr2/thumbnail/320x|imageMogr2/rotate/90/format/png|imageInfo")
    assert found["key"] is None
    assert {name: found["result"][name] for name in ("format", "width", "height")} == {
        "format": "png",
        "width": 214,
        "height": 320,
    }


async def test_only_the_last_output_is_stored(house):
    before = len(await house.store.page_resources("object/media"))
    await house.result(f"imageView2/2/w/200|imageView2/2/w/100|{OUT}")
    assert len(await house.store.page_resources("object/media")) == before + 1
    assert picture(await house.read("out/t.jpg")).width == 100
    assert await house.store.list_resources("loose") == []


async def test_an_answer_is_stored_as_json_when_it_is_saved(house):
    found = await house.result("imageInfo|saveas/" + encode_entry("media", "info.json"))
    assert found["key"] == "info.json"
    assert found["result"] is None
    assert msgspec.json.decode(await house.read("info.json"))["width"] == 640
    assert (await house.find("info.json")).object.mime_type == "application/json"


@pytest.mark.parametrize(
    ("cmd", "index"),
    [
        ("nothing/1", 0),
        ("imageView2/2/w/100|nothing", 1),
        ("imageView2/9", 0),
        ("imageView2/2/w/100|exif", 1),
        ("imageView2/2/w/100|imageInfo|imageInfo", 2),
        ("imageMogr2/crop/!10x10a9000a0|imageInfo", 0),
    ],
)
async def test_a_failure_says_why_and_at_which_step(house, cmd, index):
    message, seen = await house.failure(cmd)
    assert message
    assert seen == index


async def test_items_do_not_depend_on_each_other_and_the_whole_fails_when_one_did(house):
    job = await house.submit("imageInfo", "nothing", f"imageView2/2/w/100|{OUT}", "imageAve")
    items = await house.ended(job)
    assert [str(item.state) for item in items] == ["succeeded", "failed", "succeeded", "succeeded"]
    assert [msgspec.json.decode(item.input)["cmd"] for item in items][1] == "nothing"
    whole = await house.store.get_job(job.id)
    assert (str(whole.state), whole.error.code) == ("failed", "sub_jobs_failed")


async def test_a_source_that_is_not_there_fails_the_item(house):
    assert await house.failure("imageInfo", key="nowhere") == ("source data is empty or fail to get source data", 0)


async def test_another_projects_source_is_not_found(house):
    assert (await house.failure("imageInfo", project="somebody"))[0] == "source data is empty or fail to get source data"


# --- force and return_old ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [f"|{OUT}", ""])
async def test_an_output_that_exists_is_not_made_again_unless_forced(house, tail):
    first = await house.result(f"imageView2/2/w/100{tail}")
    made_us = (await house.find(first["key"])).object.put_us
    again = await house.result(f"imageView2/2/w/100{tail}")
    assert again == {**first, "return_old": 1}
    assert (await house.find(first["key"])).object.put_us == made_us
    forced = await house.result(f"imageView2/2/w/100{tail}", force=True)
    assert forced == first
    assert (await house.find(first["key"])).object.put_us > made_us
    assert await house.store.list_resources("loose") == []


async def test_whatever_has_the_key_is_returned(house):
    old = await house.put("out/t.jpg", b"something else")
    found = await house.result(f"imageView2/2/w/100|{OUT}")
    assert (found["hash"], found["return_old"]) == (old, 1)
    found = await house.result(f"imageView2/2/w/100|{OUT}", force=True)
    assert picture(await house.read("out/t.jpg")).width == 100


async def test_a_source_may_be_replaced_by_its_own_output(house):
    await house.result("imageView2/2/w/100|saveas/" + encode_entry("media", "in/china.jpg"), force=True)
    assert picture(await house.read("in/china.jpg")).width == 100


async def test_ignore_error_gives_the_source_as_it_was(house):
    await house.put("broken", b"\xff\xd8\xff and nothing more", mime="image/jpeg")
    found = await house.result(f"imageView2/2/w/100/ignore-error/1|{OUT}", key="broken")
    assert await house.read("out/t.jpg") == b"\xff\xd8\xff and nothing more"
    assert found["hash"] == etag(b"\xff\xd8\xff and nothing more")
    assert (await house.find("out/t.jpg")).object.mime_type == "image/jpeg"
    assert await house.read("broken") == b"\xff\xd8\xff and nothing more"


# --- files that commands name --------------------------------------------------------------------------------


def mark(url: str) -> str:
    return f"watermark/1/image/{encode_text(url)}/gravity/NorthWest/dx/0/dy/0/format/png"


async def marked(house: MediaHouse, url: str, folder: Path) -> bool:
    """Whether the mark's red is in the picture's corner."""
    found = await house.result(mark(url), force=True)
    (folder / "marked.png").write_bytes(await house.read(found["key"]))
    return like(color_at(folder / "marked.png", 3, 3), (255, 0, 0), 3)


@pytest.mark.parametrize("url", ["kodo://media/marks/a b.png", "http://media.objects.localhost/marks/a%20b.png"])
async def test_a_mark_is_one_of_the_projects_own_objects(house, url, tmp_path):
    await house.put("marks/a b.png", quarters(tmp_path / "m.png", 20, 20))
    assert await marked(house, url, tmp_path)


async def test_a_mark_in_another_projects_bucket_must_be_public(house, tmp_path):
    await house.bucket("closed", project="somebody")
    await house.bucket("open", project="somebody", private=False)
    for name in ("closed", "open"):
        await house.put("m.png", quarters(tmp_path / "m.png", 20, 20), bucket=name)
    assert await marked(house, "kodo://open/m.png", tmp_path)
    message, index = await house.failure(mark("kodo://closed/m.png"))
    assert message.startswith("failed to GET kodo://closed/m.png")
    assert index == 0


class Marks(BaseHTTPRequestHandler):
    data = b""

    def do_GET(self) -> None:
        self.send_response(200 if self.path.startswith("/mark") else 404)
        self.end_headers()
        self.wfile.write(self.data)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def marks(tmp_path: Path):
    Marks.data = quarters(tmp_path / "served.png", 20, 20).read_bytes()
    server = HTTPServer(("127.0.0.1", 0), Marks)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_mark_is_fetched_over_http(house, marks, tmp_path):
    assert await marked(house, f"{marks}/mark.png", tmp_path)
    message, _ = await house.failure(mark(f"{marks}/nothing?secret=1"))
    assert message == f"failed to GET {marks}/nothing: 404 Not Found"


async def test_addresses_that_may_not_be_asked_are_not_asked(tmp_path, marks):
    async with media_house(tmp_path, egress_private=False) as house:
        for url in (f"{marks}/mark.png", "http://169.254.169.254/latest", "file:///etc/passwd", "/etc/passwd", "gopher://x/"):
            message, _ = await house.failure(mark(url))
            assert message.startswith("failed to GET"), message


async def test_a_mark_that_is_too_large_is_not_read_to_its_end(tmp_path, marks):
    async with media_house(tmp_path, media_fetch_bytes_max=1024) as house:
        Marks.data = bytes(5_000_000)
        message, _ = await house.failure(mark(f"{marks}/mark.png"))
        assert "more than 1024 bytes" in message


# --- queues, idle, cancel ------------------------------------------------------------------------------------


async def test_items_run_in_the_queue_of_their_pipeline(house):
    (item,) = await house.run("imageInfo", queue="media.default.fast")
    assert item.queue == "media.default.fast"


async def test_idle_work_gives_way_to_what_waits(house, monkeypatch):
    monkeypatch.setattr(pfop, "IDLE_PAUSE_S", 0.1)
    await house.pause("media", True)
    waiting = await house.submit("imageInfo")
    idle = await house.submit("imageInfo", idle=True, queue="media.idle")

    async def snoozed() -> bool:
        return any([await house.happened(item, "snoozed") for item in await house.items(idle)])

    await house.until(snoozed)
    assert (await house.items(idle))[0].result is None
    await house.pause("media", False)
    await house.ended(waiting)
    assert [str(item.state) for item in await house.ended(idle)] == ["succeeded"]


@pytest.mark.parametrize(
    ("project", "queue"), [("default", "media.default.fast"), ("other", "media"), ("other", "media.other.fast")]
)
async def test_idle_work_gives_way_to_its_own_project_only(house, monkeypatch, project, queue):
    monkeypatch.setattr(pfop, "IDLE_PAUSE_S", 0.1)
    await house.pause(queue, True)
    waiting = await house.submit("imageInfo", project=project, queue=queue)
    idle = await house.submit("imageInfo", idle=True, queue="media.idle")

    async def looked() -> bool:
        items = await house.items(idle)
        return any([await house.happened(item, "snoozed") or item.ended_us is not None for item in items])

    await house.until(looked)
    gave_way = any([await house.happened(item, "snoozed") for item in await house.items(idle)])
    assert gave_way == (project == "default")
    await house.pause(queue, False)
    await house.ended(waiting)
    assert [str(item.state) for item in await house.ended(idle)] == ["succeeded"]


async def test_a_disabled_object_of_another_project_is_not_read_even_from_a_public_bucket(house):
    await house.bucket("open", project="other", private=False)
    await house.put("mark.jpg", CHINA, bucket="open")
    url = encode_text("kodo://open/mark.jpg")
    assert (await house.result(f"watermark/1/image/{url}/ws/0.2"))["key"]
    buckets = Buckets(house.store, house.system.objects, house.system.clock.now_us)
    await buckets.change(await buckets.find_bucket("open"), "mark.jpg", disabled=True)
    message, index = await house.failure(f"watermark/1/image/{url}/ws/0.3")
    assert (message, index) == ("failed to GET kodo://open/mark.jpg: the file is disabled", 0)


async def run_for_ever(_spec: object, source: Path, _out: Path, tools: Tools) -> Output:
    ended = await tools.run_program(["sh", "-c", f"echo $$ > {source.parent.parent}/pid; sleep 600"])
    raise AssertionError(ended)


@pytest.fixture
def endless():
    register(Command(name="endlessInThisTest", makes="info", parse=lambda args: args, run=run_for_ever))
    yield "endlessInThisTest"
    del COMMANDS["endlessInThisTest"]


async def test_cancelling_kills_what_runs_and_leaves_nothing(house, endless, tmp_path):
    job = await house.submit(f"imageView2/2/w/100|{endless}|{OUT}")
    scratch = house.system.folder / "scratch"

    async def started() -> bool:
        return any(path.read_text().strip() for path in scratch.glob("*/pid"))

    await house.until(started)
    (pid_file,) = scratch.glob("*/pid")
    pid = int(pid_file.read_text())
    await house.system.service.cancel(job.id, project=job.project)
    (item,) = await house.ended(job)
    assert item.state == "cancelled"
    assert not Path(f"/proc/{pid}").exists()

    async def gone() -> bool:
        return not any(scratch.iterdir())

    await house.until(gone)
    assert await house.find("out/t.jpg") is None
    assert await house.store.list_resources("loose") == []


async def test_many_items_at_once(house):
    items = await house.run(*(f"imageView2/2/w/{100 + number}" for number in range(30)))
    widths = [picture(await house.read(msgspec.json.decode(item.result)["key"])).width for item in items]
    assert widths == [100 + number for number in range(30)]


async def test_a_pfop_without_commands_fails(house):
    job = await house.submit()
    await house.ended(job)
    assert (await house.store.get_job(job.id)).error.code == "no_fops"


async def test_a_killed_fork_server_fails_no_item(house):
    from milepost.work.media.tools import workshop

    await house.result("imageInfo")
    workshop(house.system.settings).forks._process.kill()
    items = await asyncio.wait_for(house.run("imageInfo", "imageAve", "imageView2/2/w/100"), 60)
    assert [str(item.state) for item in items] == ["succeeded"] * 3


async def test_a_command_of_a_users_own_module_is_run(house):
    async def shout(spec: str, source: Path, out: Path, tools: Tools) -> Output:
        out.write_bytes(source.read_bytes()[:4] + spec.encode() + tools.origin.key.encode())
        return Output.object(out, "text/plain")

    def parse(args: list[str]) -> str:
        if len(args) != 1:
            raise BadCommand("shout takes one word")
        return args[0].upper()

    register(Command(name="shoutInThisTest", makes="object", parse=parse, run=shout))
    try:
        found = await house.result("shoutInThisTest/hey")
        assert await house.read(found["key"]) == CHINA.read_bytes()[:4] + b"HEY" + b"in/china.jpg"
        assert await house.failure("shoutInThisTest") == ("shout takes one word", 0)
    finally:
        del COMMANDS["shoutInThisTest"]


async def test_animations_stay_animations_on_a_whole_server(house, tmp_path):
    await house.put("a.gif", animation(tmp_path / "a.gif", [(255, 0, 0), (0, 255, 0), (0, 0, 255)]))
    found = await house.result("imageView2/2/w/20", key="a.gif")
    made = pyvips.Image.gifload_buffer(await house.read(found["key"]), n=-1)
    assert (made.get("n-pages"), made.width) == (3, 20)
