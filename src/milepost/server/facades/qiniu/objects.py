"""Objects managed over HTTP: stat, list, copy, move, delete, change, batch, fetch.

Each operation is written once and is a path of its own as well as a line of a batch.
Source: qiniu/api-specs storage/*.yml; qiniu/python-sdk qiniu/services/storage/bucket.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from starlette.responses import Response

from milepost.bucket import StoredObject
from milepost.egress import EgressPolicy, Timeouts, open_guarded
from milepost.errors import Forbidden, InvalidInput, ProtocolError, Unreachable
from milepost.server.facades.qiniu.endpoint import Call, Handler, json_response, refusal_of
from milepost.server.facades.qiniu.incoming import buckets_of, open_sink
from milepost.store.buckets import Place, check_object_name
from milepost.wire.qiniu import errors, mime, objects
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.qiniu.objects import Operation
from milepost.wire.qiniu.policy import META, check_metadata

log = structlog.get_logger(__name__)

BATCH_MAX = 1000
CLASSES = 5  # storage classes are numbers from 0
FETCHES = asyncio.Semaphore(8)  # at the same time, each process
FETCH = Timeouts(connect_s=10.0, read_s=30.0, total_s=3600.0)


# --- one operation ---------------------------------------------------------------------------------------------------------


async def _place(call: Call, bucket: str) -> Place:
    return await buckets_of(call).find_bucket(bucket, project=call.identity.project)


async def _stat(call: Call, operation: Operation) -> bytes:
    bucket, key = operation.entries[0]
    found = await buckets_of(call).find(await _place(call, bucket), key)
    return objects.encode(objects.stat_of(found.object))


async def _delete(call: Call, operation: Operation) -> bytes:
    bucket, key = operation.entries[0]
    await buckets_of(call).delete(await _place(call, bucket), key)
    return b""


async def _copy(call: Call, operation: Operation) -> bytes:
    (bucket, key), (to_bucket, to_key) = operation.entries
    place, to, force = await _place(call, bucket), await _place(call, to_bucket), _force(operation)
    await buckets_of(call).copy(place, key, to, to_key, overwrite=force)
    return b""


async def _move(call: Call, operation: Operation) -> bytes:
    (bucket, key), (to_bucket, to_key) = operation.entries
    place, to, force = await _place(call, bucket), await _place(call, to_bucket), _force(operation)
    await buckets_of(call).move(place, key, to, to_key, overwrite=force)
    return b""


def _force(operation: Operation) -> bool:
    return objects.read_flag(operation.rest.get("force", ""))


async def _change(call: Call, operation: Operation) -> bytes:
    """`chgm/<entry>/mime/<b64>/x-qn-meta-name/<b64>`; a condition is `cond/<b64 of hash=…&mime=…&fsize=…&putTime=…>`."""
    bucket, key = operation.entries[0]
    place, fields = await _place(call, bucket), dict[str, Any]()
    found = (await buckets_of(call).find(place, key)).object
    if "cond" in operation.rest:
        _check_condition(objects.read_text(operation.rest["cond"], "condition"), found)
    if "mime" in operation.rest:
        fields["mime_type"] = objects.read_text(operation.rest["mime"], "mime type")
        if not mime.is_valid(fields["mime_type"]):
            raise Refusal(errors.BAD_REQUEST, f"not a content type: {fields['mime_type'][:80]!r}")
    given = {name: value for name, value in operation.rest.items() if name.lower().startswith(META)}
    if given:
        metadata = {name[len(META) :].lower(): objects.read_text(value, name) for name, value in given.items()}
        fields["meta"] = check_metadata({**found.meta, **metadata})
    await buckets_of(call).change(place, key, **fields)
    return b""


def _check_condition(text: str, found: StoredObject) -> None:
    """Errors: Refusal 608, 400."""
    seen = {"hash": found.hash, "mime": found.mime_type, "fsize": str(found.size_bytes), "putTime": str(found.put_us * 10)}
    for part in filter(None, text.split("&")):
        name, _, value = part.partition("=")
        if name not in seen:
            raise Refusal(errors.BAD_REQUEST, f"there is no condition {name[:40]!r}")
        if seen[name] != value:
            raise Refusal(errors.MODIFIED, f"file modified: its {name} is not the one that was named")


async def _change_type(call: Call, operation: Operation) -> bytes:
    bucket, key = operation.entries[0]
    value = _number(operation, "type", CLASSES)
    await buckets_of(call).change(await _place(call, bucket), key, storage_class=value)
    return b""


async def _change_status(call: Call, operation: Operation) -> bytes:
    bucket, key = operation.entries[0]
    value = _number(operation, "status", 2)
    await buckets_of(call).change(await _place(call, bucket), key, disabled=value == 1)
    return b""


def _number(operation: Operation, name: str, below: int) -> int:
    text = operation.rest.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 3 and int(text) < below):
        raise Refusal(errors.BAD_REQUEST, f"{name} is {text[:20]!r}; it takes a number from 0 to {below - 1}")
    return int(text)


ACTS: dict[str, Callable[[Call, Operation], Awaitable[bytes]]] = {
    "stat": _stat,
    "delete": _delete,
    "copy": _copy,
    "move": _move,
    "chgm": _change,
    "chtype": _change_type,
    "chstatus": _change_status,
}


def operate(name: str) -> Handler:
    """The handler of `/<name>/…`."""

    async def handle(call: Call) -> Response:
        operation = objects.read_operation(f"{name}/{call.params['rest']}")
        return json_response(await ACTS[name](call, operation))

    return handle


# --- many -------------------------------------------------------------------------------------------------------------------


async def batch(call: Call) -> Response:
    """`op=…&op=…`; always 200, each operation's own code is in its line.

    Rules: operations on different objects are done side by side, those on the same one in the order in which they are named.
    """
    asked = call.all("op")
    if not 0 < len(asked) <= BATCH_MAX:
        raise Refusal(errors.BAD_REQUEST, f"a batch has 1 to {BATCH_MAX} operations, not {len(asked)}")
    lines: list[dict[str, Any]] = []
    wave: list[Awaitable[dict[str, Any]]] = []
    touched: set[tuple[str, str]] = set()
    for path in asked:
        try:
            operation = objects.read_operation(path)
        except Refusal as refusal:
            wave.append(_refused(refusal))
            continue
        if not touched.isdisjoint(operation.entries) or len(wave) >= 100:
            lines += await asyncio.gather(*wave)
            wave, touched = [], set()
        touched.update(operation.entries)
        wave.append(_line(call, operation))
    lines += await asyncio.gather(*wave)
    return json_response(objects.encode(lines))


async def _refused(refusal: Refusal) -> dict[str, Any]:
    return objects.batch_entry(refusal.status, errors.encode_error(refusal.text))


async def _line(call: Call, operation: Operation) -> dict[str, Any]:
    try:
        return objects.batch_entry(200, await ACTS[operation.name](call, operation))
    except Exception as error:
        refusal = refusal_of(error)
        if refusal is None:
            log.exception("operation of a batch failed", reqid=call.reqid, operation=operation.name)
            refusal = Refusal(errors.SERVER_ERROR, errors.INTERNAL)
        return await _refused(refusal)


async def list_objects(call: Call) -> Response:
    """`/list?bucket=&prefix=&delimiter=&marker=&limit=`."""
    fields = call.fields()
    if not fields.get("bucket"):
        raise Refusal(errors.BAD_REQUEST, "list needs a bucket")
    place, marker = await _place(call, fields["bucket"]), fields.get("marker")
    listing = await buckets_of(call).list_objects(
        place,
        prefix=check_object_name(fields.get("prefix", "")),
        delimiter=fields.get("delimiter", ""),
        after=check_object_name(objects.read_marker(marker)) if marker else None,
        limit=objects.read_limit(fields.get("limit")),
    )
    marker = None if listing.after is None else objects.encode_marker(listing.after)
    return json_response(objects.list_body(listing.objects, listing.prefixes, marker))


# --- fetch ------------------------------------------------------------------------------------------------------------------


async def fetch(call: Call) -> Response:
    """`/fetch/<url>/to/<entry>`: another server's file becomes an object; without a key in the entry its hash is the key."""
    url, entry = objects.read_text(call.params["url"], "URL"), objects.read_entry(call.params["entry"])
    place = await _place(call, entry.bucket)
    if entry.key is not None:
        check_object_name(entry.key)
    async with FETCHES, open_sink(call.state) as sink:
        content_type = ""
        try:
            egress = EgressPolicy.from_settings(call.state.settings)
            async with open_guarded("GET", url, policy=egress, timeouts=FETCH) as answer:
                if answer.status != 200:
                    raise Refusal(errors.MIRROR_FAILED, f"the source answered {answer.status_line}")
                content_type = answer.headers.get("content-type", "")
                declared = answer.headers.get("content-length", "")
                while (chunk := await answer.read_chunk()) is not None:
                    await sink.write(chunk)
        except (Forbidden, InvalidInput) as error:
            raise Refusal(errors.BAD_REQUEST, f"the URL is refused: {error.message}") from None
        except (Unreachable, ProtocolError) as error:
            raise Refusal(errors.MIRROR_FAILED, f"the source cannot be read: {error.message}") from None
        if declared.isdigit() and int(declared) != sink.size_bytes:
            raise Refusal(errors.MIRROR_FAILED, f"the source sent {sink.size_bytes} bytes of {declared}")
        file = await sink.finish()
        if not mime.is_valid(content_type):
            content_type = mime.of_name(entry.key or "") or mime.sniff(file.head)
        buckets = buckets_of(call)
        key = file.hash if entry.key is None else entry.key
        new = StoredObject(
            key=key,
            hash=file.hash,
            size_bytes=file.size_bytes,
            mime_type=content_type,
            put_us=call.state.clock.now_us(),
            md5=file.md5,
            object_key=await buckets.keep(file.path, place.project),
        )
        await buckets.put(place, new, overwrite=True)
    return json_response(objects.encode({"key": key, "hash": file.hash, "fsize": file.size_bytes, "mimeType": content_type}))


__all__ = ["batch", "fetch", "list_objects", "operate"]
