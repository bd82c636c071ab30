"""Which request a fault is for, and how each fault is played on the connection.

Rules
1. The first fault that fits is used; its counts are its own.  The same seed breaks the same requests, as long as they come in the
   same order.
2. `answer` and `reset` happen before the job sees the request: it is no poll.  With all others it is one.
3. Delays are real time, also in virtual time: they are about sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import stat
import struct
from collections.abc import Callable, Iterable, MutableMapping
from email.utils import formatdate
from fnmatch import fnmatchcase
from typing import Any

from milepost.rehearsal.http import Answer, Ask, Refuse, retry_headers
from milepost.rehearsal.scenario import Break, Fault

Scope = MutableMapping[str, Any]
PIECES = 20  # of a slow body


class _Armed:
    """A fault with its counts."""

    def __init__(self, fault: Fault, seed: str) -> None:
        self.fault, self._dice = fault, random.Random(seed)
        self.seen = self.done = 0

    def takes(self) -> bool:
        """Count a request that fits; whether it is one to break."""
        self.seen += 1
        fault = self.fault
        if fault.times is not None and self.done >= fault.times:
            return False
        if self.seen <= fault.after or (self.seen - fault.after - 1) % fault.every:
            return False
        if fault.chance < 1.0 and self._dice.random() >= fault.chance:
            return False
        self.done += 1
        return True


class Faults:
    """All faults of a rehearsal; more can be added while it runs."""

    def __init__(self, faults: Iterable[Fault], seed: int) -> None:
        self._seed, self._armed = seed, list[_Armed]()
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault) -> None:
        self._armed.append(_Armed(fault, f"{self._seed}/fault/{len(self._armed)}"))

    def clear(self) -> None:
        """Nothing goes wrong from now on."""
        self._armed.clear()

    def take(self, ask: Ask, *, wire: str, action: str, at_s: float, job: Callable[[], str | None]) -> Fault | None:
        """The fault of this request.  `job`: the name of the job that it is about."""
        for armed in self._armed:
            fault = armed.fault
            if not fault.fits(wire=wire, action=action, method=ask.method, path=ask.path, at_s=at_s):
                continue
            if fault.job is not None and not fnmatchcase(job() or "", fault.job):
                continue
            if armed.takes():
                return fault
        return None

    def show(self) -> list[dict[str, Any]]:
        return [{"do": one.fault.do.value, "path": one.fault.path, "seen": one.seen, "done": one.done} for one in self._armed]


def answer_of(fault: Fault, ask: Ask, refuse: Refuse, now_us: int) -> Answer:
    """The error that the fault answers with, in the wire's own manner."""
    date = formatdate(now_us / 1e6 + (fault.retry_after_s or 0.0), usegmt=True) if fault.retry_after_date else None
    found = refuse(ask, fault.status, fault.message, retry_headers(fault, date))
    if fault.body is not None:
        found.body, found.type = fault.body.encode(), "text/plain"
    return found


def garbage(fault: Fault) -> Answer:
    """A good status with what is no answer of any API: a proxy's page."""
    text = fault.body or "<html><body>Please log in to the network.</body></html>"
    return Answer(body=text.encode(), type="text/html")


async def send(answer: Answer, fault: Fault | None, scope: Scope, write: Callable[[Any], Any], headers: list[Any]) -> None:
    """Put the answer on the connection, broken as the fault wants it."""
    do = None if fault is None else fault.do
    assert fault is not None or do is None
    if do in (Break.RESET, Break.LOSE):
        await cut(scope, write)
        return
    if do is Break.DELAY and fault is not None:
        await asyncio.sleep(fault.delay_s)
    await write({"type": "http.response.start", "status": answer.status, "headers": headers})
    if do is Break.TRUNCATE and fault is not None:
        # Less than the length that was announced, and never all of it.
        await write(
            {"type": "http.response.body", "body": answer.body[: min(fault.bytes, len(answer.body) - 1)], "more_body": True}
        )
        await asyncio.sleep(0.02)  # what was written goes out before the connection is cut
        await cut(scope, write)
        return
    if do is Break.SLOW and fault is not None and answer.body:
        size = max(1, -(-len(answer.body) // PIECES))
        pieces = [answer.body[at : at + size] for at in range(0, len(answer.body), size)]
        for piece in pieces:
            await write({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(fault.delay_s / len(pieces))
        await write({"type": "http.response.body", "body": b"", "more_body": False})
        return
    await write({"type": "http.response.body", "body": answer.body})


async def cut(scope: Scope, write: Callable[[Any], Any]) -> None:
    """The connection ends at once.  Where its socket cannot be found, an answer that ends before its end stands in."""
    found = _socket_of(scope)
    if found is None:
        with contextlib.suppress(Exception):
            await write({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000000")]})
            await write({"type": "http.response.body", "body": b"{", "more_body": True})
        raise ConnectionError("the connection is cut, as the scenario asks")
    with found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed with a reset, nothing is sent on
        with contextlib.suppress(OSError):
            found.shutdown(socket.SHUT_RDWR)


def _socket_of(scope: Scope) -> socket.socket | None:
    """A copy of the socket that this request came by: the one whose other end is the client's.

    ASGI has no word for cutting a connection, and the server runs in this process, so its sockets are among our files.
    """
    client, server = scope.get("client"), scope.get("server")
    if client is None or server is None:
        return None
    for number in _descriptors():
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            found = socket.socket(fileno=os.dup(number))
        except OSError:
            continue
        with contextlib.suppress(OSError):
            if found.getpeername()[:2] == tuple(client) and found.getsockname()[1] == server[1]:
                return found
        found.close()
    return None


def _descriptors() -> list[int]:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return [int(name) for name in os.listdir(folder)]  # noqa: PTH208 - names are numbers
    return []
