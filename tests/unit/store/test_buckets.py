"""Buckets and objects: what is kept, replaced and removed, and that no bytes are left that nobody names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from milepost.bucket import Bucket, StoredObject, etag, objects_of
from milepost.errors import CallerError, Conflict, InvalidInput, LimitExceeded, NotFound, VersionConflict
from milepost.job import ProjectId
from milepost.store.buckets import Buckets, Place, check_bucket_name, check_object_name
from milepost.store.loose import LOOSE, sweep
from milepost.store.objects import ObjectStore, open_objects
from milepost.store.sqlite import SqliteStore

ANN, BEN = ProjectId("ann"), ProjectId("ben")
HOUR_US, DAY_US = 3_600_000_000, 86_400_000_000


class Shop:
    """A store, a folder of objects, and a clock that moves when it is told."""

    def __init__(self, store: SqliteStore, objects: ObjectStore, folder: Path) -> None:
        self.store, self.objects, self.folder, self.at_us = store, objects, folder, 1_790_000_000_000_000
        self.buckets = Buckets(store, objects, self.now_us)
        self._files = 0

    def now_us(self) -> int:
        self.at_us += 1
        return self.at_us

    async def bucket(self, name: str = "media", project: ProjectId = ANN) -> Place:
        await self.buckets.create_bucket(name, project, private=True, region="z0", buckets_max=10)
        return await self.buckets.find_bucket(name, project=project)

    async def file(self, data: bytes) -> Path:
        self._files += 1
        path = self.folder / f"in-{self._files}"
        path.write_bytes(data)
        return path

    async def put(self, place: Place, key: str, data: bytes, *, overwrite: bool = True) -> StoredObject:
        object_key = await self.buckets.keep(await self.file(data), place.project)
        new = StoredObject(key=key, hash=etag(data), size_bytes=len(data), put_us=self.at_us, object_key=object_key)
        return await self.buckets.put(place, new, overwrite=overwrite)

    async def read(self, place: Place, key: str) -> bytes:
        found = (await self.buckets.find(place, key)).object
        chunks = await self.buckets.read(place, key, start=0, length=found.size_bytes, expect=found.hash)
        assert chunks is not None
        return b"".join([chunk async for chunk in chunks])

    async def stored_bytes(self) -> set[str]:
        return {entry.key for entry in await self.objects.list_keys("buckets")}

    async def named_bytes(self, *places: Place) -> set[str]:
        found = [await self.store.page_resources(place.type) for place in places]
        return {msgspec.json.decode(one.doc)["object_key"] for page in found for one in page}

    async def loose(self) -> set[str]:
        return {one.id for one in await self.store.list_resources(LOOSE)}


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    store = SqliteStore(":memory:")
    await store.open()
    (tmp_path / "in").mkdir()
    yield Shop(store, open_objects(None, tmp_path / "data"), tmp_path / "in")
    await store.close()


KEYS = ["", "a", "../../etc/passwd", "/abs", "a//b", "中" * 250, "x" * 750, "a\nb", "%2e%2e/", ".", "a\\b", "buckets/x"]


@pytest.mark.parametrize("key", KEYS)
async def test_any_text_is_a_key_and_its_bytes_stay_where_they_belong(shop: Shop, key: str, tmp_path: Path) -> None:
    place = await shop.bucket()
    await shop.put(place, key, b"hello")
    assert await shop.read(place, key) == b"hello"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.relative_to(tmp_path / "data" / "objects").parts[0] for path in files] == ["buckets"]
    await shop.buckets.delete(place, key)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("key", ["x" * 751, "中" * 251, "a\0b", "\ud800"])
def test_what_no_store_can_keep_is_no_key(key: str) -> None:
    with pytest.raises(InvalidInput):
        check_object_name(key)


@pytest.mark.parametrize("name", ["", "ab", "-ab", "ab-", "Abc", "a_b", "a.b", "a/b", "a" * 64, "../..", "abc\n"])
def test_what_is_no_bucket_name(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_bucket_name(name)


async def test_an_overwrite_leaves_the_new_bytes_only(shop: Shop) -> None:
    place = await shop.bucket()
    await shop.put(place, "a", b"old")
    await shop.put(place, "a", b"new")
    assert await shop.read(place, "a") == b"new"
    assert await shop.stored_bytes() == await shop.named_bytes(place)
    assert await shop.loose() == set()


async def test_without_overwrite_the_same_content_stays_and_other_content_is_refused(shop: Shop) -> None:
    place = await shop.bucket()
    first = await shop.put(place, "a", b"one", overwrite=False)
    assert (await shop.put(place, "a", b"one", overwrite=False)).object_key == first.object_key
    with pytest.raises(Conflict) as refused:
        await shop.put(place, "a", b"two", overwrite=False)
    assert refused.value.fields["reason"] == "object_exists"
    assert await shop.read(place, "a") == b"one"
    assert await shop.stored_bytes() == {first.object_key}
    assert await shop.loose() == set()


async def test_of_many_writers_of_one_key_one_wins_and_nothing_is_left(shop: Shop) -> None:
    place = await shop.bucket()
    data = [bytes([number]) * 10 for number in range(12)]
    await asyncio.gather(*(shop.put(place, "a", one) for one in data))
    assert await shop.read(place, "a") in data
    assert await shop.stored_bytes() == await shop.named_bytes(place)
    assert await shop.loose() == set()


async def test_a_copy_has_bytes_of_its_own(shop: Shop) -> None:
    place, other = await shop.bucket(), await shop.bucket("other-one")
    await shop.put(place, "a", b"hello")
    await shop.buckets.copy(place, "a", other, "b", overwrite=False)
    await shop.buckets.delete(place, "a")
    assert await shop.read(other, "b") == b"hello"
    assert await shop.stored_bytes() == await shop.named_bytes(place, other)
    assert await shop.loose() == set()


async def test_a_move_is_one_step_and_takes_the_bytes_along(shop: Shop) -> None:
    place = await shop.bucket()
    await shop.put(place, "a", b"one")
    await shop.put(place, "b", b"two")
    with pytest.raises(Conflict):
        await shop.buckets.move(place, "a", place, "b", overwrite=False)
    await shop.buckets.move(place, "a", place, "b", overwrite=True)
    assert await shop.read(place, "b") == b"one"
    assert await shop.buckets.look_up(place, "a") is None
    assert await shop.stored_bytes() == await shop.named_bytes(place)
    assert await shop.loose() == set()


@pytest.mark.parametrize("act", ["copy", "move"])
async def test_onto_itself_nothing_changes(shop: Shop, act: str) -> None:
    place = await shop.bucket()
    await shop.put(place, "a", b"one")
    with pytest.raises(Conflict):
        await getattr(shop.buckets, act)(place, "a", place, "a", overwrite=False)
    await getattr(shop.buckets, act)(place, "a", place, "a", overwrite=True)
    assert await shop.read(place, "a") == b"one"
    assert await shop.stored_bytes() == await shop.named_bytes(place)


async def test_missing_objects_and_buckets_say_which(shop: Shop) -> None:
    place = await shop.bucket()
    calls: list[Any] = [
        shop.buckets.find(place, "x"),
        shop.buckets.delete(place, "x"),
        shop.buckets.copy(place, "x", place, "y", overwrite=True),
        shop.buckets.move(place, "x", place, "y", overwrite=True),
        shop.buckets.change(place, "x", mime_type="a/b"),
        shop.buckets.find_bucket("nothing"),
        shop.buckets.find_bucket("media", project=BEN),
    ]
    reasons = []
    for call in calls:
        with pytest.raises(NotFound) as missing:
            await call
        reasons.append(missing.value.fields["reason"])
    assert reasons == ["object_not_found"] * 5 + ["bucket_not_found"] * 2


async def test_bucket_names_are_unique_over_all_projects(shop: Shop) -> None:
    await shop.bucket()
    with pytest.raises(Conflict) as taken:
        await shop.bucket("media", BEN)
    assert taken.value.fields["reason"] == "bucket_exists"
    with pytest.raises(LimitExceeded):
        await shop.buckets.create_bucket("more", ANN, private=True, region="z0", buckets_max=1)
    assert [bucket.name for bucket in await shop.buckets.list_buckets(ANN)] == ["media"]
    assert await shop.buckets.list_buckets(BEN) == []


async def test_only_an_empty_bucket_is_deleted(shop: Shop) -> None:
    place = await shop.bucket()
    await shop.put(place, "a", b"one")
    with pytest.raises(CallerError):
        await shop.buckets.delete_bucket("media", ANN)
    await shop.buckets.delete(place, "a")
    await shop.buckets.delete_bucket("media", ANN)
    with pytest.raises(NotFound):
        await shop.buckets.find_bucket("media")


async def test_what_an_upload_into_a_deleted_bucket_leaves_is_not_the_next_owners(shop: Shop) -> None:
    """The record is written after the bucket's deletion and before somebody else takes its name."""
    place = await shop.bucket()
    stranded = await shop.put(place, "a", b"secret")
    await shop.store.delete_resource("bucket", "media")
    theirs = Place(Bucket(name="media", created_us=shop.now_us()), BEN)
    assert await shop.buckets.look_up(theirs, "a") is None
    assert (await shop.buckets.list_objects(theirs)).objects == []
    theirs = await shop.bucket("media", BEN)
    assert await shop.store.page_resources(objects_of("media")) == []
    assert stranded.object_key not in await shop.stored_bytes()
    with pytest.raises(NotFound):
        await shop.put(place, "a", b"late")
    assert await shop.buckets.look_up(theirs, "a") is None
    assert await shop.stored_bytes() == set()


