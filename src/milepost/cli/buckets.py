"""`bucket`: the places that objects are in."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from milepost.cli.connect import Json
from milepost.cli.show import Show, age
from milepost.cli.storage import Access, Bucket, Place, Project, Secret, Url, run, tell
from milepost.client.storage import Storage
from milepost.wire import rfc3339

bucket_app = typer.Typer(help="Buckets, as Qiniu's clients see them.", no_args_is_help=True)

Private = Annotated[
    bool | None,
    typer.Option("--private/--public", help="who may read without a signature [dim](private where there is auth)[/dim]"),
]


@bucket_app.command("create")
def create_bucket(
    bucket: Bucket,
    private: Private = None,
    url: Url = None,
    access_key: Access = None,
    secret_key: Secret = None,
    project: Project = None,
    json: Json = False,
) -> None:
    """Make a bucket; its name is unique over the whole server."""

    def act(storage: Storage, show: Show) -> None:
        made = storage.create_bucket(bucket, private=private)
        tell(show, {"name": bucket, "private": bool(made["private"]), "region": made["region"], "host": made["host"]})

    run(Place(url, access_key, secret_key, project), json, act)


@bucket_app.command("list")
def list_buckets(
    url: Url = None, access_key: Access = None, secret_key: Secret = None, project: Project = None, json: Json = False
) -> None:
    """List the project's buckets."""

    def act(storage: Storage, show: Show) -> None:
        found = storage.buckets()
        if show.as_json:
            for one in found:
                created_at = rfc3339(one["ctime"] * 1_000_000)
                show.json(
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
        show.table(("name", "read", "created", "host"), rows)

    run(Place(url, access_key, secret_key, project), json, act)


@bucket_app.command("delete")
def delete_bucket(
    bucket: Bucket,
    url: Url = None,
    access_key: Access = None,
    secret_key: Secret = None,
    project: Project = None,
    json: Json = False,
) -> None:
    """Delete an empty bucket."""

    def act(storage: Storage, show: Show) -> None:
        storage.delete_bucket(bucket)
        tell(show, {"deleted": bucket})

    run(Place(url, access_key, secret_key, project), json, act)
