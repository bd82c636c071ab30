"""A whole server with a bucket, in this process, for tests of the kinds `pfop` and `fop`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from milepost.bucket import StoredObject, etag
from milepost.job import FINAL, Job, ProjectId
from milepost.settings import Settings
from milepost.store import Queue
from milepost.store.buckets import Buckets, Stored
from milepost.wiring import System, running_system

PROJECT = ProjectId("default")


class MediaHouse:
    """The server, its buckets, and jobs that are waited for."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system, self.folder, self.store = system, folder, system.store
        self.buckets = Buckets(system.store, system.objects, system.clock.now_us)
        self._count = 0

    async def bucket(self, name: str, *, project: str = PROJECT, private: bool = True) -> None:
        await self.buckets.create_bucket(name, ProjectId(project), private=private, region="z0", buckets_max=100)

    async def put(self, key: str, data: bytes | Path, *, bucket: str = "media", mime: str = "application/octet-stream") -> str:
        """Its hash."""
        data = data.read_bytes() if isinstance(data, Path) else data
        self._count += 1
        path = self.folder / f"put-{self._count}"
        path.write_bytes(data)
        place = await self.buckets.find_bucket(bucket)
        new = StoredObject(
            key=key,
            hash=etag(data),
            size_bytes=len(data),
            mime_type=mime,
            put_us=self.system.clock.now_us(),
            object_key=await self.buckets.keep(path, place.project),
        )
        await self.buckets.put(place, new, overwrite=True)
        return new.hash

    async def find(self, key: str, *, bucket: str = "media") -> Stored | None:
        return await self.buckets.look_up(await self.buckets.find_bucket(bucket), key)

    async def read(self, key: str, *, bucket: str = "media") -> bytes:
        found = await self.find(key, bucket=bucket)
        assert found is not None, f"no object {key}"
        return b"".join([chunk async for chunk in self.system.objects.read(found.object.object_key)])

    async def submit(
        self, *cmds: str, key: str = "in/china.jpg", project: str = PROJECT, queue: str = "media", **fields: Any
    ) -> Job:
        asked = {"bucket": "media", "key": key, "fops": list(cmds), **fields}
        submission = self.system.service.submission(
            "pfop", input=msgspec.json.encode(asked), project=ProjectId(project), queue=queue
        )
        return (await self.system.service.submit(submission)).job

    async def ended(self, job: Job, within_s: float = 60.0) -> list[Job]:
        """Its sub-jobs, when it has ended."""
        await self.until(lambda: self._final(job), within_s)
        return await self.items(job)

    async def run(self, *cmds: str, **fields: Any) -> list[Job]:
        return await self.ended(await self.submit(*cmds, **fields))

    async def result(self, cmd: str, **fields: Any) -> dict[str, Any]:
        """What one command came to, which must have succeeded."""
        (item,) = await self.run(cmd, **fields)
        assert item.error is None, item.error
        return msgspec.json.decode(item.result)

    async def failure(self, cmd: str, **fields: Any) -> tuple[str, int]:
        """Why one command failed, and at which step."""
        (item,) = await self.run(cmd, **fields)
        assert item.state == "failed", item.result
        assert item.error.code == "fop_failed", item.error
        return item.error.message, item.error.details["error_index"]

    async def pause(self, queue: str, paused: bool) -> None:
        await self.store.set_queue(Queue(queue, None, paused))
        self.system.dispatch.announce_queues()

    async def happened(self, job: Job, event: str) -> bool:
        return any(one.type == event for one in await self.store.list_events(job_id=job.id))

    async def items(self, job: Job) -> list[Job]:
        return await self.store.list_sub_jobs(job.id)

    async def _final(self, job: Job) -> bool:
        return (await self.store.get_job(job.id)).state in FINAL

    async def until(self, condition: Callable[[], Any], within_s: float = 60.0) -> None:
        end = time.monotonic() + within_s
        while not await condition():
            assert time.monotonic() < end, "it did not come true in time"
            await asyncio.sleep(0.01)


@asynccontextmanager
async def media_house(folder: Path, **settings: Any) -> AsyncIterator[MediaHouse]:
    from photo_house import photo

    async with running_system(Settings.read({}, data=str(folder / "data"), **settings)) as system:
        house = MediaHouse(system, folder)
        await house.bucket("media")
        await house.put("in/china.jpg", photo("china.jpg"), mime="image/jpeg")
        yield house
