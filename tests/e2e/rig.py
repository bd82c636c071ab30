"""A real server process and the real command, for the end-to-end tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from warm import warm

COMMAND = [sys.executable, "-c", "from milepost.cli import main; main()"]
START_S = 60.0


def environ(**more: str) -> dict[str, str]:
    """The environment without what the developer's own shell says of other servers and terminals."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MILEPOST_", "OS_", "HUAWEICLOUD_"))}
    return {**kept, "NO_COLOR": "1", "COLUMNS": "120", **more}


class Done:
    """A command that ended."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        assert "Traceback" not in self.err, self.err

    @property
    def json(self) -> Any:
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def milepost(*arguments: str, stdin: str = "", cwd: Path | None = None, **env: str) -> Done:
    """The command, run to its end in a process of its own."""
    return Done(warm().run(arguments, stdin=stdin, env=environ(**env), cwd=cwd, timeout_s=180))


class Server:
    """`milepost serve` on a folder; started again it takes the port that it had."""

    def __init__(self, folder: Path, *arguments: str, **env: str) -> None:
        self.folder, self.arguments, self.env = folder, arguments, env
        self.url = ""
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        port = self.url.rpartition(":")[2] or "0"
        command = [
            *COMMAND,
            "serve",
            *self.arguments,
            "--port",
            port,
            "--data",
            str(self.folder / "data"),
            "--log-level",
            "warning",
        ]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=environ(**self.env), cwd=self.folder
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready http://127.0.0.1:"), line + (self.folder / "server.log").read_text()
        self.url = line.split()[1]

    def run(self, *arguments: str, stdin: str = "") -> Done:
        return milepost(*arguments, stdin=stdin, cwd=self.folder, MILEPOST_URL=self.url)

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ(MILEPOST_URL=self.url),
            cwd=self.folder,
        )

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        code = self.process.wait(90)
        self.process = None
        return code


def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Its first true value.  Errors: AssertionError after timeout_s."""
    end_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end_s, "the condition did not come true"
        time.sleep(0.02)
    return value
