"""`wait` and `watch`: a live tree on a terminal, plain lines elsewhere, an exit code that tells how it ended."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.spinner import Spinner

from milepost.cli.connect import Place, Timeout, connected
from milepost.cli.exits import Exit, exit_of, exit_of_many, exit_of_view
from milepost.cli.show import Show, error_json, job_json, plain_line, result_json, state_text, tree
from milepost.client.cadence import Cadence
from milepost.client.handle import read_handle
from milepost.client.sync import Client, JobHandle
from milepost.errors import InvalidInput, MilepostError
from milepost.wire import JobView

REDRAWS_PER_S = 8
PROGRESS_EVERY_S = 2.0  # least time between two plain lines about the same state

Every = Annotated[
    float | None,
    typer.Option("--every", min=0.05, metavar="SECONDS", help="ask at this interval [dim](as suits the job's age)[/dim]"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="say nothing but the exit code")]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="FILE", help="job handles or ids, one a line, as `submit --json` prints; - is stdin"),
]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="job ids, or their handles as JSON", show_default=False)]


@connected
def wait(
    place: Place, ids: Ids = None, timeout: Timeout = None, every: Every = None, from_: From = None, quiet: Quiet = False
) -> Exit:
    """Wait until jobs are final, and exit with what they came to.

    Lost connections, restarts of the server and throttling are survived. Ctrl-C stops waiting and cancels nothing.
    """
    groups = _groups(place, ids or [], from_)
    cadence = None if every is None else Cadence(every_s=every)
    count = sum(len(jobs) for _, jobs in groups)
    if count == 0:
        raise InvalidInput("no job id was given", path="ID", hint="milepost wait ID, or --from FILE")
    if count == 1:
        ((client, (job,)),) = groups
        return follow(place.show, client, job, timeout_s=timeout, cadence=cadence, quiet=quiet, each=False)
    return _wait_many(place.show, groups, timeout, cadence, quiet)


@connected
def watch(
    place: Place,
    id: Annotated[str, typer.Argument(metavar="ID", help="job id, or its handle as JSON")],
    timeout: Timeout = None,
    every: Every = None,
) -> Exit:
    """Show each change of a job and its sub-jobs until it is final; exits as `wait` does."""
    (group,) = _groups(place, [id], None)
    client, (job,) = group
    cadence = None if every is None else Cadence(every_s=every)
    return follow(place.show, client, job, timeout_s=timeout, cadence=cadence, quiet=False, each=True)


def follow(
    show: Show, client: Client, job: JobHandle, *, timeout_s: float | None, cadence: Cadence | None, quiet: bool, each: bool
) -> Exit:
    """Wait for one job and show it.  `each`: every change is worth a line, not only a new state."""
    try:
        if show.live and not quiet:
            view = _draw(show, job.watch(timeout_s=timeout_s, cadence=cadence, tree=True))
        elif quiet or not each:
            view = _tell_states(show, job, timeout_s, cadence, quiet)
        else:
            view = _tell_changes(show, job, job.watch(timeout_s=timeout_s, cadence=cadence, tree=True))
    except KeyboardInterrupt:
        _interrupted(show, [(client, [job])])
        return Exit.INTERRUPTED
    if quiet:
        pass
    elif show.as_json and not each:
        show.json(job_json(view, job.handle))
    elif show.live:
        _tell_result(show, view)
    return exit_of_view(view)


def _draw(show: Show, views: Iterator[JobView]) -> JobView:
    """The live tree; what stands there at the end stays on the screen."""
    spin = Spinner("dots", style="cyan")
    last: JobView | None = None
    # On stderr, so that stdout has the result alone.
    with Live(console=show.err, refresh_per_second=REDRAWS_PER_S, transient=False) as live:
        for view in views:
            last = view
            live.update(tree(view, lines=show.err.height - 2, spin=None if view.done else spin), refresh=view.done)
    assert last is not None
    return last


def _tell_states(show: Show, job: JobHandle, timeout_s: float | None, cadence: Cadence | None, quiet: bool) -> JobView:
    """A line for each new state and for the end, and one now and then about progress."""
    told: tuple[str, float] = ("", 0.0)

    def tell(view: JobView) -> None:
        nonlocal told
        now_s = time.monotonic()
        if view.done or view.state != told[0] or now_s - told[1] >= PROGRESS_EVERY_S:
            told = (view.state, now_s)
            show.line(plain_line(view))

    silent = quiet or show.as_json
    job.wait(timeout_s=timeout_s, cadence=cadence, raise_on_failure=False, on_change=None if silent else tell)
    return job.view


def _tell_changes(show: Show, job: JobHandle, views: Iterator[JobView]) -> JobView:
    last: JobView | None = None
    told = ""
    for view in views:
        last = view
        if show.as_json:
            show.json(job_json(view, job.handle))
        elif (line := plain_line(view)) != told:
            told = line
            show.line(line)
    assert last is not None
    return last


def _tell_result(show: Show, view: JobView) -> None:
    if (result := result_json(view)) is not None:
        show.out.print_json(data=result, ensure_ascii=False)


# --- many -----------------------------------------------------------------------------------------------------------------

Groups = list[tuple[Client, list[JobHandle]]]


def _groups(place: Place, ids: list[str], source: str | None) -> Groups:
    """The jobs by the client that reaches them: ids by this command line's, handles by their own."""
    clients: dict[Any, tuple[Client, list[JobHandle]]] = {}
    for text in [*ids, *_lines(source)]:
        if not text.lstrip().startswith("{"):
            _, jobs = clients.setdefault(None, (place.client, []))
            jobs.append(place.client.attach(text))
            continue
        handle = read_handle(text)
        key = (handle.wire, handle.endpoint, handle.project, handle.cloud)
        if key not in clients:
            clients[key] = (place.client_of(handle.to_json()), [])
        clients[key][1].append(clients[key][0].attach(handle.to_json()))
    return list(clients.values())


