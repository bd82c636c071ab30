from __future__ import annotations

import itertools
import logging

import msgspec
import pytest

from milepost.client import waits
from milepost.client.cadence import Cadence
from milepost.client.known import Known
from milepost.errors import (
    Expired,
    Forbidden,
    JobCancelled,
    JobFailed,
    NotFound,
    PartialFailure,
    ProtocolError,
    Unauthenticated,
    Unreachable,
    WaitTimeout,
)
from milepost.job import State
from milepost.wire import Response

from .talk import ID, Talk, job, lost, native_body, problem, script, task


def wait(talk: Talk, known: Known | None = None, **options):
    options = {"timeout_s": None, "cadence": None, "raise_on_failure": True, **options}
    return talk.run(waits.wait(talk.session, known or Known(ID), **options))


def test_a_native_wait_is_one_long_poll() -> None:
    talk = Talk(script((3.0, job("succeeded", result={"n": 1}))))
    assert wait(talk).result == {"n": 1}
    ((_, request),) = talk.asked
    assert request.headers["Prefer"] == "wait=20"
    assert talk.slept == []


def test_long_polls_follow_each_other_without_a_pause() -> None:
    talk = Talk(script((20.0, job()), (20.0, job()), (5.0, job("succeeded"))))
    wait(talk)
    assert [at for at, _ in talk.asked] == [1000.0, 1020.0, 1040.0]


def test_a_server_that_ignores_the_preference_is_not_asked_without_pause() -> None:
    talk = Talk(script(*[job()] * 9, job("succeeded")))
    wait(talk)
    assert len(talk.slept) == 9
    assert min(talk.slept) >= 0.2


def test_the_users_interval_wins_over_long_polls_and_retry_after() -> None:
    talk = Talk(script(job(headers={"retry-after": "60"}), job(headers={"retry-after": "60"}), job("succeeded")))
    wait(talk, cadence=Cadence(every_s=3.0))
    assert talk.slept == [3.0, 3.0]
    assert all("Prefer" not in request.headers for _, request in talk.asked)


def test_glance_is_polled_at_growing_intervals() -> None:
    talk = Talk(script(*[task()] * 60, task("success", result={"image_id": "i"})), wire="glance")
    assert wait(talk).result == {"image_id": "i"}
    assert talk.slept[0] == pytest.approx(0.25)
    assert talk.slept == sorted(talk.slept)
    assert talk.slept[-1] > 1.0


@pytest.mark.parametrize(
    "trouble",
    [
        lost(),
        problem(500, "error"),
        problem(502, "error"),
        problem(503, "unavailable"),
        problem(429, "throttled"),
        Response(504, {}, b"<html>"),
    ],
)
def test_what_may_pass_is_survived_and_counted(trouble) -> None:
    talk, known = Talk(script(job(), trouble, trouble, trouble, job("succeeded"))), Known(ID)
    wait(talk, known)
    assert known.stats.failures == 3
    assert known.stats.probes == 5
    assert known.stats.last_error


def test_a_429_is_answered_with_the_pause_it_asks_for() -> None:
    talk, known = Talk(script(problem(429, "throttled", headers={"retry-after": "7"}), job("succeeded"))), Known(ID)
    wait(talk, known)
    assert talk.slept == [pytest.approx(7.0)]
    assert known.stats.throttled == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(401, "unauthenticated"), Unauthenticated),
        (problem(403, "forbidden"), Forbidden),
        (problem(404, "not_found"), NotFound),
        (problem(410, "expired", state="succeeded"), Expired),
    ],
)
def test_permanent_answers_end_the_wait_with_their_type(answer, error) -> None:
    talk = Talk(script(job(), answer))
    with pytest.raises(error) as caught:
        wait(talk)
    assert caught.value.job_id == ID
    assert caught.value.request_id == "req-1"
    if error is Expired:
        assert caught.value.state == "succeeded"


def test_a_404_right_after_a_submit_is_survived_for_the_grace_of_the_wire() -> None:
    missing = Response(404, {}, b"404 Not Found\n\nno such task")
    talk = Talk(script(missing, missing, task("success")), wire="glance")
    wait(talk, Known(ID, submitted_s=talk.now_s))
    talk = Talk(script(missing), wire="glance")
    with pytest.raises(NotFound):
        wait(talk, Known(ID, submitted_s=talk.now_s))
    assert 10.0 <= talk.now_s - 1000.0 < 25.0
    with pytest.raises(NotFound):
        wait(Talk(script(missing), wire="glance"))


