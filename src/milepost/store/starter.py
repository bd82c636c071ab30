"""Who runs jobs in the store's own process, as the store sees it: the `Starter`.

It lets a submission become a running job in its own transaction (rule 16 of the store): one claim, one update of the row and one
wait for the disk less for a job that would have been claimed next anyway.  A crash leaves what a crash after a claim leaves: a
lease that runs out.

Slots are counted at the moment when the transaction needs them, not when it was asked for: claims and submissions of one batch
share what is free then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from milepost.job import Claimed, WorkerId


class Starter(Protocol):
    """All methods are called on the store's own loop; none of them waits or raises."""

    @property
    def worker(self) -> WorkerId:
        """Whose lease the jobs have that are started."""
        ...

    def take(self, queue: str, wanted: int) -> int:
        """So many free slots of the queue are kept for the caller, at most `wanted`."""
        ...

    def give_back(self, queue: str, count: int) -> None:
        """Slots that were taken are not needed (there was less to start, or the transaction failed).  A negative count takes."""
        ...

    def start(self, claimed: Sequence[Claimed]) -> None:
        """These are running on disk, each in a slot that was taken for it."""
        ...
