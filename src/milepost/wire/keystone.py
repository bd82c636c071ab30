"""Keystone v3 as far as clients need it to get in: tokens, the catalog, discovery, and who has which project.

Source: openstack/keystone api-ref/source/v3 (bodies), keystone/server/flask/common.py (errors); openstack/keystoneauth
keystoneauth1/identity/v3/base.py, password.py, token.py, application_credential.py (what clients send) and
keystoneauth1/discover.py (which documents they read); gophercloud/gophercloud openstack/utils/choose_version.go.
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from milepost.wire import rfc3339

VERSION = "v3.14"
UPDATED = "2020-04-07T00:00:00Z"  # when Keystone's own v3.14 was published
DOMAIN_ID, DOMAIN_NAME = "default", "Default"
NAMESPACE = uuid.UUID("6f9a3c52-1d0e-4b58-8a65-6d696c65706f")
UNAUTHORIZED = "The request you have made requires authentication."
TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Request Entity Too Large",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


# --- what clients send -----------------------------------------------------------------------------------------------


class Named(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something by its id, or by its name within a domain."""

    id: str | None = None
    name: str | None = None
    domain: Named | None = None

    @property
    def key(self) -> str | None:
        return self.id or self.name

    @property
    def is_known_domain(self) -> bool:
        """Whether the domain, where one is named, is the one there is: by its id, or by its name in any case."""
        return self.domain is None or (self.domain.key or DOMAIN_ID).lower() == DOMAIN_ID


class PasswordUser(msgspec.Struct, frozen=True, omit_defaults=True):
    password: str
    id: str | None = None
    name: str | None = None
    domain: Named | None = None


class PasswordMethod(msgspec.Struct, frozen=True):
    user: PasswordUser


class TokenMethod(msgspec.Struct, frozen=True):
    id: str


class CredentialMethod(msgspec.Struct, frozen=True, omit_defaults=True):
    """An application credential: here an API key, whose text is the secret."""

    secret: str
    id: str | None = None
    name: str | None = None
    user: Named | None = None


class IdentityPart(msgspec.Struct, frozen=True, omit_defaults=True):
    methods: list[str]
    password: PasswordMethod | None = None
    token: TokenMethod | None = None
    application_credential: CredentialMethod | None = None


class SystemScope(msgspec.Struct, frozen=True, omit_defaults=True):
    all: bool = False


class Scope(msgspec.Struct, frozen=True, omit_defaults=True):
    project: Named | None = None
    domain: Named | None = None
    system: SystemScope | None = None


class Auth(msgspec.Struct, frozen=True, omit_defaults=True):
    identity: IdentityPart
    scope: Scope | str | None = None  # the only string is "unscoped"


class AuthRequest(msgspec.Struct, frozen=True):
    """The body of `POST /v3/auth/tokens`."""

    auth: Auth


# --- what they get ---------------------------------------------------------------------------------------------------


class Domain(msgspec.Struct, frozen=True):
    id: str = DOMAIN_ID
    name: str = DOMAIN_NAME


class Member(msgspec.Struct, frozen=True):
    """A user or a project in a token."""

    id: str
    name: str
    domain: Domain = Domain()


class Role(msgspec.Struct, frozen=True):
    id: str
    name: str


class Endpoint(msgspec.Struct, frozen=True):
    id: str
    interface: str
    region: str
    region_id: str
    url: str


class Service(msgspec.Struct, frozen=True):
    id: str
    type: str
    name: str
    endpoints: list[Endpoint]


