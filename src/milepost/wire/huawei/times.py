"""Instants as Huawei Cloud writes them: UTC, three digits of milliseconds, a literal Z; `""` for one that has not come.

Source: huaweicloud/huaweicloud-sdk-go openstack/ecs/v1/job; chnsz/golangsdk openstack/dds/v3/jobs (no milliseconds, `Z` or
`+0000`), openstack/cce/v3/nodes (Go's own text of an instant, `2026-03-04 05:06:07.12 +0000 UTC`).
"""

from __future__ import annotations

import functools
import re
from datetime import UTC, datetime
from typing import Any

from milepost.wire import FIRST_S, LAST_S, from_rfc3339

_GO = re.compile(r" ([+-]\d{4}) [A-Z]{3,4}$")
MS_MIN = 100_000_000_000  # a number from here on counts milliseconds, not seconds


@functools.lru_cache(maxsize=16384)  # sub-jobs begin together, and a poll shows most instants of the one before
def at_ms(at_us: int | None) -> str:
    """`2026-03-04T05:06:07.120Z`, cut, not rounded; `""` for None."""
    if at_us is None:
        return ""
    second = datetime.fromtimestamp(min(max(at_us // 1_000_000, FIRST_S), LAST_S), UTC).isoformat()[:19]
    return f"{second}.{at_us // 1000 % 1000:03d}Z"


def read_time(value: Any) -> int | None:
    """Unix µs of an instant in any of the services' forms: text with or without ms or offset, or a number since 1970.

    Rules: None for "", null and what is no instant: a time that cannot be read is no reason to lose the job.
    """
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        try:
            return int(value * (1000 if value >= MS_MIN else 1_000_000))
        except (OverflowError, ValueError):
            return None
    try:
        return from_rfc3339(_GO.sub(r"\1", value.strip())) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None
