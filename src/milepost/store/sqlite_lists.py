"""The reads of `SqliteStore` that are built: a page of jobs by any filters and order, and what is in the queues.

Which index serves which filter is decided here where SQLite's planner cannot know: how few jobs have failed, or how many have
a label.  The plans are held by `tests/unit/store/test_sqlite.py`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from milepost.errors import InvalidInput, NotFound
from milepost.job import State
from milepost.store import SORTABLE, JobQuery, Queue, QueueDepth
from milepost.store.rows import text


def list_sql(query: JobQuery, connection: sqlite3.Connection, *, columns: str) -> tuple[str, list[Any]]:
    """The statement of a page and its parameters; its one row is a JSON array of rows with these columns.

    There are at most a few dozen different texts, by which filters are set.
    Errors: InvalidInput, NotFound when there is nothing to start behind.
    """
    if query.sort not in SORTABLE:
        raise InvalidInput(f"cannot sort by {query.sort!r}; use one of {', '.join(SORTABLE)}", path="$.sort")
    where: list[str] = []
    params: list[Any] = []

    def add(condition: str, *values: Any) -> None:
        where.append(condition)
        params.extend(values)

    if query.ids is not None:
        add("id IN (SELECT value FROM json_each(?))", text(list(query.ids)))
    elif query.parent_id is not None:
        add("parent_id = ? AND parent_id IS NOT NULL", query.parent_id)
    else:
        add("parent_id IS NULL")
    if query.project is not None:
        add("job.project = ?", query.project)
    if query.kinds is not None:
        marks = ", ".join("?" * len(query.kinds))
        add(f"kind IN ({marks})", *query.kinds)
    if query.states is not None:
        where.extend(_state_conditions(frozenset(query.states)))
    if query.queue is not None:
        add("queue = ?", query.queue)
    led = _leading_label(query)
    if led is not None:
        add("job_label.key = ? AND job_label.value = ?", *led)
        if query.project is not None:
            add("job_label.project = ?", query.project)
    for key, value in query.labels:
        if (key, value) != led:
            add(_HAS_LABEL if led is not None else _label_condition(key, value, connection), key, value)
    if query.unexpired_in is not None:
        add(
            "(job.project <> ? OR expires_us IS NULL OR expires_us > ? OR (ended_us IS NULL AND state <> 'held'))",
            query.unexpired_in,
            query.now_us,
        )
    direction, beyond = ("DESC", "<") if query.descending else ("ASC", ">")
    # Ids grow with creation, so sorting by id is sorting by (created_us, id).
    order = ["id"] if query.sort in ("created_us", "id") else [query.sort, "id"]
    keyset = order if led is None else ["job_label.job_id"]
    if query.after is not None:
        start = f"SELECT {', '.join(order)} FROM job WHERE id = ?1 AND (?2 IS NULL OR project = ?2)"  # noqa: S608
        row = connection.execute(start, (query.after, query.project)).fetchone()
        if row is None:
            raise NotFound(f"no job {query.after} to start behind", job_id=query.after)
        _add_keyset(add, keyset, list(row), beyond, descending=query.descending)
    columns = columns.replace(" project,", " job.project,")
    if not query.bodies:
        columns = columns.removesuffix("input, result") + "NULL, NULL"
    source = f"job {_index_hint(query)}"
    if led is not None:  # the label's rows lie in the order of their jobs' ids: the page is their beginning
        source = "job_label CROSS JOIN job ON job.id = job_label.job_id"
    inner = (
        f"SELECT {columns} FROM {source} WHERE {' AND '.join(where)} "  # noqa: S608
        f"ORDER BY {', '.join(f'{column} {direction}' for column in keyset)} LIMIT ?"
    )
    params.append(query.limit)
    named = ", ".join(f"c{index}" for index in range(33))
    return f"WITH page ({named}) AS ({inner}) SELECT json_group_array(json_array({named})) FROM page", params  # noqa: S608


_BAD = frozenset({State.FAILED, State.CANCELLED})
_LIVE_IDS = {
    State.READY: (
        "SELECT id FROM job INDEXED BY job_due WHERE state = 'ready' AND due = 1 "
        "UNION ALL SELECT id FROM job INDEXED BY job_scheduled WHERE state = 'ready' AND due = 0"
    ),
    State.RUNNING: "SELECT id FROM job INDEXED BY job_running WHERE state = 'running'",
    State.HELD: "SELECT id FROM job INDEXED BY job_parked WHERE (state = 'held' OR state = 'waiting') AND state = 'held'",
    State.WAITING: "SELECT id FROM job INDEXED BY job_parked WHERE (state = 'held' OR state = 'waiting') AND state = 'waiting'",
}


def _state_conditions(states: frozenset[State]) -> list[str]:
    """A filter on states that finds few rows among many without reading the many."""
    words = ", ".join(sorted(f"'{state}'" for state in states)) or "''"
    filters = [f"state IN ({words})"]
    if states and states <= _LIVE_IDS.keys():
        filters.append(f"id IN ({' UNION ALL '.join(_LIVE_IDS[state] for state in sorted(states))})")
    elif states and states <= _BAD:
        filters.append(
            "ended_us IS NOT NULL AND state <> 'succeeded'"
        )  # SQLite takes a partial index only where its condition is repeated
    return filters


LABEL_RARE = 10_000
_HAS_LABEL = "EXISTS (SELECT 1 FROM job_label WHERE key = ? AND value = ? AND job_id = job.id)"


def _leading_label(query: JobQuery) -> tuple[str, str] | None:
    """The label whose rows are read in order until the page is full; None where another index finds the page's jobs sooner."""
    by_id = query.sort in ("created_us", "id")
    other = query.ids or query.parent_id or query.kinds or query.states
    return query.labels[0] if query.labels and by_id and other is None else None


