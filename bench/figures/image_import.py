"""The import of a raw image of 1 GiB over loopback, against downloading the same bytes to a file with a SHA-512 on the way."""

from __future__ import annotations

import os
from pathlib import Path

from bench.figure import Figure, Row, Unmeasurable
from bench.room import Room, ask, poll

MIB = 1 << 20
EVERY_MIB = 8  # one MiB in so many has data, the others are holes


def _measure(room: Room) -> dict[str, float]:
    file, data = room.folder / "source.raw", room.folder / "data"
    _make_image(file, room.some(1024, 128))
    with room.program("source", file) as source, room.serving(data) as server:
        plain = room.run("plain", source.url, room.folder / "plain.raw")
        task = ask("POST", f"{server.url}/v2/tasks", _body(f"{source.url}/source.raw"))
        poll(lambda: _ended(server.url, task["id"]), every_s=0.1, limit_s=300, what="the import ended")
        job = ask("GET", f"{server.url}/jobs/{task['id']}")
        image = ask("GET", f"{server.url}/v2/images/{ask('GET', server.url + '/v2/tasks/' + task['id'])['result']['image_id']}")
    if image["os_hash_value"] != plain["sha512"]:
        raise Unmeasurable("the imported image has another checksum than the source")
    took_s = _seconds(job["ended_at"]) - _seconds(job["created_at"])
    return {"import of 1 GiB": took_s, "plain download": plain["wall_s"], "import / download": took_s / plain["wall_s"]}


def _body(url: str) -> dict[str, object]:
    properties = {"disk_format": "raw", "container_format": "bare", "name": "bench"}
    return {"type": "import", "input": {"import_from": url, "import_from_format": "raw", "image_properties": properties}}


def _ended(url: str, task_id: str) -> bool:
    task = ask("GET", f"{url}/v2/tasks/{task_id}")
    if task["status"] == "failure":
        raise Unmeasurable(f"the import failed: {task['message']}")
    return bool(task["status"] == "success")


def _seconds(instant: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(instant).timestamp()


def _make_image(file: Path, size_mib: int) -> None:
    with file.open("wb") as out:
        for at in range(0, size_mib, EVERY_MIB):
            out.seek(at * MIB)
            out.write(os.urandom(MIB))
        out.truncate(size_mib * MIB)


FIGURE = Figure(
    "image-import",
    "POST /v2/tasks import of a raw image of 1 GiB over loopback (a quick run: 128 MiB), and the plain download beside it",
    (
        Row("import of 1 GiB", "s", None, "less"),
        Row("plain download", "s", None, "less"),
        Row("import / download", "ratio", None, "less"),
    ),
    _measure,
    rounds_max=2,
)
