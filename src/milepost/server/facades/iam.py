"""What clients ask the identity service once they are in: projects, users, the domain, services, endpoints and the catalog.

With a token, or signed with an access key, which sees its own project only.
`huaweicloudsdkcore` asks for the project by the region's name (`keystone.list_projects`) and for the account; the older Go SDK
joins services and endpoints by `service_id` and puts its project in the place of `$(tenant_id)s`; golangsdk reads the catalog.
Source: huaweicloud/huaweicloud-sdk-python-v3 huaweicloudsdkcore/auth/internal.py; huaweicloud/huaweicloud-sdk-go
openstack/client.go; chnsz/golangsdk openstack/client.go; openstack/keystone api-ref/source/v3/service-catalog.inc.
"""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response
from starlette.routing import BaseRoute

from milepost.errors import Forbidden, InvalidInput, NotFound
from milepost.job import ProjectId
from milepost.server.auth import DEFAULT_PROJECT, check_project
from milepost.server.facades.keystone import ANYONE, Call, json_response, route
from milepost.server.state import AppState
from milepost.store import Project, Token, User
from milepost.wire import keystone as wire

SERVICE_FILTERS, ENDPOINT_FILTERS = ("type", "name"), ("service_id", "interface", "region_id", "region")


def routes(_: AppState) -> list[BaseRoute]:
    """Keystone's URLs beside tokens and discovery, under both prefixes."""
    return [one for prefix in ("", "/identity") for one in _versioned(prefix)]


def _versioned(prefix: str) -> list[BaseRoute]:
    v3 = f"{prefix}/v3"
    return [
        route(f"{v3}/auth/projects", prefix, GET=own_projects),
        route(f"{v3}/auth/domains", prefix, GET=list_domains),
        route(f"{v3}/domains", prefix, GET=list_domains),
        route(f"{v3}/domains/{{id}}", prefix, GET=show_domain),
        route(f"{v3}/projects", prefix, GET=list_projects),
        route(f"{v3}/projects/{{id}}", prefix, GET=show_project),
        route(f"{v3}/users", prefix, GET=list_users),
        route(f"{v3}/users/{{id}}", prefix, GET=show_user),
        route(f"{v3}/users/{{id}}/projects", prefix, GET=user_projects),
        route(f"{v3}/auth/catalog", prefix, GET=show_catalog),
        route(f"{v3}/services", prefix, GET=list_services),
        route(f"{v3}/services/{{id}}", prefix, GET=show_service),
        route(f"{v3}/endpoints", prefix, GET=list_endpoints),
        route(f"{v3}/endpoints/{{id}}", prefix, GET=show_endpoint),
    ]


# --- services ------------------------------------------------------------------------------------------------------------


async def show_catalog(call: Call) -> Response:
    """The services of the caller's project, with the project in their URLs."""
    caller = await call.caller()
    catalog = call.catalog(caller.project)
    return json_response(wire.encode({"catalog": catalog, "links": {"self": f"{call.url}/auth/catalog"}}))


async def list_services(call: Call) -> Response:
    await call.caller()
    return listing(call, "services", _matching(call, wire.service_entries(call.url), SERVICE_FILTERS))


async def show_service(call: Call) -> Response:
    await call.caller()
    return json_response(wire.encode({"service": _by_id(call, "service", wire.service_entries(call.url))}))


async def list_endpoints(call: Call) -> Response:
    await call.caller()
    return listing(call, "endpoints", _matching(call, _endpoints(call), ENDPOINT_FILTERS))


async def show_endpoint(call: Call) -> Response:
    await call.caller()
    return json_response(wire.encode({"endpoint": _by_id(call, "endpoint", _endpoints(call))}))


def _endpoints(call: Call) -> list[dict[str, Any]]:
    return wire.endpoint_entries(call.url, call.base, call.state.settings.region)


def _matching(call: Call, entries: list[dict[str, Any]], filters: tuple[str, ...]) -> list[dict[str, Any]]:
    wanted = {name: call.request.query_params[name] for name in filters if name in call.request.query_params}
    return [entry for entry in entries if all(entry[name] == value for name, value in wanted.items())]


