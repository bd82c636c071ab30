"""A real Milepost server inside a test: its own store, engine and socket, stopped when the block ends."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from milepost.clock import Clock
from milepost.job import FINAL, Job, JobId, State
from milepost.testing.clock import ManualClock
from milepost.testing.faults import Faults

if TYPE_CHECKING:
    from milepost.engine.kinds import Kinds
    from milepost.engine.service import Service
    from milepost.store import Store
    from milepost.wiring import System

PATIENCE_S = 10.0
LEASE_S = 1e9  # a manual clock moves by days at once; the heartbeat beats in real time


class Served:
    """A running server: `url` for clients, `system` for its parts."""

    def __init__(self, url: str, system: System) -> None:
        self.url, self.system = url, system

    @property
    def service(self) -> Service:
        return self.system.service

    @property
    def store(self) -> Store:
        return self.system.store

    async def until(self, job_id: str, *states: State | str, patience_s: float = PATIENCE_S) -> Job:
        """The job, once it is in one of these states.  Errors: TimeoutError saying in which it is."""
        wanted = {State(state) for state in states}
        changed = asyncio.Event()
        end = self.store.subscribe(lambda _events: changed.set())
        job: Job | None = None
        try:
            async with asyncio.timeout(patience_s):
                while True:
                    changed.clear()
                    job = await self.service.get(JobId(job_id))
                    if job.state in wanted:
                        return job
                    await changed.wait()
        except TimeoutError:
            seen = "unread" if job is None else job.state
            raise TimeoutError(f"job {job_id} is {seen}, not {' or '.join(sorted(wanted))}, after {patience_s:g} s") from None
        finally:
            end()

    async def ended(self, job_id: str, *, patience_s: float = PATIENCE_S) -> Job:
        """The job, once it is final.  Errors: TimeoutError."""
        return await self.until(job_id, *FINAL, patience_s=patience_s)


@asynccontextmanager
async def serving(
    kinds: Kinds | Sequence[str] = (), *, clock: Clock | None = None, faults: Faults | None = None, **settings: Any
) -> AsyncIterator[Served]:
    """A server on a free loopback port, with a folder of its own that is removed afterwards.

    `kinds`: a registry of its own, or modules to load as `milepost serve` does (kinds registered with `milepost.kind` are there
    anyway).  `settings`: any setting; `data=":memory:"` needs no disk.  With a `ManualClock`, run_at, retries, deadlines, attempt
    timeouts, expiry and callbacks wait for `clock.advance`; leases do not run out.

    Needs no pytest plugin; a fixture of it is three lines:

        @pytest.fixture
        async def server():                       # with pytest-asyncio or anyio
            async with milepost.testing.serving(["my_kinds"]) as served:
                yield served

    and `serving_in_thread` is the same for tests that are not async.
    """
    from milepost.engine.kinds import Kinds
    from milepost.settings import Settings
    from milepost.wiring import load_kinds, running_server

    if isinstance(clock, ManualClock):
        settings.setdefault("lease_s", LEASE_S)
    settings.setdefault("stop_grace_s", 0.0)
    registry = kinds if isinstance(kinds, Kinds) else load_kinds(list(kinds))
    with tempfile.TemporaryDirectory(prefix="milepost-") as folder:
        made = Settings(**{"data": folder, "port": 0, "log_level": "error", **settings})
        _log_to_stdlib()
        around = None if faults is None else faults.around
        async with running_server(made, kinds=registry, clock=clock, around=around) as (system, url):
            yield Served(url, system)


def _log_to_stdlib() -> None:
    """The server's log goes where the test's own does, so that `caplog` and log levels work; a form already chosen stays."""
    import structlog

    if not structlog.is_configured():
        structlog.configure(
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.processors.format_exc_info,
                structlog.processors.KeyValueRenderer(key_order=["event"]),
            ],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
        )


@contextmanager
def serving_in_thread(
    kinds: Kinds | Sequence[str] = (), *, clock: Clock | None = None, faults: Faults | None = None, **settings: Any
) -> Iterator[Served]:
    """The same as `serving`, on a loop in a thread of its own: for tests that use blocking clients.

    Use `url`; the methods of `Served` belong to the server's loop.

        @pytest.fixture
        def server():
            with milepost.testing.serving_in_thread(["my_kinds"]) as served:
                yield served

        def test_it(server):
            with milepost.Client(server.url) as client:
                assert client.submit("greet", {"name": "Ann"}).wait().result == "Hello Ann"
    """
    ready: Future[tuple[Served, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        stop = asyncio.Event()
        try:
            async with serving(kinds, clock=clock, faults=faults, **settings) as served:
                ready.set_result((served, asyncio.get_running_loop(), stop))
                await stop.wait()
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=asyncio.run, args=(run(),), name="milepost-testing", daemon=True)
    thread.start()
    served, loop, stop = ready.result()
    try:
        yield served
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30.0)
