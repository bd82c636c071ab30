"""Brings a database to the newest schema: numbered files, applied in order, each in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from importlib.resources import files

from milepost.errors import StoreUnavailable


def migrations(dialect: str) -> list[tuple[int, str]]:
    """(number, SQL) of every migration file, by number."""
    folder = files("milepost.store").joinpath("sql", dialect, "migrations")
    found = [
        (int(entry.name[:4]), entry.read_text(encoding="utf-8")) for entry in folder.iterdir() if entry.name.endswith(".sql")
    ]
    return sorted(found)


def migrate_sqlite(connection: sqlite3.Connection) -> int:
    """Apply what is missing; returns the schema's version.

    Errors: StoreUnavailable when the database was written by a newer Milepost, which this one could damage.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    known = migrations("sqlite")
    newest = known[-1][0]
    if version > newest:
        raise StoreUnavailable(
            f"the database has schema {version}, this Milepost knows {newest}", hint="install the Milepost that wrote it"
        )
    for number, sql in known:
        if number > version:
            _apply(connection, number, sql)
    return newest


def _apply(connection: sqlite3.Connection, number: int, sql: str) -> None:
    """The schema has this number, whoever brought it there: two processes may open a new database at the same moment."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version < number:
            for statement in _statements(sql):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(sql: str) -> Iterator[str]:
    """One after the other; `executescript` would end the transaction that it is called in."""
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement
