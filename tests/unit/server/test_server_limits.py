"""Token buckets and slots."""

from __future__ import annotations

import pytest

from milepost.errors import LimitExceeded, Throttled
from milepost.job import ProjectId
from milepost.server import limits
from milepost.server.limits import Rates, Slots


class Time:
    def __init__(self) -> None:
        self.s = 100.0

    def monotonic_s(self) -> float:
        return self.s

    def now_us(self) -> int:
        return int(self.s * 1e6)

    async def sleep(self, delay_s: float) -> None:
        raise AssertionError


def taken(rates: Rates, project: str, times: int) -> int:
    count = 0
    for _ in range(times):
        try:
            rates.take(project)
        except Throttled:
            break
        count += 1
    return count


def test_a_bucket_gives_its_burst_then_its_rate_and_never_more() -> None:
    clock = Time()
    rates = Rates(clock, 5.0, 10)
    assert taken(rates, "a", 100) == 10
    clock.s += 1.0
    assert taken(rates, "a", 100) == 5
    clock.s += 1000.0
    assert taken(rates, "a", 100) == 10


def test_after_the_named_time_the_next_request_passes() -> None:
    clock = Time()
    rates = Rates(clock, 0.25, 1)
    rates.take("a")
    with pytest.raises(Throttled) as caught:
        rates.take("a")
    clock.s += caught.value.retry_after_s - 0.001
    with pytest.raises(Throttled):
        rates.take("a")
    clock.s += 0.001
    rates.take("a")


def test_projects_have_buckets_of_their_own_and_idle_ones_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROJECTS_KEPT", 3)
    clock = Time()
    rates = Rates(clock, 1.0, 2)
    assert [taken(rates, name, 5) for name in "abc"] == [2, 2, 2]
    clock.s += 2.0
    assert taken(rates, "d", 5) == 2
    assert len(rates._buckets) == 1


def test_a_rate_of_zero_limits_and_keeps_nothing() -> None:
    rates = Rates(Time(), 0.0, 1)
    assert taken(rates, "a", 1000) == 1000
    assert rates._buckets == {}


P, Q = ProjectId("p"), ProjectId("q")


def test_a_slot_comes_back_however_its_holder_ends() -> None:
    slots = Slots(1, 1)
    with pytest.raises(ValueError), slots.hold(P):
        with pytest.raises(LimitExceeded), slots.hold(Q):
            raise AssertionError
        assert slots.open == 1
        raise ValueError
    assert slots.open == 0
    with slots.hold(P):
        assert slots.open == 1


def test_one_project_cannot_take_the_slots_of_all() -> None:
    slots = Slots(3, 2)
    with slots.hold(P), slots.hold(P):
        with pytest.raises(LimitExceeded) as refused, slots.hold(P):
            raise AssertionError
        assert refused.value.limit == "streams_project_max"
        with slots.hold(Q):
            with pytest.raises(LimitExceeded) as full, slots.hold(Q):
                raise AssertionError
            assert full.value.limit == "streams_max"
    assert slots.open == 0
