"""How often a wait asks and how late it knows, in virtual time: 10,000 jobs whose durations are spread as real ones are.

Each policy waits for the same jobs.  Milepost's cadence learns as it goes, from nothing.  Lag is from a job's end to the
probe that sees it; beside it stands the lag in units of what is allowed: 5 % of the job's duration, at least 1 s.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence

from bench.figure import Figure, Row
from bench.room import Room
from milepost.client.cadence import Cadence
from milepost.client.durations import Durations

JOBS = 10_000
EARLY = 0.02  # of all jobs fail within their first seconds
# median s, spread (sigma of the logarithm), share of the jobs: thumbnails, snapshots, volumes, images, transcodes, clusters
KINDS = ((5, 0.5, 0.22), (40, 0.4, 0.23), (150, 0.6, 0.25), (600, 0.4, 0.15), (1800, 0.5, 0.10), (5400, 0.3, 0.05))

Wait = Callable[[int, float], tuple[int, float]]  # kind, duration -> probes, lag


def make_jobs(seed: int) -> list[tuple[int, float]]:
    """(kind, duration in seconds), as they were submitted."""
    dice = random.Random(seed)
    made = []
    for _ in range(JOBS):
        (kind,) = dice.choices(range(len(KINDS)), [share for _, _, share in KINDS])
        median_s, spread, _ = KINDS[kind]
        usual_s = dice.lognormvariate(math.log(median_s), spread)
        made.append((kind, dice.uniform(0.1, 3) if dice.random() < EARLY else usual_s))
    return made


def fixed(interval_s: float) -> Wait:
    """A loop that sleeps the same time after each look."""

    def wait(_: int, duration_s: float) -> tuple[int, float]:
        probes = math.ceil(duration_s / interval_s)
        return probes + 1, probes * interval_s - duration_s

    return wait


def exponential(first_s: float, cap_s: float) -> Wait:
    """An interval that doubles up to a cap."""

    def wait(_: int, duration_s: float) -> tuple[int, float]:
        now_s, interval_s, probes = 0.0, first_s, 1
        while now_s < duration_s:
            now_s, interval_s, probes = now_s + interval_s, min(cap_s, 2 * interval_s), probes + 1
        return probes, now_s - duration_s

    return wait


def adaptive(cadence: Cadence, seed: int) -> Wait:
    """Milepost's own, with a history that begins empty."""
    history = [Durations() for _ in KINDS]
    roll = random.Random(seed).random

    def wait(kind: int, duration_s: float) -> tuple[int, float]:
        now_s, probes = 0.0, 1
        while now_s < duration_s:
            now_s += cadence.after_answer(now_s, None, roll, history[kind])
            probes += 1
        history[kind].add(duration_s)
        return probes, now_s - duration_s

    return wait


def at(share: float, values: Sequence[float]) -> float:
    """The quantile."""
    return sorted(values)[int(share * (len(values) - 1))]


def _measure(_: Room) -> dict[str, float]:
    seed = 1
    jobs = make_jobs(seed)
    waits = {
        "every 5 s": fixed(5),
        "every 10 s": fixed(10),
        "every 30 s": fixed(30),
        "1 to 20 s, doubling": exponential(1, 20),
        "Milepost": adaptive(Cadence(), seed),
    }
    found: dict[str, float] = {}
    mean: dict[str, float] = {}
    median: dict[str, float] = {}
    for name, wait in waits.items():
        seen = [(*wait(kind, duration_s), duration_s) for kind, duration_s in jobs]
        mean[name] = found[f"{name}: probes a job"] = statistics.mean(probes for probes, _, _ in seen)
        median[name] = found[f"{name}: lag, p50"] = at(0.5, [lag_s for _, lag_s, _ in seen])
        found[f"{name}: lag, p99"] = at(0.99, [lag_s for _, lag_s, _ in seen])
        found[f"{name}: lag of what is allowed, p99"] = at(
            0.99, [lag_s / max(0.05 * duration_s, 1) for _, lag_s, duration_s in seen]
        )
    found["probes: Milepost / every 5 s"] = mean["Milepost"] / mean["every 5 s"]
    found["lag, p50: Milepost / every 5 s"] = median["Milepost"] / median["every 5 s"]
    return found


_POLICIES = ("every 5 s", "every 10 s", "every 30 s", "1 to 20 s, doubling", "Milepost")

FIGURE = Figure(
    "cadence",
    "10,000 jobs of seconds to hours, waited for in virtual time",
    (
        *(
            row
            for name in _POLICIES
            for row in (
                Row(f"{name}: probes a job", "probes"),
                Row(f"{name}: lag, p50", "s"),
                Row(f"{name}: lag, p99", "s"),
                Row(f"{name}: lag of what is allowed, p99", "ratio", 1 if name == "Milepost" else None, "less"),
            )
        ),
        Row("probes: Milepost / every 5 s", "ratio", round(1 / 3, 3), "less"),
        Row("lag, p50: Milepost / every 5 s", "ratio", 1, "less"),
    ),
    _measure,
    rounds_max=1,
)
