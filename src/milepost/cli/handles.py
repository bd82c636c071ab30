"""The files of a proxy: every job that was submitted through it, and every request of which one may have come.

| file                    | line                                   | when it is written                                  |
|-------------------------|----------------------------------------|-----------------------------------------------------|
| `handles.jsonl`         | `{"handle": …, "note": …}`             | a job was named; before its caller is told          |
|                         | `{"handle": …, "tracked": id}`         | a server follows it                                 |
| `handles.jsonl.sent`    | `{"note": …, "at": …, "path": …, …}`   | before a request is sent that may make a job        |
|                         | `{"note": …, "outcome": …}`            | it made none, or its job is in the other file       |
|                         | `{"note": …, "doubt": …}`              | nobody knows: no answer, or one that tells nothing  |

Theory: the files are the promise.  They are read at start: a handle that was never followed is followed then, and a note
without an outcome is a request whose job, if there is one, nobody knows.  A line that a crash cut off was of something not yet
done.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from milepost.client import tracked
from milepost.client.aio import AsyncClient
from milepost.errors import MilepostError

RECORD_S = 5.0  # an answer is not held for longer while the server is away
AGAIN_S = 5.0
SENT_BYTES_MAX = 1 << 20  # of notes; written anew when it is larger


class Handles:
    """What `server.proxy.Book` asks for."""

    def __init__(self, client: AsyncClient, path: Path, credential: str | None) -> None:
        self._client, self._path, self._credential = client, path, credential
        self._sent = path.with_name(path.name + ".sent")
        self._waiting: list[dict[str, Any]] = []
        self._open: dict[str, dict[str, Any]] = {}  # notes without an outcome

    # --- one request -----------------------------------------------------------------------------------------------

    async def note(self, facts: dict[str, Any]) -> str:
        """It is on disk that the request is about to be sent.  Errors: OSError."""
        name = secrets.token_hex(8)
        entry = {"note": name, "at": datetime.now(UTC).isoformat(timespec="milliseconds"), **facts}
        await asyncio.to_thread(_append, self._sent, entry)
        self._open[name] = entry
        return name

    async def record(self, note: str, handle: dict[str, Any]) -> str | None:
        """The id under which the server follows it; None when it does not yet.  Errors: OSError."""
        await asyncio.to_thread(_append, self._path, {"handle": handle, "note": note})
        await self.close(note, "a job")
        try:
            async with asyncio.timeout(RECORD_S):
                return await self._track(handle)
        except (MilepostError, TimeoutError):
            self._waiting.append(handle)
            return None

    async def close(self, note: str, outcome: str) -> None:
        """Not needed to be on disk at once: the handle names the note, and one too many in doubt is better than one too few."""
        if self._open.pop(note, None) is not None:
            await asyncio.to_thread(_append, self._sent, {"note": note, "outcome": outcome}, durable=False)

    async def doubt(self, note: str, why: str) -> None:
        """It stays open, and is told at the next start."""
        entry = self._open.get(note)
        if entry is not None and "doubt" not in entry:
            entry["doubt"] = why
            await asyncio.to_thread(_append, self._sent, {"note": note, "doubt": why}, durable=False)
            sys.stderr.write(f"milepost: {describe(entry)}\n")

    async def _track(self, handle: dict[str, Any]) -> str:
        steps = tracked.track(self._client._session, handle, credential=self._credential)
        found = await self._client._driver.run(steps)
        await asyncio.to_thread(_append, self._path, {"tracked": found.id, "handle": handle})
        return found.id

    # --- after a restart ---------------------------------------------------------------------------------------------

    def load(self) -> tuple[int, list[dict[str, Any]]]:
        """How many jobs are to be followed yet, and the requests of an earlier run whose outcome is unknown."""
        left: dict[str, dict[str, Any]] = {}
        named: set[str] = set()
        for entry in _lines(self._path):
            named.add(str(entry.get("note")))
            key = json.dumps(entry.get("handle"), sort_keys=True)
            if "tracked" in entry:
                left.pop(key, None)
            elif "handle" in entry:
                left[key] = entry["handle"]
        self._waiting = list(left.values())
        self._open = self._unknown(named)
        return len(left), list(self._open.values())

    def _unknown(self, named: set[str]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for entry in _lines(self._sent):
            name = str(entry.get("note"))
            if "outcome" in entry or name in named:
                found.pop(name, None)
            elif "doubt" in entry and name in found:
                found[name]["doubt"] = entry["doubt"]
            elif "path" in entry:
                found[name] = entry
        if self._sent.exists() and self._sent.stat().st_size > SENT_BYTES_MAX:
            new = self._sent.with_name(self._sent.name + ".new")
            new.write_text("".join(json.dumps(entry) + "\n" for entry in found.values()), "utf-8")
            new.replace(self._sent)
        return found

    async def forget_unknown(self) -> int:
        """Those of an earlier run are not told again.  How many these were."""
        names = list(self._open)
        for name in names:
            await self.close(name, "seen")
        return len(names)

    async def run(self) -> None:
        """Have those followed that could not be at once.  Ends by cancellation."""
        while True:
            waiting, self._waiting = self._waiting, []
            for handle in waiting:
                try:
                    await self._track(handle)
                except MilepostError as error:
                    self._waiting.append(handle)
                    if not error.retryable:
                        sys.stderr.write(f"milepost: job {handle['id']} cannot be tracked: {error}\n")
            await asyncio.sleep(AGAIN_S)


def describe(entry: dict[str, Any]) -> str:
    """A request whose outcome is unknown, in one line."""
    token = f", repeat it with the token {entry['token']} to learn its job" if "token" in entry else ""
    why = entry.get("doubt", "the proxy ended before an answer")
    return f"unknown outcome: {entry['method']} {entry['path']} at {entry['at']} ({why}); the cloud may have made a job{token}"


def _append(path: Path, entry: dict[str, Any], *, durable: bool = True) -> None:
    is_new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
        file.flush()
        if durable:
            os.fsync(file.fileno())
    if is_new and durable:
        _fsync_folder(path.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line; one that a crash cut off was of something not yet done."""
    found = []
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found


__all__ = ["Handles", "describe"]
