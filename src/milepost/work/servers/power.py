"""Start, stop, reboot and resize."""

from __future__ import annotations

import msgspec

from milepost import PermanentError, Running
from milepost.compute import FLAVORS, Server, VmState
from milepost.machines.accel import find_accel
from milepost.volume import Volume, VolumeStatus
from milepost.work.servers.change import Change
from milepost.work.servers.house import check_memory, machine_spec, write_seed
from milepost.work.servers.spec import PowerSingle, ResizeServer, ServerResult
from milepost.work.threads import in_thread
from milepost.work.volumes.change import RELEASED, settled_status


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


def settle(volume: Volume) -> Volume:
    """Nobody changes it; its status is what its attachments say."""
    return msgspec.structs.replace(volume, **{**RELEASED, "status": settled_status(volume)})
