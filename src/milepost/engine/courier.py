"""Delivers callbacks: each is a durable object with attempts and backoff, and never changes its job.

Signed as Standard Webhooks (https://www.standardwebhooks.com): `webhook-id`, `webhook-timestamp` and
`webhook-signature: v1,<base64 HMAC-SHA256 of id.timestamp.body>` with the project's `whsec_…` secret.

Rules: any 2xx is delivered; 410 gives up at once; anything else is tried again with doubling pauses until
`callback_attempts_max`.  Redirects are not followed: the address was given once and checked.

Another vendor's callbacks have a `Manner` of their own, which the composition root chooses by the job; they are signed so too.
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


class Manner(Protocol):
    """How one vendor's callbacks look, and what answers mean there."""

    async def make(self, delivery: Delivery, job: Job) -> tuple[dict[str, str], bytes]:
        """Headers and body.  Errors: MilepostError."""
        ...

    def is_delivered(self, status: int) -> bool:
        """Whether this answer says that it came."""
        ...

    def pause_s(self, attempt: int, status: int | None) -> float | None:
        """How long to wait after this failed try (status None: no answer); None gives up."""
        ...


def sign(secret: str, delivery_id: str, timestamp_s: int, body: bytes) -> str:
    """The `webhook-signature` of a body.  `secret` is `whsec_` and base64."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = hmac.new(key, f"{delivery_id}.{timestamp_s}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(signed).decode()


class StandardWebhooks:
    """The manner of this server's own callbacks."""

    def __init__(
        self,
        clock: Clock,
        settings: Settings,
        *,
        encode: Callable[[Delivery, Job], bytes],
        secret_of: Callable[[ProjectId], Awaitable[str]],
    ) -> None:
        self._clock, self._settings, self._encode, self._secret_of = clock, settings, encode, secret_of

    async def make(self, delivery: Delivery, job: Job) -> tuple[dict[str, str], bytes]:
        return {"content-type": "application/json"}, self._encode(delivery, job)

    async def stamp(self, delivery: Delivery, body: bytes) -> dict[str, str]:
        """The three headers that sign a body."""
        stamp_s = self._clock.now_us() // 1_000_000
        return {
            "webhook-id": delivery.id,
            "webhook-timestamp": str(stamp_s),
            "webhook-signature": sign(await self._secret_of(delivery.project), delivery.id, stamp_s, body),
        }

    def is_delivered(self, status: int) -> bool:
        return 200 <= status < 300

    def pause_s(self, attempt: int, status: int | None) -> float | None:
        s = self._settings
        if status == GONE or attempt >= s.callback_attempts_max:
            return None
        return min(s.callback_backoff_s * 2.0 ** min(attempt - 1, 40), s.callback_backoff_s_max)


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
        manner_of: Callable[[Job], Manner | None] | None = None,
    ) -> None:
        self._store, self._dispatch, self._clock, self._settings, self._stats = store, dispatch, clock, settings, stats
        self._send, self._manner_of = send, manner_of
        self._own = StandardWebhooks(clock, settings, encode=encode, secret_of=secret_of)

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
        manner: Manner | None = self._own  # None: the job is gone, and with it what would be told
        try:
            job = await self._store.get_job(delivery.job_id)
            if not isinstance(job, Job):
                manner, error = None, "the job has expired"
            else:
                manner = (self._manner_of(job) if self._manner_of is not None else None) or self._own
                headers, body = await manner.make(delivery, job)
                headers |= await self._own.stamp(delivery, body)
                status, said = await self._send(delivery.url, headers, body, timeout_s=self._settings.callback_timeout_s)
                error = None if manner.is_delivered(status) else f"answered {status}: {said[:300]}"
        except (MilepostError, OSError) as raised:
            error = str(raised)[:500] or type(raised).__name__
        except Exception as raised:  # ours, or of this one job: it is no reason to stop delivering the others
            log.error("a callback could not be made or sent", delivery_id=delivery.id, job_id=delivery.job_id, exc_info=raised)
            error = f"{type(raised).__name__}: {raised}"[:500]
        try:
            await self._record(delivery, manner, status, error)
        except StoreUnavailable as raised:  # its lease runs out, and it is sent again
            log.error("cannot record a callback", delivery_id=delivery.id, job_id=delivery.job_id, error=str(raised))

    async def _record(self, delivery: Delivery, manner: Manner | None, status: int | None, error: str | None) -> None:
        now_us = self._clock.now_us()
        state: Literal["pending", "delivered", "given_up"] = "delivered"
        next_us = now_us
        if error is not None:
            pause_s = None if manner is None else manner.pause_s(delivery.attempt, status)
            state = "given_up" if pause_s is None else "pending"
            next_us = now_us + int((pause_s or 0.0) * 1e6)
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
