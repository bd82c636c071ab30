"""What a bucket and its objects are: the values behind the resource types `bucket` and `object/<bucket>`.

Imports nothing of ours.  The object-storage facade and the media kinds write them.  An object's key is any text and names
nothing in a file system: its bytes lie in object storage under `object_key`, which is made of plain segments.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable

import msgspec

BUCKET = "bucket"  # the resource type in the store
KEY_BYTES_MAX = 750
BLOCK_BYTES = 4 << 20  # of the etag


class Bucket(msgspec.Struct, kw_only=True):
    """A named set of objects; names are unique over the server.  A private one is read with a signature."""

    name: str
    private: bool = False
    region: str = "z0"
    created_us: int


class StoredObject(msgspec.Struct, kw_only=True):
    """One object.  `hash` is its etag, `put_us` when it was stored; `meta` are its x-qn-meta-* headers without that prefix."""

    key: str
    hash: str
    size_bytes: int
    mime_type: str = "application/octet-stream"
    put_us: int
    md5: str | None = None  # 32 hex digits
    object_key: str
    meta: dict[str, str] = {}
    storage_class: int = 0  # 0 standard, 1 infrequent, 2 archive …: kept and shown, nothing more
    disabled: bool = False
    end_user: str | None = None
    made_by: str | None = None  # the job that stored it: its next attempt knows its own work by that


def objects_of(bucket: str) -> str:
    """The resource type of this bucket's objects."""
    return f"object/{bucket}"


class Etag:
    """The etag of bytes that come in pieces: SHA-1 of the content, or of the SHA-1s of its blocks of 4 MiB.

    Source: qiniu/qetag README.
    """

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._block, self._filled = hashlib.sha1(usedforsecurity=False), 0

    def update(self, data: bytes | memoryview) -> None:
        """Add the next bytes."""
        rest = memoryview(data)
        while rest:
            piece = rest[: BLOCK_BYTES - self._filled]
            self._block.update(piece)
            self._filled += len(piece)
            rest = rest[len(piece) :]
            if self._filled == BLOCK_BYTES:
                self._blocks.append(self._block.digest())
                self._block, self._filled = hashlib.sha1(usedforsecurity=False), 0

    def text(self) -> str:
        """28 characters."""
        blocks = self._blocks if self._filled == 0 and self._blocks else [*self._blocks, self._block.digest()]
        if len(blocks) == 1:
            return _urlsafe(b"\x16" + blocks[0])
        return _urlsafe(b"\x96" + hashlib.sha1(b"".join(blocks), usedforsecurity=False).digest())


def etag(data: bytes) -> str:
    """The etag of these bytes."""
    made = Etag()
    made.update(data)
    return made.text()


def etag_of_parts(etags: Iterable[str], sizes: list[int]) -> str | None:
    """The etag of an object that was uploaded in parts of other sizes than blocks; None when it is that of its whole content.

    Source: qiniu/qshell iqshell/common/utils/etag.go.
    """
    if all(size == BLOCK_BYTES for size in sizes[:-1]) and (not sizes or sizes[-1] <= BLOCK_BYTES):
        return None
    digests = b"".join(base64.urlsafe_b64decode(one)[1:] for one in etags)
    return _urlsafe(b"\x9e" + hashlib.sha1(digests, usedforsecurity=False).digest())


def _urlsafe(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()


encode_bucket = msgspec.json.Encoder().encode
decode_bucket = msgspec.json.Decoder(Bucket).decode
encode_object = msgspec.json.Encoder().encode
decode_object = msgspec.json.Decoder(StoredObject).decode
