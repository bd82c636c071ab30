"""Callbacks: signed so that others can verify, tried again, given up, delivered again; a job's state never depends on them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json

import pytest
import standardwebhooks
from engine_house import SECRET, House

import milepost
from milepost.engine.courier import sign
from milepost.errors import StoreUnavailable, Unreachable
from milepost.job import Callback, Job, JobId, State
from milepost.store import Delivery

URL = "http://127.0.0.1:9/hook"


async def ended(house: House, **fields: object) -> Job:
    @house.kind("quick")
    async def quick(job: milepost.Running) -> int:
        return 42

    return await house.run("quick", callback=Callback(URL), **fields)


async def delivery(house: House, job_id: JobId) -> Delivery:
    (found,) = await house.store.list_deliveries(job_id)
    assert isinstance(found, Delivery)
    return found


async def test_a_callback_is_signed_as_standard_webhooks_and_carries_the_job(house: House) -> None:
    import time

    house.clock.jump(time.time() - house.clock.now_us() / 1e6)  # the other implementation looks at the machine's clock
    job = await ended(house, labels={"a": "b"})
    assert await house.node.courier.run_once() == 1
    ((url, headers, body),) = house.post.came
    assert url == URL
    said = standardwebhooks.Webhook(SECRET).verify(body, headers)
    assert said == json.loads(body)
    assert said["type"] == "job.succeeded"
    assert (said["data"]["id"], said["data"]["result"], said["data"]["labels"]) == (job.id, 42, {"a": "b"})
    with pytest.raises(standardwebhooks.webhooks.WebhookVerificationError):
        standardwebhooks.Webhook(SECRET).verify(body.replace(b"42", b"43"), headers)
    found = await delivery(house, job.id)
    assert (found.state, found.attempt, found.last_status) == ("delivered", 1, 200)


def test_the_signature_is_that_of_the_specification() -> None:
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.new(key, b"msg_1.1700000000.{}", hashlib.sha256).digest()).decode()
    assert sign(SECRET, "msg_1", 1_700_000_000, b"{}") == f"v1,{expected}"


async def test_a_failed_delivery_is_tried_again_with_doubling_pauses_and_given_up(house: House) -> None:
    job = await ended(house)
    limit = house.settings.callback_attempts_max
    house.post.answers = [500, Unreachable("no answer"), ConnectionResetError("gone"), 302, *[503] * 20]
    for tried in range(1, limit + 1):
        assert await house.node.courier.run_once() == 1
        found = await delivery(house, job.id)
        assert found.attempt == tried
        if tried < limit:
            pause_s = min(house.settings.callback_backoff_s * 2 ** (tried - 1), house.settings.callback_backoff_s_max)
            assert (found.state, found.next_us) == ("pending", house.clock.now_us() + int(pause_s * 1e6))
            assert await house.node.courier.run_once() == 0
            house.clock.advance(pause_s)
    assert (found.state, found.last_status) == ("given_up", 503)
    assert found.last_error is not None
    house.clock.advance(1e6)
    assert await house.node.courier.run_once() == 0
    assert len(house.post.came) == limit
    assert len({headers["webhook-id"] for _, headers, _ in house.post.came}) == 1, "the receiver can tell repeats"


async def test_410_gives_up_at_once(house: House) -> None:
    job = await ended(house)
    house.post.answers = [410]
    await house.node.courier.run_once()
    found = await delivery(house, job.id)
    assert (found.state, found.attempt, found.last_status) == ("given_up", 1, 410)


async def test_redelivered_on_demand(house: House) -> None:
    job = await ended(house)
    house.post.answers = [410]
    await house.node.courier.run_once()
    found = await delivery(house, job.id)
    await house.store.redeliver(found.id, project=None, now_us=house.clock.now_us())
    assert await house.node.courier.run_once() == 1
    found = await delivery(house, job.id)
    assert (found.state, found.attempt, found.last_status) == ("delivered", 1, 200)


@pytest.mark.parametrize("answer", [200, 500, 410, Unreachable("no"), ValueError("an error of another kind")], ids=repr)
async def test_the_jobs_record_does_not_depend_on_its_callback(house: House, answer: int | Exception) -> None:
    job = await ended(house)
    house.post.answers = [answer] * 50
    for _ in range(15):
        await house.node.courier.run_once()
        house.clock.advance(3600)
    assert await house.job(job.id) == job
    assert await house.history(job.id) == ["submitted", "started", "succeeded"]


async def test_each_end_has_its_callback(house: House) -> None:
    @house.kind("fails")
    async def fails(job: milepost.Running) -> None:
        raise milepost.PermanentError("x", "y")

    await house.run("fails", callback=Callback(URL))
    held = await house.submit("fails", held=True, callback=Callback(URL))
    await house.service.cancel(held, project=None)
    late = await house.submit("fails", held=True, callback=Callback(URL), deadline_us=house.clock.now_us() + 1)
    house.clock.advance(1)
    await house.node.scheduler.run_once()
    assert await house.state(late) is State.FAILED
    assert await house.node.courier.run_once() == 3
    assert sorted(json.loads(body)["type"] for _, _, body in house.post.came) == ["job.cancelled", "job.failed", "job.failed"]


async def test_one_error_of_another_kind_does_not_end_the_loop_or_its_neighbours(house: House) -> None:
    jobs = [await ended(house) for _ in range(1)]
    jobs += [await house.run("quick", callback=Callback(URL)) for _ in range(2)]
    house.post.answers = [RuntimeError("a fault of our own"), 200, 200]
    assert await house.node.courier.run_once() == 3
    found = sorted([(await delivery(house, job.id)).state for job in jobs])
    assert found == ["delivered", "delivered", "pending"]


async def test_the_loop_goes_on_when_the_store_was_away(house: House) -> None:
    job = await ended(house)
    house.store.fail("claim_deliveries")
    house.store.fail("finish_delivery", error=StoreUnavailable("away"))
    courier = asyncio.ensure_future(house.node.courier.run())
    async with asyncio.timeout(60):
        while (await delivery(house, job.id)).state != "delivered":
            assert not courier.done(), courier
            house.clock.advance(1)
            await asyncio.sleep(0)
    courier.cancel()
    await asyncio.gather(courier, return_exceptions=True)
    assert len(house.post.came) == 2, "sent again, because the first answer was not recorded"


async def test_a_process_that_died_while_sending_leaves_the_delivery_to_another(house: House) -> None:
    job = await ended(house)
    await house.store.claim_deliveries(now_us=house.clock.now_us(), lease_s=35.0, limit=10)
    assert await house.node.courier.run_once() == 0
    house.clock.advance(35)
    assert await house.node.courier.run_once() == 1
    found = await delivery(house, job.id)
    assert (found.state, found.attempt) == ("delivered", 2)
