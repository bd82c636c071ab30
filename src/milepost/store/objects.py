"""Where big results are kept: object storage behind one small interface, a local folder by default, any S3 by URL.

Rules
1. An object appears whole or not at all, and when `put_file` returns it is on disk (local: file and folder are fsynced) or
   acknowledged by the service (S3).
2. A key is made of plain segments (`images/0192…/7`); one that could leave the folder is refused.
3. Deleting what does not exist is not an error; a reader that has begun keeps reading what it opened (local storage).

obstore reads, lists and deletes on every kind of storage.  Writing to a local folder is done here with the system's own calls:
obstore writes a temporary file and renames it, but never calls fsync, so after a power cut the name may lead to an empty file.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import stat
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import obstore
import obstore.exceptions
from obstore.store import LocalStore, from_url

from milepost.errors import InvalidInput, StoreUnavailable

CHUNK_BYTES = 1 << 20
PART_BYTES = 16 << 20  # of an S3 multipart upload: 10,000 parts make 156 GiB, and larger files get larger parts
PARTS_MAX = 9_000
TEMPORARY = ".tmp"
TEMPORARY_S = 3600.0  # a temporary file that is older belongs to nobody
KEY_CHARS_MAX = 512
FOLDER_TRIES = 1000  # to make a folder that deletes take away again: each try has lost a race of microseconds

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")

Progress = Callable[[int], Awaitable[None]]


class ObjectEntry(NamedTuple):
    """One object of a listing."""

    key: str
    size_bytes: int
    modified_us: int


def check_key(key: str) -> str:
    """The key itself.  Errors: InvalidInput when it is no plain relative path."""
    if len(key) > KEY_CHARS_MAX or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise InvalidInput(f"not an object key: {key[:80]!r}", path="$.key")
    return key


class ObjectStore:
    """Object storage.  Make it with `open_objects`; `root` is the folder of local storage, None elsewhere."""

    def __init__(self, store: Any, *, root: Path | None) -> None:
        self._store = store
        self.root = root

    async def size_bytes(self, key: str) -> int | None:
        """None: no such object.  Errors: StoreUnavailable."""
        check_key(key)
        try:
            with _mapped():
                return int((await obstore.head_async(self._store, key))["size"])
        except FileNotFoundError:
            return None

    def local_path(self, key: str) -> Path | None:
        """The object's file on local storage, to be read or linked to and never written; None elsewhere."""
        return None if self.root is None else self.root / check_key(key)

    @property
    def temporary(self) -> Path | None:
        """Where a file that shall become an object is best written: it only has to be moved then.  None: anywhere."""
        return None if self.root is None else self.root / TEMPORARY

    async def put_file(self, key: str, path: Path, *, on_progress: Progress | None = None) -> None:
        """The file's bytes are the object.  On local storage the file is moved, and copied only from another file system.

        Errors: StoreUnavailable; OSError of the local file system (a full disk: ENOSPC), after which nothing is left behind.
        """
        check_key(key)
        if self.root is None:
            await self._upload(key, path, on_progress)
        else:
            size_bytes = 0 if on_progress is None else (await asyncio.to_thread(path.stat)).st_size
            await _in_thread(_move_durably, path, self.root, key)
            if on_progress is not None:
                await on_progress(size_bytes)

    async def _upload(self, key: str, path: Path, on_progress: Progress | None) -> None:
        size_bytes = (await asyncio.to_thread(path.stat)).st_size
        part_bytes = max(PART_BYTES, -(-size_bytes // PARTS_MAX))
        with _mapped():
            if size_bytes <= part_bytes:
                await obstore.put_async(self._store, key, await asyncio.to_thread(path.read_bytes), use_multipart=False)
            else:
                chunks = _file_chunks(path, part_bytes, on_progress)
                await obstore.put_async(self._store, key, chunks, use_multipart=True, chunk_size=part_bytes, max_concurrency=4)
        if on_progress is not None:
            await on_progress(size_bytes)

    async def read(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The object's bytes from `start`, at most `length` of them, in pieces of about a MiB.

        Errors: FileNotFoundError when there is no such object, StoreUnavailable.
        """
        check_key(key)
        with _mapped():
            size_bytes = int((await obstore.head_async(self._store, key))["size"])
            end = size_bytes if length is None else min(size_bytes, start + length)
            if start >= end:
                return
            got = await obstore.get_async(self._store, key, options={"range": (start, end)})
            async for chunk in got.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)

    async def delete(self, key: str) -> bool:
        """Whether there was such an object.  Errors: StoreUnavailable."""
        if await self.size_bytes(key) is None:
            return False
        try:
            with _mapped():
                await obstore.delete_async(self._store, key)
        except FileNotFoundError:
            return False
        if self.root is not None:
            await asyncio.to_thread(_remove_empty, self.root, (self.root / key).parent)
        return True

    async def copy(self, key: str, to: str) -> None:
        """A second object with the same bytes; on local storage both names lead to the same ones until one is deleted.

        Errors: FileNotFoundError when there is no such object, StoreUnavailable, OSError of the local file system.
        """
        check_key(key)
        check_key(to)
        if self.root is not None:
            await _in_thread(_link_durably, self.root / key, self.root, to)
            return
        if await self.size_bytes(key) is None:
            raise FileNotFoundError(key)
        with _mapped():
            await obstore.copy_async(self._store, key, to)

    async def list_keys(self, prefix: str) -> list[ObjectEntry]:
        """All objects under the folder `prefix`, by key.  Errors: StoreUnavailable."""
        check_key(prefix.rstrip("/"))
        found: list[ObjectEntry] = []
        with _mapped():
            async for batch in obstore.list(self._store, prefix=prefix.rstrip("/")):
                found += [
                    ObjectEntry(entry["path"], entry["size"], int(entry["last_modified"].timestamp() * 1_000_000))
                    for entry in batch
                ]
        return sorted(found)

    async def sweep_temporary(self) -> int:
        """Remove what interrupted writes left behind and nobody has touched for an hour.  How many there were.

        S3: unfinished multipart uploads are the bucket's to expire, by a lifecycle rule (AbortIncompleteMultipartUpload).
        """
        return 0 if self.root is None else await asyncio.to_thread(_sweep, self.root / TEMPORARY)


def open_objects(url: str | None, data_dir: Path) -> ObjectStore:
    """The storage that this URL names; None is the folder `objects` under the data folder.

    Shape: `file:///folder` · `s3://bucket/prefix?endpoint=https://…&region=…` (and any other option of obstore's S3Store), where
           credentials come from the query or, better, from the `AWS_*` variables of the environment.
    Errors: InvalidInput when the URL names no storage that is known.
    """
    if url is None:
        return _open_folder(data_dir / "objects")
    parts = urlsplit(url)
    if parts.scheme == "file":
        return _open_folder(Path(unquote(parts.path)))
    if parts.scheme not in ("s3", "s3a"):
        raise InvalidInput(f"objects_url begins with {parts.scheme!r}; file:// and s3:// are known", path="$.objects_url")
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    if str(options.get("endpoint", "")).startswith("http://"):
        options["client_options"] = {"allow_http": True}
    try:
        store = from_url(parts._replace(query="").geturl(), **options)
    except (obstore.exceptions.BaseError, ValueError, TypeError) as error:
        raise InvalidInput(f"objects_url does not name a storage: {_first_line(error)}", path="$.objects_url") from error
    return ObjectStore(store, root=None)


def _open_folder(folder: Path) -> ObjectStore:
    folder = folder.resolve()
    (folder / TEMPORARY).mkdir(parents=True, exist_ok=True)
    return ObjectStore(LocalStore(folder), root=folder)


@contextlib.contextmanager
def _mapped() -> Any:
    try:
        yield
    except obstore.exceptions.BaseError as error:
        raise StoreUnavailable(f"object storage: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]  # the rest is obstore's debug form


async def _in_thread(function: Callable[..., None], *args: Any) -> None:
    """Run it in a thread to its end, also when the caller is cancelled: a half-made move cannot be left alone."""
    cancelled = threading.Event()
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, cancelled))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        cancelled.set()
        with contextlib.suppress(Exception):
            await work
        raise


def _move_durably(source: Path, root: Path, key: str, cancelled: threading.Event) -> None:
    """fsync, rename, fsync: after a power cut there is the whole object under its name, or none."""
    target = root / key
    _fsync(source)
    made: list[Path] = []
    for tries_left in reversed(range(FOLDER_TRIES)):
        made += [folder for folder in _make_folders(root, target.parent) if folder not in made]
        try:
            _rename_or_copy(source, root, target, cancelled)
            break
        except FileNotFoundError:
            if not tries_left or not source.exists():
                raise  # else a delete took the empty folder away just now
    for folder in (target.parent, *made):
        with contextlib.suppress(FileNotFoundError):  # the object has been deleted since, and its folders with it
            _fsync(folder)


def _rename_or_copy(source: Path, root: Path, target: Path, cancelled: threading.Event) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_durably(source, root / TEMPORARY / uuid.uuid4().hex, target, cancelled)
        source.unlink()


def _link_durably(source: Path, root: Path, key: str, cancelled: threading.Event) -> None:
    temporary = root / TEMPORARY / uuid.uuid4().hex
    temporary.hardlink_to(source)
    try:
        _move_durably(temporary, root, key, cancelled)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _copy_durably(source: Path, temporary: Path, target: Path, cancelled: threading.Event) -> None:
    try:
        with source.open("rb") as reader, temporary.open("xb") as writer:
            while chunk := reader.read(8 * CHUNK_BYTES):
                if cancelled.is_set():
                    raise InterruptedError
                writer.write(chunk)
            writer.flush()
            os.fsync(writer.fileno())
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _make_folders(root: Path, folder: Path) -> list[Path]:
    """Make the folder; the folders above it that got a new entry by that, the innermost first.

    Deletes take empty folders away at any moment: also the one that was made just now, before the next was made in it.
    Errors: FileExistsError when something that is no folder stands in the way.
    """
    changed: list[Path] = []
    for tries_left in reversed(range(FOLDER_TRIES)):
        try:
            _make_folder(root, folder, changed)
            break
        except FileNotFoundError:
            if not tries_left:
                raise
    return changed


def _make_folder(root: Path, folder: Path, changed: list[Path]) -> None:
    """Errors: FileNotFoundError when it, or one above it, was taken away while it was looked at."""
    if folder.is_dir():
        return
    if folder != root:
        _make_folder(root, folder.parent, changed)
    try:
        folder.mkdir()
    except FileExistsError:
        if folder.is_symlink() or not stat.S_ISDIR(folder.stat().st_mode):
            raise
    else:
        changed[:] = [folder.parent, *(above for above in changed if above != folder.parent)]


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_empty(root: Path, folder: Path) -> None:
    while folder != root:
        try:
            folder.rmdir()
        except OSError:  # not empty, or gone already
            return
        folder = folder.parent


def _sweep(folder: Path) -> int:
    count, oldest_s = 0, time.time() - TEMPORARY_S
    for entry in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # renamed into its place just now
            if entry.stat().st_mtime < oldest_s:
                entry.unlink()
                count += 1
    return count


async def _file_chunks(path: Path, part_bytes: int, on_progress: Progress | None) -> AsyncIterator[bytes]:
    done = 0
    with path.open("rb") as reader:
        while chunk := await asyncio.to_thread(reader.read, part_bytes):
            yield chunk
            done += len(chunk)
            if on_progress is not None:
                await on_progress(done)


__all__ = ["ObjectEntry", "ObjectStore", "check_key", "open_objects"]
