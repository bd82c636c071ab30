from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop
from forked_house import LOOSE, MODULE, forking, is_alive, until

from milepost.forkserver import ForkServer, ForkServerDied
from milepost.process import Limits


@pytest.fixture
async def server() -> AsyncIterator[ForkServer]:
    async with forking() as made:
        yield made


def pids_in(path: Path) -> list[int]:
    return [int(word) for word in path.read_text().split()] if path.exists() else []


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
async def test_a_function_is_given_its_request_and_its_result_comes_back(server, size):
    request = os.urandom(size)
    answer = await server.call(f"{MODULE}:echo", request, limits=LOOSE)
    assert answer.ok
    assert answer.result == request
    assert (answer.code, answer.reason) == (0, "exit")


async def test_a_child_has_no_secret_no_descriptor_and_a_group_of_its_own(server, monkeypatch, tmp_path):
    monkeypatch.setenv("FORKED_SECRET", "hunter2")
    with (tmp_path / "open").open("w") as open_file:
        os.set_inheritable(open_file.fileno(), True)
        facts = json.loads((await server.call(f"{MODULE}:facts", b"", limits=LOOSE)).result)
    assert "FORKED_SECRET" not in facts["environ"]
    assert facts["secret"] is None
    assert set(facts["environ"]) <= {"PATH", "LC_ALL", "LC_CTYPE", "PYTHONDONTWRITEBYTECODE"}
    assert facts["group"] == facts["pid"] != os.getpid()
    assert facts["parent"] == server.pid
    kinds = sorted(target.partition(":")[0] for target in facts["descriptors"].values())
    assert kinds == ["/dev/null", "pipe", "pipe", "socket"], facts["descriptors"]


async def test_what_a_function_raises_is_said(server):
    answer = await server.call(f"{MODULE}:fail", b"", limits=LOOSE)
    assert not answer.ok
    assert answer.error == "ValueError: not today"


async def test_an_unknown_function_is_an_error_and_no_crash(server):
    assert (await server.call(f"{MODULE}:nothing", b"", limits=LOOSE)).error.startswith("AttributeError")
    assert (await server.call("no_such_module:nothing", b"", limits=LOOSE)).error.startswith("KeyError")


async def test_a_child_that_leaves_is_told_with_what_it_printed(server):
    answer = await server.call(f"{MODULE}:leave", b"", limits=LOOSE)
    assert (answer.code, answer.result, answer.error) == (7, None, None)
    assert b"out with it" in answer.printed


async def test_what_is_printed_is_bounded_and_never_blocks(server):
    answer = await server.call(f"{MODULE}:chatter", b"", limits=LOOSE)
    assert answer.code == 3
    assert 0 < len(answer.printed) <= 2048


async def test_processor_time_is_limited(server):
    answer = await server.call(f"{MODULE}:spin", b"", limits=Limits(cpu_s=1, wall_s=60))
    assert (answer.reason, answer.ok) == ("cpu_time", False)
    assert "processor time" in answer.describe()


async def test_memory_is_limited(server):
    answer = await server.call(f"{MODULE}:eat", b"2000000000", limits=Limits(memory_bytes=512 << 20, wall_s=60))
    assert answer.error is not None
    assert answer.error.startswith("MemoryError")


async def test_the_size_of_files_is_limited(server, tmp_path):
    request = json.dumps([str(tmp_path / "file"), 2_000_000]).encode()
    answer = await server.call(f"{MODULE}:write", request, limits=Limits(file_bytes=1_000_000, wall_s=60))
    assert answer.reason == "file_size"
    assert (tmp_path / "file").stat().st_size <= 1_000_000


async def test_wall_time_is_limited_and_kills_the_whole_group(server, tmp_path):
    pids = tmp_path / "pids"
    answer = await server.call(f"{MODULE}:sleep_with_child", str(pids).encode(), limits=Limits(wall_s=4.0))
    assert answer.reason == "wall_time"
    assert len(pids_in(pids)) == 2
    await until(lambda: not any(is_alive(pid) for pid in pids_in(pids)))


async def test_a_crash_is_told_and_the_next_call_goes_on(server):
    answer = await server.call(f"{MODULE}:crash", b"", limits=LOOSE)
    assert (answer.reason, answer.code) == ("signal", -signal.SIGSEGV)
    assert (await server.call(f"{MODULE}:echo", b"still here", limits=LOOSE)).result == b"still here"


async def test_a_cancelled_call_has_killed_its_child_when_it_returns(server, tmp_path):
    pids = tmp_path / "pids"
    call = asyncio.create_task(server.call(f"{MODULE}:sleep_with_child", str(pids).encode(), limits=LOOSE))
    await until(lambda: len(pids_in(pids)) == 2)
    call.cancel()
    begun = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert time.monotonic() - begun < 60
    assert not is_alive(pids_in(pids)[0])
    await until(lambda: not is_alive(pids_in(pids)[1]))


async def test_what_a_child_leaves_behind_ends_with_it(server, tmp_path):
    pids = tmp_path / "pids"
    assert (await server.call(f"{MODULE}:leave_child", str(pids).encode(), limits=LOOSE)).result == b"done"
    await until(lambda: not is_alive(pids_in(pids)[1]))


async def test_a_result_that_is_too_long_kills_the_child(server):
    answer = await server.call(f"{MODULE}:long_result", b"5000000", limits=LOOSE, result_bytes_max=1_000_000)
    assert not answer.ok


