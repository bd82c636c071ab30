"""1,000 waits at once where 200 requests in five minutes are allowed, in virtual time.

The cloud knows a job by its id alone, as Huawei Cloud's services do, and refuses what is beyond its limit with a bare 429, as its
gateway does (`limit:200,time:5 minute`).  A loop that sleeps five seconds ends its wait at the first refusal, as the SDKs' do.
"""

from __future__ import annotations

import random
import statistics
from collections import deque

import msgspec

from bench.figure import Figure, Row
from bench.figures.cadence import at, make_jobs
from bench.room import Room
from milepost.client.budget import Budgets, Limit
from milepost.client.bulk import Bulk
from milepost.client.dialects import dialect
from milepost.client.known import Known
from milepost.client.places import Places
from milepost.client.session import Session
from milepost.testing.virtual import VirtualDriver
from milepost.wire import Request, Response

JOBS = 1000
ALLOWED, WINDOW_S = 200, 300.0
RTT_S = 0.05


class Cloud:
    """Jobs that end at their time, behind a gateway that counts."""

    def __init__(self, durations_s: list[float]) -> None:
        self._ends_s = durations_s
        self._asked: deque[float] = deque()
        self.refused = self.answered = 0

    def allows(self, now_s: float) -> bool:
        while self._asked and self._asked[0] <= now_s - WINDOW_S:
            self._asked.popleft()
        if len(self._asked) >= ALLOWED:
            self.refused += 1
            return False
        self._asked.append(now_s)
        self.answered += 1
        return True

    def answer(self, request: Request, now_s: float) -> Response:
        if not self.allows(now_s):
            return Response(429, {"content-type": "application/json"}, b'{"error_code":"APIGW.0308","error_msg":"limit:200"}')
        number = int(request.url.rpartition("/")[2], 16)
        status = "SUCCESS" if now_s >= self._ends_s[number] else "RUNNING"
        body = {"job_id": f"{number:032x}", "job_type": "createServer", "status": status, "entities": {}}
        return Response(200, {"content-type": "application/json"}, msgspec.json.encode(body))


def milepost(durations_s: list[float], limit: Limit | None) -> dict[str, float]:
    """What waiting for all of them with one call comes to."""
    cloud = Cloud(durations_s)
    driver = VirtualDriver(lambda request: (RTT_S, cloud.answer(request, driver.now_s + RTT_S / 2)))
    session = Session(
        dialect("huawei-ecs"),
        "https://cloud.example.test",
        clock=driver.clock,
        project="p",
        random=random.Random(2).random,
        limit=limit,
        budgets=Budgets(),
        places=Places(),
    )
    jobs = [Known(f"{number:032x}") for number in range(len(durations_s))]
    driver.run(Bulk(session, jobs, timeout_s=None, cadence=None).run(), steps_max=10_000_000)
    came = zip(driver.emitted_s, driver.emitted, strict=True)
    lags = [at_s - durations_s[int(known.id, 16)] for at_s, known in came if known.done]
    return {
        "failed waits": len(jobs) - len(lags),
        "probes a job": cloud.answered / len(jobs),
        "refused requests": cloud.refused,
        "lag, p50": statistics.median(lags),
        "lag, p99": at(0.99, lags),
    }


def every_5_s(durations_s: list[float]) -> float:
    """Waits that fail when each job has a loop of its own that ends at the first refusal."""
    cloud, failed = Cloud(durations_s), 0
    left = list(range(len(durations_s)))
    dice = random.Random(3)
    offset = [5 * dice.random() for _ in left]
    turn = 0
    while left:
        asked = sorted((offset[number] + 5 * turn, number) for number in left)
        for now_s, number in asked:
            if not cloud.allows(now_s):
                failed += 1
                left.remove(number)
            elif now_s >= durations_s[number]:
                left.remove(number)
        turn += 1
    return failed


def _measure(_: Room) -> dict[str, float]:
    durations_s = [duration_s for _, duration_s in make_jobs(4)[:JOBS]]
    found: dict[str, float] = {"every 5 s: failed waits": every_5_s(durations_s)}
    for name, limit in (("limit given", Limit(ALLOWED, WINDOW_S)), ("limit found out", None)):
        found |= {f"{name}: {what}": value for what, value in milepost(durations_s, limit).items()}
    return found


def _rows(name: str, refused: float | None) -> tuple[Row, ...]:
    return (
        Row(f"{name}: failed waits", "waits", 0, "less"),
        Row(f"{name}: refused requests", "requests", refused, "less"),
        Row(f"{name}: probes a job", "probes"),
        Row(f"{name}: lag, p50", "s"),
        Row(f"{name}: lag, p99", "s"),
    )


FIGURE = Figure(
    "budget",
    "1,000 waits at once where 200 requests in 5 minutes are allowed, in virtual time",
    (Row("every 5 s: failed waits", "waits"), *_rows("limit given", 0), *_rows("limit found out", None)),
    _measure,
    rounds_max=1,
)
