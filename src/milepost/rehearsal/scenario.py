"""A scenario: the TOML file of a rehearsal as typed values, with errors that name the file, the table and the field.

Rules
1. What is not known is refused, so that a misspelt field cannot silently do nothing.
2. The same file and seed give the same jobs with the same durations and, with `start`, the same ids.
3. A job without a script (no `states`, `duration_s`, `polls` or sub-jobs) runs until a command ends it.
"""

from __future__ import annotations

import difflib
import random
import re
import tomllib
from collections.abc import Iterator
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from milepost.errors import InvalidInput
from milepost.job import FINAL, Failure, State
from milepost.rehearsal.script import Script, Step
from milepost.wire import from_rfc3339

WIRES = ("native", "glance", "huawei", "qiniu")
JOBS_MAX = 1_000_000
REQUESTS_KEPT = 100_000

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class Spread(_Table, frozen=True, kw_only=True):
    """Durations drawn at random: `fixed` (median_s), `uniform` (min_s to max_s), `exponential` or `lognormal` (median_s)."""

    distribution: Literal["fixed", "uniform", "exponential", "lognormal"]
    median_s: Seconds | None = None
    sigma: Seconds = 1.0  # of the logarithm
    min_s: Seconds = 0.0
    max_s: Seconds | None = None

    def draw(self, dice: random.Random) -> float:
        """One duration, within min_s and max_s."""
        if self.distribution == "uniform":
            assert self.max_s is not None
            return dice.uniform(self.min_s, self.max_s)
        assert self.median_s is not None
        if self.distribution == "exponential":
            found = dice.expovariate(0.6931471805599453 / self.median_s) if self.median_s else 0.0
        elif self.distribution == "lognormal":
            found = self.median_s * dice.lognormvariate(0.0, self.sigma)
        else:
            found = self.median_s
        return max(self.min_s, found if self.max_s is None else min(found, self.max_s))


Durations = Seconds | list[Seconds] | Spread


class _Part(_Table, frozen=True, kw_only=True):
    """What jobs and sub-jobs have in common."""

    name: str = ""
    kind: str = "echo"
    count: Positive = 1
    input: dict[str, Any] = {}
    result: Any = None
    error: Failure | None = None
    labels: dict[str, str] = {}
    states: list[Step] = []
    duration_s: Durations | None = None  # from the creation to the end
    queued_s: Seconds = 0.0  # of it, waiting to run
    polls: Positive | None = None  # instead of a duration: ends after so many polls saw it run
    ends: Literal["succeeded", "failed", "cancelled", "never"] = "succeeded"
    fails: Count = 0  # of `count`, so many fail: the last ones

    @property
    def scripted(self) -> bool:
        return bool(self.states) or self.duration_s is not None or self.polls is not None or self.ends == "never"

    @property
    def counts_polls(self) -> bool:
        """Whether polls change what it shows."""
        return self.polls is not None or any(step.polls is not None for step in self.states)

    def steps(self, index: int, duration_s: float | None) -> tuple[Step, ...]:
        """The steps of the index-th of them (from 0), with the duration that was drawn for it."""
        if self.states:
            return tuple(self.states)
        first = [Step(state=State.READY, for_s=self.queued_s)] if self.queued_s else []
        if self.ends == "never" or (duration_s is None and self.polls is None):
            return (*first, Step(state=State.RUNNING))
        ends = State.FAILED if index >= self.count - self.fails else State(self.ends)
        for_s = None if duration_s is None else max(0.0, duration_s - self.queued_s)
        return (*first, Step(state=State.RUNNING, for_s=for_s, polls=self.polls), Step(state=ends))

    def durations(self, seed: str) -> Iterator[float | None]:
        """One for each of `count`, always the same ones."""
        given, dice = self.duration_s, random.Random(f"{seed}/{self.name}")
        for index in range(self.count):
            if isinstance(given, Spread):
                yield given.draw(dice)
            else:
                yield given[index % len(given)] if isinstance(given, list) else given


class SubEntry(_Part, frozen=True, kw_only=True):
    """`[[jobs.sub_jobs]]`: sub-jobs, `count` of them."""


class Entry(_Part, frozen=True, kw_only=True):
    """`[[jobs]]`: a job, or `count` jobs of the same kind; `[[submits]]`: what becomes of an accepted submit."""

    id: str | None = None
    at_s: float = 0.0  # when it is created, from the start; below 0 it is there already
    every_s: Seconds = 0.0  # between the creations of `count` jobs
    sub_jobs: list[SubEntry] = []
    found_after_s: Seconds = 0.0  # unknown for so long after its creation
    found_after_polls: Count = 0
    vanish_after_s: Seconds | None = None
    vanish_after_polls: Count | None = None
    vanish_as: Literal["unknown", "expired"] = "unknown"  # expired: 410 where the wire has it

    def script(self, index: int, duration_s: float | None) -> Script:
        return Script(
            steps=self.steps(index, duration_s),
            found_after_s=self.found_after_s,
            found_after_polls=self.found_after_polls,
            vanish_after_s=self.vanish_after_s,
            vanish_after_polls=self.vanish_after_polls,
        )

    @property
    def counts_polls(self) -> bool:
        return super().counts_polls or bool(self.found_after_polls) or self.vanish_after_polls is not None

    @property
    def gathers(self) -> bool:
        """Whether it shows what its sub-jobs come to."""
        return bool(self.sub_jobs) and not self.scripted


