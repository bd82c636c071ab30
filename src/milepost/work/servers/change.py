"""A server in the hands of a running job: taken, changed under the job's fence, given back.

Rules
1. Every write carries the job's fence: a worker that lost the job changes nothing.
2. A change reads, changes and writes, and does so again when somebody else wrote between.
3. `done.json` in the job's folder says that the work was done, and what it came to.  It is written before the server is given
   back, so an attempt that finds the server in other hands, or gone, knows whether it has anything to do.
4. What a job leaves when it does not end well is as it was before, or says why not: the machine itself is asked what it is.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from milepost import Conflict, NotFound, PermanentError, RetryableError, Running, Snooze, VersionConflict, Write
from milepost.compute import SERVER, Disk, Fault, Server, VmState, decode_server
from milepost.machines import Machine, MachineError, QemuMissing, Seen, Standing
from milepost.volume import VOLUME, Attachment, Volume, VolumeStatus, decode_volume
from milepost.work.locks import locked
from milepost.work.servers.admission import server_resource
from milepost.work.servers.house import folder_of
from milepost.work.threads import in_thread
from milepost.work.undo import undone
from milepost.work.volumes.admission import volume_resource
from milepost.work.volumes.change import RELEASED
from milepost.work.volumes.disk import named_errors, write_durably

CHANGE_TRIES = 16
BUSY_S = 0.5
ENDING_S = 5.0
WAITS_FOR = frozenset({"server_busy", "volume_busy"})
FREED: dict[str, Any] = {"job_id": None, "task_state": None, "flavor_asked_id": None}  # of a server that nobody changes
R = TypeVar("R", bound=msgspec.Struct)


class Change:
    """One job's work on one server.  A kind of work defines `run` and, where something is to be taken back, `undo`."""

    failure = "server_state"  # the code of what fails unexpectedly

    def __init__(self, job: Running, server_id: str) -> None:
        self.job, self.server_id = job, server_id
        self.machine = Machine(folder_of(job.folder, server_id))
        self.done = job.scratch / "done.json"

    async def run(self) -> Any:
        raise NotImplementedError

    async def undo(self, error: PermanentError | None) -> None:  # noqa: ARG002  (others look at it)
        """The server is given back; what it is its machine says.  `error` is None when the job was cancelled."""
        await self.give_back(**await self.true_state())

    # --- the record ----------------------------------------------------------------------------------------------------

    async def take(self, spec: Any, **values: Any) -> Server | None:
        """The server is this job's, with these values; None when an earlier attempt did the work.

        Errors: PermanentError with the reason, where nothing was reserved and it cannot be now; Snooze: a sub-job waits.
        """
        server = await self.find()
        if server is None or not self.holds(server):
            if self.done.exists():
                return None
            try:
                await self.job.admit(spec)
            except PermanentError as error:
                if error.code in WAITS_FOR and self.job.job.parent_id is not None:
                    raise Snooze(BUSY_S, error.message) from None
                raise
        return await self.change(job_id=self.job.id, **values)

    def holds(self, record: Server | Volume) -> bool:
        """Whether it is locked for this job: by itself, or by its parent or root, which reserved for it."""
        return record.job_id is not None and record.job_id in (self.job.id, self.job.job.parent_id, self.job.job.root_id)

    async def find(self) -> Server | None:
        try:
            return decode_server((await self.job.resources.get(SERVER, self.server_id)).doc)
        except NotFound:
            return None

    async def find_volume(self, volume_id: str) -> Volume | None:
        try:
            return decode_volume((await self.job.resources.get(VOLUME, volume_id)).doc)
        except NotFound:
            return None

    async def change(self, **values: Any) -> Server:
        """Errors: PermanentError when it is gone, Conflict when another worker has the job."""
        return await self.rewrite(lambda server: msgspec.structs.replace(server, **values))

    async def rewrite(
        self, new: Callable[[Server], Server], volumes: dict[str, Callable[[Volume], Volume]] | None = None
    ) -> Server:
        """The server and these volumes have new values, all of them or none."""
        for tries_left in reversed(range(CHANGE_TRIES)):
            try:
                found = await self.job.resources.get(SERVER, self.server_id)
            except NotFound:
                raise PermanentError("server_not_found", f"Server {self.server_id} is gone.") from None
            now_us = self.job.now_us()
            server = msgspec.structs.replace(new(decode_server(found.doc)), updated_us=now_us)
            writes = [Write(resource=server_resource(server), if_version=found.version)]
            for volume_id, change in (volumes or {}).items():
                writes.append(await self._volume_write(volume_id, change, now_us))
            try:
                await self.job.resources.write(writes)
            except VersionConflict:
                if not tries_left:
                    raise
            else:
                return server
        raise AssertionError("unreachable")

    async def _volume_write(self, volume_id: str, change: Callable[[Volume], Volume], now_us: int) -> Write:
        try:
            found = await self.job.resources.get(VOLUME, volume_id)
        except NotFound:
            raise PermanentError("volume_not_found", f"Volume {volume_id} is gone.") from None
        volume = msgspec.structs.replace(change(decode_volume(found.doc)), updated_us=now_us)
        return Write(resource=volume_resource(volume), if_version=found.version)

    def joined(self, disk: Disk) -> Callable[[Volume], Volume]:
        """The volume has this server.  Errors: PermanentError when it is another job's meanwhile."""

        def change(volume: Volume) -> Volume:
            if volume.job_id is not None and not self.holds(volume):
                raise PermanentError("volume_busy", f"Volume {volume.id} is {volume.status}: job {volume.job_id} has taken it.")
            return join(volume, self.server_id, disk, self.job.now_us())

        return change

    async def give_back(self, **values: Any) -> None:
        """Nobody changes it any more; it has these values."""
        await self.change(**{**FREED, **values})

    async def note_done(self, result: R) -> R:
        """From now on the work counts as done."""
        await in_thread(write_durably, self.done, msgspec.json.encode(result))
        return result

    async def true_state(self) -> dict[str, Any]:
        """The state that the machine itself shows."""
        return state_of(await in_thread(self.machine.look), self.job.now_us())

    async def report(self, note: str) -> None:
        await self.job.progress(0, None, note)


