"""Objects on Qiniu's wire: entries, what stat and list answer, markers, operations of a batch, uploads, region answers.

Source: qiniu/api-specs storage/*.yml; qiniu/python-sdk qiniu/services/storage/bucket.py; qiniu/go-sdk storage/region_uc_v2.go,
storagev2/region/query.go and storagev2/apis.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from milepost.bucket import Bucket, StoredObject
from milepost.wire.qiniu import errors
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.signing.qiniu import read_urlsafe, urlsafe

LIST_MAX = 1000
NO_KEY = "~"
TTL_S = 86_400

encode = msgspec.json.Encoder().encode


class Entry(NamedTuple):
    """What `bucket:key` names; key None where only the bucket is named."""

    bucket: str
    key: str | None


# --- names in paths ------------------------------------------------------------------------------------------------------


def encode_entry(bucket: str, key: str | None = None) -> str:
    """`bucket:key` in URL-safe base64."""
    return urlsafe((bucket if key is None else f"{bucket}:{key}").encode())


def read_entry(text: str) -> Entry:
    """Errors: Refusal 400."""
    bucket, mark, key = read_text(text, "entry").partition(":")
    return Entry(bucket, key if mark else None)


def read_object_entry(text: str) -> tuple[str, str]:
    """An entry that names an object.  Errors: Refusal 400."""
    bucket, key = read_entry(text)
    if key is None:
        raise Refusal(errors.BAD_REQUEST, "the entry names no key")
    return bucket, key


def read_text(text: str, what: str) -> str:
    """A text in URL-safe base64.  Errors: Refusal 400."""
    try:
        return read_urlsafe(text).decode()
    except ValueError:
        raise Refusal(errors.BAD_REQUEST, f"the {what} is no base64 of UTF-8: {text[:80]!r}") from None


def read_key(text: str) -> str | None:
    """A key in base64, `~` for none."""
    return None if text == NO_KEY else read_text(text, "key")


def read_pairs(text: str, known: Iterable[str]) -> dict[str, str]:
    """`name/value/name/value` behind a path.  Names that begin like `x:` or `x-qn-meta-` are always known.

    Errors: Refusal 400.
    """
    parts = text.strip("/").split("/") if text.strip("/") else []
    if len(parts) % 2:
        raise Refusal(errors.BAD_REQUEST, "the path does not end with pairs of name and value")
    pairs = dict(zip(parts[::2], parts[1::2], strict=True))
    for name in pairs:
        if name not in known and not name.lower().startswith(("x:", "x-qn-meta-")):
            raise Refusal(errors.BAD_REQUEST, f"the path has an unknown part {name[:40]!r}")
    return pairs


def read_flag(text: str) -> bool:
    """`true` and `1` of a path or a form."""
    return text.lower() in ("true", "1")


# --- stat and list -------------------------------------------------------------------------------------------------------


class Stat(msgspec.Struct, omit_defaults=True, rename="camel"):
    """An object as `stat` shows it; `putTime` in units of 100 ns."""

    fsize: int = msgspec.field(name="fsize")
    hash: str
    mime_type: str
    put_time: int
    type: int
    status: int = 0
    md5: str | None = None
    end_user: str | None = None
    meta: dict[str, str] | None = msgspec.field(default=None, name="x-qn-meta")


def stat_of(stored: StoredObject) -> Stat:
    return Stat(
        stored.size_bytes,
        stored.hash,
        stored.mime_type,
        stored.put_us * 10,
        stored.storage_class,
        int(stored.disabled),
        stored.md5,
        stored.end_user,
        stored.meta or None,
    )


def list_body(objects: Iterable[StoredObject], prefixes: list[str], marker: str | None) -> bytes:
    """A page of a bucket; `commonPrefixes` only where there are some, `marker` only when more follows."""
    items = [
        {
            "key": one.key,
            "hash": one.hash,
            "fsize": one.size_bytes,
            "mimeType": one.mime_type,
            "putTime": one.put_us * 10,
            "type": one.storage_class,
            "status": int(one.disabled),
            **({"md5": one.md5} if one.md5 else {}),
            **({"endUser": one.end_user} if one.end_user else {}),
        }
        for one in objects
    ]
    body: dict[str, Any] = {"items": items}
    if marker is not None:
        body["marker"] = marker
    if prefixes:
        body["commonPrefixes"] = prefixes
    return encode(body)


def encode_marker(after: str) -> str:
    """Where the next page begins, as Qiniu writes it: base64 of JSON."""
    return urlsafe(encode({"c": 0, "k": after}))


def read_marker(text: str) -> str:
    """Errors: Refusal 640."""
    try:
        found = msgspec.json.decode(read_urlsafe(text))
        key = found["k"]
    except (ValueError, msgspec.MsgspecError, KeyError, TypeError, RecursionError):
        raise Refusal(errors.BAD_MARKER, "bad marker") from None
    if not isinstance(key, str):
        raise Refusal(errors.BAD_MARKER, "bad marker")
    return key


def read_limit(text: str | None) -> int:
    """1 to 1000, 1000 when it is not given.  Errors: Refusal 400."""
    if text is None or text == "":
        return LIST_MAX
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Refusal(errors.BAD_REQUEST, f"limit is {text[:40]!r}; it takes a number from 1 to {LIST_MAX}")
    return min(int(text), LIST_MAX) or LIST_MAX


# --- batch ---------------------------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """One operation of a batch, or of a path: `copy/<entry>/<entry>/force/true`."""

    name: str
    entries: tuple[tuple[str, str], ...]
    rest: dict[str, str]


OPERATIONS = {"stat": 1, "delete": 1, "copy": 2, "move": 2, "chgm": 1, "chtype": 1, "chstatus": 1}
_PARTS = {
    "stat": ("needparts",),
    "delete": (),
    "copy": ("force",),
    "move": ("force",),
    "chgm": ("mime", "cond"),
    "chtype": ("type",),
    "chstatus": ("status",),
}


def read_operation(path: str) -> Operation:
    """With or without a slash in front.  Errors: Refusal 400."""
    name, _, rest = path.removeprefix("/").partition("/")
    count = OPERATIONS.get(name)
    if count is None:
        raise Refusal(errors.BAD_REQUEST, f"there is no operation {name[:40]!r}; there are {', '.join(OPERATIONS)}")
    parts = rest.split("/", count)
    if len(parts) < count:
        raise Refusal(errors.BAD_REQUEST, f"{name} takes {count} entries")
    entries = tuple(read_object_entry(part) for part in parts[:count])
    return Operation(name, entries, read_pairs(parts[count] if len(parts) > count else "", _PARTS[name]))


def batch_entry(code: int, body: bytes) -> dict[str, Any]:
    """One line of a batch's answer."""
    return {"code": code, "data": msgspec.Raw(body)} if body else {"code": code}


