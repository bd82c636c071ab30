"""The job shape of Huawei Cloud without a server: what is written, and what is read of what their clouds really answer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from huawei_jobs import failed, made

from milepost.job import Failure, State
from milepost.wire import huawei
from milepost.wire.huawei.errors import CANCELLED
from milepost.wire.huawei.jobs import EVS_KINDS, PARENTS, Entities

VOLUME = {"volume_id": "v-1", "name": "d-0001", "size": 40, "volume_type": "SAS"}
SPEC = {"name": "d-0002", "size": 40, "volume_type": "SAS", "availability_zone": "az-1a"}
HEX = "0197a000000070008000"
KEYS = {"status", "entities", "job_id", "job_type", "begin_time", "end_time", "error_code", "fail_reason"}


def shown(job: Any, *subs: Any) -> dict[str, Any]:
    found = json.loads(huawei.encode_job(job, subs))
    assert set(found) == KEYS
    return found


def test_a_finished_volume_is_as_the_documents_show_it() -> None:
    assert shown(made("createVolume", State.SUCCEEDED, result=VOLUME)) == {
        "status": "SUCCESS",
        "entities": VOLUME,
        "job_id": HEX + "000000000001",
        "job_type": "createVolume",
        "begin_time": "2026-03-04T05:06:07.001Z",
        "end_time": "2026-03-04T05:06:17.100Z",
        "error_code": None,
        "fail_reason": None,
    }


def test_a_running_batch_has_sub_jobs_and_nothing_else() -> None:
    subs = [
        made("createVolume", State.SUCCEEDED, number=2, result=VOLUME),
        made("createVolume", number=3, input={"volume": SPEC, "volume_id": "v-2"}),
    ]
    parent = made(
        "batchCreateVolume", State.WAITING, sub_total=2, input={"volume": SPEC, "count": 2, "volume_ids": ["v-1", "v-2"]}
    )
    found = shown(parent, *subs)
    assert (found["status"], found["end_time"]) == ("RUNNING", "")
    assert set(found["entities"]) == {"sub_jobs"}
    first, second = found["entities"]["sub_jobs"]
    assert set(first) == set(second) == KEYS
    assert first["entities"] == VOLUME
    assert second["entities"] == {"volume_id": "v-2", "name": "d-0002", "size": 40, "volume_type": "SAS"}
    assert (second["status"], second["job_id"], second["end_time"]) == ("RUNNING", HEX + "000000000003", "")


def test_a_created_server_is_as_the_documents_show_it() -> None:
    sub = made("createSingleServer", State.SUCCEEDED, number=2, input={"server": {"name": "web"}}, result={"server_id": "s-1"})
    found = shown(made("createServer", State.SUCCEEDED, sub_total=1, input={"server": {"name": "web"}, "count": 1}), sub)
    assert found["entities"]["sub_jobs_total"] == 1
    assert found["entities"]["sub_jobs"][0]["entities"] == {"server_id": "s-1"}
    assert (found["status"], found["error_code"], found["fail_reason"]) == ("SUCCESS", None, None)


def test_a_sub_job_queried_itself_has_plain_entities() -> None:
    found = shown(made("createSingleServer", State.SUCCEEDED, result={"server_id": "s-1"}, parent_id="x"))
    assert found["entities"] == {"server_id": "s-1"}


@pytest.mark.parametrize("state", [state for state in State if state is not State.HELD])
@pytest.mark.parametrize("kind", sorted(PARENTS))
def test_sub_jobs_are_an_array_from_the_start(kind: str, state: State) -> None:
    entities = shown(made(kind, state))["entities"]
    assert entities["sub_jobs"] == []
    assert entities.get("sub_jobs_total") == (None if kind in EVS_KINDS else 0)


def test_an_unpaid_job_has_no_entities_yet() -> None:
    found = shown(made("createServer", State.HELD))
    assert (found["status"], found["entities"], found["end_time"]) == ("PENDING_PAYMENT", {}, "")


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (State.HELD, "PENDING_PAYMENT"),
        (State.READY, "INIT"),
        (State.RUNNING, "RUNNING"),
        (State.WAITING, "RUNNING"),
        (State.SUCCEEDED, "SUCCESS"),
        (State.FAILED, "FAIL"),
        (State.CANCELLED, "FAIL"),
    ],
)
def test_every_state_has_its_word(state: State, status: str) -> None:
    assert shown(made("echo", state))["status"] == status


def test_a_cancelled_job_is_a_failure_with_a_code_of_its_own() -> None:
    body = huawei.encode_job(made("extendVolume", State.CANCELLED, error=Failure("cancelled", "asked by an operator")))
    assert json.loads(body)["error_code"] == CANCELLED
    view = huawei.to_view(huawei.decode(body))
    assert (view.state, view.error and view.error.message) == (State.CANCELLED, "asked by an operator")


def test_a_failed_parent_counts_and_each_sub_job_has_its_own_reason() -> None:
    subs = [
        made("createSingleServer", State.SUCCEEDED, number=2, result={"server_id": "s-1"}),
        made("createSingleServer", number=3, input={"server_id": "s-2"}, **failed("no_capacity", "the host has 512 MiB left")),
        made("createSingleServer", State.CANCELLED, number=4, error=Failure("cancelled", "stopped")),
    ]
    found = shown(made("createServer", sub_total=3, **failed("sub_jobs_failed", "2 sub-jobs failed")), *subs)
    assert found["error_code"] == "Common.0021"
    assert found["fail_reason"] == "Subjob fails. 2 of 3 sub-jobs failed, 1 succeeded."
    good, bad, stopped = found["entities"]["sub_jobs"]
    assert (good["error_code"], good["entities"]) == (None, {"server_id": "s-1"})
    assert (bad["error_code"], bad["fail_reason"]) == ("Ecs.0319", "the host has 512 MiB left")
    assert bad["entities"] == {"server_id": "s-2", "errorcode_message": "the host has 512 MiB left"}
    assert stopped["error_code"] == CANCELLED


def test_a_failed_sub_job_of_a_batch_of_volumes_keeps_the_documented_entities() -> None:
    sub = made("createVolume", number=2, input={"volume": SPEC, "volume_id": "v-2"}, **failed("volume_error", "disk is full"))
    found = shown(made("batchCreateVolume", sub_total=1, **failed("sub_jobs_failed")), sub)
    (bad,) = found["entities"]["sub_jobs"]
    assert set(bad["entities"]) == {"volume_id", "name", "size", "volume_type"}
    assert (bad["error_code"], bad["fail_reason"]) == ("EVS.2024", "disk is full")


def test_a_parent_that_failed_by_itself_keeps_its_own_reason() -> None:
    found = shown(made("batchCreateVolume", **failed("deadline", "not ended in time")), made("createVolume", number=2))
    assert (found["error_code"], found["fail_reason"]) == ("EVS.2002", "not ended in time")


def test_success_is_not_shown_while_a_sub_job_still_runs() -> None:
    found = shown(made("createServer", State.SUCCEEDED, sub_total=1), made("createSingleServer", number=2))
    assert (found["status"], found["end_time"]) == ("RUNNING", "")


def test_every_other_kind_has_the_form_of_the_compute_api() -> None:
    assert shown(made("echo", State.SUCCEEDED, input={"text": "x"}, result="x"))["entities"] == {}
    assert shown(made("import", State.SUCCEEDED, result={"image_id": "i-1"}))["entities"] == {"image_id": "i-1"}
    found = shown(made("fan", State.WAITING, sub_total=3), made("part", number=2))["entities"]
    assert (found["sub_jobs_total"], len(found["sub_jobs"])) == (3, 1)


@pytest.mark.parametrize(
    "input", [{"volume": "x", "server_id": "s"}, {"size": "big", "server_id": "s"}, {"name": 5, "server_id": "s"}]
)
def test_a_users_kind_may_mean_something_else_by_a_known_word(input: dict[str, Any]) -> None:
    assert shown(made("mine", input=input))["entities"] == {"server_id": "s"}


@pytest.mark.parametrize("text", [None, b"", b"null", b"[1]", b'"x"', b"7"])
def test_input_and_result_may_be_anything(text: bytes | None) -> None:
    job = msgspec.structs.replace(made("mine"), input=text, result=text)
    assert shown(job)["entities"] == {}


# --- ids --------------------------------------------------------------------------------------------------------------

DASHED = "0197a000-0000-7000-8000-000000000001"


@pytest.mark.parametrize("text", [DASHED, DASHED.upper(), DASHED.replace("-", ""), DASHED.replace("-", "").upper()])
def test_a_job_id_is_read_dashed_or_plain(text: str) -> None:
    assert huawei.read_job_id(text) == DASHED
    assert huawei.job_hex(DASHED) == DASHED.replace("-", "")


@pytest.mark.parametrize("text", ["", "x", DASHED[:-1], DASHED + "0", "g" * 32, "0197a000-0000-7000-8000-00000000000g", "٠" * 32])
def test_what_is_no_job_id_is_none(text: str) -> None:
    assert huawei.read_job_id(text) is None


def test_an_order_names_its_job() -> None:
    order = huawei.order_id(DASHED)
    assert order == "CS0197A000000070008000000000000001"
    assert huawei.read_order_id(order) == DASHED
    assert huawei.read_order_id("CS2603040506ABCD") is None


# --- what their clouds answer -----------------------------------------------------------------------------------------


def read(**fields: Any) -> Any:
    body = {"status": "RUNNING", "entities": {}, "job_id": "ff80", "job_type": "createVolume", "begin_time": "", **fields}
    return huawei.decode(json.dumps(body).encode())


RUNNING = (
    b'{"status":"RUNNING","entities":{"sub_jobs_total":2,"sub_jobs":[{"status":"SUCCESS","entities":{"server_id":"b-1"},'
    b'"job_id":"ff8080828a1b2c3d018a1b2c3d4e0002","job_type":"createSingleServer","begin_time":"2026-03-04T05:06:07.120Z",'
    b'"end_time":"2026-03-04T05:07:01.003Z","error_code":null,"fail_reason":null},{"status":"RUNNING","entities":{},'
    b'"job_id":"ff8080828a1b2c3d018a1b2c3d4e0003","job_type":"createSingleServer","begin_time":"2026-03-04T05:06:08.000Z",'
    b'"end_time":"","error_code":null,"fail_reason":null}]},"job_id":"ff8080828a1b2c3d018a1b2c3d4e0001",'
    b'"job_type":"createServer","begin_time":"2026-03-04T05:06:07.000Z","end_time":"","error_code":null,"fail_reason":null}'
)


def test_the_golden_example_is_read_and_written_byte_for_byte() -> None:
    job = huawei.decode(RUNNING)
    assert huawei.encode(job) == RUNNING
    view = huawei.to_view(job)
    assert (view.state, view.kind, view.sub_counts) == (State.RUNNING, "createServer", {"succeeded": 1, "running": 1})
    assert view.created_us == 1_772_600_767_000_000
    assert [sub.parent_id for sub in view.sub_jobs] == [view.id, view.id]
    assert view.sub_jobs[0].result.server_id == "b-1"
    assert view.sub_jobs[0].ended_us == 1_772_600_821_003_000
    assert view.sub_jobs[1].result is None


def test_no_total_and_no_sub_jobs_are_written_for_what_had_none() -> None:
    body = b'{"status":"SUCCESS","entities":{"volume_id":"v-1","name":"d","size":40,"volume_type":"SAS"},"job_id":"x",'
    body += b'"job_type":"createVolume","begin_time":"2026-03-04T05:06:07.001Z","end_time":"2026-03-04T05:06:17.100Z",'
    body += b'"error_code":null,"fail_reason":null}'
    assert huawei.encode(huawei.decode(body)) == body


@pytest.mark.parametrize("nothing", [None, "", [], 0, "x"])
def test_entities_may_be_nothing(nothing: Any) -> None:
    assert read(entities=nothing).entities == Entities()


@pytest.mark.parametrize("nothing", [None, "", 0, {}, "blank"])
def test_sub_jobs_may_be_nothing(nothing: Any) -> None:
    assert read(entities={"sub_jobs": nothing, "sub_jobs_total": None}).entities == Entities()
    assert huawei.to_view(read(status="SUCCESS", entities={"sub_jobs": nothing})).sub_jobs == ()


@pytest.mark.parametrize(
    ("size", "seen"), [(40, 40), ("40", 40), (40.0, 40), ("", None), (None, None), ("big", None), (True, None)]
)
def test_a_size_may_be_text(size: Any, seen: int | None) -> None:
    assert read(entities={"size": size}).entities.size == seen


def test_sub_jobs_may_be_at_the_top_level() -> None:
    job = read(
        entities={"backup_id": "b"}, sub_jobs=[{"status": "FAIL", "job_id": "2", "entities": None, "error_code": "VBS.1"}, None]
    )
    view = huawei.to_view(job)
    assert (view.result.backup_id, [sub.state for sub in view.sub_jobs]) == ("b", [State.FAILED])


def test_a_sub_job_may_lack_anything() -> None:
    view = huawei.to_view(read(entities={"sub_jobs": [{}, {"status": None, "job_id": None}, 7]}))
    assert [(sub.id, sub.state) for sub in view.sub_jobs] == [("", State.READY), ("", State.READY)]


@pytest.mark.parametrize("word", ["WAITING_EXECUTE", "LISTENING", "ROLLBACK", "weird"])
def test_a_status_that_nobody_knows_is_a_job_that_still_runs(word: str) -> None:
    view = huawei.to_view(read(status=word))
    assert (view.state, view.status, view.done) == (State.RUNNING, word, False)


def test_a_status_in_small_letters_is_the_same_one() -> None:
    assert huawei.to_view(read(status="success")).state is State.SUCCEEDED


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"code": "EVS.2024", "message": "volume is error!"}},
        {"code": "EVS.2024", "message": "volume is error!"},
        {"error_code": "EVS.2024", "fail_reason": "volume is error!"},
    ],
)
def test_a_failure_says_why_in_any_of_its_forms(error: dict[str, Any]) -> None:
    view = huawei.to_view(read(status="FAIL", **error))
    assert view.error == Failure("EVS.2024", "volume is error!", {"reason": "volume_error"})


def test_a_failure_without_a_reason_is_a_failure() -> None:
    assert huawei.to_view(read(status="FAIL", error_code=None, fail_reason=None)).error is not None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}", b'{"status":null}', b'{"status":""}', b'{"job_id":"x"}'])
def test_what_has_no_status_is_no_job(body: bytes) -> None:
    with pytest.raises(ValueError):  # msgspec's errors are ValueErrors, too
        huawei.decode(body)


def test_the_error_of_a_query_is_told() -> None:
    with pytest.raises(ValueError, match=r"Common\.0011: query job fail"):
        huawei.decode(b'{"error":{"message":"query job fail.","code":"Common.0011"}}')


def test_a_parent_that_announces_more_than_it_shows_is_counted_whole() -> None:
    view = huawei.to_view(read(entities={"sub_jobs_total": 3, "sub_jobs": [{"status": "RUNNING", "job_id": "2"}]}))
    assert view.sub_counts == {"running": 1, "ready": 2}
