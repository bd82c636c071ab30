"""Glance's URLs: image tasks, images, schemas and versions under `/v2`, beside the other wires on the same port.

Rules
1. `/v2.0` … `/v2.17` are names of `/v2`; only what follows them with `tasks`, `images`, `schemas` or `info` is ours, so that
   other vendors' `/v2/…` paths stay theirs.
2. Another version in front of these words, or a version of `/v2.` that Glance does not have, is answered 300 with the versions.
   Glance does so for every unknown first word; here those belong to other wires, and are not found.
Source: openstack/glance glance/api/v2/router.py, glance/api/middleware/version_negotiation.py, glance/api/versions.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from milepost.server.facades.glance import images, tasks
from milepost.server.facades.glance.endpoint import Call, Endpoint, Handler, json_response
from milepost.server.http import base_url
from milepost.server.state import AppState
from milepost.wire.glance import schemas


class _Words(Convertor[str]):
    """A path segment that is one of some words."""

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _Version(_Words):
    regex = schemas.IS_VERSION.pattern


class _OtherVersion(_Words):
    regex = r"v[0-9]+(?:\.[0-9]+)?"


class _OtherMinor(_Words):
    regex = r"v2\.[0-9]+"


class _Word(_Words):
    regex = "tasks|images|schemas|info"


register_url_convertor("glance", _Version())
register_url_convertor("glance_other", _OtherVersion())
register_url_convertor("glance_minor", _OtherMinor())
register_url_convertor("glance_word", _Word())


def routes(_: AppState) -> list[BaseRoute]:
    """What is polled comes first; known versions before the others: what they do not match is another version."""
    nothing = Endpoint()
    own = {
        "/tasks/{id}": Endpoint(GET=tasks.show_task, DELETE=tasks.refuse_delete),
        "/tasks": Endpoint(GET=tasks.list_tasks, POST=tasks.create_task),
        "/images": Endpoint(GET=images.list_images),
        "/images/{id}": Endpoint(
            GET=images.show_image, PATCH=images.patch_image, DELETE=images.delete_image, allow="GET, PATCH, DELETE"
        ),
        "/images/{id}/file": Endpoint(GET=images.download_image),
        "/images/{id}/tasks": Endpoint(GET=images.show_image_tasks),
        "/images/{id}/tags/{tag}": Endpoint(PUT=images.put_tag, DELETE=images.delete_tag),
        "/images/{id}/actions/deactivate": Endpoint(POST=images.deactivate_image),
        "/images/{id}/actions/reactivate": Endpoint(POST=images.reactivate_image),
        "/schemas/task": Endpoint(GET=_document(lambda call: schemas.task_schema(tasks.own_kinds(call)))),
        "/schemas/tasks": Endpoint(GET=_document(lambda call: schemas.tasks_schema(tasks.own_kinds(call)))),
        "/schemas/image": Endpoint(GET=_document(lambda _: schemas.image_schema())),
        "/schemas/images": Endpoint(GET=_document(lambda _: schemas.images_schema())),
        "/info/import": Endpoint(GET=_document(lambda _: schemas.import_info())),
    }
    return [
        *(Route("/{version:glance}" + path, endpoint) for path, endpoint in own.items()),
        Route("/", choices),
        Route("/versions", list_versions),
        Route("/{version:glance}", redirect),
        Route("/{version:glance}/", nothing),
        Route("/{version:glance}/{word:glance_word}/{rest:path}", nothing),
        Route("/{version:glance_minor}", choices, methods=_EVERY),
        Route("/{version:glance_minor}/{rest:path}", choices, methods=_EVERY),
        Route("/{version:glance_other}/{word:glance_word}", choices, methods=_EVERY),
        Route("/{version:glance_other}/{word:glance_word}/{rest:path}", choices, methods=_EVERY),
    ]


_EVERY = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


async def choices(request: Request) -> Response:
    """300: which versions there are.  Needs no token."""
    return json_response(_versions(request), 300)


async def list_versions(request: Request) -> Response:
    """The same with 200."""
    return json_response(_versions(request))


async def redirect(request: Request) -> Response:
    """`/v2` is `/v2/`, which is nothing: clients only look whether something answers."""
    url = f"{base_url(request.scope, request.app.state)}/v2/"
    return Response(b"", 302, {"location": url, "content-type": "text/plain; charset=utf8"})


def _versions(request: Request) -> bytes:
    return msgspec.json.encode(schemas.versions(base_url(request.scope, request.app.state)))


def _document(make: Callable[[Call], dict[str, Any]]) -> Handler:
    async def show(call: Call) -> Response:
        return json_response(msgspec.json.encode(make(call)))

    return show
