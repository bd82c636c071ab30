"""What a caller keeps, sees and may do no longer, or never could: revoked tokens, other projects, lesser roles."""

from __future__ import annotations

import asyncio

import pytest
from server_house import Crowd
from test_server_events import open_stream
from test_server_jobs import submit

from milepost.server import events, identity


async def test_a_busy_stream_ends_when_its_token_is_revoked(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never falls silent, so there is no heartbeat to look at the token in."""
    house, web = crowd.house, crowd.house.web_as(crowd.member)
    stream = await open_stream(house, web, "/events")
    await house.identities.revoke(crowd.member)
    house.clock.advance(events.HEARTBEAT_S)
    await submit(house.web_as(crowd.admin))
    assert b": unauthenticated" in (await stream.end()).body


async def test_a_member_does_not_see_queues_that_other_projects_made_up(crowd: Crowd) -> None:
    await submit(crowd.house.web_as(crowd.admin), queue="secret-customer")
    await submit(crowd.house.web_as(crowd.member), queue="echoes")
    admins = (await crowd.house.web_as(crowd.admin).get("/queues")).json["queues"]
    strangers = (await crowd.house.web_as(crowd.stranger).get("/queues")).json["queues"]
    assert [queue["name"] for queue in admins] == ["default", "echoes", "secret-customer"]
    assert [queue["name"] for queue in strangers] == ["default", "echoes"]


async def test_a_member_who_retries_an_admins_job_gets_no_more_rights_by_it(crowd: Crowd) -> None:
    admin, member = crowd.house.web_as(crowd.admin), crowd.house.web_as(crowd.member)
    job = await submit(admin)
    await admin.post(f"/jobs/{job['id']}/cancel")
    again = (await member.post(f"/jobs/{job['id']}/retry")).json
    own = (await admin.post(f"/jobs/{job['id']}/retry")).json
    origins = [(await crowd.house.service.get(one["id"])).origin.get("role") for one in (again, own)]
    assert origins == ["member", None]


@pytest.mark.parametrize("change", ["disable", "password"])
async def test_a_login_that_waits_for_its_hash_does_not_outlive_a_change(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    make = crowd.house.identities
    reached, go_on = asyncio.Event(), asyncio.Event()
    verify = make._verify

    async def slow(stored: str, password: str) -> bool:
        reached.set()
        await go_on.wait()
        return await verify(stored, password)

    monkeypatch.setattr(make, "_verify", slow)
    login = asyncio.ensure_future(make.check_password("mia", "mia-password"))
    await reached.wait()
    await (make.set_user_enabled("mia", False) if change == "disable" else make.set_password("mia", "another"))
    go_on.set()
    with pytest.raises(identity.Unauthenticated):
        await login


async def test_a_member_cannot_invent_a_queue_to_get_around_the_limit_of_its_kinds(crowd: Crowd) -> None:
    admin, member = crowd.house.web_as(crowd.admin), crowd.house.web_as(crowd.member)
    one = await member.post("/jobs", {"kind": "echo", "queue": "mine"})
    many = await member.post("/jobs", [{"kind": "echo"}, {"kind": "echo", "queue": "default"}])
    assert [(answer.status, answer.json["path"]) for answer in (one, many)] == [(400, "$.queue"), (400, "$[1].queue")]
    await admin.ask("PUT", "/queues/mine", {"limit": 1})
    assert (await member.post("/jobs", {"kind": "echo", "queue": "mine"})).status == 202
    assert (await admin.post("/jobs", {"kind": "echo", "queue": "anything"})).status == 202
