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

    def is_in_domain(self, *accounts: str | None) -> bool:
        """Whether the domain, where one is named, is the one there is: by its id, by its name in any case, or by one of these
        names of the account, which is what Huawei Cloud calls a domain."""
        domain = DOMAIN_ID if self.domain is None else self.domain.key or DOMAIN_ID
        return domain.lower() == DOMAIN_ID or domain in accounts


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


TENANT = "$(tenant_id)s"  # where an endpoint's URL has the project

# Type, name, and what follows the server's own URL.  The image endpoint is unversioned: clients discover `/v2` behind it.
# Huawei's types and their versions: huaweicloud/huaweicloud-sdk-go openstack/endpoint_location.go and openstack/client.go,
# chnsz/golangsdk openstack/client.go.
SERVICES = (
    ("image", "glance", ""),
    ("identity", "keystone", "/identity"),
    ("iam", "iam", "/v3"),
    ("ecs", "ecs", f"/v1/{TENANT}"),
    ("ecsv1.1", "ecsv1.1", f"/v1.1/{TENANT}"),
    ("ecsv2", "ecsv2", f"/v2/{TENANT}"),
    ("evs", "evs", f"/v2/{TENANT}"),
    ("volume", "cinder", f"/v1/{TENANT}"),
    ("volumev2", "cinderv2", f"/v2/{TENANT}"),
    ("volumev3", "cinderv3", f"/v3/{TENANT}"),
)


def catalog(base: str, region: str, project: str | None = None) -> list[Service]:
    """The services of a server at this URL for one project; those whose URL names it only when there is one."""
    return [
        _service(type, name, (base + path).replace(TENANT, project or ""), region)
        for type, name, path in SERVICES
        if project is not None or TENANT not in path
    ]


def service_entries(url: str) -> list[dict[str, Any]]:
    """The services as `GET /v3/services` lists them; `url` is that of `/v3`."""
    return [
        {
            "id": id,
            "type": type,
            "name": name,
            "description": "",
            "enabled": True,
            "links": {"self": f"{url}/services/{id}"},
        }
        for type, name, _ in SERVICES
        for id in (stable_id("service", type),)
    ]


def endpoint_entries(url: str, base: str, region: str) -> list[dict[str, Any]]:
    """Their endpoints as `GET /v3/endpoints` lists them: `$(tenant_id)s` stands for the project, and clients replace it."""
    return [
        {
            "id": endpoint.id,
            "service_id": service.id,
            "interface": endpoint.interface,
            "region": endpoint.region,
            "region_id": endpoint.region_id,
            "url": endpoint.url,
            "enabled": True,
            "links": {"self": f"{url}/endpoints/{endpoint.id}"},
        }
        for service in catalog(base, region, TENANT)
        for endpoint in service.endpoints
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


def domain_entry(url: str, account: str | None = None) -> dict[str, Any]:
    return {
        "id": DOMAIN_ID,
        "name": account or DOMAIN_NAME,
        "description": "The only domain",
        "enabled": True,
        "tags": [],
        "options": {},
        "links": {"self": f"{url}/domains/{DOMAIN_ID}"},
    }


def listing_bytes(name: str, entries: list[Any], url: str, *, next: str | None = None, previous: str | None = None) -> bytes:
    """A list, or one page of it with the URLs of its neighbours."""
    return encode({name: entries, "links": {"next": next, "self": url, "previous": previous}})
