"""A machine in its folder: start it, find it again, see how it is, stop it, plug and unplug."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import weakref
from collections.abc import AsyncIterator, Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from milepost.machines.command import CONSOLE_SOCKET, PACKAGE, PID_FILE, PROCESS_FILE, PROGRAM, QMP_SOCKET, command_line
from milepost.machines.launch import ProcessId, forget, is_alive, kill, last_words, read_process, start_process, wait_ended
from milepost.machines.qmp import Conversation, Refused, Silent, conversation
from milepost.machines.value import Card, DiskPart, MachineSpec
from milepost.process import ProgramMissing, find_program

START_S = 30.0
LAUNCH_S = 5.0  # for a process that was started to say who it is
QUIT_S = 10.0
UNPLUG_S = 20.0
POLL_S = 0.02
PRESS_AGAIN_S = 5.0  # a guest that has just begun to boot does not hear the first one

_talking: weakref.WeakValueDictionary[tuple[int, str], asyncio.Lock] = weakref.WeakValueDictionary()


class MachineError(Exception):
    """It could not be done; the message says why, in words for whoever owns the machine."""


class QemuMissing(MachineError):
    """QEMU is not installed; the message names the package."""

    def __init__(self) -> None:
        super().__init__(f"{PROGRAM} is not installed on the server; its package is {PACKAGE} (Debian, Ubuntu)")


class Standing(StrEnum):
    """How a machine is."""

    NONE = "none"  # never started, or put away
    RUNNING = "running"
    OFF = "off"  # it ended in order: the guest shut down, or it was stopped
    CRASHED = "crashed"  # its process was killed, or died


class Seen(msgspec.Struct, frozen=True):
    """What was seen of a machine.  `words`: why it is not running, as far as is known."""

    standing: Standing
    words: str = ""

    @property
    def running(self) -> bool:
        return self.standing is Standing.RUNNING


def check_installed() -> None:
    """Errors: QemuMissing."""
    try:
        find_program(PROGRAM)
    except ProgramMissing:
        raise QemuMissing from None


class Machine:
    """The machine of one folder; making this object starts nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # --- looking -------------------------------------------------------------------------------------------------------

    @property
    def process(self) -> ProcessId | None:
        return read_process(self.folder)

    def look(self) -> Seen:
        """How it is, without talking to it: no more than a few small files are read."""
        process = self.process
        if process is None:
            return Seen(Standing.NONE)
        if is_alive(process):
            return Seen(Standing.RUNNING)
        if (self.folder / PID_FILE).exists():
            return Seen(Standing.CRASHED, last_words(process) or "its process is gone")
        return Seen(Standing.OFF, last_words(process))

    async def status(self) -> str:
        """QEMU's own word for a running guest.  Errors: MachineError."""
        async with self.talk() as qemu:
            return await qemu.status()

    @contextlib.asynccontextmanager
    async def talk(self) -> AsyncIterator[Conversation]:
        """A conversation, one at a time.  Errors: MachineError, also for what is refused inside."""
        key = (id(asyncio.get_running_loop()), str(self.folder))
        lock = _talking.get(key)
        if lock is None:
            lock = _talking[key] = asyncio.Lock()
        async with lock:
            try:
                async with conversation(self.folder) as qemu:
                    yield qemu
            except Silent as error:
                raise MachineError(f"QEMU does not answer: {error}") from error
            except Refused as error:
                raise MachineError(f"QEMU refused: {error}") from error

    # --- starting and ending --------------------------------------------------------------------------------------------

    async def start(self, spec: MachineSpec) -> None:
        """It runs and answers; one that runs already is left as it is, once it answers.

        Errors: MachineError with QEMU's words when it does not start; nothing runs then.  QemuMissing.
        """
        if self.look().running and await self._answers():
            return
        await self.kill()  # what was starting when its starter died, and did not get far
        await asyncio.to_thread(self._launch, spec)
        if not await self._answers():
            process = self.process
            ended = process is None or not is_alive(process)
            words = last_words(process) if ended else f"it did not answer in {START_S:g} s"
            await self.kill()
            raise MachineError(f"QEMU did not start: {words or 'it ended at once'}")

    def _launch(self, spec: MachineSpec) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self._tidy()
        try:
            start_process(command_line(spec), folder=self.folder, memory_bytes=spec.ram_mib << 20)
        except ProgramMissing:
            raise QemuMissing from None
        except OSError as error:
            raise MachineError(f"QEMU could not be started: {error}") from error

    async def _answers(self) -> bool:
        """Whether it talks, in time; False as soon as it has ended."""
        loop = asyncio.get_running_loop()
        end_s, begun_s = loop.time() + START_S, loop.time() + LAUNCH_S
        while loop.time() < end_s:
            process = self.process
            if (process is None and loop.time() > begun_s) or (process is not None and not is_alive(process)):
                return False
            with contextlib.suppress(MachineError):
                if process is not None:
                    await self.status()
                    return True
            await asyncio.sleep(POLL_S)
        return False

    async def shut_down(self, *, wait_s: float) -> bool:
        """The power button is pressed until the guest has shut down; False when it did not in time."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + wait_s
        while self.look().running:
            with contextlib.suppress(MachineError):  # it is ending, or stands still
                async with self.talk() as qemu:
                    await qemu.press_power()
            if not await self.ends(min(PRESS_AGAIN_S, end_s - loop.time())) and loop.time() >= end_s:
                return False
        self._tidy()
        return True

    async def stop(self) -> None:
        """It does not run any more, whatever the guest thinks of it; what the guest had written is in its images."""
        if self.look().running:
            with contextlib.suppress(MachineError):
                async with self.talk() as qemu:
                    await qemu.quit()
            await self.ends(QUIT_S)
        await self.kill()

    async def kill(self) -> None:
        """No process is left, and nothing that says that there was one."""
        process = self.process
        if process is not None:
            kill(process)
            await wait_ended(process)
        self._tidy()

    async def ends(self, within_s: float) -> bool:
        """Whether it does not run any more, at once or within this time."""
        process = self.process
        if process is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, within_s)):
                    await wait_ended(process)
        return not self.look().running

    def _tidy(self) -> None:
        """Put away what an ended process left; the folder's other files stay."""
        process = self.process
        if process is not None and not is_alive(process):
            forget(process)
        for name in (QMP_SOCKET, CONSOLE_SOCKET, PID_FILE, PROCESS_FILE):
            (self.folder / name).unlink(missing_ok=True)

    async def remove(self) -> None:
        """Nothing is left: no process, no folder."""
        await self.stop()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)

    # --- parts of a running machine -------------------------------------------------------------------------------------

    async def plug_disk(self, disk: DiskPart) -> None:
        """The guest has the disk.  Errors: MachineError."""
        async with self.talk() as qemu:
            await qemu.plug_disk(disk)

    async def unplug_disk(self, volume_id: str) -> None:
        """The guest has it no more and its file is closed.  Errors: MachineError."""
        async with self.talk() as qemu:
            if not await qemu.unplug_disk(volume_id, wait_s=UNPLUG_S):
                raise MachineError("the guest did not let go of the disk")

    async def resize_disk(self, volume_id: str, size_bytes: int) -> None:
        """The image has the size and the guest sees it.  Errors: MachineError."""
        async with self.talk() as qemu:
            await qemu.resize_disk(volume_id, size_bytes)

    async def plug_card(self, card: Card) -> None:
        """The guest has the card.  Errors: MachineError."""
        async with self.talk() as qemu:
            await qemu.plug_card(card)

    async def unplug_card(self, card_id: str) -> None:
        """The guest has it no more.  Errors: MachineError."""
        async with self.talk() as qemu:
            if not await qemu.unplug_card(card_id, wait_s=UNPLUG_S):
                raise MachineError("the guest did not let go of the network card; it does so only when its system runs")

    async def console(self) -> str:
        """What the guest printed on its serial port since the last call.  Errors: MachineError."""
        async with self.talk() as qemu:
            return await qemu.console()


def list_machines(root: Path) -> Iterator[Machine]:
    """Every folder of a machine below this one."""
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield Machine(Path(entry.path))


__all__ = ["Machine", "MachineError", "QemuMissing", "Seen", "Standing", "check_installed", "list_machines"]
