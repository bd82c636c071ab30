"""Subscriptions end to end: a real server, a real receiver, both clients and the command."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import standardwebhooks
from rig import COMMAND, Server, environ
from rig import milepost as milepost_command

import milepost

DEADLINE_S = 30.0


class Inbox:
    """A receiver that keeps what comes; `status` is its answer."""

    def __init__(self) -> None:
        self.came: list[tuple[dict[str, str], bytes]] = []
        self.status = 204
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                inbox.came.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(inbox.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.came]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    one = Inbox()
    yield one
    one.close()


def until(true: Callable[[], Any]) -> Any:
    end_s = time.monotonic() + DEADLINE_S
    while not (found := true()):
        assert time.monotonic() < end_s, "in time"
        time.sleep(0.02)
    return found


def test_a_subscription_from_its_making_to_its_removal(server: Server, inbox: Inbox) -> None:
    with milepost.Client(server.url) as client:
        one = client.subscriptions.add(inbox.url, on=["running", "final"], labels={"run": "first"})
        assert isinstance(one.secret, str)
        other = client.submit("echo", {"text": "not this one"})
        job = client.submit("echo", {"text": "hello"}, labels={"run": "first"})
        client.wait_all([job, other], timeout_s=DEADLINE_S)
        until(lambda: len(inbox.came) == 2)
        assert sorted(inbox.types) == ["job.started", "job.succeeded"]
        for headers, body in inbox.came:
            said = standardwebhooks.Webhook(one.secret).verify(body, headers)
            assert (said["data"]["id"], said["subscription"]) == (job.id, one.id)
        log = until(lambda: [each for each in client.subscriptions.deliveries(one.id) if each.state == "delivered"][1:] and True)
        assert log
        client.subscriptions.pause(one.id)
        paused = client.submit("echo", {"text": "later"}, labels={"run": "first"}).wait(timeout_s=DEADLINE_S)
        assert len(client.subscriptions.of_job(paused.id)) == 0
        client.subscriptions.resume(one.id)
        until(lambda: len(inbox.came) == 4)
        again = client.subscriptions.redeliver(client.subscriptions.of_job(job.id)[0].id)
        until(lambda: len(inbox.came) == 5)
        assert inbox.came[-1][0]["webhook-id"] == again.id
        client.subscriptions.remove(one.id)
        with pytest.raises(milepost.NotFound):
            client.subscriptions.get(one.id)


async def test_the_same_for_asyncio_and_a_callback_with_words(server: Server, inbox: Inbox) -> None:
    async with milepost.AsyncClient(server.url) as client:
        one = await client.subscriptions.add(inbox.url, on="failed", kinds=["part"])
        changed = await client.subscriptions.change(one.id, description="parts", sub_jobs=True)
        assert (changed.on, changed.sub_jobs) == (("failed",), True)
        job = await client.submit("fan", {"n": 2, "fail": [1]}, callback_url=inbox.url, callback_on=["waiting", "final"])
        await job.wait(timeout_s=DEADLINE_S, raise_on_failure=False)
        until(lambda: len(inbox.came) == 3)
        assert sorted(inbox.types) == ["job.failed", "job.failed", "job.waiting"]
        assert [each.id for each in await client.subscriptions.list()] == [one.id]
        await client.subscriptions.ping(one.id)
        until(lambda: "ping" in inbox.types)
        await client.subscriptions.remove(one.id)


def test_a_receiver_that_is_gone_stops_its_subscription_and_the_command_shows_why(server: Server, inbox: Inbox) -> None:
    inbox.status = 410
    made = milepost_command("subscription", "add", inbox.url, "--on", "submitted", "--json", MILEPOST_URL=server.url).json
    milepost_command("submit", "echo", '{"text": "x"}', MILEPOST_URL=server.url)

    def shown() -> Any:
        return milepost_command("subscription", "show", made["id"], "--json", MILEPOST_URL=server.url).json

    assert until(lambda: (one := shown())["state"] == "paused" and one)["reason"].startswith("gone")
    (line,) = milepost_command("subscription", "log", made["id"], "--json", MILEPOST_URL=server.url).lines
    assert (line["state"], line["last_status"]) == ("given_up", 410)
    inbox.status = 204
    assert milepost_command("subscription", "resume", made["id"], MILEPOST_URL=server.url).code == 0
    milepost_command("subscription", "redeliver", line["id"], MILEPOST_URL=server.url)
    until(lambda: len(inbox.came) == 2)
    assert milepost_command("subscription", "remove", made["id"], MILEPOST_URL=server.url).code == 0
    assert milepost_command("subscription", "show", made["id"], MILEPOST_URL=server.url).code == 6


def test_a_wrong_word_is_named_with_those_that_there_are(server: Server) -> None:
    done = milepost_command("subscription", "add", "http://127.0.0.1:9/", "--on", "finnal", MILEPOST_URL=server.url)
    assert (done.code, "finnal" in done.err, "cancel_requested" in done.err) == (2, True, True)


def test_watch_shows_a_label_of_the_project_and_goes_on_over_a_restart(own_server: Server) -> None:
    own_server.start()
    watch = subprocess.Popen(
        [*COMMAND, "watch", "--label", "run=mine", "--on", "final", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ(MILEPOST_URL=own_server.url),
    )
    assert watch.stdout is not None
    try:
        with milepost.Client(own_server.url) as client:

            def streams() -> bool:
                return "milepost_streams_open 1.0" in _metrics(own_server.url)

            until(streams)
            mine = client.submit("echo", {"text": "a"}, labels={"run": "mine"}).wait(timeout_s=DEADLINE_S)
            client.submit("echo", {"text": "b"}).wait(timeout_s=DEADLINE_S)
            assert json.loads(watch.stdout.readline())["job_id"] == mine.id
            own_server.end(signal.SIGKILL)
            own_server.start()
            again = client.submit("echo", {"text": "c"}, labels={"run": "mine"}).wait(timeout_s=DEADLINE_S)
            seen = json.loads(watch.stdout.readline())
            assert (seen["job_id"], seen["type"]) == (again.id, "succeeded")
    finally:
        watch.send_signal(signal.SIGINT)
        watch.communicate(timeout=DEADLINE_S)
    assert watch.returncode == 130


def _metrics(url: str) -> str:
    import urllib.request

    with urllib.request.urlopen(url + "/metrics", timeout=10) as answer:
        found: str = answer.read().decode()
    return found
