"""Images as Glance shows, lists and ranges them.

Source: openstack/glance glance/api/v2/images.py (ResponseSerializer, RequestDeserializer, ImagesController),
glance/api/v2/image_data.py (ranges), glance/common/wsgi.py (Range header), glance/db/sqlalchemy/api.py (who sees what).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from milepost.image import Image, Visibility
from milepost.wire import from_rfc3339
from milepost.wire.glance.errors import Refusal
from milepost.wire.glance.query import page_links, read_limit
from milepost.wire.glance.tasks import at_second

SORT_KEYS = ("name", "status", "container_format", "disk_format", "size", "id", "created_at", "updated_at")
STATUSES = ("queued", "saving", "active", "killed", "deleted", "uploading", "importing", "pending_delete", "deactivated")

_encode = msgspec.json.Encoder().encode


class Viewer(NamedTuple):
    """Who looks: an admin sees and changes the images of all projects."""

    project: str
    admin: bool


def may_see(image: Image, viewer: Viewer) -> bool:
    """Whether the viewer may read it by its id.  An image without an owner is everybody's, as in Glance."""
    return viewer.admin or image.owner in (None, viewer.project) or image.visibility in (Visibility.PUBLIC, Visibility.COMMUNITY)


def may_change(image: Image, viewer: Viewer) -> bool:
    """Whether the viewer may delete or patch it."""
    return viewer.admin or image.owner == viewer.project


def not_found(image_id: str) -> Refusal:
    """Unknown, deleted, or another project's: one answer, so that ids cannot be probed."""
    return Refusal(404, f"No image found with ID {image_id}")


# --- bodies ---------------------------------------------------------------------------------------------------------


def image_body(image: Image) -> dict[str, Any]:
    """Keys in Glance's order: the image's own properties first."""
    return {
        **image.properties,
        "name": image.name,
        "disk_format": image.disk_format,
        "container_format": image.container_format,
        "visibility": image.visibility,
        "size": image.size,
        "virtual_size": image.virtual_size,
        "status": image.status,
        "checksum": image.checksum,
        "protected": image.protected,
        "min_ram": image.min_ram,
        "min_disk": image.min_disk,
        "owner": image.owner,
        "os_hidden": image.os_hidden,
        "os_hash_algo": image.os_hash_algo,
        "os_hash_value": image.os_hash_value,
        "id": image.id,
        "created_at": at_second(image.created_us),
        "updated_at": at_second(image.updated_us),
        "tags": image.tags,
        "self": f"/v2/images/{image.id}",
        "file": f"/v2/images/{image.id}/file",
        "schema": "/v2/schemas/image",
    }


def encode_image_body(image: Image) -> bytes:
    return _encode(image_body(image))


def read_image(body: bytes) -> Image:
    """The image of a body, for clients.  Errors: msgspec.DecodeError, ValueError when it is no image."""
    fields = msgspec.json.decode(body, type=dict[str, Any])
    known = {name: fields.pop(name) for name in _WRITTEN if name in fields}
    created_us, updated_us = from_rfc3339(known.pop("created_at", None)), from_rfc3339(known.pop("updated_at", None))
    properties = {name: value for name, value in fields.items() if isinstance(value, str) and name not in _PATHS}
    return msgspec.convert(
        {**known, "properties": properties, "created_us": created_us or 0, "updated_us": updated_us or 0}, Image
    )


_PATHS = ("self", "file", "schema", "direct_url", "stores")
_WRITTEN = (
    *("name", "disk_format", "container_format", "visibility", "size", "virtual_size", "status", "checksum", "protected"),
    *("min_ram", "min_disk", "owner", "os_hidden", "os_hash_algo", "os_hash_value", "id", "created_at", "updated_at", "tags"),
)


# --- lists ----------------------------------------------------------------------------------------------------------


class ImageQuery(msgspec.Struct, kw_only=True):
    """A list request that passed every check."""

    limit: int
    marker: str | None
    sort: list[tuple[str, bool]]  # key, descending
    visibility: str | None
    equal: dict[str, tuple[str, ...]]  # attribute or property -> the values that match
    flags: dict[str, bool]  # protected, os_hidden
    size_min: int | None
    size_max: int | None
    tags: list[str]
    times: list[tuple[str, str, int]]  # attribute, comparison, Unix s
    params: list[tuple[str, str]]  # as asked, without the marker


