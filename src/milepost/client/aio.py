"""The client for asyncio: the same calls and conversations as `sync.py`, run by the awaiting driver."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Any

from milepost.client import calls, subscriptions, waits
from milepost.client.budget import Limit
from milepost.client.cadence import Cadence
from milepost.client.drivers import AsyncDriver
from milepost.client.identity import Credentials
from milepost.client.jobview import SeenJob, first_known
from milepost.client.known import Known
from milepost.client.open import (
    handle_options,
    job_id_of,
    make_query,
    make_spec,
    make_specs,
    open_session,
    read_ca,
    session_options,
    user_agent,
)
from milepost.client.push import AsyncSubscriptions
from milepost.client.signing import KeyPair
from milepost.client.transport import AsyncTransport

if TYPE_CHECKING:
    from milepost.job import Event
    from milepost.wire import JobView
    from milepost.wire.native import Missed, NativeKind, NativeQueue


class AsyncJobHandle(SeenJob):
    """One job, and what can be done with it.  Attributes show what was last seen; methods ask."""

    __slots__ = ("_driver",)

    def __init__(self, client: AsyncClient, known: Known) -> None:
        super().__init__(client._session, known)
        self._driver = client._driver

    async def refresh(self) -> AsyncJobHandle:
        """Ask once.  Errors: NotFound, Expired, Unreachable, and others of the caller's."""
        found = await self._driver.run(calls.get(self._session, self.id))
        if found.view is not None:
            self._known.learn(found.view)
        self._known.etag = found.etag
        return self

    async def wait(
        self,
        *,
        timeout_s: float | None = None,
        raise_on_failure: bool = True,
        cadence: Cadence | None = None,
        on_change: Callable[[JobView], None] | None = None,
    ) -> AsyncJobHandle:
        """Return when the job is final; see `Client.wait`."""
        steps = waits.wait(
            self._session,
            self._known,
            timeout_s=timeout_s,
            cadence=cadence,
            raise_on_failure=raise_on_failure,
            changes=on_change is not None,
        )
        await self._driver.run(steps, on_change)
        return self

    def watch(
        self, *, timeout_s: float | None = None, cadence: Cadence | None = None, tree: bool = False
    ) -> AsyncIterator[JobView]:
        """Each changed view until the final one; see `Client.watch`."""
        return self._driver.iterate(waits.watch(self._session, self._known, timeout_s=timeout_s, cadence=cadence, tree=tree))

    async def cancel(self) -> AsyncJobHandle:
        """Ask the job to stop; it may still end otherwise.  Errors: Conflict when it has ended, or the cloud cannot cancel."""
        found = await self._driver.run(calls.act(self._session, self.id, "cancel"))
        if found.view is not None:
            self._known.learn(found.view)
        return self


