"""What a conversation with a server can ask of its driver.  A conversation is a generator: it yields a step and gets the reply.

| step | the driver does | the reply |
|---|---|---|
| `Ask` | sends one request | `Response`, or the `Unreachable` it met, as a value |
| `Send` | begins to send one, and goes on | None; what comes back is in a `Collect` |
| `Collect` | waits for what was begun | a list of (tag, reply), empty when nothing came in time |
| `Sleep` | pauses, or until the inbox has something | None |
| `Open` | sends a request whose answer is read in parts | as `Ask`; the body of a 200 comes with `Read` |
| `Read` | reads the next part of the opened answer | bytes, None at the end, or `Unreachable` |
| `Emit` | hands a value to the caller | None |

What a `Send` of a stream brings is its answer, then its parts as bytes, and at last None or `Unreachable`.

`drivers.py` has the two drivers; nothing else in this package does I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import msgspec

from milepost.wire import Request

T = TypeVar("T")


class Inbox:
    """News for one conversation from others of the process; anybody may put, the conversation alone takes.

    `wake` is the driver's: called at each put, from the thread that puts.  `quiet_until_s`: until then the conversation may well
    say nothing, on the monotonic clock; later it is taken to be held up, as by a caller who does not take what was emitted.
    """

    __slots__ = ("__weakref__", "_news", "quiet_until_s", "wake")

    def __init__(self) -> None:
        self._news: deque[Any] = deque()
        self.wake: Callable[[], object] | None = None
        self.quiet_until_s = float("inf")

    def put(self, news: Any) -> None:
        self._news.append(news)
        if (wake := self.wake) is not None:
            wake()

    def take(self) -> list[Any]:
        """All that came."""
        taken = []
        while self._news:
            taken.append(self._news.popleft())
        return taken

    def __bool__(self) -> bool:
        return bool(self._news)


class Ask(msgspec.Struct, frozen=True):
    """One request with its absolute URL; `timeout_s` is for the whole of it."""

    request: Request
    timeout_s: float


class Sleep(msgspec.Struct, frozen=True):
    delay_s: float
    inbox: Inbox | None = None


class Open(msgspec.Struct, frozen=True):
    """A request whose answer is a stream; `ask.timeout_s` is for the whole of it, `silence_s` the longest pause within."""

    ask: Ask
    silence_s: float


class Read(msgspec.Struct, frozen=True):
    """The next part of the stream opened last."""


class Send(msgspec.Struct, frozen=True):
    """A request, or a stream, that is not waited for; `tag` comes back with each reply."""

    tag: Any
    request: Ask | Open


class Collect(msgspec.Struct, frozen=True):
    """What came back, after at most `delay_s`; woken by the inbox, too."""

    delay_s: float
    inbox: Inbox | None = None


class Emit(msgspec.Struct, frozen=True):
    value: Any


Step = Ask | Send | Collect | Sleep | Open | Read | Emit
Steps = Generator[Step, Any, T]
