"""Deliveries and subscriptions on SQLite: what is due for whom, and how far each subscriber has been told.

Rules
1. Deliveries and the cursor behind them move in one transaction, and only from the cursor that was read: each event that a
   subscription is about makes exactly one delivery, whatever dies in between.
2. Nothing here is run by a submit or an end, but for jobs that have a callback.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from milepost.errors import LimitExceeded, NotFound
from milepost.job import EventType, JobId, ProjectId, new_job_id
from milepost.store import NEVER, Delivery
from milepost.store.rows import decode_labels, encode, event_from_row, read_callback, text
from milepost.store.statements import load
from milepost.store.writer import Transaction, Writer
from milepost.subscription import (
    FINAL_WORD,
    MISSED,
    PING,
    Filter,
    JobPublication,
    News,
    Publication,
    Subscription,
    Told,
    decode_filter,
    encode_filter,
    tells,
)

__all__ = ["SQL", "SqliteDeliveries", "add_delivery", "forget_jobs"]


class DeliverySql(NamedTuple):
    """The statements of `sql/sqlite/delivery.sql`."""

    add_delivery: str
    find_due: str
    find_receivers: str
    find_due_of: str
    claim_deliveries: str
    finish_delivery: str
    release_deliveries: str
    next_delivery: str
    list_deliveries: str
    page_deliveries: str
    get_delivery: str
    redeliver: str
    add_subscription: str
    count_subscriptions: str
    get_subscription: str
    list_subscriptions: str
    update_subscription: str
    park_deliveries: str
    delete_subscription: str
    delete_subscription_deliveries: str
    count_pending: str
    note_success: str
    note_given_up: str
    stop_subscription: str
    list_news: str
    list_watched_news: str
    first_watched: str
    add_watch: str
    delete_watches: str
    callback_cursor: str
    move_callback_cursor: str
    move_cursor: str
    publish: str
    has_pending: str
    count_of_job: str
    trim_log: str
    pruned_until: str
    note_pruned: str


SQL = load("sqlite", "delivery", DeliverySql)
LOOK_AHEAD = 4  # due deliveries that are looked at for each that may be sent
RECEIVERS_MAX = 10_000
FREELY = EventType.PROGRESS.value  # told of as it is when it is sent: one on its way is enough


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
        return _subscription(row)

    async def get_subscription(self, subscription_id: str, *, project: ProjectId | None = None) -> Subscription:
        row = self._read.execute(SQL.get_subscription, (subscription_id,)).fetchone()
        if row is None or (project is not None and row[1] != project):
            raise NotFound(f"no subscription {subscription_id[:80]}")
        return _subscription(row)

    async def list_subscriptions(self, *, project: ProjectId | None = None) -> list[Subscription]:
        return [_subscription(row) for row in self._read.execute(SQL.list_subscriptions, (project,))]

    async def change_subscription(
        self, subscription_id: str, change: Callable[[Subscription], Subscription], *, to_now: bool = False, now_us: int
    ) -> Subscription:
        row = await self._writer.do(_change_subscription, subscription_id, change, to_now, now_us)
        return _subscription(row)

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
        return await self._writer.do(publish, publications, jobs, now_us, log_max, job_max)  # type: ignore[no-any-return]


# --- operations --------------------------------------------------------------------------------------------------------


def add_delivery(tx: Transaction, job_id: str, project: str, url: str, event: EventType, now_us: int) -> None:
    """A job ended whose callback has no filter."""
    tx.execute(SQL.add_delivery, (_new_id(), job_id, project, url, event.value, now_us, _receiver(project, url)))


def forget_jobs(tx: Transaction, packed: str) -> None:
    """These jobs, in a JSON list, are about to be pruned: who reads on from before their events can learn that some are gone."""
    tx.execute(SQL.note_pruned, (packed,))
    tx.execute(SQL.delete_watches, (packed,))


def _new_id() -> str:
    return f"dlv_{new_job_id().replace('-', '')}"


def _receiver(project: str, url: str) -> str:
    """Callbacks of one project to one origin share its places."""
    return f"{project} {'/'.join(url.split('/', 3)[:3])}"


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
    one = change(_subscription(row))
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
    one = _subscription(row)
    delivery_id = _publish_one(tx, one, PING, "", one.made + 1, None, now_us)
    moved = (one.id, one.revision, one.cursor, one.cursor, one.missed_until, one.made + 1)
    if one.state == "active":
        tx.execute(SQL.move_cursor, moved)
    else:
        tx.execute("UPDATE subscription SET made = ? WHERE id = ?", (one.made + 1, id_))
        tx.execute("UPDATE delivery SET parked = 1 WHERE id = ?", (delivery_id,))
    return tx.execute(SQL.get_delivery, (delivery_id,)).fetchone()  # type: ignore[no-any-return]


def publish(
    tx: Transaction,
    publications: Sequence[Publication],
    jobs: JobPublication | None,
    now_us: int,
    log_max: int,
    job_max: int,
) -> int:
    """Make deliveries of these events, and move the cursors; returns how many deliveries were made.

    What was changed, paused or removed since it was read is left alone: it is read again.
    """
    made = sum(_publish_to(tx, one, now_us, log_max) for one in publications)
    return made + (0 if jobs is None else _publish_to_jobs(tx, jobs, now_us, job_max))


def _publish_to(tx: Transaction, publication: Publication, now_us: int, log_max: int) -> int:
    one, events, missed, until_id = publication
    row = tx.execute(SQL.get_subscription, (one.id,)).fetchone()
    if row is None:
        return 0
    now = _subscription(row)
    if now.state != "active" or (now.revision, now.cursor) != (one.revision, one.cursor):
        return 0
    number = now.made
    missed_until = now.missed_until
    if missed is not None:
        number, missed_until = number + 1, missed[1]
        _publish_one(tx, now, MISSED, "", number, {"from_id": missed[0], "to_id": missed[1]}, now_us)
    for event in events:
        if event.type.value == FREELY and tx.execute(SQL.has_pending, (event.job_id, FREELY, now.id)).fetchone() is not None:
            continue
        number += 1
        _publish_one(tx, now, event.type.value, event.job_id, number, _detail(event), now_us)
    tx.execute(SQL.move_cursor, (now.id, now.revision, now.cursor, until_id, missed_until, number))
    if number > now.made and number > log_max:
        tx.execute(SQL.trim_log, (now.id, number - log_max))
    return number - now.made


def _publish_one(
    tx: Transaction, one: Subscription, event: str, job_id: str, number: int, detail: dict[str, Any] | None, now_us: int
) -> str:
    id_ = _new_id()
    packed = None if detail is None else text(detail)
    tx.execute(SQL.publish, (id_, job_id, one.project, one.url, event, now_us, one.id, one.id, number, packed))
    return id_


def _detail(event: Any) -> dict[str, Any]:
    """What is told of the event itself, also once it is gone."""
    data = None if event.data is None else msgspec.Raw(event.data)
    return {
        "id": event.id,
        "root_id": event.root_id,
        "seq": event.seq,
        "type": event.type,
        "state": event.state,
        "at_us": event.at_us,
        "data": data,
    }


def _publish_to_jobs(tx: Transaction, jobs: JobPublication, now_us: int, job_max: int) -> int:
    made = 0
    if tx.execute(SQL.move_callback_cursor, (jobs.before_id, jobs.until_id)).rowcount != 1:
        return 0
    for event, stored in jobs.told:
        callback = read_callback(stored)
        if not tells(callback.on, event.type, event.state):
            continue
        receiver, type_ = _receiver(event.project, callback.url), event.type.value
        if not tells((FINAL_WORD,), event.type, event.state):
            if tx.execute(SQL.count_of_job, (event.job_id,)).fetchone()[0] >= job_max:
                continue
            if type_ == FREELY and tx.execute(SQL.has_pending, (event.job_id, FREELY, receiver)).fetchone() is not None:
                continue
        packed = encode(_detail(event)).decode()
        tx.execute(
            SQL.publish, (_new_id(), event.job_id, event.project, callback.url, type_, now_us, receiver, None, None, packed)
        )
        made += 1
    if jobs.ended:
        tx.execute(SQL.delete_watches, (text(list(jobs.ended)),))
    return made


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


def _subscription(row: tuple[Any, ...]) -> Subscription:
    (
        id_, project, url, description, filter_, secret, old_secret, old_secret_until_us, state, reason, revision, cursor,
        missed_until, made, given_up, created_us, updated_us,
    ) = row  # fmt: skip
    return Subscription(
        id=id_,
        project=project,
        url=url,
        description=description,
        filter=decode_filter(filter_),
        secret=secret,
        old_secret=old_secret,
        old_secret_until_us=old_secret_until_us,
        state=state,
        reason=reason,
        revision=revision,
        cursor=cursor,
        missed_until=missed_until,
        made=made,
        given_up=given_up,
        created_us=created_us,
        updated_us=updated_us,
    )
