"""What holds for every limit, load and order of asking."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.client.budget import Budget, Limit


@given(st.floats(1, 500), st.floats(0.5, 600), st.lists(st.floats(0, 50), min_size=1, max_size=300))
def test_no_window_ever_has_more_requests_than_its_limit(requests: float, per_s: float, gaps_s: list[float]) -> None:
    budget, now_s, sent = Budget(Limit(requests, per_s)), 0.0, []
    for gap_s in gaps_s:
        now_s += gap_s / 50
        now_s += budget.reserve(now_s)
        sent.append(now_s)
    for first, at_s in enumerate(sent):
        assert sum(at_s <= one < at_s + per_s * (1 - 1e-9) for one in sent[first:]) <= max(requests, 2) + 1e-6


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 30), st.floats(0.02, 0.5))
def test_the_young_go_first_and_nobody_starves(seed: int, waits: int, share: float) -> None:
    """Waits of very different age, more than the budget can serve at once: each gets its turns, the young ones sooner."""
    dice = random.Random(seed)
    budget = Budget(Limit(100, per_s=100))
    ages_s = [dice.choice([1.0, 60.0, 3600.0]) for _ in range(waits)]
    due_s = [dice.random() for _ in range(waits)]
    wakes_s = list(due_s)
    names = [object() for _ in range(waits)]
    turns = [0] * waits
    late_s = [0.0] * waits
    now_s = 0.0
    while now_s < 600.0:
        who = min(range(waits), key=wakes_s.__getitem__)
        now_s = max(now_s, wakes_s[who])
        pause_s = budget.turn(now_s, due_s[who] + share * ages_s[who], names[who])
        if pause_s:
            wakes_s[who] = now_s + pause_s
            continue
        turns[who] += 1
        late_s[who] = max(late_s[who], now_s - due_s[who])
        due_s[who] = wakes_s[who] = now_s + 5.0 + ages_s[who] * 0.01
    # Whoever came with a later rank than (its due + its handicap) goes behind: that bounds how long anybody is passed over.
    bound_s = share * 3600.0 + 5.0 + 3 * waits / budget.rate_per_s
    assert all(turn > 0 for who, turn in enumerate(turns) if share * ages_s[who] + bound_s < 600.0)
    assert all(late <= bound_s for late in late_s)
