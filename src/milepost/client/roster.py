"""The jobs of one bulk wait, and where each of them is: due at some time, asked about, to be fetched, followed, or out."""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from milepost.client.known import Known

OPEN, FLYING, ENDED, FOLLOWED, OVER = range(5)  # a job is: due or ready, asked about, to be fetched, asked about elsewhere, out


class Roster:
    """A byte, a key and a heap entry for each job; the same job given twice has one place and comes out twice.

    Rules: of a job's entries, in whichever heap they are, the one with its key counts; others are passed over.
    """

    def __init__(self, jobs: Sequence[Known]) -> None:
        self.jobs = jobs
        self.left = len(jobs)
        self.over: list[Known] = []  # came out, and not handed to the caller yet
        self.ended: deque[int] = deque()
        self._at = bytearray(len(jobs))
        self._key = array("d", bytes(8 * len(jobs)))
        self._due: list[tuple[float, int]] = []
        self._again: set[int] = set()  # ended while they were asked about
        self._index: dict[str, int] = {}
        self._twins: dict[int, list[int]] = {}
        for index, known in enumerate(jobs):
            first = self._index.setdefault(known.id, index)
            if first != index:
                self._twins.setdefault(first, []).append(index)
                self._at[index] = OVER

    def __iter__(self) -> Iterator[int]:
        """Each job's index, once."""
        return iter(list(self._index.values()))

    def index_of(self, job_id: str) -> int | None:
        return self._index.get(job_id)

    def at(self, index: int) -> int:
        return self._at[index]

    def pending(self) -> list[Known]:
        return [known for index, known in enumerate(self.jobs) if self._at[index] != OVER]

    # --- moves ------------------------------------------------------------------------------------------------------

    def move(self, index: int, at: int) -> None:
        self._at[index] = at

    def schedule(self, index: int, due_s: float) -> None:
        """It is open, and due then; or to be fetched, when it was said to have ended meanwhile."""
        if index in self._again:
            self._again.discard(index)
            self.fetch(index)
            return
        self._at[index] = OPEN
        self.line_up(self._due, due_s, index)

    def follow(self, index: int, look_s: float) -> None:
        """Somebody else asks about it; look then whether they still do."""
        self._at[index] = FOLLOWED
        self.line_up(self._due, look_s, index)

    def fetch(self, index: int) -> None:
        self._at[index] = ENDED
        self.ended.append(index)

    def hear_end(self, index: int | None) -> None:
        """A stream or a list says that it ended."""
        if index is None:
            return
        if self._at[index] == OPEN:
            self.fetch(index)
        elif self._at[index] == FLYING:
            self._again.add(index)

    def finish(self, index: int) -> None:
        """Nothing more is to be learnt: it comes out, as often as it was given."""
        self._at[index] = OVER
        self._again.discard(index)
        known = self.jobs[index]
        for twin in (index, *self._twins.get(index, ())):
            self.jobs[twin].view, self.jobs[twin].error = known.view, known.error
            self.left -= 1
            self.over.append(self.jobs[twin])

    # --- what is due ------------------------------------------------------------------------------------------------

    def line_up(self, heap: list[tuple[float, int]], key: float, index: int) -> None:
        """Its place is in this heap now, and in no other."""
        self._key[index] = key
        heapq.heappush(heap, (key, index))

    def counts(self, entry: tuple[float, int], *, followed: bool = False) -> bool:
        """Whether this is the entry of an open job, or of a followed one."""
        key, index = entry
        return self._key[index] == key and (self._at[index] == OPEN or (followed and self._at[index] == FOLLOWED))

    @property
    def next_s(self) -> float:
        """When the next one is due."""
        return self._due[0][0] if self._due else float("inf")

    def take_due(self, until_s: float) -> tuple[float, int] | None:
        """The next one that is due by then, open or followed."""
        while self._due and self._due[0][0] <= until_s:
            entry = heapq.heappop(self._due)
            if self.counts(entry, followed=True):
                return entry
        return None

    def reschedule(self, due_s: Callable[[int, float], float]) -> None:
        """Every open job is due at another time, made of its index and the time so far."""
        entries, self._due = self._due, []
        for entry in entries:
            if self.counts(entry, followed=True):
                at_s, index = entry
                self._key[index] = due_s(index, at_s) if self._at[index] == OPEN else at_s
                self._due.append((self._key[index], index))
        heapq.heapify(self._due)
