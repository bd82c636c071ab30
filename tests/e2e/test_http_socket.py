"""What only a real socket shows: readers that are slow or gone, connections that are kept, and a stop with streams open."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from milepost.engine.kinds import Kinds
from milepost.server import events
from milepost.settings import Settings
from milepost.store import JobQuery
from milepost.wiring import System, running_server

DEADLINE_S = 60.0
LINES = b"GET /events?after=0 HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n"


POST = b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
POLL = b"GET /jobs/%s HTTP/1.1\r\nHost: 127.0.0.1\r\nPrefer: wait=%d\r\n\r\n"


class Running(msgspec.Struct):
    system: Any
    host: str
    port: int

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port)

    @property
    def open_streams(self) -> int:
        return int(self.system.app.state.slots.open)


async def noop(job: Any) -> None:
    """Nothing."""


def settings(folder: Any) -> Settings:
    return Settings(port=0, data=str(folder / "data"))


def split(system: System, url: str) -> Running:
    host, port = url.removeprefix("http://").split(":")
    return Running(system, host, int(port))


@pytest.fixture
async def server(tmp_path: Any) -> AsyncIterator[Running]:
    kinds = Kinds()
    kinds.kind("noop")(noop)
    async with running_server(settings(tmp_path), kinds=kinds) as (system, url):
        yield split(system, url)


async def until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(DEADLINE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return int(lines[0].split()[1]), headers, body


async def submit(server: Running, count: int) -> None:
    service = server.system.service
    for at in range(0, count, 1000):
        await service.submit_many([service.submission("noop") for _ in range(min(1000, count - at))])


async def held_job(server: Running) -> bytes:
    added = await server.system.service.submit(server.system.service.submission("noop", held=True))
    return str(added.job.id).encode()


async def test_a_reader_that_stops_is_not_buffered_for_and_misses_nothing(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, real = 0, events._send

    async def counting(call: Any, body: bytes) -> None:
        nonlocal sent
        await real(call, body)
        sent += len(body)

    monkeypatch.setattr(events, "_send", counting)
    reader, writer = await server.open()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(LINES)
    await submit(server, 20_000)
    store = server.system.store
    async with asyncio.timeout(DEADLINE_S):
        while (last := await store.last_event_id()) < 60_000:
            await asyncio.sleep(0.05)
    held = sent
    assert held < 8 << 20, "what the kernel's socket buffers hold, and no more"

    writer.transport.resume_reading()  # type: ignore[attr-defined]
    seen: list[int] = []
    rest = b""
    async with asyncio.timeout(DEADLINE_S):
        while not seen or seen[-1] < last:
            rest += await reader.read(1 << 20)
            whole, _, rest = rest.rpartition(b"\n\n")
            seen += map(int, re.findall(rb"id: (\d+)\nevent: ", whole))
    writer.close()
    assert seen == list(range(1, last + 1))
    assert sent > held


async def test_a_reader_that_hangs_up_gives_its_slot_back(server: Running) -> None:
    for line in (LINES, POLL % (await held_job(server), 60)):
        _, writer = await server.open()
        writer.write(line)
        await until(lambda: server.open_streams == 1)
        writer.transport.abort()
        await until(lambda: server.open_streams == 0)


async def test_a_connection_is_kept_after_a_long_poll(server: Running) -> None:
    id = await held_job(server)
    reader, writer = await server.open()
    for _ in range(3):
        writer.write(POLL % (id, 60))
        await until(lambda: server.open_streams == 1)
        server.system.app.state.hub._wake(await server.system.store.list_events())  # a change that is not enough
        await server.system.service.cancel((await server.system.service.list(JobQuery()))[0].id, project=None)
        status, _, body = await read_answer(reader)
        assert (status, msgspec.json.decode(body)["state"]) == (200, "cancelled")
        id = await held_job(server)
    writer.close()


async def test_one_connection_serves_many_requests_and_refusals(server: Running) -> None:
    reader, writer = await server.open()
    statuses = []
    for body in (b'{"kind":"noop"}', b"{", b'{"kind":"none"}', b'[{"kind":"noop"}]'):
        writer.write(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        status, headers, answer = await read_answer(reader)
        statuses.append(status)
        assert msgspec.json.decode(answer)
        assert "x-request-id" in headers
    writer.write(b"HEAD /v3 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert " 200 " in head
    status, _, answer = await read_answer(reader)  # a body after the HEAD would have been read as this answer
    assert (statuses, status, answer) == ([202, 400, 400, 202], 200, b'{"status":"ok"}')
    writer.close()


async def test_a_body_announced_too_large_is_refused_before_it_is_sent(server: Running) -> None:
    reader, writer = await server.open()
    writer.write(POST + b"Content-Length: 999999999\r\n\r\n")
    status, _, answer = await read_answer(reader)
    assert (status, msgspec.json.decode(answer)["limit"]) == (413, "body_bytes_max")
    writer.close()


async def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(server: Running) -> None:
    reader, writer = await server.open()
    writer.write(
        b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    for _ in range(20):  # 1.25 MiB, and no last chunk ever
        writer.write(chunk)
    status, _, answer = await read_answer(reader)
    assert (status, msgspec.json.decode(answer)["limit"]) == (413, "body_bytes_max")
    writer.close()


async def test_the_server_stops_at_once_with_streams_and_long_polls_open(tmp_path: Any) -> None:
    kinds = Kinds()
    kinds.kind("noop")(noop)
    async with running_server(settings(tmp_path), kinds=kinds) as (system, url):
        server = split(system, url)
        writers = []
        for line in (LINES, POLL % (await held_job(server), 60)):
            _, writer = await server.open()
            writer.write(line)
            writers.append(writer)
        await until(lambda: server.open_streams == 2)
        begin_s = time.monotonic()
    assert time.monotonic() - begin_s < 15.0  # less than it gives to jobs that run
    assert server.open_streams == 0
    for writer in writers:
        writer.close()
