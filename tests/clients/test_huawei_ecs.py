"""The unmodified huaweicloudsdkecs: servers that really run, from create to delete, each job followed to its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from client_rig import Running, Sources, import_input
from huawei_rig import Keys, client, fresh, in_another_second, run, wait

from milepost.work.servers.sweep import stop_machines

ecs = pytest.importorskip("huaweicloudsdkecs.v2")
evs = pytest.importorskip("huaweicloudsdkevs.v2")
exceptions = pytest.importorskip("huaweicloudsdkcore.exceptions.exceptions")

FLAVOR, LARGER = "t6.nano.1", "t6.small.1"
VPC, SUBNET = "aaaaaaaa-0000-4000-8000-000000000001", "aaaaaaaa-0000-4000-8000-000000000002"
IMPORT_S = 60.0


@pytest.fixture(scope="module")
def keys(server: Running) -> Keys:
    return Keys(server)


@pytest.fixture(scope="module")
def sdk(server: Running, keys: Keys) -> Any:
    return client(ecs.EcsClient, server, keys)


@pytest.fixture(scope="module")
def disks(server: Running, keys: Keys) -> Any:
    return client(evs.EvsClient, server, keys)


@pytest.fixture(scope="module")
def image(server: Running, keys: Keys, sources: Sources) -> str:
    """A small disk with nothing to boot on it: the machine runs all the same."""
    headers = {"Content-Type": "application/json", "X-Project-Id": keys.project}
    if server.auth == "required":
        headers["X-Auth-Token"] = run(server.system.identities.create_api_key("admin", "demo", fresh("import"))).secret
    task = {"type": "import", "input": import_input(sources.files["disk.qcow2"], fresh("ecs"))}
    made = _ask(f"{server.url}/v2/tasks", headers, json.dumps(task).encode())
    end_s = time.monotonic() + IMPORT_S
    while made["status"] in ("pending", "processing") and time.monotonic() < end_s:
        time.sleep(0.05)
        made = _ask(f"{server.url}/v2/tasks/{made['id']}", headers)
    assert made["status"] == "success", made
    return str(made["result"]["image_id"])


def _ask(url: str, headers: dict[str, str], body: bytes | None = None) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
        return json.loads(answer.read())


@pytest.fixture(scope="module")
def qemu(server: Running) -> Iterator[None]:
    """Machines outlive their server: those that a failed test left are stopped here."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs qemu-system-x86_64: apt-get install qemu-system-x86")
    yield
    run(stop_machines(server.system.folder))


def option(image: str, name: str, **fields: Any) -> Any:
    return ecs.PrePaidServer(
        **{
            "name": name,
            "image_ref": image,
            "flavor_ref": FLAVOR,
            "vpcid": VPC,
            "nics": [ecs.PrePaidServerNic(subnet_id=SUBNET)],
            "root_volume": ecs.PrePaidServerRootVolume(volumetype="SAS", size=1),
            **fields,
        }
    )


def create(sdk: Any, server: Any, *, token: str | None = None, dry_run: bool | None = None) -> Any:
    body = ecs.CreateServersRequestBody(server=server, dry_run=dry_run)
    return sdk.create_servers(ecs.CreateServersRequest(body=body, x_client_token=token))


def done(sdk: Any, job_id: str) -> Any:
    job = wait(sdk, ecs.ShowJobRequest, job_id)
    assert job.status == "SUCCESS", job
    return job


def show(sdk: Any, server_id: str) -> Any:
    return sdk.show_server(ecs.ShowServerRequest(server_id=server_id)).server


def ids(*server_ids: str) -> list[Any]:
    return [ecs.ServerId(id=one) for one in server_ids]


def stop(sdk: Any, *server_ids: str) -> Any:
    option = ecs.BatchStopServersOption(servers=ids(*server_ids), type="HARD")
    body = ecs.BatchStopServersRequestBody(os_stop=option)
    return done(sdk, sdk.batch_stop_servers(ecs.BatchStopServersRequest(body=body)).job_id)


