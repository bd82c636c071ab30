"""Disk images: imported by an unmodified openstacksdk and by the command line, through a kill -9 of the server."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from typing import Any

from milepost.cli.demo.source import SlowServer, Source
from milepost.cli.demo.story import START_S, Server, Story, expect, in_bytes, run_milepost
from milepost.cli.exits import Exit
from milepost.cli.show import duration
from milepost.client.sync import Client, JobHandle
from milepost.errors import MilepostError

FETCH_S = 5.0  # how long the interrupted import's fetch takes
KILL_AT = 0.5  # of the image's bytes
DOWN_S = 0.8  # between the kill and the restart
LIMIT_S = 180.0  # of each wait of ours
LARGE_BYTES = 16 << 20  # from here on a part is surely on disk when the server dies


class Images:
    """Imports, one of them through a kill -9 of the server."""

    def __init__(self, story: Story, server: Server, images: SlowServer, sdk: Any) -> None:
        self.story, self.server, self.images, self.sdk = story, server, images, sdk
        self.source: Source = images.source

    def run(self) -> str:
        """The id of an image that was imported."""
        with contextlib.closing(self._connect()) as cloud:
            image_id = self._import_by_sdk(cloud)
            with Client(self.server.url, patience_s=90.0) as client:
                job = self._import_through_a_kill(client)
                self._compare(cloud, job)
                self._show_both(client, job)
        return image_id

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

    def _import_by_sdk(self, cloud: Any) -> str:
        self.story.step("An import by the unmodified openstacksdk, over the image-task API")
        self.story.say(f"image: {in_bytes(self.source.size_bytes)}, {self.source.format} ({self.source.made})")
        self.story.code("task = cloud.image.create_task(type='import', input={…}); cloud.image.wait_for_task(task)")
        began_s = time.monotonic()
        task = cloud.image.create_task(type="import", input=self._input("demo-sdk"))
        done = cloud.image.wait_for_task(task, interval=0.2, wait=LIMIT_S)
        image = cloud.image.get_image(done.result["image_id"])
        expect(image.hash_value == self.source.sha512, "the image's sha512 is not the file's")
        self.story.seen(
            f"task {done.status}, image {image.status} after {duration(time.monotonic() - began_s)}; its sha512 is the file's"
        )
        image_id: str = image.id
        return image_id

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
        code = run_milepost(self.server, *command)
        killer.join(START_S)
        for event in events:
            story.seen(event)
        expect(code == Exit.DONE, f"the command ended with exit code {code}")
        (job,) = client.list(kind="import", limit=1)
        answers = images.sent[before:]
        expect(len(answers) > 1, "the server was not killed in the middle of the fetch")
        last_start = answers[-1][0]
        taken = sum(count for _, count in answers)
        if self.source.size_bytes >= LARGE_BYTES:
            expect(last_start > 0, "the import began again at the first byte")
        if last_start > 0:
            story.seen(f"it went on at byte {last_start:,} of {self.source.size_bytes:,}, by Range, and did not begin again")
        else:
            story.say("an image as small as this one is fetched again from its begin")
        again = max(0, taken - self.source.size_bytes)
        story.seen(
            f"the image server sent {in_bytes(taken)} in all: {in_bytes(again)} "
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
        events.append(f"kill -9 {pid} when {in_bytes(sent)} of {in_bytes(self.source.size_bytes)} had been sent")
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
        expect(digest.hexdigest() == self.source.sha512, "the downloaded image differs from its source")
        self.story.seen("the same bytes")

    def _show_both(self, client: Client, job: JobHandle) -> None:
        story = self.story
        story.step("The same job, as Milepost shows it and as Glance does")
        story.code(f"milepost get {job.id} --raw")
        story.json(client.get(job.id).view.raw)
        story.code(f"milepost get {job.id} --raw --wire glance")
        with Client(self.server.url, wire="glance") as glance:
            story.json(glance.get(job.id).view.raw)
