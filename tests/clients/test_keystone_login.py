"""openstacksdk and keystoneauth, unmodified, log in: by password, from either URL, and not when they should not."""

from __future__ import annotations

from typing import Any

import pytest
from client_rig import PASSWORD, PROJECTS, Running

openstack = pytest.importorskip("openstack")
sdk_errors = pytest.importorskip("openstack.exceptions")
ksa_errors = pytest.importorskip("keystoneauth1.exceptions")


def connect(server: Running, path: str = "/v3", **given: Any) -> Any:
    auth = {
        "auth_url": server.url + path,
        "username": "admin",
        "password": PASSWORD,
        "project_name": "demo",
        "user_domain_name": "Default",
        "project_domain_name": "Default",
    }
    return openstack.connection.Connection(**{**auth, **given}, region_name="RegionOne")


def everything(server: Running) -> list[str]:
    """The projects that an admin sees."""
    return list(PROJECTS) if server.auth == "required" else ["demo"]


@pytest.mark.parametrize("path", ["/v3", "/v3/", "/identity", "/identity/v3"])
def test_password_auth_finds_the_image_service_from_every_identity_url(server: Running, path: str) -> None:
    with connect(server, path) as cloud:
        assert cloud.authorize()
        assert cloud.endpoint_for("image") == server.url
        assert cloud.image.get_endpoint_data().url.rstrip("/") == f"{server.url}/v2"
        assert sorted(project.name for project in cloud.identity.projects()) == sorted(everything(server))
        assert cloud.current_project.name == "demo"


def test_a_wrong_password_is_refused_with_auth_and_any_is_right_without(server: Running) -> None:
    with connect(server, password="wrong") as cloud:
        if server.auth == "none":
            assert cloud.authorize()
            return
        with pytest.raises(sdk_errors.SDKException, match="requires authentication"):
            cloud.authorize()


def test_the_session_fetches_a_new_token_when_its_own_was_revoked(server: Running) -> None:
    with connect(server) as cloud:
        old = cloud.auth_token
        assert cloud.session.delete("/auth/tokens", endpoint_filter={"service_type": "identity", "version": 3},
                                    headers={"X-Subject-Token": old}).status_code == 204  # fmt: skip
        list(cloud.image.tasks())  # answered, though the token that the session had is gone
        assert server.auth == "none" or cloud.auth_token != old


def test_an_unscoped_login_lists_its_projects_and_is_scoped_by_its_token(server: Running) -> None:
    from keystoneauth1 import session
    from keystoneauth1.identity import v3

    first = session.Session(
        auth=v3.Password(
            f"{server.url}/v3", username="admin", password=PASSWORD, user_domain_id="default", unscoped=True, reauthenticate=False
        )
    )
    listed = first.get(f"{server.url}/v3/auth/projects").json()["projects"]
    assert listed
    second = session.Session(
        auth=v3.Token(f"{server.url}/v3", token=first.get_token(), project_id=listed[0]["id"], reauthenticate=False)
    )
    assert second.get_project_id() == listed[0]["id"]
    assert second.get_endpoint(service_type="image", region_name="RegionOne")
