"""Volumes and their lists as EVS shows them.  Pure.

Rules
1. `size` and `count` are numbers, `bootable` and `shareable` text, `multiattach` and `encrypted` booleans, all values of
   `metadata`, `tags` and `volume_image_metadata` text: Go clients refuse the whole answer otherwise.
2. Instants have microseconds and no zone: `2026-03-04T05:06:07.000000`.
3. A page behind the last one is empty: clients go on until they see one.  `count` is that of all pages.

Source: huaweicloudsdkevs VolumeDetail, ListVolumesRequest; chnsz/golangsdk openstack/evs/v2/cloudvolumes;
opentelekomcloud-docs/elastic-volume-service api-ref.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from milepost.volume import Volume
from milepost.wire import rfc3339
from milepost.wire.huawei.bodies import is_true, read_query, refuse

LIMIT_MAX = 1000
OFFSET_MAX = 1 << 53
IDS_MAX = 60

# --- volumes ---------------------------------------------------------------------------------------------------------


class _Link(msgspec.Struct, gc=False):
    href: str
    rel: str


class _Attachment(msgspec.Struct, gc=False):
    attachment_id: str
    volume_id: str
    id: str
    server_id: str
    device: str
    host_name: str | None
    attached_at: str


class VolumeBody(
    msgspec.Struct,
    kw_only=True,
    gc=False,
    rename={
        "tenant_id": "os-vol-tenant-attr:tenant_id",
        "host": "os-vol-host-attr:host",
        "migstat": "os-vol-mig-status-attr:migstat",
        "name_id": "os-vol-mig-status-attr:name_id",
        "extended_status": "os-volume-replication:extended_status",
    },
):
    """A volume as EVS has it, keys in the documents' order."""

    id: str
    name: str
    status: str
    size: int
    description: str
    volume_type: str
    availability_zone: str
    bootable: str
    shareable: str
    multiattach: bool
    encrypted: bool = False
    attachments: list[_Attachment]
    links: list[_Link]
    metadata: dict[str, str]
    volume_image_metadata: dict[str, str]
    tags: dict[str, str]
    snapshot_id: str | None = None
    source_volid: str | None = None
    consistencygroup_id: str | None = None
    tenant_id: str
    host: str | None = None
    migstat: str | None = None
    name_id: str | None = None
    extended_status: str | None = None
    replication_status: str = "disabled"
    created_at: str
    updated_at: str
    user_id: str
    enterprise_project_id: str = "0"
    service_type: str = "EVS"
    wwn: str
    serial_number: str
    dedicated_storage_id: str | None = None
    dedicated_storage_name: str | None = None
    iops: None = None
    throughput: None = None


_encode = msgspec.json.Encoder().encode


def at_micro(at_us: int) -> str:
    """`2026-03-04T05:06:07.123456`: UTC, without saying so."""
    return (rfc3339(at_us) or "")[:26]


def show_volume(volume: Volume, url: str) -> VolumeBody:
    """`url` is the server's own, without a slash at its end."""
    digits = volume.id.replace("-", "")
    return VolumeBody(
        id=volume.id,
        name=volume.name,
        status=volume.status,
        size=volume.size_gib,
        description=volume.description,
        volume_type=volume.volume_type,
        availability_zone=volume.availability_zone,
        bootable="true" if volume.bootable else "false",
        shareable="true" if volume.multiattach else "false",
        multiattach=volume.multiattach,
        attachments=[
            _Attachment(one.id, volume.id, volume.id, one.server_id, one.device, None, at_micro(one.attached_us))
            for one in volume.attachments
        ],
        links=[_Link(f"{url}/v2/{volume.project}/cloudvolumes/{volume.id}", "self")],
        metadata={
            "hw:passthrough": "false",
            **volume.metadata,
            **({} if volume.order_id is None else {"orderID": volume.order_id}),
        },
        volume_image_metadata=volume.image_metadata or ({} if volume.image_id is None else {"image_id": volume.image_id}),
        tags=volume.tags,
        tenant_id=volume.project,
        created_at=at_micro(volume.created_us),
        updated_at=at_micro(volume.updated_us),
        user_id=volume.user_id,
        wwn="68886030" + digits[:22],
        serial_number=digits,
    )


def encode_volume_body(volume: Volume, url: str) -> bytes:
    """`{"volume": …}`."""
    return _encode({"volume": show_volume(volume, url)})


def encode_volume_page(volumes: Iterable[Volume], total: int, url: str) -> bytes:
    """`{"count", "volumes", "volumes_links"}`; `total` is that of all pages."""
    return _encode({"count": total, "volumes": [show_volume(one, url) for one in volumes], "volumes_links": []})


