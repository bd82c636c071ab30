"""Rehearsals, asked by the vendors' own unmodified SDKs and by Milepost's client: every wire, every fault."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

import milepost
from milepost import Cadence, errors
from milepost.job import State
from milepost.testing import Rehearsed, rehearsing, rehearsing_in_thread
from milepost.wire import rfc3339

WIRES = ("native", "glance", "huawei-evs", "qiniu")
WAIT_S = 60.0
QUICK = Cadence(every_s=0.05)


def client(cloud: Rehearsed, wire: str, **options: Any) -> milepost.Client:
    return milepost.Client(cloud.url, wire=wire, project="demo", token="any", cadence=options.pop("cadence", QUICK), **options)


# --- the vendors' SDKs ----------------------------------------------------------------------------------------------------------

SDK_SCENARIO = """
[[jobs]]
name = "import"
kind = "import"
input = { import_from = "https://example.org/a.qcow2", import_from_format = "qcow2" }
result = { image_id = "7f3cd8a2-1d0e-4b58-8a65-6d696c65706f" }
states = [{ state = "ready", polls = 1 }, { state = "running", polls = 2, note = "half" }, { state = "succeeded" }]

[[jobs]]
name = "refused"
kind = "import"
polls = 1
ends = "failed"
error = { code = "image_format", message = "the source is no qcow2" }

[[jobs]]
name = "volume"
kind = "createVolume"
polls = 2
result = { volume_id = "7f3cd8a2-1d0e-4b58-8a65-6d696c65706f", name = "one", size = 10, volume_type = "SAS" }

[[jobs]]
name = "batch"
kind = "batchCreateVolume"
[[jobs.sub_jobs]]
kind = "createVolume"
count = 3
fails = 1
polls = 2
error = { code = "volume_quota", message = "no volume is left" }

[[jobs]]
name = "media"
kind = "pfop"
input = { bucket = "b", key = "k", fops = ["imageInfo"] }
[[jobs.sub_jobs]]
kind = "fop"
input = { cmd = "imageInfo" }
result = { key = "out", hash = "Fabc" }
polls = 2

[[submits]]
kind = "*"
polls = 2
"""


@pytest.fixture(scope="module")
def sdk_cloud() -> Iterator[Rehearsed]:
    with rehearsing_in_thread(SDK_SCENARIO) as cloud:
        yield cloud


@pytest.fixture(scope="module", params=["password", "none"])
def openstack(sdk_cloud: Rehearsed, request: pytest.FixtureRequest) -> Iterator[Any]:
    sdk = pytest.importorskip("openstack")
    auth: dict[str, Any] = {"auth_type": "none", "image_endpoint_override": sdk_cloud.url, "auth": {"endpoint": sdk_cloud.url}}
    if request.param == "password":
        words = {"username": "ann", "password": "any", "project_name": "demo", "user_domain_name": "Default"}
        words |= {"auth_url": f"{sdk_cloud.url}/identity", "project_domain_name": "Default"}
        auth = {"region_name": "RegionOne", "auth": words}
    config = sdk.config.OpenStackConfig(load_yaml_config=False, load_envvars=False)
    connection = sdk.connection.Connection(config=config.get_one(**auth))
    yield connection
    connection.close()


def test_openstacksdk_waits_for_a_scripted_task(sdk_cloud: Rehearsed, openstack: Any) -> None:
    name = sdk_cloud.app.stage.find(sdk_cloud.add_job(**json_entry("import"))).name  # type: ignore[union-attr]
    task = openstack.image.get_task(sdk_cloud.id(name))
    done = openstack.image.wait_for_task(task, interval=0.05, wait=WAIT_S)
    assert (done.status, done.result) == ("success", {"image_id": "7f3cd8a2-1d0e-4b58-8a65-6d696c65706f"})
    asked = sdk_cloud.requests(job=name)
    assert [one.state for one in asked] == ["ready", "running", "running", "succeeded"]
    assert {one.wire for one in asked} == {"glance"}
    assert all("openstacksdk" in one.client for one in asked)


def test_openstacksdk_sees_a_scripted_failure_submits_and_lists(sdk_cloud: Rehearsed, openstack: Any) -> None:
    exceptions = pytest.importorskip("openstack.exceptions")
    with pytest.raises(exceptions.ResourceFailure):
        openstack.image.wait_for_task(openstack.image.get_task(sdk_cloud.id("refused")), interval=0.05, wait=WAIT_S)
    assert openstack.image.get_task(sdk_cloud.id("refused")).message == "the source is no qcow2"
    input = {"import_from": "https://example.org/b.raw", "import_from_format": "raw", "image_properties": {}}
    made = openstack.image.create_task(type="import", input=input)
    assert openstack.image.wait_for_task(made, interval=0.05, wait=WAIT_S).status == "success"
    assert {made.id, sdk_cloud.id("refused")} <= {task.id for task in openstack.image.tasks(limit=2)}
    with pytest.raises(exceptions.NotFoundException):
        openstack.image.get_task("7f3cd8a2-1d0e-4b58-8a65-000000000000")


def json_entry(name: str) -> dict[str, Any]:
    """A scenario's job once more, under a name of its own."""
    import tomllib

    entry = next(one for one in tomllib.loads(SDK_SCENARIO)["jobs"] if one["name"] == name)
    del entry["name"]
    return entry