@pytest.mark.parametrize("took_s", [0.0, 20.0])
def test_the_end_of_the_wait_is_a_wait_timeout_and_never_a_failed_job(took_s: float) -> None:
    talk = Talk(lambda request: (min(took_s, float(request.headers.get("Prefer", "wait=0")[5:])), job()))
    with pytest.raises(WaitTimeout) as caught:
        wait(talk, timeout_s=50.0)
    error = caught.value
    assert not isinstance(error, JobFailed)
    assert (error.job_id, error.state) == (ID, "running")
    assert error.elapsed_s == pytest.approx(50.0, abs=0.5)
    assert error.hint == f"milepost wait {ID} --url http://jobs.example.test"
    assert error.fields["probes"] == len(talk.asked)
    assert talk.now_s - 1000.0 == pytest.approx(50.0, abs=0.5)


def test_a_request_that_hangs_does_not_outlive_the_wait() -> None:
    talk = Talk(lambda request: (1e9, job()))
    with pytest.raises(Unreachable) as caught:
        wait(talk, timeout_s=40.0)
    assert talk.now_s - 1000.0 < 62.0
    assert caught.value.fields["failures"] == len(talk.asked)


def test_a_wait_of_no_time_asks_once() -> None:
    talk = Talk(script(job()))
    with pytest.raises(WaitTimeout):
        wait(talk, timeout_s=0.0)
    assert len(talk.asked) == 1
    assert "Prefer" not in talk.asked[0][1].headers


def test_a_wait_without_an_end_gives_up_on_a_server_that_is_gone() -> None:
    talk = Talk(script(job(), lost()))
    with pytest.raises(Unreachable) as caught:
        wait(talk)
    assert waits.QUIET_S < talk.now_s - 1000.0 < waits.QUIET_S + 60
    assert caught.value.hint is not None
    assert "milepost wait" in caught.value.hint


def test_failed_cancelled_and_partly_failed_are_three_errors() -> None:
    failure = {"code": "boom", "message": "it broke"}
    with pytest.raises(JobFailed, match="it broke") as failed:
        wait(Talk(script(job("failed", error=failure))))
    assert not isinstance(failed.value, PartialFailure)
    assert failed.value.hint == f"milepost retry {ID} --url http://jobs.example.test"
    with pytest.raises(JobCancelled):
        wait(Talk(script(job("cancelled", error=failure))))

    subs = [native_body("succeeded", "a"), native_body("failed", "b"), native_body("cancelled", "c")]
    page = Response(200, {}, b'{"jobs":[' + b",".join(subs) + b"]}")
    counts = {"total": 3, "by_state": {"succeeded": 1, "failed": 1, "cancelled": 1}}
    talk = Talk(script(job("failed", error=failure, sub_jobs=counts), page))
    with pytest.raises(PartialFailure) as partly:
        wait(talk)
    assert [one.id for one in partly.value.succeeded] == ["a"]
    assert [one.id for one in partly.value.failed] == ["b", "c"]
    assert "parent=" + ID in talk.paths[-1]


def test_without_raising_the_failed_view_is_returned() -> None:
    assert wait(Talk(script(job("failed"))), raise_on_failure=False).state is State.FAILED


@pytest.mark.parametrize(("wire", "answer"), [("native", job("paused")), ("glance", task("archiving"))])
def test_an_unknown_status_is_still_running_and_warned_about_once(wire, answer, caplog) -> None:
    end = job("succeeded") if wire == "native" else task("success")
    talk = Talk(script(answer, answer, answer, end), wire=wire)
    with caplog.at_level(logging.WARNING, logger="milepost.client"):
        assert wait(talk).done
    (record,) = caplog.records
    assert ID in record.getMessage()


def test_a_page_of_something_else_is_a_protocol_error_after_a_few_tries() -> None:
    html = Response(200, {"content-type": "text/html"}, b"<html>please log in</html>")
    talk = Talk(script(html))
    with pytest.raises(ProtocolError, match="please log in"):
        wait(talk)
    assert len(talk.asked) == 3
    assert wait(Talk(script(html, html, job("succeeded")))).done


def test_of_a_job_that_was_seen_no_unreadable_answer_ends_the_wait() -> None:
    html = Response(200, {"content-type": "text/html"}, b"<html>please log in</html>")
    assert wait(Talk(script(job("running"), *[html] * 20, job("succeeded")))).done


