"""Both clients against a real server over a real socket: the drivers, the transport, and faults of both."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest
from rig import Server
from rig import milepost as milepost_command

import milepost
from milepost import errors


@pytest.fixture
def client(server: Server) -> Iterator[milepost.Client]:
    with milepost.Client(server.url) as one:
        yield one


class Echo(msgspec.Struct):
    text: str


def test_a_job_from_submit_to_result(client: milepost.Client) -> None:
    job = client.submit("echo", Echo("hello"), labels={"a": "b"})
    assert job.wait(timeout_s=60).result == {"text": "hello"}
    assert (job.state, job.done, job.ok) == (milepost.State.SUCCEEDED, True, True)
    assert client.get(job).view == job.view
    with milepost.Client.from_handle(json.loads(json.dumps(job.handle))) as other:
        assert other.attach(job.handle).wait(timeout_s=60).result == {"text": "hello"}


def test_a_long_poll_ends_with_the_job_and_not_with_an_interval(client: milepost.Client) -> None:
    job = client.submit("sleep", {"duration_s": 1.5})
    began_s = time.monotonic()
    job.wait(timeout_s=60)
    assert time.monotonic() - began_s < 20
    assert job.stats.probes <= 2


def test_errors_are_typed_and_name_the_job(client: milepost.Client) -> None:
    with pytest.raises(errors.UnknownKind):
        client.submit("nope")
    with pytest.raises(errors.InvalidInput) as wrong:
        client.submit("sleep", {"duration_s": "x"})
    assert wrong.value.path == "$.input.duration_s"
    assert wrong.value.request_id
    with pytest.raises(errors.NotFound):
        client.get("0197a000-0000-7000-8000-000000000000")
    job = client.submit("part", {"fail": True})
    with pytest.raises(errors.JobFailed, match="the part is broken") as failed:
        job.wait(timeout_s=60)
    assert (failed.value.job_id, failed.value.state) == (job.id, "failed")
    fan = client.submit("fan", {"n": 3, "fail": [0]})
    with pytest.raises(errors.PartialFailure) as partly:
        fan.wait(timeout_s=60)
    assert (len(partly.value.succeeded), len(partly.value.failed)) == (2, 1)


def test_as_completed_gives_jobs_as_they_end(client: milepost.Client) -> None:
    slow = client.submit("sleep", {"duration_s": 3})
    many = client.submit_many([{"kind": "echo", "input": n} for n in range(150)])
    came = [job.id for job in client.as_completed([slow, *many], timeout_s=60)]
    assert came[-1] == slow.id
    assert sorted(came) == sorted(job.id for job in (slow, *many))
    assert [job.result for job in many] == list(range(150))
    assert client.wait_all([slow, *many], timeout_s=60) == [slow, *many]


def test_listing_goes_over_pages(client: milepost.Client) -> None:
    client.wait_all(client.submit_many([{"kind": "echo", "labels": {"set": "pages"}} for _ in range(7)]), timeout_s=30)
    found = list(client.list(labels={"set": "pages"}, page_size=3))
    assert len({job.id for job in found}) == 7
    assert [job.view.created_us for job in found] == sorted((job.view.created_us for job in found), reverse=True)
    assert len(list(client.list(labels={"set": "pages"}, limit=5))) == 5


def test_watch_shows_the_tree_and_ends_with_the_end(client: milepost.Client) -> None:
    views = list(client.watch(client.submit("fan", {"n": 3}), timeout_s=30, tree=True))
    assert views[-1].done
    assert [sub.state for sub in views[-1].sub_jobs] == ["succeeded"] * 3
    assert not any(view.done for view in views[:-1])


def test_events_come_as_they_happen(client: milepost.Client) -> None:
    job = client.submit("sleep", {"duration_s": 2, "steps": 2})
    came = [(event.type, time.monotonic()) for event in client.events(job, follow=True)]
    assert came[-1][0] == "succeeded"
    assert came[-1][1] - came[0][1] > 1.0, "they came all at once, at the end"
    assert [event.type for event in client.events(job)] == [type for type, _ in came]


def test_the_same_job_over_glances_wire(server: Server, client: milepost.Client) -> None:
    job = client.submit("echo", {"n": 1}).wait(timeout_s=60)
    with milepost.Client(server.url + "/v2/", wire="glance") as glance:
        seen = glance.wait(job.id, timeout_s=60)
        assert (seen.status, seen.result, seen.state) == ("success", {"n": 1}, "succeeded")
        lost = {"import_from": "http://127.0.0.1:1/x.raw", "import_from_format": "raw"}
        properties = {"name": "x", "disk_format": "raw", "container_format": "bare"}
        tasks = [glance.submit("import", {**lost, "image_properties": properties}) for _ in range(3)]
        listed = [one.id for one in glance.list(page_size=2)]
        assert listed == [task.id for task in reversed(tasks)]  # image tasks only
        for task in tasks:
            client.cancel(task.id)
        with pytest.raises(errors.Conflict):
            seen.cancel()
        with pytest.raises(errors.NotFound):
            glance.get("0197a000-0000-7000-8000-000000000000")


def test_a_closed_client_says_so(server: Server) -> None:
    client = milepost.Client(server.url)
    job = client.submit("echo", {})
    for _ in range(2):
        client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.get(job)
    with pytest.raises(RuntimeError, match="closed"):
        job.wait()


def test_ctrl_c_ends_a_blocking_wait_at_once(client: milepost.Client) -> None:
    job = client.submit("sleep", {"duration_s": 600})
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    began_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        job.wait(timeout_s=60)
    assert time.monotonic() - began_s < 50
    assert job.refresh().state == "running"
    job.cancel()


async def test_the_async_client_does_the_same(server: Server) -> None:
    async with milepost.AsyncClient(server.url) as client:
        job = await client.submit("echo", {"n": 1})
        assert (await job.wait(timeout_s=60)).result == {"n": 1}
        jobs = [await client.submit("sleep", {"duration_s": 0.2 * n}) for n in (3, 1)]
        assert len([one async for one in client.as_completed(jobs, timeout_s=30)]) == 2
        views = [view async for view in client.watch(await client.submit("fan", {"n": 2}), timeout_s=30, tree=True)]
        assert len(views[-1].sub_jobs) == 2
        assert [event.type async for event in client.events(job, follow=True)][-1] == "succeeded"
        with pytest.raises(errors.WaitTimeout):
            await client.wait(await client.submit("sleep", {"duration_s": 600}), timeout_s=2)
        found = [one.id async for one in client.list(limit=3)]
        assert len(found) == 3


async def test_a_cancelled_async_wait_ends_at_once_and_the_client_works_on(server: Server) -> None:
    async with milepost.AsyncClient(server.url) as client:
        job = await client.submit("sleep", {"duration_s": 600})
        began_s = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await job.wait()
        assert time.monotonic() - began_s < 60
        assert (await client.cancel(job)).id == job.id
        with pytest.raises(errors.JobCancelled):
            await job.wait(timeout_s=60)


CLOUDS = """
clouds:
  here:
    region_name: RegionOne
    auth: {{auth_url: "{url}/identity", username: alice, password: "{password}", project_name: demo,
           user_domain_name: Default, project_domain_name: Default}}