class Break(StrEnum):
    """What a fault does to a request."""

    ANSWER = "answer"  # an error instead of the answer; the job does not see the request
    RESET = "reset"  # the connection is cut before any answer; the job does not see the request
    LOSE = "lose"  # the request does its work, and the connection is cut before the answer
    TRUNCATE = "truncate"  # the answer ends in its middle, the connection is cut
    GARBAGE = "garbage"  # 200 with something that is none of the API's answers
    DELAY = "delay"  # the answer comes so much later
    SLOW = "slow"  # its body comes in pieces over so long


class Fault(_Table, frozen=True, kw_only=True):
    """`[[faults]]`: what goes wrong, for which requests, when and how often.  The first that fits a request is used."""

    do: Break = Break.ANSWER
    wire: str | None = None
    action: str | None = None  # probe, list, submit, act, events, login
    method: str | None = None
    path: str = "*"  # as in a shell: * and ?
    job: str | None = None  # a job's name, as in a shell
    after: Count = 0  # so many requests that fit go through first
    every: Positive = 1  # then each so-manieth
    times: Positive | None = None  # so often; else for ever
    chance: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0  # by the seed
    from_s: float | None = None  # from the start of the rehearsal
    until_s: float | None = None
    status: Annotated[int, msgspec.Meta(ge=400, le=799)] = 503
    retry_after_s: Seconds | None = None
    retry_after_date: bool = False  # as a date instead of seconds
    message: str = "the rehearsal's scenario says so"
    body: str | None = None  # instead of the wire's own error body
    delay_s: Seconds = 1.0  # of delay and slow, in real time
    bytes: Count = 20  # of truncate: so many are sent

    def fits(self, *, wire: str, action: str, method: str, path: str, at_s: float) -> bool:
        """Whether this request is one of those, but for its job."""
        return (
            self.wire in (None, wire)
            and self.action in (None, action)
            and self.method in (None, method)
            and (self.from_s is None or at_s >= self.from_s)
            and (self.until_s is None or at_s < self.until_s)
            and fnmatchcase(path, self.path)
        )


class Rehearsal(_Table, frozen=True, kw_only=True):
    """`[rehearsal]`: what holds for all of it."""

    wires: list[str] = msgspec.field(default_factory=lambda: list(WIRES))
    virtual: bool = False  # time stands still until it is advanced
    start: str | None = None  # RFC 3339: what the clock shows at the start
    seed: int = 1
    project: str = "default"
    region: str = "z0"
    clock_skew_s: float = 0.0  # the cloud's clock is so far ahead of the true one
    requests_kept: Positive = REQUESTS_KEPT


class Scenario(_Table, frozen=True, kw_only=True):
    """The whole file."""

    rehearsal: Rehearsal = Rehearsal()
    jobs: list[Entry] = []
    submits: list[Entry] = []
    faults: list[Fault] = []

    @property
    def start_us(self) -> int | None:
        return from_rfc3339(self.rehearsal.start)

    def submit_entry(self, kind: str) -> Entry:
        """What becomes of a submit of this kind."""
        return next((one for one in self.submits if one.kind == kind), None) or next(
            (one for one in self.submits if one.kind == "*"), Entry(kind=kind, duration_s=5.0)
        )


