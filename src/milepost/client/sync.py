"""The blocking client: the calls, each a conversation that the blocking driver runs."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Any

from milepost.client import calls, subscriptions, waits
from milepost.client.budget import Limit
from milepost.client.cadence import Cadence
from milepost.client.drivers import Driver
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
from milepost.client.push import Subscriptions
from milepost.client.signing import KeyPair
from milepost.client.transport import Transport

if TYPE_CHECKING:
    from milepost.job import Event
    from milepost.wire import JobView
    from milepost.wire.native import Missed, NativeKind, NativeQueue


class JobHandle(SeenJob):
    """One job, and what can be done with it.  Attributes show what was last seen; methods ask."""

    __slots__ = ("_driver",)

    def __init__(self, client: Client, known: Known) -> None:
        super().__init__(client._session, known)
        self._driver = client._driver

    def refresh(self) -> JobHandle:
        """Ask once.  Errors: NotFound, Expired, Unreachable, and others of the caller's."""
        found = self._driver.run(calls.get(self._session, self.id))
        if found.view is not None:
            self._known.learn(found.view)
        self._known.etag = found.etag
        return self

    def wait(
        self,
        *,
        timeout_s: float | None = None,
        raise_on_failure: bool = True,
        cadence: Cadence | None = None,
        on_change: Callable[[JobView], None] | None = None,
    ) -> JobHandle:
        """Block until the job is final; see `Client.wait`."""
        steps = waits.wait(
            self._session,
            self._known,
            timeout_s=timeout_s,
            cadence=cadence,
            raise_on_failure=raise_on_failure,
            changes=on_change is not None,
        )
        self._driver.run(steps, on_change)
        return self

    def watch(self, *, timeout_s: float | None = None, cadence: Cadence | None = None, tree: bool = False) -> Iterator[JobView]:
        """Each changed view until the final one; see `Client.watch`."""
        return self._driver.iterate(waits.watch(self._session, self._known, timeout_s=timeout_s, cadence=cadence, tree=tree))

    def cancel(self) -> JobHandle:
        """Ask the job to stop; it may still end otherwise.  Errors: Conflict when it has ended, or the cloud cannot cancel."""
        found = self._driver.run(calls.act(self._session, self.id, "cancel"))
        if found.view is not None:
            self._known.learn(found.view)
        return self


