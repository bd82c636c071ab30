"""Buckets and their objects, over the store (their records) and object storage (their bytes).

Rules
1. An object's bytes lie under an `object_key` that is made here; the user's key is only ever an id in the store.
2. Bytes that no object's record names are loose, and have a record that says so: see `store.loose`.
3. A new object's record, the loss of its loose record, and the old bytes' loose record are one transaction: an overwrite is
   atomic, and bytes that were swept meanwhile cannot become an object.
4. An object is its bucket's only while both have the same project: what an upload into a deleted bucket leaves behind is never
   seen by whoever takes the bucket's name next, and is removed when it does.
5. A job writes under its claim: a worker that lost its lease changes nothing.

Errors have their `reason`: bucket_not_found, bucket_exists, bucket_not_empty, bucket_name, buckets_max, object_not_found,
object_exists, object_key.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from milepost.bucket import (
    BUCKET,
    KEY_BYTES_MAX,
    Bucket,
    StoredObject,
    decode_bucket,
    decode_object,
    encode_bucket,
    encode_object,
    objects_of,
)
from milepost.errors import Conflict, InvalidInput, LimitExceeded, NotFound, VersionConflict
from milepost.job import Claim, ProjectId
from milepost.store import Resource, Write
from milepost.store.listing import page_folded
from milepost.store.loose import drop, held, loose, new_object_key, resource

if TYPE_CHECKING:
    from milepost.store import Store
    from milepost.store.objects import ObjectStore

WRITES_MAX = 20  # times a write is tried again when another one came between
PAGE = 1000

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{1,61})[a-z0-9]").fullmatch


class Place(NamedTuple):
    """A bucket that was found, and whose it is."""

    bucket: Bucket
    project: ProjectId

    @property
    def name(self) -> str:
        return self.bucket.name

    @property
    def type(self) -> str:
        return objects_of(self.bucket.name)


class Stored(NamedTuple):
    """An object as it was read, and its record."""

    object: StoredObject
    resource: Resource


class Listing(NamedTuple):
    """A page of a bucket.  `after` is where the next page begins, None when there is none."""

    objects: list[StoredObject]
    prefixes: list[str]
    after: str | None


def check_bucket_name(name: str) -> str:
    """Errors: InvalidInput."""
    if not _NAME(name):
        raise InvalidInput(
            "a bucket's name is 3 to 63 lower-case letters, digits and hyphens, with no hyphen at its ends",
            path="$.bucket",
            reason="bucket_name",
        )
    return name


def check_object_name(key: str) -> str:
    """The user's key itself.  Errors: InvalidInput when no store can keep it."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        size = KEY_BYTES_MAX + 1
    if size > KEY_BYTES_MAX or "\0" in key:
        raise InvalidInput(
            f"a key is at most {KEY_BYTES_MAX} bytes of UTF-8 without NUL characters", path="$.key", reason="object_key"
        )
    return key


def put_writes(place: Place, new: StoredObject, before: Stored | None, now_us: int) -> list[Write]:
    """What makes `new` the object of its key in place of the one that was read (rule 3)."""
    record = resource(place.type, new.key, place.project, encode_object(new), now_us)
    writes = [Write(resource=record, if_version=0 if before is None else before.resource.version)]
    if before is not None and before.object.object_key != new.object_key:
        writes.append(loose(before.object.object_key, place.project, now_us, dropped=True))
    return writes


