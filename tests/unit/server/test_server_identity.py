"""Projects, users, tokens and keys."""

from __future__ import annotations

import asyncio
import re

import pytest
from server_house import Crowd, House

from milepost.errors import Conflict, Forbidden, InvalidInput, NotFound, Throttled, Unauthenticated
from milepost.job import ProjectId
from milepost.server import identity
from milepost.server.auth import digest_of


async def test_a_password_is_kept_as_an_argon2_hash_and_verified(house: House) -> None:
    user = await house.identities.create_user("ann", "correct horse")
    assert user.password_hash.startswith("$argon2id$")
    assert "correct horse" not in user.password_hash
    assert (await house.identities.check_password("ann", "correct horse")).id == user.id
    assert (await house.identities.check_password(user.id, "correct horse")).id == user.id


async def test_a_wrong_name_a_wrong_password_and_a_disabled_user_give_one_answer(crowd: Crowd) -> None:
    make = crowd.house.identities
    await make.set_user_enabled("sam", False)
    messages = set()
    for name, password in (("ann", "wrong"), ("nobody", "wrong"), ("sam", "sam-password"), ("ann", ""), ("ann", "x" * 5000)):
        with pytest.raises(Unauthenticated) as caught:
            await make.check_password(name, password)
        messages.add(str(caught.value))
    assert len(messages) == 1


async def test_logins_beyond_the_queue_are_throttled_instead_of_waiting(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "LOGINS_QUEUED", 2)
    logins = [crowd.house.identities.check_password("ann", "ann-password") for _ in range(5)]
    ended = await asyncio.gather(*logins, return_exceptions=True)
    assert sum(isinstance(one, Throttled) for one in ended) == 3
    assert (await crowd.house.identities.check_password("ann", "ann-password")).name == "ann"


async def test_a_token_is_stored_as_its_digest_only(crowd: Crowd) -> None:
    store = crowd.house.store
    token = await store.get_token(digest_of(crowd.member))
    assert crowd.member not in repr(token)
    assert re.fullmatch(r"mpk_[A-Za-z0-9_-]{43}", crowd.member)
    user = await store.get_user("ann")
    issued = await crowd.house.identities.issue_token(user, project=await store.get_project("demo"))
    assert re.fullmatch(r"mpt_[A-Za-z0-9_-]{43}", issued.secret)
    assert issued.token.expires_us - issued.token.issued_us == 86_400_000_000


async def test_an_admin_is_a_member_too_and_roles_are_those_of_the_project(crowd: Crowd) -> None:
    who = await crowd.house.identities.identify(crowd.admin)
    assert who is not None
    assert (who.project, who.user_name, who.roles) == (crowd.demo, "ann", {"admin", "member"})
    assert who.is_admin
    member = await crowd.house.identities.identify(crowd.member)
    assert member is not None
    assert (member.roles, member.is_admin) == ({"member"}, False)


async def test_a_token_needs_a_role_in_its_project(crowd: Crowd) -> None:
    make, store = crowd.house.identities, crowd.house.store
    with pytest.raises(Forbidden, match="no role"):
        await make.issue_token(await store.get_user("sam"), project=await store.get_project("demo"))
    with pytest.raises(Forbidden, match="no role"):
        await make.create_access_key("sam", "demo")
    with pytest.raises(NotFound):
        await make.create_api_key("sam", "nowhere", "x")


async def test_disabling_a_user_or_a_project_and_taking_a_role_revoke_tokens(crowd: Crowd) -> None:
    make = crowd.house.identities
    await make.revoke_grant("mia", "demo", "member")
    await make.set_project_enabled("other", False)
    for token in (crowd.member, crowd.stranger):
        with pytest.raises(Unauthenticated, match="revoked"):
            await make.identify(token)
    assert await make.identify(crowd.admin) is not None
    await make.set_password("ann", "another")
    with pytest.raises(Unauthenticated, match="revoked"):
        await make.identify(crowd.admin)
    with pytest.raises(Forbidden):
        await make.create_api_key("sam", "other", "x")


async def test_keys_are_listed_without_secrets_and_revoked_by_their_digest(crowd: Crowd) -> None:
    make = crowd.house.identities
    (key,) = await make.list_api_keys("mia")
    assert (key.name, key.digest) == ("test", digest_of(crowd.member))
    assert await make.revoke_digest(key.digest)
    assert await make.list_api_keys("mia") == []


async def test_access_keys_are_made_listed_and_deleted(crowd: Crowd) -> None:
    key = await crowd.house.identities.create_access_key("mia", "demo")
    assert re.fullmatch(r"[A-Z2-7]{20}", key.id)
    assert len(key.secret) == 40
    assert await crowd.house.store.get_access_key(key.id) == key
    assert await crowd.house.identities.delete_access_key(key.id)
    assert not await crowd.house.identities.delete_access_key(key.id)


async def test_names_are_unique_and_checked(crowd: Crowd) -> None:
    make = crowd.house.identities
    for wrong in ("", "x" * 65, "a\nb"):
        with pytest.raises(InvalidInput):
            await make.create_project(wrong)
    with pytest.raises(Conflict):
        await make.create_project("demo")
    with pytest.raises(Conflict):
        await make.create_user("ann", "x")
    with pytest.raises(InvalidInput):
        await make.create_user("new", "")
    with pytest.raises(InvalidInput):
        await make.grant("ann", "demo", "king")


async def test_a_project_that_is_asked_for_exists_once(house: House) -> None:
    first, second = await asyncio.gather(*(house.identities.ensure_project(ProjectId("p")) for _ in range(2)))
    assert first == second == await house.identities.ensure_project(ProjectId("p"))
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", first.callback_secret)
    named = await house.identities.create_project("taken")
    other = await house.identities.ensure_project(ProjectId("taken"))
    assert (other.id, other.callback_secret == named.callback_secret) == ("taken", False)


async def test_a_new_callback_secret_takes_the_old_ones_place_also_of_a_default_project_not_seen_yet(house: House) -> None:
    made = await house.identities.create_project("demo")
    renewed = await house.identities.renew_callback_secret("demo")
    assert renewed.id == made.id
    assert renewed.callback_secret != made.callback_secret
    assert await house.store.get_project("demo") == renewed
    first = await house.identities.renew_callback_secret("default")
    assert await house.identities.ensure_project(ProjectId("default")) == first
    with pytest.raises(NotFound):
        await house.identities.renew_callback_secret("nobody")
