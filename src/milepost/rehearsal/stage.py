"""The jobs of a rehearsal: which there are, who asked for them, what was commanded, and each as a `Job` that a wire can show.

Theory: nothing runs.  A job keeps when it was created, its polls where its script counts them, and its commands; all else is
computed when somebody looks.  So a hundred thousand jobs cost a list, not a loop.

Rules
1. A poll of a job or of one of its sub-jobs is a poll of the whole tree; it is shown what was to be seen before it.
2. Ids are UUIDv7 of the creation and of the order of the jobs: sorted by id is sorted by creation.
3. What a job shows is the cloud's: instants are off by its clock's error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from milepost.errors import Conflict, Expired, InvalidInput, NotFound
from milepost.job import Callback, Failure, Job, JobId, ProjectId, State, WorkerId
from milepost.rehearsal.ledger import Ledger
from milepost.rehearsal.scenario import Entry, Scenario, SubEntry
from milepost.rehearsal.script import Command, Do, Found, Look, Script, gather, look
from milepost.rehearsal.timeline import Timeline
from milepost.wire.huawei.jobs import read_job_id
from milepost.wire.qiniu.ids import read_persistent_id

FAILURE = Failure("rehearsed", "the rehearsal's scenario says so")
RESULT = {"rehearsed": True}
POLLS_KEPT = 100_000  # of one job; what a script counts is far below


class Actor:
    """One job of the rehearsal.  Times are seconds since the start."""

    __slots__ = (
        *("_seen", "_seen_s", "asked", "begun_s", "commands", "duration_s", "entry", "facts", "id"),
        *("index", "name", "number", "parent", "polls", "subs"),
    )

    def __init__(self, number: int, entry: Entry | SubEntry, index: int, *, id: JobId, name: str, begun_s: float) -> None:
        self.number, self.entry, self.index, self.id, self.name, self.begun_s = number, entry, index, id, name, begun_s
        self.duration_s: float | None = None
        self.parent: Actor | None = None
        self.subs: tuple[Actor, ...] = ()
        self.polls: list[float] = []  # ages, only while they matter
        self.commands: list[Command] = []
        self.facts: Facts = NO_FACTS
        self.asked = 0  # polls, all of them
        self._seen: Look | None = None  # what was to be seen at that age; kept as long as only time could change it, and has not
        self._seen_s = 0.0

    @property
    def root(self) -> Actor:
        return self if self.parent is None else self.parent

    def forget(self) -> None:
        """A poll or a command changed what is to be seen of it, and of its sub-jobs."""
        self._seen = None
        for sub in self.subs:
            sub._seen = None

    @property
    def script(self) -> Script:
        if isinstance(self.entry, Entry):
            return self.entry.script(self.index, self.duration_s)
        whole = self.root.entry
        assert isinstance(whole, Entry)
        return Script(  # polls that did not find the whole tree do not move it
            steps=self.entry.steps(self.index, self.duration_s),
            found_after_s=whole.found_after_s,
            found_after_polls=whole.found_after_polls,
        )

    @property
    def counts_polls(self) -> bool:
        """Whether polls change anything in its tree."""
        return self.entry.counts_polls or any(sub.entry.counts_polls for sub in self.subs)

    def look(self, now_s: float) -> Look:
        """What is to be seen of it now."""
        age_s, entry, kept = now_s - self.begun_s, self.entry, self._seen
        if kept is not None and self._seen_s <= age_s and (kept.change_s is None or age_s < kept.change_s):
            return kept
        if not self.subs and not self.commands and not self.root.polls:
            self._seen, self._seen_s = look(self.script, age_s), age_s
            return self._seen
        own = look(self.script, age_s, self.root.polls, self.commands)
        if own.ending is None and isinstance(entry, Entry) and entry.gathers:
            whole = gather([sub.look(now_s) for sub in self.subs], entry.queued_s, age_s)
            return msgspec.structs.replace(whole, found=own.found)
        return own


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a submit said of its job, beyond its script."""

    kind: str | None = None
    input: bytes | None = None
    project: str | None = None
    labels: dict[str, str] | None = None
    origin: dict[str, str] = {}
    callback: Callback | None = None
    retry_of: JobId | None = None
    queue: str = "default"
    priority: int = 5


