"""Deliveries and subscriptions on SQLite: what is due for whom, and who is told of what.  How they are made: `sqlite_publish`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from milepost.errors import LimitExceeded, NotFound
from milepost.job import JobId, ProjectId, new_job_id
from milepost.store import NEVER, Delivery, sqlite_publish
from milepost.store.rows import decode_labels, event_from_row, text
from milepost.store.sqlite_publish import SQL, subscription_of
from milepost.store.writer import Transaction, Writer
from milepost.subscription import (
    PING,
    Filter,
    JobPublication,
    News,
    Publication,
    Subscription,
    Told,
    encode_filter,
)

__all__ = ["SQL", "SqliteDeliveries"]


LOOK_AHEAD = 4  # due deliveries that are looked at for each that may be sent
RECEIVERS_MAX = 10_000


class SqliteDeliveries:
    """What `SqliteStore` keeps of deliveries and subscriptions; the connections and the writer are its."""

    _writer: Writer
    _read: sqlite3.Connection

    async def _read_thread(self, read: Callable[[sqlite3.Connection], Any]) -> Any:
        raise NotImplementedError

    # --- deliveries ------------------------------------------------------------------------------------------------

    async def claim_deliveries(
        self, *, now_us: int, lease_s: float, limit: int, most: int = NEVER, places: Mapping[str, int] | None = None
    ) -> list[Delivery]:
        hidden_us = now_us + int(lease_s * 1e6)
        rows = await self._writer.do(_claim_deliveries, now_us, hidden_us, limit, most, dict(places or {}))
        return [_delivery(row) for row in rows]

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
        ended_us = None if state == "pending" else now_us
        params = (delivery.id, delivery.attempt, state, next_us, status, error, ended_us)
        return await self._writer.do(_finish_delivery, delivery.subscription_id, params, stop, given_up_max, now_us)  # type: ignore[no-any-return]

    async def next_delivery_us(self) -> int | None:
        found: int | None = self._read.execute(SQL.next_delivery).fetchone()[0]
        return found

    async def list_deliveries(self, job_id: JobId) -> list[Delivery]:
        return [_delivery(row) for row in self._read.execute(SQL.list_deliveries, (job_id,))]

    async def page_deliveries(
        self, subscription_id: str, *, before: int = NEVER, state: str | None = None, limit: int = 100
    ) -> list[Delivery]:
        params = (subscription_id, before, state, limit)
        return [_delivery(row) for row in self._read.execute(SQL.page_deliveries, params)]

    async def redeliver(self, delivery_id: str, *, project: ProjectId | None, now_us: int) -> Delivery:
        found = self._delivery(delivery_id)
        if project is not None and found.project != project:
            raise NotFound(f"no delivery {delivery_id}")
        await self._writer.do(lambda tx: tx.execute(SQL.redeliver, (delivery_id, now_us)) and None)
        return self._delivery(delivery_id)

    def _delivery(self, delivery_id: str) -> Delivery:
        row = self._read.execute(SQL.get_delivery, (delivery_id,)).fetchone()
        if row is None:
            raise NotFound(f"no delivery {delivery_id}")
        return _delivery(row)

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
        wanted = (project, url, description, filter, secret, after_id)
        row = await self._writer.do(_add_subscription, wanted, now_us, most)
        return subscription_of(row)

    async def get_subscription(self, subscription_id: str, *, project: ProjectId | None = None) -> Subscription:
        row = self._read.execute(SQL.get_subscription, (subscription_id,)).fetchone()
        if row is None or (project is not None and row[1] != project):
            raise NotFound(f"no subscription {subscription_id[:80]}")
        return subscription_of(row)

    async def list_subscriptions(self, *, project: ProjectId | None = None) -> list[Subscription]:
        return [subscription_of(row) for row in self._read.execute(SQL.list_subscriptions, (project,))]

    async def change_subscription(
        self, subscription_id: str, change: Callable[[Subscription], Subscription], *, to_now: bool = False, now_us: int
    ) -> Subscription:
        row = await self._writer.do(_change_subscription, subscription_id, change, to_now, now_us)
        return subscription_of(row)

    async def delete_subscription(self, subscription_id: str) -> bool:
        return await self._writer.do(_delete_subscription, subscription_id)  # type: ignore[no-any-return]

    async def ping_subscription(self, subscription_id: str, *, now_us: int) -> Delivery:
        return _delivery(await self._writer.do(_ping, subscription_id, now_us))

    # --- publishing ------------------------------------------------------------------------------------------------

    def on_events(self, tell: Callable[[], None] | None) -> None:
        self._writer.on_events = tell

    async def list_news(
        self, *, after_id: int, until_id: int, projects: Sequence[str], types: Sequence[str], limit: int
    ) -> list[News]:
        params = (after_id, until_id, text(list(projects)), text(list(types)), limit)
        rows = await self._read_thread(lambda connection: connection.execute(SQL.list_news, params).fetchall())
        return [News(event_from_row(row[:9]), row[9], _labels(row[10]), _labels(row[11])) for row in rows]

    async def list_watched_news(self, *, after_id: int, until_id: int, limit: int) -> list[Told]:
        params = (after_id, until_id, limit)
        rows = await self._read_thread(lambda connection: connection.execute(SQL.list_watched_news, params).fetchall())
        return [Told(event_from_row(row[:9]), row[9]) for row in rows]

    async def watched_after(self) -> int | None:
        first: int | None = self._read.execute(SQL.first_watched).fetchone()[0]
        cursor: int = self._read.execute(SQL.callback_cursor).fetchone()[0]
        return None if first is None else max(first, cursor)

    async def count_pending(self, receiver: str) -> int:
        return int(self._read.execute(SQL.count_pending, (receiver,)).fetchone()[0])

    async def pruned_until(self, project: ProjectId | None) -> int:
        return int(self._read.execute(SQL.pruned_until, (project,)).fetchone()[0])

    async def publish(
        self,
        publications: Sequence[Publication],
        jobs: JobPublication | None,
        *,
        now_us: int,
        log_max: int,
        job_max: int,
    ) -> int:
        return await self._writer.do(sqlite_publish.publish, publications, jobs, now_us, log_max, job_max)  # type: ignore[no-any-return]


# --- operations --------------------------------------------------------------------------------------------------------


def _claim_deliveries(
    tx: Transaction, now_us: int, hidden_us: int, limit: int, most: int, places: dict[str, int]
) -> list[tuple[Any, ...]]:
    """The first that are due, of each receiver no more than it has places for.

    A receiver with many due and no place left fills the look ahead: then every receiver is asked for its own first.
    """
    taken: list[str] = []

    def take(id_: str, receiver: str) -> None:
        left = places.get(receiver, most)
        if left > 0 and len(taken) < limit:
            places[receiver] = left - 1
            taken.append(id_)

    ahead = tx.execute(SQL.find_due, (now_us, LOOK_AHEAD * limit)).fetchall()
    for id_, receiver in ahead:
        take(id_, receiver)
    if len(taken) < limit and len(ahead) == LOOK_AHEAD * limit:
        seen, first = set(taken), []
        for (receiver,) in tx.execute(SQL.find_receivers, (RECEIVERS_MAX,)).fetchall():
            if places.get(receiver, most) > 0:
                own = tx.execute(SQL.find_due_of, (receiver, now_us, min(limit, most) + len(seen))).fetchall()
                first += [(next_us, id_, receiver) for id_, next_us in own if id_ not in seen]
        for _, id_, receiver in sorted(first):
            take(id_, receiver)
    if not taken:
        return []
    return tx.execute(SQL.claim_deliveries, (text(taken), hidden_us)).fetchall()


def _finish_delivery(
    tx: Transaction,
    subscription_id: str | None,
    params: tuple[Any, ...],
    stop: str | None,
    given_up_max: int,
    now_us: int,
) -> bool:
    """Whether its subscription was paused by this."""
    if tx.execute(SQL.finish_delivery, params).rowcount != 1 or subscription_id is None:
        return False
    state = params[2]
    if state == "delivered":
        tx.execute(SQL.note_success, (subscription_id,))
    if state != "given_up":
        return False
    row = tx.execute(SQL.note_given_up, (subscription_id,)).fetchone()
    if row is None or row[1] != "active":
        return False
    reason = stop or (f"unreachable: {row[0]} deliveries in a row were given up" if row[0] >= given_up_max else None)
    if reason is None:
        return False
    tx.execute(SQL.stop_subscription, (subscription_id, reason, now_us))
    (url,) = tx.execute("SELECT url FROM subscription WHERE id = ?", (subscription_id,)).fetchone()
    tx.execute(SQL.park_deliveries, (subscription_id, 1, url))
    return True


def _add_subscription(tx: Transaction, wanted: tuple[Any, ...], now_us: int, most: int) -> tuple[Any, ...]:
    project, url, description, filter_, secret, after_id = wanted
    (count,) = tx.execute(SQL.count_subscriptions, (project,)).fetchone()
    if count >= most:
        raise LimitExceeded(
            f"the project has {count} subscriptions, as many as this server allows",
            limit="subscriptions_max",
            allowed=most,
            seen=count + 1,
            hint="remove one, or raise the server's setting subscriptions_max",
        )
    id_ = f"sub_{new_job_id().replace('-', '')}"
    last = tx.next_event_id - 1
    cursor = last if after_id is None else min(after_id, last)
    tx.execute(SQL.add_subscription, (id_, project, url, description, encode_filter(filter_).decode(), secret, cursor, now_us))
    return tx.execute(SQL.get_subscription, (id_,)).fetchone()  # type: ignore[no-any-return]


def _change_subscription(
    tx: Transaction, id_: str, change: Callable[[Subscription], Subscription], to_now: bool, now_us: int
) -> tuple[Any, ...]:
    row = tx.execute(SQL.get_subscription, (id_,)).fetchone()
    if row is None:
        raise NotFound(f"no subscription {id_[:80]}")
    one = change(subscription_of(row))
    cursor = tx.next_event_id - 1 if to_now else one.cursor
    tx.execute(
        SQL.update_subscription,
        (id_, one.url, one.description, encode_filter(one.filter).decode(), one.secret, one.old_secret, one.old_secret_until_us,
         one.state, one.reason, cursor, now_us),
    )  # fmt: skip
    tx.execute(SQL.park_deliveries, (id_, int(one.state == "paused"), one.url))
    return tx.execute(SQL.get_subscription, (id_,)).fetchone()  # type: ignore[no-any-return]


def _delete_subscription(tx: Transaction, id_: str) -> bool:
    tx.execute(SQL.delete_subscription_deliveries, (id_,))
    return tx.execute(SQL.delete_subscription, (id_,)).rowcount == 1


def _ping(tx: Transaction, id_: str, now_us: int) -> tuple[Any, ...]:
    row = tx.execute(SQL.get_subscription, (id_,)).fetchone()
    if row is None:
        raise NotFound(f"no subscription {id_[:80]}")
    one = subscription_of(row)
    delivery_id = sqlite_publish.publish_one(tx, one, PING, "", one.made + 1, None, now_us)
    moved = (one.id, one.revision, one.cursor, one.cursor, one.missed_until, one.made + 1)
    if one.state == "active":
        tx.execute(SQL.move_cursor, moved)
    else:
        tx.execute("UPDATE subscription SET made = ? WHERE id = ?", (one.made + 1, id_))
        tx.execute("UPDATE delivery SET parked = 1 WHERE id = ?", (delivery_id,))
    return tx.execute(SQL.get_delivery, (delivery_id,)).fetchone()  # type: ignore[no-any-return]


# --- rows --------------------------------------------------------------------------------------------------------------


def _labels(stored: str | None) -> dict[str, str]:
    return decode_labels(stored) if stored else {}


def _delivery(row: tuple[Any, ...]) -> Delivery:
    (
        id_, job_id, project, url, event, state, attempt, next_us, created_us, ended_us, last_status, last_error,
        subscription_id, number, receiver, detail,
    ) = row  # fmt: skip
    return Delivery(
        id=id_,
        job_id=job_id,
        project=project,
        url=url,
        event=event,
        state=state,
        attempt=attempt,
        next_us=next_us,
        created_us=created_us,
        ended_us=ended_us,
        last_status=last_status,
        last_error=last_error,
        subscription_id=subscription_id,
        number=number,
        receiver=receiver,
        detail=None if detail is None else detail.encode(),
    )
