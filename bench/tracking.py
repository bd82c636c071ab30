"""Jobs at one server that another follows: `naps URL JOBS FIRST_S LAST_S` submits them, `track CLOUD HOME` has them followed."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from datetime import timedelta
from typing import Any

from pyreqwest.client import ClientBuilder

BATCH = 500
SIDE_BY_SIDE = 16
FAILS = 10  # one in so many fails


async def naps(http: Any, url: str, jobs: int, first_s: float, last_s: float) -> dict[str, Any]:
    """Submit sleepers of all lengths."""
    dice = random.Random(20261122)
    bodies = [{"kind": "nap", "input": {"seconds": dice.uniform(first_s, last_s), "fails": n % FAILS == 0}} for n in range(jobs)]
    for start in range(0, jobs, BATCH):
        answer = await http.post(f"{url}/jobs").body_json(bodies[start : start + BATCH]).build().send()
        if answer.status != 202:
            raise RuntimeError(f"POST /jobs answered {answer.status}")
    return {"jobs": jobs}


async def track(http: Any, cloud: str, home: str) -> dict[str, Any]:
    """Have each job of the one server followed by the other."""
    ids: list[str] = []
    path: str | None = "/jobs?limit=1000"
    while path is not None:
        page = await (await http.get(cloud + path).build().send()).json()
        ids += [job["id"] for job in page["jobs"]]
        path = f"/jobs?limit=1000&after={ids[-1]}" if len(page["jobs"]) == 1000 else None
    left = iter(ids)

    async def work() -> None:
        for job_id in left:
            body = {"handle": {"wire": "native", "endpoint": cloud, "id": job_id}}
            answer = await http.post(f"{home}/tracked").body_json(body).build().send()
            if answer.status not in (200, 202):
                raise RuntimeError(f"POST /tracked answered {answer.status}: {bytes(await answer.bytes())[:200]!r}")

    await asyncio.gather(*(work() for _ in range(SIDE_BY_SIDE)))
    return {"tracked": len(ids)}


async def main(arguments: list[str]) -> dict[str, Any]:
    async with ClientBuilder().no_proxy().timeout(timedelta(seconds=60)).build() as http:
        if arguments[0] == "naps":
            return await naps(http, arguments[1], int(arguments[2]), float(arguments[3]), float(arguments[4]))
        return await track(http, arguments[1], arguments[2])


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1:]))))
