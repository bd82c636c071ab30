"""What a server has: `kinds` and `queues`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from milepost.cli.connect import Place, connected
from milepost.cli.exits import Exit
from milepost.cli.show import duration
from milepost.errors import NotFound
from milepost.wire.native import NativeKind, NativeQueue


@connected
def kinds(
    place: Place,
    name: Annotated[str | None, typer.Argument(help="show this one, with the schema of its input", show_default=False)] = None,
) -> Exit:
    """List what the server can run, or show one kind with its JSON Schemas."""
    found, show = place.client.kinds(), place.show
    if name is not None:
        one = next((kind for kind in found if kind.name == name), None)
        if one is None:
            raise NotFound(f"the server has no kind {name!r}; it has {', '.join(kind.name for kind in found) or 'none'}")
        _show_kind(place, one)
    elif show.as_json:
        for kind in found:
            show.json(msgspec.to_builtins(kind))
    else:
        rows = [
            [Text(kind.name, style="bold"), Text(kind.queue), _takes(kind), Text(_first_line(kind.description))] for kind in found
        ]
        show.table(("kind", "queue", "input", "what it does"), rows)
    return Exit.DONE


def _takes(kind: NativeKind) -> Text:
    """`name, [width]`: the fields of the input; those in brackets may be left out."""
    schema: dict[str, Any] = kind.input_schema or {}
    if "$ref" in schema:
        schema = schema.get("$defs", {}).get(schema["$ref"].rpartition("/")[2], {})
    if "properties" not in schema:
        return Text("nothing" if kind.input_schema is None else "any JSON", style="dim")
    needed = schema.get("required", [])
    return Text(", ".join(field if field in needed else f"[{field}]" for field in schema["properties"]))


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _show_kind(place: Place, kind: NativeKind) -> None:
    show = place.show
    if show.as_json:
        show.json(msgspec.to_builtins(kind))
        return
    show.out.print(
        Text.assemble((kind.name, "bold"), (f"  queue {kind.queue}, priority {kind.priority}, attempts {kind.attempts}", "dim"))
    )
    if kind.timeout_s is not None:
        show.out.print(Text(f"an attempt runs for at most {duration(kind.timeout_s)}", style="dim"))
    if kind.description:
        show.out.print(Text(kind.description))
    for title, schema in (("input", kind.input_schema), ("result", kind.result_schema)):
        if schema is not None:
            show.out.print(Text(title, style="dim"))
            show.out.print_json(data=schema, ensure_ascii=False)


queues_app = typer.Typer(help="List queues; set, pause and resume them.")


@connected
def queues(place: Place, context: typer.Context) -> Exit:
    """List queues; set, pause and resume them."""
    return Exit.DONE if context.invoked_subcommand is not None else _list(place)


@connected
def list_queues(place: Place) -> Exit:
    """List queues and, for admins, what waits in them."""
    return _list(place)


def _list(place: Place) -> Exit:
    found, show = place.client.queues(), place.show
    if show.as_json:
        for queue in found:
            show.json(msgspec.to_builtins(queue))
    else:
        head = ("queue", "limit", "ready", "running", "scheduled", "waiting", "held", "")
        show.table(head, [_row(queue, zero="·" if show.out.is_terminal else "0") for queue in found], right=head[1:-1])
    return Exit.DONE


def _row(queue: NativeQueue, *, zero: str) -> list[Text]:
    counts = queue.jobs
    numbers = [] if counts is None else [counts.ready, counts.running, counts.scheduled, counts.waiting, counts.held]
    cells = [str(number) if number else zero for number in numbers] or [""] * 5
    limit = "default" if queue.limit is None else str(queue.limit)
    return [
        Text(queue.name, style="bold"),
        Text(limit),
        *map(Text, cells),
        Text("paused", style="yellow") if queue.paused else Text(""),
    ]


QueueName = Annotated[str, typer.Argument(metavar="QUEUE", help="queue")]


@connected
def set_queue(
    place: Place,
    name: QueueName,
    limit: Annotated[
        int | None, typer.Option(min=0, help="jobs at the same time, each process [dim](the server's default)[/dim]")
    ] = None,
    paused: Annotated[bool, typer.Option("--paused", help="start no more jobs")] = False,
) -> Exit:
    """Set a queue's limit and pause; counts at once, also for a running server."""
    return _told(place, place.client.set_queue(name, limit=limit, paused=paused))


@connected
def pause_queue(place: Place, name: QueueName) -> Exit:
    """Start no more jobs of a queue; running ones go on."""
    return _told(place, place.client.pause_queue(name))


@connected
def resume_queue(place: Place, name: QueueName) -> Exit:
    """Start jobs of a queue again."""
    return _told(place, place.client.resume_queue(name))


def _told(place: Place, queue: NativeQueue) -> Exit:
    if place.show.as_json:
        place.show.json(msgspec.to_builtins(queue))
    else:
        limit = "the server's default limit" if queue.limit is None else f"limit {queue.limit}"
        place.show.line(f"{queue.name}: {limit}, {'paused' if queue.paused else 'running'}")
    return Exit.DONE


queues_app.callback(invoke_without_command=True)(queues)
queues_app.command("list")(list_queues)
queues_app.command("set")(set_queue)
queues_app.command("pause")(pause_queue)
queues_app.command("resume")(resume_queue)
