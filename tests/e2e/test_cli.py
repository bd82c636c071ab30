"""The command line against a real server: what it prints, and what its exit codes say."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest
from rig import COMMAND, Server, environ, milepost, until

from milepost.cli.exits import Exit

MISSING = "0197a000-0000-7000-8000-000000000000"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def submit(server: Server, kind: str, input: object = None, *options: str) -> str:
    done = server.run("submit", kind, *([json.dumps(input)] if input is not None else []), *options)
    assert done.code == 0, done.err
    assert UUID.fullmatch(done.out.strip()), "in a pipe the id is all that is printed"
    return done.out.strip()


# --- exit codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "input", "code", "state"),
    [
        ("echo", {"text": "hello"}, Exit.DONE, "succeeded"),
        ("part", {"fail": True}, Exit.FAILED, "failed"),
        ("fan", {"n": 3, "fail": [1]}, Exit.PARTLY_FAILED, "failed"),
        ("fan", {"n": 2, "fail": [0, 1]}, Exit.FAILED, "failed"),
    ],
)
def test_the_exit_code_of_a_wait_is_what_the_job_came_to(server: Server, kind: str, input: dict, code: Exit, state: str) -> None:
    id = submit(server, kind, input)
    plain, as_json = server.run("wait", id), server.run("wait", id, "--json")
    assert (plain.code, as_json.code) == (code, code)
    assert plain.out.splitlines()[-1].startswith(f"{id}  {state}")
    assert as_json.json["state"] == state
    quiet = server.run("wait", id, "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (code, "", "")


def test_a_wait_that_ends_before_the_job_says_how_to_go_on(server: Server) -> None:
    id = submit(server, "sleep", {"duration_s": 600})
    done = server.run("wait", id, "--timeout", "3")
    assert done.code == Exit.TIMED_OUT
    assert f"milepost wait {id} --url {server.url}" in done.err
    assert server.run("get", id, "--json").json["state"] == "running"
    assert server.run("cancel", id).code == 0
    assert server.run("wait", id).code == Exit.CANCELLED
    refused = server.run("release", id)
    assert refused.code == Exit.REFUSED
    again = server.run("retry", id).out.strip()
    assert again != id
    assert server.run("get", again, "--raw").json["retry_of"] == id
    assert server.run("cancel", again).code == 0


def test_what_is_not_there_and_who_does_not_answer(server: Server) -> None:
    assert server.run("get", MISSING).code == Exit.NOT_FOUND
    assert server.run("wait", MISSING, "--json").json["error"]["code"] == "not_found"
    done = milepost("wait", MISSING, "--url", "http://127.0.0.1:1", "--timeout", "0.5")
    assert done.code == Exit.UNREACHABLE
    assert "127.0.0.1:1" in done.err


@pytest.mark.parametrize(
    "wrong",
    [
        ["submit"],
        ["submit", "nope"],
        ["submit", "sleep", '{"duration": 1}'],
        ["submit", "sleep", "not json"],
        ["submit", "sleep", "@no/such/file"],
        ["submit", "echo", "1", "--label", "novalue"],
        ["wait"],
        ["wait", "a b"],
        ["get", "x", "--wire", "ftp"],
        ["list", "--state", "sideways"],
        ["frobnicate"],
        ["get", "x", "--url", "no-scheme"],
    ],
)
def test_mistakes_on_the_command_line_are_usage(server: Server, wrong: list[str]) -> None:
    done = server.run(*wrong)
    assert done.code == Exit.USAGE, done.out + done.err
    assert done.err
    assert done.out == ""


def test_a_cloud_that_cannot_do_it_refuses_and_names_the_way(server: Server) -> None:
    id = submit(server, "echo", 1)
    done = server.run("cancel", id, "--wire", "glance")
    assert done.code == Exit.REFUSED
    assert "--wire native" in done.err
    assert server.run("wait", id, "--wire", "glance").code == Exit.DONE


# --- what is printed --------------------------------------------------------------------------------------------------------


def test_a_job_from_submit_to_its_history(server: Server) -> None:
    id = submit(server, "fan", {"n": 2}, "--label", "case=history", "--priority", "2")
    assert server.run("wait", id).code == 0
    shown = server.run("get", id)
    assert id in shown.out
    assert "2 of 2 done" in shown.out
    assert "case=history" in shown.out
    listed = server.run("list", "--label", "case=history", "--json").lines
    assert [one["id"] for one in listed] == [id]
    row = server.run("list", "--label", "case=history").out.split("\t")
    assert row[:3] == [id, "succeeded", "fan"]
    assert "result" not in listed[0]  # a list leaves it out, which is not null
    full = server.run("list", "--label", "case=history", "--json", "--full").lines
    assert [one["result"] for one in full] == [server.run("get", id, "--json").json["result"]]
    raw = server.run("list", "--label", "case=history", "--raw").lines
    assert [(one["labels"], one["priority"]) for one in raw] == [({"case": "history"}, 2)]
    subs = server.run("list", "--parent", id, "--json").lines
    assert [one["parent_id"] for one in subs] == [id, id]
    history = server.run("events", id, "--json").lines
    assert [one["seq"] for one in history] == list(range(1, len(history) + 1))
    assert history[-1]["state"] == "succeeded"
    followed = server.run("events", id, "--follow", "--tree", "--json").lines
    assert {one["job_id"] for one in followed} == {id, *(one["id"] for one in subs)}
    last = history[-2]["id"]
    assert [one["id"] for one in server.run("events", id, "--json", "--after", str(last)).lines] == [history[-1]["id"]]


def test_input_comes_from_a_file_or_stdin_too(server: Server) -> None:
    (server.folder / "input.json").write_text('{"from": "file"}')
    assert server.run("submit", "echo", "@input.json", "--wait", "--json").json["result"] == {"from": "file"}
    assert server.run("submit", "echo", "-", "--wait", "--json", stdin="[1]").json["result"] == [1]


def test_the_same_key_gives_the_same_job(server: Server) -> None:
    first = submit(server, "echo", {"a": 1}, "--key", "once")
    assert submit(server, "echo", {"a": 1}, "--key", "once") == first
    assert server.run("submit", "echo", '{"a": 2}', "--key", "once").code == Exit.REFUSED


def test_a_held_job_waits_for_its_release(server: Server) -> None:
    id = submit(server, "echo", 1, "--held")
    assert server.run("wait", id, "--timeout", "3").code == Exit.TIMED_OUT
    assert server.run("release", id).code == 0
    assert server.run("wait", id).code == 0


def test_handles_in_a_file_are_waited_for_together(server: Server) -> None:
    handles = [server.run("submit", "sleep", '{"duration_s": 0.2}', "--json").out for _ in range(3)]
    handles += [server.run("submit", "part", '{"fail": true}', "--json").out, "\n"]
    (server.folder / "handles.jsonl").write_text("".join(handles))
    done = milepost("wait", "--from", "handles.jsonl", "--json", cwd=server.folder)  # without a URL: the handles have it
    assert done.code == Exit.PARTLY_FAILED
    assert sorted(one["state"] for one in done.lines) == ["failed", "succeeded", "succeeded", "succeeded"]
    lost = server.run("wait", "--from", "-", stdin=f"{MISSING}\n" + handles[0])
    assert lost.code == Exit.SOME_UNKNOWN
    assert "unknown" in lost.out


def test_kinds_and_queues(server: Server) -> None:
    kinds = {one["name"]: one for one in server.run("kinds", "--json").lines}
    assert {"echo", "sleep", "fan"} <= kinds.keys()
    assert "fail" in server.run("kinds", "fan").out
    assert server.run("kinds", "nope").code == Exit.NOT_FOUND
    assert server.run("queues", "set", "lane", "--limit", "2").code == 0
    assert server.run("queues", "pause", "lane").code == 0
    (lane,) = [one for one in server.run("queues", "--json").lines if one["name"] == "lane"]
    assert "lane\t2\t0\t0\t0\t0\t0\tpaused" in server.run("queues").out.splitlines()
    assert (lane["limit"], lane["paused"]) == (2, True)
    id = submit(server, "echo", 1, "--queue", "lane")
    assert server.run("wait", id, "--timeout", "3").code == Exit.TIMED_OUT
    assert server.run("queues", "resume", "lane").code == 0
    assert server.run("wait", id, "--timeout", "60").code == 0


def test_a_reader_that_has_seen_enough_is_no_error(server: Server) -> None:
    for _ in range(3):
        submit(server, "echo", "x" * 100)
    first = subprocess.run(
        f"{COMMAND[0]} -c '{COMMAND[2]}' list --json --limit 0 | head -c 10",
        shell=True,
        capture_output=True,
        text=True,
        env=environ(MILEPOST_URL=server.url),
        check=False,
    )
    assert first.stderr == ""
    assert len(first.stdout) == 10


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_can_be_installed(shell: str) -> None:
    done = milepost("--show-completion", shell)
    assert done.code == 0
    assert "_MILEPOST_COMPLETE" in done.out


# --- Ctrl-C, restarts, terminals ----------------------------------------------------------------------------------------------


def test_ctrl_c_stops_waiting_at_once_and_cancels_nothing(server: Server) -> None:
    id = submit(server, "sleep", {"duration_s": 600})
    waiting = server.spawn("wait", id)
    assert waiting.stdout is not None
    assert any("running" in line for line in iter(waiting.stdout.readline, ""))
    began_s = time.monotonic()
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=60)
    assert time.monotonic() - began_s < 30
    assert waiting.returncode == Exit.INTERRUPTED
    assert f"milepost wait {id} --url {server.url}" in err
    assert server.run("get", id, "--json").json["state"] == "running"
    server.run("cancel", id)


def test_ctrl_c_tells_programs_too_how_to_go_on(server: Server) -> None:
    id = submit(server, "sleep", {"duration_s": 600})
    watching = server.spawn("watch", id, "--json")
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["id"] == id
    watching.send_signal(signal.SIGINT)
    out, err = watching.communicate(timeout=60)
    told = json.loads(out.splitlines()[-1])["error"]
    assert (watching.returncode, told["code"], told["pending"], err) == (Exit.INTERRUPTED, "interrupted", [id], "")
    assert told["hint"] == f"milepost wait {id} --url {server.url}"
    server.run("cancel", id)


@pytest.mark.fault
def test_a_wait_outlives_a_server_that_is_killed_and_started_again(own_server: Server) -> None:
    own_server.start()
    id = submit(own_server, "sleep", {"duration_s": 12, "steps": 4})  # the command is to come while it runs
    waiting = own_server.spawn("wait", id)
    assert waiting.stdout is not None
    assert any("running" in line for line in iter(waiting.stdout.readline, ""))
    own_server.end(signal.SIGKILL)
    own_server.start()
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, out + err
    assert "asking on" in err
    assert out.splitlines()[-1].startswith(f"{id}  succeeded")


def read_terminal(master: int, end: re.Pattern[str], timeout_s: float = 30.0) -> str:
    seen, end_s = "", time.monotonic() + timeout_s
    while not end.search(seen) and time.monotonic() < end_s:
        if select.select([master], [], [], 0.1)[0]:
            try:
                seen += os.read(master, 65536).decode("utf-8", "replace")
            except OSError:
                break
    return seen


def test_on_a_terminal_a_wait_draws_the_tree(server: Server) -> None:
    id = submit(server, "fan", {"n": 3, "fail": [1]})
    master, slave = pty.openpty()
    drawing = subprocess.Popen(
        [*COMMAND, "wait", id],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environ(MILEPOST_URL=server.url, TERM="xterm-256color"),
    )
    os.close(slave)
    seen = read_terminal(master, re.compile(r"└──[^\n]*succeeded"))
    assert drawing.wait(20) == Exit.PARTLY_FAILED
    os.close(master)
    assert "├── " in seen
    assert "the part is broken" in seen
    assert "2 of 3 done, 1 failed" in seen


# --- serve ----------------------------------------------------------------------------------------------------------------


def test_serve_says_ready_once_and_stops_cleanly(own_server: Server) -> None:
    own_server.start()
    assert own_server.process is not None
    taken = own_server.run("serve", "--port", own_server.url.rpartition(":")[2], "--data", str(own_server.folder / "other"))
    assert taken.code == Exit.UNREACHABLE
    assert "--port" in taken.err
    assert until(lambda: own_server.run("kinds").code == 0)
    assert own_server.end() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no_such_module"], "no_such_module"),
        (["missing.py"], "missing.py"),
        (["--host", "0.0.0.0", "--port", "0"], "auth"),
        (["--auth", "maybe"], "maybe"),
        (["--port", "99999"], "65535"),
    ],
)
def test_serve_refuses_what_cannot_work_and_says_why(tmp_path, arguments: list[str], said: str) -> None:
    done = milepost("serve", *arguments, "--data", str(tmp_path / "data"), cwd=tmp_path)
    assert done.code == Exit.USAGE, done.err
    assert said in done.err


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["project", "list"]])
def test_a_data_folder_that_cannot_be_one_is_named_without_a_traceback(tmp_path, command: list[str]) -> None:
    (tmp_path / "file").write_text("x")
    for data in (tmp_path / "file", tmp_path / "file" / "below"):
        done = milepost(*command, "--data", str(data))
        assert done.code == Exit.USAGE, done.err
        assert f"the data folder {data} cannot be made" in done.err
        assert "Traceback" not in done.err


# --- identity ---------------------------------------------------------------------------------------------------------------


def test_a_key_made_on_the_command_line_opens_a_server_with_auth(own_server: Server) -> None:
    own_server.arguments = ("--auth", "required")
    own_server.start()
    data = ["--data", str(own_server.folder / "data")]

    def run(*arguments: str, stdin: str = ""):
        done = milepost(*arguments, *data, "--json", stdin=stdin)
        assert done.code == 0, done.out + done.err
        return done

    project = run("project", "create", "demo").json["id"]
    run("user", "create", "alice", "--password-stdin", stdin="correct horse battery\n")
    run("user", "grant", "alice", "demo", "admin")
    assert run("user", "list").json["roles"] == ["admin@demo"]
    key = run("key", "create", "laptop").json
    assert key["project"] == project

    assert own_server.run("list").code == Exit.REFUSED
    assert own_server.run("submit", "echo", "1", "--wait", "--token", key["token"]).code == 0
    pair = run("key", "create", "--pair").json
    assert {"access_key", "secret_key"} <= pair.keys()
    listed = milepost("key", "list", *data)
    assert key["token"] not in listed.out
    assert pair["secret_key"] not in listed.out
    assert [line.split("\t")[4] for line in listed.out.splitlines()] == ["demo", "demo"]  # the project's name
    first = run("key", "list").lines[0]
    assert (first["id"], first["project"], first["expires_at"]) == (key["id"], project, key["expires_at"])
    run("key", "revoke", key["id"])
    assert own_server.run("list", "--token", key["token"]).code == Exit.REFUSED
    assert milepost("key", "revoke", key["id"], *data).code == Exit.NOT_FOUND
    assert milepost("user", "grant", "alice", "demo", "owner", *data).code == Exit.USAGE
    assert milepost("project", "create", "demo", *data).code == Exit.REFUSED


def test_a_command_that_stands_in_the_wrong_folder_says_that_it_began_a_new_one(tmp_path) -> None:
    first = milepost("project", "create", "p", cwd=tmp_path)
    assert first.code == 0
    assert f"began the data folder {tmp_path / 'milepost-data'}" in first.err
    assert "shown once" in first.err
    rows = [line.rpartition(" ") for line in first.out.splitlines()]
    assert len({len(name) for name, _, _ in rows}) == 1  # one column
    assert milepost("project", "list", cwd=tmp_path).err == ""


# --- doctor and demo ----------------------------------------------------------------------------------------------------------


def test_doctor_says_what_it_looked_at(tmp_path) -> None:
    done = milepost("doctor", "--json", "--data", str(tmp_path), "--port", "0")
    assert done.code == 0
    assert {"Python", "SQLite", "qemu-img", "QEMU", "FFmpeg", "disk space", "durable write", "port"} <= {
        one["name"] for one in done.lines
    }
    assert all(one["fix"] for one in done.lines if one["verdict"] != "ok")