def _by_id(call: Call, what: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    id = call.request.path_params["id"]
    for entry in entries:
        if entry["id"] == id:
            return entry
    raise NotFound(f"Could not find {what}: {id}.")


# --- projects, users, domains ----------------------------------------------------------------------------------------


async def own_projects(call: Call) -> Response:
    """The projects that the caller may ask a token for."""
    caller = await call.caller()
    return await _projects(call, caller, await _visible_projects(call, caller, everybody=False))


async def list_projects(call: Call) -> Response:
    """All projects for an admin, else the caller's own."""
    caller = await call.caller()
    return await _projects(call, caller, await _visible_projects(call, caller, everybody="admin" in caller.roles))


async def user_projects(call: Call) -> Response:
    caller, user_id = await call.caller(), call.request.path_params["id"]
    if user_id != caller.user_id and "admin" not in caller.roles:
        raise Forbidden("You are not authorized to perform the requested action: identity:list_user_projects.")
    return await _projects(call, caller, await _visible_projects(call, caller, everybody=False, user_id=user_id))


async def show_project(call: Call) -> Response:
    caller, id = await call.caller(), call.request.path_params["id"]
    for project in await _visible_projects(call, caller, everybody="admin" in caller.roles):
        if project.id == id:
            return json_response(wire.encode({"project": _project(call, project)}))
    raise NotFound(f"Could not find project: {id}.")


async def _visible_projects(call: Call, caller: Token, *, everybody: bool, user_id: str | None = None) -> list[Project]:
    if call.signed:  # a key is for its project
        return [await call.state.store.get_project(caller.project or "")]
    if call.open:
        id = _open_project(call, caller)
        return [Project(id=id, name=id, domain=wire.DOMAIN_ID, callback_secret="", created_us=0)]
    if everybody:
        return await call.state.store.list_projects()
    return await call.state.identities.projects_of(user_id or caller.user_id)


def _open_project(call: Call, caller: Token) -> ProjectId:
    """Without auth a project exists as soon as somebody names it."""
    name = call.request.query_params.get("name")
    if not name or name == call.state.settings.region:
        return caller.project or DEFAULT_PROJECT
    return check_project(name)


async def _projects(call: Call, caller: Token, projects: list[Project]) -> Response:
    """Those of the asked name.  The region's name stands for the caller's own project, as in Huawei Cloud, if none has it."""
    name = call.request.query_params.get("name")
    if name is not None:
        own = [one for one in projects if one.id == caller.project] if name == call.state.settings.region else []
        projects = [one for one in projects if one.name == name] or own
    return listing(call, "projects", [_project(call, project) for project in projects])


def listing(call: Call, name: str, entries: list[Any]) -> Response:
    """A list; in pages where the request asks for them with Huawei's `page` and `per_page`.  Errors: InvalidInput."""
    url = f"{call.url}/{name}"
    query = [(key, value) for key, value in call.request.query_params.multi_items() if key not in ("page", "per_page")]
    page, size = _number(call, "page", 1), _number(call, "per_page", 0)
    if not size:
        return json_response(wire.listing_bytes(name, entries, url))

    def at(number: int) -> str:
        return f"{url}?{urlencode([*query, ('page', number), ('per_page', size)])}"

    last = max(1, math.ceil(len(entries) / size))
    next_url = at(page + 1) if page < last else None
    previous_url = at(min(page - 1, last)) if page > 1 else None
    shown = entries[(page - 1) * size : page * size]
    return json_response(wire.listing_bytes(name, shown, at(page), next=next_url, previous=previous_url))


def _number(call: Call, name: str, otherwise: int) -> int:
    value = call.request.query_params.get(name)
    if value is None:
        return otherwise
    if not (value.isascii() and value.isdigit() and int(value[:9]) > 0 and len(value) < 9):
        raise InvalidInput(f"{name} is {value[:40]!r}; it takes a whole number above 0", path=f"?{name}")
    return int(value)


def _project(call: Call, project: Project) -> object:
    return wire.project_entry(wire.Member(project.id, project.name), enabled=project.enabled, url=call.url)


async def list_users(call: Call) -> Response:
    """All users for an admin, else the caller."""
    caller, name = await call.caller(), call.request.query_params.get("name")
    if call.open:
        users = [_anyone()]
    elif "admin" in caller.roles:
        users = await call.state.store.list_users()
    else:
        users = [await call.state.store.get_user(caller.user_id)]
    entries = [_user(call, user) for user in users if name is None or user.name == name]
    return json_response(wire.listing_bytes("users", entries, f"{call.url}/users"))


async def show_user(call: Call) -> Response:
    caller, id = await call.caller(), call.request.path_params["id"]
    if id != caller.user_id and "admin" not in caller.roles:
        raise Forbidden("You are not authorized to perform the requested action: identity:get_user.")
    if call.open:
        return json_response(wire.encode({"user": _user(call, _anyone())}))
    for user in await call.state.store.list_users():
        if user.id == id:
            return json_response(wire.encode({"user": _user(call, user)}))
    raise NotFound(f"Could not find user: {id}.")


def _anyone() -> User:
    return User(id=ANYONE.id, name=ANYONE.name, domain=wire.DOMAIN_ID, password_hash="", created_us=0)


def _user(call: Call, user: User) -> object:
    return wire.user_entry(wire.Member(user.id, user.name), enabled=user.enabled, url=call.url)


async def list_domains(call: Call) -> Response:
    await call.caller()
    name, account = call.request.query_params.get("name"), call.state.settings.account
    known = name is None or name.lower() == wire.DOMAIN_ID or name == account
    entries = [wire.domain_entry(call.url, account)] if known else []
    return json_response(wire.listing_bytes("domains", entries, f"{call.url}/domains"))


async def show_domain(call: Call) -> Response:
    await call.caller()
    if call.request.path_params["id"] != wire.DOMAIN_ID:
        raise NotFound(f"Could not find domain: {call.request.path_params['id']}.")
    return json_response(wire.encode({"domain": wire.domain_entry(call.url, call.state.settings.account)}))
