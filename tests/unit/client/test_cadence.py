from __future__ import annotations

from datetime import UTC, datetime

import pytest

from milepost.client.cadence import Cadence, retry_after_s

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "Wed, 04 Mar 2026 05:06:17 GMT"}, 10.0),
        ({"retry-after": "Wed, 04 Mar 2026 05:00:00 GMT"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"x-ms-retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_retry_after_in_every_form(headers, expected) -> None:
    assert retry_after_s(headers, now=NOW) == expected


@pytest.mark.parametrize("wrong", [{"first_s": -1.0}, {"cap_s": 0.1}, {"jitter": 1.0}, {"every_s": -0.1}])
def test_a_cadence_that_makes_no_sense_is_refused(wrong) -> None:
    with pytest.raises(ValueError):
        Cadence(**wrong)
