"""Bulk waits against a server in virtual time: streams, lists, sweeps, one probe for several waits, and troubles."""

from __future__ import annotations

import re
import sys
import tracemalloc
from collections import deque
from urllib.parse import parse_qsl

import msgspec
import pytest

from milepost.client import waits
from milepost.client.budget import Limit
from milepost.client.bulk import Bulk
from milepost.client.cadence import Cadence
from milepost.client.identity import Credentials
from milepost.client.known import Known
from milepost.client.places import Place
from milepost.client.steps import Inbox
from milepost.errors import NotFound, Unreachable, WaitTimeout
from milepost.wire import Response

from .talk import Talk, job, lost, native_body, problem, task_body

STREAM = Response(200, {"content-type": "text/event-stream"})
BEGIN = b"retry: 2000\nid: 7\n\n"


def names(count: int) -> list[str]:
    return [f"job-{n}" for n in range(count)]


def known(count: int) -> list[Known]:
    return [Known(id) for id in names(count)]


def end(event: int, id: str, state: str = "succeeded") -> bytes:
    body = {"id": event, "job_id": id, "root_id": id, "seq": 2, "type": "finished", "state": state, "at": "2026-03-04T05:06:07Z"}
    return b"id: %d\ndata: %s\n\n" % (event, msgspec.json.encode(body))


class Cloud:
    """Milepost's API over jobs that end at given seconds."""

    def __init__(self, ends: dict[str, float], **options) -> None:
        self.ends = ends
        self.talk = Talk(self.answer, **options)

    def state(self, id: str) -> str:
        return "succeeded" if self.talk.now_s - 1000.0 >= self.ends[id] else "running"

    def answer(self, request):
        path = request.url.rpartition("/jobs")[2]
        if path.startswith("?"):
            asked = [value for name, value in parse_qsl(path[1:]) if name == "id"]
            jobs = [native_body(self.state(id), id) for id in asked if id in self.ends]
            return (0.02, Response(200, {}, b'{"jobs":[' + b",".join(jobs) + b"]}"))
        id = path[1:]
        return (0.01, job(self.state(id), id) if id in self.ends else problem(404, "not_found"))

    def wait(self, jobs: list[Known], *, timeout_s: float | None = None, cadence: Cadence | None = None) -> list[Known]:
        self.talk.run(Bulk(self.talk.session, jobs, timeout_s=timeout_s, cadence=cadence).run())
        return self.talk.emitted

    @property
    def lists(self) -> list[str]:
        return [path for path in self.talk.paths if path.startswith("/jobs?")]


# --- streams ------------------------------------------------------------------------------------------------------------


def test_while_a_stream_is_open_each_job_is_looked_at_once_and_fetched_once() -> None:
    ends = {id: 60.0 + n for n, id in enumerate(names(250))}
    cloud = Cloud(ends)
    cloud.talk.stream = lambda request: (STREAM, [BEGIN, *((1.0 if n else 60.5, end(8 + n, id)) for n, id in enumerate(ends))])
    jobs = known(250)
    assert len(cloud.wait(jobs)) == 250
    slim = [path for path in cloud.lists if "full" not in path]
    assert len(slim) == 3  # 250 jobs, at most 100 a list
    assert all(one.done and one.stats.probes <= 3 for one in jobs)
    assert len(cloud.talk.opened) == 1


def test_nothing_is_asked_before_the_stream_is_open_so_no_end_is_missed() -> None:
    """A job that ends between the look and the opening would be heard of never: the look is after the opening."""
    cloud = Cloud(dict.fromkeys(names(3), 1e9))
    cloud.talk.stream = lambda request: (STREAM, [(1.0, BEGIN)])
    with pytest.raises(WaitTimeout):
        cloud.wait(known(3), timeout_s=30.0)
    assert min(at for at, _ in cloud.talk.asked) >= 1001.0
    assert len(cloud.talk.asked) == 1