def start(sdk: Any, *server_ids: str) -> Any:
    body = ecs.BatchStartServersRequestBody(os_start=ecs.BatchStartServersOption(servers=ids(*server_ids)))
    return done(sdk, sdk.batch_start_servers(ecs.BatchStartServersRequest(body=body)).job_id)


def delete(sdk: Any, *server_ids: str) -> Any:
    body = ecs.DeleteServersRequestBody(servers=ids(*server_ids), delete_volume=True)
    return done(sdk, sdk.delete_servers(ecs.DeleteServersRequest(body=body)).job_id)


def refused(code: str, status: int, call: Any, *args: Any, **kwargs: Any) -> Any:
    with pytest.raises(exceptions.ClientRequestException) as caught:
        call(*args, **kwargs)
    assert (caught.value.error_code, caught.value.status_code) == (code, status), caught.value
    assert caught.value.request_id
    return caught.value


@pytest.fixture
def machine(sdk: Any, image: str, qemu: None) -> Iterator[str]:
    """One server that runs."""
    made = create(sdk, option(image, fresh("one")))
    done(sdk, made.job_id)
    (server_id,) = made.server_ids
    yield server_id
    delete(sdk, server_id)


def test_three_servers_live_from_create_to_delete(sdk: Any, image: str, qemu: None) -> None:
    name = fresh("web")
    data = [ecs.PrePaidServerDataVolume(volumetype="SSD", size=10)]
    made = create(sdk, option(image, name, count=3, data_volumes=data, metadata={"purpose": "test"}, tags=["team.a"]))
    assert len(set(made.server_ids)) == 3
    job = done(sdk, made.job_id)
    assert (job.job_type, job.entities.sub_jobs_total) == ("createServer", 3)
    assert [sub.job_type for sub in job.entities.sub_jobs] == ["createSingleServer"] * 3
    assert [sub.entities.server_id for sub in job.entities.sub_jobs] == made.server_ids
    alone = sdk.show_job(ecs.ShowJobRequest(job_id=job.entities.sub_jobs[0].job_id))
    assert (alone.job_type, alone.entities.server_id) == ("createSingleServer", made.server_ids[0])

    first = made.server_ids[0]
    server = show(sdk, first)
    assert (server.name, server.status, server.os_ext_st_spower_state) == (f"{name}-0001", "ACTIVE", 1)
    assert (server.flavor.id, server.flavor.ram, server.image.id, server.tags) == (FLAVOR, "128", image, ["team=a"])
    assert server.addresses[VPC][0].primary is True
    assert next(disk.boot_index for disk in server.os_extended_volumesvolumes_attached) == "0"
    assert len(server.os_extended_volumesvolumes_attached) == 2

    page = sdk.list_servers_details(ecs.ListServersDetailsRequest(name=name, limit=2, offset=1))
    rest = sdk.list_servers_details(ecs.ListServersDetailsRequest(name=name, limit=2, offset=2))
    assert (page.count, {one.id for one in (*page.servers, *rest.servers)}) == (3, set(made.server_ids))
    assert sdk.list_servers_details(ecs.ListServersDetailsRequest(name=name, limit=2, offset=3)).servers == []
    newer = sdk.list_cloud_servers(ecs.ListCloudServersRequest(name=name, limit=2))
    newest = sdk.list_cloud_servers(ecs.ListCloudServersRequest(name=name, limit=2, marker=newer.servers[-1].id))
    assert len(newer.servers_links) == 1
    assert {one.id for one in (*newer.servers, *newest.servers)} == set(made.server_ids)

    job = stop(sdk, *made.server_ids)
    assert [sub.entities.server_id for sub in job.entities.sub_jobs] == made.server_ids
    assert (show(sdk, first).status, show(sdk, first).os_ext_st_spower_state) == ("SHUTOFF", 4)
    start(sdk, first)
    assert show(sdk, first).status == "ACTIVE"
    assert sdk.list_servers_details(ecs.ListServersDetailsRequest(name=name, status="SHUTOFF")).count == 2

    delete(sdk, *made.server_ids)
    for server_id in made.server_ids:
        refused("Ecs.0114", 404, show, sdk, server_id)


