"""A running server whose virtual machines a test makes and looks at.  Their guests have no system unless the image has one."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from volume_house import MIB, VolumeHouse

from milepost.compute import SERVER, Server, decode_server
from milepost.image import Image
from milepost.job import Job
from milepost.machines import Machine
from milepost.testing import serving
from milepost.work.servers.sweep import stop_machines, sweep

needs_machines = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None or shutil.which("qemu-img") is None,
    reason="needs qemu-system-x86_64 and qemu-img (packages qemu-system-x86 and qemu-utils)",
)
NO_SYSTEM = b"\0" * (2 * MIB)  # firmware finds nothing to boot, and says so forever


class ServerHouse(VolumeHouse):
    """What a test does with servers."""

    def machine(self, server_id: str) -> Machine:
        return Machine(self.served.system.folder / "servers" / server_id)

    async def server(self, server_id: str) -> Server:
        return decode_server((await self.store.get_resource(SERVER, server_id)).doc)

    async def servers(self) -> list[Server]:
        return [decode_server(one.doc) for one in await self.store.list_resources(SERVER)]

    async def empty_image(self, **values: Any) -> Image:
        return await self.image(content=NO_SYSTEM, **values)

    def spec(self, image: Image, **values: Any) -> dict[str, Any]:
        return {
            "name": "web",
            "image_id": image.id,
            "flavor_id": "t6.nano.1",
            "vpc_id": "vpc",
            "nics": [{"subnet_id": "net"}],
            "root_volume": {"volume_type": "SSD", "size": 1},
            **values,
        }

    async def build(self, image: Image | None = None, **values: Any) -> Server:
        """One server, active."""
        image = image or await self.empty_image()
        made = await self.result("createServer", server=self.spec(image, **values))
        return await self.server(made["server_ids"][0])

    async def done(self, kind: str, **spec: Any) -> Any:
        return await self.result(kind, **spec)

    async def failed(self, kind: str, **spec: Any) -> Job:
        job = await self.run(kind, **spec)
        assert job.error is not None, job
        return job

    async def change_server(self, server_id: str, **values: Any) -> None:
        """As somebody else would write it."""
        found = await self.store.get_resource(SERVER, server_id)
        server = msgspec.structs.replace(decode_server(found.doc), **values)
        await self.store.put_resource(msgspec.structs.replace(found, doc=msgspec.json.encode(server)), if_version=found.version)

    async def sweep(self) -> int:
        return await sweep(self.store, self.served.system.folder, now_us=time.time_ns() // 1000)

    def left(self) -> list[str]:
        """Every file and folder of machines."""
        folder = self.served.system.folder / "servers"
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.is_dir() else []


@asynccontextmanager
async def server_house(folder: Path, **settings: Any) -> AsyncIterator[ServerHouse]:
    """Whatever becomes of the test, no machine is left."""
    data = folder / "data"
    defaults = {"progress_every_s": 0.0, "backoff_s": 0.01, "server_accel": "tcg", "data": str(data)}
    try:
        async with serving(**{**defaults, **settings}) as served:
            try:
                yield ServerHouse(served, folder)
            finally:
                await stop_machines(served.system.folder)
    finally:
        await stop_machines(data)


def new_id() -> str:
    return str(uuid.uuid4())


__all__ = ["ServerHouse", "needs_machines", "new_id", "server_house"]
