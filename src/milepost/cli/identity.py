"""`project`, `user` and `key`: who may use a server, written straight into its data folder.  Works beside a running server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from milepost.cli.connect import Json, end
from milepost.cli.exits import Exit
from milepost.cli.serve import need_server
from milepost.cli.show import Show, age
from milepost.errors import InvalidInput, NotFound
from milepost.wire import rfc3339

if TYPE_CHECKING:
    from milepost.settings import Settings

project_app = typer.Typer(help="Projects: whose jobs are whose.", no_args_is_help=True)
user_app = typer.Typer(help="Users, their passwords and their roles in projects.", no_args_is_help=True)
key_app = typer.Typer(help="Tokens for programs, and key pairs for signed requests.", no_args_is_help=True)

Data = Annotated[
    str | None, typer.Option("--data", envvar="MILEPOST_DATA", help="data folder of the server [dim](milepost-data)[/dim]")
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="its name")]
User = Annotated[str, typer.Argument(metavar="USER", help="name or id of the user")]
Project = Annotated[str, typer.Argument(metavar="PROJECT", help="name or id of the project")]
Role = Annotated[str, typer.Argument(metavar="ROLE", help="member or admin")]
FromStdin = Annotated[bool, typer.Option("--password-stdin", help="read the password from stdin instead of asking for it")]
OfUser = Annotated[str | None, typer.Option("--user", "-u", help="whose [dim](the only user)[/dim]")]
OfProject = Annotated[str | None, typer.Option("--project", help="for which project [dim](the user's only one)[/dim]")]

Action = Callable[[Any, Any], Awaitable[Any]]
PAIR_VARIABLES = (
    ("HUAWEICLOUD_SDK_AK", "access_key"),
    ("HUAWEICLOUD_SDK_SK", "secret_key"),
    ("HUAWEICLOUD_SDK_PROJECT_ID", "project"),
)


def _run(as_json: bool, data: str | None, action: Action, tell: Callable[[Show, Any], None]) -> None:
    """Open the folder's store, act, and tell; errors become exit codes."""
    show = Show(as_json=as_json)

    def act() -> Exit:
        need_server()
        from milepost.settings import Settings

        settings = Settings.read(data=data)
        if settings.data == ":memory:":
            raise InvalidInput("a server in memory has no folder to write to", path="--data")
        is_new = not (settings.data_dir / "milepost.db").exists()
        found = asyncio.run(_within(settings, action))
        if is_new:  # most likely the command stands in another folder than the server
            show.note(f"began the data folder {settings.data_dir}: there was none (--data names another)", style="yellow")
        tell(show, found)
        return Exit.DONE

    end(show, act)


async def _within(settings: Settings, action: Action) -> Any:
    from milepost.clock import SystemClock
    from milepost.server.identity import Identities
    from milepost.wiring import open_store

    async with open_store(settings, lock=False) as store:
        return await action(Identities(store, SystemClock(), settings), store)


def _fields(show: Show, fields: dict[str, Any]) -> None:
    if show.as_json:
        show.json(fields)
        return
    width = max(10, *map(len, fields))
    for name, value in fields.items():
        show.out.print(Text.assemble((f"{name.replace('_', ' '):<{width}} ", "dim"), str(value)), soft_wrap=True)


def _rows(show: Show, found: list[dict[str, Any]], none: str) -> None:
    if show.as_json:
        for fields in found:
            show.json(fields)
        return
    head = tuple(found[0]) if found else ()
    show.table(head, [[Text(_cell(value)) for value in fields.values()] for fields in found])
    if not found and show.out.is_terminal:
        show.note(none)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _secret(show: Show) -> None:
    show.note("this secret is shown once; keep it", style="yellow")


def _fields_with_secret(show: Show, fields: dict[str, Any]) -> None:
    _fields(show, fields)
    _secret(show)


# --- projects -------------------------------------------------------------------------------------------------------------


@project_app.command("create")
def create_project(name: Name, data: Data = None, json: Json = False) -> None:
    """Make a project."""

    async def act(identities: Any, _: Any) -> dict[str, Any]:
        made = await identities.create_project(name)
        return {"id": made.id, "name": made.name, "callback_secret": made.callback_secret}

    _run(json, data, act, _fields_with_secret)


@project_app.command("list")
def list_projects(data: Data = None, json: Json = False) -> None:
    """List projects."""

    async def act(_: Any, store: Any) -> list[dict[str, Any]]:
        return [{"id": one.id, "name": one.name, "enabled": one.enabled} for one in await store.list_projects()]

    _run(json, data, act, lambda show, found: _rows(show, found, "no projects; milepost project create NAME makes one"))


