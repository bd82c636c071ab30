"""Servers on Huawei's wire: golden requests and bodies, the status table, what a machine really does, filters and pages."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from milepost.compute import FLAVORS, Disk, Fault, Nic, Server, VmState
from milepost.wire.huawei import ecs, flavors, servers
from milepost.wire.huawei.errors import Refusal

PROJECT = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
ID = "9c0d1e2f-0000-4000-8000-000000000002"
IMAGE = "11111111-2222-4333-8444-555555555555"
VOLUME = "5a6b7c8d-0000-4000-8000-000000000001"
PORT = "6a6b7c8d-0000-4000-8000-000000000001"
AT_US = 1_772_600_767_000_000  # 2026-03-04T05:06:07Z
FLAVOR = FLAVORS["s6.small.1"]


def server(**fields: Any) -> Server:
    given = {
        "id": ID,
        "project": PROJECT,
        "name": "ecs-1",
        "vm_state": VmState.ACTIVE,
        "flavor_id": FLAVOR.id,
        "image_id": IMAGE,
        "vpc_id": "vpc-1",
        "availability_zone": "az-1",
        "nics": [
            Nic(id=PORT, subnet_id="sub-1", vpc_id="vpc-1", mac="fa:16:3e:00:00:01", ip_address="192.168.0.5", primary=True)
        ],
        "disks": [Disk(volume_id=VOLUME, device="/dev/sda", boot_index=0)],
        "security_groups": ["sg-1"],
        "tags": {"team": "a"},
        "user_id": "u-1",
        "created_us": AT_US,
        "updated_us": AT_US + 53_000_000,
        "launched_us": AT_US + 53_000_000,
        **fields,
    }
    return Server(**given)


def test_a_server_has_the_types_that_go_clients_demand() -> None:
    found = servers.show_server(server(), FLAVOR, servers.Power("running"))
    assert found["created"] == "2026-03-04T05:06:07Z"
    assert found["updated"] == "2026-03-04T05:07:00Z"
    assert found["OS-SRV-USG:launched_at"] == "2026-03-04T05:07:00.000000"
    assert found["flavor"] == {"id": "s6.small.1", "name": "s6.small.1", "disk": "0", "vcpus": "1", "ram": "1024"}
    assert found["image"] == {"id": IMAGE}
    assert found["addresses"] == {
        "vpc-1": [
            {
                "version": "4",
                "addr": "192.168.0.5",
                "OS-EXT-IPS:type": "fixed",
                "OS-EXT-IPS-MAC:mac_addr": "fa:16:3e:00:00:01",
                "OS-EXT-IPS:port_id": PORT,
                "primary": True,
            }
        ]
    }
    assert found["os-extended-volumes:volumes_attached"] == [
        {"id": VOLUME, "delete_on_termination": "false", "bootIndex": "0", "device": "/dev/sda"}
    ]
    assert (found["status"], found["OS-EXT-STS:vm_state"], found["OS-EXT-STS:power_state"]) == ("ACTIVE", "active", 1)
    assert (found["fault"], found["locked"], found["tags"]) == (None, False, ["team=a"])
    assert (found["metadata"]["charging_mode"], found["OS-EXT-SRV-ATTR:root_device_name"]) == ("0", "/dev/sda")
    assert all(isinstance(value, str) for value in found["metadata"].values())


def test_the_newer_list_has_numbers_where_the_older_has_text() -> None:
    found = servers.show_cloud_server(server(), FLAVOR, servers.UNSEEN)
    assert (found["flavor"]["ram"], found["addresses"]["vpc-1"][0]["version"]) == (1024, 4)
    assert found["volumes_attached"][0]["delete_on_termination"] is False


@pytest.mark.parametrize(
    ("vm_state", "task_state", "status"),
    [
        (VmState.BUILDING, "spawning", "BUILD"),
        (VmState.ACTIVE, None, "ACTIVE"),
        (VmState.ACTIVE, "powering-off", "ACTIVE"),
        (VmState.ACTIVE, "deleting", "ACTIVE"),
        (VmState.ACTIVE, "rebooting", "REBOOT"),
        (VmState.ACTIVE, "rebooting_hard", "HARD_REBOOT"),
        (VmState.STOPPED, None, "SHUTOFF"),
        (VmState.STOPPED, "powering-on", "SHUTOFF"),
        (VmState.STOPPED, "rebuilding", "REBUILD"),
        (VmState.STOPPED, "resize_prep", "RESIZE"),
        (VmState.RESIZED, None, "VERIFY_RESIZE"),
        (VmState.RESIZED, "resize_reverting", "REVERT_RESIZE"),
        (VmState.ERROR, None, "ERROR"),
        (VmState.DELETED, None, "DELETED"),
    ],
)
def test_the_status_is_the_vendors_table(vm_state: VmState, task_state: str | None, status: str) -> None:
    assert servers.status_of(server(vm_state=vm_state, task_state=task_state)) == status


def see(one: Server, standing: str, words: str = "") -> dict[str, Any]:
    power = servers.Power(standing, words)
    return servers.show_server(servers.see_server(one, power, AT_US), FLAVOR, power)


def test_a_crashed_machine_is_an_error_with_its_reason() -> None:
    found = see(server(), "crashed", "killed by signal 9")
    assert (found["status"], found["OS-EXT-STS:power_state"]) == ("ERROR", 4)
    assert found["fault"] == {"code": 500, "created": "2026-03-04T05:06:07Z", "message": "killed by signal 9", "details": ""}


def test_a_guest_that_shut_itself_down_is_off() -> None:
    found = see(server(), "off")
    assert (found["status"], found["OS-EXT-STS:power_state"], found["fault"]) == ("SHUTOFF", 4, None)


def test_a_machine_that_runs_is_active_whatever_the_record_says() -> None:
    assert see(server(vm_state=VmState.STOPPED), "running")["status"] == "ACTIVE"
    assert see(server(vm_state=VmState.STOPPED, job_id="j-1"), "running")["status"] == "SHUTOFF"


def test_while_a_job_changes_a_server_the_record_is_believed() -> None:
    assert see(server(job_id="j-1", task_state="rebooting"), "off")["status"] == "REBOOT"
    assert see(server(vm_state=VmState.STOPPED), "off")["status"] == "SHUTOFF"
    assert see(server(vm_state=VmState.BUILDING), "none")["OS-EXT-STS:power_state"] == 0


def test_a_fault_is_shown_in_error_only() -> None:
    fault = Fault(code=500, message="no", created_us=AT_US)
    assert see(server(fault=fault), "running")["fault"] is None
    assert see(server(fault=fault, vm_state=VmState.ERROR), "none")["fault"]["message"] == "no"


def test_flavors_have_numbers_and_text_as_go_clients_demand() -> None:
    (found,) = msgspec.json.decode(flavors.encode_flavors([FLAVOR], "https://ecs.example.test", PROJECT))["flavors"]
    assert (found["vcpus"], found["ram"], found["disk"], found["swap"], found["rxtx_factor"]) == ("1", 1024, "0", "", 1)
    assert found["os_extra_specs"]["ecs:generation"] == "s6"
    assert [one.id for one in flavors.select_flavors(FLAVORS.values(), "flavor_id=t6.nano.1")] == ["t6.nano.1"]
    assert FLAVOR not in flavors.select_flavors(FLAVORS.values(), "", besides=FLAVOR.id)
    first, second = flavors.select_flavors(FLAVORS.values(), "limit=2")
    assert flavors.select_flavors(FLAVORS.values(), f"limit=1&marker={first.id}") == [second]


def test_a_block_device_has_numbers() -> None:
    found = msgspec.json.decode(flavors.encode_devices(server(), {VOLUME: 40}))
    assert found["volumeAttachments"] == [
        {
            "volumeId": VOLUME,
            "serverId": ID,
            "id": VOLUME,
            "device": "/dev/sda",
            "pciAddress": "",
            "size": 40,
            "bootIndex": 0,
            "bus": "scsi",
        }
    ]
    assert found["attachableQuantity"] == {"free_scsi": 23, "free_blk": 0, "free_disk": 23}


def test_a_network_card_is_shown_by_ecs_and_nova() -> None:
    found = msgspec.json.decode(flavors.encode_nics(server()))
    assert found["attachableQuantity"]["free_nic"] == 11
    (nic,) = msgspec.json.decode(flavors.encode_nova_nics(server()))["interfaceAttachments"]
    assert nic == {
        "port_state": "ACTIVE",
        "fixed_ips": [{"subnet_id": "sub-1", "ip_address": "192.168.0.5"}],
        "net_id": "sub-1",
        "port_id": PORT,
        "mac_addr": "fa:16:3e:00:00:01",
    }
    assert found["interfaceAttachments"][0].items() >= nic.items()


# --- requests --------------------------------------------------------------------------------------------------------


def new(**fields: Any) -> dict[str, Any]:
    return {
        "server": {
            "name": "web",
            "imageRef": IMAGE,
            "flavorRef": "s6.small.1",
            "vpcid": "aaaaaaaa-0000-4000-8000-000000000001",
            "nics": [{"subnet_id": "aaaaaaaa-0000-4000-8000-000000000002"}],
            "root_volume": {"volumetype": "SAS", "size": 40},
            **fields,
        }
    }


def read(asked: Any) -> Any:
    return ecs.read_create(msgspec.json.encode(asked))


def refusal(call: Any, *args: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call(*args)
    return caught.value


def test_a_create_is_read_whole() -> None:
    ask = read(
        new(
            count=2,
            data_volumes=[{"volumetype": "SSD", "size": 10, "count": 2}],
            tags=["team.a", "k=v"],
            metadata={"op_svc_userid": "u"},
            security_groups=[{"id": "sg-1"}],
            user_data="aGVsbG8=",
            adminPass="S3cret-word",
        )
    )
    spec = ask.input["server"]
    assert (ask.kind, ask.input["count"], ask.order) == ("createServer", 2, False)
    assert spec["data_volumes"] == [{"volume_type": "SSD", "size": 10}] * 2
    assert (spec["tags"], spec["security_groups"], spec["user_data"]) == ({"team": "a", "k": "v"}, ["sg-1"], "aGVsbG8=")
    assert spec["nics"] == [{"subnet_id": "aaaaaaaa-0000-4000-8000-000000000002", "ip_address": None, "security_groups": []}]


@pytest.mark.parametrize(
    ("param", "order", "held"),
    [
        ({"chargingMode": "prePaid", "isAutoPay": "false"}, True, True),
        ({"chargingMode": "prePaid", "isAutoPay": "true"}, True, False),
        ({"chargingMode": 0}, False, False),
        ({"chargingMode": "postPaid"}, False, False),
        (None, False, False),
    ],
)
def test_the_charging_mode_makes_an_order(param: Any, order: bool, held: bool) -> None:
    ask = read(new(extendparam=param))
    assert (ask.order, ask.held) == (order, held)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"name": ""}, "server.name"),
        ({"name": "a b"}, "server.name"),
        ({"name": "x" * 65}, "server.name"),
        ({"imageRef": "x"}, "imageRef"),
        ({"flavorRef": ""}, "flavorRef"),
        ({"vpcid": None}, "vpcid"),
        ({"nics": []}, "nics"),
        ({"nics": [{}]}, "nics[0].subnet_id"),
        ({"nics": [{"port_id": "p"}]}, "port_id"),
        ({"root_volume": {"volumetype": "X"}}, "root_volume.volumetype"),
        ({"root_volume": {"volumetype": "SAS", "size": 2000}}, "root_volume.size"),
        ({"data_volumes": [{"volumetype": "SAS", "size": 5}]}, "data_volumes[0].size"),
        ({"data_volumes": [{"volumetype": "SAS", "size": 10, "count": 24}]}, "data_volumes"),
        ({"count": 101}, "count"),
        ({"count": "2"}, "count"),
        ({"adminPass": "short"}, "adminPass"),
        ({"publicip": {"eip": {}}}, "publicip"),
        ({"user_data": "%"}, "user_data"),
        ({"metadata": {str(number): "" for number in range(11)}}, "metadata"),
        ({"tags": ["a.b"], "server_tags": [{"key": "a"}]}, "tags"),
    ],
)
def test_a_wrong_create_names_its_field(fields: dict[str, Any], word: str) -> None:
    found = refusal(read, new(**fields))
    assert (found.status, found.code) == (400, "Ecs.0005")
    assert word in found.message


def test_an_empty_body_has_a_code_of_its_own() -> None:
    assert refusal(ecs.read_create, b" ").code == "Common.0002"
    assert refusal(ecs.read_create, b"{").code == "Ecs.0005"


def test_a_body_that_is_no_object_is_told_once() -> None:
    found = refusal(ecs.read_create, b"[]")
    assert (found.code, found.message) == ("Ecs.0005", "Expected `object`, got `array`")


def test_power_is_one_action() -> None:
    ids = [{"id": ID}, {"id": ID.upper()}]
    assert ecs.read_action(msgspec.json.encode({"os-start": {"servers": ids}})).input == {"server_ids": [ID]}
    stop = ecs.read_action(msgspec.json.encode({"os-stop": {"servers": ids}}))
    assert (stop.kind, stop.input["type"]) == ("stopServer", "SOFT")
    reboot = ecs.read_action(msgspec.json.encode({"reboot": {"type": "HARD", "servers": ids}}))
    assert (reboot.kind, reboot.input["type"]) == ("rebootServer", "HARD")
    for wrong in (
        {"reboot": {"servers": ids}},
        {"os-stop": {"type": "hard", "servers": ids}},
        {"os-start": {"servers": []}},
        {"os-start": {"servers": ids}, "os-stop": {"servers": ids}},
        {},
    ):
        assert refusal(ecs.read_action, msgspec.json.encode(wrong)).code == "Ecs.0005"


def test_changes_are_read() -> None:
    encode = msgspec.json.encode
    assert ecs.read_delete(encode({"servers": [{"id": ID}], "delete_volume": True})).input == {
        "server_ids": [ID],
        "delete_volume": True,
    }
    resize = ecs.read_resize(encode({"resize": {"flavorRef": "t6.nano.1", "extendparam": {"isAutoPay": "false"}}}), ID)
    assert (resize.input, resize.pay) == ({"server_id": ID, "flavor_id": "t6.nano.1"}, False)
    attach = ecs.read_attach(encode({"volumeAttachment": {"volumeId": VOLUME, "device": ""}, "dry_run": True}), ID)
    assert (attach.input, attach.dry_run) == ({"server_id": ID, "volume_id": VOLUME, "device": None}, True)
    assert ecs.read_detach({"delete_flag": "1"}, ID, VOLUME).input["force"] is True
    assert ecs.read_add_nics(encode({"nics": [{"subnet_id": "s", "security_groups": [{"id": "g"}]}]}), ID).input["nics"] == [
        {"subnet_id": "s", "ip_address": None, "security_groups": ["g"]}
    ]
    assert ecs.read_delete_nics(encode({"nics": [{"id": PORT}]}), ID).input == {"server_id": ID, "nic_ids": [PORT]}
    assert ecs.read_change_os(encode({"os-change": {"imageid": IMAGE, "keyname": "k"}}), ID).input["image_id"] == IMAGE
    assert ecs.read_reinstall(encode({"os-reinstall": {"adminpass": "x"}}), ID).kind == "reInitOs"
    one = ecs.read_batch_attach(encode({"serverinfo": [{"server_id": ID, "device": "/dev/sdb"}]}), VOLUME)
    assert (one.kind, one.input) == ("attachVolume", {"server_id": ID, "volume_id": VOLUME, "device": "/dev/sdb"})
    assert ecs.read_batch_detach(encode({"serverinfo": [ID]}), VOLUME).input == {"server_id": ID, "volume_id": VOLUME}


def many() -> list[Server]:
    return [
        server(id=f"{number:08x}-0000-4000-8000-000000000000", name=f"web-{number}", created_us=AT_US + number)
        for number in range(5)
    ]


def test_the_offset_is_a_page_and_the_page_behind_the_last_is_empty() -> None:
    def names(query: str) -> tuple[list[str], int]:
        page, total, _ = servers.select_servers(many(), servers.read_server_query(query))
        return [one.name for one in page], total

    assert names("limit=2&offset=0") == names("limit=2&offset=1") == names("limit=2") == (["web-4", "web-3"], 5)
    assert names("limit=2&offset=3") == (["web-0"], 5)
    assert names("limit=2&offset=4") == ([], 5)
    assert names("name=web-3&status=ACTIVE&flavor=s6.small.1&ip=168.0&ip_eq=192.168.0.5&tags=team%3Da") == (["web-3"], 1)
    assert names("not-tags=team%3Da")[1] == names("status=ERROR")[1] == names("ip_eq=1.2.3.4")[1] == 0


def test_the_newer_list_goes_on_from_its_marker() -> None:
    page, _, more = servers.select_servers(many(), servers.read_marker_query("limit=3"))
    assert ([one.name for one in page], more) == (["web-4", "web-3", "web-2"], True)
    page, _, more = servers.select_servers(many(), servers.read_marker_query(f"limit=3&marker={page[-1].id}"))
    assert ([one.name for one in page], more) == (["web-1", "web-0"], False)


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "offset=-1"])
def test_a_wrong_page_is_refused(query: str) -> None:
    assert refusal(servers.read_server_query, query).code == "Ecs.0005"
