"""Pages of 100 jobs with a million finished ones in the table, one request after the other."""

from __future__ import annotations

import statistics

from bench.figure import Figure, Row
from bench.machine import percentile
from bench.million import LABEL, full_database
from bench.room import Room

PAGES = {
    "newest": "/jobs?limit=100",
    "state=failed": "/jobs?limit=100&state=failed",
    "one label": f"/jobs?limit=100&label={LABEL}:t3",
    "Glance tasks": "/v2/tasks?limit=100",
}
GOAL_MS = 10


def _measure(room: Room) -> dict[str, float]:
    found = {}
    with room.serving(full_database(room.jobs_kept)) as server:
        for name, path in PAGES.items():
            samples = room.run("load", "pages", server.url, "--path", path, "--count", room.some(200, 50))["ms"]
            found[f"page of 100, {name}"] = statistics.median(samples)
            found[f"page of 100, {name}, p99"] = percentile(samples, 99)
    return found


FIGURE = Figure(
    "list-page",
    "GET of a page of 100 with a million finished jobs in the table (a quick run: a hundred thousand)",
    tuple(Row(name, "ms", GOAL_MS, "less") for page in PAGES for name in (f"page of 100, {page}", f"page of 100, {page}, p99")),
    _measure,
)
