"""Disks and network cards come and go: at once where the machine runs, with its next start where it does not.

Rules
1. A part is plugged in before the record shows it, and the record loses it after it was unplugged.
2. What does not end well is taken back: a part that was plugged in is unplugged, one that was not let go of stays.
"""

from __future__ import annotations

from typing import Any

import msgspec

from milepost import PermanentError, Running
from milepost.compute import SERVER, Disk, Nic, Server, decode_server
from milepost.machines import MachineError
from milepost.machines.value import slot_of
from milepost.volume import Volume
from milepost.work.servers.admission import new_nic, used_addresses
from milepost.work.servers.change import FREED, Change
from milepost.work.servers.house import card_part, disk_part
from milepost.work.servers.parts import free_device
from milepost.work.servers.power import settle
from milepost.work.servers.spec import (
    AddSingleNic,
    AttachResult,
    AttachVolume,
    DeleteSingleNic,
    DetachVolume,
    NicResult,
    id_of,
)
from milepost.work.threads import in_thread


class Plugging(Change):
    """What they share."""

    async def runs(self) -> bool:
        return (await in_thread(self.machine.look)).running

    @property
    def is_part(self) -> bool:
        """Whether the server is its parent's, who gives it back when all the siblings have ended."""
        return self.job.job.parent_id is not None

    async def settle_volume(self, volume_id: str) -> None:
        volume = await self.find_volume(volume_id)
        if volume is not None and self.holds(volume):
            await self.rewrite(lambda one: one, {volume_id: settle})


class Attaching(Plugging):
    """One attempt of one attach."""

    failure = "attach_failed"

    def __init__(self, job: Running, spec: AttachVolume) -> None:
        super().__init__(job, spec.server_id)
        self.spec = spec

    async def run(self) -> AttachResult:
        """The server has the volume."""
        volume_id = self.spec.volume_id
        server = await self.take(self.spec)
        volume = await self.find_volume(volume_id)
        if server is None or volume is None:
            return self.result(self.spec.device or "")
        mine = next((disk for disk in server.disks if disk.volume_id == volume_id), None)
        disk = mine or Disk(volume_id=volume_id, device=self.device(server))
        if await self.runs():
            await self.report("plugging in")
            await self.machine.plug_disk(disk_part(self.job.folder, disk, volume))
        result = await self.note_done(self.result(disk.device))
        await self.rewrite(
            lambda one: _released(one, disks=[*(d for d in one.disks if d.volume_id != volume_id), disk]),
            {volume_id: self.joined(disk)},
        )
        return result

    def device(self, server: Server) -> str:
        """The one that admission chose; another one for a sub-job that was not asked which."""
        taken = {slot_of(disk.device) for disk in server.disks}
        asked = self.spec.device
        return asked if asked and slot_of(asked) not in taken else free_device(server, None)

    def result(self, device: str) -> AttachResult:
        return AttachResult(server_id=self.server_id, volume_id=self.spec.volume_id, device=device)

    async def undo(self, error: PermanentError | None) -> None:
        server = await self.find()
        recorded = server is not None and any(disk.volume_id == self.spec.volume_id for disk in server.disks)
        if not recorded and await self.runs():
            await self.machine.unplug_disk(self.spec.volume_id)
        await self.settle_volume(self.spec.volume_id)
        await super().undo(error)


