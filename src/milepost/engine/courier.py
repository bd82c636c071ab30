"""Delivers callbacks and what subscriptions are told: durable objects with attempts and backoff, that never change a job.

Signed as Standard Webhooks (https://www.standardwebhooks.com): `webhook-id`, `webhook-timestamp` and
`webhook-signature: v1,<base64 HMAC-SHA256 of id.timestamp.body>` with the `whsec_…` secret of the project or the subscription; a
replaced secret signs beside the new one for a while.

Rules
1. Any 2xx is delivered; 410 gives up at once; anything else is tried again with doubling pauses until `callback_attempts_max`.
   Redirects are not followed: the address was given once and checked.
2. A receiver has `callback_receiver_max` places, and one after a failed try: whoever is slow or dead delays its own only.
3. A subscription whose receiver answers 410, or with `subscription_given_up_max` deliveries given up in a row, is paused.

Another vendor's callbacks have a `Manner` of their own, which the composition root chooses by the job; they are signed so too.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

import structlog

from milepost.clock import Clock
from milepost.dispatch import Dispatch
from milepost.engine.stats import EngineStats
from milepost.errors import MilepostError, NotFound, StoreUnavailable
from milepost.job import Job, JobId, ProjectId, Tombstone
from milepost.settings import Settings
from milepost.store import Delivery, Store

log = structlog.get_logger("milepost.engine")

GONE = 410
FAILING_MAX = 10_000  # receivers that are remembered to have failed
Encode = Callable[[Delivery, Job | Tombstone | None], bytes]


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
        encode: Encode,
        secrets_of: Callable[[Delivery], Awaitable[list[str]]],
    ) -> None:
        self._clock, self._settings, self._encode, self._secrets_of = clock, settings, encode, secrets_of

    async def make(self, delivery: Delivery, job: Job | Tombstone | None) -> tuple[dict[str, str], bytes]:
        return {"content-type": "application/json"}, self._encode(delivery, job)

    async def stamp(self, delivery: Delivery, body: bytes) -> dict[str, str]:
        """The three headers that sign a body."""
        stamp_s = self._clock.now_us() // 1_000_000
        secrets = await self._secrets_of(delivery)
        return {
            "webhook-id": delivery.id,
            "webhook-timestamp": str(stamp_s),
            "webhook-signature": " ".join(sign(secret, delivery.id, stamp_s, body) for secret in secrets),
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
        encode: Encode,
        secret_of: Callable[[ProjectId], Awaitable[str]],
        manner_of: Callable[[Job], Manner | None] | None = None,
    ) -> None:
        self._store, self._dispatch, self._clock, self._settings, self._stats = store, dispatch, clock, settings, stats
        self._send, self._manner_of, self._secret_of = send, manner_of, secret_of
        self._own = StandardWebhooks(clock, settings, encode=encode, secrets_of=self._secrets_of)
        self._sending: set[asyncio.Task[None]] = set()
        self._to: Counter[str] = Counter()  # receivers that something is being sent to
        self._failing: set[str] = set()

    async def run(self) -> None:
        try:
            while True:
                try:
                    pause_s = await self._fill()
                except StoreUnavailable as error:
                    log.error("cannot deliver callbacks, trying again", error=str(error))
                    pause_s = 1.0
                if pause_s:
                    await self._dispatch.next_delivery(pause_s)
        finally:
            for task in self._sending:
                task.cancel()
            await asyncio.gather(*self._sending, return_exceptions=True)

    async def run_once(self) -> int:
        """Try what is due once each.  Returns how many were tried."""
        due = await self._claim(self._settings.callback_concurrency)
        async with asyncio.TaskGroup() as group:
            for delivery in due:
                group.create_task(self._deliver(delivery))
        return len(due)

    async def _fill(self) -> float:
        """Begin to send what is due and has a place; returns for how long there is nothing more to begin."""
        free = self._settings.callback_concurrency - len(self._sending)
        if free <= 0:
            return 30.0  # who ends rings
        due = await self._claim(free)
        for delivery in due:
            task = asyncio.create_task(self._deliver(delivery))
            self._sending.add(task)
            task.add_done_callback(self._sent)
        if due:
            return 0.0
        next_us = await self._store.next_delivery_us()
        left_s = 30.0 if next_us is None else (next_us - self._clock.now_us()) / 1e6
        # Something that is due and was not claimed waits for a place at its receiver: whoever has that rings when it ends.
        return min(30.0, max(left_s, 1.0 if self._sending else 0.05))

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._dispatch.announce_delivery()

    async def _claim(self, limit: int) -> list[Delivery]:
        most = self._settings.callback_receiver_max
        known = self._failing | self._to.keys()
        places = {one: (1 if one in self._failing else most) - self._to[one] for one in known}
        due = await self._store.claim_deliveries(
            now_us=self._clock.now_us(),
            lease_s=self._settings.callback_timeout_s * 2 + 5,
            limit=limit,
            most=most,
            places=places,
        )
        self._to.update(delivery.receiver for delivery in due)
        return due

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            await self._try(delivery)
        finally:
            self._to[delivery.receiver] -= 1
            if self._to[delivery.receiver] <= 0:
                del self._to[delivery.receiver]

    async def _try(self, delivery: Delivery) -> None:
        status: int | None = None
        error: str | None = None
        manner: Manner | None = self._own  # None: what would be told is gone
        try:
            manner, headers, body = await self._make(delivery)
            headers |= await self._own.stamp(delivery, body)
            status, said = await self._send(delivery.url, headers, body, timeout_s=self._settings.callback_timeout_s)
            error = None if manner.is_delivered(status) else f"answered {status}: {said[:300]}"
        except NotFound as gone:
            manner, error = None, gone.message
        except (MilepostError, OSError) as raised:
            error = str(raised)[:500] or type(raised).__name__
        except Exception as raised:  # ours, or of this one job: it is no reason to stop delivering the others
            log.error("a callback could not be made or sent", delivery_id=delivery.id, job_id=delivery.job_id, exc_info=raised)
            error = f"{type(raised).__name__}: {raised}"[:500]
        try:
            await self._record(delivery, manner, status, error)
        except StoreUnavailable as raised:  # its lease runs out, and it is sent again
            log.error("cannot record a callback", delivery_id=delivery.id, job_id=delivery.job_id, error=str(raised))

    async def _make(self, delivery: Delivery) -> tuple[Manner, dict[str, str], bytes]:
        """Errors: NotFound when what would be told, or who was to be told, is gone."""
        found: Job | Tombstone | None = None
        if delivery.job_id:
            try:
                found = await self._store.get_job(JobId(delivery.job_id))
            except NotFound:
                if delivery.subscription_id is None:
                    raise
        if delivery.subscription_id is not None:
            return self._own, *await self._own.make(delivery, found)
        if not isinstance(found, Job):
            raise NotFound("the job has expired", job_id=delivery.job_id)
        manner = (self._manner_of(found) if self._manner_of is not None else None) or self._own
        return manner, *await manner.make(delivery, found)

    async def _secrets_of(self, delivery: Delivery) -> list[str]:
        """Errors: NotFound when the subscription was removed."""
        if delivery.subscription_id is None:
            return [await self._secret_of(delivery.project)]
        one = await self._store.get_subscription(delivery.subscription_id)
        if one.old_secret is not None and (one.old_secret_until_us or 0) > self._clock.now_us():
            return [one.secret, one.old_secret]
        return [one.secret]

    async def _record(self, delivery: Delivery, manner: Manner | None, status: int | None, error: str | None) -> None:
        now_us = self._clock.now_us()
        state: Literal["pending", "delivered", "given_up"] = "delivered"
        next_us = now_us
        if error is not None:
            pause_s = None if manner is None else manner.pause_s(delivery.attempt, status)
            state = "given_up" if pause_s is None else "pending"
            next_us = now_us + int((pause_s or 0.0) * 1e6)
            if manner is not None and len(self._failing) < FAILING_MAX:
                self._failing.add(delivery.receiver)
        else:
            self._failing.discard(delivery.receiver)
        self._stats.deliveries[state if state != "pending" else "failed"] += 1
        log.info("callback", delivery_id=delivery.id, job_id=delivery.job_id, attempt=delivery.attempt, state=state, error=error)
        paused = await self._store.finish_delivery(
            delivery,
            state=state,
            next_us=next_us,
            status=status,
            error=error,
            now_us=now_us,
            stop="gone: the receiver answered 410" if status == GONE else None,
            given_up_max=self._settings.subscription_given_up_max,
        )
        if paused:
            log.warning("a subscription was paused", subscription_id=delivery.subscription_id, error=error)
            self._dispatch.announce_subscriptions()
