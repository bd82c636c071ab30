"""`/metrics`, for Prometheus: read from the store and the counters at scrape time, so that the hot paths only add numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from math import inf
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from milepost.engine.stats import BOUNDS_S, Durations
from milepost.server.state import AppState
from milepost.store import QueueDepth, StoreStats

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class HttpStats:
    """Requests by (method, route, status), and how long they took by (method, route)."""

    __slots__ = ("requests", "took")

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = {}
        self.took: defaultdict[tuple[str, str], Durations] = defaultdict(Durations)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        if method not in METHODS:  # anybody can invent more, and each would be kept
            method = "(other)"
        key = (method, route, status)
        self.requests[key] = self.requests.get(key, 0) + 1
        self.took[method, route].add(seconds)


class _Snapshot:
    """Families made once, in the shape that `generate_latest` reads."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


async def render(state: AppState) -> bytes:
    """The exposition text.  Errors: StoreUnavailable."""
    now_us = state.clock.now_us()
    depths = await state.store.queue_depths()
    families = [
        *_queues(depths, now_us),
        *_store(state.store.stats),
        *_http(state),
        *_engine(getattr(state.engine, "stats", None)),
    ]
    return generate_latest(_Snapshot(families))


def _queues(depths: list[QueueDepth], now_us: int) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("milepost_queue_jobs", "Open jobs of a queue by state.", labels=["queue", "state"])
    age = GaugeMetricFamily("milepost_queue_oldest_ready_seconds", "How long the first due job has waited.", labels=["queue"])
    paused = GaugeMetricFamily("milepost_queue_paused", "1 while the queue is paused.", labels=["queue"])
    for depth in depths:
        for state in ("held", "ready", "scheduled", "running", "waiting"):
            jobs.add_metric([depth.name, state], getattr(depth, state))
        waited_s = 0.0 if depth.oldest_ready_us is None else max(0.0, (now_us - depth.oldest_ready_us) / 1e6)
        age.add_metric([depth.name], waited_s)
        paused.add_metric([depth.name], float(depth.paused))
    yield from (jobs, age, paused)


def _store(stats: StoreStats) -> Iterator[Metric]:
    yield CounterMetricFamily("milepost_store_commits", "Transactions written to disk.", value=stats.commits)
    yield CounterMetricFamily("milepost_store_operations", "Writes in those transactions.", value=stats.operations)
    commits = HistogramMetricFamily("milepost_store_commit_seconds", "Time of one commit with its fsync.")
    commits.add_metric([], _buckets(stats.commit_seconds), stats.commit_s)
    batches = HistogramMetricFamily("milepost_store_commit_batch", "Writes in one commit.")
    batches.add_metric([], _buckets(stats.batch_sizes), stats.operations)
    yield from (commits, batches)


def _buckets(counts: Mapping[Any, int]) -> list[tuple[str, float]]:
    """From counts by upper bound (each in one bucket only) to Prometheus' cumulative buckets."""
    bounds = sorted({*counts, inf})
    totals = accumulate(counts.get(bound, 0) for bound in bounds)
    return [("+Inf" if bound == inf else str(float(bound)), float(total)) for bound, total in zip(bounds, totals, strict=True)]


def _durations(family: HistogramMetricFamily, took: Mapping[Any, Durations]) -> HistogramMetricFamily:
    """The family with one histogram for each key, which has the values of the labels."""
    for key, one in sorted(took.items()):
        family.add_metric(_label_values(key), _buckets(dict(zip(BOUNDS_S, one.counts, strict=True))), one.sum_s)
    return family


def _http(state: AppState) -> Iterator[Metric]:
    requests = CounterMetricFamily("milepost_http_requests", "Requests answered.", labels=["method", "route", "status"])
    seconds = HistogramMetricFamily("milepost_http_request_seconds", "Time spent answering.", labels=["method", "route"])
    for (method, route, status), count in sorted(state.http.requests.items()):
        requests.add_metric([method, route, str(status)], count)
    yield from (requests, _durations(seconds, state.http.took))
    yield GaugeMetricFamily("milepost_streams_open", "Open event streams and long polls.", value=state.slots.open)


# The engine's counters by attribute: (metric, help, labels).  A counter with labels is a dict keyed by the label values.
ENGINE: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "claims": ("milepost_jobs_claimed", "Jobs leased to this process.", ()),
    "attempts": ("milepost_attempts", "Attempts begun.", ("kind",)),
    "outcomes": ("milepost_attempt_outcomes", "What attempts came to.", ("kind", "outcome")),
    "ran": ("milepost_attempt_seconds", "Time that attempts ran.", ("kind",)),
    "lost_leases": ("milepost_leases_lost", "Outcomes not written because the lease had gone.", ()),
    "rescued": ("milepost_leases_rescued", "Jobs taken back from workers that died.", ()),
    "pruned": ("milepost_jobs_pruned", "Expired jobs removed.", ()),
    "published": ("milepost_deliveries_published", "Deliveries made for subscriptions and callbacks with filters.", ()),
    "deliveries": ("milepost_delivery_attempts", "Callback attempts by what they came to.", ("state",)),
    "heartbeats": ("milepost_heartbeats", "Lease renewals.", ()),
}


def _engine(stats: Any) -> Iterator[Metric]:
    if stats is None:
        return
    for name, (metric, help, labels) in ENGINE.items():
        value = stats.get(name) if isinstance(stats, Mapping) else getattr(stats, name, None)
        if value is None:
            continue
        if not labels:
            yield CounterMetricFamily(metric, help, value=value)
            continue
        if name == "ran":
            yield _durations(HistogramMetricFamily(metric, help, labels=labels), value)
            continue
        family = CounterMetricFamily(metric, help, labels=list(labels))
        for key, count in sorted(value.items()):
            family.add_metric(_label_values(key), count)
        yield family


def _label_values(key: Any) -> list[str]:
    parts: Iterable[Any] = key if isinstance(key, tuple) else (key,)
    return [str(part) for part in parts]
