"""Loads named SQL from `sql/<dialect>/*.sql`.

Shape: a block starts with `-- name: claim_jobs`, says `-- params: a, b` (the order in which callers pass them), and uses them
as `:a`.  At import `:a` becomes the driver's positional form (`?1` for SQLite, `$1` for PostgreSQL).  The names of a file are
the fields of a NamedTuple, so a missing or a spare statement fails at import, not in production.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T", bound=tuple[Any, ...])

_BLOCK = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_PARAMS = re.compile(r"^-- params: (.+)$", re.MULTILINE)
_COMMENT = re.compile(r"--[^\n]*")
_NAME = re.compile(r"(?<![:\w]):([a-z_]\w*)")


class Block(NamedTuple):
    """One named statement, as the driver takes it."""

    name: str
    params: tuple[str, ...]
    text: str


def parse(source: str, mark: str) -> dict[str, Block]:
    """The blocks of one file.  `mark` is the driver's positional sign.

    Errors: ValueError when a parameter is used but not declared, or declared but not used.
    """
    blocks: dict[str, Block] = {}
    parts = _BLOCK.split(source)
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        declared = _PARAMS.search(body)
        params = tuple(part.strip() for part in declared.group(1).split(",")) if declared else ()
        text = " ".join(_COMMENT.sub("", body).split()).rstrip(";").strip()
        used = set(_NAME.findall(text))
        if used != set(params):
            raise ValueError(f"statement {name}: params {sorted(params)} declared, {sorted(used)} used")
        if name in blocks:
            raise ValueError(f"statement {name} stands twice")
        order = {param: index for index, param in enumerate(params, 1)}
        text = _NAME.sub(lambda match, order=order: f"{mark}{order[match.group(1)]}", text)  # type: ignore[misc]
        blocks[name] = Block(name, params, text)
    return blocks


def load(dialect: str, file: str, into: type[T], *, mark: str = "?") -> T:
    """The statements of `sql/<dialect>/<file>.sql` as the NamedTuple `into`, whose fields are str."""
    source = files("milepost.store").joinpath("sql", dialect, f"{file}.sql").read_text(encoding="utf-8")
    blocks = parse(source, mark)
    fields: tuple[str, ...] = into._fields  # type: ignore[attr-defined]
    if set(blocks) != set(fields):
        raise ValueError(f"{dialect}/{file}.sql and {into.__name__} differ: {sorted(set(blocks) ^ set(fields))}")
    return into(*(blocks[field].text for field in fields))
