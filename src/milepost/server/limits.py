"""What one caller may take: requests a second for each project, and open streams for all of them together."""

from __future__ import annotations

from types import TracebackType

from milepost.clock import Clock
from milepost.errors import LimitExceeded, Throttled

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
    """Open event streams and long polls; `with slots:` holds one.  Errors: LimitExceeded when all are taken."""

    def __init__(self, limit: int) -> None:
        self.limit, self.open = limit, 0

    def __enter__(self) -> None:
        if self.open >= self.limit:
            raise LimitExceeded(
                f"{self.open} streams and long polls are open, as many as this server allows",
                limit="streams_max",
                allowed=self.limit,
                seen=self.open + 1,
                hint="poll without wait, or try again",
            )
        self.open += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.open -= 1
