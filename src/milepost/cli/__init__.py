"""The command line.  `main` is the program; everything else is loaded by it, so that a missing extra is told in one line."""

from __future__ import annotations

import sys
from typing import Any

from milepost.cli.exits import Exit


def main() -> None:
    """Run the command of `sys.argv`; ends the process with one of `Exit`."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ModuleNotFoundError as error:
        print(
            f"milepost: the command line needs {error.name}, which is not installed: pip install 'milepost[cli]'", file=sys.stderr
        )
        raise SystemExit(int(Exit.USAGE)) from None
    try:
        from milepost.cli.root import run
    except KeyboardInterrupt:  # Ctrl-C while it is still loading
        raise SystemExit(int(Exit.INTERRUPTED)) from None
    run()


def __getattr__(name: str) -> Any:
    if name == "app":
        from milepost.cli.root import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
