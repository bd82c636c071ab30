"""Start, stop, reboot, resize and delete."""

from __future__ import annotations

from typing import Any

import msgspec

from milepost import PermanentError, Running, SubJob
from milepost.compute import FLAVORS, Server, VmState
from milepost.machines.accel import find_accel
from milepost.volume import Volume, VolumeStatus
from milepost.work.servers.change import Change
from milepost.work.servers.house import check_memory, machine_spec, write_seed
from milepost.work.servers.spec import DeleteSingleServer, PowerSingle, ResizeServer, ServerResult
from milepost.work.threads import in_thread
from milepost.work.volumes.change import RELEASED, settled_status
from milepost.work.volumes.spec import DeleteVolume


class Leaving(Change):
    """Work that lets other jobs delete disks of the server."""

    async def leave(self, volume_id: str) -> None:
        """A volume whose delete never began is nobody's, and there."""
        volume = await self.find_volume(volume_id)
        if volume is not None and volume.status is VolumeStatus.DETACHING and self.holds(volume):
            await self.rewrite(lambda one: one, {volume_id: settle})


class Powered(Leaving):
    """Work that starts or stops the machine."""

    async def boot(self, server: Server) -> None:
        """The machine runs, with what the record says.  Errors: PermanentError, MachineError."""
        settings, data = self.job.settings, self.job.folder
        volumes: dict[str, Volume] = {}
        for disk in server.disks:
            volume = await self.find_volume(disk.volume_id)
            if volume is None:
                raise PermanentError("volume_not_found", f"Volume {disk.volume_id} of server {server.id} is gone.")
            volumes[volume.id] = volume
        if not (await in_thread(self.machine.look)).running:
            await in_thread(check_memory, FLAVORS[server.flavor_id].ram_mib)
            await in_thread(write_seed, self.machine.folder, server)
        accel = settings.server_accel if settings.server_accel != "auto" else await find_accel()
        await self.machine.start(machine_spec(data, server, volumes, settings, accel))

    async def halt(self, type: str) -> None:
        """The machine does not run.  Errors: PermanentError when it was asked, and did not."""
        if type == "HARD":
            await self.machine.stop()
            return
        wait_s = self.job.settings.server_stop_s
        if not await self.machine.shut_down(wait_s=wait_s):
            raise PermanentError(
                self.failure,
                f"The guest did not shut down within {wait_s:g} s after its power button was pressed; type HARD does not ask.",
            )

    async def give_back_active(self) -> ServerResult:
        result = await self.note_done(ServerResult(server_id=self.server_id))
        await self.give_back(vm_state=VmState.ACTIVE, fault=None, launched_us=self.job.now_us())
        return result


class Starting(Powered):
    """One attempt of one start."""

    failure = "server_start_failed"

    def __init__(self, job: Running, spec: PowerSingle) -> None:
        super().__init__(job, spec.server_id)
        self.spec = spec

    async def run(self) -> ServerResult:
        """The server is active."""
        server = await self.take(self.spec, task_state="powering-on")
        if server is None:
            return ServerResult(server_id=self.server_id)
        await self.report("starting")
        await self.boot(server)
        return await self.give_back_active()


class Stopping(Powered):
    """One attempt of one stop."""

    failure = "server_stop_failed"

    def __init__(self, job: Running, spec: PowerSingle) -> None:
        super().__init__(job, spec.server_id)
        self.spec = spec

    async def run(self) -> ServerResult:
        """The server is stopped."""
        server = await self.take(self.spec, task_state="powering-off")
        result = ServerResult(server_id=self.server_id)
        if server is None:
            return result
        await self.report("stopping")
        await self.halt(self.spec.type)
        await self.note_done(result)
        await self.give_back(vm_state=VmState.STOPPED, fault=None)
        return result


class Rebooting(Powered):
    """One attempt of one reboot: stopped, noted, started."""

    failure = "server_start_failed"

    def __init__(self, job: Running, spec: PowerSingle) -> None:
        super().__init__(job, spec.server_id)
        self.spec = spec
        self.halted = job.scratch / "halted"

    async def run(self) -> ServerResult:
        """The server is active, newly booted."""
        soft = self.spec.type == "SOFT"
        server = await self.take(self.spec, task_state="rebooting" if soft else "rebooting_hard")
        if server is None:
            return ServerResult(server_id=self.server_id)
        await self.report("rebooting")
        if not self.halted.exists():
            await self.halt(self.spec.type)
            await in_thread(self.halted.touch)
        await self.boot(server)
        return await self.give_back_active()


