"""Programs with limits: each limit ends its program, and nothing outlives its caller."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from milepost.process import Ended, Limits, ProgramMissing, run_process


async def python(code: str, *, limits: Limits = Limits(), **options: object) -> Ended:
    return await run_process([sys.executable, "-S", "-E", "-c", code], limits=limits, **options)  # type: ignore[arg-type]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second when it ends between open and read
        return False


async def until(condition: object, timeout_s: float = 60.0) -> bool:
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        if condition():  # type: ignore[operator]
            return True
        await asyncio.sleep(0.01)
    return False


async def test_a_program_gives_its_output_and_exit_code() -> None:
    ended = await python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert (ended.code, ended.reason, ended.stdout, ended.stderr) == (3, "exit", b"out\n", b"err\n")
    assert not ended.ok
    assert ended.describe() == "exit code 3: err"


async def test_it_inherits_no_environment_and_no_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILEPOST_SECRET", "s3cret")
    with Path("/dev/null").open() as held:
        os.set_inheritable(held.fileno(), True)
        ended = await python("import os; print(sorted(os.environ)); print(sorted(os.listdir('/proc/self/fd')))")
    names, files = ended.stdout.decode().splitlines()
    assert "MILEPOST_SECRET" not in names
    assert set(eval(names)) <= {"PATH", "LC_ALL", "LC_CTYPE", "PWD", "OLDPWD", "SHLVL", "_"}
    assert len(eval(files)) == 4  # 0, 1, 2 and the listing's own


async def test_standard_input_is_empty_unless_given() -> None:
    code = "import sys; print(len(sys.stdin.buffer.read()))"
    assert (await python(code)).stdout == b"0\n"
    assert (await python(code, stdin=b"x" * 300_000)).stdout == b"300000\n"
    assert (await python("pass", stdin=b"x" * 300_000)).ok  # it may end without reading


async def test_memory_is_limited() -> None:
    ended = await python("x = bytearray(1 << 30)", limits=Limits(memory_bytes=512 << 20))
    assert b"MemoryError" in ended.stderr


async def test_processor_time_is_limited() -> None:
    ended = await python("while True: pass", limits=Limits(cpu_s=1))
    assert ended.reason == "cpu_time"
    assert "processor time" in ended.describe()


async def test_the_size_of_files_is_limited(tmp_path: Path) -> None:
    ended = await run_process(
        ["dd", "if=/dev/zero", f"of={tmp_path / 'large'}", "bs=64k", "count=100"], limits=Limits(file_bytes=1 << 20)
    )
    assert ended.reason == "file_size"
    assert (tmp_path / "large").stat().st_size == 1 << 20


async def test_open_files_are_limited() -> None:
    ended = await python("files = [open('/dev/null') for _ in range(100)]", limits=Limits(open_files=32))
    assert b"Too many open files" in ended.stderr


async def test_wall_time_is_limited() -> None:
    start_s = time.monotonic()
    ended = await python("import time; time.sleep(60)", limits=Limits(wall_s=0.3))
    assert ended.reason == "wall_time"
    assert time.monotonic() - start_s < 50


async def test_a_cancelled_caller_leaves_no_process_behind(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    running = asyncio.create_task(run_process(["sh", "-c", f"sleep 600 & echo $$ $! > {pids}; wait"], limits=Limits()))
    assert await until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await until(lambda: not any(is_alive(int(pid)) for pid in pids.read_text().split()))


@pytest.mark.parametrize("turns", range(12))
async def test_a_caller_cancelled_at_any_turn_of_the_start_leaves_no_process_behind(tmp_path: Path, turns: int) -> None:
    pids = tmp_path / "pids"
    running = asyncio.create_task(run_process(["sh", "-c", f"sleep 600 & echo $$ $! > {pids}; wait"], limits=Limits()))
    for _ in range(turns):
        await asyncio.sleep(0)
    time.sleep(0.05)  # the program goes on while the loop stands still: its children start before asyncio knows of it
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 60)
    started = pids.read_text().split() if pids.exists() else []
    assert await until(lambda: not any(is_alive(int(pid)) for pid in started))


async def test_a_program_that_left_its_group_does_not_hold_the_caller(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"setsid sh -c 'echo $$ > {pid}; exec sleep 600' & while [ ! -s {pid} ]; do :; done"
    try:
        ended = await asyncio.wait_for(run_process(["sh", "-c", code], limits=Limits(wall_s=5)), 60)
        assert ended.reason == "wall_time"  # its output is still open: nobody knows whether more will come
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


async def test_what_a_program_leaves_in_the_background_ends_with_it(tmp_path: Path) -> None:
    start_s = time.monotonic()
    ended = await run_process(["sh", "-c", "sleep 600 & echo $!"], limits=Limits())
    assert time.monotonic() - start_s < 50
    assert await until(lambda: not is_alive(int(ended.stdout)))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
async def test_a_killed_server_takes_its_programs_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"""
import asyncio
from milepost.process import Limits, run_process
asyncio.run(run_process(["sh", "-c", "echo $$ > {pid_file}; exec sleep 600"], limits=Limits()))
"""
    server = subprocess.Popen([sys.executable, "-c", code])
    try:
        assert await until(lambda: pid_file.exists() and pid_file.read_text().strip().isdigit())
        program = int(pid_file.read_text())
        assert is_alive(program)
        server.send_signal(signal.SIGKILL)
        server.wait()
        assert await until(lambda: not is_alive(program))
    finally:
        server.kill()
        server.wait()


async def test_output_is_given_as_it_comes_and_only_its_end_is_kept() -> None:
    seen = 0

    async def count(chunk: bytes) -> None:
        nonlocal seen
        seen += len(chunk)

    ended = await python("import sys; sys.stdout.write('x' * 1_000_000 + 'end')", on_output=count, output_bytes_max=1000)
    assert seen == 1_000_003
    assert len(ended.stdout) == 1000
    assert ended.stdout.endswith(b"xend")


async def test_an_error_of_the_listener_kills_the_program(tmp_path: Path) -> None:
    async def fail(_: bytes) -> None:
        raise ValueError("enough")

    start_s = time.monotonic()
    with pytest.raises(ValueError, match="enough"):
        await run_process(["sh", "-c", "echo x; sleep 600"], limits=Limits(), on_output=fail)
    assert time.monotonic() - start_s < 50


async def test_a_missing_program_is_named() -> None:
    with pytest.raises(ProgramMissing, match="no-such-program"):
        await run_process(["no-such-program"], limits=Limits())
