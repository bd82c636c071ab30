"""Readers of streams that stop reading, over real sockets: the server goes on, and what they lack is named when it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from milepost.engine.kinds import Kinds
from milepost.settings import Settings
from milepost.wiring import System, running_server

DEADLINE_S = 60.0
STREAM = b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\nLast-Event-ID: %d\r\n\r\n"


async def noop(job: Any) -> None:
    """Nothing."""


@asynccontextmanager
async def serving(folder: Path, **given: Any) -> AsyncIterator[tuple[System, str, int]]:
    kinds = Kinds()
    kinds.kind("noop")(noop)
    async with running_server(Settings(port=0, data=str(folder / "data"), **given), kinds=kinds) as (system, url):
        host, port = url.removeprefix("http://").split(":")
        yield system, host, int(port)


async def until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def run_jobs(system: System, count: int, **fields: Any) -> None:
    service = system.service
    for at in range(0, count, 1000):
        await service.submit_many([service.submission("noop", **fields) for _ in range(min(1000, count - at))])


async def read_until(reader: asyncio.StreamReader, word: bytes) -> bytes:
    body = b""
    async with asyncio.timeout(DEADLINE_S):
        while word not in body:
            part = await reader.read(1 << 16)
            assert part, f"it ended: {body[-300:]!r}"
            body += part
    return body


def data_of(body: bytes, type_: bytes) -> list[Any]:
    blocks = [block for block in body.split(b"\n\n") if b"event: " + type_ + b"\n" in block]
    return [msgspec.json.decode(block.partition(b"data: ")[2].split(b"\r\n")[0].split(b"\n")[0]) for block in blocks]


async def test_a_reader_that_takes_nothing_is_cut_off_and_resumes_where_it_was(tmp_path: Path) -> None:
    async with serving(tmp_path, stream_stuck_s=0.5) as (system, host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(STREAM % (b"/events", 0))
        await until(lambda: system.app.state.slots.open == 1)
        await run_jobs(system, 15_000)
        await until(lambda: system.app.state.slots.open == 0)  # its place is free, though its socket is still there
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        got = b""
        async with asyncio.timeout(DEADLINE_S):
            while part := await reader.read(1 << 16):
                got += part
        writer.close()
        assert b"\r\n0\r\n\r\n" not in got, "it does not look like the end of the stream"
        whole = got[: got.rindex(b"\n\n")]
        last = int(whole[whole.rindex(b"id: ") + 4 :].split(b"\n")[0])

        reader, writer = await asyncio.open_connection(host, port)
        writer.write(STREAM % (b"/events", last))
        assert b"id: %d\n" % (last + 1) in await read_until(reader, b"event: ")
        writer.close()


async def test_a_reader_under_whom_events_are_pruned_is_told_which_and_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path, keep_succeeded_s=0.3, prune_every_s=0.1) as (system, host, port):
        await system.service.submit(system.service.submission("noop", held=True, labels={"a": "b"}))
        await run_jobs(system, 500, labels={"a": "b"})
        pruned = 0
        async with asyncio.timeout(DEADLINE_S):
            while pruned < 1500:
                await asyncio.sleep(0.05)
                pruned = await system.store.pruned_until(system.service.submission("noop").project)
        for path in (b"/events", b"/events?label=a:b"):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(STREAM % (path, 1))
            body = await read_until(reader, b"event: missed")
            body += await reader.readuntil(b"\n\n") if not body.endswith(b"\n\n") else b""
            (missed,) = data_of(body, b"missed")
            assert (missed["type"], missed["from_id"]) == ("missed", 2)
            assert missed["to_id"] >= 1500
            await system.service.submit(system.service.submission("noop", held=True, labels={"a": "b"}))
            assert b"event: submitted" in await read_until(reader, b"event: submitted")
            writer.close()
