"""One short conversation with a running QEMU.

QEMU talks to one client at a time, so a conversation is opened, has its few words, and is closed; the caller sees to it that
there is one of ours at a time (`Machine`).  All of it is bounded by a time: a stopped QEMU answers never.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, QMPClient, QMPError
from qemu.qmp.qmp_client import ExecuteError

from milepost.machines.command import (
    CONSOLE,
    CONSOLE_BYTES,
    QMP_SOCKET,
    backend_name,
    block_node,
    card_device,
    card_name,
    disk_device,
    disk_name,
    net_backend,
)
from milepost.machines.value import Card, DiskPart

ANSWER_S = 20.0
CONNECT_S = 10.0
BETWEEN_TRIES_S = 0.02

_quiet = logging.Logger("qmp", logging.CRITICAL + 1)  # its errors are raised; the log would repeat them with tracebacks


class Silent(Exception):
    """QEMU does not answer: it has ended, is ending, or stands still."""


class Refused(Exception):
    """QEMU answered that it cannot; its own words."""


class Conversation:
    """What is said to one QEMU.  Errors of each call: Silent, Refused."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client

    async def ask(self, command: str, **arguments: Any) -> Any:
        """One command's answer."""
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._client.execute(command, arguments or None)
        except ExecuteError as error:
            raise Refused(str(error)) from error
        except (TimeoutError, QMPError, OSError, EOFError) as error:
            raise Silent(f"{command}: {error or type(error).__name__}") from error

    async def status(self) -> str:
        """running, paused, shutdown, internal-error …: RunState of qapi/run-state.json."""
        status: str = (await self.ask("query-status"))["status"]
        return status

    async def press_power(self) -> None:
        await self.ask("system_powerdown")

    async def quit(self) -> None:
        """It ends in order: its images are flushed and closed."""
        with contextlib.suppress(Silent):  # it may be gone before its answer is here
            await self.ask("quit")

    async def console(self) -> str:
        """What the guest printed on its first serial port since the last call: the end of it, at most 64 KiB."""
        said: str = await self.ask("ringbuf-read", device=CONSOLE, size=CONSOLE_BYTES, format="utf8")
        return said

    # --- parts ---------------------------------------------------------------------------------------------------------

    async def devices(self) -> set[str]:
        """The ids of the devices that are plugged in."""
        return {one["name"] for one in await self.ask("qom-list", path="/machine/peripheral")}

    async def nodes(self) -> set[str]:
        """The names of the block nodes that are open."""
        return {one["node-name"] for one in await self.ask("query-named-block-nodes", flat=True)}

    async def plug_disk(self, disk: DiskPart) -> None:
        """The guest has the disk."""
        name = disk_name(disk.id)
        if name not in await self.nodes():
            await self.ask("blockdev-add", **block_node(disk))
        if name in await self.devices():
            return
        try:
            await self.ask("device_add", **disk_device(disk))
        except Refused:
            with contextlib.suppress(Refused):
                await self.ask("blockdev-del", **{"node-name": name})
            raise

    async def unplug_disk(self, volume_id: str, *, wait_s: float) -> bool:
        """The guest has the disk no more and its file is closed; False when it did not let go in time."""
        return await self.unplug_named(disk_name(volume_id), wait_s=wait_s)

    async def unplug_named(self, name: str, *, wait_s: float = ANSWER_S) -> bool:
        """The same for a disk known by QEMU's name of it."""
        if not await self._unplug(name, wait_s):
            return False
        if name in await self.nodes():
            await self.ask("blockdev-del", **{"node-name": name})
        return True

    async def resize_disk(self, volume_id: str, size_bytes: int) -> None:
        """The image and what the guest sees of it have this size."""
        await self.ask("block_resize", **{"node-name": disk_name(volume_id), "size": size_bytes})

    async def plug_card(self, card: Card) -> None:
        """The guest has the card, and a network behind it."""
        if card_name(card.id) in await self.devices():
            await self.ask("set_link", name=backend_name(card.id), up=True)  # it may have been cut off as nobody's
            return
        with contextlib.suppress(Refused):  # there since an earlier try: it is made anew, nobody uses it
            await self.ask("netdev_del", id=backend_name(card.id))
        await self.ask("netdev_add", **net_backend(card))
        try:
            await self.ask("device_add", **card_device(card))
        except Refused:
            await self.ask("netdev_del", id=backend_name(card.id))
            raise

    async def unplug_card(self, card_id: str, *, wait_s: float) -> bool:
        """The guest has the card no more; False when it did not let go in time."""
        return await self.unplug_card_named(card_name(card_id), backend_name(card_id), wait_s=wait_s)

    async def unplug_card_named(self, name: str, backend: str, *, wait_s: float) -> bool:
        """The same for a card known by QEMU's names of it and of its network."""
        if not await self._unplug(name, wait_s):
            return False
        await self.drop_backend(backend)
        return True

    async def cut_link(self, backend: str) -> None:
        """The network's card is there, and connected to nothing."""
        with contextlib.suppress(Refused):  # it has no network
            await self.ask("set_link", name=backend, up=False)

    async def drop_backend(self, backend: str) -> None:
        """The network is no more, once no card has it."""
        with contextlib.suppress(Refused):  # gone since an earlier try
            await self.ask("netdev_del", id=backend)

    async def backends(self) -> set[str]:
        """The networks of cards that are there.  Only the monitor for people lists them."""
        told: str = await self.ask("human-monitor-command", **{"command-line": "info network"})
        return set(re.findall(r"\b(b[0-9a-f]{28}): ", told))

    async def _unplug(self, device: str, wait_s: float) -> bool:
        with self._client.listener(names=("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")) as events:
            if device not in await self.devices():
                return True
            try:
                await self.ask("device_del", id=device)
            except Refused:  # asked for already and not done; or the guest let go just now
                if device not in await self.devices():
                    return True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    if not await _came(events, device):
                        return False
        return device not in await self.devices()


async def _came(events: EventListener, device: str) -> bool:
    """Whether the guest let go, once it has said so."""
    async for event in events:
        data: Any = event.get("data", {})
        if data.get("device") == device:
            return event["event"] == "DEVICE_DELETED"
    return False


@contextlib.asynccontextmanager
async def conversation(folder: Path) -> AsyncIterator[Conversation]:
    """Talk to the QEMU of this folder.  Errors: Silent when nobody answers."""
    client = QMPClient("milepost")
    client.logger = _quiet
    try:
        async with asyncio.timeout(CONNECT_S):
            await client.connect(await _connected(folder))
    except (TimeoutError, QMPError, OSError, EOFError) as error:
        raise Silent(str(error) or type(error).__name__) from error
    try:
        yield Conversation(client)
    finally:
        with contextlib.suppress(Exception):  # it may have ended meanwhile: there is nothing left to say
            async with asyncio.timeout(CONNECT_S):
                await client.disconnect()


async def _connected(folder: Path) -> socket.socket:
    """A connection by way of the folder's descriptor: a socket's path has at most 107 bytes, the folder's may have more."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        while True:
            try:
                connection.connect(f"/proc/self/fd/{descriptor}/{QMP_SOCKET}")
                return connection
            except BlockingIOError:  # somebody else talks to it
                await asyncio.sleep(BETWEEN_TRIES_S)
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(descriptor)


__all__ = ["Conversation", "Refused", "Silent", "conversation"]
