"""The process that forks: see `milepost.forkserver`, whose other half it is.  Started as `python -m milepost.forked`."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import math
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any, NoReturn

import msgspec

from milepost.process import Limits

PRINTED_BYTES_MAX = 2048
RESULT, ERROR, FAILED = b"\x00", b"\x01", b"\x02"  # the first byte of what a child says
GROWTH = 8  # a child whose address space grew by more than this part of its limit is not asked again
BEGUN = b"+"  # the first byte of what the server says of a call


class Hello(msgspec.Struct):
    """What the server is told first."""

    modules: list[str]
    path: list[str]


class Call(msgspec.Struct, frozen=True):
    """What a child is forked for.  turns: how many requests it may be given, one after the other, each with these limits."""

    function: str
    limits: Limits
    turns: int = 1


class Failed(Exception):
    """Raised by a function to say in words why it has no result.  Anything else that it raises is a fault of its own."""


def send_frame(one: socket.socket, body: bytes) -> None:
    """The body with its length in front."""
    one.sendall(struct.pack("!I", len(body)) + body)


def _read_frame(one: socket.socket) -> bytes:
    size = struct.unpack("!I", _read_exactly(one, 4))[0]
    return _read_exactly(one, size)


def _read_exactly(one: socket.socket, size: int) -> bytes:
    read = b""
    while len(read) < size:
        chunk = one.recv(size - len(read))
        if not chunk:
            raise EOFError
        read += chunk
    return read


class _Child:
    """One child, until it is reaped."""

    __slots__ = ("pid", "printed", "status")

    def __init__(self, pid: int, status: socket.socket, printed: int) -> None:
        self.pid, self.status, self.printed = pid, status, printed

    def kill(self) -> None:
        for kill in (os.killpg, os.kill):  # in its first moment it has no group of its own yet
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(self.pid, signal.SIGKILL)

    def end(self, code: int) -> None:
        """Tell how it ended: a few bytes into an empty socket, which never block."""
        printed = b""
        with contextlib.suppress(OSError):
            while chunk := os.read(self.printed, 1 << 16):
                printed = (printed + chunk)[-PRINTED_BYTES_MAX:]
        os.close(self.printed)
        with contextlib.suppress(OSError):  # nobody listens any more
            self.status.sendall(struct.pack("!i", code) + printed)
        self.status.close()


class _Server:
    """Forks and reaps.  Ends when its control socket closes."""

    def __init__(self, control: socket.socket) -> None:
        self._control, self._pid = control, os.getpid()
        self._children: dict[int, _Child] = {}  # by pid
        self._watched: dict[int, _Child] = {}  # by the descriptor of its status socket
        self._poll = select.poll()
        self._wakeup, wakeup = os.pipe()
        for end in (self._wakeup, wakeup):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self._poll.register(control, select.POLLIN)
        self._poll.register(self._wakeup, select.POLLIN)

    def run(self) -> None:
        control = self._control.fileno()
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == control:
                    if not self._accept():
                        return
                elif descriptor == self._wakeup:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wakeup, 4096)
                elif descriptor in self._watched:
                    self._watched.pop(descriptor).kill()
                    self._poll.unregister(descriptor)
            self._reap()

    def kill_all(self) -> None:
        for child in self._children.values():
            child.kill()

    def _accept(self) -> bool:
        """Fork for the next call.  False: the caller is gone."""
        try:
            byte, descriptors, _, _ = socket.recv_fds(self._control, 1, 2)
        except OSError:
            return False
        if not byte:
            return False
        if len(descriptors) != 2:
            return True
        status, data = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        try:
            call = msgspec.json.decode(_read_frame(status), type=Call)
            printed, print_to = os.pipe()
            pid = os.fork()
        except (OSError, EOFError, msgspec.DecodeError):  # no more processes: the caller sees its sockets close
            status.close()
            data.close()
            return True
        if pid == 0:
            _be_child(call, data, print_to, self._pid)
        os.close(print_to)
        data.close()
        os.set_blocking(printed, False)
        child = _Child(pid, status, printed)
        self._children[pid] = self._watched[status.fileno()] = child
        self._poll.register(status, select.POLLIN)
        with contextlib.suppress(OSError):
            status.sendall(BEGUN)
        return True

    def _reap(self) -> None:
        """Children that ended are told of, and what they left in their groups is killed first."""
        while self._children:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            child = self._children.pop(found.si_pid, None)
            if child is not None:
                child.kill()
                if self._watched.pop(child.status.fileno(), None) is not None:
                    self._poll.unregister(child.status)
            _, code = os.waitpid(found.si_pid, 0)
            if child is not None:
                child.end(code)


_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_libc: Any = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _be_child(call: Call, data: socket.socket, print_to: int, server: int) -> NoReturn:
    try:
        os.setsid()
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if os.getppid() != server:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGXFSZ):  # Python ignores the second one from its start
            signal.signal(number, signal.SIG_DFL)
        talk = _close_descriptors(data.detach(), print_to)
        _set_limits(call.limits, call.turns)
        _serve(talk, call)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            os.write(2, f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:PRINTED_BYTES_MAX])
        os._exit(1)
    os._exit(0)


def _close_descriptors(data: int, print_to: int) -> int:
    """Only standard streams and the data socket are left; the socket's new number.  A full pipe drops what is printed."""
    os.set_blocking(print_to, False)
    nothing = os.open(os.devnull, os.O_RDONLY)
    talk = os.dup2(data, 200, inheritable=False)
    os.dup2(nothing, 0)
    os.dup2(print_to, 1)
    os.dup2(print_to, 2)
    os.closerange(3, talk)
    os.closerange(talk + 1, os.sysconf("SC_OPEN_MAX"))
    return talk


