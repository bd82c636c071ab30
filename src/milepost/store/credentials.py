"""Credentials in the store: put, listed, deleted and opened, each its project's own.

Rules
1. What is secret is sealed before it reaches the store and opened only to be sent; see `vault`.
2. A credential is bound to the place that it is sent to.
3. Whoever may use a credential cannot read it.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import msgspec

from milepost.errors import InvalidInput, NotFound
from milepost.job import ProjectId
from milepost.store import Resource, Store, Write
from milepost.tracking import (
    CREDENTIAL,
    Credential,
    CredentialType,
    Secret,
    about_credential,
    credential_id,
    decode_credential,
    decode_secret,
    encode_credential,
    encode_secret,
)
from milepost.vault import Vault

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}").fullmatch
PAGE = 500


def check_name(name: str) -> str:
    """Errors: InvalidInput."""
    if not NAME(name):
        raise InvalidInput("a credential's name is 1 to 64 letters, digits and . _ -", path="$.name")
    return name


async def put_credential(
    store: Store,
    vault: Vault,
    project: ProjectId,
    name: str,
    *,
    type: CredentialType,
    endpoint: str,
    who: str,
    secret: Secret,
    now_us: int,
) -> Credential:
    """The credential has this name from now on; one that had it is replaced.  Errors: InvalidInput."""
    check_name(name)
    created_us = now_us
    try:
        created_us = (await get_credential(store, project, name)).created_us
    except NotFound:
        pass
    credential = Credential(
        name=name,
        type=type,
        endpoint=endpoint,
        who=who,
        sealed=vault.seal(encode_secret(secret), about=about_credential(project, name)),
        created_us=created_us,
        updated_us=now_us,
    )
    await store.put_resource(_resource(project, credential))
    return credential


async def get_credential(store: Store, project: ProjectId, name: str) -> Credential:
    """Errors: NotFound."""
    try:
        found = await store.get_resource(CREDENTIAL, credential_id(project, name))
    except NotFound:
        raise NotFound(f"there is no credential {name[:64]!r} in this project", hint="milepost credential list") from None
    return decode_credential(found.doc)


async def list_credentials(store: Store, project: ProjectId) -> list[Credential]:
    """By name."""
    found: list[Resource] = []
    while True:
        after = found[-1].id if found else None
        page = await store.page_resources(CREDENTIAL, prefix=f"{project}/", after=after, limit=PAGE)
        found += page
        if len(page) < PAGE:
            return [decode_credential(one.doc) for one in found]


async def delete_credential(store: Store, project: ProjectId, name: str) -> None:
    """Errors: NotFound."""
    await get_credential(store, project, name)
    await store.delete_resource(CREDENTIAL, credential_id(project, name))


def open_secret(vault: Vault, project: str, credential: Credential) -> Secret:
    """Errors: Conflict when the key is missing."""
    return decode_secret(vault.open(credential.sealed, about=about_credential(project, credential.name)))


async def reseal(store: Store, vault: Vault) -> int:
    """Everything is sealed with the first key now; returns how many were not.  What no key opens stays as it is."""
    changed = 0
    for found in await store.list_resources(CREDENTIAL):
        credential = decode_credential(found.doc)
        if vault.is_current(credential.sealed):
            continue
        about = about_credential(found.project, credential.name)
        try:
            plain = vault.open(credential.sealed, about=about)
        except Exception:  # noqa: S112 - said where it is used
            continue
        sealed = msgspec.structs.replace(credential, sealed=vault.seal(plain, about=about))
        await store.write_resources([Write(resource=_resource(found.project, sealed), if_version=found.version)])
        changed += 1
    return changed


def same_place(allowed: str, asked: str) -> bool:
    """Whether a URL has the origin that a credential is for.  An endpoint of several URLs must be the same altogether."""
    if "," in allowed or "," in asked:
        return allowed == asked.rstrip("/")
    one, other = urlsplit(allowed), urlsplit(asked)
    return (one.scheme, one.hostname, _port(one)) == (other.scheme, other.hostname, _port(other))


def _port(url: object) -> int | None:
    port: int | None = getattr(url, "port", None)
    return port or {"http": 80, "https": 443}.get(getattr(url, "scheme", ""))


def _resource(project: ProjectId, credential: Credential) -> Resource:
    return Resource(
        type=CREDENTIAL,
        id=credential_id(project, credential.name),
        project=project,
        doc=encode_credential(credential),
        created_us=credential.created_us,
        updated_us=credential.updated_us,
        version=0,
    )
