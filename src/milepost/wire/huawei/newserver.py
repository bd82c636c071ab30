"""The request that makes servers, and the parts of it that other requests have too: ids, network cards, disks.  Pure.

Source: huaweicloudsdkecs PrePaidServer and its parts; chnsz/golangsdk openstack/ecs/v1/cloudservers; opentelekomcloud-docs/
elastic-cloud-server api-ref, "Creating an ECS".
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from milepost.volume import DATA_GIB_MAX, DATA_GIB_MIN, SYSTEM_GIB_MAX, VOLUME_TYPES
from milepost.wire.huawei.bodies import (
    UUID,
    Ask,
    Codes,
    Flag,
    check_text,
    check_whole,
    check_words,
    is_prepaid,
    is_true,
    read_body,
    refuse,
)

COUNT_MAX = 100
NICS_MAX = 12
DATA_VOLUMES_MAX = 23
METADATA_MAX = 10
TAGS_MAX = 20
DESCRIPTION_CHARS_MAX, ID_CHARS_MAX = 85, 64
USER_DATA_BYTES_MAX = 32 << 10

WRONG, EMPTY = "Ecs.0005", "Common.0002"
_CODES = Codes(WRONG, WRONG)
_NAME = re.compile(r"[\w.\-]{1,64}").fullmatch


def decoder(type_: Any) -> Callable[[bytes], Any]:
    """What reads bodies of this type.  Errors: Refusal."""
    decode = msgspec.json.Decoder(type_).decode

    def read(body: bytes) -> Any:
        if not body.strip():
            refuse(EMPTY, "The request body is empty.")
        return read_body(decode, body, _CODES)

    return read


class Id(msgspec.Struct):
    id: str


class NicBody(msgspec.Struct):
    subnet_id: str | None = None
    port_id: str | None = None
    ip_address: str | None = None
    security_groups: list[Id] | None = None


class _Disk(msgspec.Struct):
    volumetype: str
    size: int | float | None = None
    count: int | None = None
    multiattach: Flag = None
    shareable: Flag = None
    data_image_id: str | None = None


class Extend(msgspec.Struct, rename="camel"):
    charging_mode: int | str | None = None
    is_auto_pay: Flag = None


class _Tag(msgspec.Struct):
    key: str
    value: str | None = None


class _NewServer(msgspec.Struct):
    name: str
    image_id: str = msgspec.field(name="imageRef")
    flavor_id: str = msgspec.field(name="flavorRef")
    vpc_id: str = msgspec.field(name="vpcid")
    nics: list[NicBody]
    root_volume: _Disk
    data_volumes: list[_Disk] | None = None
    count: int | float | None = None
    admin_pass: str | None = msgspec.field(default=None, name="adminPass")
    key_name: str | None = None
    user_data: str | None = None
    publicip: dict[str, Any] | None = None
    security_groups: list[Id] | None = None
    availability_zone: str | None = None
    metadata: dict[str, Any] | None = None
    tags: list[str] | None = None
    server_tags: list[_Tag] | None = None
    description: str | None = None
    extendparam: Extend | None = None


class _Create(msgspec.Struct):
    server: _NewServer
    dry_run: Flag = None


_read_create: Callable[[bytes], _Create] = decoder(_Create)


def read_create(body: bytes) -> Ask:
    """One server or many.  A root volume without a size has None: the image decides.  Errors: Refusal."""
    asked = _read_create(body)
    server = asked.server
    count = check_whole(1 if server.count is None else server.count, WRONG, "server.count", 1, COUNT_MAX)
    if server.publicip:
        refuse(WRONG, "server.publicip: this server has no public addresses; its networks are reached from the host only.")
    if server.admin_pass is not None and not 8 <= len(server.admin_pass) <= 26:
        refuse(WRONG, "server.adminPass has 8 to 26 characters.")
    param = server.extendparam or Extend()
    spec = {
        "name": _name(server.name),
        "image_id": some_id(server.image_id, "server.imageRef"),
        "flavor_id": short(server.flavor_id, "server.flavorRef"),
        "vpc_id": short(server.vpc_id, "server.vpcid"),
        "nics": read_nics(server.nics, "server.nics"),
        "root_volume": _disk(server.root_volume, "server.root_volume", root=True),
        "data_volumes": _data_volumes(server.data_volumes or []),
        "availability_zone": check_text(server.availability_zone, ID_CHARS_MAX, WRONG, "server.availability_zone"),
        "metadata": check_words(server.metadata, WRONG, "server.metadata", most=METADATA_MAX),
        "tags": _tags(server.tags or [], server.server_tags or []),
        "user_data": _user_data(server.user_data),
        "key_name": check_text(server.key_name, ID_CHARS_MAX, WRONG, "server.key_name") or None,
        "description": check_text(server.description, DESCRIPTION_CHARS_MAX, WRONG, "server.description"),
        "security_groups": _groups(server.security_groups, "server.security_groups"),
    }
    return Ask(
        kind="createServer",
        input={"server": spec, "count": count},
        order=is_prepaid(param.charging_mode),
        pay=is_true(param.is_auto_pay, WRONG, "server.extendparam.isAutoPay"),
        dry_run=is_true(asked.dry_run, WRONG, "dry_run"),
    )


def _name(name: str) -> str:
    if not _NAME(name):
        refuse(WRONG, "server.name has 1 to 64 letters, digits, and the characters _ - .")
    return name


def short(text: str, field: str) -> str:
    if not text:
        refuse(WRONG, f"{field} is required.")
    return check_text(text, ID_CHARS_MAX, WRONG, field)


def some_id(text: str, field: str) -> str:
    if not UUID(text):
        refuse(WRONG, f"{field} is {text[:64]!r}; it must be a UUID.")
    return text.lower()


def read_nics(nics: Sequence[NicBody], field: str) -> list[dict[str, Any]]:
    if not 1 <= len(nics) <= NICS_MAX:
        refuse(WRONG, f"{field} has {len(nics)} entries; it takes 1 to {NICS_MAX}.")
    return [_nic(nic, f"{field}[{index}]") for index, nic in enumerate(nics)]


def _nic(nic: NicBody, field: str) -> dict[str, Any]:
    if nic.port_id and not nic.subnet_id:
        refuse(WRONG, f"{field}.port_id: this server makes the ports itself; give subnet_id.")
    return {
        "subnet_id": short(nic.subnet_id or "", f"{field}.subnet_id"),
        "ip_address": check_text(nic.ip_address, ID_CHARS_MAX, WRONG, f"{field}.ip_address") or None,
        "security_groups": _groups(nic.security_groups, f"{field}.security_groups"),
    }


def _groups(groups: Sequence[Id] | None, field: str) -> list[str]:
    if len(groups or ()) > TAGS_MAX:
        refuse(WRONG, f"{field} has more than {TAGS_MAX} entries.")
    return [short(one.id, f"{field}[{index}].id") for index, one in enumerate(groups or ())]


def _disk(disk: _Disk, field: str, *, root: bool = False) -> dict[str, Any]:
    if disk.volumetype not in VOLUME_TYPES:
        refuse(WRONG, f"{field}.volumetype is {disk.volumetype[:40]!r}; it takes {', '.join(VOLUME_TYPES)}.")
    if disk.data_image_id:
        refuse(WRONG, f"{field}.data_image_id: this server makes data disks empty.")
    if is_true(disk.multiattach, WRONG, f"{field}.multiattach") or is_true(disk.shareable, WRONG, f"{field}.shareable"):
        refuse(WRONG, f"{field}.multiattach: a shared volume is made by itself and attached then.")
    low, high = (1, SYSTEM_GIB_MAX) if root else (DATA_GIB_MIN, DATA_GIB_MAX)
    size = None if root and disk.size is None else check_whole(disk.size, WRONG, f"{field}.size", low, high)
    return {"volume_type": disk.volumetype, "size": size}


def _data_volumes(disks: Sequence[_Disk]) -> list[dict[str, Any]]:
    """Older clients count equal ones."""
    found: list[dict[str, Any]] = []
    for index, disk in enumerate(disks):
        times = check_whole(1 if disk.count is None else disk.count, WRONG, f"server.data_volumes[{index}].count", 1, 60)
        found += [_disk(disk, f"server.data_volumes[{index}]")] * times
        if len(found) > DATA_VOLUMES_MAX:
            refuse(WRONG, f"server.data_volumes: at most {DATA_VOLUMES_MAX} are allowed.")
    return found


def _tags(words: Sequence[str], pairs: Sequence[_Tag]) -> dict[str, str]:
    """`key.value` or `key=value` texts, or objects; both at once are not allowed."""
    if words and pairs:
        refuse(WRONG, "server.tags and server.server_tags cannot be given together.")
    found = {one.key: one.value or "" for one in pairs}
    for word in words:
        key, _, value = word.partition("=" if "=" in word else ".")
        found[key] = value
    return check_words(found, WRONG, "server.tags", most=TAGS_MAX)


def _user_data(text: str | None) -> str | None:
    if not text:
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        refuse(WRONG, "server.user_data must be base64.")
    if len(data) > USER_DATA_BYTES_MAX:
        refuse(WRONG, f"server.user_data has {len(data)} bytes; at most {USER_DATA_BYTES_MAX} are allowed.")
    return text
