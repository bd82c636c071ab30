"""The unmodified huaweicloudsdkevs: volumes from create to delete, each job followed to its end, each refusal by its code."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from client_rig import Running
from huawei_rig import Keys, client, fresh, in_another_second, run, wait

evs = pytest.importorskip("huaweicloudsdkevs.v2")
exceptions = pytest.importorskip("huaweicloudsdkcore.exceptions.exceptions")

ZONE = "az-1"


@pytest.fixture(scope="module")
def keys(server: Running) -> Keys:
    return Keys(server)


@pytest.fixture(scope="module")
def sdk(server: Running, keys: Keys) -> Any:
    return client(evs.EvsClient, server, keys)


def option(name: str, **fields: Any) -> Any:
    return evs.CreateVolumeOption(name=name, **{"availability_zone": ZONE, "volume_type": "SAS", "size": 10, **fields})


def create(sdk: Any, name: str, token: str | None = None, bss: Any = None, **fields: Any) -> Any:
    body = evs.CreateVolumeRequestBody(volume=option(name, **fields), bss_param=bss)
    return sdk.create_volume(evs.CreateVolumeRequest(body=body, x_client_token=token))


def done(sdk: Any, job_id: str) -> Any:
    job = wait(sdk, evs.ShowJobRequest, job_id)
    assert job.status == "SUCCESS", job
    assert (job.error_code, job.fail_reason) == (None, None)
    assert job.begin_time <= job.end_time
    return job


def show(sdk: Any, volume_id: str) -> Any:
    return sdk.show_volume(evs.ShowVolumeRequest(volume_id=volume_id)).volume


def extend(sdk: Any, volume_id: str, size: int, bss: Any = None) -> Any:
    body = evs.ResizeVolumeRequestBody(os_extend=evs.OsExtend(new_size=size), bss_param=bss)
    return sdk.resize_volume(evs.ResizeVolumeRequest(volume_id=volume_id, body=body))


def delete(sdk: Any, volume_id: str) -> Any:
    return sdk.delete_volume(evs.DeleteVolumeRequest(volume_id=volume_id))


@pytest.fixture
def volume(sdk: Any) -> Iterator[str]:
    made = create(sdk, fresh("one"))
    done(sdk, made.job_id)
    yield made.volume_ids[0]


def refused(code: str, status: int, call: Any, *args: Any, **kwargs: Any) -> Any:
    with pytest.raises(exceptions.ClientRequestException) as caught:
        call(*args, **kwargs)
    assert (caught.value.error_code, caught.value.status_code) == (code, status), caught.value
    assert caught.value.request_id
    return caught.value


def test_a_volume_lives_from_create_to_delete(sdk: Any) -> None:
    name = fresh("life")
    made = create(sdk, name, description="for a test", metadata={"purpose": "test"}, tags={"team": "a"})
    (volume_id,) = made.volume_ids
    job = done(sdk, made.job_id)
    assert (job.job_type, job.job_id) == ("createVolume", made.job_id)
    assert (job.entities.volume_id, job.entities.name, job.entities.size, job.entities.volume_type) == (
        volume_id,
        name,
        10,
        "SAS",
    )
    assert job.entities.sub_jobs is None

    volume = show(sdk, volume_id)
    assert (volume.name, volume.status, volume.size, volume.bootable) == (name, "available", 10, "false")
    assert (volume.description, volume.tags, volume.multiattach) == ("for a test", {"team": "a"}, False)
    assert volume.metadata["purpose"] == "test"
    assert volume.attachments == []
    assert volume.os_vol_tenant_attrtenant_id

    job = done(sdk, extend(sdk, volume_id, 12).job_id)
    assert (job.job_type, job.entities.size) == ("extendVolume", 12)
    assert show(sdk, volume_id).size == 12

    retype = evs.RetypeVolumeRequestBody(os_retype=evs.RetypeVolume(new_type="SSD"))
    job = done(sdk, sdk.retype_volume(evs.RetypeVolumeRequest(volume_id=volume_id, body=retype)).job_id)
    assert (job.job_type, show(sdk, volume_id).volume_type) == ("retypeVolume", "SSD")

    option = evs.UpdateVolumeOption(name=name + "-2", description="renamed")
    update = evs.UpdateVolumeRequest(volume_id=volume_id, body=evs.UpdateVolumeRequestBody(volume=option))
    assert sdk.update_volume(update).name in (None, name + "-2")
    assert (show(sdk, volume_id).name, show(sdk, volume_id).description) == (name + "-2", "renamed")

    job = done(sdk, delete(sdk, volume_id).job_id)
    assert job.job_type == "deleteVolume"
    error = refused("EVS.5404", 404, show, sdk, volume_id)
    assert volume_id in error.error_msg


def test_a_batch_has_a_sub_job_for_each_volume(sdk: Any) -> None:
    name = fresh("batch")
    made = create(sdk, name, count=3)
    assert len(set(made.volume_ids)) == 3
    job = done(sdk, made.job_id)
    assert job.job_type == "batchCreateVolume"
    subs = job.entities.sub_jobs
    assert [sub.status for sub in subs] == ["SUCCESS"] * 3
    assert [sub.entities.volume_id for sub in subs] == made.volume_ids
    assert [sub.entities.name for sub in subs] == [f"{name}-000{number}" for number in (1, 2, 3)]
    assert job.entities.volume_id is None
    alone = sdk.show_job(evs.ShowJobRequest(job_id=subs[1].job_id))  # a sub-job is asked for like any job
    assert (alone.job_type, alone.entities.volume_id) == ("createVolume", made.volume_ids[1])

    larger = [evs.VolumesForBatchResizeVolume(id=one, new_size=11) for one in made.volume_ids]
    request = evs.BatchResizeVolumesRequest(body=evs.BatchResizeVolumeRequestBody(volumes=larger))
    job = done(sdk, sdk.batch_resize_volumes(request).job_id)
    assert [sub.entities.size for sub in job.entities.sub_jobs] == [11] * 3

    page = sdk.list_volumes(evs.ListVolumesRequest(name=name, limit=2, sort_key="created_at", sort_dir="asc"))
    assert (page.count, len(page.volumes)) == (3, 2)
    rest = sdk.list_volumes(evs.ListVolumesRequest(name=name, limit=2, offset=2, sort_key="created_at", sort_dir="asc"))
    assert {one.id for one in (*page.volumes, *rest.volumes)} == set(made.volume_ids)
    assert sdk.list_volumes(evs.ListVolumesRequest(name=name, offset=3)).volumes == []
    for volume_id in made.volume_ids:
        done(sdk, delete(sdk, volume_id).job_id)


def test_a_repeated_client_token_gives_the_same_job_and_ids(sdk: Any) -> None:
    name, token = fresh("once"), str(uuid.uuid4())
    first = create(sdk, name, token, count=2)
    second = in_another_second(lambda: create(sdk, name, token, count=2))
    assert (first.job_id, first.volume_ids) == (second.job_id, second.volume_ids)
    done(sdk, first.job_id)
    assert sdk.list_volumes(evs.ListVolumesRequest(name=name)).count == 2


def test_the_async_client_follows_jobs_too(server: Running, keys: Keys) -> None:
    async_client = client(evs.EvsAsyncClient, server, keys)
    request = evs.CreateVolumeRequest(body=evs.CreateVolumeRequestBody(volume=option(fresh("async"))))
    made = async_client.create_volume_async(request).result()
    for _ in range(400):
        job = async_client.show_job_async(evs.ShowJobRequest(job_id=made.job_id)).result()
        if job.status == "SUCCESS":
            break
        run(asyncio.sleep(0.05))
    assert job.status == "SUCCESS"


def test_an_order_waits_until_it_is_paid(server: Running, sdk: Any, keys: Keys) -> None:
    bss = evs.BssParamForCreateVolume(charging_mode="prePaid", period_type="month", period_num=1, is_auto_pay="false")
    made = create(sdk, fresh("order"), bss=bss)
    assert made.job_id is None
    (volume_id,) = made.volume_ids
    job_id = made.order_id[2:].lower()
    job = sdk.show_job(evs.ShowJobRequest(job_id=job_id))
    assert (job.status, job.end_time) == ("PENDING_PAYMENT", "")
    assert show(sdk, volume_id).status == "creating"
    released = _release(server, keys, made.order_id)
    assert released == 202
    done(sdk, job_id)
    assert show(sdk, volume_id).metadata["orderID"] == made.order_id


def _release(server: Running, keys: Keys, order_id: str) -> int:
    import urllib.request

    headers = {"X-Project-Id": keys.project}
    if server.auth == "required":
        made = run(server.system.identities.create_api_key("admin", "demo", fresh("pay")))
        headers["Authorization"] = f"Bearer {made.secret}"
    request = urllib.request.Request(f"{server.url}/jobs/{order_id}/release", method="POST", headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return int(answer.status)


def test_an_order_that_is_paid_at_once_runs(sdk: Any) -> None:
    bss = evs.BssParamForCreateVolume(charging_mode="prePaid", period_type="month", period_num=1, is_auto_pay="true")
    made = create(sdk, fresh("paid"), bss=bss)
    done(sdk, made.order_id[2:].lower())
    assert show(sdk, made.volume_ids[0]).status == "available"


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("EVS.1010", {"size": 0}),
        ("EVS.1010", {"size": 9}),
        ("EVS.1010", {"size": 40000}),
        ("EVS.1010", {"size": "large"}),
        ("EVS.1020", {"volume_type": "FLOPPY"}),
        ("EVS.1021", {"count": 101}),
        ("EVS.1036", {"availability_zone": "nowhere"}),
        ("EVS.2046", {"image_ref": str(uuid.uuid4())}),
        ("EVS.2045", {"snapshot_id": str(uuid.uuid4())}),
        ("EVS.1016", {"snapshot_id": str(uuid.uuid4()), "image_ref": str(uuid.uuid4())}),
        ("EVS.1051", {"backup_id": str(uuid.uuid4()), "count": 2}),
        ("EVS.1008", {"metadata": {"__system__encrypted": "1"}}),
        ("EVS.1008", {"name": "x" * 256}),
    ],
)
def test_a_wrong_create_is_refused_by_the_code_of_its_field(sdk: Any, code: str, fields: dict[str, Any]) -> None:
    refused(code, 400, create, sdk, **{"name": fresh("wrong"), **fields})


def test_a_volume_only_grows(sdk: Any, volume: str) -> None:
    refused("EVS.1015", 400, extend, sdk, volume, 10)
    refused("EVS.1010", 400, extend, sdk, volume, 100_000)
    done(sdk, delete(sdk, volume).job_id)


def test_unknown_ids_are_told_apart(sdk: Any) -> None:
    unknown = str(uuid.uuid4())
    refused("EVS.5404", 404, show, sdk, unknown)
    refused("EVS.5404", 404, extend, sdk, unknown, 20)
    refused("EVS.5404", 404, delete, sdk, unknown)
    refused("EVS.1002", 400, show, sdk, "no-uuid")
    refused("Common.0011", 400, sdk.show_job, evs.ShowJobRequest(job_id=unknown.replace("-", "")))
    refused("Common.0011", 400, sdk.show_job, evs.ShowJobRequest(job_id="no-job"))


def test_qos_is_refused_and_not_pretended(sdk: Any, volume: str) -> None:
    body = evs.ModifyVolumeQoSRequestBody(qos_modify=evs.ModifyVolumeQoSOption(iops=3000))
    refused("EVS.1052", 400, sdk.modify_volume_qo_s, evs.ModifyVolumeQoSRequest(volume_id=volume, body=body))


def test_more_than_the_quota_is_refused(server: Running, sdk: Any) -> None:
    size = server.system.settings.volumes_gib_max + 1
    count = -(-size // 32768)
    assert count <= 100
    refused("EVS.1042", 400, create, sdk, fresh("huge"), size=32768, count=count)


def test_an_attached_volume_is_not_deleted(server: Running, sdk: Any, volume: str) -> None:
    run(_attach(server, volume))
    refused("EVS.1046", 400, delete, sdk, volume)
    assert show(sdk, volume).attachments[0].device == "/dev/sdb"
    assert [one.id for one in sdk.list_volumes(evs.ListVolumesRequest(server_id="server-1")).volumes] == [volume]


async def _attach(server: Running, volume_id: str) -> None:
    """As an attach leaves it, without a machine."""
    import msgspec

    from milepost.volume import VOLUME, Attachment, VolumeStatus, decode_volume, encode_volume

    stored = await server.system.store.get_resource(VOLUME, volume_id)
    volume = decode_volume(stored.doc)
    volume.attachments = [Attachment(id="a-1", server_id="server-1", device="/dev/sdb", attached_us=1)]
    volume.status = VolumeStatus.IN_USE
    await server.system.store.put_resource(msgspec.structs.replace(stored, doc=encode_volume(volume)))


def test_a_wrong_secret_is_the_gateways_401(server: Running, keys: Keys) -> None:
    if server.auth == "none":
        pytest.skip("without auth every signature is right")
    wrong = client(evs.EvsClient, server, keys, secret="wrong")
    refused("APIGW.0301", 401, show, wrong, str(uuid.uuid4()))


def test_another_project_in_the_path_is_refused(server: Running, keys: Keys) -> None:
    if server.auth == "none":
        pytest.skip("without auth every project is the caller's")
    wrong = client(evs.EvsClient, server, keys, project="0a1b2c3d4e5f60718293a4b5c6d7e8f9")
    refused("Common.0018", 400, show, wrong, str(uuid.uuid4()))


def test_another_projects_volume_and_job_are_unknown(server: Running, sdk: Any, volume: str) -> None:
    other = client(evs.EvsClient, server, Keys(server, "other", "neighbour"))
    refused("EVS.5404", 404, show, other, volume)
    refused("EVS.5404", 404, delete, other, volume)
    made = extend(sdk, volume, 20)
    refused("Common.0011", 400, other.show_job, evs.ShowJobRequest(job_id=made.job_id))


def test_a_call_that_is_not_there_is_the_gateways_404(sdk: Any) -> None:
    refused("APIGW.0101", 404, sdk.list_snapshots, evs.ListSnapshotsRequest())
