"""One real server, asked by the vendors' own unmodified clients: SQLite on disk, a socket on loopback, imports that really run.

Also a web server with real disk images, made by qemu-img.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from milepost.settings import Settings
from milepost.wiring import System, load_kinds, running_server
from milepost.work.servers.sweep import stop_machines

START_S = 60.0
PASSWORD = "correct horse"
PROJECTS = {"demo": {"admin": "admin", "member": "member"}, "other": {"neighbour": "member"}}  # the users and their roles


class Running(msgspec.Struct, frozen=True):
    """A server that runs, and how to get in."""

    url: str
    auth: str
    system: Any
    clouds: Path  # clouds.yaml: `admin`, `member`, and `none` where no auth is needed


class Thread(threading.Thread):
    """The server on an event loop of its own: the clients block, so they cannot share one."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self._settings = settings
        self._ready: Future[tuple[System, str]] = Future()

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with running_server(self._settings, kinds=load_kinds()) as found:
                self._ready.set_result(found)
                await self._ending.wait()
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    def wait_ready(self) -> tuple[System, str]:
        return self._ready.result(START_S)

    def call(self, coroutine: Any) -> Any:
        """The coroutine's result, run on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(START_S)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self.join(START_S)
        assert not self.is_alive(), "the server did not stop"


@pytest.fixture(scope="session", params=["required", "none"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The server with each kind of auth, which all tests share: none makes projects or users, the others would see them.

    With auth there are an admin and a member in the project `demo`, and a neighbour in the project `other`.
    """
    auth = request.param
    folder = tmp_path_factory.mktemp(f"auth-{auth}")
    thread = Thread(Settings(port=0, data=str(folder / "data"), auth=auth, egress_private=True))
    thread.start()
    system, url = thread.wait_ready()
    try:
        if auth == "required":
            thread.call(_make_users(system))
        clouds = folder / "clouds.yaml"
        clouds.write_text(yaml.safe_dump({"clouds": _clouds(url, auth)}))
        yield Running(url, auth, system, clouds)
    finally:
        try:
            thread.stop()
        finally:  # machines outlive their server: none may outlive its tests
            asyncio.run(stop_machines(system.folder))


async def _make_users(system: System) -> None:
    for project, names in PROJECTS.items():
        await system.identities.create_project(project)
        for name, role in names.items():
            await system.identities.create_user(name, PASSWORD)
            await system.identities.grant(name, project, role)


def _clouds(url: str, auth: str) -> dict[str, Any]:
    clouds = {
        name: {
            "region_name": "RegionOne",
            "auth": {
                "auth_url": f"{url}/identity",
                "username": name,
                "password": PASSWORD,
                "project_name": "demo",
                "user_domain_name": "Default",
                "project_domain_name": "Default",
            },
        }
        for name in ("admin", "member")
    }
    if auth == "none":
        clouds["none"] = {"auth_type": "none", "image_endpoint_override": url, "auth": {"endpoint": url}}
    return clouds


class ImageFile(msgspec.Struct, frozen=True):
    """A disk image that can be imported."""

    url: str
    format: str
    size: int
    md5: str
    sha512: str


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


class Sources(msgspec.Struct, frozen=True):
    """Images by name on a web server."""

    url: str
    files: dict[str, ImageFile]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sources]:
    """`disk.qcow2` and `disk.raw`: the same 8 MiB disk with something on it."""
    if shutil.which("qemu-img") is None:
        pytest.skip("needs qemu-img: apt-get install qemu-utils")
    folder = tmp_path_factory.mktemp("sources")
    raw, qcow2 = folder / "disk.raw", folder / "disk.qcow2"
    raw.write_bytes(bytes(1 << 20) + hashlib.sha512(b"milepost").digest() * 4096 + bytes((7 << 20) - 4096 * 64))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(qcow2)], check=True, timeout=60)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{web.server_address[1]}"
        yield Sources(url, {path.name: _file(url, path) for path in (raw, qcow2)})
        web.shutdown()
        thread.join()


def _file(url: str, path: Path) -> ImageFile:
    data = path.read_bytes()
    return ImageFile(
        f"{url}/{path.name}", path.suffix[1:], len(data), hashlib.md5(data).hexdigest(), hashlib.sha512(data).hexdigest()
    )


def import_input(file: ImageFile, name: str, **properties: Any) -> dict[str, Any]:
    """The input of an import of this file under this name."""
    return {
        "import_from": file.url,
        "import_from_format": file.format,
        "image_properties": {"name": name, "disk_format": file.format, "container_format": "bare", **properties},
    }
