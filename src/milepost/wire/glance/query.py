"""What a Glance client asks in a query string or in the body of a create, and every sentence that refuses it.

Source: openstack/glance glance/api/v2/tasks.py (RequestDeserializer), glance/common/scripts/utils.py (URIs),
glance/db/sqlalchemy/api.py (sort keys).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

import msgspec

from milepost.job import ProjectId
from milepost.wire.glance.errors import Refusal

LIMIT_DEFAULT = 25
LIMIT_MAX = 1000

TYPES = ("import", "api_image_import", "location_import")
STATUSES = ("pending", "processing", "success", "failure")

# Glance's column -> ours.  Columns that hold one value for all tasks order by creation alone.
SORT_KEYS = {
    "created_at": "created_us",
    "updated_at": "updated_us",
    "expires_at": "expires_us",
    "id": "id",
    "type": "kind",
    "status": "state",
    "owner": "project",
    "image_id": "created_us",
    "deleted": "created_us",
    "deleted_at": "created_us",
}

SUPPORTED_SCHEMES = ["http", "https"]


class TaskQuery(msgspec.Struct, kw_only=True):
    """A list request that passed every check; filters are None when not asked for."""

    limit: int
    marker: str | None
    sort: str  # one of the store's sortable columns
    descending: bool
    status: str | None
    type: str | None
    owner: str | None
    id: str | None
    image_id: str | None
    created_at: str | None
    params: dict[str, str]  # as asked, without the marker: what `first` and `next` repeat


class Create(msgspec.Struct):
    """What `POST /v2/tasks` asks for; `input` is JSON text exactly as sent."""

    type: str
    input: bytes


def page_links(path: str, params: Sequence[tuple[str, str]], last_id: str | None) -> tuple[str, str | None]:
    """`first` and `next`, paths with the request's own parameters; the marker comes last."""
    first = f"{path}?{urlencode(params)}" if params else path
    return first, f"{path}?{urlencode([*params, ('marker', last_id)])}" if last_id else None


def read_params(raw: str) -> dict[str, str]:
    """A query string as a dict in request order; the last of repeated parameters wins."""
    return dict(parse_qsl(raw, keep_blank_values=True, errors="replace"))


def read_limit(text: str | None) -> int:
    """Errors: Refusal 400.  Above the maximum it is silently the maximum."""
    if text is None:
        return LIMIT_DEFAULT
    try:
        limit = int(text)
    except ValueError:
        raise Refusal(400, "limit param must be an integer") from None
    if limit < 0:
        raise Refusal(400, "limit param must be positive")
    return min(limit, LIMIT_MAX)


def read_task_query(raw: str, *, types: Iterable[str] = ()) -> TaskQuery:
    """Errors: Refusal 400 with Glance's words.

    Rules: `type` filters on `import` only, as in Glance, and on the server's own kinds (`types`), which Glance does not have.
    """
    params = read_params(raw)
    marker = params.pop("marker", None)
    direction = params.get("sort_dir", "desc")
    if direction not in ("asc", "desc"):
        raise Refusal(400, f"Invalid sort direction: {direction}")
    status, type_ = params.get("status"), params.get("type")
    if status and status not in STATUSES:
        raise Refusal(400, f"Invalid status value: {status}")
    if type_ and type_ != "import" and (type_ in TYPES or type_ not in types):
        raise Refusal(400, f"Invalid type value: {type_}")
    if marker and not _is_uuid_like(marker):
        raise Refusal(400, "Invalid marker format")
    limit = read_limit(params.get("limit"))
    sort = SORT_KEYS.get(params.get("sort_key", "created_at"))
    if sort is None:
        raise Refusal(400, "Sort key supplied was not valid.")
    if marker == "":
        raise marker_not_found(marker)
    return TaskQuery(
        limit=limit,
        marker=marker,
        sort=sort,
        descending=direction == "desc",
        status=status,
        type=type_,
        owner=params.get("owner"),
        id=params.get("id"),
        image_id=params.get("image_id"),
        created_at=params.get("created_at"),
        params=params,
    )


def marker_not_found(marker: str) -> Refusal:
    """The marker names no task that the requester sees."""
    return Refusal(400, f"Task with the given id {marker} was not found")


def owner_of(query: TaskQuery, own: ProjectId, *, admin: bool) -> tuple[ProjectId | None, bool]:
    """The project to list, None for all, and whether the answer can be anything but empty."""
    if query.owner is None:
        return (None if admin else own), True
    return ProjectId(query.owner), bool(query.owner) and (admin or query.owner == own)


