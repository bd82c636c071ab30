"""Commands in processes of their own that do not load Python and Milepost anew: each is forked from one that has.

Loading takes a second of a busy machine, and the tests give hundreds of commands.  Such a process has the arguments, environment,
folder and streams that it was given, runs `main`, and ends as the interpreter ends.  Servers, and commands that get signals or
pipes, are started cold.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from select import select

# The last one is what Typer loads when it parses the first command.
LOADED = "milepost.cli.root, milepost.wiring, milepost.server.identity, milepost.client.dialects, rich.table, typer._adapters"
PROGRAM = f"""
import sys
sys.path.insert(1, sys.argv[1])
import {LOADED}
from warm import fork_each
fork_each(sys.argv[2])
from milepost.cli import main
main()
"""
REQUEST_BYTES_MAX = 1 << 20


def fork_each(path: str) -> None:
    """Returns in the process of each command; in the first one it ends the process when stdin is closed."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who waits for a command is forked, too
    while True:
        ready, _, _ = select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        asking, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _fork_one(asking)
            return
        asking.close()


def _fork_one(asking: socket.socket) -> None:
    """Returns in the process of the command; tells its number, and what it ended with."""
    message, streams, _, _ = socket.recv_fds(asking, REQUEST_BYTES_MAX, 3)
    asked = json.loads(message)
    number = os.fork()
    if number == 0:
        asking.close()
        for at, stream in enumerate(streams):
            os.dup2(stream, at)
            os.close(stream)
        os.chdir(asked["cwd"])
        os.environ.clear()
        os.environ.update(asked["env"])
        sys.argv[:] = ["milepost", *asked["arguments"]]
        del sys.path[1]
        return
    for stream in streams:
        os.close(stream)
    asking.sendall(b"%d\n" % number)
    _, status = os.waitpid(number, 0)
    asking.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


class Warm:
    """The process that has everything loaded; it ends with this one."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="milepost-warm-")
        self._path = f"{self._folder.name}/socket"
        here = str(Path(__file__).parent)
        command = [sys.executable, "-c", PROGRAM, here, self._path]
        env = {name: value for name, value in os.environ.items() if not name.startswith("MILEPOST_")}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**env, "NO_COLOR": "1", "COLUMNS": "120"}
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def run(
        self, arguments: Sequence[str], *, stdin: str, env: Mapping[str, str], cwd: Path | None, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` of a cold one."""
        request = {"arguments": list(arguments), "env": dict(env), "cwd": str(cwd or Path.cwd())}
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(stdin.encode())
            given.seek(0)
            with socket.socket(socket.AF_UNIX) as asking:
                asking.settimeout(timeout_s)
                asking.connect(self._path)
                socket.send_fds(asking, [json.dumps(request).encode()], [one.fileno() for one in (given, out, err)])
                told = asking.makefile("rb")
                number = int(told.readline())
                try:
                    code = int(told.readline())
                except TimeoutError:
                    os.kill(number, signal.SIGKILL)
                    raise
            texts = []
            for one in (out, err):
                one.seek(0)
                texts.append(one.read().decode())
        return subprocess.CompletedProcess(["milepost", *arguments], code, *texts)


_warm: list[Warm] = []


def warm() -> Warm:
    """This test run's own."""
    if not _warm:
        _warm.append(Warm())
    return _warm[0]
