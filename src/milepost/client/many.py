"""Waits for jobs of different clouds in one call.

Theory: one conversation for each cloud, side by side: a thread or a task for each cloud, never for a job.  What ends in one cloud
comes out while another one is silent; one that fails does not end the others.

Rules
1. Jobs are job objects of any clients, or their handles as JSON; handles of one place share a client, which is closed at the end.
2. An error that ends the wait in one cloud is raised when the others have ended; the ids that were pending anywhere are in it.
3. Leaving the iterator early stops the waits and cancels nothing.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing, closing
from typing import Any, TypeVar

from milepost.client import waits
from milepost.client.aio import AsyncClient, AsyncJobHandle
from milepost.client.bulk import Bulk
from milepost.client.cadence import Cadence
from milepost.client.handle import read_handle
from milepost.client.jobview import SeenJob, first_known
from milepost.client.sync import Client, JobHandle
from milepost.errors import InvalidInput, MilepostError, WaitTimeout

AnyJob = JobHandle | Mapping[str, Any] | str | bytes
AnyAsyncJob = AsyncJobHandle | Mapping[str, Any] | str | bytes
S = TypeVar("S", bound=SeenJob)


# --- blocking -----------------------------------------------------------------------------------------------------------


def as_completed(
    jobs: Iterable[AnyJob], *, timeout_s: float | None = None, cadence: Cadence | None = None
) -> Generator[JobHandle, None, None]:
    """Each job as soon as it is final, whichever cloud it is in; see `Client.as_completed`."""
    with ExitStack() as stack:
        yield from _completed(_opened(jobs, Client, JobHandle, stack.enter_context), timeout_s, cadence)


def wait_all(
    jobs: Iterable[AnyJob],
    *,
    timeout_s: float | None = None,
    raise_on_failure: bool = True,
    cadence: Cadence | None = None,
) -> list[JobHandle]:
    """All jobs, in the given order, once all are final, whichever clouds they are in; see `Client.wait_all`."""
    started_s = time.monotonic()
    with ExitStack() as stack:
        handles = _opened(jobs, Client, JobHandle, stack.enter_context)
        for _ in _completed(handles, timeout_s, cadence):
            pass
        if raise_on_failure and (bad := _first_bad(handles)) is not None:
            elapsed_s = bad._session.clock.monotonic_s() - started_s
            bad._driver.run(waits.check_all(bad._session, [job._known for job in handles], elapsed_s))
        return handles


def wait_any(jobs: Iterable[AnyJob], *, timeout_s: float | None = None, cadence: Cadence | None = None) -> JobHandle:
    """The first job that is final, whichever cloud it is in; see `Client.wait_any`."""
    found: list[JobHandle] = []
    with closing(as_completed(jobs, timeout_s=timeout_s, cadence=cadence)) as completed:
        for job in completed:
            found.append(job)
            if job.problem is None:
                break
    return first_known(found)


def _completed(
    handles: Sequence[JobHandle], timeout_s: float | None, cadence: Cadence | None
) -> Generator[JobHandle, None, None]:
    groups = _groups(handles, timeout_s, cadence)
    came: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for driver, bulk, by_known in groups:
        threading.Thread(target=_run_group, args=(driver, bulk, by_known, came.put), name="milepost-wait", daemon=True).start()
    errors: list[MilepostError] = []
    open_ = len(groups)
    try:
        while open_:
            one = came.get()
            if isinstance(one, JobHandle):
                yield one
                continue
            open_ -= 1
            _keep(errors, one)
    finally:
        for _, bulk, _ in groups:
            bulk.stop()
    _raise(errors)


def _run_group(driver: Any, bulk: Bulk, by_known: dict[int, JobHandle], put: Callable[[Any], None]) -> None:
    try:
        for known in driver.iterate(bulk.run()):
            put(by_known[id(known)])
    except BaseException as error:  # handed to the caller
        put(error)
    else:
        put(None)


# --- on the loop --------------------------------------------------------------------------------------------------------


async def as_completed_async(
    jobs: Iterable[AnyAsyncJob], *, timeout_s: float | None = None, cadence: Cadence | None = None
) -> AsyncGenerator[AsyncJobHandle, None]:
    """Each job as soon as it is final, whichever cloud it is in; see `AsyncClient.as_completed`."""
    async with AsyncExitStack() as stack:
        opened: list[AsyncClient] = []
        handles = _opened(jobs, AsyncClient, AsyncJobHandle, opened.append)
        for client in opened:
            await stack.enter_async_context(client)
        async with aclosing(_completed_async(handles, timeout_s, cadence)) as completed:
            async for job in completed:
                yield job


async def wait_all_async(
    jobs: Iterable[AnyAsyncJob],
    *,
    timeout_s: float | None = None,
    raise_on_failure: bool = True,
    cadence: Cadence | None = None,
) -> list[AsyncJobHandle]:
    """All jobs, in the given order, once all are final, whichever clouds they are in; see `AsyncClient.wait_all`."""
    started_s = time.monotonic()
    async with AsyncExitStack() as stack:
        opened: list[AsyncClient] = []
        handles = _opened(jobs, AsyncClient, AsyncJobHandle, opened.append)
        for client in opened:
            await stack.enter_async_context(client)
        async with aclosing(_completed_async(handles, timeout_s, cadence)) as completed:
            async for _ in completed:
                pass
        if raise_on_failure and (bad := _first_bad(handles)) is not None:
            elapsed_s = bad._session.clock.monotonic_s() - started_s
            await bad._driver.run(waits.check_all(bad._session, [job._known for job in handles], elapsed_s))
        return handles


async def wait_any_async(
    jobs: Iterable[AnyAsyncJob], *, timeout_s: float | None = None, cadence: Cadence | None = None
) -> AsyncJobHandle:
    """The first job that is final, whichever cloud it is in; see `AsyncClient.wait_any`."""
    found: list[AsyncJobHandle] = []
    async with aclosing(as_completed_async(jobs, timeout_s=timeout_s, cadence=cadence)) as completed:
        async for job in completed:
            found.append(job)
            if job.problem is None:
                break
    return first_known(found)


async def _completed_async(
    handles: Sequence[AsyncJobHandle], timeout_s: float | None, cadence: Cadence | None
) -> AsyncGenerator[AsyncJobHandle, None]:
    groups = _groups(handles, timeout_s, cadence)
    came: asyncio.Queue[Any] = asyncio.Queue()
    tasks = [asyncio.ensure_future(_run_group_async(*group, came.put_nowait)) for group in groups]
    errors: list[MilepostError] = []
    open_ = len(tasks)
    try:
        while open_:
            one = await came.get()
            if isinstance(one, AsyncJobHandle):
                yield one
                continue
            open_ -= 1
            _keep(errors, one)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    _raise(errors)


async def _run_group_async(driver: Any, bulk: Bulk, by_known: dict[int, AsyncJobHandle], put: Callable[[Any], None]) -> None:
    try:
        async with aclosing(driver.iterate(bulk.run())) as emitted:
            async for known in emitted:
                put(by_known[id(known)])
    except Exception as error:  # handed to the caller
        put(error)
    else:
        put(None)


# --- both ---------------------------------------------------------------------------------------------------------------


def _opened(jobs: Iterable[Any], client_of: Any, job_of: type[S], enter: Callable[[Any], Any]) -> list[S]:
    """Job objects; those of handles belong to clients that `enter` keeps until the end."""
    clients: dict[Any, Any] = {}
    found: list[S] = []
    for job in jobs:
        if not isinstance(job, job_of):
            if isinstance(job, str) and not job.lstrip().startswith("{"):
                raise InvalidInput(
                    f"{job[:80]!r} does not say where its job is", path="$.jobs", hint="give a handle, or use a client's own wait"
                )
            handle = read_handle(job)
            place = (handle.wire, handle.endpoint, handle.project, handle.cloud)
            if place not in clients:
                clients[place] = client_of.from_handle(handle.to_json())
                enter(clients[place])
            job = clients[place].attach(handle.to_json())
        found.append(job)
    return found


def _groups(handles: Sequence[Any], timeout_s: float | None, cadence: Cadence | None) -> list[tuple[Any, Bulk, dict[int, Any]]]:
    """The jobs by client, each with the conversation that waits for them."""
    by_client: dict[int, list[Any]] = {}
    for job in handles:
        by_client.setdefault(id(job._driver), []).append(job)
    return [
        (
            group[0]._driver,
            Bulk(group[0]._session, [job._known for job in group], timeout_s=timeout_s, cadence=cadence),
            {id(job._known): job for job in group},
        )
        for group in by_client.values()
    ]


def _first_bad(handles: Sequence[S]) -> S | None:
    return next((job for job in handles if not job.ok), None)


def _keep(errors: list[MilepostError], end: BaseException | None) -> None:
    """How one cloud's wait ended; what is not about a cloud is raised at once."""
    if isinstance(end, MilepostError):
        errors.append(end)
    elif end is not None:
        raise end


def _raise(errors: list[MilepostError]) -> None:
    """Errors: the most telling one of the clouds' (anything but a timeout), with all that is pending."""
    if not errors:
        return
    worst = next((error for error in errors if not isinstance(error, WaitTimeout)), errors[0])
    pending = [job_id for error in errors for job_id in error.fields.get("pending", ())]
    if pending:
        worst.fields["pending"] = pending
    hints = [error.hint for error in errors if error.hint]
    if len(errors) > 1 and hints:
        worst.hint = " && ".join(hints)
    raise worst


__all__ = ["as_completed", "as_completed_async", "wait_all", "wait_all_async", "wait_any", "wait_any_async"]