@project_app.command("disable")
def disable_project(project: Project, data: Data = None, json: Json = False) -> None:
    """Refuse a project's tokens from now on, and revoke them."""
    _enable_project(project, False, data, json)


@project_app.command("enable")
def enable_project(project: Project, data: Data = None, json: Json = False) -> None:
    """Let a disabled project in again; its tokens have to be made anew."""
    _enable_project(project, True, data, json)


@project_app.command("secret")
def renew_secret(project: Project, data: Data = None, json: Json = False) -> None:
    """Make a new secret that signs the project's callbacks from now on; the old one is forgotten."""

    async def act(identities: Any, _: Any) -> dict[str, Any]:
        made = await identities.renew_callback_secret(project)
        return {"id": made.id, "name": made.name, "callback_secret": made.callback_secret}

    _run(json, data, act, _fields_with_secret)


def _enable_project(project: str, enabled: bool, data: str | None, json: bool) -> None:
    async def act(identities: Any, _: Any) -> dict[str, Any]:
        made = await identities.set_project_enabled(project, enabled)
        return {"id": made.id, "name": made.name, "enabled": made.enabled}

    _run(json, data, act, _fields)


# --- users ----------------------------------------------------------------------------------------------------------------


def _password(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise InvalidInput("there is no terminal to ask for the password", path="--password-stdin", hint="use --password-stdin")
    asked: str = typer.prompt("password", hide_input=True, confirmation_prompt=True, err=True)
    return asked


@user_app.command("create")
def create_user(name: Name, password_stdin: FromStdin = False, data: Data = None, json: Json = False) -> None:
    """Make a user; asks for the password."""

    async def act(identities: Any, _: Any) -> dict[str, Any]:
        made = await identities.create_user(name, _password(password_stdin))
        return {"id": made.id, "name": made.name}

    _run(json, data, act, _fields)


@user_app.command("list")
def list_users(data: Data = None, json: Json = False) -> None:
    """List users with their roles, as ROLE@PROJECT."""

    async def act(_: Any, store: Any) -> list[dict[str, Any]]:
        names = {one.id: one.name for one in await store.list_projects()}
        return [
            {
                "id": one.id,
                "name": one.name,
                "enabled": one.enabled,
                "roles": [f"{grant.role}@{names.get(grant.project, grant.project)}" for grant in await store.list_grants(one.id)],
            }
            for one in await store.list_users()
        ]

    _run(json, data, act, lambda show, found: _rows(show, found, "no users; milepost user create NAME makes one"))


@user_app.command("password")
def set_password(user: User, password_stdin: FromStdin = False, data: Data = None, json: Json = False) -> None:
    """Give a user a new password and revoke the user's tokens."""

    async def act(identities: Any, _: Any) -> dict[str, Any]:
        made = await identities.set_password(user, _password(password_stdin))
        return {"id": made.id, "name": made.name}

    _run(json, data, act, _fields)


@user_app.command("grant")
def grant(user: User, project: Project, role: Role = "member", data: Data = None, json: Json = False) -> None:
    """Let a user into a project, as member or admin."""

    async def act(identities: Any, _: Any) -> dict[str, Any]:
        await identities.grant(user, project, role)
        return {"user": user, "project": project, "role": role}

    _run(json, data, act, _fields)


@user_app.command("revoke")
def revoke(user: User, project: Project, role: Role = "member", data: Data = None, json: Json = False) -> None:
    """Take a role away and revoke the user's tokens in that project."""

    async def act(identities: Any, _: Any) -> dict[str, Any]:
        await identities.revoke_grant(user, project, role)
        return {"user": user, "project": project, "revoked": role}

    _run(json, data, act, _fields)


@user_app.command("disable")
def disable_user(user: User, data: Data = None, json: Json = False) -> None:
    """Refuse a user from now on, and revoke the user's tokens."""
    _enable_user(user, False, data, json)


@user_app.command("enable")
def enable_user(user: User, data: Data = None, json: Json = False) -> None:
    """Let a disabled user in again."""
    _enable_user(user, True, data, json)


def _enable_user(user: str, enabled: bool, data: str | None, json: bool) -> None:
    async def act(identities: Any, _: Any) -> dict[str, Any]:
        made = await identities.set_user_enabled(user, enabled)
        return {"id": made.id, "name": made.name, "enabled": made.enabled}

    _run(json, data, act, _fields)


# --- keys -----------------------------------------------------------------------------------------------------------------


async def _whose(store: Any, user: str | None) -> str:
    if user is not None:
        return user
    users = [one for one in await store.list_users() if one.enabled]
    if len(users) != 1:
        names = ", ".join(one.name for one in users) or "none"
        raise InvalidInput(f"name the user; there are {names}", path="--user", hint="milepost user list")
    only: str = users[0].id
    return only


async def _where(identities: Any, store: Any, user: str, project: str | None) -> str:
    if project is not None:
        return project
    found = await identities.projects_of((await store.get_user(user)).id)
    if len(found) != 1:
        names = ", ".join(one.name for one in found) or "none"
        raise InvalidInput(
            f"name the project; the user is in {names}", path="--project", hint="milepost user grant USER PROJECT member"
        )
    only: str = found[0].id
    return only


@key_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="what it is for")] = "default",
    user: OfUser = None,
    project: OfProject = None,
    days: Annotated[float, typer.Option(min=0.001, help="how long it works")] = 365.0,
    pair: Annotated[
        bool, typer.Option("--pair", help="an access key and its secret, for signed requests, instead of a token")
    ] = False,
    data: Data = None,
    json: Json = False,
) -> None:
    """Make a token for a program: `export MILEPOST_TOKEN=…`; or, with --pair, a key pair for signed requests."""

    async def act(identities: Any, store: Any) -> dict[str, Any]:
        from milepost.server.identity import short_id

        whose = await _whose(store, user)
        where = await _where(identities, store, whose, project)
        if pair:
            key = await identities.create_access_key(whose, where)
            return {"access_key": key.id, "secret_key": key.secret, "project": key.project}
        issued = await identities.create_api_key(whose, where, name, life_s=days * 86_400)
        token = issued.token
        expires = rfc3339(token.expires_us)
        return {
            "token": issued.secret,
            "name": token.name,
            "project": token.project,
            "id": short_id(token),
            "application_credential_id": token.audit_id,
            "expires_at": expires,
        }

    def tell(show: Show, fields: dict[str, Any]) -> None:
        if pair and not show.as_json:  # as the vendor's SDKs and this client read them
            for variable, field in PAIR_VARIABLES:
                show.out.print(f"export {variable}={fields[field]}", soft_wrap=True, highlight=False)
        else:
            _fields(show, fields)
        _secret(show)

    _run(json, data, act, tell)