def _label_condition(key: str, value: str, connection: sqlite3.Connection) -> str:
    """A rare label leads to its jobs; a common one is looked up job by job, which ends as soon as the page is full."""
    seen = "SELECT COUNT(*) FROM (SELECT 1 FROM job_label WHERE key = ? AND value = ? LIMIT ?)"
    if connection.execute(seen, (key, value, LABEL_RARE + 1)).fetchone()[0] > LABEL_RARE:
        return _HAS_LABEL
    return "id IN (SELECT job_id FROM job_label WHERE key = ? AND value = ?)"


def _index_hint(query: JobQuery) -> str:
    """The index of failed and cancelled jobs is not the planner's choice: it cannot know how few they are."""
    roots = query.ids is None and query.parent_id is None
    if roots and not query.labels and query.kinds is None and query.states and frozenset(query.states) <= _BAD:
        return "INDEXED BY job_bad_all" if query.project is None else "INDEXED BY job_bad"
    return ""


def _add_keyset(add: Callable[..., None], order: list[str], at: list[Any], beyond: str, *, descending: bool) -> None:
    if len(order) == 1:
        add(f"{order[0]} {beyond} ?", at[0])
        return
    column, value, last_id = order[0], at[0], at[1]
    if value is not None:
        nulls = f" OR {column} IS NULL" if descending else ""  # NULL sorts first in SQLite
        add(f"({column} {beyond} ?{nulls} OR ({column} = ? AND id {beyond} ?))", value, value, last_id)
    elif descending:
        add(f"({column} IS NULL AND id {beyond} ?)", last_id)
    else:
        add(f"({column} IS NOT NULL OR id {beyond} ?)", last_id)


def depths_of(queues: list[Queue], rows: list[tuple[str, str, int, int | None]]) -> list[QueueDepth]:
    names = {queue.name: queue for queue in queues}
    counts: dict[str, dict[str, int]] = {name: {} for name in names}
    oldest: dict[str, int | None] = {}
    for name, what, count, oldest_us in rows:
        counts.setdefault(name, {})[what] = count
        if oldest_us is not None:
            oldest[name] = oldest_us
    depths = []
    for name in sorted(counts):
        queue, seen = names.get(name, Queue(name)), counts[name]
        depths.append(
            QueueDepth(
                name,
                queue.limit,
                queue.paused,
                held=seen.get("held", 0),
                ready=seen.get("due", 0),
                scheduled=seen.get("scheduled", 0),
                running=seen.get("running", 0),
                waiting=seen.get("waiting", 0),
                oldest_ready_us=oldest.get(name),
            )
        )
    return depths
