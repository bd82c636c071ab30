"""Functions that run in a forked child: a msgspec value in, a msgspec value out.  `FopFailed` is carried across as it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import msgspec

Q = TypeVar("Q")


def forked(request: type[Q]) -> Callable[[Callable[[Q], Any]], Callable[[bytes], bytes]]:
    """The function is given what the request's bytes stand for, and its result becomes bytes."""
    decode, encode = msgspec.json.Decoder(request).decode, msgspec.json.Encoder().encode

    def wrap(function: Callable[[Q], Any]) -> Callable[[bytes], bytes]:
        @wraps(function)
        def run(data: bytes) -> bytes:
            return encode(function(decode(data)))

        return run

    return wrap


def read(said: bytes, result: type[Q]) -> Q:
    """The child's result.  Errors: msgspec.DecodeError when it is none."""
    return msgspec.json.decode(said, type=result)


__all__ = ["forked", "read"]
