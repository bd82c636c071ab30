"""Keystone's documents, as the API reference prints them and as keystoneauth's own parsers read them.

Source: openstack/keystone api-ref/source/v3/authenticate-v3.inc and its samples; openstack/keystoneauth
keystoneauth1/access, discover.py.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from milepost.wire import keystone

access = pytest.importorskip("keystoneauth1.access")
discover = pytest.importorskip("keystoneauth1.discover")
catalogs = pytest.importorskip("keystoneauth1.access.service_catalog")

URL = "http://cloud.example:8080"


def token(**given: Any) -> bytes:
    fields = {
        "user": keystone.Member("423f19a4ac1e4f48bbb4180756e6eb6c", "ann"),
        "methods": ["password"],
        "audit_ids": ["ZzZwkUflQfygX7pdYDBCQQ"],
        "issued_us": 1_772_600_767_000_000,
        "expires_us": 1_772_687_167_000_000,
        "project": keystone.Member("a6944d763bf64ee6a275f1263fae0352", "demo"),
        "role_names": ("admin", "member"),
        "services": keystone.catalog(URL, "RegionOne"),
    }
    return keystone.token_bytes(**{**fields, **given})


def test_the_version_document_is_keystones() -> None:
    assert json.loads(keystone.version_bytes(f"{URL}/v3/")) == {
        "version": {
            "id": "v3.14",
            "status": "stable",
            "updated": "2020-04-07T00:00:00Z",
            "links": [{"rel": "self", "href": f"{URL}/v3/"}],
            "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
        }
    }
    (entry,) = json.loads(keystone.versions_bytes(f"{URL}/identity/v3/"))["versions"]["values"]
    assert entry["links"][0]["href"] == f"{URL}/identity/v3/"


@pytest.mark.parametrize("body", [keystone.version_bytes(f"{URL}/v3/"), keystone.versions_bytes(f"{URL}/v3/")])
def test_keystoneauth_discovers_v3_in_both_documents(body: bytes) -> None:
    class Session:
        def get(self, url: str, **_: Any) -> Any:
            return Response()

    class Response:
        status_code, headers, url = 200, {"Content-Type": "application/json"}, f"{URL}/v3"

        def json(self) -> Any:
            return json.loads(body)

    found = discover.Discover(Session(), f"{URL}/v3")
    assert found.url_for((3, 0)) == f"{URL}/v3/"
    assert found.url_for((2, 0)) is None


def test_the_token_document_has_exactly_keystones_members() -> None:
    shown = json.loads(token())["token"]
    assert list(shown) == ["methods", "user", "audit_ids", "expires_at", "issued_at", "project", "is_domain", "roles", "catalog"]
    assert shown["expires_at"] == "2026-03-05T05:06:07.000000Z"
    for service in shown["catalog"]:
        assert set(service) == {"id", "type", "name", "endpoints"}
        assert all(set(one) == {"id", "interface", "region", "region_id", "url"} for one in service["endpoints"])


def test_keystoneauth_reads_the_token() -> None:
    read = access.create(body=json.loads(token()), auth_token="secret")
    assert (read.username, read.user_domain_id, read.project_name, read.project_id) == (
        "ann",
        "default",
        "demo",
        "a6944d763bf64ee6a275f1263fae0352",
    )
    assert (read.role_names, read.project_scoped, read.audit_id) == (["admin", "member"], True, "ZzZwkUflQfygX7pdYDBCQQ")
    assert (read.expires - read.issued).total_seconds() == 86_400
    unscoped = access.create(body=json.loads(token(project=None)), auth_token="secret")
    assert (unscoped.scoped, unscoped.has_service_catalog()) == (False, False)


@pytest.mark.parametrize("interface", ["public", "internal", "admin"])
def test_keystoneauth_finds_the_unversioned_image_endpoint_in_the_catalog(interface: str) -> None:
    catalog = catalogs.ServiceCatalogV3(json.loads(token())["token"]["catalog"])
    assert catalog.url_for(service_type="image", interface=interface, region_name="RegionOne") == URL
    assert catalog.url_for(service_type="identity", interface=interface) == f"{URL}/identity"
    assert catalog.get_endpoints_data(service_type="image", region_name="Elsewhere") == {"image": []}


def test_an_error_is_keystones_to_the_byte() -> None:
    assert keystone.error_bytes(401, keystone.UNAUTHORIZED) == (
        b'{"error":{"code":401,"message":"The request you have made requires authentication.","title":"Unauthorized"}}'
    )
