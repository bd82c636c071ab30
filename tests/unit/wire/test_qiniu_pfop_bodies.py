"""Persistent processing on the wire: golden exchanges, presence rules, codes, and what is read of other people's answers."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from milepost.job import Callback, Failure, Job, JobId, Progress, ProjectId, State
from milepost.wire.qiniu import pfop, prefop
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.signing import qiniu as signing

ID = JobId("01a2011e-d311-7b79-a179-29671652251f")
HEX = "z0.01a2011ed3117b79a17929671652251f"
AT_US = 1_772_600_767_123_456  # 2026-03-04T05:06:07.123456Z
CMD = "avthumb/mp4|saveas/bWVkaWE6b3V0L2EubXA0"


def job(**fields: Any) -> Job:
    known: dict[str, Any] = {
        "id": ID,
        "kind": "pfop",
        "state": State.READY,
        "project": ProjectId("demo"),
        "queue": "media",
        "priority": 5,
        "labels": {},
        "input": msgspec.json.encode({"bucket": "media", "key": "in/a.mp4", "fops": [CMD]}),
        "result": None,
        "error": None,
        "progress": Progress(),
        "attempt": 0,
        "attempts_max": 1,
        "crashes": 0,
        "timeout_s": None,
        "deadline_us": None,
        "parent_id": None,
        "root_id": ID,
        "position": 0,
        "sub_total": 0,
        "retry_of": None,
        "cancel_requested": False,
        "callback": None,
        "origin": {"reqid": "gUAAADxYt7J1AaAY"},
        "created_us": AT_US,
        "run_at_us": AT_US,
        "started_us": None,
        "ended_us": None,
        "updated_us": AT_US,
        "expires_us": None,
        "version": 1,
        "fence": 0,
        "lease_by": None,
    }
    return Job(**{**known, **fields})


def item(state: State, result: Any = None, *, cmd: str = CMD, error: Failure | None = None, **fields: Any) -> Job:
    text = None if state is not State.SUCCEEDED else msgspec.json.encode(result)
    asked = {"bucket": "media", "key": "in/a.mp4", "cmd": cmd}
    return job(kind="fop", state=state, parent_id=ID, input=msgspec.json.encode(asked), result=text, error=error, **fields)


def shown(one: Job, *subs: Job, **options: Any) -> Any:
    return json.loads(prefop.encode_status(one, subs, **options))


# --- the submit ------------------------------------------------------------------------------------------------------------


def test_the_golden_submit_is_what_is_written_and_signed() -> None:
    form = pfop.Form(bucket="media", key="in/a.mp4", fops="avthumb/mp4", force=True)
    body = b"bucket=media&key=in%2Fa.mp4&fops=avthumb%2Fmp4&force=1"
    request = pfop.submit_request(form)
    assert (request.method, request.url, request.body) == ("POST", "/pfop", body)
    key = signing.Key("ak", "sk")
    sent = msgspec.structs.replace(request, url="http://api.example.test/pfop/")
    assert signing.sign(sent, key).headers["Authorization"] == "Qiniu ak:ZVDfwGAkV75EBr7hUzBJugu8a6k="
    assert signing.sign(sent, key, scheme=signing.Scheme.QBOX).headers["Authorization"] == "QBox ak:i8aciTinWWtprGRd1IA4KDe2a8Q="
    assert pfop.encode_submitted("z0.5f0000000000000000000001") == b'{"persistentId":"z0.5f0000000000000000000001"}'
    assert pfop.read_submitted(b'{"persistentId":"z0.5F","more":1}') == "z0.5F"


def test_every_field_of_the_form_is_read() -> None:
    fields = {
        "bucket": "media",
        "key": "",
        "fops": "a;b",
        "notifyURL": "http://x/",
        "pipeline": "p",
        "force": "1",
        "type": "1",
        "workflowTemplateID": "w",
    }
    assert pfop.read_form(fields) == pfop.Form(
        bucket="media", key="", fops="a;b", notify_url="http://x/", pipeline="p", force=True, idle=True, workflow_id="w"
    )


@pytest.mark.parametrize(
    "fields", [{}, {"bucket": "b"}, {"key": "k"}, {"bucket": "", "key": "k"}, {"bucket": "b", "key": "k", "force": "yes"}]
)
def test_a_form_without_what_it_needs_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(Refusal) as caught:
        pfop.read_form(fields)
    assert caught.value.status == 400


def test_ids_keep_their_case_and_name_their_region() -> None:
    assert pfop.as_persistent_id(ID) == HEX
    assert pfop.as_persistent_id("z1.0A22ABC") == "z1.0A22ABC"
    assert [pfop.region_of(id) for id in (HEX, "na0.01z", "cn-east-2.01z", "16864pauo1vc9nhp12")] == [
        "z0",
        "na0",
        "cn-east-2",
        None,
    ]
    assert pfop.status_request("z0.A+b&c").url == "/status/get/prefop?id=z0.A%2Bb%26c"


def test_pipelines() -> None:
    assert [pfop.pipeline_name(name, "demo") for name in ("", "0.default", "default.sys", "demo.default.sys", "demo.a", "a")] == [
        "", "", "", "", "a", "a",
    ]  # fmt: skip
    assert [pfop.pipeline_shown(name, "demo") for name in ("", "a")] == ["0.default", "demo.a"]


# --- the status ------------------------------------------------------------------------------------------------------------


def test_the_golden_waiting_status() -> None:
    expected = (
        f'{{"id":"{HEX}","pipeline":"0.default","code":1,"desc":"The fop is waiting for execution","reqid":"gUAAADxYt7J1AaAY",'
        '"inputBucket":"media","inputKey":"in/a.mp4","creationDate":"2026-03-04T13:06:07.123456000+08:00",'
        f'"items":[{{"cmd":"{CMD}","code":1,"desc":"The fop is waiting for execution","returnOld":0}}]}}'
    )
    assert prefop.encode_status(job()).decode() == expected


def test_the_golden_items() -> None:
    done = "The fop was completed successfully"
    stored = item(State.SUCCEEDED, {"bucket": "media", "key": "out/a.mp4", "hash": "Fs", "return_old": 1})
    info = item(State.SUCCEEDED, {"bucket": "media", "result": {"format": {"duration": "2.0"}}}, cmd="avinfo")
    several = item(State.SUCCEEDED, {"bucket": "media", "keys": ["1.jpg", "2.jpg"]}, cmd="vsample/jpg")
    failed = item(State.FAILED, cmd="avthumb/mp4", error=Failure("fop_failed", "not a valid media", {"error_index": 0}))
    lost = item(State.FAILED, cmd="avthumb/mp4", error=Failure("poison", "three workers died"))
    found = shown(job(state=State.FAILED, sub_total=5), stored, info, several, failed, lost)
    assert (found["code"], found["desc"]) == (3, "The fop is failed")
    assert found["items"] == [
        {"cmd": CMD, "code": 0, "desc": done, "hash": "Fs", "key": "out/a.mp4", "returnOld": 1},
        {"cmd": "avinfo", "code": 0, "desc": done, "result": {"format": {"duration": "2.0"}}, "returnOld": 0},
        {"cmd": "vsample/jpg", "code": 0, "desc": done, "keys": ["1.jpg", "2.jpg"], "returnOld": 0},
        {
            "cmd": "avthumb/mp4",
            "code": 3,
            "desc": "The fop is failed",
            "error": "execute fop cmd failed: not a valid media",
            "errorIndex": 0,
            "returnOld": 0,
        },
        {
            "cmd": "avthumb/mp4",
            "code": 3,
            "desc": "The fop is failed",
            "error": "execute fop cmd failed: three workers died",
            "returnOld": 0,
        },
    ]


@pytest.mark.parametrize(
    ("state", "subs", "code"),
    [
        (State.HELD, [], 1),
        (State.RUNNING, [], 1),
        (State.WAITING, [State.READY, State.READY], 1),
        (State.WAITING, [State.READY, State.RUNNING], 2),
        (State.WAITING, [State.SUCCEEDED, State.READY], 2),
        (State.WAITING, [State.FAILED, State.RUNNING], 2),
        (State.READY, [State.SUCCEEDED, State.FAILED], 2),
        (State.SUCCEEDED, [State.SUCCEEDED], 0),
        (State.FAILED, [State.SUCCEEDED, State.FAILED], 3),
        (State.CANCELLED, [State.CANCELLED], 3),
        (State.FAILED, [], 3),
    ],
)
def test_the_code_follows_the_job_and_its_items(state: State, subs: list[State], code: int) -> None:
    assert shown(job(state=state, sub_total=len(subs)), *(item(sub, {}) for sub in subs))["code"] == code


def test_4_is_only_of_what_succeeded() -> None:
    told = {"callback": Callback("http://x/")}
    assert shown(job(state=State.SUCCEEDED, **told), undelivered=True)["code"] == 4
    assert shown(job(state=State.SUCCEEDED, **told), undelivered=True)["desc"] == "Callback failed"
    assert shown(job(state=State.FAILED, **told), undelivered=True)["code"] == 3


def test_what_ended_before_its_items_were_made_has_failed_items() -> None:
    found = shown(job(state=State.CANCELLED, error=Failure("cancelled", "cancelled on request")))
    assert [one["error"] for one in found["items"]] == ["execute fop cmd failed: cancelled on request"]


def test_idle_and_workflow_are_shown_only_of_those() -> None:
    text = {"bucket": "b", "key": "k", "fops": ["a"], "idle": True, "task_from": "workflow: w", "pipeline": "fast"}
    found = shown(job(input=msgspec.json.encode(text)))
    assert (found["type"], found["taskFrom"], found["pipeline"]) == (1, "workflow: w", "demo.fast")
    assert list(found) == [
        "id", "pipeline", "code", "desc", "reqid", "inputBucket", "inputKey", "type", "creationDate", "taskFrom", "items",
    ]  # fmt: skip
    assert not {"type", "taskFrom"} & shown(job()).keys()


def test_a_job_of_any_other_kind_is_shown_with_its_sub_jobs_as_items() -> None:
    other = job(kind="createServer", input=b'{"bucket":7,"name":"x"}', origin={}, state=State.SUCCEEDED, result=b"{}")
    alone = shown(other)
    assert (alone["items"], alone["code"], alone["inputBucket"], len(alone["reqid"])) == ([], 0, "", 16)
    assert shown(other)["reqid"] == alone["reqid"]
    sub = job(kind="createVolume", input=b"[]", state=State.SUCCEEDED, result=b'{"volume_id":"v"}')
    (shown_sub,) = shown(other, sub)["items"]
    assert (shown_sub["cmd"], shown_sub["result"]) == ("createVolume", {"volume_id": "v"})
    (own,) = shown(item(State.SUCCEEDED, {"key": "k", "hash": "h"}))["items"]
    assert (own["cmd"], own["key"]) == (CMD, "k")


# --- reading what others answer ------------------------------------------------------------------------------------------------


def test_a_real_answer_of_2024_is_read() -> None:
    body = json.dumps(
        {
            "id": "z0.01z001cwwyu1m7ck3o00mtsqgq001sm5",
            "pipeline": "1380.default.sys",
            "code": 3,
            "desc": "The fop is failed",
            "reqid": "ffmpeg.3hMAAH3p5Gupb6oT",
            "inputBucket": "b",
            "inputKey": "k",
            "creationDate": "2024-08-27T19:02:44.664312968+08:00",
            "items": [
                {
                    "cmd": "mkzip/2/x|saveas/eA==",
                    "code": 3,
                    "desc": "The fop is failed",
                    "error": "execute fop cmd failed: failed to GET http://x",
                    "errorIndex": 0,
                    "returnOld": 0,
                },
                {"cmd": "avinfo", "code": 0, "desc": "d", "error": "", "hash": "", "key": "", "result": {"a": 1}, "returnOld": 0},
                {"cmd": "new", "code": 9, "desc": "?", "returnOld": 0, "unknown": []},
            ],
        }
    ).encode()
    view = prefop.to_view(prefop.decode(body))
    assert (view.id, view.state, view.status) == ("z0.01z001cwwyu1m7ck3o00mtsqgq001sm5", State.FAILED, "3")
    assert view.created_us == 1_724_756_564_664_312
    assert [sub.state for sub in view.sub_jobs] == [State.FAILED, State.SUCCEEDED, State.RUNNING]
    first, second, _ = view.sub_jobs
    assert first.error == Failure("fop_failed", "failed to GET http://x", {"cmd": "mkzip/2/x|saveas/eA==", "error_index": 0})
    assert (first.kind, first.parent_id) == ("mkzip", view.id)
    assert second.result.result == {"a": 1}
    assert second.result.key is msgspec.UNSET
    assert view.error is not None
    assert "1 of 3" in view.error.message


def test_zeros_that_go_leaves_out_are_read() -> None:
    status = prefop.decode(b'{"id":"16864pauo1vc9nhp12","items":[{"cmd":"avinfo","hash":"h","key":"k"}]}')
    assert (status.code, status.desc, status.items[0].code, status.items[0].key) == (0, prefop.DESC[0], 0, "k")
    assert prefop.to_view(status).created_us is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"id":""}', b'{"id":"x","code":"0"}', b'{"error":"x"}', b"null"])
def test_what_is_no_status_is_told_apart(body: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, ValueError)):
        prefop.decode(body)


@pytest.mark.parametrize("text", ["2024-08-27T19:02:44+08:00", "2024-08-27T11:02:44.5Z", "2024-08-27T11:02:44.000000001Z"])
def test_dates_of_any_precision_are_read(text: str) -> None:
    found = prefop.read_date(text)
    assert found is not None
    assert found // 1_000_000 == 1_724_756_564


@pytest.mark.parametrize("text", ["", "yesterday", "2024-13-01T00:00:00Z", None, 7])
def test_what_is_no_date_is_none(text: object) -> None:
    assert prefop.read_date(text) is None


def test_several_objects_may_have_an_answer_that_tells_of_them():
    told = [{"index": 0, "segment_filename": "a000000.mp4", "segment_start_time": "0.000000", "segment_end_time": "5.080000"}]
    made = {"bucket": "media", "keys": ["a000000.mp4"], "hash": "Fh", "result": told}
    (shown,) = prefop.show_status(job(state=State.SUCCEEDED), [item(State.SUCCEEDED, made, cmd="segment/mp4")]).items
    assert json.loads(prefop.encode(shown)) == {
        "cmd": "segment/mp4",
        "code": 0,
        "desc": "The fop was completed successfully",
        "hash": "Fh",
        "keys": ["a000000.mp4"],
        "result": told,
        "returnOld": 0,
    }
