"""Programs run with limits: what heavy or untrusted work runs in.  Imports nothing of ours.

Rules
1. The limits are set before the program's first instruction: a small POSIX shell sets them on itself and becomes the program.
   (Python's `preexec_fn` would run Python code between fork and exec, which can deadlock in a process with threads.)
2. The program gets a session and process group of its own and is killed with all its children: at once when the caller is
   cancelled, and by the kernel when this process dies (where util-linux's `setpriv` is installed).
3. It inherits nothing: no open files, no standard input unless given, and of the environment only what `env` names.
4. What it prints is bounded: the last `output_bytes_max` bytes of each stream are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

T = TypeVar("T")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one subprocess may take; None: no limit of ours."""

    memory_bytes: int | None = None  # address space
    cpu_s: int | None = None  # processor time
    file_bytes: int | None = None  # largest file it may write
    wall_s: float | None = None
    open_files: int | None = 256


class ProgramMissing(Exception):
    """The program is not installed (not on PATH, or not executable)."""

    def __init__(self, program: str) -> None:
        super().__init__(f"{program} is not installed")
        self.program = program


Reason = Literal["exit", "signal", "cpu_time", "file_size", "wall_time"]


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a program ended.  `code` is its exit code, or minus the number of the signal that killed it.

    `reason` names the limit when one of ours ended it.  A program that ran out of memory says so itself, or crashes.
    """

    code: int
    reason: Reason
    stdout: bytes
    stderr: bytes

    @property
    def ok(self) -> bool:
        return self.code == 0

    def describe(self) -> str:
        """Why it ended, in words, with the end of what it printed on standard error."""
        said = " ".join(self.stderr.decode("utf-8", "replace").split())[-500:]
        how = {
            "exit": f"exit code {self.code}",
            "signal": f"killed by signal {_signal_name(-self.code)}",
            "cpu_time": "it used more processor time than it may",
            "file_size": "it wrote a larger file than it may",
            "wall_time": "it took longer than it may",
        }[self.reason]
        return f"{how}: {said}" if said else how


# $1 … $4 are the limits ("" for none), the rest is the program.  512-byte blocks and KiB are what POSIX and every sh use here.
# The hard limit of processor time is a second above the soft one: SIGXCPU tells why it ended, SIGKILL would not.
# $5 is who started it: when that process died before setpriv had asked for the signal of its death, the signal never comes.
_LAUNCH = """
[ "$PPID" = "$5" ] || exit 126
[ -z "$1" ] || ulimit -v "$1" || exit 126
[ -z "$2" ] || { ulimit -S -t "$2" && ulimit -H -t "$(($2 + 1))"; } || exit 126
[ -z "$3" ] || ulimit -f "$3" || exit 126
[ -z "$4" ] || ulimit -n "$4" || exit 126
ulimit -c 0
shift 5
exec "$@"
"""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENV = {"PATH": PATH, "LC_ALL": "C.UTF-8"}
OUTPUT_BYTES_MAX = 64 << 10
REAP_POLL_S = 0.001


def find_program(name: str) -> str:
    """Its absolute path.  Errors: ProgramMissing."""
    found = shutil.which(name, path=os.environ.get("PATH") or PATH)
    if found is None:
        raise ProgramMissing(name)
    return str(Path(found).absolute())


async def run_process(
    argv: Sequence[str],
    *,
    limits: Limits,
    cwd: Path | None = None,
    env: Mapping[str, str] = ENV,
    stdin: bytes | None = None,
    on_output: Callable[[bytes], Awaitable[None]] | None = None,
    output_bytes_max: int = OUTPUT_BYTES_MAX,
) -> Ended:
    """The program has ended, and everything it started with it.

    `on_output` is given the standard output as it comes.
    Errors: ProgramMissing.  CancelledError, and anything `on_output` raises, kills the program first.
    """
    program = find_program(argv[0])
    process = await _started(
        asyncio.create_subprocess_exec(
            *_launcher(limits),
            program,
            *argv[1:],
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=cwd,
            env=dict(env),
            start_new_session=True,
            close_fds=True,
        )
    )
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = _Tail(output_bytes_max), _Tail(output_bytes_max)
    timed_out = False
    try:
        async with asyncio.timeout(limits.wall_s), asyncio.TaskGroup() as group:
            group.create_task(_pump(process.stdout, out, on_output))
            group.create_task(_pump(process.stderr, err, None))
            if stdin is not None:
                group.create_task(_feed(process, stdin))
            group.create_task(_end_group(process))
    except TimeoutError:
        timed_out = True
    except BaseExceptionGroup as group_error:
        raise group_error.exceptions[0] from None
    finally:
        code = await _kill(process)
    return Ended(code=code, reason=reason_of(code, timed_out), stdout=bytes(out), stderr=bytes(err))


async def _started(start: Coroutine[Any, Any, asyncio.subprocess.Process]) -> asyncio.subprocess.Process:
    """The process.  A caller cancelled while it starts: asyncio would kill the program alone and leave its children."""
    starting = asyncio.ensure_future(start)
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(Exception):  # it did not start
            await _kill(await _settled(starting))
        raise


async def _settled(future: asyncio.Future[T]) -> T:
    """The future's result, however often the caller is cancelled meanwhile."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(future)
    return future.result()