# --- lists -----------------------------------------------------------------------------------------------------------


class VolumeQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A list's filters and page.  None: no filter."""

    limit: int = LIMIT_MAX
    offset: int = 0
    marker: str | None = None
    name: str | None = None
    status: str | None = None
    zone: str | None = None
    multiattach: bool | None = None
    volume_type: str | None = None
    ids: frozenset[str] | None = None
    server_id: str | None = None
    metadata: dict[str, str] | None = None
    elsewhere: bool = False  # asks for what this server never has: a storage pool, another service type
    sort: str = "created_at"
    descending: bool = True


SORTS = {
    "id": lambda one: one.id,
    "status": lambda one: one.status,
    "size": lambda one: one.size_gib,
    "created_at": lambda one: one.created_us,
}
_IDS = re.compile(r"[0-9a-fA-F-]{32,36}").findall


def read_volume_query(raw: str) -> VolumeQuery:
    """Errors: Refusal."""
    query = read_query(raw)
    sort, direction = query.get("sort_key") or "created_at", query.get("sort_dir") or "desc"
    if sort not in SORTS or direction not in ("asc", "desc"):
        refuse("EVS.5400", f"sort_key takes {', '.join(SORTS)}, sort_dir asc or desc.")
    ids = [one.lower() for one in _IDS(query.get("ids") or query.get("id") or "")]
    asked = bool(query.get("ids") or query.get("id"))
    if len(ids) > IDS_MAX:
        refuse("EVS.5400", f"ids has {len(ids)} entries; at most {IDS_MAX} are allowed.")
    multiattach = query.get("multiattach")
    return VolumeQuery(
        limit=_limit(query.get("limit")),
        offset=_offset(query.get("offset")),
        marker=query.get("marker") or None,
        name=query.get("name") or None,
        status=query.get("status") or None,
        zone=query.get("availability_zone") or None,
        multiattach=is_true(multiattach, "EVS.5400", "multiattach") if multiattach else None,
        volume_type=query.get("volume_type_id") or None,
        ids=frozenset(ids) if asked else None,
        server_id=query.get("server_id") or None,
        metadata=_pairs(query.get("metadata")),
        elsewhere=bool(query.get("dedicated_storage_id") or query.get("dedicated_storage_name"))
        or query.get("service_type") not in (None, "", "EVS"),
        sort=sort,
        descending=direction == "desc",
    )


def _limit(text: str | None) -> int:
    if not text:
        return LIMIT_MAX
    if not _whole(text):
        refuse("EVS.1023", "invalid filter limit!")
    if int(text) < 1:
        refuse("EVS.5400", "limit param must be positive.")
    if int(text) > LIMIT_MAX:
        refuse("EVS.2142", f"invalid filter limit, can not greater than {LIMIT_MAX}.")
    return int(text)


def _offset(text: str | None) -> int:
    if not text:
        return 0
    if not _whole(text) or int(text) > OFFSET_MAX:
        refuse("EVS.5400", "offset param must be a whole number from 0.")
    return int(text)


def _whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _pairs(text: str | None) -> dict[str, str] | None:
    """`{"key":"value"}`, with either kind of quotes."""
    if not text:
        return None
    try:
        return msgspec.json.decode(text.replace("'", '"'), type=dict[str, str])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        refuse("EVS.5400", "metadata must be an object of text.")


def select_volumes(volumes: Iterable[Volume], query: VolumeQuery) -> tuple[list[Volume], int]:
    """One page, and how many there are on all of them."""
    found = [] if query.elsewhere else [one for one in volumes if _matches(one, query)]
    found.sort(key=lambda one: (SORTS[query.sort](one), one.id), reverse=query.descending)
    total, start = len(found), query.offset
    if query.marker is not None:
        start += next((index + 1 for index, one in enumerate(found) if one.id == query.marker), total)
    return found[start : start + query.limit], total


def _matches(volume: Volume, query: VolumeQuery) -> bool:
    return (
        (query.name is None or query.name in volume.name)
        and (query.status is None or query.status == volume.status)
        and (query.zone is None or query.zone == volume.availability_zone)
        and (query.multiattach is None or query.multiattach == volume.multiattach)
        and (query.volume_type is None or query.volume_type == volume.volume_type)
        and (query.ids is None or volume.id in query.ids)
        and (query.server_id is None or any(one.server_id == query.server_id for one in volume.attachments))
        and (query.metadata is None or query.metadata.items() <= volume.metadata.items())
    )
