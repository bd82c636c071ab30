"""Keystone's URLs: `/v3/…` and, for clients that start from an unversioned URL, `/identity` and `/identity/v3/…`.

With auth `required` tokens, users and projects are the store's.  With auth `none` every password is right, the project is the
one that the request names, and the token says nothing but that name.  There is one domain, `default`.
Source: see `wire.keystone`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from milepost.errors import Forbidden, InvalidInput, MilepostError, NotFound, Unauthenticated
from milepost.job import ProjectId
from milepost.server.auth import (
    DEFAULT_PROJECT,
    OPEN_PREFIX,
    Identity,
    check_project,
    identify,
    open_token,
    project_of_open_token,
    read_token,
)
from milepost.server.errors import retry_after_s, status_of
from milepost.server.http import base_url, decode, read_body
from milepost.server.identity import Issued, short_id
from milepost.server.state import AppState
from milepost.store import Project, Token, User
from milepost.wire import keystone as wire
from milepost.wire.huawei.errors import encode_error, signature_invalid
from milepost.wire.signing.huawei import is_signed

BODY_BYTES_MAX = 64 << 10
ANYONE = wire.Member("anyone", "anyone")
Handler = Callable[["Call"], Awaitable[Response]]


class Call:
    """One request, and the URL that its `/v3` has for this client."""

    def __init__(self, request: Request, prefix: str) -> None:
        self.request = request
        self.state: AppState = request.app.state
        self.headers: dict[bytes, bytes] = request.scope.get("headers_by_name") or dict(request.scope["headers"])
        self.base = base_url(request.scope, self.state)
        self.url = f"{self.base}{prefix}/v3"
        self.open = self.state.settings.auth == "none"

        self.signed = False  # whether the caller has shown an access key instead of a token

    def catalog(self, project: str | None) -> list[wire.Service]:
        return wire.catalog(self.base, self.state.settings.region, project)

    async def caller(self) -> Token:
        """The caller's own token, or what stands for one in a signed request.  Errors: Unauthenticated, Forbidden."""
        secret = read_token(self.headers)
        if secret is None and not self.open:
            if not is_signed(self.headers.get(b"authorization")):
                raise Unauthenticated("no token")
            return self._of_key(await identify(self.request.scope))
        return await self.token(secret or "")

    def _of_key(self, identity: Identity) -> Token:
        self.signed = True
        now_us = self.state.clock.now_us()
        return Token(
            digest="",
            user_id=identity.user_id,
            project=identity.project,
            roles=tuple(sorted(identity.roles)),
            methods=("key",),
            audit_id="",
            issued_us=now_us,
            expires_us=now_us,
        )

    async def token(self, secret: str) -> Token:
        """What a token stands for.  Errors: Unauthenticated."""
        return _open_token(self, secret) if self.open else await self.state.identities.read_token(secret)


def routes(_: AppState) -> list[BaseRoute]:
    """Keystone's URLs, under both prefixes."""
    return [
        route("/identity", "/identity", GET=versions),
        route("/identity/", "/identity", GET=versions),
        *_versioned(""),
        *_versioned("/identity"),
    ]


def _versioned(prefix: str) -> list[BaseRoute]:
    v3 = f"{prefix}/v3"
    return [
        route(v3, prefix, GET=version),
        route(f"{v3}/", prefix, GET=version),
        route(f"{v3}/auth/tokens", prefix, POST=issue, GET=validate, DELETE=revoke),
    ]


def route(path: str, prefix: str, **handlers: Handler) -> Route:
    allow = ", ".join(sorted({*handlers, "HEAD"} if "GET" in handlers else handlers))

    async def endpoint(request: Request) -> Response:
        call = Call(request, prefix)
        handler = handlers.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            response = json_response(wire.error_bytes(405, "The method is not allowed for the requested URL."), 405)
            response.headers["allow"] = allow
        else:
            try:
                response = await handler(call)
            except MilepostError as error:
                response = _refusal(call, error)
        response.headers["vary"] = "X-Auth-Token"
        response.headers["x-openstack-request-id"] = request.scope["request_id"]
        return response

    return Route(path, endpoint, methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])


