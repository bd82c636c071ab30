"""A server is deleted: its machine stops, the volumes that go with it are deleted, then its folder, then its record.

| step    | what it leaves                                                              | a cancel then                 |
|---------|-----------------------------------------------------------------------------|-------------------------------|
| stop    | the machine does not run; its folder and all disks are there                 | the server is whole, stopped  |
| wipe    | volumes that go with the server, each deleted by a sub-job                   | the first wipe decides: below |
| doom    | the record, `deleted`                                                        | the server is gone            |
| clear   | no folder                                                                    | the server is gone            |
| part    | volumes that stay, attached to it no more                                    | the server is gone            |
| remove  | no record                                                                    | too late                      |

The point of no return is the first byte of a disk that is wiped, or `doom`.  Before it a delete that is cancelled, or fails,
gives back a whole server: its record, its folder and every disk.  Behind it the server goes, whatever becomes of its job; disks
that are not wiped by then stay, as volumes of nobody.  Which of both it is, is read from records alone, so the job, a later
attempt and the sweep find the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from milepost import PermanentError, Running, SubJob
from milepost.compute import SERVER, Server, VmState
from milepost.volume import Volume, VolumeStatus
from milepost.work.servers.power import Leaving, settle
from milepost.work.servers.spec import DeleteSingleServer, ServerResult
from milepost.work.volumes.spec import DeleteVolume

DELETING = "deleting"  # the task of a server that is being deleted
WIPED = frozenset({VolumeStatus.DELETING, VolumeStatus.ERROR_DELETING})


def is_doomed(server: Server, volumes: Iterable[Volume | None]) -> bool:
    """Whether its delete has passed the point of no return.  `volumes`: what is there of each of its disks."""
    if server.task_state != DELETING:
        return False
    return server.vm_state is VmState.DELETED or any(one is None or one.status in WIPED for one in volumes)


def parted(volume: Volume, server_id: str) -> Volume:
    """The volume without the server; one that was wiped in part stays what it is, any other is nobody's."""
    left = [one for one in volume.attachments if one.server_id != server_id]
    volume = msgspec.structs.replace(volume, attachments=left)
    return volume if volume.status in WIPED else settle(volume)


class Deleting(Leaving):
    """One attempt of one delete."""

    failure = "server_state"

    def __init__(self, job: Running, spec: DeleteSingleServer) -> None:
        super().__init__(job, spec.server_id)
        self.spec = spec

    async def run(self) -> ServerResult:
        """Nothing of the server is left."""
        result = ServerResult(server_id=self.server_id)
        server = await self.take(self.spec, task_state=DELETING)
        if server is None:
            return result
        await self.report("deleting")
        await self.machine.stop()
        outcomes = await self.job.try_sub_jobs(
            [SubJob(kind="deleteSingleVolume", input=DeleteVolume(volume_id=one)) for one in await self.going(server)]
        )
        await self.change(vm_state=VmState.DELETED)
        await self.clear(server)
        await self.note_done(result)
        await self.job.resources.delete(SERVER, self.server_id)
        bad = [one for one in outcomes if not one.ok]
        if bad:
            first = bad[0].error.message if bad[0].error else bad[0].state
            raise PermanentError(
                "sub_jobs_failed", f"The server is deleted, {len(bad)} of its volumes are not; the first: {first}"
            )
        return result

    async def going(self, server: Server) -> list[str]:
        """The volumes that are deleted with it, the same for each attempt: one that is gone was one of them."""
        found = []
        for disk in server.disks:
            volume = await self.find_volume(disk.volume_id)
            shared = volume is not None and any(one.server_id != server.id for one in volume.attachments)
            if (self.spec.delete_volume or disk.delete_on_termination) and not shared:
                found.append(disk.volume_id)
        return found

    async def clear(self, server: Server) -> None:
        """Nothing is left of it but the record."""
        await self.machine.remove()
        await self.let_go(server)

    async def let_go(self, server: Server) -> None:
        """The volumes that are left are not attached to it any more."""
        for disk in server.disks:
            volume = await self.find_volume(disk.volume_id)
            if volume is not None and (self.holds(volume) or _attached(volume, server.id)):
                await self.rewrite(lambda one: one, {volume.id: lambda one: parted(one, self.server_id)})

    async def undo(self, error: PermanentError | None) -> None:  # noqa: ARG002  (whatever it was)
        """The server is whole, or gone."""
        server = await self.find()
        if server is None:
            return
        volumes = {disk.volume_id: await self.find_volume(disk.volume_id) for disk in server.disks}
        if is_doomed(server, volumes.values()):
            await self.clear(await self.change(vm_state=VmState.DELETED))
            await self.job.resources.delete(SERVER, self.server_id)
            return
        joined: dict[str, Any] = {
            disk.volume_id: self.joined(disk)
            for disk in server.disks
            if (volume := volumes[disk.volume_id]) is not None and self.holds(volume)
        }
        await self.rewrite(lambda one: one, joined)
        await self.give_back(**await self.true_state())


def _attached(volume: Volume, server_id: str) -> bool:
    return any(one.server_id == server_id for one in volume.attachments)


__all__ = ["Deleting", "is_doomed", "parted"]
