"""Waiting for many jobs on the command line: handles from a file, results to a file, and going on after a crash.

Rules
1. A result is written, whole and on a line of its own, before the next one is looked at: a run that was killed has lost nothing.
2. `--from` and `--to` together make the same command line go on where it was: jobs whose end is in the results are done.
3. Stopping prints the command that goes on, and cancels nothing.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from milepost.cli.connect import Place
from milepost.cli.exits import Exit, exit_of, exit_of_many, exit_of_view
from milepost.cli.show import Show, error_json, job_json, plain_line, state_text
from milepost.client import many
from milepost.client.cadence import Cadence
from milepost.client.ends import NAMED_MAX
from milepost.client.handle import Handle, read_handle
from milepost.client.sync import Client, JobHandle
from milepost.errors import InvalidInput, MilepostError

CODES = {"succeeded": Exit.DONE, "failed": Exit.FAILED, "cancelled": Exit.CANCELLED}


def read_jobs(place: Place, ids: Sequence[str], source: str | None) -> list[JobHandle]:
    """The jobs, each once: ids belong to this command line's client, handles to the one that reaches them."""
    clients: dict[Any, Client] = {}
    found: dict[Any, JobHandle] = {}
    for text in [*ids, *_lines(source)]:
        if not text.lstrip().startswith("{"):
            found.setdefault(text, place.client.attach(text))
            continue
        handle = read_handle(text)
        key = _place_of(handle)
        if key not in clients:
            clients[key] = place.client_of(handle.to_json())
        found.setdefault((key, handle.id), clients[key].attach(handle.id))
    return list(found.values())


def _place_of(handle: Handle) -> tuple[str | None, ...]:
    return (handle.wire, handle.endpoint, handle.project, handle.cloud)


def _lines(source: str | None) -> Iterator[str]:
    if source is None:
        return
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the handles cannot be read: {error}", path="--from") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield _handle_line(line.strip(), number)


def _handle_line(line: str, number: int) -> str:
    """A handle or an id; the JSON of `submit --json` has its handle inside."""
    if not line.startswith("{"):
        return line
    try:
        value = json.loads(line)
        return json.dumps(value.get("handle", value))
    except ValueError as error:
        raise InvalidInput(f"line {number} is no JSON: {error}", path="--from") from error


# --- results ------------------------------------------------------------------------------------------------------------


