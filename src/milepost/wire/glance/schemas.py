"""What Glance says of itself: its versions and the JSON Schemas of its bodies.

python-glanceclient builds its models from the schemas and refuses what they do not allow.
Source: openstack/glance glance/api/versions.py, glance/api/middleware/version_negotiation.py, glance/api/v2/schemas.py,
glance/api/v2/tasks.py and images.py (get_schema, get_collection_schema), glance/api/v2/discovery.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from milepost.image import CONTAINER_FORMATS, DISK_FORMATS
from milepost.wire.glance.images import STATUSES as IMAGE_STATUSES
from milepost.wire.glance.query import STATUSES, task_types

# Newest first.  Those of an image cache (2.14, 2.16, 2.18) and of several stores (2.8, 2.10 to 2.13) are not ours.
VERSIONS = ("2.17", "2.15", "2.9", "2.7", "2.6", "2.5", "2.4", "2.3", "2.2", "2.1", "2.0")
IS_VERSION = re.compile(r"v2|" + "|".join(re.escape(f"v{version}") for version in VERSIONS))

_UUID = "^([0-9a-fA-F]){8}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){12}$"


def versions(base_url: str) -> dict[str, Any]:
    """The versions document; every version lives under `/v2/`.  `base_url` has no slash at its end."""
    return {
        "versions": [
            {
                "id": f"v{version}",
                "status": "CURRENT" if index == 0 else "SUPPORTED",
                "links": [{"rel": "self", "href": f"{base_url}/v2/"}],
            }
            for index, version in enumerate(VERSIONS)
        ]
    }


def import_info() -> dict[str, Any]:
    """`GET /v2/info/import`: images come by tasks only, so no interoperable import method."""
    return {"import-methods": {"description": "Import methods available.", "type": "array", "value": []}}


def task_schema(kinds: Iterable[str]) -> dict[str, Any]:
    """The schema of one task; the types are Glance's three and the server's own kinds."""
    properties = _stub_properties(kinds)
    expires_at = properties.pop("expires_at")
    return {
        "name": "task",
        "properties": {
            **properties,
            "expires_at": expires_at,
            "input": _of(["null", "object"], "The parameters required by task, JSON blob"),
            "result": _of(["null", "object"], "The result of current task, JSON blob"),
            "message": _of("string", "Human-readable informative message only included when appropriate (usually on failure)"),
            "image_id": _of("string", "Image associated with the task"),
            "request_id": _of("string", "Human-readable informative request-id"),
            "user_id": _of("string", "User associated with the task"),
        },
    }


def tasks_schema(kinds: Iterable[str]) -> dict[str, Any]:
    """The schema of a page of tasks."""
    return {
        "name": "tasks",
        "properties": {
            "tasks": {"type": "array", "items": {"name": "task", "properties": _stub_properties(kinds)}},
            "schema": {"type": "string"},
        },
        "links": [{"rel": "describedby", "href": "{schema}"}],
    }


def image_schema() -> dict[str, Any]:
    """The schema of one image; every other key is a string."""
    nullable = ["null", "string"]
    return {
        "name": "image",
        "properties": {
            "id": _of("string", "An identifier for the image", pattern=_UUID),
            "name": _of(nullable, "Descriptive name for the image", maxLength=255),
            "status": _of("string", "Status of the image", readOnly=True, enum=list(IMAGE_STATUSES)),
            "visibility": _of("string", "Scope of image accessibility", enum=["community", "public", "private", "shared"]),
            "protected": _of("boolean", "If true, image will not be deletable."),
            "os_hidden": _of("boolean", "If true, image will not appear in default image list response."),
            "checksum": _of(nullable, "md5 hash of image contents.", readOnly=True, maxLength=32),
            "os_hash_algo": _of(nullable, "Algorithm to calculate the os_hash_value", readOnly=True, maxLength=64),
            "os_hash_value": _of(nullable, "Hexdigest of the image contents", readOnly=True, maxLength=128),
            "owner": _of(nullable, "Owner of the image", maxLength=255),
            "size": _of(["null", "integer"], "Size of image file in bytes", readOnly=True),
            "virtual_size": _of(["null", "integer"], "Virtual size of image in bytes", readOnly=True),
            "container_format": _of(nullable, "Format of the container", enum=[None, *CONTAINER_FORMATS]),
            "disk_format": _of(nullable, "Format of the disk", enum=[None, *DISK_FORMATS]),
            "created_at": _of("string", "Date and time of image registration", readOnly=True),
            "updated_at": _of("string", "Date and time of the last image modification", readOnly=True),
            "tags": {
                "type": "array",
                "description": "List of strings related to the image",
                "items": {"type": "string", "maxLength": 255},
            },
            "direct_url": _of("string", "URL to access the image file kept in external store", readOnly=True),
            "min_ram": _of("integer", "Amount of ram (in MB) required to boot image."),
            "min_disk": _of("integer", "Amount of disk space (in GB) required to boot image."),
            "self": _of("string", "An image self url", readOnly=True),
            "file": _of("string", "An image file url", readOnly=True),
            "stores": _of("string", "Store in which image data resides", readOnly=True),
            "schema": _of("string", "An image schema url", readOnly=True),
            "locations": {
                "type": "array",
                "description": "A set of URLs to access the image file kept in external store",
                "items": {
                    "type": "object",
                    "properties": {"url": {"type": "string", "maxLength": 255}, "metadata": {"type": "object"}},
                    "required": ["url", "metadata"],
                },
            },
        },
        "additionalProperties": {"type": "string"},
        "links": [
            {"rel": "self", "href": "{self}"},
            {"rel": "enclosure", "href": "{file}"},
            {"rel": "describedby", "href": "{schema}"},
        ],
    }


def images_schema() -> dict[str, Any]:
    """The schema of a page of images."""
    return {
        "name": "images",
        "properties": {
            "images": {"type": "array", "items": image_schema()},
            "first": {"type": "string"},
            "next": {"type": "string"},
            "schema": {"type": "string"},
        },
        "links": [
            {"rel": "first", "href": "{first}"},
            {"rel": "next", "href": "{next}"},
            {"rel": "describedby", "href": "{schema}"},
        ],
    }


def _stub_properties(kinds: Iterable[str]) -> dict[str, Any]:
    return {
        "id": _of("string", "An identifier for the task", pattern=_UUID),
        "type": _of("string", "The type of task represented by this content", enum=task_types(kinds)),
        "status": _of("string", "The current status of this task", enum=list(STATUSES)),
        "owner": _of("string", "An identifier for the owner of this task"),
        "expires_at": _of(["null", "string"], "Datetime when this resource would be subject to removal"),
        "created_at": _of("string", "Datetime when this resource was created"),
        "updated_at": _of("string", "Datetime when this resource was updated"),
        "self": _of("string", "A link to this task", readOnly=True),
        "schema": _of("string", "A link to the schema of this task", readOnly=True),
    }


def _of(type_: str | list[str], description: str, **more: Any) -> dict[str, Any]:
    return {"type": type_, "description": description, **more}