_LISTS = ("name", "status", "id", "checksum", "disk_format", "container_format")  # the filters that take `in:a,b`
_NO_FILTER = ("limit", "sort", "sort_key", "sort_dir", "visibility", "tag", "member_status", "size_min", "size_max")
_TIMES = ("created_at", "updated_at")
_COMPARE = ("gt", "gte", "lt", "lte", "eq", "neq")


def read_image_query(raw: str) -> ImageQuery:
    """Errors: Refusal 400 with Glance's words."""
    pairs = [pair for pair in parse_qsl(raw, keep_blank_values=True, errors="replace") if pair[0] != "marker"]
    last = dict(parse_qsl(raw, keep_blank_values=True, errors="replace"))
    if "changes-since" in last:
        raise Refusal(400, 'The "changes-since" filter is no longer available on v2.')
    visibility = last.get("visibility")
    if visibility is not None and visibility not in (*Visibility, "all"):
        raise Refusal(400, f"Invalid visibility value: {visibility}")
    member_status = last.get("member_status", "all")  # nobody shares images here, but the word is checked
    if member_status not in ("accepted", "pending", "rejected", "all"):
        raise Refusal(400, f"Invalid status: {member_status}")
    filters = {name: value for name, value in last.items() if name not in (*_NO_FILTER, "marker")}
    flags: dict[str, bool] = {name: _flag(name, filters.pop(name)) for name in ("protected", "os_hidden") if name in filters}
    return ImageQuery(
        limit=read_limit(last.get("limit")),
        marker=last.get("marker"),
        sort=_sort(last, pairs),
        visibility=visibility,
        flags={"os_hidden": False, **flags},
        times=[_time(name, filters.pop(name)) for name in _TIMES if name in filters],
        equal={name: _values(name, value) for name, value in filters.items()},
        size_min=_bound(last.get("size_min")),
        size_max=_bound(last.get("size_max")),
        tags=[value for name, value in pairs if name == "tag"],
        params=pairs,
    )


def encode_image_page(images: Sequence[Image], query: ImageQuery) -> bytes:
    """The body of list.  Rules: `next` only when the page is full and not empty."""
    last_id = images[-1].id if images and len(images) == query.limit else None
    first, following = page_links("/v2/images", query.params, last_id)
    page: dict[str, Any] = {"images": [image_body(image) for image in images], "first": first, "schema": "/v2/schemas/images"}
    if following:
        page["next"] = following
    return _encode(page)


def select_images(images: Iterable[Image], query: ImageQuery, viewer: Viewer) -> list[Image]:
    """The page that the query asks for.  Errors: Refusal 400 when its marker is none of the images that the viewer sees."""
    seen = [image for image in images if may_see(image, viewer)]
    ordered = sorted((image for image in seen if _listed(image, query.visibility, viewer)), key=lambda image: image.id)
    for key, descending in reversed(query.sort):
        ordered.sort(key=lambda image: _sort_value(image, key), reverse=descending)
    start = 0
    if query.marker is not None:
        position = next((index for index, image in enumerate(ordered) if image.id == query.marker), None)
        if position is None:
            raise Refusal(400, f"No image found with ID {query.marker}")
        start = position + 1
    page: list[Image] = []
    for image in ordered[start:]:
        if len(page) == query.limit:
            break
        if _matches(image, query):
            page.append(image)
    return page


def _listed(image: Image, visibility: str | None, viewer: Viewer) -> bool:
    """Lists leave out what others share with everybody who knows the id, unless they ask for it."""
    if visibility == "all":
        return True
    if visibility is not None:
        return image.visibility == visibility
    return image.visibility is not Visibility.COMMUNITY or image.owner == viewer.project


def _matches(image: Image, query: ImageQuery) -> bool:
    size = image.size or 0
    return (
        all(_text(image, name) in values for name, values in query.equal.items())
        and all(getattr(image, name) is value for name, value in query.flags.items())
        and (query.size_min is None or size >= query.size_min)
        and (query.size_max is None or size <= query.size_max)
        and set(query.tags) <= set(image.tags)
        and all(_compare(_seconds(image, name), how, at_s) for name, how, at_s in query.times)
    )


