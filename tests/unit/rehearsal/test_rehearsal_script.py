"""What a scripted job shows, over time, polls and commands; no clock but the arguments."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.job import FINAL, Failure, Progress, State
from milepost.rehearsal.script import Command, Do, Found, Look, Script, Step, gather, look

READY, RUNNING, DONE = State.READY, State.RUNNING, State.SUCCEEDED


def script(*steps: tuple[State, dict[str, Any]], **fields: Any) -> Script:
    return Script(steps=tuple(Step(state=state, **given) for state, given in steps), **fields)


TIMED = script((READY, {"for_s": 2}), (RUNNING, {"for_s": 3}), (DONE, {}))
POLLED = script((READY, {"polls": 1}), (RUNNING, {"polls": 2}), (DONE, {}))


@pytest.mark.parametrize(("age_s", "state"), [(0, READY), (1.9, READY), (2, RUNNING), (4.9, RUNNING), (5, DONE), (1e9, DONE)])
def test_a_timed_step_ends_at_its_time(age_s: float, state: State) -> None:
    assert look(TIMED, age_s).state is state


def test_the_instants_are_those_of_the_steps_whenever_one_looks() -> None:
    seen = look(TIMED, 100)
    assert [(move.state, move.at_s) for move in seen.moves] == [(READY, 0), (RUNNING, 2), (DONE, 5)]
    assert (seen.started_s, seen.ended_s, seen.change_s) == (2, 5, None)
    assert look(TIMED, 1).change_s == 2


def test_each_poll_sees_the_step_that_it_ends() -> None:
    polls: list[float] = []
    seen = []
    for _ in range(5):
        seen.append(look(POLLED, 0.0, polls).state)
        polls.append(0.0)  # time stands still
    assert seen == [READY, RUNNING, RUNNING, DONE, DONE]


def test_polls_during_a_timed_step_do_not_count_for_the_next() -> None:
    both = script((READY, {"for_s": 10}), (RUNNING, {"polls": 1}), (DONE, {}))
    assert look(both, 11, [1, 2, 3]).state is RUNNING
    assert look(both, 12, [1, 2, 3, 11]).state is DONE
    assert look(both, 10, [1, 10]).state is DONE  # a poll at the very end of the first step saw the second


def test_a_step_with_time_and_polls_ends_with_what_comes_first() -> None:
    both = script((RUNNING, {"for_s": 10, "polls": 2}), (DONE, {}))
    assert look(both, 5, [1, 2]).ended_s == 2
    assert look(both, 11, [1, 12]).ended_s == 10


def test_a_step_without_an_end_stays() -> None:
    stuck = script((RUNNING, {}))
    seen = look(stuck, 1e9, [0.0] * 1000)
    assert (seen.state, seen.change_s) == (RUNNING, None)


def test_a_command_ends_it_with_what_it_says() -> None:
    failure = Failure("quota", "too many")
    seen = look(TIMED, 9, commands=[Command(do=Do.FAIL, at_s=3, failure=failure)])
    assert (seen.state, seen.ended_s, seen.ending.failure) == (State.FAILED, 3, failure)  # type: ignore[union-attr]
    assert look(TIMED, 2.5, commands=[Command(do=Do.FAIL, at_s=3)]).state is RUNNING  # not yet


def test_a_final_state_obeys_no_command() -> None:
    orders = [Command(do=do, at_s=7) for do in Do if do not in (Do.VANISH, Do.APPEAR)]
    assert look(TIMED, 9, commands=orders).moves == look(TIMED, 9).moves


def test_held_it_is_stuck_until_it_goes_on_with_its_step_anew() -> None:
    hold, go = Command(do=Do.HOLD, at_s=1), Command(do=Do.GO, at_s=50)
    assert look(TIMED, 40, commands=[hold]).state is READY
    seen = look(TIMED, 60, commands=[hold, go])
    assert [(move.state, move.at_s) for move in seen.moves] == [(READY, 0), (RUNNING, 52), (DONE, 55)]


def test_next_goes_on_and_progress_is_shown() -> None:
    stuck = script((READY, {}), (RUNNING, {"done": 1, "total": 9, "unit": "bytes"}), (DONE, {}))
    on = Command(do=Do.NEXT, at_s=1)
    assert look(stuck, 2, commands=[on]).progress == Progress(1, 9, "bytes")
    more = Command(do=Do.PROGRESS, at_s=2, progress=Progress(5, 9))
    assert look(stuck, 3, commands=[on, more]).progress == Progress(5, 9)
    assert look(stuck, 4, commands=[on, more, on]).state is DONE


def test_found_late_and_gone_again() -> None:
    late = script((RUNNING, {"polls": 2}), (DONE, {}), found_after_polls=2, vanish_after_polls=4)
    found, states, polls = [], [], []
    for at_s in range(7):
        seen = look(late, at_s, polls)
        found.append(seen.found)
        states.append(seen.state)
        polls.append(float(at_s))
    assert found == [Found.NOT_YET] * 2 + [Found.HERE] * 4 + [Found.GONE]
    assert states[2:6] == [RUNNING, RUNNING, DONE, DONE]  # polls that did not find it do not move it
    timed = script((RUNNING, {}), found_after_s=2, vanish_after_s=5)
    assert [look(timed, at_s).found for at_s in (1, 2, 5)] == [Found.NOT_YET, Found.HERE, Found.GONE]
    assert look(timed, 1).change_s == 2


def test_vanish_and_appear_have_the_last_word_also_after_the_end() -> None:
    gone, back = Command(do=Do.VANISH, at_s=6), Command(do=Do.APPEAR, at_s=7)
    assert look(TIMED, 6.5, commands=[gone]).found is Found.GONE
    assert look(TIMED, 8, commands=[gone, back]).found is Found.HERE


def test_a_parent_ends_as_its_sub_jobs_end() -> None:
    good, bad = look(TIMED, 9), look(TIMED, 9, commands=[Command(do=Do.FAIL, at_s=4)])
    slow = look(script((RUNNING, {})), 9)
    assert gather([good, good], 0, 9).state is DONE
    assert (gather([good, bad], 0, 9).state, gather([good, bad], 0, 9).ended_s) == (State.FAILED, 5)
    assert gather([good, slow], 0, 9).state is State.WAITING
    assert gather([good], 20, 9).state is READY


# --- whatever the script ------------------------------------------------------------------------------------------------------

OPEN = [State.HELD, State.READY, State.RUNNING]
steps = st.builds(
    lambda states, times, polls, end: (
        tuple(Step(state=state, for_s=for_s, polls=count) for state, for_s, count in zip(states, times, polls, strict=False))
        + (() if end is None else (Step(state=end),))
    ),
    st.lists(st.sampled_from(OPEN), min_size=1, max_size=4),
    st.lists(st.none() | st.integers(0, 9).map(float), min_size=4, max_size=4),
    st.lists(st.none() | st.integers(1, 4), min_size=4, max_size=4),
    st.none() | st.sampled_from(sorted(FINAL)),
)
scripts = st.builds(Script, steps=steps, found_after_s=st.sampled_from([0.0, 2.0]), found_after_polls=st.integers(0, 2))
ages = st.lists(st.integers(0, 40).map(float), max_size=12).map(sorted)


def commands(given: list[tuple[Do, float]], polls: list[float]) -> list[Command]:
    ordered = sorted(given, key=lambda one: one[1])
    return [Command(do=do, at_s=at_s, polls=sum(age < at_s for age in polls)) for do, at_s in ordered]


orders = st.lists(st.tuples(st.sampled_from(sorted(Do)), st.integers(0, 40).map(float)), max_size=4)


@given(scripts, ages, orders, st.integers(0, 45).map(float))
def test_moves_only_grow_and_a_final_state_stays(made: Script, polls: list[float], given_: Any, age_s: float) -> None:
    told = commands(given_, polls)

    def at(now_s: float) -> Look:
        return look(made, now_s, [age for age in polls if age <= now_s], told)

    before, after = at(age_s), at(age_s + 5)
    assert after.moves[: len(before.moves)] == before.moves
    assert all(move.state not in FINAL for move in after.moves[:-1])
    assert [move.at_s for move in after.moves] == sorted(move.at_s for move in after.moves)
    assert after.moves[-1].at_s <= age_s + 5


@given(scripts, ages, st.integers(0, 45).map(float))
def test_nothing_changes_before_the_change_that_was_announced(made: Script, polls: list[float], age_s: float) -> None:
    seen = [age for age in polls if age <= age_s]
    now = look(made, age_s, seen)
    later_s = age_s + 100 if now.change_s is None else (age_s + now.change_s) / 2
    later = look(made, later_s, seen)
    assert (later.moves, later.found) == (now.moves, now.found)
