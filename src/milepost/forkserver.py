"""Python functions run in forked children of one warm process: limits of a program, cost of a fork.  Imports `process` alone.

Theory: starting Python and importing a library for each piece of work costs more than the work.  A small process imports the
modules once, starts no thread, and forks one child for each call; fork is safe there because nothing else runs in it.

Rules
1. The server holds no secret: it is started with a bare environment and no descriptors but its socket, and every child is a
   copy of that, not of the process that asked.
2. A child has a process group of its own, the limits of the call, no descriptors but the socket of its answer and a pipe for
   what it prints, and dies with the server.  The server dies with the process that started it.
3. The server alone reaps, so a pid that it kills is never somebody else's.  A call that is cancelled, or takes longer than it
   may, returns when its child is dead.
4. A server that died is started again by the next call; calls that had begun fail with `ForkServerDied`.
5. A child says how it went by bytes on a socket that is its own.  How it ended is said by the server on another one, which no
   child holds.

Shape of the protocol: one byte with two descriptors for each call, [status, data].  On `status` the caller has put the call as a
frame; the server answers with one byte when there is a child; when the caller shuts it down, the child is killed; at the end
the server writes the wait status and the last bytes printed.  On `data` the child reads the request to its end, then writes one
byte (0 result, 1 error) and the result.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import Mapping, Sequence

import msgspec

from milepost.forked import BEGUN, ERROR, RESULT, Call, Hello, send_frame
from milepost.process import ENV, Limits, Reason, reason_of

RESULT_BYTES_MAX = 8 << 20
START_S = 60.0
IDLE_S = 60.0
BEGIN_TRIES = 3  # of one call, with a new server each


class ForkServerDied(Exception):
    """The process that forks died, or did not start; the call may be tried again."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """How a child ended.  Exactly one of `result`, `error` is set when it ended by itself and said so; neither otherwise.

    error: the exception that the function raised, as `Type: text`.  printed: the end of what it wrote to its standard streams.
    """

    code: int  # exit code, or minus the number of the signal that killed it
    reason: Reason
    result: bytes | None = None
    error: str | None = None
    printed: bytes = b""

    @property
    def ok(self) -> bool:
        return self.result is not None

    def describe(self) -> str:
        """Why there is no result, in words."""
        if self.error is not None:
            return self.error
        how = {
            "exit": f"exit code {self.code}",
            "signal": f"killed by signal {-self.code}",
            "cpu_time": "it used more processor time than it may",
            "file_size": "it wrote a larger file than it may",
            "wall_time": "it took longer than it may",
        }[self.reason]
        said = " ".join(self.printed.decode("utf-8", "replace").split())[-300:]
        return f"{how}: {said}" if said else how


# --- the caller's side --------------------------------------------------------------------------------------------------


class ForkServer:
    """Calls functions of these modules in limited children.  Belongs to the loop that it is first used in.

    modules: imported before anything is forked.  env: what the children see beside a bare environment.  path: `sys.path` of the
    server; None: this process's own.  idle_s: so long after its last call the process is ended, and started again when needed.
    """

    def __init__(
        self,
        modules: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        path: Sequence[str] | None = None,
        idle_s: float = IDLE_S,
    ) -> None:
        self._modules, self._env, self._path, self._idle_s = list(modules), dict(env or {}), path, idle_s
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._starting = asyncio.Lock()
        self._calls = 0
        self._retirement: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """The server's process; None while there is none."""
        return None if self._process is None else self._process.pid

    async def call(self, function: str, request: bytes, *, limits: Limits, result_bytes_max: int = RESULT_BYTES_MAX) -> Answer:
        """How `module:function` went, given `request` and asked for bytes, in a child of its own.

        Rules: 1. the child is dead when this returns or raises.
               2. a cancelled caller kills it at once; a result above result_bytes_max does so too (an answer without result).
        Errors: ForkServerDied.
        """
        self._calls += 1
        if self._retirement is not None:
            self._retirement.cancel()
            self._retirement = None
        try:
            for _ in range(BEGIN_TRIES):
                with contextlib.ExitStack() as stack:
                    status, data = await self._begin(Call(function, limits), stack)
                    answer = await _follow(status, data, request, limits.wall_s, result_bytes_max)
                if answer is not None:
                    return answer
            raise ForkServerDied("the process that forks died again and again")
        finally:
            self._calls -= 1
            if not self._calls:
                self._retirement = asyncio.get_running_loop().call_later(self._idle_s, self._retire)

    async def _begin(self, call: Call, stack: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
        """The call is on its way to the server: its status socket and its data socket."""
        control = await self._running()
        sockets = []
        for _ in range(2):
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            sockets.append((ours, theirs))
        (status, their_status), (data, their_data) = sockets
        send_frame(status, msgspec.json.encode(call))
        status.setblocking(False)
        data.setblocking(False)
        try:
            await _send_sockets(control, their_status, their_data)
        except OSError:  # it died: the sockets close before they say that the call has begun
            await self._forget(control)
        their_status.close()
        their_data.close()
        return status, data

    async def _running(self) -> socket.socket:
        async with self._starting:
            if self._control is not None and self._process is not None and self._process.returncode is None:
                return self._control
            if self._control is not None:
                await self._forget(self._control)
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    process = await asyncio.create_subprocess_exec(
                        sys.executable, "-P", "-m", "milepost.forked", str(theirs.fileno()),
                        pass_fds=[theirs.fileno()], start_new_session=True, cwd="/",
                        env=dict(ENV) | {"PYTHONDONTWRITEBYTECODE": "1"} | self._env,
                        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
                    )  # fmt: skip
                except BaseException:
                    ours.close()
                    raise
            self._process, self._control = process, ours
            try:
                path = list(sys.path) if self._path is None else list(self._path)
                await self._greet(ours, Hello(self._modules, path))
            except BaseException:
                await self._forget(ours)
                raise
            return ours

    async def _greet(self, control: socket.socket, hello: Hello) -> None:
        loop = asyncio.get_running_loop()
        control.setblocking(False)
        try:
            async with asyncio.timeout(START_S):
                body = msgspec.json.encode(hello)
                await loop.sock_sendall(control, struct.pack("!I", len(body)) + body)
                said = await loop.sock_recv(control, 4096)
        except (OSError, TimeoutError) as error:
            raise ForkServerDied(f"the process that forks did not start: {error or type(error).__name__}") from error
        if said != b"ready":
            raise ForkServerDied(f"the process that forks did not start: {said.decode('utf-8', 'replace') or 'it died'}")

    async def _forget(self, control: socket.socket) -> None:
        """This server is no longer used: it ends when its socket closes, with its children."""
        if self._control is not control:
            return
        process, self._process, self._control = self._process, None, None
        control.close()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _retire(self) -> None:
        self._retirement = None
        if not self._calls and self._control is not None:
            self._control.close()  # the server sees it and exits
            self._control = self._process = None

    async def close(self) -> None:
        """End the process, and all children with it."""
        if self._retirement is not None:
            self._retirement.cancel()
            self._retirement = None
        if self._control is not None:
            await self._forget(self._control)


async def _send_sockets(control: socket.socket, *sockets: socket.socket) -> None:
    while True:
        try:
            socket.send_fds(control, [b"c"], [one.fileno() for one in sockets], getattr(socket, "MSG_NOSIGNAL", 0))
            return
        except BlockingIOError:
            await asyncio.sleep(0.001)  # its socket is full of calls that it has not read yet


async def _follow(
    status: socket.socket, data: socket.socket, request: bytes, wall_s: float | None, result_bytes_max: int
) -> Answer | None:
    """Give the child its request, take its result, and see it end.  None: there never was a child."""
    ended = asyncio.ensure_future(_read_all(status))
    talk = asyncio.ensure_future(_converse(data, request, result_bytes_max))
    timed_out = False
    try:
        try:
            async with asyncio.timeout(wall_s):
                await asyncio.wait([ended, talk], return_when=asyncio.FIRST_COMPLETED)
                if not ended.done() and talk.result() is not None:
                    await asyncio.shield(ended)  # it said all that it has to say
        except TimeoutError:
            timed_out = True
    finally:
        trailer = await _stop(status, ended)
        said = await _finish(talk)
    if not trailer:
        return None
    if len(trailer) < len(BEGUN) + 4:
        raise ForkServerDied("the process that forks died with its children")
    trailer = trailer.removeprefix(BEGUN)
    code = os.waitstatus_to_exitcode(struct.unpack("!i", trailer[:4])[0])
    reason = reason_of(code, timed_out)
    result = error = None
    if reason == "exit" and said:
        result = said[1:] if said[:1] == RESULT else None
        error = said[1:].decode("utf-8", "replace") if said[:1] == ERROR else None
    return Answer(code=code, reason=reason, result=result, error=error, printed=trailer[4:])


async def _converse(data: socket.socket, request: bytes, result_bytes_max: int) -> bytes | None:
    """What the child said; None when it was too much."""
    loop = asyncio.get_running_loop()
    said = bytearray()
    with contextlib.suppress(ConnectionError):  # it ended without reading or in the middle of a word
        await loop.sock_sendall(data, request)
        data.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionError):
        while chunk := await loop.sock_recv(data, 1 << 16):
            said += chunk
            if len(said) > result_bytes_max:
                return None
    return bytes(said)


async def _stop(status: socket.socket, ended: asyncio.Future[bytes]) -> bytes:
    """Kill the child if it lives, and wait until it is reaped, however often the caller is cancelled meanwhile."""
    if not ended.done():
        with contextlib.suppress(OSError):
            status.shutdown(socket.SHUT_WR)
    while not ended.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(ended)
    return ended.result()


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


__all__ = ["Answer", "ForkServer", "ForkServerDied"]
