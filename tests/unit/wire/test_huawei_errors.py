"""Errors of Huawei's services: every reason has a code, every code that says something has a reason, bodies both ways."""

from __future__ import annotations

import itertools

import pytest

from milepost import errors
from milepost.wire.huawei.errors import (
    BY_KIND,
    JOB_CODES,
    REASONS,
    REFUSALS,
    VAGUE,
    CloudError,
    Form,
    Refusal,
    Service,
    encode_error,
    job_code,
    job_unknown,
    project_mismatch,
    read_error,
    reason_of,
    refusal_of,
    route_unknown,
    signature_invalid,
    token_invalid,
)


@pytest.mark.parametrize("service", Service)
def test_every_reason_has_a_status_and_a_code(service: Service) -> None:
    assert set(REFUSALS[service]) == set(JOB_CODES[service]) == set(REASONS)
    assert {status for status, _ in REFUSALS[service].values()} <= {400, 403, 404, 413, 429, 500, 503}


def test_what_a_kind_says_more_exactly_is_said_of_known_reasons() -> None:
    assert {reason for reason, _ in BY_KIND} <= set(REASONS)


def test_every_code_has_a_reason_or_is_known_to_be_vague() -> None:
    codes = {code for table in REFUSALS.values() for _, code in table.values()} | {code for _, code in BY_KIND.values()}
    assert {code for code in codes if reason_of(code) is None} == {code for code in VAGUE if code in codes}
    assert {reason_of(code) for code in codes} - {None} <= set(REASONS)


@pytest.mark.parametrize(
    ("reason", "kind", "service", "status", "code"),
    [
        ("volume_not_found", None, Service.EVS, 404, "EVS.5404"),
        ("volume_shrink", "extendVolume", Service.EVS, 400, "EVS.1015"),
        ("volume_attached", "deleteVolume", Service.EVS, 400, "EVS.1046"),
        ("volume_attached", "extendVolume", Service.EVS, 400, "EVS.1048"),
        ("volume_quota", "createVolume", Service.EVS, 400, "EVS.1034"),
        ("capacity_quota", "createVolume", Service.EVS, 400, "EVS.1042"),
        ("server_not_found", None, Service.ECS, 404, "Ecs.0114"),
        ("nic_primary", "deleteNic", Service.ECS, 403, "Ecs.0003"),
        ("server_state", "stopServer", Service.ECS, 400, "Ecs.0100"),
        ("image_not_found", "createServer", Service.ECS, 400, "Ecs.0031"),
    ],
)
def test_a_refused_submit_has_the_vendors_code(reason: str, kind: str | None, service: Service, status: int, code: str) -> None:
    refusal = refusal_of(errors.Conflict("no", reason=reason), service, kind=kind)
    assert (refusal.status, refusal.code, refusal.message, refusal.form) == (status, code, "no", Form.NESTED)


@pytest.mark.parametrize("service", Service)
def test_every_error_of_ours_is_refused_in_the_vendors_manner(service: Service) -> None:
    seen = {}
    for error in (
        errors.InvalidInput("no"),
        errors.UnknownKind("no"),
        errors.NotFound("no"),
        errors.Expired("no"),
        errors.Conflict("no"),
        errors.IdempotencyConflict("no"),
        errors.Unauthenticated("no"),
        errors.Forbidden("no"),
        errors.LimitExceeded("no", limit="x", allowed=1),
        errors.Throttled("no", retry_after_s=1),
        errors.StoreUnavailable("no"),
        errors.CallerError("no"),
    ):
        seen[type(error).__name__] = refusal_of(error, service)
    assert {name: refusal.status for name, refusal in seen.items()} | {"LimitExceeded": 0} == {
        "InvalidInput": 400,
        "UnknownKind": 400,
        "NotFound": 404,
        "Expired": 404,
        "Conflict": 400,
        "IdempotencyConflict": 400,
        "Unauthenticated": 401,
        "Forbidden": 403,
        "LimitExceeded": 0,
        "Throttled": 429,
        "StoreUnavailable": 503,
        "CallerError": 400,
    }
    prefix = "EVS." if service is Service.EVS else "Ecs."
    assert all(refusal.code.startswith((prefix, "Common.")) for refusal in seen.values())


def test_what_is_broken_in_the_server_is_not_told() -> None:
    refusal = refusal_of(errors.ProtocolError("the disk said /secret/path"), Service.ECS)
    assert (refusal.status, refusal.code) == (500, "Common.0001")
    assert "secret" not in refusal.message


@pytest.mark.parametrize(
    ("service", "kind", "failure", "code"),
    [
        (Service.EVS, "createVolume", "volume_error", "EVS.2024"),
        (Service.EVS, "createVolume", "timeout", "EVS.2024"),
        (Service.ECS, "createServer", "Ecs.0319", "Ecs.0319"),  # as a tracked job has it from its own cloud
        (Service.EVS, "retypeVolume", "timeout", "EVS.2002"),
        (Service.ECS, "createSingleServer", "no_capacity", "Ecs.0319"),
        (Service.ECS, "rebootSingleServer", "server_start_failed", "Ecs.0227"),
        (Service.ECS, "deleteSingleNic", "nic_failed", "Ecs.0507"),
        (Service.ECS, "createServer", "sub_jobs_failed", "Common.0021"),
        (Service.ECS, "mine", "boom", "Common.0022"),
    ],
)
def test_a_failed_job_has_a_code_whatever_failed(service: Service, kind: str, failure: str, code: str) -> None:
    assert job_code(service, kind, failure) == code


REFUSED = (
    job_unknown(Service.EVS),
    job_unknown(Service.ECS),
    project_mismatch(),
    token_invalid(),
    signature_invalid("verify aksk signature fail"),
    route_unknown(),
    Refusal(404, "404", "Instance could not be found.", form=Form.NOVA),
)


@pytest.mark.parametrize("refusal", REFUSED, ids=lambda refusal: refusal.code)
def test_every_body_is_read_as_it_was_written(refusal: Refusal) -> None:
    request_id = "3f0e" if refusal.form is Form.GATEWAY else None
    assert read_error(encode_error(refusal, "3f0e")) == CloudError(
        code=refusal.code, message=refusal.message, request_id=request_id
    )


def test_the_golden_bodies() -> None:
    assert encode_error(job_unknown(Service.EVS), "r") == b'{"error":{"message":"query job fail.","code":"Common.0011"}}'
    assert encode_error(signature_invalid("x"), "3f0e") == (
        b'{"error_msg":"Incorrect IAM authentication information: x","error_code":"APIGW.0301","request_id":"3f0e"}'
    )
    assert encode_error(REFUSED[-1], "r") == b'{"itemNotFound":{"message":"Instance could not be found.","code":404}}'


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"{}", b'{"a":1}', b"<html>", b"\xff"])
def test_what_is_no_error_body_is_none(body: bytes) -> None:
    assert read_error(body) is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"code":"Ecs.0005","message":"no"}',
        b'{"error_code":"Ecs.0005","error_msg":"no"}',
        b'{"errorCode":"Ecs.0005","errorMsg":"no"}',
        b'{"error":{"error_code":"Ecs.0005","error_msg":"no"}}',
        b'{"badRequest":{"code":"Ecs.0005","message":"no"}}',
    ],
)
def test_the_flat_and_the_odd_forms_are_read(body: bytes) -> None:
    assert read_error(body) == CloudError(code="Ecs.0005", message="no")


def test_reasons_are_named_once() -> None:
    assert [reason for reason, group in itertools.groupby(sorted(REASONS)) if len(list(group)) > 1] == []
