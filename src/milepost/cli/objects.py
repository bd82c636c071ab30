"""`object`: put, get, list, stat and delete what is in buckets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from milepost.cli.show import age
from milepost.cli.storage import Bucket, ObjectKey, Place, size, stored, tell
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
@stored
def put_object(place: Place, bucket: Bucket, file: File, key: NewKey = None, type_: MimeType = None) -> None:
    """Store a file; an object of the same key is replaced."""

    def progress(done: int, total: int) -> None:
        if place.show.live:
            place.show.note(f"{size(done)} of {size(total)}")

    made = place.storage.put(bucket, file.name if key is None else key, file, mime_type=type_, on_progress=progress)
    tell(place.show, {"key": made["key"], "hash": made["hash"]})


@object_app.command("get")
@stored
def get_object(place: Place, bucket: Bucket, key: ObjectKey, file: Target = None) -> None:
    """Bring an object's bytes here: whole under the file's name, or not at all."""
    if file is not None and str(file) == "-":
        place.storage.get(bucket, key, sys.stdout.buffer.write)
        sys.stdout.buffer.flush()
        return
    target = file if file is not None else Path(key.rpartition("/")[2])
    if target.name in ("", ".", "..") or target.is_dir():
        raise InvalidInput(f"{str(target)!r} is no name for a file; say where to write it", path="FILE")
    partial = target.with_name(target.name + ".part")
    try:
        with partial.open("wb") as out:
            size_bytes = place.storage.get(bucket, key, out.write)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    tell(place.show, {"file": str(target), "size": size_bytes})


@object_app.command("list")
@stored
def list_objects(place: Place, bucket: Bucket, prefix: Prefix = "", folders: Folders = False) -> None:
    """List a bucket by the bytes of its keys."""
    found = place.storage.list(bucket, prefix=prefix, delimiter="/" if folders else "")
    if place.show.as_json:
        for one in found:
            place.show.json(one)
        return
    rows = [
        [Text(one["prefix"]), Text(""), Text(""), Text("")]
        if "prefix" in one
        else [Text(one["key"]), Text(size(one["fsize"])), Text(one["mimeType"]), Text(age(one["putTime"] // 10))]
        for one in found
    ]
    place.show.table(("key", "size", "type", "stored"), rows, right=("size",))


@object_app.command("stat")
@stored
def stat_object(place: Place, bucket: Bucket, key: ObjectKey) -> None:
    """Show what is known of an object."""
    found = place.storage.stat(bucket, key)
    stored_at = rfc3339(found["putTime"] // 10)
    fields = {"key": key, "size": found["fsize"], "hash": found["hash"], "type": found["mimeType"], "stored_at": stored_at}
    tell(place.show, {**fields, "md5": found.get("md5"), "metadata": found.get("x-qn-meta", {})})


@object_app.command("delete")
@stored
def delete_object(place: Place, bucket: Bucket, key: ObjectKey) -> None:
    """Delete an object."""
    place.storage.delete(bucket, key)
    tell(place.show, {"deleted": key})
