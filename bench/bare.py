"""The least a status GET can cost here: an ASGI function that reads the job and encodes it, on the same Granian with the same
settings.  No routing, no identity, no errors, no headers but the type and the length.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from typing import Any

import uvloop
from granian.constants import Interfaces
from granian.server.embed import Server as Granian

from milepost.job import JobId
from milepost.listener import free_port
from milepost.store.sqlite import SqliteStore
from milepost.wire.native import encode, from_job
from milepost.wiring import tune_process


def application(store: SqliteStore) -> Any:
    """GET /jobs/{id}, and nothing else."""

    async def answer(scope: Any, _receive: Any, send: Any) -> None:
        job = await store.get_job(JobId(scope["path"].rpartition("/")[2]))
        body = encode(from_job(job))  # type: ignore[arg-type]
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return answer


async def serve(path: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    store = SqliteStore(path, lock=False)
    await store.open()
    port = free_port("127.0.0.1", 0)
    server = Granian(
        application(store),
        address="127.0.0.1",
        port=port,
        interface=Interfaces.ASGINL,
        websockets=False,
        backlog=1024,
        log_enabled=False,
    )
    serving = asyncio.create_task(server.serve())
    try:
        await _answers(port)
        tune_process()
        print(f"ready http://127.0.0.1:{port}", flush=True)
        await stop.wait()
    finally:
        server.stop()  # type: ignore[no-untyped-call]
        await asyncio.wait([serving], timeout=5.0)
        await store.close()


async def _answers(port: int) -> None:
    for _ in range(500):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.01)
            continue
        writer.close()
        return
    raise TimeoutError("the bare server did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database")
    uvloop.run(serve(parser.parse_args().database))


if __name__ == "__main__":
    main()
