"""GET of one job, against a bare ASGI function that does the same read: what routing, identity, errors and headers cost.

wrk makes the load where it is installed (Debian: wrk), because it takes the least from the other core; else pyreqwest does.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.figure import Figure, Row, Unmeasurable
from bench.room import Room, ask, poll

JOBS = 1000
CONCURRENCY = 64
SCRIPT = """
local requests, at = {}, 0
function init(args)
  for path in io.lines(args[1]) do requests[#requests + 1] = wrk.format("GET", path) end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
function done(summary, latency, all)
  local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format('{"per_s": %f, "bad": %d}\\n', summary.requests / (summary.duration / 1e6), bad))
end
"""


def _measure(room: Room) -> dict[str, float]:
    data = room.folder / "data"
    with room.serving(data) as server:
        paths = room.folder / "paths"
        paths.write_text("\n".join(_submit(server.url)) + "\n")
        with room.program("bare", data / "milepost.db") as bare:
            seconds = room.some(3, 1)
            load(room, server.url, paths, 1)
            load(room, bare.url, paths, 1)
            ours, least = [], []
            for _ in range(room.some(3, 1)):
                ours.append(load(room, server.url, paths, seconds))
                least.append(load(room, bare.url, paths, seconds))
    served, possible = max(ours), max(least)  # what others take from the machine only ever makes it slower
    return {"GET /jobs/{id}": served, "the bare handler": possible, "GET / bare": served / possible}


def _submit(url: str) -> list[str]:
    body = {"kind": "noop", "input": {"volume_id": "0b1f6f8e-3c8e-4a8a-9f5a-3f1f0a1c2d3e", "size": 40}, "labels": {"team": "t1"}}
    jobs = ask("POST", f"{url}/jobs", [body] * JOBS)["jobs"]
    poll(lambda: _ended(url, jobs), every_s=0.02, limit_s=30, what="the jobs ended")
    return [f"/jobs/{job['id']}" for job in jobs]


def _ended(url: str, jobs: Sequence[dict[str, str]]) -> bool:
    return all(ask("GET", f"{url}/jobs/{jobs[at]['id']}")["state"] == "succeeded" for at in (0, len(jobs) // 2, -1))


def load(room: Room, url: str, paths: Path, seconds: float) -> float:
    wrk = shutil.which("wrk")
    if wrk is None:
        found = room.run("load", "get", url, "--paths", paths, "--seconds", seconds, "--concurrency", CONCURRENCY)
        return float(found["per_s"])
    script = room.folder / "paths.lua"
    script.write_text(SCRIPT)
    command = [wrk, "-t1", f"-c{CONCURRENCY}", f"-d{seconds:g}s", "-s", str(script), url, "--", str(paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=False)
    if done.returncode:
        raise Unmeasurable(f"wrk ended with {done.returncode}: {done.stderr.strip()[:200]}")
    said = json.loads(done.stdout.strip().rpartition("\n")[2])
    if said["bad"]:
        raise Unmeasurable(f"{said['bad']} of wrk's requests failed")
    return float(said["per_s"])


FIGURE = Figure(
    "status-get",
    "GET of one job at 64 connections, against a bare ASGI handler that does the same read on the same Granian",
    (Row("GET /jobs/{id}", "req/s"), Row("the bare handler", "req/s"), Row("GET / bare", "ratio", 0.6)),
    _measure,
)
