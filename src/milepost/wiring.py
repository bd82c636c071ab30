"""The composition root: the only file that puts concrete stores, dispatches and built-in kinds together."""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import structlog
import uvloop

from milepost import egress, logs
from milepost.clock import Clock, SystemClock
from milepost.dispatch.embedded import EmbeddedDispatch
from milepost.engine.context import Objects
from milepost.engine.kinds import KINDS, Kinds
from milepost.engine.node import Node
from milepost.engine.service import Service
from milepost.errors import InvalidInput, StoreUnavailable
from milepost.job import FINAL, Event, EventType, Job, ProjectId, Tombstone
from milepost.listener import free_port, listening
from milepost.rehearsal.app import RehearsalApp
from milepost.server.app import App, create_app
from milepost.server.facades.qiniu.notify import Notifier, is_notified
from milepost.server.facades.qiniu.sweep import sweep as sweep_buckets
from milepost.server.identity import Identities
from milepost.settings import Settings, unknown_variables
from milepost.store import Delivery, Store
from milepost.store.sqlite import SqliteStore
from milepost.subscription import MISSED, PING
from milepost.wire import callback

log = structlog.get_logger("milepost")

BUILT_IN = (
    "milepost.work.basics",
    "milepost.work.images",
    "milepost.work.volumes",
    "milepost.work.servers",
    "milepost.work.media.pfop",
    "milepost.work.track",
)
OBSERVE_S = 2.0  # a guest that shut down, or a machine that crashed, shows after this time
ANSWER_BYTES_MAX = 2048
REHEARSAL_PLACES = 20_000  # requests at the same time, long polls too
# Media jobs that are claimed for each command that may run: some fetch or store while others use the processors.
MEDIA_AHEAD = 4
# How long a thread may keep Python's lock from the others (Python: 5 ms).  The commit thread needs it for some microseconds
# before and after each commit, and everybody whose write is in that commit waits with it.
SWITCH_S = 0.0001
GC_THRESHOLD = (100_000, 20, 50)


def store_path(settings: Settings) -> Path | str:
    """Where the database is; `:memory:` as data folder keeps everything in memory."""
    return ":memory:" if settings.data == ":memory:" else settings.data_dir / "milepost.db"


FOLDER_HINT = "give --data another folder, or its rights to this user; milepost doctor looks at it"


