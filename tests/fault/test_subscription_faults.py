"""`kill -9` while events are made into deliveries: each event that was asked for makes exactly one, whatever dies and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_rig import House, Server, traffic, until
from receiver import Receiver

pytestmark = pytest.mark.fault

WORDS = ["submitted", "started", "retrying", "waiting", "resumed", "final"]
TYPES = ("submitted", "started", "retrying", "waiting", "resumed", "succeeded", "failed", "cancelled")
CHAIN = """publish.executed publish.committed publish.answered publish.executed:3 publish.committed:5 publish.answered:4
    courier.claimed:4 courier.sent:7 courier.recorded:3 finish.committed:3"""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "subscriptions")
    yield house
    house.close()


async def drive_to_death(house: House, server: Server, point: str, url: str) -> None:
    async with traffic(house, server) as calls:
        for _ in range(100):
            await calls.submit("tree", {"width": 2, "depth": 2})
            await calls.submit("work", {"fail_times": 1}, attempts_max=2)
            await calls.submit("work", callback={"url": url, "on": ["started", "final"]})
            if server.dead:
                break
    until(lambda: server.dead, what=f"{point} is reached", deadline_s=60)


def caught_up(house: House) -> bool:
    """Nothing is to be sent, and nothing is to be made: what was made last was made of the last event."""
    if house.ask("SELECT 1 FROM delivery WHERE state = 'pending'") or house.ask("SELECT 1 FROM callback_watch"):
        return False
    ((cursor, last),) = house.ask("SELECT (SELECT cursor FROM subscription), (SELECT MAX(id) FROM event)")
    return bool(cursor >= last)


async def test_each_event_makes_one_delivery_though_the_server_dies_at_every_point(house: House) -> None:
    with Receiver() as receiver:
        server = house.start()
        async with traffic(house, server) as calls:
            status, made = await calls.post("/subscriptions", {"url": receiver.url, "on": WORDS, "sub_jobs": True})
            assert status == 201
        assert server.stop() == 0
        for point in CHAIN.split():
            server = house.start(point)
            if server.url:
                await drive_to_death(house, server, point, receiver.url)
            house.die(server)
        server = house.start()
        house.wait_all()
        until(lambda: caught_up(house), what="everything is told")
        assert server.stop() == 0, server.said()
    house.check()
    marks = ", ".join("?" * len(TYPES))
    events = [id_ for (id_,) in house.ask(f"SELECT id FROM event WHERE type IN ({marks}) ORDER BY id", *TYPES)]
    told = house.ask(
        "SELECT json_extract(detail, '$.id'), number FROM delivery WHERE subscription_id = ? ORDER BY number", made["id"]
    )
    assert [event_id for event_id, _ in told] == events, "each once, in their order"
    assert [number for _, number in told] == list(range(1, len(told) + 1))
    watched = house.ask(
        "SELECT event.id FROM event JOIN job ON job.id = event.job_id WHERE job.callback_url IS NOT NULL "
        "AND event.type IN ('started', 'succeeded', 'failed', 'cancelled') ORDER BY event.id"
    )
    own = house.ask("SELECT json_extract(detail, '$.id') FROM delivery WHERE subscription_id IS NULL ORDER BY 1")
    assert own == watched
    ids = {id_ for (id_,) in house.ask("SELECT id FROM delivery")}
    came = Counter(call.id for call in receiver.calls)
    assert set(came) == ids, "each came, and nothing else did"
    ((secret,),) = house.ask("SELECT secret FROM subscription")
    ours = {id_ for (id_,) in house.ask("SELECT id FROM delivery WHERE subscription_id IS NOT NULL")}
    assert all(call.is_signed_with(secret) for call in receiver.calls if call.id in ours)
    # What came twice was being sent when the server died: a restart repeats, with the same id.
    assert max(came.values()) <= 1 + len(CHAIN.split())
