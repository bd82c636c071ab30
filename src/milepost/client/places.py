"""Several waits for one job are one probe: who asks about which job, of all clients and threads of this process.

Theory: at each place (wire, endpoint, project, identity) a job is led by one conversation, which asks; the others that wait for
it follow, and are told what it heard.  When the leader leaves, the follower that came first leads.  A leader that is held up,
such as an iterator whose caller does something else meanwhile, loses the job to whoever looks.

Rules
1. Nobody is told by somebody with another identity: what one may see, another may not.
2. A conversation that ends leaves all its jobs, whatever ends it.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from milepost.client.steps import Inbox
from milepost.wire import JobView

HELD_UP_S = 2.0  # a leader may be late by that
LOOK_S = 5.0  # how often a follower looks whether its leader goes on


class News(msgspec.Struct, frozen=True):
    """What the leader of a job heard: a reply to a probe, or a view from a list's reply.  Without both: lead now."""

    job_id: str
    reply: Any = None
    view: JobView | None = None


class Place:
    """The waits at one place."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leaders: dict[str, Inbox] = {}
        self._followers: dict[str, list[Inbox]] = {}

    def join(self, job_id: str, inbox: Inbox, now_s: float) -> bool:
        """Whether this conversation leads the job now; else it follows, and is told."""
        with self._lock:
            leader = self._leaders.setdefault(job_id, inbox)
            if leader is inbox:
                return True
            followers = self._followers.setdefault(job_id, [])
            if now_s > leader.quiet_until_s + HELD_UP_S:
                self._leaders[job_id] = inbox
                followers[:] = [one for one in followers if one is not inbox] + [leader]
                return True
            if not any(one is inbox for one in followers):
                followers.append(inbox)
            return False

    def tell(self, news: News, inbox: Inbox) -> None:
        """What this conversation heard goes to the others."""
        if news.job_id in self._followers:
            with self._lock:
                others = [one for one in self._followers.get(news.job_id, ()) if one is not inbox]
            for one in others:
                one.put(news)

    def leave(self, job_ids: Iterable[str], inbox: Inbox) -> None:
        """This conversation waits for these jobs no more."""
        with self._lock:
            for job_id in job_ids:
                self._leave(job_id, inbox)

    def _leave(self, job_id: str, inbox: Inbox) -> None:
        followers = self._followers.get(job_id)
        if followers is not None:
            followers[:] = [one for one in followers if one is not inbox]
        if self._leaders.get(job_id) is inbox:
            if followers:
                self._leaders[job_id] = followers.pop(0)
                self._leaders[job_id].put(News(job_id))
            else:
                del self._leaders[job_id]
        if followers is not None and not followers:
            del self._followers[job_id]

    def __len__(self) -> int:
        """Jobs that somebody waits for."""
        return len(self._leaders)


class Places:
    """The places of a process.  One at which nobody waits any more is forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: WeakValueDictionary[Hashable, Place] = WeakValueDictionary()

    def of(self, key: Hashable) -> Place:
        with self._lock:
            place = self._places.get(key)
            if place is None:
                place = self._places[key] = Place()
            return place


PLACES = Places()

__all__ = ["HELD_UP_S", "LOOK_S", "PLACES", "News", "Place", "Places"]
