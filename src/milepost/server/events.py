"""Waiting for events: long polls and server-sent streams.

Theory: the store is the only buffer.  A stream remembers one number, the id of the last event it sent; a commit only wakes
it, and it reads on from that number.  So a slow client costs no memory, nothing is lost between two reads, and resuming
from `Last-Event-ID` is the same code as going on.

Rules
1. Events go out in the order of their ids, each once, without gaps within a job.
2. A job's stream ends after the job's final event; a tree's after the last job of it ended; a project's never.
3. A reconnect to a stream that has nothing more to say is answered 204, which ends an EventSource for good.
4. Each heartbeat checks the caller's token again: a stream outlives a revoked token by one heartbeat at most.
5. `Hub.close` ends every stream and long poll, so that the server can stop.
6. Events go with their job when it expires.  A stream that has not sent some of them yet says so with a `missed` event, which
   names their ids at most, and goes on; that of a job which is gone itself ends with it.
7. A reader that takes nothing for `stream_stuck_s` is cut off, and may resume: what it has not taken is in the store alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import structlog

from milepost.errors import Expired, MilepostError, NotFound, StoreUnavailable
from milepost.job import FINAL, Event, Job, JobId, ProjectId
from milepost.server.auth import authenticate
from milepost.server.http import Call, Reply
from milepost.store import JobQuery, Store
from milepost.wire.native import sse, sse_missed

log = structlog.get_logger("milepost.server")

HEARTBEAT_S = 15.0
PAGE = 500
RETRY_MS = 2000  # after which an EventSource reconnects
LABELS_KEPT = 10_000
ALL = "*"


class Watch:
    """Wakes its waiter once for any number of commits since the last wait."""

    __slots__ = ("_event", "closed")

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.closed = False

    def wake(self) -> None:
        self._event.set()

    def close(self) -> None:
        self.closed = True
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Return when there may be something new, True, or after timeout_s, False."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class Hub:
    """Wakes watches by job, by tree, by project, or by everything.  Listens to the store only while somebody watches."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watches: dict[str, set[Watch]] = {}
        self._unsubscribe: Callable[[], None] | None = None
        self.closed = False

    @contextlib.contextmanager
    def watch(self, key: str) -> Iterator[Watch]:
        """A watch on `job_key`, `tree_key`, `project_key` or ALL; events committed after this line wake it."""
        watch = Watch()
        watch.closed = self.closed
        self._watches.setdefault(key, set()).add(watch)
        if self._unsubscribe is None:
            self._unsubscribe = self._store.subscribe(self._wake)
        try:
            yield watch
        finally:
            watches = self._watches[key]
            watches.discard(watch)
            if not watches:
                del self._watches[key]
            if not self._watches and self._unsubscribe is not None:
                self._unsubscribe()
                self._unsubscribe = None

    def close(self) -> None:
        """End all streams and long polls, those to come too."""
        self.closed = True
        for watches in self._watches.values():
            for watch in watches:
                watch.close()

    def _wake(self, events: Sequence[Event]) -> None:
        for key in {key for event in events for key in (event.job_id, tree_key(event.root_id), project_key(event.project), ALL)}:
            for watch in self._watches.get(key, ()):
                watch.wake()


def tree_key(root_id: JobId) -> str:
    return "tree " + root_id


def project_key(project: ProjectId) -> str:
    return "project " + project


async def wait_job(
    call: Call, key: str, read: Callable[[], Awaitable[Job]], enough: Callable[[Job], Awaitable[bool]], timeout_s: float
) -> Job:
    """The job as soon as it is `enough`, or as it is after timeout_s, or when the client went away."""
    clock = call.state.clock
    end_s = clock.monotonic_s() + timeout_s
    with call.state.slots.hold(call.identity.project), call.state.hub.watch(key) as watch, _closed_when_gone(call, watch):
        while True:
            job = await read()
            left_s = end_s - clock.monotonic_s()
            if await enough(job) or left_s <= 0 or watch.closed:
                return job
            if not await watch.wait(left_s):
                return await read()


