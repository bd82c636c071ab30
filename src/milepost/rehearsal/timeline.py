"""The time of a rehearsal: real, or standing still until it is advanced.  Advancing real time moves it forward at once."""

from __future__ import annotations

import asyncio
import time


class Timeline:
    """Seconds since the start, the instant that the cloud shows, and a bell for those who wait.

    Rules: `advance` never goes back; whoever waits is woken by it, and by `ring` when something else happened.
    """

    def __init__(self, *, virtual: bool, start_us: int | None = None, skew_s: float = 0.0) -> None:
        self.virtual = virtual
        self.start_us = time.time_ns() // 1000 if start_us is None else start_us
        self.skew_us = round(skew_s * 1e6)
        self._begun_s = time.monotonic()
        self._moved_s = 0.0
        self._waiting: set[asyncio.Future[None]] = set()
        self.closed = False

    def close(self) -> None:
        """Nobody waits any more."""
        self.closed = True
        self.ring()

    @property
    def sleepers(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def elapsed_s(self) -> float:
        return self._moved_s if self.virtual else self._moved_s + time.monotonic() - self._begun_s

    def now_us(self) -> int:
        """The true instant."""
        return self.start_us + round(self.elapsed_s() * 1e6)

    def shown_us(self, at_s: float) -> int:
        """What the cloud's own clock, which may be wrong, shows so many seconds after the start."""
        return self.start_us + self.skew_us + round(at_s * 1e6)

    def advance(self, seconds: float) -> None:
        self._moved_s += max(0.0, seconds)
        self.ring()

    def ring(self) -> None:
        """Something happened: everybody who waits looks again."""
        waiting, self._waiting = self._waiting, set()
        for one in waiting:
            if not one.done():
                one.set_result(None)

    async def wait(self, seconds: float | None, *, real_s: float | None = None) -> None:
        """Return after so many seconds of this time, at the next ring, or after real_s seconds of real time."""
        if self.closed:
            return
        bell: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(bell)
        limits = [one for one in (real_s, None if self.virtual else seconds) if one is not None]
        try:
            async with asyncio.timeout(max(0.0, min(limits)) if limits else None):
                await bell
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(bell)