def _make_folder(folder: Path) -> None:
    """It is there and can be written.  Errors: InvalidInput."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InvalidInput(
            f"the data folder {folder} cannot be made: {error.strerror}", path="$.data", hint=FOLDER_HINT
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidInput(f"the data folder {folder} cannot be written", path="$.data", hint=FOLDER_HINT)


@asynccontextmanager
async def open_store(settings: Settings, *, lock: bool = True) -> AsyncIterator[Store]:
    """The store of the data folder, open.  Commands beside a running server pass `lock=False`."""
    path = store_path(settings)
    if isinstance(path, Path):
        _make_folder(path.parent)
    store = SqliteStore(path, lock=lock)
    try:
        await store.open()
    except OSError as error:
        raise StoreUnavailable(f"{error.filename or path} cannot be opened: {error.strerror}", hint=FOLDER_HINT) from error
    try:
        yield store
    finally:
        await store.close()


def load_kinds(modules: Sequence[str] = ()) -> Kinds:
    """The built-in kinds, those of installed packages (entry point group `milepost.kinds`), and those of these modules.

    A module is a dotted name or a path to a .py file.  Errors: InvalidInput naming the module and why it does not load.
    """
    for name in BUILT_IN:
        try:
            importlib.import_module(name)
        except ImportError as error:
            log.info("built-in kinds left out", module=name, missing=error.name, hint="pip install 'milepost[images,media]'")
    for entry in entry_points(group="milepost.kinds"):
        _load(entry.value, entry.load)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    for module in modules:
        _load(module, lambda module=module: _import(module))
    return KINDS


def _keep_tasks(kinds: Kinds, keep_h: float) -> Kinds:
    """Image tasks have a retention of their own, as in Glance."""
    if "import" in kinds:
        kinds.change("import", keep_s=dict.fromkeys(FINAL, keep_h * 3600))
    return kinds


def _load(name: str, load: Any) -> None:
    try:
        load()
    except Exception as error:
        raise InvalidInput(f"cannot load kinds from {name!r}: {type(error).__name__}: {error}", path="MODULE") from error


def _import(module: str) -> None:
    if not module.endswith(".py"):
        importlib.import_module(module)
        return
    path = Path(module).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    # Importable by name, so that isolated kinds find it again in their subprocess.
    sys.path.insert(0, str(path.parent))
    importlib.import_module(path.stem)


def encode_callback(delivery: Delivery, job: Job | Tombstone | None) -> bytes:
    """The body of a callback: what happened, when, and the job as `GET /jobs/{id}` shows it."""
    subscription_id = delivery.subscription_id
    if subscription_id is not None and delivery.event == MISSED:
        return callback.encode_missed(delivery.detail or b"{}", delivery.created_us, subscription_id)
    if subscription_id is not None and delivery.event == PING:
        return callback.encode_ping(delivery.created_us, subscription_id)
    if delivery.detail is None:
        assert isinstance(job, Job)
        return callback.encode_end(delivery.event, job)
    return callback.encode_event(delivery.event, delivery.detail, job, delivery.job_id, subscription_id=subscription_id)


class System:
    """Everything of one process, made from settings; `milepost.testing` and `serve` both run it."""

    def __init__(self, store: Store, settings: Settings, *, clock: Clock, kinds: Kinds, objects: Objects | None) -> None:
        self.store, self.settings, self.clock = store, settings, clock
        # A server in memory leaves nothing behind: its jobs have their folders among the temporary files.
        self._folder = tempfile.TemporaryDirectory(prefix="milepost-") if settings.data == ":memory:" else None
        self.folder = settings.data_dir if self._folder is None else Path(self._folder.name)
        self.dispatch = EmbeddedDispatch(clock)
        self.service = Service(store, self.dispatch, kinds, clock, settings)
        self.identities = Identities(store, clock, settings)
        self.policy = egress.EgressPolicy.from_settings(settings)
        self.notifier = Notifier(store, self.identities, settings, secret_of=self._secret_of)
        self.node = Node(
            store,
            self.dispatch,
            self.service,
            clock,
            settings,
            scratch=self.folder / "scratch",
            objects=objects,
            send=self._send,
            encode_callback=encode_callback,
            secret_of=self._secret_of,
            manner_of=lambda job: self.notifier if is_notified(job) else None,
            sweep=self._sweep,
            limits={
                "images": settings.image_concurrency,
                "volumes": settings.volume_concurrency,
                "servers": settings.server_concurrency,
                "media": MEDIA_AHEAD * settings.media_places,
                "media.idle": settings.media_places,
                "track": settings.track_concurrency,
            },
        )
        self.objects = objects
        self.app: App = create_app(self.service, settings, clock, objects=objects, identities=self.identities)
        self.app.state.engine = self.node
        if "fop" in self.service.kinds:
            from milepost.work.media.look import look

            self.app.state.look = look
        if self.has_servers:
            from milepost.work.servers.house import Machines

            self.app.state.machines = Machines(self.folder)

    async def _sweep(self) -> None:
        from milepost.work.track.sweep import sweep as sweep_tracked
        from milepost.work.volumes.sweep import sweep as sweep_volumes

        await sweep_tracked(self.store, self.settings)

        if self.objects is not None:
            from milepost.work.sweep import sweep

            await sweep(self.store, self.objects)  # type: ignore[arg-type]
            await sweep_buckets(self.app.state)
        await sweep_volumes(self.store, self.folder, now_us=self.clock.now_us())
        if self.has_servers:
            from milepost.work.servers.sweep import sweep as sweep_servers

            await sweep_servers(self.store, self.folder, now_us=self.clock.now_us())

    @property
    def has_servers(self) -> bool:
        """Whether the kinds of servers are there: without the extra `servers` they are left out."""
        return "createServer" in self.service.kinds

    async def observe(self) -> None:
        """Servers show what their machines are, also when nobody asks for anything.  Ends by cancellation."""
        while self.has_servers:
            from milepost.work.servers.sweep import observe

            try:
                await observe(self.store, self.folder, now_us=self.clock.now_us())
            except (StoreUnavailable, OSError) as error:
                log.error("cannot see what the servers' machines do; it is tried again", error=str(error))
            await asyncio.sleep(OBSERVE_S)

    async def _settle_servers(self) -> None:
        if self.has_servers:
            from milepost.work.servers.sweep import settle_servers

            await settle_servers(self.store, self.folder, now_us=self.clock.now_us())

    async def close(self) -> None:
        """What was kept in memory leaves nothing behind: no machine either."""
        if "milepost.work.media.tools" in sys.modules:
            from milepost.work.media.tools import close_workshop

            await close_workshop()
        if self._folder is not None and self.has_servers:
            from milepost.work.servers.sweep import stop_machines

            await stop_machines(self.folder)

    async def settle(self) -> None:
        """Give back what jobs had reserved that end without running: at once, not at the next sweep.  Ends by cancellation."""
        from milepost.work.volumes.sweep import settle

        ended = asyncio.Event()

        def listen(_events: Sequence[Event]) -> None:
            ended.set()

        end = self.store.subscribe(listen, types=frozenset({EventType.CANCELLED, EventType.FAILED}))
        try:
            while True:
                await ended.wait()
                ended.clear()
                try:
                    await settle(self.store, self.folder, now_us=self.clock.now_us())
                    await self._settle_servers()
                except (StoreUnavailable, OSError) as error:
                    log.error("cannot settle what ended jobs left; the next sweep will", error=str(error))
        finally:
            end()

    async def _secret_of(self, project: ProjectId) -> str:
        return (await self.identities.ensure_project(project)).callback_secret

    async def _send(self, url: str, headers: dict[str, str], body: bytes, *, timeout_s: float) -> tuple[int, str]:
        timeouts = egress.Timeouts(connect_s=min(10.0, timeout_s), read_s=timeout_s, total_s=timeout_s)
        request = egress.open_guarded(
            "POST", url, policy=self.policy, headers=headers, body=body, timeouts=timeouts, redirects_max=0
        )
        async with request as answer:
            said = await answer.read_at_most(ANSWER_BYTES_MAX)
            return answer.status, said.decode("utf-8", "replace")


@asynccontextmanager
async def running_system(settings: Settings, *, kinds: Kinds | None = None, clock: Clock | None = None) -> AsyncIterator[System]:
    """A store, an engine and an application that run in this loop; no socket."""
    async with open_store(settings) as store:
        objects = _open_objects(settings)
        kinds = _keep_tasks(load_kinds() if kinds is None else kinds, settings.task_keep_h)
        system = System(store, settings, clock=clock or SystemClock(), kinds=kinds, objects=objects)
        await system.node.start()
        beside = [asyncio.create_task(system.settle()), asyncio.create_task(system.observe())]
        try:
            yield system
        finally:
            await system.node.stop()
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await system.close()


def _open_objects(settings: Settings) -> Objects | None:
    if settings.data == ":memory:" and settings.objects_url is None:
        return None
    try:
        from milepost.store.objects import open_objects
    except ImportError as error:
        log.info("no object storage", missing=error.name, hint="pip install 'milepost[images]'")
        return None
    return open_objects(settings.objects_url, settings.data_dir)


@asynccontextmanager
async def running_server(
    settings: Settings,
    *,
    kinds: Kinds | None = None,
    clock: Clock | None = None,
    around: Callable[[Any], Any] | None = None,
) -> AsyncIterator[tuple[System, str]]:
    """The system behind a socket; yields it and its URL.  `around` wraps the ASGI application, as tests of faults do."""
    port = free_port(settings.host, settings.port)  # before the store is opened
    async with running_system(settings, kinds=kinds, clock=clock) as system:
        app = system.app if around is None else around(system.app)
        places = settings.streams_max + 1024  # open streams must not use up the places of other requests
        async with listening(app, settings.host, port, places=places) as url:
            try:
                yield system, url
            finally:
                await system.node.stop()  # status is answered until the last running job has ended
                system.app.close()


@asynccontextmanager
async def running_rehearsal(app: RehearsalApp, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """A rehearsal behind a socket; yields its URL.  Errors: Unreachable when the port is taken."""
    async with listening(app, host, port, places=REHEARSAL_PLACES) as url:
        try:
            yield url
        finally:
            app.close()


def tune_process() -> None:
    """Settings of the interpreter for a process that does nothing but serve; call it when everything is loaded.

    What is loaded stays and is not looked at again by the garbage collector, which then runs after 100,000 new objects instead
    of 700: jobs are values without cycles, and every task and future would be looked at several times while it lives.
    """
    sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)


def serve(settings: Settings, modules: Sequence[str] = ()) -> None:
    """Run until SIGINT or SIGTERM; prints one `ready URL` line.  Errors: MilepostError when it cannot start."""
    logs.configure(settings)
    if os.environ.get("MILEPOST_FAULT"):  # a test wants this process to die at a named point
        from milepost.testing import killpoints

        killpoints.install()
    for name, meant in unknown_variables(os.environ).items():
        log.warning("no such setting", variable=name, **({} if meant is None else {"meant": meant}))
    kinds = load_kinds(modules)
    uvloop.run(_serve(settings, kinds))


async def _serve(settings: Settings, kinds: Kinds) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with running_server(settings, kinds=kinds) as (_, url):
        tune_process()
        print(f"ready {url}", flush=True)  # noqa: T201  (what starts the server waits for this line)
        await stop.wait()
        log.info("stopping", grace_s=settings.stop_grace_s)


def rehearse(app: RehearsalApp, *, host: str, port: int) -> None:
    """Run a rehearsal until SIGINT or SIGTERM; prints one `ready URL` line.  Errors: Unreachable when it cannot start."""
    uvloop.run(_rehearse(app, host, port))


async def _rehearse(app: RehearsalApp, host: str, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running_rehearsal(app, host=host, port=port) as url:
        tune_process()
        print(f"ready {url}", flush=True)  # noqa: T201  (what starts it waits for this line)
        await stop.wait()


__all__ = [
    *("System", "load_kinds", "open_store", "rehearse", "running_rehearsal", "running_server", "running_system", "serve"),
    "tune_process",
]
