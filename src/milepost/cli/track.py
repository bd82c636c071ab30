"""`track`: jobs in other clouds, followed by a Milepost server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from milepost.cli.connect import Place, connected, read_labels
from milepost.cli.exits import Exit, exit_of, exit_of_many
from milepost.cli.jobs import Label
from milepost.cli.proxy import HANDLES, HOST, OF, PORT, Credential, File, Host, Port, Seen, run_proxy
from milepost.cli.show import error_json
from milepost.client import tracked
from milepost.client.handle import read_handle
from milepost.client.steps import Steps
from milepost.errors import InvalidInput, MilepostError
from milepost.wire.tracking import NativeTracked

THERE = "The job's own cloud"

TrackedId = Annotated[str, typer.Argument(metavar="ID", help="id of the tracked job here", show_default=False)]

track_app = typer.Typer()


def run(place: Place, steps: Steps[Any]) -> Any:
    """The result of a conversation with the server."""
    return place.client._driver.run(steps)


@connected
def add(
    place: Place,
    jobs: Annotated[list[str] | None, typer.Argument(metavar="JOB", help="handles as JSON, or ids with --at")] = None,
    credential: Annotated[str | None, typer.Option("--credential", "-c", help="name of the credential to ask with")] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="FILE", help="handles, one a line; - is stdin")] = None,
    at: Annotated[str | None, typer.Option("--at", metavar="URL", help="endpoint of the job", rich_help_panel=THERE)] = None,
    at_wire: Annotated[
        str | None, typer.Option(metavar="WIRE", help="native, glance, qiniu, huawei-ecs and the like", rich_help_panel=THERE)
    ] = None,
    at_project: Annotated[str | None, typer.Option(metavar="ID", help="its project there", rich_help_panel=THERE)] = None,
    label: Label = None,
    callback: Annotated[str | None, typer.Option(metavar="URL", help="told when it is final")] = None,
) -> Exit:
    """Follow jobs to their ends; when an id is printed, that is on disk. Adding one twice is adding it once.

    milepost track add 8f3c… --at https://ecs.region.example --at-wire huawei-ecs --at-project P --credential mine
    """
    labels, codes, show = read_labels(label), [], place.show
    words = [*(jobs or ()), *(_lines(from_) if from_ is not None else ())]
    if not words:
        raise InvalidInput("no job was given", path="JOB", hint="milepost track add HANDLE, or --from FILE")
    for word in words:
        try:
            handle = _handle(word, at, at_wire, at_project)
            found = run(
                place,
                tracked.track(place.client._session, handle, credential=credential, labels=labels, callback_url=callback),
            )
        except MilepostError as error:
            if len(words) == 1:
                raise
            codes.append(exit_of(error))
            if show.as_json:
                show.json({"job": word, "error": error_json(error)})
            else:
                show.error(error)
        else:
            codes.append(Exit.DONE)
            if show.as_json:
                show.json(msgspec.to_builtins(found.handle) | {"tracked": found.id})
            else:
                show.line(found.id)
    return exit_of_many(codes)


def _lines(name: str) -> Iterator[str]:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the handles cannot be read: {error}", path="--from") from error
    return (line for line in text.splitlines() if line.strip())


def _handle(word: str, at: str | None, wire: str | None, project: str | None) -> dict[str, Any]:
    """Errors: InvalidInput."""
    if word.lstrip().startswith("{"):
        given = json.loads(word) if _is_json(word) else word
        if isinstance(given, dict) and isinstance(given.get("handle"), dict):  # as `submit --json` prints it
            given = given["handle"]
        return read_handle(given).to_json()
    if at is None or wire is None:
        raise InvalidInput(f"{word[:80]!r} is an id; where is that job?", path="JOB", hint="--at URL --at-wire WIRE")
    return read_handle({"id": word, "wire": wire, "endpoint": at, "project": project}).to_json()


def _is_json(word: str) -> bool:
    try:
        json.loads(word)
    except ValueError:
        return False
    return True


@connected
def list_(
    place: Place,
    job: Annotated[str | None, typer.Option("--job", metavar="ID", help="by the id that its cloud gave it")] = None,
    at_wire: Annotated[str | None, typer.Option(metavar="WIRE", help="of this wire")] = None,
    credential: Annotated[str | None, typer.Option("--credential", "-c", help="asked for with this credential")] = None,
    state: Annotated[list[str] | None, typer.Option("--state", "-s", help="in this state here; repeatable")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="most that are shown")] = 100,
) -> Exit:
    """List the jobs that are followed, and those that were, newest first."""
    filters = {"id": job, "wire": at_wire, "credential": credential, "state": state or None}
    show, rows = place.show, []
    for one in place.client._driver.iterate(tracked.list_tracked(place.client._session, filters, limit)):
        if show.as_json:
            show.json(msgspec.json.decode(msgspec.json.encode(one)))
        else:
            rows.append(_row(one))
    if not show.as_json:
        show.table(("id", "wire", "job", "there", "here", ""), rows)
    return Exit.DONE


def _row(one: NativeTracked) -> list[Text]:
    return [
        Text(one.id, style="bold"),
        Text(str(one.handle.get("wire", ""))),
        Text(str(one.handle.get("id", ""))),
        Text(one.status or "not seen yet"),
        Text(str(one.job.state)),
        Text(_trouble(one), style="yellow"),
    ]


def _trouble(one: NativeTracked) -> str:
    for since, word in (
        (one.stale_since, "stale"),
        (one.refused_since, "credentials refused"),
        (one.missing_since, "not found"),
    ):
        if since is not None:
            return f"{word} since {since[:19]}Z: {one.trouble}"
    return f"vanished: {one.trouble}" if one.vanished else ""


@connected
def show(place: Place, id: TrackedId) -> Exit:
    """Show a tracked job: where it lives, and how it was last seen there."""
    one: NativeTracked = run(place, tracked.show_tracked(place.client._session, id))
    if place.show.as_json:
        place.show.json(msgspec.json.decode(msgspec.json.encode(one)))
        return Exit.DONE
    facts = {
        "job": f"{one.handle.get('id')} at {one.handle.get('endpoint')} ({one.handle.get('wire')})",
        "credential": one.credential or "none",
        "there": one.status or "not seen yet",
        "seen": one.seen_at,
        "trouble": _trouble(one) or None,
        "here": f"{one.job.state}, {one.job.progress.note}" if one.job.progress.note else str(one.job.state),
        "error": f"{one.job.error.code}: {one.job.error.message}" if one.job.error else None,
    }
    for name, text in facts.items():
        if text:
            place.show.line(f"{name:<11} {text}")
    return Exit.DONE


@connected
def remove(
    place: Place, ids: Annotated[list[str], typer.Argument(metavar="ID", help="ids of tracked jobs", show_default=False)]
) -> Exit:
    """Follow jobs no more. In their clouds they go on; an end that was seen is kept until it expires."""
    for id in ids:
        one: NativeTracked = run(place, tracked.untrack(place.client._session, id))
        if place.show.as_json:
            place.show.json(msgspec.json.decode(msgspec.json.encode(one)))
        else:
            place.show.line(f"{one.id}: {one.job.state}")
    return Exit.DONE


@connected
def track(
    place: Place,
    context: typer.Context,
    proxy: Annotated[
        str | None, typer.Option("--proxy", metavar="URL", help="stand in front of this cloud, and follow what is submitted")
    ] = None,
    of: Annotated[str | None, OF] = None,
    credential: Credential = None,
    handles: File = HANDLES,
    host: Host = HOST,
    port: Port = PORT,
    seen: Seen = False,
) -> Exit:
    """Follow jobs in other clouds: a Milepost server waits for them, keeps their end and pushes it.

    With --proxy it is `milepost proxy URL`: an SDK points at it instead of the cloud. The options here are the proxy's.
    """
    if proxy is not None and context.invoked_subcommand is None:
        if of is None:
            raise InvalidInput("what does the cloud speak?", path="--of", hint="--of native, glance, qiniu, huawei-ecs …")
        return run_proxy(place, proxy, of, credential, handles, host, port, seen=seen)
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")
        return Exit.USAGE
    given = [name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if given:
        raise InvalidInput(
            f"--{given[0]} stands before {context.invoked_subcommand!r}",
            path=f"--{given[0]}",
            hint=f"milepost track {context.invoked_subcommand} --{given[0]} …; before it are the options of --proxy",
        )
    return Exit.DONE


track_app.callback(invoke_without_command=True)(track)
track_app.command("add")(add)
track_app.command("list")(list_)
track_app.command("show")(show)
track_app.command("remove")(remove)