def evs_client(cloud: Rehearsed, package: str, cls: str) -> Any:
    module = pytest.importorskip(package)
    from huaweicloudsdkcore.auth.credentials import BasicCredentials

    made = getattr(module, cls).new_builder().with_credentials(BasicCredentials("ANY", "any", "demo"))
    return module, made.with_endpoint(cloud.url).build()


def poll_job(module: Any, sdk: Any, job_id: str) -> list[Any]:
    """Each answer until the end, as this SDK's users wait."""
    seen, end_s = [], time.monotonic() + WAIT_S
    while not seen or seen[-1].status not in ("SUCCESS", "FAIL"):
        assert time.monotonic() < end_s
        seen.append(sdk.show_job(module.ShowJobRequest(job_id=job_id)))
    return seen


@pytest.mark.parametrize(
    ("package", "cls"), [("huaweicloudsdkevs.v2", "EvsClient"), ("huaweicloudsdkecs.v2", "EcsClient")], ids=["evs", "ecs"]
)
def test_huaweis_sdks_poll_scripted_jobs_with_sub_jobs(sdk_cloud: Rehearsed, package: str, cls: str) -> None:
    module, sdk = evs_client(sdk_cloud, package, cls)
    ids = {name: sdk_cloud.add_job(**json_entry(name)).replace("-", "") for name in ("volume", "batch")}
    seen = poll_job(module, sdk, ids["volume"])
    assert [job.status for job in seen] == ["RUNNING", "RUNNING", "SUCCESS"]
    if cls == "EvsClient":  # the other one has no field for it
        assert seen[-1].entities.volume_id == "7f3cd8a2-1d0e-4b58-8a65-6d696c65706f"
    last = poll_job(module, sdk, ids["batch"])[-1]
    assert (last.status, last.error_code) == ("FAIL", "Common.0021")
    assert [sub.status for sub in last.entities.sub_jobs] == ["SUCCESS", "SUCCESS", "FAIL"]
    assert last.entities.sub_jobs[2].error_code == "EVS.1034"


def test_huaweis_sdk_submits_volumes(sdk_cloud: Rehearsed) -> None:
    evs, sdk = evs_client(sdk_cloud, "huaweicloudsdkevs.v2", "EvsClient")
    volume = evs.CreateVolumeOption(name="many", availability_zone="az-1", volume_type="SAS", size=10, count=2)
    made = sdk.create_volume(evs.CreateVolumeRequest(body=evs.CreateVolumeRequestBody(volume=volume)))
    last = poll_job(evs, sdk, made.job_id)[-1]
    assert (last.job_type, last.status) == ("batchCreateVolume", "SUCCESS")
    assert [sub.entities.volume_id for sub in last.entities.sub_jobs] == made.volume_ids
    larger = evs.ResizeVolumeRequestBody(os_extend=evs.OsExtend(new_size=20))
    asked = evs.ResizeVolumeRequest(volume_id=made.volume_ids[0], body=larger)
    assert poll_job(evs, sdk, sdk.resize_volume(asked).job_id)[-1].job_type == "extendVolume"
    deleted = sdk.delete_volume(evs.DeleteVolumeRequest(volume_id=made.volume_ids[0]))
    assert poll_job(evs, sdk, deleted.job_id)[-1].status == "SUCCESS"


