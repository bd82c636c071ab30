"""The routes of subscriptions and deliveries: who is told of a project's events, and what became of each telling.

A subscription's secret is in the answer that made it, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from milepost.engine.service import check_words
from milepost.errors import InvalidInput, LimitExceeded
from milepost.job import JobId
from milepost.server import jobs
from milepost.server.http import JSON, Call, Reply, base_url, decode
from milepost.server.identity import new_callback_secret
from milepost.server.route import ALL_PROJECTS, LIMIT, Parameter, Route
from milepost.store import Delivery
from milepost.subscription import Filter, Subscription
from milepost.wire import rfc3339
from milepost.wire.native import NULL, DeliveryList, NativeDelivery, encode
from milepost.wire.subscription import (
    NativeSubscription,
    SubscriptionChange,
    SubscriptionList,
    SubscriptionRequest,
    decode_subscription_change,
    decode_subscription_request,
    from_subscription,
)

STATES = ("pending", "delivered", "given_up")


# --- subscriptions -------------------------------------------------------------------------------------------------


async def subscribe(call: Call) -> Reply:
    """The URL is told from now on; the answer has the secret that signs what it is told."""
    request = decode(decode_subscription_request, await _json(call))
    call.query.done()
    filter_ = Filter(request.on, request.kinds, request.labels, request.sub_jobs)
    _check(call, request.url, filter_)
    state = call.state
    made = await state.store.add_subscription(
        call.identity.project,
        url=request.url,
        description=request.description,
        filter=filter_,
        secret=new_callback_secret(),
        after_id=request.after,
        now_us=state.clock.now_us(),
        most=state.settings.subscriptions_max,
    )
    state.service.dispatch.announce_subscriptions()
    reply = Reply(201, encode(from_subscription(made, secret=True)))
    reply.headers.append((b"location", f"{base_url(call.scope, state)}/subscriptions/{made.id}".encode("latin-1")))
    return reply


async def list_subscriptions(call: Call) -> Reply:
    """The project's subscriptions, the oldest first."""
    project = jobs.project_of(call)
    call.query.done()
    found = await call.state.store.list_subscriptions(project=project)
    return Reply(200, encode(SubscriptionList([from_subscription(one) for one in found])))


async def show_subscription(call: Call) -> Reply:
    """One of them."""
    return Reply(200, encode(from_subscription(await _find(call))))


async def change_subscription(call: Call) -> Reply:
    """What is named changes, from now on; what is on its way goes to the new URL."""
    change = decode(decode_subscription_change, await _json(call))
    await _find(call)
    given = {name: value for name in change.__struct_fields__ if (value := getattr(change, name)) is not msgspec.UNSET}

    def changed(old: Subscription) -> Subscription:
        of_filter = {name: value for name, value in given.items() if name in Filter.__struct_fields__}
        own = {name: value for name, value in given.items() if name not in of_filter}
        return msgspec.structs.replace(old, filter=msgspec.structs.replace(old.filter, **of_filter), **own)

    now = changed(await call.state.store.get_subscription(call.param))
    _check(call, now.url, now.filter)
    return await _change(call, changed)


async def pause_subscription(call: Call) -> Reply:
    """Nothing is sent any more; what happens meanwhile is told after it is resumed, as long as it is kept."""
    await _find(call)
    return await _change(call, lambda old: msgspec.structs.replace(old, state="paused", reason=None))


async def resume_subscription(call: Call) -> Reply:
    """It goes on where it was; with `skip`, now."""
    skip = call.query.flag("skip")
    await _find(call)
    return await _change(call, lambda old: msgspec.structs.replace(old, state="active", reason=None), to_now=skip)


async def renew_secret(call: Call) -> Reply:
    """A new secret signs from now on; the old one signs beside it for a while."""
    await _find(call)
    secret, state = new_callback_secret(), call.state
    until_us = state.clock.now_us() + int(state.settings.subscription_secret_overlap_s * 1e6)

    def renewed(old: Subscription) -> Subscription:
        return msgspec.structs.replace(old, secret=secret, old_secret=old.secret, old_secret_until_us=until_us)

    return await _change(call, renewed, secret=True)


