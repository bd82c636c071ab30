"""What `client.subscriptions` is: who is told of a project's events, made, changed, tried and looked after.

The two classes have the same calls; one blocks, one awaits.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from milepost.client import subscriptions
from milepost.client.drivers import AsyncDriver, Driver
from milepost.client.session import Session
from milepost.errors import InvalidInput
from milepost.wire.subscription import SubscriptionChange, SubscriptionRequest

if TYPE_CHECKING:
    from milepost.wire.native import NativeDelivery
    from milepost.wire.subscription import NativeSubscription


def _request(
    url: str, on: Sequence[str], kinds: Sequence[str], labels: Mapping[str, str] | None, **rest: Any
) -> SubscriptionRequest:
    return SubscriptionRequest(url=url, on=_words(on), kinds=_words(kinds), labels=dict(labels or {}), **rest)


def _words(given: Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _change(changes: Mapping[str, Any]) -> SubscriptionChange:
    """Errors: InvalidInput."""
    try:
        return msgspec.convert(
            {name: _words(value) if name in ("on", "kinds") else value for name, value in changes.items()}, SubscriptionChange
        )
    except msgspec.ValidationError as error:
        raise InvalidInput(f"a subscription cannot be changed so: {error}", path="$") from error


class Subscriptions:
    """A project's subscriptions.  Errors of every call: NotFound, Conflict when the wire is not Milepost's own."""

    __slots__ = ("_driver", "_session")

    def __init__(self, session: Session, driver: Driver) -> None:
        self._session, self._driver = session, driver

    def add(
        self,
        url: str,
        *,
        on: Sequence[str] = (),
        kinds: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        sub_jobs: bool = False,
        description: str = "",
        after: int | None = None,
    ) -> NativeSubscription:
        """Tell the URL from now on, or of what followed the event `after`; the answer has the secret, once.

        on: states entered, types of events, `final` (when nothing is said), `all`.  kinds, labels: of these jobs only; a
        sub-job has its root's labels too.  sub_jobs: of sub-jobs, not of roots alone.
        Errors: InvalidInput, LimitExceeded.
        """
        request = _request(url, on, kinds, labels, sub_jobs=sub_jobs, description=description, after=after)
        return self._driver.run(subscriptions.subscribe(self._session, request))

    def list(self) -> builtins.list[NativeSubscription]:
        """All of them, the oldest first."""
        return self._driver.run(subscriptions.list_subscriptions(self._session))

    def get(self, id: str) -> NativeSubscription:
        """As it is now."""
        return self._driver.run(subscriptions.show_subscription(self._session, id))

    def change(self, id: str, **changes: Any) -> NativeSubscription:
        """Change what is named: url, on, kinds, labels, sub_jobs, description.  Errors: InvalidInput."""
        return self._driver.run(subscriptions.change_subscription(self._session, id, _change(changes)))

    def pause(self, id: str) -> NativeSubscription:
        """Nothing is sent until it is resumed."""
        return self._driver.run(subscriptions.act(self._session, id, "pause"))

    def resume(self, id: str, *, skip: bool = False) -> NativeSubscription:
        """It goes on where it was; with `skip`, now."""
        return self._driver.run(subscriptions.act(self._session, id, "resume?skip=1" if skip else "resume"))

    def renew_secret(self, id: str) -> NativeSubscription:
        """With the new secret; the old one signs beside it for a while."""
        return self._driver.run(subscriptions.act(self._session, id, "secret"))

    def ping(self, id: str) -> NativeDelivery:
        """Send a delivery of no event."""
        return self._driver.run(subscriptions.ping(self._session, id))

    def remove(self, id: str) -> None:
        """It is told nothing more; its log goes with it."""
        self._driver.run(subscriptions.remove_subscription(self._session, id))

    def deliveries(self, id: str, *, state: str | None = None, limit: int | None = None) -> Iterator[NativeDelivery]:
        """What became of each telling, the newest first.  state: pending, delivered or given_up."""
        return self._driver.iterate(subscriptions.subscription_deliveries(self._session, id, state=state, limit=limit))

    def of_job(self, job_id: str) -> builtins.list[NativeDelivery]:
        """The deliveries that tell of a job, its own callback's too.  Errors: Expired."""
        return self._driver.run(subscriptions.job_deliveries(self._session, job_id))

    def redeliver(self, delivery_id: str) -> NativeDelivery:
        """Send it again, with the same `webhook-id`."""
        return self._driver.run(subscriptions.redeliver(self._session, delivery_id))


class AsyncSubscriptions:
    """The same for asyncio."""

    __slots__ = ("_driver", "_session")

    def __init__(self, session: Session, driver: AsyncDriver) -> None:
        self._session, self._driver = session, driver

    async def add(
        self,
        url: str,
        *,
        on: Sequence[str] = (),
        kinds: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        sub_jobs: bool = False,
        description: str = "",
        after: int | None = None,
    ) -> NativeSubscription:
        """See `Subscriptions.add`."""
        request = _request(url, on, kinds, labels, sub_jobs=sub_jobs, description=description, after=after)
        return await self._driver.run(subscriptions.subscribe(self._session, request))

    async def list(self) -> builtins.list[NativeSubscription]:
        """All of them, the oldest first."""
        return await self._driver.run(subscriptions.list_subscriptions(self._session))

    async def get(self, id: str) -> NativeSubscription:
        """As it is now."""
        return await self._driver.run(subscriptions.show_subscription(self._session, id))

    async def change(self, id: str, **changes: Any) -> NativeSubscription:
        """Change what is named: url, on, kinds, labels, sub_jobs, description.  Errors: InvalidInput."""
        return await self._driver.run(subscriptions.change_subscription(self._session, id, _change(changes)))

    async def pause(self, id: str) -> NativeSubscription:
        """Nothing is sent until it is resumed."""
        return await self._driver.run(subscriptions.act(self._session, id, "pause"))

    async def resume(self, id: str, *, skip: bool = False) -> NativeSubscription:
        """It goes on where it was; with `skip`, now."""
        return await self._driver.run(subscriptions.act(self._session, id, "resume?skip=1" if skip else "resume"))

    async def renew_secret(self, id: str) -> NativeSubscription:
        """With the new secret; the old one signs beside it for a while."""
        return await self._driver.run(subscriptions.act(self._session, id, "secret"))

    async def ping(self, id: str) -> NativeDelivery:
        """Send a delivery of no event."""
        return await self._driver.run(subscriptions.ping(self._session, id))

    async def remove(self, id: str) -> None:
        """It is told nothing more; its log goes with it."""
        await self._driver.run(subscriptions.remove_subscription(self._session, id))

    def deliveries(self, id: str, *, state: str | None = None, limit: int | None = None) -> AsyncIterator[NativeDelivery]:
        """What became of each telling, the newest first.  state: pending, delivered or given_up."""
        return self._driver.iterate(subscriptions.subscription_deliveries(self._session, id, state=state, limit=limit))

    async def of_job(self, job_id: str) -> builtins.list[NativeDelivery]:
        """The deliveries that tell of a job, its own callback's too.  Errors: Expired."""
        return await self._driver.run(subscriptions.job_deliveries(self._session, job_id))

    async def redeliver(self, delivery_id: str) -> NativeDelivery:
        """Send it again, with the same `webhook-id`."""
        return await self._driver.run(subscriptions.redeliver(self._session, delivery_id))
