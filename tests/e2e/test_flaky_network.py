"""Both clients through a network that fails in every way there is: no wait ends before its time, no job is made twice."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
import time
from collections import Counter
from typing import Any

import pytest
from rig import Server

import milepost
from milepost import errors

pytestmark = [pytest.mark.fault, pytest.mark.timeout(420)]

JOBS = 200
HTML = b"<html><title>502 Bad Gateway</title></html>"


def answer(status: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


# What the proxy answers by itself, without asking the server.
CANNED = {
    "500": answer("500 Internal Server Error", b"oops"),
    "502": answer("502 Bad Gateway", HTML, "Content-Type: text/html"),
    "503": answer("503 Service Unavailable", b"", "Retry-After: 0"),
    "429": answer("429 Too Many Requests"),
    "429 seconds": answer("429 Too Many Requests", b"{}", "Retry-After: 1", "Content-Type: application/json"),
    "429 date": answer("429 Too Many Requests", b"", "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"),
    "429 nonsense": answer("429 Too Many Requests", b"", "Retry-After: soon"),
    "half of a head": b"HTTP/1.1 200 O",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
}
# What it does to the server's own answer.
DONE_TO_IT = ("reset", "lost answer", "cut off", "cut off and said to be whole", "slow", "trickle")


class Flaky:
    """A proxy that spoils a share of the exchanges, each in the next of all the ways."""

    def __init__(self, url: str, share: float) -> None:
        self._target, self._share = int(url.rpartition(":")[2]), share
        self._random = random.Random(7)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.done: Counter[str] = Counter()

    def __enter__(self) -> Flaky:
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
            threading.Thread(target=self._exchange, args=(near,), daemon=True).start()

    def _trouble(self) -> str | None:
        ways = [*CANNED, *DONE_TO_IT]
        with self._lock:
            if self._random.random() >= self._share:
                return None
            way = ways[sum(self.done.values()) % len(ways)]
            self.done[way] += 1
            return way

    def _exchange(self, near: socket.socket) -> None:
        """One request on a connection of its own."""
        with near:
            try:
                request = read_message(near)
                trouble = self._trouble() if request else "reset"
                if trouble == "reset":
                    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif trouble in CANNED:
                    near.sendall(CANNED[trouble])
                else:
                    self._carry(near, request, trouble)
            except OSError:
                pass

    def _carry(self, near: socket.socket, request: bytes, trouble: str | None) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        with socket.create_connection(("127.0.0.1", self._target), 60) as far:
            far.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
            reply = b"".join(iter(lambda: far.recv(65536), b""))
        head, _, body = reply.partition(b"\r\n\r\n")
        if trouble == "lost answer":
            return
        if trouble == "cut off":
            reply = reply[: len(head) + 4 + len(body) // 2]
        elif trouble == "cut off and said to be whole" and body:
            kept = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
            half = body[: len(body) // 2]
            reply = b"\r\n".join([*kept, b"Content-Length: %d" % len(half), b"", half])
        elif trouble == "slow":
            time.sleep(0.5)
        step = max(len(reply) // 5, 1) if trouble == "trickle" else len(reply)
        for start in range(0, len(reply), step):
            near.sendall(reply[start : start + step])
            time.sleep(0.05 if trouble == "trickle" else 0)


def read_message(near: socket.socket) -> bytes:
    found = b""
    while b"\r\n\r\n" not in found:
        if not (part := near.recv(65536)):
            return b""
        found += part
    head, _, body = found.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    while len(body) < int(lengths[0] if lengths else 0):
        body += near.recv(65536)
    return head + b"\r\n\r\n" + body


def entries(name: str, count: int = JOBS) -> list[dict[str, Any]]:
    """Jobs of mixed outcomes and durations: a fifth of them fails."""
    kinds = [{"kind": "part", "input": {"fail": True}}, {"kind": "sleep", "input": {"duration_s": 0.5}}]
    return [{**(kinds[n % 5] if n % 5 < 2 else {"kind": "part", "input": {}}), "labels": {"set": name}} for n in range(count)]


def check(server: Server, name: str, proxy: Flaky, caught: errors.PartialFailure, jobs: list[Any]) -> None:
    failed = len(jobs) // 5
    assert (len(caught.succeeded), len(caught.failed)) == (len(jobs) - failed, failed)
    assert Counter(str(job.state) for job in jobs) == Counter(succeeded=len(jobs) - failed, failed=failed)
    assert all(job.problem is None for job in jobs)
    assert set(proxy.done) >= {*CANNED, *DONE_TO_IT}
    with milepost.Client(server.url) as direct:
        assert len(list(direct.list(labels={"set": name}))) == len(jobs)


def test_two_hundred_jobs_are_submitted_once_and_waited_for_through_every_fault(server: Server) -> None:
    with Flaky(server.url, 0.35) as proxy, milepost.Client(proxy.url, patience_s=60) as client:
        given = entries("flaky")
        jobs = client.submit_many(given[:185])
        jobs += [client.submit(one.pop("kind"), one.pop("input"), **one) for one in given[185:]]
        assert len({job.id for job in client.as_completed(jobs, timeout_s=200)}) == JOBS
        again = [client.attach(job.handle) for job in jobs]
        with pytest.raises(errors.PartialFailure) as caught:
            client.wait_all(again, timeout_s=200)
        check(server, "flaky", proxy, caught.value, again)


async def test_the_async_client_survives_the_same(server: Server) -> None:
    with Flaky(server.url, 0.35) as proxy:
        async with milepost.AsyncClient(proxy.url, patience_s=60) as client:
            given = entries("async")
            jobs = await client.submit_many(given[:185])
            jobs += await asyncio.gather(*(client.submit(one.pop("kind"), one.pop("input"), **one) for one in given[185:]))
            with pytest.raises(errors.PartialFailure) as caught:
                await client.wait_all(jobs, timeout_s=200)
            check(server, "async", proxy, caught.value, jobs)
            each = await asyncio.gather(*(client.wait(job.id, timeout_s=200, raise_on_failure=False) for job in jobs[:20]))
            assert all(job.done for job in each)


def test_somebody_elses_glance_is_waited_for_through_every_fault(server: Server) -> None:
    with milepost.Client(server.url) as direct:
        ids = [job.id for job in direct.submit_many(entries("glance", 100))]
    with Flaky(server.url, 0.3) as proxy, milepost.Client(proxy.url, wire="glance", token="any", patience_s=60) as client:
        jobs = [client.attach(id) for id in ids]
        with pytest.raises(errors.PartialFailure) as caught:
            client.wait_all(jobs, timeout_s=200)
        check(server, "glance", proxy, caught.value, jobs)
        with milepost.Client(server.url, wire="glance") as direct:  # a submit that may have worked is not sent twice on this wire
            task = direct.submit("echo", {"n": 1})
        assert client.wait(task.id, timeout_s=200).result == {"n": 1}


@pytest.mark.parametrize("wire", ["huawei-evs", "huawei-ecs", "qiniu"])
def test_jobs_that_are_asked_for_one_by_one_are_waited_for_through_every_fault(server: Server, wire: str) -> None:
    """The wires without lists: each answer is of one job, so each fault meets one."""
    with milepost.Client(server.url) as direct:
        ids = [job.id for job in direct.submit_many(entries(wire, 60))]
    caller = {"wire": wire, "project": "default", "token": "any", "patience_s": 60}
    with Flaky(server.url, 0.3) as proxy, milepost.Client(proxy.url, **caller) as client:
        jobs = [client.attach(id) for id in ids]
        with pytest.raises(errors.PartialFailure) as caught:
            client.wait_all(jobs, timeout_s=200)
        check(server, wire, proxy, caught.value, jobs)


@pytest.mark.parametrize("wire", ["native", "glance"])
def test_the_error_at_the_end_says_which_job_what_was_seen_and_how_to_go_on(server: Server, wire: str) -> None:
    with milepost.Client(server.url) as direct:
        ids = [direct.submit("sleep", {"duration_s": 600}).id for _ in range(3)]
        with Flaky(server.url, 0.4) as proxy, milepost.Client(proxy.url, wire=wire, patience_s=30) as client:
            job = client.get(ids[0])
            started_s = time.monotonic()
            with pytest.raises(errors.WaitTimeout) as caught:
                client.wait(job, timeout_s=4)
            assert 4 <= time.monotonic() - started_s < 30
            error = caught.value
            assert (error.job_id, error.state) == (ids[0], "running")
            assert 4 <= error.elapsed_s < 30
            assert error.request_id
            assert error.hint.startswith(f"milepost wait {ids[0]} ")
            assert error.hint.endswith(f"--url {proxy.url}")
            assert error.fields["failures"] == job.stats.failures > 0
            with pytest.raises(errors.WaitTimeout) as many:
                client.wait_all(ids, timeout_s=4)
            assert sorted(many.value.fields["pending"]) == sorted(ids)
            assert all(id in many.value.hint for id in ids)
        for id in ids:
            direct.cancel(id)
