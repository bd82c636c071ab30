"""Qiniu's object wire: golden bodies, policies, variables, content types, and what is refused with which code."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from milepost.bucket import Bucket, StoredObject
from milepost.job import new_job_id
from milepost.wire.qiniu import mime, objects, policy, variables
from milepost.wire.qiniu.errors import Refusal, encode_error, no_such_entry
from milepost.wire.qiniu.ids import persistent_id, read_persistent_id

AT_US = 1_772_587_567_123_456
HELLO = StoredObject(
    key="in/a.txt",
    hash="Fqr0xh3cxeii2r7eDztILNmuqUNN",
    size_bytes=5,
    mime_type="text/plain",
    put_us=AT_US,
    md5="5d41402abc4b2a76b9719d911017c592",
    object_key="buckets/00/00",
)


def decoded(body: bytes) -> Any:
    return msgspec.json.decode(body)


def status_of(call: Any, *arguments: Any, **options: Any) -> int:
    with pytest.raises(Refusal) as refused:
        call(*arguments, **options)
    return refused.value.status


# --- bodies ----------------------------------------------------------------------------------------------------------------


def test_stat() -> None:
    body = {
        "fsize": 5,
        "hash": "Fqr0xh3cxeii2r7eDztILNmuqUNN",
        "mimeType": "text/plain",
        "putTime": 17_725_875_671_234_560,
        "type": 0,
        "md5": "5d41402abc4b2a76b9719d911017c592",
    }
    assert decoded(objects.encode(objects.stat_of(HELLO))) == body
    more = msgspec.structs.replace(HELLO, md5=None, meta={"who": "ann"}, disabled=True, end_user="u")
    del body["md5"]
    assert decoded(objects.encode(objects.stat_of(more))) == {**body, "status": 1, "endUser": "u", "x-qn-meta": {"who": "ann"}}


def test_list() -> None:
    page = decoded(objects.list_body([HELLO], ["in/"], "m"))
    assert page["marker"] == "m"
    assert page["commonPrefixes"] == ["in/"]
    assert page["items"][0]["key"] == "in/a.txt"
    assert page["items"][0]["status"] == 0
    assert decoded(objects.list_body([], [], None)) == {"items": []}


def test_regions() -> None:
    (region,) = decoded(objects.region_v4("z0", "h:1"))["hosts"]
    assert region["up"] == {"domains": ["h:1"], "acc_domains": [], "old": []}
    assert region["ttl"] == 86_400
    assert decoded(objects.region_v2("z0", "h:1"))["io"] == {"src": {"main": ["h:1"], "backup": []}}


def test_a_bucket() -> None:
    bucket = Bucket(name="media", private=True, created_us=AT_US)
    assert objects.bucket_body(bucket, ["d"])["private"] == 1


def test_errors() -> None:
    assert decoded(encode_error(no_such_entry().text)) == {"error": "no such file or directory"}


# --- paths -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bucket", "key", "encoded"),
    [
        ("media", "in/a.txt", "bWVkaWE6aW4vYS50eHQ="),
        ("media", "out/a.mp4", "bWVkaWE6b3V0L2EubXA0"),
        ("media", "out/b.m3u8", "bWVkaWE6b3V0L2IubTN1OA=="),
    ],
)
def test_entries(bucket: str, key: str, encoded: str) -> None:
    assert objects.encode_entry(bucket, key) == encoded
    assert objects.read_entry(encoded) == (bucket, key)
    assert objects.read_entry(encoded.rstrip("=")) == (bucket, key)


def test_an_entry_may_have_an_empty_key_or_none() -> None:
    assert objects.read_entry(objects.encode_entry("media", "")) == ("media", "")
    assert objects.read_entry(objects.encode_entry("media")) == ("media", None)
    assert objects.read_entry(objects.encode_entry("media", "a:b")) == ("media", "a:b")
    assert objects.read_key("~") is None
    assert objects.read_key("") == ""


@pytest.mark.parametrize("text", ["a", "€", "_w==", "a b c d", "YQ=YQ="])
def test_what_is_no_base64_of_text(text: str) -> None:
    assert status_of(objects.read_entry, text) == 400


@pytest.mark.parametrize("path", ["/stat/bWVkaWE6YQ==", "stat/bWVkaWE6YQ=="])
def test_operations_with_and_without_a_slash(path: str) -> None:
    assert objects.read_operation(path) == ("stat", (("media", "a"),), {})


def test_operations_with_options() -> None:
    one, two = objects.encode_entry("media", "a"), objects.encode_entry("other", "b/c")
    operation = objects.read_operation(f"/copy/{one}/{two}/force/true")
    assert operation == ("copy", (("media", "a"), ("other", "b/c")), {"force": "true"})
    assert objects.read_operation(f"chgm/{one}/mime/dGV4dA==/x-qn-meta-a/Yg==").rest == {
        "mime": "dGV4dA==",
        "x-qn-meta-a": "Yg==",
    }


@pytest.mark.parametrize(
    "path", ["", "/", "stat", "stat/", "steal/YTpi", "copy/YTpi", "copy/YTpi/YTpi/force", "stat/YTpi/x/y", "stat/YQ=="]
)
def test_what_is_no_operation(path: str) -> None:
    assert status_of(objects.read_operation, path) == 400


@pytest.mark.parametrize("key", ["", "a", "in/中", "\n", '"'])
def test_markers(key: str) -> None:
    assert objects.read_marker(objects.encode_marker(key)) == key


@pytest.mark.parametrize("text", ["rubbish", "", "e30=", "W10=", "bnVsbA==", "eyJrIjoxfQ==", "€"])
def test_bad_markers(text: str) -> None:
    assert status_of(objects.read_marker, text) == 640


def test_limits_of_a_page() -> None:
    assert [objects.read_limit(text) for text in (None, "", "1", "1000", "5000", "0")] == [1000, 1000, 1, 1000, 1000, 1000]
    assert status_of(objects.read_limit, "x") == status_of(objects.read_limit, "-1") == 400


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"parts":[{"etag":"a"}]}', b'{"parts":[{"etag":"a","partNumber":"x"}]}', b"\xff"]
)
def test_what_is_no_completion(body: bytes) -> None:
    assert status_of(objects.read_completion, body) == 400


# --- ids -------------------------------------------------------------------------------------------------------------------


def test_ids_there_and_back() -> None:
    job_id = new_job_id()
    assert persistent_id(job_id) == "z0." + job_id.replace("-", "")
    assert read_persistent_id(persistent_id(job_id)) == job_id
    assert read_persistent_id(persistent_id(job_id, "cn-east-2")) == job_id


@pytest.mark.parametrize(
    "text", ["", "z0.", "z0.5f0000000000000000000001", "z0." + "g" * 32, "." + "0" * 32, "z0." + "0" * 32 + "\n"]
)
def test_what_is_no_id_of_ours(text: str) -> None:
    assert read_persistent_id(text) is None


# --- policies --------------------------------------------------------------------------------------------------------------


def a_policy(scope: str = "media", **fields: Any) -> policy.Policy:
    return policy.read_policy(msgspec.json.encode({"scope": scope, "deadline": AT_US // 1_000_000 + 60, **fields}), now_us=AT_US)


def test_what_a_scope_allows() -> None:
    assert (a_policy().bucket, a_policy().key, a_policy().may_overwrite) == ("media", None, False)
    named = a_policy("media:a:b")
    assert (named.bucket, named.key, named.may_overwrite) == ("media", "a:b", True)
    assert not a_policy("media:a", insertOnly=1).may_overwrite
    policy.check_key(named, "a:b")
    policy.check_key(a_policy("media:in/", isPrefixalScope=1), "in/x")
    policy.check_key(a_policy(), "anything")
    assert status_of(policy.check_key, named, "a:c") == 403
    assert status_of(policy.check_key, a_policy("media:in/"), "in/x") == 403


def test_numbers_may_come_as_text() -> None:
    assert a_policy(fsizeLimit="10", insertOnly="1", deadline=str(AT_US)).fsize_limit == 10


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"", 401),
        (b"[]", 401),
        (b"{}", 401),
        (b'{"scope":"a"}', 401),
        (b'{"scope":"a","deadline":"x"}', 401),
        (b'{"scope":"","deadline":9999999999}', 400),
        (b'{"scope":":k","deadline":9999999999}', 400),
        (b'{"scope":"a","deadline":1}', 401),
        (b'{"scope":"a","deadline":9999999999,"forceSaveKey":true}', 400),
        (b'{"scope":"a","deadline":9999999999,"callbackUrl":"http://a"}', 400),
        (b"\xff\xfe", 401),
        (b"[" * 5000, 401),
    ],
)
def test_policies_that_are_refused(text: bytes, status: int) -> None:
    assert status_of(policy.read_policy, text, now_us=AT_US) == status


def test_sizes() -> None:
    policy.check_size(a_policy(fsizeLimit=5, fsizeMin=5), 5)
    assert status_of(policy.check_size, a_policy(fsizeLimit=5), 6) == 413
    assert status_of(policy.check_size, a_policy(fsizeMin=5), 4) == 403


def test_key_lists() -> None:
    policy.check_client_key(a_policy(keylimit=["a"]), "a")
    assert status_of(policy.check_client_key, a_policy(keylimit=["a"]), "b") == 403
    assert status_of(policy.check_client_key, a_policy(keylimit=["a"]), None) == 403


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("fields", "given", "fname", "key", "found"),
    [
        ({}, "text/css", "a.png", "a.png", "text/css"),
        ({}, None, "a.jpg", "a.gif", "image/jpeg"),
        ({}, None, "a", "a.gif", "image/gif"),
        ({}, None, "a", None, "image/png"),
        ({"detectMime": 1}, "text/css", "a.jpg", "a.gif", "image/png"),
        ({"detectMime": -1}, None, "a.jpg", "a.gif", "application/octet-stream"),
        ({"mimeLimit": "image/*"}, None, "", None, "image/png"),
        ({"mimeLimit": "!image/jpeg;image/gif"}, None, "", None, "image/png"),
    ],
)
def test_content_types(fields: dict[str, Any], given: str | None, fname: str, key: str | None, found: str) -> None:
    assert policy.choose_mime(a_policy(**fields), given=given, fname=fname, key=key, head=PNG) == found


def test_content_types_that_are_refused() -> None:
    limited = a_policy(mimeLimit="image/jpeg;video/*")
    assert status_of(policy.choose_mime, limited, given="image/png", fname="", key=None, head=b"") == 403
    assert status_of(policy.choose_mime, a_policy(mimeLimit="!image/*"), given="image/png", fname="", key=None, head=b"") == 403
    assert status_of(policy.choose_mime, a_policy(), given="a\r\nb: c", fname="", key=None, head=b"") == 400


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"", "application/octet-stream"),
        (b"hello", "text/plain"),
        (b"\x00\x01", "application/octet-stream"),
        (b"  <!DOCTYPE HTML>", "text/html"),
        (b"<?xml version", "text/xml"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"\x00\x00\x00\x20ftypisom", "video/mp4"),
        (b"\x00\x00\x00\x20ftypavif", "image/avif"),
        (b"%PDF-1.7", "application/pdf"),
        (b"PK\x03\x04", "application/zip"),
    ],
)
def test_sniffing(head: bytes, found: str) -> None:
    assert mime.sniff(head) == found


def test_custom_variables_and_metadata() -> None:
    custom = policy.split_custom({"x:a": "1", "x:": "no", "X-Qn-Meta-Who": "ann", "key": "k", "crc32": "1"})
    assert custom == ({"x:a": "1"}, {"who": "ann"})
    assert status_of(policy.split_custom, {"x-qn-meta-a": "b\r\nc"}) == 400
    assert status_of(policy.split_custom, {"x-qn-meta-a b": "c"}) == 400
    assert status_of(policy.split_custom, {"x-qn-meta-a": "c" * 5000}) == 400


# --- variables -------------------------------------------------------------------------------------------------------------

VALUES: dict[str, variables.Value] = {
    "key": 'a"b\\中',
    "fsize": 5,
    "empty": None,
    "x:who": "ann & co",
    "imageInfo": {"width": 640, "format": "png"},
}


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ('{"k":$(key),"n":$(fsize)}', {"k": 'a"b\\中', "n": 5}),
        ('{"k":"$(key)","n":"$(fsize)"}', {"k": 'a"b\\中', "n": "5"}),
        ('{"k":"id-$(key)-$(fsize)"}', {"k": 'id-a"b\\中-5'}),
        ('{"a":$(empty),"b":"$(empty)","c":$(x:none),"d":$(nothing.at.all)}', {"a": None, "b": "", "c": None, "d": None}),
        (
            '{"w":$(imageInfo.width),"f":$(imageInfo.format),"all":$(imageInfo)}',
            {"w": 640, "f": "png", "all": VALUES["imageInfo"]},
        ),
        ('{"q\\"":$(fsize)}', {'q"': 5}),
        ("$(x:who)", "ann & co"),
    ],
)
def test_templates_of_json(template: str, filled: Any) -> None:
    assert decoded(variables.fill_json(template, VALUES)) == filled


@pytest.mark.parametrize("template", ["", "{", '{"a":$(key)', "$(", "key=$(key)"])
def test_templates_that_are_no_json(template: str) -> None:
    assert status_of(variables.fill_json, template, VALUES) == 400


def test_templates_of_forms_and_texts() -> None:
    assert (
        variables.fill_form("k=$(key)&w=$(x:who)&n=$(fsize)&e=$(empty)", VALUES) == b"k=a%22b%5C%E4%B8%AD&w=ann%20%26%20co&n=5&e="
    )
    assert variables.fill_text("$(x:who)/$(fsize)$(empty)$(", VALUES) == "ann & co/5$("
    assert variables.names_in("$(a.b)$(x:c.d)", None, "$(key)") == {"a", "x:c.d", "key"}
    assert variables.time_values(0) == {"year": "1970", "mon": "01", "day": "01", "hour": "00", "min": "00", "sec": "00"}
    assert [variables.extension(name) for name in ("a.jpg", "a", "b.c/a", ".x")] == [".jpg", "", "", ".x"]
