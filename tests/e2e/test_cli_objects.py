"""`milepost bucket` and `milepost object` against a server that is a process of its own, and one that is killed in between."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rig import Server, milepost

from milepost.bucket import etag

BIG = hashlib.shake_256(b"milepost").digest(9_000_001)


def test_buckets_and_objects_from_the_command_line(server: Server, tmp_path: Path) -> None:
    url = {"MILEPOST_URL": server.url}
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "big.bin").write_bytes(BIG)
    made = milepost("bucket", "create", "cli-media", "--private", "--json", **url)
    assert (made.code, made.json["private"]) == (0, True)
    assert milepost("bucket", "create", "cli-media", **url).code == 8
    assert "cli-media" in [one["name"] for one in milepost("bucket", "list", "--json", **url).lines]
    put = milepost("object", "put", "cli-media", "note.txt", "中/../a b.txt", "--json", cwd=tmp_path, **url)
    assert put.json == {"key": "中/../a b.txt", "hash": etag(b"hello")}
    put = milepost("object", "put", "cli-media", "big.bin", "--type", "video/mp4", "--json", cwd=tmp_path, **url)
    assert put.json == {"key": "big.bin", "hash": etag(BIG)}
    listed = milepost("object", "list", "cli-media", "--json", **url).lines
    assert [(one["key"], one["fsize"]) for one in listed] == [("big.bin", len(BIG)), ("中/../a b.txt", 5)]
    assert milepost("object", "list", "cli-media", "--folders", "--json", **url).lines[0] == {"prefix": "中/"}
    assert milepost("object", "stat", "cli-media", "big.bin", "--json", **url).json["type"] == "video/mp4"
    assert milepost("object", "get", "cli-media", "big.bin", "copy.bin", cwd=tmp_path, **url).code == 0
    assert (tmp_path / "copy.bin").read_bytes() == BIG
    assert milepost("object", "get", "cli-media", "nothing", "x", cwd=tmp_path, **url).code == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.bin", "copy.bin", "note.txt"]
    assert milepost("bucket", "delete", "cli-media", **url).code == 8
    for key in ("big.bin", "中/../a b.txt"):
        assert milepost("object", "delete", "cli-media", key, **url).code == 0
    assert milepost("bucket", "delete", "cli-media", **url).code == 0
    assert milepost("object", "list", "cli-media", **url).code == 6


def test_half_a_key_is_refused(server: Server) -> None:
    done = milepost("bucket", "list", "--access-key", "x", MILEPOST_URL=server.url)
    assert done.code == 2
    assert "together" in done.err
