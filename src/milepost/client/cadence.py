"""When to ask again: pure arithmetic, no clock and no I/O.

Theory
A probe is wasted while the job cannot be done, and each second between the end and the next probe is lag.  Asking at
intervals that grow with the job's age keeps both in proportion: the lag stays below a fixed share of the duration, and the
number of probes grows with its logarithm.

Where it is known how long jobs of this kind take, the stretch in which hardly any of them ends is asked through a few times
only, and what that saves is spent on looking closer afterwards.

Order of precedence
1. `every_s`, the user's own interval: always wins.
2. the server's `Retry-After`.
3. after a failed probe: a pause that doubles with each failure in a row.
4. while hardly a job of the kind ends, as far as is known: `quiet_share` of the job's age.
5. a share of the job's age, at least `first_s`, at most `cap_s`; in the first seconds half of the age, at most `young_s`.
Everything but `every_s` is jittered, so that waits started together do not stay together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

from milepost.client.durations import Durations


class Cadence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How eagerly a wait asks.  All in seconds, but `share` and `jitter`, which are fractions.

    Errors: ValueError for a negative number, or a cap below the first interval.
    """

    every_s: float | None = None  # the user's own fixed interval
    first_s: float = 0.25  # shortest interval, used while the job is young
    young_s: float = 1.0  # longest interval while the share of the job's age is less than that
    share: float = 0.045  # of the job's age
    cap_s: float = 120.0  # longest interval that we choose ourselves
    quiet_share: float = 0.5  # of the job's age, while hardly a job of its kind ends
    retry_after_cap_s: float = 600.0  # a server that asks for more is asked earlier
    failure_s: float = 0.25  # pause after the first failed probe
    failure_cap_s: float = 10.0
    throttle_s: float = 1.0  # pause after a 429 or 503 without Retry-After
    jitter: float = 0.1

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"cadence {name} is {value:g}; it must not be negative")
        if self.cap_s < self.first_s:
            raise ValueError(f"cadence cap_s ({self.cap_s:g}) is below first_s ({self.first_s:g})")
        if self.jitter >= 1:
            raise ValueError(f"cadence jitter is {self.jitter:g}; it must be below 1")

    def after_answer(
        self, age_s: float, retry_after_s: float | None, random: Callable[[], float], known: Durations | None = None
    ) -> float:
        """Seconds until the next probe after one that was answered.  `random` returns a float in [0, 1)."""
        if self.every_s is not None:
            return self.every_s
        if retry_after_s is not None:
            return self._later(min(retry_after_s, self.retry_after_cap_s), random)
        return self._around(self._own_s(max(age_s, 0.0), known), random)

    def _own_s(self, age_s: float, known: Durations | None) -> float:
        own_s = min(self.cap_s, max(self.first_s, min(self.young_s, age_s / 2), self.share * age_s))
        if known is None:
            return own_s
        return max(own_s, min(self.quiet_share * age_s, known.quiet_until_s(age_s) - age_s))

    def after_failure(self, failures: int, random: Callable[[], float]) -> float:
        """Seconds until the next probe after `failures` (from 1) in a row without a usable answer."""
        if self.every_s is not None:
            return self.every_s
        return self._around(_doubled(self.failure_s, failures, self.failure_cap_s), random)

    def after_throttle(self, throttles: int, retry_after_s: float | None, random: Callable[[], float]) -> float:
        """Seconds until the next probe after `throttles` (from 1) answers in a row that asked to slow down."""
        if self.every_s is not None:
            return self.every_s
        if retry_after_s is not None:
            return self._later(min(retry_after_s, self.retry_after_cap_s), random)
        return self._later(_doubled(self.throttle_s, throttles, self.cap_s), random)

    def _around(self, delay_s: float, random: Callable[[], float]) -> float:
        return delay_s * (1 + self.jitter * (2 * random() - 1))

    def _later(self, delay_s: float, random: Callable[[], float]) -> float:
        """Never earlier than the server asked for."""
        return delay_s * (1 + self.jitter * random())


def _doubled(first_s: float, times: int, cap_s: float) -> float:
    return min(cap_s, first_s * 2.0 ** min(max(times - 1, 0), 60))


def retry_after_s(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Seconds the server asks to wait, or None: `Retry-After` in seconds or as a date, or one of the `-ms` forms.

    Shape: header names in lower case.  Source: RFC 9110 section 10.2.3; Azure/azure-sdk-for-python sdk/core for `retry-after-ms`
    and `x-ms-retry-after-ms`.  A value that is none of these is as good as no value.
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if (number := _number(headers.get(name))) is not None:
            return number / 1000
    text = headers.get("retry-after")
    if (number := _number(text)) is not None:
        return number
    if not text:
        return None
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - (now or datetime.now(UTC))).total_seconds())


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < float("inf") else None