def _launcher(limits: Limits) -> list[str]:
    asked = (
        None
        if limits.memory_bytes is None or sys.platform == "darwin"
        else limits.memory_bytes // 1024,  # macOS has no such limit
        limits.cpu_s,
        None if limits.file_bytes is None else -(-limits.file_bytes // 512),
        limits.open_files,
    )
    shell = ["/bin/sh", "-c", _LAUNCH, "sh", *("" if value is None else str(value) for value in asked), str(os.getpid())]
    guard = shutil.which("setpriv", path=PATH)
    return shell if guard is None else [guard, "--pdeathsig", "KILL", "--", *shell]


class _Tail:
    """The last bytes of a stream."""

    def __init__(self, limit: int) -> None:
        self._limit, self._data = limit, bytearray()

    def add(self, chunk: bytes) -> None:
        self._data += chunk
        if len(self._data) > 2 * self._limit:
            del self._data[: -self._limit]

    def __bytes__(self) -> bytes:
        return bytes(self._data[-self._limit :])


async def _pump(stream: asyncio.StreamReader, tail: _Tail, on_output: Callable[[bytes], Awaitable[None]] | None) -> None:
    while chunk := await stream.read(16 << 10):
        tail.add(chunk)
        if on_output is not None:
            await on_output(chunk)


async def _feed(process: asyncio.subprocess.Process, data: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may end without reading
        process.stdin.write(data)
        await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """Once the program has ended, what it left behind ends too: its pipes would stay open otherwise."""
    await _exited(process.pid) if sys.platform == "linux" else await process.wait()
    _kill_group(process)


async def _exited(pid: int) -> None:
    # asyncio's own wait() ends only when the pipes are closed, and a background child may hold them.
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _resolve, ended)
    try:
        await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _kill_group(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # PermissionError: on macOS, a group of zombies
        os.killpg(process.pid, signal.SIGKILL)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _kill(process: asyncio.subprocess.Process) -> int:
    """Kill what is left of its group and reap it.  The exit code."""
    _kill_group(process)
    return await _settled(asyncio.ensure_future(_reaped(process)))  # SIGKILL is final: a second cancel leaves no zombie behind


async def _reaped(process: asyncio.subprocess.Process) -> int:
    """Closed once asyncio has seen the end: closing before may reap the process, and its exit code is lost (it says 255)."""
    transport = process._transport  # type: ignore[attr-defined]  # wait() waits for the pipes too, and who left the group may hold them
    while transport.get_returncode() is None:  # noqa: ASYNC110  (nothing tells; it is some milliseconds away)
        await asyncio.sleep(REAP_POLL_S)
    transport.close()
    return await process.wait()


def reason_of(code: int, timed_out: bool) -> Reason:
    """Why a program ended that had this code; one below 0 is the signal that killed it."""
    if timed_out:
        return "wall_time"
    if code >= 0:
        return "exit"
    if -code == signal.SIGXCPU:
        return "cpu_time"
    if -code == signal.SIGXFSZ:
        return "file_size"
    return "signal"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


__all__ = ["ENV", "Ended", "Limits", "ProgramMissing", "find_program", "reason_of", "run_process"]
