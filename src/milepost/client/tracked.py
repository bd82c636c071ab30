"""Conversations with a Milepost server about jobs that it follows in other clouds, and the credentials it does that with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from milepost.client.dialects.native import ACCEPT, JSON
from milepost.client.native import answer, listed, native
from milepost.client.session import Session
from milepost.client.steps import Steps
from milepost.wire import Request
from milepost.wire import tracking as wire

T = TypeVar("T")
LACKS = "follows no jobs"


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
    native(session, LACKS)
    yield from listed(session, path, wire.decode_tracked_list, lambda page: page.tracked, limit)


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
    native(session, LACKS)
    yield from session.call(Request("DELETE", _credential_path(name), ACCEPT))


def _answer(session: Session, request: Request, decode: Callable[[bytes], T], *, job_id: str | None = None) -> Steps[T]:
    native(session, LACKS)
    return (yield from answer(session, request, decode, job_id=job_id))


def _path(job_id: str) -> str:
    return f"/tracked/{quote(job_id, safe='')}"


def _credential_path(name: str) -> str:
    return f"/credentials/{quote(name, safe='')}"
