"""What EVS's clients ask for: create, extend, retype, delete and rename requests, and the answers to submits.  Pure.

Rules
1. A field out of its range is refused with the code that EVS has for it (`_CREATE`, `_CHANGE`), and with its path.
2. What this server does not do (snapshots, backups, encryption) is refused, not ignored, when a request relies on it.

Source: huaweicloudsdkevs CreateVolumeOption, OsExtend, RetypeVolume; chnsz/golangsdk openstack/evs/v2/cloudvolumes;
opentelekomcloud-docs/elastic-volume-service api-ref.
"""

from __future__ import annotations

from collections.abc import Sequence
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
DELETE_MAX = 100  # volumes of one batch
EXTEND_MAX = 100
NAME_MAX = 255
DESCRIPTION_CHARS_MAX = 255
SUFFIX_CHARS = 5  # `-0001`

ENCRYPTED, CMK, CLONE = "__system__encrypted", "__system__cmkid", "full_clone"

_CREATE = Codes(
    "EVS.1008",
    "EVS.5400",
    {
        "size": "EVS.1010",
        "volume_type": "EVS.1020",
        "count": "EVS.1021",
        "availability_zone": "EVS.1036",
        "snapshot_id": "EVS.2045",
        "imageRef": "EVS.2046",
        "bssParam": "EVS.2147",
        "chargingMode": "EVS.2147",
        "isAutoPay": "EVS.2147",
    },
)
_CHANGE = Codes("EVS.1052", "EVS.5400", {"new_size": "EVS.1010", "new_type": "EVS.1020"})


# --- requests --------------------------------------------------------------------------------------------------------


class _Bss(msgspec.Struct, rename="camel"):
    charging_mode: int | str | None = None
    is_auto_pay: Flag = None


class _NewVolume(msgspec.Struct):
    availability_zone: str | None = None
    volume_type: str | None = None
    size: int | float | None = None
    name: str | None = None
    description: str | None = None
    count: int | float | None = None
    multiattach: Flag = None
    shareable: Flag = None  # what v2 calls multiattach
    snapshot_id: str | None = None
    image_id: str | None = msgspec.field(default=None, name="imageRef")
    backup_id: str | None = None
    metadata: dict[str, Any] | None = None
    tags: dict[str, Any] | None = None


class _Create(msgspec.Struct):
    volume: _NewVolume
    bss: _Bss | None = msgspec.field(default=None, name="bssParam")
    server_id: str | None = None


class _Extend(msgspec.Struct):
    new_size: int | float


class _Action(msgspec.Struct):
    extend: _Extend = msgspec.field(name="os-extend")
    bss: _Bss | None = msgspec.field(default=None, name="bssParam")


class _Retype(msgspec.Struct):
    new_type: str


class _RetypeBody(msgspec.Struct):
    retype: _Retype = msgspec.field(name="os-retype")
    bss: _Bss | None = msgspec.field(default=None, name="bssParam")


class _Larger(msgspec.Struct):
    id: str
    new_size: int | float


class _BssSnake(msgspec.Struct):
    is_auto_pay: Flag = None


class _BatchExtend(msgspec.Struct):
    volumes: list[_Larger]
    bss: _BssSnake | None = msgspec.field(default=None, name="bss_param")


class _Named(msgspec.Struct):
    id: str


class _BatchDelete(msgspec.Struct):
    volumes: list[_Named | str] | None = None
    volume_ids: list[str] | None = None


class _Words(msgspec.Struct):
    name: str | None = None
    description: str | None = None


class _Update(msgspec.Struct):
    volume: _Words


_encode = msgspec.json.Encoder().encode
_decode_create = msgspec.json.Decoder(_Create).decode
_decode_action = msgspec.json.Decoder(_Action).decode
_decode_retype = msgspec.json.Decoder(_RetypeBody).decode
_decode_batch_extend = msgspec.json.Decoder(_BatchExtend).decode
_decode_batch_delete = msgspec.json.Decoder(_BatchDelete).decode
_decode_update = msgspec.json.Decoder(_Update).decode


