"""What a scripted job shows: a pure function of its age, of the polls that asked for it, and of the commands given to it.

Rules
1. A script is a row of steps.  A step ends when its time is over (`for_s`), when so many polls saw it (`polls`), whichever comes
   first, or by a command; one with neither, and the last one, stay.  A poll sees the step it ends: `polls = 2` is seen by two.
2. Time and polls count from the moment the step began.  Only polls that found the job count for its steps.
3. A job may be found late (`found_after_*`: unknown at first, though it runs) and may vanish (`vanish_after_*`: unknown again).
4. A final step ends the script; commands after it change only whether the job is found.
5. The same arguments give the same answer: what was shown at an age can be asked again later.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from milepost.job import FINAL, Failure, Progress, State


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """One state and how long it is shown, with the progress that is shown meanwhile."""

    state: State
    for_s: float | None = None
    polls: int | None = None
    done: int | None = None
    total: int | None = None
    unit: str = ""
    note: str = ""

    @property
    def progress(self) -> Progress:
        return Progress(self.done or 0, self.total, self.unit, self.note)


class Script(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Everything that decides what a job shows."""

    steps: tuple[Step, ...]
    found_after_s: float = 0.0
    found_after_polls: int = 0
    vanish_after_s: float | None = None
    vanish_after_polls: int | None = None

    @property
    def counts_polls(self) -> bool:
        """Whether polls change what it shows."""
        return bool(self.found_after_polls) or self.vanish_after_polls is not None or any(s.polls is not None for s in self.steps)


class Do(StrEnum):
    """What a command may ask of a job."""

    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"
    NEXT = "next"  # on to the next step
    HOLD = "hold"  # stuck: the step does not end by itself any more
    GO = "go"  # no longer stuck: its step begins anew
    VANISH = "vanish"
    APPEAR = "appear"
    PROGRESS = "progress"


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One thing asked of a job, at an age and after so many polls of it."""

    do: Do
    at_s: float
    polls: int = 0
    result: Any = None
    failure: Failure | None = None
    progress: Progress | None = None


class Found(StrEnum):
    """Whether a poll finds the job."""

    HERE = "here"
    NOT_YET = "not yet"
    GONE = "gone"


class Move(NamedTuple):
    """A state and the age at which it began."""

    state: State
    at_s: float


class Look(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is to be seen.  `change_s`: the age at which time alone changes it next; None: not at all."""

    found: Found
    step: int
    moves: tuple[Move, ...]
    progress: Progress
    ending: Command | None = None  # the command that ended it
    held: bool = False
    change_s: float | None = None

    @property
    def state(self) -> State:
        return self.moves[-1].state

    @property
    def done(self) -> bool:
        return self.state in FINAL

    @property
    def started_s(self) -> float | None:
        """When it first ran; None before, and where it ended without."""
        return next((move.at_s for move in self.moves if move.state in (State.RUNNING, State.WAITING)), None)

    @property
    def ended_s(self) -> float | None:
        return self.moves[-1].at_s if self.done else None


class _Exit(NamedTuple):
    at_s: float
    polls: int  # polls used up when the step ended
    by_polls: bool


_ENDS = {Do.FINISH: State.SUCCEEDED, Do.FAIL: State.FAILED, Do.CANCEL: State.CANCELLED}


