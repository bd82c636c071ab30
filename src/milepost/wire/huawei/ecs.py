"""What ECS's clients ask for: delete, power, resize, network card, volume and OS requests, and the answers to submits.  Pure.

Rules
1. Each request names its field when it is refused; the code is Ecs.0005, an empty body's Common.0002.
2. What this server does not do (public addresses, images of data disks, ports made before) is refused, not ignored, when a
   request relies on it.
3. `os-stop` has a type that is SOFT unless said, `reboot` must have one: so say the models of both SDKs.

Source: huaweicloudsdkecs BatchStopServersOption, ResizePrePaidServerOption, AttachServerVolumeOption and the like;
chnsz/golangsdk openstack/ecs/v1/cloudservers; opentelekomcloud-docs/elastic-cloud-server api-ref.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from milepost.wire.huawei.bodies import Ask, Flag, check_text, is_true, refuse
from milepost.wire.huawei.newserver import (
    COUNT_MAX,
    ID_CHARS_MAX,
    NICS_MAX,
    WRONG,
    Extend,
    Id,
    NicBody,
    decoder,
    read_create,
    read_nics,
    short,
    some_id,
)

SERVERS_MAX = 1000  # of one request

_encode = msgspec.json.Encoder().encode


# --- requests --------------------------------------------------------------------------------------------------------


class _Delete(msgspec.Struct):
    servers: list[Id]
    delete_volume: Flag = None
    delete_publicip: Flag = None


class _Servers(msgspec.Struct):
    servers: list[Id]


class _Stop(msgspec.Struct):
    servers: list[Id]
    type: Literal["SOFT", "HARD"] | None = None


class _Reboot(msgspec.Struct):
    servers: list[Id]
    type: Literal["SOFT", "HARD"]


class _Action(msgspec.Struct):
    start: _Servers | None = msgspec.field(default=None, name="os-start")
    stop: _Stop | None = msgspec.field(default=None, name="os-stop")
    reboot: _Reboot | None = None


class _Size(msgspec.Struct):
    flavor_id: str = msgspec.field(name="flavorRef")
    mode: str | None = None
    extendparam: Extend | None = None


class _Resize(msgspec.Struct):
    resize: _Size
    dry_run: Flag = None


class _Sizes(msgspec.Struct):
    flavor_id: str = msgspec.field(name="flavorRef")
    servers: list[Id]
    mode: str | None = None


class _BatchResize(msgspec.Struct):
    resize: _Sizes


class _Nics(msgspec.Struct):
    nics: list[NicBody]


class _NicIds(msgspec.Struct):
    nics: list[Id]


class _Attachment(msgspec.Struct):
    volume_id: str | None = msgspec.field(default=None, name="volumeId")
    device: str | None = None


class _Attach(msgspec.Struct):
    attachment: _Attachment = msgspec.field(name="volumeAttachment")
    dry_run: Flag = None


class _Place(msgspec.Struct):
    server_id: str
    device: str | None = None


class _Places(msgspec.Struct):
    serverinfo: list[_Place]


class _Leavers(msgspec.Struct):
    serverinfo: list[_Place | str]


class _Os(msgspec.Struct):
    image_id: str = msgspec.field(name="imageid")


class _ChangeOs(msgspec.Struct):
    change: _Os = msgspec.field(name="os-change")


class _Reinstall(msgspec.Struct):
    reinstall: dict[str, Any] = msgspec.field(name="os-reinstall")


_read_delete: Callable[[bytes], _Delete] = decoder(_Delete)
_read_action: Callable[[bytes], _Action] = decoder(_Action)
_read_resize: Callable[[bytes], _Resize] = decoder(_Resize)
_read_batch_resize: Callable[[bytes], _BatchResize] = decoder(_BatchResize)
_read_nics: Callable[[bytes], _Nics] = decoder(_Nics)
_read_nic_ids: Callable[[bytes], _NicIds] = decoder(_NicIds)
_read_attach: Callable[[bytes], _Attach] = decoder(_Attach)
_read_places: Callable[[bytes], _Places] = decoder(_Places)
_read_leavers: Callable[[bytes], _Leavers] = decoder(_Leavers)
_read_change_os: Callable[[bytes], _ChangeOs] = decoder(_ChangeOs)
_read_reinstall: Callable[[bytes], _Reinstall] = decoder(_Reinstall)


def _server_ids(servers: Sequence[Id], field: str) -> list[str]:
    if not 1 <= len(servers) <= SERVERS_MAX:
        refuse(WRONG, f"{field} has {len(servers)} entries; it takes 1 to {SERVERS_MAX}.")
    return list(dict.fromkeys(some_id(one.id, f"{field}[{index}].id") for index, one in enumerate(servers)))


def read_delete(body: bytes) -> Ask:
    """Errors: Refusal."""
    asked = _read_delete(body)
    return Ask(
        kind="deleteServer",
        input={
            "server_ids": _server_ids(asked.servers, "servers"),
            "delete_volume": is_true(asked.delete_volume, WRONG, "delete_volume"),
        },
    )


def read_action(body: bytes) -> Ask:
    """Start, stop or reboot.  Errors: Refusal when it is none of them, or several."""
    asked = _read_action(body)
    given = [one for one in (asked.start, asked.stop, asked.reboot) if one is not None]
    if len(given) != 1:
        refuse(WRONG, "The request body has exactly one of os-start, os-stop and reboot.")
    if asked.start is not None:
        return Ask(kind="startServer", input={"server_ids": _server_ids(asked.start.servers, "os-start.servers")})
    if asked.stop is not None:
        ids = _server_ids(asked.stop.servers, "os-stop.servers")
        return Ask(kind="stopServer", input={"server_ids": ids, "type": asked.stop.type or "SOFT"})
    assert asked.reboot is not None
    ids = _server_ids(asked.reboot.servers, "reboot.servers")
    return Ask(kind="rebootServer", input={"server_ids": ids, "type": asked.reboot.type})


def read_resize(body: bytes, server_id: str) -> Ask:
    """`pay` is True where nothing says that the order waits.  Errors: Refusal."""
    asked = _read_resize(body)
    param = asked.resize.extendparam
    return Ask(
        kind="resizeServer",
        input={"server_id": server_id, "flavor_id": short(asked.resize.flavor_id, "resize.flavorRef")},
        pay=param is None or is_true(param.is_auto_pay, WRONG, "resize.extendparam.isAutoPay"),
        dry_run=is_true(asked.dry_run, WRONG, "dry_run"),
    )


def read_batch_resize(body: bytes) -> Ask:
    """Errors: Refusal."""
    asked = _read_batch_resize(body).resize
    ids, flavor_id = _server_ids(asked.servers, "resize.servers"), short(asked.flavor_id, "resize.flavorRef")
    if len(ids) == 1:
        return Ask(kind="resizeServer", input={"server_id": ids[0], "flavor_id": flavor_id}, pay=True)
    return Ask(kind="batchResizeServer", input={"server_ids": ids, "flavor_id": flavor_id}, pay=True)


def read_add_nics(body: bytes, server_id: str) -> Ask:
    """Errors: Refusal."""
    return Ask(kind="addNic", input={"server_id": server_id, "nics": read_nics(_read_nics(body).nics, "nics")})


def read_delete_nics(body: bytes, server_id: str) -> Ask:
    """Errors: Refusal."""
    nics = _read_nic_ids(body).nics
    if not 1 <= len(nics) <= NICS_MAX:
        refuse(WRONG, f"nics has {len(nics)} entries; it takes 1 to {NICS_MAX}.")
    ids = [some_id(one.id, f"nics[{index}].id") for index, one in enumerate(nics)]
    return Ask(kind="deleteNic", input={"server_id": server_id, "nic_ids": list(dict.fromkeys(ids))})


def read_attach(body: bytes, server_id: str) -> Ask:
    """Errors: Refusal."""
    asked = _read_attach(body)
    one = asked.attachment
    if not one.volume_id:
        refuse(WRONG, "volumeAttachment.volumeId is required: a volume is made by itself and attached then.")
    spec = {"server_id": server_id, "volume_id": some_id(one.volume_id, "volumeAttachment.volumeId")}
    device = check_text(one.device, ID_CHARS_MAX, WRONG, "volumeAttachment.device") or None
    return Ask(kind="attachVolume", input={**spec, "device": device}, dry_run=is_true(asked.dry_run, WRONG, "dry_run"))


def read_detach(query: dict[str, str], server_id: str, volume_id: str) -> Ask:
    """`delete_flag=1` takes it away without asking the guest.  Errors: Refusal."""
    force = is_true(query.get("delete_flag"), WRONG, "delete_flag")
    return Ask(kind="detachVolume", input={"server_id": server_id, "volume_id": volume_id, "force": force})


def read_batch_attach(body: bytes, volume_id: str) -> Ask:
    """Errors: Refusal."""
    places = _read_places(body).serverinfo
    _check_places(places)
    servers = [
        {
            "server_id": some_id(one.server_id, f"serverinfo[{index}].server_id"),
            "device": check_text(one.device, ID_CHARS_MAX, WRONG, f"serverinfo[{index}].device") or None,
        }
        for index, one in enumerate(places)
    ]
    if len(servers) == 1:
        return Ask(kind="attachVolume", input={"volume_id": volume_id, **servers[0]})
    return Ask(kind="batchAttachVolume", input={"volume_id": volume_id, "servers": servers})


def read_batch_detach(body: bytes, volume_id: str) -> Ask:
    """The servers as objects or as ids: the SDK sends ids.  Errors: Refusal."""
    places = _read_leavers(body).serverinfo
    _check_places(places)
    given = [one if isinstance(one, str) else one.server_id for one in places]
    ids = list(dict.fromkeys(some_id(one, f"serverinfo[{index}]") for index, one in enumerate(given)))
    if len(ids) == 1:
        return Ask(kind="detachVolume", input={"volume_id": volume_id, "server_id": ids[0]})
    return Ask(kind="batchDetachVolume", input={"volume_id": volume_id, "server_ids": ids})


def _check_places(places: Sequence[Any]) -> None:
    if not 1 <= len(places) <= COUNT_MAX:
        refuse(WRONG, f"serverinfo has {len(places)} entries; it takes 1 to {COUNT_MAX}.")


def read_change_os(body: bytes, server_id: str) -> Ask:
    """Errors: Refusal."""
    image_id = some_id(_read_change_os(body).change.image_id, "os-change.imageid")
    return Ask(kind="changeOS", input={"server_id": server_id, "image_id": image_id})


def read_reinstall(body: bytes, server_id: str) -> Ask:
    """Errors: Refusal."""
    _read_reinstall(body)
    return Ask(kind="reInitOs", input={"server_id": server_id})


def encode_accepted(*, job_id: str, order_id: str | None = None, server_ids: Sequence[str] | None = None) -> bytes:
    """The answer to a submit.  An order's has its job too: only so can PENDING_PAYMENT be seen."""
    found: dict[str, Any] = {"job_id": job_id}
    if order_id is not None:
        found["order_id"] = order_id
    if server_ids is not None:
        found["serverIds"] = list(server_ids)
    return _encode(found)


__all__ = [
    "encode_accepted",
    "read_action",
    "read_add_nics",
    "read_attach",
    "read_batch_attach",
    "read_batch_detach",
    "read_batch_resize",
    "read_change_os",
    "read_create",
    "read_delete",
    "read_delete_nics",
    "read_detach",
    "read_reinstall",
    "read_resize",
]
