"""Objects on a local folder: whole or not at all, ranges, keys that stay inside."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from milepost.errors import InvalidInput
from milepost.store import objects as module
from milepost.store.objects import ObjectStore, check_key, open_objects

DATA = bytes(range(256)) * 12_000  # about 3 MB: more than one piece


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_objects(None, tmp_path)


def source(tmp_path: Path, data: bytes = DATA) -> Path:
    path = tmp_path / "source"
    path.write_bytes(data)
    return path


async def read(store: ObjectStore, key: str, **span: int) -> bytes:
    return b"".join([chunk async for chunk in store.read(key, **span)])


async def test_a_file_is_moved_into_the_store(store: ObjectStore, tmp_path: Path) -> None:
    path = source(tmp_path)
    seen: list[int] = []

    async def report(done: int) -> None:
        seen.append(done)

    await store.put_file("images/a/1", path, on_progress=report)

    assert not path.exists()
    assert await store.size_bytes("images/a/1") == len(DATA)
    assert await read(store, "images/a/1") == DATA
    assert seen[-1] == len(DATA)


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, None), (5, None), (0, 1), (len(DATA) - 1, 1), (1000, 2_000_000), (len(DATA) - 10, 100), (len(DATA), 5)],
)
async def test_a_range_is_read(store: ObjectStore, tmp_path: Path, start: int, length: int | None) -> None:
    await store.put_file("a", source(tmp_path))
    end = None if length is None else start + length
    got = b"".join([chunk async for chunk in store.read("a", start=start, length=length)])
    assert got == DATA[start:end]


async def test_an_empty_object_is_an_object(store: ObjectStore, tmp_path: Path) -> None:
    await store.put_file("empty", source(tmp_path, b""))
    assert await store.size_bytes("empty") == 0
    assert await read(store, "empty") == b""


async def test_putting_again_replaces_the_object(store: ObjectStore, tmp_path: Path) -> None:
    await store.put_file("a", source(tmp_path, b"old and longer"))
    await store.put_file("a", source(tmp_path, b"new"))
    assert await read(store, "a") == b"new"


async def test_what_does_not_exist(store: ObjectStore) -> None:
    assert await store.size_bytes("nothing") is None
    assert await store.delete("nothing") is False
    assert await store.list_keys("nothing") == []
    with pytest.raises(FileNotFoundError):
        await read(store, "nothing")


async def test_deleting_removes_the_object_and_its_empty_folder(store: ObjectStore, tmp_path: Path) -> None:
    await store.put_file("images/a/1", source(tmp_path))
    await store.put_file("images/b/1", source(tmp_path))
    assert await store.delete("images/a/1")
    assert store.root is not None
    assert sorted(entry.name for entry in (store.root / "images").iterdir()) == ["b"]


async def test_a_reader_that_began_keeps_reading_after_a_delete(store: ObjectStore, tmp_path: Path) -> None:
    await store.put_file("a", source(tmp_path))
    reading = store.read("a")
    first = await anext(reading)
    await store.delete("a")
    assert first + b"".join([chunk async for chunk in reading]) == DATA


async def test_keys_are_listed_under_their_folder_only(store: ObjectStore, tmp_path: Path) -> None:
    for key in ("images/a/1", "images/a/2", "images/ab/1", "other"):
        await store.put_file(key, source(tmp_path))
    assert [entry.key for entry in await store.list_keys("images/a")] == ["images/a/1", "images/a/2"]
    entries = await store.list_keys("images/")
    assert [entry.key for entry in entries] == ["images/a/1", "images/a/2", "images/ab/1"]
    assert entries[0].size_bytes == len(DATA)
    assert abs(entries[0].modified_us / 1e6 - time.time()) < 600


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../../x", "a/..", "a//b", "a/", ".tmp/x", "a/.hidden", "a\\b", "a\0b", "ä", "x" * 600]
)
async def test_a_key_that_could_leave_the_folder_is_refused(store: ObjectStore, tmp_path: Path, key: str) -> None:
    with pytest.raises(InvalidInput):
        check_key(key)
    with pytest.raises(InvalidInput):
        await store.put_file(key, source(tmp_path))
    with pytest.raises(InvalidInput):
        await store.size_bytes(key)


@pytest.fixture
def other_file_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Renaming from the folder of the source fails as it does between two file systems."""
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "source":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)


@pytest.mark.usefixtures("other_file_system")
async def test_a_file_on_another_file_system_is_copied_whole(store: ObjectStore, tmp_path: Path) -> None:
    path = source(tmp_path)
    await store.put_file("images/a/1", path)
    assert await read(store, "images/a/1") == DATA
    assert not path.exists()
    assert store.root is not None
    assert list((store.root / module.TEMPORARY).iterdir()) == []


