from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from milepost.client import calls, waits
from milepost.client.dialects import Query
from milepost.client.identity import Credentials
from milepost.client.open import job_id_of, make_query, make_spec, make_specs, open_session
from milepost.errors import (
    Conflict,
    IdempotencyConflict,
    InvalidInput,
    LimitExceeded,
    NotFound,
    ProtocolError,
    Throttled,
    Unauthenticated,
    Unreachable,
    WaitTimeout,
)
from milepost.wire import Request, Response

from .talk import ID, URL, Talk, job, lost, native_body, problem, script, task


def submit(talk: Talk, kind: str = "echo", input: object = None, **options):
    return talk.run(calls.submit(talk.session, make_spec(kind, input, **options)))


# --- submit -------------------------------------------------------------------------------------------------------------


def test_a_submit_is_repeated_with_the_same_key_until_it_is_answered() -> None:
    talk = Talk(script(lost(), problem(503, "store_unavailable"), job("ready", status=202)))
    assert submit(talk).id == ID
    keys = {request.headers["Idempotency-Key"] for _, request in talk.asked}
    assert len(talk.asked) == 3
    assert len(keys) == 1


def test_two_submits_have_two_keys_and_a_given_key_is_kept() -> None:
    talk = Talk(script(job("ready", status=202)))
    submit(talk), submit(talk), submit(talk, idempotency_key="mine")
    keys = [request.headers["Idempotency-Key"] for _, request in talk.asked]
    assert len(set(keys)) == 3
    assert keys[-1] == "mine"


def test_a_submit_gives_up_after_its_patience_and_says_how_often_it_tried() -> None:
    talk = Talk(script(lost()), patience_s=5.0)
    with pytest.raises(Unreachable) as caught:
        submit(talk)
    assert caught.value.fields["tries"] == len(talk.asked) > 3
    assert talk.now_s - 1000.0 <= 5.0


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(400, "invalid_input", path="$.input.a"), InvalidInput),
        (problem(409, "idempotency_conflict"), IdempotencyConflict),
        (problem(413, "limit_exceeded", limit="body_bytes_max", allowed=10, seen=11), LimitExceeded),
        (problem(401, "unauthenticated"), Unauthenticated),
        (Response(302, {"location": "http://elsewhere.example.test/"}, b""), ProtocolError),
    ],
)
def test_what_would_fail_again_is_not_repeated(answer, error) -> None:
    talk = Talk(script(answer))
    with pytest.raises(error) as caught:
        submit(talk)
    assert len(talk.asked) == 1
    if error is InvalidInput:
        assert caught.value.path == "$.input.a"
    if error is LimitExceeded:
        assert (caught.value.limit, caught.value.allowed, caught.value.seen) == ("body_bytes_max", 10, 11)


def test_all_options_are_on_the_wire() -> None:
    talk = Talk(script(job("ready", status=202)))
    submit(
        talk,
        "resize",
        {"size": 3},
        queue="q",
        priority=1,
        labels={"a": "b"},
        held=True,
        run_at="2026-03-04T05:06:07Z",
        attempts_max=4,
        timeout_s=5.0,
        deadline_s=60.0,
        callback_url="http://me.example.test/",
    )
    assert json.loads(talk.asked[0][1].body) == {
        "kind": "resize",
        "input": {"size": 3},
        "queue": "q",
        "priority": 1,
        "labels": {"a": "b"},
        "held": True,
        "run_at": "2026-03-04T05:06:07Z",
        "attempts_max": 4,
        "timeout_s": 5.0,
        "deadline_s": 60.0,
        "callback": {"url": "http://me.example.test/"},
    }


def test_a_batch_is_one_request_with_a_key_for_each_entry() -> None:
    page = Response(202, {}, b'{"jobs":[' + native_body("ready", "a") + b"," + native_body("ready", "b") + b"]}")
    talk = Talk(script(lost(), page))
    known = talk.run(calls.submit_many(talk.session, make_specs([{"kind": "x"}, {"kind": "y", "input": [1]}])))
    assert [one.id for one in known] == ["a", "b"]
    first, second = (json.loads(request.body) for _, request in talk.asked)
    assert first == second
    assert len({entry["idempotency_key"] for entry in first}) == 2