class Resizing(Change):
    """One attempt of one resize: the machine is made anew at its next start."""

    def __init__(self, job: Running, spec: ResizeServer) -> None:
        super().__init__(job, spec.server_id)
        self.spec = spec

    async def run(self) -> ServerResult:
        """The server has its new flavor, and is stopped."""
        server = await self.take(self.spec, task_state="resize_migrating")
        result = ServerResult(server_id=self.server_id)
        if server is None:
            return result
        await self.change(task_state="resize_finish", flavor_id=self.spec.flavor_id)
        await self.note_done(result)
        await self.give_back(vm_state=VmState.STOPPED)
        return result


class Deleting(Leaving):
    """One attempt of one delete: the machine goes, its volumes are let go of or deleted, then the record goes."""

    failure = "server_state"

    def __init__(self, job: Running, spec: DeleteSingleServer) -> None:
        super().__init__(job, spec.server_id)
        self.spec = spec

    async def run(self) -> ServerResult:
        """Nothing of the server is left."""
        result = ServerResult(server_id=self.server_id)
        server = await self.take(self.spec, task_state="deleting")
        if server is None:
            return result
        await self.report("deleting")
        await self.machine.remove()
        doomed = await self.let_go(server)
        outcomes = await self.job.try_sub_jobs(
            [SubJob(kind="deleteSingleVolume", input=DeleteVolume(volume_id=volume_id)) for volume_id in doomed]
        )
        for volume_id in doomed:
            await self.leave(volume_id)
        await self.note_done(result)
        await self.job.resources.delete("server", self.server_id)
        bad = [one for one in outcomes if not one.ok]
        if bad:
            first = bad[0].error.message if bad[0].error else bad[0].state
            raise PermanentError(
                "sub_jobs_failed", f"The server is deleted, {len(bad)} of its volumes are not; the first: {first}"
            )
        return result

    async def let_go(self, server: Server) -> list[str]:
        """Its volumes are not attached to it any more; those that go with it stay locked for their delete.  The ids of these.

        The record keeps its list: an attempt after this one finds the same.
        """
        doomed = []
        for disk in server.disks:
            volume = await self.find_volume(disk.volume_id)
            goes = self.spec.delete_volume or disk.delete_on_termination
            shared = volume is not None and any(one.server_id != server.id for one in volume.attachments)
            if goes and not shared:
                doomed.append(disk.volume_id)
            if volume is None or (not self.holds(volume) and not _attached(volume, server.id)):
                continue
            await self.rewrite(lambda one: one, {volume.id: _let_go(server.id, keep=goes and not shared)})
        return doomed

    async def undo(self, error: PermanentError | None) -> None:  # noqa: ARG002  (whatever it was)
        """The server has the disks that are still there."""
        server = await self.find()
        disks = []
        for disk in server.disks if server is not None else []:
            volume = await self.find_volume(disk.volume_id)
            if volume is not None and volume.status is VolumeStatus.DETACHING and self.holds(volume):
                await self.rewrite(lambda one: one, {volume.id: self.joined(disk)})
            elif volume is None or not _attached(volume, self.server_id):
                continue
            disks.append(disk)
        await self.give_back(**await self.true_state(), disks=disks)


def _attached(volume: Volume, server_id: str) -> bool:
    return any(one.server_id == server_id for one in volume.attachments)


def _let_go(server_id: str, *, keep: bool) -> Any:
    def change(volume: Volume) -> Volume:
        left = [one for one in volume.attachments if one.server_id != server_id]
        volume = msgspec.structs.replace(volume, attachments=left)
        return volume if keep else settle(volume)

    return change


def settle(volume: Volume) -> Volume:
    """Nobody changes it; its status is what its attachments say."""
    return msgspec.structs.replace(volume, **{**RELEASED, "status": settled_status(volume)})
