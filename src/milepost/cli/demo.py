"""`demo`: a real image imported by an unmodified openstacksdk, through a kill -9 of the server."""

from __future__ import annotations

from typing import Annotated

import typer

from milepost.cli.connect import end
from milepost.cli.exits import Exit
from milepost.cli.show import Show


def demo(
    image: Annotated[
        str | None, typer.Option("--image", envvar="IMAGE", metavar="PATH|URL", help="a disk image instead of one it makes")
    ] = None,
) -> None:
    """Import a real disk image, kill the server in the middle, and see the import go on to its end."""
    end(Show(), _demo, image)


def _demo(image: str | None) -> Exit:
    raise NotImplementedError(image)
