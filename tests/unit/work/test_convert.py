"""Conversion by qemu-img: every pair of formats, its limits, and how it fails."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from milepost.errors import PermanentError, RetryableError
from milepost.process import Limits
from milepost.work import convert
from milepost.work.convert import QEMU_NAMES, TARGETS, check_image, convert_image, needs_conversion
from milepost.work.inspection import FORMATS, Inspected, inspect_image

pytestmark = pytest.mark.skipif(
    subprocess.run(["sh", "-c", "command -v qemu-img"], capture_output=True).returncode != 0, reason="needs qemu-img"
)

SIZE = 3 << 20
LIMITS = Limits(memory_bytes=2 << 30, cpu_s=60)
CONTENT = bytes(range(1, 256)) * 4000 + bytes(SIZE - 255 * 4000)


def source(tmp_path: Path, name: str) -> tuple[Path, Inspected]:
    raw, path = tmp_path / "raw", tmp_path / "source"
    raw.write_bytes(CONTENT)
    options = ["-o", "force_size=on"] if name == "vhd" else []
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", QEMU_NAMES[name], *options, raw, path], check=True)
    return path, inspect_image(path, name, virtual_bytes_max=1 << 40)


async def ignore(_done: int, _total: int) -> None:
    pass


@pytest.mark.parametrize("wanted", TARGETS)
@pytest.mark.parametrize("name", ["raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi"])
async def test_every_format_becomes_every_other_with_the_same_content(tmp_path: Path, name: str, wanted: str) -> None:
    if name == wanted:
        assert not needs_conversion(name, wanted)
        return
    path, image = source(tmp_path, name)
    target = tmp_path / "target"
    seen: list[tuple[int, int]] = []

    async def report(done: int, total: int) -> None:
        seen.append((done, total))

    result = await convert_image(path, target, image, wanted, limits=LIMITS, bytes_max=1 << 40, on_progress=report)

    assert (result.format, result.virtual_size, result.size) == (wanted, SIZE, target.stat().st_size)
    assert seen[-1] == (SIZE, SIZE)
    back = tmp_path / "back"
    subprocess.run(["qemu-img", "convert", "-f", QEMU_NAMES[wanted], "-O", "raw", target, back], check=True)
    assert back.read_bytes() == CONTENT


async def test_a_conversion_never_takes_the_last_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, image = source(tmp_path, "raw")
    monkeypatch.setattr(convert, "SPACE_CHECK_S", 0.0)
    monkeypatch.setattr(convert, "SPACE_LEFT_BYTES", 1 << 60)
    with pytest.raises(RetryableError) as caught:
        await convert_image(path, tmp_path / "target", image, "qcow2", limits=LIMITS, bytes_max=1 << 40, on_progress=ignore)
    assert caught.value.code == "no_space"
    assert not (tmp_path / "target").exists()


def test_an_iso_is_raw_already() -> None:
    assert not needs_conversion("iso", "raw")
    assert needs_conversion("iso", "qcow2")
    assert set(TARGETS) == set(FORMATS) - {"iso"}


async def failure(tmp_path: Path, path: Path, image: Inspected, wanted: str = "raw", **given: object) -> PermanentError:
    target = tmp_path / "target"
    options = {"limits": LIMITS, "bytes_max": 1 << 40, "on_progress": ignore, **given}
    with pytest.raises(PermanentError) as caught:
        await convert_image(path, target, image, wanted, **options)  # type: ignore[arg-type]
    assert not target.exists()
    return caught.value


async def test_a_damaged_image_fails_with_what_qemu_img_says(tmp_path: Path) -> None:
    path, image = source(tmp_path, "qcow2")
    data = bytearray(path.read_bytes())
    data[36:40] = (1 << 30).to_bytes(4)  # entries of its first table
    path.write_bytes(data)
    error = await failure(tmp_path, path, image)
    assert error.code == "conversion_failed"
    assert "qemu-img" in error.message
    assert "L1" in error.message


@pytest.mark.parametrize("name", ["qcow2", "vmdk"])
async def test_a_cut_image_is_found_damaged_and_a_whole_one_is_not(tmp_path: Path, name: str) -> None:
    path, image = source(tmp_path, name)
    await check_image(path, image, limits=LIMITS)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - (512 << 10))
    with pytest.raises(PermanentError) as caught:
        await check_image(path, image, limits=LIMITS)
    assert caught.value.code == "image_damaged"


async def test_an_image_that_is_stored_as_it_is_needs_no_qemu_img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, image = source(tmp_path, "qcow2")
    monkeypatch.setenv("PATH", str(tmp_path))
    await check_image(path, image, limits=LIMITS)


async def test_a_result_that_would_be_too_large_is_stopped(tmp_path: Path) -> None:
    path, image = source(tmp_path, "qcow2")
    error = await failure(tmp_path, path, image, bytes_max=1 << 20)
    assert error.code == "converted_too_large"


async def test_the_limit_of_memory_holds(tmp_path: Path) -> None:
    path, image = source(tmp_path, "qcow2")
    error = await failure(tmp_path, path, image, limits=Limits(memory_bytes=16 << 20, cpu_s=60))
    assert error.code == "conversion_failed"


async def test_without_qemu_img_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, image = source(tmp_path, "qcow2")
    monkeypatch.setenv("PATH", str(tmp_path))
    error = await failure(tmp_path, path, image)
    assert error.code == "qemu_img_missing"
    assert "qemu-utils" in error.message


async def test_a_content_of_another_format_is_never_guessed(tmp_path: Path) -> None:
    """A raw disk whose guest wrote a qcow2 header with a backing file into it: what qemu-img would follow if it guessed."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000)
    trap = tmp_path / "trap"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, trap], check=True)
    size = trap.stat().st_size
    target = tmp_path / "target"
    await convert_image(trap, target, Inspected("raw", size, size), "qcow2", limits=LIMITS, bytes_max=1 << 40, on_progress=ignore)
    back = tmp_path / "back"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", target, back], check=True)
    assert back.read_bytes()[:size] == trap.read_bytes()


async def test_a_cancelled_conversion_leaves_no_file_and_no_process(tmp_path: Path) -> None:
    raw, target = tmp_path / "source", tmp_path / "target"
    with raw.open("wb") as file:
        for _ in range(64):
            file.write(CONTENT[: 1 << 20] * 4)
    image = Inspected("raw", raw.stat().st_size, raw.stat().st_size)
    started = asyncio.Event()

    async def report(_done: int, _total: int) -> None:
        started.set()

    task = asyncio.create_task(convert_image(raw, target, image, "qcow2", limits=LIMITS, bytes_max=1 << 40, on_progress=report))
    async with asyncio.timeout(60):
        await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not target.exists()
    assert subprocess.run(["pgrep", "-f", f"qemu-img.*{target}"], capture_output=True).stdout == b""