class _Walk:
    """The script from its begin to an age."""

    def __init__(self, script: Script, polls: Sequence[float]) -> None:
        self.script, self.polls = script, polls
        self.index, self.begun_s = 0, 0.0
        self.used = max(script.found_after_polls, bisect_left(polls, script.found_after_s) if script.found_after_s > 0 else 0)
        self.moves = [Move(script.steps[0].state, 0.0)]
        self.progress = script.steps[0].progress
        self.ending: Command | None = None
        self.held = False
        self.visible: bool | None = None  # as a command said last

    @property
    def ended(self) -> bool:
        return self.moves[-1].state in FINAL

    def exit(self) -> _Exit | None:
        """When the step ends by itself, as far as is known now."""
        if self.held or self.ended or self.index + 1 >= len(self.script.steps):
            return None
        step, found = self.script.steps[self.index], None
        if step.polls is not None and len(self.polls) >= self.used + step.polls:
            last = self.used + step.polls
            found = _Exit(self.polls[last - 1] if step.polls else self.begun_s, last, by_polls=True)
        if step.for_s is not None and (found is None or self.begun_s + step.for_s <= found.at_s):
            at_s = self.begun_s + step.for_s
            found = _Exit(at_s, max(self.used, bisect_left(self.polls, at_s)), by_polls=False)
        return found

    def leave(self, at_s: float, used: int) -> None:
        self.index, self.begun_s, self.used = self.index + 1, at_s, used
        step = self.script.steps[self.index]
        self.move(step.state, at_s)
        self.progress = step.progress

    def move(self, state: State, at_s: float) -> None:
        if state is not self.moves[-1].state:
            self.moves.append(Move(state, at_s))

    def obey(self, command: Command) -> None:
        if command.do in (Do.VANISH, Do.APPEAR):
            self.visible = command.do is Do.APPEAR
        elif self.ended:
            return
        elif command.do in _ENDS:
            self.ending = command
            self.move(_ENDS[command.do], command.at_s)
        elif command.do is Do.PROGRESS:
            self.progress = command.progress or self.progress
        elif command.do is Do.NEXT:
            if self.index + 1 < len(self.script.steps):
                self.leave(command.at_s, max(self.used, command.polls))
        elif command.do is Do.HOLD:
            self.held = True
        elif command.do is Do.GO and self.held:
            self.held, self.begun_s, self.used = False, command.at_s, max(self.used, command.polls)

    def found(self, age_s: float) -> Found:
        """Rule 3; a command has the last word."""
        script = self.script
        if self.visible is not None:
            return Found.HERE if self.visible else Found.GONE
        if age_s < script.found_after_s or len(self.polls) < script.found_after_polls:
            return Found.NOT_YET
        late = max(script.found_after_polls, bisect_left(self.polls, script.found_after_s) if script.found_after_s > 0 else 0)
        if script.vanish_after_s is not None and age_s >= script.vanish_after_s:
            return Found.GONE
        if script.vanish_after_polls is not None and len(self.polls) - late >= script.vanish_after_polls:
            return Found.GONE
        return Found.HERE


def look(script: Script, age_s: float, polls: Sequence[float] = (), commands: Sequence[Command] = ()) -> Look:
    """What the job shows at this age to the next poll.

    Shape: `polls` are the ages of the polls before, oldest first; `commands` in the order in which they were given.
    """
    walk = _Walk(script, polls)
    waiting = [command for command in commands if command.at_s <= age_s]
    while True:
        exit = walk.exit()
        if exit is not None and exit.at_s > age_s:
            exit = None
        if waiting and (exit is None or _comes_first(waiting[0], exit)):
            walk.obey(waiting.pop(0))
        elif exit is not None:
            walk.leave(exit.at_s, exit.polls)
        else:
            break
    return Look(
        found=walk.found(age_s),
        step=walk.index,
        moves=tuple(walk.moves),
        progress=walk.progress,
        ending=walk.ending,
        held=walk.held,
        change_s=_next_change(walk, age_s),
    )


def _comes_first(command: Command, exit: _Exit) -> bool:
    return command.at_s < exit.at_s or (command.at_s == exit.at_s and exit.by_polls and command.polls < exit.polls)


def _next_change(walk: _Walk, age_s: float) -> float | None:
    script, found = walk.script, [walk.script.found_after_s]
    if not walk.held and not walk.ended and walk.index + 1 < len(script.steps):
        for_s = script.steps[walk.index].for_s
        if for_s is not None:
            found.append(walk.begun_s + for_s)
    if script.vanish_after_s is not None:
        found.append(script.vanish_after_s)
    return min((at_s for at_s in found if at_s > age_s), default=None)


def gather(subs: Sequence[Look], queued_s: float, age_s: float) -> Look:
    """What a parent shows that has no steps of its own: it waits for its sub-jobs, and ends as they end.

    Rules: it succeeds when all of them did, is cancelled when all of them were, and has failed otherwise.
    """
    moves = [Move(State.READY, 0.0)]
    if age_s >= queued_s:
        moves.append(Move(State.WAITING, queued_s))
    if age_s >= queued_s and all(sub.done for sub in subs):
        states = {sub.state for sub in subs}
        end = states.pop() if len(states) == 1 else State.FAILED
        moves.append(Move(end, max([queued_s, *(sub.ended_s or 0.0 for sub in subs)])))
    changes = [queued_s, *(sub.change_s for sub in subs if sub.change_s is not None)]
    ended = sum(sub.done for sub in subs)
    return Look(
        found=Found.HERE,
        step=len(moves) - 1,
        moves=tuple(moves),
        progress=Progress(ended, len(subs), "sub-jobs"),
        change_s=min((at_s for at_s in changes if at_s > age_s), default=None),
    )
