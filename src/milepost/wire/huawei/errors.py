"""Errors as Huawei Cloud's services write them, and the tables between our reasons and their codes.

Three bodies: `{"error": {"code", "message"}}` of the services, `{"error_code", "error_msg", "request_id"}` of the gateway before
them, `{"itemNotFound": {"code", "message"}}` of the Nova-like ones.  All SDKs read the first two.

Rules
1. A refused submit carries `fields["reason"]`, a failed job the same word as its failure's code; each reason has a code in both
   services (`REFUSALS`, `JOB_CODES`), some another one for one kind (`BY_KIND`).
2. A code stands for the first reason that has it: so `reason_of` answers in our words, also about the vendor's own cloud.
3. HTTP statuses are those of the vendor's tables, although they are sometimes odd: an unknown job is 400.

Source: huaweicloudsdkcore exceptions (nested and gateway forms); opentelekomcloud-docs/elastic-cloud-server
api-ref/source/appendix/error_codes.rst (Ecs.*, Common.*); opentelekomcloud-docs/elastic-volume-service, the same page (EVS.*);
Huawei's API signing guide (APIGW.*).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

import msgspec

from milepost.errors import (
    CallerError,
    Conflict,
    Expired,
    Forbidden,
    InvalidInput,
    LimitExceeded,
    MilepostError,
    NotFound,
    Throttled,
    Unauthenticated,
    Unavailable,
)


class Service(StrEnum):
    """Whose codes are used."""

    ECS = "ecs"
    EVS = "evs"


class Form(StrEnum):
    """Which of the bodies an error has."""

    NESTED = "nested"  # {"error": {"code", "message"}}
    GATEWAY = "gateway"  # {"error_code", "error_msg", "request_id"}
    NOVA = "nova"  # {"itemNotFound": {"code", "message"}}


class Refusal(Exception):
    """A request answered with an error in the vendor's manner."""

    def __init__(
        self, status: int, code: str, message: str, *, form: Form = Form.NESTED, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.form, self.headers = status, code, message, form, headers or {}


JOB_UNKNOWN = "Common.0011"
TOKEN_REFUSED = "Common.0013"  # noqa: S105 - a code, no secret
PROJECT_MISMATCH = "Common.0018"
SUB_JOB_FAILS = "Common.0021"
MISSION_FAILS = "Common.0022"
INTERNAL = "Common.0001"
FLOW_CONTROL = "Common.1503"
CANCELLED = "Milepost.0001"  # no vendor's code: their jobs cannot be cancelled
ROUTE_UNKNOWN = "APIGW.0101"
BODY_TOO_LARGE = "APIGW.0201"
SIGNATURE_INVALID = "APIGW.0301"

REASONS = (
    "volume_not_found", "volume_size", "volume_shrink", "volume_type_unknown", "volume_type_same", "volume_attached",
    "volume_busy", "volume_state", "volume_error", "volume_extend_failed", "volume_delete_failed", "volume_quota",
    "capacity_quota", "image_not_found", "image_not_active", "image_too_large", "zone_unknown", "count_range", "not_attached",
    "server_not_found", "server_state", "server_busy", "flavor_unknown", "flavor_same", "server_quota", "cpu_quota",
    "memory_quota", "nic_primary", "nic_not_found", "nic_limit", "device_limit", "qemu_missing", "no_capacity",
    "server_start_failed", "server_create_failed", "server_stop_failed", "nic_failed", "attach_failed", "detach_failed",
    "disk_full", "sub_jobs_failed",
)  # fmt: skip

_EVS: dict[str, tuple[int, str]] = {
    "volume_not_found": (404, "EVS.5404"),
    "volume_size": (400, "EVS.1010"),
    "volume_shrink": (400, "EVS.1015"),
    "volume_type_unknown": (400, "EVS.1020"),
    "volume_type_same": (400, "EVS.2087"),
    "volume_state": (400, "EVS.1046"),
    "volume_attached": (400, "EVS.1046"),
    "volume_busy": (400, "EVS.1046"),
    "volume_error": (500, "EVS.2024"),
    "volume_extend_failed": (500, "EVS.2026"),
    "volume_delete_failed": (500, "EVS.2020"),
    "volume_quota": (400, "EVS.1034"),
    "capacity_quota": (400, "EVS.1042"),
    "image_not_found": (400, "EVS.2046"),
    "image_not_active": (400, "EVS.2046"),
    "image_too_large": (400, "EVS.1010"),
    "zone_unknown": (400, "EVS.1036"),
    "count_range": (400, "EVS.1021"),
    "not_attached": (400, "EVS.5400"),
    "server_not_found": (400, "EVS.2131"),
    "server_state": (400, "EVS.1066"),
    "server_busy": (400, "EVS.1066"),
    "attach_failed": (400, "EVS.2134"),
    "detach_failed": (500, "EVS.2021"),
    "no_capacity": (400, "EVS.2072"),
    "disk_full": (400, "EVS.2072"),
    "sub_jobs_failed": (400, SUB_JOB_FAILS),
    # A volume's job does not meet these; should one come up, it is the request that cannot be served.
    "flavor_unknown": (400, "EVS.1052"),
    "flavor_same": (400, "EVS.1052"),
    "server_quota": (400, "EVS.1052"),
    "cpu_quota": (400, "EVS.1052"),
    "memory_quota": (400, "EVS.1052"),
    "nic_primary": (400, "EVS.1052"),
    "nic_not_found": (400, "EVS.1052"),
    "nic_limit": (400, "EVS.1052"),
    "device_limit": (400, "EVS.1052"),
    "qemu_missing": (503, "EVS.5503"),
    "server_start_failed": (500, "EVS.2002"),
    "server_create_failed": (500, "EVS.2002"),
    "server_stop_failed": (500, "EVS.2002"),
    "nic_failed": (500, "EVS.2002"),
}

_ECS: dict[str, tuple[int, str]] = {
    "server_not_found": (404, "Ecs.0114"),
    "server_state": (400, "Ecs.0100"),
    "server_busy": (400, "Ecs.0100"),
    "server_quota": (400, "Ecs.0001"),
    "cpu_quota": (400, "Ecs.0001"),
    "memory_quota": (400, "Ecs.0001"),
    "flavor_unknown": (400, "Ecs.0029"),
    "flavor_same": (400, "Ecs.0810"),
    "image_not_found": (400, "Ecs.0031"),
    "image_not_active": (400, "Ecs.0032"),
    "image_too_large": (400, "Ecs.0007"),
    "zone_unknown": (400, "Ecs.0005"),
    "count_range": (400, "Ecs.0913"),
    "nic_primary": (403, "Ecs.0003"),
    "nic_not_found": (400, "Ecs.0085"),
    "nic_limit": (400, "Ecs.0050"),
    "nic_failed": (400, "Ecs.0201"),
    "device_limit": (400, "Ecs.0104"),
    "not_attached": (400, "Ecs.0111"),
    "attach_failed": (400, "Ecs.0205"),
    "detach_failed": (400, MISSION_FAILS),
    "volume_state": (400, "Ecs.0103"),
    "volume_not_found": (400, "Ecs.0103"),
    "volume_busy": (400, "Ecs.0103"),
    "volume_attached": (400, "Ecs.0057"),
    "volume_size": (400, "Ecs.0005"),
    "volume_shrink": (400, "Ecs.0005"),
    "volume_type_unknown": (400, "Ecs.0043"),
    "volume_type_same": (400, "Ecs.0005"),
    "volume_error": (400, "Ecs.0203"),
    "volume_extend_failed": (400, MISSION_FAILS),
    "volume_delete_failed": (400, "Ecs.0405"),
    "volume_quota": (400, "Ecs.0021"),
    "capacity_quota": (400, "Ecs.0021"),
    "qemu_missing": (500, "Ecs.0002"),  # the vendor's table has 400, but the request is not to blame
    "no_capacity": (400, "Ecs.0319"),
    "disk_full": (400, "Ecs.0044"),
    "server_create_failed": (400, "Ecs.0219"),
    "server_start_failed": (400, "Ecs.0226"),
    "server_stop_failed": (400, MISSION_FAILS),
    "sub_jobs_failed": (400, SUB_JOB_FAILS),
}

REFUSALS: dict[Service, dict[str, tuple[int, str]]] = {Service.EVS: _EVS, Service.ECS: _ECS}

# Where the vendor's code says which operation was refused.  1048, 1064, 1065 and 1066 all forbid an extend by state.
BY_KIND: dict[tuple[str, str], tuple[int, str]] = {
    ("volume_attached", "extendVolume"): (400, "EVS.1048"),
    ("volume_busy", "extendVolume"): (400, "EVS.1048"),
    ("volume_state", "extendVolume"): (400, "EVS.1048"),
    ("volume_attached", "batchExtendVolume"): (400, "EVS.1048"),
    ("volume_busy", "batchExtendVolume"): (400, "EVS.1048"),
    ("volume_state", "batchExtendVolume"): (400, "EVS.1048"),
    ("volume_attached", "retypeVolume"): (400, "EVS.2087"),
    ("volume_busy", "retypeVolume"): (400, "EVS.2087"),
    ("volume_state", "retypeVolume"): (400, "EVS.2087"),
    ("server_start_failed", "rebootServer"): (400, "Ecs.0227"),
    ("server_start_failed", "rebootSingleServer"): (400, "Ecs.0227"),
    ("server_stop_failed", "rebootServer"): (400, "Ecs.0227"),
    ("server_stop_failed", "rebootSingleServer"): (400, "Ecs.0227"),
    ("server_stop_failed", "deleteServer"): (400, "Ecs.0501"),
    ("server_stop_failed", "deleteSingleServer"): (400, "Ecs.0501"),
    ("server_start_failed", "resizeServer"): (400, "Ecs.0207"),
    ("nic_failed", "deleteNic"): (400, "Ecs.0507"),
    ("nic_failed", "deleteSingleNic"): (400, "Ecs.0507"),
}

JOB_CODES: dict[Service, dict[str, str]] = {
    service: {reason: code for reason, (_, code) in table.items()} for service, table in REFUSALS.items()
}
"""The failure codes of jobs: the same words, and in both services the same codes as at submit."""

# What failed, where the failure has no code of the table: a user's kind, a timeout, a crash.
JOB_CODES_BY_KIND: dict[str, str] = {
    "createVolume": "EVS.2024",
    "extendVolume": "EVS.2026",
    "deleteVolume": "EVS.2020",
    "deleteSingleVolume": "EVS.2020",
    "createServer": "Ecs.0219",
    "createSingleServer": "Ecs.0219",
    "deleteServer": "Ecs.0501",
    "deleteSingleServer": "Ecs.0501",
    "startServer": "Ecs.0226",
    "startSingleServer": "Ecs.0226",
    "rebootServer": "Ecs.0227",
    "rebootSingleServer": "Ecs.0227",
    "resizeServer": "Ecs.0207",
    "batchResizeServer": "Ecs.0207",
    "addNic": "Ecs.0201",
    "addSingleNic": "Ecs.0201",
    "deleteNic": "Ecs.0507",
    "deleteSingleNic": "Ecs.0507",
}
JOB_CODE_ELSE: dict[Service, str] = {Service.EVS: "EVS.2002", Service.ECS: MISSION_FAILS}
VENDOR_CODE = re.compile(r"[A-Z][A-Za-z]{1,9}\.\d{4}")


def job_code(service: Service, kind: str, failure_code: str) -> str:
    """The `error_code` of a failed job.  A vendor's code, as tracked and rehearsed jobs have, stays what it is."""
    if VENDOR_CODE.fullmatch(failure_code):
        return failure_code
    found = BY_KIND[failure_code, kind][1] if (failure_code, kind) in BY_KIND else JOB_CODES[service].get(failure_code)
    return found or JOB_CODES_BY_KIND.get(kind) or JOB_CODE_ELSE[service]


# What only the vendor's own clouds answer, and codes that mean there what ours say more exactly.
_ELSEWHERE = {
    "Ecs.0009": "flavor_same",
    "Ecs.0042": "device_limit",
    "Ecs.0044": "no_capacity",
    "Ecs.0101": "volume_state",
    "Ecs.0202": "volume_error",
    "Ecs.0204": "server_create_failed",
    "Ecs.0217": "nic_failed",
    "Ecs.0614": "server_not_found",
    "EVS.1064": "volume_state",
    "EVS.1065": "volume_state",
    "EVS.2053": "zone_unknown",
    "EVS.2070": "volume_type_unknown",
    "EVS.2071": "no_capacity",
    "EVS.5413": "volume_quota",
}
# These say that something is wrong, not what.
VAGUE = frozenset(
    {
        "Ecs.0002",
        "Ecs.0003",
        "Ecs.0005",
        "EVS.1052",
        "EVS.2002",
        "EVS.5400",
        "EVS.5503",
        "Ecs.0207",
        "Ecs.0227",
        "Ecs.0501",
        MISSION_FAILS,
    }
)


def _reasons() -> dict[str, str]:
    found: dict[str, str] = {}
    for table in (_EVS, _ECS):
        for reason, (_, code) in table.items():
            found.setdefault(code, reason)
    for (reason, _), (_, code) in BY_KIND.items():
        found.setdefault(code, reason)
    found["EVS.1048"] = "volume_state"
    return {code: reason for code, reason in {**found, **_ELSEWHERE}.items() if code not in VAGUE}


_REASONS = _reasons()


def reason_of(code: str | None) -> str | None:
    """Our word for a vendor's code, None where it has none."""
    return _REASONS.get(code or "")


# --- the server's side ----------------------------------------------------------------------------------------------

_encode = msgspec.json.Encoder().encode

GENERAL: tuple[tuple[type[MilepostError], dict[Service, tuple[int, str]]], ...] = (
    # Errors without a reason; the first match counts.
    (Unauthenticated, {Service.EVS: (401, TOKEN_REFUSED), Service.ECS: (401, TOKEN_REFUSED)}),
    (Forbidden, {Service.EVS: (403, "EVS.0003"), Service.ECS: (403, "Ecs.0003")}),
    (NotFound, {Service.EVS: (404, "EVS.5404"), Service.ECS: (404, "Ecs.0114")}),
    (Expired, {Service.EVS: (404, "EVS.5404"), Service.ECS: (404, "Ecs.0114")}),
    (LimitExceeded, {Service.EVS: (413, "EVS.5413"), Service.ECS: (400, "Ecs.0001")}),
    (InvalidInput, {Service.EVS: (400, "EVS.5400"), Service.ECS: (400, "Ecs.0005")}),
    (Conflict, {Service.EVS: (400, "EVS.5400"), Service.ECS: (400, "Ecs.0100")}),
    (CallerError, {Service.EVS: (400, "EVS.5400"), Service.ECS: (400, "Ecs.0000")}),
    (Throttled, {Service.EVS: (429, FLOW_CONTROL), Service.ECS: (429, FLOW_CONTROL)}),
    (Unavailable, {Service.EVS: (503, "EVS.5503"), Service.ECS: (503, INTERNAL)}),
)


def refusal_of(error: MilepostError, service: Service, *, kind: str | None = None) -> Refusal:
    """Our error in the service's words: by its reason where it has one, else by its class; what is left is 500.

    Rules: only a message that is meant for the caller is shown; that of a broken server is not.
    """
    reason = error.fields.get("reason")
    if isinstance(reason, str) and reason in REFUSALS[service]:
        status, code = BY_KIND.get((reason, kind or ""), REFUSALS[service][reason])
        return Refusal(status, code, error.message)
    for cls, codes in GENERAL:
        if isinstance(error, cls):
            status, code = codes[service]
            return Refusal(status, code, error.message)
    return Refusal(500, INTERNAL, "Internal system error.")


def job_unknown(service: Service) -> Refusal:
    """A job id that is none of the caller's: 400, as both services have it."""
    return Refusal(400, JOB_UNKNOWN, "query job fail." if service is Service.EVS else "Failed to query system tasks.")


def project_mismatch() -> Refusal:
    """The token is of another project than the path."""
    return Refusal(400, PROJECT_MISMATCH, "The project ID in the URL is different from that in the token.")


def token_invalid() -> Refusal:
    """No token, or one that is not valid any more: 401, because clients renew theirs at that; EVS's table has 400."""
    return Refusal(401, TOKEN_REFUSED, "Invalid token.")


def signature_invalid(message: str) -> Refusal:
    """What the gateway answers to a signature that it does not accept."""
    return Refusal(401, SIGNATURE_INVALID, f"Incorrect IAM authentication information: {message}", form=Form.GATEWAY)


def route_unknown() -> Refusal:
    """A path that no service has."""
    return Refusal(404, ROUTE_UNKNOWN, "The API does not exist or has not been published in the environment.", form=Form.GATEWAY)


def encode_error(refusal: Refusal, request_id: str) -> bytes:
    """The body of a refusal.  `request_id` is in the gateway's form only; it is in a header everywhere."""
    if refusal.form is Form.GATEWAY:
        return _encode({"error_msg": refusal.message, "error_code": refusal.code, "request_id": request_id})
    if refusal.form is Form.NOVA:
        return _encode({"itemNotFound": {"message": refusal.message, "code": refusal.status}})
    return _encode({"error": {"message": refusal.message, "code": refusal.code}})


# --- the client's side ----------------------------------------------------------------------------------------------


class CloudError(msgspec.Struct, frozen=True, kw_only=True):
    """What an error body says."""

    code: str | None = None  # the vendor's
    message: str = ""
    request_id: str | None = None


def read_error(body: bytes) -> CloudError | None:
    """Any of the error bodies; None when it is none of them."""
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return error_in(found) if isinstance(found, dict) else None


def error_in(found: dict[str, Any]) -> CloudError | None:
    """The error inside an object: nested, flat (`code`, `message`), of the gateway, or under a Nova-like word."""
    request_id = _text(found.get("request_id"))
    for inner in (found.get("error"), found.get("itemNotFound"), found, *found.values()):
        if not isinstance(inner, dict):
            continue
        code = _text(_first(inner, "error_code", "code", "errorCode"))
        message = _text(_first(inner, "error_msg", "message", "error_message", "errorMsg"))
        if code or message:
            return CloudError(code=code, message=message or "", request_id=request_id or _text(inner.get("request_id")))
    return None


def _first(found: dict[str, Any], *names: str) -> Any:
    return next((found[name] for name in names if found.get(name) not in (None, "")), None)


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None
