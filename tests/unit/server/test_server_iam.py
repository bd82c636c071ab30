"""What Huawei SDKs read from the identity service: projects by region, services, endpoints, catalogs; logins by account."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from server_house import Answer, Crowd, House, Web

from milepost.store import AccessKey
from milepost.wire import Request
from milepost.wire.signing import huawei

HOST = "127.0.0.1:8080"


@pytest.fixture
async def key(crowd: Crowd) -> AccessKey:
    return await crowd.house.identities.create_access_key("mia", "demo")


async def signed(crowd: Crowd, key: AccessKey, url: str, **headers: str) -> Answer:
    at_us = crowd.house.clock.now_us()
    made = huawei.sign(Request("GET", f"http://{HOST}{url}", headers), huawei.Key(key.id, key.secret), at_us=at_us)
    return await crowd.house.web.get(url, {name.lower(): value for name, value in made.headers.items()})


def names(answer: Answer, what: str = "projects") -> list[str]:
    assert answer.status == 200, answer.body
    return [one["name"] for one in answer.json[what]]


async def test_a_key_sees_its_own_project_by_name_by_region_and_in_lists(crowd: Crowd, key: AccessKey) -> None:
    admin = await crowd.house.identities.create_access_key("ann", "demo")
    for one in (key, admin):
        for url in ("/v3/projects?name=RegionOne", "/v3/projects?name=demo", "/v3/projects", "/v3/auth/projects"):
            assert names(await signed(crowd, one, url)) == ["demo"], url
        for url in ("/v3/projects?name=other", "/v3/projects?name=mars-1"):
            assert names(await signed(crowd, one, url)) == []
        assert names(await signed(crowd, one, "/v3/auth/domains"), "domains") == ["Default"]


async def test_a_tokens_project_is_found_by_the_region_unless_a_project_has_its_name(crowd: Crowd) -> None:
    mia = {"x-auth-token": crowd.member}
    assert names(await crowd.house.web.get("/v3/projects?name=RegionOne", mia)) == ["demo"]
    await crowd.house.identities.create_project("RegionOne")
    await crowd.house.identities.grant("mia", "RegionOne", "member")
    assert names(await crowd.house.web.get("/v3/projects?name=RegionOne", mia)) == ["RegionOne"]


async def test_services_and_endpoints_join_and_the_project_goes_where_the_template_has_it(crowd: Crowd, key: AccessKey) -> None:
    types = {one["id"]: one["type"] for one in (await signed(crowd, key, "/v3/services")).json["services"]}
    endpoints = (await signed(crowd, key, "/v3/endpoints?interface=public")).json["endpoints"]
    joined = {types[one["service_id"]]: one["url"].replace("$(tenant_id)s", crowd.demo) for one in endpoints}
    catalog = (await signed(crowd, key, "/v3/auth/catalog")).json["catalog"]
    shown = {one["type"]: next(e["url"] for e in one["endpoints"] if e["interface"] == "public") for one in catalog}
    assert joined == shown
    assert len(joined) == len(endpoints) == len(types)
    base = f"http://{HOST}"
    assert shown["image"] == base
    assert shown["ecs"] == f"{base}/v1/{crowd.demo}"
    assert shown["ecsv1.1"] == f"{base}/v1.1/{crowd.demo}"
    assert (shown["evs"], shown["volumev2"]) == (f"{base}/v2/{crowd.demo}",) * 2
    assert shown["volumev3"] == f"{base}/v3/{crowd.demo}"
    assert (shown["identity"], shown["iam"]) == (f"{base}/identity", f"{base}/v3")


@pytest.mark.parametrize("prefix", ["", "/identity"])
@pytest.mark.parametrize("what", ["services", "endpoints"])
async def test_pages_lead_through_the_whole_list(crowd: Crowd, key: AccessKey, prefix: str, what: str) -> None:
    whole = (await signed(crowd, key, f"{prefix}/v3/{what}")).json
    assert whole["links"]["next"] is None
    url, seen, pages = f"{prefix}/v3/{what}?per_page=4", [], 0
    while url:
        page = (await signed(crowd, key, url)).json
        seen, pages = seen + page[what], pages + 1
        assert 0 < len(page[what]) <= 4
        assert (page["links"]["previous"] is None) == (pages == 1)
        url = (page["links"]["next"] or "").partition(HOST)[2]
        assert not url or url.startswith(f"{prefix}/v3/")
    assert seen == whole[what]
    assert pages == -(-len(seen) // 4)
    for wrong in ("0", "-1", "x", "9" * 30):
        assert (await signed(crowd, key, f"/v3/{what}?per_page={wrong}")).status == 400


async def test_one_service_and_one_endpoint_are_shown(crowd: Crowd, key: AccessKey) -> None:
    for what in ("service", "endpoint"):
        first = (await signed(crowd, key, f"/v3/{what}s")).json[f"{what}s"][0]
        assert (await signed(crowd, key, f"/v3/{what}s/{first['id']}")).json[what] == first
        assert (await signed(crowd, key, f"/v3/{what}s/nothing")).status == 404


async def test_nobody_reads_without_showing_who_it_is_and_a_bad_signature_is_the_gateways(crowd: Crowd, key: AccessKey) -> None:
    for url in ("/v3/services", "/v3/endpoints", "/v3/auth/catalog"):
        answer = await crowd.house.web.get(url)
        assert (answer.status, answer.json["error"]["code"]) == (401, 401)
        answer = await signed(crowd, msgspec.structs.replace(key, secret="x"), url)
        assert (answer.status, answer.json["error_code"]) == (401, "APIGW.0301")
        assert answer.json["error_msg"].startswith("Incorrect IAM authentication information: verify aksk signature fail")
        assert answer.json["request_id"] == answer.headers["x-request-id"]


def login(scope: Any, domain: str | None, user: str = "mia") -> dict[str, Any]:
    named = {"name": user, "password": f"{user}-password"} | ({} if domain is None else {"domain": {"name": domain}})
    return {"auth": {"identity": {"methods": ["password"], "password": {"user": named}}, "scope": scope}}


@pytest.mark.parametrize(("domain", "status"), [("mia", 201), ("Default", 201), ("hw12345", 401), ("ann", 401), (None, 201)])
async def test_a_domain_may_be_the_users_own_account(crowd: Crowd, domain: str | None, status: int) -> None:
    scope = {"project": {"name": "RegionOne"}}
    answer = await crowd.house.web.post("/v3/auth/tokens", login(scope, domain))
    assert answer.status == status
    if status == 201:
        assert answer.json["token"]["project"]["id"] == crowd.demo
        urls = {one["type"]: one["endpoints"][0]["url"] for one in answer.json["token"]["catalog"]}
        assert urls["ecs"].endswith(f"/v1/{crowd.demo}")


async def test_the_account_of_the_settings_is_the_domain(crowd: Crowd) -> None:
    state = crowd.house.app.state
    state.settings = msgspec.structs.replace(state.settings, account="hw12345")
    body = login({"project": {"name": "demo", "domain": {"name": "hw12345"}}}, "hw12345")
    answer = await crowd.house.web.post("/v3/auth/tokens", body)
    assert answer.status == 201
    headers = {"x-auth-token": answer.headers["x-subject-token"]}
    found = (await crowd.house.web.get("/v3/auth/domains?name=hw12345", headers)).json["domains"]
    assert [(one["id"], one["name"]) for one in found] == [("default", "hw12345")]


async def test_without_auth_every_named_project_is_there(house: House, web: Web) -> None:
    assert [one["id"] for one in (await web.get("/v3/projects?name=RegionOne")).json["projects"]] == ["default"]
    assert [one["id"] for one in (await web.get("/v3/projects?name=shop")).json["projects"]] == ["shop"]
    assert (await web.get("/v3/projects?name=../x")).status == 400
    made = huawei.sign(Request("GET", f"http://{HOST}/v3/services"), huawei.Key("any", "thing"), at_us=0)
    assert len((await web.get("/v3/services", made.headers)).json["services"]) > 5