class Results:
    """A file of results, one JSON a line: those that are in it, by handle, and those that are added."""

    def __init__(self, path: str) -> None:
        """Errors: InvalidInput when it cannot be read or written."""
        self.codes: dict[Any, Exit] = {}
        try:
            self._file = Path(path).open("a+b")  # noqa: SIM115 - closed by its owner
        except OSError as error:
            raise InvalidInput(f"the results cannot be written: {error}", path="--to") from error
        self._file.seek(0)
        whole = 0
        for line in self._file:
            if line.endswith(b"\n"):
                whole += len(line)
                self._read(line)
        if whole != self._file.seek(0, os.SEEK_END):
            self._file.truncate(whole)  # a line that a crash cut off

    def _read(self, line: bytes) -> None:
        try:
            told = json.loads(line)
            handle, state = read_handle(told["handle"]), told.get("state")
        except (ValueError, KeyError, TypeError, MilepostError):
            return
        if state in CODES:  # what could not be known may be known now
            self.codes[(_place_of(handle), handle.id)] = CODES[state]

    def write(self, told: dict[str, Any]) -> None:
        self._file.write(json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


# --- waiting ------------------------------------------------------------------------------------------------------------


def wait_many(
    show: Show,
    jobs: list[JobHandle],
    *,
    timeout_s: float | None,
    cadence: Cadence | None,
    quiet: bool,
    source: str | None,
    to: str | None,
    first: bool,
) -> Exit:
    """Tell each job as it ends; the code says what all of them came to.  `first`: only the first that is final."""
    codes: Counter[Exit] = Counter()
    with ExitStack() as stack:
        results = None if to is None else Results(to)
        if results is not None:
            stack.callback(results.close)
            jobs = _skip_told(jobs, results, codes)
        pending = dict.fromkeys(jobs)
        total = len(pending) + codes.total()
        try:
            with closing(many.as_completed(jobs, timeout_s=timeout_s, cadence=cadence)) as completed:
                for job in completed:
                    code = _tell_ended(show, job, quiet, codes.total() + 1, total, results)
                    codes[code] += 1
                    del pending[job]
                    if first and job.done:
                        return code
                    job.forget()
        except KeyboardInterrupt:
            tell_interrupted(show, list(pending), source=source, to=to)
            return Exit.INTERRUPTED
        except MilepostError as error:
            error.hint = " && ".join(resume_commands(list(pending), source, to)) or error.hint
            raise
    return exit_of_many(codes)


def _skip_told(jobs: list[JobHandle], results: Results, codes: Counter[Exit]) -> list[JobHandle]:
    """Those whose end is not in the results; the codes of the others are counted."""
    left = []
    for job in jobs:
        handle = read_handle(job.handle)
        code = results.codes.get((_place_of(handle), handle.id))
        if code is None:
            left.append(job)
        else:
            codes[code] += 1
    return left


def _tell_ended(show: Show, job: JobHandle, quiet: bool, number: int, total: int, results: Results | None) -> Exit:
    problem = job.problem
    told = {"handle": job.handle, "error": error_json(problem)} if problem else job_json(job.view, job.handle)
    if results is not None:
        results.write(told)
    if show.as_json and not quiet:
        show.json(told)
    elif not quiet and problem is not None:
        show.line(f"{job.id}  unknown  {problem.message}")
    elif not quiet and show.live:
        text = state_text(job.view).append(f"  {job.kind}  ", style="").append(job.id, style="dim")
        reason = f"  {job.error.message}" if job.error is not None else ""
        show.out.print(f"[dim]{number:>{len(str(total))}}/{total}[/dim]", text.append(reason))
    elif not quiet:
        show.line(plain_line(job.view))
    return exit_of(problem) if problem is not None else exit_of_view(job.view)


# --- stopped ------------------------------------------------------------------------------------------------------------


def tell_interrupted(show: Show, pending: list[JobHandle], *, source: str | None = None, to: str | None = None) -> None:
    """Ctrl-C: the jobs go on; say how to wait again."""
    pending = [job for job in pending if not job.done and job.problem is None]
    ids = [job.id for job in pending]
    if not ids:
        return
    what = f"job {ids[0]} goes on" if len(ids) == 1 else f"{len(ids)} jobs go on"
    told = f"stopped waiting, cancelled nothing: {what}"
    commands = resume_commands(pending, source, to)
    if show.as_json:
        show.json({"error": {"code": "interrupted", "message": told, "hint": " && ".join(commands), "pending": ids}})
        return
    show.note(told, style="yellow")
    for command in commands:
        show.note(f"  → {command}", style="cyan")


def resume_commands(pending: Sequence[JobHandle], source: str | None, to: str | None) -> list[str]:
    """The command lines that wait for what is left: one for each cloud, by ids; of very many, one that reads a file.

    Rules: with results in a file, the handles are read from where they came from; else those that are left are put into a file.
    """
    words = [] if to is None else ["--to", to]
    by_client: dict[int, list[JobHandle]] = {}
    for job in pending:
        by_client.setdefault(job.place_id, []).append(job)
    if len(pending) <= NAMED_MAX:
        return [group[0].command("wait", *(job.id for job in group), *words) for group in by_client.values()]
    if to is None or source is None or source == "-":
        source = _write_handles(pending)
    return [pending[0].command("wait", "--from", source, *words)]


def _write_handles(pending: Sequence[JobHandle]) -> str:
    """A new file of handles in the current folder."""
    number = 0
    while True:
        path = Path(f"milepost-pending{f'-{number}' if number else ''}.jsonl")
        try:
            with path.open("x", encoding="utf-8") as file:
                file.writelines(json.dumps(job.handle, separators=(",", ":")) + "\n" for job in pending)
        except FileExistsError:
            number += 1
            continue
        return str(path)
