"""What the engine counted since it started; read by the metrics endpoint."""

from __future__ import annotations

from collections import Counter, defaultdict

import msgspec


class EngineStats(msgspec.Struct):
    """Counters; a dict is keyed by its labels."""

    claims: int = 0
    attempts: Counter[str] = msgspec.field(default_factory=Counter)  # kind
    outcomes: Counter[tuple[str, str]] = msgspec.field(default_factory=Counter)  # kind, outcome
    run_s: defaultdict[str, float] = msgspec.field(default_factory=lambda: defaultdict(float))  # kind -> seconds
    lost_leases: int = 0
    rescued: int = 0
    pruned: int = 0
    deliveries: Counter[str] = msgspec.field(default_factory=Counter)  # state
    published: int = 0
    heartbeats: int = 0
