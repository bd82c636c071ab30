"""Many jobs of one call, and many ends of one round, are stored each as it is, also where a store treats alike ones together."""

from __future__ import annotations

import json

import pytest
from store_house import BROKEN, OK, STOPPED, House, submission
from test_store_starts import starter

from milepost.job import Succeeded
from milepost.store import Ended

VALUES = [
    {},
    [],
    None,
    0,
    "",
    "plain",
    'quotes " and \\ and /',
    "\x00\x01\x1f\x7f\t\r\n",
    "ümläut 時刻 \U0001f980 \u2028 \ufeff",
    {"deep": [[[{"a": 1.5e300}]]]},
    "long " * 2000,
    2**63,
    "{'not': json}",
    "same",
    "same",
]
TEXTS = [json.dumps(value).encode() for value in VALUES] + [json.dumps(value, ensure_ascii=False).encode() for value in VALUES]


@pytest.mark.parametrize("slots", [0, 7, 100])
async def test_the_inputs_of_a_batch_are_stored_as_they_came(house: House, slots: int) -> None:
    began = await starter(house, slots)
    submissions = [submission(input=one, kind=f"k{at % 2}", priority=at % 3) for at, one in enumerate(TEXTS)]
    added = await house.store.add_jobs(submissions, now_us=house.now_us)
    for wanted, one in zip(submissions, added, strict=True):
        stored = await house.job(one.job.id)
        assert (stored.input, stored.kind, stored.priority) == (wanted.input, wanted.kind, wanted.priority)
    for claimed in began.started:
        assert claimed.job == await house.job(claimed.job.id)
    assert len(began.started) == min(slots, len(TEXTS))
    began.free = 1000
    for claimed in await house.claim(1000):
        assert claimed.job == await house.job(claimed.job.id)


async def test_the_results_of_a_round_are_stored_as_they_came(house: House) -> None:
    await house.add_many(len(TEXTS))
    claims = await house.claim(len(TEXTS))
    until_us = house.now_us + 9
    ended = [Ended(one.claim, Succeeded(result), house.now_us, until_us) for one, result in zip(claims, TEXTS, strict=True)]
    assert await house.store.finish_jobs(ended) == [True] * len(TEXTS)
    for one, result in zip(claims, TEXTS, strict=True):
        stored = await house.job(one.job.id)
        assert (stored.result, stored.state, stored.expires_us, stored.lease_by) == (result, "succeeded", until_us, None)
        assert await house.history(one.job.id) == ["submitted", "started", "succeeded"]


async def test_of_many_ends_of_a_round_those_without_a_lease_write_nothing(house: House) -> None:
    await house.add_many(40)
    old = await house.claim(40)
    house.clock.advance(31)
    await house.rescue()
    await house.live("b")
    new = await house.claim(20, worker="b")
    ended = [
        Ended(one.claim, outcome, house.now_us, house.now_us + at % 2)
        for at, (one, outcome) in enumerate(zip([*old, *new, *new[:3]], [OK, OK, BROKEN, STOPPED] * 16, strict=False))
    ]
    assert await house.store.finish_jobs(ended) == [False] * 40 + [True] * 20 + [False] * 3
    for at, one in enumerate(new):
        stored = await house.job(one.job.id)
        assert stored.state == ("succeeded", "succeeded", "failed", "cancelled")[at % 4]
        assert (stored.error is None, stored.expires_us) == (at % 4 < 2, house.now_us + at % 2)
        assert (await house.history(one.job.id))[-1] == stored.state
