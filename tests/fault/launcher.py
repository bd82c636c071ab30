"""Starts servers quickly: forks them from a process that has imported everything and has no threads.

Each is a process of its own that runs `milepost serve` as the command does, from its first line; only the imports, which take
most of a start, were done before.  One JSON line in, one out: `start` gives a pid, `poll` an exit code or null.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn


def run(request: dict[str, Any]) -> NoReturn:
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    for number, path in ((0, "/dev/null"), (1, request["out"]), (2, request["log"])):
        file = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.argv = ["milepost", *request["arguments"]]
    code = 1
    try:
        from milepost.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve_requests() -> None:
    from milepost import cli, wiring
    from milepost.cli import serve

    assert cli.app is not None
    assert serve.serve is not None
    wiring.load_kinds()
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a process with threads must not fork"
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "start":
            pid = os.fork()
            if pid == 0:
                run(request)
            answer: Any = pid
        else:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)


class Launcher:
    """The test's end."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


class Forked:
    """One server: what `subprocess.Popen` offers, as far as it is used here."""

    def __init__(
        self, launcher: Launcher, arguments: list[str], *, environment: dict[str, str], cwd: Path, out: Path, log: Path
    ) -> None:
        self._launcher = launcher
        self.pid: int = launcher.ask(
            do="start", arguments=arguments, environment=environment, cwd=str(cwd), out=str(out), log=str(log)
        )
        self._ended = os.pidfd_open(self.pid)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._launcher.ask(do="poll", pid=self.pid)
        return self.returncode

    def wait(self, timeout_s: float) -> int:
        end_s = time.monotonic() + timeout_s
        while self.poll() is None:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise subprocess.TimeoutExpired("milepost serve", timeout_s)
            select.select([self._ended], [], [], left_s)
        return self.returncode or 0

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._ended, number)


if __name__ == "__main__":
    serve_requests()
