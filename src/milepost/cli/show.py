"""How jobs look: for people on a terminal, as plain lines in a pipe, as JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from milepost.cli.screen import Screen, one_line
from milepost.errors import InvalidInput, MilepostError
from milepost.job import Progress, State
from milepost.wire import JobView, from_rfc3339, rfc3339

LOOK: dict[State, tuple[str, str]] = {
    State.HELD: ("‖", "yellow"),
    State.READY: ("·", "dim"),
    State.RUNNING: ("●", "cyan"),
    State.WAITING: ("◌", "blue"),
    State.SUCCEEDED: ("✓", "green"),
    State.FAILED: ("✗", "red"),
    State.CANCELLED: ("⊘", "yellow"),
}
BAR_CHARS = 24  # longest bar
BAR_CHARS_MIN = 6  # a shorter one says nothing
LAST_CHARS_MIN = 8  # with less it is left out, too
LAST_CHARS = 24  # a table's last column wants this much, or what it needs
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class Show:
    """Where a command writes: results to stdout, everything else to stderr."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = Screen(highlight=False, soft_wrap=not sys.stdout.isatty(), emoji=False)
        self.err = Screen(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty(), emoji=False)

    @property
    def live(self) -> bool:
        """Whether a person watches: then what changes may be drawn again and again."""
        return not self.as_json and self.err.is_terminal and self.out.is_terminal

    def json(self, value: Any) -> None:
        """One line, flushed: the reader may be a program that waits for it."""
        sys.stdout.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """A plain result line: one, whatever is in the text."""
        sys.stdout.write(one_line(text) + "\n")
        sys.stdout.flush()

    def note(self, text: str, style: str = "dim") -> None:
        """Something beside the result; never broken into lines: it may be a command to copy."""
        if not self.as_json:
            self.err.print(Text(text, style=style), soft_wrap=True)

    def error(self, error: MilepostError) -> None:
        """What went wrong, with its hint; as JSON on stdout for programs."""
        if self.as_json:
            self.json({"error": error_json(error)})
            return
        text = Text.assemble(("milepost: ", "bold red"), (error.message, ""))
        if isinstance(error, InvalidInput) and error.path not in ("$", "") and error.path not in error.message:
            text.append(f" (at {error.path})", style="dim")
        self.err.print(text, soft_wrap=True)
        if error.hint:
            self.note(f"  → {error.hint}", style="cyan")
        if error.request_id:
            self.note(f"  request {error.request_id}")

    def table(self, head: Sequence[str], rows: Iterable[Sequence[RenderableType]], *, right: Sequence[str] = ()) -> None:
        """Columns on a terminal, tabs in a pipe; there the head is left out.  What is too long wraps within its column."""
        if not self.out.is_terminal:
            for row in rows:
                self.line("\t".join(_plain(cell) for cell in row))
            return
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for name in head:
            table.add_column(name, justify="right" if name in right else "left", no_wrap=name in ("id", "state", "queue", "kind"))
        for row in rows:
            table.add_row(*row)
        self.out.print(table)

    def lines(self, head: Sequence[str], rows: Sequence[Sequence[Text]], *, spare: Sequence[str]) -> None:
        """A table with one line for each row, however narrow the terminal is: the last column is cut.

        spare: columns that are left out, the first of them first, when the last one would have no room.
        """
        widths = [max(cell_len(name), *(row[index].cell_len for row in rows)) for index, name in enumerate(head)]
        shown = list(range(len(head)))

        def room() -> int:
            return self.out.width - sum(widths[index] + 2 for index in shown[:-1])

        for name in spare:
            if room() < min(widths[-1], LAST_CHARS):
                shown.remove(head.index(name))
        if room() < min(widths[-1], LAST_CHARS_MIN):
            shown.pop()
        for row in ([Text(name, style="dim") for name in head], *rows):
            line = Text()
            for index in shown[:-1]:
                line.append_text(row[index]).append(" " * (widths[index] - row[index].cell_len + 2))
            self.out.print(line.append_text(row[shown[-1]]), no_wrap=True, overflow="ellipsis")


def _plain(cell: RenderableType) -> str:
    return (cell.plain if isinstance(cell, Text) else str(cell)).replace("\t", " ")


def error_json(error: MilepostError) -> dict[str, Any]:
    """An error as JSON: what its class, its fields and its hint say."""
    named = {"job_id": error.job_id, "state": error.state, "elapsed_s": error.elapsed_s, "hint": error.hint}
    named |= {"request_id": error.request_id, "path": getattr(error, "path", None)}
    simple = {key: value for key, value in error.fields.items() if isinstance(value, str | int | float | list)}
    simple = {
        key: value for key, value in simple.items() if not isinstance(value, list) or all(isinstance(one, str) for one in value)
    }
    told = {key: value for key, value in {**simple, **named}.items() if value is not None}
    return {"code": error.code, "message": error.message, **told}


