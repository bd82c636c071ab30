"""Private playlists: what is signed in them, by whose key, for how long, and what is left as it was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import argon2
import pytest
from kodo_house import BUCKET, HOST, Kodo, open_kodo

from milepost.server import identity
from milepost.server.facades.qiniu.playlists import Around, Asked, read_command, sign_playlist
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.signing import qiniu as signing

NOW_S = 1_790_000_000
KEY = signing.Key("ak", "sk")
AROUND = Around(f"http://{HOST}/objects/media/hls/a.m3u8", {HOST: "/objects/media/", "media.dl.example.test": "/"})
HEAD = "#EXTM3U\n#EXTINF:2.0,\n"
BASE = f"http://{HOST}"


def signed(line: str) -> str:
    return sign_playlist(f"{HEAD}{line}\n#EXT-X-ENDLIST", AROUND, KEY, Asked(NOW_S)).splitlines()[2]


@pytest.mark.parametrize(
    ("line", "url"),
    [
        ("0.ts", f"{BASE}/objects/media/hls/0.ts"),
        ("../seg/a%20b.ts", f"{BASE}/objects/media/seg/a%20b.ts"),
        ("/objects/media/x.ts", f"{BASE}/objects/media/x.ts"),
        ("http://media.dl.example.test/x.ts", "http://media.dl.example.test/x.ts"),
        ("中.ts", f"{BASE}/objects/media/hls/中.ts"),
    ],
)
def test_what_lies_in_the_bucket_is_signed(line, url):
    assert signed(line) == signing.sign_url(url, KEY, deadline_s=NOW_S)


@pytest.mark.parametrize(
    "line",
    [
        "http://evil.example.test/objects/media/x.ts", "/objects/other/x.ts", "../../other/x.ts", "//evil.example.test/x.ts",
        "x.ts?e=1&token=a:b", "x.ts#here", "ftp://media.dl.example.test/x.ts", "http://[::1/x.ts", "%2e%2e/%2e%2e/other/x.ts",
        "../media%2F../other/x.ts", "javascript:alert(1)",
    ],
)  # fmt: skip
def test_what_lies_elsewhere_is_left_as_it_is(line):
    assert signed(line) == line


def test_a_playlist_inside_is_signed_with_the_command():
    assert signed("b.m3u8") == signing.sign_url(
        f"{BASE}/objects/media/hls/b.m3u8?pm3u8/0/deadline/{NOW_S}", KEY, deadline_s=NOW_S
    )


@pytest.mark.parametrize("text", ["", "not a playlist", "<html>#EXTM3U"])
def test_what_is_no_playlist_is_refused(text):
    with pytest.raises(Refusal):
        sign_playlist(text, AROUND, KEY, Asked(NOW_S))


@pytest.mark.parametrize(
    ("query", "deadline_s"),
    [
        ("pm3u8/0", NOW_S + 43_200),
        ("pm3u8/0/expires/60&e=1", NOW_S + 60),
        ("pm3u8%2F0%2Fexpires%2F60", NOW_S + 60),
        ("pm3u8/0/expires/60/deadline/77", 77),
        ("pm3u8/0/deadline/77/", 77),
    ],
)
def test_until_when_it_is(query, deadline_s):
    assert read_command(query, NOW_S) == Asked(deadline_s)


@pytest.mark.parametrize("query", ["pm3u8/1", "pm3u8/", "pm3u8/0/expires/x", "pm3u8/0/query/eA==", "pm3u8/0/expires/-5"])
def test_another_command_is_refused(query):
    with pytest.raises(Refusal):
        read_command(query, NOW_S)


def test_other_queries_are_none_of_it():
    assert read_command("attname=pm3u8/0", NOW_S) is None
    assert read_command("", NOW_S) is None


@pytest.fixture
async def kodo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kodo]:
    monkeypatch.setattr(identity, "SLOW", argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    async with open_kodo(tmp_path, auth="required") as opened:
        yield opened


async def test_a_player_follows_a_private_playlist_to_its_segments_until_the_deadline(kodo):
    ann, ben = await kodo.new_key("ann"), await kodo.new_key("ben")
    await kodo.make_bucket(key=ann)
    await kodo.put("hls/0.ts", b"segment", signer=ann)
    await kodo.put("hls/low.m3u8", b"#EXTM3U\n0.ts\n", signer=ann)
    await kodo.put("hls/all.m3u8", b"#EXTM3U\nlow.m3u8\n", signer=ann)
    now_s = kodo.clock.wall_us // 1_000_000

    def target(key: signing.Key, path: str, command: str) -> str:
        url = f"{BASE}/objects/{BUCKET}/{path}{command}"
        return signing.sign_url(url, key, deadline_s=now_s + 60).removeprefix(BASE)

    assert (await kodo.ask("GET", f"/objects/{BUCKET}/hls/all.m3u8?pm3u8/0")).status == 401
    assert (await kodo.ask("GET", target(ben, "hls/all.m3u8", "?pm3u8/0"))).status == 401
    assert (await kodo.ask("GET", target(ann, "hls/0.ts", "?pm3u8/0"))).status == 400
    plain = target(ann, "hls/all.m3u8", "")
    assert (await kodo.ask("GET", plain.replace("?e=", "?pm3u8/0&e="))).status == 401  # the token does not cover it
    master = await kodo.ask("GET", target(ann, "hls/all.m3u8", "?pm3u8/0/expires/3600"))
    assert master.status == 200
    low = await kodo.ask("GET", master.body.decode().splitlines()[1].removeprefix(BASE))
    assert low.status == 200
    segment = low.body.decode().splitlines()[1].removeprefix(BASE)
    assert (await kodo.ask("GET", segment)).body == b"segment"
    kodo.clock.advance(3601)
    assert (await kodo.ask("GET", segment)).status == 401


async def test_in_a_public_bucket_nobody_has_others_objects_signed_by_his_key(kodo):
    ann, ben = await kodo.new_key("ann"), await kodo.new_key("ben")
    await kodo.make_bucket(key=ann)
    await kodo.put("a.m3u8", b"#EXTM3U\n0.ts\n", signer=ann)
    assert (await kodo.signed("POST", f"/private?bucket={BUCKET}&private=0", key=ann)).status == 200
    url = f"{BASE}/objects/{BUCKET}/a.m3u8?pm3u8/0"
    deadline_s = kodo.clock.wall_us // 1_000_000 + 60
    asked = {key.access: signing.sign_url(url, key, deadline_s=deadline_s).removeprefix(BASE) for key in (ann, ben)}
    assert (await kodo.ask("GET", url.removeprefix(BASE))).status == 400
    assert (await kodo.ask("GET", asked[ben.access])).status == 400
    assert (await kodo.ask("GET", asked[ann.access])).status == 200
