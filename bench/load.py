"""The load on a server, from a process of its own: pyreqwest, async, as many requests at a time as told.

`submit` sends POST /jobs with so many workers; `get` asks for the paths in a file in turn for some seconds; `pages` asks for one
path one after the other; `latency` and `volumes` submit at a steady rate and wait for each job with `Prefer: wait`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import uuid
from collections.abc import Callable, Coroutine
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import uvloop
from pyreqwest.client import ClientBuilder

BODY = b'{"kind":"noop"}'
FINAL = (b'"state":"succeeded"', b'"state":"failed"', b'"state":"cancelled"')


def _client() -> Any:
    return ClientBuilder().no_proxy().timeout(timedelta(seconds=60)).build()


async def submit(http: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Submits by so many workers; `wall_s` runs from the first request to the last answer, `began_s` is the wall clock's."""
    share = args.count // args.concurrency

    async def work() -> None:
        for _ in range(share):
            answer = (
                await http.post(f"{args.url}/jobs").header("content-type", "application/json").body_bytes(BODY).build().send()
            )
            if answer.status != 202:
                raise RuntimeError(f"POST /jobs answered {answer.status}")

    began_s, started_s = time.time(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(args.concurrency)))
    return {"count": share * args.concurrency, "began_s": began_s, "wall_s": time.perf_counter() - started_s}


async def get(http: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Requests a second over args.seconds."""
    urls = cycle([args.url + path for path in Path(args.paths).read_text().split()])
    end_s = time.perf_counter() + args.seconds
    count = 0

    async def work() -> None:
        nonlocal count
        while time.perf_counter() < end_s:
            answer = await http.get(next(urls)).build().send()
            await answer.bytes()
            if answer.status != 200:
                raise RuntimeError(f"GET answered {answer.status}")
            count += 1

    started_s = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(args.concurrency)))
    return {"per_s": count / (time.perf_counter() - started_s)}


async def pages(http: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of each of args.count requests for one path, and the size of its answer."""
    samples, size = [], 0
    for number in range(args.count + 5):
        started_s = time.perf_counter()
        answer = await http.get(args.url + args.path).build().send()
        body = await answer.bytes()
        if answer.status != 200:
            raise RuntimeError(f"GET {args.path} answered {answer.status}: {bytes(body)[:200]!r}")
        if number >= 5:  # the first ones open the connection and fill caches
            samples.append((time.perf_counter() - started_s) * 1000)
        size = len(body)
    return {"ms": samples, "bytes": size}


VOLUME = b'{"volume":{"availability_zone":"az-1","volume_type":"SSD","size":10,"name":"bench"}}'


async def volumes(http: Any, args: argparse.Namespace) -> dict[str, Any]:
    """As `latency`, of volumes created through block storage's API."""
    samples: list[float] = []

    async def follow() -> None:
        started_s = time.perf_counter()
        post = http.post(f"{args.url}/v2.1/default/cloudvolumes").header("content-type", "application/json")
        answer = await post.body_bytes(VOLUME).build().send()
        job_id = uuid.UUID(json.loads(bytes(await answer.bytes()))["job_id"])
        body = b""
        while not any(word in body for word in FINAL):
            answer = await http.get(f"{args.url}/jobs/{job_id}").header("prefer", "wait=10").build().send()
            body = bytes(await answer.bytes())
            if answer.status != 200:
                raise RuntimeError(f"GET of a job answered {answer.status}")
        if FINAL[0] not in body:
            raise RuntimeError(f"a volume was not created: {body[:300]!r}")
        samples.append((time.perf_counter() - started_s) * 1000)

    await _steadily(follow, args)
    return {"ms": samples}


async def latency(http: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds from each submit until a long poll says that the job is final."""
    samples: list[float] = []

    async def follow() -> None:
        started_s = time.perf_counter()
        answer = await http.post(f"{args.url}/jobs").header("content-type", "application/json").body_bytes(BODY).build().send()
        job_id = json.loads(bytes(await answer.bytes()))["id"]
        body = b""
        while not any(word in body for word in FINAL):
            answer = await http.get(f"{args.url}/jobs/{job_id}").header("prefer", "wait=10").build().send()
            body = bytes(await answer.bytes())
        samples.append((time.perf_counter() - started_s) * 1000)

    await _steadily(follow, args)
    return {"ms": samples}


async def _steadily(follow: Callable[[], Coroutine[Any, Any, None]], args: argparse.Namespace) -> None:
    """`args.count` of them, `args.rate` begun each second; returns when all have ended."""
    started_s = time.perf_counter()
    async with asyncio.timeout(60 + args.count / args.rate), asyncio.TaskGroup() as group:
        for number in range(args.count):
            await asyncio.sleep(max(0.0, started_s + number / args.rate - time.perf_counter()))
            group.create_task(follow())


LOADS = {load.__name__: load for load in (submit, get, pages, latency, volumes)}


async def _run(args: argparse.Namespace) -> dict[str, Any]:
    async with _client() as http:
        return await LOADS[args.what](http, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=list(LOADS))
    parser.add_argument("url")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--path", default="/jobs")
    parser.add_argument("--paths", default="")
    json.dump(uvloop.run(_run(parser.parse_args())), sys.stdout)
    print()


if __name__ == "__main__":
    main()
