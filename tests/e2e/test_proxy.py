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
from subprocess import PIPE, Popen, run
from typing import Any

import pytest
from pyreqwest.client import SyncClientBuilder
from pyreqwest.exceptions import PyreqwestError

import milepost
from milepost.testing import serving_in_thread
from milepost.wire import Request
from milepost.wire.signing import huawei, qiniu

PATIENCE_S = 60.0
MILEPOST = str(Path(sys.executable).with_name("milepost"))


def start(
    cwd: Path, words: list[str], server: str, *, env: dict[str, str] | None = None, command: str = "proxy"
) -> tuple[Popen[str], str]:
    """The process and its URL."""
    argv = [MILEPOST, command, *words, "--port", "0", "--url", server]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MILEPOST_", "HUAWEICLOUD_", "QINIU_"))}
    process = Popen(argv, cwd=cwd, stdout=PIPE, stderr=PIPE, text=True, env=kept | (env or {}))
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready "), (line, process.communicate(timeout=20)[1])
    return process, line.split()[1]


@contextmanager
def proxying(cwd: Path, to: str, wire: str, server: str, *more: str, env: dict[str, str] | None = None) -> Iterator[str]:
    process, url = start(cwd, [to, "--of", wire, *more], server, env=env)
    try:
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0, "it did not end in order"


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


# --- signed requests ---------------------------------------------------------------------------------------------------


class StrictCloud:
    """A cloud that verifies signatures for its own host and no other, as one behind a gateway does; it answers with a job."""

    def __init__(self) -> None:
        self.server: Any = None
        self.verdicts: list[tuple[int, str]] = []
        self.nonces: list[bytes] = []
        self.keys = {"AK": "secret", "QAK": "qsecret"}

    async def __aenter__(self) -> StrictCloud:
        self.server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        self.host = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        self.url = f"http://{self.host}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower().encode(): value.strip().encode() for name, _, value in (one.partition(":") for one in lines)}
            body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
            method, target, _ = first.split(" ")
            path, _, query = target.partition("?")
            why = self.judge(huawei.Message(method, path.encode(), query.encode(), headers, body))
            self.verdicts.append((401 if why else 200, why))
            self.nonces += [value for name, value in headers.items() if name == b"x-milepost-nonce"]
            told = json.dumps(
                {"error_msg": why} if why else {"job_id": f"job-{len(self.verdicts)}", "persistentId": "z0.1"}
            ).encode()
            line = "401 Unauthorized" if why else "200 OK"
            writer.write(
                f"HTTP/1.1 {line}\r\ncontent-type: application/json\r\ncontent-length: {len(told)}\r\n\r\n".encode() + told
            )
            await writer.drain()
        writer.close()

    def judge(self, message: huawei.Message) -> str:
        """Why it is refused; empty when it is not."""
        if message.headers[b"host"].decode() != self.host:
            return f"host {message.headers[b'host'].decode()} is not served here"
        given = message.headers[b"authorization"].decode()
        if qiniu.is_signed(given.encode()):
            asked = qiniu.read_claim(given)
            return "" if qiniu.verify(asked, message, self.keys[asked.access]) else "wrong signature"
        claim = huawei.read_claim(given)
        huawei.check_form(claim, message, host_required=True)
        return "" if huawei.verify(claim, message, self.keys[claim.access]) else "wrong signature"


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return (await reader.readuntil(b"\r\n\r\n"))[:-4]
    except asyncio.IncompleteReadError:
        return b""


def evs_client(url: str, access: str, secret: str, project: str = "p1") -> Any:
    core = pytest.importorskip("huaweicloudsdkcore.auth.credentials")
    evs = pytest.importorskip("huaweicloudsdkevs.v2")
    credentials = core.BasicCredentials(access, secret, project)
    return evs.EvsClient.new_builder().with_credentials(credentials).with_endpoint(url).build()


def new_volume(client: Any) -> str:
    evs = pytest.importorskip("huaweicloudsdkevs.v2")
    option = evs.CreateVolumeOption(availability_zone="az-1", volume_type="SAS", size=10, name="through")
    request = evs.CreateVolumeRequest(body=evs.CreateVolumeRequestBody(volume=option))
    return str(client.create_volume(request).job_id)


