"""Every figure, in the order of the table."""

from __future__ import annotations

from bench.figure import Figure
from bench.figures import (
    budget,
    cadence,
    full_table,
    huawei,
    idle,
    image_import,
    latency,
    list_page,
    many_waits,
    qiniu,
    sdk_waits,
    status_get,
    submit_http,
    throughput,
    tracker,
)

FIGURES: tuple[Figure, ...] = (
    throughput.SINGLY,
    throughput.BATCHES,
    submit_http.FIGURE,
    status_get.FIGURE,
    list_page.FIGURE,
    latency.HTTP,
    latency.IN_PROCESS,
    idle.FIGURE,
    full_table.FIGURE,
    image_import.FIGURE,
    huawei.QUERY,
    huawei.CREATE,
    qiniu.THUMBNAILS,
    qiniu.TRANSCODES,
    qiniu.STATUS,
    cadence.FIGURE,
    budget.FIGURE,
    many_waits.FIGURE,
    sdk_waits.FIGURE,
    tracker.FIGURE,
)
