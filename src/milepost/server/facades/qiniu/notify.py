"""The notification of a `notifyURL`: the job as the status query shows it, in one POST when all of it has ended.

Rules
1. `Authorization` is a signature of the scheme `Qiniu`, because that one covers a JSON body (`QBox` does not), without a date,
   because HTTP libraries change the case of header names and the SDK's `verify_callback` looks for the one it wrote.
2. It is made with the access key that asked for the job; where that is gone or was never known, with the project's oldest key
   that is enabled; where there is none, with the project's id as access key and its callback secret (`whsec_…`) as secret.
   The three headers of this server's own callbacks are there too.
3. The body never says 4: whoever reads it has it.
4. 200 and any 4xx end it, 200 as delivered and 4xx as given up.  All else, 201 too, is tried again 13 times, after 1, 2, 4, 8 …
   times `callback_backoff_s`, and then given up.
Source: qiniu/python-sdk qiniu/auth.py verify_callback; qiniu/go-sdk auth/credentials.go VerifyCallback.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from pyreqwest.http import Url

from milepost.errors import Unauthenticated
from milepost.job import Job
from milepost.server.facades.qiniu.persist import KIND
from milepost.wire import Request
from milepost.wire.qiniu.prefop import encode_status
from milepost.wire.signing import qiniu as signing

if TYPE_CHECKING:
    from milepost.job import ProjectId
    from milepost.server.identity import Identities
    from milepost.settings import Settings
    from milepost.store import AccessKey, Delivery, Store

RETRIES = 13


class Notifier:
    """The manner of notifications, for `engine.courier`."""

    def __init__(
        self,
        store: Store,
        identities: Identities,
        settings: Settings,
        *,
        secret_of: Callable[[ProjectId], Awaitable[str]],
    ) -> None:
        self._store, self._identities, self._settings, self._secret_of = store, identities, settings, secret_of

    async def make(self, delivery: Delivery, job: Job) -> tuple[dict[str, str], bytes]:
        """Errors: MilepostError."""
        body = encode_status(job, await self._store.list_sub_jobs(job.id) if job.sub_total else ())
        key = await self._key_of(job)
        url = str(Url(delivery.url))  # as the HTTP client will send it: host in lower case, no default port, escaped
        return signing.sign(Request("POST", url, {"Content-Type": "application/json"}, body), key).headers, body

    def is_delivered(self, status: int) -> bool:
        return status == 200

    def pause_s(self, attempt: int, status: int | None) -> float | None:
        if attempt > RETRIES or (status is not None and 400 <= status < 500):
            return None
        return self._settings.callback_backoff_s * 2.0 ** (attempt - 1)

    async def _key_of(self, job: Job) -> signing.Key:
        """Rule 2."""
        own = await self._store.list_access_keys()
        names = [job.origin.get("access", ""), *(key.id for key in sorted(own, key=_age) if key.project == job.project)]
        for name in names:
            try:
                secret, identity = await self._identities.read_access_key(name)
            except Unauthenticated:
                continue
            if identity.project == job.project:
                return signing.Key(name, secret)
        return signing.Key(job.project, await self._secret_of(job.project))


def _age(key: AccessKey) -> tuple[int, str]:
    return key.created_us, key.id


def is_notified(job: Job) -> bool:
    """Whether the job's callback is a notification of this wire; a `pfop` of the native API has a native callback."""
    return job.kind == KIND and "reqid" in job.origin


__all__ = ["RETRIES", "Notifier", "is_notified"]