class Feed:
    """Which events a stream or page shows, and when there can be no more."""

    key = ALL
    project: ProjectId | None = None

    def __init__(self, store: Store) -> None:
        self._store = store
        self.ended = False
        self._told_missed = 0  # id of the last event that was said to be missing

    async def missed(self, after_id: int) -> tuple[int, int] | None:
        """The first and last id of events behind after_id that may be missing, each told once; ask after `read`."""
        last_id = await self._store.pruned_until(self.project)
        told_id = max(after_id, self._told_missed)
        if last_id <= told_id:
            return None
        self._told_missed = last_id
        return told_id + 1, last_id

    async def read(self, after_id: int, limit: int) -> tuple[list[Event], int]:
        """The next events to show and the id to go on from; that id is after_id when there is nothing new."""
        raise NotImplementedError

    async def check(self) -> None:
        """Errors: NotFound, Expired when what it shows is gone."""

    async def _check(self, job_id: JobId) -> None:
        found = await self._store.get_job(job_id)
        if not isinstance(found, Job):
            raise Expired(f"job {job_id} has expired; it was {found.state}", job_id=job_id, state=found.state)

    async def _missed_of(self, job_id: JobId, after_id: int) -> tuple[int, int] | None:
        """The same for one job or tree, whose events go all together: nothing more comes."""
        last_id = await self._store.pruned_until(self.project)
        if last_id <= after_id:
            return None
        try:
            await self._check(job_id)
        except (NotFound, Expired):
            self.ended = True
            return after_id + 1, last_id
        return None


class JobFeed(Feed):
    """One job."""

    def __init__(self, store: Store, job: Job) -> None:
        super().__init__(store)
        self._job, self.key, self.project = job, job.id, job.project
        self._was_final = job.state in FINAL

    async def read(self, after_id: int, limit: int) -> tuple[list[Event], int]:
        events = await self._store.list_events(after_id=after_id, job_id=self._job.id, limit=limit)
        if events:
            self.ended = events[-1].state in FINAL
            return events, events[-1].id
        self.ended = self._was_final
        return [], after_id

    async def missed(self, after_id: int) -> tuple[int, int] | None:
        return await self._missed_of(self._job.id, after_id)

    async def check(self) -> None:
        await self._check(self._job.id)


class TreeFeed(Feed):
    """A job's whole tree, from its root down."""

    def __init__(self, store: Store, job: Job) -> None:
        super().__init__(store)
        self._root_id, self.key, self.project = job.root_id, tree_key(job.root_id), job.project
        self._open: set[JobId] = {job.root_id}

    async def skip_to(self, after_id: int) -> None:
        """Learn which jobs of the tree are open at after_id without showing what came before."""
        cursor = 0
        while cursor < after_id:
            events = await self._store.list_events(after_id=cursor, root_id=self._root_id, limit=PAGE)
            old = [event for event in events if event.id <= after_id]
            self._learn(old)
            if not old or len(old) < len(events):
                break
            cursor = old[-1].id
        self.ended = not self._open

    async def read(self, after_id: int, limit: int) -> tuple[list[Event], int]:
        events = await self._store.list_events(after_id=after_id, root_id=self._root_id, limit=limit)
        self._learn(events)
        self.ended = not self._open
        return events, events[-1].id if events else after_id

    def _learn(self, events: list[Event]) -> None:
        for event in events:
            if event.state in FINAL:
                self._open.discard(event.job_id)
            else:
                self._open.add(event.job_id)

    async def missed(self, after_id: int) -> tuple[int, int] | None:
        return await self._missed_of(self._root_id, after_id)

    async def check(self) -> None:
        await self._check(self._root_id)


class ProjectFeed(Feed):
    """A project's jobs, or everybody's; with labels, those jobs whose own or whose root's labels match."""

    def __init__(self, store: Store, project: ProjectId | None, labels: tuple[tuple[str, str], ...]) -> None:
        super().__init__(store)
        self._project = self.project = project
        self._labels = labels
        self.key = ALL if project is None else project_key(project)
        self._verdicts: dict[JobId, bool] = {}

    async def read(self, after_id: int, limit: int) -> tuple[list[Event], int]:
        events = await self._store.list_events(after_id=after_id, project=self._project, limit=limit)
        if not events:
            return [], after_id
        if self._labels:
            return await self._labelled(events), events[-1].id
        return events, events[-1].id

    async def _labelled(self, events: list[Event]) -> list[Event]:
        asked = {id for event in events for id in (event.job_id, event.root_id)} - self._verdicts.keys()
        if len(self._verdicts) + len(asked) > LABELS_KEPT:
            self._verdicts.clear()
            asked = {id for event in events for id in (event.job_id, event.root_id)}
        if asked:
            query = JobQuery(project=self._project, ids=tuple(asked), labels=self._labels, limit=len(asked))
            matching = {job.id for job in await self._store.list_jobs(query)}
            self._verdicts.update((id, id in matching) for id in asked)  # labels never change
        return [event for event in events if self._verdicts[event.job_id] or self._verdicts[event.root_id]]