def test_a_typed_input_is_encoded_and_one_without_json_form_is_refused() -> None:
    class Resize(msgspec.Struct):
        size: int

    assert make_spec("x", Resize(3)).input == b'{"size":3}'
    with pytest.raises(InvalidInput, match="no JSON form"):
        make_spec("x", object())
    with pytest.raises(InvalidInput, match="entry 1"):
        make_specs([{"kind": "x"}, {"kind": "x", "size": 1}])


# --- a submit to Glance, which has no idempotency key ---------------------------------------------------------------------


class Images:
    """A Glance whose answers to the first create are lost; whether the task was made is the question."""

    def __init__(self, trouble, *, made: bool) -> None:
        self.trouble, self.made = trouble, made
        self.tasks: list[dict] = [{"id": "other", "request_id": "req-of-somebody-else"}]
        self.creates = 0

    def __call__(self, request):
        path = request.url.removeprefix(URL)
        if request.method == "POST":
            self.creates += 1
            if self.creates == 1:
                if self.made:
                    self.tasks.insert(0, {"id": ID, "request_id": request.headers["X-Openstack-Request-ID"]})
                return self.trouble
            return task("pending", http=201)
        if path.startswith("/v2/tasks?"):
            bodies = [task(id=one["id"]).body for one in self.tasks]
            return Response(200, {}, b'{"tasks":[' + b",".join(bodies) + b"]}")
        (one,) = [one for one in self.tasks if path == "/v2/tasks/" + one["id"]]
        return task(id=one["id"], request_id=one["request_id"])


def test_a_lost_create_is_found_again_by_its_request_id_and_not_sent_twice() -> None:
    images = Images(lost(), made=True)
    assert submit(Talk(images, wire="glance"), "import", {}).id == ID
    assert images.creates == 1


def test_a_create_of_which_nothing_is_found_is_not_sent_twice_either() -> None:
    images = Images(lost(), made=False)
    talk = Talk(images, wire="glance")
    with pytest.raises(Unreachable) as caught:
        submit(talk, "import", {})
    assert images.creates == 1
    assert "milepost list" in caught.value.hint


@pytest.mark.parametrize("trouble", [lost(sent=False), Response(429, {"retry-after": "1"}, b"slow down")])
def test_a_create_that_surely_did_nothing_is_sent_again(trouble) -> None:
    images = Images(trouble, made=False)
    assert submit(Talk(images, wire="glance"), "import", {}).id == ID
    assert images.creates == 2


def test_what_glance_does_not_have_is_said_before_anything_is_sent() -> None:
    talk = Talk(script(task()), wire="glance")
    with pytest.raises(InvalidInput, match="priority"):
        submit(talk, "import", {}, priority=1)
    for verb in ("cancel", "retry", "release"):
        with pytest.raises(Conflict, match=f"cannot {verb}") as caught:
            talk.run(calls.act(talk.session, ID, verb))
        assert "--wire native" in caught.value.hint
    with pytest.raises(Conflict):
        talk.run(calls.events(talk.session, ID, after=0, tree=False))
    with pytest.raises(InvalidInput, match="queue"):
        talk.run(calls.list_jobs(talk.session, Query(queue="q"), None))
    assert talk.asked == []


# --- read -----------------------------------------------------------------------------------------------------------------


def test_pages_are_fetched_only_as_they_are_needed() -> None:
    def page(ids, next_path=None):
        headers = {"link": f'<{next_path}>; rel="next"'} if next_path else {}
        return Response(200, headers, b'{"jobs":[' + b",".join(native_body(id=id) for id in ids) + b"]}")

    pages = [page(["a", "b"], "/jobs?limit=2&after=b"), page(["c", "d"], "/jobs?limit=2&after=d"), page([])]
    talk = Talk(script(*pages))
    talk.run(calls.list_jobs(talk.session, make_query(state="running", page_size=2), 3))
    assert [known.id for known in talk.emitted] == ["a", "b", "c"]
    assert talk.paths == ["/jobs?state=running&limit=2", "/jobs?limit=2&after=b"]


