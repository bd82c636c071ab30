"""Downloads on Qiniu's wire: ranges, conditions, tokens, hosts, and objects that change while they are read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import argon2
import pytest
from kodo_house import BUCKET, Kodo, open_kodo

from milepost.bucket import etag
from milepost.server import identity
from milepost.server.facades.qiniu.downloads import bucket_host, disposition
from milepost.wire.qiniu.objects import encode_entry
from milepost.wire.signing import qiniu as signing

DATA = bytes(range(256)) * 40
ETAG = f'"{etag(DATA)}"'
URL = f"/objects/{BUCKET}/in/a.bin"


@pytest.fixture
async def kodo(tmp_path: Path) -> AsyncIterator[Kodo]:
    async with open_kodo(tmp_path) as opened:
        await opened.make_bucket()
        await opened.put("in/a.bin", DATA, mime_type="video/mp4")
        yield opened


async def test_the_whole_object_with_its_headers(kodo: Kodo) -> None:
    answer = await kodo.ask("GET", URL)
    assert (answer.status, answer.body) == (200, DATA)
    seen = {name: answer.headers[name] for name in ("content-type", "etag", "accept-ranges", "content-length")}
    assert seen == {"content-type": "video/mp4", "etag": ETAG, "accept-ranges": "bytes", "content-length": "10240"}
    assert answer.headers["content-security-policy"] == "sandbox"
    head = await kodo.ask("HEAD", URL)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "10240")


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=10000-", 10_000, 10_240),
        ("bytes=-5", 10_235, 10_240),
        ("bytes=0-99999", 0, 10_240),
        ("bytes=-99999", 0, 10_240),
    ],
)
async def test_a_range(kodo: Kodo, asked: str, start: int, end: int) -> None:
    answer = await kodo.ask("GET", URL, b"", {"Range": asked})
    assert (answer.status, answer.body) == (206, DATA[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/10240"


@pytest.mark.parametrize("asked", ["bytes=10240-", "bytes=-0", "bytes=99999-100000"])
async def test_a_range_behind_the_end(kodo: Kodo, asked: str) -> None:
    answer = await kodo.ask("GET", URL, b"", {"Range": asked})
    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */10240")


@pytest.mark.parametrize("asked", ["bytes=5-4", "bytes=0-1,3-4", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=1-2 "])
async def test_ranges_that_are_no_single_range(kodo: Kodo, asked: str) -> None:
    answer = await kodo.ask("GET", URL, b"", {"Range": asked})
    assert answer.status == (206 if asked.endswith(" ") else 200)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-None-Match": ETAG}, 304),
        ({"If-None-Match": f'W/{ETAG}, "x"'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"x"'}, 200),
        ({"If-Match": ETAG}, 200),
        ({"If-Match": '"x"'}, 412),
        ({"If-Modified-Since": "Thu, 01 Jan 2099 00:00:00 GMT"}, 304),
        ({"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}, 200),
        ({"If-Modified-Since": "rubbish"}, 200),
        ({"If-None-Match": '"x"', "If-Modified-Since": "Thu, 01 Jan 2099 00:00:00 GMT"}, 200),
        ({"If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}, 412),
        ({"Range": "bytes=0-0", "If-Range": ETAG}, 206),
        ({"Range": "bytes=0-0", "If-Range": '"x"'}, 200),
        ({"Range": "bytes=0-0", "If-Range": "Thu, 01 Jan 1970 00:00:00 GMT"}, 200),
    ],
)
async def test_conditions(kodo: Kodo, headers: dict[str, str], status: int) -> None:
    assert (await kodo.ask("GET", URL, b"", headers)).status == status


@pytest.mark.parametrize(
    "target",
    [
        "/objects/media/nothing",
        "/objects/nothing/a",
        "/objects/media/%ff",
        "/objects/media/",
        "/objects//in/a.bin",
        "/objects/media/../media/in/a.bin",
        "/objects/media//in/a.bin",
    ],
)
async def test_what_is_not_there(kodo: Kodo, target: str) -> None:
    answer = await kodo.ask("GET", target)
    assert (answer.status, answer.json) == (404, {"error": "Document not found"})


@pytest.mark.parametrize("target", ["/objects/media/in%2Fa.bin", "/objects%2Fmedia/in/a.bin", "/objects/%6dedia/in/%61.bin"])
async def test_escapes_are_decoded_once_and_mean_the_same_key(kodo: Kodo, target: str) -> None:
    assert (await kodo.ask("GET", target)).body == DATA


async def test_attname_names_the_file(kodo: Kodo) -> None:
    answer = await kodo.ask("GET", f"{URL}?attname=%E4%B8%AD%22.mp4")
    assert answer.headers["content-disposition"] == "attachment; filename=\"?_.mp4\"; filename*=UTF-8''%E4%B8%AD%22.mp4"
    assert disposition("") == "attachment"
    assert "\r" not in disposition("a\r\nb")


async def test_processing_on_download_is_refused_and_other_queries_are_not(kodo: Kodo) -> None:
    assert (await kodo.ask("GET", f"{URL}?imageView2/2/w/200")).status == 400
    assert (await kodo.ask("GET", f"{URL}?avinfo")).status == 400
    assert (await kodo.ask("GET", f"{URL}?v=123&imageView2")).status == 200


async def test_a_bucket_has_a_host_of_its_own(kodo: Kodo) -> None:
    for path in ("/in/a.bin", "/in%2Fa.bin"):
        assert (await kodo.ask("GET", path, host=f"{BUCKET}.objects.localhost:8080")).body == DATA
    await kodo.put("jobs", b"not the native API")
    assert (await kodo.ask("GET", "/jobs", host=f"{BUCKET}.objects.localhost")).body == b"not the native API"
    assert (await kodo.ask("GET", "/in/a.bin", host="other.objects.localhost")).status == 404
    await kodo.put("", b"no name")
    assert (await kodo.ask("GET", "/", host=f"{BUCKET}.objects.localhost")).body == b"no name"


@pytest.mark.parametrize(
    ("host", "bucket"),
    [
        (b"media.objects.localhost", "media"),
        (b"MEDIA.objects.localhost:80", "media"),
        (b"objects.localhost", None),
        (b".objects.localhost", None),
        (b"a.b.objects.localhost", None),
        (b"media.objects.localhost.evil.test", None),
        (b"media.objects.localhost@evil.test", None),
        (b"[::1]:8080", None),
        (b"", None),
    ],
)
def test_hosts_of_buckets(host: bytes, bucket: str | None) -> None:
    assert bucket_host(host, "objects.localhost") == bucket


async def test_a_disabled_object_is_not_shown(kodo: Kodo) -> None:
    entry = encode_entry(BUCKET, "in/a.bin")
    assert (await kodo.signed("POST", f"/chstatus/{entry}/status/1")).status == 200
    assert (await kodo.ask("GET", URL)).status == 403


async def test_an_object_that_is_replaced_while_it_is_opened_is_the_new_one(kodo: Kodo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is read, then the object is overwritten and its bytes removed, then the bytes are opened."""
    read, replaced = kodo.objects.read, False

    async def late(key: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        nonlocal replaced
        if not replaced:
            replaced = True
            await kodo.put("in/a.bin", b"new")
        async for chunk in read(key, start=start, length=length):
            yield chunk

    monkeypatch.setattr(kodo.objects, "read", late)
    answer = await kodo.ask("GET", URL)
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"new", "3")


