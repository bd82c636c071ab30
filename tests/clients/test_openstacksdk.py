"""The unmodified openstacksdk: tasks from create to end, and the images they make."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_rig import Running, Sources, import_input

openstack = pytest.importorskip("openstack")
exceptions = pytest.importorskip("openstack.exceptions")

WAIT_S = 60


def connect(server: Running, cloud: str) -> Any:
    config = openstack.config.OpenStackConfig(config_files=[str(server.clouds)], load_envvars=False)
    return openstack.connection.Connection(config=config.get_one(cloud=cloud))


@pytest.fixture(scope="module", params=["password", "none"])
def cloud(server: Running, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Password auth through Keystone and the catalog on both servers; no auth at all where none is needed."""
    if request.param == "none" and server.auth == "required":
        pytest.skip("a server with auth asks for it")
    connection = connect(server, "admin" if request.param == "password" else "none")
    yield connection
    connection.close()


def submit(cloud: Any, sources: Sources, name: str, source: str = "disk.qcow2", **properties: Any) -> Any:
    return cloud.image.create_task(type="import", input=import_input(sources.files[source], name, **properties))


def fresh(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


def test_a_task_is_followed_to_its_end_and_the_image_downloaded(cloud: Any, sources: Sources, tmp_path: Path) -> None:
    name, file = fresh("sdk"), sources.files["disk.qcow2"]
    task = submit(cloud, sources, name, os_distro="demo", purpose="test")
    assert task.status == "pending"
    assert task.input["import_from"] == file.url

    done = cloud.image.wait_for_task(task, interval=0.2, wait=WAIT_S)
    assert done.status == "success"
    assert done.expires_at
    image = cloud.image.find_image(name, ignore_missing=False)
    assert image.id == done.result["image_id"]
    assert (image.status, image.disk_format, image.size, image.virtual_size) == ("active", "qcow2", file.size, 8 << 20)
    assert (image.checksum, image.hash_algo, image.hash_value) == (file.md5, "sha512", file.sha512)
    assert (image.os_distro, image.properties) == ("demo", {"purpose": "test"})

    target = tmp_path / "image"
    cloud.image.download_image(image.id, output=str(target))  # verifies the sha512 itself
    assert hashlib.sha512(target.read_bytes()).hexdigest() == file.sha512
    streamed = cloud.image.download_image(image.id, stream=True)
    assert hashlib.md5(b"".join(streamed.iter_content(65536))).hexdigest() == file.md5

    first = cloud.image.get(f"/images/{image.id}/file", headers={"Range": "bytes=0-99999"})
    rest = cloud.image.get(f"/images/{image.id}/file", headers={"Range": "bytes=100000-"})
    assert (first.status_code, rest.status_code, len(first.content)) == (206, 206, 100_000)
    assert hashlib.sha512(first.content + rest.content).hexdigest() == file.sha512

    cloud.image.delete_image(image.id, ignore_missing=False)
    assert cloud.image.find_image(name) is None
    with pytest.raises(exceptions.NotFoundException):
        cloud.image.get_image(image.id)
    with pytest.raises(exceptions.NotFoundException):
        cloud.image.delete_image(image.id, ignore_missing=False)


def test_an_image_is_converted_when_another_format_is_asked_for(cloud: Any, sources: Sources) -> None:
    name = fresh("converted")
    task = cloud.image.wait_for_task(submit(cloud, sources, name, disk_format="raw"), interval=0.2, wait=WAIT_S)
    image = cloud.image.get_image(task.result["image_id"])
    assert (image.disk_format, image.checksum) == ("raw", sources.files["disk.raw"].md5)
    assert hashlib.md5(cloud.image.download_image(image).content).hexdigest() == sources.files["disk.raw"].md5


def test_a_failed_task_says_why_and_leaves_no_image(cloud: Any, sources: Sources) -> None:
    name = fresh("lie")
    task = cloud.image.create_task(
        type="import", input={**import_input(sources.files["disk.raw"], name), "import_from_format": "qcow2"}
    )
    with pytest.raises(exceptions.ResourceFailure):
        cloud.image.wait_for_task(task, interval=0.2, wait=WAIT_S)
    task = cloud.image.get_task(task.id)
    assert task.status == "failure"
    assert "qcow2" in task.message
    assert task.result is None
    assert cloud.image.find_image(name) is None


def test_tasks_are_listed_page_by_page(cloud: Any, sources: Sources) -> None:
    ids = {submit(cloud, sources, fresh("page"), disk_format="qcow2").id for _ in range(3)}
    for task_id in ids:
        cloud.image.wait_for_task(cloud.image.get_task(task_id), interval=0.2, wait=WAIT_S)
    listed = [task.id for task in cloud.image.tasks(limit=2)]
    assert len(listed) == len(set(listed))
    assert ids <= set(listed)
    oldest = [task.created_at for task in cloud.image.tasks(sort_key="created_at", sort_dir="asc", limit=2)]
    assert oldest == sorted(oldest)
    assert {task.status for task in cloud.image.tasks(status="success", type="import")} == {"success"}


def test_images_are_listed_updated_and_filtered(cloud: Any, sources: Sources) -> None:
    name = fresh("update")
    task = cloud.image.wait_for_task(submit(cloud, sources, name), interval=0.2, wait=WAIT_S)
    image = cloud.image.get_image(task.result["image_id"])
    renamed = cloud.image.update_image(image, name=name + "-2", is_protected=True, hw_video_model="qxl")
    assert (renamed.name, renamed.is_protected, renamed.hw_video_model) == (name + "-2", True, "qxl")
    cloud.image.add_tag(image, "x")
    assert [one.id for one in cloud.image.images(name=name + "-2", tag="x")] == [image.id]
    assert image.id in {one.id for one in cloud.image.images(limit=1)}
    with pytest.raises(exceptions.ForbiddenException, match="protected and cannot be deleted"):
        cloud.image.delete_image(image.id)
    cloud.image.update_image(cloud.image.get_image(image.id), is_protected=False)
    cloud.image.deactivate_image(image.id)
    assert cloud.image.get_image(image.id).status == "deactivated"
    cloud.image.reactivate_image(image.id)
    cloud.image.delete_image(image.id)


def test_refusals_are_typed_and_carry_the_servers_sentence(cloud: Any, sources: Sources) -> None:
    unknown = str(uuid.uuid4())
    with pytest.raises(exceptions.NotFoundException, match=f"Could not find task {unknown}"):
        cloud.image.get_task(unknown)
    with pytest.raises(exceptions.BadRequestException, match="File based imports are not allowed"):
        cloud.image.create_task(type="import", input={"import_from": "file:///etc/passwd"})
    with pytest.raises(exceptions.BadRequestException, match="import_from_format"):
        cloud.image.create_task(type="import", input={"import_from": sources.files["disk.raw"].url})
    with pytest.raises(exceptions.NotFoundException):
        cloud.image.get_image(unknown)


def test_schemas_are_found(cloud: Any) -> None:
    assert cloud.image.get_task_schema().properties["type"]["enum"][0] == "import"
    assert cloud.image.get_image_schema().properties["id"]


def test_a_member_may_read_images_but_not_tasks(server: Running, sources: Sources) -> None:
    if server.auth == "none":
        pytest.skip("without auth everybody is an admin")
    admin, member = connect(server, "admin"), connect(server, "member")
    task = admin.image.wait_for_task(submit(admin, sources, fresh("member")), interval=0.2, wait=WAIT_S)
    with pytest.raises(exceptions.ForbiddenException, match="tasks_api_access"):
        list(member.image.tasks())
    assert member.image.get_image(task.result["image_id"]).status == "active"
    admin.close()
    member.close()


def test_a_wrong_password_is_refused(server: Running) -> None:
    if server.auth == "none":
        pytest.skip("without auth every password is right")
    config = openstack.config.OpenStackConfig(config_files=[str(server.clouds)], load_envvars=False)
    region = config.get_one(cloud="admin", auth={"password": "wrong"})
    with pytest.raises(exceptions.SDKException, match="401"):
        openstack.connection.Connection(config=region).authorize()
