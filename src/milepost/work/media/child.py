"""Functions that run in a forked child: a msgspec value in, a msgspec value out, `FopFailed` carried across."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import msgspec

from milepost.work.media.commands import FopFailed

Q = TypeVar("Q")


class Said(msgspec.Struct, omit_defaults=True):
    """What a child says: its result, or why there is none."""

    result: msgspec.Raw = msgspec.Raw(b"null")
    failed: str | None = None


def forked(request: type[Q]) -> Callable[[Callable[[Q], Any]], Callable[[bytes], bytes]]:
    """The function is given what the request's bytes stand for, and its result becomes bytes."""
    decode, encode = msgspec.json.Decoder(request).decode, msgspec.json.Encoder().encode

    def wrap(function: Callable[[Q], Any]) -> Callable[[bytes], bytes]:
        @wraps(function)
        def run(data: bytes) -> bytes:
            try:
                return encode(Said(result=msgspec.Raw(encode(function(decode(data))))))
            except FopFailed as failed:
                return encode(Said(failed=str(failed)))

        return run

    return wrap


def read(said: bytes, result: type[Q]) -> Q:
    """The child's result.  Errors: FopFailed; msgspec.DecodeError when it is none."""
    answer = msgspec.json.decode(said, type=Said)
    if answer.failed is not None:
        raise FopFailed(answer.failed)
    return msgspec.json.decode(answer.result, type=result)


__all__ = ["Said", "forked", "read"]
