"""Projects, users, roles, tokens and access keys: the only file that makes or checks a secret.

Rules
1. A secret is returned once, by the call that made it; the store has its SHA-256 (tokens) or argon2 hash (passwords).
   Access keys are the exception: a signature can only be verified with the secret itself.
2. A user has a role in a project by a grant; a token carries the roles its user had in its project when it was issued.
3. Disabling a user or a project revokes its tokens in the same call; revoking a key, those that were asked for with it.
4. A wrong name and a wrong password cost the same time and give the same error.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import uuid
from collections.abc import Sequence

import argon2
import msgspec

from milepost.clock import Clock
from milepost.errors import Conflict, Forbidden, InvalidInput, NotFound, Throttled, Unauthenticated
from milepost.job import ProjectId
from milepost.server.auth import DEFAULT_PROJECT, Identity, digest_of
from milepost.settings import Settings
from milepost.store import AccessKey, Grant, Project, Store, Token, User
from milepost.wire.signing.huawei import refused

DOMAIN = "default"  # id; its name is Default, as in Keystone
ROLES = ("admin", "member")
KEY_S = 10 * 365.25 * 86_400.0  # an API key lives ten years unless told otherwise
NAMES_KEPT = 10_000
LOGINS_QUEUED = 64
PASSWORD_CHARS = (1, 1024)
SLOW = argon2.PasswordHasher()  # RFC 9106's low-memory profile: 64 MiB, three passes
NAME = re.compile(r"[^\x00-\x1f\x7f]{1,64}").fullmatch


class Issued(msgspec.Struct, frozen=True):
    """A token as text, shown now and never again, with what the store keeps."""

    secret: str
    token: Token


class Identities:
    """All of identity over one store."""

    def __init__(self, store: Store, clock: Clock, settings: Settings) -> None:
        self._store, self._clock, self._settings = store, clock, settings
        self._names: dict[str, str] = {}  # user id -> name, which never changes
        self._decoy: str | None = None
        self._hashing = asyncio.Semaphore(2)  # 64 MiB each
        self._queued = 0

    # --- projects --------------------------------------------------------------------------------------------------

    async def create_project(self, name: str) -> Project:
        """Errors: InvalidInput, Conflict when the name is taken."""
        return await self._add_project(ProjectId(uuid.uuid4().hex), check_name(name, "project"))

    async def ensure_project(self, project_id: ProjectId) -> Project:
        """The project with this id, made when it is new: a server without auth takes any project's name."""
        try:
            found = await self._store.get_project(project_id)
            if found.id == project_id:
                return found
            return await self._add_project(project_id, f"id {project_id}")  # its id is another project's name
        except NotFound:
            pass
        try:
            return await self._add_project(project_id, project_id)
        except Conflict:  # made by another request just now
            return await self._store.get_project(project_id)

    async def _add_project(self, project_id: ProjectId, name: str) -> Project:
        project = Project(
            id=project_id,
            name=name,
            domain=DOMAIN,
            callback_secret=new_callback_secret(),
            created_us=self._clock.now_us(),
        )
        await self._store.add_project(project)
        return project

    async def renew_callback_secret(self, id_or_name: str) -> Project:
        """A new secret signs callbacks from now on.  `default` is there also before its first job.  Errors: NotFound."""
        if id_or_name == DEFAULT_PROJECT:
            await self.ensure_project(DEFAULT_PROJECT)
        found = await self._store.get_project(id_or_name)
        project = msgspec.structs.replace(found, callback_secret=new_callback_secret())
        await self._store.update_project(project)
        return project

    async def project_id(self, id_or_name: str) -> ProjectId:
        """Errors: NotFound."""
        return (await self._store.get_project(id_or_name)).id

    async def set_project_enabled(self, id_or_name: str, enabled: bool) -> Project:
        """A disabled project's tokens are revoked.  Errors: NotFound."""
        project = msgspec.structs.replace(await self._store.get_project(id_or_name), enabled=enabled)
        await self._store.update_project(project)
        if not enabled:
            for user in await self._store.list_users():
                await self._revoke_all(user.id, project=project.id)
        return project

    async def projects_of(self, user_id: str) -> list[Project]:
        """The enabled projects in which this user has a role, by name."""
        ids = {grant.project for grant in await self._store.list_grants(user_id)}
        return sorted(
            (one for one in await self._store.list_projects() if one.id in ids and one.enabled), key=lambda one: one.name
        )

    # --- users -----------------------------------------------------------------------------------------------------

    async def create_user(self, name: str, password: str) -> User:
        """Errors: InvalidInput, Conflict when the name is taken."""
        user = User(
            id=uuid.uuid4().hex,
            name=check_name(name, "user"),
            domain=DOMAIN,
            password_hash=await self._hash(check_password(password)),
            created_us=self._clock.now_us(),
        )
        await self._store.add_user(user)
        return user

    async def set_password(self, id_or_name: str, password: str) -> User:
        """The new password counts at once and the user's tokens are revoked.  Errors: NotFound, InvalidInput."""
        user = await self._store.get_user(id_or_name)
        user = msgspec.structs.replace(user, password_hash=await self._hash(check_password(password)))
        await self._store.update_user(user)
        await self._revoke_all(user.id)
        return user

    async def set_user_enabled(self, id_or_name: str, enabled: bool) -> User:
        """A disabled user's tokens are revoked.  Errors: NotFound."""
        user = msgspec.structs.replace(await self._store.get_user(id_or_name), enabled=enabled)
        await self._store.update_user(user)
        if not enabled:
            await self._revoke_all(user.id)
        return user

    async def user_name(self, user_id: str) -> str:
        name = self._names.get(user_id)
        if name is None:
            name = (await self._store.get_user(user_id)).name
            if len(self._names) >= NAMES_KEPT:
                self._names.clear()
            self._names[user_id] = name
        return name

    # --- grants ----------------------------------------------------------------------------------------------------

    async def grant(self, user: str, project: str, role: str) -> Grant:
        """Errors: NotFound, InvalidInput when there is no such role."""
        if role not in ROLES:
            raise InvalidInput(f"role is {role!r}; it is {' or '.join(ROLES)}", path="$.role")
        found_user, found_project = await self._store.get_user(user), await self._store.get_project(project)
        await self._store.set_grant(found_user.id, found_project.id, role)
        return Grant(found_project.id, role)

    async def revoke_grant(self, user: str, project: str, role: str) -> None:
        """The user's tokens in that project are revoked with it.  Errors: NotFound."""
        found_user, found_project = await self._store.get_user(user), await self._store.get_project(project)
        await self._store.set_grant(found_user.id, found_project.id, role, present=False)
        await self._revoke_all(found_user.id, project=found_project.id)

    async def roles_in(self, user_id: str, project: ProjectId) -> tuple[str, ...]:
        """The user's roles in a project; an admin is a member too."""
        roles = {grant.role for grant in await self._store.list_grants(user_id) if grant.project == project}
        if "admin" in roles:
            roles.add("member")
        return tuple(sorted(roles))

    # --- tokens ----------------------------------------------------------------------------------------------------

    async def check_password(self, user: str, password: str, *, domain: str | None = None) -> User:
        """The user whose name or id and password these are.  Errors: Unauthenticated, the same for every cause."""
        try:
            found = await self._store.get_user(user, domain=domain)
        except NotFound:
            found = None
        stored = found.password_hash if found is not None else await self._decoy_hash()
        right = await self._verify(stored, password)
        if found is None or not right:
            raise Unauthenticated("wrong user or password")
        now = await self._store.get_user(found.id)  # it took a while: the user may have been disabled, or have another password
        if not now.enabled or now.password_hash != stored:
            raise Unauthenticated("wrong user or password")
        return now

    async def issue_token(
        self,
        user: User,
        *,
        project: Project | None = None,
        methods: Sequence[str] = ("password",),
        life_s: float | None = None,
        name: str = "",
        parent: Token | None = None,
    ) -> Issued:
        """A new token of this user, in this project or in none; it does not outlive the token it was asked for with (`parent`).

        Errors: Forbidden when the user has no role there.
        """
        roles: tuple[str, ...] = ()
        if project is not None:
            roles = await self.roles_in(user.id, project.id)
            if not roles or not project.enabled:
                raise Forbidden(
                    f"user {user.name} has no role in project {project.name}",
                    hint=f"milepost user grant {user.name} {project.name} member",
                )
        now_us = self._clock.now_us()
        expires_us = now_us + int((self._settings.token_s if life_s is None else life_s) * 1e6)
        audit_id = secrets.token_urlsafe(16)
        if parent is not None:
            expires_us = min(expires_us, parent.expires_us)
            audit_id = f"{audit_id}.{first_audit_id(parent)}"
        secret = ("mpk_" if name else "mpt_") + secrets.token_urlsafe(32)
        token = Token(
            digest=digest_of(secret),
            user_id=user.id,
            project=None if project is None else project.id,
            roles=roles,
            methods=tuple(methods),
            audit_id=audit_id,
            issued_us=now_us,
            expires_us=expires_us,
            name=name,
        )
        await self._store.add_token(token)
        return Issued(secret, token)

    async def create_api_key(self, user: str, project: str, name: str, *, life_s: float = KEY_S) -> Issued:
        """A long-lived token with a name, for programs.  Errors: NotFound, Forbidden, InvalidInput."""
        check_name(name, "key")
        found_user, found_project = await self._store.get_user(user), await self._store.get_project(project)
        return await self.issue_token(found_user, project=found_project, methods=("key",), life_s=life_s, name=name)

    async def list_api_keys(self, user: str) -> list[Token]:
        """The user's keys that still work, without their secrets."""
        found, now_us = await self._store.get_user(user), self._clock.now_us()
        tokens = await self._store.list_tokens(found.id)
        return [one for one in tokens if one.name and not one.revoked and one.expires_us > now_us]

    async def read_token(self, secret: str) -> Token:
        """What a token says, while it is valid.  Errors: Unauthenticated when it is unknown, expired or revoked."""
        try:
            token = await self._store.get_token(digest_of(secret))
        except NotFound:
            raise Unauthenticated("the token is not known", reason="token") from None
        if token.revoked:
            raise Unauthenticated("the token was revoked", reason="token")
        if token.expires_us <= self._clock.now_us():
            raise Unauthenticated("the token has expired", reason="token")
        return token

    async def identify(self, secret: str) -> Identity | None:
        """Who a token stands for; None when it has no project.  Errors: Unauthenticated."""
        token = await self.read_token(secret)
        if token.project is None:
            return None
        name = self._names.get(token.user_id) or await self.user_name(token.user_id)
        return Identity(token.project, token.user_id, name, frozenset(token.roles))

    async def revoke(self, secret: str) -> bool:
        """The token is refused from now on, and with a key the tokens that were asked for with it; False when there was none."""
        return await self.revoke_digest(digest_of(secret))

    async def revoke_digest(self, digest: str) -> bool:
        """As `revoke`, for a listed key whose secret nobody has any more."""
        revoked = await self._store.revoke_token(digest)
        if revoked:
            key = await self._store.get_token(digest)
            if key.name:
                for token in await self._store.list_tokens(key.user_id):
                    if first_audit_id(token) == key.audit_id and not token.revoked:
                        await self._store.revoke_token(token.digest)
        return revoked

    async def _revoke_all(self, user_id: str, *, project: ProjectId | None = None) -> None:
        for token in await self._store.list_tokens(user_id):
            if not token.revoked and (project is None or token.project == project):
                await self._store.revoke_token(token.digest)

    # --- access keys -----------------------------------------------------------------------------------------------

    async def create_access_key(self, user: str, project: str) -> AccessKey:
        """A key pair for signed requests.  Errors: NotFound, Forbidden when the user has no role in the project."""
        found_user, found_project = await self._store.get_user(user), await self._store.get_project(project)
        if not await self.roles_in(found_user.id, found_project.id):
            raise Forbidden(f"user {found_user.name} has no role in project {found_project.name}")
        key = AccessKey(
            id="".join(secrets.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") for _ in range(20)),
            secret=secrets.token_urlsafe(30),
            user_id=found_user.id,
            project=found_project.id,
            created_us=self._clock.now_us(),
        )
        await self._store.add_access_key(key)
        return key

    async def read_access_key(self, id: str) -> tuple[str, Identity]:
        """A key's secret and whom it stands for, with the roles of now.

        Errors: Unauthenticated when the key is unknown or disabled, or its user or project is, or the user has no role there.
        """
        try:
            key = await self._store.get_access_key(id)
            user, project = await self._store.get_user(key.user_id), await self._store.get_project(key.project)
        except NotFound:
            raise refused(f"the access key {id[:40]} is not known") from None
        roles = await self.roles_in(user.id, project.id)
        if not (key.enabled and user.enabled and project.enabled and roles):
            raise refused(f"the access key {id[:40]} is disabled, or its user or project is")
        return key.secret, Identity(project.id, user.id, user.name, frozenset(roles))

    async def delete_access_key(self, id: str) -> bool:
        return await self._store.delete_access_key(id)

    # --- hashes, in a thread ---------------------------------------------------------------------------------------

    async def _hash(self, password: str) -> str:
        async with self._hashing:
            return await asyncio.to_thread(SLOW.hash, password)

    async def _verify(self, stored: str, password: str) -> bool:
        if self._queued >= LOGINS_QUEUED:
            raise Throttled("too many logins at once", retry_after_s=1.0)
        self._queued += 1
        try:
            async with self._hashing:
                return await asyncio.to_thread(_matches, stored, password)
        finally:
            self._queued -= 1

    async def _decoy_hash(self) -> str:
        if self._decoy is None:
            self._decoy = await self._hash(secrets.token_urlsafe(16))
        return self._decoy


def short_id(token: Token) -> str:
    """What a key is called where it is listed and revoked; it opens nothing."""
    return token.digest[:12]


def first_audit_id(token: Token) -> str:
    """The audit id of the token that began the chain: `own.first` is that of one that was asked for with another."""
    return token.audit_id.rpartition(".")[2]


def new_callback_secret() -> str:
    """As Standard Webhooks writes one."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def _matches(stored: str, password: str) -> bool:
    try:
        return SLOW.verify(stored, password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError, UnicodeError):
        return False


def check_name(name: str, what: str) -> str:
    """Errors: InvalidInput."""
    if not NAME(name):
        raise InvalidInput(f"a {what} name is 1 to 64 characters without control characters", path="$.name")
    return name


def check_password(password: str) -> str:
    """Errors: InvalidInput."""
    low, high = PASSWORD_CHARS
    if not low <= len(password) <= high:
        raise InvalidInput(f"a password has {low} to {high} characters", path="$.password")
    return password


__all__ = ["DOMAIN", "ROLES", "Identities", "Issued"]
