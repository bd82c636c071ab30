"""What the engine counted since it started; read by the metrics endpoint."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from math import inf

import msgspec

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 43_200, inf)


class Durations(msgspec.Struct):
    """How long things took: their sum, and how many took at most each of `BOUNDS_S` but longer than the one before."""

    sum_s: float = 0.0
    counts: list[int] = msgspec.field(default_factory=lambda: [0] * len(BOUNDS_S))

    def add(self, seconds: float) -> None:
        self.sum_s += seconds
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1


class EngineStats(msgspec.Struct):
    """Counters; a dict is keyed by its labels."""

    claims: int = 0
    attempts: Counter[str] = msgspec.field(default_factory=Counter)  # kind
    outcomes: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)  # kind, outcome
    ran: defaultdict[str, Durations] = msgspec.field(default_factory=lambda: defaultdict(Durations))  # kind
    lost_leases: int = 0
    rescued: int = 0
    pruned: int = 0
    deliveries: Counter[str] = msgspec.field(default_factory=Counter)  # state
    published: int = 0
    heartbeats: int = 0