def test_each_change_is_emitted_once_and_the_end_last() -> None:
    steps = [job(progress={"done": n}, headers={"etag": f'"{n}"'}) for n in (1, 1, 2)]
    talk = Talk(script(*steps, job("succeeded")))
    wait(talk, changes=True)
    assert [(view.state, view.progress.done) for view in talk.emitted[:-1]] == [("running", 1), ("running", 2)]
    assert talk.emitted[-1].done
    assert talk.asked[1][1].headers["If-None-Match"] == '"1"'


def test_the_first_view_is_not_waited_for() -> None:
    talk = Talk(script(job("running"), (5.0, job("succeeded"))))
    wait(talk, changes=True)
    first, second = (request.headers for _, request in talk.asked)
    assert "Prefer" not in first
    assert second["Prefer"] == "wait=20"
    assert talk.slept == []


def test_a_job_seen_final_stays_final() -> None:
    known = Known(ID)
    wait(Talk(script(job("succeeded"))), known)
    wait(Talk(script(job("running"))), known)
    assert known.state == "succeeded"


# --- many ---------------------------------------------------------------------------------------------------------------


def ids(count: int) -> list[str]:
    return [f"job-{n}" for n in range(count)]


class Cloud:
    """Jobs that end at given instants, asked for singly or by list."""

    def __init__(self, ends: dict[str, float], *, lists: bool = True) -> None:
        self.ends, self.lists = ends, lists
        self.talk = Talk(self.answer)

    def state(self, id: str) -> str:
        return "succeeded" if self.talk.now_s - 1000.0 >= self.ends[id] else "running"

    def answer(self, request):
        path = request.url.rpartition("/jobs")[2]
        if path.startswith("?"):
            if not self.lists:
                return problem(400, "invalid_input", "there is no parameter id")
            asked = [pair[3:] for pair in path[1:].split("&") if pair.startswith("id=")]
            jobs = [native_body(self.state(id), id) for id in asked if id in self.ends]
            return (0.05, Response(200, {}, b'{"jobs":[' + b",".join(jobs) + b"]}"))
        id = path[1:]
        return (0.01, job(self.state(id), id) if id in self.ends else problem(404, "not_found"))


def completed(cloud: Cloud, jobs: list[Known], **options):
    options = {"timeout_s": None, "cadence": None, **options}
    cloud.talk.run(waits.as_completed(cloud.talk.session, jobs, **options))
    return cloud.talk.emitted


@pytest.mark.parametrize("lists", [True, False])
def test_jobs_come_out_as_they_end_and_not_later_than_a_share_of_their_age(lists: bool) -> None:
    ends = {id: 3.0 * ((n * 7) % 20) + 1 for n, id in enumerate(ids(20))}
    cloud = Cloud(ends, lists=lists)
    steps = waits.as_completed(cloud.talk.session, [Known(id) for id in ends], timeout_s=None, cadence=None)
    cloud.talk.run(steps)
    came = cloud.talk.came()
    assert came.keys() == ends.keys()
    assert all(ends[id] <= came[id] <= ends[id] * 1.12 + 1.0 for id in ends)


def test_one_list_request_serves_a_hundred_jobs() -> None:
    ends = dict.fromkeys(ids(100), 60.0)
    cloud = Cloud(ends)
    completed(cloud, [Known(id) for id in ends])
    assert all("?" in path for path in cloud.talk.paths)
    assert ["view=full" in path for path in cloud.talk.paths].count(True) == 1  # their results come in one list, too
    assert len(cloud.talk.asked) < 60


def test_the_last_job_is_waited_for_with_a_long_poll() -> None:
    cloud = Cloud({"job-0": 1.0, "job-1": 30.0})
    completed(cloud, [Known("job-0"), Known("job-1")])
    assert any("Prefer" in request.headers for _, request in cloud.talk.asked)


def test_a_lost_job_comes_out_with_its_problem_and_the_others_go_on() -> None:
    cloud = Cloud({"job-0": 5.0})
    gone, kept = Known("job-9"), Known("job-0")
    emitted = completed(cloud, [gone, kept])
    assert emitted[0] is gone
    assert isinstance(gone.error, NotFound)
    assert kept.done