def result_json(view: JobView) -> Any:
    """What the job returned as JSON; None also for the entities of a job that has none of its own, only sub-jobs."""
    found = msgspec.to_builtins(view.result)
    return None if isinstance(view.result, msgspec.Struct) and not found else found


def job_json(view: JobView, handle: dict[str, Any] | None = None) -> dict[str, Any]:
    """A job as JSON, the same shape for every wire."""
    shown: dict[str, Any] = {
        "id": view.id,
        "kind": view.kind,
        "state": str(view.state),
        "status": view.status,
        "project": view.project,
        "progress": msgspec.to_builtins(view.progress),
        "result": result_json(view),
        "error": msgspec.to_builtins(view.error),
        "parent_id": view.parent_id,
        "sub_jobs": view.sub_counts,
        "created_at": rfc3339(view.created_us),
        "started_at": rfc3339(view.started_us),
        "ended_at": rfc3339(view.ended_us),
        "updated_at": rfc3339(view.updated_us),
    }
    if view.sub_jobs:
        shown["tree"] = [job_json(sub) for sub in view.sub_jobs]
    return {**shown, "handle": handle} if handle is not None else shown


# --- pieces -------------------------------------------------------------------------------------------------------------


def state_text(view: JobView) -> Text:
    """`✓ succeeded`, in its colour; a cloud's own word where ours says less."""
    glyph, style = LOOK[view.state]
    word = str(view.state)
    text = Text.assemble((f"{glyph} ", style), (word, style))
    known = {word, "pending", "processing", "success", "failure", "init", "fail", "completed"}
    return text if view.status.lower() in known else text.append(f" ({view.status})", style="dim")


