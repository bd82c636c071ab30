"""Ids and the words of a job."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from milepost.job import FINAL, MOVES, EventType, State, is_final, may_move, new_job_id


def test_ids_are_uuid_version_7_in_canonical_text() -> None:
    for _ in range(100):
        text = new_job_id()
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)


def test_ids_carry_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    at_ns = 4_000_000_000_123_456_789
    monkeypatch.setattr("milepost.job.time.time_ns", lambda: at_ns)
    from milepost.job import _Ids

    assert uuid.UUID(_Ids().new()).int >> 80 == at_ns // 1_000_000


def test_ids_only_grow_also_when_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from milepost.job import _Ids

    ids, times = _Ids(), iter([5_000_000_000, 5_000_000_000, 1_000_000_000, 5_000_000_001, 9_000_000_000] * 2)
    monkeypatch.setattr("milepost.job.time.time_ns", lambda: next(times))
    made = [ids.new() for _ in range(10)]
    assert made == sorted(made)
    assert len(set(made)) == 10


def test_ids_of_several_threads_are_different() -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: new_job_id(), range(4000)))
    assert len(set(made)) == 4000


def test_the_table_of_moves_and_its_questions_agree() -> None:
    for old in State:
        assert is_final(old) == (old in FINAL) == (MOVES[old] == frozenset())
        for new in State:
            assert may_move(old, new) == (new in MOVES[old])
    assert not any(may_move(state, state) for state in State)


def test_every_final_state_has_an_event_of_its_name() -> None:
    assert {str(state) for state in FINAL} <= {str(type_) for type_ in EventType}
