"""Milepost's own client and command line on the wire of Qiniu, against a running server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from client_rig import PASSWORD, Thread

import milepost
from milepost import errors
from milepost.client.signing import KeyPair
from milepost.job import State
from milepost.settings import Settings
from milepost.wiring import System

qiniu = pytest.importorskip("qiniu")
pytest.importorskip("pyvips")
datasets = pytest.importorskip("sklearn.datasets")

PHOTO = Path(datasets.__file__).parent / "images" / "flower.jpg"  # 640x427
BUCKET = "media-client"


class Place(msgspec.Struct, frozen=True):
    """A server with a bucket and a photo in it, and the key of a member."""

    url: str
    access: str
    secret: str

    def client(self, **options: Any) -> milepost.Client:
        credentials = KeyPair(access=self.access, secret=self.secret)
        return milepost.Client(self.url, wire="qiniu", credentials=credentials, **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("qiniu-client")
    tempdir, tempfile.tempdir = tempfile.tempdir, str(folder)
    thread = Thread(Settings(port=0, data=str(folder / "data"), auth="required"))
    thread.start()
    system, url = thread.wait_ready()
    access, secret = thread.call(_make_key(system))
    qiniu.set_default(default_uc_host=url)
    auth = qiniu.Auth(access, secret)
    assert qiniu.BucketManager(auth).mkbucketv3(BUCKET, "z0")[1].status_code == 200
    assert qiniu.put_file(auth.upload_token(BUCKET), "in.jpg", str(PHOTO), version="v2")[1].status_code == 200
    yield Place(url, access, secret)
    thread.stop()
    tempfile.tempdir = tempdir


async def _make_key(system: System) -> tuple[str, str]:
    await system.identities.create_project("demo")
    await system.identities.create_user("ann", PASSWORD)
    await system.identities.grant("ann", "demo", "member")
    key = await system.identities.create_access_key("ann", "demo")
    return key.id, key.secret


def asked(*fops: str) -> dict[str, Any]:
    return {"bucket": BUCKET, "key": "in.jpg", "fops": list(fops)}


def test_submit_and_wait_with_typed_items(place: Place) -> None:
    with place.client() as client:
        job = client.submit("pfop", asked("imageInfo", "imageView2/2/w/40")).wait(timeout_s=60)
        assert (job.ok, job.status, job.id[:3]) == (True, "0", "z0.")
        info, small = job.view.sub_jobs
        assert (info.kind, info.result.result["width"]) == ("imageInfo", 640)
        assert (small.kind, small.parent_id, small.result.cmd) == ("imageView2", job.id, "imageView2/2/w/40")
        assert small.result.hash
        assert [one.cmd for one in job.result] == ["imageInfo", "imageView2/2/w/40"]
        assert client.get(job.id).view == job.view
        dashed = str(uuid.UUID(job.id[3:]))
        assert client.get(dashed).id == job.id


def test_a_failure_in_part_has_both_lists(place: Place) -> None:
    with place.client() as client:
        job = client.submit("pfop", asked("imageInfo", "noSuchCommand"))
        with pytest.raises(errors.PartialFailure) as caught:
            job.wait(timeout_s=60)
        assert [one.kind for one in caught.value.succeeded] == ["imageInfo"]
        (failed,) = caught.value.failed
        assert (failed.error.code, failed.error.details["error_index"]) == ("fop_failed", 0)
        with pytest.raises(errors.JobFailed):
            client.submit("pfop", asked("noSuchCommand")).wait(timeout_s=60)


def test_watch_shows_each_change_to_the_end(place: Place) -> None:
    with place.client() as client:
        views = list(client.submit("pfop", asked("imageInfo")).watch(timeout_s=60, tree=True))
    assert views[-1].state is State.SUCCEEDED
    assert views[-1].sub_jobs


def test_the_async_client_does_the_same(place: Place) -> None:
    async def run() -> str:
        credentials = KeyPair(access=place.access, secret=place.secret)
        async with milepost.AsyncClient({"z0": place.url}, wire="qiniu", credentials=credentials) as client:
            job = await client.submit("pfop", asked("imageInfo"))
            return (await job.wait(timeout_s=60)).status

    assert asyncio.run(run()) == "0"


def test_what_is_wrong_is_a_typed_error(place: Place) -> None:
    with place.client() as client:
        with pytest.raises(errors.NotFound):
            client.get("z0.00000000000000000000000000000000")
        with pytest.raises(errors.NotFound, match="no such bucket"):
            client.submit("pfop", {**asked("imageInfo"), "bucket": "nothing"})
        with pytest.raises(errors.Conflict, match="cannot list"):
            next(client.list())
    forged = KeyPair(access=place.access, secret="guessed")
    with milepost.Client(place.url, wire="qiniu", credentials=forged) as client, pytest.raises(errors.Unauthenticated):
        client.submit("pfop", asked("imageInfo"))


def command(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MILEPOST_", "QINIU_"))}
    env |= {"QINIU_ACCESS_KEY": place.access, "QINIU_SECRET_KEY": place.secret, "MILEPOST_HISTORY": ""}
    line = [sys.executable, "-c", "from milepost.cli.root import run; run()", *words, "--wire", "qiniu", "--url", place.url]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_line_submits_waits_and_shows(place: Place) -> None:
    made = command(place, "submit", "pfop", json.dumps(asked("imageInfo", "imageView2/2/w/20")), "--json")
    assert made.returncode == 0, made.stderr
    id = json.loads(made.stdout)["id"]
    waited = command(place, "wait", id, "--json")
    assert waited.returncode == 0, waited.stderr
    shown = json.loads(command(place, "get", id, "--json").stdout)
    assert (shown["state"], shown["tree"][0]["result"]["result"]["width"]) == ("succeeded", 640)
    watched = command(place, "watch", id)
    assert watched.returncode == 0, watched.stderr
    listed = command(place, "list")
    assert listed.returncode != 0
    assert "cannot list jobs" in listed.stderr
