"""A rehearsal inside a test: scripted jobs on any cloud's wire, with faults, and the record of what was asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from milepost.job import Failure, Job, Progress

if TYPE_CHECKING:
    from milepost.rehearsal.app import RehearsalApp
    from milepost.rehearsal.record import Asked
    from milepost.rehearsal.scenario import Scenario

T = TypeVar("T")
START_S = 30.0


class Rehearsed:
    """A running rehearsal: `url` for clients, and its direction.  Its methods may be called from any thread."""

    def __init__(self, url: str, app: RehearsalApp, loop: asyncio.AbstractEventLoop) -> None:
        self.url, self.app = url, app
        self._loop = loop

    def _do(self, function: Callable[[], T]) -> T:
        """Done on the server's loop."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self._loop:
            return function()
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(function())
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return done.result(START_S)

    # --- time and commands ----------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Time is so much later."""
        self._do(lambda: self.app.time.advance(seconds))

    def finish(self, name: str, result: Any = None) -> Job:
        """The job succeeds now.  Errors of all commands: NotFound; Conflict when it has ended."""
        return self.command(name, "finish", result=result)

    def fail(self, name: str, code: str = "rehearsed", message: str = "the test says so", **details: Any) -> Job:
        """The job fails now."""
        return self.command(name, "fail", failure=Failure(code, message, details or None))

    def vanish(self, name: str) -> Job:
        """The job is unknown from now on."""
        return self.command(name, "vanish")

    def progress(self, name: str, done: int, total: int | None = None, unit: str = "", note: str = "") -> Job:
        """The job shows this progress from now on."""
        return self.command(name, "progress", progress=Progress(done, total, unit, note))

    def command(self, name: str, do: str, **options: Any) -> Job:
        """Any command: finish, fail, cancel, next, hold, go, vanish, appear, progress."""
        from milepost.rehearsal.script import Do

        return self._do(lambda: self.app.stage.command(self.app.stage.named(name)[0], Do(do), **options))

    # --- jobs and faults ------------------------------------------------------------------------------------------------------

    def id(self, name: str, wire: str = "native") -> str:
        """The job's id as this wire writes it."""
        from milepost.wire.huawei.jobs import job_hex
        from milepost.wire.qiniu.ids import persistent_id

        actor = self._do(lambda: self.app.stage.named(name)[0])
        if wire.startswith("huawei"):
            return job_hex(actor.id)
        return persistent_id(actor.id, self.app.stage.whole.region) if wire == "qiniu" else actor.id

    def add_job(self, **fields: Any) -> str:
        """A job as `[[jobs]]` has it, created now; returns its id."""
        from milepost.rehearsal.scenario import make_entry

        entry = make_entry(fields)
        return self._do(lambda: self.app.stage.add(entry)[0].id)

    def add_fault(self, **fields: Any) -> None:
        """A fault as `[[faults]]` has it, behind those that are there."""
        from milepost.rehearsal.scenario import make_fault

        fault = make_fault(fields)
        self._do(lambda: self.app.faults.add(fault))

    # --- the record -----------------------------------------------------------------------------------------------------------

    def requests(self, **fields: Any) -> list[Asked]:
        """What was asked, oldest first: `requests(job="import", action="probe")`."""
        return self._do(lambda: list(self.app.record.select(**fields)))


@asynccontextmanager
async def rehearsing(
    scenario: Scenario | Mapping[str, Any] | Path | str, *, virtual: bool | None = None
) -> AsyncIterator[Rehearsed]:
    """A rehearsal on a free loopback port.  `scenario`: a path, TOML text, its tables, or a Scenario.

    Needs no pytest plugin; a fixture of it is three lines:

        @pytest.fixture
        async def cloud():
            async with milepost.testing.rehearsing("scenario.toml", virtual=True) as rehearsal:
                yield rehearsal

    and `rehearsing_in_thread` is the same for tests that are not async.
    """
    from milepost.rehearsal.app import RehearsalApp
    from milepost.wiring import running_rehearsal

    app = RehearsalApp(_scenario(scenario), virtual=virtual)
    async with running_rehearsal(app) as url:
        yield Rehearsed(url, app, asyncio.get_running_loop())


def _scenario(given: Scenario | Mapping[str, Any] | Path | str) -> Scenario:
    from milepost.rehearsal.scenario import make_scenario, parse_scenario, read_scenario

    if isinstance(given, Mapping):
        return make_scenario(msgspec.to_builtins(dict(given)))
    if isinstance(given, Path) or (isinstance(given, str) and given.endswith(".toml") and "\n" not in given):
        return read_scenario(given)
    return parse_scenario(given) if isinstance(given, str) else given


@contextmanager
def rehearsing_in_thread(
    scenario: Scenario | Mapping[str, Any] | Path | str, *, virtual: bool | None = None
) -> Iterator[Rehearsed]:
    """The same as `rehearsing`, on a loop in a thread of its own: for blocking clients, such as the vendors' SDKs."""
    ready: Future[tuple[Rehearsed, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        stop = asyncio.Event()
        try:
            async with rehearsing(scenario, virtual=virtual) as found:
                ready.set_result((found, asyncio.get_running_loop(), stop))
                await stop.wait()
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=asyncio.run, args=(run(),), name="milepost-rehearsal", daemon=True)
    thread.start()
    found, loop, stop = ready.result(START_S)
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(START_S)
