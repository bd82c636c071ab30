"""One forked child as its caller sees it, and those that wait to be asked again: see `milepost.forkserver`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from typing import NamedTuple

import msgspec

from milepost.forked import BEGUN, ERROR, FAILED, RESULT, Call
from milepost.process import Reason, reason_of

LIMIT_REASONS = ("cpu_time", "file_size", "wall_time")
KEEP_S = 1.0  # so long a child waits for its next call
KEPT_MAX = 16  # children that wait
LENGTH_BYTES = 4


class ForkServerDied(Exception):
    """The process that forks died, or did not start; the call may be tried again."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """How a call ended.  One of `result`, `failed`, `error` is set when its child said so; none otherwise.

    failed: the words of `forked.Failed`, raised by the function.  error: another exception that it raised, as `Type: text`.
    printed: the end of what the child wrote to its standard streams.
    """

    code: int  # exit code, or minus the number of the signal that killed it
    reason: Reason
    result: bytes | None = None
    failed: str | None = None
    error: str | None = None
    printed: bytes = b""

    @property
    def ok(self) -> bool:
        return self.result is not None

    def describe(self) -> str:
        """Why there is no result, in words."""
        if said := self.failed or self.error:
            return said
        how = {
            "exit": f"exit code {self.code}",
            "signal": f"killed by signal {-self.code}",
            "cpu_time": "it used more processor time than it may",
            "file_size": "it wrote a larger file than it may",
            "wall_time": "it took longer than it may",
        }[self.reason]
        printed = " ".join(self.printed.decode("utf-8", "replace").split())[-300:]
        return f"{how}: {printed}" if printed else how


class Wanted(NamedTuple):
    """One call of a child."""

    request: bytes
    wall_s: float | None
    result_bytes_max: int


class Child:
    """A child that was asked for.  `waits`: its last call had a result, and it may be given another."""

    def __init__(self, call: Call, status: socket.socket, data: socket.socket) -> None:
        self.call, self.waits = call, False
        self._turns_left = call.turns
        self._status, self._data = status, data
        self._ended = asyncio.ensure_future(_read_all(status))

    @property
    def dead(self) -> bool:
        """It has been reaped."""
        return self._ended.done()

    async def ask(self, wanted: Wanted, *, again: bool) -> Answer | None:
        """Give it a request, take its answer, and see it end, unless it may be asked again.  None: there never was a child.

        Errors: ForkServerDied.
        """
        self._turns_left -= 1
        self.waits = timed_out = False
        talk = asyncio.ensure_future(self._converse(wanted, last=not again))
        try:
            try:
                async with asyncio.timeout(wanted.wall_s):
                    await asyncio.wait([self._ended, talk], return_when=asyncio.FIRST_COMPLETED)
                    if not self._ended.done() and (said := talk.result()) is not None:
                        self.waits = again and said[:1] == RESULT and self._turns_left > 0
                        if not self.waits:
                            await self._see_end()
            except TimeoutError:
                timed_out = True
        finally:
            if not self.waits:
                trailer = await self.stop()
                said = await _finish(talk)
        if self.waits:
            assert said is not None
            return Answer(code=0, reason="exit", result=said[1:])
        return _read_end(trailer, said, timed_out) if trailer else None

    async def _see_end(self) -> None:
        with contextlib.suppress(OSError):
            self._data.shutdown(socket.SHUT_WR)
        await asyncio.shield(self._ended)

    async def _converse(self, wanted: Wanted, *, last: bool) -> bytes | None:
        """What it said; None when that was too much.  Nothing when it ended in the middle of a word."""
        loop = asyncio.get_running_loop()
        said, length = bytearray(), LENGTH_BYTES
        with contextlib.suppress(ConnectionError):  # it ended without reading
            await loop.sock_sendall(self._data, struct.pack("!I", len(wanted.request)) + wanted.request)
            if last:
                self._data.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while len(said) < length:
                chunk = await loop.sock_recv(self._data, 1 << 16)
                if not chunk:
                    return b""
                said += chunk
                if length == LENGTH_BYTES and len(said) >= LENGTH_BYTES:
                    length += struct.unpack_from("!I", said)[0]
                    if length - LENGTH_BYTES > wanted.result_bytes_max + 1:
                        return None
        return bytes(said[LENGTH_BYTES:length])

    async def stop(self) -> bytes:
        """Kill it if it lives, and wait until it is reaped, however often the caller is cancelled meanwhile."""
        if not self._ended.done():
            with contextlib.suppress(OSError):
                self._status.shutdown(socket.SHUT_WR)
        while not self._ended.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(self._ended)
        return self._ended.result()

    def close(self) -> None:
        """Let go of its sockets, when it is dead."""
        self._ended.cancel()
        self._status.close()
        self._data.close()


class Kept:
    """Children that wait, by what they may be asked.  Each is killed when nobody asks it for `KEEP_S`."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, Call], dict[Child, asyncio.TimerHandle]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return sum(len(children) for children in self._waiting.values())

    def take(self, key: tuple[str, Call]) -> Child | None:
        """The one that was used last, for the caller alone."""
        children = self._waiting.get(key)
        while children:
            child = next(reversed(children))
            self._remove(key, child)
            if not child.dead:
                return child
            child.close()
        return None

    def put(self, key: tuple[str, Call], child: Child) -> None:
        """It waits for the next `take`."""
        if len(self) >= KEPT_MAX:
            first = next(iter(self._waiting))
            self._end(first, next(iter(self._waiting[first])))
        timer = asyncio.get_running_loop().call_later(KEEP_S, self._end, key, child)
        self._waiting.setdefault(key, {})[child] = timer

    def _remove(self, key: tuple[str, Call], child: Child) -> None:
        children = self._waiting[key]
        children.pop(child).cancel()
        if not children:
            del self._waiting[key]

    def _end(self, key: tuple[str, Call], child: Child) -> None:
        self._remove(key, child)
        task = asyncio.ensure_future(_end_child(child))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """All that waited are dead."""
        for key, children in list(self._waiting.items()):
            for child in list(children):
                self._end(key, child)
        while self._ending:
            await asyncio.wait(set(self._ending))


