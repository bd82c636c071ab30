"""An application behind a socket: the web server, started, answering, and stopped without a trace."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from granian.constants import Interfaces
from granian.server.embed import Server as Granian

from milepost.errors import Unreachable

THREADS_END_TRIES = 40  # 5 ms each, for the web server's threads to end


@asynccontextmanager
async def listening(app: Any, host: str, port: int, *, places: int) -> AsyncIterator[str]:
    """The ASGI application behind a socket, 0 for a free port; yields its URL.  `places`: requests at the same time.

    Errors: Unreachable when the port is taken.
    """
    port = free_port(host, port)
    server = _granian(app, host, port, places=places)
    before = own = _threads()
    serving = asyncio.create_task(server.serve())
    try:
        await _answers(host, port, serving)
        own = _threads() - before
        yield _url(host, port)
    finally:
        await _stop(server, serving, own)


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0.  Errors: Unreachable when it is taken.

    The server's own socket shares its port with others (SO_REUSEPORT), so a second server would go unnoticed without this.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Unreachable(
                f"cannot listen on {host}:{port}: {error.strerror}", hint="give --port another number, or 0 for a free one"
            ) from error
        found: int = probe.getsockname()[1]
        return found


def _granian(app: Any, host: str, port: int, *, places: int) -> Granian:
    return Granian(
        app,
        address=host,
        port=port,
        interface=Interfaces.ASGINL,
        websockets=False,
        backlog=1024,
        backpressure=places,
        log_enabled=False,
    )


async def _stop(server: Granian, serving: asyncio.Task[Any], threads: frozenset[str]) -> None:
    """The server has stopped, and its threads are gone: one that asks for Python's lock while the interpreter ends aborts it."""
    server.stop()  # type: ignore[no-untyped-call]
    await asyncio.wait([serving], timeout=5.0)
    for _ in range(THREADS_END_TRIES):
        await asyncio.sleep(0.005)
        if threads and not threads & _threads():
            break


def _threads() -> frozenset[str]:
    """The system's ids of this process's threads, where the system tells them."""
    try:
        return frozenset(path.name for path in Path("/proc/self/task").iterdir())
    except OSError:
        return frozenset()


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _answers(host: str, port: int, serving: asyncio.Task[Any]) -> None:
    for _ in range(200):
        if serving.done():
            break
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(0.01)
            continue
        writer.close()
        return
    raise Unreachable(f"the server did not start on {host}:{port}")
