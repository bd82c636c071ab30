"""The OpenAPI document of the native API, made from the route table and the wire's structs: nothing in it is written twice."""

from __future__ import annotations

import functools
import types
from importlib.metadata import version
from typing import Any, get_args, get_origin

import msgspec

from milepost.server.errors import STATUS
from milepost.server.native import ROUTES
from milepost.server.route import Parameter, Route
from milepost.wire.native import NativeEvent, Problem

ABOUT = """Durable jobs for slow cloud work.

Every error is an RFC 9457 problem with a stable `code`. A poll of an unchanged job is a 304 when it sends `If-None-Match`;
`Prefer: wait=N` answers when the job is final or has changed; `Retry-After` is on every answer about a job that is not final.
Streams are server-sent events and resume from `Last-Event-ID`."""

PROBLEMS = {
    400: "the request is wrong; `path` names the field",
    401: "no token, or one that is not valid any more",
    403: "the caller may not do this",
    404: "never existed, or belongs to another project",
    409: "the job's state does not allow it, or the idempotency key had another body",
    410: "the job existed and has expired; `state` is its final state",
    413: "the body or the input is too large",
    415: "the body is not JSON",
    429: "the project sends too much; `Retry-After` says when to go on",
    503: "the store does not answer, or all streams are taken; try again",
}


@functools.cache
def document(*, token: bool = True) -> bytes:
    """The document as JSON text."""
    return msgspec.json.encode(build(token=token))


def build(*, token: bool = True) -> dict[str, Any]:
    """The document as a value.  `token`: whether the server asks for one."""
    schemas = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Milepost", "version": version("milepost"), "summary": "Durable jobs", "description": ABOUT},
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"},
            },
        },
        "security": [*([] if token else [{}]), {"bearer": []}, {"token": []}],
    }


class _Schemas:
    """Schemas of types, with those of structs in `components`."""

    def __init__(self, listed: list[Any]) -> None:
        schemas, self.components = msgspec.json.schema_components(listed, ref_template="#/components/schemas/{name}")
        self._of = dict(zip(map(repr, listed), schemas, strict=True))

    def of(self, type_: Any) -> dict[str, Any]:
        parts = _parts(type_)
        if len(parts) > 1:
            return {"oneOf": [self._of[repr(part)] for part in parts]}
        return self._of[repr(type_)]


def _schemas() -> _Schemas:
    wanted: dict[str, Any] = {repr(one): one for one in (Problem, NativeEvent)}
    for route in ROUTES:
        for type_ in (route.body, *(type_ for type_, _ in route.answers.values())):
            if type_ is not None:
                wanted.update((repr(part), part) for part in _parts(type_))
    return _Schemas(list(wanted.values()))


def _parts(type_: Any) -> tuple[Any, ...]:
    return get_args(type_) if get_origin(type_) is types.UnionType else (type_,)


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__ if route.handler.__name__ != "show" else "show_job",
        "tags": [route.tag],
        "summary": route.about,
        "description": route.handler.__doc__ or "",
        "parameters": [*_path_parameters(route.path), *map(_parameter, route.parameters)],
        "responses": _responses(route, schemas),
    }
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schemas.of(route.body)}}}
    if route.open:
        operation["security"] = []
    return operation


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _parameter(one: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": one.type}
    if one.name == "limit":
        schema["minimum"] = 1
    if one.name == "after" and one.type == "string":
        schema["minLength"] = 1
    if one.choices:
        schema["enum"] = list(one.choices)
    if one.many:
        schema = {"type": "array", "items": schema}
    return {"name": one.name, "in": one.place, "description": one.about, "schema": schema}


def _responses(route: Route, schemas: _Schemas) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, (type_, about) in sorted(route.answers.items()):
        responses[str(status)] = {"description": about}
        if type_ is not None:
            responses[str(status)]["content"] = _content(route, schemas.of(type_))
    for status in sorted({*route.errors, *(() if route.open else (400, 401, 403, 429, 503))} - route.answers.keys()):
        assert status in STATUS.values() or status == 413
        problem = {"application/problem+json": {"schema": schemas.of(Problem)}}
        responses[str(status)] = {"description": PROBLEMS[status], "content": problem}
    return responses


def _content(route: Route, schema: dict[str, Any]) -> dict[str, Any]:
    if route.path == "/docs":
        return {"text/html": {"schema": schema}}
    if route.path == "/metrics":
        return {"text/plain": {"schema": schema}}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if route.tag == "events":
        content["text/event-stream"] = {"schema": {"type": "string", "description": "each `data` is a NativeEvent"}}
    return content
