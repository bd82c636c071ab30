"""A stream that says that events are gone: whoever waited by it looks again, and nobody takes it for a broken answer."""

from __future__ import annotations

import msgspec
import pytest

from milepost.client import calls, subscriptions
from milepost.client.bulk import Bulk
from milepost.client.known import Known
from milepost.errors import Expired, Unreachable
from milepost.job import Event
from milepost.wire import Response
from milepost.wire.native import Missed, sse_missed

from .talk import ID, Talk, native_body, problem

STREAM = Response(200, {"content-type": "text/event-stream"})


def event(id: int, type_: str = "succeeded", job_id: str = ID) -> bytes:
    body = {
        "id": id,
        "job_id": job_id,
        "root_id": job_id,
        "seq": 2,
        "type": type_,
        "state": type_,
        "at": "2026-03-04T05:06:07Z",
        "data": None,
    }
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (id, type_.encode(), msgspec.json.encode(body))


def test_a_bulk_wait_looks_at_every_job_again_when_events_are_gone() -> None:
    talk: Talk
    ended_s = 100.0

    def answer(request):  # both jobs end while the stream is away, and the events that say so are pruned
        state = "succeeded" if talk.now_s - 1000.0 >= ended_s else "running"
        if request.url.rpartition("/jobs")[2].startswith("?"):
            return Response(200, {}, b'{"jobs":[' + b",".join(native_body(state, f"job-{n}") for n in range(2)) + b"]}")
        return Response(200, {}, native_body(state, request.url.rpartition("/")[2]))

    def stream(request):
        if "Last-Event-ID" not in request.headers:
            return STREAM, [b"id: 7\n\n", (5.0, Unreachable("gone", endpoint=None))]
        return STREAM, [b"id: 7\n\n", (150.0, sse_missed(7, 8, 20))]

    talk = Talk(answer, stream=stream)
    talk.run(Bulk(talk.session, [Known(f"job-{n}") for n in range(2)], timeout_s=None, cadence=None).run())
    took_s = talk.now_s - 1000.0
    assert len(talk.emitted) == 2
    assert 150.0 <= took_s < 160.0, "at once, not with the next rare look of a wait that a stream serves"


def test_the_history_of_a_job_that_is_gone_ends_with_its_tombstone_not_with_a_broken_answer() -> None:
    gone = problem(410, "expired", state="succeeded")
    talk = Talk(lambda _: gone, stream=lambda _: (STREAM, [event(3, "waiting"), sse_missed(3, 4, 9)]))
    with pytest.raises(Expired):
        talk.run(calls.follow_events(talk.session, ID, after=0, tree=False))
    assert [one.id for one in talk.emitted] == [3]


def test_the_projects_stream_is_opened_again_behind_its_last_event_and_passes_on_what_is_missed() -> None:
    opened: list[str | None] = []

    def stream(request):
        opened.append(request.headers.get("Last-Event-ID"))
        assert "label=a%3Db" in request.url
        if len(opened) == 1:
            return STREAM, [b"retry: 2000\nid: 40\n\n", event(41)]
        if len(opened) == 2:
            return STREAM, [b"id: 41\n\n", sse_missed(41, 42, 60), event(61, "failed")]
        return Response(403, {}, b'{"title":"x","status":403,"detail":"no","code":"forbidden"}'), []

    talk = Talk(lambda _: problem(404, "not_found"), stream=stream)
    with pytest.raises(Exception, match="no"):
        talk.run(subscriptions.follow_project(talk.session, {"a": "b"}, after=None))
    assert opened == [None, "41", "61"]
    assert [one.id if isinstance(one, Event) else one for one in talk.emitted] == [41, Missed(from_id=42, to_id=60), 61]


def test_the_projects_pages_are_read_to_their_end_with_what_is_missed_first() -> None:
    page = msgspec.json.encode({"events": [], "missed": {"from_id": 2, "to_id": 5}})
    talk = Talk(lambda _: Response(200, {}, page))
    talk.run(subscriptions.project_events(talk.session, {}, after=1))
    assert talk.emitted == [Missed(from_id=2, to_id=5)]
