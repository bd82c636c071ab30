"""Starts QEMU so that it outlives us, and knows it again.

Rules
1. The process writes its number, its start time and the host's boot into `process` before it becomes QEMU; only then does it look
   whether we still live.  So a machine that runs is always found, also when we are killed while it starts.
2. It gets a session of its own, no descriptors, no standard input, an environment of two variables, limits, and no privileges:
   none can be gained, and as root all capabilities are dropped.
3. What it says on standard error stays in a pipe, 64 KiB at most, and is read when it has ended.  Words beyond that, or said
   after we are gone, are lost; they never stop it and never fill a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from milepost.machines.command import PROCESS_FILE
from milepost.process import ENV, PATH, find_program

OVERHEAD_BYTES = 3 << 30  # address space besides the guest's memory: QEMU's code, stacks, translated code, buffers
OPEN_FILES = 512
CAP_SETPCAP = 8

# $1: address space in KiB, $2: open files, $3: who starts it, $4: the file for what it is; the rest is the program.
# The 20th field after the name's bracket is the start time (proc(5)); exec changes neither it nor the number.
_LAUNCH = """
kib=$1 files=$2 starter=$3 file=$4
shift 4
read -r boot < /proc/sys/kernel/random/boot_id || exit 125
read -r stat < /proc/$$/stat || exit 125
program=$1
line=$(IFS=' '; set -f; set -- ${stat##*) }; echo "$$ ${20} $boot") || exit 125
[ "$PPID" = "$starter" ] || exit 126
echo "$line" > "$file.$$" && mv "$file.$$" "$file" || exit 125
if [ "$PPID" != "$starter" ]; then # another one may be starting it already
    read -r seen < "$file" && [ "$seen" = "$line" ] && rm -f "$file"
    exit 126
fi
ulimit -v "$kib" && ulimit -n "$files" && ulimit -c 0 || exit 125
umask 077
exec "$@"
"""


class ProcessId(msgspec.Struct, frozen=True):
    """One process, for good: numbers are used again, start times within one boot are not."""

    pid: int
    started: int  # in clock ticks after the boot
    boot: str


class Child(msgspec.Struct):
    """A process that this one started: it is reaped here, and its last words are read here."""

    popen: subprocess.Popen[bytes]
    words: int
    said: str | None = None  # once it has ended and was asked for


_children: dict[int, Child] = {}
_lock = threading.Lock()


def start_process(argv: Sequence[str], *, folder: Path, memory_bytes: int) -> None:
    """The program runs in its folder.  Errors: ProgramMissing, OSError."""
    program = find_program(argv[0])
    (folder / PROCESS_FILE).unlink(missing_ok=True)
    limits = [str((memory_bytes + OVERHEAD_BYTES) // 1024), str(OPEN_FILES), str(os.getpid()), PROCESS_FILE]
    words, said = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        popen = subprocess.Popen(
            ["/bin/sh", "-c", _LAUNCH, "sh", *limits, *_without_privileges(), program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            cwd=folder,
            env=dict(ENV),
            start_new_session=True,
            close_fds=True,
        )
    except BaseException:
        os.close(words)
        raise
    finally:
        os.close(said)
    with _lock:
        _children[popen.pid] = Child(popen, words)


def _without_privileges() -> list[str]:
    """What takes privileges away, where util-linux is installed."""
    setpriv = shutil.which("setpriv", path=PATH)
    if setpriv is None:
        return []
    argv = [setpriv, "--no-new-privs"]
    if _has_capability(CAP_SETPCAP):
        argv += ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]
    return [*argv, "--"]


def _has_capability(number: int) -> bool:
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return bool(int(next(line for line in lines if line.startswith("CapEff:")).split()[1], 16) >> number & 1)
    return False


def read_process(folder: Path) -> ProcessId | None:
    """Who runs this folder's machine, or did; None when it was never started, or was put away."""
    try:
        pid, started, boot = (folder / PROCESS_FILE).read_text().split()
        return ProcessId(int(pid), int(started), boot)
    except (FileNotFoundError, ValueError):
        return None


def is_alive(process: ProcessId) -> bool:
    """Whether exactly this process still runs, any thread of it; one that has ended and is not reaped does not.

    Asked of a descriptor of the process: its first thread may be a zombie while the others still hold its files.
    """
    _reap(process.pid)
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        return _is_it(process) and not ended.poll(0)
    finally:
        os.close(descriptor)


def _is_it(process: ProcessId) -> bool:
    """Whether who has the number now is who had it then."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return False
    return int(fields[19]) == process.started and boot == process.boot


def kill(process: ProcessId) -> None:
    """SIGKILL to exactly this process; nothing when it has ended."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (ProcessLookupError, OSError):
        return
    try:
        if is_alive(process):  # the descriptor is of who had the number before this look, and still has it
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    finally:
        os.close(descriptor)


async def wait_ended(process: ProcessId) -> None:
    """Exactly this process has ended."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _resolve, ended)
    try:
        if is_alive(process):
            await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def last_words(process: ProcessId | None) -> str:
    """How an ended process of ours ended, and what it said on standard error; empty when it is not ours, or runs."""
    if process is None:
        return ""
    _reap(process.pid)
    with _lock:
        child = _children.get(process.pid)
        if child is None or child.popen.returncode is None:
            return ""
        if child.said is None:
            child.said = _describe(child.popen.returncode, _drained(child.words))
        return child.said


def forget(process: ProcessId | None) -> None:
    """Its last words are not needed any more."""
    if process is None:
        return
    with _lock:
        child = _children.get(process.pid)
        if child is not None and child.popen.returncode is not None:
            del _children[process.pid]
            if child.said is None:
                os.close(child.words)


def _drained(words: int) -> bytes:
    said = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(words, 64 << 10):
            said = (said + piece)[-2000:]
    os.close(words)
    return said


def _describe(code: int, said: bytes) -> str:
    how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
    return " ".join([f"{how}:", *said.decode("utf-8", "replace").split()]) if said else how


def _reap(pid: int) -> None:
    with _lock:
        child = _children.get(pid)
        if child is not None:
            child.popen.poll()


__all__ = ["ProcessId", "forget", "is_alive", "kill", "last_words", "read_process", "start_process", "wait_ended"]
