"""What a figure works with: a fresh folder on the measured disk, and programs that end with it.

Rules
1. Everything that is started listens on loopback, has a time limit, and is ended by its own process id.
2. `MILEPOST_*` variables of the caller do not reach what is measured; a figure names what it changes.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.figure import Unmeasurable

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"
START_S = 60.0
STOP_S = 30.0
RUN_S = 600.0
MILEPOST = "from milepost.cli import main; main()"


class Program(NamedTuple):
    """A program that runs: its process id, and what its ready line said."""

    pid: int
    url: str


class Room:
    """One call of one figure."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self.folder, self.quick = folder, quick
        self.jobs_kept = 100_000 if quick else 1_000_000  # in the full table

    def some(self, whole: int, quick: int) -> int:
        """How many, in a whole run and in a quick one."""
        return quick if self.quick else whole

    def run(self, module: str, *arguments: str | int | float | Path) -> dict[str, Any]:
        """The JSON that the program `python -m bench.MODULE` prints last.  Errors: Unmeasurable with what it said."""
        command = [sys.executable, "-m", f"bench.{module}", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=_environment({}), capture_output=True, text=True, timeout=RUN_S, check=False)
        if done.returncode:
            raise Unmeasurable(f"bench.{module} ended with {done.returncode}: {_last_line(done.stderr)}")
        found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
        return found

    @contextmanager
    def serving(self, data: Path, **settings: str | int | float) -> Iterator[Program]:
        """A server with the kind `noop`, in a process of its own."""
        given = {f"MILEPOST_{name.upper()}": str(value) for name, value in settings.items()}
        given.setdefault("MILEPOST_LOG_LEVEL", "error")
        command = [sys.executable, "-c", MILEPOST, "serve", "bench.kinds", "--port", "0", "--data", str(data)]
        with _running(command, given) as program:
            yield program

    @contextmanager
    def rehearsing(self, scenario: Path) -> Iterator[Program]:
        """`milepost rehearse`: the jobs of this file."""
        with _running([sys.executable, "-c", MILEPOST, "rehearse", str(scenario), "--port", "0"], {}) as program:
            yield program

    @contextmanager
    def program(self, module: str, *arguments: str | int | Path) -> Iterator[Program]:
        """`python -m bench.MODULE`, once it has printed `ready URL`."""
        with _running([sys.executable, "-m", f"bench.{module}", *map(str, arguments)], {}) as program:
            yield program


@contextmanager
def fresh_room(*, quick: bool) -> Iterator[Room]:
    """A room whose folder goes with it."""
    BUILD.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=BUILD))
    try:
        yield Room(folder, quick=quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ask(method: str, url: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """The JSON answer to one request that is not measured."""
    data = None if body is None else json.dumps(body).encode()
    all_headers = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data, all_headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def poll(true: Callable[[], bool], *, every_s: float, limit_s: float, what: str) -> None:
    """Return when it is true.  Errors: Unmeasurable naming what did not happen."""
    end_s = time.perf_counter() + limit_s
    while not true():
        if time.perf_counter() > end_s:
            raise Unmeasurable(f"{what}: not within {limit_s:g} s")
        time.sleep(every_s)


def _environment(given: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MILEPOST_")}
    return {**kept, "MILEPOST_HISTORY": "off", **given}


@contextmanager
def _running(command: list[str], given: dict[str, str]) -> Iterator[Program]:
    process = subprocess.Popen(
        command, cwd=ROOT, env=_environment(given), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield Program(process.pid, _ready_url(process))
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _ready_url(process: subprocess.Popen[str]) -> str:
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(process, lines), daemon=True).start()
    said: list[str] = []
    end_s = time.monotonic() + START_S
    while True:
        try:
            line = lines.get(timeout=max(0.0, end_s - time.monotonic()))
        except queue.Empty:
            line = None
        if line is None:
            raise Unmeasurable(f"a server did not start: {' '.join(said[-3:]) or 'it said nothing'}")
        if line.startswith("ready "):
            return line.split()[1]
        said.append(line.strip())


def _read_lines(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    # It also keeps the pipe empty: a server whose output nobody reads would stop.
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.put(line)
    except ValueError:  # closed at the end
        pass
    lines.put(None)


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2][:300] or "it said nothing"