def test_a_stream_that_does_not_open_holds_nothing_up() -> None:
    cloud = Cloud(dict.fromkeys(names(3), 5.0))
    cloud.talk.stream = lambda request: (lost(), [])
    cloud.wait(known(3))
    assert cloud.talk.now_s - 1000.0 < 6.5
    cloud = Cloud(dict.fromkeys(names(3), 5.0))
    cloud.talk.stream = lambda request: (STREAM, [(1e6, BEGIN)])  # silent
    cloud.wait(known(3))
    assert cloud.talk.now_s - 1000.0 < 8.5


def test_a_broken_stream_goes_on_behind_its_last_event_and_lists_fill_the_gap() -> None:
    opened = []

    def stream(request):
        opened.append((cloud.talk.now_s - 1000.0, request.headers.get("Last-Event-ID")))
        if len(opened) == 1:
            return STREAM, [BEGIN, (10.0, end(9, "job-0")), lost()]
        if cloud.talk.now_s - 1000.0 < 60.0:
            return lost(), []
        return STREAM, [b"id: 9\n\n", (20.0, end(12, "job-2"))]

    cloud = Cloud({"job-0": 10.0, "job-1": 30.0, "job-2": 500.0})
    cloud.talk.stream = stream
    cloud.ends["job-2"] = 80.0
    cloud.wait(known(3))
    came = cloud.talk.came()
    assert [last for _, last in opened[1:]] == ["9"] * (len(opened) - 1)
    assert came["job-1"] <= 30.0 * 1.1 + 1.0  # found by asking, while there was no stream
    assert came["job-2"] <= 80.0 + 15.0


def test_a_server_without_a_project_stream_is_asked_for_it_once() -> None:
    cloud = Cloud(dict.fromkeys(names(5), 600.0))
    cloud.wait(known(5))
    assert len(cloud.talk.opened) == 1


def test_an_event_that_cannot_be_read_is_passed_over() -> None:
    cloud = Cloud(dict.fromkeys(names(2), 20.0))
    parts = [BEGIN, b"id: 8\ndata: {\n\n", b'id: 9\ndata: {"state": 7}\n\n', (20.0, end(10, "job-0")), end(11, "job-1")]
    cloud.talk.stream = lambda request: (STREAM, parts)
    cloud.wait(known(2))
    assert len(cloud.talk.opened) == 1
    assert cloud.talk.now_s - 1000.0 < 21.0


def test_with_the_users_own_interval_there_is_no_stream() -> None:
    cloud = Cloud(dict.fromkeys(names(2), 20.0))
    cloud.wait(known(2), cadence=Cadence(every_s=5.0))
    assert cloud.talk.opened == []


def test_a_job_that_ends_while_it_is_asked_about_is_not_left_to_the_stream() -> None:
    """The list's answer was made before the end, and comes after the event."""
    cloud = Cloud({"job-0": 1e9, "job-1": 1e9})
    answered = cloud.talk.server

    def slow(request):
        if "full" in request.url:
            cloud.ends = dict.fromkeys(cloud.ends, 0.0)
        _, answer = answered(request)
        return (0.5, answer)

    cloud.talk.server = slow
    cloud.talk.stream = lambda request: (STREAM, [BEGIN, (0.1, end(8, "job-0")), end(9, "job-1")])
    cloud.wait(known(2))
    assert cloud.talk.now_s - 1000.0 < 5.0


# --- lists --------------------------------------------------------------------------------------------------------------


