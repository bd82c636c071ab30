"""Resumable uploads, version 2: parts in any order and at the same time, then one request that makes them an object.

Theory: an upload and each of its parts are records, and the parts' bytes are in object storage, so an upload survives a restart
and any server over the same store takes the next part.

Rules
1. A part that is sent again replaces the one before.  Its record and its bytes' loose record change in one transaction.
2. The object's record and the upload's end are one transaction: a completing request that is sent twice makes one object, and the
   second is told that there is no such upload.
3. An ended upload keeps its record, without parts, until it would have expired: a part that comes late finds it ended.
4. What is not completed within `upload_keep_s` is swept with its parts.
Source: qiniu/api-specs storage/resumable_upload_v2_*.yml; qiniu/python-sdk services/storage/uploaders/resume_uploader_v2.py.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from starlette.responses import Response

from milepost.bucket import etag_of_parts
from milepost.errors import LimitExceeded, NotFound, VersionConflict
from milepost.job import ProjectId
from milepost.server.facades.qiniu.endpoint import Call, header_token, json_response, refusal_of
from milepost.server.facades.qiniu.finish import Upload, begin_upload, finish_upload
from milepost.server.facades.qiniu.incoming import Received, Sink, buckets_of, drain, objects_of, open_sink, receive_file
from milepost.server.http import read_body
from milepost.store import Resource, Store, Write
from milepost.store.buckets import WRITES_MAX, Place
from milepost.store.loose import drop, held, loose, resource
from milepost.wire.qiniu import errors, objects
from milepost.wire.qiniu.errors import Refusal, no_such_upload
from milepost.wire.qiniu.policy import Policy, check_client_key, split_custom

if TYPE_CHECKING:
    from milepost.store.objects import ObjectStore

UPLOAD = "upload"
PARTS_MAX = 10_000
PART_BYTES_MAX = 1 << 30
COMPLETION_BYTES_MAX = 4 << 20  # ten thousand parts
PAGE = 500

_NUMBER = re.compile(r"[1-9][0-9]{0,4}").fullmatch


class Pending(msgspec.Struct, kw_only=True):
    """A resumable upload."""

    bucket: str
    key: str | None
    expires_us: int
    ended: bool = False


class Part(msgspec.Struct, kw_only=True):
    """A part of one."""

    number: int
    size_bytes: int
    etag: str
    md5: str
    object_key: str
    put_us: int


_encode = msgspec.json.Encoder().encode
_decode_pending = msgspec.json.Decoder(Pending).decode
_decode_part = msgspec.json.Decoder(Part).decode


class Found(NamedTuple):
    """An upload that goes on, with what its token says."""

    policy: Policy
    place: Place
    pending: Pending
    record: Resource

    @property
    def parts_type(self) -> str:
        return parts_of(self.record.id)


def parts_of(upload_id: str) -> str:
    """The resource type of an upload's parts; their ids are their numbers with five digits."""
    return f"upload-part/{upload_id}"


# --- requests ------------------------------------------------------------------------------------------------------------


