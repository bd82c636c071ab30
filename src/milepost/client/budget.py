"""How many requests a server is sent: one budget for each (endpoint, project) of the process, shared by all its waits.

Theory
A token bucket: `rate_per_s` tokens a second, at most `burst` of them kept, one for each request.  A server that asks to slow
down (429, 503) lowers the rate and closes the bucket for as long as it asked.  The rate is lowered by the share of the last
answers that were refusals, by half at most: refusals that mean the rate are soon many, and those that have nothing to do with
it cost little.  Each good answer later opens the bucket a little more, up to what was allowed: soon to nine tenths of what was
too fast, slowly beyond.  Without a `Limit` there is no bucket until the server asks for one: the rate that it objected to is
then known, and half of it is where the bucket starts.

Rules
1. A budget delays; it never fails anything.
2. One outage is one slowing: answers to requests that were sent before the rate was lowered do not lower it again.
3. `Retry-After` is for everybody: nothing is sent to that server before it has passed, as far as `retry_after_cap_s` goes.
4. Of those that wait for a token the one goes first whose probe was due first; a job's age counts against it, by a share,
   so that young jobs go first and nobody starves: what comes later has a later rank.
5. Pure arithmetic: the instants are arguments, seconds of a monotonic clock.  Safe to share between threads.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from weakref import WeakValueDictionary

import msgspec

FLOOR_PER_S = 0.1  # no server is asked less often than that
LOW_PER_S = 4.0  # nor less often than that, unless it refuses many times in a row
MANY = 6
MEMORY_S = 2.0  # over which the rate of requests is measured, where no limit was given
REGAIN, REGAIN_SLOWLY = 1.15, 1.05  # by which each good answer raises the rate; slowly near the one that was too fast,
NEAR, LONG_S = 0.9, 60.0  # until it was that for so long
MOST = 0.5  # by which a refusal lowers the rate
WEIGHT = 0.1  # of the newest answer, in the share of answers that are refusals
RESERVE = 0.1  # of a window's requests may come at once
PAUSE_S, PAUSE_CAP_S = 1.0, 60.0  # closed for that share of it after a 429 without Retry-After, doubled each time in a row
RETRY_AFTER_CAP_S = 600.0
AWAKE_S = 1.0  # one whose turn has come and who does not ask for so long is passed over
LEAST_S = 0.005  # before one that is not first asks again


class Limit(msgspec.Struct, frozen=True):
    """At most so many requests within any stretch of `per_s` seconds.  Errors: ValueError when one of them is not above 0."""

    requests: float
    per_s: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.requests < math.inf and 0 < self.per_s < math.inf):
            raise ValueError(f"a limit is a number of requests in a number of seconds, not {self.requests:g} in {self.per_s:g} s")

    @property
    def burst(self) -> float:
        """Requests that may come at once."""
        return max(1.0, RESERVE * self.requests)

    @property
    def rate_per_s(self) -> float:
        """What is left for the stretch itself, so that burst and rate together stay within the limit; never nothing."""
        return max(self.requests - self.burst, 0.5 * min(self.requests, 1.0)) / self.per_s


class _Place(msgspec.Struct, frozen=True, gc=False):
    """In the line for the next token: whose turn is first, and when it asks again."""

    rank_s: float
    wakes_s: float


class Budget:
    """The requests that one server may be sent in the name of one project."""

    def __init__(self, limit: Limit | None = None, *, retry_after_cap_s: float = RETRY_AFTER_CAP_S) -> None:
        self._lock = threading.Lock()
        self._limit = limit
        self._retry_after_cap_s = retry_after_cap_s
        self._rate_per_s = math.inf if limit is None else limit.rate_per_s
        self._burst = math.inf if limit is None else limit.burst
        self._tokens = self._burst
        self._at_s: float | None = None  # when the tokens were counted
        self._recent = 0.0  # requests, fading with MEMORY_S while it is open
        self._open_s = -math.inf  # nothing is sent before
        self._slowed_s = -math.inf  # when the rate was lowered last
        self._refused = MOST  # share of the last answers that were refusals; of the first one it is not known
        self._too_fast_per_s = 0.0  # the rate that the server objected to
        self._in_a_row = 0
        self._line: dict[int, _Place] = {}
        self.requests = 0  # taken so far
        self.throttled = 0  # times it was slowed

    # --- what may be sent -------------------------------------------------------------------------------------------

    def reserve(self, now_s: float) -> float:
        """Take a token, also one that is still to come; the request may be sent after the returned pause, seconds."""
        with self._lock:
            pause_s = self._pause_s(now_s)
            self._spend(1.0)
            return pause_s

    def take(self, now_s: float) -> bool:
        """Take a token if there is one now."""
        with self._lock:
            if self._pause_s(now_s) > 0:
                return False
            self._spend(1.0)
            return True

    def turn(self, now_s: float, rank_s: float, who: object) -> float:
        """Take a token if there is one and nobody's turn is before this one's: 0.  Else ask again after the returned pause.

        Rules: the smallest `rank_s` goes first, of those that are awake; `who` names the one that asks, `leave` forgets it.
        """
        with self._lock:
            pause_s = self._pause_s(now_s)
            closed_s = max(0.0, self._open_s - now_s)
            if self._tokens == math.inf and pause_s <= 0:
                self._spend(1.0)
                return 0.0
            others = [place for key, place in self._line.items() if key != id(who) and place.rank_s < rank_s]
            if pause_s <= 0 and not any(place.wakes_s <= now_s < place.wakes_s + AWAKE_S for place in others):
                self._line.pop(id(who), None)
                self._spend(1.0)
                return 0.0
            ahead = sum(now_s < place.wakes_s + AWAKE_S for place in others)
            pause_s = max(pause_s, closed_s + (1.0 + ahead - self._tokens) / self._rate_per_s, LEAST_S)
            self._line[id(who)] = _Place(rank_s, now_s + pause_s)
            return pause_s

    def leave(self, who: object) -> None:
        """Whoever asked for a turn does not want one any more."""
        if self._line:
            with self._lock:
                self._line.pop(id(who), None)

    def spend(self, now_s: float) -> None:
        """Count a request that is sent without asking: a call that nobody lets wait.  It takes nothing that is still to come."""
        with self._lock:
            self._refill(now_s)
            self._spend(1.0)
            self._tokens = max(self._tokens, 0.0)

    def pause_s(self, now_s: float) -> float:
        """Seconds until there is a token; nothing is taken."""
        with self._lock:
            return self._pause_s(now_s)

    @property
    def limit(self) -> Limit | None:
        """What the user allowed."""
        return self._limit

    @property
    def rate_per_s(self) -> float:
        """Requests a second as of now; infinite while nobody set a limit."""
        return self._rate_per_s

    # --- what the server says ---------------------------------------------------------------------------------------

    def slow_down(self, now_s: float, retry_after_s: float | None = None, *, asked_s: float | None = None) -> None:
        """The server asked for it: 429 or 503.  `asked_s`: when that request was sent, where it is known."""
        with self._lock:
            self._refill(now_s)
            known = now_s < self._open_s if asked_s is None else asked_s < self._slowed_s
            if not known:
                self.throttled += 1
                self._in_a_row += 1
                self._lower(now_s)
                self._refused += WEIGHT * (1.0 - self._refused)
            if retry_after_s is not None:
                self._open_s = max(self._open_s, now_s + min(retry_after_s, self._retry_after_cap_s))
            elif not known:
                pause_s = min(PAUSE_CAP_S, PAUSE_S * self._refused * 2.0 ** min(self._in_a_row - 1, 30))
                self._open_s = max(self._open_s, now_s + pause_s)

    def speed_up(self, now_s: float, *, asked_s: float | None = None) -> None:
        """The server answered as it should."""
        if not self.throttled or self._rate_per_s == math.inf:
            return
        with self._lock:
            if asked_s is not None and asked_s < self._slowed_s:
                return
            self._refill(now_s)
            self._in_a_row = 0
            self._refused *= 1.0 - WEIGHT
            self._regain(now_s)

    def tighten(self, limit: Limit) -> None:
        """Keep to this limit too: of two, the slower one counts."""
        with self._lock:
            if self._limit is None or limit.rate_per_s < self._limit.rate_per_s:
                self._limit = limit
                self._rate_per_s = min(self._rate_per_s, limit.rate_per_s)
                self._burst = min(self._burst, limit.burst)
                self._tokens = min(self._tokens, self._burst)

    # --- arithmetic, under the lock ---------------------------------------------------------------------------------

    def _pause_s(self, now_s: float) -> float:
        self._refill(now_s)
        closed_s = max(0.0, self._open_s - now_s)
        if self._tokens >= 1.0 - 1e-9:
            return closed_s if closed_s > 1e-9 else 0.0
        return closed_s + (1.0 - self._tokens) / self._rate_per_s

    def _spend(self, tokens: float) -> None:
        self._tokens -= tokens
        self._recent += tokens
        self.requests += 1

    def _refill(self, now_s: float) -> None:
        """The tokens that came since they were counted last; those that came while it was closed are not there."""
        if self._at_s is None:
            self._at_s = now_s
        passed_s = now_s - self._at_s
        if passed_s <= 0:
            return
        open_s = now_s - max(self._at_s, min(self._open_s, now_s))
        self._recent *= math.exp(-open_s / MEMORY_S)
        self._at_s = now_s
        if self._rate_per_s == math.inf:
            return
        self._tokens = min(self._burst, self._tokens + open_s * self._rate_per_s)

    def _regain(self, now_s: float) -> None:
        most_per_s = math.inf if self._limit is None else self._limit.rate_per_s
        near = self._rate_per_s >= NEAR * self._too_fast_per_s and now_s - self._slowed_s < LONG_S
        self._rate_per_s = min(most_per_s, self._rate_per_s * (REGAIN_SLOWLY if near else REGAIN))
        self._burst = self._burst_of(self._rate_per_s)

    def _lower(self, now_s: float) -> None:
        self._too_fast_per_s = min(self._rate_per_s, max(self._recent / MEMORY_S, 2 * LOW_PER_S))
        floor_per_s = FLOOR_PER_S if self._in_a_row >= MANY else LOW_PER_S
        self._rate_per_s = min(self._rate_per_s, max(floor_per_s, self._too_fast_per_s * (1.0 - min(self._refused, MOST))))
        self._burst = self._burst_of(self._rate_per_s)
        self._tokens = min(self._tokens, 1.0)  # what was saved up is what was too much
        self._slowed_s = now_s

    def _burst_of(self, rate_per_s: float) -> float:
        """What may come at once: a second's worth, but not more than was allowed."""
        most = math.inf if self._limit is None else self._limit.burst
        return min(most, max(1.0, rate_per_s))


