"""Bytes on their way in: from a request, or from another server, to a file of their own, hashed as they come.

Rules
1. No body is ever whole in memory: pieces of a MiB are hashed and written in a thread, beside the event loop.
2. A file that is not finished is removed; one that a crash left is swept by its age with object storage's other temporary files.
3. The last `SPACE_LEFT_BYTES` of the disk are not taken: the database is on it too.
4. Silence ends an upload after `body_s_max`, and `upload_s_max` ends it in any case.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import tempfile
import time
import uuid
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from milepost.bucket import Etag
from milepost.errors import LimitExceeded
from milepost.server.facades.qiniu.endpoint import Call
from milepost.server.http import Disconnected
from milepost.server.state import AppState
from milepost.store.buckets import Buckets
from milepost.wire.qiniu import errors
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.qiniu.mime import SNIFF_BYTES

if TYPE_CHECKING:
    from milepost.store.objects import ObjectStore

WRITE_BYTES = 1 << 20
SPACE_LEFT_BYTES = 64 << 20
ENVELOPE_BYTES = 2 << 20  # what a form may have beside its file
DRAIN_BYTES, DRAIN_S = 8 << 20, 5.0


class Received(NamedTuple):
    """A whole file, not in object storage yet."""

    path: Path
    size_bytes: int
    hash: str
    md5: str
    crc32: int
    head: bytes


def buckets_of(call: Call) -> Buckets:
    """Errors: Refusal when this server has no object storage."""
    return Buckets(call.state.store, objects_of(call.state), call.state.clock.now_us)


def objects_of(state: AppState) -> ObjectStore:
    """Errors: Refusal."""
    if state.objects is None:
        raise Refusal(errors.SERVER_ERROR, "this server has no object storage")
    return cast("ObjectStore", state.objects)


def spool(state: AppState) -> Path:
    """The folder of unfinished files; on local storage beside the objects, so that they only need to be moved."""
    objects = objects_of(state)
    if objects.temporary is not None:
        return objects.temporary
    folder = Path(tempfile.gettempdir()) if state.settings.data == ":memory:" else state.settings.data_dir / "uploads"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Sink:
    """A file that is being written.  `write` and `finish` run in a thread, one after the other."""

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        self.path, self.size_bytes, self._limit_bytes = folder / f"up-{uuid.uuid4().hex}", 0, limit_bytes
        self._etag, self._md5, self._crc32, self._head = Etag(), hashlib.md5(usedforsecurity=False), 0, b""
        self._buffer = bytearray()
        self._file: FileIO | None = None

    def lower_limit(self, limit_bytes: int) -> None:
        """At most so many bytes from now on; 0 and less change nothing."""
        if limit_bytes > 0:
            self._limit_bytes = min(self._limit_bytes, limit_bytes)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Errors: Refusal 413, OSError."""
        self.size_bytes += len(data)
        if self.size_bytes > self._limit_bytes:
            raise too_large(self._limit_bytes)
        self._buffer += data
        if len(self._buffer) >= WRITE_BYTES:
            await self._flush()

    async def finish(self) -> Received:
        """Errors: OSError."""
        await self._flush()
        if self._file is not None:
            self._file.close()
            self._file = None
        return Received(self.path, self.size_bytes, self._etag.text(), self._md5.hexdigest(), self._crc32, self._head)

    async def _flush(self) -> None:
        data, self._buffer = self._buffer, bytearray()
        # Shielded: a cancelled request removes the file, and the thread must not write it again afterwards.
        work = asyncio.ensure_future(asyncio.to_thread(self._append, data))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise

    def _append(self, data: bytearray) -> None:
        if self._file is None:
            self._file = self.path.open("xb", buffering=0)
        if data:
            check_space(self.path.parent, len(data))
        if len(self._head) < SNIFF_BYTES:
            self._head += bytes(data[: SNIFF_BYTES - len(self._head)])
        self._etag.update(memoryview(data))
        self._md5.update(data)
        self._crc32 = zlib.crc32(data, self._crc32)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def discard(self) -> None:
        """Nothing of it is left, unless it was moved away."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self.path.unlink(missing_ok=True)


@asynccontextmanager
async def open_sink(state: AppState, *, limit_bytes: int | None = None) -> AsyncIterator[Sink]:
    """A sink whose file is gone afterwards, unless it became an object."""
    most = state.settings.object_bytes_max
    sink = Sink(spool(state), limit_bytes=most if limit_bytes is None else min(most, limit_bytes))
    try:
        yield sink
    finally:
        sink.discard()


def too_large(allowed: int) -> Refusal:
    return Refusal(errors.TOO_LARGE, f"request entity too large: at most {allowed} bytes are allowed")


def check_space(folder: Path, needed: int) -> None:
    """Errors: OSError ENOSPC."""
    if shutil.disk_usage(folder).free < needed + SPACE_LEFT_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


async def body_chunks(call: Call, *, limit_bytes: int) -> AsyncIterator[bytes]:
    """The body as it comes.  Errors: Refusal 413, LimitExceeded (rule 4), Disconnected."""
    declared = call.headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise too_large(limit_bytes)
    settings, clock, size, more = call.state.settings, call.state.clock, 0, True
    end_s = clock.monotonic_s() + settings.upload_s_max
    while more:
        pause_s = min(settings.body_s_max, end_s - clock.monotonic_s())
        try:
            async with asyncio.timeout(max(pause_s, 0.0)):
                message = await call.receive()
        except TimeoutError:
            limit = "body_s_max" if pause_s == settings.body_s_max else "upload_s_max"
            raise LimitExceeded(
                f"the upload stopped, or took longer than {limit}", limit=limit, allowed=getattr(settings, limit)
            ) from None
        if message["type"] == "http.disconnect":
            raise Disconnected
        data: bytes = message.get("body", b"")
        size += len(data)
        more = message.get("more_body", False)
        call.body_ended = not more
        if size > limit_bytes:
            raise too_large(limit_bytes)
        if data:
            yield data


async def drain(call: Call) -> None:
    """Read a refused body to its end where that is near: a client that still sends would not see the answer."""
    declared, size = call.headers.get(b"content-length", b""), 0
    if call.body_ended or (declared.isdigit() and int(declared) > DRAIN_BYTES):
        return
    try:
        async with asyncio.timeout(DRAIN_S):
            while size <= DRAIN_BYTES:
                message = await call.receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


async def receive_file(call: Call, *, limit_bytes: int, sink: Sink) -> Received:
    """The body is the file.  Errors: those of `body_chunks`, OSError."""
    async for chunk in body_chunks(call, limit_bytes=limit_bytes):
        await sink.write(chunk)
    return await sink.finish()


def sweep_spool(state: AppState, *, older_s: float) -> int:
    """Files that a crash left.  On local storage they are among object storage's own temporary files, which are swept there."""
    count = 0
    if objects_of(state).temporary is None:
        for path in spool(state).glob("up-*"):
            try:
                if path.stat().st_mtime < time.time() - older_s:
                    path.unlink()
                    count += 1
            except FileNotFoundError:
                continue
    return count