def test_a_machine_that_was_killed_is_an_error_at_once(server: Running, sdk: Any, image: str, qemu: None) -> None:
    made = create(sdk, option(image, fresh("killed")))
    done(sdk, made.job_id)
    (server_id,) = made.server_ids
    (process,) = [int(path.read_text()) for path in (server.system.folder / "servers" / server_id).glob("pid")]
    os.kill(process, signal.SIGKILL)
    end_s = time.monotonic() + 60
    while show(sdk, server_id).status == "ACTIVE" and time.monotonic() < end_s:
        time.sleep(0.01)
    shown = show(sdk, server_id)
    assert (shown.status, shown.os_ext_st_spower_state) == ("ERROR", 4)
    assert "killed" in shown.fault["message"]
    delete(sdk, server_id)


def test_a_reboot_leaves_it_running(sdk: Any, machine: str) -> None:
    option = ecs.BatchRebootSeversOption(servers=ids(machine), type="HARD")
    body = ecs.BatchRebootServersRequestBody(reboot=option)
    job = done(sdk, sdk.batch_reboot_servers(ecs.BatchRebootServersRequest(body=body)).job_id)
    assert job.entities.sub_jobs[0].entities.server_id == machine
    assert show(sdk, machine).status == "ACTIVE"


def test_a_volume_comes_and_goes(sdk: Any, disks: Any, machine: str) -> None:
    new = evs.CreateVolumeOption(availability_zone="az-1", volume_type="SAS", size=10, name=fresh("data"))
    made = disks.create_volume(evs.CreateVolumeRequest(body=evs.CreateVolumeRequestBody(volume=new)))
    (volume_id,) = made.volume_ids
    assert wait(disks, evs.ShowJobRequest, made.job_id).status == "SUCCESS"

    attach = ecs.AttachServerVolumeRequestBody(volume_attachment=ecs.AttachServerVolumeOption(volume_id=volume_id))
    request = ecs.AttachServerVolumeRequest(server_id=machine, body=attach)
    job = done(sdk, sdk.attach_server_volume(request).job_id)
    assert (job.job_type, job.entities.server_id) == ("attachVolume", machine)
    devices = sdk.list_server_block_devices(ecs.ListServerBlockDevicesRequest(server_id=machine)).volume_attachments
    (found,) = [one for one in devices if one.volume_id == volume_id]
    assert (found.size, found.boot_index, found.bus) == (10, None, "scsi")
    shown = sdk.show_server_block_device(ecs.ShowServerBlockDeviceRequest(server_id=machine, volume_id=volume_id))
    assert shown.volume_attachment.device == found.device
    listed = sdk.list_server_volume_attachments(ecs.ListServerVolumeAttachmentsRequest(server_id=machine)).volume_attachments
    assert volume_id in {one.volume_id for one in listed}
    volume = disks.show_volume(evs.ShowVolumeRequest(volume_id=volume_id)).volume
    assert (volume.status, volume.attachments[0].server_id) == ("in-use", machine)
    refused("EVS.1046", 400, disks.delete_volume, evs.DeleteVolumeRequest(volume_id=volume_id))

    detach = ecs.DetachServerVolumeRequest(server_id=machine, volume_id=volume_id, delete_flag="0")
    assert done(sdk, sdk.detach_server_volume(detach).job_id).job_type == "detachVolume"
    assert disks.show_volume(evs.ShowVolumeRequest(volume_id=volume_id)).volume.status == "available"

    place = ecs.BatchAttachSharableVolumesOption(server_id=machine)
    body = ecs.BatchAttachSharableVolumesRequestBody(serverinfo=[place])
    batch = ecs.BatchAttachSharableVolumesRequest(volume_id=volume_id, body=body)
    done(sdk, sdk.batch_attach_sharable_volumes(batch).job_id)
    leave = ecs.BatchDetachVolumesRequest(volume_id=volume_id, body=ecs.VolumeBatchDetachRequest(serverinfo=[machine]))
    done(sdk, sdk.batch_detach_volumes(leave).job_id)
    gone = in_another_second(lambda: disks.delete_volume(evs.DeleteVolumeRequest(volume_id=volume_id)))
    assert wait(disks, evs.ShowJobRequest, gone.job_id).status == "SUCCESS"


