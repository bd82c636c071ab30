"""Deliveries, resources and identities: on every store."""

from __future__ import annotations

import asyncio

import pytest
from store_house import BROKEN, KEEP_S, House

from milepost.errors import Conflict, NotFound
from milepost.job import Callback, ProjectId
from milepost.store import AccessKey, Delivery, Grant, Project, Resource, Token, User

URL = "http://127.0.0.1:9/hook"


async def due(house: House, limit: int = 10, lease_s: float = 30.0) -> list[Delivery]:
    found: list[Delivery] = await house.store.claim_deliveries(now_us=house.now_us, lease_s=lease_s, limit=limit)
    return found


# --- deliveries ------------------------------------------------------------------------------------------------------------


async def test_a_job_with_a_callback_gets_its_delivery_with_its_end(house: House) -> None:
    claimed = await house.running(callback=Callback(URL), project="p")
    assert await due(house) == []
    assert await house.store.next_delivery_us() is None
    await house.end(claimed, BROKEN)
    assert await house.store.next_delivery_us() == house.now_us
    (one,) = await due(house)
    assert (one.job_id, one.project, one.url, one.event, one.state, one.attempt) == (
        claimed.job.id, "p", URL, "failed", "pending", 1,
    )  # fmt: skip
    assert await house.store.list_deliveries(claimed.job.id) == [one]


async def test_a_delivery_is_hidden_while_it_is_tried_and_comes_back(house: House) -> None:
    await house.end(await house.running(callback=Callback(URL)))
    (first,) = await due(house, lease_s=30)
    assert await due(house) == []
    house.clock.advance(30)
    (second,) = await due(house)
    assert second.attempt == 2
    await finish(house, first, "delivered")
    assert (await house.store.list_deliveries(first.job_id))[0].state == "pending", "the one who was too late changes nothing"
    await finish(house, second, "delivered")
    assert (await house.store.list_deliveries(first.job_id))[0].state == "delivered"


async def finish(house: House, delivery: Delivery, state: str, *, next_s: float = 0, status: int | None = 200) -> None:
    next_us = house.now_us + int(next_s * 1e6)
    await house.store.finish_delivery(
        delivery, state=state, next_us=next_us, status=status, error=None if state == "delivered" else "no", now_us=house.now_us
    )


async def test_a_failed_delivery_waits_for_its_next_time(house: House) -> None:
    await house.end(await house.running(callback=Callback(URL)))
    (one,) = await due(house)
    await finish(house, one, "pending", next_s=60, status=503)
    assert await house.store.next_delivery_us() == house.now_us + 60_000_000
    house.clock.advance(59)
    assert await due(house) == []
    house.clock.advance(1)
    (again,) = await due(house)
    assert (again.attempt, again.last_status, again.last_error, again.ended_us) == (2, 503, "no", None)


async def test_an_ended_delivery_stays_in_the_log_for_its_time_and_may_be_sent_again(house: House) -> None:
    claimed = await house.running(callback=Callback(URL), project="p")
    await house.end(claimed)
    (one,) = await due(house)
    await finish(house, one, "given_up", status=410)
    assert await house.store.next_delivery_us() is None
    with pytest.raises(NotFound):
        await house.store.redeliver(one.id, project=ProjectId("other"), now_us=house.now_us)
    with pytest.raises(NotFound):
        await house.store.redeliver("nobody", project=None, now_us=house.now_us)
    again = await house.store.redeliver(one.id, project=ProjectId("p"), now_us=house.now_us)
    assert (again.state, again.attempt, again.ended_us) == ("pending", 0, None)
    (one,) = await due(house)
    assert one.attempt == 1
    await finish(house, one, "delivered")
    house.clock.advance(99)
    await house.prune(keep_deliveries_s=100)
    assert len(await house.store.list_deliveries(claimed.job.id)) == 1
    house.clock.advance(1)
    await house.prune(keep_deliveries_s=100)
    assert await house.store.list_deliveries(claimed.job.id) == []


async def test_deliveries_go_with_their_job(house: House) -> None:
    claimed = await house.running(callback=Callback(URL))
    await house.end(claimed)
    house.clock.advance(KEEP_S)
    await house.prune()
    assert await due(house) == []


