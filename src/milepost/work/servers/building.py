"""Servers are made, and made anew from another image.

Steps of a create, each of which finds what an earlier attempt left:

| step    | what it leaves                                                         | where                            |
|---------|------------------------------------------------------------------------|----------------------------------|
| volumes | the server's volumes, by sub-jobs createVolume                         | the store, the folder `volumes`  |
| disc    | a link to the image, when it is an ISO                                 | `cdrom.iso` in the machine's folder |
| join    | the volumes are attached to the server: one write                      | the store                        |
| boot    | the machine runs                                                       | a process                        |
| publish | the record, `active`, nobody's                                         | the store                        |

Rules
1. A failed create leaves the server's record in `error` with its fault, and nothing else; a cancelled one leaves nothing.
2. A failed change of the system leaves the old one in place.
"""

from __future__ import annotations

import msgspec

from milepost import NotFound, PermanentError, Running, SubJob
from milepost.compute import SERVER, Disk, Fault, Server, VmState
from milepost.errors import JobCancelled, JobFailed
from milepost.image import IMAGE, Image, decode_image
from milepost.volume import VOLUME, Volume
from milepost.work.servers.change import Change
from milepost.work.servers.house import DISC
from milepost.work.servers.power import Powered, settle
from milepost.work.servers.spec import ChangeOs, CreateSingleServer, DiskSpec, ServerResult, id_of
from milepost.work.threads import in_thread
from milepost.work.volumes.base import link_source
from milepost.work.volumes.disk import DiskFolder
from milepost.work.volumes.making import remove_files
from milepost.work.volumes.spec import CreateVolume, DeleteVolume, VolumeSpec


class Making(Powered):
    """What a create and a change of the system share."""

    failure = "server_create_failed"

    async def find_image(self, image_id: str) -> Image:
        try:
            image = decode_image((await self.job.resources.get(IMAGE, image_id)).doc)
        except NotFound:
            image = None
        if image is None or image.object_key is None:
            raise PermanentError("image_not_found", f"Image {image_id} was deleted before the server was made.")
        return image

    def volume_job(self, record: Volume | None, volume_id: str, disk: DiskSpec, image: Image | None) -> SubJob:
        """The sub-job that makes a volume; what its record says where there is one."""
        source = image.id if image is not None and image.disk_format != "iso" else None
        spec = VolumeSpec(
            name=record.name if record is not None else "",
            size=disk.size,
            volume_type=disk.volume_type,
            availability_zone=record.availability_zone if record is not None else "",
            image_id=source,
        )
        return SubJob(kind="createVolume", input=CreateVolume(volume=spec, volume_id=volume_id))

    async def make_volumes(self, sub_jobs: list[SubJob]) -> None:
        """Errors: PermanentError with the first one's reason."""
        try:
            await self.job.run_sub_jobs(sub_jobs)
        except (JobFailed, JobCancelled) as error:
            first = error.fields["failed"][0].error
            code = first.code if first is not None else "volume_error"
            raise PermanentError(
                code, f"A volume of the server was not made: {first.message if first else error.message}"
            ) from None

    async def link_disc(self, image: Image) -> None:
        """The machine's disc is the image, or it has none."""
        disc = self.machine.folder / DISC
        if image.disk_format != "iso":
            await in_thread(disc.unlink, True)
            return
        disks = DiskFolder(self.job.folder)
        await in_thread(disks.make)

        async def report(done: int, total: int) -> None:
            await self.job.progress(done, total, "downloading", unit="bytes")

        source = await link_source(self.job, disks, image, report)
        await in_thread(self.machine.folder.mkdir, 0o700, True, True)
        await in_thread(source.replace, disc)

    async def remove_volume(self, volume_id: str) -> None:
        """A volume that this job made, and nobody has used, is gone."""
        volume = await self.find_volume(volume_id)
        if volume is None or any(one.server_id != self.server_id for one in volume.attachments):
            return
        if volume.job_id is None or self.holds(volume):
            await self.job.resources.delete(VOLUME, volume_id)
            await in_thread(remove_files, DiskFolder(self.job.folder), volume)