def test_qinius_sdk_submits_and_asks(sdk_cloud: Rehearsed) -> None:
    qiniu = pytest.importorskip("qiniu")
    qiniu.set_default(default_api_host=sdk_cloud.url)
    pfop = qiniu.PersistentFop(qiniu.Auth("ANY", "any"), "bucket")
    ret, _ = pfop.execute("in.jpg", ["imageInfo", "imageView2/2/w/40"])
    media = sdk_cloud.add_job(**json_entry("media"))  # a list is a poll, and others list
    for id in (ret["persistentId"], sdk_cloud.id(media, "qiniu")):
        codes = [pfop.get_status(id)[0]["code"] for _ in range(4)]
        assert (codes[0], codes[-1]) == (2, 0)
        assert codes == sorted(codes, reverse=True)
    last, _ = pfop.get_status(ret["persistentId"])
    assert [item["cmd"] for item in last["items"]] == ["imageInfo", "imageView2/2/w/40"]
    assert pfop.get_status("z0.00000000000000000000000000000000")[1].status_code == 612


# --- Milepost's client, every fault ---------------------------------------------------------------------------------------------

FAULTS: dict[str, dict[str, Any]] = {
    "429 with Retry-After": {"status": 429, "retry_after_s": 1, "times": 2},
    "429 with a date": {"status": 429, "retry_after_s": 1, "retry_after_date": True, "times": 1},
    "429 without": {"status": 429, "times": 3},
    "500": {"status": 500, "times": 2},
    "502 of a proxy": {"status": 502, "body": "<html>Bad Gateway</html>", "times": 2},
    "503": {"status": 503, "times": 2},
    "reset": {"do": "reset", "times": 2},
    "answer lost": {"do": "lose", "times": 2},
    "truncated": {"do": "truncate", "bytes": 30, "times": 2},
    "late": {"do": "delay", "delay_s": 0.3, "times": 2},
    "slow": {"do": "slow", "delay_s": 0.3, "times": 2},
}
WHOLE = ("late", "slow")  # these are no failures


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("wire", WIRES)
def test_a_wait_survives_each_fault_and_counts_as_the_record_does(wire: str, fault: str) -> None:
    scenario = {
        "jobs": [{"name": "job", "kind": "createVolume", "polls": 4}],
        "faults": [{"action": "probe", "after": 1, **FAULTS[fault]}],
    }
    with rehearsing_in_thread(scenario) as cloud, client(cloud, wire) as asking:
        job = asking.get(cloud.id("job", wire))
        job.wait(timeout_s=WAIT_S)
        asked = cloud.requests(job="job")
        played = [one for one in asked if one.fault is not None]
        assert job.view is not None
        assert job.view.state is State.SUCCEEDED
        assert len(played) == FAULTS[fault]["times"]
        assert asked[-1].state == "succeeded"
        assert job.stats.probes == sum(one.action == "probe" for one in asked) - 1  # `get` is none of the wait's
        assert job.stats.failures == (0 if fault in WHOLE else len(played))


@pytest.mark.parametrize("wire", WIRES)
def test_a_proxys_page_instead_of_the_answer_is_named_not_taken_for_a_job(wire: str) -> None:
    scenario = {"jobs": [{"name": "job", "polls": 2}], "faults": [{"do": "garbage", "action": "probe", "times": 1}]}
    with rehearsing_in_thread(scenario) as cloud, client(cloud, wire) as asking:
        with pytest.raises(errors.ProtocolError, match="log in to the network"):
            asking.get(cloud.id("job", wire))
        assert asking.get(cloud.id("job", wire)).wait(timeout_s=WAIT_S).ok


@pytest.mark.parametrize("wire", WIRES)
def test_a_stuck_job_ends_the_wait_and_not_the_job(wire: str) -> None:
    with rehearsing_in_thread({"jobs": [{"name": "job", "ends": "never"}]}) as cloud, client(cloud, wire) as asking:
        job = asking.get(cloud.id("job", wire))
        with pytest.raises(errors.WaitTimeout):
            job.wait(timeout_s=2)
        cloud.finish("job")
        assert job.wait(timeout_s=WAIT_S).ok


