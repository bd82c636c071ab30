"""Resumable uploads, version 1: blocks of at most 4 MiB, each in chunks, then a file made of blocks.

Rules
1. `ctx` names a block and how much of it is here; one that is not the block's last is 701, and the client begins the block again.
2. Blocks belong to the project and the bucket of the token that made them, and are swept when they expire.
Source: qiniu/python-sdk qiniu/services/storage/uploaders/resume_uploader_v1.py; qiniu/go-sdk storage/resume_uploader_base.go.
"""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from starlette.responses import Response

from milepost.bucket import BLOCK_BYTES
from milepost.errors import NotFound, VersionConflict
from milepost.server.facades.qiniu.endpoint import Call, header_token, json_response, refusal_of
from milepost.server.facades.qiniu.finish import Upload, begin_upload, finish_upload
from milepost.server.facades.qiniu.incoming import Received, buckets_of, drain, objects_of, open_sink, receive_file
from milepost.server.http import read_body
from milepost.store import Resource, Store, Write
from milepost.store.buckets import Place
from milepost.store.loose import drop, held, loose, resource
from milepost.wire.qiniu import errors, objects
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.qiniu.policy import Policy, split_custom
from milepost.wire.signing.qiniu import read_urlsafe

if TYPE_CHECKING:
    from milepost.store.objects import ObjectStore

BLOCK = "upload-block"
CONTEXTS_BYTES_MAX = 8 << 20
SIZE_BYTES_MAX = 1 << 50

_CTX = re.compile(r"([0-9a-f]{32})\.([0-9]{1,8})").fullmatch
_SIZE = re.compile(r"[0-9]{1,18}").fullmatch


class Chunk(msgspec.Struct):
    """Bytes of a block."""

    object_key: str
    size_bytes: int


class Block(msgspec.Struct, kw_only=True):
    """A block of `size_bytes`, of which the chunks are here."""

    bucket: str
    size_bytes: int
    chunks: list[Chunk]
    expires_us: int

    @property
    def here(self) -> int:
        return sum(one.size_bytes for one in self.chunks)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Block).decode


class Found(NamedTuple):
    """A block and its record."""

    block: Block
    record: Resource


def bad_ctx() -> Refusal:
    return Refusal(errors.BAD_CTX, "bad ctx")


def _size(text: str) -> int:
    if not _SIZE(text) or int(text) > SIZE_BYTES_MAX:
        raise Refusal(errors.BAD_REQUEST, f"not a size: {text[:20]!r}")
    return int(text)


# --- requests ------------------------------------------------------------------------------------------------------------


async def make_block(call: Call) -> Response:
    """`POST /mkblk/<size>`: the block's first chunk."""
    try:
        _, place = await begin_upload(call, header_token(call))
        size_bytes = _size(call.params["size"])
        if not 0 < size_bytes <= BLOCK_BYTES:
            raise Refusal(errors.BAD_REQUEST, f"a block has 1 to {BLOCK_BYTES} bytes")
        expires_us = call.state.clock.now_us() + int(call.state.settings.upload_keep_s * 1e6)
        block = Block(bucket=place.name, size_bytes=size_bytes, chunks=[], expires_us=expires_us)
        record = resource(BLOCK, uuid.uuid4().hex, place.project, b"", call.state.clock.now_us())
        return await _add_chunk(call, place, Found(block, record))
    except Exception as error:
        if refusal_of(error) is not None:
            await drain(call)
        raise


async def put_chunk(call: Call) -> Response:
    """`POST /bput/<ctx>/<offset>`."""
    try:
        _, place = await begin_upload(call, header_token(call))
        found = await _find(call, place, call.params["ctx"])
        if _size(call.params["offset"]) != found.block.here:
            raise bad_ctx()
        return await _add_chunk(call, place, found)
    except Exception as error:
        if refusal_of(error) is not None:
            await drain(call)
        raise


async def _add_chunk(call: Call, place: Place, found: Found) -> Response:
    block, record, store = found.block, found.record, call.state.store
    left = block.size_bytes - block.here
    async with open_sink(call.state, limit_bytes=left) as sink:
        file = await receive_file(call, limit_bytes=left, sink=sink)
        if not file.size_bytes:
            raise Refusal(errors.BAD_REQUEST, "a chunk has at least one byte")
        object_key = await buckets_of(call).keep(file.path, place.project)
    block.chunks.append(Chunk(object_key, file.size_bytes))
    changed = msgspec.structs.replace(record, doc=_encode(block), updated_us=call.state.clock.now_us())
    try:
        await store.write_resources([Write(resource=changed, if_version=record.version), held(object_key, place.project)])
    except VersionConflict:
        await drop(store, objects_of(call.state), object_key)
        raise bad_ctx() from None
    return _answer(call, changed.id, block, file)


