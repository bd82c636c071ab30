"""A long poll may begin while the batch with the event it waits for is between its statements and its commit."""

from __future__ import annotations

import asyncio
from pathlib import Path

from milepost.job import Event, EventType, Submission
from milepost.store.sqlite import SqliteStore


async def test_a_subscriber_that_comes_while_a_batch_is_committed_is_told_of_it(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "milepost.db")
    await store.open()
    told: list[Event] = []
    try:
        adding = asyncio.ensure_future(store.add_jobs([Submission(kind="echo", labels={"a": "b"})], now_us=1))
        while not store._write.in_transaction:  # the statements have run when the transaction is open after a turn of the loop
            await asyncio.sleep(0)
        store.subscribe(told.extend)
        ((job, _),) = await adding
        await asyncio.sleep(0)
    finally:
        await store.close()

    assert [(event.job_id, event.type, event.seq) for event in told] == [(job.id, EventType.SUBMITTED, 1)]