# --- uploads -------------------------------------------------------------------------------------------------------------


class PartRef(msgspec.Struct, rename="camel"):
    """A part as the completing request names it."""

    part_number: int
    etag: str


class Completion(msgspec.Struct, rename="camel"):
    """What ends a resumable upload."""

    parts: list[PartRef]
    fname: str | None = None
    mime_type: str | None = None
    custom_vars: dict[str, str] | None = None
    metadata: dict[str, str] | None = None


_decode_completion = msgspec.json.Decoder(Completion, strict=False).decode


def read_completion(body: bytes) -> Completion:
    """Errors: Refusal 400."""
    try:
        return _decode_completion(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(errors.BAD_REQUEST, f"the body cannot be read: {error}") from None


def stored_body(key: str, hash_: str, persistent_id: str | None) -> bytes:
    """What an upload answers when the policy has no returnBody."""
    return encode({"hash": hash_, "key": key, **({"persistentId": persistent_id} if persistent_id else {})})


def block_body(ctx: str, *, checksum: bytes, crc32: int, offset: int, host: str, expired_at: int) -> bytes:
    """What mkblk and bput answer."""
    return encode(
        {
            "ctx": ctx,
            "checksum": urlsafe(checksum),
            "crc32": crc32,
            "offset": offset,
            "host": host,
            "expired_at": expired_at,
        }
    )


# --- buckets and regions -------------------------------------------------------------------------------------------------


def bucket_body(bucket: Bucket, domains: list[str]) -> dict[str, Any]:
    """A bucket as `/v2/bucketInfo` shows it."""
    return {
        "tbl": bucket.name,
        "region": bucket.region,
        "zone": bucket.region,
        "private": int(bucket.private),
        "ctime": bucket.created_us // 1_000_000,
        "protected": 0,
        "no_index_page": 1,
        "host": domains[0] if domains else "",
    }


def region_v4(region: str, host: str) -> bytes:
    """`/v4/query`: one host has every role."""
    roles: dict[str, Any] = {role: {"domains": [host]} for role in ("io", "io_src", "uc", "rs", "rsf", "api")}
    up = {"domains": [host], "acc_domains": [], "old": []}
    s3: dict[str, Any] = {"domains": [], "region_alias": region}
    return encode({"hosts": [{"region": region, "ttl": TTL_S, "up": up, **roles, "s3": s3}]})


def region_v2(region: str, host: str) -> bytes:
    """`/v2/query`, for older clients."""
    main = {"main": [host], "backup": []}
    roles = {role: {"src": main} for role in ("io", "io_src")} | {role: {"acc": main} for role in ("rs", "rsf", "api", "uc")}
    return encode({"region": region, "ttl": TTL_S, "up": {"src": main, "acc": main}, **roles})
