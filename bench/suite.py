"""Rounds over the figures, their medians, the table and the history.

Rules
1. Figures are measured in rounds, each of which goes over all of them: a slow minute of the machine meets all alike.
2. A value is the median of its rounds; the least and the greatest stand beside it.
3. A figure that cannot be measured says why and does not end the run; nor does a goal that is missed.
4. The disk's fdatasync is measured in the same run, before every round and after the last.
5. A rate stands beside the sketch's rate of the same minute.  Its goal is judged as measured, and once more at the speed that the
   sketch had where the goals were set; the goal itself is the same.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.figure import SKETCH_PER_S, Figure, Row, Unmeasurable
from bench.machine import facts, sync_samples_ms
from bench.room import ROOT, fresh_room

HISTORY = ROOT / "bench" / "history.jsonl"
SYNCS = 200
WIDTHS = (40, 9, 9, 9, 10, 9)


class Results:
    """What the rounds gave: values by row, and why a figure has none."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.missing: dict[str, str] = {}
        self.sync_ms: list[float] = []
        self.interrupted = False  # by a signal: the figures after it are missing or have fewer rounds

    def add(self, row: str, value: float) -> None:
        self.values.setdefault(row, []).append(value)


def run(figures: Sequence[Figure], *, rounds: int, quick: bool) -> Results:
    """Measure everything, saying on stderr where it is.  Ctrl-C and SIGTERM end it early, with what was measured until then."""
    results = Results()
    try:
        _rounds(figures, results, rounds=rounds, quick=quick)
    except KeyboardInterrupt:
        print(" interrupted", file=sys.stderr)
        results.interrupted = True
    return results


def _rounds(figures: Sequence[Figure], results: Results, *, rounds: int, quick: bool) -> None:
    for number in range(rounds):
        _sync(results, quick=quick)
        for figure in figures:
            if number < figure.rounds_max and figure.name not in results.missing:
                _measure(figure, results, quick=quick, place=f"{number + 1}/{rounds}")
    _sync(results, quick=quick)


def _sync(results: Results, *, quick: bool) -> None:
    with fresh_room(quick=quick) as room:
        results.sync_ms += sync_samples_ms(room.folder, SYNCS)


def _measure(figure: Figure, results: Results, *, quick: bool, place: str) -> None:
    print(f"round {place}  {figure.name} …", end="", flush=True, file=sys.stderr)
    started_s = time.perf_counter()
    try:
        with fresh_room(quick=quick) as room:
            found = figure.measure(room)
    except (Unmeasurable, OSError, subprocess.SubprocessError) as error:
        results.missing[figure.name] = str(error) or type(error).__name__
        print(f" not measured: {results.missing[figure.name]}", file=sys.stderr)
        return
    for row in figure.rows:
        results.add(row.name, found[row.name])
    print(f" {time.perf_counter() - started_s:.0f} s", file=sys.stderr)


# --- the table -----------------------------------------------------------------------------------------------------


def table(figures: Sequence[Figure], results: Results) -> str:
    """The figures as text; `of goal` is how much of it was reached, 1 or more being all of it."""
    lines = [_line(("figure", "median", "min", "max", "goal", "of goal"), "verdict"), ""]
    for figure in figures:
        lines += [_row(row, results) for row in figure.rows if row.name in results.values]
        if figure.name in results.missing:
            lines.append(f"{figure.name}: not measured: {results.missing[figure.name]}")
    return "\n".join(lines)


def _row(row: Row, results: Results) -> str:
    values = results.values[row.name]
    median = statistics.median(values)
    ratio = row.ratio(median)
    goal = "" if row.goal is None else f"{'≥' if row.better == 'more' else '≤'} {row.goal:,g}"
    cells = (f"{row.name} ({row.unit})", _number(median), _number(min(values)), _number(max(values)), goal)
    said = verdict(row, median)
    of_sketch = sketch_ratio(row, results)
    if of_sketch is not None:
        scaled = of_sketch * SKETCH_PER_S
        said += f"; {of_sketch:.2f} of the sketch: {scaled:,.0f} at its {SKETCH_PER_S:,}, {verdict(row, scaled)}"
    return _line((*cells, "" if ratio is None else f"{ratio:.2f}"), said)


def sketch_ratio(row: Row, results: Results) -> float | None:
    """How much of the sketch's rate in the same minute it reached: the median over the rounds."""
    if row.beside is None:
        return None
    beside = results.values[row.beside]
    return statistics.median(value / sketch for value, sketch in zip(results.values[row.name], beside, strict=True))


def verdict(row: Row, median: float) -> str:
    if row.goal is None:
        return ""
    met = median >= row.goal if row.better == "more" else median <= row.goal
    return "met" if met else "missed"


def _line(cells: Sequence[str], last: str) -> str:
    first, *rest = cells
    middle = "".join(f"{cell:>{width}}" for cell, width in zip(rest, WIDTHS[1:], strict=True))
    return f"{first:<{WIDTHS[0]}}{middle}  {last}".rstrip()


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 10 else f"{value:.1f}"


def machine_line(machine: dict[str, Any]) -> str:
    return (
        "{cores} cores {arch} (load {load_1min}), {system}, Python {python}, SQLite {sqlite};\n"
        "fdatasync of 4 KiB on the data's disk: median {fdatasync_median_ms} ms, p99 {fdatasync_p99_ms} ms"
    ).format_map(machine)


# --- the history ---------------------------------------------------------------------------------------------------


def record(figures: Sequence[Figure], results: Results, *, rounds: int, quick: bool) -> dict[str, Any]:
    """One line of the history."""
    rows = {row.name: row for figure in figures for row in figure.rows}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "rounds": rounds,
        "quick": quick,
        "machine": facts(results.sync_ms),
        "figures": {name: _entry(rows[name], results) for name in results.values},
        "not_measured": {
            name: why.replace(str(ROOT), ".").replace(str(Path.home()), "~") for name, why in results.missing.items()
        },
    }


def _entry(row: Row, results: Results) -> dict[str, Any]:
    values = results.values[row.name]
    median = statistics.median(values)
    entry: dict[str, Any] = {"unit": row.unit, "median": _short(median), "min": _short(min(values)), "max": _short(max(values))}
    if row.goal is not None:
        entry |= {"goal": row.goal, "verdict": verdict(row, median)}
    of_sketch = sketch_ratio(row, results)
    if of_sketch is not None:
        scaled = of_sketch * SKETCH_PER_S
        entry |= {
            "of_sketch": _short(of_sketch),
            "at_sketch_speed": _short(scaled),
            "verdict_at_sketch_speed": verdict(row, scaled),
        }
    return entry


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def commit() -> str:
    """The commit that was measured, with a + when package or suite have changes that it does not."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", "src", "bench", ":!bench/history.jsonl")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def keep(line: dict[str, Any]) -> None:
    """Append it to the history."""
    with HISTORY.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
