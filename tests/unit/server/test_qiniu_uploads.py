"""Uploads on Qiniu's wire without its SDK: hostile bodies, broken ones, restarts, expiry, full disks, other projects."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import argon2
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kodo_house import BUCKET, Kodo, make_form, open_kodo

from milepost.bucket import etag
from milepost.job import ProjectId, State
from milepost.server import identity
from milepost.server.facades.qiniu import incoming
from milepost.server.facades.qiniu.sweep import sweep
from milepost.server.facades.qiniu.workflows import put_workflow
from milepost.store import JobQuery
from milepost.wire import Request
from milepost.wire.qiniu.ids import read_persistent_id
from milepost.wire.qiniu.objects import encode_entry
from milepost.wire.signing import qiniu as signing
from milepost.wire.signing.qiniu import urlsafe

MIB = 1 << 20
DAY_S = 86_400.0


@pytest.fixture(autouse=True)
def quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "SLOW", argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


@pytest.fixture
async def kodo(tmp_path: Path) -> AsyncIterator[Kodo]:
    async with open_kodo(tmp_path) as opened:
        await opened.make_bucket()
        yield opened


def nothing_left(kodo: Kodo, objects: int = 0) -> bool:
    return len(kodo.files()) == objects


# --- forms -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 3, 10_000])
async def test_a_form_in_pieces_of_any_size(kodo: Kodo, pieces: int) -> None:
    data = b"\r\n--XXmilepost\r\n\r\n" * 50 + b"\r"
    answer = await kodo.form({"token": kodo.token("a"), "key": "a", "x:v": "1"}, data, pieces=pieces)
    assert answer.json == {"hash": etag(data), "key": "a"}
    assert len(kodo.files()) == 1
    assert kodo.files()[0].read_bytes() == data


async def test_the_parts_may_come_in_any_order(kodo: Kodo) -> None:
    first, content_type = make_form({}, b"hello")
    rest, _ = make_form({"token": kodo.token("a"), "key": "a"}, b"")
    body = (
        first.removesuffix(b"--XXmilepostXX--\r\n")
        + rest.partition(b'--XXmilepostXX\r\nContent-Disposition: form-data; name="file"')[0]
    )
    answer = await kodo.ask("POST", "/", body + b"--XXmilepostXX--\r\n", {"Content-Type": content_type})
    assert (answer.status, answer.json["key"]) == (200, "a")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 401),
        ({"token": ""}, 401),
        ({"token": "rubbish"}, 401),
        ({"token": "a:b:e30="}, 401),
        ({"token": "a:b:€"}, 401),
        ({"token": "OK", "crc32": "1"}, 406),
        ({"token": "OK", "crc32": "x"}, 400),
        ({"token": "OK", "key": "x" * 751}, 400),
        ({"token": "OK", "key": "a\0b"}, 400),
        ({"token": "OK", "x-qn-meta-a": "b\tc"}, 400),
        ({"token": "OK", "x:a": "y" * (2 << 20)}, 413),
    ],
)
async def test_forms_that_are_refused_leave_nothing(kodo: Kodo, fields: dict[str, str], status: int) -> None:
    given = {name: kodo.token() if value == "OK" else value for name, value in fields.items()}
    answer = await kodo.form(given, b"hello" * 1000)
    assert (answer.status, list(answer.json)) == (status, ["error"])
    assert nothing_left(kodo)
    assert await kodo.loose() == []


async def test_a_form_that_ends_early_stores_nothing(kodo: Kodo) -> None:
    body, content_type = make_form({"token": kodo.token("a"), "key": "a"}, b"x" * 100_000)
    for end in (0, 1, 30, len(body) // 2, len(body) - 30, len(body) - 6):
        answer = await kodo.ask("POST", "/", body[:end], {"Content-Type": content_type})
        assert answer.status in (400, 401), (end, answer.body)
    answer = await kodo.ask(
        "POST", "/", [body[:50_000], b""], {"Content-Type": content_type, "Content-Length": "1"}, hang_up=True
    )
    assert answer.status == 400
    assert nothing_left(kodo)


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'x' * 500}",
        "application/json",
    ],
)
async def test_what_is_no_form_is_refused(kodo: Kodo, content_type: str) -> None:
    answer = await kodo.ask("POST", "/", b"--x\r\n\r\n", {"Content-Type": content_type})
    assert answer.status == 400


CRLF = b"\r\n"
fragments = st.sampled_from(
    [
        b"--B", b"--B--", b"--", CRLF, b"\r", b"\n", b"\0", b":", b'"', b";", b"name=", b"filename*=UTF-8''%ff",
        b"Content-Disposition: form-data; name=", b'Content-Disposition: form-data; name="file"; filename="a"',
        b'Content-Disposition: form-data; name="token"', b'Content-Disposition: form-data; name="key"', b"Content-Type: a/b",
        b"Content-Transfer-Encoding: base64", b"TOKEN", b"\xff\xfe", b"x" * 5000, "中".encode(),
    ]
)  # fmt: skip
bodies = st.lists(fragments | st.binary(max_size=20), max_size=40).map(b"".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(body=bodies, cuts=st.lists(st.integers(0, 400), max_size=5), framed=st.booleans())
def test_no_body_makes_the_server_fail(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, cuts: list[int], framed: bool
) -> None:
    """Whatever comes: an answer below 500, and no file that is no object."""

    async def play() -> None:
        async with open_kodo(tmp_path_factory.mktemp("kodo")) as kodo:
            await kodo.make_bucket()
            sent = body.replace(b"TOKEN", kodo.token().encode())
            sent = b"--B\r\n" + sent + b"\r\n--B--\r\n" if framed else sent
            at = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
            pieces = [sent[start:end] for start, end in itertools.pairwise(at)] or [b""]
            answer = await kodo.ask("POST", "/", pieces, {"Content-Type": "multipart/form-data; boundary=B"})
            assert answer.status < 500 or answer.status in (612, 614, 631), answer.body
            assert len(kodo.files()) == (answer.status == 200)

    asyncio.run(play())


async def test_a_bad_token_is_refused_before_the_file_has_come(kodo: Kodo) -> None:
    """The rest of this body never comes."""
    body, content_type = make_form({"token": "rubbish", "key": "a"}, b"x" * 100_000)
    headers = {"Content-Type": content_type, "Content-Length": str(1 << 30)}
    answer = await kodo.ask("POST", "/", [body[:50_000], b""], headers)
    assert answer.status == 401


async def test_a_full_disk_is_said_and_leaves_nothing(kodo: Kodo, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, needed: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(incoming, "check_space", full)
    answer = await kodo.form({"token": kodo.token("a"), "key": "a"}, b"hello")
    assert answer.status == 599
    assert "no space" in answer.json["error"]
    assert nothing_left(kodo)
    assert await kodo.loose() == []


async def test_too_large_is_told_by_the_length_and_by_the_bytes(tmp_path: Path) -> None:
    async with open_kodo(tmp_path, object_bytes_max=1000) as kodo:
        await kodo.make_bucket()
        assert (await kodo.form({"token": kodo.token("a"), "key": "a"}, b"x" * 1001)).status == 413
        assert (await kodo.form({"token": kodo.token("a"), "key": "a"}, b"x" * 1000)).status == 200
        answer = await kodo.ask(
            "POST", "/", b"", {"Content-Type": "multipart/form-data; boundary=B", "Content-Length": "99999999"}
        )
        assert answer.status == 413
        assert nothing_left(kodo, 1)


async def test_silence_ends_an_upload(tmp_path: Path) -> None:
    async with open_kodo(tmp_path, body_s_max=0.05) as kodo:
        await kodo.make_bucket()
        body, content_type = make_form({"token": kodo.token("a"), "key": "a"}, b"x" * 100)
        assert await _ask_and_stop(kodo, body[:-20], content_type) == 413
        assert nothing_left(kodo)


async def _ask_and_stop(kodo: Kodo, first: bytes, content_type: str) -> int:
    """The status of the answer to a body of which no more than its beginning comes."""
    sent: list[Any] = []
    messages = [{"type": "http.request", "body": first, "more_body": True}]

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "scheme": "http", "path": "/", "raw_path": b"/", "root_path": "", "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:8080"), (b"content-type", content_type.encode()), (b"content-length", b"99999999")],
    }  # fmt: skip
    async with asyncio.timeout(60):
        await kodo.app(scope, receive, send)
    status: int = sent[0]["status"]
    return status


# --- what an upload starts -------------------------------------------------------------------------------------------------


async def test_a_policy_with_persistent_ops_submits_a_job(kodo: Kodo) -> None:
    policy = {
        "persistentOps": "avthumb/mp4;vframe/jpg/offset/1",
        "persistentNotifyUrl": "http://127.0.0.1:9/told",
        "persistentPipeline": "mine",
    }
    answer = await kodo.form({"token": kodo.token("a", **policy), "key": "a"}, b"hello")
    job_id = read_persistent_id(answer.json["persistentId"])
    assert job_id is not None
    job = await kodo.service.get(job_id)
    assert (job.kind, job.queue, job.state) == ("pfop", "media.default.mine", State.READY)
    assert msgspec.json.decode(job.input or b"")["fops"] == ["avthumb/mp4", "vframe/jpg/offset/1"]
    assert job.callback is not None
    await put_workflow(kodo.store, ProjectId("default"), "t1", "avthumb/mp4", now_us=1)
    answer = await kodo.form(
        {"token": kodo.token("a", persistentWorkflowTemplateID="t1", persistentType=1), "key": "a"}, b"hello"
    )
    job = await kodo.service.get(read_persistent_id(answer.json["persistentId"]))  # type: ignore[arg-type]
    assert (job.queue, msgspec.json.decode(job.input or b"")["task_from"]) == ("media.idle", "workflow: t1")


async def test_a_job_that_cannot_be_submitted_stores_nothing(kodo: Kodo) -> None:
    for policy in (
        {"persistentOps": "a", "persistentPipeline": "p" * 300},
        {"persistentOps": "a", "persistentWorkflowTemplateID": "b"},
        {"persistentOps": "a", "persistentNotifyUrl": "ftp://x"},
    ):
        answer = await kodo.form({"token": kodo.token("a", **policy), "key": "a"}, b"hello")
        assert answer.status == 400, answer.body
    assert nothing_left(kodo)
    assert await kodo.service.list(JobQuery()) == []


@pytest.mark.parametrize(
    "policy",
    [
        {"returnUrl": "http://x.example.test/\r\nSet-Cookie: a=b"},
        {"returnUrl": "http://["},
        {"returnUrl": "javascript:alert(1)"},
        {"callbackUrl": " ; ;", "callbackBody": "a=1"},
        {"fileType": 10**30},
        {"fileType": -1},
    ],
    ids=str,
)
async def test_a_policy_that_cannot_be_followed_is_refused_before_anything_is_stored(kodo: Kodo, policy: dict[str, Any]) -> None:
    answer = await kodo.form({"token": kodo.token("a", **policy), "key": "a"}, b"hello")
    assert (answer.status, nothing_left(kodo), await kodo.loose()) == (400, True, [])


async def test_a_limit_below_nothing_is_none(kodo: Kodo) -> None:
    answer = await kodo.form({"token": kodo.token("a", fsizeLimit=-5), "key": "a"}, b"hello")
    assert answer.status == 200


async def test_a_return_url_in_another_script_is_escaped(kodo: Kodo) -> None:
    answer = await kodo.form({"token": kodo.token("a", returnUrl="http://x.example.test/\u4e2d#top"), "key": "a"}, b"hello")
    assert answer.status == 303
    assert answer.headers["location"].startswith("http://x.example.test/%E4%B8%AD?upload_ret=")
    assert answer.headers["location"].endswith("#top")


async def test_a_return_url_is_followed_with_the_answer(kodo: Kodo) -> None:
    answer = await kodo.form({"token": kodo.token("a", returnUrl="http://x.example.test/?b=1"), "key": "a"}, b"hello")
    body = b'{"hash":"Fqr0xh3cxeii2r7eDztILNmuqUNN","key":"a"}'
    assert answer.status == 303
    assert answer.headers["location"] == f"http://x.example.test/?b=1&upload_ret={urlsafe(body)}"


# --- resumable, version 2 --------------------------------------------------------------------------------------------------


def uploads(key: str = "big") -> str:
    return f"/buckets/{BUCKET}/objects/{urlsafe(key.encode())}/uploads"


class Up:
    """One resumable upload."""

    def __init__(self, kodo: Kodo, key: str = "big") -> None:
        self.kodo, self.key, self.id = kodo, key, ""
        self.headers = {"Authorization": f"UpToken {kodo.token(key)}"}

    async def begin(self) -> Up:
        answer = await self.kodo.ask("POST", uploads(self.key), b"", self.headers)
        assert answer.status == 200, answer.body
        self.id = answer.json["uploadId"]
        return self

    async def part(self, number: int, data: bytes, md5: str | None = None) -> Any:
        headers = {**self.headers, "Content-MD5": md5 or hashlib.md5(data).hexdigest()}
        return await self.kodo.ask("PUT", f"{uploads(self.key)}/{self.id}/{number}", data, headers)

    async def complete(self, *parts: tuple[int, bytes]) -> Any:
        asked = {"parts": [{"partNumber": number, "etag": etag(data)} for number, data in parts], "mimeType": "video/mp4"}
        return await self.kodo.ask("POST", f"{uploads(self.key)}/{self.id}", msgspec.json.encode(asked), self.headers)


async def test_parts_survive_a_restart_in_any_order(tmp_path: Path) -> None:
    one, two, three = b"1" * MIB, b"2" * MIB, b"3"
    async with open_kodo(tmp_path) as kodo:
        await kodo.make_bucket()
        up = await Up(kodo).begin()
        answers = await asyncio.gather(up.part(3, three), up.part(1, b"wrong"), up.part(2, two))
        assert [answer.status for answer in answers] == [200] * 3
    async with open_kodo(tmp_path) as again:
        up.kodo, again.clock.wall_us = again, kodo.clock.wall_us
        assert (await up.part(1, one)).json == {"etag": etag(one), "md5": hashlib.md5(one).hexdigest()}
        listed = await again.ask("GET", f"{uploads()}/{up.id}", b"", up.headers)
        assert [part["partNumber"] for part in listed.json["parts"]] == [1, 2, 3]
        answer = await up.complete((1, one), (2, two), (3, three))
        assert answer.status == 200, answer.body
        assert answer.json["hash"].startswith("n")
        assert nothing_left(again, 1)
        assert again.files()[0].read_bytes() == one + two + three
        assert await again.loose() == []
        assert (await up.complete((1, one), (2, two), (3, three))).status == 612
        assert (await up.part(4, b"late")).status == 612


async def test_what_a_completion_must_name(kodo: Kodo) -> None:
    up = await Up(kodo).begin()
    await up.part(1, b"one")
    assert (await up.part(1, b"one", md5="0" * 32)).status == 400
    assert (await up.part(0, b"one")).status == 400
    assert (await up.part(10_001, b"one")).status == 400
    assert (await up.part(2, b"")).status == 400
    for wrong in ([], [(1, b"other")], [(1, b"one"), (2, b"two")], [(1, b"one"), (1, b"one")]):
        assert (await up.complete(*wrong)).status == 400
    assert (await up.complete((1, b"one"))).status == 200


async def test_of_two_completions_one_makes_the_object(kodo: Kodo) -> None:
    up = await Up(kodo).begin()
    await up.part(1, b"one")
    answers = await asyncio.gather(up.complete((1, b"one")), up.complete((1, b"one")))
    assert sorted(answer.status for answer in answers) == [200, 612]
    assert nothing_left(kodo, 1)
    assert await kodo.loose() == []


async def test_an_aborted_upload_leaves_nothing(kodo: Kodo) -> None:
    up = await Up(kodo).begin()
    await up.part(1, b"one")
    assert (await kodo.ask("DELETE", f"{uploads()}/{up.id}", b"", up.headers)).status == 200
    assert nothing_left(kodo)
    assert (await up.part(2, b"two")).status == 612
    assert nothing_left(kodo)


async def test_an_upload_belongs_to_its_key(kodo: Kodo) -> None:
    up = await Up(kodo).begin()
    other = Up(kodo, "other")
    other.id = up.id
    assert (await other.part(1, b"one")).status == 612
    other.headers = up.headers
    assert (await kodo.ask("POST", uploads("other"), b"", up.headers)).status == 403
    assert (await kodo.ask("POST", uploads().replace(BUCKET, "elsewhere"), b"", up.headers)).status == 403


async def test_unfinished_uploads_are_swept_when_they_expire(kodo: Kodo) -> None:
    up = await Up(kodo).begin()
    await up.part(1, b"one")
    block = await kodo.ask("POST", "/mkblk/3", b"two", {"Authorization": f"UpToken {kodo.token('b')}"})
    assert block.status == 200
    assert len(kodo.files()) == 2
    await sweep(kodo.state)
    assert len(kodo.files()) == 2
    kodo.clock.advance(8 * DAY_S)
    assert (await up.part(2, b"two")).status == 401  # the token has expired too
    await sweep(kodo.state)
    assert nothing_left(kodo)
    assert await kodo.loose() == []
    assert await kodo.store.list_resources("upload") == await kodo.store.list_resources("upload-block") == []


async def test_unfinished_uploads_are_bounded(tmp_path: Path) -> None:
    async with open_kodo(tmp_path, uploads_max=1) as kodo:
        await kodo.make_bucket()
        await Up(kodo).begin()
        answer = await kodo.ask("POST", uploads(), b"", Up(kodo).headers)
        assert answer.status == 400


# --- resumable, version 1 --------------------------------------------------------------------------------------------------


async def test_a_block_in_chunks_and_a_file_of_blocks(kodo: Kodo) -> None:
    headers = {"Authorization": f"UpToken {kodo.token('v1')}"}
    first = (await kodo.ask("POST", "/mkblk/6", b"abc", headers)).json
    assert (first["offset"], first["crc32"], first["host"]) == (3, 891568578, "http://127.0.0.1:8080")
    assert (await kodo.ask("POST", f"/bput/{first['ctx']}/2", b"def", headers)).status == 701
    assert (await kodo.ask("POST", f"/bput/{first['ctx']}/3", b"defg", headers)).status == 413
    second = (await kodo.ask("POST", f"/bput/{first['ctx']}/3", b"def", headers)).json
    assert (await kodo.ask("POST", f"/bput/{first['ctx']}/3", b"def", headers)).status == 701
    third = (await kodo.ask("POST", "/mkblk/1", b"g", headers)).json
    target = f"/mkfile/7/key/{urlsafe(b'v1')}/x:a/{urlsafe(b'1')}"
    assert (await kodo.ask("POST", target, first["ctx"].encode(), headers)).status == 701
    assert (await kodo.ask("POST", target, b"rubbish", headers)).status == 701
    body = f"{second['ctx']},{third['ctx']}".encode()
    assert (await kodo.ask("POST", target.replace("/7/", "/8/"), body, headers)).status == 400
    answer = await kodo.ask("POST", target, body, headers)
    assert answer.json == {"hash": etag(b"abcdefg"), "key": "v1"}
    assert nothing_left(kodo, 1)


# --- projects --------------------------------------------------------------------------------------------------------------


async def test_no_project_reaches_anothers_bucket(tmp_path: Path) -> None:
    async with open_kodo(tmp_path, auth="required") as kodo:
        ann, ben = await kodo.new_key("ann"), await kodo.new_key("ben")
        await kodo.make_bucket(key=ann)
        await kodo.make_bucket("bens-own", key=ben)
        await kodo.put("a", signer=ann)
        theirs, own = encode_entry(BUCKET, "a"), encode_entry("bens-own", "a")
        targets = [
            ("POST", f"/stat/{theirs}"),
            ("POST", f"/delete/{theirs}"),
            ("POST", f"/copy/{theirs}/{own}"),
            ("POST", f"/move/{theirs}/{own}"),
            ("POST", f"/chgm/{theirs}/mime/{urlsafe(b'a/b')}"),
            ("GET", f"/list?bucket={BUCKET}"),
            ("POST", f"/v2/bucketInfo?bucket={BUCKET}"),
            ("POST", f"/v2/domains?tbl={BUCKET}"),
            ("POST", f"/private?bucket={BUCKET}&private=0"),
            ("POST", f"/drop/{BUCKET}"),
            ("POST", f"/fetch/{urlsafe(b'http://x.example.test/')}/to/{theirs}"),
        ]
        seen = {target: (await kodo.signed(method, target, key=ben)).status for method, target in targets}
        assert seen == dict.fromkeys(seen, 631)
        batch = await kodo.signed("POST", "/batch", f"op=stat/{theirs}&op=delete/{theirs}".encode(), key=ben)
        assert [line["code"] for line in batch.json] == [631, 631]
        assert (await kodo.signed("GET", "/buckets", key=ben)).json == ["bens-own"]
        answer = await kodo.form({"token": kodo.token("b", signer=ben), "key": "b"}, b"hello")
        assert answer.status == 631
        region = await kodo.ask("GET", f"/v4/query?ak={ben.access}&bucket={BUCKET}")
        assert region.status == 631
        assert (await kodo.signed("POST", f"/stat/{theirs}", key=ann)).status == 200


@pytest.mark.parametrize("what", ["unsigned", "wrong", "old", "changed"])
async def test_what_is_not_signed_right_is_refused(tmp_path: Path, what: str) -> None:
    async with open_kodo(tmp_path, auth="required") as kodo:
        key = await kodo.new_key("ann")
        signed_us = kodo.clock.now_us() - (3_600_000_000 if what == "old" else 0)
        signer = signing.Key(key.access, "guessed") if what == "wrong" else key
        headers = signing.sign(Request("GET", "http://127.0.0.1:8080/buckets"), signer, at_us=signed_us).headers
        target = "/buckets?more=1" if what == "changed" else "/buckets"
        answer = await kodo.ask("GET", target, b"", {} if what == "unsigned" else headers)
        assert (answer.status, list(answer.json)) == (401, ["error"])


@pytest.mark.parametrize("method", ["DELETE", "PATCH", "OPTIONS", "PUT"])
async def test_another_method_is_refused_in_qinius_manner(kodo: Kodo, method: str) -> None:
    answer = await kodo.ask(method, "/buckets")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, POST")