def _answer(call: Call, block_id: str, block: Block, file: Received) -> Response:
    """The hash of a chunk is an etag: one byte, then the SHA-1."""
    body = objects.block_body(
        f"{block_id}.{block.here}",
        checksum=read_urlsafe(file.hash)[1:],
        crc32=file.crc32,
        offset=block.here,
        host=call.base_url,
        expired_at=block.expires_us // 1_000_000,
    )
    return json_response(body)


async def make_file(call: Call) -> Response:
    """`POST /mkfile/<size>[/mimeType/<b64>][/key/<b64>][/fname/<b64>][/x:name/<b64>]`; the body is the blocks' ctx in order."""
    policy, place = await begin_upload(call, header_token(call))
    size, _, rest = call.params["rest"].partition("/")
    texts = {
        name: objects.read_text(value, name)
        for name, value in objects.read_pairs(rest, ("key", "mimeType", "fname", "hash")).items()
    }
    body = await read_body(call.receive, call.headers, limit_bytes=CONTEXTS_BYTES_MAX, limit_s=call.state.settings.body_s_max)
    contexts = [one.strip() for one in body.decode("latin-1").split(",") if one.strip()]
    blocks = [await _find(call, place, one) for one in contexts]
    if sum(one.block.here for one in blocks) != _size(size):
        raise Refusal(errors.BAD_REQUEST, f"the blocks have other than {size[:20]} bytes")
    response = await _finish(call, policy, place, blocks, texts)
    for one in blocks:
        await remove_block(call.state.store, objects_of(call.state), one, now_us=call.state.clock.now_us())
    return response


async def _finish(call: Call, policy: Policy, place: Place, blocks: list[Found], texts: dict[str, str]) -> Response:
    object_store = objects_of(call.state)
    async with open_sink(call.state) as sink:
        for chunk in (chunk for one in blocks for chunk in one.block.chunks):
            try:
                async for piece in object_store.read(chunk.object_key):
                    await sink.write(piece)
            except FileNotFoundError:
                raise bad_ctx() from None
        upload = Upload(
            policy=policy,
            place=place,
            file=await sink.finish(),
            key=texts.get("key"),
            fname=texts.get("fname", ""),
            mime_type=texts.get("mimeType") or None,
            custom=split_custom(texts),
        )
        return await finish_upload(call, upload)


# --- records ---------------------------------------------------------------------------------------------------------------


async def _find(call: Call, place: Place, ctx: str) -> Found:
    """Errors: Refusal 701."""
    match = _CTX(ctx)
    if match is None:
        raise bad_ctx()
    try:
        record = await call.state.store.get_resource(BLOCK, match[1])
    except NotFound:
        raise bad_ctx() from None
    block = _decode(record.doc)
    is_own = record.project == place.project and block.bucket == place.name
    if not is_own or block.here != int(match[2]) or block.expires_us <= call.state.clock.now_us():
        raise bad_ctx()
    return Found(block, record)


async def remove_block(store: Store, object_store: ObjectStore, found: Found, *, now_us: int) -> None:
    """The block and its bytes are gone, unless it was changed meanwhile."""
    block, record = found
    chunks = [loose(one.object_key, record.project, now_us, dropped=True) for one in block.chunks]
    try:
        await store.write_resources([Write(resource=record, if_version=record.version, delete=True), *chunks])
    except VersionConflict:
        return
    for one in block.chunks:
        await drop(store, object_store, one.object_key)


async def sweep_blocks(store: Store, object_store: ObjectStore, *, now_us: int) -> int:
    """Rule 2.  How many went."""
    count = 0
    for record in await store.list_resources(BLOCK):
        block = _decode(record.doc)
        if block.expires_us <= now_us:
            await remove_block(store, object_store, Found(block, record), now_us=now_us)
            count += 1
    return count


__all__ = ["make_block", "make_file", "put_chunk", "sweep_blocks"]
