"""Golden exchanges of Glance's image API, as far as images that imports made need it.

Source: what Glance 33 answers, and openstack/glance glance/api/v2/images.py and image_data.py.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from glance_server import AT_US, OTHER, OWNER, Server

from milepost.image import Image, ImageStatus, Visibility

ID = "0d9bf6f0-3c5e-4f2d-8f0c-4f1b7c1e9a02"
UNKNOWN = "11111111-2222-4333-8444-555555555555"
DATA = b"0123456789abcdef"
MD5, SHA512 = hashlib.md5(DATA).hexdigest(), hashlib.sha512(DATA).hexdigest()
JSON = {"accept": "application/json"}
V21 = {"content-type": "application/openstack-images-v2.1-json-patch", **JSON}
V20 = {"content-type": "application/openstack-images-v2.0-json-patch", **JSON}


def tiny(id: str = ID, **fields: Any) -> Image:
    """An image of 16 bytes, as an import leaves it."""
    given: dict[str, Any] = {
        "name": "tiny",
        "status": ImageStatus.ACTIVE,
        "disk_format": "raw",
        "container_format": "bare",
        "size": 16,
        "virtual_size": 16,
        "checksum": MD5,
        "os_hash_algo": "sha512",
        "os_hash_value": SHA512,
        "owner": OWNER,
        "properties": {"os_distro": "demo"},
        "object_key": f"images/{id}",
        "created_us": AT_US + 1_000_000,
        "updated_us": AT_US + 1_000_000,
    }
    return Image(id=id, **{**given, **fields})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = await Server().open()
    await made.put_image(tiny(), DATA)
    yield made
    await made.store.close()


async def refused(server: Server, method: str, url: str, body: Any = b"", headers: Any = JSON, **more: Any) -> tuple[int, str]:
    answer = await server.ask(method, url, body, headers=headers, **more)
    message: str = answer.json["message"]
    return answer.status, message.removesuffix("<br /><br />\n\n\n")


# --- show -----------------------------------------------------------------------------------------------------------


async def test_show_has_every_key_in_glances_order(server: Server) -> None:
    answer = await server.ask("GET", f"/v2/images/{ID}")
    assert answer.headers["content-type"] == "application/json"
    assert answer.text == (
        '{"os_distro":"demo","name":"tiny","disk_format":"raw","container_format":"bare","visibility":"shared","size":16,'
        f'"virtual_size":16,"status":"active","checksum":"{MD5}","protected":false,"min_ram":0,"min_disk":0,"owner":"{OWNER}",'
        f'"os_hidden":false,"os_hash_algo":"sha512","os_hash_value":"{SHA512}","id":"{ID}",'
        '"created_at":"2026-03-04T05:06:08Z","updated_at":"2026-03-04T05:06:08Z","tags":[],'
        f'"self":"/v2/images/{ID}","file":"/v2/images/{ID}/file","schema":"/v2/schemas/image"}}'
    )


async def test_a_queued_image_has_nulls_and_no_bytes(server: Server) -> None:
    await server.put_image(Image(id=UNKNOWN, owner=OWNER, created_us=AT_US, updated_us=AT_US))
    image = (await server.ask("GET", f"/v2/images/{UNKNOWN}")).json
    assert image["status"] == "queued"
    assert [image[key] for key in ("size", "virtual_size", "checksum", "os_hash_algo", "os_hash_value")] == [None] * 5
    answer = await server.ask("GET", f"/v2/images/{UNKNOWN}/file")
    assert (answer.status, answer.body) == (204, b"")


@pytest.mark.parametrize("image_id", [UNKNOWN, "zz", ID.upper()])
async def test_an_unknown_image_is_404(server: Server, image_id: str) -> None:
    for url in (f"/v2/images/{image_id}", f"/v2/images/{image_id}/file"):
        assert await refused(server, "GET", url) == (404, f"No image found with ID {image_id}")


@pytest.mark.parametrize(("visibility", "status"), [("public", 200), ("community", 200), ("shared", 404), ("private", 404)])
async def test_another_project_sees_public_and_community_images_only(server: Server, visibility: Visibility, status: int) -> None:
    await server.put_image(tiny(UNKNOWN, visibility=Visibility(visibility)), DATA)
    for url in (f"/v2/images/{UNKNOWN}", f"/v2/images/{UNKNOWN}/file"):
        assert (await server.ask("GET", url, token="other")).status == status
        assert (await server.ask("GET", url, token="member")).status == 200
    assert (await server.ask("DELETE", f"/v2/images/{UNKNOWN}", token="other")).status == (403 if status == 200 else 404)
    assert (await server.ask("PATCH", f"/v2/images/{UNKNOWN}", [], token="other", headers=V21)).status == (
        403 if status == 200 else 404
    )


# --- download -------------------------------------------------------------------------------------------------------


async def test_download_sends_the_bytes_with_the_md5_in_hex(server: Server) -> None:
    answer = await server.ask("GET", f"/v2/images/{ID}/file")
    assert (answer.status, answer.body) == (200, DATA)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert (answer.headers["content-length"], answer.headers["content-md5"]) == ("16", MD5)
    assert not {"etag", "accept-ranges"} & set(answer.headers)


@pytest.mark.parametrize(
    ("range_", "data", "content_range"),
    [
        ("bytes=0-3", b"0123", "bytes 0-3/16"),
        ("bytes=4-", b"456789abcdef", "bytes 4-15/16"),
        ("bytes=-3", b"def", "bytes 13-15/16"),
        ("bytes=-300", DATA, "bytes 0-15/16"),
        ("bytes=8-100", b"89abcdef", "bytes 8-15/16"),
        ("bytes=15-15", b"f", "bytes 15-15/16"),
    ],
)
async def test_a_range_is_206_with_the_md5_of_the_whole(server: Server, range_: str, data: bytes, content_range: str) -> None:
    answer = await server.ask("GET", f"/v2/images/{ID}/file", headers={"range": range_})
    assert (answer.status, answer.body) == (206, data)
    assert answer.headers["content-range"] == content_range
    assert (answer.headers["content-length"], answer.headers["content-md5"]) == (str(len(data)), MD5)


@pytest.mark.parametrize(
    ("range_", "status", "message"),
    [
        ("bytes=20-30", 416, "Invalid start position in Range header"),
        ("bytes=16-", 416, "Invalid start position in Range header"),
        ("bytes=0-1,4-5", 400, "Requests with multiple ranges are not supported in Glance"),
        ("bytes=abc", 416, "Invalid Range header."),
        ("items=0-1", 416, "Invalid Range header."),
        ("bytes=5-2", 416, "Invalid Range header."),
        ("bytes=-", 416, "Invalid Range header."),
    ],
)
async def test_a_range_that_cannot_be_sent(server: Server, range_: str, status: int, message: str) -> None:
    found, text = await refused(server, "GET", f"/v2/images/{ID}/file", headers={"range": range_, **JSON})
    assert found == status
    assert text.startswith(message)


async def test_an_empty_image_downloads_as_nothing(server: Server) -> None:
    empty = hashlib.md5(b"").hexdigest()
    await server.put_image(tiny(UNKNOWN, size=0, virtual_size=None, checksum=empty), b"")
    answer = await server.ask("GET", f"/v2/images/{UNKNOWN}/file")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")


async def test_without_a_checksum_there_is_no_content_md5(server: Server) -> None:
    await server.put_image(tiny(UNKNOWN, checksum=None), DATA)
    assert "content-md5" not in (await server.ask("GET", f"/v2/images/{UNKNOWN}/file")).headers


async def test_a_deactivated_image_downloads_for_admins_only(server: Server) -> None:
    assert (await server.ask("POST", f"/v2/images/{ID}/actions/deactivate")).status == 204
    assert (await server.ask("POST", f"/v2/images/{ID}/actions/deactivate")).status == 204, "twice is once"
    assert (await server.ask("GET", f"/v2/images/{ID}")).json["status"] == "deactivated"
    assert await refused(server, "GET", f"/v2/images/{ID}/file", token="member") == (
        403,
        "The requested image has been deactivated. Image data download is forbidden.",
    )
    assert (await server.ask("GET", f"/v2/images/{ID}/file")).body == DATA
    assert (await server.ask("POST", f"/v2/images/{ID}/actions/reactivate")).status == 204
    assert (await server.ask("GET", f"/v2/images/{ID}/file", token="member")).body == DATA


@pytest.mark.parametrize(
    ("method", "url", "allow"),
    [
        ("HEAD", f"/v2/images/{ID}", "GET, PATCH, DELETE"),
        ("PUT", f"/v2/images/{ID}", "GET, PATCH, DELETE"),
        ("HEAD", f"/v2/images/{ID}/file", "GET"),
        ("POST", "/v2/images", "GET"),
    ],
)
async def test_other_methods_are_405(server: Server, method: str, url: str, allow: str) -> None:
    answer = await server.ask(method, url)
    assert (answer.status, answer.headers["allow"]) == (405, allow)


# --- delete ---------------------------------------------------------------------------------------------------------


async def test_delete_removes_the_record_and_the_bytes(server: Server) -> None:
    assert (await server.ask("DELETE", f"/v2/images/{ID}")).status == 204
    assert server.objects.kept == {}
    assert await refused(server, "GET", f"/v2/images/{ID}") == (404, f"No image found with ID {ID}")
    assert await refused(server, "DELETE", f"/v2/images/{ID}") == (404, f"Failed to find image {ID} to delete")
    assert (await server.ask("GET", "/v2/images")).json["images"] == []


async def test_a_protected_image_stays(server: Server) -> None:
    await server.put_image(tiny(protected=True), DATA)
    assert await refused(server, "DELETE", f"/v2/images/{ID}") == (
        403,
        f"Image {ID} is protected and cannot be deleted.",
    )
    assert (await server.ask("GET", f"/v2/images/{ID}/file")).body == DATA


# --- patch ----------------------------------------------------------------------------------------------------------


async def patch(server: Server, *operations: Any, token: str = "admin") -> Any:
    answer = await server.ask("PATCH", f"/v2/images/{ID}", list(operations), headers=V21, token=token)
    return answer.json if answer.status == 200 else (answer.status, answer.json["message"].removesuffix("<br /><br />\n\n\n"))


async def test_a_patch_renames_tags_and_sets_properties(server: Server) -> None:
    server.clock.at_us += 9_000_000
    image = await patch(
        server,
        {"op": "replace", "path": "/name", "value": "tiny2"},
        {"op": "replace", "path": "/tags", "value": ["b", "a", "b"]},
        {"op": "replace", "path": "/min_disk", "value": 3},
        {"op": "replace", "path": "/protected", "value": True},
        {"op": "replace", "path": "/visibility", "value": "public"},
        {"op": "add", "path": "/a~1b", "value": "c"},
        {"op": "remove", "path": "/os_distro"},
    )
    assert (image["name"], image["tags"], image["min_disk"], image["protected"]) == ("tiny2", ["b", "a"], 3, True)
    assert (image["visibility"], image["a/b"], image["updated_at"]) == ("public", "c", "2026-03-04T05:06:16Z")
    assert "os_distro" not in image
    assert (await server.ask("GET", f"/v2/images/{ID}")).json == image


async def test_the_older_patch_form_is_taken(server: Server) -> None:
    answer = await server.ask("PATCH", f"/v2/images/{ID}", [{"replace": "/name", "value": "x"}], headers=V20)
    assert (answer.status, answer.json["name"]) == (200, "x")


@pytest.mark.parametrize(
    ("operation", "status", "message"),
    [
        ({"op": "replace", "path": "/nope", "value": "x"}, 409, "Property nope does not exist."),
        ({"op": "remove", "path": "/nope"}, 409, "Property nope does not exist."),
        ({"op": "remove", "path": "/name"}, 403, "Property name may not be removed."),
        *(
            ({"op": "replace", "path": f"/{key}", "value": 1}, 403, f"Attribute '{key}' is read-only.")
            for key in ("size", "id", "checksum", "status", "file", "owner")
        ),
        ({"op": "add", "path": "/deleted", "value": "x"}, 403, "Attribute 'deleted' is reserved."),
        (
            {"op": "replace", "path": "/disk_format", "value": "qcow2"},
            403,
            "Attribute disk_format can be only replaced for a queued image.",
        ),
        (
            {"op": "move", "path": "/name"},
            400,
            "Invalid operation: `move`. It must be one of the following: add, remove, replace.",
        ),
        ({"op": "replace", "path": "/name"}, 400, 'Operation "replace" requires a member named "value".'),
        ({"op": "replace", "path": "name", "value": "x"}, 400, 'Pointer `name` does not start with "/".'),
        ({"op": "add", "path": "/a/b", "value": "x"}, 400, "Invalid JSON pointer for this resource: '/a/b'"),
        ("x", 400, "Operations must be JSON objects."),
    ],
)
async def test_a_patch_that_is_refused_changes_nothing(server: Server, operation: Any, status: int, message: str) -> None:
    before = (await server.ask("GET", f"/v2/images/{ID}")).json
    assert await patch(server, {"op": "replace", "path": "/name", "value": "changed"}, operation) == (status, message)
    assert (await server.ask("GET", f"/v2/images/{ID}")).json == before


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(("/custom", value) for value in (5, None, {}, True)),
        ("/name", 5),
        ("/name", "x" * 256),
        ("/visibility", "all"),
        ("/protected", "yes"),
        ("/min_ram", -1),
        ("/tags", "x"),
        ("/tags", ["x" * 256]),
        ("/" + "k" * 256, "x"),
    ],
)
async def test_a_value_of_another_type_is_400(server: Server, path: str, value: Any) -> None:
    status, message = await patch(server, {"op": "add", "path": path, "value": value})
    assert status == 400
    assert message.startswith("Provided object does not match schema 'image': ")


async def test_patch_needs_its_content_type_and_an_array(server: Server) -> None:
    assert (await refused(server, "PATCH", f"/v2/images/{ID}", []))[0] == 415
    assert await refused(server, "PATCH", f"/v2/images/{ID}", {}, headers=V21) == (
        400,
        "Request body must be a JSON array of operation objects.",
    )
    assert await refused(server, "PATCH", f"/v2/images/{ID}", headers=V21) == (400, "Body expected in request.")
    assert await refused(server, "PATCH", f"/v2/images/{ID}", b"[", headers=V21) == (400, "Malformed JSON in request body.")


async def test_tags_are_put_and_deleted_one_by_one(server: Server) -> None:
    for _ in range(2):
        assert (await server.ask("PUT", f"/v2/images/{ID}/tags/a b")).status == 204
    assert (await server.ask("GET", f"/v2/images/{ID}")).json["tags"] == ["a b"]
    assert (await server.ask("PUT", f"/v2/images/{ID}/tags/{'x' * 256}")).status == 400
    assert (await server.ask("DELETE", f"/v2/images/{ID}/tags/a b")).status == 204
    assert (await server.ask("DELETE", f"/v2/images/{ID}/tags/a b")).status == 404
    assert (await server.ask("GET", f"/v2/images/{ID}")).json["tags"] == []


async def test_only_an_admin_publishes(server: Server) -> None:
    publish = {"op": "replace", "path": "/visibility", "value": "public"}
    assert await patch(server, publish, token="member") == (
        403,
        "You are not authorized to complete publicize_image action.",
    )
    assert (await patch(server, publish))["visibility"] == "public"


async def test_properties_and_tags_are_limited(server: Server) -> None:
    many = [{"op": "add", "path": f"/p{number}", "value": "x"} for number in range(128)]
    assert await patch(server, *many) == (
        413,
        "The limit has been exceeded on the number of allowed image properties. Attempted: 129, Maximum: 128",
    )
    assert len(await patch(server, *many[1:])) > 128


async def test_changes_at_the_same_time_are_all_kept(server: Server) -> None:
    answers = await asyncio.gather(
        *(
            server.ask("PATCH", f"/v2/images/{ID}", [{"op": "add", "path": f"/p{number}", "value": "x"}], headers=V21)
            for number in range(4)
        )
    )
    assert [answer.status for answer in answers] == [200] * 4
    image = (await server.ask("GET", f"/v2/images/{ID}")).json
    assert [image[f"p{number}"] for number in range(4)] == ["x"] * 4


async def test_bytes_that_are_gone_are_404_and_never_half_an_answer(server: Server) -> None:
    server.objects.kept.clear()
    assert (await server.ask("GET", f"/v2/images/{ID}/file")).status == 404


async def test_an_image_that_has_no_bytes_yet_is_not_switched_off(server: Server) -> None:
    await server.put_image(Image(id=UNKNOWN, owner=OWNER, created_us=AT_US, updated_us=AT_US))
    assert await refused(server, "POST", f"/v2/images/{UNKNOWN}/actions/deactivate") == (
        403,
        "Not allowed to deactivate image in status 'queued'",
    )


async def test_a_server_without_object_storage_says_so(server: Server) -> None:
    server.app.state.objects = None
    answer = await server.ask("GET", f"/v2/images/{ID}/file")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert (await server.ask("DELETE", f"/v2/images/{ID}")).status == 204


# --- list -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def many(server: Server) -> Server:
    """tiny, and five more by name: b and c with properties, d hidden, e community, f another project's private one."""
    await server.put_image(tiny("b" * 8, name="b", size=1, tags=["x", "y"], created_us=AT_US + 2_000_000, properties={}))
    await server.put_image(
        tiny("c" * 8, name="c", size=2, tags=["x"], disk_format="qcow2", protected=True, created_us=AT_US + 3_000_000)
    )
    await server.put_image(tiny("d" * 8, name="d", os_hidden=True, created_us=AT_US + 4_000_000))
    await server.put_image(tiny("e" * 8, name="e", visibility=Visibility.COMMUNITY, owner=OTHER, created_us=AT_US + 5_000_000))
    await server.put_image(tiny("f" * 8, name="f", visibility=Visibility.PRIVATE, owner=OTHER, created_us=AT_US + 6_000_000))
    return server


