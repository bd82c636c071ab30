"""What a media command is, and the registry that each family adds its own to.

A command is two functions.  `parse` makes the whole of its text into a value before anything runs, and `run` makes a file, or
an answer, of a source file.  `run` is a coroutine on the server's loop that leaves the heavy part to a process with limits:
`tools.fork` for a Python function in a warm child, `tools.run_program` for a program such as ffmpeg.

A family registers at import, and `pfop.py` imports the families:

    async def run_qhash(spec: QHash, source: Path, out: Path, tools: Tools) -> Output:
        return Output.info({"hash": ..., "fsize": ...})

    register(Command(name="qhash", makes="info", parse=parse_qhash, run=run_qhash))
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import msgspec

from milepost.forked import Failed
from milepost.process import Ended, Limits

if TYPE_CHECKING:
    from milepost.settings import Settings

T = TypeVar("T")
Makes = Literal["object", "objects", "info"]


class BadCommand(ValueError):
    """The command's text is wrong: a sentence that says what and where."""


class FopFailed(Failed):
    """The command cannot do its work on this source: what stands behind `execute fop cmd failed: `.  Not tried again."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The stored object at the beginning of the pipe."""

    bucket: str
    key: str
    hash: str
    size_bytes: int
    mime_type: str


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where the output of the item's last command will be stored.  `key` is None when it shall be the output's own hash."""

    bucket: str
    key: str | None


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """One file that a command made.  `key` None: the item's target; a name otherwise, in the target's bucket."""

    path: Path
    mime_type: str
    key: str | None = None


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """What a command came to.

    object: `files[0]` is the output; further files have keys and are stored beside it without being listed (an HLS playlist's
    segments).  objects: all files have keys, and the item lists them; `result` may tell of them.  info: `result` is the answer,
    any JSON.
    """

    makes: Makes
    files: tuple[Made, ...] = ()
    result: Any = None
    unchanged: bool = False  # the file is the source as it was: it keeps the source's type

    @classmethod
    def object(cls, path: Path, mime_type: str, *beside: Made) -> Output:
        """One file, and perhaps others beside it."""
        return cls(makes="object", files=(Made(path=path, mime_type=mime_type), *beside))

    @classmethod
    def objects(cls, *files: Made) -> Output:
        """Several files, each under its key."""
        return cls(makes="objects", files=files)

    @classmethod
    def info(cls, result: Any) -> Output:
        """An answer and no file."""
        return cls(makes="info", result=result)


class Tools(Protocol):
    """What a running command may use.  All paths are in the job's own folder."""

    settings: Settings
    origin: Origin
    target: Target
    mime_type: str  # of the source: the stored object's, or what the command before made

    @property
    def folder(self) -> Path:
        """For temporary files of this command; there from the first look on, removed when the job has ended."""
        ...

    async def fetch(self, url: str) -> Path:
        """The file behind a URL in the command's text: `kodo://bucket/key`, an address of one of this server's own objects, or
        any other http(s) URL that the rules of outgoing requests allow.  Fetched once in each job.

        Errors: FopFailed with the words `failed to GET <url>`.
        """
        ...

    async def progress(self, done: int, total: int | None = None, note: str = "", *, unit: str = "") -> None:
        """Say how far this command is."""
        ...

    async def fork(self, function: str, request: Any, result: type[T], *, alone: bool = True) -> T:
        """What `module:function` returns, run in a warm child process with limits that shares nothing with this one.

        alone: False when nothing is read but the source; other commands of the job over it may then follow in that child.
        The module is one of `tools.FORKED`, and the function is made with `@forked` of `child.py`: it is given one msgspec value
        and returns one.
        Errors: FopFailed, also for whatever the function raised and when a limit or a crash ended it.
        """
        ...

    async def run_program(
        self,
        argv: list[str],
        *,
        limits: Limits | None = None,
        on_output: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> Ended:
        """How the program ended, run in `folder` with the limits of media programs unless others are given.

        Errors: FopFailed when it is not installed.
        """
        ...


Parse = Callable[[list[str]], Any]
Run = Callable[[Any, Path, Path, Tools], Awaitable[Output]]


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One command.

    parse(args): the arguments behind its name, split at `/`, as a value.  Errors: BadCommand.
    run(spec, source, out, tools): `out` is a path for the output file that has no suffix and does not exist yet.
      Errors: FopFailed; RetryableError for what may pass.
    """

    name: str
    makes: Makes
    parse: Parse
    run: Run
    named_by_hash: bool = False  # without saveas the key is the output's hash, not one derived from the command


COMMANDS: dict[str, Command] = {}


def register(command: Command) -> Command:
    """The command is known from now on.  Errors: ValueError when another one has its name."""
    known = COMMANDS.get(command.name)
    if known is not None and known.parse is not command.parse:
        raise ValueError(f"command {command.name!r} is registered twice")
    COMMANDS[command.name] = command
    return command


__all__ = [
    "COMMANDS",
    "BadCommand",
    "Command",
    "FopFailed",
    "Made",
    "Makes",
    "Origin",
    "Output",
    "Target",
    "Tools",
    "register",
]
