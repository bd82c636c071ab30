"""`bench`: runs the measuring suite of the source tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from milepost.cli.connect import end
from milepost.cli.exits import Exit
from milepost.cli.show import Show
from milepost.errors import InvalidInput


def bench(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGUMENT", help="handed to the suite", show_default=False)
    ] = None,
) -> None:
    """Measure throughput, latency and fsync on this machine, in one run; needs the source tree, where bench/ is."""
    end(Show(), _bench, arguments or [])


def find_suite() -> Path:
    """The folder with bench/: this one, or the tree that this package is installed from.  Errors: InvalidInput."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[3]):
        if (root / "bench" / "__main__.py").is_file():
            return root
    raise InvalidInput("there is no bench/ here", hint="run it in a clone of the source: make bench")


def _bench(arguments: list[str]) -> Exit:
    done = subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=find_suite(), check=False)
    return Exit(done.returncode) if done.returncode in (Exit.DONE, Exit.USAGE) else Exit.FAILED
