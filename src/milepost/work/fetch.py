"""A file brought here over HTTP, however often the connection breaks.

Rules
1. The bytes go to `<name>` in the job's folder, what is known of them to `<name>.json` beside it.  A later attempt, also one of
   another process, goes on from there.
2. Going on needs proof that the file is still the same: `Range` is sent with `If-Range` on a strong ETag, or on a Last-Modified
   that was at least a second old.  Without such a validator, or when the server answers 200, or anything that does not fit what
   is known (another ETag, total or start), the fetch begins again from zero.
3. A length that was promised is held: a shorter body is a broken connection, never a shorter file.  A body that is sent without
   length is taken as it ends.
4. What was received is trusted after a crash of the process (the system's cache survives it), but after a restart of the machine
   only as far as it was fsynced, every `SYNC_BYTES`.
5. Waiting is bounded: silence ends a try (`read_s`), and so does a trickle (`rate_min` over `rate_window_s`).  Tries that bring
   next to nothing are counted; after `tries_max` of them in a row the attempt fails and the job's own retry decides.

Errors: PermanentError: source_refused (our rules), source_not_found (404, 410), source_answered (any other refusal),
source_too_large, source_encoded.  RetryableError: source_unreachable, source_truncated, source_inconsistent, source_too_slow,
source_busy (408, 425, 429, 5xx; waits as long as Retry-After says), no_space (a disk gets emptied again).
OSError of the local disk.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from io import FileIO
from pathlib import Path
from time import monotonic

import msgspec

from milepost import Forbidden, InvalidInput, PermanentError, ProtocolError, RetryableError, Unreachable
from milepost.egress import Answer, EgressPolicy, Timeouts, open_guarded, redact
from milepost.work.threads import in_thread

WRITE_BYTES = 4 << 20  # of one write, in a thread
SYNC_BYTES = 256 << 20
GAIN_BYTES = 1 << 20  # what a try must bring to count as progress
SPACE_LEFT_BYTES = 64 << 20  # of the disk, that a fetch never takes
RETRY_AFTER_S_MAX = 3600.0
NO_SPACE_DELAY_S = 30.0

ProgressReport = Callable[[int, int | None], Awaitable[None]]


class FetchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How large a file may be and how patient a fetch is."""

    bytes_max: int
    timeouts: Timeouts = Timeouts(connect_s=10.0, read_s=30.0)
    tries_max: int = 5  # in a row that brought less than GAIN_BYTES
    pause_s: float = 0.5  # after the first of them; doubles
    pause_s_max: float = 8.0
    rate_min: int = 1024  # bytes a second
    rate_window_s: float = 60.0


class Known(msgspec.Struct, kw_only=True):
    """What is known of the file at the other end, and how much of it is here."""

    url: str
    etag: str | None = None  # strong ones only
    last_modified: str | None = None
    total: int | None = None
    synced: int = 0  # bytes that are on disk for sure
    boot: str = ""
    complete: bool = False

    @property
    def validator(self) -> str | None:
        return self.etag or self.last_modified


class Broken(Exception):
    """This try ended early; another one goes on.  `restart`: from zero."""

    def __init__(self, code: str, message: str, *, restart: bool = False) -> None:
        super().__init__(message)
        self.code, self.message, self.restart = code, message, restart


async def fetch(url: str, path: Path, *, policy: EgressPolicy, limits: FetchLimits, on_progress: ProgressReport) -> int:
    """The whole file is at `path`, fsynced; its size in bytes.  Returns at once when an earlier attempt brought it."""
    partial = await in_thread(_Partial.open, url, path)
    try:
        if not partial.known.complete:
            await _fetch_all(partial, policy, limits, on_progress)
        return partial.offset
    finally:
        await in_thread(partial.close)


async def _fetch_all(partial: _Partial, policy: EgressPolicy, limits: FetchLimits, on_progress: ProgressReport) -> None:
    furthest, fruitless = partial.offset, 0
    while True:
        try:
            await _Try(partial, policy, limits, on_progress).run()
        except Broken as broken:
            if broken.restart:
                await in_thread(partial.restart)
            fruitless = 0 if partial.offset - furthest >= GAIN_BYTES else fruitless + 1
            furthest = max(furthest, partial.offset)
            if fruitless >= limits.tries_max:
                raise RetryableError(broken.code, broken.message, {"received": partial.offset, "tries": fruitless}) from broken
            await asyncio.sleep(min(limits.pause_s * 2 ** max(fruitless - 1, 0), limits.pause_s_max))
        else:
            await in_thread(partial.finish)
            await on_progress(partial.offset, partial.offset)
            return