def json_response(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def _refusal(call: Call, error: MilepostError) -> Response:
    """The error as Keystone answers it, or, about a signature, Huawei's gateway.  Why a login failed is not told."""
    status = status_of(error)
    if error.fields.get("reason") == "signature":
        refusal = signature_invalid(error.message)
        return json_response(encode_error(refusal, call.request.scope["request_id"]), refusal.status)
    message = wire.UNAUTHORIZED if status == 401 else "The server failed on this request." if status == 500 else error.message
    response = json_response(wire.error_bytes(status, message), status)
    if status == 401:
        response.headers["www-authenticate"] = f'Keystone uri="{call.url}"'
    wait_s = retry_after_s(error, status)
    if wait_s is not None:
        response.headers["retry-after"] = str(max(1, round(wait_s)))
    return response


# --- discovery -------------------------------------------------------------------------------------------------------


async def versions(call: Call) -> Response:
    return json_response(wire.versions_bytes(f"{call.url}/"), 300)


async def version(call: Call) -> Response:
    return json_response(wire.version_bytes(f"{call.url}/"))


# --- tokens ----------------------------------------------------------------------------------------------------------


async def issue(call: Call) -> Response:
    """A token by password, by token, or by application credential (an API key); 201, the token in `X-Subject-Token`."""
    limit_s = call.state.settings.body_s_max
    body = await read_body(call.request.receive, call.headers, limit_bytes=BODY_BYTES_MAX, limit_s=limit_s)
    auth = decode(wire.decode_auth, body).auth
    issued = _issue_open(call, auth) if call.open else await _issue(call, auth)
    response = json_response(await _describe(call, issued.token, user=_open_user(auth) if call.open else None), 201)
    response.headers["x-subject-token"] = issued.secret
    return response


async def _issue(call: Call, auth: wire.Auth) -> Issued:
    user, methods, before = await _authenticate(call, auth.identity)
    project = await _scope(call, auth.scope, user)
    if before is not None and before.name:  # an API key is for its own project only
        if project is not None and project.id != before.project:
            raise Unauthenticated("the credential is for another project")
        project = await call.state.store.get_project(before.project or "")
    try:
        return await call.state.identities.issue_token(user, project=project, methods=methods, parent=before)
    except Forbidden as error:
        raise Unauthenticated(error.message) from None  # as Keystone does for a project without a role


async def _authenticate(call: Call, identity: wire.IdentityPart) -> tuple[User, list[str], Token | None]:
    """Who it is, how that was shown, and the token that it was shown with, if it was one.  Errors: Unauthenticated."""
    identities = call.state.identities
    if "password" in identity.methods and identity.password is not None:
        given = identity.password.user
        named = wire.Named(given.id, given.name, given.domain)
        if named.key is None:
            raise InvalidInput("the user has neither id nor name", path="$.auth.identity.password.user")
        if not named.is_in_domain(given.name, call.state.settings.account):  # an account's owner has its name
            raise Unauthenticated("no such domain")
        return await identities.check_password(named.key, given.password), ["password"], None
    if "token" in identity.methods and identity.token is not None:
        token = await identities.read_token(identity.token.id)
        return await _live_user(call, token), ["token", *(one for one in token.methods if one != "token")], token
    if "application_credential" in identity.methods and identity.application_credential is not None:
        credential = identity.application_credential
        token = await identities.read_token(credential.secret)
        user = await _live_user(call, token)
        if not token.name or not _is_this_credential(credential, token, user):
            raise Unauthenticated("the credential's id or name is not the key's")
        return user, ["application_credential"], token
    raise Unauthenticated("the methods are password, token and application_credential")


async def _live_user(call: Call, token: Token) -> User:
    user = await call.state.store.get_user(token.user_id)
    if not user.enabled:
        raise Unauthenticated("the user is disabled")
    return user


def _is_this_credential(credential: wire.CredentialMethod, token: Token, user: User) -> bool:
    if credential.id is not None:
        return credential.id in (token.audit_id, short_id(token))  # what `key create` and `key list` show
    owner = credential.user.key if credential.user is not None else None
    return credential.name == token.name and owner in (user.id, user.name)


async def _scope(call: Call, scope: wire.Scope | str | None, user: User) -> Project | None:
    """The project a token is for.  Without a scope: the user's only project, as Keystone's default project; else none."""
    if isinstance(scope, str):
        if scope != "unscoped":
            raise InvalidInput("scope is an object or unscoped", path="$.auth.scope")
        return None
    if scope is None or (scope.project is None and scope.domain is None and scope.system is None):
        own = await call.state.identities.projects_of(user.id)
        return own[0] if len(own) == 1 else None
    if scope.project is None:
        raise Unauthenticated("there are no roles on a domain or on the system, only on projects")
    if scope.project.key is None:
        raise InvalidInput("the project has neither id nor name", path="$.auth.scope.project")
    if not scope.project.is_in_domain(user.name, call.state.settings.account):
        raise Unauthenticated("no such domain")
    try:
        return await call.state.store.get_project(scope.project.key)
    except NotFound:
        own = await call.state.identities.projects_of(user.id) if scope.project.key == call.state.settings.region else []
        if len(own) == 1:  # in Huawei Cloud a region's project has the region's name
            return own[0]
        raise Unauthenticated("no such project") from None


async def _describe(call: Call, token: Token, *, user: wire.Member | None = None) -> bytes:
    """The body that says what a token stands for."""
    project = None
    if token.project is not None:
        name = token.project if call.open else (await call.state.store.get_project(token.project)).name
        project = wire.Member(token.project, name)
    if user is None:
        name = token.user_id if call.open else await call.state.identities.user_name(token.user_id)
        user = wire.Member(token.user_id, name)
    with_catalog = "nocatalog" not in call.request.query_params
    return wire.token_bytes(
        user=user,
        methods=list(token.methods),
        audit_ids=token.audit_id.split("."),
        issued_us=token.issued_us,
        expires_us=token.expires_us,
        project=project,
        role_names=token.roles,
        services=call.catalog(token.project) if with_catalog else None,
    )


async def validate(call: Call) -> Response:
    """What the token in `X-Subject-Token` stands for: for its user, or an admin."""
    secret, token = await _subject(call)
    response = json_response(await _describe(call, token))
    response.headers["x-subject-token"] = secret
    return response


async def revoke(call: Call) -> Response:
    """The token in `X-Subject-Token` is refused from now on."""
    secret, _ = await _subject(call)
    if not call.open:
        await call.state.identities.revoke(secret)
    return Response(status_code=204)


async def _subject(call: Call) -> tuple[str, Token]:
    caller = await call.caller()
    secret = call.headers.get(b"x-subject-token", b"").decode("latin-1")
    if not secret:
        raise InvalidInput("X-Subject-Token is missing", path="X-Subject-Token")
    try:
        token = await call.token(secret)
    except Unauthenticated:
        raise NotFound("Could not find token.") from None
    if caller.user_id != token.user_id and "admin" not in caller.roles:
        raise Forbidden("You are not authorized to perform the requested action: identity:validate_token.")
    return secret, token


# --- auth none -------------------------------------------------------------------------------------------------------


def _issue_open(call: Call, auth: wire.Auth) -> Issued:
    """Every credential is right; the token names the project that the request named."""
    scope = auth.scope if isinstance(auth.scope, wire.Scope) else None
    if scope is not None and scope.project is not None and scope.project.key is not None:
        project = check_project(scope.project.key)
    elif auth.identity.token is not None and auth.identity.token.id.startswith(OPEN_PREFIX):
        project = check_project(project_of_open_token(auth.identity.token.id))
    else:
        project = DEFAULT_PROJECT
    secret = open_token(project)
    return Issued(secret, _open_token(call, secret, tuple(auth.identity.methods)))


def _open_token(call: Call, secret: str, methods: tuple[str, ...] = ("password",)) -> Token:
    now_us = call.state.clock.now_us()
    return Token(
        digest="",
        user_id=ANYONE.id,
        project=ProjectId(project_of_open_token(secret) if secret.startswith(OPEN_PREFIX) else DEFAULT_PROJECT),
        roles=("admin", "member"),
        methods=methods,
        audit_id=wire.stable_id("open", secret)[:22],
        issued_us=now_us,
        expires_us=now_us + int(call.state.settings.token_s * 1e6),
    )


def _open_user(auth: wire.Auth) -> wire.Member:
    """The user by the name that the request gave."""
    given = auth.identity.password.user if auth.identity.password is not None else None
    name = (given.name or given.id) if given is not None else None
    return ANYONE if name is None else msgspec.structs.replace(ANYONE, name=name)
