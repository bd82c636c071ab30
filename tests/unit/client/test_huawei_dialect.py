"""The client on Huawei Cloud: waits, partial failures, errors, submits, and what it cannot do, on answers in recorded forms."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest

from milepost import errors
from milepost.cli.exits import Exit, exit_of, exit_of_view
from milepost.cli.show import job_json, plain_line
from milepost.client import calls, waits
from milepost.client.dialects import Query, Spec, dialect
from milepost.client.identity import Credentials
from milepost.client.known import Known
from milepost.client.open import open_session
from milepost.job import State
from milepost.wire import Request, Response

from .talk import Talk, lost, script

URL = "https://evs.region.example.test"
PROJECT = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
ID = "ff8080827c0d1e2f017c0d1e2f300001"
PATH = f"{URL}/v1/{PROJECT}/jobs/{ID}"
TIMES = {"begin_time": "2026-03-04T05:06:07.000Z", "end_time": ""}
JSON = {"content-type": "application/json", "x-request-id": "req-7"}


def sub(status: str, number: int, **fields: Any) -> dict[str, Any]:
    return {
        "status": status,
        "entities": {"volume_id": f"v-{number}"},
        "job_id": f"s-{number}",
        "job_type": "createVolume",
        **fields,
    }


def answer(status: str = "RUNNING", *, http: int = 200, headers: dict[str, str] | None = None, **fields: Any) -> Response:
    body = {"status": status, "entities": {}, "job_id": ID, "job_type": "batchCreateVolume", **TIMES, **fields}
    return Response(http, {**JSON, **(headers or {})}, msgspec.json.encode(body))


def refused(http: int, code: str, message: str = "no") -> Response:
    return Response(http, JSON, msgspec.json.encode({"error": {"code": code, "message": message}}))


def gateway(http: int, code: str) -> Response:
    return Response(http, {}, msgspec.json.encode({"error_code": code, "error_msg": "no", "request_id": "gw-1"}))


def talk(*answers: Any, wire: str = "huawei-evs", **options: Any) -> Talk:
    return Talk(script(*answers), wire=wire, **{"endpoint": URL, "project": PROJECT, "token": "t", **options})


def wait(talk: Talk, known: Known | None = None, **options: Any) -> Any:
    options = {"timeout_s": 60.0, "cadence": None, "raise_on_failure": True, **options}
    return talk.run(waits.wait(talk.session, known or Known(ID), **options))


def spec(kind: str, input: Any = None, **options: Any) -> Spec:
    return Spec(kind=kind, input=None if input is None else msgspec.json.encode(input), idempotency_key="key-1", **options)


def test_a_wait_asks_for_the_job_with_project_and_token() -> None:
    run = talk(answer(), answer("SUCCESS", entities={"volume_id": "v-1", "size": "40"}, end_time="2026-03-04T05:07:07.000Z"))
    view = wait(run)
    assert {request.url for _, request in run.asked} == {PATH}
    assert run.asked[0][1].headers["X-Auth-Token"] == "t"
    assert (view.result.volume_id, view.result.size, view.result.server_id) == ("v-1", 40, None)


@pytest.mark.parametrize("job_id", ["0197a000-0000-7000-8000-000000000001", "0197A000000070008000000000000001"])
def test_an_id_is_asked_for_as_32_hex_digits(job_id: str) -> None:
    run = talk(answer("SUCCESS"))
    wait(run, Known(job_id))
    assert run.asked[0][1].url == f"{URL}/v1/{PROJECT}/jobs/0197a000000070008000000000000001"


def test_success_without_any_sub_job_or_entity_is_success() -> None:
    for entities in ({}, None, {"sub_jobs": []}, {"sub_jobs": None}, {"sub_jobs": ""}, {"sub_jobs": [{}]}):
        view = wait(talk(answer("SUCCESS", entities=entities)))
        assert (view.state, view.result.server_id) == (State.SUCCEEDED, None)
        assert exit_of_view(view) is Exit.DONE


def test_a_changed_sub_job_is_a_changed_view() -> None:
    run = talk(
        answer(entities={"sub_jobs": [sub("RUNNING", 1), sub("INIT", 2)]}),
        answer(entities={"sub_jobs": [sub("SUCCESS", 1), sub("RUNNING", 2)]}),
        answer(entities={"sub_jobs": [sub("SUCCESS", 1), sub("RUNNING", 2)]}),
        answer("SUCCESS", entities={"sub_jobs": [sub("SUCCESS", 1), sub("SUCCESS", 2)]}),
    )
    run.run(waits.watch(run.session, Known(ID), timeout_s=60, cadence=None, tree=True))
    assert [[str(one.state) for one in view.sub_jobs] for view in run.emitted] == [
        ["running", "ready"],
        ["succeeded", "running"],
        ["succeeded", "succeeded"],
    ]
    assert plain_line(run.emitted[1]).endswith("running  1 of 2 done")


def test_a_partial_failure_names_what_succeeded_and_what_did_not() -> None:
    subs = [
        sub("SUCCESS", 1),
        sub("FAIL", 2, error_code="EVS.2024", fail_reason="volume is error!"),
        sub("FAIL", 3, error_code="Milepost.0001", fail_reason="stopped"),
    ]
    run = talk(answer("FAIL", entities={"sub_jobs": subs}, error_code="Common.0021", fail_reason="Subjob fails."))
    with pytest.raises(errors.PartialFailure, match="1 sub-jobs succeeded and 2 did not") as raised:
        wait(run)
    error = raised.value
    assert [one.result.volume_id for one in error.succeeded] == ["v-1"]
    assert [(one.result.volume_id, one.error.code, one.state) for one in error.failed] == [
        ("v-2", "EVS.2024", State.FAILED),
        ("v-3", "Milepost.0001", State.CANCELLED),
    ]
    assert error.request_id == "req-7"
    assert error.hint == f"milepost get {ID} --wire huawei-evs --url {URL} --project {PROJECT}"
    assert exit_of(error) is Exit.PARTLY_FAILED
    assert exit_of_view(wait(run, raise_on_failure=False)) is Exit.PARTLY_FAILED


def test_a_failure_of_all_sub_jobs_is_no_partial_one() -> None:
    run = talk(answer("FAIL", entities={"sub_jobs": [sub("FAIL", 1)]}, error_code="Common.0021"))
    with pytest.raises(errors.JobFailed) as raised:
        wait(run)
    assert not isinstance(raised.value, errors.PartialFailure)
    assert exit_of(raised.value) is exit_of_view(wait(run, raise_on_failure=False)) is Exit.FAILED


def test_the_failure_has_the_clouds_code_and_our_word_for_it() -> None:
    with pytest.raises(errors.JobFailed, match="volume is error!") as raised:
        wait(talk(answer("FAIL", error_code="EVS.2024", fail_reason="volume is error!")))
    failure = raised.value.fields["failure"]
    assert (failure.code, failure.details) == ("EVS.2024", {"reason": "volume_error"})


def test_unknown_words_are_survived_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "milepost.client"):
        wait(
            talk(
                answer("WAITING_EXECUTE"),
                answer("WAITING_EXECUTE"),
                answer("LISTENING"),
                answer("PENDING_PAYMENT"),
                answer("SUCCESS"),
            )
        )
    assert [record.args[0] for record in caplog.records if record.args] == ["WAITING_EXECUTE", "LISTENING"]


def test_an_unpaid_job_is_waited_for() -> None:
    with pytest.raises(errors.WaitTimeout) as raised:
        wait(talk(answer("PENDING_PAYMENT")))
    assert raised.value.state == "held"


def test_an_unknown_job_is_not_found() -> None:
    with pytest.raises(errors.NotFound, match=r"query job fail\. \(Common\.0011\)") as raised:
        wait(talk(refused(400, "Common.0011", "query job fail.")))
    assert exit_of(raised.value) is Exit.NOT_FOUND
    assert raised.value.job_id == ID


def test_a_job_just_submitted_may_be_unknown_for_a_while() -> None:
    run = talk(refused(400, "Common.0011"), refused(400, "Common.0011"), answer("SUCCESS"))
    assert wait(run, Known(ID, submitted_s=run.now_s)).state is State.SUCCEEDED
    with pytest.raises(errors.NotFound):
        wait(run := talk(refused(400, "Common.0011")), Known(ID, submitted_s=run.now_s))


@pytest.mark.parametrize(
    ("response", "kind", "code"),
    [
        (gateway(401, "APIGW.0301"), errors.Unauthenticated, "APIGW.0301"),
        (refused(401, "Common.0013"), errors.Unauthenticated, "Common.0013"),
        (refused(400, "Common.0013"), errors.Unauthenticated, "Common.0013"),
        (refused(403, "Pdp.0001"), errors.Forbidden, "Pdp.0001"),
        (refused(403, "EVS.5403"), errors.Forbidden, "EVS.5403"),
        (refused(400, "Common.0018"), errors.InvalidInput, "Common.0018"),
        (gateway(404, "APIGW.0101"), errors.ProtocolError, "APIGW.0101"),
        (refused(404, "EVS.5404"), errors.NotFound, "EVS.5404"),
        (Response(404, {}, b'{"itemNotFound":{"code":404,"message":"gone"}}'), errors.NotFound, "404"),
        (Response(403, {}, b"<html>"), errors.Forbidden, None),
    ],
)
def test_errors_are_typed_and_end_the_wait(response: Response, kind: type[errors.MilepostError], code: str | None) -> None:
    with pytest.raises(kind) as raised:
        wait(talk(response))
    assert type(raised.value) is kind
    assert raised.value.fields.get("cloud_code") == code
    assert raised.value.request_id == ("gw-1" if code and code.startswith("APIGW") else response.headers.get("x-request-id"))


@pytest.mark.parametrize("trouble", [gateway(429, "APIGW.0308"), refused(500, "Common.0001"), refused(503, "EVS.5503"), lost()])
def test_what_may_pass_is_survived(trouble: Any) -> None:
    known = Known(ID)
    wait(talk(trouble, trouble, answer("SUCCESS")), known)
    assert (known.stats.probes, known.stats.failures) == (3, 2)


def test_a_wait_without_a_project_says_so() -> None:
    with pytest.raises(errors.InvalidInput, match="needs a project id") as raised:
        wait(talk(answer(), project=None))
    assert raised.value.path == "$.project"
    assert exit_of(raised.value) is Exit.USAGE


def test_the_project_comes_from_the_sdks_variable_too() -> None:
    environ = {"HUAWEICLOUD_SDK_PROJECT_ID": PROJECT, "HUAWEICLOUD_SDK_AK": "ak", "HUAWEICLOUD_SDK_SK": "sk"}
    options = {"cloud": None, "token": "t", "project": None, "credentials": None, "environ": environ}
    assert open_session(URL, wire="huawei-ecs", **options).project == PROJECT
    assert open_session(URL, wire="native", **options).project is None
    assert open_session(URL, wire="huawei-ecs", **{**options, "project": "other"}).project == "other"


def test_an_unknown_wire_is_answered_with_all_names() -> None:
    with pytest.raises(errors.InvalidInput, match="native, glance, qiniu, huawei-ecs, huawei-evs, huawei-bms"):
        dialect("huawei")


@pytest.mark.parametrize(
    "url",
    [URL, URL + "/", f"{URL}/v2", f"{URL}/v2.1/", f"{URL}/v1/{PROJECT}", f"{URL}/v3/$(tenant_id)s", f"{URL}/v3/%(project_id)s"],
)
def test_an_endpoint_is_taken_with_version_and_project_or_without(url: str) -> None:
    assert dialect("huawei-evs").endpoint(url) == URL


def test_an_answer_without_an_id_keeps_the_one_that_was_asked_for() -> None:
    run = talk(Response(200, JSON, b'{"status":"RUNNING"}'))
    assert run.run(calls.get(run.session, ID)).id == ID


def test_what_is_no_job_is_a_protocol_error() -> None:
    with pytest.raises(errors.ProtocolError, match="it has no status"):
        wait(talk(Response(200, JSON, b'{"hello":"world"}')))


# --- the other services -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "path", "body"),
    [
        ("huawei-bms", f"/v1/{PROJECT}/jobs/{ID}", b'{"status":"SUCCESS","job_id":"j"}'),
        ("huawei-ims", f"/v1/{PROJECT}/jobs/{ID}", b'{"status":"SUCCESS","job_id":"j","entities":{"image_id":"i"}}'),
        (
            "huawei-vbs",
            f"/v1/{PROJECT}/jobs/{ID}",
            b'{"status":"SUCCESS","job_id":"j","sub_jobs":[],"entities":{"backup_id":"b"}}',
        ),
        ("huawei-elb", f"/v1.0/{PROJECT}/jobs/{ID}", b'{"status":"SUCCESS","job_id":"j"}'),
        ("huawei-rds", f"/v3/{PROJECT}/jobs?id={ID}", b'{"job":{"id":"j","status":"Completed"}}'),
        ("huawei-dds", f"/v3/{PROJECT}/jobs?id={ID}", b'{"job":{"id":"j","status":"Completed"}}'),
        ("huawei-taurusdb", f"/v3/{PROJECT}/jobs?id={ID}", b'{"job":{"id":"j","status":"Completed"}}'),
        ("huawei-cce", f"/api/v3/projects/{PROJECT}/jobs/{ID}", b'{"metadata":{"uid":"j"},"status":{"phase":"Success"}}'),
    ],
)
def test_every_service_is_asked_at_its_own_path(wire: str, path: str, body: bytes) -> None:
    run = talk(Response(200, JSON, body), wire=wire)
    assert wait(run).state is State.SUCCEEDED
    assert run.asked[0][1].url == URL + path
    shown = job_json(wait(run))
    assert (shown["state"], shown["id"]) == ("succeeded", "j")
    msgspec.json.encode(shown)


def test_a_database_services_id_keeps_its_dashes() -> None:
    run = talk(Response(200, JSON, b'{"job":{"id":"j","status":"Completed"}}'), wire="huawei-rds")
    wait(run, Known("0197a000-0000-7000-8000-000000000001"))
    assert run.asked[0][1].url.endswith("?id=0197a000-0000-7000-8000-000000000001")


# --- submit -------------------------------------------------------------------------------------------------------------


def submit(run: Talk, kind: str, input: Any, **options: Any) -> Known:
    found: Known = run.run(calls.submit(run.session, spec(kind, input, **options)))
    return found


def test_a_volume_is_submitted_with_the_vendors_body() -> None:
    run = talk(Response(202, JSON, b'{"job_id":"ff80","volume_ids":["v-1"]}'))
    known = submit(run, "createVolume", {"volume": {"size": 40}})
    ((_, request),) = run.asked
    assert (request.method, request.url) == ("POST", f"{URL}/v2.1/{PROJECT}/cloudvolumes")
    assert request.headers["X-Client-Token"] == "key-1"
    assert known.view is not None
    assert (known.id, known.view.kind, known.view.state, known.view.result.volume_id) == (
        "ff80",
        "createVolume",
        State.READY,
        "v-1",
    )


def test_a_create_whose_answer_was_lost_is_repeated_with_its_token() -> None:
    run = talk(lost(), Response(202, JSON, b'{"job_id":"ff80"}'))
    assert submit(run, "createVolume", {"volume": {}}).id == "ff80"
    assert {request.headers["X-Client-Token"] for _, request in run.asked} == {"key-1"}


def test_a_delete_whose_answer_was_lost_is_not_repeated() -> None:
    run = talk(lost(), Response(200, JSON, b'{"job_id":"ff80"}'))
    with pytest.raises(errors.Unreachable, match="it is not known whether the job was made"):
        submit(run, "deleteVolume", {"volume_id": "v-1"})
    assert [request.method for _, request in run.asked] == ["DELETE"]


def test_an_order_of_a_milepost_server_is_a_held_job() -> None:
    run = talk(Response(202, JSON, b'{"order_id":"CS0197A000000070008000000000000001","volume_ids":["v-1"]}'))
    known = submit(run, "createVolume", {"volume": {}, "bssParam": {"chargingMode": "prePaid"}})
    assert (known.id, known.state) == ("0197a000000070008000000000000001", "held")


def test_an_order_of_the_cloud_is_no_job_yet() -> None:
    run = talk(Response(202, JSON, b'{"order_id":"CS2603040506ABCD"}'))
    with pytest.raises(errors.Conflict, match="order CS2603040506ABCD: there is no job until it is paid"):
        submit(run, "createVolume", {"volume": {}})


@pytest.mark.parametrize(
    ("wire", "kind", "input", "match"),
    [
        ("huawei-evs", "deleteSingleVolume", {}, "no call that makes a 'deleteSingleVolume'; known: batchCreateVolume"),
        ("huawei-ecs", "echo", {}, "no call that makes a 'echo'; known: addNic"),
        ("huawei-rds", "createServer", {}, "nothing can be submitted to Huawei's relational-database API"),
        ("huawei-evs", "extendVolume", {"os-extend": {}}, "needs 'volume_id' in its input"),
        ("huawei-evs", "createVolume", {"size": 40}, "needs 'volume' in its input"),
        ("huawei-evs", "createVolume", [1], "an object"),
    ],
)
def test_what_cannot_be_submitted_is_said_before_anything_is_sent(wire: str, kind: str, input: Any, match: str) -> None:
    run = talk(wire=wire)
    with pytest.raises(errors.InvalidInput, match=match):
        submit(run, kind, input)
    assert run.asked == []


def test_options_of_other_wires_are_refused() -> None:
    with pytest.raises(errors.InvalidInput, match="has no queue, labels"):
        submit(talk(), "createVolume", {"volume": {}}, queue="q", labels={"a": "b"})


@pytest.mark.parametrize(
    ("code", "http", "kind", "reason"),
    [
        ("EVS.1015", 400, errors.InvalidInput, "volume_shrink"),
        ("EVS.5404", 404, errors.NotFound, "volume_not_found"),
        ("EVS.1046", 400, errors.Conflict, "volume_state"),
        ("EVS.1034", 400, errors.LimitExceeded, "volume_quota"),
        ("EVS.5413", 413, errors.LimitExceeded, "volume_quota"),
    ],
)
def test_a_refused_submit_says_our_reason(code: str, http: int, kind: type[errors.MilepostError], reason: str) -> None:
    with pytest.raises(kind) as raised:
        submit(talk(refused(http, code)), "createVolume", {"volume": {}})
    assert (raised.value.fields["cloud_code"], raised.value.fields["reason"]) == (code, reason)


@pytest.mark.parametrize(
    ("steps", "match"),
    [
        (lambda session: calls.list_jobs(session, Query(), None), "cannot list jobs: it knows a job by its id alone"),
        (lambda session: calls.act(session, ID, "cancel"), "cannot cancel a job"),
        (lambda session: calls.events(session, ID, after=0, tree=False), "has no history"),
        (lambda session: calls.catalog(session, "kinds"), "has no kinds"),
    ],
)
def test_what_the_cloud_cannot_do_is_said(steps: Any, match: str) -> None:
    run = talk()
    with pytest.raises(errors.Conflict, match=match) as raised:
        run.run(steps(run.session))
    assert exit_of(raised.value) is Exit.REFUSED
    assert run.asked == []


def test_many_jobs_are_waited_for_together() -> None:
    states = {"a" * 32: "SUCCESS", "b" * 32: "FAIL"}

    def server(request: Request) -> Response:
        return answer(states[request.url.rpartition("/")[2]])

    run = Talk(server, wire="huawei-ecs", endpoint=URL, project=PROJECT, token="t")
    jobs = [Known(id) for id in states]
    run.run(waits.as_completed(run.session, jobs, timeout_s=60, cadence=None))
    assert [known.state for known in jobs] == ["succeeded", "failed"]


@pytest.mark.parametrize("job_id", ["0197a000000070008000000000000001", "0197A000000070008000000000000001"])
def test_milepost_itself_takes_an_id_as_huaweis_wire_shows_it(job_id: str) -> None:
    native = dialect("native")
    assert native.probe(job_id).url == "/jobs/0197a000-0000-7000-8000-000000000001"
    assert native.act(job_id, "release").url == "/jobs/0197a000-0000-7000-8000-000000000001/release"


def test_credentials_find_the_service_and_the_project() -> None:
    catalog = [
        {"type": kind, "endpoints": [{"interface": "public", "region": "r", "region_id": "r", "url": url}]}
        for kind, url in (("image", "https://ims.example.test"), ("evs", f"{URL}/v2/{PROJECT}"))
    ]
    granted = msgspec.json.encode(
        {"token": {"catalog": catalog, "project": {"id": PROJECT}, "expires_at": "2030-01-01T00:00:00Z"}}
    )
    run = talk(
        Response(201, {"x-subject-token": "granted", "content-type": "application/json"}, granted),
        answer("SUCCESS"),
        project=None,
        token=None,
        endpoint=None,
        credentials=Credentials(auth_url="https://iam.example.test/v3", username="u", password="p", project_name="n"),
    )
    assert wait(run).state is State.SUCCEEDED
    assert [request.url for _, request in run.asked] == ["https://iam.example.test/v3/auth/tokens", PATH]
    assert run.asked[1][1].headers["X-Auth-Token"] == "granted"
