"""The unmodified python-glanceclient: it builds its models from our schemas and refuses what they do not allow."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from client_rig import PASSWORD, Running, Sources, import_input

glanceclient = pytest.importorskip("glanceclient")
exc = pytest.importorskip("glanceclient.exc")
loading = pytest.importorskip("keystoneauth1.loading")
session = pytest.importorskip("keystoneauth1.session")

WAIT_S = 60.0


def password_session(server: Running, user: str) -> Any:
    auth = loading.get_plugin_loader("password").load_from_options(
        auth_url=f"{server.url}/identity",
        username=user,
        password=PASSWORD,
        project_name="demo",
        user_domain_name="Default",
        project_domain_name="Default",
    )
    return session.Session(auth=auth)


@pytest.fixture(scope="module", params=["password", "token"])
def glance(server: Running, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Through Keystone and the catalog, or straight to the endpoint with a token."""
    keystone = password_session(server, "admin")
    if request.param == "password":
        yield glanceclient.Client("2", session=keystone)
    else:
        token = keystone.get_token() if server.auth == "required" else "any"
        yield glanceclient.Client("2", endpoint=server.url, token=token)


def wait(glance: Any, task_id: str) -> Any:
    """The task once it is final; glanceclient has no wait of its own."""
    end_s = time.monotonic() + WAIT_S
    while time.monotonic() < end_s:
        task = glance.tasks.get(task_id)
        if task["status"] in ("success", "failure"):
            return task
        time.sleep(0.1)
    raise AssertionError(f"task {task_id} is still {task['status']}")


def create(glance: Any, sources: Sources, name: str, source: str = "disk.qcow2", **properties: Any) -> Any:
    return glance.tasks.create(type="import", input=import_input(sources.files[source], name, **properties))


def fresh(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


def test_a_task_is_followed_to_its_end_and_the_image_downloaded(glance: Any, sources: Sources) -> None:
    name, file = fresh("glance"), sources.files["disk.qcow2"]
    task = create(glance, sources, name)
    assert (task["status"], task["message"]) == ("pending", "")

    done = wait(glance, task["id"])
    assert done["status"] == "success", done["message"]
    image = glance.images.get(done["result"]["image_id"])
    assert (image["name"], image["status"], image["size"], image["os_hash_value"]) == (name, "active", file.size, file.sha512)
    data = b"".join(glance.images.data(image["id"]))  # verifies the sha512 itself
    assert hashlib.sha512(data).hexdigest() == file.sha512
    assert [one["id"] for one in glance.images.list(filters={"name": name})] == [image["id"]]

    glance.images.delete(image["id"])
    with pytest.raises(exc.HTTPNotFound):
        glance.images.get(image["id"])
    with pytest.raises(exc.HTTPNotFound):
        glance.images.delete(image["id"])


def test_tasks_and_images_are_listed_page_by_page(glance: Any, sources: Sources) -> None:
    made = {wait(glance, create(glance, sources, fresh("page"))["id"])["id"] for _ in range(3)}
    listed = [task["id"] for task in glance.tasks.list(page_size=2, sort_key="status", sort_dir="asc")]
    assert len(listed) == len(set(listed))
    assert made <= set(listed)
    assert {task["status"] for task in glance.tasks.list(filters={"status": "success"})} == {"success"}
    images = [image["id"] for image in glance.images.list(page_size=1)]
    assert len(images) == len(set(images)) >= 3


def test_a_failed_task_says_why(glance: Any, sources: Sources) -> None:
    input = {**import_input(sources.files["disk.raw"], fresh("lie")), "import_from_format": "qcow2"}
    done = wait(glance, glance.tasks.create(type="import", input=input)["id"])
    assert (done["status"], done["result"]) == ("failure", None)
    assert "qcow2" in done["message"]


def test_an_image_is_updated_tagged_and_switched_off(glance: Any, sources: Sources) -> None:
    image_id = wait(glance, create(glance, sources, fresh("update"))["id"])["result"]["image_id"]
    image = glance.images.update(image_id, remove_props=None, name="renamed", purpose="test", protected=True)
    assert (image["name"], image["purpose"], image["protected"]) == ("renamed", "test", True)
    with pytest.raises(exc.HTTPForbidden, match="is protected and cannot be deleted"):
        glance.images.delete(image_id)
    image = glance.images.update(image_id, remove_props=["purpose"], protected=False)
    assert "purpose" not in image
    glance.image_tags.update(image_id, "x")
    assert glance.images.get(image_id)["tags"] == ["x"]
    glance.image_tags.delete(image_id, "x")
    glance.images.deactivate(image_id)
    assert glance.images.get(image_id)["status"] == "deactivated"
    glance.images.reactivate(image_id)
    glance.images.delete(image_id)


def test_refusals_carry_the_servers_sentence(glance: Any) -> None:
    unknown = str(uuid.uuid4())
    with pytest.raises(exc.HTTPNotFound, match=f"Could not find task {unknown}"):
        glance.tasks.get(unknown)
    with pytest.raises(exc.HTTPNotFound, match="No image found with ID"):
        glance.images.get(unknown)
    with pytest.raises(exc.HTTPBadRequest, match="Invalid location: None"):
        glance.tasks.create(type="import", input={})
    with pytest.raises(exc.HTTPBadRequest, match="Invalid status value: done"):
        list(glance.tasks.list(filters={"status": "done"}))


def test_a_type_that_the_schema_does_not_name_is_refused_by_the_client(glance: Any) -> None:
    with pytest.raises(TypeError):
        glance.tasks.create(type="nonsense", input={})


def test_a_member_is_refused_and_so_is_no_token(server: Running) -> None:
    if server.auth == "none":
        pytest.skip("without auth everybody is an admin")
    member = glanceclient.Client("2", session=password_session(server, "member"))
    with pytest.raises(exc.HTTPForbidden, match="You are not authorized to complete tasks_api_access action"):
        list(member.tasks.list())
    assert isinstance(list(member.images.list()), list)
    with pytest.raises(exc.HTTPUnauthorized):
        glanceclient.Client("2", endpoint=server.url, token="wrong").images.get(str(uuid.uuid4()))
