"""What may go wrong around a bulk wait: none of it may end the wait, keep it from its end, or make it ask without need."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest

from milepost.client import waits
from milepost.client.budget import Budget, Limit
from milepost.client.bulk import Bulk
from milepost.client.cadence import Cadence
from milepost.client.identity import Credentials
from milepost.client.known import Known
from milepost.client.roster import Roster
from milepost.client.steps import Collect, Emit, Send
from milepost.errors import Forbidden, NotFound, Unauthenticated, Unreachable, WaitTimeout
from milepost.wire import JobView, Response

from .talk import Talk, lost, problem
from .test_bulk import BEGIN, STREAM, Cloud, Tasks, end, known, names

HTML = Response(200, {"content-type": "text/html"}, b"<html>Please log in to the network.</html>")
WHO = Credentials(auth_url="http://id.example.test", user_id="u", password="p")


def granted(token: str) -> Response:
    body = {"token": {"project": {"id": "p"}, "expires_at": "2030-01-01T00:00:00Z", "catalog": []}}
    return Response(201, {"x-subject-token": token}, msgspec.json.encode(body))


def between(start_s: float, end_s: float, talk: Talk, trouble: Callable, server: Callable) -> Callable:
    """The server, but the trouble between these seconds."""
    return lambda request: trouble(request) if start_s <= talk.now_s - 1000.0 < end_s else server(request)


# --- several waits ------------------------------------------------------------------------------------------------------


def test_a_job_that_came_out_of_one_wait_can_be_waited_for_while_that_wait_goes_on() -> None:
    cloud = Cloud({"job-0": 1.0, "job-1": 1e9})
    talk = cloud.talk
    talk.stream = lambda _: (STREAM, [BEGIN, (1.1, end(8, "job-0"))])
    steps = Bulk(talk.session, known(2), timeout_s=None, cadence=None).run()
    came, reply = False, None
    while True:  # until it has given its first job out and waits for the other one
        step, reply = steps.send(reply), None
        if isinstance(step, Emit):
            came = True
        elif isinstance(step, Send):
            talk._begin(step)
        elif isinstance(step, Collect):
            if came:
                break
            reply = talk._collect(step)
    again = Known("job-0")
    talk.run(waits.wait(talk.session, again, timeout_s=20.0, cadence=None, raise_on_failure=True))
    assert again.done
    steps.close()
    assert len(talk.session.place) == 0


def test_a_problem_of_an_earlier_wait_is_not_taken_for_the_answer_of_this_one() -> None:
    cloud = Cloud(dict.fromkeys(names(3), 5.0))
    served = cloud.talk.server
    cloud.talk.server = lambda request: problem(403, "forbidden")
    jobs = known(3)
    cloud.wait(jobs)
    assert all(isinstance(one.error, Forbidden) for one in jobs)
    cloud.talk.server = served
    cloud.wait(jobs)
    assert all(one.done and one.error is None for one in jobs)


def test_an_entry_that_was_left_behind_asks_for_nothing() -> None:
    roster = Roster(known(1))
    roster.follow(0, 5.0)
    roster.schedule(0, 1.0)
    roster.fetch(0)
    roster.schedule(0, 7.0)
    assert roster.take_due(6.0) is None
    assert roster.take_due(7.0) == (7.0, 0)
    roster.follow(0, 9.0)
    roster.reschedule(lambda index, at_s: at_s + 1)
    assert roster.take_due(9.0) == (9.0, 0)


# --- identity -----------------------------------------------------------------------------------------------------------


def test_a_token_that_is_refused_as_soon_as_it_was_made_ends_the_wait() -> None:
    cloud = Cloud(dict.fromkeys(names(5), 5.0), credentials=WHO)
    cloud.talk.server = lambda request: granted("new") if "/auth/" in request.url else problem(401, "unauthenticated")
    with pytest.raises(Unauthenticated):
        cloud.wait(known(5), timeout_s=60.0)
    assert sum("/auth/" in path for path in cloud.talk.paths) <= 2


def test_a_token_that_expires_in_the_middle_is_renewed_for_the_stream_too() -> None:
    tokens = iter(["one", "two", "three"])

    def answer(request):
        if "/auth/" in request.url:
            return granted(next(tokens))
        if cloud.talk.now_s > 1005.0 and "Bearer one" in str(request.headers):
            return (0.01, problem(401, "unauthenticated"))
        return Cloud.answer(cloud, request)

    def stream(request):
        if cloud.talk.now_s > 1005.0 and "Bearer one" in str(request.headers):
            return problem(401, "unauthenticated"), []
        return STREAM, [BEGIN, (10.0, None)] if cloud.talk.now_s < 1005.0 else [b"id: 7\n\n"]

    cloud = Cloud(dict.fromkeys(names(5), 600.0), credentials=WHO)
    cloud.talk.server, cloud.talk.stream = answer, stream
    with pytest.raises(WaitTimeout):
        cloud.wait(known(5), timeout_s=300.0)
    assert len(cloud.talk.opened) == 3
    assert "Bearer two" in str(cloud.talk.opened[-1][1].headers)
    assert sum("/auth/" in path for path in cloud.talk.paths) == 2


@pytest.mark.parametrize("wire", ["native", "glance"])
def test_while_nobody_gives_a_token_the_wait_goes_on_calmly_and_ends_in_time(wire: str) -> None:
    talk = Talk(lambda _: lost(sent=False), wire=wire, endpoint=None, credentials=WHO)
    with pytest.raises(Unreachable):
        talk.run(Bulk(talk.session, known(20), timeout_s=120.0, cadence=None).run(), steps_max=3000)
    assert talk.now_s - 1000.0 < 125.0
    assert len(talk.asked) < 100


# --- pages that are none ------------------------------------------------------------------------------------------------


def test_a_page_of_something_in_between_does_not_end_the_lists() -> None:
    cloud = Cloud(dict.fromkeys(names(150), 60.0))
    cloud.talk.server = between(10, 20, cloud.talk, lambda _: HTML, cloud.talk.server)
    jobs = known(150)
    cloud.wait(jobs)
    assert all(one.done for one in jobs)
    assert len(cloud.lists) == len(cloud.talk.paths)


def test_nor_does_it_end_the_sweeps() -> None:
    tasks = Tasks(dict.fromkeys(names(150), 60.0))
    tasks.talk.server = between(10, 20, tasks.talk, lambda _: HTML, tasks.talk.server)
    jobs = known(150)
    tasks.wait(jobs)
    assert all(one.done for one in jobs)
    assert sum("sort_key" not in path for path in tasks.talk.paths) == 150


def test_a_server_without_usable_lists_is_asked_for_each_job() -> None:
    tasks = Tasks(dict.fromkeys(names(30), 5.0))
    served = tasks.talk.server
    tasks.talk.server = lambda request: HTML if "sort_key" in request.url else served(request)
    jobs = known(30)
    tasks.wait(jobs)
    assert all(one.done for one in jobs)
    assert sum("sort_key" in path for path in tasks.talk.paths) == 3


def test_a_task_that_goes_while_pages_are_read_does_not_end_the_sweeps() -> None:
    tasks = Tasks(dict.fromkeys(names(500), 100.0), page=100)
    served = tasks.talk.server
    gone = [Response(404, {}, b"marker not found")] * 2
    tasks.talk.server = lambda request: gone.pop() if gone and "start=200" in request.url else served(request)
    jobs = known(500)
    tasks.wait(jobs)
    assert all(one.done for one in jobs)
    assert not gone
    assert sum("sort_key" not in path for path in tasks.talk.paths) <= 510


def test_a_task_that_was_deleted_before_the_first_list_is_not_waited_for_for_ever() -> None:
    tasks = Tasks(dict.fromkeys(names(5), 30.0))
    gone = Known("job-9", JobView(id="job-9", kind="import", state="running", status="processing", project="p"))
    jobs = [*known(5), gone]
    tasks.wait(jobs, timeout_s=100.0)
    assert isinstance(gone.error, NotFound)


def test_changes_of_many_tasks_are_seen_when_the_clock_of_the_answers_is_ahead() -> None:
    tasks = Tasks({id: 200.0 if n < 150 else 1e6 for n, id in enumerate(names(300))}, page=50)
    served = tasks.talk.server

    def ahead(request):
        took_s, answer = served(request)
        return took_s, msgspec.structs.replace(
            answer, headers={"date": "Wed, 04 Mar 2026 09:00:00 GMT"} if answer.headers else {}
        )

    tasks.talk.server = ahead
    steps = Bulk(tasks.talk.session, known(300), timeout_s=400.0, cadence=None).run()
    with pytest.raises(WaitTimeout):
        tasks.talk.run(steps)
    ended = tasks.talk.came()
    assert len(ended) == 150
    assert max(ended.values()) < 340.0


# --- refusals -----------------------------------------------------------------------------------------------------------


def test_refusals_that_have_nothing_to_do_with_the_rate_do_not_make_a_wait_slow() -> None:
    """Every tenth request, whatever the rate: 400 requests in less than 40 s."""
    budget, now_s, asked = Budget(), 0.0, 0
    while asked < 400:
        pause_s = budget.reserve(now_s)
        now_s += pause_s + 0.005
        asked += 1
        if asked % 10 == 9:
            budget.slow_down(now_s, asked_s=now_s)
        else:
            budget.speed_up(now_s, asked_s=now_s)
    assert now_s < 40.0


def test_refusals_that_mean_the_rate_are_kept_to() -> None:
    """A server that allows ten requests in each second: it refuses a minor share of what it is asked, and is not left unused."""
    budget, now_s, second, used, refused, good = Budget(), 0.0, 0, 0, 0, 0
    while now_s < 300.0:
        now_s += budget.reserve(now_s) + 0.002
        if int(now_s) != second:
            second, used = int(now_s), 0
        used += 1
        if used > 10:
            refused += 1
            budget.slow_down(now_s, asked_s=now_s)
        else:
            good += 1
            budget.speed_up(now_s, asked_s=now_s)
    assert good > 0.5 * 10 * 300
    assert refused < 0.25 * good


def test_no_job_falls_behind_because_its_probes_were_refused() -> None:
    """The pause after a 429 is the budget's, for all jobs; no job has one of its own besides."""
    dice, turns = random.Random(5), dict.fromkeys((f"{n:032x}" for n in range(20)), 0)
    cloud = Cloud({}, wire="huawei-ecs", project="p", limit=Limit(50, per_s=10))

    def answer(request):
        id = request.url.rpartition("/")[2]
        if dice.random() < 0.4:
            return (0.01, Response(429, {}, b""))
        turns[id] += 1
        body = {"job_id": id, "job_type": "x", "status": "RUNNING", "entities": {}}
        return (0.01, Response(200, {}, msgspec.json.encode(body)))

    cloud.talk.server = answer
    with pytest.raises(WaitTimeout):
        cloud.wait([Known(id) for id in turns], timeout_s=300.0)
    assert min(turns.values()) >= max(turns.values()) / 2