class _Try:
    """One request, from the first byte that is missing."""

    def __init__(self, partial: _Partial, policy: EgressPolicy, limits: FetchLimits, on_progress: ProgressReport) -> None:
        self.partial, self.policy, self.limits, self.on_progress = partial, policy, limits, on_progress
        self.where = redact(partial.known.url)

    async def run(self) -> None:
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        validator = self.partial.known.validator
        if self.partial.offset and validator is None:
            await in_thread(self.partial.restart)
        elif self.partial.offset and validator is not None:
            headers |= {"Range": f"bytes={self.partial.offset}-", "If-Range": validator}
        try:
            async with open_guarded(
                "GET", self.partial.known.url, policy=self.policy, headers=headers, timeouts=self.limits.timeouts
            ) as answer:
                end = await self.begin(answer, asked_range="Range" in headers)
                await self.receive(answer, end)
        except Forbidden as error:
            raise PermanentError("source_refused", f"The image source is refused: {error.message}.") from error
        except (InvalidInput, ProtocolError) as error:
            raise PermanentError("source_refused", f"The image source cannot be used: {error.message}.") from error
        except Unreachable as error:
            raise Broken("source_unreachable", f"The image source does not answer: {error.message}.") from error

    # --- the answer's head ---------------------------------------------------------------------------------------------

    async def begin(self, answer: Answer, *, asked_range: bool) -> int | None:
        """Make the partial file ready for this body; where the body ends, when that is known."""
        self.refuse_status(answer, asked_range)
        encoding = answer.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise PermanentError(
                "source_encoded", f"{self.where} sends the file as {encoding} only, not its own bytes; name a source that does."
            )
        length = _length(answer)
        if answer.status == 206:
            length = self.continued(answer, length)
        else:
            await in_thread(self.partial.restart)
            self.partial.known = _known(self.partial.known.url, answer, length)
        self.check_size(self.partial.known.total)
        await in_thread(self.partial.save)
        await in_thread(self.check_space, length)
        return length

    def refuse_status(self, answer: Answer, asked_range: bool) -> None:
        if answer.status == 200 or (answer.status == 206 and asked_range):
            return
        status, line = answer.status, answer.status_line
        if status == 416 and asked_range:
            raise Broken("source_inconsistent", f"{self.where} no longer has the part that is missing.", restart=True)
        said = f"{self.where} answered {line}"
        if status in (408, 425, 429) or status >= 500:
            raise RetryableError(
                "source_busy", f"{said}; it will be asked again.", {"status": status}, delay_s=_retry_after_s(answer)
            )
        if status in (404, 410):
            raise PermanentError("source_not_found", f"{said}: there is no such file.", {"status": status})
        hint = ": it wants other credentials" if status in (401, 403) else ""
        raise PermanentError("source_answered", f"{said}{hint}.", {"status": status})

    def continued(self, answer: Answer, length: int | None) -> int:
        """Where the part ends.  Errors: Broken when it is not the part that was asked for, of the file that was begun."""
        known, offset = self.partial.known, self.partial.offset
        match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", answer.headers.get("content-range", "").strip())
        etag = _strong_etag(answer)
        if match is None:
            problem = "a part without saying which"
        elif int(match[1]) != offset or int(match[2]) < offset:
            problem = f"the part {match[0]} instead of the one from {offset}"
        elif match[3] != "*" and (int(match[3]) <= int(match[2]) or (known.total is not None and int(match[3]) != known.total)):
            problem = f"the part {match[0]} of a file of {known.total} bytes"
        elif known.etag is not None and etag is not None and etag != known.etag:
            problem = "a part of another version of the file"
        elif length is not None and length != int(match[2]) + 1 - offset:
            problem = f"{length} bytes for the part {match[0]}"
        else:
            if match[3] != "*":
                known.total = int(match[3])
            return int(match[2]) + 1
        raise Broken("source_inconsistent", f"{self.where} sent {problem}.", restart=True)

    def check_size(self, size: int | None) -> None:
        if size is not None and size > self.limits.bytes_max:
            raise PermanentError(
                "source_too_large",
                f"{self.where} has {size} bytes or more; at most {self.limits.bytes_max} are allowed here.",
                {"size": size, "allowed": self.limits.bytes_max},
            )

    def check_space(self, end: int | None) -> None:
        needed = max((end or 0) - self.partial.offset, 0) + SPACE_LEFT_BYTES
        free = shutil.disk_usage(self.partial.path.parent).free
        if free < needed:
            raise RetryableError(
                "no_space",
                f"The disk has {free >> 20} MiB left and this image needs {needed >> 20} MiB: free some space.",
                {"free": free, "needed": needed},
                delay_s=NO_SPACE_DELAY_S,
            )

    # --- the answer's body ---------------------------------------------------------------------------------------------

    async def receive(self, answer: Answer, end: int | None) -> None:
        """Every byte up to `end` is written.  Errors: Broken."""
        buffer, held = [], 0
        window_start_s, window_bytes = monotonic(), 0
        try:
            while (chunk := await answer.read_chunk()) is not None:
                buffer.append(chunk)
                held += len(chunk)
                window_bytes += len(chunk)
                self.check_size(self.partial.offset + held)
                if held >= WRITE_BYTES:
                    full, buffer, held = buffer, [], 0
                    await self.write(full)
                passed_s = monotonic() - window_start_s
                if passed_s >= self.limits.rate_window_s:
                    self.check_rate(window_bytes, passed_s)
                    window_start_s, window_bytes = monotonic(), 0
        finally:  # also what came before the connection broke is kept
            if buffer:
                await self.write(buffer)
        if end is not None and self.partial.offset < end:
            raise self.truncated(end)
        total = self.partial.known.total
        if total is not None and self.partial.offset != total:  # a server may send less than the rest; the next request goes on
            raise self.truncated(total)

    def truncated(self, expected: int) -> Broken:
        received = self.partial.offset
        return Broken("source_truncated", f"{self.where} sent {received} bytes of {expected} and then closed the connection.")

    async def write(self, chunks: list[bytes | memoryview]) -> None:
        await in_thread(self.append, chunks)
        await self.on_progress(self.partial.offset, self.partial.known.total)

    def append(self, chunks: list[bytes | memoryview]) -> None:
        # A body may come without a length, and others write too: the disk that the database is on must never get full.
        self.check_space(self.partial.offset + sum(map(len, chunks)))
        self.partial.append(chunks)

    def check_rate(self, count: int, passed_s: float) -> None:
        if count < self.limits.rate_min * passed_s:
            raise Broken("source_too_slow", f"{self.where} sent only {count} bytes in {passed_s:.0f} s.")


