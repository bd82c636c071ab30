"""Keystone's bodies."""

from __future__ import annotations

import msgspec
import pytest

from milepost.wire import keystone

ANN = keystone.Member("u1", "ann")
DEMO = keystone.Member("p1", "demo")


def describe(**given: object) -> dict[str, object]:
    fields = {"user": ANN, "methods": ["password"], "audit_ids": ["a"], "issued_us": 0, "expires_us": 1_000_001, "project": None}
    return msgspec.json.decode(keystone.token_bytes(**{**fields, **given}))["token"]  # type: ignore[arg-type]


def test_an_unscoped_token_has_neither_project_nor_roles_nor_catalog() -> None:
    assert describe(services=keystone.catalog("http://h", "R")) == {
        "methods": ["password"],
        "user": {"id": "u1", "name": "ann", "domain": {"id": "default", "name": "Default"}},
        "audit_ids": ["a"],
        "expires_at": "1970-01-01T00:00:01.000001Z",
        "issued_at": "1970-01-01T00:00:00.000000Z",
    }


def test_a_scoped_token_has_project_roles_and_catalog() -> None:
    token = describe(project=DEMO, role_names=("member", "admin"), services=keystone.catalog("http://h", "R"))
    assert token["project"] == {"id": "p1", "name": "demo", "domain": {"id": "default", "name": "Default"}}
    assert token["is_domain"] is False
    assert [role["name"] for role in token["roles"]] == ["admin", "member"]  # type: ignore[attr-defined]
    image = next(one for one in token["catalog"] if one["type"] == "image")  # type: ignore[attr-defined]
    assert {one["interface"]: one["url"] for one in image["endpoints"]} == dict.fromkeys(
        ("public", "internal", "admin"), "http://h"
    )
    assert {one["region"] for one in image["endpoints"]} == {one["region_id"] for one in image["endpoints"]} == {"R"}


def test_ids_without_a_row_are_the_same_each_time_and_differ_from_each_other() -> None:
    first, second = (keystone.catalog("http://h", "R") for _ in range(2))
    assert first == second
    ids = [service.id for service in first] + [endpoint.id for service in first for endpoint in service.endpoints]
    assert len(set(ids)) == len(ids)
    assert all(len(id) == 32 and int(id, 16) for id in ids)


@pytest.mark.parametrize(
    ("domain", "known"),
    [
        (None, True),
        ({"id": "default"}, True),
        ({"name": "Default"}, True),
        ({"name": "default"}, True),
        ({"id": "x"}, False),
        ({"name": "x"}, False),
    ],
)
def test_there_is_one_domain_by_id_or_name(domain: dict[str, str] | None, known: bool) -> None:
    named = keystone.Named(name="x", domain=None if domain is None else msgspec.convert(domain, keystone.Named))
    assert named.is_in_domain() is known
    assert named.is_in_domain("x", None) is True, "an account's name is one of the domain's"


@pytest.mark.parametrize(
    "body",
    [
        b'{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"u","password":"p","domain":{"name":"d"}}}},'
        b'"scope":{"project":{"name":"p","domain":{"id":"default"}}}}}',
        b'{"auth":{"identity":{"methods":["token"],"token":{"id":"t"}},"scope":"unscoped"}}',
        b'{"auth":{"identity":{"methods":["token"],"token":{"id":"t"}},"scope":{"domain":{"id":"default"}}}}',
        b'{"auth":{"identity":{"methods":["application_credential"],"application_credential":{"id":"i","secret":"s"}}}}',
        b'{"auth":{"identity":{"methods":["password"],"password":{"user":{"id":"u","password":"p"}}},"scope":{"system":{"all":true}}}}',
        b'{"auth":{"identity":{"methods":["hw_assume_role"],"hw_assume_role":{"xrole_name":"x"}}}}',
    ],
)
def test_bodies_that_clients_send_are_read(body: bytes) -> None:
    auth = keystone.decode_auth(body).auth
    assert auth.identity.methods


def test_an_error_is_keystones() -> None:
    error = keystone.decode_error(keystone.error_bytes(401, keystone.UNAUTHORIZED)).error
    assert (error.code, error.title) == (401, "Unauthorized")
