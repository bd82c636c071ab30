"""What `bucket` and `object` have in common: where the server is, the key that signs, and how errors end a command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.text import Text

from milepost.cli.connect import PANEL, add_options, end
from milepost.cli.show import Show
from milepost.client.open import DEFAULT_URL
from milepost.client.storage import Storage
from milepost.errors import InvalidInput
from milepost.wire.signing.qiniu import Key

Url = Annotated[
    str | None,
    typer.Option(
        "--url", "-u", envvar="MILEPOST_URL", help="server's URL [dim](this machine's port 8080)[/dim]", rich_help_panel=PANEL
    ),
]
Access = Annotated[
    str | None,
    typer.Option(
        "--access-key", envvar="MILEPOST_ACCESS_KEY", help="access key, where the server has auth", rich_help_panel=PANEL
    ),
]
Secret = Annotated[
    str | None,
    typer.Option("--secret-key", envvar="MILEPOST_SECRET_KEY", help="its secret; better in the variable", rich_help_panel=PANEL),
]
Project = Annotated[
    str | None,
    typer.Option("--project", envvar="MILEPOST_PROJECT", help="project, on a server without auth", rich_help_panel=PANEL),
]
Bucket = Annotated[str, typer.Argument(metavar="BUCKET", help="name of the bucket")]
ObjectKey = Annotated[str, typer.Argument(metavar="KEY", help="key of the object, any text")]


SHARED: dict[str, Any] = {"url": Url, "access_key": Access, "secret_key": Secret, "project": Project}


class Place:
    """The options of one command line: opens the server's storage when it is first needed."""

    def __init__(
        self, show: Show, *, url: str | None, access_key: str | None, secret_key: str | None, project: str | None
    ) -> None:
        self.show = show
        self._url, self._access, self._secret, self._project = url, access_key, secret_key, project
        self._storage: Storage | None = None

    @property
    def storage(self) -> Storage:
        """Errors: InvalidInput when only half of a key is given."""
        if self._storage is None:
            if bool(self._access) != bool(self._secret):
                raise InvalidInput("an access key and its secret are given together", path="--access-key")
            key = Key(self._access, self._secret) if self._access and self._secret else None
            self._storage = Storage(self._url or DEFAULT_URL, key, project=self._project)
        return self._storage

    def close(self) -> None:
        if self._storage is not None:
            self._storage.close()


def stored(function: Callable[..., None]) -> Callable[..., None]:
    """A command `function(place, …)`: gets the options of `Place` and `--json`, and its errors become exit codes."""

    @functools.wraps(function)
    def command(**given: Any) -> None:
        show = Show(as_json=given.pop("json"))
        place = Place(show, **{name: given.pop(name) for name in SHARED})

        def acted() -> None:
            try:
                function(place, **given)
            except BrokenPipeError:  # the reader of our output has seen enough
                raise
            except OSError as error:
                raise InvalidInput(f"{error.filename}: {error.strerror}", path="FILE") from error

        try:
            end(show, acted)
        finally:
            place.close()

    add_options(command, function, SHARED)
    return command


def tell(show: Show, fields: dict[str, Any]) -> None:
    """One thing, a line for each of its fields."""
    if show.as_json:
        show.json(fields)
        return
    for name, value in fields.items():
        show.out.print(Text.assemble((f"{name:<10} ", "dim"), str(value)), soft_wrap=True)


def size(size_bytes: int) -> str:
    """`12.3 MiB`."""
    amount, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount, units = amount / 1024, units[1:]
    return f"{amount:.0f} {units[0]}" if units[0] == "B" else f"{amount:.1f} {units[0]}"
