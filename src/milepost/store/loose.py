"""Bytes in object storage that no record names: each has a record of the type `loose` that says so, until it is named or removed.

Theory: bytes and records cannot be written in one transaction.  So bytes are announced before they are put, and the transaction
that gives them to a record takes the announcement away; the one that takes them from their record announces them again, and then
they are deleted.  A crash at any point leaves an announcement, never bytes that nobody knows, and finding them needs no listing.

Rules
1. `loose` is written before the bytes are put, `held` in the transaction that names them: it fails when they were swept.
2. What waits for a record is swept after a day, what lost its record after a minute.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import msgspec

from milepost.job import ProjectId
from milepost.store import Resource, Write

if TYPE_CHECKING:
    from milepost.store import Store
    from milepost.store.objects import ObjectStore

LOOSE = "loose"
FOLDER = "buckets"
WAITING_S = 86_400.0  # longer than any upload to object storage takes
DROPPED_S = 60.0  # their deletion is under way


class _Loose(msgspec.Struct):
    dropped: bool = False  # its record is gone; else it waits for one


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Loose).decode


def new_object_key() -> str:
    """Where new bytes will lie: no two are the same, and no folder gets too many."""
    name = uuid.uuid4().hex
    return f"{FOLDER}/{name[:2]}/{name}"


def loose(object_key: str, project: ProjectId, now_us: int, *, dropped: bool = False) -> Write:
    """Says that these bytes have no object : write it before the bytes are put."""
    doc = _encode(_Loose(dropped))
    return Write(resource=resource(LOOSE, object_key, project, doc, now_us))


def held(object_key: str, project: ProjectId) -> Write:
    """Takes that back; it fails when the bytes were swept meanwhile."""
    return Write(resource=resource(LOOSE, object_key, project, b"{}", 0), if_version=1, delete=True)


def resource(type_: str, id_: str, project: ProjectId, doc: bytes, now_us: int) -> Resource:
    """A record that is written now."""
    return Resource(type=type_, id=id_, project=project, doc=doc, created_us=now_us, updated_us=now_us, version=0)


async def drop(store: Store, objects: ObjectStore, object_key: str) -> None:
    """These loose bytes are gone, and so is what names them.  Errors: StoreUnavailable."""
    await objects.delete(object_key)
    await store.delete_resource(LOOSE, object_key)


async def sweep(store: Store, objects: ObjectStore, *, now_us: int) -> int:
    """Remove bytes that nobody works on any more.  How many there were."""
    count = 0
    for one in await store.list_resources(LOOSE):
        keep_s = DROPPED_S if _decode(one.doc).dropped else WAITING_S
        if one.updated_us < now_us - int(keep_s * 1e6):
            # Its version grows first: whoever still holds these bytes then fails to name them.
            await store.put_resource(msgspec.structs.replace(one, doc=_encode(_Loose(dropped=True)), updated_us=now_us))
            await drop(store, objects, one.id)
            count += 1
    return count


__all__ = ["LOOSE", "drop", "held", "loose", "new_object_key", "resource", "sweep"]
