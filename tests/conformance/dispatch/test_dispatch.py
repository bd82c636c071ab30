"""The rules of `milepost.dispatch`, on every dispatch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from milepost.dispatch import Dispatch
from milepost.dispatch.embedded import EmbeddedDispatch
from milepost.testing import ManualClock

DISPATCHES: dict[str, Callable[[ManualClock], Dispatch]] = {"embedded": EmbeddedDispatch}
BELLS = {
    # what is told, and who hears it
    "schedule": ("reschedule", "next_schedule"),
    "cancel": ("announce_cancel", "next_cancel"),
    "delivery": ("announce_delivery", "next_delivery"),
}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(0)


@pytest.fixture(params=DISPATCHES)
def dispatch(request: pytest.FixtureRequest, clock: ManualClock) -> Dispatch:
    return DISPATCHES[request.param](clock)


async def soon(waiting: Any) -> Any:
    async with asyncio.timeout(60):
        return await waiting


async def test_rule_1_a_hint_given_before_anybody_listens_is_heard(dispatch: Dispatch) -> None:
    dispatch.announce("a")
    dispatch.announce("b")
    dispatch.announce("a")
    assert await soon(dispatch.next_work(60)) == {"a", "b"}


async def test_rule_1_a_hint_wakes_who_listens(dispatch: Dispatch) -> None:
    waiting = asyncio.ensure_future(dispatch.next_work(60))
    await asyncio.sleep(0)
    dispatch.announce("a")
    assert await soon(waiting) == {"a"}


async def test_rule_1_without_a_hint_the_listener_is_told_to_look_at_everything(dispatch: Dispatch, clock: ManualClock) -> None:
    waiting = asyncio.ensure_future(dispatch.next_work(5))
    await asyncio.sleep(0)
    clock.advance(4.9)
    await asyncio.sleep(0)
    assert not waiting.done()
    clock.advance(0.1)
    assert await soon(waiting) is None


async def test_rule_1_a_hint_is_given_once(dispatch: Dispatch, clock: ManualClock) -> None:
    dispatch.announce("a")
    assert await soon(dispatch.next_work(1)) == {"a"}
    waiting = asyncio.ensure_future(dispatch.next_work(1))
    await asyncio.sleep(0)
    clock.advance(1)
    assert await soon(waiting) is None


async def test_rule_1_changed_queues_wake_the_claimer_which_reads_them_again(dispatch: Dispatch) -> None:
    dispatch.queues_changed = False
    dispatch.announce_queues()
    assert await soon(dispatch.next_work(60)) == frozenset()
    assert dispatch.queues_changed


@pytest.mark.parametrize("what", BELLS)
async def test_rule_1_each_listener_hears_its_own_bell(dispatch: Dispatch, clock: ManualClock, what: str) -> None:
    ring, hear = BELLS[what]
    waiting = {name: asyncio.ensure_future(getattr(dispatch, method)(5)) for name, (_, method) in BELLS.items()}
    work = asyncio.ensure_future(dispatch.next_work(5))
    await asyncio.sleep(0)
    getattr(dispatch, ring)()
    getattr(dispatch, ring)()
    assert await soon(waiting[what]) is True
    clock.advance(5)
    assert [await soon(one) for name, one in waiting.items() if name != what] == [False, False]
    assert await soon(work) is None
    again = asyncio.ensure_future(getattr(dispatch, hear)(1))
    await asyncio.sleep(0)
    clock.advance(1)
    assert await soon(again) is False, "rung twice before it was heard is heard once"


def test_rule_2_no_call_waits_or_raises_also_when_nobody_listens(dispatch: Dispatch) -> None:
    for _ in range(1000):
        dispatch.announce("a")
        dispatch.reschedule()
        dispatch.announce_cancel()
        dispatch.announce_delivery()
        dispatch.announce_queues()


async def test_rule_1_a_listener_that_was_cancelled_loses_no_hint(dispatch: Dispatch) -> None:
    waiting = asyncio.ensure_future(dispatch.next_work(60))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    dispatch.announce("a")
    assert await soon(dispatch.next_work(60)) == {"a"}