def test_when_time_is_over_the_pending_ids_are_named() -> None:
    cloud = Cloud({"job-0": 1.0, "job-1": 1e9, "job-2": 1e9})
    with pytest.raises(WaitTimeout) as caught:
        completed(cloud, [Known(id) for id in cloud.ends], timeout_s=10.0)
    pending = sorted(caught.value.fields["pending"])
    assert pending == ["job-1", "job-2"]
    assert sorted(caught.value.hint.split()[2:4]) == pending  # the command waits for all of them
    assert (caught.value.state, caught.value.job_id in pending) == ("running", True)
    assert [known.id for known in cloud.talk.emitted] == ["job-0"]
    assert cloud.talk.now_s - 1000.0 == pytest.approx(10.0, abs=1.0)


def test_bad_luck_with_one_job_does_not_grow_its_pause_while_the_server_answers_about_others() -> None:
    """Every second probe of one job is lost, with another job beside it that is answered."""
    cloud = Cloud({"job-0": 20.0, "job-1": 20.0}, lists=False)
    answered, asked = cloud.talk.server, []

    def unlucky(request):
        if request.url.endswith("job-1") and cloud.talk.now_s < 1015.0:
            asked.append(cloud.talk.now_s)
            return lost()
        return answered(request)

    cloud.talk.server = unlucky
    completed(cloud, [Known(id) for id in cloud.ends], timeout_s=60.0)
    assert max(after - before for before, after in itertools.pairwise(asked)) < 3.0


def test_a_refused_token_ends_all_waits_at_once() -> None:
    talk = Talk(script(problem(401, "unauthenticated")))
    with pytest.raises(Unauthenticated):
        talk.run(waits.as_completed(talk.session, [Known("a"), Known("b")], timeout_s=None, cadence=None))


def test_all_of_some_failed_is_a_partial_failure_with_both_lists() -> None:
    good, bad = Known("a"), Known("b")
    wait(Talk(script(job("succeeded", "a"))), good)
    wait(Talk(script(job("failed", "b"))), bad, raise_on_failure=False)
    talk = Talk(script(job("failed", "b")))
    with pytest.raises(PartialFailure) as caught:
        talk.run(waits.check_all(talk.session, [good, bad], 1.0))
    assert (caught.value.succeeded, caught.value.failed) == (["a"], ["b"])
    assert (caught.value.job_id, caught.value.state, caught.value.elapsed_s) == ("b", "failed", 1.0)
    with pytest.raises(JobFailed) as caught_all:
        talk.run(waits.check_all(talk.session, [bad, bad], 1.0))
    assert not isinstance(caught_all.value, PartialFailure)


# --- streams ------------------------------------------------------------------------------------------------------------


def event(id: int, state: str = "running") -> bytes:
    body = {"id": id, "job_id": ID, "root_id": ID, "seq": id, "type": "progress", "state": state, "at": "2026-03-04T05:06:07Z"}
    return b"id: %d\nevent: progress\ndata: %s\n\n" % (id, msgspec.json.encode(body))


STREAM = Response(200, {"content-type": "text/event-stream"})


def test_a_watch_looks_when_the_stream_says_so_and_goes_on_behind_its_last_event() -> None:
    opened = []

    def stream(request):
        opened.append(request.headers.get("Last-Event-ID"))
        if len(opened) == 1:
            return STREAM, [event(1), event(2)[:20], event(2)[20:], lost()]
        return STREAM, [b": still here\n\n", event(3, "succeeded")]

    talk = Talk(
        script(job(), job(progress={"done": 1}), job(progress={"done": 1}), job(progress={"done": 2}), job("succeeded")),
        stream=stream,
    )
    talk.run(waits.watch(talk.session, Known(ID), timeout_s=None, cadence=None, tree=False))
    assert opened == [None, "2"]
    assert [view.state for view in talk.emitted] == ["running", "running", "running", "succeeded"]


def test_a_watch_without_a_stream_polls_on() -> None:
    talk = Talk(script(job(), job(), job("succeeded")), stream=lambda request: (problem(503, "unavailable"), []))
    talk.run(waits.watch(talk.session, Known(ID), timeout_s=None, cadence=None, tree=False))
    assert talk.emitted[-1].done


def test_a_watch_ends_when_its_time_is_over() -> None:
    talk = Talk(lambda request: job(), stream=lambda request: (STREAM, [lost()]))
    with pytest.raises(WaitTimeout):
        talk.run(waits.watch(talk.session, Known(ID), timeout_s=30.0, cadence=None, tree=False))
    assert talk.now_s - 1000.0 == pytest.approx(30.0, abs=1.0)
