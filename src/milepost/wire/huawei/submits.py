"""What can be submitted to Huawei Cloud by the name of its job: kind → method, path, and the ids that the path takes.

The input is the vendor's own body; the ids that stand in the path are beside its keys, and are taken out of the body.

Source: huaweicloudsdkevs and huaweicloudsdkecs (http methods and paths); chnsz/golangsdk openstack/evs/v2/cloudvolumes,
openstack/ecs/v1/cloudservers.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import msgspec

from milepost.wire import Request
from milepost.wire.huawei.errors import Service

_PLACE = re.compile(r"\{(\w+)\}")
PROJECT = "project_id"


class Route(msgspec.Struct, frozen=True):
    """Where a kind is submitted.  `once`: the service takes `X-Client-Token`, so that a repeat gives the same job."""

    method: str
    path: str
    body: str  # the key that the body must have; "" for none
    once: bool = False


ROUTES: dict[Service, dict[str, Route]] = {
    Service.EVS: {
        "createVolume": Route("POST", "/v2.1/{project_id}/cloudvolumes", "volume", once=True),
        "batchCreateVolume": Route("POST", "/v2.1/{project_id}/cloudvolumes", "volume", once=True),
        "extendVolume": Route("POST", "/v2.1/{project_id}/cloudvolumes/{volume_id}/action", "os-extend"),
        "batchExtendVolume": Route("POST", "/v5/{project_id}/volumes/batch-extend", "volumes"),
        "deleteVolume": Route("DELETE", "/v2/{project_id}/cloudvolumes/{volume_id}", ""),
        "retypeVolume": Route("POST", "/v2/{project_id}/volumes/{volume_id}/retype", "os-retype"),
    },
    Service.ECS: {
        "createServer": Route("POST", "/v1.1/{project_id}/cloudservers", "server", once=True),
        "deleteServer": Route("POST", "/v1/{project_id}/cloudservers/delete", "servers"),
        "startServer": Route("POST", "/v1/{project_id}/cloudservers/action", "os-start"),
        "stopServer": Route("POST", "/v1/{project_id}/cloudservers/action", "os-stop"),
        "rebootServer": Route("POST", "/v1/{project_id}/cloudservers/action", "reboot"),
        "resizeServer": Route("POST", "/v1.1/{project_id}/cloudservers/{server_id}/resize", "resize"),
        "batchResizeServer": Route("POST", "/v1/{project_id}/cloudservers/batch-resize", "resize"),
        "changeOS": Route("POST", "/v2/{project_id}/cloudservers/{server_id}/changeos", "os-change"),
        "reInitOs": Route("POST", "/v2/{project_id}/cloudservers/{server_id}/reinstallos", "os-reinstall"),
        "attachVolume": Route("POST", "/v1/{project_id}/cloudservers/{server_id}/attachvolume", "volumeAttachment"),
        "detachVolume": Route("DELETE", "/v1/{project_id}/cloudservers/{server_id}/detachvolume/{volume_id}", ""),
        "addNic": Route("POST", "/v1/{project_id}/cloudservers/{server_id}/nics", "nics"),
        "deleteNic": Route("POST", "/v1/{project_id}/cloudservers/{server_id}/nics/delete", "nics"),
    },
}


def submit_request(route: Route, body: dict[str, Any], *, project: str, token: str) -> Request:
    """The request that asks for a job.  `project`: what stands for the project in the path, `token`: the submit's own name.

    Errors: KeyError naming the key that the input does not have.
    """
    rest = dict(body)

    def placed(found: re.Match[str]) -> str:
        return project if found[1] == PROJECT else quote(str(rest.pop(found[1])), safe="")

    path = _PLACE.sub(placed, route.path)
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if route.once:
        headers["X-Client-Token"] = token
    if route.method == "DELETE":
        flags = [f"{key}={quote(str(value), safe='')}" for key, value in rest.items()]
        return Request("DELETE", f"{path}?{'&'.join(flags)}" if flags else path, headers)
    if route.body not in rest:
        raise KeyError(route.body)
    return Request(route.method, path, headers, msgspec.json.encode(rest))


class Submitted(msgspec.Struct, frozen=True):
    """What a submit answers: a job, or an order that becomes a job when it is paid."""

    job_id: str | None
    order_id: str | None
    ids: tuple[str, ...]  # of what is being made


def read_submitted(body: bytes) -> Submitted:
    """`{"job_id"}`, `{"jobId"}` or `{"order_id"}`, with or without ids.  Errors: msgspec.DecodeError, ValueError."""
    found = msgspec.json.decode(body)
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    job_id, order = found.get("job_id") or found.get("jobId"), found.get("order_id")
    if not isinstance(job_id, str) and not isinstance(order, str):
        raise ValueError("it has neither job_id nor order_id")
    ids = next((value for key in ("volume_ids", "serverIds") if isinstance(value := found.get(key), list)), [])
    return Submitted(
        job_id if isinstance(job_id, str) else None,
        order if isinstance(order, str) else None,
        tuple(one for one in ids if isinstance(one, str)),
    )
