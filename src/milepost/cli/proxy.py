"""`proxy`: stands between an SDK and its cloud, and has every job that is submitted followed by a Milepost server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from milepost.cli.connect import Place, connected
from milepost.cli.exits import Exit
from milepost.cli.serve import need_server
from milepost.client import tracked
from milepost.client.aio import AsyncClient
from milepost.client.dialects import dialect
from milepost.errors import InvalidInput, MilepostError

RECORD_S = 5.0  # an answer is not held for longer while the server is away
AGAIN_S = 5.0


class Recorder:
    """Writes each handle to a file that survives a crash, then has the server follow it, at once or as soon as it answers.

    Theory: the file is the promise.  It is read at start, so what was written and never followed is followed then.
    """

    def __init__(self, client: AsyncClient, path: Path, credential: str | None) -> None:
        self._client, self._path, self._credential = client, path, credential
        self._waiting: list[dict[str, Any]] = []

    async def record(self, handle: dict[str, Any]) -> str | None:
        """The id under which the server follows it; None when it does not yet."""
        await asyncio.to_thread(self._write, {"handle": handle})
        try:
            async with asyncio.timeout(RECORD_S):
                return await self._track(handle)
        except (MilepostError, TimeoutError):
            self._waiting.append(handle)
            return None

    async def _track(self, handle: dict[str, Any]) -> str:
        steps = tracked.track(self._client._session, handle, credential=self._credential)
        found = await self._client._driver.run(steps)
        await asyncio.to_thread(self._write, {"tracked": found.id, "handle": handle})
        return found.id

    def _write(self, entry: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def load(self) -> int:
        """What was written and is not followed waits again; returns how many these are."""
        lines = self._path.read_text("utf-8").splitlines() if self._path.exists() else []
        left: dict[str, dict[str, Any]] = {}
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # cut off by a crash: its answer was never passed on
                continue
            key = json.dumps(entry["handle"], sort_keys=True)
            if "tracked" in entry:
                left.pop(key, None)
            else:
                left[key] = entry["handle"]
        self._waiting = list(left.values())
        return len(left)

    async def run(self) -> None:
        """Have those followed that could not be at once.  Ends by cancellation."""
        while True:
            waiting, self._waiting = self._waiting, []
            for handle in waiting:
                try:
                    await self._track(handle)
                except MilepostError as error:
                    self._waiting.append(handle)
                    if not error.retryable:
                        sys.stderr.write(f"milepost: job {handle['id']} cannot be tracked: {error}\n")
            await asyncio.sleep(AGAIN_S)


@connected
def proxy(
    place: Place,
    to: Annotated[str, typer.Argument(metavar="URL", help="the cloud's endpoint", show_default=False)],
    of: Annotated[str, typer.Option("--of", metavar="WIRE", help="its wire: native, glance, qiniu, huawei-ecs and the like")],
    credential: Annotated[str | None, typer.Option("--credential", "-c", help="credential that the server asks with")] = None,
    handles: Annotated[Path, typer.Option(metavar="FILE", help="every job's handle is written to it first")] = Path(
        "handles.jsonl"
    ),
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="port; 0 takes a free one")] = 8090,
) -> Exit:
    """Pass requests on to a cloud, and follow every job that is submitted: its id is recorded before the caller sees it.

    Point the SDK's endpoint at the printed URL. Its credentials pass through untouched; the server asks with --credential.
    """
    need_server()
    if not to.startswith(("http://", "https://")):
        raise InvalidInput(f"{to!r} is no URL of a cloud", path="URL")
    wire = dialect(of)
    asyncio.run(_serve(place, wire.endpoint(to), of, credential, handles, host, port))
    return Exit.DONE


async def _serve(place: Place, to: str, of: str, credential: str | None, handles: Path, host: str, port: int) -> None:
    from granian.constants import Interfaces
    from granian.server.embed import Server

    from milepost.listener import free_port
    from milepost.server.proxy import Proxy

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    port = free_port(host, port)
    async with place.async_client() as client:
        recorder = Recorder(client, handles, credential)
        left = recorder.load()
        app = Proxy(to, of, recorder.record)
        server = Server(app, address=host, port=port, interface=Interfaces.ASGI, websockets=False, log_enabled=False)
        beside = [asyncio.create_task(server.serve()), asyncio.create_task(recorder.run())]
        place.show.line(f"ready http://{f'[{host}]' if ':' in host else host}:{port}")
        if left:
            place.show.note(f"{left} jobs of {handles} are not followed yet")
        await stop.wait()
        server.stop()  # type: ignore[no-untyped-call]
        beside[1].cancel()
        await asyncio.wait(beside, timeout=5.0)
        await app.close()