async def ping_subscription(call: Call) -> Reply:
    """A delivery of no event is on its way: whether it comes shows in the log."""
    found = await _find(call)
    delivery = await call.state.store.ping_subscription(found.id, now_us=call.state.clock.now_us())
    call.state.service.dispatch.announce_delivery()
    return Reply(202, encode(native_delivery(delivery)))


async def remove_subscription(call: Call) -> Reply:
    """It is told nothing more, also not what is on its way; its log goes with it."""
    await call.state.store.delete_subscription((await _find(call)).id)
    call.state.service.dispatch.announce_subscriptions()
    return Reply(204)


async def _json(call: Call) -> bytes:
    jobs.check_json(call.headers.get(b"content-type", JSON))
    return await call.body()


async def _find(call: Call) -> Subscription:
    """Errors: NotFound, InvalidInput for a parameter that nobody read."""
    project = jobs.project_of(call)
    call.query.done()
    return await call.state.store.get_subscription(call.param, project=project)


async def _change(
    call: Call, change: Callable[[Subscription], Subscription], *, to_now: bool = False, secret: bool = False
) -> Reply:
    state = call.state
    changed = await state.store.change_subscription(call.param, change, to_now=to_now, now_us=state.clock.now_us())
    state.service.dispatch.announce_subscriptions()
    state.service.dispatch.announce_delivery()
    return Reply(200, encode(from_subscription(changed, secret=secret)))


def _check(call: Call, url: str, filter_: Filter) -> None:
    """Errors: InvalidInput, LimitExceeded."""
    jobs.check_callback(call, url, "$.url", what="url")
    check_words(filter_.on, "$.on")
    settings = call.state.settings
    if len(filter_.labels) > settings.labels_max:
        raise LimitExceeded(
            f"there are more than {settings.labels_max} labels",
            limit="labels_max",
            allowed=settings.labels_max,
            seen=len(filter_.labels),
            path="$.labels",
        )
    for key, value in filter_.labels.items():
        if not key or max(len(key), len(value)) > settings.label_chars_max:
            raise InvalidInput(f"no job has a label {key[:40]!r} like this", path="$.labels")
    for kind in filter_.kinds:
        if not 0 < len(kind) <= settings.name_chars_max:
            raise InvalidInput(f"a kind's name has 1 to {settings.name_chars_max} characters", path="$.kinds")


# --- deliveries ----------------------------------------------------------------------------------------------------


async def list_subscription_deliveries(call: Call) -> Reply:
    """What became of each telling, the newest first."""
    limit, before, state = jobs.page_limit(call), call.query.integer("before"), call.query.choice("state", STATES)
    found = await _find(call)
    given: dict[str, Any] = {} if before is None else {"before": before}
    page = await call.state.store.page_deliveries(found.id, state=state, limit=limit + 1, **given)
    shown = page[:limit]
    headers = [jobs.next_link(call, name="before", after=shown[-1].number or 0)] if len(page) > limit else []
    return Reply(200, encode(DeliveryList([native_delivery(one) for one in shown])), headers)


async def list_deliveries(call: Call) -> Reply:
    """The deliveries that tell of a job, with what their last attempts came to."""
    job = await call.state.service.get(JobId(call.param), project=jobs.project_of(call))
    call.query.done()
    return Reply(200, encode(DeliveryList([native_delivery(one) for one in await call.state.store.list_deliveries(job.id)])))


async def redeliver(call: Call) -> Reply:
    """It is pending again, from its first attempt."""
    project = jobs.project_of(call)
    call.query.done()
    delivery = await call.state.store.redeliver(call.param, project=project, now_us=call.state.clock.now_us())
    call.state.service.dispatch.announce_delivery()
    return Reply(202, encode(native_delivery(delivery)))