def test_a_shared_volume_is_given_to_several_servers(sdk: Any, disks: Any, image: str, qemu: None) -> None:
    made = create(sdk, option(image, fresh("pair"), count=2))
    new = evs.CreateVolumeOption(availability_zone="az-1", volume_type="SAS", size=10, name=fresh("shared"), multiattach=True)
    volume = disks.create_volume(evs.CreateVolumeRequest(body=evs.CreateVolumeRequestBody(volume=new)))
    (volume_id,) = volume.volume_ids
    done(sdk, made.job_id)
    assert wait(disks, evs.ShowJobRequest, volume.job_id).status == "SUCCESS"

    places = [ecs.BatchAttachSharableVolumesOption(server_id=one) for one in made.server_ids]
    body = ecs.BatchAttachSharableVolumesRequestBody(serverinfo=places)
    attach = ecs.BatchAttachSharableVolumesRequest(volume_id=volume_id, body=body)
    job = done(sdk, sdk.batch_attach_sharable_volumes(attach).job_id)
    assert [sub.entities.server_id for sub in job.entities.sub_jobs] == made.server_ids
    shown = disks.show_volume(evs.ShowVolumeRequest(volume_id=volume_id)).volume
    assert {one.server_id for one in shown.attachments} == set(made.server_ids)

    leave = ecs.VolumeBatchDetachRequest(serverinfo=made.server_ids)
    detach = ecs.BatchDetachVolumesRequest(volume_id=volume_id, body=leave)
    stop(sdk, *made.server_ids)  # nothing runs on them that would let go of a disk
    done(sdk, sdk.batch_detach_volumes(detach).job_id)
    shown = disks.show_volume(evs.ShowVolumeRequest(volume_id=volume_id)).volume
    assert (shown.status, shown.attachments) == ("available", [])
    delete(sdk, *made.server_ids)


def test_several_stopped_servers_get_another_flavor_at_once(sdk: Any, image: str, qemu: None) -> None:
    made = create(sdk, option(image, fresh("many"), count=2))
    done(sdk, made.job_id)

    def resize(*server_ids: str) -> Any:
        asked = ecs.BatchResizeServersOption(flavor_ref=LARGER, servers=ids(*server_ids))
        return sdk.batch_resize_servers(ecs.BatchResizeServersRequest(body=ecs.BatchResizeServersReq(resize=asked)))

    with pytest.raises(exceptions.ClientRequestException) as refused:
        resize(*made.server_ids)
    assert refused.value.error_code == "Ecs.0100"  # they run
    with pytest.raises(exceptions.ClientRequestException) as refused:
        resize(made.server_ids[0], str(uuid.uuid4()))
    assert refused.value.error_code == "Ecs.0114"
    stop(sdk, *made.server_ids)
    job = done(sdk, in_another_second(lambda: resize(*made.server_ids)).job_id)
    assert (job.job_type, job.entities.sub_jobs_total) == ("batchResizeServer", 2)
    assert [sub.entities.server_id for sub in job.entities.sub_jobs] == made.server_ids
    assert {show(sdk, one).flavor.id for one in made.server_ids} == {LARGER}
    delete(sdk, *made.server_ids)


def nics(sdk: Any, server_id: str) -> list[Any]:
    listed: list[Any] = sdk.list_server_interfaces(ecs.ListServerInterfacesRequest(server_id=server_id)).interface_attachments
    return listed


