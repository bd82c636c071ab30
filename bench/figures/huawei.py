"""Huawei's wire: the query of a job with 100 sub-jobs, and a volume from submit to final at a steady 50 a second."""

from __future__ import annotations

import statistics

from bench.figure import Figure, Row
from bench.figures.status_get import load
from bench.machine import percentile
from bench.room import Room, ask, poll

SUB_JOBS = 100
RATE_PER_S = 50
PROJECT = "default"


def _query(room: Room) -> dict[str, float]:
    volume = {"availability_zone": "az-1", "volume_type": "SSD", "size": 10, "name": "bench", "count": SUB_JOBS}
    with room.serving(room.folder / "data") as server:
        job_id = ask("POST", f"{server.url}/v2.1/{PROJECT}/cloudvolumes", {"volume": volume})["job_id"]
        path = f"/v1/{PROJECT}/jobs/{job_id}"
        poll(
            lambda: ask("GET", server.url + path)["status"] == "SUCCESS", every_s=0.1, limit_s=60, what="the volumes were created"
        )
        assert len(ask("GET", server.url + path)["entities"]["sub_jobs"]) == SUB_JOBS
        paths = room.folder / "paths"
        paths.write_text(path + "\n")
        load(room, server.url, paths, 1)
        return {"job query, 100 sub-jobs": max(load(room, server.url, paths, room.some(3, 1)) for _ in range(room.some(3, 1)))}


def _create(room: Room) -> dict[str, float]:
    count = RATE_PER_S * room.some(8, 3)
    with room.serving(room.folder / "data", volumes_max=10_000, volumes_gib_max=1_000_000) as server:
        room.run("load", "volumes", server.url, "--count", 20)
        found: list[float] = room.run("load", "volumes", server.url, "--count", count, "--rate", RATE_PER_S)["ms"]
    return {"createVolume, p50": statistics.median(found), "createVolume, p99": percentile(found, 99)}


QUERY = Figure(
    "huawei-job-query",
    f"GET /v1/{{project}}/jobs/{{id}} of a finished batch of {SUB_JOBS} volumes at 64 connections",
    (Row("job query, 100 sub-jobs", "req/s"),),
    _query,
)
CREATE = Figure(
    "huawei-create-volume",
    "POST /v2.1/{project}/cloudvolumes until the job is final and the volume on disk, 50 a second",
    (Row("createVolume, p50", "ms"), Row("createVolume, p99", "ms")),
    _create,
)
