"""What holds for every cadence, age, header and roll of the dice."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from milepost.client.cadence import Cadence, retry_after_s
from milepost.client.durations import GROWTH, Durations

seconds = st.floats(0, 1e6, allow_nan=False)
dice = st.floats(0, 1, exclude_max=True)


@st.composite
def cadences(draw: st.DrawFn) -> Cadence:
    first_s = draw(st.floats(0.01, 60))
    return Cadence(
        first_s=first_s,
        young_s=first_s,
        cap_s=first_s + draw(st.floats(0, 600)),
        share=draw(st.floats(0, 1)),
        jitter=draw(st.floats(0, 0.5)),
    )


@given(cadences(), seconds, dice)
def test_an_interval_stays_between_its_first_and_its_cap(cadence: Cadence, age_s: float, roll: float) -> None:
    delay_s = cadence.after_answer(age_s, None, lambda: roll)
    assert cadence.first_s * (1 - cadence.jitter) - 1e-9 <= delay_s <= cadence.cap_s * (1 + cadence.jitter) + 1e-9


@given(cadences(), seconds, seconds, st.floats(0, 1e6), dice)
def test_what_the_server_asks_for_is_never_undercut(
    cadence: Cadence, age_s: float, asked_s: float, _: float, roll: float
) -> None:
    for delay_s in (cadence.after_answer(age_s, asked_s, lambda: roll), cadence.after_throttle(3, asked_s, lambda: roll)):
        assert delay_s >= min(asked_s, cadence.retry_after_cap_s)
        assert delay_s <= cadence.retry_after_cap_s * (1 + cadence.jitter)


@given(st.floats(0, 3600), seconds, st.none() | seconds, dice, st.integers(1, 10_000))
def test_the_users_own_interval_always_wins(every_s: float, age_s: float, asked_s: float | None, roll: float, times: int) -> None:
    cadence = Cadence(every_s=every_s)
    assert cadence.after_answer(age_s, asked_s, lambda: roll) == every_s
    assert cadence.after_failure(times, lambda: roll) == every_s
    assert cadence.after_throttle(times, asked_s, lambda: roll) == every_s


@given(cadences(), st.integers(1, 10_000), dice)
def test_failures_never_pause_longer_than_their_cap(cadence: Cadence, times: int, roll: float) -> None:
    assert 0 < cadence.after_failure(times, lambda: roll) <= cadence.failure_cap_s * (1 + cadence.jitter)
    assert 0 < cadence.after_throttle(times, None, lambda: roll) <= cadence.cap_s * (1 + cadence.jitter) + 1e-9


@given(st.floats(0.01, 86_400), st.integers(0, 2**32))
def test_lag_is_a_share_of_the_duration_and_probes_grow_with_its_logarithm(duration_s: float, seed: int) -> None:
    """Simulated: a job of this duration, probed from its begin."""
    cadence, roll = Cadence(), random.Random(seed).random
    now_s, probes = 0.0, 1
    while now_s < duration_s:
        now_s += cadence.after_answer(now_s, None, roll)
        probes += 1
    most = 1 + cadence.jitter
    assert now_s - duration_s <= max(cadence.young_s, cadence.share * duration_s) * most
    assert now_s - duration_s <= cadence.cap_s * most
    least = 1 - cadence.jitter
    by_share = math.log(max(duration_s * cadence.share, 1)) / math.log(1 + cadence.share * least)
    assert probes <= 32 + by_share + duration_s / (cadence.cap_s * least)


@given(st.text(max_size=40))
def test_no_header_text_breaks_the_reader(text: str) -> None:
    found = retry_after_s({"retry-after": text, "retry-after-ms": text})
    assert found is None or found >= 0


durations = st.lists(st.floats(0.01, 1e5), min_size=1, max_size=80)


@given(durations, st.floats(0, 1))
def test_a_quantile_is_one_of_the_durations_to_within_a_bucket(seen: list[float], share: float) -> None:
    known = Durations()
    for one in seen:
        known.add(one)
    found = known.quantile_s(share)
    assert any(abs(math.log(found / one)) <= GROWTH / 2 + 1e-9 for one in seen)
    assert known.quantile_s(0) <= found <= known.quantile_s(1)


@given(durations, st.floats(0, 1e6))
def test_a_quiet_stretch_never_reaches_over_a_duration_that_was_seen(seen: list[float], age_s: float) -> None:
    known = Durations()
    for one in seen:
        known.add(one)
    until_s = known.quiet_until_s(age_s)
    assert until_s >= age_s
    # The weights of so few are all far above what counts as rare.
    later = [one for one in seen if math.log(max(one, 0.001)) >= math.log(max(age_s, 0.001)) + GROWTH]
    assert until_s == age_s or until_s <= min(later, default=until_s)


@given(cadences(), durations, seconds, dice)
def test_what_is_known_only_ever_makes_a_wait_more_patient(
    cadence: Cadence, seen: list[float], age_s: float, roll: float
) -> None:
    known = Durations()
    for one in seen:
        known.add(one)
    alone_s = cadence.after_answer(age_s, None, lambda: roll)
    delay_s = cadence.after_answer(age_s, None, lambda: roll, known)
    assert alone_s <= delay_s <= max(alone_s, cadence.quiet_share * age_s * (1 + cadence.jitter))
