"""Who may ask what."""

from __future__ import annotations

import pytest
from server_house import Crowd, House, Web, open_house

from milepost.errors import Forbidden, InvalidInput
from milepost.server.auth import ANYONE, check_exposure, is_loopback, open_identity, open_token, project_of_open_token, read_token
from milepost.settings import Settings

ECHO = {"kind": "echo"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.test"])
def test_a_server_without_auth_refuses_to_listen_beyond_loopback(host: str) -> None:
    with pytest.raises(InvalidInput, match="loopback only") as caught:
        check_exposure(Settings(host=host, auth="none"))
    assert caught.value.hint
    check_exposure(Settings(host=host, auth="required"))


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("[::1]", True), ("localhost", True), ("a.localhost", True),
     ("localhost.example", False), ("10.0.0.1", False), ("", False), ("xlocalhost", False)],
)  # fmt: skip
def test_loopback_is_told_by_address_or_name(host: str, own: bool) -> None:
    assert is_loopback(host) is own


def test_without_auth_the_project_is_the_paths_then_the_headers_then_the_tokens_then_default() -> None:
    assert open_identity("from-path", open_token("from-token")).project == "from-path"
    assert open_identity(None, open_token("from-token")).project == "from-token"
    assert open_identity(None, "anything") == open_identity(None, None) == ANYONE
    assert open_identity("x", None).is_admin


@pytest.mark.parametrize("project", ["demo", "0a1b2c3d4e5f60718293a4b5c6d7e8f9", "a.b_c@d:e-f"])
def test_an_open_token_names_its_project_in_letters_digits_and_two_marks(project: str) -> None:
    token = open_token(project)
    assert project_of_open_token(token) == project
    assert token.replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize("project", ["", "a b", "x" * 65, "../x", "-x", "é"])
def test_what_cannot_be_a_project_is_refused(project: str) -> None:
    with pytest.raises(InvalidInput):
        open_identity(project, None)


def test_a_token_comes_in_either_header() -> None:
    assert read_token({b"x-auth-token": b"t"}) == read_token({b"authorization": b"bearer  t"}) == "t"
    assert read_token({b"authorization": b"Basic t"}) is read_token({}) is read_token({b"x-auth-token": b" "}) is None


async def test_any_token_or_signature_is_taken_without_auth(web: Web) -> None:
    for headers in ({"x-auth-token": "x"}, {"authorization": "SDK-HMAC-SHA256 Access=a, SignedHeaders=b, Signature=c"}, {}):
        assert (await web.get("/jobs", headers)).status == 200


async def test_with_auth_every_route_but_the_open_ones_needs_a_token(crowd: Crowd) -> None:
    from milepost.server.native import ROUTES

    for route in ROUTES:
        answer = await crowd.house.web.ask(route.method, route.path.replace("{id}", "x").replace("{name}", "x"))
        assert (answer.status == 401) is not route.open, route
        if answer.status == 401:
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.json["code"] == "unauthenticated"
    assert (await crowd.house.web_as("mpt_wrong").get("/jobs")).status == 401


async def test_a_revoked_or_expired_token_fails_at_once(crowd: Crowd) -> None:
    member = crowd.house.web_as(crowd.member)
    assert (await member.get("/jobs")).status == 200
    await crowd.house.identities.revoke(crowd.member)
    assert (await member.get("/jobs")).status == 401

    user = await crowd.house.store.get_user("ann")
    project = await crowd.house.store.get_project("demo")
    issued = await crowd.house.identities.issue_token(user, project=project, life_s=60)
    web = crowd.house.web_as(issued.secret)
    assert (await web.get("/jobs")).status == 200
    crowd.house.clock.advance(61)
    assert (await web.get("/jobs")).status == 401