def native_delivery(delivery: Delivery) -> NativeDelivery:
    return NativeDelivery(
        id=delivery.id,
        job_id=delivery.job_id or None,
        subscription_id=delivery.subscription_id,
        url=delivery.url,
        event=delivery.event,
        detail=NULL if delivery.detail is None else msgspec.Raw(delivery.detail),
        state=delivery.state,
        attempt=delivery.attempt,
        next_at=rfc3339(delivery.next_us) if delivery.state == "pending" else None,
        created_at=rfc3339(delivery.created_us),  # type: ignore[arg-type]
        ended_at=rfc3339(delivery.ended_us),
        last_status=delivery.last_status,
        last_error=delivery.last_error,
    )


# --- the table -----------------------------------------------------------------------------------------------------

ONE = {200: (NativeSubscription, "as it is now")}

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/subscriptions",
        subscribe,
        "subscriptions",
        "Tell a URL of the project's events",
        {201: (NativeSubscription, "it is told from now on; `secret` signs what it is told, and is shown here alone")},
        body=SubscriptionRequest,
        errors=(400, 413, 415),
    ),
    Route(
        "GET",
        "/subscriptions",
        list_subscriptions,
        "subscriptions",
        "List subscriptions",
        {200: (SubscriptionList, "all of them, the oldest first")},
        (ALL_PROJECTS,),
    ),
    Route(
        "GET",
        "/subscriptions/{id}",
        show_subscription,
        "subscriptions",
        "Read a subscription",
        ONE,
        (ALL_PROJECTS,),
        errors=(404,),
    ),
    Route(
        "PATCH",
        "/subscriptions/{id}",
        change_subscription,
        "subscriptions",
        "Change a subscription's URL or filter",
        ONE,
        (ALL_PROJECTS,),
        SubscriptionChange,
        (400, 404, 415),
    ),
    Route(
        "DELETE",
        "/subscriptions/{id}",
        remove_subscription,
        "subscriptions",
        "Remove a subscription and its log",
        {204: (None, "it is gone")},
        (ALL_PROJECTS,),
        errors=(404,),
    ),
    Route(
        "POST",
        "/subscriptions/{id}/pause",
        pause_subscription,
        "subscriptions",
        "Send nothing for now",
        ONE,
        (ALL_PROJECTS,),
        errors=(404,),
    ),
    Route(
        "POST",
        "/subscriptions/{id}/resume",
        resume_subscription,
        "subscriptions",
        "Go on where it was paused",
        ONE,
        (Parameter("skip", "1: pass over what happened meanwhile", "boolean"), ALL_PROJECTS),
        errors=(404,),
    ),
    Route(
        "POST",
        "/subscriptions/{id}/secret",
        renew_secret,
        "subscriptions",
        "Make a new secret",
        {200: (NativeSubscription, "with the new secret; the old one signs beside it for `subscription_secret_overlap_s`")},
        (ALL_PROJECTS,),
        errors=(404,),
    ),
    Route(
        "POST",
        "/subscriptions/{id}/ping",
        ping_subscription,
        "subscriptions",
        "Send a delivery of no event",
        {202: (NativeDelivery, "it is pending")},
        (ALL_PROJECTS,),
        errors=(404,),
    ),
    Route(
        "GET",
        "/subscriptions/{id}/deliveries",
        list_subscription_deliveries,
        "subscriptions",
        "A subscription's deliveries, newest first",
        {200: (DeliveryList, "a page; `Link: rel=next` while there are more")},
        (
            Parameter("state", "in this state", choices=STATES),
            Parameter("before", "the last one of the page before; `Link` has the whole URL", "integer"),
            LIMIT,
            ALL_PROJECTS,
        ),
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/jobs/{id}/deliveries",
        list_deliveries,
        "callbacks",
        "The deliveries that tell of a job",
        {200: (DeliveryList, "all of them")},
        (ALL_PROJECTS,),
        errors=(404, 410),
    ),
    Route(
        "POST",
        "/deliveries/{id}/redeliver",
        redeliver,
        "callbacks",
        "Send a delivery again",
        {202: (NativeDelivery, "it is pending")},
        (ALL_PROJECTS,),
        errors=(404,),
    ),
)
