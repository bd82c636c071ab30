"""`demo`: images, volumes, a machine, a photo and a clip, through the clouds' own SDKs and a kill -9 of the server.

Everything is real: a server process of its own, a web server with the image, the SDKs as their users have them.  Nothing outside
of a temporary folder is written, nothing but loopback is used (unless the image is a URL), and all that was started is stopped.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from milepost.cli.connect import end
from milepost.cli.demo.compute import Compute, end_machines
from milepost.cli.demo.images import Images
from milepost.cli.demo.media import Media
from milepost.cli.demo.source import SlowServer, find_image
from milepost.cli.demo.story import Server, Story
from milepost.cli.exits import Exit
from milepost.cli.serve import need_server
from milepost.cli.show import Show, duration
from milepost.errors import InvalidInput


def demo(
    image: Annotated[
        str | None, typer.Option("--image", envvar="IMAGE", metavar="PATH|URL", help="a disk image instead of one it makes")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="leave the data folder, and say where it is")] = False,
) -> None:
    """Import a real disk image, kill the server in the middle, and see the import go on to its end."""
    end(Show(), _demo, image, keep)


def _demo(image: str | None, keep: bool) -> Exit:
    need_server()
    sdk = _load_sdk()
    started_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="milepost-demo-"))
    story = Story(Show())
    server = Server(folder)
    try:
        source = find_image(image, folder)
        _serve(story, server, folder)
        with SlowServer(source).running() as images:
            image_id = Images(story, server, images, sdk).run()
        Compute(story, server, folder).run(image_id, boots=image is None)
        Media(story, server).run()
    except BaseException:
        server.kill()
        story.trouble(server.log_tail())
        raise
    finally:
        server.stop()
        end_machines(folder / "data")
        if keep:
            story.say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    story.end(f"done in {duration(time.monotonic() - started_s)}; everything is stopped" + ("" if keep else " and removed"))
    return Exit.DONE


def _load_sdk() -> Any:
    """Errors: InvalidInput when openstacksdk is not installed."""
    warnings.filterwarnings("ignore", module=r"(openstack|keystoneauth1|requests)")
    logging.getLogger("openstack").setLevel(logging.CRITICAL)
    logging.getLogger("keystoneauth").setLevel(logging.CRITICAL)
    try:
        import openstack
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"the demo imports through openstacksdk, and {error.name} is not installed", hint="pip install openstacksdk"
        ) from None
    return openstack


def _serve(story: Story, server: Server, folder: Path) -> None:
    story.step("A server with a new data folder")
    story.code(f"milepost serve --port 0 --data {folder.name}/data")
    took_s = server.start()
    story.seen(f"ready at {server.url} after {duration(took_s)}")
