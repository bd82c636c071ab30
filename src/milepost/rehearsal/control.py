"""The other side of a rehearsal, for whoever directs it: time, commands, new jobs and faults, and the record.

These requests are not in the record, and no fault breaks them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from milepost.errors import Conflict, InvalidInput
from milepost.job import Failure, Progress
from milepost.rehearsal.faults import Faults
from milepost.rehearsal.http import Answer, Ask, Route, route
from milepost.rehearsal.record import Asked, Record
from milepost.rehearsal.scenario import make_entry, make_fault
from milepost.rehearsal.script import Do
from milepost.rehearsal.stage import Actor, Stage
from milepost.wire import native as wire
from milepost.wire import rfc3339

PAGE = 1000
_FIELDS = ("wire", "action", "method", "client", "job", "job_id", "status", "fault")


class Order(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What `POST /rehearsal/jobs/{name}` takes."""

    do: Do
    result: Any = None
    error: Failure | None = None
    progress: Progress | None = None


class Step(msgspec.Struct, forbid_unknown_fields=True):
    """What `POST /rehearsal/advance` takes."""

    seconds: float


class Control:
    """The handlers that share a rehearsal's record and faults."""

    def __init__(self, stage: Stage, faults: Faults, record: Record) -> None:
        self.stage, self.faults, self.record = stage, faults, record

    def routes(self) -> list[Route]:
        own = (
            ("GET", "/rehearsal", self.show),
            ("POST", "/rehearsal/advance", self.advance),
            ("GET", "/rehearsal/requests", self.requests),
            ("DELETE", "/rehearsal/requests", self.forget),
            ("GET", "/rehearsal/jobs", self.list_jobs),
            ("POST", "/rehearsal/jobs", self.add_job),
            ("GET", "/rehearsal/jobs/{name:path}", self.show_job),
            ("POST", "/rehearsal/jobs/{name:path}", self.order),
            ("POST", "/rehearsal/faults", self.add_fault),
            ("DELETE", "/rehearsal/faults", self.clear_faults),
        )
        return [route("rehearsal", method, path, "control", handler) for method, path, handler in own]

    async def show(self, stage: Stage, _: Ask) -> Answer:
        """The time, the jobs by state, and what was asked in numbers."""
        now_s = stage.time.elapsed_s()
        states: dict[str, int] = {}
        for actor in stage.roots:
            word = str(actor.look(now_s).state) if actor.begun_s <= now_s else "to come"
            states[word] = states.get(word, 0) + 1
        return _json({**self._time(), "jobs": states, "requests": self.record.summary(), "faults": self.faults.show()})

    def _time(self) -> dict[str, Any]:
        time = self.stage.time
        return {"elapsed_s": round(time.elapsed_s(), 6), "now": rfc3339(time.now_us()), "virtual": time.virtual}

    async def advance(self, stage: Stage, ask: Ask) -> Answer:
        """Time is so many seconds later; in real time, too."""
        step = _read(ask, Step)
        if step.seconds < 0:
            raise InvalidInput("time does not go back", path="$.seconds")
        stage.time.advance(step.seconds)
        return _json(self._time())

    async def requests(self, _: Stage, ask: Ask) -> Answer:
        """What was asked, oldest first, by any of its fields; 1,000 at once, then `after` the last number."""
        filters: dict[str, Any] = {name: value for name in _FIELDS if (value := ask.one(name)) is not None}
        try:
            if "status" in filters:
                filters["status"] = int(filters["status"])
            after, limit = int(ask.one("after") or 0), min(int(ask.one("limit") or PAGE), PAGE)
        except ValueError:
            raise InvalidInput("status, after and limit are numbers", path="query") from None
        found: list[Asked] = list(self.record.select(after=after, limit=limit, **filters))
        return _json({"total": self.record.total, "dropped": self.record.dropped, "requests": found})

    async def forget(self, _: Stage, __: Ask) -> Answer:
        self.record.clear()
        return Answer(status=204)

    async def list_jobs(self, stage: Stage, ask: Ask) -> Answer:
        pattern, now_s = ask.one("name"), stage.time.elapsed_s()
        found = stage.named(pattern) if pattern else stage.roots
        return _json({"jobs": [_shown(actor, now_s) for actor in found[:PAGE]], "total": len(found)})

    async def show_job(self, stage: Stage, ask: Ask) -> Answer:
        now_s = stage.time.elapsed_s()
        (actor, *_) = stage.named(ask.params["name"])
        return _json(_shown(actor, now_s))

    async def add_job(self, stage: Stage, ask: Ask) -> Answer:
        """A job as the scenario's `[[jobs]]` has it, created now; `at_s` is from now."""
        table = _read(ask, dict[str, Any])
        entry = make_entry(table)
        made = stage.add(entry, stage.time.elapsed_s() + entry.at_s)
        stage.time.ring()
        now_s = stage.time.elapsed_s()
        return _json({"jobs": [_shown(actor, now_s) for actor in made[:PAGE]], "total": len(made)}, 201)

    async def order(self, stage: Stage, ask: Ask) -> Answer:
        """Do this to the job, or to all whose names match."""
        order, actors = _read(ask, Order), stage.named(ask.params["name"])
        obeyed: list[Actor] = []
        for actor in actors:
            try:
                stage.command(actor, order.do, result=order.result, failure=order.error, progress=order.progress)
            except Conflict:
                if len(actors) == 1:
                    raise
                continue
            obeyed.append(actor)
        now_s = stage.time.elapsed_s()
        if len(actors) == 1:
            return _json(_shown(actors[0], now_s))
        return _json({"jobs": [_shown(actor, now_s) for actor in obeyed[:PAGE]], "total": len(obeyed)})

    async def add_fault(self, _: Stage, ask: Ask) -> Answer:
        """A fault as the scenario's `[[faults]]` has it, behind those that are there."""
        self.faults.add(make_fault(_read(ask, dict[str, Any])))
        return _json({"faults": self.faults.show()}, 201)

    async def clear_faults(self, _: Stage, __: Ask) -> Answer:
        self.faults.clear()
        return Answer(status=204)


def _read(ask: Ask, type_: Any) -> Any:
    """Errors: InvalidInput."""
    try:
        return msgspec.json.decode(ask.body, type=type_)
    except msgspec.DecodeError as error:
        raise InvalidInput(str(error)) from None


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(status=status, body=wire.encode(value))


def _shown(actor: Actor, now_s: float) -> dict[str, Any]:
    seen = actor.look(now_s)
    return {
        "name": actor.name,
        "id": actor.id,
        "kind": actor.facts.kind or actor.entry.kind,
        "state": str(seen.state) if actor.begun_s <= now_s else None,
        "found": str(seen.found) if actor.begun_s <= now_s else "not yet",
        "age_s": round(now_s - actor.begun_s, 6),
        "polls": actor.asked,
        "commands": [command.do.value for command in actor.commands],
        "moves": [{"state": str(move.state), "at_s": move.at_s} for move in seen.moves],
        "sub_jobs": [sub.name for sub in actor.subs],
    }


__all__ = ["Control", "Order", "Step"]
