"""What the writer runs to make deliveries: of the end of a job, and of events, with the cursor behind them.

Rules
1. Deliveries and the cursor behind them move in one transaction, and only from the cursor that was read: each event that a
   subscription is about makes exactly one delivery, whatever dies in between.
2. Nothing here is run by a submit or an end, but for jobs that have a callback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from milepost.job import Event, EventType, new_job_id
from milepost.store.rows import encode, read_callback, text
from milepost.store.statements import load
from milepost.store.writer import Transaction
from milepost.subscription import FINAL_WORD, MISSED, JobPublication, Publication, Subscription, decode_filter, tells


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
FREELY = EventType.PROGRESS.value  # told of as it is when it is sent: one on its way is enough


def add_delivery(tx: Transaction, job_id: str, project: str, url: str, event: EventType, now_us: int) -> None:
    """A job ended whose callback has no filter."""
    tx.execute(SQL.add_delivery, (new_delivery_id(), job_id, project, url, event.value, now_us, _receiver(project, url)))


def forget_jobs(tx: Transaction, packed: str) -> None:
    """These jobs, in a JSON list, are about to be pruned: who reads on from before their events can learn that some are gone."""
    tx.execute(SQL.note_pruned, (packed,))
    tx.execute(SQL.delete_watches, (packed,))


def new_delivery_id() -> str:
    """Its `webhook-id` in every try."""
    return f"dlv_{new_job_id().replace('-', '')}"


def _receiver(project: str, url: str) -> str:
    """Callbacks of one project to one origin share its places."""
    return f"{project} {'/'.join(url.split('/', 3)[:3])}"


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
    now = subscription_of(row)
    if now.state != "active" or (now.revision, now.cursor) != (one.revision, one.cursor):
        return 0
    number = now.made
    missed_until = now.missed_until
    if missed is not None:
        number, missed_until = number + 1, missed[1]
        publish_one(tx, now, MISSED, "", number, {"from_id": missed[0], "to_id": missed[1]}, now_us)
    for event in events:
        if event.type.value == FREELY and tx.execute(SQL.has_pending, (event.job_id, FREELY, now.id)).fetchone() is not None:
            continue
        number += 1
        publish_one(tx, now, event.type.value, event.job_id, number, _detail(event), now_us)
    tx.execute(SQL.move_cursor, (now.id, now.revision, now.cursor, until_id, missed_until, number))
    if number > now.made and number > log_max:
        tx.execute(SQL.trim_log, (now.id, number - log_max))
    return number - now.made


def publish_one(
    tx: Transaction, one: Subscription, event: str, job_id: str, number: int, detail: dict[str, Any] | None, now_us: int
) -> str:
    """One delivery of a subscription; its id."""
    id_ = new_delivery_id()
    packed = None if detail is None else text(detail)
    tx.execute(SQL.publish, (id_, job_id, one.project, one.url, event, now_us, one.id, one.id, number, packed))
    return id_


def _detail(event: Event) -> dict[str, Any]:
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
        row = (new_delivery_id(), event.job_id, event.project, callback.url, type_, now_us, receiver, None, None, packed)
        tx.execute(SQL.publish, row)
        made += 1
    if jobs.ended:
        tx.execute(SQL.delete_watches, (text(list(jobs.ended)),))
    return made


def subscription_of(row: tuple[Any, ...]) -> Subscription:
    """One row of `get_subscription` or `list_subscriptions`."""
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