NO_FACTS = Facts()


class Stage:
    """All jobs, by name, by id, and in the order of their creation."""

    def __init__(self, scenario: Scenario, timeline: Timeline) -> None:
        self.scenario, self.time = scenario, timeline
        self.whole = scenario.rehearsal
        self.actors: dict[JobId, Actor] = {}
        self.names: dict[str, Actor] = {}
        self.roots: list[Actor] = []
        self.keys: dict[str, tuple[str, JobId]] = {}  # idempotency keys of submits: what came with them, and the job
        self.commanded = False  # whether any job ever was
        self.kinds = {entry.kind for entry in scenario.submits if entry.kind != "*"}
        self.ledger = Ledger(self)
        for entry in scenario.jobs:
            self.add(entry, entry.at_s)
        self.roots.sort(key=lambda actor: (actor.begun_s, actor.number))
        self.ledger.catch_up()  # of very many jobs it takes seconds: nobody should wait for that later

    # --- making jobs ----------------------------------------------------------------------------------------------------------

    def add(self, entry: Entry, at_s: float | None = None, *, facts: Facts = NO_FACTS, unique: bool = False) -> list[Actor]:
        """`entry.count` jobs, from now on or from at_s.  Errors: InvalidInput when their name or id is taken."""
        begun_s = self.time.elapsed_s() if at_s is None else at_s
        stem = entry.name or facts.kind or entry.kind
        if unique or not entry.name:
            stem = self._free(stem)
        made = []
        for index, duration_s in enumerate(entry.durations(str(self.whole.seed))):
            name = stem if entry.count == 1 else f"{stem}-{index + 1}"
            made.append(self._make(entry, index, name, begun_s + index * entry.every_s, duration_s, facts))
        return made

    def _free(self, stem: str) -> str:
        if stem not in self.names and f"{stem}-1" not in self.names:
            return stem
        return next(
            name for n in range(2, 1 << 60) if (name := f"{stem}.{n}") not in self.names and f"{name}-1" not in self.names
        )

    def _make(self, entry: Entry, index: int, name: str, begun_s: float, duration_s: float | None, facts: Facts) -> Actor:
        actor = self._cast(entry, index, name, begun_s, duration_s, id=entry.id)
        actor.facts = facts
        self.kinds.add(facts.kind or entry.kind)
        subs: list[Actor] = []
        for sub in entry.sub_jobs:
            for place, drawn_s in enumerate(sub.durations(f"{self.whole.seed}/{name}")):
                own = sub.name or sub.kind
                own = f"{name}/{own}" if sub.count == 1 else f"{name}/{own}-{place + 1}"
                subs.append(self._cast(sub, place, own, begun_s, drawn_s, id=None))
        for one in subs:
            one.parent = actor
        actor.subs = tuple(subs)
        self.roots.append(actor)
        self.ledger.expect(actor)
        return actor

    def _cast(
        self, entry: Entry | SubEntry, index: int, name: str, begun_s: float, duration_s: float | None, *, id: str | None
    ) -> Actor:
        number = len(self.actors)
        job_id = JobId(id) if id is not None else self._new_id(number, name, begun_s)
        if name in self.names or job_id in self.actors:
            raise InvalidInput(f"there are two jobs {name!r}; each needs a name and an id of its own", path="$.jobs")
        actor = Actor(number, entry, index, id=job_id, name=name, begun_s=begun_s)
        actor.duration_s = duration_s
        self.actors[job_id] = self.names[name] = actor
        return actor

    def _new_id(self, number: int, name: str, begun_s: float) -> JobId:
        """Rule 2: 48 bits of ms, then the number, then what seed and name come to."""
        at_ms = max(0, self.time.start_us + round(begun_s * 1e6)) // 1000
        salt = int.from_bytes(hashlib.sha256(f"{self.whole.seed}/{name}".encode()).digest()[:6], "big") & ((1 << 42) - 1)
        low = (number & 0xFFFFF) << 42 | salt
        text = f"{at_ms & ((1 << 48) - 1):012x}7{number >> 20 & 0xFFF:03x}{2 << 62 | low:016x}"
        return JobId(f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")

    # --- asking for them ------------------------------------------------------------------------------------------------------

    def find(self, text: str) -> Actor | None:
        """The job of this id, in whatever form a wire has it, or of this name."""
        found = self.actors.get(JobId(text)) or self.names.get(text)
        if found is None:
            id = read_job_id(text) or read_persistent_id(text)
            found = None if id is None else self.actors.get(id)
        return found

    def poll(self, text: str) -> tuple[Actor, Job, tuple[Job, ...]]:
        """The job as this poll sees it, with its sub-jobs; counted.

        Errors: NotFound when it is not to be found, Expired when it vanished so.  Such a poll counts, too.
        """
        actor = self.find(text)
        now_s = self.time.elapsed_s()
        if actor is None or actor.root.begun_s > now_s:
            raise NotFound(f"no job {text[:80]}", job_id=text[:80])
        found = actor.root.look(now_s) if actor.parent is not None else None
        seen = actor.look(now_s)
        job, subs = self.job(actor, now_s, seen), self.subs(actor, now_s)
        self.count(actor, now_s)
        whether = (found or seen).found
        if whether is Found.HERE:
            return actor, job, subs
        entry = actor.root.entry
        if whether is Found.GONE and isinstance(entry, Entry) and entry.vanish_as == "expired":
            raise Expired(f"job {actor.id} has expired", job_id=actor.id, state=str(seen.state))
        raise NotFound(f"no job {actor.id}", job_id=actor.id)

    def count(self, actor: Actor, now_s: float) -> None:
        """One more poll of its tree."""
        root = actor.root
        actor.asked += 1
        if root.counts_polls and len(root.polls) < POLLS_KEPT:
            root.polls.append(now_s - root.begun_s)
            root.forget()
            self.ledger.touch(root)

    def visible(self, *, newest_first: bool = True, after: str | None = None) -> Iterator[Actor]:
        """The jobs that a list shows, without sub-jobs; those behind the one with this id."""
        now_s, marker = self.time.elapsed_s(), None if after is None else self.actors.get(JobId(after))
        if after is not None and marker is None:
            return
        place = None if marker is None else self.roots.index(marker.root)
        shown = self.roots[:place] if newest_first else self.roots[0 if place is None else place + 1 :]
        for actor in reversed(shown) if newest_first else shown:
            if actor.begun_s <= now_s and actor.look(now_s).found is Found.HERE:
                yield actor

    def show(self, actors: Iterable[Actor], *, bodies: bool = True, counted: bool = True) -> list[Job]:
        """These as jobs; each is a poll of it."""
        now_s, found = self.time.elapsed_s(), []
        for actor in actors:
            job = self.job(actor, now_s, actor.look(now_s))
            found.append(job if bodies else msgspec.structs.replace(job, input=None, result=None))
            if counted:
                self.count(actor, now_s)
        return found

    def subs(self, actor: Actor, now_s: float) -> tuple[Job, ...]:
        return tuple(self.job(sub, now_s, sub.look(now_s)) for sub in actor.subs)

    def changed(self, after: str | None = None) -> Iterator[Actor] | None:
        """What a list shows, those that changed last first; None when the history does not tell it."""
        if not self.ledger.tells_changes:
            return None
        now_s = self.time.elapsed_s()
        return (
            actor
            for actor in self.ledger.by_change(None if after is None else self.find(after))
            if actor.parent is None and actor.look(now_s).found is Found.HERE
        )

    # --- commanding them ------------------------------------------------------------------------------------------------------

    def command(self, actor: Actor, do: Do, **options: Any) -> Job:
        """Errors: Conflict when a job that ended is asked to do something else than vanish or appear."""
        now_s = self.time.elapsed_s()
        if actor.look(now_s).done and do not in (Do.VANISH, Do.APPEAR):
            raise Conflict(f"job {actor.name} has ended; it can only vanish or appear", job_id=actor.id)
        polls = len(actor.root.polls)
        actor.commands.append(Command(do=do, at_s=now_s - actor.begun_s, polls=polls, **options))
        actor.forget()
        self.commanded = True
        self.ledger.touch(actor.root)
        self.time.ring()
        return self.job(actor, now_s, actor.look(now_s))

    def named(self, pattern: str) -> list[Actor]:
        """The jobs with such a name, as in a shell, or with this id.  Errors: NotFound."""
        one = self.find(pattern)
        found = [one] if one is not None else [a for name, a in self.names.items() if fnmatchcase(name, pattern)]
        if not found:
            raise NotFound(f"the rehearsal has no job {pattern[:80]}")
        return found

    # --- a job as a value -----------------------------------------------------------------------------------------------------

    def job(self, actor: Actor, now_s: float, seen: Look) -> Job:
        """The record that a real server would have of it."""
        entry, facts, parent, state = actor.entry, actor.facts, actor.parent, seen.state

        def at(age_s: float) -> int:
            return self.time.shown_us(actor.begun_s + age_s)

        changed = seen.moves[-1].at_s if not actor.commands else max(seen.moves[-1].at_s, actor.commands[-1].at_s)
        started_s, ended_s = seen.started_s, seen.ended_s
        version = len(seen.moves) + len(actor.commands)
        if actor.subs:
            version += sum(len(sub.look(now_s).moves) + len(sub.commands) for sub in actor.subs)
        return Job(
            id=actor.id,
            kind=facts.kind or entry.kind,
            state=state,
            project=ProjectId(self._project(actor)),
            queue=facts.queue,
            priority=facts.priority,
            labels=entry.labels if facts.labels is None else facts.labels,
            input=msgspec.json.encode(entry.input) if facts.input is None else facts.input,
            result=_result(actor, seen) if state is State.SUCCEEDED else None,
            error=_error(actor, seen) if state in (State.FAILED, State.CANCELLED) else None,
            progress=seen.progress,
            attempt=0 if started_s is None else 1,
            attempts_max=1,
            crashes=0,
            timeout_s=None,
            deadline_us=None,
            parent_id=None if parent is None else parent.id,
            root_id=actor.root.id,
            position=0 if parent is None else parent.subs.index(actor),
            sub_total=len(actor.subs),
            retry_of=facts.retry_of,
            cancel_requested=False,
            callback=facts.callback,
            origin=facts.origin,
            created_us=at(0.0),
            run_at_us=at(0.0),
            started_us=None if started_s is None else at(started_s),
            ended_us=None if ended_s is None else at(ended_s),
            updated_us=at(changed),
            expires_us=None,
            version=version,
            fence=0,
            lease_by=WorkerId("rehearsal") if state is State.RUNNING else None,
        )

    def _project(self, actor: Actor) -> str:
        return actor.root.facts.project or self.whole.project


def sub_states(subs: Sequence[Job]) -> dict[State, int]:
    """How many sub-jobs are in which state."""
    counts: dict[State, int] = {}
    for sub in subs:
        counts[sub.state] = counts.get(sub.state, 0) + 1
    return counts


def _result(actor: Actor, seen: Look) -> bytes:
    if seen.ending is not None and seen.ending.result is not None:
        return msgspec.json.encode(seen.ending.result)
    given = actor.entry.result
    return msgspec.json.encode(RESULT if given is None else given)


def _error(actor: Actor, seen: Look) -> Failure:
    if seen.ending is not None and seen.ending.failure is not None:
        return seen.ending.failure
    if actor.entry.error is not None:
        return actor.entry.error
    if seen.ending is None and actor.subs and isinstance(actor.entry, Entry) and not actor.entry.scripted:
        return Failure("sub_jobs_failed", "sub-jobs failed")
    return Failure("cancelled", "it was cancelled") if seen.state is State.CANCELLED else FAILURE
