"""Conversations about a project's events as a whole: its history, its stream, and who else is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from milepost.client.calls import FOREVER_S, NativeEvents, open_stream
from milepost.client.dialects.native import ACCEPT, JSON
from milepost.client.native import answer, listed, native
from milepost.client.session import Session
from milepost.client.steps import Emit, Read, Sleep, Steps
from milepost.errors import Unreachable
from milepost.job import Event, ProjectId
from milepost.wire import Request, Response
from milepost.wire import native as native_wire
from milepost.wire import subscription as wire
from milepost.wire.native import Missed, NativeDelivery

T = TypeVar("T")
PAGE = 500
LACKS = "tells nobody"


# --- the project's events -----------------------------------------------------------------------------------------------


def project_events(session: Session, labels: Mapping[str, str], *, after: int) -> Steps[None]:
    """Emits the Event values behind `after`, oldest first, and `Missed` first when some are gone."""

    def items(page: native_wire.EventPage) -> Iterator[Event | Missed]:
        if page.missed is not None:
            yield page.missed
        yield from (_event(session, one) for one in page.events)

    native(session, LACKS)
    path = _events_path(labels, after=after, limit=PAGE)
    yield from listed(session, path, native_wire.decode_events, items)


def follow_project(session: Session, labels: Mapping[str, str], *, after: int | None) -> Steps[None]:
    """Emits the Event values behind `after`, None: from now on, as they happen; `Missed` where some are gone.  Never ends.

    Rules: a broken stream is opened again behind the last event; given up after `patience_s` without an answer.
    """
    native(session, LACKS)
    failures, failing_since_s = 0, 0.0
    while True:
        headers = {"Accept": "text/event-stream"} | ({} if after is None else {"Last-Event-ID": str(after)})
        reply = yield from open_stream(session, Request("GET", _events_path(labels), headers), FOREVER_S)
        if isinstance(reply, Response) and reply.status == 200:
            parser, part = NativeEvents(after or 0), b""
            while isinstance(part := (yield Read()), bytes):
                failures = 0
                for one in parser.feed(part):
                    yield Emit(one if isinstance(one, Missed) else _event(session, one))
                if parser.last_known:
                    after = parser.last_id
            reply = part if isinstance(part, Unreachable) else Unreachable("the stream ended", endpoint=session.endpoint)
        now_s = session.clock.monotonic_s()
        failing_since_s = now_s if failures == 0 else failing_since_s
        failures += 1
        error, delay_s = session.judge(reply, failures, None)
        if not error.retryable or now_s - failing_since_s > session.patience_s:
            raise error
        yield Sleep(delay_s)


def _events_path(labels: Mapping[str, str], **given: Any) -> str:
    pairs = [*(("label", f"{key}={value}") for key, value in labels.items()), *given.items()]
    return "/events?" + urlencode(pairs) if pairs else "/events"


def _event(session: Session, one: native_wire.NativeEvent) -> Event:
    return native_wire.to_event(one, ProjectId(session.project or "default"))


# --- subscriptions ------------------------------------------------------------------------------------------------------


def subscribe(session: Session, request: wire.SubscriptionRequest) -> Steps[wire.NativeSubscription]:
    """With its secret.  Errors: InvalidInput, LimitExceeded; Unreachable when it is not known whether it was made."""
    sent = Request("POST", "/subscriptions", JSON, wire.encode(request))
    return (yield from _answer(session, sent, wire.decode_subscription, repeatable=False))


def list_subscriptions(session: Session) -> Steps[list[wire.NativeSubscription]]:
    found = yield from _answer(session, Request("GET", "/subscriptions", ACCEPT), wire.decode_subscriptions)
    return found.subscriptions


def show_subscription(session: Session, id: str) -> Steps[wire.NativeSubscription]:
    """Errors: NotFound."""
    return (yield from _answer(session, Request("GET", _path(id), ACCEPT), wire.decode_subscription))


def change_subscription(session: Session, id: str, change: wire.SubscriptionChange) -> Steps[wire.NativeSubscription]:
    """Errors: NotFound, InvalidInput."""
    return (yield from _answer(session, Request("PATCH", _path(id), JSON, wire.encode(change)), wire.decode_subscription))


def act(session: Session, id: str, verb: str) -> Steps[wire.NativeSubscription]:
    """`pause`, `resume`, `resume?skip=1`, or `secret`, whose answer has the new one.  Errors: NotFound."""
    request = Request("POST", f"{_path(id)}/{verb}", JSON, b"{}")
    return (yield from _answer(session, request, wire.decode_subscription, repeatable=verb != "secret"))


def ping(session: Session, id: str) -> Steps[NativeDelivery]:
    """Errors: NotFound."""
    return (yield from _answer(session, Request("POST", f"{_path(id)}/ping", JSON, b"{}"), native_wire.decode_delivery))


def remove_subscription(session: Session, id: str) -> Steps[None]:
    """Errors: NotFound."""
    native(session, LACKS)
    yield from session.call(Request("DELETE", _path(id), ACCEPT))


def subscription_deliveries(session: Session, id: str, *, state: str | None, limit: int | None) -> Steps[None]:
    """Emits each NativeDelivery, newest first.  Errors: NotFound."""
    native(session, LACKS)
    pairs = {"limit": min(limit or PAGE, PAGE)} | ({} if state is None else {"state": state})
    path = f"{_path(id)}/deliveries?{urlencode(pairs)}"
    yield from listed(session, path, native_wire.decode_deliveries, lambda page: page.deliveries, limit)


def job_deliveries(session: Session, job_id: str) -> Steps[list[NativeDelivery]]:
    """Errors: NotFound, Expired."""
    request = Request("GET", f"/jobs/{quote(job_id, safe='')}/deliveries", ACCEPT)
    found = yield from _answer(session, request, native_wire.decode_deliveries)
    return found.deliveries


def redeliver(session: Session, id: str) -> Steps[NativeDelivery]:
    """Errors: NotFound."""
    request = Request("POST", f"/deliveries/{quote(id, safe='')}/redeliver", JSON, b"{}")
    return (yield from _answer(session, request, native_wire.decode_delivery))


def _path(id: str) -> str:
    return f"/subscriptions/{quote(id, safe='')}"


def _answer(session: Session, request: Request, decode: Callable[[bytes], T], *, repeatable: bool = True) -> Steps[T]:
    native(session, LACKS)
    return (yield from answer(session, request, decode, repeatable=repeatable))