class Creating(Making):
    """One attempt of one create."""

    def __init__(self, job: Running, spec: CreateSingleServer) -> None:
        super().__init__(job, spec.server_id or id_of(job.id, "server"))
        self.spec = spec

    async def run(self) -> ServerResult:
        """The server is active."""
        server = await self.take(self.spec, task_state="block_device_mapping")
        if server is None:
            return ServerResult(server_id=self.server_id)
        image = await self.find_image(server.image_id)
        await self.make_volumes(await self.volume_jobs(server, image))
        await self.link_disc(image)
        server = await self.rewrite(
            lambda one: msgspec.structs.replace(one, task_state="spawning"),
            {disk.volume_id: self.joined(disk) for disk in server.disks},
        )
        await self.report("booting")
        await self.boot(server)
        return await self.give_back_active()

    async def volume_jobs(self, server: Server, image: Image) -> list[SubJob]:
        asked = [self.spec.server.root_volume, *self.spec.server.data_volumes]
        return [
            self.volume_job(await self.find_volume(disk.volume_id), disk.volume_id, wanted, image if slot == 0 else None)
            for slot, (disk, wanted) in enumerate(zip(server.disks, asked, strict=True))
        ]

    async def undo(self, error: PermanentError | None) -> None:
        server = await self.find()
        await self.machine.remove()
        for disk in server.disks if server is not None else []:
            await self.remove_volume(disk.volume_id)
        if error is None:
            await self.job.resources.delete(SERVER, self.server_id)
            return
        fault = Fault(code=500, message=error.message, created_us=self.job.now_us())
        await self.give_back(vm_state=VmState.ERROR, fault=fault, disks=[])


class Rebuilding(Making):
    """One attempt of another system: the new disk is made, takes the old one's place, and the old one is deleted."""

    def __init__(self, job: Running, spec: ChangeOs) -> None:
        super().__init__(job, spec.server_id)
        self.spec = spec

    async def run(self) -> ServerResult:
        """The server is active, with its new system."""
        spec = self.spec
        server = await self.take(spec, task_state="rebuilding")
        if server is None:
            return ServerResult(server_id=self.server_id)
        new_id, old_id = spec.new_volume_id or "", spec.old_volume_id or ""
        image = await self.find_image(spec.image_id)
        await self.make_volumes([await self.new_volume_job(new_id, image)])
        if any(disk.volume_id == old_id for disk in server.disks):
            await self.change(task_state="rebuild_block_device_mapping")
            await self.machine.kill()  # it is stopped, or crashed
            await self.link_disc(image)
            server = await self.swap(old_id, new_id, image)
        outcomes = await self.job.try_sub_jobs([SubJob(kind="deleteSingleVolume", input=DeleteVolume(volume_id=old_id))])
        if not outcomes[0].ok:
            await self.report("the old system disk is left")
            await self.leave(old_id)
        server = await self.change(task_state="rebuild_spawning")
        await self.boot(server)
        return await self.give_back_active()

    async def new_volume_job(self, volume_id: str, image: Image) -> SubJob:
        record = await self.find_volume(volume_id)
        if record is None:
            raise PermanentError("volume_not_found", f"The new system disk {volume_id} was deleted before it was used.")
        disk = DiskSpec(volume_type=record.volume_type, size=record.size_gib)
        return self.volume_job(record, volume_id, disk, image)

    async def swap(self, old_id: str, new_id: str, image: Image) -> Server:
        """The new disk is where the old one was: one write."""

        def replaced(server: Server) -> Server:
            disks = [msgspec.structs.replace(d, volume_id=new_id) if d.volume_id == old_id else d for d in server.disks]
            return msgspec.structs.replace(server, disks=disks, image_id=image.id, image_name=image.name or "")

        root = Disk(volume_id=new_id, device="/dev/sda", boot_index=0)
        return await self.rewrite(
            replaced,
            {
                new_id: self.joined(root),
                old_id: lambda volume: msgspec.structs.replace(volume, attachments=[]),
            },
        )

    async def undo(self, error: PermanentError | None) -> None:
        server = await self.find()
        old_id, new_id = self.spec.old_volume_id, self.spec.new_volume_id
        if server is not None and new_id is not None and all(disk.volume_id != new_id for disk in server.disks):
            await self.remove_volume(new_id)
        old = None if old_id is None else await self.find_volume(old_id)
        if old is not None and self.holds(old):
            await self.rewrite(lambda one: one, {old.id: settle})
        await Change.undo(self, error)


__all__ = ["Creating", "Rebuilding"]
