"""`doctor`: what this machine lacks, and how to get it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer
from rich.text import Text

from milepost.cli.connect import Json, end
from milepost.cli.exits import Exit
from milepost.cli.show import Show
from milepost.settings import Settings

Verdict = Literal["ok", "warning", "missing"]
LOOK: dict[Verdict, tuple[str, str]] = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "missing": ("✗", "red")}

SQLITE_LEAST = (3, 35, 0)  # RETURNING
DISK_LEAST_BYTES, DISK_GOOD_BYTES = 256 << 20, 5 << 30
FSYNC_GOOD_MS = 10.0
FSYNC_TRIES = 30
FILES_GOOD = 4096
EXTRAS = {
    "server": ("starlette", "granian", "uvloop", "structlog", "prometheus_client", "argon2"),
    "images": ("obstore", "oslo_utils"),
    "media": ("pyvips", "segno", "markdown_it"),
    "servers": ("qemu.qmp",),
    "openstack": ("yaml",),
}


class Check(NamedTuple):
    """One thing looked at.  `missing` is what nothing works without, `warning` what some things need."""

    name: str
    verdict: Verdict
    found: str
    fix: str = ""


def doctor(
    host: Annotated[str | None, typer.Option(envvar="MILEPOST_HOST", help="address a server would listen on")] = None,
    port: Annotated[
        int | None, typer.Option("--port", "-p", envvar="MILEPOST_PORT", min=0, max=65535, help="port a server would take")
    ] = None,
    data: Annotated[str | None, typer.Option(envvar="MILEPOST_DATA", help="data folder of the server")] = None,
    json: Json = False,
) -> None:
    """Look for what this machine lacks, and say how to get it; exits with 1 when something needed is missing."""
    show = Show(as_json=json)

    def look() -> Exit:
        settings = Settings.read(host=host, port=port, data=data)
        checks = list(examine(settings))
        for check in checks:
            _tell(show, check)
        lacking = [check for check in checks if check.verdict == "missing"]
        if not show.as_json:
            warnings = sum(check.verdict == "warning" for check in checks)
            show.note(f"{len(lacking)} missing, {warnings} to look at" if lacking or warnings else "all is well")
        return Exit.FAILED if lacking else Exit.DONE

    end(show, look)


def _tell(show: Show, check: Check) -> None:
    if show.as_json:
        show.json(check._asdict())
        return
    glyph, style = LOOK[check.verdict]
    text = Text.assemble((f"{glyph} ", style), f"{check.name:<19} ", (check.found, "" if check.verdict == "ok" else style))
    show.out.print(text, soft_wrap=True)
    if check.fix:
        show.out.print(Text(f"  → {check.fix}", style="cyan"), soft_wrap=True)


def examine(settings: Settings) -> Iterator[Check]:
    """Every check, in the order in which they are told."""
    yield check_python()
    yield check_sqlite()
    yield from (check_extra(extra, modules) for extra, modules in EXTRAS.items())
    yield check_qemu()
    yield check_machines()
    yield check_ffmpeg()
    folder = existing(settings.data_dir)
    yield check_folder(folder)
    yield check_disk(folder)
    if os.access(folder, os.W_OK):
        yield check_fsync(folder, measure_fsync)
    yield check_port(settings.host, settings.port)
    yield check_files()


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def check_python() -> Check:
    return Check("Python", "ok", f"{platform.python_version()} ({sys.executable})")  # an older one would not have come so far


def check_sqlite(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> Check:
    found = ".".join(map(str, version))
    if version >= SQLITE_LEAST:
        return Check("SQLite", "ok", found)
    return Check(
        "SQLite", "missing", f"{found}, too old", f"a Python built with SQLite {'.'.join(map(str, SQLITE_LEAST))} or newer"
    )


def check_extra(extra: str, modules: tuple[str, ...]) -> Check:
    lacking = [module for module in modules if not _is_there(module)]
    if not lacking:
        return Check(f"milepost[{extra}]", "ok", "installed")
    verdict: Verdict = "missing" if extra == "server" else "warning"
    return Check(f"milepost[{extra}]", verdict, f"without {', '.join(lacking)}", f"pip install 'milepost[{extra}]'")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def check_qemu(program: str = "qemu-img") -> Check:
    path = shutil.which(program)
    if path is None:
        return Check(
            "qemu-img",
            "warning",
            "not found: images are imported, but not converted",
            "apt install qemu-utils, or dnf install qemu-img",
        )
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError) as error:
        return Check("qemu-img", "warning", f"{path} does not run: {error}", "apt install --reinstall qemu-utils")
    return Check("qemu-img", "ok", told)


def check_machines(program: str = "qemu-system-x86_64", kvm: Path = Path("/dev/kvm")) -> Check:
    path = shutil.which(program)
    if path is None:
        return Check(
            "QEMU", "warning", f"{program} not found: no servers are run", "apt install qemu-system-x86, or dnf install qemu-kvm"
        )
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError) as error:
        return Check("QEMU", "warning", f"{path} does not run: {error}", "apt install --reinstall qemu-system-x86")
    if kvm.exists() and not os.access(kvm, os.R_OK | os.W_OK):
        return Check("QEMU", "warning", f"{told}; {kvm} is not for this user: servers are slow", "add the user to the group kvm")
    return Check("QEMU", "ok", told if kvm.exists() else f"{told}; no {kvm} here: servers are emulated, and slow")


def check_ffmpeg(programs: tuple[str, ...] = ("ffmpeg", "ffprobe")) -> Check:
    fix = "apt install ffmpeg, or dnf install ffmpeg"
    told = []
    for program in programs:
        path = shutil.which(program)
        if path is None:
            return Check("FFmpeg", "warning", f"{program} not found: no audio or video is processed", fix)
        try:
            run = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            return Check("FFmpeg", "warning", f"{path} does not run: {error}", fix)
        told.append(" ".join(run.stdout.split()[:3]))
    return Check("FFmpeg", "ok", ", ".join(told))


def check_folder(folder: Path) -> Check:
    if os.access(folder, os.W_OK):
        return Check("data folder", "ok", str(folder))
    return Check(
        "data folder", "missing", f"{folder} cannot be written", "give --data another folder, or its rights to this user"
    )


def check_disk(folder: Path, free_bytes: int | None = None) -> Check:
    free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    found = f"{free / (1 << 30):.1f} GiB free"
    if free < DISK_LEAST_BYTES:
        return Check("disk space", "missing", found, f"make room on the disk of {folder}, or give --data another folder")
    if free < DISK_GOOD_BYTES:
        return Check("disk space", "warning", f"{found}: little for images", "give --data a folder on a larger disk")
    return Check("disk space", "ok", found)


def measure_fsync(folder: Path) -> list[float]:
    """Milliseconds of writing 4 KiB durably, each try on its own."""
    taken = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(FSYNC_TRIES):
            started_s = time.perf_counter()
            file.write(b"\0" * 4096)
            os.fsync(file.fileno())
            taken.append((time.perf_counter() - started_s) * 1000)
    return taken


def check_fsync(folder: Path, measure: Callable[[Path], list[float]]) -> Check:
    try:
        taken = sorted(measure(folder))
    except OSError as error:
        return Check("durable write", "missing", f"{folder}: {error.strerror}", "give --data a folder on a local disk")
    median, worst = taken[len(taken) // 2], taken[-1]
    found = f"median {median:.2f} ms, worst {worst:.2f} ms"
    if median > FSYNC_GOOD_MS:
        return Check("durable write", "warning", f"{found}: each commit waits for it", "put --data on a local SSD or NVMe disk")
    return Check("durable write", "ok", found)


def check_port(host: str, port: int) -> Check:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Check("port", "warning", f"{host}:{port}: {error.strerror}", "milepost serve --port 0 takes a free one")
    return Check("port", "ok", f"{host}:{port} is free" if port else f"{host}, any free one")


def check_files() -> Check:
    try:
        import resource
    except ModuleNotFoundError:
        return Check("open files", "ok", "no limit known on this system")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES_GOOD:
        return Check("open files", "ok", f"limit {soft}")
    top = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    return Check("open files", "warning", f"limit {soft}: few for many streams", f"ulimit -n {FILES_GOOD} (up to {top})")