def _text(image: Image, name: str) -> str | None:
    """What an equality filter compares: an attribute as text, or one of the image's own properties."""
    if name in _WRITTEN:
        value = getattr(image, name, None)
        return None if value is None else str(value)
    return image.properties.get(name)


def _seconds(image: Image, name: str) -> int:
    return (image.created_us if name == "created_at" else image.updated_us) // 1_000_000


def _compare(value: int, how: str, other: int) -> bool:
    return {
        "gt": value > other,
        "gte": value >= other,
        "lt": value < other,
        "lte": value <= other,
        "eq": value == other,
        "neq": value != other,
    }[how]


def _sort_value(image: Image, key: str) -> tuple[bool, Any]:
    """Without a value comes first when ascending, as NULL does."""
    value = {"created_at": image.created_us, "updated_at": image.updated_us}.get(key) or getattr(image, key, None)
    return (value is not None, value if value is not None else 0)


def _sort(last: dict[str, str], pairs: list[tuple[str, str]]) -> list[tuple[str, bool]]:
    """Errors: Refusal 400.  Creation and id break ties in the direction that was asked for last."""
    if "sort" in last:
        if "sort_key" in last or "sort_dir" in last:
            raise Refusal(400, "Old and new sorting syntax cannot be combined")
        asked = [(key.strip(), way.strip() or "desc") for key, _, way in (one.partition(":") for one in last["sort"].split(","))]
    else:
        keys = [value for name, value in pairs if name == "sort_key"] or ["created_at"]
        ways = [value for name, value in pairs if name == "sort_dir"] or ["desc"]
        if len(ways) > 1 and len(ways) != len(keys):
            raise Refusal(400, "Number of sort dirs does not match the number of sort keys")
        asked = list(zip(keys, ways * len(keys) if len(ways) == 1 else ways, strict=False))
    for key, way in asked:
        if key not in SORT_KEYS:
            raise Refusal(400, f"Invalid sort key: {key}. It must be one of the following: {', '.join(SORT_KEYS)}.")
        if way not in ("asc", "desc"):
            raise Refusal(400, f"Invalid sort direction: {way}")
    descending = asked[-1][1] == "desc"
    used = {key for key, _ in asked}
    return [(key, way == "desc") for key, way in asked] + [(k, descending) for k in ("created_at", "id") if k not in used]


def _flag(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise Refusal(400, f"Invalid value '{value}' for '{name}' filter. Valid values are 'true' or 'false'.")
    return value.lower() == "true"


def _bound(value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        raise Refusal(400, "Unable to filter on a range with a non-numeric value.") from None


def _values(name: str, value: str) -> tuple[str, ...]:
    if name not in _LISTS or not value.startswith("in:"):
        return (value,)
    try:
        return tuple(one.strip() for one in next(csv.reader([value.removeprefix("in:")], skipinitialspace=True), []))
    except csv.Error:  # a line break outside of quotes
        raise Refusal(400, f"Invalid filter value for '{name}'.") from None


def _time(name: str, value: str) -> tuple[str, str, int]:
    how, colon, at = value.partition(":")
    if not colon or how not in _COMPARE:
        how, at = "eq", value
    try:
        return name, how, int(datetime.fromisoformat(at if re.search(r"(Z|[+-]\d\d:?\d\d)$", at) else at + "Z").timestamp())
    except ValueError:
        raise Refusal(400, f'Bad "{name}" query filter format. Use ISO 8601 DateTime notation.') from None


# --- download -------------------------------------------------------------------------------------------------------


def read_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and length that a Range header asks for, None for all of it.  Errors: Refusal 400 or 416."""
    if header is None:
        return None
    if "," in header:
        raise Refusal(
            400,
            "Requests with multiple ranges are not supported in Glance. You may make multiple single-range requests instead.",
        )
    found = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", header, re.I | re.A)
    if not found or found.groups() == ("", "") or (all(found.groups()) and int(found[2]) < int(found[1])):
        raise Refusal(416, "Invalid Range header.")
    if not found[1]:  # the last so many bytes
        length = min(int(found[2]), size)
        start = size - length
    else:
        start = int(found[1])
        length = min(int(found[2]) + 1 if found[2] else size, size) - start
    if start >= size:
        raise Refusal(
            416,
            f"Invalid start position in Range header. Start position MUST be in the inclusive range [0, {size - 1}].",
        )
    return start, length
