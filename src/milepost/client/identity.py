"""Who asks, in an OpenStack cloud: credentials, where they are found, and the exchange of credentials for a token.

Credentials come from an entry of `clouds.yaml` or from the `OS_*` environment, as openstacksdk reads them; passwords, tokens and
application credentials are known.  Source: openstack/openstacksdk openstack/config/loader.py (files and their order),
openstack/keystoneauth keystoneauth1/identity/v3 (the bodies).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from milepost.errors import InvalidInput, ProtocolError, Unauthenticated
from milepost.wire import Request, Response, from_rfc3339, keystone

JSON = {"Content-Type": "application/json", "Accept": "application/json"}
INTERFACES = ("public", "internal", "admin")


class Credentials(msgspec.Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """What an identity service takes.  Names need their domain; ids do not.  Its repr shows no secret."""

    auth_url: str
    username: str | None = None
    user_id: str | None = None
    user_domain: str = "Default"  # name or id
    password: str | None = None
    token: str | None = None
    application_credential_id: str | None = None
    application_credential_name: str | None = None
    application_credential_secret: str | None = None
    project_name: str | None = None
    project_id: str | None = None
    project_domain: str = "Default"  # name or id
    region: str | None = None
    interface: str = "public"

    def __repr__(self) -> str:
        who = self.username or self.user_id or self.application_credential_id or self.application_credential_name or "token"
        return f"<Credentials of {who} at {self.auth_url}>"


class Granted(msgspec.Struct, frozen=True):
    """A token, with what its answer said.  Its repr shows no secret."""

    token: str
    project_id: str | None
    expires_us: int | None
    endpoints: dict[str, str]  # service type -> URL, of the wanted region and interface

    def __repr__(self) -> str:
        return f"<Granted for project {self.project_id}>"


def token_request(credentials: Credentials) -> Request:
    """`POST {auth_url}/v3/auth/tokens`.  Errors: InvalidInput when no method is complete."""
    identity = _method(credentials)
    project = _project(credentials)
    bound = identity.application_credential is not None  # to its project already
    scope = None if project is None or bound else keystone.Scope(project=project)
    body = keystone.encode(keystone.AuthRequest(keystone.Auth(identity, scope)))
    return Request("POST", _versioned(credentials.auth_url) + "/auth/tokens", JSON, body)


def read_token(credentials: Credentials, response: Response) -> Granted:
    """Errors: Unauthenticated, with the cloud's words; ProtocolError when the answer is none of Keystone's."""
    if response.status in (401, 403):
        raise Unauthenticated(
            f"{credentials.auth_url} refused the credentials: {_words(response) or 'no reason given'}",
            status=response.status,
            request_id=response.headers.get("x-openstack-request-id"),
        )
    token = response.headers.get("x-subject-token")
    if response.status not in (200, 201) or not token:
        raise ProtocolError(
            f"{credentials.auth_url} answered {response.status} instead of a token: {_words(response) or 'no reason given'}",
            status=response.status,
            hint="auth_url is the identity service's URL, like http://cloud.example:5000/v3",
        )
    try:
        told = msgspec.json.decode(response.body, type=_Answer).token
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the token's description cannot be read: {error}", status=response.status) from error
    expires_us = None
    try:
        expires_us = from_rfc3339(told.expires_at)
    except ValueError:
        pass
    return Granted(token, told.project.id if told.project else None, expires_us, _endpoints(told.catalog, credentials))


class _Project(msgspec.Struct):
    id: str


class _Endpoint(msgspec.Struct):
    url: str
    interface: str = "public"
    region: str | None = None
    region_id: str | None = None


class _Service(msgspec.Struct):
    type: str
    endpoints: list[_Endpoint] = []


class _Token(msgspec.Struct):
    project: _Project | None = None
    expires_at: str | None = None
    catalog: list[_Service] = []


class _Answer(msgspec.Struct):
    token: _Token


def _endpoints(catalog: list[_Service], credentials: Credentials) -> dict[str, str]:
    found: dict[str, str] = {}
    for service in catalog:
        for endpoint in service.endpoints:
            region = endpoint.region_id or endpoint.region
            if endpoint.interface == credentials.interface and credentials.region in (None, region):
                found.setdefault(service.type, endpoint.url)
    return found


def _words(response: Response) -> str:
    try:
        found = msgspec.json.decode(response.body)
        return str(found["error"]["message"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return ""


def _method(given: Credentials) -> keystone.IdentityPart:
    if given.application_credential_secret:
        secret = given.application_credential_secret
        if given.application_credential_id:
            credential = keystone.CredentialMethod(secret, id=given.application_credential_id)
        else:
            user_id, name, domain = _user(given)
            user = keystone.Named(user_id, name, domain)
            credential = keystone.CredentialMethod(secret, name=given.application_credential_name, user=user)
        return keystone.IdentityPart(["application_credential"], application_credential=credential)
    if given.password is not None:
        method = keystone.PasswordMethod(keystone.PasswordUser(given.password, *_user(given)))
        return keystone.IdentityPart(["password"], password=method)
    if given.token:
        return keystone.IdentityPart(["token"], token=keystone.TokenMethod(given.token))
    raise InvalidInput(
        "the credentials have no password, no token and no application credential",
        path="$.auth",
        hint="complete clouds.yaml or OS_*",
    )


def _user(given: Credentials) -> tuple[str | None, str | None, keystone.Named | None]:
    """Id; or name and domain."""
    if given.user_id:
        return given.user_id, None, None
    if not given.username:
        raise InvalidInput("the credentials name no user", path="$.auth.username")
    return None, given.username, _domain(given.user_domain)


def _project(given: Credentials) -> keystone.Named | None:
    if given.project_id:
        return keystone.Named(id=given.project_id)
    return keystone.Named(name=given.project_name, domain=_domain(given.project_domain)) if given.project_name else None


def _domain(name_or_id: str) -> keystone.Named:
    return keystone.Named(id=name_or_id) if name_or_id == keystone.DOMAIN_ID else keystone.Named(name=name_or_id)


def _versioned(auth_url: str) -> str:
    base = auth_url.rstrip("/")
    return base if urlsplit(base).path.endswith("/v3") else f"{base}/v3"


# --- where credentials are found --------------------------------------------------------------------------------------


def from_environment(environ: Mapping[str, str] | None = None) -> Credentials | None:
    """The credentials of `OS_AUTH_URL` and its companions; None when there is no `OS_AUTH_URL`."""
    environ = os.environ if environ is None else environ
    if not environ.get("OS_AUTH_URL"):
        return None
    auth = {name.removeprefix("OS_").lower(): value for name, value in environ.items() if name.startswith("OS_") and value}
    return _from_auth(auth, auth.get("region_name"), auth.get("interface") or auth.get("endpoint_type"))


def from_clouds_yaml(cloud: str, *, environ: Mapping[str, str] | None = None) -> tuple[Credentials, str | None]:
    """The credentials of an entry of `clouds.yaml`, and its own image endpoint, if it names one.

    Files, the first that exists: `OS_CLIENT_CONFIG_FILE`, `./clouds.yaml`, `~/.config/openstack/`, `/etc/openstack/`; a
    `secure.yaml` beside it is laid over it.
    Errors: InvalidInput when there is no file, no such cloud, or no YAML reader.
    """
    environ = os.environ if environ is None else environ
    path = _find(environ)
    clouds = _read_yaml(path).get("clouds") or {}
    if cloud not in clouds:
        raise InvalidInput(f"{path} has no cloud {cloud!r}; it has {', '.join(sorted(clouds)) or 'none'}", path="$.cloud")
    secure = path.with_name("secure.yaml")
    entry = dict(clouds[cloud] or {})
    if secure.is_file():
        entry = _over(entry, (_read_yaml(secure).get("clouds") or {}).get(cloud) or {})
    region = entry.get("region_name") or environ.get("OS_REGION_NAME")
    credentials = _from_auth(dict(entry.get("auth") or {}), region, entry.get("interface"))
    if credentials is None:
        raise InvalidInput(f"cloud {cloud!r} of {path} has no auth.auth_url", path="$.auth.auth_url")
    return credentials, entry.get("image_endpoint_override")


def _from_auth(auth: Mapping[str, Any], region: str | None, interface: str | None) -> Credentials | None:
    if not auth.get("auth_url"):
        return None
    names = ("username", "user_id", "password", "token", "project_name", "project_id")
    given = {name: str(auth[name]) for name in names if auth.get(name) is not None}
    given |= {name: str(value) for name, value in auth.items() if name.startswith("application_credential_")}
    for name in ("user_domain", "project_domain"):
        value = auth.get(f"{name}_id") or auth.get(f"{name}_name") or auth.get("domain_id") or auth.get("default_domain")
        if value:
            given[name] = str(value)
    if auth.get("tenant_name"):
        given.setdefault("project_name", str(auth["tenant_name"]))
    interface = (interface or "public").removesuffix("URL")
    if interface not in INTERFACES:
        raise InvalidInput(f"interface is {interface!r}; it is {', '.join(INTERFACES)}", path="$.interface")
    return Credentials(auth_url=str(auth["auth_url"]), region=region, interface=interface, **given)


def _find(environ: Mapping[str, str]) -> Path:
    named = environ.get("OS_CLIENT_CONFIG_FILE")
    config = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    places = [Path(named)] if named else []
    places += [folder / "clouds.yaml" for folder in (Path(), config / "openstack", Path("/etc/openstack"))]
    for place in places:
        if place.is_file():
            return place
    raise InvalidInput(
        "there is no clouds.yaml: looked at " + ", ".join(str(place) for place in places),
        path="$.cloud",
        hint="write one, or set OS_CLIENT_CONFIG_FILE",
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError:
        raise InvalidInput(
            f"reading {path} needs PyYAML, which is not installed", path="$.cloud", hint="pip install 'milepost[openstack]'"
        ) from None
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}", path="$.cloud") from error
    return found if isinstance(found, dict) else {}


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