class _Partial:
    """The file as far as it is here, and what is known of it.  Every method blocks: call it in a thread."""

    def __init__(self, path: Path, file: FileIO, known: Known, offset: int) -> None:
        self.path, self.known, self.offset = path, known, offset
        self._file = file

    @classmethod
    def open(cls, url: str, path: Path) -> _Partial:
        known = _load(path)
        file = path.open("ab", buffering=0)
        size = os.fstat(file.fileno()).st_size
        if known is None or known.url != url:
            known, size = Known(url=url), 0
        elif known.boot != _boot():
            size = min(size, known.synced)
            known.complete = known.complete and size == known.synced
        file.truncate(size)
        known.boot = _boot()
        return cls(path, file, known, size)

    def close(self) -> None:
        self._file.close()

    def restart(self) -> None:
        if self.offset:
            self._file.truncate(0)
        self.offset = 0
        self.known = Known(url=self.known.url, boot=_boot())

    def save(self) -> None:
        temporary = _beside(self.path, ".json.new")
        temporary.write_bytes(msgspec.json.encode(self.known))
        temporary.replace(_beside(self.path, ".json"))

    def append(self, chunks: list[bytes | memoryview]) -> None:
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:  # unbuffered, so that `offset` is what the system has taken
                written = self._file.write(rest)
                self.offset += written
                rest = rest[written:]
        if self.offset - self.known.synced >= SYNC_BYTES:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        self.known.synced = self.offset
        self.save()

    def finish(self) -> None:
        self.known.complete, self.known.total = True, self.offset
        self.sync()


def _load(path: Path) -> Known | None:
    try:
        return msgspec.json.decode(_beside(path, ".json").read_bytes(), type=Known)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _boot() -> str:
    """Which run of the machine this is; always another one where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return os.urandom(8).hex()


def _known(url: str, answer: Answer, length: int | None) -> Known:
    return Known(url=url, etag=_strong_etag(answer), last_modified=_strong_date(answer), total=length, boot=_boot())


def _strong_etag(answer: Answer) -> str | None:
    etag = answer.headers.get("etag", "").strip()
    return etag if etag.startswith('"') and etag.endswith('"') and len(etag) > 2 else None


def _strong_date(answer: Answer) -> str | None:
    """Last-Modified, when the file cannot have changed twice within its second.  Source: RFC 9110, 8.8.2.2."""
    modified, now = answer.headers.get("last-modified"), answer.headers.get("date")
    try:
        if modified and now and parsedate_to_datetime(now) - parsedate_to_datetime(modified) >= timedelta(seconds=1):
            return modified
    except (ValueError, TypeError):
        pass
    return None


def _length(answer: Answer) -> int | None:
    text = answer.headers.get("content-length", "").strip()
    return int(text) if text.isdecimal() and "transfer-encoding" not in answer.headers else None


def _retry_after_s(answer: Answer) -> float | None:
    text = answer.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return min(float(text), RETRY_AFTER_S_MAX)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return min(max((at - datetime.now(UTC)).total_seconds(), 0.0), RETRY_AFTER_S_MAX)


__all__ = ["FetchLimits", "fetch"]
