"""Workflow templates: commands that a project stores under an id, to be asked for instead of writing them out.

Rules
1. A template is a resource of the type `workflow/<project>`; its id is any name of letters, digits, `_`, `.` and `-`.
2. In an entry behind `saveas/` these stand for the source of each use: `$(bucket)`, `$(key)`, `$(name)` (the key without its
   extension) and `$(ext)` (with its dot).  Without them every use would save under one key.
3. `saveas/bucket:key` may be written in the clear in a template; it is kept and sent on in base64.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from milepost.errors import InvalidInput, NotFound
from milepost.job import ProjectId
from milepost.store import Resource
from milepost.wire.qiniu import errors, variables
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.signing.qiniu import read_urlsafe, urlsafe

if TYPE_CHECKING:
    from milepost.store import Store

COMMANDS_MAX, CHARS_MAX = 100, 64 << 10

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}").fullmatch
_SAVEAS = re.compile(r"(?:(?<=\|)|^)saveas/(?P<entry>.*)\Z", re.DOTALL)


class Workflow(msgspec.Struct, kw_only=True):
    """One template."""

    id: str
    fops: list[str]
    created_us: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Workflow).decode


async def put_workflow(store: Store, project: ProjectId, id: str, fops: str, *, now_us: int) -> Workflow:
    """The template is what these commands say, also where there was one of this id.  Errors: InvalidInput."""
    if not _NAME(id):
        raise InvalidInput("a workflow's id is 1 to 128 letters, digits and . _ -", path="ID")
    commands = [encode_saveas(command) for one in fops.split(";") if (command := one.strip())]
    if not 0 < len(commands) <= COMMANDS_MAX or len(fops) > CHARS_MAX:
        raise InvalidInput(f"a workflow has 1 to {COMMANDS_MAX} commands, of {CHARS_MAX} characters together", path="FOPS")
    made = Workflow(id=id, fops=commands, created_us=now_us)
    record = Resource(
        type=_type(project), id=id, project=project, doc=_encode(made), created_us=now_us, updated_us=now_us, version=0
    )
    await store.put_resource(record)
    return made


async def list_workflows(store: Store, project: ProjectId) -> list[Workflow]:
    """By their age."""
    return [_decode(one.doc) for one in await store.list_resources(_type(project), project=project)]


async def remove_workflow(store: Store, project: ProjectId, id: str) -> None:
    """Jobs that it began go on.  Errors: NotFound."""
    if not await store.delete_resource(_type(project), id):
        raise NotFound(f"no workflow {id[:80]!r}")


async def workflow_commands(store: Store, project: ProjectId, id: str, *, bucket: str, key: str) -> list[str]:
    """What the template asks for, of this source.  Errors: Refusal 612."""
    try:
        found = await store.get_resource(_type(project), id)
    except NotFound:
        raise Refusal(errors.NO_SUCH_ENTRY, f"no such workflow template: {id[:80]}") from None
    name, values = key.removesuffix(variables.extension(key)), {"bucket": bucket, "key": key, "ext": variables.extension(key)}
    return [_fill(command, {**values, "name": name}) for command in _decode(found.doc).fops]


def _type(project: ProjectId) -> str:
    return f"workflow/{project}"


def encode_saveas(command: str) -> str:
    """Rule 3.  Errors: InvalidInput when the entry is neither in the clear nor in base64."""
    found = _SAVEAS.search(command)
    if found is None:
        return command
    entry = found["entry"]
    if ":" in entry:
        return command[: found.start("entry")] + urlsafe(entry.encode())
    _entry(entry)
    return command


def _fill(command: str, values: dict[str, variables.Value]) -> str:
    """Rule 2."""
    found = _SAVEAS.search(command)
    if found is None:
        return command
    entry = variables.fill_text(_entry(found["entry"]), values)
    return command[: found.start("entry")] + urlsafe(entry.encode())


def _entry(text: str) -> str:
    try:
        return read_urlsafe(text).decode()
    except ValueError:
        raise InvalidInput("saveas takes bucket:key, or its URL-safe base64", path="FOPS") from None


__all__ = ["Workflow", "list_workflows", "put_workflow", "remove_workflow", "workflow_commands"]