def join(volume: Volume, server_id: str, disk: Disk, now_us: int) -> Volume:
    """The volume as this disk of this server; nobody changes it."""
    others = [one for one in volume.attachments if one.server_id != server_id]
    id = str(uuid.uuid5(uuid.UUID(server_id), volume.id))
    mine = Attachment(id=id, server_id=server_id, device=disk.device, attached_us=now_us)
    values = {**RELEASED, "attachments": [*others, mine], "status": VolumeStatus.IN_USE}
    return msgspec.structs.replace(volume, **values)


def state_of(seen: Seen, now_us: int) -> dict[str, Any]:
    """What a record says of a machine that was seen so."""
    if seen.standing is Standing.RUNNING:
        return {"vm_state": VmState.ACTIVE, "fault": None}
    if seen.standing is Standing.CRASHED:
        message = f"The virtual machine crashed or was killed: {seen.words}"
        return {"vm_state": VmState.ERROR, "fault": Fault(code=500, message=message, created_us=now_us)}
    return {"vm_state": VmState.STOPPED, "fault": None}


async def run_work(job: Running, work: Change) -> Any:
    """What the work came to; when it fails for good or is cancelled it is undone first."""

    async def undo(error: Exception | None) -> None:
        server = await work.find()
        if server is None or not work.holds(server):
            return
        with contextlib.suppress(Conflict):  # another worker has the job, and the server with it
            await work.undo(None if error is None else _named(error, work.failure))

    async with locked(job.scratch / "lock"), undone(job, undo):
        with named_errors(work.failure):
            try:
                result = await work.run()
            except QemuMissing as error:
                raise PermanentError("qemu_missing", str(error)) from error
            except MachineError as error:
                await work.machine.ends(ENDING_S)  # one that was killed answers no more before it is seen to be gone
                raise PermanentError(work.failure, str(error)) from error
    return result


def _named(error: Exception, code: str) -> PermanentError:
    if isinstance(error, PermanentError):
        return error
    if isinstance(error, RetryableError):
        return PermanentError(error.code, error.message)
    return PermanentError(code, f"{type(error).__name__}: {error}")
