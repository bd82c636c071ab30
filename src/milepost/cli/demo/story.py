"""What every chapter of the demo needs: how it tells what it sees, and a server of its own that it may kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rich.json import JSON
from rich.text import Text

from milepost.cli.show import Show, amount
from milepost.errors import ProtocolError, Unreachable
from milepost.job import Progress

START_S = 60.0  # the server's start
MILEPOST = (sys.executable, "-c", "from milepost.cli import main; main()")


def clean_environ() -> dict[str, str]:
    """The environment without what would lead our own commands to another server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MILEPOST_")}


class Story:
    """What the demo tells: numbered steps, each with what was seen."""

    def __init__(self, show: Show) -> None:
        self.show, self._step = show, 0

    def step(self, title: str) -> None:
        self._step += 1
        self.show.out.print()
        self.show.out.print(Text.assemble((f"{self._step}  ", "bold cyan"), (title, "bold")))

    def say(self, text: str, style: str = "") -> None:
        self.show.out.print(Text(f"   {text}", style=style), soft_wrap=True)

    def seen(self, text: str) -> None:
        self.show.out.print(Text.assemble(("   ✓ ", "green"), text), soft_wrap=True)

    def code(self, text: str) -> None:
        self.show.out.print(Text(f"   $ {text}", style="dim"), soft_wrap=True)

    def json(self, value: Any) -> None:
        if self.show.out.is_terminal:
            self.show.out.print(JSON.from_data(value, ensure_ascii=False))
        else:
            self.show.out.print(json.dumps(value, indent=2, ensure_ascii=False), soft_wrap=True)

    def trouble(self, log: str) -> None:
        if log:
            self.show.err.print(Text("the server's last lines:\n" + log, style="dim"))

    def end(self, text: str) -> None:
        self.show.out.print()
        self.show.out.print(Text(text, style="bold green"))


class Server:
    """A `milepost serve` of its own, on one data folder and, once it has one, one port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "server.log"
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> float:
        """Start, or start again on the same port; returns the seconds until it was ready.  Errors: Unreachable."""
        began_s = time.monotonic()
        port = self.url.rpartition(":")[2] or "0"
        command = [*MILEPOST, "serve", "--port", port, "--auth", "none"]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [*command, "--data", str(self._folder / "data"), "--log-level", "warning"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=clean_environ(),
                cwd=self._folder,
            )
        self.url = self._read_ready()
        return time.monotonic() - began_s

    def _read_ready(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        giving_up = threading.Timer(START_S, self._process.kill)
        giving_up.start()
        try:
            line = self._process.stdout.readline()
        finally:
            giving_up.cancel()
        if not line.startswith("ready "):
            raise Unreachable(f"the server did not start: {self.log_tail() or 'no word from it'}")
        return line.split()[1]

    def kill(self) -> None:
        """SIGKILL: it gets no chance to tidy up."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def log_tail(self) -> str:
        try:
            return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-8:])
        except OSError:
            return ""


def in_bytes(count: int) -> str:
    """`47.6 MiB`."""
    return amount(Progress(count, None, "bytes"))


def run_milepost(server: Server, *words: str) -> int:
    """One `milepost` command against the demo's server; its exit code."""
    sys.stdout.flush()
    return subprocess.run([*MILEPOST, *words, "--url", server.url], env=clean_environ(), check=False).returncode


def expect(held: bool, otherwise: str) -> None:
    """Errors: ProtocolError with what was seen instead of what the demo is about."""
    if not held:
        raise ProtocolError(f"the demo did not go as it should: {otherwise}")
