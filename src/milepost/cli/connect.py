"""What every command that talks to a server has in common: its options, its client, and how its errors end it."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import sys
import typing
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import typer

from milepost.cli.exits import Exit, exit_of
from milepost.cli.show import Show
from milepost.client.aio import AsyncClient
from milepost.client.sync import Client
from milepost.errors import InvalidInput, MilepostError
from milepost.job import Event

PANEL = "Where and who"

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        "--endpoint",
        "-u",
        envvar="MILEPOST_URL",
        help="server's or service's URL [dim](this machine's port 8080)[/dim]",
        rich_help_panel=PANEL,
    ),
]
Token = Annotated[
    str | None, typer.Option("--token", envvar="MILEPOST_TOKEN", help="token; better in the variable", rich_help_panel=PANEL)
]
Project = Annotated[str | None, typer.Option("--project", envvar="MILEPOST_PROJECT", help="project", rich_help_panel=PANEL)]
Wire = Annotated[
    str | None, typer.Option("--wire", help="native, glance, qiniu, or huawei-ecs and the like", rich_help_panel=PANEL)
]
Cloud = Annotated[str | None, typer.Option("--cloud", help="entry of clouds.yaml instead of a URL", rich_help_panel=PANEL)]
Json = Annotated[bool, typer.Option("--json", help="JSON for programs: one object, or one a line")]
Timeout = Annotated[
    float | None, typer.Option("--timeout", "-t", min=0, metavar="SECONDS", help="stop waiting after so long; the job goes on")
]


class Place:
    """The options of one command line: opens its client when it is first needed."""

    names: ClassVar[tuple[str, ...]] = ("url", "token", "project", "wire", "cloud")

    def __init__(self, show: Show, **options: str | None) -> None:
        self.show, self._options = show, options
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            options = dict(self._options)
            url = options.pop("url")
            if options["cloud"] is not None and not {"--url", "--endpoint", "-u"} & set(sys.argv):
                url = None  # the cloud was named, the URL is only the environment's
            self._client = Client(
                url, wire=options["wire"], cloud=options["cloud"], token=options["token"], project=options["project"]
            )
        return self._client

    def async_client(self) -> AsyncClient:
        """The same client for a running loop; whoever opens it closes it."""
        options = self._options
        return AsyncClient(options["url"], wire=options["wire"], token=options["token"], project=options["project"])

    def client_of(self, handle: dict[str, Any]) -> Client:
        """The client that reaches a handle's job, with the token of this command line."""
        return Client.from_handle(handle, **{name: self._options[name] for name in ("token",) if self._options[name]})

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def connected(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command `function(place, …)`: gets the options of `Place` and `--json`, and its errors become exit codes."""

    @functools.wraps(function)
    def command(**given: Any) -> None:
        show = Show(as_json=given.pop("json"))
        _tell_troubles(show)
        place = Place(show, **{name: given.pop(name) for name in Place.names})
        try:
            end(show, function, place, **given)
        finally:
            place.close()

    add_options(command, function, {"url": Url, "token": Token, "project": Project, "wire": Wire, "cloud": Cloud})
    return command


def add_options(command: Callable[..., Any], function: Callable[..., Any], shared: dict[str, Any]) -> None:
    """`command` has the parameters of `function` behind its first one, then `--json` and these: names with their annotations."""
    hints = typing.get_type_hints(function, include_extras=True)
    own = [one.replace(annotation=hints[one.name]) for one in list(inspect.signature(function).parameters.values())[1:]]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in shared.items()
    ]
    added.insert(0, inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json))
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + added
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}


class _Troubles(logging.Handler):
    """What the client survives, told beside the result."""

    def __init__(self, show: Show) -> None:
        super().__init__(logging.INFO)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show.note(record.getMessage(), style="yellow")


def _tell_troubles(show: Show) -> None:
    logger = logging.getLogger("milepost.client")
    logger.handlers[:] = [_Troubles(show)]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def end(show: Show, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call it and leave with the exit code that it returns, or that its error has."""
    try:
        code = function(*arguments, **options)
    except MilepostError as error:
        show.error(error)
        code = exit_of(error)
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.DONE
    if code:
        raise typer.Exit(int(code))


def read_input(text: str | None) -> Any:
    """The job's input: JSON text, `@file`, or `-` for stdin.  Errors: InvalidInput."""
    if text is None:
        return None
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            with open(text[1:], encoding="utf-8") as file:  # noqa: PTH123 - the user's own spelling is in the message
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"the input cannot be read: {error}", path="INPUT") from error
    try:
        return json.loads(text)
    except ValueError as error:
        hint = "strings need their own double quotes: '\"text\"'" if text and text[0] not in '{["' else None
        raise InvalidInput(f"the input is not JSON: {error}", path="INPUT", hint=hint) from error


def read_labels(values: list[str] | None) -> dict[str, str]:
    """`key=value` each.  Errors: InvalidInput."""
    labels: dict[str, str] = {}
    for value in values or ():
        key, mark, text = value.partition("=")
        if not mark or not key:
            raise InvalidInput(f"a label is key=value, not {value!r}", path="--label")
        labels[key] = text
    return labels


def event_json(event: Event) -> dict[str, Any]:
    """An event as one JSON line."""
    from milepost.wire import native

    shown: dict[str, Any] = json.loads(native.encode(native.from_event(event)))
    return shown
