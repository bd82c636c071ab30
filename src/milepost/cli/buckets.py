"""`bucket`: the places that objects are in."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from milepost.cli.show import age
from milepost.cli.storage import Bucket, Place, stored, tell
from milepost.wire import rfc3339

bucket_app = typer.Typer(help="Buckets, as Qiniu's clients see them.", no_args_is_help=True)

Private = Annotated[
    bool | None,
    typer.Option("--private/--public", help="who may read without a signature [dim](private where there is auth)[/dim]"),
]


@bucket_app.command("create")
@stored
def create_bucket(place: Place, bucket: Bucket, private: Private = None) -> None:
    """Make a bucket; its name is unique over the whole server."""
    made = place.storage.create_bucket(bucket, private=private)
    tell(place.show, {"name": bucket, "private": bool(made["private"]), "region": made["region"], "host": made["host"]})


@bucket_app.command("list")
@stored
def list_buckets(place: Place) -> None:
    """List the project's buckets."""
    found = place.storage.buckets()
    if place.show.as_json:
        for one in found:
            created_at = rfc3339(one["ctime"] * 1_000_000)
            place.show.json(
                {"name": one["tbl"], "private": bool(one["private"]), "region": one["region"], "created_at": created_at}
            )
        return
    rows = [
        [
            Text(one["tbl"]),
            Text("private" if one["private"] else "public"),
            Text(age(one["ctime"] * 1_000_000)),
            Text(one["host"]),
        ]
        for one in found
    ]
    place.show.table(("name", "read", "created", "host"), rows)


@bucket_app.command("delete")
@stored
def delete_bucket(place: Place, bucket: Bucket) -> None:
    """Delete an empty bucket."""
    place.storage.delete_bucket(bucket)
    tell(place.show, {"deleted": bucket})
