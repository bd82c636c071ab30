"""Answers about jobs that are made once for each version of the job's tree, for wires that show a job with its sub-jobs.

Theory: the text of an answer changes when the job or one of its sub-jobs does, and each such change is an event of the tree.
A text that was made of what is stored is kept until the next event of its tree; texts of final jobs need not even that, for
nothing of them changes any more.  The job's own row is read each time, so its version decides as well: what is kept can be
older than its sub-jobs by the moment that an event takes to arrive here, never older than the job.

Rules
1. A text is kept only when no event of its tree came while it was made.
2. While the store has other writers than this process (`Store.exclusive`), only final jobs' texts are kept.
3. Events are listened to only while a text is kept that they can change: others pay for no polls.
4. What is kept has a limit in number and in bytes; when it is full, all of it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from milepost.job import FINAL, Event, EventType, Job, JobId
from milepost.store import EVERY_TYPE, Store

TREES_MAX, TEXTS_BYTES_MAX = 4096, 16 << 20
SHOWN_TYPES = EVERY_TYPE - {EventType.PROGRESS}  # these wires show no progress

Place = dict[tuple[JobId, int], bytes]


class Texts:
    """Answers by job and version, those of live jobs forgotten when their tree changes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ended: Place = {}
        self._live: dict[JobId, Place] = {}  # by tree
        self._bytes = 0
        self._unsubscribe: Callable[[], None] | None = None

    @property
    def listens(self) -> bool:
        """Whether events are listened to."""
        return self._unsubscribe is not None

    def get(self, job: Job) -> bytes | None:
        place = self._ended if job.state in FINAL else self._live.get(job.root_id, _NONE)
        return place.get((job.id, job.version))

    def expect(self, job: Job) -> Place | None:
        """Where the text that is made now may be kept: only while that is still the job's place (rule 1)."""
        if job.state in FINAL:
            return self._ended
        if not self._store.exclusive:
            return None
        if self._unsubscribe is None:
            self._unsubscribe = self._store.subscribe(self._forget, types=SHOWN_TYPES)
        return self._live.setdefault(job.root_id, {})

    def keep(self, job: Job, place: Place | None, text: bytes) -> None:
        now = self._ended if job.state in FINAL else self._live.get(job.root_id)
        if place is None or place is not now:
            return
        if len(self._live) + len(self._ended) > TREES_MAX or self._bytes + len(text) > TEXTS_BYTES_MAX:
            self.close()
            return
        place[(job.id, job.version)] = text
        self._bytes += len(text)

    def close(self) -> None:
        """Keep nothing, listen no more."""
        self._ended, self._live, self._bytes = {}, {}, 0
        self._listen_no_more()

    def _forget(self, events: Sequence[Event]) -> None:
        for event in events:
            for text in self._live.pop(event.root_id, _NONE).values():
                self._bytes -= len(text)
        if not self._live:
            self._listen_no_more()

    def _listen_no_more(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None


_NONE: Place = {}


__all__ = ["Texts"]