def test_a_link_to_another_host_is_not_followed() -> None:
    page = Response(200, {"link": '<http://evil.example.test/jobs?after=a>; rel="next"'}, b'{"jobs":[' + native_body() + b"]}")
    talk = Talk(script(page), token="secret")
    with pytest.raises(InvalidInput, match="leads out"):
        talk.run(calls.list_jobs(talk.session, Query(), None))
    assert len(talk.asked) == 1


def test_an_answer_that_is_no_job_is_a_protocol_error_that_shows_its_begin() -> None:
    talk = Talk(script(Response(200, {}, b"<html><body>It works!</body></html>")))
    with pytest.raises(ProtocolError, match="It works!"):
        talk.run(calls.get(talk.session, ID))


def test_json_that_was_cut_off_is_no_answer_and_is_asked_for_again() -> None:
    whole = job("running")
    half = msgspec.structs.replace(whole, headers={"content-type": "application/json"}, body=whole.body[: len(whole.body) // 2])
    talk = Talk(script(half, half, half, half, whole))
    assert talk.run(calls.submit(talk.session, make_spec("echo"))).state == "running"
    assert len({request.headers["Idempotency-Key"] for _, request in talk.asked}) == 1
    talk = Talk(script(half), patience_s=2)
    with pytest.raises(Unreachable, match="no whole JSON"):
        talk.run(calls.get(talk.session, ID))


def test_a_call_uses_all_of_its_patience() -> None:
    talk = Talk(script(Unreachable("refused", sent=False)), patience_s=15)
    with pytest.raises(Unreachable) as caught:
        talk.run(calls.get(talk.session, ID))
    assert caught.value.elapsed_s == pytest.approx(15)
    assert "milepost serve" in caught.value.hint


def test_retry_is_not_repeated_when_its_answer_is_lost_and_cancel_is() -> None:
    talk = Talk(script(lost(), job("ready")))
    with pytest.raises(Unreachable):
        talk.run(calls.act(talk.session, ID, "retry"))
    assert len(talk.asked) == 1
    talk = Talk(script(lost(), job("cancelled")))
    assert talk.run(calls.act(talk.session, ID, "cancel")).done


def test_throttling_waits_as_asked_and_then_says_so() -> None:
    talk = Talk(script(problem(429, "throttled", headers={"retry-after": "4"})), patience_s=10.0)
    with pytest.raises(Throttled) as caught:
        talk.run(calls.get(talk.session, ID))
    assert caught.value.retry_after_s == 4.0
    assert talk.slept == [pytest.approx(4.0, rel=0.1)] * 2


# --- events -----------------------------------------------------------------------------------------------------------------


def test_a_stream_in_any_pieces_gives_the_same_events() -> None:
    body = {
        "id": 7,
        "job_id": ID,
        "root_id": ID,
        "seq": 1,
        "type": "failed",
        "state": "failed",
        "at": "2026-03-04T05:06:07Z",
        "data": {"a": "\n"},
    }
    raw = b": hello\r\n\r\nretry: 5\nid: 3\n\nid: 7\nevent: failed\ndata: " + msgspec.json.encode(body) + b"\n\nid: 8\ndata"
    whole = calls.NativeEvents()
    (event,) = whole.feed(raw)
    assert (event.id, bytes(event.data)) == (7, b'{"a":"\\n"}')
    pieces = calls.NativeEvents()
    found = [event for at in range(len(raw)) for event in pieces.feed(raw[at : at + 1])]
    assert (found, pieces.last_id) == ([event], whole.last_id == 7 and 7)


# --- identity -----------------------------------------------------------------------------------------------------------------


class Cloud:
    """An identity service and an image service that accepts its newest token only."""

    def __init__(self) -> None:
        self.issued = 0
        self.refuse = False

    def __call__(self, request):
        if request.url == "http://id.example.test/v3/auth/tokens":
            if self.refuse:
                return Response(401, {}, b'{"error":{"code":401,"message":"wrong password","title":"Unauthorized"}}')
            self.issued += 1
            self.body = json.loads(request.body)
            endpoints = [
                {"interface": "public", "region": region, "url": f"http://image.{region}.example.test/v2"}
                for region in ("one", "two")
            ]
            token = {
                "project": {"id": "p1"},
                "expires_at": "2099-01-01T00:00:00.000000Z",
                "catalog": [{"type": "image", "endpoints": endpoints}],
            }
            return Response(201, {"x-subject-token": f"token-{self.issued}"}, json.dumps({"token": token}).encode())
        assert request.url.startswith("http://image.two.example.test/v2/tasks/")
        if request.headers["X-Auth-Token"] != f"token-{self.issued}":
            return Response(401, {}, b"no")
        return task()


def cloud_talk(cloud: Cloud) -> Talk:
    who = Credentials(auth_url="http://id.example.test/", username="u", password="hunter2", project_name="p", region="two")
    return Talk(cloud, wire="glance", endpoint=None, credentials=who)


def test_credentials_become_a_token_and_the_catalogs_endpoint() -> None:
    cloud = Cloud()
    talk = cloud_talk(cloud)
    assert talk.run(calls.get(talk.session, ID)).id == ID
    user = {"name": "u", "domain": {"name": "Default"}, "password": "hunter2"}
    assert cloud.body == {
        "auth": {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"name": "p", "domain": {"name": "Default"}}},
        }
    }
    assert talk.session.handle(ID).to_json()["endpoint"] == "http://image.two.example.test"
    assert "hunter2" not in repr(talk.session.credentials)