async def stream(call: Call, feed: Feed, after_id: int, *, resumed: bool) -> Reply | None:
    """Send events until the feed ends or the client goes; None once it was answered.  Errors: LimitExceeded."""
    with call.state.slots.hold(call.identity.project), call.state.hub.watch(feed.key) as watch:
        events, cursor = await feed.read(after_id, PAGE)
        if resumed and feed.ended and not events:
            return Reply(204)
        with _closed_when_gone(call, watch):
            try:
                await _start(call, after_id)
                await _pump(call, feed, watch, events, after_id, cursor)
            except Stuck:
                log.info("a reader was cut off", path=call.scope["path"], request_id=call.request_id)
    return None


class Stuck(Exception):
    """The reader took nothing for `stream_stuck_s`.  What it did not take goes with its connection; it can resume."""


async def _start(call: Call, after_id: int) -> None:
    headers = [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
        (b"x-request-id", call.request_id.encode()),
    ]
    await call.send({"type": "http.response.start", "status": 200, "headers": headers})
    # An id without data sets the client's last event id, so a reconnect before the first event loses nothing.
    await _send(call, b"retry: %d\nid: %d\n\n" % (RETRY_MS, after_id))


async def _pump(call: Call, feed: Feed, watch: Watch, events: list[Event], before: int, cursor: int) -> None:
    clock = call.state.clock
    checked_s = clock.monotonic_s()
    while not watch.closed:
        if (missed := await _missed(feed, before)) is not None:
            # Its id is where the stream was: who comes back after it is told again what came behind.
            await _send(call, sse_missed(before, *missed))
        if events:
            await _send(call, b"".join(map(sse, events)))
        if feed.ended:
            break
        before = cursor
        events, after = await _read(feed, cursor)
        if after != cursor:
            cursor = after
            if not events:  # all filtered out: a reconnect need not read them again
                await _send(call, b"id: %d\n\n" % cursor)
        elif not feed.ended and not await watch.wait(HEARTBEAT_S):
            await _send(call, b": still here\n\n")
        if clock.monotonic_s() - checked_s >= HEARTBEAT_S:  # also where events come all the time
            refusal = await _refusal(call, feed)
            if refusal is not None:
                gone = isinstance(refusal, Expired | NotFound)
                if gone and (missed := await _missed(feed, cursor)) is not None:
                    await _send(call, sse_missed(cursor, *missed))
                await _send(call, f": {refusal.code}\n\n".encode())
                break
            checked_s = clock.monotonic_s()
    await _push(call, {"type": "http.response.body", "body": b"", "more_body": False})


async def _missed(feed: Feed, before: int) -> tuple[int, int] | None:
    try:
        return await feed.missed(before)
    except StoreUnavailable:  # it is asked again after the next read
        return None


async def _refusal(call: Call, feed: Feed) -> MilepostError | None:
    """Why the caller may not go on reading, None when it may."""
    try:
        await authenticate(call.scope)
        await feed.check()
    except StoreUnavailable:  # nothing is known to be wrong
        return None
    except MilepostError as error:
        return error
    return None


async def _read(feed: Feed, cursor: int) -> tuple[list[Event], int]:
    try:
        return await feed.read(cursor, PAGE)
    except StoreUnavailable:  # the stream outlives a store that is away: the next heartbeat reads again
        return [], cursor


async def _send(call: Call, body: bytes) -> None:
    await _push(call, {"type": "http.response.body", "body": body, "more_body": True})


async def _push(call: Call, message: dict[str, Any]) -> None:
    """Hand it to the web server, which takes it when the reader took what came before.  Errors: Stuck."""
    try:
        async with asyncio.timeout(call.state.settings.stream_stuck_s):
            await call.send(message)
    except TimeoutError:
        raise Stuck from None


@contextlib.contextmanager
def _closed_when_gone(call: Call, watch: Watch) -> Iterator[None]:
    task = asyncio.ensure_future(_close_when_gone(call, watch))
    try:
        yield
    finally:
        task.cancel()


async def _close_when_gone(call: Call, watch: Watch) -> None:
    while (await call.receive())["type"] != "http.disconnect":
        pass
    watch.close()
