"""Commands about jobs: submit, get, list, events, cancel, retry, release."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from milepost.cli.connect import Place, Timeout, connected, read_input, read_labels
from milepost.cli.exits import Exit, exit_of, exit_of_many
from milepost.cli.feed import tell_event
from milepost.cli.show import (
    age,
    amount,
    counts_text,
    duration,
    error_json,
    job_json,
    percent,
    plain_line,
    ran_s,
    result_json,
    state_text,
    until,
)
from milepost.cli.waiting import follow
from milepost.client.sync import JobHandle
from milepost.errors import InvalidInput, MilepostError
from milepost.job import State
from milepost.wire import JobView

SHAPE = "How it runs"

Id = Annotated[str, typer.Argument(metavar="ID", help="job id, or its handle as JSON")]
ManyIds = Annotated[list[str], typer.Argument(metavar="ID", help="job ids, or their handles as JSON", show_default=False)]
Label = Annotated[list[str] | None, typer.Option("--label", "-l", metavar="KEY=VALUE", help="label; repeatable")]


@connected
def submit(
    place: Place,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="what to run; `milepost kinds` lists them")],
    input: Annotated[
        str | None, typer.Argument(metavar="INPUT", help="JSON text, @FILE, or - for stdin", show_default=False)
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="wait for its end, and exit with what it came to")] = False,
    timeout: Timeout = None,
    label: Label = None,
    queue: Annotated[str | None, typer.Option(help="queue instead of the kind's own", rich_help_panel=SHAPE)] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="0 is first, 9 last", rich_help_panel=SHAPE)] = None,
    attempts: Annotated[int | None, typer.Option(min=1, help="most attempts", rich_help_panel=SHAPE)] = None,
    attempt_timeout: Annotated[
        float | None, typer.Option(min=0.001, metavar="SECONDS", help="longest one attempt may run", rich_help_panel=SHAPE)
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="SECONDS", help="the job fails when it has not ended by then", rich_help_panel=SHAPE),
    ] = None,
    run_at: Annotated[
        datetime | None,
        typer.Option(
            metavar="INSTANT",
            formats=["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M:%S"],
            help="not before, as 2026-03-04T05:06:07+00:00",
            rich_help_panel=SHAPE,
        ),
    ] = None,
    held: Annotated[bool, typer.Option("--held", help="wait for `milepost release`", rich_help_panel=SHAPE)] = False,
    callback: Annotated[str | None, typer.Option(metavar="URL", help="told when the job is final", rich_help_panel=SHAPE)] = None,
    callback_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD",
            help="tell the callback of this: a state entered, a type of event, final or all; repeatable",
            rich_help_panel=SHAPE,
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="TEXT", help="idempotency key: the same key gives the same job", rich_help_panel=SHAPE)
    ] = None,
) -> Exit:
    """Submit a job; when its id is printed, the job is on disk.

    milepost submit echo '{"text": "hello"}' --wait
    """
    job = place.client.submit(
        kind,
        read_input(input),
        labels=read_labels(label),
        queue=queue,
        priority=priority,
        attempts_max=attempts,
        timeout_s=attempt_timeout,
        deadline_s=deadline,
        run_at=run_at,
        held=held,
        callback_url=callback,
        callback_on=callback_on or (),
        idempotency_key=key,
    )
    show = place.show
    if wait:
        return follow(show, job, timeout_s=timeout, cadence=None, quiet=False, each=False)
    if show.as_json:
        show.json(job_json(job.view, job.handle))
    else:
        show.line(job.id)
        if show.live:
            show.note(f"  → {place.client.command('wait', job.id)}", style="cyan")
    return Exit.DONE


@connected
def get(
    place: Place,
    id: Id,
    raw: Annotated[bool, typer.Option("--raw", help="the cloud's whole answer, as it sent it")] = False,
) -> Exit:
    """Show a job as it is now."""
    job = place.client.get(id)
    show = place.show
    if raw:
        show.out.print_json(data=job.view.raw, ensure_ascii=False) if show.live else show.json(job.view.raw)
    elif show.as_json:
        show.json(job_json(job.view, job.handle))
    else:
        for name, text in _facts(job.view):
            show.out.print(Text.assemble((f"{name:<10} ", "dim"), text))
        for sub in job.view.sub_jobs:
            show.out.print(Text(f"  {plain_line(sub)}"), soft_wrap=True)
        if (result := result_json(job.view)) is not None:
            show.out.print(Text("result", style="dim"))
            show.out.print_json(data=result, ensure_ascii=False)
    return Exit.DONE


def _facts(view: JobView) -> list[tuple[str, Text]]:
    """What is worth knowing of a job, by name."""
    facts: list[tuple[str, Text]] = [("id", Text(view.id)), ("kind", Text(view.kind)), ("state", state_text(view))]
    if view.project:
        facts.append(("project", Text(view.project)))
    if view.progress is not None and (view.progress.done or view.progress.total or view.progress.note):
        parts = (
            percent(view.progress),
            amount(view.progress) if view.progress.done or view.progress.total else "",
            view.progress.note,
        )
        facts.append(("progress", Text("  ".join(part for part in parts if part))))
    if any(view.sub_counts.values()):
        facts.append(("sub-jobs", Text(counts_text(view.sub_counts))))
    if view.error is not None:
        facts.append(("error", Text.assemble((view.error.message, "red"), (f"  {view.error.code}", "dim"))))
    if view.parent_id:
        facts.append(("parent", Text(view.parent_id)))
    raw = view.raw if isinstance(view.raw, dict) else {}
    if raw.get("attempts_max", 1) > 1:
        facts.append(("attempt", Text(f"{raw.get('attempt', 0)} of {raw['attempts_max']}")))
    if raw.get("labels"):
        facts.append(("labels", Text(", ".join(f"{key}={value}" for key, value in raw["labels"].items()))))
    facts.append(("created", Text(age(view.created_us))))
    if view.state is State.READY and (due := until(raw.get("run_at"))):
        facts.append(("runs", Text(due)))
    took = ran_s(view)
    if took is not None and view.started_us is not None:
        facts.append(("ran", Text(duration(took))))
    return facts


@connected
def list_(
    place: Place,
    state: Annotated[list[str] | None, typer.Option("--state", "-s", help="in this state; repeatable")] = None,
    kind: Annotated[str | None, typer.Option("--kind", "-k", help="of this kind")] = None,
    queue: Annotated[str | None, typer.Option("--queue", help="in this queue")] = None,
    label: Label = None,
    parent: Annotated[str | None, typer.Option("--parent", metavar="ID", help="sub-jobs of this job")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="most jobs shown; 0 is all")] = 20,
    oldest: Annotated[bool, typer.Option("--oldest", help="oldest first")] = False,
    full: Annotated[bool, typer.Option("--full", help="with --json or --raw: results too, which lists leave out")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="each as the cloud sent it, one a line")] = False,
) -> Exit:
    """List jobs, newest first; sub-jobs with --parent."""
    jobs = place.client.list(
        state=state or (),
        kind=kind,
        queue=queue,
        labels=read_labels(label),
        parent_id=parent,
        limit=limit or None,
        page_size=None if limit else 500,
        oldest_first=oldest,
        full=full,
    )
    show = place.show
    if raw or show.as_json:
        for job in jobs:
            show.json(job.view.raw if raw else _listed_json(job))
        return Exit.DONE
    rows = (_row(job.view, glyph=show.out.is_terminal) for job in jobs)
    if not show.out.is_terminal:
        show.table((), rows)
        return Exit.DONE
    found = list(rows)
    if not found:
        show.note("no jobs" if parent else "no jobs; sub-jobs are listed with --parent ID")
        return Exit.DONE
    show.lines(("id", "state", "kind", "created", "ran", "what"), found, spare=("ran", "created"))
    if limit and len(found) == limit:
        show.note(f"the newest {limit}; --limit 0 shows all" if not oldest else f"the oldest {limit}; --limit 0 shows all")
    return Exit.DONE


def _listed_json(job: JobHandle) -> dict[str, Any]:
    """A job of a list: the result is left out where the list did not tell it, so that nobody takes null for it."""
    shown = job_json(job.view, job.handle)
    if shown["result"] is None and job.view.state is State.SUCCEEDED and "result" not in (job.view.raw or {}):
        del shown["result"]
    return shown


def _row(view: JobView, *, glyph: bool) -> list[Text]:
    took = ran_s(view) if view.started_us is not None else None
    what = ""
    if view.error is not None:
        what = view.error.message
    elif any(view.sub_counts.values()):
        what = counts_text(view.sub_counts)
    elif view.progress is not None and not view.done:
        what = "  ".join(part for part in (percent(view.progress), view.progress.note) if part)
    return [
        Text(view.id),
        state_text(view) if glyph else Text(str(view.state)),
        Text(view.kind),
        Text(age(view.created_us)),
        Text("" if took is None else duration(took)),
        Text(what),
    ]


@connected
def events(
    place: Place,
    id: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the job has ended")] = False,
    tree: Annotated[bool, typer.Option("--tree", help="with those of its sub-jobs")] = False,
    after: Annotated[int, typer.Option(min=0, metavar="EVENT", help="only after this event's id")] = 0,
) -> Exit:
    """Show what happened to a job, oldest first."""
    show = place.show
    try:
        for event in place.client.events(id, after=after, tree=tree, follow=follow):
            tell_event(show, event, short_id=tree)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    return Exit.DONE


@connected
def cancel(place: Place, ids: ManyIds) -> Exit:
    """Ask jobs to stop; a running one stops as soon as it can."""
    return _act(place, ids, "cancel")


@connected
def retry(place: Place, ids: ManyIds) -> Exit:
    """Run failed or cancelled jobs again, as new jobs; prints the new ids."""
    return _act(place, ids, "retry")


@connected
def release(place: Place, ids: ManyIds) -> Exit:
    """Let held jobs run."""
    return _act(place, ids, "release")


def _act(place: Place, ids: list[str], verb: str) -> Exit:
    codes = []
    for id in ids:
        try:
            job = getattr(place.client, verb)(id)
        except InvalidInput:
            raise
        except MilepostError as error:
            codes.append(exit_of(error))
            place.show.json({"id": id, "error": error_json(error)}) if place.show.as_json else place.show.error(error)
            continue
        codes.append(Exit.DONE)
        _tell(place, job, verb)
    return exit_of_many(codes)


def _tell(place: Place, job: JobHandle, verb: str) -> None:
    show = place.show
    if show.as_json:
        show.json(job_json(job.view, job.handle))
    elif verb == "retry":
        show.line(job.id)
    elif show.out.is_terminal:
        asked = verb == "cancel" and not job.done
        show.out.print(state_text(job.view).append(", asked to stop" if asked else "").append(f"  {job.id}", style="dim"))
    else:
        show.line(f"{job.id}\t{job.state}")
