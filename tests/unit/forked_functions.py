"""What the children of `test_forkserver.py` run."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import time
from pathlib import Path

from milepost.forked import Failed

SECRET_AT_IMPORT = os.environ.get("FORKED_SECRET")


def echo(request: bytes) -> bytes:
    return request


def facts(_request: bytes) -> bytes:
    descriptors = {}
    for link in list(Path("/proc/self/fd").iterdir()):
        try:
            descriptors[link.name] = str(link.readlink())
        except OSError:
            continue
    return json.dumps(
        {
            "environ": dict(os.environ),
            "secret": SECRET_AT_IMPORT,
            "descriptors": descriptors,
            "pid": os.getpid(),
            "group": os.getpgid(0),
            "parent": os.getppid(),
            "cwd": str(Path.cwd()),
        }
    ).encode()


def fail(_request: bytes) -> bytes:
    raise ValueError("not today")


def leave(_request: bytes) -> bytes:
    print("out with it", flush=True)
    os._exit(7)


def spin(_request: bytes) -> bytes:
    while True:
        pass


def eat(request: bytes) -> bytes:
    return bytes(len(bytearray(int(request))))


def write(request: bytes) -> bytes:
    path, size = json.loads(request)
    with Path(path).open("wb") as file:
        file.write(bytes(size))
    return b""


def crash(_request: bytes) -> bytes:
    os.kill(os.getpid(), signal.SIGSEGV)
    return b""


def chatter(_request: bytes) -> bytes:
    for _ in range(100_000):
        try:
            os.write(2, b"and so on and so on ")
        except BlockingIOError:
            break
    os._exit(3)


def long_result(request: bytes) -> bytes:
    return b"x" * int(request)


def sleep_with_child(request: bytes) -> bytes:
    child = subprocess.Popen(["sleep", "600"])
    Path(request.decode()).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)
    return b""


def leave_child(request: bytes) -> bytes:
    child = subprocess.Popen(["sleep", "600"])
    Path(request.decode()).write_text(f"{os.getpid()} {child.pid}")
    return b"done"


def kill_server(_request: bytes) -> bytes:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)
    return b""


_TURN = 0


def turn(request: bytes) -> bytes:
    """Where this call runs, and which one it is there.  What is asked for happens from the second call on in one process."""
    global _TURN
    _TURN += 1
    if _TURN > 1:
        match request:
            case b"crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case b"fail":
                raise Failed("not in a used child")
            case b"raise":
                raise ValueError("not in a used child")
            case b"leave":
                os._exit(0)
            case b"kill server":
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(600)
            case b"spin":
                while True:
                    pass
    if request == b"work":
        end_s = time.process_time() + 0.7
        while time.process_time() < end_s:
            pass
    if request == b"grow":
        _GROWN.append(mmap.mmap(-1, 256 << 20))
    if request == b"long":
        return b"x" * 100_000
    return json.dumps({"pid": os.getpid(), "turn": _TURN, "parent": os.getppid(), "environ": dict(os.environ)}).encode()


_GROWN: list[mmap.mmap] = []


def refuse(request: bytes) -> bytes:
    raise Failed(request.decode())
