"""Qiniu's wire: the status query of a job with 20 items."""

from __future__ import annotations

from bench.figure import Figure, Row
from bench.figures.status_get import load
from bench.room import Room, ask, poll

ITEMS = 20


def _status(room: Room) -> dict[str, float]:
    fops = [f"qrcode/{number}/level/L" for number in range(ITEMS)]
    with room.serving(room.folder / "data") as server:
        job_id = ask("POST", f"{server.url}/jobs", {"kind": "pfop", "input": {"bucket": "bench", "key": "none", "fops": fops}})[
            "id"
        ]
        path = f"/status/get/prefop?id=z0.{job_id.replace('-', '')}"
        poll(lambda: ask("GET", server.url + path)["code"] == 3, every_s=0.1, limit_s=60, what="the items ended")
        assert len(ask("GET", server.url + path)["items"]) == ITEMS
        paths = room.folder / "paths"
        paths.write_text(path + "\n")
        load(room, server.url, paths, 1)
        return {"status, 20 items": max(load(room, server.url, paths, room.some(3, 1)) for _ in range(room.some(3, 1)))}


STATUS = Figure(
    "qiniu-status",
    f"GET /status/get/prefop of a finished job of {ITEMS} items at 64 connections",
    (Row("status, 20 items", "req/s"),),
    _status,
)
