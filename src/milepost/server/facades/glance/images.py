"""The images that imports made, over HTTP: show, list, download, patch, tag, deactivate, delete.

Source: openstack/glance glance/api/v2/images.py, image_data.py, image_tags.py and image_actions.py.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from starlette.responses import Response, StreamingResponse

from milepost.errors import Conflict, NotFound, Unavailable
from milepost.image import IMAGE, Image, ImageStatus, decode_image, encode_image
from milepost.server.facades.glance.endpoint import Call, json_response
from milepost.server.facades.glance.tasks import check_policy, list_image_tasks
from milepost.store import Resource
from milepost.wire.glance.errors import Refusal
from milepost.wire.glance.images import (
    Viewer,
    encode_image_body,
    encode_image_page,
    may_change,
    may_see,
    not_found,
    read_image_query,
    read_range,
    select_images,
)
from milepost.wire.glance.patch import add_tag, apply_patch, read_patch, remove_tag

WRITES_MAX = 5  # times a change is tried again when another one came between


async def show_image(call: Call) -> Response:
    image, _ = await find_image(call)
    return json_response(encode_image_body(image))


async def list_images(call: Call) -> Response:
    query = read_image_query(call.query)
    stored = await call.state.store.list_resources(IMAGE)
    page = select_images((decode_image(resource.doc) for resource in stored), query, viewer_of(call))
    return json_response(encode_image_page(page, query))


async def show_image_tasks(call: Call) -> Response:
    check_policy(call)
    image, _ = await find_image(call)
    return await list_image_tasks(call, image.id, image.job_id)


async def download_image(call: Call) -> Response:
    """The bytes, or a range of them; 204 while there are none.  `Content-MD5` is hex and always of the whole image."""
    image, _ = await find_image(call)
    if image.status is ImageStatus.DEACTIVATED and not call.identity.is_admin:
        raise Refusal(403, "The requested image has been deactivated. Image data download is forbidden.")
    if image.object_key is None or image.size is None:
        return Response(status_code=204)
    objects = call.state.objects
    if objects is None:
        raise Unavailable("this server has no object storage", hint="pip install 'milepost[images]'")
    asked = read_range(call.header(b"range"), image.size)
    if await objects.size_bytes(image.object_key) is None:  # deleted between the two reads
        raise not_found(image.id)
    start, length = asked or (0, image.size)
    headers = {"content-type": "application/octet-stream", "content-length": str(length)}
    if image.checksum:
        headers["content-md5"] = image.checksum
    if asked is not None:
        headers["content-range"] = f"bytes {start}-{start + length - 1}/{image.size}"
    if length == 0:
        return Response(b"", 200, headers)
    return StreamingResponse(objects.read(image.object_key, start=start, length=length), 200 if asked is None else 206, headers)


async def delete_image(call: Call) -> Response:
    """The record goes first, then the bytes: a crash between leaves bytes that nothing names, never a record without bytes."""
    try:
        image, _ = await find_image(call)
    except Refusal:
        raise _not_deleted(call) from None
    if image.protected:
        raise Refusal(403, f"Image {image.id} is protected and cannot be deleted.")
    _check_change(call, image, "delete_image")
    if not await call.state.store.delete_resource(IMAGE, image.id):
        raise _not_deleted(call)
    if image.object_key is not None and call.state.objects is not None:
        await call.state.objects.delete(image.object_key)
    return Response(status_code=204)


async def patch_image(call: Call) -> Response:
    changes = read_patch(await call.body(), call.header(b"content-type"))
    now_us = call.state.clock.now_us()

    def change(image: Image) -> Image:
        _check_change(call, image, "modify_image")
        return apply_patch(image, changes, admin=call.identity.is_admin, now_us=now_us)

    return json_response(encode_image_body(await _rewrite(call, change)))


async def put_tag(call: Call) -> Response:
    return await _change_tags(call, add_tag)


async def delete_tag(call: Call) -> Response:
    return await _change_tags(call, remove_tag)


async def _change_tags(call: Call, how: Callable[..., Image]) -> Response:
    now_us = call.state.clock.now_us()

    def change(image: Image) -> Image:
        _check_change(call, image, "modify_image")
        return how(image, call.params["tag"], now_us=now_us)

    await _rewrite(call, change)
    return Response(status_code=204)


async def deactivate_image(call: Call) -> Response:
    return await _set_status(call, ImageStatus.ACTIVE, ImageStatus.DEACTIVATED, "deactivate")


async def reactivate_image(call: Call) -> Response:
    return await _set_status(call, ImageStatus.DEACTIVATED, ImageStatus.ACTIVE, "reactivate")


async def _set_status(call: Call, old: ImageStatus, new: ImageStatus, verb: str) -> Response:
    """From `old` to `new`; an image that is `new` already stays so."""
    now_us = call.state.clock.now_us()

    def change(image: Image) -> Image:
        _check_change(call, image, verb)
        if image.status not in (old, new):
            raise Refusal(403, f"Not allowed to {verb} image in status '{image.status}'")
        return msgspec.structs.replace(image, status=new, updated_us=now_us)

    await _rewrite(call, change)
    return Response(status_code=204)


async def find_image(call: Call) -> tuple[Image, Resource]:
    """Errors: Refusal 404 for what never was, is deleted, or is not the caller's to see."""
    image_id: str = call.params["id"]
    try:
        resource = await call.state.store.get_resource(IMAGE, image_id)
    except NotFound:
        raise not_found(image_id) from None
    image = decode_image(resource.doc)
    if not may_see(image, viewer_of(call)):
        raise not_found(image_id)
    return image, resource


async def _rewrite(call: Call, change: Callable[[Image], Image]) -> Image:
    """Read, change, write; again when somebody else wrote between.  Errors: Refusal, Conflict after too many tries."""
    for _ in range(WRITES_MAX):
        image, resource = await find_image(call)
        changed = change(image)
        try:
            await call.state.store.put_resource(
                msgspec.structs.replace(resource, doc=encode_image(changed), updated_us=changed.updated_us),
                if_version=resource.version,
            )
        except Conflict:
            continue
        return changed
    raise Conflict(f"image {call.params['id']} is being changed by others; try again")


def viewer_of(call: Call) -> Viewer:
    return Viewer(call.identity.project, call.visible is None)


def _check_change(call: Call, image: Image, action: str) -> None:
    if not may_change(image, viewer_of(call)):
        raise Refusal(403, f"You are not authorized to complete {action} action.")


def _not_deleted(call: Call) -> Refusal:
    return Refusal(404, f"Failed to find image {call.params['id']} to delete")