async def names(server: Server, query: str = "", token: str = "member") -> str:
    page = (await server.ask("GET", f"/v2/images?{query}", token=token)).json
    return "".join(image["name"][0] for image in page["images"])


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "cbt"),
        ("sort=name:asc", "bct"),
        ("sort=name:desc", "tcb"),
        ("sort_key=size&sort_dir=asc", "bct"),
        ("sort=size:desc,name:asc", "tcb"),
        ("name=b", "b"),
        ("name=in:b,tiny", "bt"),
        ("disk_format=qcow2", "c"),
        ("disk_format=in:raw,qcow2", "cbt"),
        ("os_distro=demo", "ct"),
        ("os_distro=other", ""),
        (f"owner={OWNER}", "cbt"),
        (f"owner={OTHER}", ""),
        (f"checksum={MD5}&name=b", "b"),
        ("visibility=community", "e"),
        ("visibility=all", "ecbt"),
        ("visibility=private", ""),
        ("os_hidden=true", "d"),
        ("protected=true", "c"),
        ("protected=False", "bt"),
        ("size_min=2", "ct"),
        ("size_max=2", "cb"),
        ("tag=x", "cb"),
        ("tag=x&tag=y", "b"),
        ("created_at=gt:2026-03-04T05:06:09Z", "c"),
        ("created_at=lte:2026-03-04T05:06:09Z", "bt"),
        ("created_at=2026-03-04T05:06:08Z", "t"),
        ("updated_at=neq:2026-03-04T05:06:08Z", ""),
        ("limit=0", ""),
        ("limit=2", "cb"),
        ("status=active&member_status=accepted", "cbt"),
    ],
)
async def test_lists_filter_and_sort(many: Server, query: str, expected: str) -> None:
    assert await names(many, query) == expected


