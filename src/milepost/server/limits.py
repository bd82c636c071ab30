"""What one caller may take: requests a second and open streams, for each project, and streams for all of them together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from milepost.clock import Clock
from milepost.errors import LimitExceeded, Throttled
from milepost.job import ProjectId

PROJECTS_KEPT = 10_000


class Rates:
    """A token bucket for each project.  A rate of 0 limits nothing.

    Rules: a bucket starts full with `burst`, and gains `rate_per_s`; full buckets are forgotten when there are too many.
    """

    def __init__(self, clock: Clock, rate_per_s: float, burst: int) -> None:
        self._clock, self._rate, self._burst = clock, rate_per_s, float(burst)
        self._buckets: dict[str, tuple[float, float]] = {}  # project -> (tokens, monotonic_s)

    def take(self, project: str) -> None:
        """Errors: Throttled with the time until the next request would pass."""
        if not self._rate:
            return
        now_s = self._clock.monotonic_s()
        tokens, since_s = self._buckets.get(project, (self._burst, now_s))
        tokens = min(self._burst, tokens + (now_s - since_s) * self._rate)
        if tokens < 1:
            self._buckets[project] = (tokens, now_s)
            raise Throttled(
                f"project {project} sends more than {self._rate:g} requests a second", retry_after_s=(1 - tokens) / self._rate
            )
        if len(self._buckets) >= PROJECTS_KEPT and project not in self._buckets:
            self._forget(now_s)
        self._buckets[project] = (tokens - 1, now_s)

    def _forget(self, now_s: float) -> None:
        full_s = self._burst / self._rate
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if now_s - bucket[1] < full_s}


class Slots:
    """Open event streams and long polls; `with slots.hold(project):` holds one.

    Errors: LimitExceeded when the project has its share (`streams_project_max`), or all are taken (`streams_max`).
    """

    def __init__(self, limit: int, project_limit: int) -> None:
        self.limit, self.project_limit, self.open = limit, project_limit, 0
        self._open_by_project: dict[ProjectId, int] = {}

    @contextmanager
    def hold(self, project: ProjectId) -> Iterator[None]:
        mine = self._open_by_project.get(project, 0)
        if mine >= self.project_limit:
            raise self._refusal("streams_project_max", self.project_limit, mine, "this project has")
        if self.open >= self.limit:
            raise self._refusal("streams_max", self.limit, self.open, "all projects together have")
        self.open += 1
        self._open_by_project[project] = mine + 1
        try:
            yield
        finally:
            self.open -= 1
            left = self._open_by_project[project] - 1
            if left:
                self._open_by_project[project] = left
            else:
                del self._open_by_project[project]

    @staticmethod
    def _refusal(limit: str, allowed: int, seen: int, whose: str) -> LimitExceeded:
        return LimitExceeded(
            f"{whose} {seen} streams and long polls open, as many as this server allows",
            limit=limit,
            allowed=allowed,
            seen=seen + 1,
            hint="poll without wait, or try again",
        )
