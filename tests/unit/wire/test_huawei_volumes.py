"""Block storage on Huawei's wire: golden requests and bodies, the types that Go clients demand, filters and pages."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from milepost.volume import Attachment, Volume, VolumeStatus
from milepost.wire.huawei import evs, volumes
from milepost.wire.huawei.errors import Refusal

PROJECT = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
ID = "5a6b7c8d-0000-4000-8000-000000000001"
AT_US = 1_772_600_767_000_000  # 2026-03-04T05:06:07Z
URL = "https://evs.example.test"


def volume(**fields: Any) -> Volume:
    given = {
        "id": ID,
        "project": PROJECT,
        "name": "vol-1",
        "size_gib": 40,
        "volume_type": "SSD",
        "availability_zone": "az-1",
        "user_id": "u-1",
        "created_us": AT_US,
        "updated_us": AT_US,
        **fields,
    }
    return Volume(**given)


def shown(one: Volume) -> dict[str, Any]:
    return msgspec.json.decode(evs_body(one))["volume"]


def evs_body(one: Volume) -> bytes:
    return volumes.encode_volume_body(one, URL)


def test_a_new_volume_has_every_key_with_the_type_that_go_clients_demand() -> None:
    assert shown(volume()) == {
        "id": ID,
        "name": "vol-1",
        "status": "creating",
        "size": 40,
        "description": "",
        "volume_type": "SSD",
        "availability_zone": "az-1",
        "bootable": "false",
        "shareable": "false",
        "multiattach": False,
        "encrypted": False,
        "attachments": [],
        "links": [{"href": f"{URL}/v2/{PROJECT}/cloudvolumes/{ID}", "rel": "self"}],
        "metadata": {"hw:passthrough": "false"},
        "volume_image_metadata": {},
        "tags": {},
        "snapshot_id": None,
        "source_volid": None,
        "consistencygroup_id": None,
        "os-vol-tenant-attr:tenant_id": PROJECT,
        "os-vol-host-attr:host": None,
        "os-vol-mig-status-attr:migstat": None,
        "os-vol-mig-status-attr:name_id": None,
        "os-volume-replication:extended_status": None,
        "replication_status": "disabled",
        "created_at": "2026-03-04T05:06:07.000000",
        "updated_at": "2026-03-04T05:06:07.000000",
        "user_id": "u-1",
        "enterprise_project_id": "0",
        "service_type": "EVS",
        "wwn": "688860305a6b7c8d00004000800000",
        "serial_number": ID.replace("-", ""),
        "dedicated_storage_id": None,
        "dedicated_storage_name": None,
        "iops": None,
        "throughput": None,
    }


def test_an_attached_volume_names_its_server_and_an_ordered_one_its_order() -> None:
    attachment = Attachment(id="a-1", server_id="s-1", device="/dev/sdb", attached_us=AT_US)
    found = shown(volume(status=VolumeStatus.IN_USE, attachments=[attachment], multiattach=True, order_id="CS1", bootable=True))
    assert found["attachments"] == [
        {
            "attachment_id": "a-1",
            "volume_id": ID,
            "id": ID,
            "server_id": "s-1",
            "device": "/dev/sdb",
            "host_name": None,
            "attached_at": "2026-03-04T05:06:07.000000",
        }
    ]
    assert (found["status"], found["bootable"], found["shareable"], found["multiattach"]) == ("in-use", "true", "true", True)
    assert found["metadata"]["orderID"] == "CS1"


def body(**fields: Any) -> dict[str, Any]:
    return {"volume": {"availability_zone": "az-1", "volume_type": "SAS", "size": 40, **fields}}


def read(asked: Any) -> Any:
    return evs.read_create(msgspec.json.encode(asked))


def refusal(call: Any, *args: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call(*args)
    return caught.value


def test_one_volume_is_one_job_and_more_are_a_batch() -> None:
    one = read(body(name="d"))
    assert (one.kind, one.order, one.held) == ("createVolume", False, False)
    assert one.input["volume"]["name"] == "d"
    many = read(body(name="d", count=2))
    assert (many.kind, many.input["count"]) == ("batchCreateVolume", 2)


def test_nulls_count_as_absent_and_decimals_are_cut() -> None:
    asked = body(size=40.9, name=None, count=None, metadata=None, tags=None, imageRef=None, snapshot_id=None, iops=3000)
    spec = read({**asked, "bssParam": None, "server_id": None}).input["volume"]
    assert (spec["size"], spec["name"], spec["image_id"], spec["metadata"]) == (40, "", None, {})


def test_truth_comes_as_boolean_and_as_text() -> None:
    for yes in (True, "true", "True", 1, "1"):
        assert read(body(multiattach=yes)).input["volume"]["multiattach"] is True
    for no in (False, "false", None, 0):
        assert read(body(multiattach=no)).input["volume"]["multiattach"] is False
    assert read(body(imageRef=ID, metadata={"full_clone": "1"})).input["volume"]["full_clone"] is True


@pytest.mark.parametrize(
    ("mode", "pay", "held"), [("prePaid", "false", True), ("prePaid", True, False), ("postPaid", False, False)]
)
def test_an_order_is_held_unless_it_is_paid_at_once(mode: str, pay: Any, held: bool) -> None:
    ask = read({**body(), "bssParam": {"chargingMode": mode, "isAutoPay": pay, "periodType": "month", "periodNum": 1}})
    assert (ask.order, ask.held) == (mode == "prePaid", held)


@pytest.mark.parametrize(
    ("code", "asked", "word"),
    [
        ("EVS.1010", body(size=None), "volume.size"),
        ("EVS.1010", body(size=1e400), "volume.size"),
        ("EVS.1010", body(size=True), "volume.size"),
        ("EVS.1010", body(size=2000, imageRef=ID), "volume.size"),
        ("EVS.1020", body(volume_type=7), "volume.volume_type"),
        ("EVS.1021", body(count=0), "volume.count"),
        ("EVS.1036", body(availability_zone=""), "availability_zone"),
        ("EVS.1008", body(name=["x"]), "volume.name"),
        ("EVS.1008", body(name="x" * 251, count=2), "volume.name"),
        ("EVS.1008", body(multiattach="maybe"), "multiattach"),
        ("EVS.1008", body(metadata={"a": {}}), "volume.metadata.a"),
        ("EVS.1008", {"volume": 7}, "volume"),
        ("EVS.1008", {}, "volume"),
        ("EVS.2147", {**body(), "bssParam": {"chargingMode": []}}, "bssParam"),
        ("EVS.1008", {**body(), "server_id": "x"}, "server_id"),
    ],
)
def test_a_wrong_field_is_named_and_has_its_code(code: str, asked: Any, word: str) -> None:
    found = refusal(read, asked)
    assert (found.status, found.code) == (400, code)
    assert word in found.message


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b'{"volume":' * 2000, b"[" * 3000])
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    assert refusal(evs.read_create, raw).code in ("EVS.5400", "EVS.1008")


def test_changes_are_read() -> None:
    ask = evs.read_extend(b'{"os-extend":{"new_size":80}}', ID)
    assert (ask.kind, ask.input, ask.pay) == ("extendVolume", {"volume_id": ID, "new_size": 80}, True)
    assert not evs.read_extend(b'{"os-extend":{"new_size":80},"bssParam":{"isAutoPay":"false"}}', ID).pay
    assert refusal(evs.read_extend, b'{"os-extend":{"new_size":"80"}}', ID).code == "EVS.1010"
    assert refusal(evs.read_extend, b'{"os-shrink":{}}', ID).code == "EVS.1052"
    assert evs.read_retype(b'{"os-retype":{"new_type":"SSD"}}', ID).input == {"volume_id": ID, "new_type": "SSD"}
    assert refusal(evs.read_retype, b'{"os-retype":{"new_type":"X"}}', ID).code == "EVS.1020"
    larger = b'{"volumes":[{"id":"%s","new_size":80}],"bss_param":{"is_auto_pay":"true"}}' % ID.encode()
    assert evs.read_batch_extend(larger).input == {"volumes": [{"volume_id": ID, "new_size": 80}]}
    for batch in (b'{"volumes":[{"id":"%s"}]}', b'{"volumes":["%s"]}', b'{"volume_ids":["%s"]}'):
        assert evs.read_batch_delete(batch % ID.encode()).input == {"volume_ids": [ID]}
    assert refusal(evs.read_batch_delete, b'{"volumes":[]}').code == "EVS.1052"
    assert refusal(evs.read_batch_delete, msgspec.json.encode({"volume_ids": [ID] * 101})).code == "EVS.1053"


def test_an_order_is_answered_without_a_job() -> None:
    assert evs.encode_accepted(job_id="ff80", order_id=None, volume_ids=["v-1"]) == b'{"job_id":"ff80","volume_ids":["v-1"]}'
    assert evs.encode_accepted(job_id="ff80", order_id="CS1", volume_ids=["v-1"]) == b'{"order_id":"CS1","volume_ids":["v-1"]}'


def many() -> list[Volume]:
    return [
        volume(
            id=f"{number:08x}-0000-4000-8000-000000000000", name=f"d-{number}", size_gib=10 + number, created_us=AT_US + number
        )
        for number in range(5)
    ]


def select(query: str) -> tuple[list[str], int]:
    page, total = volumes.select_volumes(many(), volumes.read_volume_query(query))
    return [one.name for one in page], total


def test_pages_end_with_an_empty_one_and_count_all() -> None:
    assert select("limit=2") == (["d-4", "d-3"], 5)
    assert select("limit=2&offset=4") == (["d-0"], 5)
    assert select("limit=2&offset=5") == ([], 5)
    assert select("offset=100") == ([], 5)
    assert select("marker=00000001-0000-4000-8000-000000000000") == (["d-0"], 5)


def test_filters_are_all_applied() -> None:
    assert select("name=d-3") == (["d-3"], 1)
    assert select("sort_key=size&sort_dir=asc&limit=1") == (["d-0"], 5)
    assert select("ids=%5B'00000001-0000-4000-8000-000000000000','00000002-0000-4000-8000-000000000000'%5D")[1] == 2
    assert select("ids=none") == ([], 0)
    assert select("status=in-use")[1] == select("multiattach=true")[1] == select("service_type=DSS")[1] == 0
    assert select("availability_zone=az-1&volume_type_id=SSD&multiattach=false&service_type=EVS")[1] == 5
    assert select("metadata=%7B%22a%22:%22b%22%7D")[1] == 0


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "EVS.5400"),
        ("limit=1001", "EVS.2142"),
        ("limit=x", "EVS.1023"),
        ("limit=-1", "EVS.1023"),
        ("offset=x", "EVS.5400"),
        ("sort_key=name", "EVS.5400"),
        ("sort_dir=up", "EVS.5400"),
        ("metadata=%7B", "EVS.5400"),
    ],
)
def test_a_wrong_query_is_refused(query: str, code: str) -> None:
    assert refusal(volumes.read_volume_query, query).code == code
