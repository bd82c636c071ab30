"""The tracker from outside: a server over a real socket follows jobs of clouds that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pyreqwest.client import ClientBuilder

import milepost
from milepost.job import State
from milepost.testing import Served, serving

PATIENCE_S = 60.0
SECRET = "hush-5f1e0c-never-shown"
QUICK = {"track_first_s": 0.05, "track_cap_s": 0.3, "track_refused_s": 0.2, "track_vanished_s": 0.6, "progress_every_s": 0}


class Cloud:
    """Speaks Huawei's job query; `answer` decides: (status, body)."""

    def __init__(self) -> None:
        self.answer: Callable[[str, dict[str, str]], tuple[int, Any]] = lambda id, _: (200, job(id, "RUNNING"))
        self.asked: list[dict[str, str]] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
                self.asked.append(headers)
                status, body = self.answer(head[0].split()[1].rpartition("/")[2], headers)
                if status == 0:
                    break
                sent = json.dumps(body).encode()
                writer.write(
                    f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(sent)}\r\n\r\n".encode()
                    + sent
                )
                await writer.drain()
        writer.close()


def job(id: str, status: str, **more: Any) -> dict[str, Any]:
    return {
        "job_id": id,
        "job_type": "createServer",
        "status": status,
        "begin_time": "2026-01-01T00:00:00Z",
        "entities": {},
        **more,
    }


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    cloud = Cloud()
    server = await asyncio.start_server(cloud.serve, "127.0.0.1", 0)
    cloud.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield cloud
    server.close()


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Served]:
    key = tmp_path / "key"
    key.write_text("ab" * 32)
    async with serving(data=str(tmp_path / "data"), secret_file=str(key), **QUICK) as served:
        yield served


async def ask(method: str, url: str, body: Any = None) -> tuple[int, Any]:
    async with ClientBuilder().build() as http:
        request = http.request(method, url)
        if body is not None:
            request = request.header("content-type", "application/json").body_bytes(json.dumps(body).encode())
        answer = await request.build().send()
        said = bytes(await answer.bytes())
        return answer.status, json.loads(said) if said else None


async def track(home: Served, cloud: Cloud, id: str = "ff808082739334d80173936ec4b70b5c", **more: Any) -> str:
    handle = {"wire": "huawei-ecs", "endpoint": cloud.url, "project": "p", "id": id}
    status, said = await ask("POST", f"{home.url}/tracked", {"handle": handle, **more})
    assert status in (200, 202), said
    return str(said["id"])


