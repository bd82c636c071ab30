"""Kills in the middle of uploads: what was acknowledged is there whole, what was not is not there, and nothing else is left.

What must hold is read from the database file and the folder of objects, never from the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fault_rig import House, until

from milepost.bucket import StoredObject, decode_object, etag
from milepost.wire.signing import qiniu as signing
from milepost.wire.signing.qiniu import urlsafe

pytestmark = pytest.mark.fault

KEY = signing.Key("any", "thing")
MIB = 1 << 20
BOUNDARY = "XXmilepostXX"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "house")
    yield house
    house.close()


class Web:
    """Requests by hand, one connection each, so that a body can stop anywhere."""

    def __init__(self, url: str) -> None:
        self.host, self.port = urlsplit(url).hostname, urlsplit(url).port

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, sent: int | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """Status and body.  `sent`: so many bytes of the body are sent, then nothing more.  Errors: OSError, EOFError."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            named = {"Host": f"{self.host}:{self.port}", "Content-Length": str(len(body)), "Connection": "close", **headers}
            head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
            writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body[:sent])
            await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            return int(answer.split(b" ")[1]), await reader.read()
        finally:
            writer.close()

    async def form(self, key: str, data: bytes, *, sent: int | None = None) -> tuple[int, bytes]:
        token = signing.upload_token(KEY, json.dumps({"scope": f"media:{key}", "deadline": 1 << 40}).encode())
        fields = "".join(
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in {"token": token, "key": key}.items()
        )
        body = (
            f'{fields}--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'.encode()
            + data
            + f"\r\n--{BOUNDARY}--\r\n".encode()
        )
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        return await self.ask("POST", "/", body, sent=sent, Content_Type=kind)

    async def signed(self, path: str) -> int:
        return (await self.ask("POST", path, Authorization=f"QBox {KEY.access}:none"))[0]


def objects(house: House) -> dict[str, StoredObject]:
    rows = house.ask("SELECT id, doc FROM resource WHERE type = 'object/media'")
    return {key: decode_object(doc if isinstance(doc, bytes) else doc.encode()) for key, doc in rows}


def check(house: House, acknowledged: dict[str, bytes], tried: dict[str, set[str]]) -> None:
    """An acknowledged object has its bytes, or those of a later upload of its key; bytes that nothing knows of there are none."""
    seen, root = objects(house), house.data / "objects"
    for key, stored in seen.items():
        assert etag((root / stored.object_key).read_bytes()) == stored.hash, key
        assert stored.hash in tried[key]
    assert set(acknowledged) <= set(seen)
    named = {stored.object_key for stored in seen.values()}
    named |= {json.loads(row[0])["object_key"] for row in house.ask("SELECT doc FROM resource WHERE type LIKE 'upload-part/%'")}
    loose = {row[0] for row in house.ask("SELECT id FROM resource WHERE type = 'loose'")}
    files = {str(path.relative_to(root)) for path in (root / "buckets").rglob("*") if path.is_file()}
    assert named <= files
    assert files - named <= loose, "bytes that nothing knows of"


async def test_uploads_that_are_killed_anywhere_leave_whole_objects_only(house: House) -> None:
    chance, numbers = random.Random(4), itertools.count()
    acknowledged: dict[str, bytes] = {}
    tried: dict[str, set[str]] = {}
    server = house.start()
    assert await Web(server.url).signed("/mkbucketv3/media/region/z0") == 200

    async def upload(web: Web) -> None:
        while True:
            number = next(numbers)
            key, data = f"k{number % 7}", bytes([number % 256]) * chance.choice([5, 70_000, 3 * MIB])
            tried.setdefault(key, set()).add(etag(data))
            status, _ = await web.form(key, data)
            assert status == 200
            acknowledged[key] = data

    for _ in range(6):
        before, web = len(acknowledged), Web(server.url)
        work = [asyncio.create_task(upload(web)) for _ in range(4)]
        stuck = asyncio.create_task(web.form("never", b"n" * MIB, sent=MIB // 2))
        goal = before + chance.randrange(1, 3)
        async with asyncio.timeout(60):
            while len(acknowledged) < min(goal, 7):
                await asyncio.sleep(0.005)
            await asyncio.sleep(chance.random() * 0.1)  # anywhere in the next uploads
        house.die(server)
        for task in (*work, stuck):
            with contextlib.suppress(OSError, EOFError):
                await task
        check(house, acknowledged, tried)
        server = house.start()
    assert "never" not in objects(house)
    assert server.stop() == 0


async def test_a_resumable_upload_goes_on_after_a_kill_and_an_abandoned_one_is_swept(house: House) -> None:
    one, two = b"1" * (4 * MIB), b"2" * 5
    parts = [{"partNumber": number, "etag": etag(data)} for number, data in enumerate((one, two), 1)]
    token = signing.upload_token(KEY, json.dumps({"scope": "media:big", "deadline": 1 << 40}).encode())
    path, up = f"/buckets/media/objects/{urlsafe(b'big')}/uploads", {"Authorization": f"UpToken {token}"}

    async def begin(web: Web) -> str:
        upload_id = str(json.loads((await web.ask("POST", path, **up))[1])["uploadId"])
        md5 = hashlib.md5(one).hexdigest()
        assert (await web.ask("PUT", f"{path}/{upload_id}/1", one, Content_MD5=md5, **up))[0] == 200
        return upload_id

    server = house.start(upload_keep_s=600)
    assert await Web(server.url).signed("/mkbucketv3/media/region/z0") == 200
    upload_id = await begin(Web(server.url))
    half = asyncio.create_task(Web(server.url).ask("PUT", f"{path}/{upload_id}/2", two, sent=2, **up))
    await asyncio.sleep(0.05)  # wherever it is now
    house.die(server)
    with contextlib.suppress(OSError, EOFError):
        await half

    server = house.start(upload_keep_s=5)  # longer than it takes to begin
    web = Web(server.url)
    assert (await web.ask("PUT", f"{path}/{upload_id}/2", two, **up))[0] == 200
    status, body = await web.ask("POST", f"{path}/{upload_id}", json.dumps({"parts": parts}).encode(), **up)
    assert (status, json.loads(body)) == (200, {"key": "big", "hash": etag(one + two)})
    await begin(web)  # and nobody goes on with it
    house.die(server)

    server = house.start(upload_keep_s=600)
    until(lambda: not house.ask("SELECT 1 FROM resource WHERE type LIKE 'upload-part/%'"), what="abandoned parts are swept")
    root = house.data / "objects"
    (stored,) = objects(house).values()
    until(
        lambda: [one for one in (root / "buckets").rglob("*") if one.is_file()] == [root / stored.object_key], what="their bytes"
    )
    check(house, {"big": one + two}, {"big": {etag(one + two)}})
    assert server.stop() == 0
