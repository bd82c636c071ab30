"""The two drivers: what does the I/O that the steps of a conversation ask for.  One blocks, one awaits; nothing else differs."""

from __future__ import annotations

import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from typing import Any, TypeVar

from milepost.client.flights import AsyncFlights, Crew, Flights, nap, nap_async
from milepost.client.session import Reply
from milepost.client.steps import Ask, Collect, Emit, Open, Read, Send, Sleep, Step, Steps
from milepost.client.transport import AsyncParts, AsyncTransport, Parts, Transport
from milepost.errors import Unreachable

T = TypeVar("T")

CLOSED = "the client is closed"


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


class _Open:
    """What a conversation has open: one stream that it reads, and the requests that it does not wait for."""

    def __init__(self, transport: Transport, crew: Crew, steps: Steps[Any]) -> None:
        self._transport, self._crew, self._steps, self._stack = transport, crew, steps, ExitStack()
        self._parts: Parts | None = None
        self._flights: Flights | None = None

    def __enter__(self) -> _Open:
        return self

    def __exit__(self, *_: object) -> None:
        self._steps.close()
        if self._flights is not None:
            self._flights.close()
        self._stack.close()

    @property
    def flights(self) -> Flights:
        self._flights = self._flights or Flights(self._transport, self._crew)
        return self._flights

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
    """Does what the steps say, on the calling thread; what is not waited for, in a few threads of the client's own."""

    def __init__(self, transport: Transport, sleep: Callable[[float], None]) -> None:
        self._transport, self._sleep = transport, sleep
        self._crew = Crew()
        self._hand: _Hand | None = None
        self._closed = False

    def run(self, steps: Steps[T], emit: Callable[[Any], None] | None = None) -> T:
        """The conversation's own result; what it emits goes to `emit`."""
        with _Open(self._transport, self._crew, steps) as streams:
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
        with _Open(self._transport, self._crew, steps) as streams:
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

    def _interruptible(self, step: Step, streams: _Open) -> Any:
        if self._closed:
            raise RuntimeError(CLOSED)
        if isinstance(step, Sleep | Send | Collect) or threading.current_thread() is not threading.main_thread():
            return self._do(step, streams)  # signals are handled in the main thread only
        hand, self._hand = self._hand or _Hand(), None
        try:
            reply = hand.do(lambda: self._do(step, streams))
        except Exception:
            self._hand = hand
            raise
        self._hand = hand
        return reply

    def _do(self, step: Step, streams: _Open) -> Any:
        if isinstance(step, Ask):
            return self._send(step)
        if isinstance(step, Sleep):
            return self._sleep(step.delay_s) if step.inbox is None else nap(step.delay_s, step.inbox)
        if isinstance(step, Send):
            return streams.flights.start(step)
        if isinstance(step, Collect):
            return streams.flights.collect(step.delay_s, step.inbox)
        if isinstance(step, Open):
            return streams.open(step)
        assert isinstance(step, Read)
        return streams.read()

    def _send(self, ask: Ask) -> Reply:
        try:
            return self._transport.send(ask)
        except Unreachable as error:
            return error

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._crew.stop()
        if self._hand is not None:
            self._hand.stop()
        self._transport.close()


class _AsyncOpen:
    """What a conversation has open: one stream that it reads, and the requests that it does not wait for."""

    def __init__(self, transport: AsyncTransport, steps: Steps[Any]) -> None:
        self._transport, self._steps, self._stack = transport, steps, AsyncExitStack()
        self._parts: AsyncParts | None = None
        self._flights: AsyncFlights | None = None

    async def __aenter__(self) -> _AsyncOpen:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._steps.close()
        if self._flights is not None:
            await self._flights.close()
        await self._stack.aclose()

    @property
    def flights(self) -> AsyncFlights:
        self._flights = self._flights or AsyncFlights(self._transport)
        return self._flights

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
        async with _AsyncOpen(self._transport, steps) as streams:
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
        async with _AsyncOpen(self._transport, steps) as streams:
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

    async def _do(self, step: Step, streams: _AsyncOpen) -> Any:
        if self._closed:
            raise RuntimeError(CLOSED)
        if isinstance(step, Ask):
            return await self._send(step)
        if isinstance(step, Sleep):
            return await (self._sleep(step.delay_s) if step.inbox is None else nap_async(step.delay_s, step.inbox))
        if isinstance(step, Send):
            return streams.flights.start(step)
        if isinstance(step, Collect):
            return await streams.flights.collect(step.delay_s, step.inbox)
        if isinstance(step, Open):
            return await streams.open(step)
        assert isinstance(step, Read)
        return await streams.read()

    async def _send(self, ask: Ask) -> Reply:
        try:
            return await self._transport.send(ask)
        except Unreachable as error:
            return error

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._transport.close()
