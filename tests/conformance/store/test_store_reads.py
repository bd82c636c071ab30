"""Claim order, schedules, deadlines, lists, events, subscriptions, queues: on every store."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from store_house import BROKEN, KEEP_S, OK, STOPPED, House, ids_of, submission, subs

from milepost.errors import InvalidInput, NotFound
from milepost.job import (
    Callback,
    Event,
    EventType,
    Failure,
    Job,
    JobId,
    Progress,
    ProjectId,
    Retried,
    Returned,
    Snoozed,
    State,
    Suspended,
)
from milepost.store import SORTABLE, JobQuery, Queue

# --- claims ----------------------------------------------------------------------------------------------------------------


async def test_claims_go_by_priority_then_run_at_then_id(house: House) -> None:
    plan = [(5, 0), (5, 2), (0, 3), (9, 0), (5, 0), (0, 1), (5, 2)]
    made = [await house.add(priority=priority, run_at_us=house.now_us + late * 1000) for priority, late in plan]
    house.clock.advance(1)
    await house.promote()
    order = sorted(made, key=lambda job: (job.priority, job.run_at_us, job.id))
    assert ids_of(await house.claim(4)) == ids_of(order[:4])
    assert ids_of(await house.claim(10)) == ids_of(order[4:])


async def test_a_claim_takes_from_its_queue_only_and_at_most_limit(house: House) -> None:
    await house.add_many(3, queue="one")
    await house.add_many(3, queue="two")
    assert len(await house.claim(2, queue="one")) == 2
    assert len(await house.claim(5, queue="one")) == 1
    assert await house.claim(5, queue="three") == []


async def test_a_pause_is_the_claimers_business_not_the_stores(house: House) -> None:
    await house.add()
    await house.store.set_queue(Queue("q", paused=True))
    assert len(await house.claim()) == 1


async def test_a_claimed_job_carries_everything_its_function_needs(house: House) -> None:
    fields: dict[str, Any] = {
        "input": b'{"n":"\xc3\xa9"}',
        "labels": {"a": "b"},
        "origin": {"request_id": "r"},
        "callback": Callback("http://127.0.0.1/x"),
        "timeout_s": 1.5,
        "attempts_max": 4,
        "priority": 2,
        "project": "p",
    }
    job = await house.add(**fields)
    claimed = await house.claim_one()
    for name, value in fields.items():
        assert getattr(claimed.job, name) == value
    assert claimed.job == await house.job(job.id)


# --- attempts --------------------------------------------------------------------------------------------------------------


async def test_what_counts_as_an_attempt(house: House) -> None:
    job = await house.add(attempts_max=9)
    at = house.now_us
    for outcome, left in [(Snoozed(at), 0), (Returned(), 0), (Retried(Failure("x", "y"), at), 1), (Snoozed(at), 1)]:
        await house.end(await house.claim_one(), outcome)
        assert (await house.job(job.id)).attempt == left
    await house.end(await house.claim_one(), Suspended([submission(queue="subs")]))
    assert (await house.job(job.id)).attempt == 1
    await house.end(await house.claim_one(queue="subs"))
    assert (await house.claim_one()).job.attempt == 2


async def test_a_retried_job_shows_its_error_until_it_succeeds(house: House) -> None:
    job = await house.add(attempts_max=2)
    await house.end(await house.claim_one(), Retried(Failure("busy", "later"), house.now_us + 5_000_000))
    waiting = await house.job(job.id)
    assert (waiting.state, waiting.error, waiting.run_at_us) == (State.READY, Failure("busy", "later"), house.now_us + 5_000_000)
    assert await house.claim() == []
    house.clock.advance(5)
    assert await house.promote() == ({"q"}, None)
    await house.end(await house.claim_one())
    assert (await house.job(job.id)).error is None


async def test_started_is_the_first_start(house: House) -> None:
    job = await house.add()
    first_us = house.now_us
    await house.end(await house.claim_one(), Returned())
    house.clock.advance(5)
    await house.claim_one()
    assert (await house.job(job.id)).started_us == first_us


# --- schedules and deadlines -----------------------------------------------------------------------------------------------


async def test_a_scheduled_job_is_due_once_promoted(house: House) -> None:
    one = await house.add(run_at_us=house.now_us + 1_000_000)
    two = await house.add(run_at_us=house.now_us + 2_000_000, queue="other")
    assert await house.promote() == (set(), one.run_at_us)
    house.clock.advance(1)
    assert await house.claim() == []
    assert await house.promote() == ({"q"}, two.run_at_us)
    assert ids_of(await house.claim()) == [one.id]
    version = (await house.job(two.id)).version
    house.clock.advance(1)
    assert await house.promote() == ({"other"}, None)
    assert (await house.job(two.id)).version == version, "nothing of it changed that anybody sees"


async def test_promotions_come_in_bites_the_oldest_first(house: House) -> None:
    made = [await house.add(run_at_us=house.now_us + late) for late in (3, 1, 2)]
    house.clock.advance(1)
    await house.promote(limit=2)
    assert sorted(ids_of(await house.claim(9))) == sorted([made[1].id, made[2].id])
    assert (await house.promote(limit=2))[0] == {"q"}


async def test_a_held_job_waits_for_its_release_and_then_for_its_time(house: House) -> None:
    now_, later = await house.add(held=True), await house.add(held=True, run_at_us=house.now_us + 1_000_000)
    assert await house.claim(5) == []
    for job in (now_, later):
        assert (await house.release(job.id)).state is State.READY
    assert ids_of(await house.claim(5)) == [now_.id]
    house.clock.advance(1)
    await house.promote()
    assert ids_of(await house.claim(5)) == [later.id]


async def test_an_overdue_idle_job_fails_and_its_sub_jobs_are_cancelled(house: House) -> None:
    due_us = house.now_us + 1_000_000
    parent = await house.running(deadline_us=due_us)
    made = await house.split(parent, *subs(3))
    busy = await house.claim_one()
    assert await house.store.next_deadline_us() == due_us
    house.clock.advance(1)
    assert await house.fail_overdue() == 1
    failed = await house.job(parent.job.id)
    assert failed.error is not None
    assert (failed.state, failed.error.code, failed.expires_us) == (State.FAILED, "deadline_exceeded", house.expires_us)
    states = [await house.state(job.id) for job in made]
    assert sorted(states) == ["cancelled", "cancelled", "running"]
    assert await house.end(busy, STOPPED)
    assert await house.store.next_deadline_us() is None


async def test_a_parent_and_its_sub_jobs_overdue_at_once(house: House) -> None:
    due_us = house.now_us + 1_000_000
    parent = await house.running(deadline_us=due_us)
    (middle,) = await house.split(parent, submission(deadline_us=due_us))
    below = await house.split(await house.claim_one(), *subs(2, deadline_us=due_us))
    house.clock.advance(1)
    for _ in range(3):
        await house.fail_overdue()
    assert await house.state(parent.job.id) is State.FAILED
    assert {await house.state(job.id) for job in (middle, *below)} <= {State.FAILED, State.CANCELLED}


async def test_overdue_jobs_are_not_claimed(house: House) -> None:
    await house.add(deadline_us=house.now_us + 1)
    house.clock.advance(1)
    assert await house.claim() == []


# --- lists -----------------------------------------------------------------------------------------------------------------


async def some_jobs(house: House) -> list[Job]:
    """Jobs with ties in every column."""
    made: list[Job] = []
    for kind, project, end in itertools.product(("a", "b"), ("p", "r"), ("", "ok", "bad", "held")):
        for _ in range(2):
            job = await house.add(kind=kind, project=project, queue="lane", held=end == "held")
            if end in ("ok", "bad"):
                claimed = await house.claim(1, queue="lane")
                while claimed[0].job.id != job.id:  # an earlier one that stays ready
                    await house.end(claimed[0], Returned())
                    claimed = await house.claim(50, queue="lane")
                    for one in claimed:
                        if one.job.id != job.id:
                            await house.end(one, Returned())
                    claimed = [one for one in claimed if one.job.id == job.id]
                await house.end(claimed[0], OK if end == "ok" else BROKEN)
            made.append(await house.job(job.id))
        house.clock.advance(1)
    return [await house.job(job.id) for job in made]


def sort_key(job: Job, column: str) -> tuple[Any, ...]:
    value = getattr(job, column)
    return (value is not None, value if value is not None else 0, job.id)


@pytest.mark.parametrize("sort", SORTABLE)
@pytest.mark.parametrize("descending", [True, False], ids=["descending", "ascending"])
async def test_pages_follow_one_another_without_gap_or_repeat_on_every_column(house: House, sort: str, descending: bool) -> None:
    jobs = await some_jobs(house)
    expected = [job.id for job in sorted(jobs, key=lambda job: sort_key(job, sort), reverse=descending)]
    for limit in (1, 3, 100):
        seen: list[str] = []
        after: JobId | None = None
        while page := await house.ids(sort=sort, descending=descending, limit=limit, after=after):
            assert len(page) <= limit
            seen += page
            after = JobId(page[-1])
        assert seen == expected


async def test_filters_alone_and_together(house: House) -> None:
    jobs = await some_jobs(house)
    for kinds, states, project, queue in itertools.product(
        (None, ("a",), ("a", "b"), ("zzz",), ()),
        (None, (State.READY,), (State.SUCCEEDED, State.FAILED), (State.HELD,), (State.FAILED,), ()),
        (None, ProjectId("p")),
        (None, "lane", "other"),
    ):
        expected = {
            job.id
            for job in jobs
            if (kinds is None or job.kind in kinds)
            and (states is None or job.state in states)
            and (project is None or job.project == project)
            and (queue is None or job.queue == queue)
        }
        found = await house.ids(kinds=kinds, states=states, project=project, queue=queue)
        assert set(found) == expected, (kinds, states, project, queue)
        assert len(found) == len(expected)


async def test_labels_are_filters_and_all_must_fit(house: House) -> None:
    one = await house.add(labels={"env": "prod", "team": "x"})
    two = await house.add(labels={"env": "prod"})
    await house.add(labels={"env": "test", "team": "x"})
    assert set(await house.ids(labels=(("env", "prod"),))) == {one.id, two.id}
    assert await house.ids(labels=(("env", "prod"), ("team", "x"))) == [one.id]
    assert await house.ids(labels=(("env", "other"),)) == []
    assert (await house.job(one.id)).labels == {"env": "prod", "team": "x"}


async def test_a_list_shows_roots_and_on_request_the_sub_jobs_of_one(house: House) -> None:
    parent = await house.running()
    made = await house.split(parent, *subs(3, labels={"l": "1"}))
    assert await house.ids() == [parent.job.id]
    assert await house.ids(parent_id=parent.job.id, descending=False) == ids_of(made)
    assert await house.ids(ids=(made[1].id, parent.job.id, "nobody"), descending=False) == [parent.job.id, made[1].id]
    assert ids_of(await house.store.list_sub_jobs(parent.job.id)) == ids_of(made)
    counts = await house.store.count_sub_jobs([parent.job.id, JobId("nobody")])
    assert counts[parent.job.id] == (3, {State.READY: 3})
    assert counts[JobId("nobody")] == (0, {})


async def test_lists_carry_bodies_only_on_request(house: House) -> None:
    claimed = await house.running(input=b'{"n":1}')
    await house.end(claimed)
    (bare,) = await house.store.list_jobs(JobQuery())
    (whole,) = await house.store.list_jobs(JobQuery(bodies=True))
    assert (bare.input, bare.result) == (None, None)
    assert whole == await house.job(claimed.job.id)


async def test_expired_jobs_of_a_project_are_left_out_when_asked(house: House) -> None:
    claimed = await house.running(project="p")
    await house.end(claimed)
    open_ = await house.add(project="p")
    house.clock.advance(KEEP_S)
    assert set(await house.ids(project="p")) == {claimed.job.id, open_.id}
    assert await house.ids(project="p", unexpired_in="p", now_us=house.now_us) == [open_.id]
    assert set(await house.ids(unexpired_in="other", now_us=house.now_us)) == {claimed.job.id, open_.id}


async def test_wrong_questions_are_refused(house: House) -> None:
    with pytest.raises(InvalidInput):
        await house.ids(sort="input")
    with pytest.raises(NotFound):
        await house.ids(after="nobody")


# --- events ----------------------------------------------------------------------------------------------------------------


async def test_events_by_job_by_tree_and_by_project(house: House) -> None:
    parent = await house.running(project="p")
    (sub,) = await house.split(parent, submission())
    other = await house.add(project="other")
    everything = await house.store.list_events()
    assert [event.id for event in everything] == sorted(event.id for event in everything)
    tree = await house.store.list_events(root_id=parent.job.id)
    assert {event.job_id for event in tree} == {parent.job.id, sub.id}
    assert {event.root_id for event in tree} == {parent.job.id}
    assert tree == [event for event in everything if event.root_id == parent.job.id]
    assert [event.job_id for event in await house.store.list_events(project=ProjectId("other"))] == [other.id]
    assert (await house.store.list_events(job_id=sub.id))[0].root_id == parent.job.id


async def test_events_continue_after_an_id(house: House) -> None:
    claimed = await house.running()
    for step in range(10):
        await house.store.report_progress(claimed.claim, Progress(step), now_us=house.now_us)
    everything = await house.store.list_events()
    for where in ({}, {"job_id": claimed.job.id}, {"root_id": claimed.job.id}, {"project": ProjectId("default")}):
        seen: list[Event] = []
        while page := await house.store.list_events(after_id=seen[-1].id if seen else 0, limit=4, **where):
            seen += page
        assert seen == everything
    assert await house.store.last_event_id() == everything[-1].id


async def test_event_ids_are_never_used_twice(durable: House) -> None:
    claimed = await durable.running()
    await durable.end(claimed)
    last = await durable.store.last_event_id()
    durable.clock.advance(KEEP_S)
    await durable.prune()
    assert await durable.store.list_events() == []
    assert await durable.store.last_event_id() == last
    await durable.reopen()
    await durable.add()
    assert [event.id for event in await durable.store.list_events()] == [last + 1]


async def test_a_subscriber_sees_exactly_the_committed_events_in_order(house: House) -> None:
    told: list[Event] = []
    end = house.store.subscribe(told.extend)
    claimed = await house.running()
    await house.store.report_progress(claimed.claim, Progress(1), now_us=house.now_us)
    (sub,) = await house.split(claimed, submission())
    with pytest.raises(NotFound):
        await house.cancel("nobody")
    assert not await house.end(claimed)
    await house.cancel(claimed.job.id)
    for outcome in (BROKEN, OK, Retried(Failure("again", "once more"), house.now_us)):
        await house.end(await house.running(), outcome)
    await house.end(await house.claim_one(queue="lane"))
    assert told == await house.store.list_events()
    end()
    ends: list[Event] = []
    end_ends = house.store.subscribe(ends.extend, types=frozenset({EventType.FAILED, EventType.CANCELLED}))
    for outcome in (OK, BROKEN, STOPPED):
        await house.end(await house.running(), outcome)
    assert [event.type for event in ends] == [EventType.FAILED, EventType.CANCELLED]
    end_ends()
    await house.add()
    assert told != await house.store.list_events()
    assert sub.id in {event.job_id for event in told}


async def test_on_ready_tells_of_jobs_that_became_ready_by_the_way(house: House) -> None:
    told: list[str] = []
    house.store.on_ready(told.append)
    parent = await house.running(queue="parents")
    await house.split(parent, submission())
    told.clear()
    await house.end(await house.claim_one())
    assert told == ["parents"]
    await house.claim_one(queue="parents")
    house.clock.advance(31)
    await house.rescue()
    assert told == ["parents", "parents"]


# --- queues ----------------------------------------------------------------------------------------------------------------


async def test_queues_are_kept_and_changed(house: House) -> None:
    assert await house.store.list_queues() == []
    await house.store.set_queue(Queue("b", limit=3))
    await house.store.set_queue(Queue("a", paused=True))
    await house.store.set_queue(Queue("b", limit=None, paused=True))
    assert await house.store.list_queues() == [Queue("a", None, True), Queue("b", None, True)]


async def test_depths_count_each_state_of_each_queue(house: House) -> None:
    await house.store.set_queue(Queue("empty", limit=2))
    oldest = await house.add()
    house.clock.advance(1)
    await house.add_many(2)
    await house.add(held=True)
    await house.add(run_at_us=house.now_us + 10**7)
    parent = await house.running(queue="lane")
    await house.split(parent, submission(queue="lane"))
    await house.claim_one(queue="lane")
    await house.end(await house.running(queue="ended"))
    depths = {depth.name: depth for depth in await house.store.queue_depths()}
    assert list(depths) == ["empty", "lane", "q"]
    q, lane = depths["q"], depths["lane"]
    assert (q.ready, q.held, q.scheduled, q.running, q.waiting, q.oldest_ready_us) == (3, 1, 1, 0, 0, oldest.run_at_us)
    assert (lane.ready, lane.running, lane.waiting, lane.oldest_ready_us) == (0, 1, 1, None)
    assert (depths["empty"].limit, depths["empty"].ready) == (2, 0)


async def test_due_jobs_are_counted_by_project_and_queue(house: House) -> None:
    for queue in ("q", "q.a", "q.a", "q.b.c", "qa", "q-a", "q/a", "p"):
        await house.add(queue=queue)
    await house.add(queue="q", project="other")
    await house.add(queue="q", held=True)
    await house.add(queue="q", run_at_us=house.now_us + 10**7)
    await house.running(queue="q.r")
    own = (await house.add(queue="z")).project
    assert await house.store.count_due("q", project=own) == {"q": 1, "q.a": 2, "q.b.c": 1}
    assert await house.store.count_due("q", project=ProjectId("other")) == {"q": 1}
    assert await house.store.count_due("none", project=own) == {}
