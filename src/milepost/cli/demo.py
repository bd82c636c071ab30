"""`demo`: a real image imported by an unmodified openstacksdk and by this command, through a kill -9 of the server.

Everything is real: a server process of its own, a web server with the image, the SDK as its users have it.  Nothing outside of
a temporary folder is written, nothing but loopback is used (unless the image is a URL), and all that was started is stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.json import JSON
from rich.text import Text

from milepost.cli.connect import end
from milepost.cli.exits import Exit
from milepost.cli.imageserver import SlowServer, Source, find_image
from milepost.cli.serve import need_server
from milepost.cli.show import Show, amount, duration
from milepost.client.sync import Client, JobHandle
from milepost.errors import InvalidInput, MilepostError, ProtocolError, Unreachable
from milepost.job import Progress

START_S = 20.0  # the server's start
FETCH_S = 5.0  # how long the interrupted import's fetch takes
KILL_AT = 0.5  # of the image's bytes
DOWN_S = 0.8  # between the kill and the restart
LIMIT_S = 55.0  # of each wait of ours
LARGE_BYTES = 16 << 20  # from here on a part is surely on disk when the server dies


def demo(
    image: Annotated[
        str | None, typer.Option("--image", envvar="IMAGE", metavar="PATH|URL", help="a disk image instead of one it makes")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="leave the data folder, and say where it is")] = False,
) -> None:
    """Import a real disk image, kill the server in the middle, and see the import go on to its end."""
    end(Show(), _demo, image, keep)


def _demo(image: str | None, keep: bool) -> Exit:
    need_server()
    sdk = _load_sdk()
    started_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="milepost-demo-"))
    story = Story(Show())
    server = Server(folder)
    try:
        source = find_image(image, folder)
        with SlowServer(source).running() as images:
            Demo(story, server, images, sdk, folder).run()
    except BaseException:
        server.kill()
        story.trouble(server.log_tail())
        raise
    finally:
        server.stop()
        if keep:
            story.say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    story.end(f"done in {duration(time.monotonic() - started_s)}; everything is stopped" + ("" if keep else " and removed"))
    return Exit.DONE


def _load_sdk() -> Any:
    """Errors: InvalidInput when openstacksdk is not installed."""
    warnings.filterwarnings("ignore", module=r"(openstack|keystoneauth1|requests)")
    logging.getLogger("openstack").setLevel(logging.CRITICAL)
    logging.getLogger("keystoneauth").setLevel(logging.CRITICAL)
    try:
        import openstack
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"the demo imports through openstacksdk, and {error.name} is not installed", hint="pip install openstacksdk"
        ) from None
    return openstack


MILEPOST = (sys.executable, "-c", "from milepost.cli import main; main()")


def clean_environ() -> dict[str, str]:
    """The environment without what would lead our own commands to another server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MILEPOST_")}


class Story:
    """What the demo tells: numbered steps, each with what was seen."""

    def __init__(self, show: Show) -> None:
        self.show, self._step = show, 0

    def step(self, title: str) -> None:
        self._step += 1
        self.show.out.print()
        self.show.out.print(Text.assemble((f"{self._step}  ", "bold cyan"), (title, "bold")))

    def say(self, text: str, style: str = "") -> None:
        self.show.out.print(Text(f"   {text}", style=style), soft_wrap=True)

    def seen(self, text: str) -> None:
        self.show.out.print(Text.assemble(("   ✓ ", "green"), text), soft_wrap=True)

    def code(self, text: str) -> None:
        self.show.out.print(Text(f"   $ {text}", style="dim"), soft_wrap=True)

    def json(self, value: Any) -> None:
        if self.show.out.is_terminal:
            self.show.out.print(JSON.from_data(value, ensure_ascii=False))
        else:
            self.show.out.print(json.dumps(value, indent=2, ensure_ascii=False), soft_wrap=True)

    def trouble(self, log: str) -> None:
        if log:
            self.show.err.print(Text("the server's last lines:\n" + log, style="dim"))

    def end(self, text: str) -> None:
        self.show.out.print()
        self.show.out.print(Text(text, style="bold green"))


class Server:
    """A `milepost serve` of its own, on one data folder and, once it has one, one port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "server.log"
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> float:
        """Start, or start again on the same port; returns the seconds until it was ready.  Errors: Unreachable."""
        began_s = time.monotonic()
        port = self.url.rpartition(":")[2] or "0"
        command = [*MILEPOST, "serve", "--port", port, "--auth", "none"]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [*command, "--data", str(self._folder / "data"), "--log-level", "warning"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=clean_environ(),
                cwd=self._folder,
            )
        self.url = self._read_ready()
        return time.monotonic() - began_s

    def _read_ready(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        giving_up = threading.Timer(START_S, self._process.kill)
        giving_up.start()
        try:
            line = self._process.stdout.readline()
        finally:
            giving_up.cancel()
        if not line.startswith("ready "):
            raise Unreachable(f"the server did not start: {self.log_tail() or 'no word from it'}")
        return line.split()[1]

    def kill(self) -> None:
        """SIGKILL: it gets no chance to tidy up."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def log_tail(self) -> str:
        try:
            return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-8:])
        except OSError:
            return ""


