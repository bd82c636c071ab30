"""Submissions that begin to run in their own transaction: rule 16 of the store.

Rules
1. A submission begins at once only where a claim that came right behind it would have taken it: it is due, no due job stands
   before it, its queue is not paused and has a free slot, and the worker's lease holds.
2. Of several in one batch that wait for the same slots, those begin that a claim would have taken first.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from milepost.job import Claim, Claimed, Job, State, WorkerId
from milepost.store.starter import Starter
from milepost.store.writer import Transaction


def choose(tx: Transaction, first_waiting: str, starter: Starter, jobs: Sequence[Job]) -> list[Job]:
    """Those of these new jobs that begin at once; a slot is taken for each.  None of them is in the database yet."""
    by_queue: dict[str, list[Job]] = {}
    for job in jobs:
        if job.state is State.READY and job.run_at_us <= job.created_us:
            if job.deadline_us is not None and job.deadline_us <= job.created_us:
                continue  # no claim takes it either
            by_queue.setdefault(job.queue, []).append(job)
    chosen: list[Job] = []
    for queue, due in by_queue.items():
        free = tx.take(starter, queue, len(due))
        if not free:
            continue
        (waiting,) = tx.execute(first_waiting, (queue, starter.worker, due[-1].created_us)).fetchone()
        fit = [job for job in due if job.priority < waiting]
        if len(fit) > free:
            fit.sort(key=_turn)
            del fit[free:]
        elif len(fit) < free:
            tx.give_back(starter, queue, free - len(fit))
        chosen += fit
    return chosen


def _turn(job: Job) -> tuple[int, int, str]:
    return job.priority, job.run_at_us, job.id


def started(job: Job, worker: WorkerId, now_us: int) -> Job:
    """What a claim makes of the row of a job that has not changed since it was added: nothing is read back."""
    job.state, job.lease_by, job.updated_us, job.started_us = State.RUNNING, worker, now_us, now_us
    job.attempt = job.fence = 1
    job.version = 2
    return job


def kept(job: Job) -> Job:
    """The same job for its worker: its submitter has the other one."""
    job = copy(job)
    if job.labels or job.origin:
        job.labels, job.origin = dict(job.labels), dict(job.origin)
    return job


def begun(job: Job, worker: WorkerId) -> Claimed:
    """The job as its worker gets it."""
    return claimed(started(kept(job), worker, job.created_us), worker)


def claimed(job: Job, worker: WorkerId) -> Claimed:
    """A running job and the right to write it."""
    return Claimed(job, Claim(job.id, job.fence, worker, job.parent_id is None and job.callback is None))
