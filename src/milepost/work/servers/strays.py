"""Parts of a running machine that no record names: disks and cards that were plugged in for a job that ended before it said so.

Rules
1. The record is read while nobody else talks to the machine.  A job takes the record before it plugs anything in, so what a
   record that is nobody's does not name is a stray, and stays one until it is unplugged here.
2. A guest lets go of a card only when its system runs.  Until then the card's link is down: it is there, and connected to
   nothing.  It is asked again with each sweep, and the next start of the machine is without it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from milepost.compute import Server
from milepost.machines import Machine, MachineError
from milepost.machines.command import backend_name, card_name, disk_name
from milepost.machines.qmp import Conversation
from milepost.work.servers.house import folder_of
from milepost.work.threads import in_thread

log = structlog.get_logger("milepost.servers")

LET_GO_S = 3.0  # for a guest; it may let go later, too


async def unplug_strays(data: Path, server_id: str, read: Callable[[], Awaitable[Server | None]]) -> int:
    """What the server's machine has and its record does not name is unplugged.  How many parts.

    `read` gives the record while nobody may plug anything in, else None.
    """
    machine = Machine(folder_of(data, server_id))
    if not (await in_thread(machine.look)).running:
        return 0
    try:
        async with machine.talk() as qemu:
            server = await read()
            return 0 if server is None else await _unplug(qemu, server)
    except MachineError as error:
        log.warning("a machine cannot be asked for its parts; it is tried again", server_id=server_id, error=str(error))
        return 0


async def _unplug(qemu: Conversation, server: Server) -> int:
    disks = {disk_name(disk.volume_id) for disk in server.disks}
    cards = {card_name(nic.id) for nic in server.nics}
    devices, count = await qemu.devices(), 0
    for name in sorted(one for one in devices | await qemu.nodes() if _is_part(one, "d") and one not in disks):
        count += await _told(server, name, await qemu.unplug_named(name, wait_s=LET_GO_S))
    for name in sorted(one for one in devices if _is_part(one, "n") and one not in cards):
        await qemu.cut_link(_backend(name))
        count += await _told(server, name, await qemu.unplug_card_named(name, _backend(name), wait_s=LET_GO_S))
    networks = {backend_name(nic.id) for nic in server.nics}
    left = {_backend(one) for one in await qemu.devices() if _is_part(one, "n")}
    for backend in await qemu.backends() - networks - left:  # of a card that its guest let go of later
        await qemu.drop_backend(backend)
    return count


async def _told(server: Server, name: str, gone: bool) -> bool:
    what = "a disk" if name.startswith("d") else "a network card"
    if gone:
        log.warning(f"{what} that no record names is unplugged", server_id=server.id, part=name)
    else:
        log.warning(f"the guest does not let go of {what} that no record names", server_id=server.id, part=name)
    return gone


def _is_part(name: str, prefix: str) -> bool:
    """Whether it is one that `command.part_name` made."""
    return len(name) == 29 and name[0] == prefix and all(letter in "0123456789abcdef" for letter in name[1:])


def _backend(card: str) -> str:
    return "b" + card[1:]


__all__ = ["unplug_strays"]