@pytest.mark.parametrize("wire", WIRES)
def test_a_job_that_vanishes_is_not_found(wire: str) -> None:
    entry = {"name": "job", "ends": "never", "vanish_after_polls": 3}
    with rehearsing_in_thread({"jobs": [entry]}) as cloud, client(cloud, wire) as asking:
        with pytest.raises(errors.NotFound):
            asking.get(cloud.id("job", wire)).wait(timeout_s=WAIT_S)
        assert [one.status for one in cloud.requests(job="job")][:3] == [200, 200, 200]


@pytest.mark.parametrize("wire", ["huawei-evs", "qiniu"])
def test_a_job_that_is_found_late_is_waited_for_where_it_was_just_submitted(wire: str) -> None:
    with (
        rehearsing_in_thread({"submits": [{"kind": "*", "polls": 2, "found_after_polls": 3}]}) as cloud,
        client(cloud, wire) as asking,
    ):
        if wire == "qiniu":
            job = asking.submit("pfop", {"bucket": "b", "key": "k", "fops": ["imageInfo"]})
        else:
            volume = {"name": "v", "size": 10, "volume_type": "SAS", "availability_zone": "az-1"}
            job = asking.submit("createVolume", {"volume": volume})
        assert job.wait(timeout_s=WAIT_S).ok
        (made,) = cloud.requests(action="submit")
        statuses = [one.status for one in cloud.requests(job=made.job, action="probe")]
        assert statuses[:3] == [statuses[0]] * 3 != [200] * 3
        assert statuses[3:] == [200, 200, 200]


@pytest.mark.parametrize("wire", WIRES)
def test_a_failure_in_part_is_told_by_its_sub_jobs(wire: str) -> None:
    if wire == "glance":
        pytest.skip("this wire shows no sub-jobs")
    subs = [{"name": "s", "kind": "createVolume", "count": 3, "fails": 1, "polls": 2}]
    with rehearsing_in_thread({"jobs": [{"name": "job", "kind": "batchCreateVolume", "sub_jobs": subs}]}) as cloud:
        with client(cloud, wire) as asking, pytest.raises(errors.PartialFailure) as caught:
            asking.get(cloud.id("job", wire)).wait(timeout_s=WAIT_S)
        assert (len(caught.value.succeeded), len(caught.value.failed)) == (2, 1)


@pytest.mark.parametrize("wire", WIRES)
def test_a_clock_that_is_wrong_moves_instants_and_no_wait(wire: str) -> None:
    scenario = {"rehearsal": {"clock_skew_s": -7200}, "jobs": [{"name": "job", "duration_s": 0.3}]}
    with rehearsing_in_thread(scenario) as cloud, client(cloud, wire) as asking:
        begun_s = time.time()
        job = asking.get(cloud.id("job", wire)).wait(timeout_s=WAIT_S)
        assert job.view is not None
        assert job.view.created_us is not None
        assert job.view.created_us / 1e6 == pytest.approx(begun_s - 7200, abs=60)
        assert time.time() - begun_s < 5
        with urllib.request.urlopen(f"{cloud.url}/rehearsal", timeout=60) as answer:
            assert parsedate_to_datetime(answer.headers["date"]).timestamp() == pytest.approx(begun_s - 7200, abs=60)


def test_many_jobs_with_resets_and_bursts_all_end_right() -> None:
    scenario = {
        "jobs": [{"name": "job", "count": 300, "duration_s": {"distribution": "uniform", "max_s": 2.0}, "fails": 30}],
        "faults": [
            {"do": "reset", "chance": 0.02},
            {"do": "truncate", "chance": 0.02},
            {"status": 429, "chance": 0.02, "retry_after_s": 0.2},
            {"status": 503, "from_s": 0.5, "until_s": 0.7},
        ],
    }
    with rehearsing_in_thread(scenario) as cloud, client(cloud, "native", cadence=None) as asking:
        jobs = [cloud.id(f"job-{number}") for number in range(1, 301)]
        ended = asking.wait_all(jobs, timeout_s=60, raise_on_failure=False)
        states = [one.view.state for one in ended if one.view is not None]
        assert (states.count(State.SUCCEEDED), states.count(State.FAILED)) == (270, 30)