class Tasks:
    """Glance: tasks by id, and pages by the last change."""

    def __init__(self, ends: dict[str, float], *, listed: bool = True, page: int = 200) -> None:
        self.ends, self.listed, self.page = ends, listed, page
        self.talk = Talk(self.answer, wire="glance")

    def task(self, id: str) -> bytes:
        now_s = self.talk.now_s - 1000.0
        over = now_s >= self.ends[id]
        at_s = int(self.ends[id] if over else 0)
        at = f"2026-03-04T{5 + at_s // 3600:02d}:{at_s // 60 % 60:02d}:{at_s % 60:02d}Z"
        return task_body("success" if over else "processing", id, updated_at=at, created_at="2026-03-04T05:00:00Z")

    def answer(self, request):
        path, _, query = request.url.partition("?")
        if not path.endswith("/tasks"):
            id = path.rpartition("/")[2]
            return (0.01, Response(200, {}, self.task(id)) if id in self.ends else Response(404, {}, b"no such task"))
        if not self.listed:
            return (0.01, Response(403, {}, b"You are not authorized to complete get_tasks action"))
        asked = dict(parse_qsl(query))
        assert (asked["sort_key"], asked["sort_dir"]) == ("updated_at", "desc")
        tasks = sorted(
            (self.task(id) for id in self.ends), key=lambda body: msgspec.json.decode(body)["updated_at"], reverse=True
        )
        start = int(asked.get("start", 0))
        body = {"tasks": [msgspec.Raw(one) for one in tasks[start : start + self.page]]}
        if start + self.page < len(tasks):
            body["next"] = f"/v2/tasks?sort_key=updated_at&sort_dir=desc&start={start + self.page}"
        at_s = int(self.talk.now_s - 1000.0)
        headers = {"date": f"Wed, 04 Mar 2026 {5 + at_s // 3600:02d}:{at_s // 60 % 60:02d}:{at_s % 60:02d} GMT"}
        return (0.05, Response(200, headers, msgspec.json.encode(body)))

    def wait(self, jobs: list[Known], **options) -> None:
        self.talk.run(Bulk(self.talk.session, jobs, timeout_s=options.get("timeout_s"), cadence=None).run())


def test_one_page_of_what_changed_answers_for_all_tasks() -> None:
    tasks = Tasks({id: 300.0 + n for n, id in enumerate(names(150))})
    jobs = known(150)
    tasks.wait(jobs)
    pages = [path for path in tasks.talk.paths if "sort_key" in path]
    assert len(tasks.talk.paths) - len(pages) == 150  # each by its id once, for its result
    assert len(pages) < 100
    assert all(one.done for one in jobs)
    assert tasks.talk.now_s - 1000.0 < 449.0 * 1.05 + 1


def test_tasks_of_many_pages_are_found_and_later_sweeps_read_only_the_top() -> None:
    tasks = Tasks({id: 600.0 + n / 10 for n, id in enumerate(names(700))})
    tasks.wait(known(700))
    pages = [path for path in tasks.talk.paths if "sort_key" in path]
    assert sum("start=" in path for path in pages) < 40  # in the first seconds, while what is on them has just changed
    assert len(tasks.talk.paths) - len(pages) == 700


def test_who_may_not_list_tasks_asks_for_each() -> None:
    tasks = Tasks(dict.fromkeys(names(20), 10.0), listed=False)
    jobs = known(20)
    tasks.wait(jobs)
    assert sum("sort_key" in path for path in tasks.talk.paths) == 1
    assert all(one.done for one in jobs)


def test_a_task_that_no_list_shows_is_asked_for_by_its_id() -> None:
    tasks = Tasks(dict.fromkeys(names(5), 10.0))
    gone = Known("job-9")
    tasks.wait([*known(5), gone])
    assert isinstance(gone.error, NotFound)


def test_a_list_that_fails_for_a_while_is_asked_for_again_and_not_each_job() -> None:
    tasks = Tasks(dict.fromkeys(names(30), 100.0))
    answered = tasks.talk.server
    tasks.talk.server = lambda request: lost() if 5 < tasks.talk.now_s - 1000.0 < 40 else answered(request)
    jobs = known(30)
    tasks.wait(jobs)
    assert all(one.done for one in jobs)
    assert len([path for path in tasks.talk.paths if "sort_key" not in path]) == 30


def test_without_lists_of_ids_each_job_is_asked_for() -> None:
    cloud = Cloud(dict.fromkeys(names(30), 5.0))
    answered = cloud.talk.server
    cloud.talk.server = lambda request: problem(400, "invalid_input") if "?" in request.url else answered(request)
    jobs = known(30)
    cloud.wait(jobs)
    assert all(one.done for one in jobs)
    assert len(cloud.lists) == 1