async def _end_child(child: Child) -> None:
    try:
        await child.stop()
    finally:
        child.close()


def _read_end(trailer: bytes, said: bytes | None, timed_out: bool) -> Answer:
    """What the server said of the child's end, with what the child said.  Errors: ForkServerDied."""
    if len(trailer) < len(BEGUN) + 4:
        raise ForkServerDied("the process that forks died with its children")
    trailer = trailer.removeprefix(BEGUN)
    code = os.waitstatus_to_exitcode(struct.unpack("!i", trailer[:4])[0])
    reason = reason_of(code, timed_out)
    printed = trailer[4:]
    if reason != "exit" or not said:
        return Answer(code=code, reason=reason, printed=printed)
    text = said[1:].decode("utf-8", "replace") if said[:1] in (ERROR, FAILED) else None
    return Answer(
        code=code,
        reason=reason,
        result=said[1:] if said[:1] == RESULT else None,
        failed=text if said[:1] == FAILED else None,
        error=text if said[:1] == ERROR else None,
        printed=printed,
    )


async def _finish(talk: asyncio.Future[bytes | None]) -> bytes | None:
    """What was said, now that nobody can say more; who left the child's group may still hold the socket."""
    try:
        async with asyncio.timeout(1.0):
            return await talk
    except TimeoutError:
        return None
    finally:
        talk.cancel()


async def _read_all(one: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    read = bytearray()
    with contextlib.suppress(ConnectionError):
        while chunk := await loop.sock_recv(one, 1 << 16):
            read += chunk
    return bytes(read)


__all__ = ["LIMIT_REASONS", "Answer", "Child", "ForkServerDied", "Kept", "Wanted"]
