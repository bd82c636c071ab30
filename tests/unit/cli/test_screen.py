"""What jobs say reaches a terminal as text: it moves no cursor, sets no title, and stays on its line."""

from __future__ import annotations

import io

import pytest
from rich.live import Live
from rich.text import Text

from milepost.cli.screen import Screen, harmless, one_line
from milepost.cli.show import Show, tree
from milepost.errors import Unavailable
from milepost.job import Failure, Progress, State
from milepost.wire import JobView

EVIL = "a\x1b]0;owned\x07b\x9b2Jc\u202egnp.exe\x7f\x00"
TAME = "a]0;ownedb2Jcgnp.exe"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain", "plain"), (EVIL, TAME), ("é → 猫 😀", "é → 猫 😀"), ("two\nlines\tand a tab", "two\nlines\tand a tab")],
)
def test_what_commands_a_terminal_is_taken_out(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_a_line_is_one_line() -> None:
    assert one_line("a\tb\nc\r\nd\u2028e\x85f\x1b[2J") == "a\tb c  d e f[2J"


def test_a_screen_shows_a_jobs_words_without_its_commands_and_keeps_its_own_colours() -> None:
    screen = Screen(file=io.StringIO(), force_terminal=True, color_system="standard", width=120)
    screen.print(Text(EVIL, style="red"))
    assert screen.file.getvalue() == f"\x1b[31m{TAME}\x1b[0m\n"


def test_the_live_tree_is_harmless_too() -> None:
    screen = Screen(file=io.StringIO(), force_terminal=True, color_system=None, width=120, height=20)
    view = JobView(id="id-1", kind=EVIL, state=State.RUNNING, status="running", progress=Progress(1, 2, EVIL, EVIL))
    failed = JobView(id="id-2", kind="k", state=State.FAILED, status="failed", error=Failure("c", EVIL))
    with Live(tree(view, lines=10), console=screen) as live:
        live.update(tree(failed, lines=10))
    drawn = screen.file.getvalue()
    assert TAME in drawn
    assert not {"\x1b]", "\x07", "\x9b", "\u202e"} & {sign for sign in ("\x1b]", "\x07", "\x9b", "\u202e") if sign in drawn}


def test_rows_errors_and_lines_of_a_pipe_are_one_harmless_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    show = Show()
    show.table(("id", "what"), [(Text("1"), Text(f"x\ty\nz{EVIL}"))])
    show.line(f"id  failed  {EVIL}\nnext")
    show.error(Unavailable(EVIL))
    told = capsys.readouterr()
    assert told.out == f"1\tx y z{TAME}\nid  failed  {TAME} next\n"
    assert told.err == f"milepost: {TAME}\n"
