"""Named points of the engine at which a process can be told to die by SIGKILL: for tests of what a crash leaves.

`MILEPOST_FAULT=claim.executed` kills the server the first time it comes there, `claim.executed:3` the third time.  The points
are put in at start-up by wrapping the functions named below, and only when the variable is set: a server without it runs none
of this.

An operation of the store has three points: `.executed` (its statements ran, nothing is committed), `.committed` (it is on disk,
nobody was told) and `.answered` (the caller is about to go on).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

VARIABLE = "MILEPOST_FAULT"
STORES = "milepost.store."


class Place(NamedTuple):
    """A function, and whether the point lies before or after it."""

    target: str  # module:name or module:Class.method
    when: str  # before or after
    about: str


class Operation(NamedTuple):
    """A write of the store: the function that runs in the transaction, and the method that answers when it is on disk."""

    function: str  # module:name
    method: str | None


OPERATIONS: dict[str, Operation] = {
    "submit": Operation("sqlite_jobs:add_plain", "add_jobs"),
    "submit_keyed": Operation("sqlite_jobs:add_checked", None),
    "begin": Operation("sqlite_jobs:add_begun", None),  # claimed as it is submitted
    "claim": Operation("sqlite_jobs:claim_jobs", "claim_jobs"),
    "progress": Operation("sqlite_jobs:report_progress", "report_progress"),
    "finish": Operation("sqlite_ends:end_all", None),  # to a final state
    "requeue": Operation("sqlite_ends:requeue_job", None),  # retried, snoozed, given back, rescued
    "suspend": Operation("sqlite_ends:suspend_job", None),
    "settle": Operation("sqlite_ends:settle_parent", None),  # a sub-job ended: its parent's turn
    "outcome": Operation("sqlite_ends:finish_all", "finish_job"),
    "cancel": Operation("sqlite_ends:cancel_job", "cancel_job"),
    "release": Operation("sqlite_ends:release_job", "release_job"),
    "rescue": Operation("sqlite_ends:rescue_expired", "rescue_expired"),
    "promote": Operation("sqlite_jobs:promote_due", "promote_due"),
    "overdue": Operation("sqlite_ends:fail_overdue", "fail_overdue"),
    "prune": Operation("sqlite_ends:prune_expired", "prune"),
    "publish": Operation("sqlite_publish:publish", "publish"),  # deliveries are made of events
}

PLACES: dict[str, Place] = {
    "submit.accepted": Place("milepost.engine.service:Service.submit", "after", "on disk and announced, not yet answered"),
    "run.before": Place("milepost.engine.executor:Executor._attempt", "before", "claimed, the function has not begun"),
    "run.after": Place("milepost.engine.finisher:Finisher.put", "before", "the function ended, nothing is written"),
    "follow.before": Place("milepost.engine.finisher:Finisher._follow", "before", "the outcome is on disk, nobody knows"),
    "follow.after": Place("milepost.engine.finisher:Finisher._follow", "after", "what follows was told"),
    "sub_jobs.read": Place("milepost.engine.executor:Executor._sub_outcomes", "after", "a resumed parent has its results"),
    "suspend.half": Place(
        f"{STORES}sqlite_ends:add_sub_job", "after", "one of a parent's sub-jobs is inserted, the others are not"
    ),
    "heartbeat.renewed": Place("milepost.engine.heartbeat:Heartbeat.run_once", "after", "the lease is renewed"),
    "scheduler.round": Place("milepost.engine.scheduler:Scheduler.run_once", "after", "due jobs were announced"),
    "start.rescued": Place("milepost.engine.rescuer:Rescuer.run_once", "after", "a predecessor's jobs were taken back"),
    "stop.draining": Place("milepost.engine.executor:Executor.drain", "before", "told to stop, nothing given back"),
    "stop.drained": Place("milepost.engine.executor:Executor.drain", "after", "given back, the lease has not ended"),
    "courier.claimed": Place("milepost.engine.courier:Courier._deliver", "before", "a try is counted, nothing was sent"),
    "courier.sent": Place("milepost.engine.courier:Courier._record", "before", "the receiver answered, nothing is recorded"),
    "courier.recorded": Place("milepost.engine.courier:Courier._record", "after", "the answer is recorded"),
    "import.recorded": Place("milepost.work.images:Import.record", "after", "the image is queued"),
    "import.fetching": Place("milepost.work.fetch:_Partial.append", "after", "a part of the source is here"),
    "import.fetched": Place("milepost.work.images:fetch", "after", "all of the source is here"),
    "import.inspected": Place("milepost.work.images:inspect_image", "after", "the source is checked"),
    "import.converted": Place("milepost.work.images:convert_image", "after", "converted, the file has no final name"),
    "import.saving": Place("milepost.work.images:Import.digest", "before", "the image is saving"),
    "import.digested": Place("milepost.work.images:_write_durably", "after", "the checksums are on disk"),
    "import.stored": Place("milepost.work.images:Import.store", "after", "the object is stored, the record is not active"),
    "import.published": Place("milepost.work.images:Import.publish", "after", "the image is active, its job is running"),
    "volume.taken": Place("milepost.work.volumes.change:Change.take", "after", "the volume is the running job's"),
    "volume.linked": Place("milepost.work.volumes.making:link_base", "after", "the image is under the volume's name"),
    "volume.made": Place("milepost.work.volumes.making:Making.make", "after", "the disk image has the job's name"),
    "volume.placed": Place("milepost.work.volumes.making:place", "after", "the disk image has its own name"),
    "volume.grown": Place("milepost.work.volumes.changing:grow", "after", "the disk image is larger, the record is not"),
    "volume.wiping": Place("milepost.work.volumes.disk:_wipe_step", "after", "some of it is overwritten"),
    "volume.wiped": Place("milepost.work.volumes.changing:wipe", "after", "all of it is overwritten"),
    "volume.removed": Place("milepost.work.volumes.changing:remove_files", "after", "no file is left, the record is"),
    "volume.noted": Place(
        "milepost.work.volumes.change:write_durably", "after", "what it came to is noted, the record is not free"
    ),
    "volume.released": Place("milepost.work.volumes.change:Change.finish", "after", "the record is free, its job is running"),
    "volume.gone": Place("milepost.work.volumes.change:Change.finish_removed", "after", "no record is left, its job is running"),
    "server.taken": Place("milepost.work.servers.change:Change.take", "after", "the server is the running job's"),
    "server.disc": Place("milepost.work.servers.building:Making.link_disc", "after", "its volumes are made, nothing is attached"),
    "server.launched": Place("milepost.machines.machine:start_process", "after", "the machine's process runs, nobody knows"),
    "server.booted": Place("milepost.work.servers.power:Powered.boot", "after", "the machine answers, the record is not active"),
    "server.halted": Place("milepost.work.servers.power:Powered.halt", "after", "the machine has ended, nothing is noted"),
    "server.plugged": Place("milepost.machines.machine:Machine.plug_disk", "after", "the guest has the disk, no record says so"),
    "server.unplugged": Place("milepost.machines.machine:Machine.unplug_disk", "after", "no guest has the disk, the records do"),
    "server.carded": Place("milepost.machines.machine:Machine.plug_card", "after", "the guest has the card, no record says so"),
    "server.cleared": Place("milepost.machines.machine:Machine.remove", "after", "no machine is left, the record is"),
    "server.parted": Place("milepost.work.servers.deleting:Deleting.let_go", "after", "its volumes are not attached any more"),
    "server.noted": Place("milepost.work.servers.change:Change.note_done", "after", "what it came to is noted"),
    "server.released": Place("milepost.work.servers.change:Change.give_back", "after", "the record is free, its job is running"),
    "fop.brought": Place("milepost.work.media.pfop:bring", "after", "the source is in the job's folder"),
    "fop.made": Place("milepost.work.media.pfop:Item.run_steps", "after", "all steps are done, nothing is stored"),
    "fop.kept": Place("milepost.store.buckets:Buckets.keep", "after", "the bytes are stored, no object has them"),
    "fop.put": Place("milepost.work.media.pfop:Item.put", "after", "the object is there, its job is running"),
    "fop.stored": Place("milepost.work.media.pfop:Item.store", "after", "all objects of an item are there, its job is running"),
    "import.emptied": Place("milepost.work.images:Import.run", "after", "the scratch folder is empty, its job is running"),
}


def points() -> list[str]:
    """Every name that MILEPOST_FAULT takes."""
    operations = []
    for name, operation in OPERATIONS.items():
        operations += [f"{name}.executed", f"{name}.committed"]
        if operation.method is not None:
            operations.append(f"{name}.answered")
    return [*operations, *PLACES]


class Fuse:
    """Kills this process the nth time that it is lit."""

    def __init__(self, nth: int) -> None:
        self._left, self._lock = nth, threading.Lock()

    def light(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def install(asked: str | None = None) -> None:
    """Put in the point that MILEPOST_FAULT names; nothing when it is not set.  Errors: ValueError when there is no such point."""
    asked = os.environ.get(VARIABLE) if asked is None else asked
    if not asked:
        return
    name, _, nth = asked.partition(":")
    fuse = Fuse(int(nth or "1"))
    if name in PLACES:
        place = PLACES[name]
        _wrap(place.target, **{place.when: fuse.light})
        return
    kind, _, phase = name.rpartition(".")
    if name not in points():
        raise ValueError(f"{VARIABLE}: no point {name!r}; there are: {', '.join(points())}")
    operation = OPERATIONS[kind]
    if phase == "executed":
        _wrap(STORES + operation.function, after=fuse.light)
    elif phase == "answered":
        _wrap(f"{STORES}sqlite:SqliteStore.{operation.method}", after=fuse.light)
    else:
        _light_at_commit(STORES + operation.function, fuse)


def _light_at_commit(target: str, fuse: Fuse) -> None:
    """Light the fuse when the transaction in which the function ran is on disk, before anybody is told."""
    ran = threading.Event()

    def committed() -> None:
        if ran.is_set():
            ran.clear()
            fuse.light()

    _wrap(target, after=ran.set)
    _wrap("milepost.store.writer:Writer._committed", before=committed)


def _nothing() -> None:
    pass


def _wrap(target: str, *, before: Callable[[], None] = _nothing, after: Callable[[], None] = _nothing) -> None:
    """The function calls these around itself, wherever it is called from through its module or class."""
    module_name, _, path = target.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    function = getattr(owner, name)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            before()
            result = await function(*args, **kwargs)
            after()
            return result

    else:

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before()
            result = function(*args, **kwargs)
            after()
            return result

    setattr(owner, name, wrapped)


__all__ = ["VARIABLE", "Fuse", "install", "points"]
