"""A job's id as Qiniu writes one: the region, a dot, and 128 bits in hex.

Source: qiniu/go-sdk storage/pfop.go (`z0.01z001…`); clients take it as it is.
"""

from __future__ import annotations

import re

from milepost.job import JobId

_ID = re.compile(r"[A-Za-z0-9-]{1,40}\.([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{12})").fullmatch


def persistent_id(job_id: str, region: str = "z0") -> str:
    """`z0.` and 32 hex digits."""
    return f"{region}.{job_id.replace('-', '')}"


def read_persistent_id(text: str) -> JobId | None:
    """The job's id, whatever region is in front; None when it is no such id."""
    found = _ID(text)
    return None if found is None else JobId("-".join(found.groups()))