class Buckets:
    """All that is done with buckets and objects.  `now_us` is the caller's clock."""

    def __init__(self, store: Store, objects: ObjectStore, now_us: Callable[[], int]) -> None:
        self.store, self.objects, self.now_us = store, objects, now_us

    # --- buckets -----------------------------------------------------------------------------------------------------

    async def find_bucket(self, name: str, *, project: ProjectId | None = None) -> Place:
        """Another project's is not found.  Errors: NotFound."""
        try:
            found = await self.store.get_resource(BUCKET, name)
        except NotFound:
            raise _no_bucket(name) from None
        if project is not None and found.project != project:
            raise _no_bucket(name)
        return Place(decode_bucket(found.doc), found.project)

    async def list_buckets(self, project: ProjectId) -> list[Bucket]:
        """By name."""
        found = await self.store.list_resources(BUCKET, project=project)
        return sorted((decode_bucket(one.doc) for one in found), key=lambda bucket: bucket.name)

    async def create_bucket(self, name: str, project: ProjectId, *, private: bool, region: str, buckets_max: int) -> Bucket:
        """Errors: InvalidInput, Conflict when the name is taken by anybody, LimitExceeded."""
        check_bucket_name(name)
        count = len(await self.store.list_resources(BUCKET, project=project))
        if count >= buckets_max:
            raise LimitExceeded(
                f"project {project} has {count} buckets, as many as it may have",
                limit="buckets_max",
                allowed=buckets_max,
                seen=count + 1,
                reason="buckets_max",
            )
        now_us = self.now_us()
        bucket = Bucket(name=name, private=private, region=region, created_us=now_us)
        try:
            await self.store.put_resource(resource(BUCKET, name, project, encode_bucket(bucket), now_us), if_version=0)
        except VersionConflict:
            raise Conflict(f"the bucket name {name} is taken", reason="bucket_exists") from None
        await self._purge(Place(bucket, project))
        return bucket

    async def change_bucket(self, name: str, project: ProjectId, *, private: bool) -> Bucket:
        """Who may read it without a signature.  Errors: NotFound."""
        for _ in range(WRITES_MAX):
            place = await self.find_bucket(name, project=project)
            stored = await self.store.get_resource(BUCKET, name)
            bucket = msgspec.structs.replace(place.bucket, private=private)
            changed = msgspec.structs.replace(stored, doc=encode_bucket(bucket), updated_us=self.now_us())
            try:
                await self.store.put_resource(changed, if_version=stored.version)
            except VersionConflict:
                continue
            return bucket
        raise _busy()

    async def delete_bucket(self, name: str, project: ProjectId) -> None:
        """Errors: NotFound, Conflict when it is not empty."""
        place = await self.find_bucket(name, project=project)
        if (await self.list_objects(place, limit=1)).objects:
            raise Conflict(f"the bucket {name} is not empty", reason="bucket_not_empty")
        await self.store.delete_resource(BUCKET, name)

    async def _purge(self, place: Place) -> None:
        """Records of an earlier bucket of this name (rule 4)."""
        after: str | None = None
        while found := await self.store.page_resources(place.type, after=after, limit=PAGE):
            after = found[-1].id
            for one in found:
                if one.created_us < place.bucket.created_us:
                    await self._remove(place, Stored(decode_object(one.doc), one), claim=None)

    # --- objects -----------------------------------------------------------------------------------------------------

    async def find(self, place: Place, key: str) -> Stored:
        """Errors: NotFound."""
        found = await self.look_up(place, key)
        if found is None:
            raise NotFound(f"no object {key[:80]!r} in bucket {place.name}", reason="object_not_found")
        return found

    async def look_up(self, place: Place, key: str) -> Stored | None:
        """The object, None when there is none."""
        try:
            found = await self.store.get_resource(place.type, key)
        except NotFound:
            return None
        return Stored(decode_object(found.doc), found) if found.project == place.project else None

    async def list_objects(
        self, place: Place, *, prefix: str = "", delimiter: str = "", after: str | None = None, limit: int = PAGE
    ) -> Listing:
        """By the bytes of the keys.  Keys that go on with the delimiter behind the prefix are folded into one entry."""
        page = await page_folded(
            self.store, place.type, place.project, prefix=prefix, delimiter=delimiter, after=after, limit=limit
        )
        return Listing([decode_object(one.doc) for one in page.found], page.prefixes, page.after)

    async def keep(self, path: Path, project: ProjectId) -> str:
        """The file's bytes are in object storage, loose; the key that they have there.  Errors: StoreUnavailable, OSError."""
        object_key = new_object_key()
        await self.store.write_resources([loose(object_key, project, self.now_us())])
        try:
            await self.objects.put_file(object_key, path)
        except OSError:
            await self.drop(object_key)
            raise
        return object_key

    async def put(
        self, place: Place, new: StoredObject, *, overwrite: bool, claim: Claim | None = None, also: Sequence[Write] = ()
    ) -> StoredObject:
        """The bytes, which `keep` stored, are the object of this key; what they replace is removed.

        Without `overwrite` the same content is there already and stays, and other content is a conflict.  `also` is written in
        the same transaction.
        Errors: Conflict (object_exists), NotFound (the bucket), VersionConflict (`also`; the bytes were swept; too many tries).
        """
        check_object_name(new.key)
        for _ in range(WRITES_MAX):
            before = await self.look_up(place, new.key)
            if before is not None and not overwrite:
                await self.drop(new.object_key)
                if before.object.hash != new.hash:
                    raise exists(place, new.key)
                await self.store.write_resources(also, claim=claim)
                return before.object
            writes = [*put_writes(place, new, before, self.now_us()), held(new.object_key, place.project), *also]
            try:
                await self.store.write_resources(writes, claim=claim)
            except VersionConflict:
                await self._check_foreign(place, new.key)
                await self._check_versions([held(new.object_key, place.project), *also])
                continue
            await self._check_bucket(place, new.key)
            if before is not None:
                await self.drop(before.object.object_key)
            return new
        raise _busy()

    async def _check_versions(self, writes: Sequence[Write]) -> None:
        """Whether these can still be made.  Errors: VersionConflict."""
        for write in writes:
            try:
                version = (await self.store.get_resource(write.resource.type, write.resource.id)).version
            except NotFound:
                version = 0
            if write.if_version not in (None, version):
                raise VersionConflict(f"{write.resource.type} {write.resource.id} was changed meanwhile", reason="stale")

    async def delete(self, place: Place, key: str) -> None:
        """Errors: NotFound."""
        for _ in range(WRITES_MAX):
            if await self._remove(place, await self.find(place, key), claim=None):
                return
        raise _busy()

    async def _remove(self, place: Place, stored: Stored, claim: Claim | None) -> bool:
        """False: it was changed meanwhile."""
        object_key = stored.object.object_key
        writes = [
            Write(resource=stored.resource, if_version=stored.resource.version, delete=True),
            loose(object_key, place.project, self.now_us(), dropped=True),
        ]
        try:
            await self.store.write_resources(writes, claim=claim)
        except VersionConflict:
            return False
        await self.drop(object_key)
        return True

    async def move(self, place: Place, key: str, to: Place, to_key: str, *, overwrite: bool) -> None:
        """One transaction; the bytes stay where they are.  Errors: NotFound, Conflict (object_exists)."""
        check_object_name(to_key)
        for _ in range(WRITES_MAX):
            found = await self.find(place, key)
            if (place.name, key) == (to.name, to_key):
                if overwrite:
                    return
                raise exists(to, to_key)
            before = await self.look_up(to, to_key)
            if before is not None and not overwrite:
                raise exists(to, to_key)
            moved = msgspec.structs.replace(found.object, key=to_key)
            writes = [
                Write(resource=found.resource, if_version=found.resource.version, delete=True),
                *put_writes(to, moved, before, self.now_us()),
            ]
            try:
                await self.store.write_resources(writes)
            except VersionConflict:
                await self._check_foreign(to, to_key)
                continue
            await self._check_bucket(to, to_key)
            if before is not None:
                await self.drop(before.object.object_key)
            return
        raise _busy()

    async def copy(self, place: Place, key: str, to: Place, to_key: str, *, overwrite: bool) -> None:
        """The copy has bytes of its own.  Errors: NotFound, Conflict (object_exists)."""
        check_object_name(to_key)
        for _ in range(WRITES_MAX):
            found = await self.find(place, key)
            if not overwrite and await self.look_up(to, to_key) is not None:
                raise exists(to, to_key)
            if (place.name, key) == (to.name, to_key):
                return
            object_key = new_object_key()
            await self.store.write_resources([loose(object_key, to.project, self.now_us())])
            try:
                await self.objects.copy(found.object.object_key, object_key)
            except FileNotFoundError:  # overwritten or deleted just now
                await self.drop(object_key)
                continue
            copied = msgspec.structs.replace(found.object, key=to_key, object_key=object_key, put_us=self.now_us())
            made = await self.put(to, copied, overwrite=overwrite)
            if made.object_key != object_key and not overwrite:
                raise exists(to, to_key)
            return
        raise _busy()

    async def change(self, place: Place, key: str, **fields: object) -> StoredObject:
        """The object with other fields; its bytes stay.  Errors: NotFound."""
        for _ in range(WRITES_MAX):
            found = await self.find(place, key)
            changed = msgspec.structs.replace(found.object, **fields)
            record = msgspec.structs.replace(found.resource, doc=encode_object(changed), updated_us=self.now_us())
            try:
                await self.store.put_resource(record, if_version=found.resource.version)
            except VersionConflict:
                continue
            return changed
        raise _busy()

    async def read(self, place: Place, key: str, *, start: int, length: int, expect: str) -> AsyncIterator[bytes] | None:
        """The bytes of the object with this hash, opened now; None when it is another one by now, or gone."""
        for _ in range(WRITES_MAX):
            found = await self.look_up(place, key)
            if found is None or found.object.hash != expect:
                return None
            chunks = self.objects.read(found.object.object_key, start=start, length=length)
            try:
                first = await anext(chunks, b"")
            except FileNotFoundError:  # replaced by the same content between the two
                continue
            return _chain(first, chunks)
        return None

    async def _check_bucket(self, place: Place, key: str) -> None:
        """Rule 4, for a bucket that was deleted while this was written.  Errors: NotFound."""
        try:
            now = await self.find_bucket(place.name, project=place.project)
        except NotFound:
            now = None
        if now is None or now.bucket.created_us != place.bucket.created_us:
            stored = await self.look_up(place, key)
            if stored is not None and now is None:
                await self._remove(place, stored, claim=None)
                raise _no_bucket(place.name)

    async def _check_foreign(self, place: Place, key: str) -> None:
        """A record of an earlier bucket of this name stands in the way (rule 4): it goes."""
        try:
            found = await self.store.get_resource(place.type, key)
        except NotFound:
            return
        if found.project != place.project:
            await self._remove(place, Stored(decode_object(found.doc), found), claim=None)

    async def drop(self, object_key: str) -> None:
        """These loose bytes are gone, and so is what names them."""
        await drop(self.store, self.objects, object_key)


def exists(place: Place, key: str) -> Conflict:
    """The error of an object that is in the way."""
    return Conflict(f"there is an object {key[:80]!r} in bucket {place.name}", reason="object_exists")


def _no_bucket(name: str) -> NotFound:
    return NotFound(f"no bucket {name[:80]!r}", reason="bucket_not_found")


def _busy() -> VersionConflict:
    return VersionConflict("it is being changed by others; try again", reason="busy")


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for chunk in rest:
        yield chunk


__all__ = [
    "Buckets",
    "Listing",
    "Place",
    "Stored",
    "check_bucket_name",
    "check_object_name",
    "put_writes",
]
