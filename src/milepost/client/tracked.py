"""Conversations with a Milepost server about jobs that it follows in other clouds, and the credentials it does that with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from milepost.client.dialects.native import ACCEPT, JSON, Native, next_link
from milepost.client.session import Session
from milepost.client.steps import Emit, Steps
from milepost.errors import Conflict, ProtocolError
from milepost.wire import Request
from milepost.wire import tracking as wire

T = TypeVar("T")


def track(
    session: Session,
    handle: Mapping[str, Any],
    *,
    credential: str | None = None,
    labels: Mapping[str, str] | None = None,
    callback_url: str | None = None,
) -> Steps[wire.NativeTracked]:
    """The job of this handle is followed by the server from now on; twice is once, so the request may be repeated."""
    body: dict[str, Any] = {"handle": dict(handle), "credential": credential, "labels": dict(labels or {})}
    if callback_url is not None:
        body["callback"] = {"url": callback_url}
    request = Request("POST", "/tracked", JSON, wire.encode(body))
    return (yield from _answer(session, request, wire.decode_tracked))


def list_tracked(session: Session, filters: Mapping[str, Any], limit: int | None) -> Steps[None]:
    """Emits each NativeTracked, newest first."""
    given = {name: value for name, value in filters.items() if value is not None}
    path = "/tracked?" + urlencode({**given, "limit": min(limit or 100, 100)}, doseq=True)
    left = limit
    while True:
        _check(session)
        response = yield from session.call(Request("GET", path, ACCEPT))
        for one in _read(wire.decode_tracked_list, response.body).tracked:
            if left == 0:
                return
            left = None if left is None else left - 1
            yield Emit(one)
        following = next_link(response.headers.get("link", ""))
        if following is None or left == 0:
            return
        path = following


def show_tracked(session: Session, job_id: str) -> Steps[wire.NativeTracked]:
    """Errors: NotFound, Expired."""
    return (yield from _answer(session, Request("GET", _path(job_id), ACCEPT), wire.decode_tracked, job_id=job_id))


def untrack(session: Session, job_id: str) -> Steps[wire.NativeTracked]:
    """The server follows it no more; in its cloud it goes on.  Errors: NotFound, Expired."""
    return (yield from _answer(session, Request("DELETE", _path(job_id), ACCEPT), wire.decode_tracked, job_id=job_id))


def put_credential(session: Session, name: str, request: wire.CredentialRequest) -> Steps[wire.NativeCredential]:
    """Errors: InvalidInput; Conflict when the server has no key to keep it with."""
    body = wire.encode(request)
    return (yield from _answer(session, Request("PUT", _credential_path(name), JSON, body), wire.decode_credential))


def list_credentials(session: Session) -> Steps[list[wire.NativeCredential]]:
    """By name, without secrets."""
    found: wire.CredentialList = yield from _answer(session, Request("GET", "/credentials", ACCEPT), wire.decode_credentials)
    return found.credentials


def delete_credential(session: Session, name: str) -> Steps[None]:
    """Errors: NotFound."""
    _check(session)
    yield from session.call(Request("DELETE", _credential_path(name), ACCEPT))


def _answer(session: Session, request: Request, decode: Callable[[bytes], T], *, job_id: str | None = None) -> Steps[T]:
    _check(session)
    response = yield from session.call(request, job_id=job_id)
    return _read(decode, response.body)


def _read(decode: Callable[[bytes], T], body: bytes) -> T:
    try:
        return decode(body)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the answer is not what the tracker's routes answer: {error}") from error


def _check(session: Session) -> None:
    """Errors: Conflict when this is no Milepost server's own wire."""
    if not isinstance(session.dialect, Native):
        raise Conflict(f"{session.dialect.title} follows no jobs", hint="give a Milepost server with --url, without --wire")


def _path(job_id: str) -> str:
    return f"/tracked/{quote(job_id, safe='')}"


def _credential_path(name: str) -> str:
    return f"/credentials/{quote(name, safe='')}"
