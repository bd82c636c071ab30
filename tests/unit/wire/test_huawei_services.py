"""The other services' jobs, instants in all their forms, and where each kind is submitted."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from milepost.job import Failure, Progress, State
from milepost.wire.huawei.jobs import Entities
from milepost.wire.huawei.other import SERVICES, Shape, read_view
from milepost.wire.huawei.submits import ROUTES, read_submitted, submit_request
from milepost.wire.huawei.times import at_ms, read_time

AT_US = 1_772_600_767_120_000


@pytest.mark.parametrize(
    ("text", "at_us"),
    [
        ("2026-03-04T05:06:07.120Z", AT_US),
        ("2026-03-04T06:06:07.120+0100", AT_US),
        ("2026-03-04T05:06:07.12", AT_US),
        ("2026-03-04 05:06:07.12 +0000 UTC", AT_US),
        ("2026-03-04T05:06:07Z", AT_US - 120_000),
        (AT_US // 1000, AT_US),
        (AT_US // 1_000_000, AT_US - 120_000),
        ("", None),
        (None, None),
        (True, None),
        ("soon", None),
        ([], None),
        (float("nan"), None),
    ],
)
def test_an_instant_is_read_in_any_form(text: Any, at_us: int | None) -> None:
    assert read_time(text) == at_us


def test_an_instant_has_milliseconds_that_are_cut() -> None:
    assert at_ms(AT_US + 999) == "2026-03-04T05:06:07.120Z"
    assert at_ms(AT_US // 1_000_000 * 1_000_000) == "2026-03-04T05:06:07.000Z"
    assert at_ms(None) == ""


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_names_entities_that_there_are(service: str) -> None:
    difference = SERVICES[service]
    assert set(difference.entities) <= set(Entities.__struct_fields__)
    assert "{project_id}" in difference.path
    assert "{job_id}" in difference.path


@pytest.mark.parametrize("service", [name for name, one in SERVICES.items() if one.shape is Shape.JOB])
def test_every_entity_of_the_table_is_read(service: str) -> None:
    names = [field for field in msgspec.structs.fields(Entities) if field.name in SERVICES[service].entities]
    given = {field.encode_name: 7 if field.name == "size" else f"the {field.name}" for field in names}
    view = read_view(service, json.dumps({"status": "SUCCESS", "job_id": "j", "entities": given}).encode())
    assert msgspec.to_builtins(view.result) == given


def test_a_classic_load_balancers_job_has_no_times() -> None:
    view = read_view("elb", b'{"status":"SUCCESS","entities":{"elb":{"id":"x"}},"job_id":"j","job_type":"createELB"}')
    assert (view.state, view.created_us, view.ended_us) == (State.SUCCEEDED, None, None)
    assert view.raw["entities"] == {"elb": {"id": "x"}}


def envelope(**fields: Any) -> bytes:
    job = {"id": "j-1", "name": "CreateMysqlSingleHAInstance", "created": "2026-03-04T05:06:07+0000", **fields}
    return json.dumps({"job": job}).encode()


@pytest.mark.parametrize("service", ["rds", "dds", "taurusdb"])
@pytest.mark.parametrize(
    ("word", "state"),
    [("Running", State.RUNNING), ("Completed", State.SUCCEEDED), ("Failed", State.FAILED), ("Pending", State.RUNNING)],
)
def test_the_database_services_words_are_known(service: str, word: str, state: State) -> None:
    view = read_view(service, envelope(status=word, ended="2026-03-04T05:07:07Z", instance={"id": "i-1", "name": "db"}))
    assert (view.id, view.state, view.status) == ("j-1", state, word)
    assert view.created_us == 1_772_600_767_000_000
    assert view.ended_us == (1_772_600_827_000_000 if view.done else None)
    assert (view.result.instance_id, view.result.name) == ("i-1", "db")


@pytest.mark.parametrize(
    ("field", "progress"),
    [
        ({"process": "60%"}, Progress(60, 100, "%")),
        ({"progress": "7"}, Progress(7, 100, "%")),
        ({"process": "copying"}, Progress(note="copying")),
        ({"process": ""}, None),
        ({}, None),
    ],
)
def test_the_database_services_tell_their_progress(field: dict[str, str], progress: Progress | None) -> None:
    assert read_view("rds", envelope(status="Running", **field)).progress == progress


def test_a_failed_database_job_says_why() -> None:
    view = read_view("taurusdb", envelope(status="Failed", fail_reason="no quota"))
    assert view.error == Failure("job_failed", "no quota")


@pytest.mark.parametrize("body", [b"{}", b'{"job":null}', b'{"job":{}}', b'{"job":{"status":""}}', b"[]"])
def test_what_has_no_job_is_none(body: bytes) -> None:
    with pytest.raises(ValueError):
        read_view("rds", body)


NODES = {
    "kind": "Job",
    "metadata": {
        "uid": "u-1",
        "creationTimestamp": "2026-03-04 05:06:07.12 +0000 UTC",
        "updateTimestamp": "2026-03-04T05:07:07Z",
    },
    "spec": {
        "type": "CreateNodes",
        "resourceID": "c-1",
        "subJobs": [
            {"metadata": {"uid": "u-2"}, "spec": {"type": "CreateNode", "resourceName": "n-1"}, "status": {"phase": "Success"}},
            {"metadata": {"uid": "u-3"}, "spec": {"type": "CreateNode"}, "status": {"phase": "Failed", "reason": "no quota"}},
            {"metadata": {"uid": "u-4"}},
            None,
        ],
    },
    "status": {"phase": "Failed", "reason": "JobFailed", "message": "one node failed"},
}


def test_a_container_engines_job_has_a_phase_and_sub_jobs() -> None:
    view = read_view("cce", json.dumps(NODES).encode())
    assert (view.id, view.kind, view.state, view.status) == ("u-1", "CreateNodes", State.FAILED, "Failed")
    assert view.error == Failure("JobFailed", "one node failed")
    assert (view.created_us, view.ended_us) == (AT_US, 1_772_600_827_000_000)
    assert [sub.state for sub in view.sub_jobs] == [State.SUCCEEDED, State.FAILED, State.READY]
    assert view.sub_jobs[1].error == Failure("no quota", "no quota")
    assert view.sub_counts == {"succeeded": 1, "failed": 1, "ready": 1}


@pytest.mark.parametrize(
    ("phase", "state"), [("Initializing", State.READY), ("Running", State.RUNNING), ("Success", State.SUCCEEDED)]
)
def test_the_phases_are_known(phase: str, state: State) -> None:
    assert read_view("cce", json.dumps({"status": {"phase": phase}}).encode()).state is state


# --- submits ------------------------------------------------------------------------------------------------------------

INPUTS: dict[str, tuple[dict[str, Any], str, dict[str, Any] | None]] = {
    "createVolume": ({"volume": {"size": 10}}, "POST /v2.1/P/cloudvolumes", {"volume": {"size": 10}}),
    "batchCreateVolume": ({"volume": {"count": 2}}, "POST /v2.1/P/cloudvolumes", {"volume": {"count": 2}}),
    "extendVolume": (
        {"volume_id": "v", "os-extend": {"new_size": 80}},
        "POST /v2.1/P/cloudvolumes/v/action",
        {"os-extend": {"new_size": 80}},
    ),
    "batchExtendVolume": ({"volumes": []}, "POST /v5/P/volumes/batch-extend", {"volumes": []}),
    "deleteVolume": ({"volume_id": "v"}, "DELETE /v2/P/cloudvolumes/v", None),
    "retypeVolume": (
        {"volume_id": "v", "os-retype": {"new_type": "SSD"}},
        "POST /v2/P/volumes/v/retype",
        {"os-retype": {"new_type": "SSD"}},
    ),
    "createServer": ({"server": {"name": "w"}}, "POST /v1.1/P/cloudservers", {"server": {"name": "w"}}),
    "deleteServer": (
        {"servers": [{"id": "s"}], "delete_volume": True},
        "POST /v1/P/cloudservers/delete",
        {"servers": [{"id": "s"}], "delete_volume": True},
    ),
    "startServer": ({"os-start": {}}, "POST /v1/P/cloudservers/action", {"os-start": {}}),
    "stopServer": ({"os-stop": {}}, "POST /v1/P/cloudservers/action", {"os-stop": {}}),
    "rebootServer": ({"reboot": {}}, "POST /v1/P/cloudservers/action", {"reboot": {}}),
    "resizeServer": ({"server_id": "s", "resize": {}}, "POST /v1.1/P/cloudservers/s/resize", {"resize": {}}),
    "batchResizeServer": ({"resize": {"servers": []}}, "POST /v1/P/cloudservers/batch-resize", {"resize": {"servers": []}}),
    "changeOS": ({"server_id": "s", "os-change": {}}, "POST /v2/P/cloudservers/s/changeos", {"os-change": {}}),
    "reInitOs": ({"server_id": "s", "os-reinstall": {}}, "POST /v2/P/cloudservers/s/reinstallos", {"os-reinstall": {}}),
    "attachVolume": (
        {"server_id": "s", "volumeAttachment": {}},
        "POST /v1/P/cloudservers/s/attachvolume",
        {"volumeAttachment": {}},
    ),
    "detachVolume": (
        {"server_id": "s", "volume_id": "v", "delete_flag": 1},
        "DELETE /v1/P/cloudservers/s/detachvolume/v?delete_flag=1",
        None,
    ),
    "addNic": ({"server_id": "s", "nics": []}, "POST /v1/P/cloudservers/s/nics", {"nics": []}),
    "deleteNic": ({"server_id": "s", "nics": []}, "POST /v1/P/cloudservers/s/nics/delete", {"nics": []}),
}


@pytest.mark.parametrize(("kind", "route"), [(kind, route) for table in ROUTES.values() for kind, route in table.items()])
def test_every_kind_goes_where_the_sdks_send_it(kind: str, route: Any) -> None:
    input, line, body = INPUTS[kind]
    request = submit_request(route, input, project="P", token="t")
    assert f"{request.method} {request.url}" == line
    assert (None if request.body is None else json.loads(request.body)) == body
    assert ("X-Client-Token" in request.headers) == kind.startswith(("create", "batchCreate"))


@pytest.mark.parametrize(
    ("kind", "key"), [("extendVolume", "volume_id"), ("extendVolume", "os-extend"), ("deleteVolume", "volume_id")]
)
def test_a_key_that_is_missing_is_named(kind: str, key: str) -> None:
    route = next(table[kind] for table in ROUTES.values() if kind in table)
    input = {name: value for name, value in INPUTS[kind][0].items() if name != key}
    with pytest.raises(KeyError, match=key):
        submit_request(route, input, project="P", token="t")


def test_an_id_cannot_leave_its_place_in_the_path() -> None:
    route = next(table["deleteVolume"] for table in ROUTES.values() if "deleteVolume" in table)
    assert submit_request(route, {"volume_id": "../x?y"}, project="P", token="t").url == "/v2/P/cloudvolumes/..%2Fx%3Fy"


def test_what_a_submit_answers_is_read() -> None:
    told = read_submitted(b'{"job_id":"j","volume_ids":["v-1","v-2"]}')
    assert (told.job_id, told.order_id, told.ids) == ("j", None, ("v-1", "v-2"))
    assert read_submitted(b'{"order_id":"CS1","serverIds":["s"]}').order_id == "CS1"
    assert read_submitted(b'{"jobId":"j","volume_ids":null}').job_id == "j"
    for body in (b"{}", b"[]", b"{", b'{"job_id":null}'):
        with pytest.raises(ValueError):
            read_submitted(body)
