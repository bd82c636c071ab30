"""What each client asked, when, and with which result: the newest requests whole, all of them counted."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import msgspec


class Asked(msgspec.Struct, kw_only=True, gc=False, omit_defaults=True):
    """One request.  No header but `User-Agent` is kept: the others may hold secrets."""

    number: int  # from 1
    at_s: float  # since the start, in the rehearsal's time
    at: str  # the true instant
    wire: str
    action: str
    method: str
    path: str  # with its query
    client: str  # X-Rehearsal-Client, or User-Agent
    job: str | None = None  # its name
    job_id: str | None = None
    poll: int | None = None  # which one of the job
    jobs: int | None = None  # of a list: so many were shown
    state: str | None = None  # what was shown
    found: bool | None = None
    status: int | None = None  # None: no answer
    fault: str | None = None  # what was done to it
    took_s: float = 0.0  # real time


class Record:
    """Bounded: when it is full the oldest requests go, and `dropped` counts them."""

    def __init__(self, kept: int) -> None:
        self._asked: deque[Asked] = deque(maxlen=kept)
        self.total = 0
        self.counts: Counter[tuple[str, str, str, int | None, str | None]] = Counter()

    @property
    def dropped(self) -> int:
        return self.total - len(self._asked)

    def next_number(self) -> int:
        self.total += 1
        return self.total

    def add(self, asked: Asked) -> None:
        self._asked.append(asked)
        self.counts[(asked.wire, asked.action, asked.client, asked.status, asked.fault)] += 1

    def clear(self) -> None:
        """Forget what was asked until now."""
        self._asked.clear()
        self.counts.clear()
        self.total = 0

    def select(self, *, after: int = 0, limit: int | None = None, **fields: Any) -> Iterator[Asked]:
        """Those with these values (`job="import"`, `action="probe"`), oldest first."""
        left = limit
        for asked in self._asked:
            if asked.number <= after or any(getattr(asked, name) != value for name, value in fields.items()):
                continue
            if left is not None:
                if left <= 0:
                    return
                left -= 1
            yield asked

    def summary(self) -> list[dict[str, Any]]:
        """Counts by wire, action, client, status and fault."""
        names = ("wire", "action", "client", "status", "fault")
        return [
            {**dict(zip(names, key, strict=True)), "count": count}
            for key, count in sorted(self.counts.items(), key=lambda one: str(one[0]))
        ]
