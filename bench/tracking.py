"""Jobs at one server that another one follows.

`naps URL FILE JOBS FIRST_S LAST_S` submits them and writes their ids, `track URL FILE HOME` has them followed.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from pyreqwest.client import ClientBuilder

BATCH = 500
SIDE_BY_SIDE = 16
FAILS = 10  # one in so many fails


async def naps(http: Any, url: str, path: Path, jobs: int, first_s: float, last_s: float) -> dict[str, Any]:
    """Submit sleepers of all lengths."""
    dice, ids = random.Random(20261122), list[str]()
    bodies = [{"kind": "nap", "input": {"seconds": dice.uniform(first_s, last_s), "fails": n % FAILS == 0}} for n in range(jobs)]
    for start in range(0, jobs, BATCH):
        answer = await http.post(f"{url}/jobs").body_json(bodies[start : start + BATCH]).build().send()
        if answer.status != 202:
            raise RuntimeError(f"POST /jobs answered {answer.status}")
        ids += [job["id"] for job in (await answer.json())["jobs"]]
    path.write_text("\n".join(ids), encoding="utf-8")
    return {"jobs": jobs}


async def track(http: Any, cloud: str, path: Path, home: str) -> dict[str, Any]:
    """Have each of these jobs of the one server followed by the other."""
    ids = path.read_text(encoding="utf-8").split()
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
            return await naps(http, arguments[1], Path(arguments[2]), int(arguments[3]), float(arguments[4]), float(arguments[5]))
        return await track(http, arguments[1], Path(arguments[2]), arguments[3])


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1:]))))
