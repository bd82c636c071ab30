"""Rows that differ in their id and one text only go to SQLite in one statement, which reads them from one JSON object.

Theory: a statement opens the tables and indexes that it writes, binds its parameters, and crosses Python's lock, each time that
it runs; for an insert into `job` that is half of its cost.  The jobs of a batch, and what the attempts of one round came to, are
mostly alike: `{id: text}` and what they share is all that has to cross.  Few rows, and long texts, are cheaper one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Row = tuple[Any, ...]

ALIKE_MIN = 6  # rows
TEXT_CHARS_MAX = 4096


def split_alike(rows: Iterable[Row], key: Callable[[Row], Row], at: int) -> tuple[list[tuple[Row, dict[str, Any]]], list[Row]]:
    """Groups of alike rows, each with what its rows share and their texts by id; and the rows that have no such group.

    Shape: a row begins with its id, its text (or None) stands at `at`, and `key` gives what it has besides.
    """
    groups: dict[Row, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    alike: list[tuple[Row, dict[str, Any]]] = []
    single: list[Row] = []
    for shared, members in groups.items():
        if len(members) >= ALIKE_MIN:
            short = {row[0]: row[at] for row in members if row[at] is None or len(row[at]) <= TEXT_CHARS_MAX}
            if short:
                alike.append((shared, short))
            if len(short) < len(members):
                single += [row for row in members if row[0] not in short]
        else:
            single += members
    return alike, single