class Token(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a token's text stands for; the text itself is in the `X-Subject-Token` header."""

    methods: list[str]
    user: Member
    audit_ids: list[str]
    expires_at: str
    issued_at: str
    project: Member | None = None
    domain: Domain | None = None
    is_domain: bool | None = None  # of a project-scoped token
    roles: list[Role] | None = None
    catalog: list[Service] | None = None


class TokenDocument(msgspec.Struct):
    token: Token


class ErrorBody(msgspec.Struct):
    code: int
    message: str
    title: str


class ErrorDocument(msgspec.Struct):
    error: ErrorBody


encode = msgspec.json.Encoder().encode
decode_auth = msgspec.json.Decoder(AuthRequest).decode
decode_token = msgspec.json.Decoder(TokenDocument).decode
decode_error = msgspec.json.Decoder(ErrorDocument).decode


def stable_id(*parts: str) -> str:
    """32 hex digits that are always the same for the same thing: roles, services and endpoints have no row of their own."""
    return uuid.uuid5(NAMESPACE, "/".join(parts)).hex


def roles(names: tuple[str, ...] | frozenset[str]) -> list[Role]:
    return [Role(stable_id("role", name), name) for name in sorted(names)]


def catalog(base: str, region: str) -> list[Service]:
    """The services of a server at this URL.  The image endpoint is unversioned: clients discover `/v2` behind it."""
    return [
        _service("image", "glance", base, region),
        _service("identity", "keystone", f"{base}/identity", region),
    ]


def _service(type: str, name: str, url: str, region: str) -> Service:
    endpoints = [
        Endpoint(stable_id("endpoint", type, interface, region), interface, region, region, url)
        for interface in ("public", "internal", "admin")
    ]
    return Service(stable_id("service", type), type, name, endpoints)


def token_bytes(
    *,
    user: Member,
    methods: list[str],
    audit_ids: list[str],
    issued_us: int,
    expires_us: int,
    project: Member | None,
    domain: Domain | None = None,
    role_names: tuple[str, ...] | frozenset[str] = (),
    services: list[Service] | None = None,
) -> bytes:
    """The body that describes a token."""
    issued_at, expires_at = rfc3339(issued_us), rfc3339(expires_us)
    assert issued_at is not None
    assert expires_at is not None
    scoped = project is not None or domain is not None
    token = Token(
        methods=methods,
        user=user,
        audit_ids=audit_ids,
        expires_at=expires_at,
        issued_at=issued_at,
        project=project,
        domain=domain,
        is_domain=False if project is not None else None,
        roles=roles(role_names) if scoped else None,
        catalog=services if scoped else None,
    )
    return encode(TokenDocument(token))


def error_bytes(status: int, message: str) -> bytes:
    """An error as Keystone writes it."""
    return encode(ErrorDocument(ErrorBody(status, message, TITLES.get(status, "Error"))))


def version_entry(url: str) -> dict[str, Any]:
    """What discovery says of v3; `url` ends with a slash, as Keystone's does."""
    return {
        "id": VERSION,
        "status": "stable",
        "updated": UPDATED,
        "links": [{"rel": "self", "href": url}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    }


def versions_bytes(url: str) -> bytes:
    """`GET /identity`: the versions there are; answered with 300."""
    return encode({"versions": {"values": [version_entry(url)]}})


def version_bytes(url: str) -> bytes:
    """`GET /v3`."""
    return encode({"version": version_entry(url)})


def project_entry(project: Member, *, enabled: bool, url: str) -> dict[str, Any]:
    return {
        "id": project.id,
        "name": project.name,
        "domain_id": project.domain.id,
        "description": "",
        "enabled": enabled,
        "parent_id": project.domain.id,
        "is_domain": False,
        "tags": [],
        "options": {},
        "links": {"self": f"{url}/projects/{project.id}"},
    }


def user_entry(user: Member, *, enabled: bool, url: str) -> dict[str, Any]:
    return {
        "id": user.id,
        "name": user.name,
        "domain_id": user.domain.id,
        "enabled": enabled,
        "password_expires_at": None,
        "options": {},
        "links": {"self": f"{url}/users/{user.id}"},
    }


def domain_entry(url: str) -> dict[str, Any]:
    return {
        "id": DOMAIN_ID,
        "name": DOMAIN_NAME,
        "description": "The only domain",
        "enabled": True,
        "tags": [],
        "options": {},
        "links": {"self": f"{url}/domains/{DOMAIN_ID}"},
    }


def listing_bytes(name: str, entries: list[Any], url: str) -> bytes:
    """A list as Keystone pages it: here always one page."""
    return encode({name: entries, "links": {"next": None, "self": url, "previous": None}})
