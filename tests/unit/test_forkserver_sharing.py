"""Calls that say that they share follow each other in one child, and none of them is worse off for it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from forked_house import LOOSE, MODULE, forking, is_alive, until

from milepost import forkchild, forkserver
from milepost.forkserver import ForkServer
from milepost.process import Limits


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine ends no child that a test goes back to."""
    monkeypatch.setattr(forkchild, "KEEP_S", 600.0)


@pytest.fixture
async def server() -> AsyncIterator[ForkServer]:
    async with forking() as made:
        yield made


async def turn(server: ForkServer, request: bytes = b"", share: str | None = "a", limits: Limits = LOOSE) -> dict[str, Any]:
    answer = await server.call(f"{MODULE}:turn", request, limits=limits, share=share)
    assert answer.ok, answer.describe()
    return json.loads(answer.result)


async def test_calls_with_one_word_follow_each_other_in_one_child(server):
    found = [await turn(server) for _ in range(5)]
    assert [one["turn"] for one in found] == [1, 2, 3, 4, 5]
    assert len({one["pid"] for one in found}) == 1


async def test_calls_that_share_nothing_have_a_child_each_that_is_dead_when_they_return(server):
    found = [await turn(server, share=None) for _ in range(3)]
    assert [one["turn"] for one in found] == [1, 1, 1]
    assert not any(is_alive(one["pid"]) for one in found)


async def test_another_word_or_limit_or_function_is_another_child(server):
    first = await turn(server)
    assert (await turn(server, share="b"))["turn"] == 1
    assert (await turn(server, limits=Limits(wall_s=60, cpu_s=5)))["turn"] == 1
    facts = json.loads((await server.call(f"{MODULE}:facts", b"", limits=LOOSE, share="a")).result)
    assert facts["pid"] != first["pid"]
    assert (await turn(server))["pid"] == first["pid"]


async def test_calls_at_the_same_time_are_never_in_one_child(server):
    found = await asyncio.gather(*(turn(server, b"work") for _ in range(4)))
    assert len({one["pid"] for one in found}) == 4


async def test_a_used_child_has_no_secret(server, monkeypatch):
    monkeypatch.setenv("FORKED_SECRET", "hunter2")
    found = [await turn(server) for _ in range(2)]
    assert found[1]["turn"] == 2
    assert "FORKED_SECRET" not in found[1]["environ"]


@pytest.mark.parametrize("what", [b"crash", b"fail", b"raise", b"leave", b"kill server"])
async def test_what_goes_wrong_in_a_used_child_is_done_again_in_a_new_one(server, what):
    used = await turn(server)
    found = await turn(server, what)
    assert found["turn"] == 1
    assert found["pid"] != used["pid"]
    await until(lambda: not is_alive(used["pid"]))


async def test_what_a_new_child_says_no_to_is_no(server):
    answer = await server.call(f"{MODULE}:refuse", b"not today", limits=LOOSE, share="a")
    assert (answer.ok, answer.failed, answer.error) == (False, "not today", None)
    assert answer.describe() == "not today"
    assert not server._kept


async def test_a_child_that_died_while_it_waited_is_replaced(server):
    used = await turn(server)
    os.kill(used["pid"], signal.SIGKILL)
    await until(lambda: not is_alive(used["pid"]))
    assert (await turn(server))["turn"] == 1


async def test_a_killed_server_and_its_waiting_children_are_replaced(server):
    used = await turn(server)
    os.kill(server.pid, signal.SIGKILL)
    await until(lambda: not is_alive(used["pid"]))  # it goes with the server; one that was asked sooner may still answer
    found = await turn(server)
    assert (found["turn"], found["parent"]) == (1, server.pid)
    assert used["parent"] != server.pid


async def test_each_call_has_processor_time_of_its_own(server):
    limits = Limits(cpu_s=1, wall_s=60)
    found = [await turn(server, b"work", limits=limits) for _ in range(4)]
    assert [one["turn"] for one in found] == [1, 2, 3, 4], "0.7 s each are 2.8 s together"


async def test_processor_time_is_limited_in_a_used_child(server):
    limits = Limits(cpu_s=1, wall_s=60)
    await turn(server, limits=limits)
    answer = await server.call(f"{MODULE}:turn", b"spin", limits=limits, share="a")
    assert (answer.reason, answer.ok) == ("cpu_time", False)


async def test_wall_time_is_limited_in_a_used_child_which_is_dead_then(server):
    limits = Limits(wall_s=2.0)
    used = await turn(server, limits=limits)
    answer = await server.call(f"{MODULE}:turn", b"spin", limits=limits, share="a")
    assert (answer.reason, answer.ok) == ("wall_time", False)
    assert not is_alive(used["pid"])


async def test_a_cancelled_call_has_killed_its_used_child_when_it_returns(server):
    used = await turn(server)
    call = asyncio.create_task(server.call(f"{MODULE}:turn", b"spin", limits=LOOSE, share="a"))
    await until(lambda: not server._kept)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not is_alive(used["pid"])


async def test_a_child_that_grew_is_used_no_more(server):
    limits = Limits(memory_bytes=1 << 30, wall_s=60)
    grown = await turn(server, b"grow", limits=limits)
    await until(lambda: not is_alive(grown["pid"]))
    assert (await turn(server, limits=limits))["turn"] == 1


async def test_a_result_that_is_too_long_kills_a_used_child_and_is_no_result_of_a_new_one(server):
    used = await turn(server)
    answer = await server.call(f"{MODULE}:turn", b"long", limits=LOOSE, share="a", result_bytes_max=1000)
    assert not answer.ok
    assert not is_alive(used["pid"])


async def test_a_child_is_used_so_often_and_no_more(server, monkeypatch):
    monkeypatch.setattr(forkserver, "TURNS", 3)
    assert [(await turn(server))["turn"] for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]


async def test_a_child_that_nobody_asks_is_killed(server, monkeypatch):
    monkeypatch.setattr(forkchild, "KEEP_S", 0.05)
    used = await turn(server)
    await until(lambda: not is_alive(used["pid"]))
    assert not server._kept
    assert (await turn(server))["turn"] == 1


async def test_no_more_than_so_many_children_wait(server, monkeypatch):
    monkeypatch.setattr(forkchild, "KEPT_MAX", 2)
    pids = [(await turn(server, share=word))["pid"] for word in "abcd"]
    assert len(server._kept) == 2
    await until(lambda: [is_alive(pid) for pid in pids] == [False, False, True, True])


async def test_closing_ends_children_that_wait(server):
    used = await turn(server)
    await server.close()
    await until(lambda: not is_alive(used["pid"]))
    assert not server._kept