async def test_one_project_never_sees_anothers_jobs(crowd: Crowd) -> None:
    owner, stranger = crowd.house.web_as(crowd.member), crowd.house.web_as(crowd.stranger)
    job = (await owner.post("/jobs", {**ECHO, "labels": {"a": "b"}, "held": True})).json
    assert job["project"] == crowd.demo

    for url in ("", "/sub-jobs", "/events", "/deliveries"):
        assert (await stranger.get(f"/jobs/{job['id']}{url}")).status == 404
        assert (await owner.get(f"/jobs/{job['id']}{url}")).status == 200
    for verb in ("cancel", "retry", "release"):
        assert (await stranger.post(f"/jobs/{job['id']}/{verb}")).status == 404
    for url in ("/jobs", "/jobs?label=a:b", f"/jobs?parent={job['id']}"):
        assert (await stranger.get(url)).json == {"jobs": []}
    assert (await stranger.get("/events")).json == {"events": []}
    assert (await stranger.stream(f"/jobs/{job['id']}/events").end()).status == 404
    for headers in ({"x-project-id": crowd.demo}, {"x-project-id": "nobody"}):
        assert (await stranger.get("/jobs", headers)).status == 403
    for url in ("/jobs", f"/jobs/{job['id']}", "/events"):
        assert (await stranger.get(f"{url}?all_projects=1")).status == 403


async def test_an_admin_may_look_into_another_project_by_id_or_name_and_across_all(crowd: Crowd) -> None:
    admin = crowd.house.web_as(crowd.admin)
    job = (await crowd.house.web_as(crowd.stranger).post("/jobs", ECHO)).json
    assert (await admin.get(f"/jobs/{job['id']}")).status == 404
    for project in (crowd.other, "other"):
        assert (await admin.get(f"/jobs/{job['id']}", {"x-project-id": project})).status == 200
    assert (await admin.get(f"/jobs/{job['id']}?all_projects=1")).status == 200
    assert [one["id"] for one in (await admin.get("/jobs?all_projects=1")).json["jobs"]] == [job["id"]]
    assert (await admin.post(f"/jobs/{job['id']}/cancel?all_projects=1")).status == 200
    assert (await admin.get("/jobs", {"x-project-id": "nobody"})).status == 404


async def test_a_member_may_name_its_own_project(crowd: Crowd) -> None:
    assert (await crowd.house.web_as(crowd.member).get("/jobs", {"x-project-id": crowd.demo})).status == 200


async def test_what_covers_all_projects_is_for_admins(crowd: Crowd) -> None:
    admin, member = crowd.house.web_as(crowd.admin), crowd.house.web_as(crowd.member)
    await member.post("/jobs", ECHO)
    assert (await member.get("/metrics")).status == 403
    assert (await admin.get("/metrics")).status == 200
    for web, status in ((member, 403), (admin, 200)):
        assert (await web.post("/queues/x/pause")).status == status
        assert (await web.ask("PUT", "/queues/x", {"limit": 3})).status == status
    hidden = (await member.get("/queues")).json["queues"]
    shown = (await admin.get("/queues")).json["queues"]
    assert [queue["name"] for queue in hidden] == [queue["name"] for queue in shown] == ["default", "echoes", "x"]
    assert all(queue["jobs"] is None for queue in hidden)
    assert [queue["jobs"]["ready"] for queue in shown] == [0, 1, 0]


async def test_a_token_without_a_project_is_refused_by_the_native_api(crowd: Crowd) -> None:
    issued = await crowd.house.identities.issue_token(await crowd.house.store.get_user("ann"))
    answer = await crowd.house.web_as(issued.secret).get("/jobs")
    assert (answer.status, "project" in answer.json["detail"]) == (401, True)


# --- browsers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "[",
        "[::2]",
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
    ],
)
async def test_without_auth_a_foreign_host_name_is_refused(web: Web, host: str) -> None:
    for url in ("/jobs", "/v2/images", "/v3", "/healthz"):
        assert (await web.get(url, {"host": host})).status == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "[::1]:8080", "a.localhost"])
async def test_without_auth_loopback_names_are_answered(web: Web, host: str) -> None:
    assert (await web.get("/jobs", {"host": host})).status == 200


