"""Keystone's URLs: how a token is asked for, shown and revoked."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from server_house import Answer, Crowd, House, Web

from milepost.server.identity import short_id
from milepost.wire import keystone


def password(name: str = "ann", secret: str | None = None, scope: Any = None, **user: Any) -> dict[str, Any]:
    who = user or {"name": name, "domain": {"id": "default"}}
    auth: dict[str, Any] = {
        "identity": {"methods": ["password"], "password": {"user": {**who, "password": secret or f"{name}-password"}}}
    }
    if scope is not None:
        auth["scope"] = scope
    return {"auth": auth}


def by_token(token: str, scope: Any = None) -> dict[str, Any]:
    auth: dict[str, Any] = {"identity": {"methods": ["token"], "token": {"id": token}}}
    return {"auth": auth if scope is None else {**auth, "scope": scope}}


ANN = {"name": "ann", "password": "ann-password"}
DEMO = {"project": {"name": "demo", "domain": {"name": "Default"}}}


async def login(web: Web, body: Any, url: str = "/v3/auth/tokens") -> Answer:
    return await web.post(url, body)


async def token_of(crowd: Crowd, name: str, scope: Any = DEMO) -> str:
    answer = await login(crowd.house.web, password(name, scope=scope))
    assert answer.status == 201, answer
    return answer.headers["x-subject-token"]


@pytest.mark.parametrize("prefix", ["", "/identity"])
async def test_discovery_leads_to_v3(house: House, web: Web, prefix: str) -> None:
    one = await web.get(f"{prefix}/v3")
    assert (one.status, one.json["version"]["id"][:2]) == (200, "v3")
    assert one.json["version"]["links"] == [{"rel": "self", "href": f"http://127.0.0.1:8080{prefix}/v3/"}]
    assert (await web.get(f"{prefix}/v3/")).json == one.json
    many = await web.get("/identity")
    assert (many.status, len(many.json["versions"]["values"])) == (300, 1)


@pytest.mark.parametrize(
    "scope",
    [DEMO, {"project": {"name": "demo", "domain": {"id": "default"}}}, {"project": {"name": "demo"}}, None],
)
async def test_a_password_gives_a_scoped_token_that_the_server_takes(crowd: Crowd, scope: Any) -> None:
    answer = await login(crowd.house.web, password(scope=scope))
    token = answer.json["token"]
    assert answer.status == 201
    assert (token["user"]["name"], token["project"]["id"], token["methods"]) == ("ann", crowd.demo, ["password"])
    assert [role["name"] for role in token["roles"]] == ["admin", "member"]
    assert {one["type"]: one["endpoints"][0]["url"] for one in token["catalog"]}["image"] == "http://127.0.0.1:8080"
    secret = answer.headers["x-subject-token"]
    assert secret not in answer.body.decode()
    assert (await crowd.house.web_as(secret).get("/jobs")).status == 200
    assert answer.headers["x-openstack-request-id"] == answer.headers["x-request-id"]


async def test_users_and_projects_may_be_given_by_id(crowd: Crowd) -> None:
    ann = await crowd.house.store.get_user("ann")
    body = password(secret="ann-password", scope={"project": {"id": crowd.demo}}, id=ann.id)
    assert (await login(crowd.house.web, body, "/identity/v3/auth/tokens")).status == 201


async def test_an_unscoped_token_opens_nothing_but_can_be_scoped(crowd: Crowd) -> None:
    answer = await login(crowd.house.web, password(scope="unscoped"))
    assert (answer.status, {"project", "roles", "catalog"} & answer.json["token"].keys()) == (201, set())
    secret = answer.headers["x-subject-token"]
    assert (await crowd.house.web_as(secret).get("/jobs")).status == 401
    projects = await crowd.house.web.get("/v3/auth/projects", {"x-auth-token": secret})
    assert [one["name"] for one in projects.json["projects"]] == ["demo"]
    scoped = await login(crowd.house.web, by_token(secret, DEMO))
    assert (scoped.status, scoped.json["token"]["methods"]) == (201, ["token", "password"])
    assert (await crowd.house.web_as(scoped.headers["x-subject-token"]).get("/jobs")).status == 200


async def test_a_token_made_from_a_token_does_not_live_longer(crowd: Crowd) -> None:
    first = await login(crowd.house.web, password(scope=DEMO))
    crowd.house.clock.advance(3600)
    second = await login(crowd.house.web, by_token(first.headers["x-subject-token"], DEMO))
    assert second.json["token"]["expires_at"] == first.json["token"]["expires_at"]
    assert second.json["token"]["issued_at"] > first.json["token"]["issued_at"]


@pytest.mark.parametrize(
    "body",
    [
        password(secret="wrong"),
        password("nobody", "x"),
        password("sam", scope=DEMO),
        password(scope={"project": {"name": "nowhere"}}),
        password(scope={"project": {"name": "demo", "domain": {"name": "elsewhere"}}}),
        password(scope={"domain": {"id": "default"}}),
        password(scope={"system": {"all": True}}),
        {"auth": {"identity": {"methods": ["password"], "password": {"user": {**ANN, "domain": {"name": "elsewhere"}}}}}},
        by_token("mpt_wrong"),
        {"auth": {"identity": {"methods": ["totp"]}}},
        {"auth": {"identity": {"methods": ["application_credential"], "application_credential": {"id": "x", "secret": "y"}}}},
    ],
)
async def test_every_refusal_is_the_same_401(crowd: Crowd, body: Any) -> None:
    answer = await login(crowd.house.web, body)
    assert answer.status == 401
    assert answer.json == {"error": {"code": 401, "message": keystone.UNAUTHORIZED, "title": "Unauthorized"}}
    assert answer.headers["www-authenticate"] == 'Keystone uri="http://127.0.0.1:8080/v3"'
    assert "x-subject-token" not in answer.headers


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"auth":{}}', b'{"auth":{"identity":{"methods":"x"}}}'])
async def test_a_malformed_login_is_400_in_keystones_form(crowd: Crowd, body: bytes) -> None:
    answer = await login(crowd.house.web, body)
    assert (answer.status, answer.json["error"]["title"]) == (400, "Bad Request")


async def test_a_login_is_bounded(crowd: Crowd) -> None:
    answer = await login(crowd.house.web, b" " * (65 << 10))
    assert (answer.status, answer.json["error"]["code"]) == (413, 413)


async def test_an_api_key_works_as_an_application_credential_of_its_project_only(crowd: Crowd) -> None:
    (key,) = await crowd.house.identities.list_api_keys("mia")

    async def ask(**credential: Any) -> Answer:
        body = {"auth": {"identity": {"methods": ["application_credential"], "application_credential": credential}}}
        return await login(crowd.house.web, body)

    by_id = await ask(id=key.audit_id, secret=crowd.member)
    by_listed_id = await ask(id=short_id(key), secret=crowd.member)
    by_name = await ask(name="test", user={"name": "mia", "domain": {"id": "default"}}, secret=crowd.member)
    wrong = await ask(name="test", user={"name": "ann"}, secret=crowd.member)
    wrong_id = await ask(id=key.digest[:11], secret=crowd.member)
    assert [one.status for one in (by_id, by_listed_id, by_name, wrong, wrong_id)] == [201, 201, 201, 401, 401]
    assert by_id.json["token"]["project"]["id"] == crowd.demo
    other = await login(crowd.house.web, by_token(crowd.member, {"project": {"id": crowd.other}}))
    assert other.status == 401


async def test_a_revoked_key_takes_the_tokens_with_it_that_were_asked_for_with_it(crowd: Crowd) -> None:
    first = (await login(crowd.house.web, by_token(crowd.member))).headers["x-subject-token"]
    second = (await login(crowd.house.web, by_token(first, DEMO))).headers["x-subject-token"]
    password_token = await token_of(crowd, "mia")
    assert await crowd.house.identities.revoke(crowd.member)
    seen = [(await crowd.house.web_as(one).get("/jobs")).status for one in (crowd.member, first, second, password_token)]
    assert seen == [401, 401, 401, 200]


async def test_a_token_names_the_first_of_its_chain(crowd: Crowd) -> None:
    first = await login(crowd.house.web, password(scope=DEMO))
    second = await login(crowd.house.web, by_token(first.headers["x-subject-token"], DEMO))
    third = await login(crowd.house.web, by_token(second.headers["x-subject-token"], DEMO))
    (root,) = first.json["token"]["audit_ids"]
    for answer in (second, third):
        own, parent = answer.json["token"]["audit_ids"]
        assert (own != root, parent) == (True, root)


async def test_a_token_is_shown_to_its_user_and_to_admins_and_then_revoked(crowd: Crowd) -> None:
    web = crowd.house.web
    mia, sam, ann = await token_of(crowd, "mia"), await token_of(crowd, "sam", None), await token_of(crowd, "ann")

    async def ask(method: str, caller: str, subject: str | None = None) -> Answer:
        headers = {"x-auth-token": caller} | ({"x-subject-token": subject} if subject else {})
        return await web.ask(method, "/v3/auth/tokens", headers=headers)

    own, admins, others = await ask("GET", mia, mia), await ask("GET", ann, mia), await ask("GET", sam, mia)
    assert (own.status, admins.status, others.status) == (200, 200, 403)
    assert own.json == admins.json
    assert own.headers["x-subject-token"] == mia
    head = await ask("HEAD", ann, mia)
    assert (head.status, head.body) == (200, b"")
    assert (await ask("GET", ann)).status == 400
    assert (await ask("GET", ann, "mpt_nothing")).status == 404
    assert (await ask("DELETE", sam, mia)).status == 403
    assert (await ask("DELETE", mia, mia)).status == 204
    assert (await ask("GET", ann, mia)).status == 404
    assert (await crowd.house.web_as(mia).get("/jobs")).status == 401
    assert (await ask("GET", mia, ann)).status == 401


async def test_members_see_themselves_and_admins_see_all(crowd: Crowd) -> None:
    ann, mia = {"x-auth-token": crowd.admin}, {"x-auth-token": crowd.member}
    web, store = crowd.house.web, crowd.house.store
    mia_id, ann_id = (await store.get_user("mia")).id, (await store.get_user("ann")).id

    async def names(url: str, what: str, headers: dict[str, str]) -> list[str]:
        return sorted(one["name"] for one in (await web.get(url, headers)).json[what])

    assert await names("/v3/projects", "projects", ann) == ["demo", "other"]
    assert await names("/v3/projects", "projects", mia) == ["demo"]
    assert await names("/v3/projects?name=other", "projects", mia) == []
    assert await names("/v3/users", "users", ann) == ["ann", "mia", "sam"]
    assert await names("/v3/users", "users", mia) == ["mia"]
    assert await names(f"/v3/users/{mia_id}/projects", "projects", ann) == ["demo"]
    assert await names("/v3/auth/domains", "domains", mia) == ["Default"]
    assert (await web.get(f"/v3/users/{mia_id}", mia)).json["user"]["name"] == "mia"
    assert (await web.get(f"/v3/users/{ann_id}", mia)).status == 403
    assert (await web.get("/v3/users/nothing", ann)).status == 404
    assert (await web.get(f"/v3/projects/{crowd.other}", mia)).status == 404
    assert (await web.get(f"/v3/projects/{crowd.other}", ann)).json["project"]["name"] == "other"
    assert (await web.get("/v3/domains/default", mia)).json["domain"]["enabled"] is True
    everything = msgspec.json.encode([(await web.get(url, ann)).json for url in ("/v3/users", "/v3/projects")])
    assert b"argon2" not in everything
    assert b"whsec_" not in everything
    for url in ("/v3/projects", "/v3/users", "/v3/auth/catalog", "/v3/auth/projects"):
        assert (await web.get(url)).status == 401


async def test_a_wrong_method_is_keystones_405(crowd: Crowd) -> None:
    answer = await crowd.house.web.ask("PUT", "/v3/auth/tokens")
    assert (answer.status, answer.headers["allow"], answer.json["error"]["code"]) == (405, "DELETE, GET, HEAD, POST", 405)


async def test_the_catalog_can_be_left_out(crowd: Crowd) -> None:
    answer = await login(crowd.house.web, password(), "/v3/auth/tokens?nocatalog")
    assert "catalog" not in answer.json["token"]


# --- without auth --------------------------------------------------------------------------------------------------


async def test_without_auth_any_password_gives_a_token_for_the_named_project(house: House, web: Web) -> None:
    answer = await login(web, password("zoe", "whatever", scope={"project": {"name": "shop"}}))
    token = answer.json["token"]
    assert (answer.status, token["user"]["name"], token["project"]["name"]) == (201, "zoe", "shop")
    headers = {"x-auth-token": answer.headers["x-subject-token"]}
    job = await web.post("/jobs", {"kind": "echo"}, headers)
    assert job.json["project"] == "shop"
    again = await login(web, by_token(headers["x-auth-token"]))
    assert again.json["token"]["project"]["name"] == "shop"
    assert (await web.get("/v3/projects", headers)).json["projects"][0]["id"] == "shop"
    shown = await web.get("/v3/auth/tokens", {**headers, "x-subject-token": headers["x-auth-token"]})
    assert shown.json["token"]["project"]["name"] == "shop"
    assert (await login(web, password("zoe", "x"))).json["token"]["project"]["name"] == "default"
    assert (await login(web, password("zoe", "x", scope={"project": {"name": "no good"}}))).status == 400
