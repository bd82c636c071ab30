"""A running server whose volumes a test makes and looks at: records in the store, files in the folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from milepost.image import IMAGE, Image, ImageStatus, Visibility, encode_image
from milepost.job import Job, JobId, ProjectId
from milepost.store import Resource
from milepost.testing import Served, serving
from milepost.volume import VOLUME, Volume, decode_volume
from milepost.work.convert import QEMU_NAMES

GIB = 1 << 30
MIB = 1 << 20
needs_qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")
CONTENT = bytes(range(1, 256)) * 8000 + bytes(2 * MIB - 255 * 8000)


class VolumeHouse:
    """What a test does with volumes; by its own project unless it says otherwise."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.served, self.store, self.service, self.scratch = served, served.store, served.service, folder
        self.folder = served.system.folder / "volumes"

    # --- jobs ----------------------------------------------------------------------------------------------------------

    async def submit(self, kind: str, *, project: str = "default", held: bool = False, origin: Any = None, **spec: Any) -> JobId:
        given = self.service.submission(
            kind, input=msgspec.json.encode(spec), project=ProjectId(project), held=held, origin=origin or {}
        )
        return (await self.service.submit(given)).job.id

    async def run(self, kind: str, **spec: Any) -> Job:
        return await self.served.ended(await self.submit(kind, **spec), patience_s=100)

    async def result(self, kind: str, **spec: Any) -> Any:
        job = await self.run(kind, **spec)
        assert job.error is None, job.error
        assert job.result is not None
        return json.loads(job.result)

    async def make(self, **volume: Any) -> Volume:
        """One volume, made."""
        made = await self.result("createVolume", volume={"size": 10, "volume_type": "SSD", **volume})
        return await self.volume(made["volume_id"])

    # --- what is there -------------------------------------------------------------------------------------------------

    async def volumes(self) -> list[Volume]:
        return [decode_volume(one.doc) for one in await self.store.list_resources(VOLUME)]

    async def volume(self, volume_id: str) -> Volume:
        return decode_volume((await self.store.get_resource(VOLUME, volume_id)).doc)

    async def change(self, volume_id: str, **values: Any) -> Volume:
        """As somebody else would write it."""
        found = await self.store.get_resource(VOLUME, volume_id)
        volume = msgspec.structs.replace(decode_volume(found.doc), **values)
        await self.store.put_resource(msgspec.structs.replace(found, doc=msgspec.json.encode(volume)), if_version=found.version)
        return volume

    def path(self, volume: Volume) -> Path:
        assert volume.file is not None
        return self.folder / volume.file

    def files(self) -> list[str]:
        """Every file of volumes, relative to their folder."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())

    def content(self, volume: Volume, length: int) -> bytes:
        """What a guest reads from its start."""
        raw = self.scratch / uuid.uuid4().hex
        if volume.format == "raw":
            with self.path(volume).open("rb") as file:
                return file.read(length)
        command = ["qemu-img", "dd", "-f", "qcow2", "-O", "raw", "bs=1M", f"count={length // MIB}"]
        subprocess.run([*command, f"if={self.path(volume)}", f"of={raw}"], check=True, capture_output=True)
        return raw.read_bytes()

    # --- images --------------------------------------------------------------------------------------------------------

    async def image(self, disk_format: str = "qcow2", content: bytes = CONTENT, **values: Any) -> Image:
        """An active image with this content, stored as an import stores it."""
        raw, path = self.scratch / uuid.uuid4().hex, self.scratch / uuid.uuid4().hex
        raw.write_bytes(content)
        options = ["-o", "force_size=on"] if disk_format == "vhd" else []
        target = QEMU_NAMES[disk_format]
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", target, *options, raw, path], check=True)
        image_id = str(uuid.uuid4())
        key = f"images/{image_id}/1"
        size, digest = path.stat().st_size, hashlib.md5(path.read_bytes()).hexdigest()
        objects: Any = self.served.system.objects
        await objects.put_file(key, path)
        image = Image(
            id=image_id,
            name="disk",
            status=values.pop("status", ImageStatus.ACTIVE),
            visibility=values.pop("visibility", Visibility.PRIVATE),
            disk_format=disk_format,
            container_format="bare",
            size=size,
            virtual_size=values.pop("virtual_size", len(content)),
            checksum=digest,
            owner=values.pop("owner", "default"),
            object_key=key,
            created_us=1,
            updated_us=1,
            **values,
        )
        await self.store.put_resource(
            Resource(
                type=IMAGE,
                id=image_id,
                project=ProjectId("default"),
                doc=encode_image(image),
                created_us=1,
                updated_us=1,
                version=0,
            )
        )
        return image


@asynccontextmanager
async def volume_house(folder: Path, **settings: Any) -> AsyncIterator[VolumeHouse]:
    async with serving(**{"progress_every_s": 0.0, "backoff_s": 0.01, **settings}) as served:
        yield VolumeHouse(served, folder)


__all__ = ["CONTENT", "GIB", "MIB", "VolumeHouse", "needs_qemu", "volume_house"]
