"""Who is told of what: the words of a filter, and a project's durable subscription to its events.  Leaf: sees `job` alone.

A word of a filter is a type of event (`progress`, `retrying`), a state that is entered (`running`, `waiting`), `final` for
the three final states, or `all`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec

from milepost.job import FINAL, Event, EventType, JobId, ProjectId, State

FINAL_WORD, ALL_WORD = "final", "all"
WORDS: tuple[str, ...] = tuple(dict.fromkeys([FINAL_WORD, ALL_WORD, *map(str, State), *map(str, EventType)]))
MISSED, PING = "missed", "ping"  # deliveries that are of no event
STAYING = frozenset({EventType.PROGRESS, EventType.CANCEL_REQUESTED})  # the job's state is the one that it was in
# The states that an event of this type can lead to: that of `submitted` is held or ready.
LEADS_TO: dict[EventType, frozenset[State]] = {
    EventType.SUBMITTED: frozenset({State.HELD, State.READY}),
    EventType.STARTED: frozenset({State.RUNNING}),
    EventType.WAITING: frozenset({State.WAITING}),
    EventType.SUCCEEDED: frozenset({State.SUCCEEDED}),
    EventType.FAILED: frozenset({State.FAILED}),
    EventType.CANCELLED: frozenset({State.CANCELLED}),
    **dict.fromkeys(STAYING, frozenset()),
    **dict.fromkeys(
        (EventType.RELEASED, EventType.RETRYING, EventType.SNOOZED, EventType.RESUMED, EventType.RETURNED, EventType.RESCUED),
        frozenset({State.READY}),
    ),
}


def tells(on: Iterable[str], type_: EventType, state: State) -> bool:
    """Whether these words name this event; no words are `final`."""
    entered = type_ not in STAYING
    words = tuple(on) or (FINAL_WORD,)
    return (
        ALL_WORD in words
        or type_.value in words
        or (entered and (state.value in words or (FINAL_WORD in words and state in FINAL)))
    )


def types_of(on: Iterable[str]) -> frozenset[EventType]:
    """The types of which an event may be named by these words."""
    return frozenset(type_ for type_ in EventType if any(tells(on, type_, state) for state in LEADS_TO[type_] or State))


def unknown_words(on: Iterable[str]) -> list[str]:
    return [word for word in on if word not in WORDS]


class Filter(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which events a subscription is about.  Empty: final states, every kind, every label; roots unless `sub_jobs`."""

    on: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    sub_jobs: bool = False


class News(NamedTuple):
    """An event with what filters look at; `root_labels` are those of another job than the event's, or empty."""

    event: Event
    kind: str
    labels: Mapping[str, str]
    root_labels: Mapping[str, str]


def matches(filter_: Filter, news: News) -> bool:
    """Whether the event is told.  All labels must be the job's own, or all of them its root's."""
    event = news.event
    return (
        (filter_.sub_jobs or event.job_id == event.root_id)
        and (not filter_.kinds or news.kind in filter_.kinds)
        and tells(filter_.on, event.type, event.state)
        and (
            not filter_.labels
            or filter_.labels.items() <= news.labels.items()
            or filter_.labels.items() <= news.root_labels.items()
        )
    )


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who is told of a project's events, as the store has it.

    `cursor` is the id of the last event that was looked at for it; `revision` grows with each change by its owner.
    """

    id: str
    project: ProjectId
    url: str
    description: str
    filter: Filter
    secret: str
    old_secret: str | None  # signs too, until then
    old_secret_until_us: int | None
    state: Literal["active", "paused"]
    reason: str | None  # why the server paused it
    revision: int
    cursor: int
    missed_until: int
    made: int
    given_up: int
    created_us: int
    updated_us: int

    def __repr__(self) -> str:
        return f"<Subscription {self.id} of {self.project}: {self.state}>"


class Told(NamedTuple):
    """One event that goes to one receiver."""

    event: Event
    url: str


class Publication(NamedTuple):
    """What becomes of a stretch of the log for one subscription: these deliveries, and the cursor moved to `until_id`.

    `missed` is the first and the last id of events that were pruned before they were looked at.
    """

    subscription: Subscription
    events: list[Event]
    missed: tuple[int, int] | None
    until_id: int


class JobPublication(NamedTuple):
    """The same for the callbacks of jobs that have filters."""

    told: list[Told]
    ended: list[JobId]  # nothing more comes of these
    before_id: int
    until_id: int


encode_filter = msgspec.json.Encoder().encode
decode_filter = msgspec.json.Decoder(Filter).decode