def test_the_users_own_interval_is_kept_to_after_a_refusal() -> None:
    cloud = Cloud(dict.fromkeys(names(3), 1e9))
    cloud.talk.server = lambda _: (0.01, problem(429, "throttled"))
    with pytest.raises(Unreachable):
        cloud.wait(known(3), timeout_s=61.0, cadence=Cadence(every_s=10.0))
    assert len(cloud.talk.asked) <= 3 * 7


def test_a_stream_and_a_slow_list_hold_up_no_job_that_is_asked_for_by_its_id() -> None:
    """A job of another spelling is in no list: it is asked for by its id while lists are under way."""
    cloud = Cloud({**dict.fromkeys(names(900), 1e9), "other": 3.0})
    served = cloud.talk.server

    def answer(request):
        took_s, answer = served(request)
        return (25.0 if "?" in request.url and "other" not in request.url and cloud.talk.now_s > 1001.0 else took_s), answer

    cloud.talk.server = answer
    bulk = Bulk(cloud.talk.session, [*known(900), Known("other")], timeout_s=40.0, cadence=None)
    bulk._singly.add(900)
    with pytest.raises(WaitTimeout):
        cloud.talk.run(bulk.run())
    assert cloud.talk.came()["other"] < 6.0


def test_events_of_a_job_that_was_given_up_do_no_harm() -> None:
    cloud = Cloud(dict.fromkeys(names(3), 5.0))
    cloud.talk.stream = lambda _: (
        STREAM,
        [BEGIN, (1.0, end(8, "job-9")), (4.2, end(9, "job-0") + end(10, "job-1") + end(11, "job-0"))],
    )
    jobs = cloud.wait([*known(3), Known("job-9")])
    assert sorted(one.id for one in jobs) == [*names(3), "job-9"]
    assert isinstance(jobs[0].error, NotFound)
