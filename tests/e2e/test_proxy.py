"""`milepost proxy` between a client and its cloud: what passes is unchanged; a job is followed before its caller knows it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import pytest
from pyreqwest.client import SyncClientBuilder

import milepost
from milepost.testing import serving_in_thread

PATIENCE_S = 60.0
MILEPOST = str(Path(sys.executable).with_name("milepost"))


@contextmanager
def proxying(cwd: Path, to: str, wire: str, server: str, *more: str) -> Iterator[str]:
    command = [MILEPOST, "proxy", to, "--of", wire, "--port", "0", "--url", server, *more]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MILEPOST_")}
    process = Popen(command, cwd=cwd, stdout=PIPE, stderr=DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("ready "), line
        yield line.split()[1]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def ask(method: str, url: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    with SyncClientBuilder().build() as http:
        request = http.request(method, url).headers({"content-type": "application/json", **(headers or {})})
        if body is not None:
            request = request.body_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
        answer = request.build().send()
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, bytes(answer.bytes())


def tracked(server: str) -> dict[str, dict[str, Any]]:
    return {one["handle"]["id"]: one for one in json.loads(ask("GET", f"{server}/tracked")[2])["tracked"]}


@pytest.fixture(scope="module")
def clouds() -> Iterator[tuple[str, str]]:
    with (
        serving_in_thread(data=":memory:", tasks_admin_only=False) as cloud,
        serving_in_thread(data=":memory:", track_first_s=0.1) as home,
    ):
        yield cloud.url, home.url


def test_a_submitted_job_is_followed_before_its_caller_sees_the_id(tmp_path: Path, clouds: tuple[str, str]) -> None:
    cloud, home = clouds
    with proxying(tmp_path, cloud, "native", home) as url, milepost.Client(url) as client:
        job = client.submit("echo", {"text": "through"})
        found = tracked(home)
        assert job.id in found
        assert found[job.id]["handle"]["endpoint"] == cloud
        assert job.wait(timeout_s=PATIENCE_S).result == {"text": "through"}
        with milepost.Client(home) as follower:
            assert follower.get(found[job.id]["id"]).wait(timeout_s=PATIENCE_S).result == {"text": "through"}


def test_what_is_no_submit_passes_unchanged(tmp_path: Path, clouds: tuple[str, str]) -> None:
    cloud, home = clouds
    with proxying(tmp_path, cloud, "native", home) as url:
        for method, path, body in (
            ("GET", "/kinds", None),
            ("GET", "/jobs?state=held&limit=3", None),
            ("GET", "/jobs/nobody", None),
            ("POST", "/jobs", {"kind": "nobody"}),
            ("PUT", "/queues/a%20b", {"limit": 3}),
        ):
            direct, passed = ask(method, cloud + path, body), ask(method, url + path, body)
            assert passed[0] == direct[0]
            assert passed[1].get("content-type") == direct[1].get("content-type")
            if direct[0] < 400:
                assert passed[2] == direct[2]
            assert "milepost-tracked" not in passed[1]
        assert ask("POST", url + "/jobs", {"kind": "echo"}, {"idempotency-key": "k"})[1]["milepost-tracked"]


def test_image_tasks_are_followed_by_their_own_id(tmp_path: Path, clouds: tuple[str, str]) -> None:
    cloud, home = clouds
    task = {"type": "import", "input": {"import_from": "http://127.0.0.1:1/x", "import_from_format": "raw",
            "image_properties": {"disk_format": "raw", "container_format": "bare"}}}  # fmt: skip
    with proxying(tmp_path, cloud, "glance", home) as url:
        status, headers, body = ask("POST", url + "/v2/tasks", task)
    assert status == 201, body
    assert headers["milepost-tracked"] == tracked(home)[json.loads(body)["id"]]["id"]


def test_while_the_server_is_away_ids_are_kept_and_followed_later(tmp_path: Path, clouds: tuple[str, str]) -> None:
    cloud, home = clouds
    file = tmp_path / "handles.jsonl"
    with proxying(tmp_path, cloud, "native", "http://127.0.0.1:9") as url:
        status, headers, body = ask("POST", url + "/jobs", {"kind": "echo"})
        assert (status, headers["milepost-tracked"]) == (202, "later")
    job_id = json.loads(body)["id"]
    assert json.loads(file.read_text().splitlines()[0])["handle"]["id"] == job_id
    with proxying(tmp_path, cloud, "native", home):
        end_s = time.monotonic() + PATIENCE_S
        while job_id not in tracked(home):
            assert time.monotonic() < end_s
            time.sleep(0.05)


def test_a_cloud_that_is_away_is_said_so(tmp_path: Path, clouds: tuple[str, str]) -> None:
    with proxying(tmp_path, "http://127.0.0.1:9", "native", clouds[1]) as url:
        status, _, body = ask("GET", url + "/jobs")
    assert (status, json.loads(body)["code"]) == (502, "unreachable")


async def test_a_large_body_passes_while_it_comes(tmp_path: Path) -> None:
    received: list[int] = []

    async def cloud(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")).split(b":")[1])
        received.append(len(await reader.readexactly(size)))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: text/plain\r\n\r\nok")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(cloud, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    body = bytes(20 << 20)

    def put() -> tuple[int, dict[str, str], bytes]:
        with proxying(tmp_path, f"http://127.0.0.1:{port}", "qiniu", "http://127.0.0.1:9") as url:
            return ask("PUT", url + "/object", body)

    async with server:
        status, _, answer = await asyncio.to_thread(put)
    assert (status, answer, received) == (200, b"ok", [len(body)])
