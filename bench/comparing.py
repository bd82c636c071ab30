"""One way of waiting: `python -m bench.comparing WAY URL FOLDER` says when it knew of each job's end.

It says `FOLDER/ready-WAY` when it could begin, begins when there is `FOLDER/ids`, and prints the instant, seconds since the
epoch, at which it knew that each job was final.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import milepost

FINAL = ("success", "failure")
Wait = Callable[[str], object]  # returns when the job is final


def wait_for_task(url: str) -> Wait:
    """openstacksdk's own, with its defaults: it looks each 2 s."""
    import openstack
    from openstack.exceptions import ResourceFailure
    from openstack.image.v2.task import Task

    image: Any = openstack.connect(auth_type="none", endpoint=url, image_endpoint_override=url, load_envvars=False).image

    def wait(job_id: str) -> None:
        try:
            image.wait_for_task(Task.existing(id=job_id, status="processing"))
        except ResourceFailure:  # it says so: the job is final
            pass

    return wait


def tasks_get(url: str) -> Wait:
    """python-glanceclient, which has no wait: the loop around `tasks.get` that people write, with a look each second."""
    import glanceclient  # type: ignore[import-untyped]

    glance = glanceclient.Client("2", endpoint=url, token="any")

    def wait(job_id: str) -> None:
        while glance.tasks.get(job_id)["status"] not in FINAL:
            time.sleep(1)

    return wait


def every_5_s(url: str) -> Wait:
    """A plain GET, and a fixed sleep of five seconds, as the SDKs of Huawei Cloud's users have it."""

    def wait(job_id: str) -> None:
        request = urllib.request.Request(f"{url}/v2/tasks/{job_id}", headers={"User-Agent": "every-5-s"})
        while True:
            with urllib.request.urlopen(request, timeout=30) as answer:
                if json.load(answer)["status"] in FINAL:
                    return
            time.sleep(5)

    return wait


def in_threads(wait: Wait, ids: Iterable[str]) -> dict[str, float]:
    """A thread for each job, as a loop that sleeps needs one."""
    known: dict[str, float] = {}

    def one(job_id: str) -> None:
        wait(job_id)
        known[job_id] = time.time()

    threads = [threading.Thread(target=one, args=(job_id,)) for job_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return known


def with_milepost(client: milepost.Client, ids: Iterable[str]) -> dict[str, float]:
    """One call for all."""
    with client:
        return {job.id: time.time() for job in client.as_completed(list(ids)) if job.done}


LOOPS: dict[str, Callable[[str], Wait]] = {"wait_for_task": wait_for_task, "tasks.get": tasks_get, "every 5 s": every_5_s}
WIRES = {"Milepost, Glance": "glance", "Milepost, native": "native"}


def main(way: str, url: str, folder: Path) -> dict[str, float]:
    begin: Any
    if way in LOOPS:
        wait = LOOPS[way](url)
        begin = lambda ids: in_threads(wait, ids)  # noqa: E731
    else:
        client = milepost.Client(url, wire=WIRES[way], token="any")
        begin = lambda ids: with_milepost(client, ids)  # noqa: E731
    (folder / f"ready-{way}").touch()
    given = folder / "ids"
    while not given.exists():
        time.sleep(0.01)
    found: dict[str, float] = begin(given.read_text(encoding="utf-8").split())
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
