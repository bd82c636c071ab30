"""What running commands share: children and programs with limits, files of other objects and URLs, sources opened in place.

Rules
1. However many queues there are, no more than `media_concurrency` commands use the processors of this server at once.
2. An object that a command names is read only when its bucket is public or the job's own project's; all other URLs are asked
   under the rules of outgoing requests (`egress.py`), and read up to a limit.
3. Commands behind such an object's URL are done on it before it is used: `kodo://bucket/logo.png?roundPic/radius/20`.  A key may
   hold a question mark, so the whole is looked for first.
4. A source on local storage is linked into the job's folder, not copied: it can be deleted or replaced meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit
from weakref import WeakKeyDictionary

import msgspec

from milepost import Conflict, Forbidden, InvalidInput, NotFound, ProtocolError, RetryableError, Running, Unreachable
from milepost.bucket import StoredObject
from milepost.egress import EgressPolicy, Timeouts, open_guarded, redact
from milepost.forkserver import ForkServer, ForkServerDied
from milepost.process import Ended, Limits, ProgramMissing, run_process
from milepost.work.media import child
from milepost.work.media.commands import COMMANDS, BadCommand, FopFailed, Origin, Target
from milepost.work.media.grammar import parse_fop
from milepost.work.threads import in_thread

if TYPE_CHECKING:
    from milepost.settings import Settings

T = TypeVar("T")

FORKED = ("milepost.work.media.vips", "milepost.work.media.documents")  # modules whose functions run in forked children
CHILD_ENV = {"VIPS_CONCURRENCY": "1", "MALLOC_ARENA_MAX": "2"}  # one picture a processor: the commands are what runs in parallel
FETCH = Timeouts(connect_s=10.0, read_s=30.0, total_s=600.0)
WRITE_BYTES = 1 << 20
DEPTH_MAX = 2  # of commands behind URLs in commands behind URLs


class Workshop:
    """The children and the places of one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.forks = ForkServer(FORKED, env=CHILD_ENV)
        self.places = asyncio.Semaphore(settings.media_places)
        self.looks = asyncio.Semaphore(settings.media_places)  # for questions that an upload waits for


_WORKSHOPS: WeakKeyDictionary[asyncio.AbstractEventLoop, Workshop] = WeakKeyDictionary()


def workshop(settings: Settings) -> Workshop:
    """This loop's."""
    loop = asyncio.get_running_loop()
    found = _WORKSHOPS.get(loop)
    if found is None:
        found = _WORKSHOPS[loop] = Workshop(settings)
    return found


async def close_workshop() -> None:
    """The loop's children have ended."""
    found = _WORKSHOPS.pop(asyncio.get_running_loop(), None)
    if found is not None:
        await found.forks.close()


