"""Huawei's URLs over the application: callers, errors in the vendor's manner, the job query and what it keeps, submits."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from server_house import Crowd, House, Web, open_house

from milepost.compute import SERVER, Server, VmState, encode_server
from milepost.engine.admission import Admission, Admitted
from milepost.errors import Conflict
from milepost.image import IMAGE, Image, ImageStatus, encode_image
from milepost.job import Failed, Failure, State
from milepost.server.facades.huawei.jobs import text_of
from milepost.server.texts import Texts
from milepost.store import Resource

PROJECT = "p1"
ID = "9c0d1e2f-0000-4000-8000-000000000002"
IMAGE_ID = "11111111-2222-4333-8444-555555555555"
VOLUME = {"volume": {"availability_zone": "az-1", "volume_type": "SAS", "size": 10}}
KINDS = (
    "createVolume", "batchCreateVolume", "extendVolume", "batchExtendVolume", "deleteVolume", "bulkDeleteVolume", "retypeVolume",
    "createServer", "deleteServer", "startServer", "stopServer", "rebootServer", "resizeServer", "changeOS", "reInitOs",
    "attachVolume", "detachVolume", "addNic", "deleteNic",
)  # fmt: skip


async def admit(ask: Admission, spec: Any) -> Admitted:
    """As the real ones: ids are chosen here."""
    if "volume" in spec:
        spec = {**spec, "volume_ids": [f"v-{number}" for number in range(spec.get("count", 1))]}
    if "server" in spec:
        spec = {**spec, "server_ids": [f"s-{number}" for number in range(spec["count"])]}
        if spec["server"]["name"] == "refused":
            raise Conflict("the flavor is the same", reason="flavor_same")
    return Admitted(input=spec)


def add_kinds(house: House) -> House:
    """Those that the house does not have."""

    async def work(job: Any, spec: dict[str, Any]) -> None: ...

    for name in KINDS:
        if name in house.service.kinds:
            continue
        house.service.kinds.kind(name, queue="cloud", admit=admit)(work)
    return house


@pytest.fixture
async def cloud() -> AsyncIterator[House]:
    async with open_house() as house:
        yield add_kinds(house)


def server(**fields: Any) -> Server:
    given = {
        "id": ID,
        "project": PROJECT,
        "name": "web",
        "vm_state": VmState.ACTIVE,
        "flavor_id": "t6.nano.1",
        "image_id": IMAGE_ID,
        "created_us": 1,
        "updated_us": 1,
        **fields,
    }
    return Server(**given)


async def put(house: House, type: str, id: str, doc: bytes) -> None:
    resource = Resource(type=type, id=id, project=PROJECT, doc=doc, created_us=1, updated_us=1, version=0)  # type: ignore[arg-type]
    await house.store.put_resource(resource)


# --- callers and errors ------------------------------------------------------------------------------------------------


async def test_whose_fault_it_is_decides_the_form_of_a_refusal(crowd: Crowd) -> None:
    web, path = crowd.house.web, f"/v2/{crowd.demo}/cloudvolumes/detail"
    none = await web.get(path)
    assert (none.status, none.json["error_code"]) == (401, "APIGW.0301")
    assert none.json["request_id"] == none.headers["x-request-id"]
    wrong = await web.get(path, {"x-auth-token": "wrong"})
    assert (wrong.status, wrong.json["error"]["code"]) == (401, "Common.0013")
    other = await web.get(path, {"x-auth-token": crowd.stranger})
    assert (other.status, other.json["error"]["code"]) == (400, "Common.0018")
    own = await web.get(path, {"x-auth-token": crowd.member})
    assert (own.status, own.json) == (200, {"count": 0, "volumes": [], "volumes_links": []})
    unknown = await web.get("/v2/nobody/cloudvolumes/detail", {"x-auth-token": crowd.admin})
    assert (unknown.status, unknown.json["error"]["code"]) == (400, "Common.0018")


async def test_a_project_never_sees_anothers_job(crowd: Crowd) -> None:
    add_kinds(crowd.house)
    made = await crowd.house.web.post(f"/v2.1/{crowd.demo}/cloudvolumes", VOLUME, {"x-auth-token": crowd.member})
    job_id = made.json["job_id"]
    found = await crowd.house.web.get(f"/v1/{crowd.other}/jobs/{job_id}", {"x-auth-token": crowd.stranger})
    assert (found.status, found.json["error"]["code"]) == (400, "Common.0011")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/p1/nothing"),
        ("GET", "/v5/p1/snapshots/detail"),
        ("GET", "/v2/p1/cloudsnapshots/detail"),
        ("GET", "/v2.1/p1/servers/detail"),
        ("PATCH", "/v2/p1/cloudvolumes/detail"),
        ("PUT", f"/v1/p1/cloudservers/{ID}"),
        ("DELETE", "/v1/p1/jobs/01a200f2d9ad7fee9326d37c78a92fb7"),
        ("POST", "/v3/p1/volumes"),
    ],
)
async def test_a_route_that_is_not_there_is_the_gateways_404(web: Web, method: str, path: str) -> None:
    found = await web.ask(method, path)
    assert (found.status, found.json["error_code"]) == (404, "APIGW.0101")


@pytest.mark.parametrize("path", ["/v2.1/images", "/v2.4/schemas/task", "/v2/tasks", "/v3"])
async def test_the_catch_all_hides_no_other_wire(web: Web, path: str) -> None:
    found = await web.get(path)
    assert b"APIGW" not in found.body
    assert found.status in (200, 300)


async def test_a_body_that_is_too_large_is_the_gateways_413(cloud: House) -> None:
    found = await cloud.web.post("/v2.1/p1/cloudvolumes", b" " * (cloud.settings.body_bytes_max + 1))
    assert (found.status, found.json["error_code"]) == (413, "APIGW.0201")


async def test_a_kind_that_this_server_lacks_is_no_error_of_the_caller(web: Web) -> None:
    found = await web.post("/v2.1/p1/cloudvolumes", VOLUME)
    assert (found.status, found.json["error"]["code"]) == (503, "Common.0001")
    assert "createVolume" in found.json["error"]["message"]


async def test_too_many_requests_are_429_with_a_pause() -> None:
    async with open_house(rate_per_s=0.001, rate_burst=1) as house:
        await house.web.get("/v2/p1/cloudvolumes/detail")
        found = await house.web.get("/v2/p1/cloudvolumes/detail")
        assert (found.status, found.json["error"]["code"]) == (429, "Common.1503")
        assert int(found.headers["retry-after"]) > 0


async def test_content_types_are_not_looked_at(cloud: House) -> None:
    raw = msgspec.json.encode(VOLUME)
    for kind in ("application/json;charset=UTF-8", "text/plain", "application/x-www-form-urlencoded"):
        made = await cloud.web.post("/v2.1/p1/cloudvolumes", raw, {"content-type": kind})
        assert made.status == 202
        found = await cloud.web.get(f"/v1/p1/jobs/{made.json['job_id']}", {"content-type": kind, "x-language": "en-us"})
        assert found.status == 200


# --- the job query -----------------------------------------------------------------------------------------------------


async def show(house: House, job_id: str) -> Any:
    found = await house.web.get(f"/v1/p1/jobs/{job_id}")
    assert found.status == 200
    return found.json


async def test_a_job_is_shown_through_its_life(cloud: House) -> None:
    made = await cloud.web.post("/v2.1/p1/cloudvolumes", VOLUME)
    job_id = made.json["job_id"]
    assert (await show(cloud, job_id))["status"] == "INIT"
    claimed = await cloud.claim("cloud")
    running = await show(cloud, job_id)
    assert (running["status"], running["end_time"], running["error_code"]) == ("RUNNING", "", None)
    await cloud.finish(claimed, result=b'{"volume_id":"v-0","name":"d","size":10,"volume_type":"SAS"}')
    ended = await show(cloud, job_id)
    assert (ended["status"], ended["entities"]) == (
        "SUCCESS",
        {"volume_id": "v-0", "name": "d", "size": 10, "volume_type": "SAS"},
    )
    assert ended["end_time"].endswith("Z")
    dashed = f"{job_id[:8]}-{job_id[8:12]}-{job_id[12:16]}-{job_id[16:20]}-{job_id[20:]}"
    assert await show(cloud, dashed) == ended == (await cloud.web.get(f"/v1.0/p1/jobs/{job_id.upper()}")).json


async def test_a_parent_always_shows_its_sub_jobs_as_they_are_now(cloud: House) -> None:
    made = await cloud.web.post("/v2.1/p1/cloudvolumes", {"volume": {**VOLUME["volume"], "count": 2}})
    job_id = made.json["job_id"]
    await cloud.suspend(await cloud.claim("cloud"), 2)

    async def statuses() -> list[str]:
        shown = [await show(cloud, job_id), await show(cloud, job_id)]  # the second is what the first one kept
        assert shown[0] == shown[1]
        return [shown[0]["status"], *(sub["status"] for sub in shown[0]["entities"]["sub_jobs"])]

    assert await statuses() == ["RUNNING", "INIT", "INIT"]
    first = await cloud.claim("default")
    assert sorted(await statuses()) == ["INIT", "RUNNING", "RUNNING"]
    await cloud.finish(first)
    assert sorted(await statuses()) == ["INIT", "RUNNING", "SUCCESS"]
    second = await cloud.claim("default")
    failure = Failed(Failure("disk_full", "no space is left"))
    now_us = cloud.clock.now_us()
    assert await cloud.store.finish_job(second.claim, failure, now_us=now_us, expires_us=now_us + 60_000_000)
    assert sorted((await statuses())[1:]) == ["FAIL", "SUCCESS"]
    await cloud.finish(await cloud.claim("cloud"), ok=False)
    assert (await statuses())[0] == "FAIL"


async def test_a_text_made_while_its_tree_changed_is_not_kept(cloud: House) -> None:
    made = await cloud.web.post("/v2.1/p1/cloudvolumes", {"volume": {**VOLUME["volume"], "count": 2}})
    await cloud.suspend(await cloud.claim("cloud"), 2)
    job = next(one for one in await _all(cloud) if one.id.replace("-", "") == made.json["job_id"])
    texts = Texts(cloud.store)
    place = texts.expect(job)
    await cloud.claim("default")
    texts.keep(job, place, b"old")
    assert texts.get(job) is None
    fresh = await text_of(texts, cloud.store, job)
    assert texts.get(job) == fresh
    assert texts.listens
    await cloud.claim("default")
    assert not texts.listens, "nothing is kept that an event could change"


async def _all(house: House) -> Any:
    from milepost.store import JobQuery

    return await house.store.list_jobs(JobQuery(bodies=True))


async def test_an_unknown_job_is_400(web: Web) -> None:
    for name in ("01a200f2d9ad7fee9326d37c78a92fb7", "nothing", "x" * 32, "0"):
        found = await web.get(f"/v1/p1/jobs/{name}")
        assert (found.status, found.json["error"]["code"]) == (400, "Common.0011")


# --- submits -----------------------------------------------------------------------------------------------------------

NEW = {
    "name": "web",
    "imageRef": IMAGE_ID,
    "flavorRef": "t6.nano.1",
    "vpcid": "vpc-1",
    "nics": [{"subnet_id": "sub-1"}],
    "root_volume": {"volumetype": "SAS", "size": 1},
}


async def test_success_codes_are_those_that_the_go_clients_demand(cloud: House) -> None:
    await put(cloud, SERVER, ID, encode_server(server()))
    from milepost.volume import VOLUME as TYPE
    from milepost.volume import Volume, encode_volume

    volume = Volume(id=ID, project=PROJECT, size_gib=10, volume_type="SAS", created_us=1, updated_us=1)
    await put(cloud, TYPE, ID, encode_volume(volume))
    one, nic = f"/v1/p1/cloudservers/{ID}", {"nics": [{"subnet_id": "s"}]}
    ids = {"servers": [{"id": ID}]}
    for status, method, path, body in (
        (202, "POST", "/v2.1/p1/cloudvolumes", VOLUME),
        (200, "POST", "/v2/p1/cloudvolumes", VOLUME),
        (200, "POST", "/v3/p1/cloudvolumes", VOLUME),
        (202, "POST", f"/v2.1/p1/cloudvolumes/{ID}/action", {"os-extend": {"new_size": 20}}),
        (200, "POST", f"/v2/p1/cloudvolumes/{ID}/action", {"os-extend": {"new_size": 20}}),
        (200, "DELETE", f"/v2/p1/cloudvolumes/{ID}?cascade=true", b""),
        (200, "POST", "/v2/p1/cloudvolumes/delete", {"volume_ids": [ID]}),
        (200, "POST", f"/v2/p1/volumes/{ID}/retype", {"os-retype": {"new_type": "SSD"}}),
        (200, "POST", "/v5/p1/volumes/batch-extend", {"volumes": [{"id": ID, "new_size": 20}]}),
        (200, "POST", "/v1/p1/cloudservers", {"server": NEW}),
        (200, "POST", "/v1.1/p1/cloudservers", {"server": NEW}),
        (202, "POST", "/v1.1/p1/cloudservers", {"server": NEW, "dry_run": True}),
        (200, "POST", "/v1/p1/cloudservers/delete", ids),
        (200, "POST", "/v1/p1/cloudservers/action", {"os-start": ids}),
        (200, "POST", "/v1/p1/cloudservers/action", {"os-stop": ids}),
        (200, "POST", "/v1/p1/cloudservers/action", {"reboot": {"type": "SOFT", **ids}}),
        (200, "POST", one + "/resize", {"resize": {"flavorRef": "t6.small.1"}}),
        (200, "POST", one.replace("v1", "v1.1") + "/resize", {"resize": {"flavorRef": "t6.small.1"}}),
        (200, "POST", one + "/nics", nic),
        (200, "POST", one + "/nics/delete", {"nics": [{"id": ID}]}),
        (200, "POST", one + "/attachvolume", {"volumeAttachment": {"volumeId": ID}}),
        (202, "POST", one + "/attachvolume", {"volumeAttachment": {"volumeId": ID}, "dry_run": True}),
        (200, "DELETE", f"{one}/detachvolume/{ID}?delete_flag=0", b""),
        (200, "POST", f"/v1/p1/batchaction/attachvolumes/{ID}", {"serverinfo": [{"server_id": ID}]}),
        (200, "POST", f"/v1/p1/batchaction/detachvolumes/{ID}", {"serverinfo": [ID]}),
        (200, "POST", one + "/changeos", {"os-change": {"imageid": ID}}),
        (200, "POST", one.replace("v1", "v2") + "/changeos", {"os-change": {"imageid": ID}}),
        (200, "POST", one + "/reinstallos", {"os-reinstall": {}}),
        (200, "POST", one.replace("v1", "v2") + "/reinstallos", {"os-reinstall": {}}),
    ):
        found = await cloud.web.ask(method, path, body)
        assert found.status == status, (method, path, found.body)
        if not (isinstance(body, dict) and body.get("dry_run")):
            assert len(found.json["job_id"]) == 32


async def test_a_dry_run_refuses_what_the_submit_would_and_makes_nothing(cloud: House) -> None:
    refused = await cloud.web.post("/v1/p1/cloudservers", {"server": {**NEW, "name": "refused"}, "dry_run": True})
    assert (refused.status, refused.json["error"]["code"]) == (400, "Ecs.0810")
    assert (await cloud.web.post("/v1/p1/cloudservers", {"server": NEW, "dry_run": True})).status == 202
    assert await _all(cloud) == []


async def test_a_repeated_client_token_gives_the_same_job(cloud: House) -> None:
    token = {"x-client-token": "5e0ae6c2-8f3c-4be0-a7f5-8e5c8d8f4a10"}
    first, second = [await cloud.web.post("/v1.1/p1/cloudservers", {"server": NEW}, token) for _ in range(2)]
    assert first.json == second.json
    other = await cloud.web.post("/v1.1/p1/cloudservers", {"server": {**NEW, "name": "other"}}, token)
    assert other.status == 400
    assert "token" in other.json["error"]["message"] or "key" in other.json["error"]["message"]


async def test_an_unpaid_order_is_a_held_job_that_its_order_id_releases(cloud: House) -> None:
    order = {**NEW, "extendparam": {"chargingMode": "prePaid", "isAutoPay": "false"}}
    made = (await cloud.web.post("/v1.1/p1/cloudservers", {"server": order})).json
    assert made["order_id"] == f"CS{made['job_id'].upper()}"
    assert made["serverIds"] == ["s-0"]
    waiting = await show(cloud, made["job_id"])
    assert (waiting["status"], waiting["end_time"]) == ("PENDING_PAYMENT", "")
    released = await cloud.web.post(f"/jobs/{made['order_id']}/release", headers={"x-project-id": "p1"})
    assert (released.status, released.json["state"]) == (202, "ready")
    assert (await show(cloud, made["job_id"]))["status"] == "INIT"


async def test_an_unpaid_order_is_gone_after_its_days(cloud: House) -> None:
    order = {**VOLUME, "bssParam": {"chargingMode": "prePaid"}}
    made = (await cloud.web.post("/v2.1/p1/cloudvolumes", order)).json
    assert "job_id" not in made
    job_id = made["order_id"][2:].lower()
    cloud.clock.advance(13.9 * 86400)
    assert (await show(cloud, job_id))["status"] == "PENDING_PAYMENT"
    cloud.clock.advance(0.2 * 86400)
    assert (await cloud.web.get(f"/v1/p1/jobs/{job_id}")).json["error"]["code"] == "Common.0011"


async def test_a_root_volume_without_a_size_is_as_large_as_its_image(cloud: House) -> None:
    image = Image(
        id=IMAGE_ID,
        name="i",
        owner=PROJECT,  # type: ignore[arg-type]
        status=ImageStatus.ACTIVE,
        virtual_size=(3 << 30) + 1,
        min_disk=2,
        created_us=1,
        updated_us=1,
    )
    asked = {"server": {**NEW, "root_volume": {"volumetype": "SAS"}}}
    missing = await cloud.web.post("/v1/p1/cloudservers", asked)
    assert (missing.status, missing.json["error"]["code"]) == (400, "Ecs.0031")  # as an image of another project
    await put(cloud, IMAGE, IMAGE_ID, encode_image(image))
    made = await cloud.web.post("/v1/p1/cloudservers", asked)
    assert made.status == 200
    (job,) = await _all(cloud)
    assert msgspec.json.decode(job.input)["server"]["root_volume"]["size"] == 4


# --- servers -----------------------------------------------------------------------------------------------------------


class Seen(msgspec.Struct):
    standing: str
    words: str = ""


class Machines:
    """What an observer of machines says."""

    def __init__(self, *standings: str) -> None:
        self._standings = itertools.cycle(standings)

    async def observe(self, server: Server) -> Seen:
        standing = next(self._standings)
        if standing == "broken":
            raise OSError("no permission")
        return Seen(standing)


@pytest.mark.parametrize(
    ("standing", "status"),
    [("running", "ACTIVE"), ("off", "SHUTOFF"), ("crashed", "ERROR"), ("none", "SHUTOFF"), ("broken", "ACTIVE")],
)
async def test_what_the_machine_does_decides_the_status(cloud: House, standing: str, status: str) -> None:
    await put(cloud, SERVER, ID, encode_server(server()))
    cloud.app.state.machines = Machines(standing)
    found = await cloud.web.get(f"/v1/p1/cloudservers/{ID}")
    assert found.json["server"]["status"] == status
    assert (await cloud.web.get("/v1/p1/cloudservers/detail")).json["servers"][0]["status"] == status
    assert (await cloud.web.get(f"/v1.1/p1/cloudservers/detail?status={status}")).json["servers"][0]["status"] == status
    assert (await cloud.web.get("/v1/p1/cloudservers/detail?status=REBUILD")).json == {"count": 0, "servers": []}


async def test_parts_of_a_server_are_listed(cloud: House) -> None:
    await put(cloud, SERVER, ID, encode_server(server()))
    for path in ("os-interface", "block_device", "os-volume_attachments"):
        assert (await cloud.web.get(f"/v1/p1/cloudservers/{ID}/{path}")).status == 200
    assert (await cloud.web.get(f"/v2.1/p1/servers/{ID}/os-interface")).json == {"interfaceAttachments": []}
    assert len((await cloud.web.get("/v1/p1/cloudservers/flavors")).json["flavors"]) > 2
    resize = await cloud.web.get(f"/v1/p1/cloudservers/resize_flavors?instance_uuid={ID}")
    assert "t6.nano.1" not in {one["id"] for one in resize.json["flavors"]}


async def test_an_unknown_server_is_404_in_each_manner(cloud: House) -> None:
    for path in (f"/v1/p1/cloudservers/{ID}", "/v1/p1/cloudservers/x", f"/v1/p2/cloudservers/{ID}/block_device"):
        found = await cloud.web.get(path)
        assert (found.status, found.json["error"]["code"]) == (404, "Ecs.0114")
    nova = await cloud.web.get(f"/v2.1/p1/servers/{ID}/os-interface")
    assert (nova.status, nova.json["itemNotFound"]["code"]) == (404, 404)


async def test_the_newer_list_links_to_its_next_page(cloud: House) -> None:
    for number in range(3):
        id = f"{number:08x}-0000-4000-8000-000000000000"
        await put(cloud, SERVER, id, encode_server(server(id=id, created_us=number)))
    first = (await cloud.web.get("/v1.1/p1/cloudservers/detail?limit=2&name=web")).json
    assert first["request_id"]
    (link,) = first["servers_links"]
    assert link["rel"] == "next"
    second = (await cloud.web.get(link["href"].removeprefix("http://127.0.0.1:8080"))).json
    assert [len(first["servers"]), len(second["servers"]), second["servers_links"]] == [2, 1, []]


async def test_a_held_job_keeps_its_state_in_every_wire(cloud: House) -> None:
    made = (await cloud.web.post("/v2.1/p1/cloudvolumes", {**VOLUME, "bssParam": {"chargingMode": "prePaid"}})).json
    (job,) = await _all(cloud)
    assert job.state is State.HELD
    assert job.expires_us is not None
    assert made["volume_ids"] == ["v-0"]