async def until(home: Served, id: str, true: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            _, shown = await ask("GET", f"{home.url}/tracked/{id}")
            if true(shown):
                return dict(shown)
            await asyncio.sleep(0.02)


async def test_a_failed_job_fails_with_the_clouds_code_and_shows_its_sub_jobs(home: Served, cloud: Cloud) -> None:
    subs = [
        job("a" * 32, "SUCCESS", entities={"server_id": "s-1"}),
        job("b" * 32, "FAIL", error_code="Ecs.0114", fail_reason="no capacity"),
    ]
    whole = job("", "FAIL", error_code="Ecs.0000", fail_reason="1 of 2", entities={"sub_jobs_total": 2, "sub_jobs": subs})
    cloud.answer = lambda id, _: (200, {**whole, "job_id": id} if len(cloud.asked) > 2 else job(id, "RUNNING"))
    ended = await home.ended(await track(home, cloud), patience_s=PATIENCE_S)
    assert ended.state is State.FAILED
    assert ended.error is not None
    assert (ended.error.code, ended.error.message) == ("Ecs.0000", "1 of 2")
    mirrored = await home.store.list_sub_jobs(ended.id)
    assert [(one.state, one.error and one.error.code) for one in mirrored] == [("succeeded", None), ("failed", "Ecs.0114")]
    async with milepost.AsyncClient(home.url) as client:
        with pytest.raises(milepost.PartialFailure):
            await (await client.get(ended.id)).wait()


async def test_a_cloud_that_hangs_up_makes_it_stale_and_is_asked_on(home: Served, cloud: Cloud) -> None:
    id = await track(home, cloud)
    await until(home, id, lambda shown: shown["status"] == "RUNNING")
    cloud.answer = lambda *_: (0, None)
    shown = await until(home, id, lambda shown: shown["job"]["progress"]["note"].startswith("stale since "))
    assert shown["status"] == "RUNNING"
    assert shown["stale_since"]
    cloud.answer = lambda id, _: (200, job(id, "SUCCESS"))
    shown = await until(home, id, lambda shown: shown["job"]["state"] == "succeeded")
    assert shown["stale_since"] is None
    events = await home.store.list_events(job_id=id)  # type: ignore[arg-type]
    assert any(b"stale since" in (event.data or b"") for event in events)


async def test_refused_credentials_are_shown_and_renewing_them_is_enough(home: Served, cloud: Cloud) -> None:
    def answer(id: str, headers: dict[str, str]) -> tuple[int, Any]:
        good = headers.get("x-auth-token") == SECRET + "-new"
        return (200, job(id, "SUCCESS")) if good else (401, {"error": {"code": "Ecs.0004", "message": "token expired"}})

    cloud.answer = answer
    assert (await ask("PUT", f"{home.url}/credentials/mine", {"type": "token", "endpoint": cloud.url, "token": SECRET}))[0] == 200
    id = await track(home, cloud, credential="mine")
    shown = await until(home, id, lambda shown: "credentials refused since" in shown["job"]["progress"]["note"])
    assert shown["refused_since"]
    assert shown["job"]["state"] in ("ready", "running")
    await ask("PUT", f"{home.url}/credentials/mine", {"type": "token", "endpoint": cloud.url, "token": SECRET + "-new"})
    assert (await home.ended(id, patience_s=PATIENCE_S)).state is State.SUCCEEDED


async def test_a_job_that_its_cloud_forgot_fails_as_vanished_with_its_last_state(home: Served, cloud: Cloud) -> None:
    id = await track(home, cloud)
    await until(home, id, lambda shown: shown["status"] == "RUNNING")
    cloud.answer = lambda *_: (404, {"error": {"code": "Common.0011", "message": "no such job"}})
    ended = await home.ended(id, patience_s=PATIENCE_S)
    assert ended.error is not None
    assert ended.error.code == "vanished"
    assert ended.error.details is not None
    assert ended.error.details["last_status"] == "RUNNING"
    again = await track(home, cloud)
    assert again != id, "one that was lost may be tracked anew"


async def test_a_job_that_is_missing_only_for_a_moment_goes_on(home: Served, cloud: Cloud) -> None:
    cloud.answer = lambda id, _: (
        (404, {"error": {"code": "Common.0011", "message": "not yet"}}) if len(cloud.asked) < 3 else (200, job(id, "SUCCESS"))
    )
    assert (await home.ended(await track(home, cloud), patience_s=PATIENCE_S)).state is State.SUCCEEDED


async def test_removing_ends_the_following_and_asks_no_more(home: Served, cloud: Cloud) -> None:
    id = await track(home, cloud)
    assert await track(home, cloud) == id
    await until(home, id, lambda shown: shown["status"] == "RUNNING")
    status, _ = await ask("DELETE", f"{home.url}/tracked/{id}")
    assert status in (200, 202)
    ended = await home.ended(id, patience_s=PATIENCE_S)
    assert ended.state is State.CANCELLED
    assert await track(home, cloud) != id


async def test_no_secret_is_in_the_database_an_answer_or_a_log(
    home: Served, cloud: Cloud, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []
    for name, fields in (
        ("token", {"type": "token", "token": SECRET}),
        ("keys", {"type": "keys", "access": "AK", "secret": SECRET}),
        ("keystone", {"type": "keystone", "auth_url": cloud.url, "username": "ann", "password": SECRET}),
    ):
        seen.append(await ask("PUT", f"{home.url}/credentials/{name}", {"endpoint": cloud.url, **fields}))
        id = await track(home, cloud, name * 4, credential=name)
        await until(
            home, id, lambda shown: shown["seen_at"] or shown["refused_since"] or shown["stale_since"] or shown["trouble"]
        )
        seen.append(await ask("GET", f"{home.url}/tracked/{id}"))
        seen.append(await ask("GET", f"{home.url}/jobs/{id}"))
        seen.append(await ask("GET", f"{home.url}/jobs/{id}/events"))
    seen.append(await ask("GET", f"{home.url}/credentials"))
    seen.append(await ask("GET", f"{home.url}/tracked"))
    assert SECRET not in repr(seen)
    assert SECRET not in caplog.text
    assert any(SECRET in str(headers) for headers in cloud.asked), "it was sent to its cloud"
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert any(path.name.startswith("milepost.db") for path in files)
    assert [path.name for path in files if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("handle", "path"),
    [
        ({"wire": "native", "id": "x"}, "$.input.handle.endpoint"),
        ({"wire": "native", "endpoint": "http://10.0.0.1", "id": "x"}, "$.handle.endpoint"),
        ({"wire": "native", "endpoint": "http://169.254.169.254", "id": "x"}, "$.handle.endpoint"),
        ({"wire": "native", "endpoint": "http://u:p@127.0.0.1", "id": "x"}, "$.handle.endpoint"),
        ({"wire": "nope", "endpoint": "http://127.0.0.1", "id": "x"}, "$.input.handle.wire"),
        ({"wire": "native", "endpoint": "file:///etc/passwd", "id": "x"}, "$.input.handle.endpoint"),
    ],
)
async def test_what_can_never_work_is_refused_at_once(home: Served, handle: dict[str, str], path: str) -> None:
    status, problem = await ask("POST", f"{home.url}/tracked", {"handle": handle})
    assert (status, problem["path"]) == (400, path)


async def test_a_credential_is_not_sent_to_a_host_that_a_handle_names(home: Served, cloud: Cloud) -> None:
    thief = Cloud()
    server = await asyncio.start_server(thief.serve, "127.0.0.1", 0)
    thief.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    await ask("PUT", f"{home.url}/credentials/mine", {"type": "token", "endpoint": cloud.url, "token": SECRET})
    handle = {"wire": "huawei-ecs", "endpoint": thief.url, "project": "p", "id": "x"}
    status, problem = await ask("POST", f"{home.url}/tracked", {"handle": handle, "credential": "mine"})
    assert (status, problem["path"]) == (400, "$.credential")
    _, made = await ask("POST", f"{home.url}/jobs", {"kind": "track", "input": {"handle": handle, "credential": "mine"}})
    ended = await home.ended(made["id"], patience_s=PATIENCE_S)
    assert ended.error is not None
    assert ended.error.code == "wrong_place"
    assert thief.asked == []
    server.close()


async def test_a_server_without_a_key_says_what_to_do(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MILEPOST_SECRET", raising=False)
    async with serving(data=":memory:", **QUICK) as bare:
        status, problem = await ask(
            "PUT", f"{bare.url}/credentials/mine", {"type": "token", "endpoint": cloud.url, "token": SECRET}
        )
        assert status == 409
        assert re.search("MILEPOST_SECRET_FILE", problem["hint"])
        assert SECRET not in repr(problem)