class LocalTools:
    """`commands.Tools` for one file that is here: children and programs, no other files and nobody who is told of progress.

    readers: the word of all commands that one job runs over this very source; None: there are no others.
    """

    def __init__(
        self,
        settings: Settings,
        places: asyncio.Semaphore,
        *,
        origin: Origin,
        target: Target,
        mime_type: str,
        folder: Path,
        readers: str | None = None,
    ) -> None:
        self.settings = settings
        self.origin, self.target, self.mime_type, self._folder = origin, target, mime_type, folder
        self._folder_made = False
        self._forks, self._places, self._readers = workshop(settings).forks, places, readers

    @property
    def folder(self) -> Path:
        if not self._folder_made:
            self._folder.mkdir(exist_ok=True)
            self._folder_made = True
        return self._folder

    async def progress(self, done: int, total: int | None = None, note: str = "", *, unit: str = "") -> None:  # noqa: ARG002
        return

    async def fetch(self, url: str) -> Path:
        raise FopFailed(f"failed to GET {redact(url)}: no other file is read here")

    async def fork(self, function: str, request: Any, result: type[T], *, alone: bool = True) -> T:
        settings = self.settings
        limits = Limits(
            memory_bytes=settings.picture_memory_bytes,
            cpu_s=settings.picture_cpu_s,
            file_bytes=settings.media_file_bytes_max,
            wall_s=settings.media_wall_s,
        )
        try:
            async with self._places:
                answer = await self._forks.call(
                    function, msgspec.json.encode(request), limits=limits, share=None if alone else self._readers
                )
        except ForkServerDied as died:
            raise RetryableError("worker_process_died", f"{died}") from died
        if answer.failed is not None:
            raise FopFailed(answer.failed)
        if answer.result is None:
            raise FopFailed(f"the command was stopped: {answer.describe()}")
        try:
            return child.read(answer.result, result)
        except msgspec.DecodeError as error:
            raise FopFailed(f"the command gave no answer that can be read: {error}") from error

    async def run_program(
        self,
        argv: list[str],
        *,
        limits: Limits | None = None,
        on_output: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> Ended:
        settings = self.settings
        limits = limits or Limits(file_bytes=settings.media_file_bytes_max, wall_s=settings.media_wall_s)
        try:
            async with self._places:
                return await run_process(argv, limits=limits, cwd=self.folder, on_output=on_output)
        except ProgramMissing as missing:
            raise FopFailed(f"{missing} on the server") from missing


class StepTools(LocalTools):
    """`commands.Tools` for one step of one item."""

    def __init__(
        self,
        job: Running,
        *,
        origin: Origin,
        target: Target,
        mime_type: str,
        folder: Path,
        shared: Path,
        readers: str | None,
        report: Callable[[int, int | None, str, str], Awaitable[None]],
        depth: int = 0,
    ) -> None:
        places = workshop(job.settings).places
        super().__init__(job.settings, places, origin=origin, target=target, mime_type=mime_type, folder=folder, readers=readers)
        self._job, self._shared, self._report, self._depth = job, shared, report, depth
        self._fetched: dict[str, Path] = {}

    async def progress(self, done: int, total: int | None = None, note: str = "", *, unit: str = "") -> None:
        await self._report(done, total, note, unit)

    # --- other files -------------------------------------------------------------------------------------------------

    async def fetch(self, url: str) -> Path:
        if url not in self._fetched:
            self._shared.mkdir(exist_ok=True)
            path = self._shared / f"fetched-{len(list(self._shared.iterdir()))}"
            try:
                path = await self._fetch(url, path)
            except (FopFailed, RetryableError):
                raise
            except (NotFound, Forbidden, InvalidInput, ProtocolError, Unreachable) as error:
                raise FopFailed(f"failed to GET {redact(url)}: {error.message}") from error
            self._fetched[url] = path
        return self._fetched[url]

    async def _fetch(self, url: str, path: Path) -> Path:
        bare, commands = commands_behind(url)
        named = own_object(url, self.settings)
        if named is not None:
            try:
                found = await self._find(named)
                commands = "" if named[1].endswith(f"?{commands}") else commands
            except NotFound:
                if not commands or not url.startswith("kodo://"):
                    raise
                named = own_object(bare, self.settings) or named
                found = await self._find(named)
            await bring(self._job, found, path)
            return await self._processed(commands, path, named[0], found) if commands else path
        policy = EgressPolicy.from_settings(self.settings)
        async with open_guarded("GET", url, policy=policy, headers={"Accept-Encoding": "identity"}, timeouts=FETCH) as answer:
            if answer.status != 200:
                raise FopFailed(f"failed to GET {redact(url)}: {answer.status_line}")
            limit, size_bytes = self.settings.media_fetch_bytes_max, 0
            with await in_thread(path.open, "xb") as file:
                while (chunk := await answer.read_chunk()) is not None:
                    size_bytes += len(chunk)
                    if size_bytes > limit:
                        raise FopFailed(f"failed to GET {redact(url)}: it has more than {limit} bytes")
                    await in_thread(file.write, chunk)
        return path

    async def _find(self, named: tuple[str, str]) -> StoredObject:
        """Rule 2.  Errors: NotFound, Forbidden."""
        place = await self._job.buckets.find_bucket(named[0])
        if place.bucket.private and place.project != self._job.project:
            raise NotFound("no such object")
        found = (await self._job.buckets.find(place, named[1])).object
        if found.disabled and place.project != self._job.project:
            raise Forbidden("the file is disabled")
        return found

    async def _processed(self, commands: str, path: Path, bucket: str, stored: StoredObject) -> Path:
        """What the commands make of the object.  Errors: FopFailed."""
        try:
            fop = parse_fop(commands)
        except BadCommand as error:
            raise FopFailed(f"behind a URL: {error}") from error
        if self._depth >= DEPTH_MAX or fop.save is not None or any(step.command.makes != "object" for step in fop.steps):
            raise FopFailed(f"behind a URL: commands that make one file, no saveas, and at most {DEPTH_MAX} deep")
        mime_type = stored.mime_type
        origin = Origin(bucket=bucket, key=stored.key, hash=stored.hash, size_bytes=stored.size_bytes, mime_type=mime_type)
        for index, step in enumerate(fop.steps):
            folder = path.with_name(f"{path.name}-{index}")
            await in_thread(folder.mkdir)
            tools = StepTools(
                self._job,
                origin=origin,
                target=Target(bucket=bucket, key=None),
                mime_type=mime_type,
                folder=folder,
                shared=self._shared,
                readers=None,
                report=_tell_nobody,
                depth=self._depth + 1,
            )
            made = (await step.command.run(step.spec, path, folder / "out", tools)).files[0]
            path, mime_type = made.path, made.mime_type
        return path


async def _tell_nobody(done: int, total: int | None, note: str, unit: str) -> None:
    """The progress of what is done behind a URL is none of the item's."""


def commands_behind(url: str) -> tuple[str, str]:
    """The URL without the commands in its query, and those; empty when it has none."""
    bare, mark, query = url.rpartition("?")
    commands = unquote(query.partition("&")[0])
    known = mark and re.split(r"[/|]", commands, maxsplit=1)[0] in COMMANDS
    return (bare, commands) if known else (url, "")


def own_object(url: str, settings: Settings) -> tuple[str, str] | None:
    """Bucket and key, where the URL names one of this server's own objects: `kodo://bucket/key`, or one of its addresses.

    Errors: FopFailed for a kodo URL without bucket or key.
    """
    if url.startswith("kodo://"):
        bucket, _, key = url.removeprefix("kodo://").partition("/")
        if not bucket or not key:
            raise FopFailed("failed to GET kodo URL: it is kodo://<bucket>/<key>")
        return bucket, key
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    path = unquote(parts.path.removeprefix("/"))
    if settings.objects_domain and host.endswith(f".{settings.objects_domain}"):
        return host.removesuffix(f".{settings.objects_domain}"), path
    if not parts.path.startswith("/objects/"):
        return None
    public = urlsplit(settings.public_url) if settings.public_url else None
    ours = public is not None and (host, port) == (public.hostname, public.port)
    if ours or (host in (settings.host, "localhost") and port == settings.port):
        bucket, _, key = parts.path.removeprefix("/objects/").partition("/")
        return unquote(bucket), unquote(key)
    return None


async def bring(job: Running, stored: StoredObject, path: Path, *, before: Callable[[], None] = lambda: None) -> None:
    """The object's bytes are a file at `path`: linked on local storage, else copied.  Errors: FopFailed when they are gone.

    before: called first, in the same thread.
    """
    local = job.buckets.objects.local_path(stored.object_key)
    try:
        if await in_thread(_linked, path, local, before):
            return
        with await in_thread(path.open, "xb") as file:
            async for chunk in job.objects.read(stored.object_key):
                await in_thread(file.write, chunk)
    except FileNotFoundError:
        raise FopFailed("source data is empty or fail to get source data") from None
    except Conflict as error:
        raise FopFailed(f"source data is empty or fail to get source data: {error.message}") from error


def _linked(path: Path, local: Path | None, before: Callable[[], None]) -> bool:
    before()
    if local is None:
        return False
    try:
        path.hardlink_to(local)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        return False
    return True


__all__ = [
    "FORKED",
    "LocalTools",
    "StepTools",
    "Workshop",
    "bring",
    "close_workshop",
    "commands_behind",
    "own_object",
    "workshop",
]
