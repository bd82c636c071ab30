"""Callbacks to a receiver that fails, hangs and forgets: each arrives at least once, and a repetition is told by its id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_rig import House, traffic, until
from receiver import Received, Receiver

pytestmark = pytest.mark.fault


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "house", callback_timeout_s=3.0)
    yield house
    house.close()


def pending(house: House) -> int:
    found: int = house.ask("SELECT COUNT(*) FROM delivery WHERE state = 'pending'")[0][0]
    return found


async def test_every_callback_arrives_in_the_end_whatever_the_receiver_does(house: House) -> None:
    def answer(received: Received, n: int) -> int | None:
        return (500, None, 302, 429, 204)[min(n - 1, 4)]  # None: hangs

    with Receiver(answer) as receiver:
        server = house.start()
        async with traffic(house, server) as calls:
            ids = [await calls.submit("work", callback={"url": receiver.url}) for _ in range(6)]
            ids.append(await calls.submit("tree", callback={"url": receiver.url}))
            failed = await calls.submit("work", {"fail_times": 9}, attempts_max=1, callback={"url": receiver.url})
            cancelled = await calls.submit("work", held=True, callback={"url": receiver.url})
            await calls.post(f"/jobs/{cancelled}/cancel")
        house.wait_all()
        until(lambda: len(receiver.accepted) == 9 and not pending(house), what="all are delivered")
        assert server.stop() == 0
    house.check()
    assert set(receiver.accepted) == {*ids, failed, cancelled}
    assert {call.job_id: call.state for call in receiver.calls} == {
        **dict.fromkeys(ids, "succeeded"),
        failed: "failed",
        cancelled: "cancelled",
    }
    assert len({call.id for call in receiver.calls}) == 9  # the id is the callback's, not the try's
    assert set(Counter(call.id for call in receiver.calls).values()) == {5}
    ((secret,),) = house.ask("SELECT callback_secret FROM project")
    assert all(call.is_signed_with(secret) for call in receiver.calls)
    assert house.ask("SELECT DISTINCT state, attempt, last_status FROM delivery") == [("delivered", 5, 204)]


@pytest.mark.parametrize(("point", "sent"), [("courier.claimed", 0), ("courier.sent", 1)])
async def test_a_kill_around_the_sending_repeats_the_callback_at_most_and_loses_none(house: House, point: str, sent: int) -> None:
    with Receiver() as receiver:
        server = house.start(point)
        async with traffic(house, server) as calls:
            job_id = await calls.submit("work", callback={"url": receiver.url})
        until(lambda: house.servers[-1].dead, what=point)
        house.die(server)
        assert len(receiver.calls) == sent
        server = house.start()
        until(lambda: not pending(house), deadline_s=20.0, what="it is delivered, long before the claim of the dead runs out")
        assert server.stop() == 0
    house.check()
    assert Counter(call.job_id for call in receiver.calls) == {job_id: sent + 1}
    assert len({call.id for call in receiver.calls}) == 1  # the repetition has the id of the first


async def test_a_receiver_that_never_accepts_is_given_up_and_the_job_keeps_its_state(house: House) -> None:
    with Receiver(lambda _received, _n: 503) as receiver:
        server = house.start(callback_attempts_max=3)
        async with traffic(house, server) as calls:
            job_id = await calls.submit("work", callback={"url": receiver.url})
            until(lambda: house.ask("SELECT state FROM delivery") == [("given_up",)], what="given up")
            assert len(receiver.calls) == 3
            assert house.ask("SELECT state FROM job WHERE id = ?", job_id) == [("succeeded",)]
        assert server.stop() == 0
    house.check()
