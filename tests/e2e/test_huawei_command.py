"""The real command and both clients on Huawei's wire: against answers as their cloud gives them, and against a running server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rig import Done, Server, milepost

import milepost as package
from milepost import errors

PROJECT = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
AT = {"begin_time": "2026-03-04T05:06:07.000Z", "end_time": "2026-03-04T05:07:01.003Z", "error_code": None, "fail_reason": None}


def sub(status: str, number: int, **fields: Any) -> dict[str, Any]:
    entities = {"server_id": f"b-{number}"} if status == "SUCCESS" else {}
    return {"status": status, "entities": entities, "job_id": f"s-{number}", "job_type": "createSingleServer", **AT, **fields}


def servers(status: str, *subs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    entities = {"sub_jobs_total": len(subs), "sub_jobs": list(subs)}
    return {"status": status, "entities": entities, "job_id": "ff80", "job_type": "createServer", **AT, **fields}


BROKEN = {"error_code": "Ecs.0319", "fail_reason": "Insufficient resources for this flavor."}
# What the cloud answers, in turn, the last one for ever.
RECORDED: dict[str, list[tuple[int, Any]]] = {
    "good": [
        (200, servers("INIT")),
        (200, servers("RUNNING", sub("RUNNING", 1, end_time=""), sub("INIT", 2, end_time=""))),
        (502, "<html>bad gateway</html>"),
        (200, servers("RUNNING", sub("SUCCESS", 1), sub("RUNNING", 2, end_time=""))),
        (429, {"error_code": "APIGW.0308", "error_msg": "The throttling threshold has been reached", "request_id": "g"}),
        (200, servers("SUCCESS", sub("SUCCESS", 1), sub("SUCCESS", 2))),
    ],
    "partly": [
        (200, servers("FAIL", sub("SUCCESS", 1), sub("FAIL", 2, **BROKEN), error_code="Common.0021", fail_reason="Subjob fails."))
    ],
    "bad": [(200, servers("FAIL", sub("FAIL", 1, **BROKEN), error_code="Common.0021", fail_reason="Subjob fails."))],
    "bare": [(200, {"status": "SUCCESS"})],
    "slow": [(200, servers("RUNNING"))],
    "unknown": [(400, {"error": {"code": "Common.0011", "message": "Failed to query system tasks."}})],
    "refused": [(401, {"error_code": "APIGW.0301", "error_msg": "Incorrect IAM authentication information", "request_id": "g"})],
}


class Cloud(BaseHTTPRequestHandler):
    """Answers what was recorded for the last word of the path."""

    asked: dict[str, int] = {}

    def do_GET(self) -> None:  # the name is the library's
        name = self.path.rpartition("/")[2]
        assert self.path == f"/v1/{PROJECT}/jobs/{name}"
        turn = self.asked[name] = self.asked.get(name, -1) + 1
        status, body = RECORDED[name][min(turn, len(RECORDED[name]) - 1)]
        text = body if isinstance(body, str) else json.dumps(body)
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/json")
        self.send_header("X-Request-Id", f"req-{turn}")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def cloud() -> Iterator[str]:
    Cloud.asked = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cloud)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def ask(cloud: str, *arguments: str) -> Done:
    return milepost(*arguments, "--wire", "huawei-ecs", "--endpoint", cloud, "--project", PROJECT, "--token", "t")


@pytest.mark.parametrize(("name", "code"), [("good", 0), ("bare", 0), ("bad", 1), ("partly", 3), ("unknown", 6), ("refused", 8)])
@pytest.mark.parametrize("verb", ["wait", "watch"])
def test_the_exit_code_says_what_it_came_to(cloud: str, verb: str, name: str, code: int) -> None:
    done = ask(cloud, verb, name, "--every", "0.05")
    assert done.code == code, done.err


def test_waiting_no_longer_is_not_failing(cloud: str) -> None:
    done = ask(cloud, "wait", "slow", "--timeout", "3", "--json")
    assert (done.code, done.json["error"]["code"]) == (4, "wait_timeout")


def test_a_watch_shows_the_sub_jobs_that_changed(cloud: str) -> None:
    views = ask(cloud, "watch", "good", "--every", "0.05", "--json").lines
    assert [[one["state"] for one in view.get("tree", [])] for view in views] == [
        [],
        ["running", "ready"],
        ["succeeded", "running"],
        ["succeeded", "succeeded"],
    ]
    assert [one["result"] for one in views[-1]["tree"]] == [{"server_id": "b-1"}, {"server_id": "b-2"}]


def test_get_tells_of_each_sub_job(cloud: str) -> None:
    out = ask(cloud, "get", "partly").out
    assert 's-1  succeeded  {"server_id": "b-1"}' in out
    assert "s-2  failed  Insufficient resources for this flavor." in out
    assert ask(cloud, "get", "partly", "--raw").json == RECORDED["partly"][0][1]


def test_what_the_cloud_cannot_do_is_said(cloud: str) -> None:
    assert "cannot list jobs" in (done := ask(cloud, "list")).err
    assert done.code == 8
    assert "cannot cancel a job" in ask(cloud, "cancel", "slow").err
    done = milepost("get", "good", "--wire", "huawei-ecs", "--endpoint", cloud)
    assert (done.code, "needs a project id" in done.err) == (2, True)
    assert Cloud.asked == {}


def test_both_clients_carry_what_succeeded_and_what_did_not(cloud: str) -> None:
    options: dict[str, Any] = {"wire": "huawei-ecs", "project": PROJECT, "token": "t"}

    async def wait() -> errors.PartialFailure:
        async with package.AsyncClient(cloud, **options) as client:
            with pytest.raises(errors.PartialFailure) as raised:
                await client.wait("partly", timeout_s=60)
            return raised.value

    with package.Client(cloud, **options) as client, pytest.raises(errors.PartialFailure) as raised:
        client.wait("partly", timeout_s=60)
    for error in (raised.value, asyncio.run(wait())):
        assert [one.result.server_id for one in error.succeeded] == ["b-1"]
        assert [(one.id, one.error.code) for one in error.failed] == [("s-2", "Ecs.0319")]


# --- a running server -------------------------------------------------------------------------------------------------

VOLUME = {"size": 10, "volume_type": "SAS", "availability_zone": "az-1", "name": "d"}


def test_volumes_are_made_extended_and_deleted_by_name_of_their_jobs(server: Server) -> None:
    with package.Client(server.url, wire="huawei-evs", project="default") as client:
        job = client.submit("batchCreateVolume", {"volume": {**VOLUME, "count": 2}})
        view = client.wait(job, timeout_s=30).view
        assert [one.result.name for one in view.sub_jobs] == ["d-0001", "d-0002"]
        volume_id = view.sub_jobs[0].result.volume_id
        with pytest.raises(errors.InvalidInput) as raised:
            client.submit("extendVolume", {"volume_id": volume_id, "os-extend": {"new_size": 5}})
        assert (raised.value.fields["cloud_code"], raised.value.fields["reason"]) == ("EVS.1015", "volume_shrink")
        extended = client.wait(
            client.submit("extendVolume", {"volume_id": volume_id, "os-extend": {"new_size": 20}}), timeout_s=30
        )
        assert extended.result.size == 20
        for one in view.sub_jobs:
            client.wait(client.submit("deleteVolume", {"volume_id": one.result.volume_id}), timeout_s=30)
        with pytest.raises(errors.NotFound):
            client.submit("deleteVolume", {"volume_id": volume_id})


def test_a_create_repeated_with_its_key_is_one_job(server: Server) -> None:
    with package.Client(server.url, wire="huawei-evs", project="default") as client:
        first, second = (client.submit("createVolume", {"volume": VOLUME}, idempotency_key="hw-key") for _ in range(2))
        assert first.id == second.id
        volume_id = client.wait(first, timeout_s=30).result.volume_id
        client.wait(client.submit("deleteVolume", {"volume_id": volume_id}), timeout_s=30)


def test_an_unpaid_order_is_a_held_job_until_it_is_released(server: Server) -> None:
    with package.Client(server.url, wire="huawei-evs", project="default") as client:
        job = client.submit(
            "createVolume", {"volume": VOLUME, "bssParam": {"chargingMode": "prePaid", "periodType": "month", "periodNum": 1}}
        )
        assert client.get(job.id).status == "PENDING_PAYMENT"
        assert server.run("release", job.id, "--project", "default").code == 0
        volume_id = client.wait(job, timeout_s=30).result.volume_id
        client.wait(client.submit("deleteVolume", {"volume_id": volume_id}), timeout_s=30)


def test_any_job_of_the_server_is_followed_with_its_sub_jobs(server: Server) -> None:
    job = server.run("submit", "fan", '{"n": 3, "fail": [1]}', "--json").json
    done = server.run("wait", job["id"], "--wire", "huawei-ecs", "--project", "default", "--json")
    assert (done.code, done.json["error"]["code"]) == (3, "Common.0021")
    assert sorted(one["state"] for one in done.json["tree"]) == ["failed", "succeeded", "succeeded"]
    (broken,) = [one for one in done.json["tree"] if one["state"] == "failed"]
    assert broken["error"]["message"] == "the part is broken"
    again = server.run("get", broken["id"], "--wire", "huawei-ecs", "--project", "default", "--json").json
    assert (again["state"], again["sub_jobs"]) == ("failed", {})


def test_another_projects_job_is_not_found(server: Server) -> None:
    job = server.run("submit", "echo", '{"text": "x"}', "--json").json
    assert server.run("get", job["id"], "--wire", "huawei-ecs", "--project", "other").code == 6
