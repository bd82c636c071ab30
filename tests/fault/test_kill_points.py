"""`kill -9` at every named point of the engine: nothing accepted is lost, nothing that ended runs or changes again.

Each test is a chain of servers on one data folder: each recovers what the one before left, then dies at its own point.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_rig import House, Server, traffic, until
from receiver import Receiver

from milepost.testing import killpoints

pytestmark = pytest.mark.fault

STOPPING = ("stop.draining", "stop.drained")
CHAINS = {
    "submit": """submit.executed submit.committed submit.answered submit.accepted submit_keyed.executed submit_keyed.committed
        release.executed release.committed release.answered""",
    "claim": """begin.executed begin.committed claim.executed claim.committed claim.answered run.before
        progress.executed progress.committed progress.answered run.after heartbeat.renewed""",
    "outcome": """finish.executed finish.committed outcome.executed outcome.committed outcome.answered requeue.executed
        requeue.committed follow.before follow.after""",
    "sub_jobs": """suspend.half suspend.executed suspend.committed settle.executed:3 settle.committed:3 sub_jobs.read
        sub_jobs.read:3""",
    "time": """promote.executed:3 promote.committed:3 promote.answered:3 scheduler.round:3 overdue.executed:3
        overdue.committed:3 overdue.answered:3 prune.executed prune.committed prune.answered""",
    "recovery": """rescue.executed rescue.committed rescue.answered start.rescued cancel.executed cancel.committed
        cancel.answered stop.draining stop.drained""",
    "courier": "courier.claimed courier.sent courier.recorded",
}


def test_every_point_of_the_engine_is_in_a_chain() -> None:
    tested = {point.partition(":")[0] for chain in CHAINS.values() for point in chain.split()}
    elsewhere = ("fop.", "import.", "volume.", "server.", "publish.")  # in test_fop_faults.py and so on
    assert tested == {point for point in killpoints.points() if not point.startswith(elsewhere)}


async def drive_to_death(house: House, server: Server, point: str, callback: str) -> None:
    """Traffic until the server comes to its point."""
    async with traffic(house, server) as calls:
        for number in range(100):
            await calls.mix(len(house.servers) * 1000 + number, callback)
            if point in STOPPING:
                server.signal(signal.SIGTERM)
                break
            if server.dead:
                break
    until(lambda: server.dead, what=f"{point} is reached", deadline_s=60)


@pytest.fixture
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / request.node.callspec.params["chain"])
    yield house
    house.close()


@pytest.mark.parametrize("chain", CHAINS)
async def test_a_kill_at_each_point_loses_nothing(chain: str, house: House) -> None:
    with Receiver() as receiver:
        for point in CHAINS[chain].split():
            server = house.start(point)
            if server.url:
                await drive_to_death(house, server, point, receiver.url)
            house.die(server)
        server = house.start()
        async with traffic(house, server) as calls:
            await calls.mix(1)
            await calls.settle()
        house.wait_all()
        until(lambda: not house.ask("SELECT 1 FROM delivery WHERE state = 'pending'"), what="callbacks are delivered")
        assert server.stop() == 0, server.said()
    counted = house.check()
    assert counted["kills"] == len(CHAINS[chain].split())
    wanted = {row[0] for row in house.ask("SELECT id FROM job WHERE callback_url IS NOT NULL")}
    assert wanted <= set(receiver.accepted), "a callback was lost"
