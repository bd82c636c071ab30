"""What many waits in one process cost: a small server of jobs that end by a plan, and a client that waits for all of them.

`python -m bench.waiting serve JOBS SECONDS stream|list` answers lists, jobs and events of that many jobs, which end evenly
within so many seconds from the first list; `python -m bench.waiting wait URL JOBS` waits for them and prints what that took.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import socket
import sys
import time
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl

import msgspec

DATE = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000000Z")


def job_id(number: int) -> str:
    return f"0197a000-0000-7000-8000-{number:012x}"


class Plan:
    """Jobs that end one after the other; every hundredth fails."""

    def __init__(self, jobs: int, within_s: float) -> None:
        self.jobs, self.within_s = jobs, within_s
        self.started_s: float | None = None
        self.requests: dict[str, int] = {"lists": 0, "jobs": 0, "streams": 0}

    def start(self) -> None:
        self.started_s = self.started_s or time.monotonic()

    def ended(self) -> int:
        """How many jobs have ended by now: those with the smallest numbers."""
        if self.started_s is None:
            return 0
        return min(self.jobs, int(self.jobs * (time.monotonic() - self.started_s) / self.within_s))

    def state(self, number: int, ended: int) -> str:
        if number >= ended:
            return "running"
        return "failed" if number % 100 == 0 else "succeeded"

    def job(self, number: int, ended: int) -> dict[str, object]:
        return {
            "id": job_id(number),
            "kind": "noop",
            "state": self.state(number, ended),
            "project": "default",
            "queue": "default",
            "priority": 5,
            "labels": {},
            "input": {"number": number},
            "result": {"number": number},
            "progress": {},
            "attempt": 1,
            "attempts_max": 1,
            "sub_jobs": {},
            "created_at": DATE,
            "updated_at": DATE,
            "run_at": DATE,
        }


class App:
    """The part of the native API that waits use, as an ASGI application; streams only where it is told to."""

    def __init__(self, plan: Plan, *, streams: bool) -> None:
        self.plan, self.streams = plan, streams

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path == "/counts":
            await self._answer(send, self.plan.requests)
        elif path == "/events" and self.streams:
            await self._stream(dict(scope["headers"]).get(b"last-event-id"), receive, send)
        elif path == "/jobs":
            self.plan.start()
            self.plan.requests["lists"] += 1
            ended = self.plan.ended()
            ids = [value for name, value in parse_qsl(scope["query_string"].decode()) if name == "id"]
            await self._answer(send, {"jobs": [self.plan.job(int(one[-12:], 16), ended) for one in ids]})
        elif path.startswith("/jobs/"):
            self.plan.start()
            self.plan.requests["jobs"] += 1
            await self._answer(send, self.plan.job(int(path[-12:], 16), self.plan.ended()))
        else:
            await self._answer(send, {}, 404)

    async def _answer(self, send, body: object, status: int = 200) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": msgspec.json.encode(body)})

    async def _stream(self, last: bytes | None, receive, send) -> None:
        """Each end as an event, as the real server has it: from now on, or from behind the last one that was heard."""
        self.plan.requests["streams"] += 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        told = self.plan.ended() if last is None else int(last) - 1
        await send({"type": "http.response.body", "body": b"retry: 2000\nid: %d\n\n" % (told + 1), "more_body": True})
        while told < self.plan.jobs:
            await asyncio.sleep(0.05)
            ended = self.plan.ended()
            parts = [self._event(number) for number in range(told, ended)]
            told = ended
            if parts:
                await send({"type": "http.response.body", "body": b"".join(parts), "more_body": True})
        await receive()  # until the client goes

    def _event(self, number: int) -> bytes:
        state = self.plan.state(number, number + 1)
        body = {
            "id": number + 2, "job_id": job_id(number), "root_id": job_id(number), "seq": 3, "type": "finished", "state": state,
            "at": DATE, "data": None,
        }  # fmt: skip
        return b"id: %d\nevent: finished\ndata: %s\n\n" % (number + 2, msgspec.json.encode(body))


def serve(jobs: int, within_s: float, streams: bool) -> None:
    from granian.server.embed import Server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = App(Plan(jobs, within_s), streams=streams)

    async def main() -> None:
        server = Server(app, address="127.0.0.1", port=port, interface="asgi", log_enabled=False)
        task = asyncio.ensure_future(server.serve())
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.05)
        print(f"ready http://127.0.0.1:{port}", flush=True)
        await task

    asyncio.run(main())


def resident_bytes() -> int:
    """What this process holds now: its high-water mark would be that of the program that started it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def wait(url: str, jobs: int, *, traced: bool) -> dict[str, float]:
    """Wait for all; memory is what a job costs before the first of them ended."""
    import milepost

    async with milepost.AsyncClient(url) as client:
        gc.collect()
        before = resident_bytes()
        if traced:
            tracemalloc.start()
        handles = [client.attach(job_id(number)) for number in range(jobs)]
        found: dict[str, float] = {}
        started_s, cpu_s = time.monotonic(), time.process_time()
        seen = wrong = 0
        async for job in client.as_completed(handles):
            number = int(job.id[-12:], 16)
            seen += 1
            wrong += str(job.state) != ("failed" if number % 100 == 0 else "succeeded")
            if seen == max(1, jobs // 50):  # nearly all wait, and each was looked at
                held = tracemalloc.get_traced_memory()[0] if traced else resident_bytes() - before
                found["bytes_a_job"] = held / jobs
            job.forget()
        found |= {
            "took_s": time.monotonic() - started_s,
            "cpu_s": time.process_time() - cpu_s,
            "ended": seen,
            "wrong": wrong,
        }
        return found


def main() -> None:
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "stream")
    else:
        print(json.dumps(asyncio.run(wait(sys.argv[2], int(sys.argv[3]), traced="--traced" in sys.argv))))


if __name__ == "__main__":
    main()