async def test_a_claim_of_deliveries_has_a_limit(house: House) -> None:
    for _ in range(5):
        await house.end(await house.running(callback=Callback(URL)))
    assert [len(await due(house, limit=2)) for _ in range(4)] == [2, 2, 1, 0]


# --- resources -------------------------------------------------------------------------------------------------------------


def image(id_: str = "1", project: str = "p", doc: bytes = b'{"a":1}', at_us: int = 5) -> Resource:
    return Resource(type="image", id=id_, project=ProjectId(project), doc=doc, created_us=at_us, updated_us=at_us, version=0)


async def test_a_resource_is_written_whole_and_its_version_grows(house: House) -> None:
    first = await house.store.put_resource(image())
    second = await house.store.put_resource(image(doc=b'{"a":2}', at_us=9))
    assert (first.version, second.version, second.created_us, second.updated_us) == (1, 2, 5, 9)
    assert await house.store.get_resource("image", "1") == second
    with pytest.raises(NotFound):
        await house.store.get_resource("volume", "1")


async def test_if_version_guards_a_write(house: House) -> None:
    await house.store.put_resource(image(), if_version=0)
    with pytest.raises(Conflict):
        await house.store.put_resource(image(doc=b"{}"), if_version=0)
    with pytest.raises(Conflict):
        await house.store.put_resource(image(doc=b"{}"), if_version=2)
    assert (await house.store.put_resource(image(), if_version=1)).version == 2
    with pytest.raises(Conflict):
        await house.store.put_resource(image(id_="2"), if_version=1)
    assert len(await house.store.list_resources("image")) == 1


async def test_a_lost_claim_writes_and_deletes_no_resource(house: House) -> None:
    claimed = await house.running()
    await house.store.put_resource(image(), claim=claimed.claim)
    house.clock.advance(31)
    await house.rescue()
    with pytest.raises(Conflict):
        await house.store.put_resource(image(doc=b"{}"), claim=claimed.claim)
    with pytest.raises(Conflict):
        await house.store.delete_resource("image", "1", claim=claimed.claim)
    assert (await house.store.get_resource("image", "1")).version == 1
    assert await house.store.delete_resource("image", "1") is True
    assert await house.store.delete_resource("image", "1") is False


async def test_resources_are_listed_by_creation_and_project(house: House) -> None:
    for id_, project, at_us in (("b", "p", 2), ("a", "p", 2), ("c", "r", 1)):
        await house.store.put_resource(image(id_, project, at_us=at_us))
    assert [one.id for one in await house.store.list_resources("image")] == ["c", "a", "b"]
    assert [one.id for one in await house.store.list_resources("image", project=ProjectId("p"))] == ["a", "b"]


# --- identity --------------------------------------------------------------------------------------------------------------


def project(id_: str = "p1", name: str = "demo", domain: str = "default") -> Project:
    return Project(ProjectId(id_), name, domain, "whsec_x", 1)


def user(id_: str = "u1", name: str = "ann", domain: str = "default") -> User:
    return User(id_, name, domain, "hash", 1)


async def test_projects_and_users_have_unique_names_within_their_domain(house: House) -> None:
    store = house.store
    for add, make in ((store.add_project, project), (store.add_user, user)):
        await add(make("1", "n"))
        for taken in (make("1", "other"), make("2", "n")):
            with pytest.raises(Conflict):
                await add(taken)
        await add(make("3", "n", "elsewhere"))
    assert [one.id for one in await store.list_projects()] == ["1", "3"]
    assert [one.id for one in await store.list_users()] == ["1", "3"]


async def test_found_by_id_then_by_name_and_domain(house: House) -> None:
    store = house.store
    await store.add_project(project("demo", "other"))
    await store.add_project(project("p2", "demo"))
    assert (await store.get_project("demo")).id == "demo", "an id goes before a name"
    assert (await store.get_project("other")).id == "demo"
    assert (await store.get_project("other", domain="default")).id == "demo"
    with pytest.raises(NotFound):
        await store.get_project("other", domain="elsewhere")
    await store.add_user(user())
    assert (await store.get_user("ann")) == await store.get_user("u1") == user()
    with pytest.raises(NotFound):
        await store.get_user("nobody")