class Detaching(Plugging):
    """One attempt of one detach."""

    failure = "detach_failed"

    def __init__(self, job: Running, spec: DetachVolume) -> None:
        super().__init__(job, spec.server_id)
        self.spec = spec

    async def run(self) -> AttachResult:
        """The server has the volume no more."""
        volume_id = self.spec.volume_id
        server = await self.take(self.spec)
        device = ""
        if server is not None:
            device = next((disk.device for disk in server.disks if disk.volume_id == volume_id), "")
        result = AttachResult(server_id=self.server_id, volume_id=volume_id, device=device)
        if server is None:
            return result
        if await self.runs():
            await self.report("unplugging")
            await self.unplug(volume_id)
        await self.note_done(result)
        await self.rewrite(
            lambda one: _released(one, disks=[disk for disk in one.disks if disk.volume_id != volume_id]),
            {volume_id: self._parted},
        )
        return result

    async def unplug(self, volume_id: str) -> None:
        try:
            await self.machine.unplug_disk(volume_id)
        except MachineError:
            if not self.spec.force:
                raise
            await self.machine.stop()

    def _parted(self, volume: Volume) -> Volume:
        left = [one for one in volume.attachments if one.server_id != self.server_id]
        return settle(msgspec.structs.replace(volume, attachments=left))

    async def undo(self, error: PermanentError | None) -> None:
        await self.settle_volume(self.spec.volume_id)
        await super().undo(error)


class AddingNic(Plugging):
    """One attempt of adding one network card."""

    failure = "nic_failed"

    def __init__(self, job: Running, spec: AddSingleNic) -> None:
        super().__init__(job, spec.server_id)
        self.spec = spec
        self.nic_id = spec.nic_id or id_of(job.id, "nic")

    async def run(self) -> NicResult:
        """The server has the card."""
        result = NicResult(server_id=self.server_id, nic_id=self.nic_id)
        server = await self.take_part(self.spec)
        if server is None:
            return result
        nic = next((nic for nic in server.nics if nic.id == self.nic_id), None) or await self.choose(server)
        if await self.runs():
            await self.machine.plug_card(card_part(nic, self.job.settings))
        await self.note_done(result)
        await self.end(lambda one: [*(n for n in one.nics if n.id != nic.id), nic])
        return result

    async def choose(self, server: Server) -> Nic:
        """Its addresses, chosen once: what is plugged in and what is recorded are the same."""
        file = self.job.scratch / "nic.json"
        if file.exists():
            return msgspec.json.decode(await in_thread(file.read_bytes), type=Nic)
        servers = [decode_server(one.doc) for one in await self.job.resources.list(SERVER)]
        taken = used_addresses(servers)
        nic = new_nic(self.nic_id, self.spec.nic, server.vpc_id, taken, "$.input.nic")
        await in_thread(file.write_bytes, msgspec.json.encode(nic))
        return nic

    async def take_part(self, spec: Any) -> Server | None:
        """The server; its lock stays its parent's where that has it."""
        server = await self.find()
        if server is not None and self.is_part and self.holds(server):
            return server
        return await self.take(spec)

    async def end(self, nics: Any) -> None:
        """The server has these cards; it is given back unless it is a parent's."""

        def change(server: Server) -> Server:
            mine = server.job_id == self.job.id
            changed = msgspec.structs.replace(server, nics=nics(server))
            return _released(changed) if mine else changed

        await self.rewrite(change)

    async def undo(self, error: PermanentError | None) -> None:
        server = await self.find()
        if server is None:
            return
        if all(nic.id != self.nic_id for nic in server.nics) and await self.runs():
            await self.machine.unplug_card(self.nic_id)
        if server.job_id == self.job.id:
            await super().undo(error)


class DeletingNic(AddingNic):
    """One attempt of removing one network card."""

    def __init__(self, job: Running, spec: DeleteSingleNic) -> None:
        Change.__init__(self, job, spec.server_id)
        self.wanted, self.nic_id = spec, spec.nic_id

    async def run(self) -> NicResult:
        """The server has the card no more."""
        result = NicResult(server_id=self.server_id, nic_id=self.nic_id)
        server = await self.take_part(self.wanted)
        if server is None:
            return result
        if await self.runs():
            await self.machine.unplug_card(self.nic_id)
        await self.note_done(result)
        await self.end(lambda one: [nic for nic in one.nics if nic.id != self.nic_id])
        return result

    async def undo(self, error: PermanentError | None) -> None:
        server = await self.find()
        if server is not None and server.job_id == self.job.id:
            await Change.undo(self, error)


def _released(server: Server, **values: Any) -> Server:
    return msgspec.structs.replace(server, **FREED, **values)
