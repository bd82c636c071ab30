"""Write constraints.txt again: the exact versions of a clean install of `.[dev]`, tried in a virtual environment of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# The versions that a clean install had when they were last tried together: pip install -c constraints.txt -e '.[dev]'
# Renewed by: make pins
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [str(Path(folder, "bin", "pip")), "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", f"{ROOT}[dev]"], check=True)
        frozen = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True).stdout
    pins = [line for line in frozen.splitlines() if "==" in line and not line.startswith(("milepost", "#", "-"))]
    Path(ROOT, "constraints.txt").write_text(HEAD + "\n".join(pins) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(pins)} packages pinned in constraints.txt\n")


if __name__ == "__main__":
    main()