"""


def test_a_cloud_of_clouds_yaml_is_reached_by_password_and_by_application_credential(own_server: Server, monkeypatch) -> None:
    own_server.arguments, own_server.env = ("--auth", "required"), {"MILEPOST_EGRESS_PRIVATE": "true"}
    own_server.start()
    data, password = ["--data", str(own_server.folder / "data"), "--json"], "correct horse battery"
    milepost_command("project", "create", "demo", *data)
    milepost_command("user", "create", "alice", "--password-stdin", *data, stdin=password)
    milepost_command("user", "grant", "alice", "demo", "admin", *data)
    key = milepost_command("key", "create", "laptop", *data).json["token"]
    clouds = own_server.folder / "clouds.yaml"
    clouds.write_text(CLOUDS.format(url=own_server.url, password=password))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds))

    lost = {"import_from": "http://127.0.0.1:1/x.raw", "import_from_format": "raw"}
    lost["image_properties"] = {"name": "x", "disk_format": "raw", "container_format": "bare"}
    with milepost.Client(cloud="here") as glance:
        task = glance.submit("import", lost)
        assert task.kind == "import"
        handle = task.handle
    assert (handle["cloud"], handle["endpoint"]) == ("here", own_server.url)
    assert password not in json.dumps(handle)
    with milepost.Client.from_handle(handle) as again:
        assert again.get(handle).id == task.id
    shown = own_server.run("get", task.id, "--cloud", "here", "--json")  # it runs beside the file
    assert shown.json["handle"]["cloud"] == "here"

    credential = {"application_credential_name": "laptop", "application_credential_secret": key, "username": "alice"}
    who = milepost.Credentials(auth_url=f"{own_server.url}/v3", **credential)
    with milepost.Client(wire="native", credentials=who) as native:
        assert native.get(task.id).id == task.id
        native.cancel(task.id)
    wrong = milepost.Credentials(auth_url=f"{own_server.url}/v3", username="alice", password="wrong", project_name="demo")
    with milepost.Client(wire="glance", credentials=wrong) as nobody, pytest.raises(errors.Unauthenticated, match="refused"):
        nobody.get(task.id)


@pytest.mark.fault
def test_an_answer_that_is_cut_off_is_survived(server: Server) -> None:
    """A proxy that cuts every second answer off in the middle: no wait fails, no job is made twice."""
    with Cutting(server.url) as proxy, milepost.Client(proxy.url, patience_s=30) as client:
        jobs = [client.submit("echo", {"n": n}, labels={"set": "cut"}) for n in range(4)]
        assert [job.result for job in client.wait_all(jobs, timeout_s=60)] == [{"n": n} for n in range(4)]
        assert proxy.cut > 2
    with milepost.Client(server.url) as direct:
        assert len(list(direct.list(labels={"set": "cut"}))) == 4


class Cutting:
    """A TCP proxy that closes every second connection after the first bytes of its answer."""

    def __init__(self, url: str) -> None:
        self._target = int(url.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut = self._number = 0

    def __enter__(self) -> Cutting:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._number += 1
            threading.Thread(target=self._carry, args=(near, self._number % 2 == 1), daemon=True).start()

    def _carry(self, near: socket.socket, cutting: bool) -> None:
        with near, socket.create_connection(("127.0.0.1", self._target)) as far:
            request = near.recv(1 << 20)
            # One request a connection, so that the next one comes on a new connection.
            far.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            while part := far.recv(65536):
                if cutting:
                    self.cut += 1
                    near.sendall(part[:40])
                    return
                near.sendall(part)
