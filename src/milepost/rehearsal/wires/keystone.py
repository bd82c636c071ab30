"""An identity service that lets everybody in: clients that log in before they ask get a token and a catalog."""

from __future__ import annotations

from typing import Any

import msgspec

from milepost.rehearsal.http import Answer, Ask, Route, route
from milepost.rehearsal.stage import Stage
from milepost.wire import keystone as wire

TOKEN = "rehearsal"  # noqa: S105 - no secret: any is accepted
TOKEN_S = 24 * 3600


def routes() -> list[Route]:
    found = [route("keystone", "GET", "/identity/?", "discovery", versions)]
    for prefix in ("", "/identity"):
        found += [
            route("keystone", "GET", f"{prefix}/v3/?", "discovery", version),
            route("keystone", "POST", f"{prefix}/v3/auth/tokens", "login", issue),
        ]
    return found


def refuse(_: Ask, status: int, message: str, headers: dict[str, str]) -> Answer:
    """An error in Keystone's manner."""
    return Answer(status=status, body=wire.error_bytes(status, message), headers=headers)


async def versions(_: Stage, ask: Ask) -> Answer:
    return Answer(status=300, body=wire.versions_bytes(f"{ask.base_url}/identity/v3/"))


async def version(_: Stage, ask: Ask) -> Answer:
    return Answer(body=wire.version_bytes(f"{ask.base_url}{ask.path.rstrip('/')}/"))


async def issue(stage: Stage, ask: Ask) -> Answer:
    """A token for whoever asks, of the project that was asked for."""
    try:
        auth: Any = wire.decode_auth(ask.body).auth
    except msgspec.DecodeError as error:
        return refuse(ask, 400, str(error), {})
    scope = auth.scope if isinstance(auth.scope, wire.Scope) else None
    named = scope.project.key if scope is not None and scope.project is not None else None
    project = named or stage.whole.project
    now_us = stage.time.shown_us(stage.time.elapsed_s())
    body = wire.token_bytes(
        user=wire.Member("anyone", "anyone"),
        methods=list(auth.identity.methods),
        audit_ids=["rehearsal"],
        issued_us=now_us,
        expires_us=now_us + TOKEN_S * 1_000_000,
        project=wire.Member(project, project),
        role_names=("admin", "member"),
        services=wire.catalog(ask.base_url, "RegionOne", project),
    )
    return Answer(status=201, body=body, headers={"x-subject-token": TOKEN})
