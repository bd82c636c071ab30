"""Who is told that a job is ready: the `Dispatch` protocol.

Rules
1. Everything here is a hint: lost, late or repeated, every job still runs, because the loops also look by themselves.
2. No call waits or raises.
"""

from __future__ import annotations

from typing import Protocol


class Dispatch(Protocol):
    """Hints between the processes of one store."""

    queues_changed: bool  # set by announce_queues, cleared by who read the queues again
    subscriptions_changed: bool  # likewise

    def announce(self, queue: str) -> None:
        """This queue has a due job."""
        ...

    def reschedule(self) -> None:
        """A run_at or deadline may be earlier than the scheduler knows."""
        ...

    def announce_cancel(self) -> None:
        """Some running job was asked to stop."""
        ...

    def announce_delivery(self) -> None:
        """A callback may be due."""
        ...

    def announce_queues(self) -> None:
        """A queue's limit or pause changed."""
        ...

    def announce_events(self) -> None:
        """Something happened that a subscription may be about."""
        ...

    def announce_subscriptions(self) -> None:
        """A subscription was made, changed or removed."""
        ...

    async def next_work(self, timeout_s: float) -> frozenset[str] | None:
        """The queues announced since the last call, at once when there was a hint; None after timeout_s: look at all."""
        ...

    async def next_schedule(self, timeout_s: float) -> bool: ...
    async def next_cancel(self, timeout_s: float) -> bool: ...
    async def next_delivery(self, timeout_s: float) -> bool: ...
    async def next_events(self, timeout_s: float) -> bool: ...