def amount(progress: Progress) -> str:
    """`1.5 of 4.0 GiB`, `3 of 10 steps`, `12 %`."""
    if progress.unit == "bytes":
        total = progress.total or progress.done
        power = min(max(total.bit_length() - 1, 0) // 10, len(UNITS) - 1)
        figures = [f"{value / (1 << 10 * power):.1f}" if power else str(value) for value in (progress.done, progress.total or 0)]
        return f"{figures[0]} of {figures[1]} {UNITS[power]}" if progress.total else f"{figures[0]} {UNITS[power]}"
    unit = f" {progress.unit}" if progress.unit else ""
    return f"{progress.done} of {progress.total}{unit}" if progress.total else f"{progress.done}{unit}"


def percent(progress: Progress) -> str:
    """`30 %`, or nothing while the total is unknown."""
    return f"{min(100, 100 * progress.done // progress.total)} %" if progress.total else ""


def duration(seconds: float) -> str:
    """`0.3 s`, `12 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def ran_s(view: JobView) -> float | None:
    """How long it ran, or has been running, seconds."""
    begin_us = view.started_us or view.created_us
    if begin_us is None:
        return None
    end_us = view.ended_us if view.done else int(time.time() * 1e6)
    return None if end_us is None else max(0.0, (end_us - begin_us) / 1e6)


def age(at_us: int | None) -> str:
    """`5 s ago`."""
    return "" if at_us is None else duration(max(0.0, time.time() - at_us / 1e6)) + " ago"


def until(instant: str | None) -> str:
    """`in 5 s`, of an RFC 3339 instant that is still to come; else nothing."""
    at_us = from_rfc3339(instant)
    left_s = 0.0 if at_us is None else at_us / 1e6 - time.time()
    return f"in {duration(left_s)}" if left_s > 0 else ""


def counts_text(counts: dict[str, int]) -> str:
    """`3 of 10 done, 1 failed`, of sub-jobs by state."""
    total = sum(counts.values())
    ended = {state: counts.get(state, 0) for state in (State.SUCCEEDED, State.FAILED, State.CANCELLED)}
    parts = [f"{ended[State.SUCCEEDED]} of {total} done"]
    parts += [f"{ended[state]} {state}" for state in (State.FAILED, State.CANCELLED) if ended[state]]
    return ", ".join(parts)


# --- a job as a line and as a tree ----------------------------------------------------------------------------------------


def plain_line(view: JobView) -> str:
    """One line about where a job is, for pipes and logs."""
    parts = [view.id, str(view.state)]
    if any(view.sub_counts.values()):
        parts.append(counts_text(view.sub_counts))
    if view.done:
        if view.error is not None and view.state is not State.SUCCEEDED:
            parts.append(view.error.message)
        elif not view.sub_jobs and (result := result_json(view)) is not None:  # a tree's results are its sub-jobs'
            parts.append(shortened(json.dumps(result, ensure_ascii=False)))
    elif view.progress is not None:
        parts += [
            percent(view.progress),
            amount(view.progress) if view.progress.total or view.progress.done else "",
            view.progress.note,
        ]
    return "  ".join(part for part in parts if part)


def shortened(text: str, chars: int = 500) -> str:
    """At most so many characters."""
    return text if len(text) <= chars else text[: chars - 1] + "…"


def tree(view: JobView, *, lines: int = 40, spin: Spinner | None = None) -> RenderableType:
    """A job with its sub-jobs below it, drawn in at most about so many lines: what runs and what failed comes first."""
    room = [max(lines - 2, 4)]
    root = Tree(_row(view, spin, root=True), guide_style="dim")
    _grow(root, view.sub_jobs, room, spin)
    if view.error is None or view.state is State.SUCCEEDED:
        return root
    if view.done:
        return Group(root, Text(f"  {view.error.message}", style=LOOK[view.state][1]))
    return Group(root, Text(f"  last attempt: {view.error.message}", style="yellow"))


_FIRST = (State.FAILED, State.RUNNING, State.WAITING, State.CANCELLED, State.READY, State.HELD, State.SUCCEEDED)


def _grow(branch: Tree, subs: Sequence[JobView], room: list[int], spin: Spinner | None) -> None:
    if len(subs) <= room[0]:
        shown = list(subs)
    else:
        chosen = {sub.id for sub in sorted(subs, key=lambda sub: _FIRST.index(sub.state))[: room[0] - 1]}
        shown = [sub for sub in subs if sub.id in chosen]
    room[0] -= len(shown)
    for sub in shown:
        _grow(branch.add(_row(sub, spin)), sub.sub_jobs, room, spin)
    hidden = len(subs) - len(shown)
    if hidden:
        branch.add(Text(f"… and {hidden} more", style="dim"))


def _row(view: JobView, spin: Spinner | None, *, root: bool = False) -> RenderableType:
    progress, figures, share, style = view.progress, "", None, LOOK[view.state][1]
    if view.sub_counts and any(view.sub_counts.values()):
        total, done = sum(view.sub_counts.values()), view.sub_counts.get(State.SUCCEEDED, 0)
        bad = view.sub_counts.get(State.FAILED, 0) + view.sub_counts.get(State.CANCELLED, 0)
        figures, share, style = counts_text(view.sub_counts), (done + bad) / total, "red" if bad else "green"
    elif progress is not None and progress.total and not view.done:
        figures, share = f"{percent(progress):>5}  {amount(progress)}", progress.done / progress.total
    elif progress is not None and progress.done and not view.done:
        figures = amount(progress)
    return _Row(view, spin if view.state is State.RUNNING else None, root, figures, share, style)


class _Row:
    """One job on one line.  Where there is little room the bar gets shorter, then goes; then the end is cut, never the id."""

    def __init__(
        self, view: JobView, spin: Spinner | None, root: bool, figures: str, share: float | None, bar_style: str
    ) -> None:
        self._view, self._spin, self._root = view, spin, root
        self._figures, self._share, self._bar_style = figures, share, bar_style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        view = self._view
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append_text(self._glyph(console)).append(" ").append(view.kind, style="bold" if self._root else "")
        line.append(f"  {view.id if self._root else view.id[-8:]}", style="dim")
        remark = _remark(view, reason=not self._root)
        if self._share is not None:
            room = options.max_width - line.cell_len - len(self._figures) - min(remark.cell_len, LAST_CHARS) - 6
            if room >= BAR_CHARS_MIN:
                line.append("  ").append_text(_bar(self._share, min(room, BAR_CHARS), self._bar_style))
        if self._figures:
            line.append(f"  {self._figures}")
        yield line.append("  ").append_text(remark)

    def _glyph(self, console: Console) -> Text:
        glyph, style = LOOK[self._view.state]
        frame = None if self._spin is None else self._spin.render(console.get_time())
        return frame if isinstance(frame, Text) else Text(glyph, style=style)


def _bar(share: float, chars: int, style: str) -> Text:
    """`━━━━╌╌╌╌`: what is left looks different without colour, too."""
    full = round(min(max(share, 0.0), 1.0) * chars)
    return Text.assemble(("━" * full, style), ("╌" * (chars - full), "dim"))


def _remark(view: JobView, *, reason: bool) -> Text:
    took = ran_s(view)
    if view.done:
        text = Text(str(view.state), style=LOOK[view.state][1])
        if took is not None:
            text.append(f" after {duration(took)}", style="dim")
        if reason and view.error is not None and view.state is not State.SUCCEEDED:
            text.append(f"  {view.error.message}", style=LOOK[view.state][1])
        return text
    note = view.progress.note if view.progress is not None else ""
    word = note or (str(view.state) if view.state is not State.RUNNING else "running")
    return Text(word, style="dim" if view.state is not State.RUNNING else "")
