"""Notifications in Qiniu's form through the courier: their schedule, what ends them, who signs, and what stays native."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import argon2
import pytest
from engine_house import SECRET, House

import milepost
from milepost.engine.courier import Courier
from milepost.errors import Unreachable
from milepost.job import Callback, Job, State
from milepost.server import identity
from milepost.server.facades.qiniu.notify import Notifier, is_notified
from milepost.server.facades.qiniu.pfop import is_undelivered
from milepost.server.identity import Identities
from milepost.store import Delivery
from milepost.wire.qiniu import prefop
from milepost.wire.signing import qiniu as signing
from milepost.wiring import encode_callback

URL = "http://App.example.test:80/told?a=1"
ASKED = {"bucket": "media", "key": "in/a.jpg", "fops": ["imageInfo"], "pipeline": ""}


class Mail:
    """A courier with the notifier, over a house without loops."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.identities = Identities(house.store, house.clock, house.settings)
        self.notifier = Notifier(house.store, self.identities, house.settings, secret_of=house._secret_of)
        self.courier = Courier(
            house.store,
            house.dispatch,
            house.clock,
            house.settings,
            house.node.stats,
            send=house.post,
            encode=encode_callback,
            secret_of=house._secret_of,
            manner_of=lambda job: self.notifier if is_notified(job) else None,
        )

        @house.kind("pfop")
        async def pfop(job: milepost.Running, spec: dict[str, Any]) -> None:
            if spec["bucket"] == "bad":
                raise milepost.PermanentError("fop_failed", "no")

    async def ended(self, bucket: str = "media", **origin: str) -> Job:
        text = json.dumps({**ASKED, "bucket": bucket}).encode()
        return await self.house.run("pfop", text, callback=Callback(URL), origin={"reqid": "r", **origin})

    async def delivery(self, job: Job) -> Delivery:
        (found,) = await self.house.store.list_deliveries(job.id)
        assert isinstance(found, Delivery)
        return found


@pytest.fixture
async def mail(house: House, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mail]:
    monkeypatch.setattr(identity, "SLOW", argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    yield Mail(house)


async def test_13_retries_after_1_2_4_8_seconds_and_then_it_is_given_up(mail: Mail) -> None:
    job = await mail.ended()
    mail.house.post.answers = [500, Unreachable("no answer"), ConnectionResetError("gone"), 302, 201, 204, *[503] * 20]
    for retry in range(14):
        assert (await mail.delivery(job)).state != "given_up"
        assert await mail.courier.run_once() == 1
        found = await mail.delivery(job)
        assert await is_undelivered(mail.house.store, await mail.house.job(job.id))
        if retry < 13:
            assert (found.state, found.next_us - mail.house.clock.now_us()) == ("pending", 2**retry * 1_000_000)
            assert await mail.courier.run_once() == 0
            mail.house.clock.advance(2.0**retry)
    assert (found.state, found.attempt) == ("given_up", 14)
    mail.house.clock.advance(1e6)
    assert await mail.courier.run_once() == 0
    bodies = {body for _, _, body in mail.house.post.came}
    assert len(bodies) == 1
    assert json.loads(bodies.pop())["code"] == 0


@pytest.mark.parametrize(("status", "state"), [(200, "delivered"), (400, "given_up"), (410, "given_up"), (499, "given_up")])
async def test_200_and_any_4xx_end_it(mail: Mail, status: int, state: str) -> None:
    job = await mail.ended()
    mail.house.post.answers = [status]
    await mail.courier.run_once()
    assert (await mail.delivery(job)).state == state
    assert await is_undelivered(mail.house.store, await mail.house.job(job.id)) == (status != 200)


async def test_trouble_is_over_when_it_was_taken_and_none_of_what_failed(mail: Mail) -> None:
    job = await mail.ended()
    assert not await is_undelivered(mail.house.store, job), "it was not tried yet"
    mail.house.post.answers = [500, 200]
    await mail.courier.run_once()
    mail.house.clock.advance(1)
    await mail.courier.run_once()
    assert not await is_undelivered(mail.house.store, job)
    bad = await mail.ended("bad")
    mail.house.post.answers = [404]
    await mail.courier.run_once()
    assert bad.state is State.FAILED
    assert not await is_undelivered(mail.house.store, bad)


async def test_the_body_is_the_status_and_both_signatures_are_right(mail: Mail) -> None:
    import time

    import standardwebhooks

    mail.house.clock.jump(time.time() - mail.house.clock.now_us() / 1e6)  # the other implementation looks at the machine's clock
    job = await mail.ended()
    await mail.courier.run_once()
    ((url, headers, body),) = mail.house.post.came
    assert url == URL
    assert body == prefop.encode_status(job)
    assert signed_by(signing.Key("default", SECRET), headers, body)
    assert not signed_by(signing.Key("default", SECRET), headers, body + b" ")
    standardwebhooks.Webhook(SECRET).verify(body, headers)


def signed_by(key: signing.Key, headers: dict[str, str], body: bytes) -> bool:
    """As the application sees it: the host as it is sent, without the default port."""
    claim = signing.read_claim(headers["Authorization"])
    seen = {b"host": b"app.example.test", b"content-type": b"application/json"}
    message = signing.Message("POST", b"/told", b"a=1", seen, body)
    return claim.access == key.access and signing.verify(claim, message, key.secret)


async def test_the_key_that_asked_signs_and_else_the_projects_oldest(mail: Mail) -> None:
    identities = mail.identities
    await identities.ensure_project("default")
    other = await identities.create_project("other")
    await identities.create_user("ann", "correct horse")
    keys = []
    for project in ("other", "default", "default"):
        await identities.grant("ann", project, "member")
        keys.append(await identities.create_access_key("ann", project))
        mail.house.clock.advance(1)
    foreign, first, second = (signing.Key(key.id, key.secret) for key in keys)
    assert other.id

    async def signer(**origin: str) -> str:
        await mail.ended(**origin)
        await mail.courier.run_once()
        _, headers, body = mail.house.post.came[-1]
        name = signing.read_claim(headers["Authorization"]).access
        (key,) = (key for key in (foreign, first, second, signing.Key("default", SECRET)) if key.access == name)
        assert signed_by(key, headers, body)
        return key.access

    assert await signer(access=second.access) == second.access
    assert await signer(access=foreign.access) == first.access, "another project's key never signs"
    assert await signer(access="gone") == first.access
    await identities.delete_access_key(first.access)
    assert await signer(access=first.access) == second.access
    await identities.delete_access_key(second.access)
    assert await signer() == "default"


async def test_a_pfop_of_the_native_api_is_told_of_natively(mail: Mail) -> None:
    job = await mail.house.run("pfop", json.dumps(ASKED).encode(), callback=Callback(URL))
    assert not is_notified(job)
    await mail.courier.run_once()
    ((_, headers, body),) = mail.house.post.came
    assert json.loads(body)["type"] == "job.succeeded"
    assert "Authorization" not in headers