async def test_a_change_is_kept_and_a_taken_name_is_a_conflict(house: House) -> None:
    store = house.store
    await store.add_project(project("1", "one"))
    await store.add_project(project("2", "two"))
    await store.update_project(Project(ProjectId("1"), "uno", "default", "whsec_y", 1, False))
    assert await store.get_project("1") == Project(ProjectId("1"), "uno", "default", "whsec_y", 1, False)
    with pytest.raises(Conflict):
        await store.update_project(project("1", "two"))
    await store.add_user(user("1", "one"))
    await store.add_user(user("2", "two"))
    with pytest.raises(Conflict):
        await store.update_user(user("1", "two"))
    await store.update_user(User("1", "one", "default", "other hash", 1, False))
    assert (await store.get_user("one")).enabled is False


async def test_grants_come_and_go(house: House) -> None:
    store = house.store
    for role in ("member", "admin", "member"):
        await store.set_grant("u", ProjectId("p"), role)
    await store.set_grant("other", ProjectId("p"), "member")
    assert await store.list_grants("u") == [Grant(ProjectId("p"), "admin"), Grant(ProjectId("p"), "member")]
    await store.set_grant("u", ProjectId("p"), "admin", present=False)
    await store.set_grant("u", ProjectId("p"), "admin", present=False)
    assert await store.list_grants("u") == [Grant(ProjectId("p"), "member")]


async def test_tokens_are_read_revoked_and_dropped_after_their_time(house: House) -> None:
    store = house.store
    token = Token("d1", "u", ProjectId("p"), ("admin", "member"), ("password",), "audit", 1, house.now_us + 10, False, "ci")
    await store.add_token(token)
    assert await store.get_token("d1") == token
    assert await store.list_tokens("u") == [token]
    with pytest.raises(Conflict):
        await store.add_token(token)
    assert await store.revoke_token("d1") is True
    assert await store.revoke_token("d1") is False
    assert (await store.get_token("d1")).revoked is True
    house.clock.advance(1)
    await house.prune()
    with pytest.raises(NotFound):
        await store.get_token("d1")


async def test_access_keys_are_kept_listed_and_deleted(house: House) -> None:
    store = house.store
    one, two = AccessKey("k1", "s", "u", ProjectId("p"), 1), AccessKey("k2", "s", "v", ProjectId("p"), 2, False)
    await store.add_access_key(two)
    await store.add_access_key(one)
    assert await store.get_access_key("k2") == two
    assert await store.list_access_keys() == [one, two]
    assert await store.list_access_keys(user_id="v") == [two]
    with pytest.raises(Conflict):
        await store.add_access_key(one)
    assert await store.delete_access_key("k1") is True
    assert await store.delete_access_key("k1") is False
    with pytest.raises(NotFound):
        await store.get_access_key("k1")


async def test_pages_of_resources_go_by_the_bytes_of_their_ids(house: House) -> None:
    ids = ["", "a", "a/", "a/1", "a/\U0010ffff", "a/\U0010ffffx", "a0", "b", "é", "\U0001f600"]
    for id_ in reversed(ids):
        await house.store.put_resource(
            Resource(type="paged", id=id_, project=ProjectId("p"), doc=b"1", created_us=1, updated_us=1, version=0)
        )
    ordered = sorted(ids, key=lambda one: one.encode())
    seen: list[str] = []
    after: str | None = None
    while page := await house.store.page_resources("paged", after=after, limit=3):
        seen += [one.id for one in page]
        after = seen[-1]
    assert seen == ordered
    found = await house.store.page_resources("paged", prefix="a/")
    assert [one.id for one in found] == [one for one in ordered if one.startswith("a/")]
    assert [one.id for one in await house.store.page_resources("paged", prefix="a/", after="a/1", limit=1)] == ["a/\U0010ffff"]


async def test_a_signature_is_used_once_until_it_expires(house: House) -> None:
    store = house.store
    expires_us = house.now_us + 10
    used = await asyncio.gather(*(store.use_signature("s1", expires_us=expires_us) for _ in range(5)))
    assert sorted(used) == [False] * 4 + [True]
    assert await store.use_signature("s2", expires_us=expires_us + 60_000_000) is True
    house.clock.advance(1)
    await house.prune()
    assert await store.use_signature("s2", expires_us=expires_us + 60_000_000) is False
    assert await store.use_signature("s1", expires_us=expires_us) is True, "it is forgotten: its date is refused by now"