def read_create(body: bytes) -> Ask:
    """One volume or a batch of them.  Errors: Refusal."""
    asked = read_body(_decode_create, body, _CREATE)
    volume, bss = asked.volume, asked.bss
    count = check_whole(1 if volume.count is None else volume.count, "EVS.1021", "volume.count", 1, COUNT_MAX)
    _check_sources(volume, count)
    spec: dict[str, Any] = {
        "name": _name(volume.name, count),
        "description": check_text(volume.description, DESCRIPTION_CHARS_MAX, "EVS.1008", "volume.description"),
        "size": _size(volume),
        "volume_type": check_type(volume.volume_type, "volume.volume_type"),
        "availability_zone": _zone(volume.availability_zone),
        "image_id": volume.image_id or None,
        "multiattach": is_true(volume.multiattach, "EVS.1008", "volume.multiattach")
        or is_true(volume.shareable, "EVS.1008", "volume.shareable"),
        **_metadata(volume.metadata),
        "tags": check_words(volume.tags, "EVS.1008", "volume.tags"),
        "server_id": None if not asked.server_id else check_id(asked.server_id, "server_id", "EVS.1008"),
    }
    order = bss is not None and is_prepaid(bss.charging_mode)
    pay = bss is not None and is_true(bss.is_auto_pay, "EVS.2147", "bssParam.isAutoPay")
    if count == 1:
        return Ask(kind="createVolume", input={"volume": spec}, order=order, pay=pay)
    return Ask(kind="batchCreateVolume", input={"volume": spec, "count": count}, order=order, pay=pay)


def _check_sources(volume: _NewVolume, count: int) -> None:
    sources = [
        name
        for name, value in (("snapshot_id", volume.snapshot_id), ("imageRef", volume.image_id), ("backup_id", volume.backup_id))
        if value
    ]
    if len(sources) > 1:
        refuse("EVS.1016", f"Only one of snapshot_id, imageRef and backup_id may be given; here are {' and '.join(sources)}.")
    if volume.backup_id:
        if count > 1:
            refuse("EVS.1051", "Volumes cannot be created in batches from a backup.")
        refuse("EVS.1008", "volume.backup_id: this server has no backups.")
    if volume.snapshot_id:
        refuse("EVS.2045", "volume.snapshot_id: this server has no snapshots.")


def _name(name: str | None, count: int) -> str:
    most = NAME_MAX if count == 1 else NAME_MAX - SUFFIX_CHARS
    return check_text(name, most, "EVS.1008", "volume.name")


def _size(volume: _NewVolume) -> int:
    """A volume from an image may be as small as a system disk, but no larger than a data disk: what fits, the kind knows."""
    low = 1 if volume.image_id else DATA_GIB_MIN
    return check_whole(volume.size, "EVS.1010", "volume.size", low, SYSTEM_GIB_MAX if volume.image_id else DATA_GIB_MAX)


def check_type(name: str | None, field: str) -> str:
    """Errors: Refusal when it is no volume type."""
    if not name or name not in VOLUME_TYPES:
        refuse("EVS.1020", f"{field} is {(name or '')[:40]!r}; it takes {', '.join(VOLUME_TYPES)}.")
    return name


def _zone(name: str | None) -> str:
    if not name:
        refuse("EVS.1036", "volume.availability_zone is required.")
    return check_text(name, NAME_MAX, "EVS.1036", "volume.availability_zone")


def _metadata(given: dict[str, Any] | None) -> dict[str, Any]:
    words = check_words(given, "EVS.1008", "volume.metadata")
    if is_true(words.pop(ENCRYPTED, ""), "EVS.1008", f"volume.metadata.{ENCRYPTED}") or words.pop(CMK, ""):
        refuse("EVS.1008", f"volume.metadata.{ENCRYPTED}: this server does not encrypt volumes.")
    full = is_true(words.pop(CLONE, ""), "EVS.1008", f"volume.metadata.{CLONE}")
    return {"full_clone": full, "metadata": words}


def check_id(text: str, field: str, code: str) -> str:
    """A resource's id, in lower case.  Errors: Refusal when it cannot be one."""
    if not UUID(text):
        refuse(code, f"{field} is {text[:64]!r}; it must be a UUID.")
    return text.lower()