def _is_uuid_like(text: str) -> bool:
    """Source: openstack/oslo.utils oslo_utils/uuidutils.py is_uuid_like."""
    plain = text.replace("urn:", "").replace("uuid:", "").strip("{}").replace("-", "").lower()
    try:
        return UUID(text).hex == plain
    except ValueError:
        return False


# --- create ---------------------------------------------------------------------------------------------------------

_WORDS = {str: "string", dict: "object", list: "array", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_UUID = re.compile(r"^([0-9a-fA-F]){8}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){12}$")


def read_create(body: bytes, *, types: Iterable[str] = ()) -> Create:
    """Errors: Refusal 400, checked in Glance's order.  `types` are the server's own kinds besides Glance's three."""
    if not body:
        raise Refusal(400, "Body expected in request.")
    try:
        task: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refusal(400, "Malformed JSON in request body.") from None
    if not isinstance(task, dict | list):
        raise Refusal(400, "Unexpected body type. Expected list/dict.")
    for name in ("type", "input"):
        if name not in task:
            raise Refusal(400, f"Task '{name}' is required")
    if isinstance(task, list):
        raise _schema_refusal(f"{task!r} is not of type 'object'", "type", "", "", task)
    _check_schema(task, task_types(types))
    if task["type"] == "import":
        check_location((task["input"] or {}).get("import_from"))
    raw = msgspec.json.decode(body, type=dict[str, msgspec.Raw])["input"]
    return Create(task["type"], bytes(raw))


def task_types(kinds: Iterable[str]) -> list[str]:
    """The schema's enum: Glance's three, then the server's own kinds."""
    return [*TYPES, *sorted(set(kinds) - set(TYPES))]


def check_location(location: Any) -> None:
    """What Glance says of a source that is no http URL.  Errors: Refusal 400."""
    if not location or not isinstance(location, str):
        raise Refusal(400, f"Invalid location: {location}")
    if location.startswith(("file:///", "filesystem:///")):
        raise Refusal(400, "File based imports are not allowed. Please use a non-local source of image data.")
    if not location.startswith(tuple(f"{scheme}://" for scheme in SUPPORTED_SCHEMES)):
        raise Refusal(
            400,
            "The given uri is not valid. Please specify a valid uri from the following list of supported uri "
            f"{SUPPORTED_SCHEMES}",
        )


def location_filtered(location: str, reason: str) -> Refusal:
    """The guard against forged requests refuses this host or port: Glance's sentence, then why."""
    return Refusal(400, f"URI for legacy import task does not pass filtering: {location} ({reason})")


def _check_schema(task: dict[str, Any], types: list[str]) -> None:
    unknown = [name for name in task if name not in TASK_FIELDS]
    if unknown:
        raise _schema_refusal(
            f"Additional properties are not allowed ({', '.join(map(repr, unknown))} "
            f"{'was' if len(unknown) == 1 else 'were'} unexpected)",
            "additionalProperties",
            "",
            "",
            task,
        )
    enums = {"type": types, "status": list(STATUSES)}
    for name, value in task.items():
        allowed = TASK_FIELDS[name]
        if type(value) not in allowed:
            words = ", ".join(repr(_WORDS[one]) for one in allowed)
            raise _schema_refusal(f"{value!r} is not of type {words}", "type", f"['properties'][{name!r}]", f"[{name!r}]", value)
        if name in enums and value not in enums[name]:
            raise _schema_refusal(
                f"{value!r} is not one of {enums[name]}", "enum", f"['properties'][{name!r}]", f"[{name!r}]", value
            )
        if name == "id" and not _UUID.match(value):
            raise _schema_refusal(
                f"{value!r} does not match {_UUID.pattern!r}", "pattern", "['properties']['id']", "['id']", value
            )


def _schema_refusal(text: str, rule: str, place: str, instance: str, value: Any) -> Refusal:
    """In the words of python-jsonschema, which Glance passes on; long values are cut."""
    shown = repr(value)
    return Refusal(
        400,
        f"Provided object does not match schema 'task': {text[:500]}\n\nFailed validating {rule!r} in schema{place}"
        f"\n\nOn instance{instance}:\n    {shown[:500]}",
    )


TASK_FIELDS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "type": (str,),
    "status": (str,),
    "input": (type(None), dict),
    "result": (type(None), dict),
    "owner": (str,),
    "message": (str,),
    "image_id": (str,),
    "request_id": (str,),
    "user_id": (str,),
    "expires_at": (type(None), str),
    "created_at": (str,),
    "updated_at": (str,),
    "self": (str,),
    "schema": (str,),
}
