"""Requests under way: those that a conversation began to send and does not wait for.

Rules
1. What came back waits in one queue of the conversation; nothing is answered twice.
2. At the end of the conversation what is still under way is given up: its answer is nobody's.
3. A stream is read by one thread or task of its own; it is read on only as fast as its parts are taken.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

from milepost.client.session import Reply
from milepost.client.steps import Ask, Inbox, Open, Send
from milepost.client.transport import AsyncTransport, Transport
from milepost.errors import Unreachable

THREADS = 16  # requests that the blocking client has under way at the same time
PARTS_MAX = 64  # of a stream, read and not yet taken
STREAM_CHECK_S = 1.0  # how often the reader of a full stream looks whether anybody still wants it
_WOKEN = (None, None)


class Crew:
    """Threads that send requests for all conversations of one client; daemons, so that they keep nobody from leaving."""

    def __init__(self, most: int = THREADS) -> None:
        self._most, self._lock = most, threading.Lock()
        self._errands: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._threads, self._idle = 0, 0

    def do(self, errand: Callable[[], object]) -> None:
        with self._lock:
            hire = self._idle == 0 and self._threads < self._most
            self._threads += hire
            self._idle -= not hire and self._idle > 0
        self._errands.put(errand)
        if hire:
            threading.Thread(target=self._run, name="milepost-client", daemon=True).start()

    def stop(self) -> None:
        for _ in range(self._threads):
            self._errands.put(None)

    def _run(self) -> None:
        while (errand := self._errands.get()) is not None:
            errand()
            with self._lock:
                self._idle += 1


class Flights:
    """What one conversation has under way, blocking."""

    def __init__(self, transport: Transport, crew: Crew) -> None:
        self._transport, self._crew = transport, crew
        self._back: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._room = threading.Semaphore(PARTS_MAX)
        self._closed = False

    def start(self, step: Send) -> None:
        if isinstance(step.request, Open):
            opening = step.request
            threading.Thread(target=lambda: self._read(step.tag, opening), name="milepost-client-stream", daemon=True).start()
            return
        ask = step.request
        self._crew.do(lambda: self._back.put((step.tag, self._send(ask))))

    def collect(self, delay_s: float, inbox: Inbox | None) -> list[tuple[Any, Any]]:
        if inbox is not None:
            inbox.wake = lambda: self._back.put(_WOKEN)
        found: list[tuple[Any, Any]] = []
        try:
            if not inbox:
                found.append(self._back.get(timeout=max(0.0, min(delay_s, threading.TIMEOUT_MAX))))
            while True:
                found.append(self._back.get_nowait())
        except queue.Empty:
            pass
        finally:
            if inbox is not None:
                inbox.wake = None
        return _sorted(found, self._room)

    def close(self) -> None:
        self._closed = True

    def _send(self, ask: Ask) -> Reply | BaseException:
        if self._closed:
            return Unreachable("the conversation is over", sent=False)
        try:
            return self._transport.send(ask)
        except BaseException as error:  # handed to the conversation
            return error

    def _read(self, tag: Any, opening: Open) -> None:
        try:
            with self._transport.stream(opening) as parts:
                self._back.put((tag, parts.response))
                while not self._closed:
                    part = parts.read()
                    while not self._room.acquire(timeout=STREAM_CHECK_S):
                        if self._closed:
                            return
                    self._back.put((tag, part))
                    if part is None:
                        return
        except BaseException as error:  # handed to the conversation
            self._back.put((tag, error))


class AsyncFlights:
    """What one conversation has under way, on the running loop."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self._back: asyncio.Queue[tuple[Any, Any]] = asyncio.Queue()
        self._room = asyncio.Semaphore(PARTS_MAX)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, step: Send) -> None:
        flight = self._read(step.tag, step.request) if isinstance(step.request, Open) else self._send(step.tag, step.request)
        task = asyncio.ensure_future(flight)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def collect(self, delay_s: float, inbox: Inbox | None) -> list[tuple[Any, Any]]:
        loop = asyncio.get_running_loop()
        if inbox is not None:
            inbox.wake = lambda: loop.call_soon_threadsafe(self._back.put_nowait, _WOKEN)
        found: list[tuple[Any, Any]] = []
        try:
            if not inbox and self._back.empty():
                async with asyncio.timeout(delay_s if delay_s < 1e9 else None):
                    found.append(await self._back.get())
        except TimeoutError:
            pass
        finally:
            if inbox is not None:
                inbox.wake = None
        while not self._back.empty():
            found.append(self._back.get_nowait())
        return _sorted(found, self._room)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, tag: Any, ask: Ask) -> None:
        try:
            reply: Any = await self._transport.send(ask)
        except Exception as error:  # handed to the conversation
            reply = error
        self._back.put_nowait((tag, reply))

    async def _read(self, tag: Any, opening: Open) -> None:
        try:
            async with self._transport.stream(opening) as parts:
                self._back.put_nowait((tag, parts.response))
                while True:
                    part = await parts.read()
                    await self._room.acquire()
                    self._back.put_nowait((tag, part))
                    if part is None:
                        return
        except Exception as error:  # handed to the conversation
            self._back.put_nowait((tag, error))


def _sorted(found: list[tuple[Any, Any]], room: threading.Semaphore | asyncio.Semaphore) -> list[tuple[Any, Any]]:
    """What came back without the calls to wake; makes room for more parts.  Errors: any but Unreachable, which is a reply."""
    kept = [one for one in found if one is not _WOKEN]
    for _, reply in kept:
        if reply is None or isinstance(reply, bytes):
            room.release()
        elif isinstance(reply, BaseException) and not isinstance(reply, Unreachable):
            raise reply
    return kept


def nap(delay_s: float, inbox: Inbox) -> None:
    """Sleep, but not on when the inbox has something."""
    woken = threading.Event()
    inbox.wake = woken.set
    try:
        if not inbox:
            woken.wait(max(0.0, min(delay_s, threading.TIMEOUT_MAX)))
    finally:
        inbox.wake = None


async def nap_async(delay_s: float, inbox: Inbox) -> None:
    """Sleep, but not on when the inbox has something."""
    loop, woken = asyncio.get_running_loop(), asyncio.Event()
    inbox.wake = lambda: loop.call_soon_threadsafe(woken.set)
    try:
        if not inbox:
            async with asyncio.timeout(delay_s):
                await woken.wait()
    except TimeoutError:
        pass
    finally:
        inbox.wake = None