def test_a_network_card_comes_and_goes_and_the_primary_stays(sdk: Any, machine: str) -> None:
    (primary,) = nics(sdk, machine)
    body = ecs.BatchAddServerNicsRequestBody(nics=[ecs.BatchAddServerNicOption(subnet_id=SUBNET)])
    job = done(sdk, sdk.batch_add_server_nics(ecs.BatchAddServerNicsRequest(server_id=machine, body=body)).job_id)
    nic_id = job.entities.sub_jobs[0].entities.nic_id
    assert {one.port_id for one in nics(sdk, machine)} == {primary.port_id, nic_id}

    def remove(port_id: str) -> Any:
        body = ecs.BatchDeleteServerNicsRequestBody(nics=[ecs.BatchDeleteServerNicOption(id=port_id)])
        return sdk.batch_delete_server_nics(ecs.BatchDeleteServerNicsRequest(server_id=machine, body=body))

    with pytest.raises(exceptions.ClientRequestException) as refusal:
        remove(primary.port_id)
    assert refusal.value.status_code == 403
    stop(sdk, machine)  # nothing runs on it that would let go of a card
    done(sdk, remove(nic_id).job_id)
    assert [one.port_id for one in nics(sdk, machine)] == [primary.port_id]


def test_a_stopped_server_gets_another_flavor_and_another_system(sdk: Any, image: str, machine: str) -> None:
    def resize() -> Any:
        option = ecs.ResizePrePaidServerOption(flavor_ref=LARGER)
        request = ecs.ResizeServerRequest(server_id=machine, body=ecs.ResizeServerRequestBody(resize=option))
        return sdk.resize_server(request)

    sizes = sdk.list_resize_flavors(ecs.ListResizeFlavorsRequest(instance_uuid=machine)).flavors
    assert LARGER in {one.id for one in sizes}
    with pytest.raises(exceptions.ClientRequestException):  # it runs
        resize()
    stop(sdk, machine)
    assert done(sdk, in_another_second(resize).job_id).job_type == "resizeServer"
    assert show(sdk, machine).flavor.id == LARGER

    option = ecs.ChangeServerOsWithCloudInitOption(imageid=image, keyname="k", userid="u")
    body = ecs.ChangeServerOsWithCloudInitRequestBody(os_change=option)
    request = ecs.ChangeServerOsWithCloudInitRequest(server_id=machine, body=body)
    before = show(sdk, machine).os_extended_volumesvolumes_attached[0].id
    job = done(sdk, sdk.change_server_os_with_cloud_init(request).job_id)
    assert job.job_type == "changeOS"
    assert show(sdk, machine).os_extended_volumesvolumes_attached[0].id != before
    stop(sdk, machine)
    again = ecs.ReinstallServerWithCloudInitRequestBody(os_reinstall=ecs.ReinstallServerWithCloudInitOption(keyname="k"))
    request = ecs.ReinstallServerWithCloudInitRequest(server_id=machine, body=again)
    assert done(sdk, sdk.reinstall_server_with_cloud_init(request).job_id).job_type == "reInitOs"


def test_the_async_client_follows_jobs_too(server: Running, keys: Keys, image: str, qemu: None) -> None:
    async_client = client(ecs.EcsAsyncClient, server, keys)
    body = ecs.CreatePostPaidServersRequestBody(
        server=ecs.PostPaidServer(
            name=fresh("async"),
            image_ref=image,
            flavor_ref=FLAVOR,
            vpcid=VPC,
            nics=[ecs.PostPaidServerNic(subnet_id=SUBNET)],
            root_volume=ecs.PostPaidServerRootVolume(volumetype="SAS"),
        )
    )
    made = async_client.create_post_paid_servers_async(ecs.CreatePostPaidServersRequest(body=body)).result()
    end_s = time.monotonic() + 60
    job = async_client.show_job_async(ecs.ShowJobRequest(job_id=made.job_id)).result()
    while job.status in ("INIT", "RUNNING") and time.monotonic() < end_s:
        time.sleep(0.05)
        job = async_client.show_job_async(ecs.ShowJobRequest(job_id=made.job_id)).result()
    assert job.status == "SUCCESS"
    delete(client(ecs.EcsClient, server, keys), *made.server_ids)