async def test_an_admin_lists_all_projects_images(many: Server) -> None:
    assert await names(many, token="admin") == "fcbt"
    assert await names(many, "visibility=all", token="admin") == "fecbt"
    assert await names(many, token="other") == "fe"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=-1", "limit param must be positive"),
        ("limit=x", "limit param must be an integer"),
        ("marker=zz", "No image found with ID zz"),
        ("marker=" + "f" * 8, "No image found with ID " + "f" * 8),
        (
            "sort_key=foo",
            "Invalid sort key: foo. It must be one of the following: name, status, container_format, disk_format, size, id, "
            "created_at, updated_at.",
        ),
        ("sort=name:up", "Invalid sort direction: up"),
        ("sort_dir=up", "Invalid sort direction: up"),
        ("protected=maybe", "Invalid value 'maybe' for 'protected' filter. Valid values are 'true' or 'false'."),
        ("os_hidden=maybe", "Invalid value 'maybe' for 'os_hidden' filter. Valid values are 'true' or 'false'."),
        ("member_status=zz", "Invalid status: zz"),
        ("size_min=x", "Unable to filter on a range with a non-numeric value."),
        ("created_at=gt:x", 'Bad "created_at" query filter format. Use ISO 8601 DateTime notation.'),
    ],
)
async def test_a_list_refuses_in_glances_words(many: Server, query: str, message: str) -> None:
    assert await refused(many, "GET", f"/v2/images?{query}", token="member") == (400, message)