def test_an_expired_token_is_renewed_once_and_the_request_repeated() -> None:
    cloud = Cloud()
    talk = cloud_talk(cloud)
    talk.run(calls.get(talk.session, ID))
    cloud.issued += 1  # somebody revoked ours
    talk.run(calls.get(talk.session, ID))
    assert cloud.issued == 3


def test_an_identity_service_that_is_away_when_the_token_expires_does_not_end_a_wait() -> None:
    cloud = Cloud()
    talk = cloud_talk(cloud)
    known = talk.run(calls.get(talk.session, ID))
    cloud.issued += 1  # ours has expired
    answers = iter([Unreachable("reset", sent=True), Response(503, {}, b""), Response(429, {}, b"")])

    def flaky(request: Request) -> Any:
        return next(answers, None) or cloud(request) if request.url.startswith("http://id.") else cloud(request)

    talk.server = flaky
    steps = waits.wait(talk.session, known, timeout_s=5, cadence=None, raise_on_failure=True)
    with pytest.raises(WaitTimeout):  # the task of this cloud runs for ever
        talk.run(steps)
    assert known.stats.failures == 3
    assert cloud.issued == 3


def test_refused_credentials_are_said_in_the_clouds_words() -> None:
    cloud = Cloud()
    cloud.refuse = True
    talk = cloud_talk(cloud)
    with pytest.raises(Unauthenticated, match="wrong password"):
        talk.run(calls.get(talk.session, ID))
    assert len(talk.asked) == 1


def test_a_given_token_that_is_refused_is_not_asked_again() -> None:
    talk = Talk(script(problem(401, "unauthenticated")), token="t")
    with pytest.raises(Unauthenticated):
        talk.run(calls.get(talk.session, ID))
    assert len(talk.asked) == 1
    assert talk.asked[0][1].headers["Authorization"] == "Bearer t"


# --- handles and the place --------------------------------------------------------------------------------------------------


def test_a_handle_is_plain_json_without_secrets_and_leads_back() -> None:
    talk = Talk(script(job()), token="very-secret", project="p")
    handle = talk.session.handle(ID, "echo").to_json()
    assert handle == {"milepost": 1, "id": ID, "wire": "native", "endpoint": URL, "project": "p", "kind": "echo"}
    assert job_id_of(talk.session, json.loads(json.dumps(handle))) == ID
    assert job_id_of(talk.session, json.dumps(handle)) == ID
    other = Talk(script(job()), endpoint="http://other.example.test")
    with pytest.raises(InvalidInput, match="from_handle"):
        job_id_of(other.session, handle)
    with pytest.raises(InvalidInput, match="version 2"):
        job_id_of(talk.session, {**handle, "milepost": 2})


