"""Brings a database to the newest schema: numbered files, applied in order, each in one transaction."""

from __future__ import annotations

import sqlite3
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
            connection.executescript(f"BEGIN IMMEDIATE;\n{sql}\nPRAGMA user_version = {number};\nCOMMIT;")
    return newest