# --- native: long polls, lists, streams, verbs; and the direction -------------------------------------------------------------


async def test_virtual_time_moves_when_it_is_told_to_and_wakes_who_waits() -> None:
    scenario = {"jobs": [{"name": "job", "duration_s": 15}]}
    async with rehearsing(scenario, virtual=True) as cloud, milepost.AsyncClient(cloud.url) as asking:
        job = await asking.get(cloud.id("job"))
        waiting = asyncio.create_task(job.wait(timeout_s=WAIT_S))
        async with asyncio.timeout(WAIT_S):
            while cloud.app.time.sleepers < 1:  # the long poll is there
                await asyncio.sleep(0.01)
        cloud.advance(14)
        assert (await asking.get(cloud.id("job"))).view.state is State.RUNNING
        assert not waiting.done()
        cloud.advance(1)
        ended = (await waiting).view
        assert (ended.state, ended.ended_us) == (State.SUCCEEDED, cloud.app.time.start_us + 15_000_000)
        assert len(cloud.requests(job="job")) == 3  # one of them was held until the end


def test_a_watch_follows_the_stream_of_events() -> None:
    states = [{"state": "held"}, {"state": "ready"}, {"state": "running", "for_s": 1}, {"state": "succeeded"}]
    with rehearsing_in_thread({"jobs": [{"name": "job", "states": states}]}) as cloud, client(cloud, "native") as asking:
        asking_to = asking.get(cloud.id("job"))
        seen = []
        for view in asking_to.watch(timeout_s=WAIT_S):
            seen.append(view.state)
            if view.state in (State.HELD, State.READY):
                cloud.command("job", "next")
        assert seen == [State.HELD, State.READY, State.RUNNING, State.SUCCEEDED]
        events = list(asking.events(cloud.id("job")))
        assert [event.seq for event in events] == [1, 2, 3, 4]


def test_a_submit_whose_answer_is_lost_makes_one_job() -> None:
    with rehearsing_in_thread({"faults": [{"do": "lose", "action": "submit", "times": 2}]}) as cloud:
        with client(cloud, "native") as asking:
            job = asking.submit("echo", {"a": 1})
        assert [one.fault for one in cloud.requests(action="submit")] == ["lose", "lose", None]
        assert [actor.id for actor in cloud.app.stage.roots] == [job.id]


def post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def test_the_command_serves_a_scenario_and_is_directed_over_http(tmp_path: Path) -> None:
    path = tmp_path / "cloud.toml"
    jobs = '[[jobs]]\nname = "a/b"\n[[jobs]]\nname = "slow"\nduration_s = 60\n'
    path.write_text('[rehearsal]\nstart = "2026-03-04T05:06:07Z"\n' + jobs)
    line = [sys.executable, "-c", "from milepost.cli.root import run; run()", "rehearse", str(path), "--virtual"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[1]
            assert post(f"{url}/rehearsal/jobs/a/b", {"do": "finish", "result": {"x": 1}})["state"] == "succeeded"
            assert post(f"{url}/rehearsal/advance", {"seconds": 61}) == {
                "elapsed_s": 61.0,
                "now": rfc3339(1772600767_000000 + 61_000000),
                "virtual": True,
            }
            made = post(f"{url}/rehearsal/jobs", {"name": "late", "kind": "echo", "polls": 1})
            post(f"{url}/rehearsal/faults", {"do": "answer", "status": 404, "job": "late", "times": 1})
            with milepost.Client(url) as asking:
                with pytest.raises(errors.NotFound):
                    asking.get(made["jobs"][0]["id"])
                jobs = {job.id: job.view for job in asking.list()}
            assert [view.state for view in jobs.values() if view] == [State.RUNNING, State.SUCCEEDED, State.SUCCEEDED]
            with urllib.request.urlopen(f"{url}/rehearsal/requests", timeout=60) as answer:
                record = json.load(answer)
            assert [(one["action"], one.get("fault"), one["status"]) for one in record["requests"]] == [
                ("probe", "answer", 404),
                ("list", None, 200),
            ]
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