async def test_a_server_that_is_killed_fails_its_calls_takes_its_children_along_and_is_replaced(server, tmp_path):
    pids = tmp_path / "pids"
    call = asyncio.create_task(server.call(f"{MODULE}:sleep_with_child", str(pids).encode(), limits=LOOSE))
    await until(lambda: len(pids_in(pids)) == 2)
    first = server.pid
    os.kill(first, signal.SIGKILL)
    with pytest.raises(ForkServerDied):
        await call
    await until(lambda: not is_alive(pids_in(pids)[0]))
    assert (await server.call(f"{MODULE}:echo", b"again", limits=LOOSE)).result == b"again"
    assert server.pid != first


async def test_a_child_that_kills_the_server_fails_its_own_call_only(server):
    with pytest.raises(ForkServerDied):
        await server.call(f"{MODULE}:kill_server", b"", limits=LOOSE)
    assert (await server.call(f"{MODULE}:echo", b"again", limits=LOOSE)).ok


async def test_a_server_found_dead_is_replaced_without_an_error(server):
    await server.call(f"{MODULE}:echo", b"", limits=LOOSE)
    os.kill(server.pid, signal.SIGKILL)
    assert (await server.call(f"{MODULE}:echo", b"again", limits=LOOSE)).result == b"again"


async def test_a_hundred_calls_at_once(server):
    requests = [os.urandom(10_000) for _ in range(100)]
    answers = await asyncio.gather(*(server.call(f"{MODULE}:echo", one, limits=LOOSE) for one in requests))
    assert [answer.result for answer in answers] == requests


async def test_calls_of_every_fate_at_once_do_not_mix(server, tmp_path):
    async def one(number: int) -> str:
        match number % 5:
            case 0:
                return (await server.call(f"{MODULE}:echo", b"%d" % number, limits=LOOSE)).result.decode()
            case 1:
                return (await server.call(f"{MODULE}:crash", b"", limits=LOOSE)).reason
            case 2:
                return (await server.call(f"{MODULE}:fail", b"", limits=LOOSE)).error
            case 3:
                return (await server.call(f"{MODULE}:spin", b"", limits=Limits(wall_s=0.3))).reason
            case _:
                call = asyncio.create_task(server.call(f"{MODULE}:spin", b"", limits=LOOSE))
                await asyncio.sleep(0)
                call.cancel()
                try:
                    await call
                except asyncio.CancelledError:
                    return "cancelled"
                return "not cancelled"

    fates = await asyncio.gather(*(one(number) for number in range(50)))
    for number, fate in enumerate(fates):
        assert fate == [str(number), "signal", "ValueError: not today", "wall_time", "cancelled"][number % 5]


async def test_a_module_that_does_not_load_is_said():
    server = ForkServer(["no_such_module_anywhere"])
    with pytest.raises(ForkServerDied, match="no_such_module_anywhere"):
        await server.call("no_such_module_anywhere:f", b"", limits=LOOSE)
    await server.close()


async def test_an_idle_server_ends_and_the_next_call_starts_another():
    server = ForkServer([MODULE], path=[str(Path(__file__).parent), *sys.path], idle_s=0.05)
    await server.call(f"{MODULE}:echo", b"", limits=LOOSE)
    first = server.pid
    await until(lambda: server.pid is None)
    await until(lambda: not is_alive(first))
    assert (await server.call(f"{MODULE}:echo", b"2", limits=LOOSE)).result == b"2"
    await server.close()


async def test_server_and_children_end_when_the_process_that_started_them_is_killed(tmp_path):
    pids = tmp_path / "pids"
    script = f"""
        import asyncio, sys
        from milepost.forkserver import ForkServer
        from milepost.process import Limits
        async def main():
            server = ForkServer(["{MODULE}"], path=[{str(Path(__file__).parent)!r}, *sys.path])
            asyncio.ensure_future(server.call("{MODULE}:sleep_with_child", {str(pids).encode()!r}, limits=Limits()))
            while server.pid is None:
                await asyncio.sleep(0.01)
            print(server.pid, flush=True)
            await asyncio.sleep(600)
        asyncio.run(main())
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    try:
        server_pid = int(await asyncio.to_thread(parent.stdout.readline))
        await until(lambda: len(pids_in(pids)) == 2)
    finally:
        parent.kill()
        parent.wait()
    await until(lambda: not is_alive(server_pid) and not is_alive(pids_in(pids)[0]))


def test_it_works_on_uvloop_too(tmp_path):
    async def main() -> None:
        server = ForkServer([MODULE], path=[str(Path(__file__).parent), *sys.path])
        try:
            answers = await asyncio.gather(*(server.call(f"{MODULE}:echo", b"%d" % n, limits=LOOSE) for n in range(30)))
            assert [answer.result for answer in answers] == [b"%d" % n for n in range(30)]
            call = asyncio.create_task(server.call(f"{MODULE}:sleep_with_child", str(tmp_path / "pids").encode(), limits=LOOSE))
            await until(lambda: len(pids_in(tmp_path / "pids")) == 2)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert not is_alive(pids_in(tmp_path / "pids")[0])
            assert (await server.call(f"{MODULE}:spin", b"", limits=Limits(wall_s=0.2))).reason == "wall_time"
            os.kill(server.pid, signal.SIGKILL)
            assert (await server.call(f"{MODULE}:echo", b"again", limits=LOOSE)).result == b"again"
        finally:
            await server.close()

    uvloop.run(main())
