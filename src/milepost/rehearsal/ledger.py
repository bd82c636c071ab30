"""The history of a rehearsal's jobs: an event for each move, in the order in which they happened.

Theory: moves by time are known beforehand, so a heap has the next one of each job, and they are written down when somebody reads.
Moves by polls and commands are written when they happen, after those that time made before them.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from milepost.job import Event, EventType, ProjectId, State
from milepost.rehearsal.script import Look

if TYPE_CHECKING:
    from milepost.rehearsal.stage import Actor, Stage

EVENTS_MAX = 1_000_000

_TYPES = {
    State.HELD: EventType.SUBMITTED,
    State.READY: EventType.RELEASED,
    State.RUNNING: EventType.STARTED,
    State.WAITING: EventType.WAITING,
    State.SUCCEEDED: EventType.SUCCEEDED,
    State.FAILED: EventType.FAILED,
    State.CANCELLED: EventType.CANCELLED,
}


class Ledger:
    """Events with ids that grow; bounded, the oldest go first."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._due: list[tuple[float, int, Actor]] = []
        self._planned: dict[int, float] = {}  # by the job's number: its next entry in the heap
        self._told: dict[int, int] = {}  # by the job's number: moves that are written down
        self._events: list[Event] = []
        self._ids: list[int] = []
        self._last = 0
        self._newest: dict[str, int] = {}  # by the job's id: the id of its last event

    def expect(self, actor: Actor) -> None:
        """A new tree of jobs."""
        self._plan(actor, actor.begun_s)

    def _plan(self, actor: Actor, at_s: float) -> None:
        if self._planned.get(actor.number) != at_s:  # an entry that is not the planned one any more does no harm
            self._planned[actor.number] = at_s
            heapq.heappush(self._due, (at_s, actor.number, actor))

    def touch(self, actor: Actor) -> None:
        """A poll or a command may have moved this tree now."""
        now_s = self._stage.time.elapsed_s()
        if actor.number in self._told:  # one whose history was read; all others are written when it is
            self.catch_up()
            found: list[tuple[float, int, Event]] = []
            self._tell(actor, now_s, found)
            self._append(found)

    def last_id(self) -> int:
        """Of the last event there is."""
        self.catch_up()
        return self._last

    @property
    def tells_changes(self) -> bool:
        """Whether each change of a job is an event: a command may change what no event tells, and the oldest may be gone."""
        return not self._stage.commanded and self._last == len(self._events)

    def by_change(self, after: Actor | None) -> Iterator[Actor]:
        """The jobs by their last event, the newest first; those behind this one."""
        self.catch_up()
        last = self._last if after is None else self._newest[after.id] - 1
        for number in range(last, 0, -1):
            event = self._events[number - 1]
            if self._newest[event.job_id] == event.id:
                yield self._stage.actors[event.job_id]

    def next_s(self) -> float | None:
        """When time makes the next move, seconds since the start."""
        return self._due[0][0] if self._due else None

    def catch_up(self) -> None:
        """Write down what happened until now."""
        now_s = self._stage.time.elapsed_s()
        found: list[tuple[float, int, Event]] = []
        while self._due and self._due[0][0] <= now_s:
            at_s, _, actor = heapq.heappop(self._due)
            if self._planned.get(actor.number) == at_s:
                del self._planned[actor.number]
            self._tell(actor, now_s, found)
        self._append(found)

    def read(self, after: int, limit: int, fits: Callable[[Event], bool]) -> tuple[list[Event], int]:
        """The next events that fit, and the id of the last one that was looked at."""
        self.catch_up()
        found, cursor = [], after
        for event in self._events[bisect_right(self._ids, after) :]:
            cursor = event.id
            if fits(event):
                found.append(event)
                if len(found) >= limit:
                    break
        return found, cursor

    def _tell(self, actor: Actor, now_s: float, found: list[tuple[float, int, Event]]) -> None:
        changes = []
        for one in (actor, *actor.subs):
            seen = one.look(now_s)
            self._moves(one, seen, found)
            if not seen.done and seen.change_s is not None:
                changes.append(one.begun_s + seen.change_s)
        if changes:
            self._plan(actor, min(changes))

    def _moves(self, actor: Actor, seen: Look, found: list[tuple[float, int, Event]]) -> None:
        told = self._told.get(actor.number, 0)
        for seq, move in enumerate(seen.moves[told:], start=told + 1):
            type_ = EventType.SUBMITTED if seq == 1 else _TYPES[move.state]
            at_s = actor.begun_s + move.at_s
            event = Event(
                0,
                actor.id,
                actor.root.id,
                ProjectId(actor.root.facts.project or self._stage.whole.project),
                seq,
                type_,
                move.state,
                self._stage.time.shown_us(at_s),
                None,
            )
            found.append((at_s, actor.number, event))
        self._told[actor.number] = len(seen.moves)

    def _append(self, found: list[tuple[float, int, Event]]) -> None:
        for _, _, event in sorted(found, key=lambda one: (one[0], one[2].seq, one[1])):
            self._last += 1
            self._events.append(msgspec.structs.replace(event, id=self._last))
            self._ids.append(self._last)
            self._newest[event.job_id] = self._last
        if len(self._events) > EVENTS_MAX:
            del self._events[: -EVENTS_MAX // 2], self._ids[: -EVENTS_MAX // 2]