class Budgets:
    """The budgets of a process, by (endpoint, project).  One that no client holds any more is forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_place: WeakValueDictionary[tuple[str, str | None], Budget] = WeakValueDictionary()

    def of(self, endpoint: str, project: str | None, limit: Limit | None = None) -> Budget:
        """The budget of this place; `limit` is kept from now on by everybody who shares it."""
        with self._lock:
            budget = self._by_place.get((endpoint, project))
            if budget is None:
                budget = self._by_place[(endpoint, project)] = Budget(limit)
            elif limit is not None:
                budget.tighten(limit)
            return budget

    def __iter__(self) -> Iterator[tuple[str, str | None]]:
        with self._lock:
            return iter(list(self._by_place))


BUDGETS = Budgets()


def read_limit(text: str) -> Limit:
    """A limit from `200/300`: requests, and the seconds in which they are allowed; `/SECONDS` left out is a second.

    Errors: ValueError.
    """
    requests, _, per_s = text.partition("/")
    try:
        return Limit(float(requests), float(per_s) if per_s else 1.0)
    except ValueError as error:
        raise ValueError(f"a limit is REQUESTS/SECONDS such as 200/300, not {text!r}") from error


__all__ = ["BUDGETS", "Budget", "Budgets", "Limit", "read_limit"]
