"""`object`: put, get, list, stat and delete what is in buckets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from milepost.cli.connect import Json
from milepost.cli.show import Show, age
from milepost.cli.storage import Access, Bucket, ObjectKey, Place, Project, Secret, Url, run, size, tell
from milepost.client.storage import Storage
from milepost.errors import InvalidInput
from milepost.wire import rfc3339

object_app = typer.Typer(help="Objects in buckets, as Qiniu's clients see them.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="a file of this machine")]
Target = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="where to write it; - is stdout [dim](the key's last part, here)[/dim]")
]
MimeType = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="content type [dim](by the file's name)[/dim]")]
Prefix = Annotated[str, typer.Argument(metavar="PREFIX", help="only keys that begin so")]
Folders = Annotated[bool, typer.Option("--folders", "-d", help="fold what lies behind the next / into one line")]
NewKey = Annotated[str | None, typer.Argument(metavar="KEY", help="its key [dim](the file's name)[/dim]")]


@object_app.command("put")
def put_object(
    bucket: Bucket,
    file: File,
    key: NewKey = None,
    type_: MimeType = None,
    url: Url = None,
    access_key: Access = None,
    secret_key: Secret = None,
    project: Project = None,
    json: Json = False,
) -> None:
    """Store a file; an object of the same key is replaced."""

    def act(storage: Storage, show: Show) -> None:
        def progress(done: int, total: int) -> None:
            if show.live:
                show.note(f"{size(done)} of {size(total)}")

        made = storage.put(bucket, file.name if key is None else key, file, mime_type=type_, on_progress=progress)
        tell(show, {"key": made["key"], "hash": made["hash"]})

    run(Place(url, access_key, secret_key, project), json, act)


@object_app.command("get")
def get_object(
    bucket: Bucket,
    key: ObjectKey,
    file: Target = None,
    url: Url = None,
    access_key: Access = None,
    secret_key: Secret = None,
    project: Project = None,
    json: Json = False,
) -> None:
    """Bring an object's bytes here: whole under the file's name, or not at all."""

    def act(storage: Storage, show: Show) -> None:
        if file is not None and str(file) == "-":
            storage.get(bucket, key, sys.stdout.buffer.write)
            sys.stdout.buffer.flush()
            return
        target = file if file is not None else Path(key.rpartition("/")[2])
        if target.name in ("", ".", "..") or target.is_dir():
            raise InvalidInput(f"{str(target)!r} is no name for a file; say where to write it", path="FILE")
        partial = target.with_name(target.name + ".part")
        try:
            with partial.open("wb") as out:
                size_bytes = storage.get(bucket, key, out.write)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        tell(show, {"file": str(target), "size": size_bytes})

    run(Place(url, access_key, secret_key, project), json, act)


@object_app.command("list")
def list_objects(
    bucket: Bucket,
    prefix: Prefix = "",
    folders: Folders = False,
    url: Url = None,
    access_key: Access = None,
    secret_key: Secret = None,
    project: Project = None,
    json: Json = False,
) -> None:
    """List a bucket by the bytes of its keys."""

    def act(storage: Storage, show: Show) -> None:
        found = storage.list(bucket, prefix=prefix, delimiter="/" if folders else "")
        if show.as_json:
            for one in found:
                show.json(one)
            return
        rows = [
            [Text(one["prefix"]), Text(""), Text(""), Text("")]
            if "prefix" in one
            else [Text(one["key"]), Text(size(one["fsize"])), Text(one["mimeType"]), Text(age(one["putTime"] // 10))]
            for one in found
        ]
        show.table(("key", "size", "type", "stored"), rows, right=("size",))

    run(Place(url, access_key, secret_key, project), json, act)


@object_app.command("stat")
def stat_object(
    bucket: Bucket,
    key: ObjectKey,
    url: Url = None,
    access_key: Access = None,
    secret_key: Secret = None,
    project: Project = None,
    json: Json = False,
) -> None:
    """Show what is known of an object."""

    def act(storage: Storage, show: Show) -> None:
        found = storage.stat(bucket, key)
        stored_at = rfc3339(found["putTime"] // 10)
        fields = {"key": key, "size": found["fsize"], "hash": found["hash"], "type": found["mimeType"], "stored_at": stored_at}
        tell(show, {**fields, "md5": found.get("md5"), "metadata": found.get("x-qn-meta", {})})

    run(Place(url, access_key, secret_key, project), json, act)


@object_app.command("delete")
def delete_object(
    bucket: Bucket,
    key: ObjectKey,
    url: Url = None,
    access_key: Access = None,
    secret_key: Secret = None,
    project: Project = None,
    json: Json = False,
) -> None:
    """Delete an object."""

    def act(storage: Storage, show: Show) -> None:
        storage.delete(bucket, key)
        tell(show, {"deleted": key})

    run(Place(url, access_key, secret_key, project), json, act)
