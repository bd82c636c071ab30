"""Changes of an image: JSON patches of one step, in both of the forms that Glance has had.

Source: openstack/glance glance/api/v2/images.py (RequestDeserializer.update, ImagesController.update) and
glance/common/config.py (quotas).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from milepost.image import CONTAINER_FORMATS, DISK_FORMATS, Image, ImageStatus, Visibility
from milepost.wire.glance.errors import ROUTE_NOT_FOUND, Refusal

TEXT_CHARS_MAX = 255
VALUE_CHARS_MAX = 65_535  # of a property: what Glance's own column takes
PROPERTIES_MAX = 128
TAGS_MAX = 128

_PATCH_TYPES = ("application/openstack-images-v2.1-json-patch", "application/openstack-images-v2.0-json-patch")
_OPERATIONS = ("add", "remove", "replace")
_ONE_OF = "It must be one of the following: add, remove, replace."
_READ_ONLY = (
    *("created_at", "updated_at", "status", "checksum", "size", "virtual_size", "direct_url", "self", "file", "schema", "id"),
    *("os_hash_algo", "os_hash_value", "owner", "stores", "locations"),
)
_RESERVED = ("location", "deleted", "deleted_at")
_CHANGEABLE: dict[str, Any] = {
    "name": str | None,
    "visibility": Visibility,
    "protected": bool,
    "os_hidden": bool,
    "min_ram": int,
    "min_disk": int,
    "tags": list[str],
    "disk_format": str | None,
    "container_format": str | None,
}


class Change(NamedTuple):
    """One operation of a patch."""

    op: str
    name: str
    value: Any


def read_patch(body: bytes, content_type: str | None) -> list[Change]:
    """Errors: Refusal 415, 400, and 403 for what nobody may change."""
    kind = (content_type or "").partition(";")[0].strip()
    if kind not in _PATCH_TYPES:
        raise Refusal(
            415,
            f"The media type {kind or 'application/octet-stream'} is not supported, use {_PATCH_TYPES[0]}.",
            headers={"Accept-Patch": ", ".join(_PATCH_TYPES)},
        )
    if not body:
        raise Refusal(400, "Body expected in request.")
    try:
        raw: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refusal(400, "Malformed JSON in request body.") from None
    if not isinstance(raw, list):
        raise Refusal(400, "Request body must be a JSON array of operation objects.")
    return [_change(one, oldest=kind == _PATCH_TYPES[1]) for one in raw]


def apply_patch(image: Image, changes: Sequence[Change], *, admin: bool, now_us: int) -> Image:
    """A new image with all changes.  Errors: Refusal; then nothing is changed."""
    changed = msgspec.structs.replace(image, tags=list(image.tags), properties=dict(image.properties), updated_us=now_us)
    for change in changes:
        _apply(changed, change, admin=admin)
    _check_quota("properties", len(changed.properties), PROPERTIES_MAX)
    _check_quota("tags", len(changed.tags), TAGS_MAX)
    return changed


def add_tag(image: Image, tag: str, *, now_us: int) -> Image:
    """The image with this tag; once, however often it is added.  Errors: Refusal 400, 413."""
    if len(tag) > TEXT_CHARS_MAX:
        raise Refusal(400, f"Provided object does not match schema 'image': {tag[:40]!r}… is too long")
    tags = image.tags if tag in image.tags else [*image.tags, tag]
    _check_quota("tags", len(tags), TAGS_MAX)
    return msgspec.structs.replace(image, tags=tags, updated_us=now_us)


def remove_tag(image: Image, tag: str, *, now_us: int) -> Image:
    """The image without this tag.  Errors: Refusal 404."""
    if tag not in image.tags:
        raise Refusal(404, ROUTE_NOT_FOUND)
    return msgspec.structs.replace(image, tags=[one for one in image.tags if one != tag], updated_us=now_us)


def _change(raw: Any, *, oldest: bool) -> Change:
    if not isinstance(raw, dict):
        raise Refusal(400, "Operations must be JSON objects.")
    if oldest:
        found = [op for op in _OPERATIONS if op in raw]
        if len(found) != 1:
            raise Refusal(400, 'Operation objects must contain exactly one member named "add", "remove", or "replace".')
        op, path = found[0], raw[found[0]]
    else:
        if "op" not in raw:
            raise Refusal(
                400, "Unable to find `op` in JSON Schema change. It must be one of the following: add, remove, replace."
            )
        op, path = raw["op"], raw.get("path")
        if op not in _OPERATIONS:
            raise Refusal(400, f"Invalid operation: `{op}`. {_ONE_OF}")
        if path is None:
            raise Refusal(400, "Unable to find 'path' in JSON Schema change")
    if op != "remove" and "value" not in raw:
        raise Refusal(400, f'Operation "{op}" requires a member named "value".')
    return Change(op, _pointer(path), raw.get("value"))


def _pointer(path: Any) -> str:
    """The attribute that a JSON pointer of one step names."""
    if not isinstance(path, str) or not path.startswith("/"):
        raise Refusal(400, f'Pointer `{path}` does not start with "/".')
    if "/" in path[1:] or len(path) == 1:
        raise Refusal(400, f"Invalid JSON pointer for this resource: '{path}'")
    name = path[1:].replace("~1", "/").replace("~0", "~")
    if name in _READ_ONLY:
        raise Refusal(403, f"Attribute '{name}' is read-only.")
    if name in _RESERVED:
        raise Refusal(403, f"Attribute '{name}' is reserved.")
    if len(name) > TEXT_CHARS_MAX:
        raise _image_schema(f"{name[:40]!r}… is too long")
    return name


def _apply(image: Image, change: Change, *, admin: bool) -> None:
    op, name, value = change
    if name in ("disk_format", "container_format") and image.status is not ImageStatus.QUEUED:
        raise Refusal(403, f"Attribute {name} can be only replaced for a queued image.")
    if name in _CHANGEABLE:
        if op == "remove":
            raise Refusal(403, f"Property {name} may not be removed.")
        setattr(image, name, _attribute(image, name, value, admin=admin))
        return
    if op != "add" and name not in image.properties:
        raise Refusal(409, f"Property {name} does not exist.")
    if op == "remove":
        del image.properties[name]
    elif not isinstance(value, str):
        raise _image_schema(f"{value!r} is not of type 'string'")
    elif len(value) > VALUE_CHARS_MAX:
        raise _image_schema(f"the value of '{name}' has {len(value)} characters; at most {VALUE_CHARS_MAX} are allowed")
    else:
        image.properties[name] = value


def _attribute(image: Image, name: str, value: Any, *, admin: bool) -> Any:
    """The value, typed.  Errors: Refusal 400 when the schema has another type, 403 when only an admin may set it."""
    try:
        typed = msgspec.convert(value, _CHANGEABLE[name])
    except msgspec.ValidationError as error:
        raise _image_schema(f"{value!r} is not valid for '{name}': {error}") from None
    if name == "name" and typed is not None and len(typed) > TEXT_CHARS_MAX:
        raise _image_schema(f"{typed[:40]!r}… is too long")
    if name in ("min_ram", "min_disk") and not 0 <= typed <= 2**31 - 1:
        raise _image_schema(f"{typed} is not between 0 and 2147483647")
    if name == "tags":
        if any(len(tag) > TEXT_CHARS_MAX for tag in typed):
            raise _image_schema("a tag is too long")
        return list(dict.fromkeys(typed))
    formats = {"disk_format": DISK_FORMATS, "container_format": CONTAINER_FORMATS}.get(name)
    if formats is not None and typed is not None and typed not in formats:
        raise _image_schema(f"{typed!r} is not one of {[None, *formats]}")
    if typed is Visibility.PUBLIC and image.visibility is not Visibility.PUBLIC and not admin:
        raise Refusal(403, "You are not authorized to complete publicize_image action.")
    return typed


def _image_schema(text: str) -> Refusal:
    return Refusal(400, f"Provided object does not match schema 'image': {text[:500]}")


def _check_quota(what: str, count: int, most: int) -> None:
    if count > most:
        raise Refusal(
            413,
            f"The limit has been exceeded on the number of allowed image {what}. Attempted: {count}, Maximum: {most}",
        )