async def test_without_auth_another_sites_page_may_not_change_anything(web: Web) -> None:
    foreign, own = {"origin": "https://evil.example"}, {"origin": "http://localhost:8080"}
    assert (await web.post("/jobs", ECHO, foreign)).status == 403
    assert (await web.post("/v2/tasks", {}, foreign)).status == 403
    assert (await web.post("/jobs", ECHO, {"origin": "null"})).status == 403
    assert (await web.post("/jobs", ECHO, own)).status == 202
    assert len((await web.get("/jobs", foreign)).json["jobs"]) == 1


async def test_a_public_url_names_a_host_of_ours() -> None:
    async with open_house(public_url="https://jobs.example/") as house:
        answer = await house.web.post("/jobs", ECHO, {"host": "jobs.example", "origin": "https://jobs.example"})
    assert answer.status == 202
    assert answer.headers["location"].startswith("https://jobs.example/jobs/")


async def test_with_auth_any_host_and_origin_is_answered(crowd: Crowd) -> None:
    web = crowd.house.web_as(crowd.member)
    assert (await web.post("/jobs", ECHO, {"host": "x.example", "origin": "https://y.example"})).status == 202


# --- the front -----------------------------------------------------------------------------------------------------


async def test_every_answer_has_a_request_id_and_a_sane_one_is_kept(web: Web) -> None:
    for url in ("/jobs", "/nothing", "/jobs/x", "/healthz", "/v3", "/v2/images", "/events?label=x"):
        answer = await web.get(url)
        assert answer.headers["x-request-id"].startswith("req-"), url
    ids = {(await web.get("/healthz")).headers["x-request-id"] for _ in range(50)}
    assert len(ids) == 50
    assert (await web.get("/jobs", {"x-request-id": "mine-1.2:3_4"})).headers["x-request-id"] == "mine-1.2:3_4"
    for bad in ("a b", "a\tb", "x" * 129, "<script>", "é"):
        assert (await web.get("/jobs", {"x-request-id": bad})).headers["x-request-id"].startswith("req-")


async def test_a_wrong_method_is_405_with_what_is_allowed(web: Web) -> None:
    seen = {url: await web.ask("DELETE", url) for url in ("/jobs", "/jobs/x", "/jobs/x/cancel", "/queues/x", "/events")}
    assert all(answer.status == 405 for answer in seen.values())
    assert [answer.headers["allow"] for answer in seen.values()] == ["GET, HEAD, POST", "GET, HEAD", "POST", "PUT", "GET, HEAD"]


@pytest.mark.parametrize("url", ["/nothing", "/jobs/x/y", "/jobs/x/cancel/y", "/jobs/x/events/", "//", "/queues"])
async def test_paths_that_are_not_there_are_404(web: Web, url: str) -> None:
    assert (await web.get(url)).status == (200 if url == "/queues" else 404)


async def test_an_error_of_ours_tells_the_caller_nothing_but_its_id(
    house: House, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(house.store, "list_jobs", broken)
    answer = await web.get("/jobs")
    assert (answer.status, answer.json["code"]) == (500, "internal")
    assert b"secret" not in answer.body
    assert answer.json["request_id"] == answer.headers["x-request-id"]


async def test_a_store_that_is_away_is_503_with_retry_after(house: House, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    from milepost.errors import StoreUnavailable

    async def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(house.store, "add_jobs", away)
    answer = await web.post("/jobs", ECHO)
    assert (answer.status, answer.json["code"], answer.headers["retry-after"]) == (503, "store_unavailable", "1")


async def test_a_project_over_its_rate_is_429_and_others_are_not() -> None:
    async with open_house(rate_per_s=2.0, rate_burst=3) as house:
        answers = [await house.web.get("/jobs") for _ in range(4)]
        other = await house.web.get("/jobs", {"x-project-id": "other"})
        task = await house.web.get("/v2/tasks")
        house.clock.advance(0.6)
        later = await house.web.get("/jobs")
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    assert (answers[3].headers["retry-after"], answers[3].json["code"]) == ("1", "throttled")
    assert (other.status, task.status, later.status) == (200, 429, 200)


def test_the_error_of_a_foreign_project_is_forbidden() -> None:
    from milepost.server.errors import status_of

    assert status_of(Forbidden("x")) == 403