def _lines(source: str | None) -> list[str]:
    if source is None:
        return []
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the handles cannot be read: {error}", path="--from") from error
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            found.append(_handle_line(line.strip(), number))
    return found


def _handle_line(line: str, number: int) -> str:
    """A handle or an id; the JSON of `submit --json` has its handle inside."""
    if not line.startswith("{"):
        return line
    try:
        value = json.loads(line)
        return json.dumps(value.get("handle", value))
    except ValueError as error:
        raise InvalidInput(f"line {number} is no JSON: {error}", path="--from") from error


def _wait_many(show: Show, groups: Groups, timeout_s: float | None, cadence: Cadence | None, quiet: bool) -> Exit:
    codes: list[Exit] = []
    started_s = time.monotonic()
    jobs = [job for _, group in groups for job in group]
    try:
        # One cloud after the other: what ends elsewhere meanwhile is found at once, so the whole takes as long as the slowest.
        for client, group in groups:
            left_s = None if timeout_s is None else max(0.0, timeout_s - (time.monotonic() - started_s))
            for job in client.as_completed(group, timeout_s=left_s, cadence=cadence):
                codes.append(_tell_ended(show, job, quiet, len(codes) + 1, len(jobs)))
    except KeyboardInterrupt:
        _interrupted(show, groups)
        return Exit.INTERRUPTED
    return exit_of_many(codes)


def _tell_ended(show: Show, job: JobHandle, quiet: bool, number: int, total: int) -> Exit:
    problem = job.problem
    if show.as_json and not quiet:
        show.json({"handle": job.handle, "error": error_json(problem)} if problem else job_json(job.view, job.handle))
    elif not quiet and problem is not None:
        show.line(f"{job.id}  unknown  {problem.message}")
    elif not quiet and show.live:
        text = state_text(job.view).append(f"  {job.kind}  ", style="").append(job.id, style="dim")
        reason = f"  {job.error.message}" if job.error is not None else ""
        show.out.print(f"[dim]{number:>{len(str(total))}}/{total}[/dim]", text.append(reason))
    elif not quiet:
        show.line(plain_line(job.view))
    return exit_of(problem) if isinstance(problem, MilepostError) else exit_of_view(job.view)


def _interrupted(show: Show, groups: Groups) -> None:
    """Ctrl-C: the jobs go on; say how to wait again, with one command for each cloud."""
    pending = [(client, [job.id for job in jobs if not job.done and job.problem is None]) for client, jobs in groups]
    ids = [id for _, some in pending for id in some]
    if not ids:
        return
    what = f"job {ids[0]} goes on" if len(ids) == 1 else f"{len(ids)} jobs go on"
    told = f"stopped waiting, cancelled nothing: {what}"
    commands = [client.command("wait", *some) for client, some in pending if some]
    if show.as_json:
        show.json({"error": {"code": "interrupted", "message": told, "hint": " && ".join(commands), "pending": ids}})
        return
    show.note(told, style="yellow")
    for command in commands:
        show.note(f"  → {command}", style="cyan")