@key_app.command("list")
def list_keys(user: OfUser = None, data: Data = None, json: Json = False) -> None:
    """List tokens and key pairs that still work; never their secrets."""

    async def act(identities: Any, store: Any) -> list[dict[str, Any]]:
        from milepost.server.identity import short_id

        users = [await store.get_user(user)] if user is not None else await store.list_users()
        names = {one.id: one.name for one in await store.list_projects()}
        found: list[dict[str, Any]] = []
        for one in users:
            tokens, pairs = await identities.list_api_keys(one.id), await store.list_access_keys(user_id=one.id)
            found += [
                _key(short_id(key), "token", key.name, one.name, key.project, (key.issued_us, key.expires_us)) for key in tokens
            ]
            found += [_key(key.id, "pair", "", one.name, key.project, (key.created_us, None)) for key in pairs]
        return [{**one, "project_name": names.get(one["project"], one["project"])} for one in found]

    def tell(show: Show, found: list[dict[str, Any]]) -> None:
        if show.as_json:
            shown = [{**one, "created_at": rfc3339(one["created_at"]), "expires_at": rfc3339(one["expires_at"])} for one in found]
        else:
            shown = [
                {
                    **{name: one[name] for name in ("id", "what", "name", "user")},
                    "project": one["project_name"],
                    "created": age(one["created_at"]),
                    "expires": (rfc3339(one["expires_at"]) or "never")[:10],
                }
                for one in found
            ]
        _rows(show, shown, "no keys; milepost key create makes one")

    _run(json, data, act, tell)


def _key(id: str, what: str, name: str, user: str, project: str | None, life: tuple[int, int | None]) -> dict[str, Any]:
    told = {"id": id, "what": what, "name": name, "user": user, "project": project}
    return {**told, "created_at": life[0], "expires_at": life[1]}


@key_app.command("revoke")
def revoke_key(
    id: Annotated[str, typer.Argument(metavar="ID", help="id of `milepost key list`")], data: Data = None, json: Json = False
) -> None:
    """Revoke a token or a key pair; it is refused at once."""

    async def act(identities: Any, store: Any) -> dict[str, Any]:
        if await identities.delete_access_key(id):
            return {"revoked": id}
        for user in await store.list_users():
            for token in await identities.list_api_keys(user.id):
                if len(id) >= 12 and token.digest.startswith(id):
                    await identities.revoke_digest(token.digest)
                    return {"revoked": id, "name": token.name, "user": user.name}
        raise NotFound(f"no key {id} works here", hint="milepost key list")

    _run(json, data, act, _fields)
