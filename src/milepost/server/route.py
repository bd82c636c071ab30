"""One route of the native API as a value: what dispatches by it, and what its documentation says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple

from milepost.server.http import Call, Reply

Handler = Callable[[Call], Awaitable[Reply | None]]


class Parameter(NamedTuple):
    """One query parameter or request header."""

    name: str
    about: str
    type: Literal["string", "integer", "boolean", "number"] = "string"
    place: Literal["query", "header"] = "query"
    many: bool = False
    choices: tuple[str, ...] = ()


class Route(NamedTuple):
    """One method of one path.  `answers` maps a status to the type of its body (None: no body) and what it says."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    handler: Handler
    tag: str
    about: str
    answers: dict[int, tuple[Any, str]]
    parameters: tuple[Parameter, ...] = ()
    body: Any = None
    errors: tuple[int, ...] = ()
    open: bool = False  # no identity needed


ALL_PROJECTS = Parameter("all_projects", "1: across all projects (admins)", "boolean")
LIMIT = Parameter("limit", "entries on the page", "integer")