class Client:
    """Jobs in one cloud, blocking.  Safe to share between threads; close it, or use it as a context manager.

    endpoint: the server's URL; None: the cloud's, else `MILEPOST_URL`, else a server on this machine.
    wire: `native` for Milepost's own API, `glance` for OpenStack image tasks, `huawei-ecs` and the like, `qiniu`, where the
    endpoint may be several, by region: `{"z0": URL, "z1": URL}`.
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
        self._driver = Driver(Transport(user_agent=user_agent(), verify=verify, ca_pem=read_ca(ca_file)), time.sleep)

    @classmethod
    def from_handle(cls, handle: Mapping[str, Any] | str | bytes, **options: Any) -> Client:
        """A client that reaches the handle's job; secrets come from `options`, the environment or the cloud's entry.

        The token of the environment goes to the handle's endpoint: take handles only from where you would take a URL.
        """
        _, place = handle_options(handle)
        return cls(**{**place, **options})

    def close(self) -> None:
        """Give its connections back; what is asked afterwards raises RuntimeError."""
        self._session.history.save()
        self._driver.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- jobs -------------------------------------------------------------------------------------------------------

    def submit(
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
    ) -> JobHandle:
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
        return JobHandle(self, self._driver.run(calls.submit(self._session, spec)))

    def submit_many(self, entries: Iterable[Mapping[str, Any]]) -> builtins.list[JobHandle]:
        """Submit `{"kind": …, "input": …}` each, with the options of `submit`; on the native wire at most 1,000, all or none."""
        known = self._driver.run(calls.submit_many(self._session, make_specs(entries)))
        return [JobHandle(self, one) for one in known]

    def get(self, job: str | JobHandle | Mapping[str, Any]) -> JobHandle:
        """The job as it is now.  Errors: NotFound (never existed, or another project's); Expired, with its final state."""
        return JobHandle(self, self._driver.run(calls.get(self._session, job_id_of(self._session, job))))

    def attach(self, job: str | Mapping[str, Any]) -> JobHandle:
        """A job by its id or handle, without asking."""
        return JobHandle(self, Known(job_id_of(self._session, job)))

    def list(
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
    ) -> Iterator[JobHandle]:
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
        for known in self._driver.iterate(calls.list_jobs(self._session, query, limit)):
            yield JobHandle(self, known)

    def cancel(self, job: str | JobHandle | Mapping[str, Any]) -> JobHandle:
        """Ask a job to stop; a running one honours it when it can.  Errors: NotFound, Expired, Conflict."""
        return self._act(job, "cancel")

    def retry(self, job: str | JobHandle | Mapping[str, Any]) -> JobHandle:
        """A new job with the request of a failed or cancelled one.  Errors: NotFound, Expired, Conflict."""
        return self._act(job, "retry")

    def release(self, job: str | JobHandle | Mapping[str, Any]) -> JobHandle:
        """Let a held job run.  Errors: NotFound, Expired, Conflict."""
        return self._act(job, "release")

    def _act(self, job: Any, verb: str) -> JobHandle:
        return JobHandle(self, self._driver.run(calls.act(self._session, job_id_of(self._session, job), verb)))

    # --- waiting ----------------------------------------------------------------------------------------------------

    def wait(
        self,
        job: str | JobHandle | Mapping[str, Any],
        *,
        timeout_s: float | None = None,
        raise_on_failure: bool = True,
        cadence: Cadence | None = None,
        on_change: Callable[[JobView], None] | None = None,
    ) -> JobHandle:
        """Block until the job is final.

        timeout_s: of the whole wait, None for no end.  on_change: called with each changed view.
        Rules: lost connections, 5xx and 429 are survived and counted in the job's `stats`; a wait with no timeout gives up on a
        server that did not answer for five minutes.
        Errors: WaitTimeout (the job still runs); JobFailed, PartialFailure, JobCancelled unless raise_on_failure is False;
        NotFound, Expired, Unauthenticated, Forbidden; Unreachable when nobody ever answered; ProtocolError when what answers
        about a job never seen is no such API.
        """
        handle = job if isinstance(job, JobHandle) else self.attach(job)
        return handle.wait(timeout_s=timeout_s, raise_on_failure=raise_on_failure, cadence=cadence, on_change=on_change)

    def as_completed(
        self,
        jobs: Iterable[str | JobHandle | Mapping[str, Any]],
        *,
        timeout_s: float | None = None,
        cadence: Cadence | None = None,
    ) -> Generator[JobHandle, None, None]:
        """Each job as soon as it is final, in the order in which they end; none raises for having failed.

        A job of which nothing more can be learnt comes out too, with its `problem`.
        Errors: WaitTimeout with `fields["pending"]`; Unauthenticated.
        """
        handles = self._attached(jobs)
        by_known = {id(handle._known): handle for handle in handles}
        known = [handle._known for handle in handles]
        for one in self._driver.iterate(waits.as_completed(self._session, known, timeout_s=timeout_s, cadence=cadence)):
            yield by_known[id(one)]

    def wait_all(
        self,
        jobs: Iterable[str | JobHandle | Mapping[str, Any]],
        *,
        timeout_s: float | None = None,
        raise_on_failure: bool = True,
        cadence: Cadence | None = None,
    ) -> builtins.list[JobHandle]:
        """All jobs, in the given order, once all are final.

        Errors: WaitTimeout; unless raise_on_failure is False, PartialFailure when some did not succeed, JobFailed when none did.
        """
        handles = self._attached(jobs)
        known = [handle._known for handle in handles]
        started_s = self._session.clock.monotonic_s()
        self._driver.run(waits.as_completed(self._session, known, timeout_s=timeout_s, cadence=cadence))
        if raise_on_failure:
            self._driver.run(waits.check_all(self._session, known, self._session.clock.monotonic_s() - started_s))
        return handles

    def wait_any(
        self,
        jobs: Iterable[str | JobHandle | Mapping[str, Any]],
        *,
        timeout_s: float | None = None,
        cadence: Cadence | None = None,
    ) -> JobHandle:
        """The first job that is final, well or not; the others go on.

        Errors: WaitTimeout with `fields["pending"]`; when nothing can be learnt of any job, the first one's problem.
        """
        found: builtins.list[JobHandle] = []
        with closing(self.as_completed(jobs, timeout_s=timeout_s, cadence=cadence)) as completed:
            for job in completed:
                found.append(job)
                if job.problem is None:
                    break
        return first_known(found)

    def _attached(self, jobs: Iterable[Any]) -> builtins.list[JobHandle]:
        return [job if isinstance(job, JobHandle) else self.attach(job) for job in jobs]

    def watch(
        self,
        job: str | JobHandle | Mapping[str, Any],
        *,
        timeout_s: float | None = None,
        cadence: Cadence | None = None,
        tree: bool = False,
    ) -> Iterator[JobView]:
        """Each changed view of the job, the final one last; with `tree`, its sub-jobs are in `sub_jobs`.

        A stream where the server has one, adaptive polling elsewhere.  Errors: WaitTimeout, NotFound, Expired, Unreachable.
        """
        handle = job if isinstance(job, JobHandle) else self.attach(job)
        return handle.watch(timeout_s=timeout_s, cadence=cadence, tree=tree)

    # --- native only ------------------------------------------------------------------------------------------------

    def events(
        self, job: str | JobHandle | Mapping[str, Any], *, after: int = 0, tree: bool = False, follow: bool = False
    ) -> Iterator[Event]:
        """The job's history, oldest first; with `follow`, on until the job (with `tree`: and its sub-jobs) has ended.

        after: the id of the last event that is already known.  Errors: Conflict when the cloud keeps no history.
        """
        conversation = calls.follow_events if follow else calls.events
        return self._driver.iterate(conversation(self._session, job_id_of(self._session, job), after=after, tree=tree))

    def project_events(
        self, *, labels: Mapping[str, str] | None = None, after: int | None = None, follow: bool = False
    ) -> Iterator[Event | Missed]:
        """The project's history behind the event `after`, oldest first; with `follow`, on for ever, from now when it is None.

        labels: of jobs with all of these, or whose root has them.  A `Missed` stands where events went with jobs that expired.
        Errors: Conflict when the cloud keeps no history.
        """
        if follow:
            return self._driver.iterate(subscriptions.follow_project(self._session, labels or {}, after=after))
        return self._driver.iterate(subscriptions.project_events(self._session, labels or {}, after=after or 0))

    @property
    def subscriptions(self) -> Subscriptions:
        """Who is told of the project's events."""
        return Subscriptions(self._session, self._driver)

    def kinds(self) -> builtins.list[NativeKind]:
        """What the server can run.  Errors: Conflict when the wire has no such list."""
        return self._driver.run(calls.catalog(self._session, "kinds"))

    def queues(self) -> builtins.list[NativeQueue]:
        """The server's queues.  Errors: Conflict when the wire has no such list."""
        return self._driver.run(calls.catalog(self._session, "queues"))

    def set_queue(self, name: str, *, limit: int | None = None, paused: bool = False) -> NativeQueue:
        """Set a queue's limit of concurrent jobs a process (None: the server's default) and its pause.  Errors: Forbidden."""
        return self._driver.run(calls.set_queue(self._session, name, {"limit": limit, "paused": paused}))

    def pause_queue(self, name: str) -> NativeQueue:
        """Start no more jobs of a queue; running ones go on.  Errors: Forbidden."""
        return self._driver.run(calls.set_queue(self._session, name, "pause"))

    def resume_queue(self, name: str) -> NativeQueue:
        """Start jobs of a paused queue again.  Errors: Forbidden."""
        return self._driver.run(calls.set_queue(self._session, name, "resume"))

    # --- words ------------------------------------------------------------------------------------------------------

    def command(self, verb: str, *job_ids: str) -> str:
        """The command line that goes on with these jobs here: `milepost wait ID --url …`.  Never a secret."""
        return self._session.command(verb, *job_ids)
