from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from milepost import errors
from milepost.cli import doctor
from milepost.cli.demo.source import make_image
from milepost.cli.exits import Exit, exit_of, exit_of_many, exit_of_view
from milepost.cli.show import Show, amount, counts_text, duration, error_json, job_json, percent, plain_line, tree
from milepost.job import Failure, Progress, State
from milepost.wire import JobView


def view(state: State = State.RUNNING, **fields) -> JobView:
    return JobView(**{"id": "id-1", "kind": "echo", "state": state, "status": str(state), **fields})


@pytest.mark.parametrize(
    ("progress", "text", "share"),
    [
        (Progress(1536, 4096, "bytes"), "1.5 of 4.0 KiB", "37 %"),
        (Progress(3 << 30, None, "bytes"), "3.0 GiB", ""),
        (Progress(0, 0, "bytes"), "0 B", ""),
        (Progress(5, 900, "bytes"), "5 of 900 B", "0 %"),
        (Progress(3, 10, "steps"), "3 of 10 steps", "30 %"),
        (Progress(12, 10), "12 of 10", "100 %"),
        (Progress(7), "7", ""),
    ],
)
def test_amounts(progress: Progress, text: str, share: str) -> None:
    assert (amount(progress), percent(progress)) == (text, share)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0 s"), (0.04, "0.0 s"), (9.94, "9.9 s"), (119.4, "119 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_line_says_what_is_worth_it_in_each_state() -> None:
    assert plain_line(view(progress=Progress(1, 4, "steps", "cutting"))) == "id-1  running  25 %  1 of 4 steps  cutting"
    assert plain_line(view(State.SUCCEEDED, result={"a": 1}, progress=Progress(4, 4))) == 'id-1  succeeded  {"a": 1}'
    assert plain_line(view(State.FAILED, error=Failure("boom", "it broke"))) == "id-1  failed  it broke"
    assert plain_line(view(State.WAITING, sub_counts={"succeeded": 1, "running": 2})) == "id-1  waiting  1 of 3 done"
    assert counts_text({"failed": 1, "cancelled": 1, "ready": 2}) == "0 of 4 done, 1 failed, 1 cancelled"


