"""The part of the `Store` protocol that tells others: deliveries, subscriptions, and the events that deliveries are made of.

The rules are those of the package, 15 above all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from milepost.job import JobId, ProjectId
from milepost.store.records import NEVER, Delivery
from milepost.subscription import Filter, JobPublication, News, Publication, Subscription, Told


class PushStore(Protocol):
    """See `Store`."""

    # --- deliveries ------------------------------------------------------------------------------------------------

    async def claim_deliveries(
        self, *, now_us: int, lease_s: float, limit: int, most: int = NEVER, places: Mapping[str, int] | None = None
    ) -> list[Delivery]:
        """Pending deliveries that are due; each is hidden for lease_s and its attempt counted.

        Rules: at most `most` of one receiver, or as many as `places` has for it; one with many due keeps no other waiting.
        """
        ...

    async def finish_delivery(
        self,
        delivery: Delivery,
        *,
        state: Literal["pending", "delivered", "given_up"],
        next_us: int,
        status: int | None,
        error: str | None,
        now_us: int,
        stop: str | None = None,
        given_up_max: int = NEVER,
    ) -> bool:
        """True when its subscription was paused by this: given up for the reason `stop`, or the given_up_max-th in a row."""
        ...

    async def next_delivery_us(self) -> int | None: ...
    async def list_deliveries(self, job_id: JobId) -> list[Delivery]: ...
    async def page_deliveries(
        self, subscription_id: str, *, before: int = NEVER, state: str | None = None, limit: int = 100
    ) -> list[Delivery]:
        """Those of a subscription, newest first, with numbers below `before`."""
        ...

    async def redeliver(self, delivery_id: str, *, project: ProjectId | None, now_us: int) -> Delivery:
        """Pending again, from its first attempt.  Errors: NotFound."""
        ...

    # --- subscriptions ---------------------------------------------------------------------------------------------

    async def add_subscription(
        self,
        project: ProjectId,
        *,
        url: str,
        description: str,
        filter: Filter,
        secret: str,
        after_id: int | None,
        now_us: int,
        most: int,
    ) -> Subscription:
        """Told of what follows after_id, None: of what follows now.  Errors: LimitExceeded, when the project has `most`."""
        ...

    async def get_subscription(self, subscription_id: str, *, project: ProjectId | None = None) -> Subscription:
        """Errors: NotFound."""
        ...

    async def list_subscriptions(self, *, project: ProjectId | None = None) -> list[Subscription]:
        """By project, then age."""
        ...

    async def change_subscription(
        self, subscription_id: str, change: Callable[[Subscription], Subscription], *, to_now: bool = False, now_us: int
    ) -> Subscription:
        """What `change` makes of its url, description, filter, secrets, state and reason; `to_now` passes over what it missed.

        Rules: what is pending follows: it goes to the new url, and waits while the subscription is paused.
        Errors: NotFound.
        """
        ...

    async def delete_subscription(self, subscription_id: str) -> bool:
        """With its deliveries."""
        ...

    async def ping_subscription(self, subscription_id: str, *, now_us: int) -> Delivery:
        """A delivery that is of no event.  Errors: NotFound."""
        ...

    def on_events(self, tell: Callable[[], None] | None) -> None:
        """Call `tell()` on the writer's loop after each commit with events; None ends it.  It costs a commit one comparison."""

    async def list_news(
        self, *, after_id: int, until_id: int, projects: Sequence[str], types: Sequence[str], limit: int
    ) -> list[News]:
        """Events of these projects and types, oldest first."""
        ...

    async def list_watched_news(self, *, after_id: int, until_id: int, limit: int) -> list[Told]:
        """Events of jobs whose callbacks have filters, each with its callback as it is stored, oldest first."""
        ...

    async def watched_after(self) -> int | None:
        """Where the callbacks of jobs with filters are to go on; None when there is no such open job."""
        ...

    async def count_pending(self, receiver: str) -> int: ...
    async def pruned_until(self, project: ProjectId | None) -> int:
        """The id of the last event of the project, or of any, that went with its job; 0 when none did."""
        ...

    async def publish(
        self, publications: Sequence[Publication], jobs: JobPublication | None, *, now_us: int, log_max: int, job_max: int
    ) -> int:
        """Make deliveries and move cursors, all or none; returns how many were made.

        Rules: a subscription that was changed, paused, removed or moved since it was read is left alone.  Of the progress of a
        job one receiver has one delivery that was not sent yet.  A subscription keeps log_max ended deliveries, a job makes at
        most job_max of events that are not its end.
        """
        ...