async def test_private_tokens_are_of_the_owners_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "SLOW", argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    async with open_kodo(tmp_path, auth="required") as kodo:
        ann, ben = await kodo.new_key("ann"), await kodo.new_key("ben")
        await kodo.make_bucket(key=ann)
        await kodo.put("x/y", b"secret", signer=ann)
        await kodo.put("y", b"other secret", signer=ann)
        deadline_s = kodo.clock.wall_us // 1_000_000 + 60
        base, path = "http://127.0.0.1:8080", f"/objects/{BUCKET}/x/y"
        assert (await kodo.ask("GET", path)).status == 401

        def signed(key: signing.Key, target: str = path) -> str:
            return signing.sign_url(base + target, key, deadline_s=deadline_s).removeprefix(base)

        assert (await kodo.ask("GET", signed(ann))).body == b"secret"
        assert (await kodo.ask("GET", signed(ben))).status == 401
        assert (await kodo.ask("GET", signed(signing.Key(ann.access, "guessed")))).status == 401
        assert (await kodo.ask("GET", signed(ann).replace("/x/y", "/y"))).status == 401
        assert (await kodo.ask("GET", signed(ann).replace("/objects/media/", "/objects%2Fmedia/"))).body == b"secret"
        assert (await kodo.ask("GET", signed(ann) + "&attname=x")).status == 401
        assert (await kodo.ask("GET", signed(ann, f"{path}?attname=x"))).body == b"secret"
        assert (await kodo.ask("GET", signed(ann), host="elsewhere.example.test")).status == 401
        kodo.clock.advance(61)
        expired = await kodo.ask("GET", signed(ann))
        assert (expired.status, expired.json) == (401, {"error": "expired token"})
