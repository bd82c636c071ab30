from __future__ import annotations

import math
import threading

import pytest

from milepost.client.budget import Budget, Budgets, Limit, read_limit


def test_without_a_limit_nothing_waits() -> None:
    budget = Budget()
    assert [budget.reserve(0.0) for _ in range(1000)] == [0.0] * 1000
    assert budget.rate_per_s == math.inf


def test_a_refusal_halves_the_rate_that_was_measured() -> None:
    budget = Budget()
    for n in range(200):
        budget.reserve(n / 100)  # 100 a second
    budget.slow_down(2.0)
    assert 20 < budget.rate_per_s < 50
    assert budget.throttled == 1


def test_retry_after_closes_it_for_everybody() -> None:
    budget = Budget()
    budget.slow_down(10.0, 7.0)
    assert budget.pause_s(10.0) == pytest.approx(7.0)
    assert not budget.take(16.9)
    assert budget.take(17.0)


def test_a_retry_after_of_a_day_does_not_close_it_for_a_day() -> None:
    budget = Budget()
    budget.slow_down(0.0, 86_400.0)
    assert budget.pause_s(0.0) <= 600.0


def test_answers_to_requests_sent_before_the_slowing_slow_it_once() -> None:
    budget = Budget()
    for n in range(50):
        budget.reserve(n / 50)
    for _ in range(16):
        budget.slow_down(1.0, asked_s=0.9)
    once = budget.rate_per_s
    assert budget.throttled == 1
    budget.slow_down(5.0, asked_s=4.0)
    assert (budget.throttled, budget.rate_per_s < once) == (2, True)


def test_refusals_in_a_row_close_it_for_longer_and_a_good_answer_ends_the_row() -> None:
    budget, pauses, now_s = Budget(), [], 0.0
    for _ in range(10):
        budget.slow_down(now_s, asked_s=now_s)
        pauses.append(budget.pause_s(now_s))
        now_s += pauses[-1] + 100
    assert pauses == sorted(pauses)
    assert pauses[-1] <= 60.0 + 1 / budget.rate_per_s
    budget.speed_up(now_s, asked_s=now_s)
    budget.slow_down(now_s + 1, asked_s=now_s + 1)
    assert budget.pause_s(now_s + 1) <= 1.0


def test_good_answers_bring_the_rate_back_and_not_above_the_limit() -> None:
    budget = Budget(Limit(1000, per_s=10))
    allowed = budget.rate_per_s
    budget.slow_down(0.0)
    assert budget.rate_per_s <= allowed / 2
    for n in range(300):
        budget.speed_up(1.0 + n)
    assert budget.rate_per_s == pytest.approx(allowed)


def test_some_refusals_in_a_hundred_do_not_bring_the_rate_down() -> None:
    """A gateway that refuses every twelfth request at random, whatever the rate."""
    budget, now_s = Budget(), 0.0
    for n in range(5000):
        now_s += budget.reserve(now_s) + 0.01
        if n % 12 == 11:
            budget.slow_down(now_s, asked_s=now_s)
        else:
            budget.speed_up(now_s, asked_s=now_s)
    assert budget.rate_per_s >= 4.0


def test_of_two_limits_the_slower_counts() -> None:
    budgets = Budgets()
    one = budgets.of("http://a", "p", Limit(10))
    assert budgets.of("http://a", "p", Limit(1000)) is one
    assert one.rate_per_s == pytest.approx(9.0)
    budgets.of("http://a", "p", Limit(5))
    assert one.rate_per_s == pytest.approx(4.0)
    assert budgets.of("http://a", "q") is not one


def test_a_budget_that_nobody_holds_is_forgotten() -> None:
    budgets = Budgets()
    kept = budgets.of("http://a", None)
    budgets.of("http://b", None)
    assert list(budgets) == [("http://a", None)]
    assert kept.requests == 0


def test_calls_take_nothing_from_the_waits_to_come() -> None:
    budget = Budget(Limit(10, per_s=10))
    for _ in range(500):
        budget.spend(0.0)
    assert budget.pause_s(0.0) <= 1 / budget.rate_per_s + 1e-6


def test_the_smallest_rank_that_is_awake_goes_first() -> None:
    budget, old, young = Budget(Limit(10, per_s=10)), object(), object()
    budget.take(0.0)
    first = budget.turn(0.0, 5.0, old)
    second = budget.turn(0.0, 1.0, young)
    assert first > 0 < second
    at_s = max(first, second)
    assert budget.turn(at_s, 5.0, old) > 0  # there is a token, but somebody goes before
    assert budget.turn(at_s, 1.0, young) == 0


def test_one_that_never_comes_back_is_passed_over() -> None:
    budget, gone, other = Budget(Limit(10, per_s=10)), object(), object()
    budget.take(0.0)
    budget.turn(0.0, 1.0, gone)
    now_s = pause_s = budget.turn(0.0, 5.0, other)
    for _ in range(10_000):
        pause_s = budget.turn(now_s, 5.0, other)
        if not pause_s:
            break
        now_s += pause_s
    assert now_s < 5.0


def test_one_that_leaves_makes_room_at_once() -> None:
    budget, gone, other = Budget(Limit(10, per_s=10)), object(), object()
    budget.take(0.0)
    budget.turn(0.0, 1.0, gone)
    budget.leave(gone)
    assert budget.turn(1.2, 5.0, other) == 0


def test_threads_do_not_take_more_than_there_is() -> None:
    budget = Budget(Limit(100, per_s=1000))
    taken: list[bool] = []

    def take() -> None:
        taken.extend([budget.take(0.0) for _ in range(50)])

    threads = [threading.Thread(target=take) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert taken.count(True) == 10


@pytest.mark.parametrize(
    ("text", "limit"), [("200/300", Limit(200, 300)), ("5", Limit(5, 1)), ("0.5", Limit(0.5)), ("1/60", Limit(1, 60))]
)
def test_a_limit_is_read_from_text(text: str, limit: Limit) -> None:
    assert read_limit(text) == limit


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "5/0", "nan", "inf/1", "1/2/3"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_limit(text)
