"""The two drivers: what does the I/O that the steps of a conversation ask for.  One blocks, one awaits; nothing else differs."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from typing import Any, TypeVar

from milepost.client.session import Reply
from milepost.client.steps import Ask, Emit, Gather, Open, Read, Sleep, Steps
from milepost.client.transport import AsyncParts, AsyncTransport, Parts, Transport
from milepost.errors import Unreachable

T = TypeVar("T")

CLOSED = "the client is closed"
THREADS = 8  # requests that one Gather puts at the same time


class _Hand:
    """A thread that does what may block for long, so that Ctrl-C reaches the caller at once.

    The HTTP driver blocks outside of Python, where no signal is seen; waiting for a thread is interrupted.  An interrupted
    hand is left to end alone: a daemon, it keeps nobody from leaving.
    """

    def __init__(self) -> None:
        self._errands: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="milepost-client", daemon=True).start()

    def do(self, errand: Callable[[], Any]) -> Any:
        self._errands.put(errand)
        value, error = self._answers.get()
        if error is not None:
            raise error
        return value

    def stop(self) -> None:
        self._errands.put(None)

    def _run(self) -> None:
        while (errand := self._errands.get()) is not None:
            try:
                self._answers.put((errand(), None))
            except BaseException as error:  # handed to the caller
                self._answers.put((None, error))


class _Streams:
    """The one stream that a conversation has open."""

    def __init__(self, transport: Transport) -> None:
        self._transport, self._stack = transport, ExitStack()
        self._parts: Parts | None = None

    def __enter__(self) -> _Streams:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self, step: Open) -> Reply:
        self._stack.close()
        try:
            self._parts = self._stack.enter_context(self._transport.stream(step))
        except Unreachable as error:
            return error
        return self._parts.response

    def read(self) -> bytes | Unreachable | None:
        assert self._parts is not None, "a Read follows an Open that was answered"
        try:
            return self._parts.read()
        except Unreachable as error:
            return error


class Driver:
    """Does what the steps say, on the calling thread; a Gather of several uses a few threads of the client's own."""

    def __init__(self, transport: Transport, sleep: Callable[[float], None]) -> None:
        self._transport, self._sleep = transport, sleep
        self._threads: ThreadPoolExecutor | None = None
        self._hand: _Hand | None = None
        self._closed = False

    def run(self, steps: Steps[T], emit: Callable[[Any], None] | None = None) -> T:
        """The conversation's own result; what it emits goes to `emit`."""
        with _Streams(self._transport) as streams:
            reply: Any = None
            while True:
                try:
                    step = steps.send(reply)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                reply = None
                if not isinstance(step, Emit):
                    reply = self._interruptible(step, streams)
                elif emit is not None:
                    emit(step.value)

    def iterate(self, steps: Steps[Any]) -> Iterator[Any]:
        """What the conversation emits, as it goes on."""
        with _Streams(self._transport) as streams:
            reply: Any = None
            while True:
                try:
                    step = steps.send(reply)
                except StopIteration:
                    return
                reply = None
                if isinstance(step, Emit):
                    yield step.value
                else:
                    reply = self._interruptible(step, streams)

    def _interruptible(self, step: Ask | Gather | Sleep | Open | Read, streams: _Streams) -> Any:
        if self._closed:
            raise RuntimeError(CLOSED)
        if isinstance(step, Sleep) or threading.current_thread() is not threading.main_thread():
            return self._do(step, streams)  # signals are handled in the main thread only
        hand, self._hand = self._hand or _Hand(), None
        try:
            reply = hand.do(lambda: self._do(step, streams))
        except Exception:
            self._hand = hand
            raise
        self._hand = hand
        return reply

    def _do(self, step: Ask | Gather | Sleep | Open | Read, streams: _Streams) -> Any:
        if isinstance(step, Ask):
            return self._send(step)
        if isinstance(step, Sleep):
            return self._sleep(step.delay_s)
        if isinstance(step, Open):
            return streams.open(step)
        if isinstance(step, Read):
            return streams.read()
        if len(step.asks) < 2:
            return [self._send(ask) for ask in step.asks]
        self._threads = self._threads or ThreadPoolExecutor(THREADS, thread_name_prefix="milepost-client")
        return list(self._threads.map(self._send, step.asks))

    def _send(self, ask: Ask) -> Reply:
        try:
            return self._transport.send(ask)
        except Unreachable as error:
            return error

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._threads is not None:
            self._threads.shutdown(wait=True)
        if self._hand is not None:
            self._hand.stop()
        self._transport.close()


class _AsyncStreams:
    """The one stream that a conversation has open."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport, self._stack = transport, AsyncExitStack()
        self._parts: AsyncParts | None = None

    async def __aenter__(self) -> _AsyncStreams:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def open(self, step: Open) -> Reply:
        await self._stack.aclose()
        try:
            self._parts = await self._stack.enter_async_context(self._transport.stream(step))
        except Unreachable as error:
            return error
        return self._parts.response

    async def read(self) -> bytes | Unreachable | None:
        assert self._parts is not None, "a Read follows an Open that was answered"
        try:
            return await self._parts.read()
        except Unreachable as error:
            return error


class AsyncDriver:
    """Does what the steps say, on the running loop."""

    def __init__(self, transport: AsyncTransport, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._transport, self._sleep = transport, sleep
        self._closed = False

    async def run(self, steps: Steps[T], emit: Callable[[Any], None] | None = None) -> T:
        """The conversation's own result; what it emits goes to `emit`."""
        async with _AsyncStreams(self._transport) as streams:
            reply: Any = None
            while True:
                try:
                    step = steps.send(reply)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                reply = None
                if not isinstance(step, Emit):
                    reply = await self._do(step, streams)
                elif emit is not None:
                    emit(step.value)

    async def iterate(self, steps: Steps[Any]) -> AsyncIterator[Any]:
        """What the conversation emits, as it goes on."""
        async with _AsyncStreams(self._transport) as streams:
            reply: Any = None
            while True:
                try:
                    step = steps.send(reply)
                except StopIteration:
                    return
                reply = None
                if isinstance(step, Emit):
                    yield step.value
                else:
                    reply = await self._do(step, streams)

    async def _do(self, step: Ask | Gather | Sleep | Open | Read, streams: _AsyncStreams) -> Any:
        if self._closed:
            raise RuntimeError(CLOSED)
        if isinstance(step, Ask):
            return await self._send(step)
        if isinstance(step, Sleep):
            return await self._sleep(step.delay_s)
        if isinstance(step, Open):
            return await streams.open(step)
        if isinstance(step, Read):
            return await streams.read()
        return list(await asyncio.gather(*(self._send(ask) for ask in step.asks)))

    async def _send(self, ask: Ask) -> Reply:
        try:
            return await self._transport.send(ask)
        except Unreachable as error:
            return error

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._transport.close()