@pytest.mark.usefixtures("other_file_system")
async def test_a_copy_that_fails_leaves_nothing_and_keeps_the_source(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = source(tmp_path)
    real, calls = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        real(descriptor) if calls == 1 else full(descriptor)  # the source's own fsync passes, the copy's does not

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        await store.put_file("images/a/1", path)
    assert path.exists()
    assert await store.size_bytes("images/a/1") is None
    assert store.root is not None
    assert list((store.root / module.TEMPORARY).iterdir()) == []


async def test_file_and_folders_are_synced_before_and_after_the_rename(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    await store.put_file("images/a/1", source(tmp_path))
    root = str(store.root)
    assert synced[0] == str(tmp_path / "source")
    assert synced[1:] == [f"{root}/images/a", f"{root}/images", root]


async def test_puts_and_deletes_beside_each_other_lose_nothing(store: ObjectStore, tmp_path: Path) -> None:
    async def cycle(name: int) -> None:
        for turn in range(30):
            path = tmp_path / f"source-{name}"
            path.write_bytes(b"x")
            await store.put_file(f"images/a/{name}", path)
            if turn < 29:
                assert await store.delete(f"images/a/{name}")

    await asyncio.gather(*(cycle(name) for name in range(4)))
    assert len(await store.list_keys("images")) == 4


class Neighbours:
    """Other puts and deletes make folders and take empty ones away at the worst moments, `times` often at each of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path, times: int) -> None:
        self.root, self.times, self.done = root, times, Counter[str]()
        self.mkdir, self.rename = Path.mkdir, Path.rename
        monkeypatch.setattr(Path, "mkdir", lambda path: self._mkdir(path))
        monkeypatch.setattr(Path, "rename", lambda path, target: self._rename(path, target))

    def _mkdir(self, path: Path) -> None:
        if self._is_due("there, and gone before it was looked at"):
            self.mkdir(path)
            with pytest.raises(FileExistsError) as caught:
                self.mkdir(path)
            module._remove_empty(self.root, path)
            raise caught.value
        self.mkdir(path)
        if self._is_due("just made, and gone"):
            module._remove_empty(self.root, path)

    def _rename(self, path: Path, target: Path) -> Path:
        if self._is_due("gone before the rename"):
            module._remove_empty(self.root, target.parent)
        return self.rename(path, target)

    def _is_due(self, moment: str) -> bool:
        self.done[moment] += 1
        return self.done[moment] <= self.times


@pytest.mark.parametrize("times", [1, 2, 25])
async def test_a_put_goes_on_when_deletes_take_its_folders_away(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    assert store.root is not None
    path = source(tmp_path)
    neighbours = Neighbours(monkeypatch, store.root, times)
    await store.put_file("images/a/1", path)
    assert await read(store, "images/a/1") == DATA
    assert len(neighbours.done) == 3
    assert min(neighbours.done.values()) > times


@pytest.mark.usefixtures("other_file_system")
async def test_a_copy_goes_on_when_a_delete_takes_its_folders_away(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.root is not None
    path = source(tmp_path)
    Neighbours(monkeypatch, store.root, 2)
    await store.put_file("images/a/1", path)
    assert await read(store, "images/a/1") == DATA
    assert list((store.root / module.TEMPORARY).iterdir()) == []


async def test_a_put_whose_folders_never_stay_ends(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.root is not None
    path = source(tmp_path)
    Neighbours(monkeypatch, store.root, 1_000_000)
    with pytest.raises(FileNotFoundError):
        await store.put_file("images/a/1", path)
    assert path.exists()


@pytest.mark.parametrize("dangling", [True, False])
async def test_what_is_no_folder_is_not_waited_for(store: ObjectStore, tmp_path: Path, dangling: bool) -> None:
    assert store.root is not None
    if dangling:
        (store.root / "images").symlink_to("nowhere")
    else:
        (store.root / "images").write_bytes(b"a file")
    with pytest.raises((FileExistsError, NotADirectoryError)):
        await store.put_file("images/a/1", source(tmp_path))
    assert (tmp_path / "source").exists()


async def test_only_old_temporary_files_are_swept(store: ObjectStore) -> None:
    assert store.root is not None
    old, new = store.root / module.TEMPORARY / "old", store.root / module.TEMPORARY / "new"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    assert await store.sweep_temporary() == 1
    assert new.exists()
    assert not old.exists()
    assert await store.list_keys("images") == []


def test_a_url_that_names_no_storage_is_refused(tmp_path: Path) -> None:
    for url in ("gs://bucket", "ftp://x", "s3://", "s3://bucket?nonsense=1", "bucket"):
        with pytest.raises(InvalidInput, match="objects_url") as caught:
            open_objects(url, tmp_path)
        assert "\n" not in str(caught.value)
    assert open_objects(f"file://{tmp_path}/elsewhere", tmp_path).root == tmp_path / "elsewhere"
    assert open_objects("s3://bucket/prefix?endpoint=http://127.0.0.1:9&region=x", tmp_path).root is None
