"""What a conversation with a server can ask of its driver.  A conversation is a generator: it yields a step and gets the reply.

| step | the driver does | the reply |
|---|---|---|
| `Ask` | sends one request | `Response`, or the `Unreachable` it met, as a value |
| `Gather` | sends several, together where it can | a list of such, in order |
| `Sleep` | pauses | None |
| `Open` | sends a request whose answer is read in parts | as `Ask`; the body of a 200 comes with `Read` |
| `Read` | reads the next part of the opened answer | bytes, None at the end, or `Unreachable` |
| `Emit` | hands a value to the caller | None |

`drivers.py` has the two drivers; nothing else in this package does I/O.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import msgspec

from milepost.wire import Request

T = TypeVar("T")


class Ask(msgspec.Struct, frozen=True):
    """One request with its absolute URL; `timeout_s` is for the whole of it."""

    request: Request
    timeout_s: float


class Gather(msgspec.Struct, frozen=True):
    """Independent requests; at most a few at a time."""

    asks: tuple[Ask, ...]


class Sleep(msgspec.Struct, frozen=True):
    delay_s: float


class Open(msgspec.Struct, frozen=True):
    """A request whose answer is a stream; `ask.timeout_s` is for the whole of it, `silence_s` the longest pause within."""

    ask: Ask
    silence_s: float


class Read(msgspec.Struct, frozen=True):
    """The next part of the stream opened last."""


class Emit(msgspec.Struct, frozen=True):
    value: Any


Step = Ask | Gather | Sleep | Open | Read | Emit
Steps = Generator[Step, Any, T]
