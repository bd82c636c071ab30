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
6. A child has one call, unless calls say that they share: then those with the same word, function and limits may follow each
   other in a child, never two at once, each with limits of its own.  Only a result counts there, and a limit that was reached;
   whatever else becomes of such a call, it is made again in a new child.  After anything but a result a child is used no more,
   nor when its address space has grown much, nor after `TURNS` calls or `KEEP_S` without one.

Shape of the protocol: one byte with two descriptors for each child, [status, data].  On `status` the caller has put the call as
a frame; the server answers with one byte when there is a child; when the caller shuts it down, the child is killed; at the end
the server writes the wait status and the last bytes printed.  On `data` the child reads a frame, the request, and answers with
another: one byte (0 result, 1 error, 2 failed) and the text.  It ends when there is no further request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Mapping, Sequence

import msgspec

from milepost.forkchild import LIMIT_REASONS, Answer, Child, ForkServerDied, Kept, Wanted
from milepost.forked import Call, Hello, send_frame
from milepost.process import ENV, Limits

RESULT_BYTES_MAX = 8 << 20
START_S = 60.0
IDLE_S = 60.0
BEGIN_TRIES = 3  # of one call, with a new server each
TURNS = 32  # calls of one child


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
        self._kept = Kept()
        self._calls = 0
        self._retirement: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """The server's process; None while there is none."""
        return None if self._process is None else self._process.pid

    async def call(
        self, function: str, request: bytes, *, limits: Limits, result_bytes_max: int = RESULT_BYTES_MAX, share: str | None = None
    ) -> Answer:
        """How `module:function` went, given `request` and asked for bytes, in a child.

        share: the word of calls that may follow each other in one child (rule 6); None: the child is this call's own.
        Rules: 1. a child that is not shared is dead when this returns or raises; one that is, is dead or waits.
               2. a cancelled caller kills it at once; a result above result_bytes_max does so too (an answer without result).
        Errors: ForkServerDied.
        """
        self._calls += 1
        if self._retirement is not None:
            self._retirement.cancel()
            self._retirement = None
        try:
            wanted = Wanted(request, limits.wall_s, result_bytes_max)
            if share is None:
                return await self._ask_new(Call(function, limits), wanted, None)
            call = Call(function, limits, TURNS)
            return await self._ask_kept(call, wanted, share) or await self._ask_new(call, wanted, share)
        finally:
            self._calls -= 1
            if not self._calls:
                self._retirement = asyncio.get_running_loop().call_later(self._idle_s, self._retire)

    async def _ask_new(self, call: Call, wanted: Wanted, share: str | None) -> Answer:
        for _ in range(BEGIN_TRIES):
            child = await self._begin(call)
            answer = await self._ask(child, wanted, share)
            if answer is not None:
                return answer
        raise ForkServerDied("the process that forks died again and again")

    async def _ask_kept(self, call: Call, wanted: Wanted, share: str) -> Answer | None:
        """None: there is no such child, or what it said does not count."""
        child = self._kept.take((share, call))
        if child is None:
            return None
        try:
            answer = await self._ask(child, wanted, share)
        except ForkServerDied:
            return None
        return answer if answer is not None and (answer.ok or answer.reason in LIMIT_REASONS) else None

    async def _ask(self, child: Child, wanted: Wanted, share: str | None) -> Answer | None:
        try:
            return await child.ask(wanted, again=share is not None)
        finally:
            if share is not None and child.waits:
                self._kept.put((share, child.call), child)
            else:
                child.close()

    async def _begin(self, call: Call) -> Child:
        """The call is on its way to the server."""
        control = await self._running()
        with contextlib.ExitStack() as stack:
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
            stack.pop_all()
        return Child(call, status, data)

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
        await self._kept.close()


async def _send_sockets(control: socket.socket, *sockets: socket.socket) -> None:
    while True:
        try:
            socket.send_fds(control, [b"c"], [one.fileno() for one in sockets], getattr(socket, "MSG_NOSIGNAL", 0))
            return
        except BlockingIOError:
            await asyncio.sleep(0.001)  # its socket is full of calls that it has not read yet


__all__ = ["Answer", "ForkServer", "ForkServerDied"]
