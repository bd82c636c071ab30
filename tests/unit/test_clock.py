"""The machine's own clock."""

from __future__ import annotations

import asyncio
import time

from milepost.clock import SystemClock


def test_now_is_unix_time_in_microseconds() -> None:
    before, now_us, after = time.time(), SystemClock().now_us(), time.time()
    assert before - 0.001 <= now_us / 1e6 <= after + 0.001


def test_the_monotonic_clock_never_goes_back() -> None:
    clock = SystemClock()
    seen = [clock.monotonic_s() for _ in range(1000)]
    assert seen == sorted(seen)


async def test_a_timer_calls_once_and_not_when_cancelled() -> None:
    clock, called = SystemClock(), asyncio.Event()
    told: list[str] = []
    off = clock.call_later(0.0, told.append, "cancelled")
    clock.call_later(0.001, lambda: (told.append("called"), called.set()))
    off.cancel()
    async with asyncio.timeout(60):
        await called.wait()
    assert told == ["called"]


async def test_a_sleep_lasts_as_long_as_it_says() -> None:
    clock = SystemClock()
    started_s = clock.monotonic_s()
    await clock.sleep(0.02)
    assert clock.monotonic_s() - started_s >= 0.019
