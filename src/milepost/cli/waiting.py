"""`wait` and `watch`: a live tree on a terminal, plain lines elsewhere, an exit code that tells how it ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.live import Live
from rich.spinner import Spinner

from milepost.cli.connect import Place, Timeout, connected, read_labels
from milepost.cli.exits import Exit, exit_of_view
from milepost.cli.feed import watch_project
from milepost.cli.many import read_jobs, tell_interrupted, wait_many
from milepost.cli.show import Show, job_json, plain_line, result_json, tree
from milepost.client.cadence import Cadence
from milepost.client.sync import JobHandle
from milepost.errors import InvalidInput
from milepost.wire import JobView

PROJECT = "A project's events"
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
To = Annotated[
    str | None,
    typer.Option(
        "--to", metavar="FILE", help="append each result to it, one JSON a line; jobs that are in it are not waited for"
    ),
]
First = Annotated[bool, typer.Option("--any", help="stop at the first job that is final")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="job ids, or their handles as JSON", show_default=False)]


@connected
def wait(
    place: Place,
    ids: Ids = None,
    timeout: Timeout = None,
    every: Every = None,
    from_: From = None,
    to: To = None,
    any_: First = False,
    quiet: Quiet = False,
) -> Exit:
    """Wait until jobs are final, and exit with what they came to.

    Lost connections, restarts of the server and throttling are survived. Ctrl-C stops waiting and cancels nothing.
    Handles may be of different clouds.
    """
    cadence = None if every is None else Cadence(every_s=every)
    jobs = read_jobs(place, ids or [], from_)
    if not jobs:
        raise InvalidInput("no job id was given", path="ID", hint="milepost wait ID, or --from FILE")
    if len(jobs) == 1 and to is None:
        return follow(place.show, jobs[0], timeout_s=timeout, cadence=cadence, quiet=quiet, each=False)
    return wait_many(place.show, jobs, timeout_s=timeout, cadence=cadence, quiet=quiet, source=from_, to=to, first=any_)


@connected
def watch(
    place: Place,
    id: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="job id, or its handle as JSON; none: the project", show_default=False),
    ] = None,
    timeout: Timeout = None,
    every: Every = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", "-l", metavar="KEY=VALUE", help="of jobs with this label; repeatable", rich_help_panel=PROJECT),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD",
            help="show this alone: a state entered, a type of event, or final; repeatable",
            rich_help_panel=PROJECT,
        ),
    ] = None,
    after: Annotated[
        int | None,
        typer.Option(min=0, metavar="EVENT", help="from behind this event, not from now", rich_help_panel=PROJECT),
    ] = None,
) -> Exit:
    """Show each change of a job and its sub-jobs until it is final, and exit as `wait` does.

    Without ID: each event of the project, or of its jobs with a label. A stream that breaks goes on where it was.

    `milepost watch --label env=prod --on final` never ends by itself.
    """
    if id is None:
        if timeout is not None or every is not None:
            raise InvalidInput("--timeout and --every are for one job", path="ID", hint="milepost watch ID --timeout 60")
        return watch_project(place, labels=read_labels(label), on=tuple(on or ()), after=after)
    if label or on or after is not None:
        raise InvalidInput("--label, --on and --after are for the whole project", path="ID", hint="milepost events ID --follow")
    (job,) = read_jobs(place, [id], None)
    cadence = None if every is None else Cadence(every_s=every)
    return follow(place.show, job, timeout_s=timeout, cadence=cadence, quiet=False, each=True)


def follow(show: Show, job: JobHandle, *, timeout_s: float | None, cadence: Cadence | None, quiet: bool, each: bool) -> Exit:
    """Wait for one job and show it.  `each`: every change is worth a line, not only a new state."""
    try:
        if show.live and not quiet:
            view = _draw(show, job.watch(timeout_s=timeout_s, cadence=cadence, tree=True))
        elif quiet or not each:
            view = _tell_states(show, job, timeout_s, cadence, quiet)
        else:
            view = _tell_changes(show, job, job.watch(timeout_s=timeout_s, cadence=cadence, tree=True))
    except KeyboardInterrupt:
        tell_interrupted(show, [job])
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
