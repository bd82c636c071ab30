"""The scenario file: what it means, and that each mistake is named with its table and field."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest

from milepost.errors import InvalidInput
from milepost.job import State
from milepost.rehearsal.scenario import parse_scenario, read_scenario
from milepost.rehearsal.stage import Stage
from milepost.rehearsal.timeline import Timeline


def stage(text: str) -> Stage:
    scenario = parse_scenario(text)
    whole = scenario.rehearsal
    return Stage(scenario, Timeline(virtual=True, start_us=scenario.start_us or 0, skew_s=whole.clock_skew_s))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[jobs]]\nname='a'\n[[jobs]]\nname='b'\nduraton_s=3", "[[jobs]] 2 \"b\": the field 'duraton_s' is not known"),
        ("[[jobs]]\nname='a'\nduration_s='3'", '[[jobs]] 1 "a", field duration_s: Expected'),
        ("[rehearsal]\nwires=['natve']", "[rehearsal], field wires[0]: there is no wire 'natve'"),
        ("[rehearsal]\nstart='yesterday'", "[rehearsal], field start: 'yesterday' is no instant"),
        ("[[faults]]\nstatus=200", "[[faults]] 1, field status: Expected `int` >= 400"),
        ("[[faults]]\ndo='explode'", "[[faults]] 1, field do: Invalid enum value 'explode'"),
        ("[[jobs]]\nid='7'", "[[jobs]] 1, field id: '7' is no UUID"),
        ("[[jobs]]\ncount=3\nfails=4", "[[jobs]] 1, field fails: of 3 not 4 can fail"),
        ("[[jobs]]\nduration_s=[]", "[[jobs]] 1, field duration_s: the list is empty"),
        ("[[jobs]]\nduration_s={distribution='uniform'}", "a uniform distribution needs max_s"),
        (
            "[[jobs]]\nstates=[{state='failed'},{state='running'}]",
            "[[jobs]] 1, field states[0].state: failed is final: nothing comes after it",
        ),
        ("[[jobs]]\nstates=[{state='running'}]\npolls=2", "[[jobs]] 1, field states: states say all"),
        ("[[jobs]]\n[[jobs.sub_jobs]]\nfinds=1", "[[jobs]] 1, field sub_jobs[0]: the field 'finds' is not known"),
        ("[[job]]\nname='a'", "the top level: the field 'job' is not known"),
        ("[[jobs]\n", "no TOML"),
    ],
)
def test_a_mistake_is_named_with_its_file_table_and_field(text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_scenario(text, "cloud.toml")
    assert caught.value.message.startswith("cloud.toml: ")
    assert said in caught.value.message


def test_a_misspelt_field_has_the_right_one_as_hint() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_scenario("[[jobs]]\nduraton_s=3")
    assert caught.value.hint == "is it duration_s?"


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"missing\.toml cannot be read"):
        read_scenario(tmp_path / "missing.toml")


def test_two_jobs_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidInput, match="two jobs 'a'"):
        stage("[[jobs]]\nname='a'\n[[jobs]]\nname='a'")


def test_the_same_seed_gives_the_same_jobs() -> None:
    text = "[rehearsal]\nseed=%d\nstart='2026-03-04T05:06:07Z'\n[[jobs]]\nname='x'\ncount=50\n" + (
        "duration_s={distribution='lognormal', median_s=60}"
    )
    one, same, other = stage(text % 1), stage(text % 1), stage(text % 2)
    assert list(one.actors) == list(same.actors) != list(other.actors)
    drawn = [[actor.duration_s for actor in made.roots] for made in (one, same, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_durations_follow_their_distribution_and_their_list() -> None:
    spread = "[[jobs]]\nname='x'\ncount=2001\nduration_s={distribution='%s', median_s=100, min_s=1, max_s=5000}"
    for name in ("lognormal", "exponential"):
        drawn = [actor.duration_s or 0 for actor in stage(spread % name).roots]
        assert 85 < median(drawn) < 115
        assert all(1 <= one <= 5000 for one in drawn)
    listed = stage("[[jobs]]\nname='x'\ncount=5\nduration_s=[1, 2]").roots
    assert [actor.duration_s for actor in listed] == [1, 2, 1, 2, 1]


def test_ids_sorted_are_the_order_of_creation() -> None:
    later = "\n[[jobs]]\nname='y'\ncount=300\nat_s=1\nduration_s=1"
    made = stage("[[jobs]]\nname='x'\ncount=300\nevery_s=0.0001\nduration_s=1" + later)
    ids = [actor.id for actor in made.roots]
    assert ids == sorted(ids)
    assert len(set(ids)) == 600


def test_so_many_fail_as_the_scenario_says() -> None:
    made = stage("[[jobs]]\nname='x'\ncount=10\nduration_s=1\nfails=3")
    made.time.advance(2)
    states = [job.state for job in made.show(made.visible())]
    assert (states.count(State.FAILED), states.count(State.SUCCEEDED)) == (3, 7)


def test_a_job_is_there_from_its_creation_on() -> None:
    made = stage("[[jobs]]\nname='old'\nat_s=-60\nduration_s=30\n[[jobs]]\nname='new'\nat_s=10\nduration_s=1")
    assert [actor.name for actor in made.visible()] == ["old"]
    made.time.advance(10)
    assert [actor.name for actor in made.visible()] == ["new", "old"]


def test_events_are_in_the_order_in_which_things_happened_without_gaps() -> None:
    made = stage(
        "[[jobs]]\nname='x'\ncount=20\nduration_s=[3, 1, 2]\nqueued_s=0.5\n[[jobs]]\nname='p'\npolls=2\n"
        "[[jobs]]\nname='parent'\n[[jobs.sub_jobs]]\ncount=2\nduration_s=[1, 2]"
    )
    for _ in range(8):
        made.time.advance(0.5)
        made.poll("p")
        made.ledger.catch_up()
    events, _ = made.ledger.read(0, 1000, lambda _: True)
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    by_job: dict[str, list[int]] = {}
    for event in events:
        by_job.setdefault(event.job_id, []).append(event.seq)
    assert all(seqs == list(range(1, len(seqs) + 1)) for seqs in by_job.values())
    assert [event.at_us for event in events] == sorted(event.at_us for event in events)
    assert len(by_job) == 24
    assert all(job.state is State.SUCCEEDED for job in made.show(made.visible()))