async def begin(call: Call) -> Response:
    """`POST /buckets/<bucket>/objects/<key>/uploads`."""
    policy, place = await begin_upload(call, header_token(call), bucket=call.params["bucket"])
    key = objects.read_key(call.params["key"])
    check_client_key(policy, key)
    settings, now_us = call.state.settings, call.state.clock.now_us()
    open_ = [one for one in await call.state.store.list_resources(UPLOAD, project=place.project) if _is_open(one, now_us)]
    if len(open_) >= settings.uploads_max:
        raise LimitExceeded(
            f"project {place.project} has {len(open_)} unfinished uploads, as many as it may have",
            limit="uploads_max",
            allowed=settings.uploads_max,
            seen=len(open_) + 1,
        )
    pending = Pending(bucket=place.name, key=key, expires_us=now_us + int(settings.upload_keep_s * 1e6))
    upload_id = uuid.uuid4().hex
    await call.state.store.put_resource(resource(UPLOAD, upload_id, place.project, _encode(pending), now_us), if_version=0)
    return json_response(objects.encode({"uploadId": upload_id, "expireAt": pending.expires_us // 1_000_000}))


def _is_open(record: Resource, now_us: int) -> bool:
    pending = _decode_pending(record.doc)
    return not pending.ended and pending.expires_us > now_us


async def put_part(call: Call) -> Response:
    """`PUT …/uploads/<id>/<number>`; `Content-MD5` is hex."""
    try:
        return await _put_part(call)
    except Exception as error:
        if refusal_of(error) is not None:
            await drain(call)
        raise


async def _put_part(call: Call) -> Response:
    found = await _find(call)
    number = _number(call.params["number"])
    async with open_sink(call.state, limit_bytes=PART_BYTES_MAX) as sink:
        file = await receive_file(call, limit_bytes=PART_BYTES_MAX, sink=sink)
        expected = call.header(b"content-md5")
        if expected and expected.strip().lower() != file.md5:
            raise Refusal(errors.BAD_REQUEST, "Content-MD5 does not match: the part did not arrive as it was sent")
        if not file.size_bytes:
            raise Refusal(errors.BAD_REQUEST, "a part has at least one byte")
        await _keep_part(call, found, number, file)
    return json_response(objects.encode({"etag": file.hash, "md5": file.md5}))


def _number(text: str) -> int:
    if not _NUMBER(text) or int(text) > PARTS_MAX:
        raise Refusal(errors.BAD_REQUEST, f"a part's number goes from 1 to {PARTS_MAX}, not {text[:20]!r}")
    return int(text)


async def _keep_part(call: Call, found: Found, number: int, file: Received) -> None:
    """Rule 1.  Errors: Refusal 612 when the upload ended meanwhile."""
    store, now_us, project = call.state.store, call.state.clock.now_us(), found.place.project
    object_key = await buckets_of(call).keep(file.path, project)
    part = Part(number=number, size_bytes=file.size_bytes, etag=file.hash, md5=file.md5, object_key=object_key, put_us=now_us)
    record = resource(found.parts_type, f"{number:05d}", project, _encode(part), now_us)
    for _ in range(WRITES_MAX):
        before = await _read_part(store, found.parts_type, number)
        writes = [Write(resource=record, if_version=0 if before is None else before[1].version), held(object_key, project)]
        if before is not None:
            writes.append(loose(before[0].object_key, project, now_us, dropped=True))
        try:
            await store.write_resources(writes)
        except VersionConflict:
            continue
        if before is not None:
            await drop(store, objects_of(call.state), before[0].object_key)
        break
    else:
        raise VersionConflict(f"part {number} is being sent several times; try again")
    try:
        await _find_pending(call, found.record.id)
    except Refusal:
        await remove_parts(store, objects_of(call.state), found.record.id, project, now_us=now_us)
        raise


async def _read_part(store: Store, parts_type: str, number: int) -> tuple[Part, Resource] | None:
    try:
        stored = await store.get_resource(parts_type, f"{number:05d}")
    except NotFound:
        return None
    return _decode_part(stored.doc), stored


async def list_parts(call: Call) -> Response:
    """`GET …/uploads/<id>`: the parts that are here, by number."""
    found = await _find(call)
    fields = call.fields()
    limit, marker = objects.read_limit(fields.get("max-parts")), fields.get("part-number-marker", "")
    after = f"{int(marker):05d}" if marker.isascii() and marker.isdigit() and len(marker) < 6 else None
    parts = await _page(call.state.store, found.parts_type, after, limit + 1)
    more = len(parts) > limit
    shown = [
        {"size": one.size_bytes, "etag": one.etag, "partNumber": one.number, "putTime": one.put_us // 1_000_000}
        for one in parts[:limit]
    ]
    body = {
        "uploadId": found.record.id,
        "expireAt": found.pending.expires_us // 1_000_000,
        "partNumberMarker": parts[limit - 1].number if more else 0,
        "parts": shown,
    }
    return json_response(objects.encode(body))


async def abort(call: Call) -> Response:
    """`DELETE …/uploads/<id>`."""
    found = await _find(call)
    record = msgspec.structs.replace(found.record, doc=_encode(msgspec.structs.replace(found.pending, ended=True)))
    try:
        await call.state.store.put_resource(record, if_version=found.record.version)
    except VersionConflict:
        raise no_such_upload() from None
    await _remove_parts(call, found)
    return json_response(b"")


async def complete(call: Call) -> Response:
    """`POST …/uploads/<id>`: the parts that it names, in their order, are the object."""
    found = await _find(call)
    settings = call.state.settings
    asked = objects.read_completion(
        await read_body(call.receive, call.headers, limit_bytes=COMPLETION_BYTES_MAX, limit_s=settings.body_s_max)
    )
    parts = await _asked_parts(call, found, asked)
    size_bytes = sum(one.size_bytes for one in parts)
    if size_bytes > settings.object_bytes_max:
        raise Refusal(errors.TOO_LARGE, f"request entity too large: at most {settings.object_bytes_max} bytes are allowed")
    custom = split_custom({**(asked.custom_vars or {}), **(asked.metadata or {})})
    ended = msgspec.structs.replace(found.pending, ended=True)
    record = msgspec.structs.replace(found.record, doc=_encode(ended), updated_us=call.state.clock.now_us())
    async with open_sink(call.state) as sink:
        for part in parts:
            await _append(objects_of(call.state), part, sink)
        upload = Upload(
            policy=found.policy,
            place=found.place,
            file=await sink.finish(),
            key=found.pending.key,
            fname=asked.fname or "",
            mime_type=asked.mime_type or None,
            custom=custom,
            hash=etag_of_parts([one.etag for one in parts], [one.size_bytes for one in parts]),
            also=[Write(resource=record, if_version=found.record.version)],
        )
        try:
            response = await finish_upload(call, upload)
        except VersionConflict:
            await _find_pending(call, found.record.id)  # it was completed by another request, and is no such upload
            raise
    await _remove_parts(call, found)
    return response


async def _asked_parts(call: Call, found: Found, asked: objects.Completion) -> list[Part]:
    """Errors: Refusal 400 when they are not ascending, or one is not here as it is named."""
    numbers = [one.part_number for one in asked.parts]
    if not numbers or numbers != sorted(set(numbers)):
        raise Refusal(errors.BAD_REQUEST, "parts is a list of ascending part numbers, with at least one")
    here: dict[int, Part] = {}
    after: str | None = None
    while page := await _page(call.state.store, found.parts_type, after, PAGE):
        here |= {one.number: one for one in page}
        after = f"{page[-1].number:05d}"
    for one in asked.parts:
        if one.part_number not in here or here[one.part_number].etag != one.etag:
            raise Refusal(errors.BAD_REQUEST, f"part {one.part_number} with etag {one.etag[:40]!r} was not uploaded")
    return [here[number] for number in numbers]


async def _append(store: ObjectStore, part: Part, sink: Sink) -> None:
    """Errors: Refusal 612 when it was replaced or removed just now."""
    try:
        async for chunk in store.read(part.object_key):
            await sink.write(chunk)
    except FileNotFoundError:
        raise Refusal(errors.NO_SUCH_ENTRY, f"part {part.number} was replaced while the upload was completed") from None


# --- records ---------------------------------------------------------------------------------------------------------------


async def _find(call: Call) -> Found:
    """Errors: Refusal, also 612 for another project's, another key's, and an ended one."""
    policy, place = await begin_upload(call, header_token(call), bucket=call.params["bucket"])
    pending, record = await _find_pending(call, call.params["upload_id"])
    if record.project != place.project or pending.bucket != place.name or pending.key != objects.read_key(call.params["key"]):
        raise no_such_upload()
    return Found(policy, place, pending, record)


async def _find_pending(call: Call, upload_id: str) -> tuple[Pending, Resource]:
    try:
        record = await call.state.store.get_resource(UPLOAD, upload_id)
    except NotFound:
        raise no_such_upload() from None
    pending = _decode_pending(record.doc)
    if pending.ended or pending.expires_us <= call.state.clock.now_us():
        raise no_such_upload()
    return pending, record


async def _page(store: Store, parts_type: str, after: str | None, limit: int) -> list[Part]:
    return [_decode_part(one.doc) for one in await store.page_resources(parts_type, after=after, limit=limit)]


async def _remove_parts(call: Call, found: Found) -> None:
    """Also when the client hangs up meanwhile; what is left over then is swept."""
    state = call.state
    removing = remove_parts(state.store, objects_of(state), found.record.id, found.place.project, now_us=state.clock.now_us())
    await asyncio.shield(asyncio.ensure_future(removing))


async def remove_parts(store: Store, object_store: ObjectStore, upload_id: str, project: ProjectId, *, now_us: int) -> None:
    """Every part of an ended upload is gone."""
    parts_type = parts_of(upload_id)
    while page := await store.page_resources(parts_type, limit=PAGE):
        keys = [_decode_part(one.doc).object_key for one in page]
        writes = [Write(resource=one, delete=True) for one in page]
        await store.write_resources([*writes, *(loose(key, project, now_us, dropped=True) for key in keys)])
        for key in keys:
            await drop(store, object_store, key)


async def sweep_uploads(store: Store, object_store: ObjectStore, *, now_us: int) -> int:
    """Rules 3 and 4.  How many records went."""
    count = 0
    for record in await store.list_resources(UPLOAD):
        pending = _decode_pending(record.doc)
        if pending.expires_us > now_us:
            continue
        if not pending.ended:  # nobody completes it while its parts go
            ended = msgspec.structs.replace(record, doc=_encode(msgspec.structs.replace(pending, ended=True)))
            try:
                await store.put_resource(ended, if_version=record.version)
            except VersionConflict:
                continue
        await remove_parts(store, object_store, record.id, record.project, now_us=now_us)
        await store.delete_resource(UPLOAD, record.id)
        count += 1
    return count


__all__ = ["abort", "begin", "complete", "list_parts", "put_part", "sweep_uploads"]