@pytest.mark.parametrize(
    "query",
    ["visibility=x", "changes-since=2026-01-01", "sort=name&sort_key=name", "sort_key=name&sort_dir=asc&sort_dir=desc"],
)
async def test_a_list_refuses(many: Server, query: str) -> None:
    assert (await refused(many, "GET", f"/v2/images?{query}"))[0] == 400


async def test_a_page_has_first_and_next(server: Server) -> None:
    page = (await server.ask("GET", "/v2/images?limit=1")).json
    assert page["first"] == "/v2/images?limit=1"
    assert page["next"] == f"/v2/images?limit=1&marker={ID}"
    assert page["schema"] == "/v2/schemas/images"
    past = (await server.ask("GET", page["next"])).json
    assert past == {"images": [], "first": "/v2/images?limit=1", "schema": "/v2/schemas/images"}
    assert "next" not in (await server.ask("GET", "/v2/images")).json


@pytest.mark.parametrize("sort", ["", "sort=status:asc", "sort_key=size&sort_dir=desc", "sort=disk_format:desc,size:asc"])
async def test_paging_gives_each_image_once_with_ties(server: Server, sort: str) -> None:
    ids = {ID}
    for number in range(6):
        await server.put_image(tiny(f"{number:08d}", size=None if number % 2 else 16, created_us=AT_US))
        ids.add(f"{number:08d}")
    seen: list[str] = []
    url = f"/v2/images?limit=2&{sort}"
    while url:
        page = (await server.ask("GET", url)).json
        seen += [image["id"] for image in page["images"]]
        url = page.get("next", "")
    assert len(seen) == len(ids)
    assert set(seen) == ids


# --- schemas --------------------------------------------------------------------------------------------------------


async def test_the_image_schema_allows_what_is_sent(server: Server) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = (await server.ask("GET", "/v2/schemas/image")).json
    assert len(schema["properties"]) == 25
    assert schema["additionalProperties"] == {"type": "string"}
    jsonschema.validate((await server.ask("GET", f"/v2/images/{ID}")).json, schema)
    pages = (await server.ask("GET", "/v2/schemas/images")).json
    jsonschema.validate((await server.ask("GET", "/v2/images")).json, pages)


async def test_import_methods_are_none(server: Server) -> None:
    assert (await server.ask("GET", "/v2/info/import")).json["import-methods"]["value"] == []


async def test_the_body_is_valid_json_whatever_the_properties_are(server: Server) -> None:
    await server.put_image(tiny(properties={'"quoted"': 'a"\n', "name": "shadowed"}), DATA)
    image = msgspec.json.decode((await server.ask("GET", f"/v2/images/{ID}")).body)
    assert (image['"quoted"'], image["name"]) == ('a"\n', "tiny")
