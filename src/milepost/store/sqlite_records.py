"""The store's records on SQLite that are neither jobs nor deliveries: resources, projects, users, grants, tokens, access keys."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from milepost.errors import Conflict, NotFound, VersionConflict
from milepost.job import Claim, ProjectId
from milepost.store import AccessKey, Grant, Project, Resource, Token, User, Write
from milepost.store.statements import load
from milepost.store.writer import Transaction, Writer


class RecordSql(NamedTuple):
    """The statements of `sql/sqlite/record.sql`."""

    get_resource: str
    put_resource: str
    list_resources: str
    page_resources: str
    page_resources_first: str
    delete_resource: str
    holds_claim: str
    add_project: str
    get_project: str
    list_projects: str
    update_project: str
    add_user: str
    get_user: str
    list_users: str
    update_user: str
    add_grant: str
    delete_grant: str
    list_grants: str
    add_token: str
    get_token: str
    revoke_token: str
    list_tokens: str
    add_access_key: str
    get_access_key: str
    list_access_keys: str
    delete_access_key: str
    use_signature: str


SQL = load("sqlite", "record", RecordSql)
BEHIND_ALL = "\U0010ffff" * 256  # behind every id of the same prefix: ids have at most 750 bytes


class SqliteRecords:
    """What `SqliteStore` keeps beside jobs; the connections and the writer are its."""

    _writer: Writer
    _read: sqlite3.Connection

    async def _read_thread(self, read: Callable[[sqlite3.Connection], Any]) -> Any:
        raise NotImplementedError

    def _one(self, sql: str, params: tuple[Any, ...], what: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = self._read.execute(sql, params).fetchone()
        if row is None:
            raise NotFound(f"no {what}")
        return row

    # --- resources -------------------------------------------------------------------------------------------------

    async def put_resource(self, resource: Resource, *, claim: Claim | None = None, if_version: int | None = None) -> Resource:
        return await self._writer.do(_put_resource, resource, claim, if_version)  # type: ignore[no-any-return]

    async def get_resource(self, type: str, id: str) -> Resource:
        return _resource(self._one(SQL.get_resource, (type, id), f"{type} {id}"))

    async def list_resources(self, type: str, *, project: ProjectId | None = None) -> list[Resource]:
        rows = await self._read_thread(lambda connection: connection.execute(SQL.list_resources, (type, project)).fetchall())
        return [_resource(row) for row in rows]

    async def page_resources(self, type: str, *, prefix: str = "", after: str | None = None, limit: int = 1000) -> list[Resource]:
        last = prefix + BEHIND_ALL
        sql, params = SQL.page_resources_first, (type, prefix, last, limit)
        if after is not None:
            sql, params = SQL.page_resources, (type, prefix, last, after, limit)  # type: ignore[assignment]
        rows = await self._read_thread(lambda connection: connection.execute(sql, params).fetchall())
        return [_resource(row) for row in rows]

    async def write_resources(self, writes: Sequence[Write], *, claim: Claim | None = None) -> None:
        await self._writer.do(_write_resources, writes, claim)

    async def delete_resource(self, type: str, id: str, *, claim: Claim | None = None) -> bool:
        return await self._writer.do(_delete_resource, type, id, claim)  # type: ignore[no-any-return]

    # --- identity --------------------------------------------------------------------------------------------------

    async def _write_named(self, sql: str, params: tuple[Any, ...], what: str) -> None:
        await self._writer.do(_write_unique, sql, params, what)

    async def add_project(self, project: Project) -> None:
        params = (project.id, project.name, project.domain, project.callback_secret, project.created_us, int(project.enabled))
        await self._write_named(SQL.add_project, params, f"project {project.name!r}")

    async def get_project(self, id_or_name: str, *, domain: str | None = None) -> Project:
        return _project(self._one(SQL.get_project, (id_or_name, domain), f"project {id_or_name!r}"))

    async def list_projects(self) -> list[Project]:
        return [_project(row) for row in self._read.execute(SQL.list_projects)]

    async def update_project(self, project: Project) -> None:
        params = (project.id, project.name, project.domain, project.callback_secret, int(project.enabled))
        await self._write_named(SQL.update_project, params, f"project {project.name!r}")

    async def add_user(self, user: User) -> None:
        params = (user.id, user.name, user.domain, user.password_hash, user.created_us, int(user.enabled))
        await self._write_named(SQL.add_user, params, f"user {user.name!r}")

    async def get_user(self, id_or_name: str, *, domain: str | None = None) -> User:
        return _user(self._one(SQL.get_user, (id_or_name, domain), f"user {id_or_name!r}"))

    async def list_users(self) -> list[User]:
        return [_user(row) for row in self._read.execute(SQL.list_users)]

    async def update_user(self, user: User) -> None:
        params = (user.id, user.name, user.domain, user.password_hash, int(user.enabled))
        await self._write_named(SQL.update_user, params, f"user {user.name!r}")

    async def set_grant(self, user_id: str, project: ProjectId, role: str, *, present: bool = True) -> None:
        sql = SQL.add_grant if present else SQL.delete_grant
        await self._writer.do(lambda tx: tx.execute(sql, (user_id, project, role)) and None)

    async def list_grants(self, user_id: str) -> list[Grant]:
        return [Grant(ProjectId(project), role) for project, role in self._read.execute(SQL.list_grants, (user_id,))]

    async def add_token(self, token: Token) -> None:
        params = (
            token.digest,
            token.user_id,
            token.project,
            " ".join(token.roles),
            " ".join(token.methods),
            token.audit_id,
            token.issued_us,
            token.expires_us,
            int(token.revoked),
            token.name,
        )
        await self._write_named(SQL.add_token, params, "token")

    async def get_token(self, digest: str) -> Token:
        return _token(self._one(SQL.get_token, (digest,), "such token"))

    async def revoke_token(self, digest: str) -> bool:
        return await self._writer.do(lambda tx: tx.execute(SQL.revoke_token, (digest,)).rowcount == 1)  # type: ignore[no-any-return]

    async def list_tokens(self, user_id: str) -> list[Token]:
        return [_token(row) for row in self._read.execute(SQL.list_tokens, (user_id,))]

    async def add_access_key(self, key: AccessKey) -> None:
        params = (key.id, key.secret, key.user_id, key.project, key.created_us, int(key.enabled))
        await self._write_named(SQL.add_access_key, params, f"access key {key.id}")

    async def get_access_key(self, id: str) -> AccessKey:
        return _access_key(self._one(SQL.get_access_key, (id,), f"access key {id}"))

    async def list_access_keys(self, *, user_id: str | None = None) -> list[AccessKey]:
        return [_access_key(row) for row in self._read.execute(SQL.list_access_keys, (user_id,))]

    async def delete_access_key(self, id: str) -> bool:
        return await self._writer.do(lambda tx: tx.execute(SQL.delete_access_key, (id,)).rowcount == 1)  # type: ignore[no-any-return]

    async def use_signature(self, digest: str, *, expires_us: int) -> bool:
        params = (digest, expires_us)
        return await self._writer.do(lambda tx: tx.execute(SQL.use_signature, params).rowcount == 1)  # type: ignore[no-any-return]


# --- operations --------------------------------------------------------------------------------------------------------


def _write_unique(tx: Transaction, sql: str, params: tuple[Any, ...], what: str) -> None:
    try:
        tx.execute(sql, params)
    except sqlite3.IntegrityError as error:
        raise Conflict(f"{what} exists already") from error


def _check_claim(tx: Transaction, claim: Claim | None) -> None:
    if claim is not None and tx.execute(SQL.holds_claim, (claim.job_id, claim.fence)).fetchone() is None:
        raise Conflict(f"the lease of job {claim.job_id} was lost", job_id=claim.job_id)


def check_writes(tx: Transaction, writes: Sequence[Write]) -> None:
    """Whether all of them can be made, one after the other.  Errors: VersionConflict."""
    versions: dict[tuple[str, str], int] = {}
    for write in writes:
        resource, place = write.resource, (write.resource.type, write.resource.id)
        stored = versions.get(place)
        if stored is None:
            row = tx.execute(SQL.get_resource, place).fetchone()
            stored = 0 if row is None else row[6]
        if write.if_version is not None and stored != write.if_version:
            raise VersionConflict(f"{resource.type} {resource.id} has version {stored}, not {write.if_version}")
        versions[place] = 0 if write.delete else stored + 1


def apply_writes(tx: Transaction, writes: Sequence[Write]) -> None:
    """Make them; they were checked."""
    for write in writes:
        if write.delete:
            tx.execute(SQL.delete_resource, (write.resource.type, write.resource.id))
        else:
            _put_row(tx, write.resource)


def _write_resources(tx: Transaction, writes: Sequence[Write], claim: Claim | None) -> None:
    _check_claim(tx, claim)
    check_writes(tx, writes)
    apply_writes(tx, writes)


def _put_resource(tx: Transaction, resource: Resource, claim: Claim | None, if_version: int | None) -> Resource:
    _check_claim(tx, claim)
    check_writes(tx, [Write(resource=resource, if_version=if_version)])
    return _put_row(tx, resource)


def _put_row(tx: Transaction, resource: Resource) -> Resource:
    created_us, version = tx.execute(
        SQL.put_resource,
        (resource.type, resource.id, resource.project, resource.doc.decode(), resource.created_us, resource.updated_us),
    ).fetchone()
    return Resource(
        type=resource.type,
        id=resource.id,
        project=resource.project,
        doc=resource.doc,
        created_us=created_us,
        updated_us=resource.updated_us,
        version=version,
    )


def _delete_resource(tx: Transaction, type_: str, id_: str, claim: Claim | None) -> bool:
    _check_claim(tx, claim)
    return tx.execute(SQL.delete_resource, (type_, id_)).rowcount == 1


# --- rows --------------------------------------------------------------------------------------------------------------


def _resource(row: tuple[Any, ...]) -> Resource:
    type_, id_, project, doc, created_us, updated_us, version = row
    return Resource(
        type=type_, id=id_, project=project, doc=doc.encode(), created_us=created_us, updated_us=updated_us, version=version
    )


def _project(row: tuple[Any, ...]) -> Project:
    id_, name, domain, callback_secret, created_us, enabled = row
    return Project(id_, name, domain, callback_secret, created_us, bool(enabled))


def _user(row: tuple[Any, ...]) -> User:
    id_, name, domain, password_hash, created_us, enabled = row
    return User(id_, name, domain, password_hash, created_us, bool(enabled))


def _token(row: tuple[Any, ...]) -> Token:
    digest, user_id, project, roles, methods, audit_id, issued_us, expires_us, revoked, name = row
    return Token(
        digest,
        user_id,
        project,
        tuple(roles.split()),
        tuple(methods.split()),
        audit_id,
        issued_us,
        expires_us,
        bool(revoked),
        name,
    )


def _access_key(row: tuple[Any, ...]) -> AccessKey:
    id_, secret, user_id, project, created_us, enabled = row
    return AccessKey(id_, secret, user_id, project, created_us, bool(enabled))