def read_volume_id(text: str) -> str:
    """The id in a path.  Errors: Refusal: a malformed one is 400, an unknown one 404."""
    return check_id(text, "volume_id", "EVS.1002")


def read_extend(body: bytes, volume_id: str) -> Ask:
    """The only action that there is.  `order` stands for "if the volume has an order".  Errors: Refusal."""
    asked = read_body(_decode_action, body, _CHANGE)
    size = check_whole(asked.extend.new_size, "EVS.1010", "os-extend.new_size", 1, DATA_GIB_MAX)
    pay = asked.bss is None or is_true(asked.bss.is_auto_pay, "EVS.2147", "bssParam.isAutoPay")
    return Ask(kind="extendVolume", input={"volume_id": volume_id, "new_size": size}, pay=pay)


def read_batch_extend(body: bytes) -> Ask:
    """Errors: Refusal."""
    asked = read_body(_decode_batch_extend, body, _CHANGE)
    if not 1 <= len(asked.volumes) <= EXTEND_MAX:
        refuse("EVS.1052", f"volumes has {len(asked.volumes)} entries; it takes 1 to {EXTEND_MAX}.")
    larger = [
        {
            "volume_id": check_id(one.id, f"volumes[{index}].id", "EVS.1002"),
            "new_size": check_whole(one.new_size, "EVS.1010", f"volumes[{index}].new_size", 1, DATA_GIB_MAX),
        }
        for index, one in enumerate(asked.volumes)
    ]
    if len({one["volume_id"] for one in larger}) < len(larger):
        refuse("EVS.1052", "volumes names a volume twice.")
    pay = asked.bss is None or is_true(asked.bss.is_auto_pay, "EVS.2147", "bss_param.is_auto_pay")
    return Ask(kind="batchExtendVolume", input={"volumes": larger}, pay=pay)


def read_delete(volume_id: str) -> Ask:
    """Errors: none."""
    return Ask(kind="deleteVolume", input={"volume_id": volume_id})


def read_batch_delete(body: bytes) -> Ask:
    """`volumes` as objects with an id or as ids, or `volume_ids`.  Errors: Refusal."""
    asked = read_body(_decode_batch_delete, body, _CHANGE)
    given = [one if isinstance(one, str) else one.id for one in asked.volumes or ()] or asked.volume_ids or []
    if not given:
        refuse("EVS.1052", "volumes is empty.")
    if len(given) > DELETE_MAX:
        refuse("EVS.1053", f"volumes has {len(given)} entries; at most {DELETE_MAX} are allowed.")
    ids = [check_id(one, f"volumes[{index}]", "EVS.1002") for index, one in enumerate(given)]
    return Ask(kind="bulkDeleteVolume", input={"volume_ids": list(dict.fromkeys(ids))})


def read_retype(body: bytes, volume_id: str) -> Ask:
    """Errors: Refusal."""
    asked = read_body(_decode_retype, body, _CHANGE)
    new_type = check_type(asked.retype.new_type, "os-retype.new_type")
    pay = asked.bss is None or is_true(asked.bss.is_auto_pay, "EVS.2147", "bssParam.isAutoPay")
    return Ask(kind="retypeVolume", input={"volume_id": volume_id, "new_type": new_type}, pay=pay)


def read_update(body: bytes) -> tuple[str | None, str | None]:
    """The new name and description, None for what stays.  Errors: Refusal."""
    asked = read_body(_decode_update, body, _CHANGE).volume
    name = None if asked.name is None else check_text(asked.name, NAME_MAX, "EVS.1052", "volume.name")
    words = asked.description
    return name, None if words is None else check_text(words, DESCRIPTION_CHARS_MAX, "EVS.1052", "volume.description")


def encode_accepted(*, job_id: str | None, order_id: str | None, volume_ids: Sequence[str] | None = None) -> bytes:
    """The answer to a submit: an order's has no job, as the vendor's."""
    found: dict[str, Any] = {"job_id": job_id} if order_id is None else {"order_id": order_id}
    if volume_ids is not None:
        found["volume_ids"] = list(volume_ids)
    return _encode(found)
