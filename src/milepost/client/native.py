"""Asking for what only a Milepost server has: not asked elsewhere, and an answer of another shape is an error with a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec

from milepost.client.dialects.native import ACCEPT, Native, next_link
from milepost.client.session import Session
from milepost.client.steps import Emit, Steps
from milepost.errors import Conflict, ProtocolError
from milepost.wire import Request

T = TypeVar("T")


def native(session: Session, lacks: str) -> Native:
    """The session's dialect.  Errors: Conflict when this is no Milepost server's own wire; `lacks` says what others do not do."""
    if not isinstance(session.dialect, Native):
        hint = "ask a Milepost server on its own wire: --url without --wire, or wire='native'"
        raise Conflict(f"{session.dialect.title} {lacks}", hint=hint)
    return session.dialect


def answer(
    session: Session, request: Request, decode: Callable[[bytes], T], *, job_id: str | None = None, repeatable: bool = True
) -> Steps[T]:
    """What the server says to it.  Errors: those of `Session.call`; ProtocolError."""
    response = yield from session.call(request, job_id=job_id, repeatable=repeatable)
    return decoded(decode, response.body)


def listed(
    session: Session, path: str, decode: Callable[[bytes], T], items: Callable[[T], Iterable[Any]], limit: int | None = None
) -> Steps[None]:
    """Emits what the pages from this path on hold; the next page is asked for when the one before is used up."""
    left, following = limit, path
    while following and left != 0:
        response = yield from session.call(Request("GET", following, ACCEPT))
        for one in items(decoded(decode, response.body)):
            if left == 0:
                return
            left = None if left is None else left - 1
            yield Emit(one)
        following = next_link(response.headers.get("link", "")) or ""


def decoded(decode: Callable[[bytes], T], body: bytes) -> T:
    """Errors: ProtocolError."""
    try:
        return decode(body)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the answer is not what a Milepost server answers: {error}") from error