@pytest.mark.parametrize("bad", ["", "a b", "{", '{"id":1}', "x" * 300])
def test_what_is_no_id_is_refused_before_it_is_sent(bad: str) -> None:
    with pytest.raises(InvalidInput):
        job_id_of(Talk(script(job())).session, bad)


@pytest.mark.parametrize("what", [5, None, 1.5, object()])
def test_what_is_neither_id_nor_handle_is_refused_by_name(what: object) -> None:
    with pytest.raises(InvalidInput, match="no job id and no handle"):
        job_id_of(Talk(script()).session, what)


@pytest.mark.parametrize(("field", "wrong"), [("run_at", 5), ("labels", ["a"]), ("labels", "a")])
def test_an_option_of_another_type_is_refused_by_name(field: str, wrong: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_spec("echo", **{field: wrong})
    assert caught.value.path == f"$.{field}"


def test_no_jobs_are_listed_without_asking() -> None:
    talk = Talk(script())
    talk.run(calls.list_jobs(talk.session, make_query(), 0))
    assert (talk.asked, talk.emitted) == ([], [])


def test_an_id_cannot_leave_its_place_in_the_url() -> None:
    talk = Talk(script(problem(404, "not_found")))
    with pytest.raises(NotFound):
        talk.run(calls.get(talk.session, "../queues/x?y#z"))
    assert talk.paths == ["/jobs/..%2Fqueues%2Fx%3Fy%23z"]


CLOUDS = """
clouds:
  here:
    auth: {auth_url: "http://id.example.test/v3", username: u, project_name: p, user_domain_id: default}
    region_name: two
"""


def test_a_cloud_is_read_from_clouds_yaml_with_its_secrets_beside_it(tmp_path) -> None:
    (tmp_path / "clouds.yaml").write_text(CLOUDS)
    (tmp_path / "secure.yaml").write_text("clouds: {here: {auth: {password: s3}}}")
    environ = {"OS_CLIENT_CONFIG_FILE": str(tmp_path / "clouds.yaml")}
    options = {"wire": None, "token": None, "project": None, "credentials": None, "environ": environ}
    session = open_session(None, cloud="here", **options)
    assert session.dialect.name == "glance"
    assert session.credentials.password == "s3"
    assert (session.credentials.region, session.credentials.user_domain) == ("two", "default")
    assert session.command("wait", ID) == f"milepost wait {ID} --cloud here"
    with pytest.raises(InvalidInput, match="it has here"):
        open_session(None, cloud="there", **options)


def test_where_to_go_comes_from_arguments_then_the_environment_then_this_machine() -> None:
    options = {"wire": None, "cloud": None, "token": None, "project": None, "credentials": None}
    assert open_session(None, environ={}, **options).endpoint == "http://127.0.0.1:8080"
    assert open_session(None, environ={"MILEPOST_URL": "http://a.example.test/"}, **options).endpoint == "http://a.example.test"
    assert open_session("http://b.example.test", environ={"MILEPOST_URL": "x"}, **options).endpoint == "http://b.example.test"
    with pytest.raises(InvalidInput, match="http://"):
        open_session("b.example.test", environ={}, **options)
    with pytest.raises(InvalidInput, match="no wire 'ftp'"):
        open_session(None, environ={}, **{**options, "wire": "ftp"})
    glance = {**options, "wire": "glance"}
    environ = {"OS_AUTH_URL": "http://id.example.test", "OS_USERNAME": "u", "OS_PASSWORD": "p", "OS_PROJECT_NAME": "q"}
    assert open_session(None, environ=environ, **glance).credentials.username == "u"
    with pytest.raises(InvalidInput, match="OS_"):
        open_session(None, environ={}, **glance)