class AsyncClient:
    """Jobs in one cloud, for asyncio.  Close it, or use it as an async context manager.

    endpoint: the server's URL; None: the cloud's, else `MILEPOST_URL`, else a server on this machine.
    wire: `native` for Milepost's own API, `glance` for OpenStack image tasks, `huawei-ecs` and the like.
    cloud: an entry of `clouds.yaml` (needs PyYAML: `pip install 'milepost[openstack]'`); its wire is glance unless given.
    token, project: who asks; None: `MILEPOST_TOKEN`, `MILEPOST_PROJECT`.
    credentials: for an identity service instead, or a `KeyPair` (AK/SK) that signs every request.
    request_timeout_s: of one request.  patience_s: how long a single call survives what may pass (no answer, 5xx, 429).
    cadence: how eagerly waits ask.  limit: requests that the server allows, `Limit(200, per_s=300)`; all waits of this process
    for jobs of this endpoint and project keep to it together.  verify, ca_file: of TLS.
    Errors of every call: those of `milepost.errors`; `Unreachable` when nobody answered.
    """

    def __init__(
        self,
        endpoint: str | Mapping[str, str] | None = None,
        *,
        wire: str | None = None,
        cloud: str | None = None,
        token: str | None = None,
        project: str | None = None,
        credentials: Credentials | KeyPair | None = None,
        request_timeout_s: float = 30.0,
        patience_s: float = 15.0,
        cadence: Cadence | None = None,
        limit: Limit | None = None,
        verify: bool = True,
        ca_file: str | None = None,
    ) -> None:
        self._session = open_session(
            endpoint,
            wire=wire,
            cloud=cloud,
            token=token,
            project=project,
            credentials=credentials,
            **session_options(request_timeout_s, patience_s, cadence, limit),
        )
        self._driver = AsyncDriver(AsyncTransport(user_agent=user_agent(), verify=verify, ca_pem=read_ca(ca_file)), asyncio.sleep)

    @classmethod
    def from_handle(cls, handle: Mapping[str, Any] | str | bytes, **options: Any) -> AsyncClient:
        """A client that reaches the handle's job; secrets come from `options`, the environment or the cloud's entry.

        The token of the environment goes to the handle's endpoint: take handles only from where you would take a URL.
        """
        _, place = handle_options(handle)
        return cls(**{**place, **options})

    async def close(self) -> None:
        """Give its connections back; what is asked afterwards raises RuntimeError."""
        await asyncio.to_thread(self._session.history.save)
        await self._driver.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- jobs -------------------------------------------------------------------------------------------------------

    async def submit(
        self,
        kind: str,
        input: Any = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        labels: Mapping[str, str] | None = None,
        held: bool = False,
        run_at: datetime | str | None = None,
        attempts_max: int | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        callback_url: str | None = None,
        callback_on: Sequence[str] = (),
        idempotency_key: str | None = None,
    ) -> AsyncJobHandle:
        """Submit a job; when it returns, the job is durable on the server.

        input: anything with a JSON form, a msgspec struct or dataclass too.  queue, priority (0 is first, 9 last), attempts_max:
        None is the kind's own.  labels: for `list`.  held: it waits for `release`.  run_at: not before this instant, or RFC 3339
        text.  timeout_s: of one attempt.  deadline_s: of the whole job, from now.  callback_url: told when the job is final,
        or of what `callback_on` names: states (`running`), types of events (`progress`), `final`, `all`.
        Rules: safe to repeat on a lost answer; the key for that is made once a call, unless it is given.
        Errors: InvalidInput naming the field, UnknownKind, IdempotencyConflict, LimitExceeded, Throttled, Unreachable.
        """
        spec = make_spec(
            kind,
            input,
            queue=queue,
            priority=priority,
            labels=labels,
            held=held,
            run_at=run_at,
            attempts_max=attempts_max,
            timeout_s=timeout_s,
            deadline_s=deadline_s,
            callback_url=callback_url,
            callback_on=callback_on,
            idempotency_key=idempotency_key,
        )
        return AsyncJobHandle(self, await self._driver.run(calls.submit(self._session, spec)))

    async def submit_many(self, entries: Iterable[Mapping[str, Any]]) -> builtins.list[AsyncJobHandle]:
        """Submit `{"kind": …, "input": …}` each, with the options of `submit`; on the native wire at most 1,000, all or none."""
        known = await self._driver.run(calls.submit_many(self._session, make_specs(entries)))
        return [AsyncJobHandle(self, one) for one in known]

    async def get(self, job: str | AsyncJobHandle | Mapping[str, Any]) -> AsyncJobHandle:
        """The job as it is now.  Errors: NotFound (never existed, or another project's); Expired, with its final state."""
        return AsyncJobHandle(self, await self._driver.run(calls.get(self._session, job_id_of(self._session, job))))

    def attach(self, job: str | Mapping[str, Any]) -> AsyncJobHandle:
        """A job by its id or handle, without asking."""
        return AsyncJobHandle(self, Known(job_id_of(self._session, job)))

    async def list(
        self,
        *,
        state: str | tuple[str, ...] | builtins.list[str] = (),
        kind: str | None = None,
        queue: str | None = None,
        labels: Mapping[str, str] | None = None,
        parent_id: str | None = None,
        limit: int | None = None,
        page_size: int | None = None,
        oldest_first: bool = False,
        full: bool = False,
    ) -> AsyncIterator[AsyncJobHandle]:
        """Jobs, newest first; pages are fetched as they are needed.  limit: jobs in all.  full: with inputs and results.

        parent_id: the sub-jobs of this job, which no other list has.
        Errors: InvalidInput when the cloud has no such filter.
        """
        query = make_query(
            state=state,
            kind=kind,
            queue=queue,
            labels=labels,
            parent_id=parent_id,
            page_size=page_size or (min(limit, 1000) if limit else None),
            oldest_first=oldest_first,
            full=full,
        )
        async for known in self._driver.iterate(calls.list_jobs(self._session, query, limit)):
            yield AsyncJobHandle(self, known)

    async def cancel(self, job: str | AsyncJobHandle | Mapping[str, Any]) -> AsyncJobHandle:
        """Ask a job to stop; a running one honours it when it can.  Errors: NotFound, Expired, Conflict."""
        return await self._act(job, "cancel")

    async def retry(self, job: str | AsyncJobHandle | Mapping[str, Any]) -> AsyncJobHandle:
        """A new job with the request of a failed or cancelled one.  Errors: NotFound, Expired, Conflict."""
        return await self._act(job, "retry")

    async def release(self, job: str | AsyncJobHandle | Mapping[str, Any]) -> AsyncJobHandle:
        """Let a held job run.  Errors: NotFound, Expired, Conflict."""
        return await self._act(job, "release")

    async def _act(self, job: Any, verb: str) -> AsyncJobHandle:
        return AsyncJobHandle(self, await self._driver.run(calls.act(self._session, job_id_of(self._session, job), verb)))

    # --- waiting ----------------------------------------------------------------------------------------------------

    async def wait(
        self,
        job: str | AsyncJobHandle | Mapping[str, Any],
        *,
        timeout_s: float | None = None,
        raise_on_failure: bool = True,
        cadence: Cadence | None = None,
        on_change: Callable[[JobView], None] | None = None,
    ) -> AsyncJobHandle:
        """Return when the job is final.

        timeout_s: of the whole wait, None for no end.  on_change: called with each changed view.
        Rules: lost connections, 5xx and 429 are survived and counted in the job's `stats`; a wait with no timeout gives up on a
        server that did not answer for five minutes.
        Errors: WaitTimeout (the job still runs); JobFailed, PartialFailure, JobCancelled unless raise_on_failure is False;
        NotFound, Expired, Unauthenticated, Forbidden; Unreachable when nobody ever answered; ProtocolError when what answers
        about a job never seen is no such API.
        """
        handle = job if isinstance(job, AsyncJobHandle) else self.attach(job)
        return await handle.wait(timeout_s=timeout_s, raise_on_failure=raise_on_failure, cadence=cadence, on_change=on_change)

    async def as_completed(
        self,
        jobs: Iterable[str | AsyncJobHandle | Mapping[str, Any]],
        *,
        timeout_s: float | None = None,
        cadence: Cadence | None = None,
    ) -> AsyncGenerator[AsyncJobHandle, None]:
        """Each job as soon as it is final, in the order in which they end; none raises for having failed.

        A job of which nothing more can be learnt comes out too, with its `problem`.
        Errors: WaitTimeout with `fields["pending"]`; Unauthenticated.
        """
        handles = self._attached(jobs)
        by_known = {id(handle._known): handle for handle in handles}
        known = [handle._known for handle in handles]
        async for one in self._driver.iterate(waits.as_completed(self._session, known, timeout_s=timeout_s, cadence=cadence)):
            yield by_known[id(one)]

    async def wait_all(
        self,
        jobs: Iterable[str | AsyncJobHandle | Mapping[str, Any]],
        *,
        timeout_s: float | None = None,
        raise_on_failure: bool = True,
        cadence: Cadence | None = None,
    ) -> builtins.list[AsyncJobHandle]:
        """All jobs, in the given order, once all are final.

        Errors: WaitTimeout; unless raise_on_failure is False, PartialFailure when some did not succeed, JobFailed when none did.
        """
        handles = self._attached(jobs)
        known = [handle._known for handle in handles]
        started_s = self._session.clock.monotonic_s()
        await self._driver.run(waits.as_completed(self._session, known, timeout_s=timeout_s, cadence=cadence))
        if raise_on_failure:
            await self._driver.run(waits.check_all(self._session, known, self._session.clock.monotonic_s() - started_s))
        return handles

    async def wait_any(
        self,
        jobs: Iterable[str | AsyncJobHandle | Mapping[str, Any]],
        *,
        timeout_s: float | None = None,
        cadence: Cadence | None = None,
    ) -> AsyncJobHandle:
        """The first job that is final, well or not; the others go on.

        Errors: WaitTimeout with `fields["pending"]`; when nothing can be learnt of any job, the first one's problem.
        """
        found: builtins.list[AsyncJobHandle] = []
        async with aclosing(self.as_completed(jobs, timeout_s=timeout_s, cadence=cadence)) as completed:
            async for job in completed:
                found.append(job)
                if job.problem is None:
                    break
        return first_known(found)

    def _attached(self, jobs: Iterable[Any]) -> builtins.list[AsyncJobHandle]:
        return [job if isinstance(job, AsyncJobHandle) else self.attach(job) for job in jobs]

    def watch(
        self,
        job: str | AsyncJobHandle | Mapping[str, Any],
        *,
        timeout_s: float | None = None,
        cadence: Cadence | None = None,
        tree: bool = False,
    ) -> AsyncIterator[JobView]:
        """Each changed view of the job, the final one last; with `tree`, its sub-jobs are in `sub_jobs`.

        A stream where the server has one, adaptive polling elsewhere.  Errors: WaitTimeout, NotFound, Expired, Unreachable.
        """
        handle = job if isinstance(job, AsyncJobHandle) else self.attach(job)
        return handle.watch(timeout_s=timeout_s, cadence=cadence, tree=tree)

    # --- native only ------------------------------------------------------------------------------------------------

    def events(
        self, job: str | AsyncJobHandle | Mapping[str, Any], *, after: int = 0, tree: bool = False, follow: bool = False
    ) -> AsyncIterator[Event]:
        """The job's history, oldest first; with `follow`, on until the job (with `tree`: and its sub-jobs) has ended.

        after: the id of the last event that is already known.  Errors: Conflict when the cloud keeps no history.
        """
        conversation = calls.follow_events if follow else calls.events
        return self._driver.iterate(conversation(self._session, job_id_of(self._session, job), after=after, tree=tree))

    def project_events(
        self, *, labels: Mapping[str, str] | None = None, after: int | None = None, follow: bool = False
    ) -> AsyncIterator[Event | Missed]:
        """The project's history behind the event `after`, oldest first; with `follow`, on for ever, from now when it is None.

        labels: of jobs with all of these, or whose root has them.  A `Missed` stands where events went with jobs that expired.
        Errors: Conflict when the cloud keeps no history.
        """
        if follow:
            return self._driver.iterate(subscriptions.follow_project(self._session, labels or {}, after=after))
        return self._driver.iterate(subscriptions.project_events(self._session, labels or {}, after=after or 0))

    @property
    def subscriptions(self) -> AsyncSubscriptions:
        """Who is told of the project's events."""
        return AsyncSubscriptions(self._session, self._driver)

    async def kinds(self) -> builtins.list[NativeKind]:
        """What the server can run.  Errors: Conflict when the wire has no such list."""
        return await self._driver.run(calls.catalog(self._session, "kinds"))

    async def queues(self) -> builtins.list[NativeQueue]:
        """The server's queues.  Errors: Conflict when the wire has no such list."""
        return await self._driver.run(calls.catalog(self._session, "queues"))

    async def set_queue(self, name: str, *, limit: int | None = None, paused: bool = False) -> NativeQueue:
        """Set a queue's limit of concurrent jobs a process (None: the server's default) and its pause.  Errors: Forbidden."""
        return await self._driver.run(calls.set_queue(self._session, name, {"limit": limit, "paused": paused}))

    async def pause_queue(self, name: str) -> NativeQueue:
        """Start no more jobs of a queue; running ones go on.  Errors: Forbidden."""
        return await self._driver.run(calls.set_queue(self._session, name, "pause"))

    async def resume_queue(self, name: str) -> NativeQueue:
        """Start jobs of a paused queue again.  Errors: Forbidden."""
        return await self._driver.run(calls.set_queue(self._session, name, "resume"))

    # --- words ------------------------------------------------------------------------------------------------------

    def command(self, verb: str, *job_ids: str) -> str:
        """The command line that goes on with these jobs here: `milepost wait ID --url …`.  Never a secret."""
        return self._session.command(verb, *job_ids)
