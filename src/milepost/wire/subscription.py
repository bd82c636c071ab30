"""Subscriptions as JSON.  Source: this project's `docs/reference/http.md` and the OpenAPI document made from these structs."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from milepost.subscription import Subscription
from milepost.wire import rfc3339

Description = Annotated[str, msgspec.Meta(max_length=200)]
Kinds = Annotated[tuple[str, ...], msgspec.Meta(max_length=100)]


class SubscriptionRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What `POST /subscriptions` takes.  `after` is the id of the last event that is not told, left out: of the last one."""

    url: str
    on: tuple[str, ...] = ()  # states entered, types of events, `final`, `all`; empty: final
    kinds: Kinds = ()  # empty: every kind
    labels: dict[str, str] = {}  # of the job or of its root
    sub_jobs: bool = False  # of sub-jobs too
    description: Description = ""
    after: Annotated[int, msgspec.Meta(ge=0)] | None = None


class SubscriptionChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What `PATCH /subscriptions/{id}` takes: what is left out stays as it is."""

    url: str | msgspec.UnsetType = msgspec.UNSET
    on: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    kinds: Kinds | msgspec.UnsetType = msgspec.UNSET
    labels: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    sub_jobs: bool | msgspec.UnsetType = msgspec.UNSET
    description: Description | msgspec.UnsetType = msgspec.UNSET


class NativeSubscription(msgspec.Struct, kw_only=True):
    """A subscription.  `secret` is there once: in the answer that made it.

    `cursor` is the id of the last event that was looked at for it; `reason` says why the server paused it.
    """

    id: str
    project: str
    url: str
    on: tuple[str, ...]
    kinds: tuple[str, ...]
    labels: dict[str, str]
    sub_jobs: bool
    description: str
    state: Literal["active", "paused"]
    reason: str | None = None
    cursor: int
    deliveries: int  # so far
    given_up: int  # in a row, since the last one that came
    created_at: str
    updated_at: str
    secret: str | msgspec.UnsetType = msgspec.UNSET


class SubscriptionList(msgspec.Struct):
    subscriptions: list[NativeSubscription]


encode = msgspec.json.Encoder().encode
decode_subscription_request = msgspec.json.Decoder(SubscriptionRequest).decode
decode_subscription_change = msgspec.json.Decoder(SubscriptionChange).decode
decode_subscription = msgspec.json.Decoder(NativeSubscription).decode
decode_subscriptions = msgspec.json.Decoder(SubscriptionList).decode


def from_subscription(one: Subscription, *, secret: bool = False) -> NativeSubscription:
    """As it goes out; with its secret where it was just made."""
    return NativeSubscription(
        id=one.id,
        project=one.project,
        url=one.url,
        on=one.filter.on or ("final",),
        kinds=one.filter.kinds,
        labels=one.filter.labels,
        sub_jobs=one.filter.sub_jobs,
        description=one.description,
        state=one.state,
        reason=one.reason,
        cursor=one.cursor,
        deliveries=one.made,
        given_up=one.given_up,
        created_at=rfc3339(one.created_us),  # type: ignore[arg-type]
        updated_at=rfc3339(one.updated_us),  # type: ignore[arg-type]
        secret=one.secret if secret else msgspec.UNSET,
    )