async def test_the_sdks_signature_is_made_again_for_the_cloud_whose_host_it_must_have(tmp_path: Path) -> None:
    exceptions = pytest.importorskip("huaweicloudsdkcore.exceptions.exceptions")
    async with StrictCloud() as cloud:

        def ask_with_keys() -> list[str]:
            keys = {"HUAWEICLOUD_SDK_AK": "AK", "HUAWEICLOUD_SDK_SK": "secret"}
            with proxying(tmp_path, cloud.url, "huawei-evs", "http://127.0.0.1:9", env=keys) as url:
                made = [new_volume(evs_client(url, "AK", "secret")) for _ in range(3)]
                with pytest.raises(exceptions.ClientRequestException, match="not made for this request"):
                    new_volume(evs_client(url, "AK", "another"))
                return made

        made = await asyncio.to_thread(ask_with_keys)
        assert made == ["job-1", "job-2", "job-3"]
        assert cloud.verdicts == [(200, "")] * 3, "one that its caller signed wrongly was lent a key"
        assert len(set(cloud.nonces)) == 3
        entries = [json.loads(line) for line in (tmp_path / "handles.jsonl").read_text().splitlines()]
        assert [(one["handle"]["id"], one["handle"]["project"]) for one in entries] == [(one, "p1") for one in made]
        assert "secret" not in (tmp_path / "handles.jsonl.sent").read_text()

        def ask_without() -> None:
            with (
                proxying(tmp_path, cloud.url, "huawei-evs", "http://127.0.0.1:9") as url,
                pytest.raises(exceptions.ClientRequestException, match="is not served here"),
            ):
                new_volume(evs_client(url, "AK", "secret"))

        await asyncio.to_thread(ask_without)