def test_an_order_waits_until_it_is_paid(server: Running, sdk: Any, keys: Keys, image: str, qemu: None) -> None:
    param = ecs.PrePaidServerExtendParam(charging_mode="prePaid", period_type="month", period_num=1, is_auto_pay="false")
    made = create(sdk, option(image, fresh("order"), extendparam=param))
    assert made.order_id == f"CS{made.job_id.upper()}"
    assert sdk.show_job(ecs.ShowJobRequest(job_id=made.job_id)).status == "PENDING_PAYMENT"
    headers = {"X-Project-Id": keys.project}
    if server.auth == "required":
        headers["X-Auth-Token"] = run(server.system.identities.create_api_key("admin", "demo", fresh("pay"))).secret
    _ask(f"{server.url}/jobs/{made.order_id}/release", headers, b"")
    done(sdk, made.job_id)
    assert show(sdk, made.server_ids[0]).metadata["charging_mode"] == "1"
    delete(sdk, *made.server_ids)


def test_a_repeated_client_token_gives_the_same_job_and_ids(sdk: Any, image: str, qemu: None) -> None:
    name, token = fresh("once"), str(uuid.uuid4())
    first = create(sdk, option(image, name), token=token)
    second = in_another_second(lambda: create(sdk, option(image, name), token=token))
    assert (first.job_id, first.server_ids) == (second.job_id, second.server_ids)
    done(sdk, first.job_id)
    delete(sdk, *first.server_ids)


def test_a_dry_run_makes_nothing(sdk: Any, image: str, qemu: None) -> None:
    name = fresh("dry")
    assert create(sdk, option(image, name), dry_run=True).job_id is None
    refused("Ecs.0005", 400, create, sdk, option(image, name, flavor_ref=""), dry_run=True)
    assert sdk.list_servers_details(ecs.ListServersDetailsRequest(name=name)).count == 0


def test_refusals_have_the_vendors_codes(sdk: Any, image: str, qemu: None) -> None:
    unknown = str(uuid.uuid4())
    refused("Ecs.0114", 404, show, sdk, unknown)
    refused("Ecs.0114", 404, stop, sdk, unknown)
    refused("Ecs.0114", 404, delete, sdk, unknown)
    refused("Common.0011", 400, sdk.show_job, ecs.ShowJobRequest(job_id=unknown.replace("-", "")))
    for fields in ({"name": "a b"}, {"count": 101}, {"nics": []}, {"user_data": "%"}):
        refused("Ecs.0005", 400, create, sdk, option(image, **{"name": fresh("wrong"), **fields}))
    for fields in ({"flavor_ref": "x9.huge"}, {"image_ref": unknown}):
        with pytest.raises(exceptions.ClientRequestException) as caught:
            create(sdk, option(image, **{"name": fresh("wrong"), **fields}))
        assert caught.value.status_code in (400, 404)
        assert caught.value.error_code.startswith("Ecs.")


def test_more_than_the_quota_is_refused(server: Running, sdk: Any, image: str, qemu: None) -> None:
    count = server.system.settings.server_ram_mib_max // 16384 + 1
    assert count <= 100
    with pytest.raises(exceptions.ClientRequestException) as caught:
        create(sdk, option(image, fresh("huge"), flavor_ref="s6.2xlarge.2", count=count))
    assert caught.value.error_code.startswith("Ecs.")


def test_a_wrong_secret_and_a_wrong_project_are_refused(server: Running, keys: Keys) -> None:
    if server.auth == "none":
        pytest.skip("without auth every signature and project is right")
    wrong = client(ecs.EcsClient, server, keys, secret="wrong")
    refused("APIGW.0301", 401, show, wrong, str(uuid.uuid4()))
    other = client(ecs.EcsClient, server, keys, project="0a1b2c3d4e5f60718293a4b5c6d7e8f9")
    refused("Common.0018", 400, show, other, str(uuid.uuid4()))


def test_flavors_are_listed(sdk: Any) -> None:
    found = {one.id: one for one in sdk.list_flavors(ecs.ListFlavorsRequest()).flavors}
    assert (found[FLAVOR].ram, found[FLAVOR].vcpus) == (128, "1")
