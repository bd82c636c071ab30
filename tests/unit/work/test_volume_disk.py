"""Volumes as files: sparse when made, durable when placed, zeros when wiped."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from milepost import Limits, PermanentError, RetryableError
from milepost.volume import Volume
from milepost.work.volumes import disk
from milepost.work.volumes.disk import DiskFolder, grow, make_qcow2, make_raw, named_errors, place, virtual_bytes, wipe

GIB = 1 << 30
MIB = 1 << 20
LIMITS = Limits(memory_bytes=2 << 30, cpu_s=60)


async def ignore(_done: int, _total: int) -> None:
    pass


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_a_raw_volume_takes_no_space_until_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "v"
    make_raw(path, 1024 * GIB)
    assert path.stat().st_size == 1024 * GIB
    assert blocks(path) <= 4096


async def test_wiping_overwrites_what_was_written_and_skips_the_holes(tmp_path: Path) -> None:
    path = tmp_path / "v"
    make_raw(path, 1024 * GIB)
    places = [0, 5 * GIB + 12345, 700 * GIB, 1024 * GIB - 100]
    with path.open("r+b") as file:
        for at in places:
            file.seek(at)
            file.write(b"secret" * 15)
    before = blocks(path)
    seen: list[tuple[int, int]] = []

    async def note(done: int, total: int) -> None:
        seen.append((done, total))

    started_s = time.monotonic()
    await wipe(path, note)
    assert time.monotonic() - started_s < 60
    with path.open("rb") as file:
        for at in places:
            file.seek(at)
            assert file.read(90) == bytes(90)
    assert path.stat().st_size == 1024 * GIB
    assert blocks(path) <= before + 4096, "the holes were filled"
    assert seen[-1][1] == before


async def test_wiping_reports_between_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "WIPE_STEP_BYTES", 1 * MIB)
    path = tmp_path / "v"
    path.write_bytes(b"x" * (5 * MIB))
    seen: list[int] = []

    async def note(done: int, _total: int) -> None:
        seen.append(done)

    await wipe(path, note)
    assert seen[:5] == [MIB, 2 * MIB, 3 * MIB, 4 * MIB, 5 * MIB]
    assert path.read_bytes() == bytes(5 * MIB)


async def test_wiping_what_is_not_there_is_done(tmp_path: Path) -> None:
    await wipe(tmp_path / "none", ignore)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("format", ["raw", "qcow2"])
async def test_growing_keeps_the_content_never_shrinks_and_may_be_repeated(tmp_path: Path, format: str) -> None:
    path = tmp_path / "v"
    if format == "raw":
        make_raw(path, 10 * GIB)
    else:
        await make_qcow2(path, 10 * GIB, limits=LIMITS)
    for size in (20 * GIB, 20 * GIB, 15 * GIB):
        await grow(path, format, size, limits=LIMITS)  # type: ignore[arg-type]
        assert virtual_bytes(path, format) == 20 * GIB  # type: ignore[arg-type]


async def test_growing_what_is_no_qcow2_any_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v"
    path.write_bytes(b"x" * 100)
    with pytest.raises(PermanentError, match="no qcow2"):
        await grow(path, "qcow2", GIB, limits=LIMITS)


async def test_without_qemu_img_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PermanentError, match="qemu-utils") as caught:
        await make_qcow2(tmp_path / "v", GIB, limits=LIMITS)
    assert caught.value.code == "qemu_missing"


def test_placing_moves_the_file_and_syncs_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, target = tmp_path / "new", tmp_path / "target"
    new.write_bytes(b"1")
    done: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{descriptor}').resolve().name}")
        real_sync(descriptor)

    def replace(self: Path, to: Path) -> Path:
        done.append("rename")
        return real_replace(self, to)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    place(new, target)
    assert done == ["sync new", "rename", f"sync {tmp_path.name}"]
    assert target.read_bytes() == b"1"


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EFBIG, "volume_error")]
)
def test_what_the_file_system_says_has_a_name(number: int, code: str) -> None:
    with pytest.raises(PermanentError) as caught, named_errors("volume_error"):
        raise OSError(number, os.strerror(number))
    assert caught.value.code == code


def test_an_unexpected_error_of_the_file_system_may_go_better_the_next_time() -> None:
    with pytest.raises(RetryableError, match="no such device") as caught, named_errors("volume_delete_failed"):
        raise OSError(errno.ENXIO, "no such device")
    assert caught.value.code == "volume_delete_failed"


def test_the_path_of_a_volume_is_where_its_record_says_or_will_say(tmp_path: Path) -> None:
    folder = DiskFolder(tmp_path)
    volume = Volume(id="v", project="p", size_gib=10, volume_type="SSD", format="qcow2", created_us=1, updated_us=1)
    assert folder.path(volume) == tmp_path / "volumes" / "v.qcow2"