def drawn(root: JobView, lines: int, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(tree(root, lines=lines))
    return console.file.getvalue().splitlines()


def test_a_large_tree_keeps_to_its_lines_and_shows_what_failed() -> None:
    subs = [view(State.SUCCEEDED, id=f"sub-{n:08d}") for n in range(500)]
    subs[444] = view(State.FAILED, id="sub-bad", error=Failure("boom", "it broke"))
    lines = drawn(view(State.WAITING, sub_counts={"succeeded": 499, "failed": 1}, sub_jobs=tuple(subs)), 20)
    assert len(lines) <= 22
    assert any("it broke" in line for line in lines)
    assert "… and" in lines[-1]
    nested = view(sub_counts={"running": 1}, sub_jobs=(view(sub_counts={"running": 1}, sub_jobs=(view(kind="leaf"),)),))
    assert "leaf" in drawn(nested, 20)[-1]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_a_row_is_one_line_with_its_glyph_and_its_whole_id_however_narrow(width: int) -> None:
    sub = view(State.FAILED, id="sub-00000001", kind="part", error=Failure("full", "the disk is full, " * 9))
    root = view(id="01a20082-df4b-7832-bb2f-caebecc9ab9f", kind="fan", sub_counts={"succeeded": 17, "failed": 1}, sub_jobs=(sub,))
    first, second = drawn(root, 20, width)
    assert first.startswith("● fan  01a20082-df4b-7832-bb2f-caebecc9ab9f  ")
    assert "✗ part  00000001  failed" in second
    assert ("━" in first, max(map(len, (first, second))) <= width) == (width > 80, True)


def test_a_bar_shows_its_share_without_colour() -> None:
    line = drawn(view(progress=Progress(1, 4, "steps", "cutting")), 10)[0]
    assert line.count("━") == 6
    assert line.count("╌") == 18


@pytest.mark.parametrize(("width", "head"), [(16, "id   state"), (60, "id   state  what"), (200, "id   state  created  what")])
def test_a_list_keeps_to_one_line_a_job_and_leaves_out_what_has_no_room(width: int, head: str) -> None:
    show = Show()
    show.out = Console(file=io.StringIO(), width=width)
    rows = [[Text("j-1"), Text("ready"), Text("a long while ago, it seems"), Text("the disk is full, " * 5)]]
    show.lines(("id", "state", "created", "what"), rows, spare=("created",))
    lines = show.out.file.getvalue().splitlines()
    assert " ".join(lines[0].split()) == " ".join(head.split())
    assert len(lines) == 2
    assert max(map(len, lines)) <= width


def test_a_command_to_copy_is_one_line_in_a_narrow_terminal() -> None:
    show = Show()
    show.err = Console(file=io.StringIO(), width=40)
    command = "milepost wait 01a20082-df4b-7832-bb2f-caebecc9ab9f --url http://127.0.0.1:8080"
    show.error(errors.WaitTimeout("i", state="running", waited_s=1, hint=command))
    assert command in show.err.file.getvalue()


def test_markup_in_a_clouds_words_is_text() -> None:
    root = view(kind="[red]x[/red]", progress=Progress(note="[bold]n[/bold]"))
    assert "[red]x[/red]" in drawn(root, 10)[0]
    assert "[bold]n[/bold]" in drawn(root, 10)[0]


def test_json_of_a_job_has_one_shape_for_every_wire() -> None:
    shown = job_json(view(State.FAILED, status="failure", error=Failure("c", "m")), {"id": "id-1"})
    assert (shown["state"], shown["status"], shown["error"]["message"], shown["handle"]) == (
        "failed",
        "failure",
        "m",
        {"id": "id-1"},
    )


ERRORS = [
    (errors.JobFailed("x"), Exit.FAILED),
    (errors.PartialFailure("x", succeeded=[], failed=[]), Exit.PARTLY_FAILED),
    (errors.WaitTimeout("i", state="running", waited_s=1), Exit.TIMED_OUT),
    (errors.JobCancelled("x"), Exit.CANCELLED),
    (errors.NotFound("x"), Exit.NOT_FOUND),
    (errors.Expired("x"), Exit.NOT_FOUND),
    (errors.Unreachable("x"), Exit.UNREACHABLE),
    (errors.Throttled("x", retry_after_s=1), Exit.UNREACHABLE),
    (errors.ProtocolError("x"), Exit.UNREACHABLE),
    (errors.InvalidInput("x"), Exit.USAGE),
    (errors.Unauthenticated("x"), Exit.REFUSED),
    (errors.Forbidden("x"), Exit.REFUSED),
    (errors.Conflict("x"), Exit.REFUSED),
    (errors.LimitExceeded("x", limit="l", allowed=1), Exit.REFUSED),
]


@pytest.mark.parametrize(
    ("error", "code"), ERRORS, ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None
)
def test_every_error_has_its_exit_code(error: errors.MilepostError, code: Exit) -> None:
    assert exit_of(error) is code
    assert error_json(error)["code"] == error.code


def test_the_code_of_many_is_theirs_or_partly() -> None:
    assert exit_of_many([]) is Exit.DONE
    assert exit_of_many([Exit.FAILED, Exit.FAILED]) is Exit.FAILED
    assert exit_of_many([Exit.DONE, Exit.FAILED]) is Exit.PARTLY_FAILED
    assert exit_of_view(view(State.FAILED, sub_counts={"succeeded": 1})) is Exit.PARTLY_FAILED
    assert exit_of_view(view(State.FAILED, sub_counts={"failed": 1})) is Exit.FAILED


# --- doctor -----------------------------------------------------------------------------------------------------------------


def test_what_is_missing_comes_with_how_to_get_it(tmp_path) -> None:
    for check, verdict, fix in (
        (doctor.check_sqlite((3, 31, 1)), "missing", "3.35"),
        (doctor.check_extra("server", ("json", "no_such_module")), "missing", "milepost[server]"),
        (doctor.check_extra("images", ("no_such_module",)), "warning", "milepost[images]"),
        (doctor.check_qemu("no-such-program"), "warning", "apt install"),
        (doctor.check_extra("servers", ("no_such_package.module",)), "warning", "milepost[servers]"),
        (doctor.check_machines("no-such-program"), "warning", "apt install qemu-system-x86"),
        (doctor.check_machines("false"), "warning", "reinstall"),
        (doctor.check_ffmpeg(("no-such-program",)), "warning", "apt install ffmpeg"),
        (doctor.check_disk(tmp_path, 1 << 20), "missing", "room"),
        (doctor.check_disk(tmp_path, 1 << 30), "warning", "larger"),
        (doctor.check_fsync(tmp_path, lambda _: [40.0] * 5), "warning", "SSD"),
    ):
        assert check.verdict == verdict
        assert fix in check.fix
    assert doctor.check_fsync(tmp_path, doctor.measure_fsync).name == "durable write"


def test_a_taken_port_is_found() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert doctor.check_port("127.0.0.1", port).verdict == "warning"
    assert doctor.check_port("127.0.0.1", 0).verdict == "ok"


# --- the demo's image ---------------------------------------------------------------------------------------------------------


def test_the_image_made_without_qemu_has_a_partition_table(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    source = make_image(tmp_path)
    head = source.path.read_bytes()[:512]
    assert (source.format, head[510:]) == ("raw", b"\x55\xaa")
    start, sectors = int.from_bytes(head[454:458], "little"), int.from_bytes(head[458:462], "little")
    assert (head[446], head[450]) == (0x80, 0x83)
    assert (start + sectors) * 512 == source.size_bytes
