"""The demo, as a new user runs it: it tells what it sees, ends well, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.fault
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs qemu-system-x86_64")
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_the_demo_ends_well_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from milepost.cli import main; main()", "demo"]
    environ = {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "120"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environ, check=False)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    said = ended.stdout
    assert "kill -9" in said
    assert re.search(r"it went on at byte [1-9][\d,]+ of", said)
    assert "the same bytes" in said
    assert "batchCreateVolume SUCCESS" in said
    assert "its serial port says: Milepost: this machine has booted from an imported image" in said
    assert "640x427 jpeg became out/square.jpg" in said
    assert "h264 of 640x272 became out/bikes.webm and out/frame.jpg" in said
    assert "everything is stopped and removed" in said
    assert list(tmp_path.iterdir()) == []
    assert not _processes_that_name(str(tmp_path))


def _processes_that_name(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if text in words:
                found.append(words)
    return found
