"""Delivers callbacks: each is a durable object with attempts and backoff, and never changes its job.

Signed as Standard Webhooks (https://www.standardwebhooks.com): `webhook-id`, `webhook-timestamp` and
`webhook-signature: v1,<base64 HMAC-SHA256 of id.timestamp.body>` with the project's `whsec_…` secret.

Rules: any 2xx is delivered; 410 gives up at once; anything else is tried again with doubling pauses until
`callback_attempts_max`.  Redirects are not followed: the address was given once and checked.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

import structlog

from milepost.clock import Clock
from milepost.dispatch import Dispatch
from milepost.engine.stats import EngineStats
from milepost.errors import MilepostError, StoreUnavailable
from milepost.job import Job, ProjectId
from milepost.settings import Settings
from milepost.store import Delivery, Store

log = structlog.get_logger("milepost.engine")

GONE = 410


class Send(Protocol):
    """POST the body, guarded; the status and the beginning of the answer.  Errors: MilepostError, OSError."""

    async def __call__(self, url: str, headers: dict[str, str], body: bytes, *, timeout_s: float) -> tuple[int, str]: ...


def sign(secret: str, delivery_id: str, timestamp_s: int, body: bytes) -> str:
    """The `webhook-signature` of a body.  `secret` is `whsec_` and base64."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = hmac.new(key, f"{delivery_id}.{timestamp_s}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(signed).decode()


class Courier:
    """Sends what is due, several at a time, oldest first.  Ends only by cancellation."""

    def __init__(
        self,
        store: Store,
        dispatch: Dispatch,
        clock: Clock,
        settings: Settings,
        stats: EngineStats,
        *,
        send: Send,
        encode: Callable[[Delivery, Job], bytes],
        secret_of: Callable[[ProjectId], Awaitable[str]],
    ) -> None:
        self._store, self._dispatch, self._clock, self._settings, self._stats = store, dispatch, clock, settings, stats
        self._send, self._encode, self._secret_of = send, encode, secret_of

    async def run(self) -> None:
        while True:
            try:
                sent = await self.run_once()
                pause_s = 0.0 if sent else await self._pause_s()
            except StoreUnavailable as error:
                log.error("cannot deliver callbacks, trying again", error=str(error))
                pause_s = 1.0
            if pause_s:
                await self._dispatch.next_delivery(pause_s)

    async def _pause_s(self) -> float:
        next_us = await self._store.next_delivery_us()
        return 30.0 if next_us is None else min(30.0, max(0.05, (next_us - self._clock.now_us()) / 1e6))

    async def run_once(self) -> int:
        """Try what is due once each.  Returns how many were tried."""
        due = await self._store.claim_deliveries(
            now_us=self._clock.now_us(),
            lease_s=self._settings.callback_timeout_s * 2 + 5,
            limit=self._settings.callback_concurrency,
        )
        async with asyncio.TaskGroup() as group:
            for delivery in due:
                group.create_task(self._deliver(delivery))
        return len(due)

    async def _deliver(self, delivery: Delivery) -> None:
        status: int | None = None
        error: str | None = None
        try:
            job = await self._store.get_job(delivery.job_id)
            if not isinstance(job, Job):
                error = "the job has expired"
            else:
                status, said = await self._post(delivery, job)
                error = None if 200 <= status < 300 else f"answered {status}: {said[:300]}"
        except (MilepostError, OSError) as raised:
            error = str(raised)[:500] or type(raised).__name__
        except Exception as raised:  # ours, or of this one job: it is no reason to stop delivering the others
            log.error("a callback could not be made or sent", delivery_id=delivery.id, job_id=delivery.job_id, exc_info=raised)
            error = f"{type(raised).__name__}: {raised}"[:500]
        try:
            await self._record(delivery, status, error)
        except StoreUnavailable as raised:  # its lease runs out, and it is sent again
            log.error("cannot record a callback", delivery_id=delivery.id, job_id=delivery.job_id, error=str(raised))

    async def _post(self, delivery: Delivery, job: Job) -> tuple[int, str]:
        body = self._encode(delivery, job)
        stamp_s = self._clock.now_us() // 1_000_000
        headers = {
            "content-type": "application/json",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(stamp_s),
            "webhook-signature": sign(await self._secret_of(delivery.project), delivery.id, stamp_s, body),
        }
        return await self._send(delivery.url, headers, body, timeout_s=self._settings.callback_timeout_s)

    async def _record(self, delivery: Delivery, status: int | None, error: str | None) -> None:
        s, now_us = self._settings, self._clock.now_us()
        state: Literal["pending", "delivered", "given_up"]
        if error is None:
            state, next_us = "delivered", now_us
        elif status == GONE or error == "the job has expired" or delivery.attempt >= s.callback_attempts_max:
            state, next_us = "given_up", now_us
        else:
            pause_s = min(s.callback_backoff_s * 2 ** min(delivery.attempt - 1, 40), s.callback_backoff_s_max)
            state, next_us = "pending", now_us + int(pause_s * 1e6)
        self._stats.deliveries[state if state != "pending" else "failed"] += 1
        log.info("callback", delivery_id=delivery.id, job_id=delivery.job_id, attempt=delivery.attempt, state=state, error=error)
        await self._store.finish_delivery(
            delivery,
            state=state,
            next_us=next_us,
            status=status,
            error=error,
            now_us=now_us,
        )
