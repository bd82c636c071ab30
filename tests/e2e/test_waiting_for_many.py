"""The command and the functions that wait for jobs of several servers: results that survive a kill, and codes that tell."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rig import COMMAND, Server, environ, milepost, until

import milepost as api
from milepost.cli.exits import Exit

MISSING = "0197a000-0000-7000-8000-00000000dead"


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Another server beside the usual one."""
    one = Server(tmp_path_factory.mktemp("second"))
    one.start()
    yield one
    assert one.end() == 0


def submit(server: Server, *durations_s: float) -> list[dict]:
    with api.Client(server.url) as client:
        return [client.submit("sleep", {"duration_s": duration_s}).handle for duration_s in durations_s]


def write_lines(path: Path, handles: list[dict]) -> None:
    path.write_text("".join(json.dumps(one) + "\n" for one in handles))


def started(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=cwd, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_jobs_of_two_servers_come_out_as_they_end_whichever_server_they_are_at(server: Server, second: Server) -> None:
    slow, fast = submit(server, 5.0), submit(second, 0.2)
    jobs = list(api.as_completed([*slow, *fast], timeout_s=60))
    assert [job.id for job in jobs] == [fast[0]["id"], slow[0]["id"]]
    assert all(job.ok for job in api.wait_all([*slow, *fast], timeout_s=60))


def test_any_of_several_returns_at_the_first_and_cancels_nothing(server: Server, second: Server) -> None:
    slow, fast = submit(server, 60), submit(second, 0.2)
    started_s = time.monotonic()
    assert api.wait_any([*slow, *fast], timeout_s=50).id == fast[0]["id"]
    assert time.monotonic() - started_s < 50
    with api.Client(server.url) as client:
        job = client.get(slow[0]["id"])
        assert not job.done
        other = client.submit("sleep", {"duration_s": 0.2})
        assert client.wait_any([job, other], timeout_s=60).id == other.id
        job.cancel()


async def test_the_async_functions_do_the_same(server: Server, second: Server) -> None:
    slow, fast = submit(server, 5.0), submit(second, 0.1)
    assert (await api.wait_any_async([*slow, *fast], timeout_s=60)).id == fast[0]["id"]
    assert [job.ok for job in await api.wait_all_async([*slow, *fast], timeout_s=60)] == [True, True]
    async with api.AsyncClient(server.url) as client:
        first, other = client.attach(slow[0]["id"]), await client.submit("sleep", {"duration_s": 30})
        assert (await client.wait_any([other, first], timeout_s=60)).id == first.id
        await other.cancel()


def test_a_timeout_at_one_server_does_not_end_the_wait_at_the_other(server: Server, second: Server) -> None:
    stuck, fine = submit(server, 60), submit(second, 0.5)
    with pytest.raises(api.WaitTimeout) as caught:
        api.wait_all([*stuck, *fine], timeout_s=8)
    assert caught.value.fields["pending"] == [stuck[0]["id"]]
    with api.Client(server.url) as client:
        client.cancel(stuck[0]["id"])


def test_many_waits_for_one_job_in_one_process_ask_for_it_once(server: Server) -> None:
    (handle,) = submit(server, 5)
    clients = [api.Client(server.url) for _ in range(6)]
    jobs = [client.attach(handle) for client in clients]
    threads = [threading.Thread(target=job.wait, kwargs={"timeout_s": 60}) for job in jobs]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert all(job.ok for job in jobs)
    assert sum(job.stats.probes for job in jobs) == 1
    for client in clients:
        client.close()


def test_a_wait_that_was_killed_goes_on_where_it_was(server: Server, second: Server, tmp_path: Path) -> None:
    write_lines(tmp_path / "handles.jsonl", [*submit(server, 0.1, 0.2, 12), *submit(second, 0.1, 12)])
    command = ("wait", "--from", "handles.jsonl", "--to", "results.jsonl", "--json")
    results = tmp_path / "results.jsonl"
    first = started(*command, cwd=tmp_path)
    until(lambda: results.exists() and len(results.read_text().splitlines()) >= 3)
    first.kill()
    first.communicate()
    with results.open("a") as file:
        file.write('{"handle": {"id": "cut o')  # as a crash in the middle of a line leaves it
    done = milepost(*command, cwd=tmp_path)
    assert done.code == Exit.DONE
    assert len(done.lines) == 2  # only those that were not told before
    told = [json.loads(line) for line in results.read_text().splitlines()]
    assert len({one["handle"]["id"] for one in told}) == len(told) == 5
    again = milepost(*command, cwd=tmp_path)
    assert (again.code, again.out) == (Exit.DONE, "")


def test_ctrl_c_prints_a_command_that_goes_on_and_cancels_nothing(server: Server, second: Server, tmp_path: Path) -> None:
    handles = [*submit(server, 0.1, *[10.0] * 15), *submit(second, *[10.0] * 15)]
    write_lines(tmp_path / "handles.jsonl", handles)
    process = started("wait", "--from", "handles.jsonl", "--json", "--timeout", "60", cwd=tmp_path)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["handle"] == {**handles[0], "kind": "sleep"}  # it waits for the others now
    process.send_signal(signal.SIGINT)
    started_s = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED, err
    assert time.monotonic() - started_s < 50
    told = json.loads(out.splitlines()[-1])["error"]
    assert told["code"] == "interrupted"
    words = told["hint"].split()
    assert words[:2] == ["milepost", "wait"]
    resumed = milepost(*words[1:], "--json", cwd=tmp_path)
    assert resumed.code == Exit.DONE, resumed.err
    assert len(resumed.lines) == len(told["pending"])
    assert all(one["state"] == "succeeded" for one in resumed.lines)


def test_exit_codes_tell_all_done_some_failed_and_some_unknown(server: Server, tmp_path: Path) -> None:
    with api.Client(server.url) as client:
        good, bad = client.submit("part", {}).handle, client.submit("part", {"fail": True}).handle
    lost = {**good, "id": MISSING}
    for handles, code in (([good], Exit.DONE), ([good, bad], Exit.PARTLY_FAILED), ([good, bad, lost], Exit.SOME_UNKNOWN)):
        write_lines(tmp_path / "some.jsonl", handles)
        assert milepost("wait", "--from", "some.jsonl", "--to", f"{code}.jsonl", "--quiet", cwd=tmp_path).code == code
    write_lines(tmp_path / "some.jsonl", [bad])
    assert milepost("wait", "--from", "some.jsonl", "--to", "bad.jsonl", "-q", cwd=tmp_path).code == Exit.FAILED
    write_lines(tmp_path / "some.jsonl", [lost, {**lost, "id": MISSING[:-1] + "e"}])
    assert milepost("wait", "--from", "some.jsonl", "-q", cwd=tmp_path).code == Exit.NOT_FOUND