class Demo:
    """The story itself."""

    def __init__(self, story: Story, server: Server, images: SlowServer, sdk: Any, folder: Path) -> None:
        self.story, self.server, self.images, self.sdk, self.folder = story, server, images, sdk, folder
        self.source: Source = images.source

    def run(self) -> None:
        self._serve()
        with contextlib.closing(self._connect()) as cloud:
            self._import_by_sdk(cloud)
            with Client(self.server.url, patience_s=30.0) as client:
                job = self._import_through_a_kill(client)
                self._compare(cloud, job)
                self._show_both(client, job)

    def _serve(self) -> None:
        self.story.step("A server with a new data folder")
        self.story.code(f"milepost serve --port 0 --data {self.folder.name}/data")
        took_s = self.server.start()
        self.story.seen(f"ready at {self.server.url} after {duration(took_s)}")

    def _connect(self) -> Any:
        place = {"username": "demo", "password": "demo", "project_name": "default", "auth_url": f"{self.server.url}/v3"}
        return self.sdk.connect(
            load_yaml_config=False,
            load_envvars=False,
            auth={**place, "user_domain_id": "default", "project_domain_id": "default"},
            region_name="RegionOne",
        )

    def _input(self, name: str) -> dict[str, Any]:
        properties = {"name": name, "disk_format": self.source.format, "container_format": "bare"}
        return {"import_from": self.images.url, "import_from_format": self.source.format, "image_properties": properties}

    def _import_by_sdk(self, cloud: Any) -> None:
        self.story.step("An import by the unmodified openstacksdk, over the image-task API")
        self.story.say(f"image: {_size(self.source.size_bytes)}, {self.source.format} ({self.source.made})")
        self.story.code("task = cloud.image.create_task(type='import', input={…}); cloud.image.wait_for_task(task)")
        began_s = time.monotonic()
        task = cloud.image.create_task(type="import", input=self._input("demo-sdk"))
        done = cloud.image.wait_for_task(task, interval=0.2, wait=LIMIT_S)
        image = cloud.image.get_image(done.result["image_id"])
        _expect(image.hash_value == self.source.sha512, "the image's sha512 is not the file's")
        self.story.seen(
            f"task {done.status}, image {image.status} after {duration(time.monotonic() - began_s)}; its sha512 is the file's"
        )

    def _import_through_a_kill(self, client: Client) -> JobHandle:
        story, images = self.story, self.images
        story.step("An import by the command line; half-way the server is killed with SIGKILL, and started again")
        before, images.rate = len(images.sent), self.source.size_bytes / FETCH_S
        sent_before = images.sent_bytes
        events: list[str] = []
        killer = threading.Thread(target=self._kill_and_restart, args=(sent_before, events), name="demo-killer", daemon=True)
        killer.start()
        story.code("milepost submit import '{…}' --wait")
        command = ["submit", "import", json.dumps(self._input("demo-killed")), "--wait", "--timeout", f"{LIMIT_S:g}"]
        sys.stdout.flush()
        code = subprocess.run([*MILEPOST, *command, "--url", self.server.url], env=clean_environ(), check=False).returncode
        killer.join(START_S)
        for event in events:
            story.seen(event)
        _expect(code == Exit.DONE, f"the command ended with exit code {code}")
        (job,) = client.list(kind="import", limit=1)
        answers = images.sent[before:]
        _expect(len(answers) > 1, "the server was not killed in the middle of the fetch")
        last_start = answers[-1][0]
        taken = sum(count for _, count in answers)
        if self.source.size_bytes >= LARGE_BYTES:
            _expect(last_start > 0, "the import began again at the first byte")
        if last_start > 0:
            story.seen(f"it went on at byte {last_start:,} of {self.source.size_bytes:,}, by Range, and did not begin again")
        else:
            story.say("an image as small as this one is fetched again from its begin")
        again = max(0, taken - self.source.size_bytes)
        story.seen(
            f"the image server sent {_size(taken)} in all: {_size(again)} "
            f"({100 * again / self.source.size_bytes:.1f} %) were on their way when the server died, and were sent again"
        )
        raw = client.get(job.id).view.raw
        story.seen(f"one job, submitted once: attempt {raw['attempt']} of at most {raw['attempts_max']} finished it")
        return job.refresh()

    def _kill_and_restart(self, sent_before: int, events: list[str]) -> None:
        goal = sent_before + KILL_AT * self.source.size_bytes
        limit_s = time.monotonic() + LIMIT_S
        while self.images.sent_bytes < goal and time.monotonic() < limit_s:
            time.sleep(0.01)
        pid = self.server.pid
        self.server.kill()
        sent = self.images.sent_bytes - sent_before
        events.append(f"kill -9 {pid} when {_size(sent)} of {_size(self.source.size_bytes)} had been sent")
        time.sleep(DOWN_S)
        try:
            events.append(f"started again on the same folder; ready after {duration(self.server.start())}")
        except MilepostError as error:
            events.append(error.message)

    def _compare(self, cloud: Any, job: JobHandle) -> None:
        self.story.step("The result, downloaded by openstacksdk")
        image_id = job.result["image_id"]
        self.story.code(f"cloud.image.download_image('{image_id}')")
        digest = hashlib.sha512()
        for part in cloud.image.download_image(image_id, stream=True).iter_content(1 << 20):
            digest.update(part)
        self.story.say(f"source     sha512 {self.source.sha512[:48]}…")
        self.story.say(f"downloaded sha512 {digest.hexdigest()[:48]}…")
        _expect(digest.hexdigest() == self.source.sha512, "the downloaded image differs from its source")
        self.story.seen("the same bytes")

    def _show_both(self, client: Client, job: JobHandle) -> None:
        story = self.story
        story.step("The same job, as Milepost shows it and as Glance does")
        story.code(f"milepost get {job.id} --raw")
        story.json(client.get(job.id).view.raw)
        story.code(f"milepost get {job.id} --raw --wire glance")
        with Client(self.server.url, wire="glance") as glance:
            story.json(glance.get(job.id).view.raw)


def _size(size_bytes: int) -> str:
    return amount(Progress(size_bytes, None, "bytes"))


def _expect(held: bool, otherwise: str) -> None:
    """Errors: ProtocolError with what was seen instead of what the demo is about."""
    if not held:
        raise ProtocolError(f"the demo did not go as it should: {otherwise}")