def _set_limit(which: int, soft: int | None, hard: int | None = None) -> None:
    if soft is None:
        return
    _, most = resource.getrlimit(which)
    hard = soft if hard is None else hard
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(which, (soft, hard))


def _set_limits(limits: Limits, turns: int) -> None:
    with contextlib.suppress(OSError):  # when memory runs out, this one goes before the server
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(descriptor, b"500")
        os.close(descriptor)
    if limits.cpu_s is not None:  # the soft one ends a call; the hard one is for what ignores that, and for all turns together
        _set_limit(resource.RLIMIT_CPU, limits.cpu_s, (limits.cpu_s + 1) * turns)
    _set_limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    _set_limit(resource.RLIMIT_NOFILE, limits.open_files)
    _set_limit(resource.RLIMIT_CORE, 0)
    if sys.platform != "darwin":  # which has no such limit
        _set_limit(resource.RLIMIT_AS, limits.memory_bytes)


def _serve(talk: int, call: Call) -> None:
    """Answer what is asked, until there is no more to ask or this process is no longer as good as a new one."""
    module, _, name = call.function.partition(":")
    limits, before = call.limits, _address_space()
    for turn in range(call.turns):
        request = _read_request(talk)
        if request is None:
            return
        if turn and limits.cpu_s is not None:
            _set_limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + limits.cpu_s, (limits.cpu_s + 1) * call.turns)
        _say(talk, _answer(module, name, request))
        if limits.memory_bytes is not None and _address_space() - before > limits.memory_bytes // GROWTH:
            return


def _address_space() -> int:
    """Bytes; 0 where it is not told."""
    try:
        descriptor = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return 0
    pages = int(os.read(descriptor, 64).split()[0])
    os.close(descriptor)
    return pages * resource.getpagesize()


def _read_request(talk: int) -> bytes | None:
    """None when there is none."""
    read, wanted = bytearray(), 4
    while len(read) < wanted:
        chunk = os.read(talk, min(wanted - len(read), 1 << 16))
        if not chunk:
            return None
        read += chunk
        if wanted == len(read) == 4:
            wanted += struct.unpack("!I", read)[0]
    return bytes(read[4:])


def _answer(module: str, function: str, request: bytes) -> bytes:
    try:
        said: bytes = getattr(sys.modules[module], function)(request)
        return RESULT + said
    except Failed as failed:
        return FAILED + str(failed).encode("utf-8", "replace")
    except MemoryError:
        return ERROR + b"MemoryError: it needed more memory than it may use"
    except Exception as error:
        return ERROR + f"{type(error).__name__}: {error}"[:4000].encode("utf-8", "replace")


def _say(talk: int, answer: bytes) -> None:
    rest = memoryview(struct.pack("!I", len(answer)) + answer)
    while rest:
        rest = rest[os.write(talk, rest) :]


def main() -> None:
    """Serve on the socket whose descriptor is the first argument, until it closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    hello = msgspec.json.decode(_read_frame(control), type=Hello)
    sys.path[:] = hello.path
    try:
        for module in hello.modules:
            importlib.import_module(module)
        threads = len(os.listdir("/proc/self/task")) if sys.platform == "linux" else 1  # noqa: PTH208
        if threads != 1:
            raise RuntimeError(f"its modules started {threads - 1} threads; none may run where is forked")
    except BaseException as error:
        control.sendall(f"{type(error).__name__}: {error}"[:4000].encode("utf-8", "replace"))
        raise
    gc.collect()
    gc.freeze()  # a collection in a child would write to, and so copy, every page
    server = _Server(control)
    control.sendall(b"ready")
    try:
        server.run()
    finally:
        if os.getpid() == server._pid:
            server.kill_all()


if __name__ == "__main__":
    from milepost import forked  # under its own name, as the functions import it: `Failed` is to be one class

    forked.main()