async def test_bytes_that_never_became_an_object_are_swept_after_a_day(shop: Shop) -> None:
    place = await shop.bucket()
    object_key = await shop.buckets.keep(await shop.file(b"half"), ANN)
    shop.at_us += DAY_US - HOUR_US
    assert await sweep(shop.store, shop.objects, now_us=shop.at_us) == 0
    shop.at_us += 2 * HOUR_US
    assert await sweep(shop.store, shop.objects, now_us=shop.at_us) == 1
    assert await shop.stored_bytes() == await shop.loose() == set()
    late = StoredObject(key="a", hash="x", size_bytes=4, put_us=0, object_key=object_key)
    with pytest.raises(VersionConflict):
        await shop.buckets.put(place, late, overwrite=True)
    assert await shop.buckets.look_up(place, "a") is None


async def test_bytes_whose_deletion_was_cut_off_are_swept(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    place = await shop.bucket()
    await shop.put(place, "a", b"old")

    async def cut(key: str) -> bool:
        raise ConnectionError

    with monkeypatch.context() as broken, pytest.raises(ConnectionError):
        broken.setattr(shop.objects, "delete", cut)
        await shop.put(place, "a", b"new")
    assert await shop.read(place, "a") == b"new"
    assert len(await shop.stored_bytes()) == 2
    shop.at_us += HOUR_US
    assert await sweep(shop.store, shop.objects, now_us=shop.at_us) == 1
    assert await shop.stored_bytes() == await shop.named_bytes(place)


async def test_a_reader_goes_on_when_the_object_is_replaced_or_deleted(shop: Shop) -> None:
    place, data = await shop.bucket(), b"x" * 3_000_000
    stored = await shop.put(place, "a", data)
    chunks = await shop.buckets.read(place, "a", start=0, length=len(data), expect=stored.hash)
    assert chunks is not None
    got = [await anext(chunks)]
    await shop.put(place, "a", b"new")
    await shop.buckets.delete(place, "a")
    got += [chunk async for chunk in chunks]
    assert b"".join(got) == data


async def test_a_reader_that_comes_late_is_told(shop: Shop) -> None:
    place = await shop.bucket()
    stored = await shop.put(place, "a", b"old")
    await shop.put(place, "a", b"new")
    assert await shop.buckets.read(place, "a", start=0, length=3, expect=stored.hash) is None
    await shop.buckets.delete(place, "a")
    assert await shop.buckets.read(place, "a", start=0, length=3, expect=stored.hash) is None
