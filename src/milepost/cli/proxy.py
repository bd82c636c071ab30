"""`proxy`, also spelled `track --proxy`: stands between an SDK and its cloud, and has every job that is submitted followed."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from milepost.cli.connect import Place, connected
from milepost.cli.exits import Exit
from milepost.cli.handles import Handles, describe
from milepost.cli.serve import need_server
from milepost.client.dialects import dialect
from milepost.client.signing import from_environment, qiniu_from_environment
from milepost.errors import InvalidInput

PLACES = 1000  # requests at the same time

OF = typer.Option("--of", metavar="WIRE", help="the cloud's wire: native, glance, qiniu, huawei-ecs and the like")
Credential = Annotated[str | None, typer.Option("--credential", "-c", help="credential that the server asks with")]
File = Annotated[Path, typer.Option("--handles", metavar="FILE", help="every job's handle is written to it first")]
Host = Annotated[str, typer.Option("--host", help="address to listen on")]
Port = Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="port; 0 takes a free one")]
Seen = Annotated[bool, typer.Option("--seen", help="requests with an unknown outcome are shown this once more")]
HANDLES, HOST, PORT = Path("handles.jsonl"), "127.0.0.1", 8090


@connected
def proxy(
    place: Place,
    to: Annotated[str, typer.Argument(metavar="URL", help="the cloud's endpoint", show_default=False)],
    of: Annotated[str, OF],
    credential: Credential = None,
    handles: File = HANDLES,
    host: Host = HOST,
    port: Port = PORT,
    seen: Seen = False,
) -> Exit:
    """Pass requests on to a cloud, and follow every job that is submitted: its id is recorded before the caller sees it.

    Point the SDK's endpoint at the printed URL. Its credentials pass through untouched; the server asks with --credential.
    Signatures that cover the host are made again where the SDK's key pair is in this command's environment
    (HUAWEICLOUD_SDK_AK and _SK, QINIU_ACCESS_KEY and QINIU_SECRET_KEY). `milepost track --proxy URL` is the same.
    """
    return run_proxy(place, to, of, credential, handles, host, port, seen=seen)


def run_proxy(place: Place, to: str, of: str, credential: str | None, handles: Path, host: str, port: int, *, seen: bool) -> Exit:
    """The proxy, until it is told to stop.  Errors: InvalidInput, Unreachable."""
    need_server()
    if not to.startswith(("http://", "https://")):
        raise InvalidInput(f"{to!r} is no URL of a cloud", path="URL")
    wire = dialect(of)
    asyncio.run(_serve(place, wire.endpoint(to), of, credential, handles, host, port, seen=seen))
    return Exit.DONE


async def _serve(place: Place, to: str, of: str, credential: str | None, path: Path, host: str, port: int, *, seen: bool) -> None:
    from milepost.listener import listening
    from milepost.server.proxy import Proxy
    from milepost.server.resigning import Resigner

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with place.async_client() as client:
        handles = Handles(client, path, credential)
        left, unknown = handles.load()
        for entry in unknown:
            place.show.note(describe(entry), style="yellow")
        if seen:
            await handles.forget_unknown()
        app = Proxy(to, of, handles, Resigner(_keys(of)))
        following = asyncio.create_task(handles.run())
        try:
            async with listening(app, host, port, places=PLACES) as url:
                place.show.line(f"ready {url}")
                if left:
                    place.show.note(f"{left} jobs of {path} are not followed yet")
                await stop.wait()
        finally:
            following.cancel()
            await asyncio.wait([following])
            await app.close()


def _keys(wire: str) -> list[Any]:
    """The key pair of the environment that this cloud's SDK reads.  Errors: InvalidInput for one half of it."""
    from milepost.wire.signing.huawei import Key

    pair = qiniu_from_environment() if wire == "qiniu" else from_environment()
    return [] if pair is None else [Key(pair.access, pair.secret)]