async def test_qinius_signature_is_made_again_and_the_one_without_a_host_passes(tmp_path: Path) -> None:
    form = b"bucket=b&key=k&fops=imageInfo"
    headers = {"content-type": "application/x-www-form-urlencoded"}
    async with StrictCloud() as cloud:

        def asked() -> list[tuple[int, dict[str, str], bytes]]:
            keys = {"QINIU_ACCESS_KEY": "QAK", "QINIU_SECRET_KEY": "qsecret"}
            with proxying(tmp_path, cloud.url, "qiniu", "http://127.0.0.1:9", env=keys) as url:
                found = []
                for scheme in qiniu.Scheme:
                    request = Request("POST", f"{url}/pfop/", headers, form)
                    signed = qiniu.sign(request, huawei.Key("QAK", "qsecret"), scheme=scheme, at_us=time.time_ns() // 1000)
                    found.append(ask("POST", f"{url}/pfop/", form, dict(signed.headers)))
                return found

        answers = await asyncio.to_thread(asked)
        assert [status for status, _, _ in answers] == [200, 200], answers
        assert cloud.verdicts == [(200, "")] * 2


def test_a_signed_sdk_makes_a_volume_through_the_proxy_in_a_milepost_that_asks_who_it_is(tmp_path: Path) -> None:
    evs = pytest.importorskip("huaweicloudsdkevs.v2")
    with (
        serving_in_thread(data=":memory:", auth="required") as cloud,
        serving_in_thread(data=":memory:", track_first_s=0.1) as home,
    ):
        key = asyncio.run(_access_key(cloud))
        for keys in ({"HUAWEICLOUD_SDK_AK": key.id, "HUAWEICLOUD_SDK_SK": key.secret}, {}):
            with proxying(tmp_path, cloud.url, "huawei-evs", home.url, env=keys) as url:
                client = evs_client(url, key.id, key.secret, str(key.project))
                job_id = new_volume(client)
                assert job_id in tracked(home.url)
                end_s = time.monotonic() + PATIENCE_S
                while (shown := client.show_job(evs.ShowJobRequest(job_id=job_id))).status != "SUCCESS":
                    assert shown.status in ("INIT", "RUNNING"), shown
                    assert time.monotonic() < end_s
                    time.sleep(0.05)


async def _access_key(cloud: Any) -> Any:
    identities = cloud.system.identities
    await identities.create_project("demo")
    await identities.create_user("mia", "a long password")
    await identities.grant("mia", "demo", "member")
    return await identities.create_access_key("mia", "demo")


# --- killed ------------------------------------------------------------------------------------------------------------


async def test_a_submit_whose_proxy_is_killed_before_the_answer_is_recorded_is_told_at_the_next_start(tmp_path: Path) -> None:
    """The cloud has the request, and its answer comes to nobody: no id is known, and that is said."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def cloud(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await _head(reader)
        await reader.readexactly(int(next(one for one in head.lower().split(b"\r\n") if b"content-length" in one).split(b":")[1]))
        asked.set()
        await answer.wait()
        writer.close()

    server = await asyncio.start_server(cloud, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        process, proxy = await asyncio.to_thread(start, tmp_path, [url, "--of", "huawei-ecs"], "http://127.0.0.1:9")
        body = {"server": {"name": "web"}}
        headers = {"x-client-token": "token-1"}
        submit = asyncio.create_task(asyncio.to_thread(ask, "POST", f"{proxy}/v1/p1/cloudservers?a=secret", body, headers))
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        process.kill()
        process.wait(PATIENCE_S)
        with pytest.raises(PyreqwestError):
            await submit
        answer.set()
        for more, told in (([], True), (["--seen"], True), ([], False)):
            process, _ = await asyncio.to_thread(start, tmp_path, [url, "--of", "huawei-ecs", *more], "http://127.0.0.1:9")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0
            plain = " ".join(said.split())
            assert ("unknown outcome: POST /v1/p1/cloudservers at" in plain) == told, said
            assert ("token-1" in plain) == told
            assert "secret" not in said


async def test_a_submit_that_the_cloud_refused_or_never_got_leaves_no_doubt(tmp_path: Path) -> None:
    async with StrictCloud() as cloud:
        cloud.keys = {"AK": "changed"}

        def asked() -> int:
            signed = huawei.sign(Request("POST", f"{cloud.url}/v1/p1/cloudservers", {}, b"{}"), huawei.Key("AK", "x"), at_us=0)
            with proxying(tmp_path, cloud.url, "huawei-ecs", "http://127.0.0.1:9") as url:
                return ask("POST", url + "/v1/p1/cloudservers", b"{}", dict(signed.headers))[0]

        assert await asyncio.to_thread(asked) == 401
    process, url = start(tmp_path, ["http://127.0.0.1:9", "--of", "huawei-ecs"], "http://127.0.0.1:9")
    assert ask("POST", url + "/v1/p1/cloudservers", {"server": {}})[0] == 502
    process.send_signal(signal.SIGINT)
    assert "unknown outcome" not in process.communicate(timeout=PATIENCE_S)[1]
    process, _ = start(tmp_path, ["http://127.0.0.1:9", "--of", "huawei-ecs"], "http://127.0.0.1:9")
    process.send_signal(signal.SIGINT)
    assert "unknown outcome" not in process.communicate(timeout=PATIENCE_S)[1]


def test_a_request_that_cannot_be_noted_is_not_sent(tmp_path: Path, clouds: tuple[str, str]) -> None:
    cloud, home = clouds
    with proxying(tmp_path, cloud, "native", home) as url:
        (tmp_path / "handles.jsonl.sent").mkdir()
        before = ask("GET", f"{cloud}/jobs")[2]
        status, _, body = ask("POST", f"{url}/jobs", {"kind": "echo"})
        assert (status, "was not sent" in json.loads(body)["detail"]) == (503, True)
        assert ask("GET", f"{cloud}/jobs")[2] == before


def test_the_other_spelling_is_the_same_proxy(tmp_path: Path, clouds: tuple[str, str]) -> None:
    cloud, home = clouds
    process, url = start(tmp_path, ["--proxy", cloud, "--of", "native"], home, command="track")
    try:
        _, headers, body = ask("POST", url + "/jobs", {"kind": "echo"})
        assert headers["milepost-tracked"] == tracked(home)[json.loads(body)["id"]]["id"]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    for words in (["--proxy", cloud], ["--url", home, "list"], []):
        assert run([MILEPOST, "track", *words], capture_output=True, timeout=30).returncode == 2