def test_the_same_job_given_twice_is_asked_about_once_and_comes_out_twice() -> None:
    cloud = Cloud(dict.fromkeys(names(2), 3.0))
    jobs = [*known(2), Known("job-0")]
    assert len(cloud.wait(jobs)) == 3
    assert jobs[2].done
    assert all(path.count("job-0") <= 1 for path in cloud.talk.paths)


def test_of_an_unfinished_job_no_raw_answer_is_kept() -> None:
    cloud = Cloud(dict.fromkeys(names(10), 1e9))
    jobs = known(10)
    with pytest.raises(WaitTimeout):
        cloud.wait(jobs, timeout_s=5.0)
    assert all(one.view is not None and one.view.raw is None for one in jobs)


def test_a_waiting_job_takes_less_than_two_kilobytes() -> None:
    count = 2000
    cloud = Cloud(dict.fromkeys(names(count), 1e9))
    cloud.talk.asked = deque(maxlen=0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        steps = Bulk(cloud.talk.session, known(count), timeout_s=0.5, cadence=None)
        with pytest.raises(WaitTimeout) as caught:
            cloud.talk.run(steps.run())
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(caught.value.fields["pending"]) == count
    assert held / count < 2048, sys.getsizeof(steps)


# --- budget, troubles ---------------------------------------------------------------------------------------------------


def test_a_limit_is_kept_to_by_a_bulk_wait() -> None:
    cloud = Cloud(dict.fromkeys(names(40), 5.0), wire="huawei-ecs", limit=Limit(20, per_s=10), project="p")
    ids = [f"{n:032x}" for n in range(40)]

    def answer(request):
        over = cloud.talk.now_s > 1005.0
        body = {"job_id": request.url.rpartition("/")[2], "job_type": "x", "status": "SUCCESS" if over else "RUNNING"}
        return (0.01, Response(200, {}, msgspec.json.encode({**body, "entities": {}})))

    cloud.talk.server = answer
    jobs = [Known(id) for id in ids]
    cloud.wait(jobs)
    asked_s = [at for at, _ in cloud.talk.asked]
    assert all(one.done for one in jobs)
    assert max(sum(at <= other < at + 10 for other in asked_s) for at in asked_s) <= 20


def test_no_job_is_passed_over_when_the_budget_is_too_small() -> None:
    cloud = Cloud({}, wire="huawei-ecs", limit=Limit(10, per_s=10), project="p")
    turns: dict[str, int] = {}

    def answer(request):
        id = request.url.rpartition("/")[2]
        turns[id] = turns.get(id, 0) + 1
        return (
            0.01,
            Response(200, {}, msgspec.json.encode({"job_id": id, "job_type": "x", "status": "RUNNING", "entities": {}})),
        )

    cloud.talk.server = answer
    with pytest.raises(WaitTimeout):
        cloud.wait([Known(f"{n:032x}") for n in range(50)], timeout_s=600.0)
    assert len(turns) == 50
    assert max(turns.values()) <= min(turns.values()) + 3


def test_429_on_everything_for_minutes_fails_no_wait() -> None:
    cloud = Cloud(dict.fromkeys(names(10), 700.0))
    answered = cloud.talk.server
    refused = problem(429, "throttled")
    cloud.talk.server = lambda request: refused if 10 < cloud.talk.now_s - 1000.0 < 600 else answered(request)
    jobs = known(10)
    cloud.wait(jobs)
    assert all(one.done for one in jobs)
    assert sum(1 for at, _ in cloud.talk.asked if 1010 < at < 1600) < 40


def test_a_server_that_is_away_is_asked_by_one_request_at_a_time_whatever_the_number_of_jobs() -> None:
    cloud = Cloud(dict.fromkeys(names(3000), 300.0))
    answered = cloud.talk.server
    cloud.talk.server = lambda request: lost() if cloud.talk.now_s - 1000.0 < 200 else answered(request)
    jobs = known(3000)
    cloud.wait(jobs, timeout_s=900.0)
    assert all(one.done for one in jobs)
    assert sum(1 for at, _ in cloud.talk.asked if at < 1200) < 60


def test_an_open_ended_wait_gives_up_on_a_server_that_is_gone() -> None:
    cloud = Cloud(dict.fromkeys(names(3), 1e9))
    answered = cloud.talk.server
    cloud.talk.server = lambda request: lost() if cloud.talk.now_s > 1010 else answered(request)
    with pytest.raises(Unreachable) as caught:
        cloud.wait(known(3))
    assert 300 < cloud.talk.now_s - 1010.0 < 360
    assert caught.value.fields["pending"] == names(3)


def test_an_expired_token_is_renewed_once_for_all() -> None:
    tokens = iter(["one", "two", "three"])
    asked = []

    def answer(request):
        if "/auth/tokens" in request.url:
            asked.append(request)
            body = {"token": {"project": {"id": "p"}, "expires_at": "2030-01-01T00:00:00Z", "catalog": []}}
            return (0.1, Response(201, {"x-subject-token": next(tokens)}, msgspec.json.encode(body)))
        if cloud.talk.now_s > 1005.0 and "Bearer one" in str(request.headers):
            return (0.01, problem(401, "unauthenticated"))
        return Cloud.answer(cloud, request)

    cloud = Cloud(
        dict.fromkeys(names(20), 10.0), credentials=Credentials(auth_url="http://id.example.test", user_id="u", password="p")
    )
    cloud.talk.server = answer
    jobs = known(20)
    cloud.wait(jobs)
    assert all(one.done for one in jobs)
    assert len(asked) == 2


def test_the_command_that_goes_on_names_a_file_when_there_are_very_many() -> None:
    cloud = Cloud(dict.fromkeys(names(50), 1e9))
    with pytest.raises(WaitTimeout) as caught:
        cloud.wait(known(50), timeout_s=2.0)
    assert caught.value.hint == "milepost wait --from FILE --url http://jobs.example.test"
    assert re.match(r"50 jobs not final after 2\.\d s", caught.value.message)


# --- several waits for one job ------------------------------------------------------------------------------------------


def test_a_place_has_one_leader_for_a_job_and_the_next_follows_when_it_leaves() -> None:
    place, one, two, three = Place(), Inbox(), Inbox(), Inbox()
    assert place.join("a", one, 0.0)
    assert not place.join("a", two, 0.0)
    assert not place.join("a", three, 0.0)
    place.leave(["a"], one)
    assert len(two.take()) == 1
    assert not three
    assert place.join("a", two, 0.0)
    place.leave(["a"], two)
    place.leave(["a"], three)
    assert len(place) == 0


def test_a_leader_that_is_held_up_loses_the_job() -> None:
    place, slow, other = Place(), Inbox(), Inbox()
    place.join("a", slow, 0.0)
    slow.quiet_until_s = 10.0
    assert not place.join("a", other, 11.0)
    assert place.join("a", other, 13.0)
    assert not place.join("a", slow, 13.0)


def test_a_wait_that_ends_badly_leaves_its_jobs() -> None:
    cloud = Cloud(dict.fromkeys(names(5), 1e9))
    with pytest.raises(WaitTimeout):
        cloud.wait(known(5), timeout_s=2.0)
    assert len(cloud.talk.session.place) == 0
    steps = Bulk(cloud.talk.session, known(5), timeout_s=None, cadence=None).run()
    next(steps)
    assert len(cloud.talk.session.place) == 5
    steps.close()
    assert len(cloud.talk.session.place) == 0


def test_a_wait_for_a_job_that_another_wait_asks_about_asks_nothing() -> None:
    cloud = Cloud({"job-0": 30.0})
    leader = Inbox()
    place = cloud.talk.session.place
    assert place.join("job-0", leader, 1000.0)
    steps = waits.wait(cloud.talk.session, one := Known("job-0"), timeout_s=20.0, cadence=None, raise_on_failure=True)
    with pytest.raises(Unreachable):
        cloud.talk.run(steps)
    assert cloud.talk.asked == []
    assert one.view is None
