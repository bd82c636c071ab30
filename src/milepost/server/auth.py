"""Who is asking: from a request's headers to an `Identity`.

Rules
1. With auth `required` the token is read from the store on each request, so a revoked one fails at once.
2. With auth `none` every token, password and signature is accepted, the role is admin, and the project is the path's, else
   the `X-Project-Id` header's, else the one a token of this mode names, else `default`.
3. An admin may act in another project by `X-Project-Id`; anybody else may name their own only.
4. `identify` also takes one request from the project's rate: a caller over it is Throttled before any work is done.
5. A request without a token may be signed with an access key instead; see `signatures`.
6. An error says whose fault it is in `reason`: token, signature, or project.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

import msgspec

from milepost.errors import Forbidden, InvalidInput, Unauthenticated
from milepost.job import ProjectId
from milepost.server.signatures import identify_again, identify_signed
from milepost.settings import Settings
from milepost.wire.signing.huawei import is_signed

DEFAULT_PROJECT = ProjectId("default")
PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,63}").fullmatch
OPEN_PREFIX = "open-"  # tokens of auth none: they name their project and prove nothing


class Identity(msgspec.Struct, frozen=True):
    """A caller in one project.  `roles` are those of that project."""

    project: ProjectId
    user_id: str
    user_name: str
    roles: frozenset[str]

    @property
    def is_admin(self) -> bool:
        return "admin" in self.roles


ADMIN = frozenset({"admin", "member"})
ANYONE = Identity(DEFAULT_PROJECT, "anyone", "anyone", ADMIN)


async def identify(scope: MutableMapping[str, Any], *, project: str | None = None, body: bytes | None = None) -> Identity:
    """The caller of this request.

    `project` is the one that the path names.  `body` may be given where it was read already; a signature is checked against it.
    Errors: Unauthenticated, Forbidden (another project's), InvalidInput (no project id), LimitExceeded (the body), Throttled.
    """
    state = scope["app"].state
    headers = _headers(scope)
    if state.settings.auth != "none" and _is_by_signature(headers):
        asked = project or text(headers.get(b"x-project-id"))
        return await identify_signed(scope, headers, project=asked, body=body)  # which takes from the rate in its own order
    identity = await authenticate(scope, project=project)
    state.rates.take(identity.project)
    return identity


async def authenticate(scope: Mapping[str, Any], *, project: str | None = None) -> Identity:
    """The caller of a request that was identified before, as of now; without counting as a request."""
    state = scope["app"].state
    headers = _headers(scope)
    asked = project or text(headers.get(b"x-project-id"))
    if state.settings.auth == "none":
        return open_identity(asked, read_token(headers))
    if "signed_by" in scope:
        return await identify_again(scope, state=state)
    return await _required(state.identities, headers, asked, from_path=project is not None)


def _headers(scope: Mapping[str, Any]) -> dict[bytes, bytes]:
    return scope.get("headers_by_name") or dict(scope["headers"])


def _is_by_signature(headers: Mapping[bytes, bytes]) -> bool:
    return is_signed(headers.get(b"authorization")) and read_token(headers) is None


def open_identity(asked: str | None, token: str | None) -> Identity:
    """The caller of a server without auth."""
    if asked is None:
        if token is None or not token.startswith(OPEN_PREFIX):
            return ANYONE
        asked = project_of_open_token(token)
    if asked == DEFAULT_PROJECT:
        return ANYONE
    return Identity(check_project(asked), "anyone", "anyone", ADMIN)


async def _required(identities: Any, headers: dict[bytes, bytes], asked: str | None, *, from_path: bool) -> Identity:
    token = read_token(headers)
    if token is None:
        raise Unauthenticated(
            "this server needs a token: send `Authorization: Bearer …` or `X-Auth-Token`",
            hint="milepost key create",
            reason="token",
        )
    identity: Identity | None = await identities.identify(token)
    if identity is None:
        raise Unauthenticated(
            "the token has no project; ask for one with a scope", hint="milepost key create --project NAME", reason="token"
        )
    if asked is None or asked == identity.project:
        return identity
    if not identity.is_admin:
        if from_path:
            raise Forbidden(f"project {asked} is not the token's", reason="project")
        raise Forbidden("only an admin may name another project in X-Project-Id", reason="project")
    return msgspec.structs.replace(identity, project=await identities.project_id(asked))


def read_token(headers: Mapping[bytes, bytes]) -> str | None:
    """The token of `X-Auth-Token` or `Authorization: Bearer`; None when there is none."""
    token = headers.get(b"x-auth-token")
    if token is None:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return None
    return token.strip().decode("latin-1") or None


def text(value: bytes | None) -> str | None:
    """A header's value, None when it is missing or empty."""
    return value.decode("latin-1") if value else None


def check_project(name: str) -> ProjectId:
    """Errors: InvalidInput when it cannot be a project id."""
    if not PROJECT(name):
        raise InvalidInput("a project id is 1 to 64 letters, digits and . _ @ : -", path="X-Project-Id")
    return ProjectId(name)


def digest_of(token: str) -> str:
    """What the store keeps of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def open_token(project: str) -> str:
    """A token of auth none that names its project."""
    return OPEN_PREFIX + base64.urlsafe_b64encode(project.encode()).decode().rstrip("=")


def project_of_open_token(token: str) -> str:
    """The project that `open_token` named; `default` when it names none."""
    body = token.removeprefix(OPEN_PREFIX)
    try:
        return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).decode() or DEFAULT_PROJECT
    except ValueError:
        return DEFAULT_PROJECT


def is_loopback(host: str) -> bool:
    """Whether this address or name is the machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(settings: Settings) -> None:
    """Errors: InvalidInput when a server without auth would listen beyond loopback."""
    if settings.auth == "none" and not is_loopback(settings.host):
        raise InvalidInput(
            f"auth is none and host is {settings.host}: without auth the server listens on loopback only",
            path="$.host",
            hint="use --auth required, or --host 127.0.0.1",
        )