def read_scenario(path: Path | str) -> Scenario:
    """The scenario of a file.  Errors: InvalidInput."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the scenario {path} cannot be read: {error}", path="SCENARIO") from None
    return parse_scenario(text, str(path))


def parse_scenario(text: str, name: str = "scenario") -> Scenario:
    """The scenario of TOML text; `name` stands for the file in errors.  Errors: InvalidInput."""
    try:
        return make_scenario(tomllib.loads(text), name)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{name}: no TOML: {error}", path=name) from None


def make_scenario(tables: dict[str, Any], name: str = "scenario") -> Scenario:
    """The scenario of tables as TOML has them.  Errors: InvalidInput."""
    try:
        scenario = msgspec.convert(tables, Scenario)
    except msgspec.ValidationError as error:
        raise _refused(str(error), tables, name) from None
    for where, problem in _problems(scenario):
        raise InvalidInput(f"{name}: {_place(where, tables)}: {problem}", path=where)
    return scenario


def make_entry(table: dict[str, Any]) -> Entry:
    """A job that is added while the rehearsal runs.  Errors: InvalidInput."""
    return make_scenario({"jobs": [table]}, "the job").jobs[0]


def make_fault(table: dict[str, Any]) -> Fault:
    """A fault that is added while the rehearsal runs.  Errors: InvalidInput."""
    return make_scenario({"faults": [table]}, "the fault").faults[0]


# --- errors ----------------------------------------------------------------------------------------------------------------

_PLACE = re.compile(r"\$\.(\w+)(?:\[(\d+|\.\.\.)\])?(?:\.(.*))?")


def _refused(text: str, tables: dict[str, Any], name: str) -> InvalidInput:
    problem, _, where = text.partition(" - at `")
    where = where.removesuffix("`") or "$"
    hint = None
    unknown = re.search(r"unknown field `(.+)`", problem)
    if unknown:
        near = difflib.get_close_matches(unknown[1], _fields_at(where), n=1)
        hint = f"is it {near[0]}?" if near else f"there are {', '.join(_fields_at(where))}"
        problem = f"the field {unknown[1]!r} is not known"
    return InvalidInput(f"{name}: {_place(where, tables)}: {problem}", path=where, hint=hint)


def _place(where: str, tables: dict[str, Any]) -> str:
    """`[[jobs]] 2 "import", field duration_s`."""
    found = _PLACE.match(where)
    if found is None:
        return "the top level"
    table, index, field = found.groups()
    text = f"[{table}]" if index is None else f"[[{table}]] {int(index) + 1}"
    entry = tables.get(table)
    named = entry[int(index)] if index is not None and isinstance(entry, list) else None
    if isinstance(named, dict) and isinstance(named.get("name"), str):
        text += f' "{named["name"]}"'
    return text if not field else f"{text}, field {field}"


def _fields_at(where: str) -> list[str]:
    kinds: dict[str, type[msgspec.Struct]] = {"rehearsal": Rehearsal, "jobs": Entry, "submits": Entry, "faults": Fault}
    found = _PLACE.match(where)
    kind: type[msgspec.Struct] = Scenario if found is None else kinds[found[1]]
    for word, inner in (("sub_jobs", SubEntry), ("states", Step), ("error", Failure), ("duration_s", Spread)):
        if found is not None and re.search(rf"\b{word}\b", found[3] or ""):
            kind = inner
    return list(kind.__struct_encode_fields__)


def _problems(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """What the types cannot say."""
    whole = scenario.rehearsal
    for index, wire in enumerate(whole.wires):
        if wire not in WIRES:
            yield f"$.rehearsal.wires[{index}]", f"there is no wire {wire!r}; there are {', '.join(WIRES)}"
    try:
        from_rfc3339(whole.start)
    except ValueError:
        yield "$.rehearsal.start", f"{whole.start!r} is no instant like 2026-03-04T05:06:07Z"
    for table, entries in (("jobs", scenario.jobs), ("submits", scenario.submits)):
        for index, entry in enumerate(entries):
            yield from _entry_problems(f"$.{table}[{index}]", entry)
            for number, sub in enumerate(entry.sub_jobs):
                yield from _part_problems(f"$.{table}[{index}].sub_jobs[{number}]", sub)
    if sum(entry.count for entry in scenario.jobs) > JOBS_MAX:
        yield "$.jobs", f"there are more than {JOBS_MAX} jobs"
    for index, fault in enumerate(scenario.faults):
        if fault.wire not in (None, "keystone", *WIRES):
            yield f"$.faults[{index}].wire", f"there is no wire {fault.wire!r}; there are {', '.join(WIRES)}"


_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch


def _entry_problems(where: str, entry: Entry) -> Iterator[tuple[str, str]]:
    yield from _part_problems(where, entry)
    if entry.id is not None and not _ID(entry.id):
        yield f"{where}.id", f"{entry.id!r} is no UUID in lower case, with dashes"
    if entry.id is not None and entry.count > 1:
        yield f"{where}.id", f"{entry.count} jobs cannot have one id"
    if len({sub.name for sub in entry.sub_jobs if sub.name}) < sum(1 for sub in entry.sub_jobs if sub.name):
        yield f"{where}.sub_jobs", "two sub-jobs have the same name"


def _part_problems(where: str, part: _Part) -> Iterator[tuple[str, str]]:
    given = part.duration_s
    if part.states and (given is not None or part.polls is not None):
        yield f"{where}.states", "states say all; duration_s and polls are for jobs without them"
    if part.states and part.fails:
        yield f"{where}.fails", "states say how a job ends; leave out one of the two"
    for index, step in enumerate(part.states):
        if step.state in FINAL and index + 1 < len(part.states):
            yield f"{where}.states[{index}].state", f"{step.state} is final: nothing comes after it"
        if (step.for_s is not None and step.for_s < 0) or (step.polls is not None and step.polls < 1):
            yield f"{where}.states[{index}]", "for_s is at least 0, polls at least 1"
    if part.fails > part.count:
        yield f"{where}.fails", f"of {part.count} not {part.fails} can fail"
    if isinstance(given, list) and not given:
        yield f"{where}.duration_s", "the list is empty"
    if isinstance(given, Spread):
        needed = "max_s" if given.distribution == "uniform" else "median_s"
        if getattr(given, needed) is None:
            yield f"{where}.duration_s", f"a {given.distribution} distribution needs {needed}"
