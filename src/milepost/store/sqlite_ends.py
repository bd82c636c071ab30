"""What the writer runs when jobs stop: outcomes, parents' turns, cancels, releases, rescues, deadlines and pruning.

The rules of `sqlite_jobs` hold here too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from math import isfinite
from operator import itemgetter
from typing import Any, NamedTuple

from milepost.errors import Conflict, Expired, NotFound
from milepost.job import (
    FINAL,
    Cancelled,
    Claim,
    Event,
    EventType,
    Failed,
    Failure,
    Job,
    JobId,
    Outcome,
    ProjectId,
    Retried,
    Returned,
    Snoozed,
    State,
    Submission,
    Succeeded,
    Suspended,
    new_job_id,
)
from milepost.store import (
    Ended,
)
from milepost.store.alike import ALIKE_MIN, split_alike
from milepost.store.rows import job_from_row, job_params, new_job, text
from milepost.store.sqlite_jobs import FINAL_TYPES, SQL, add_labels, emit, emit_all, flush_events
from milepost.store.sqlite_publish import add_delivery, forget_jobs
from milepost.store.writer import Transaction


class Ending(NamedTuple):
    """A final outcome, as it is written."""

    claim: Claim
    state: State
    result: str | None
    error: str | None
    now_us: int
    expires_us: int | None


def _ending(claim: Claim, outcome: Outcome, now_us: int, expires_us: int | None) -> Ending | None:
    if type(outcome) is Succeeded:  # before the match, which asks each class in turn
        return Ending(claim, State.SUCCEEDED, outcome.result.decode(), None, now_us, expires_us)
    match outcome:
        case Failed(failure):
            return Ending(claim, State.FAILED, None, text(failure), now_us, expires_us)
        case Cancelled(failure):
            return Ending(claim, State.CANCELLED, None, text(failure), now_us, expires_us)
    return None


def finish_all(tx: Transaction, outcomes: Sequence[Ended]) -> list[bool]:
    """What these attempts came to; the final ones first, together."""
    endings = [_ending(*one) for one in outcomes]
    ended = iter(end_all(tx, [ending for ending in endings if ending is not None]))
    return [_finish(tx, *one) if ending is None else next(ended) for one, ending in zip(outcomes, endings, strict=True)]


def _finish(tx: Transaction, claim: Claim, outcome: Outcome, now_us: int, expires_us: int | None) -> bool:
    """An outcome that is not final."""
    held = tx.execute(SQL.get_running, (claim.job_id, claim.fence)).fetchone()
    if held is None:
        return False
    project, priority, root_id, sub_total, cancel_reason, run_at_us, parent_id, early_expires_us, _ = held
    if cancel_reason is not None:  # it would run again only to be cancelled
        failure = Failure("cancelled", cancel_reason)
        expires_us = early_expires_us if parent_id is None else None
        return _end(tx, claim, State.CANCELLED, None, failure, now_us, expires_us)
    job = (claim.job_id, root_id, project)
    match outcome:
        case Retried(failure, at_us):
            data = text({"error": failure, "run_at_us": at_us})
            requeue_job(tx, claim, job, EventType.RETRYING, at_us, now_us, counts=1, error=text(failure), data=data)
        case Snoozed(at_us, note):
            data = text({"run_at_us": at_us, "note": note})
            requeue_job(tx, claim, job, EventType.SNOOZED, at_us, now_us, counts=0, snoozed=1, data=data)
        case Returned():
            requeue_job(tx, claim, job, EventType.RETURNED, run_at_us, now_us, counts=0)
        case Suspended(sub_jobs):
            suspend_job(tx, claim, job, sub_jobs, priority, sub_total, now_us)
    return True


def _end(
    tx: Transaction, claim: Claim, state: State, result: str | None, failure: Failure | None, now_us: int, expires_us: int | None
) -> bool:
    error = None if failure is None else text(failure)
    return end_all(tx, [Ending(claim, state, result, error, now_us, expires_us)])[0]


def end_all(tx: Transaction, endings: list[Ending]) -> list[bool]:
    """End those whose lease still holds; all of them are over before what follows from the end of each."""
    alone = [one.claim.alone and FINAL_TYPES[one.state] not in tx.watched for one in endings]
    if sum(alone) < ALIKE_MIN or not _end_alone(tx, [*compress(endings, alone)]):
        return _end_each(tx, endings)
    others = iter(_end_each(tx, [one for one, is_alone in zip(endings, alone, strict=True) if not is_alone]))
    return [is_alone or next(others) for is_alone in alone]


def _end_alone(tx: Transaction, endings: list[Ending]) -> bool:
    """End them without a look at their rows: nobody listens and nothing follows.  False, and nothing is written, when a lease
    was lost.
    """
    rows = [(one.claim.job_id, one.claim.fence, one.state._value_, *one[2:]) for one in endings]
    tx.execute("SAVEPOINT alone")
    whole = _write_ends(tx, rows) == len(rows)
    if not whole:
        tx.execute("ROLLBACK TO alone")
    tx.execute("RELEASE alone")
    if whole:
        emit_all(tx, [row[0] for row in rows], None)
    return whole


def _end_each(tx: Transaction, endings: list[Ending]) -> list[bool]:
    if not endings:
        return []
    found = {row[0]: row for row in tx.execute(SQL.find_ending, (text([one.claim.job_id for one in endings]),))}
    held: list[bool] = []
    rows: list[tuple[Any, ...]] = []
    over: list[tuple[Ending, tuple[Any, ...]]] = []
    for one in endings:
        claim, state, result, error, now_us, expires_us = one
        row = found.get(claim.job_id)
        if row is None or row[1] != claim.fence:
            held.append(False)
            continue
        del found[claim.job_id]  # a second end in the same batch comes too late
        held.append(True)
        rows.append((claim.job_id, claim.fence, state._value_, result, error, now_us, expires_us))
        over.append((one, row))
    if not rows:
        return held
    _write_ends(tx, rows)
    first_id = emit_all(tx, [row[0] for row in rows], None)
    if tx.watched:
        tx.events += [
            Event(
                event_id, row[0], row[6], row[5], row[2] + 1, FINAL_TYPES[one.state], one.state, one.now_us,
                None if one.error is None else one.error.encode(),
            )
            for event_id, (one, row) in enumerate(over, first_id)
            if FINAL_TYPES[one.state] in tx.watched
        ]  # fmt: skip
    for one, (job_id, _, _, parent_id, callback_url, project, root_id) in over:
        if callback_url is not None or parent_id is not None:
            _follow(tx, job_id, parent_id, callback_url, project, root_id, one.state, one.now_us)
    return held


def _write_ends(tx: Transaction, rows: list[tuple[Any, ...]]) -> int:
    """The rows have their final states: the parameters of `finish_job`.  How many were running with this fence."""
    if len(rows) < ALIKE_MIN:
        return tx.connection.executemany(SQL.finish_job, rows).rowcount
    count = 0
    alike, single = split_alike(rows, _but_id_and_result, RESULT_AT)
    for (fence, state, error, now_us, expires_us), results in alike:
        different = set(results.values())
        if len(different) == 1:
            params = (text(list(results)), fence, state, different.pop(), error, now_us, expires_us)
            count += tx.execute(SQL.finish_same, params).rowcount
        else:
            count += tx.execute(SQL.finish_alike, (text(results), fence, state, error, now_us, expires_us)).rowcount
    if single:
        count += tx.connection.executemany(SQL.finish_job, single).rowcount
    return count


RESULT_AT = 3
_but_id_and_result = itemgetter(1, 2, 4, 5, 6)


def _ended(tx: Transaction, job_id: str, row: tuple[Any, ...], state: State, error: str | None, now_us: int) -> None:
    """What goes with the end of a job that nobody ran: its event, its callback, and its parent's turn."""
    version, parent_id, callback_url, project, root_id = row
    emit(tx, (job_id, root_id, project), version, FINAL_TYPES[state], state, now_us, error)
    _follow(tx, job_id, parent_id, callback_url, project, root_id, state, now_us)


def _follow(
    tx: Transaction,
    job_id: str,
    parent_id: str | None,
    callback_url: str | None,
    project: str,
    root_id: str,
    state: State,
    now_us: int,
) -> None:
    """A job's callback, and its parent's turn, once it has ended."""
    if callback_url is not None and callback_url[0] != "{":  # one with a filter is read from the event
        add_delivery(tx, job_id, project, callback_url, FINAL_TYPES[state], now_us)
    if parent_id is not None:
        settle_parent(tx, parent_id, root_id, now_us)


def settle_parent(tx: Transaction, parent_id: str, root_id: str, now_us: int) -> None:
    row = tx.execute(SQL.settle_parent, (parent_id, now_us)).fetchone()
    if row is None:
        return
    version, state, grandparent_id, callback_url, project, queue, error = row
    if state == State.READY:
        emit(tx, (parent_id, root_id, project), version, EventType.RESUMED, State.READY, now_us, text({"queue": queue}))
        tx.ready_queues.add(queue)
    else:
        _ended(tx, parent_id, (version, grandparent_id, callback_url, project, root_id), State.CANCELLED, error, now_us)


def requeue_job(
    tx: Transaction,
    claim: Claim,
    job: tuple[str, str, str],
    type_: EventType,
    run_at_us: int,
    now_us: int,
    *,
    counts: int,
    crashed: int = 0,
    snoozed: int = 0,
    error: str | None = None,
    data: str | None = None,
) -> None:
    due = 1 if run_at_us <= now_us else 0
    params = (claim.job_id, claim.fence, run_at_us, due, counts, crashed, snoozed, error, now_us)
    (version,) = tx.execute(SQL.requeue_job, params).fetchone()
    emit(tx, job, version, type_, State.READY, now_us, data)


def suspend_job(
    tx: Transaction,
    claim: Claim,
    job: tuple[str, str, str],
    sub_jobs: list[Submission],
    priority: int,
    sub_total: int,
    now_us: int,
) -> None:
    _, root_id, project = job
    params = (claim.job_id, claim.fence, len(sub_jobs), now_us)
    (version,) = tx.execute(SQL.suspend_job, params).fetchone()
    emit(tx, job, version, EventType.WAITING, State.WAITING, now_us, text({"sub_jobs": len(sub_jobs)}))
    for position, submission in enumerate(sub_jobs, sub_total):
        sub = new_job(submission, new_job_id(), now_us)
        sub.project, sub.priority = ProjectId(project), priority
        sub.parent_id, sub.root_id, sub.position = claim.job_id, JobId(root_id), position
        add_sub_job(tx, sub, submission)
    if not sub_jobs:
        settle_parent(tx, claim.job_id, root_id, now_us)


def add_sub_job(tx: Transaction, sub: Job, submission: Submission) -> None:
    tx.execute(SQL.add_job, job_params(sub, submission))
    emit(tx, (sub.id, sub.root_id, sub.project), 1, EventType.SUBMITTED, sub.state, sub.created_us, None)
    if sub.labels:
        add_labels(tx, sub)


def _find(tx: Transaction, job_id: JobId, project: ProjectId | None) -> Job:
    row = tx.execute(SQL.get_job, (job_id,)).fetchone()
    if row is not None:
        job = job_from_row(row)
        if project is None or job.project == project:
            return job
    buried = tx.execute(SQL.get_tombstone, (job_id,)).fetchone()
    if row is None and buried is not None and (project is None or buried[1] == project):
        raise Expired(f"job {job_id} has expired; it was {buried[3]}", job_id=job_id, state=buried[3])
    raise NotFound(f"no job {job_id}", job_id=job_id)


def cancel_job(tx: Transaction, job_id: JobId, project: ProjectId | None, reason: str, now_us: int, expires_us: int) -> None:
    job = _find(tx, job_id, project)
    if job.state is State.CANCELLED:
        return
    if job.state in FINAL:
        raise Conflict(f"job {job_id} already ended: {job.state}", job_id=job_id, state=job.state)
    _refuse_expired(job, now_us)
    _cancel_tree(tx, job.id, job.root_id, job.project, job.state, reason, now_us, expires_us if job.parent_id is None else None)


def _refuse_expired(job: Job, now_us: int) -> None:
    if job.state is State.HELD and job.expires_us is not None and job.expires_us <= now_us:
        raise Expired(f"job {job.id} has expired; it was never released", job_id=job.id, state=job.state)


def _cancel_tree(
    tx: Transaction, job_id: str, root_id: str, project: str, state: State, reason: str, now_us: int, expires_us: int | None
) -> None:
    """End it now if nobody runs it, else ask; sub-jobs likewise, and a waiting parent ends when the last of them has."""
    if state in (State.HELD, State.READY):
        error = text(Failure("cancelled", reason))
        row = tx.execute(SQL.end_idle_job, (job_id, State.CANCELLED.value, error, now_us, expires_us)).fetchone()
        _ended(tx, job_id, row, State.CANCELLED, error, now_us)
        return
    asked = tx.execute(SQL.ask_cancel, (job_id, reason, now_us, expires_us)).fetchone()
    if asked is not None:
        emit(tx, (job_id, root_id, project), asked[0], EventType.CANCEL_REQUESTED, state, now_us, text({"reason": reason}))
    if state is State.WAITING:
        for sub_id, sub_state in tx.execute(SQL.list_open_subs, (job_id,)).fetchall():
            _cancel_tree(tx, sub_id, root_id, project, State(sub_state), reason, now_us, None)


def release_job(tx: Transaction, job_id: JobId, project: ProjectId | None, now_us: int) -> None:
    job = _find(tx, job_id, project)
    if job.state is not State.HELD:
        raise Conflict(f"job {job_id} is {job.state}, not held", job_id=job_id, state=job.state)
    _refuse_expired(job, now_us)
    (version,) = tx.execute(SQL.release_job, (job_id, 1 if job.run_at_us <= now_us else 0, now_us)).fetchone()
    emit(tx, (job.id, job.root_id, job.project), version, EventType.RELEASED, State.READY, now_us, None)


def rescue_expired(
    tx: Transaction, now_us: int, crashes_max: float, crashes_max_of: Mapping[str, float], expires_us: int
) -> list[JobId]:
    rescued: list[JobId] = []
    for (worker,) in tx.execute(SQL.list_dead_workers, (now_us,)).fetchall():
        for job_id, _ in tx.execute(SQL.list_owned, (worker,)).fetchall():
            job = job_from_row(tx.execute(SQL.get_job, (job_id,)).fetchone())
            limit = crashes_max_of.get(job.kind, crashes_max)
            _rescue_one(tx, job, Claim(job.id, job.fence, worker), now_us, limit, expires_us)
            rescued.append(job.id)
        tx.execute(SQL.end_worker, (worker,))
    return rescued


def _rescue_one(tx: Transaction, job: Job, claim: Claim, now_us: int, crashes_max: float, expires_us: int) -> None:
    until_us = expires_us if job.parent_id is None else None
    if job.cancel_requested:
        failure = Failure("cancelled", "cancelled on request; its worker died")
        _end(tx, claim, State.CANCELLED, None, failure, now_us, until_us)
    elif job.crashes + 1 >= crashes_max:
        failure = Failure(
            "poison",
            f"{job.crashes + 1} workers died while they ran this job; it is not tried again",
            {"crashes": job.crashes + 1, "last_worker": claim.worker},
        )
        _end(tx, claim, State.FAILED, None, failure, now_us, until_us)
    else:
        counts = int(isfinite(crashes_max))
        data = text({"worker": claim.worker, "crashes": job.crashes + counts})
        who = (job.id, job.root_id, job.project)
        requeue_job(
            tx, claim, who, EventType.RESCUED, min(job.run_at_us, now_us), now_us, counts=counts, crashed=counts, data=data
        )
        tx.ready_queues.add(job.queue)


def fail_overdue(tx: Transaction, now_us: int, limit: int, expires_us: int) -> int:
    overdue = tx.execute(SQL.list_overdue, (now_us, limit)).fetchall()
    for job_id, parent_id in overdue:
        job = job_from_row(tx.execute(SQL.get_job, (job_id,)).fetchone())
        if job.state in FINAL:  # ended by an earlier one of this round
            continue
        failure = Failure("deadline_exceeded", f"the job was not done by its deadline; it was {job.state}")
        error = text(failure)
        until_us = expires_us if parent_id is None else None
        row = tx.execute(SQL.end_idle_job, (job_id, State.FAILED.value, error, now_us, until_us)).fetchone()
        _ended(tx, job_id, row, State.FAILED, error, now_us)
        for sub_id, sub_state in tx.execute(SQL.list_open_subs, (job_id,)).fetchall():
            _cancel_tree(tx, sub_id, job.root_id, job.project, State(sub_state), "its parent's deadline passed", now_us, None)
    return len(overdue)


def prune_expired(tx: Transaction, now_us: int, limit: int) -> list[JobId]:
    ids: list[JobId] = []
    for (root_id,) in tx.execute(SQL.list_expired, (now_us, limit)).fetchall():
        subs = [JobId(row[0]) for row in tx.execute(SQL.list_tree, (root_id, limit - len(ids))).fetchall()]
        ids.extend(subs)
        if len(ids) >= limit:
            break  # the rest of this tree, and its root, in the next round
        ids.append(JobId(root_id))
        if len(ids) >= limit:
            break
    if ids:
        flush_events(tx)  # what this batch did to them goes with them
        packed = text(ids)
        tx.execute(SQL.keep_event_id, (tx.next_event_id - 1,))
        tx.execute(SQL.bury_jobs, (packed, now_us))
        forget_jobs(tx, packed)
        for statement in (SQL.delete_events, SQL.delete_labels, SQL.delete_deliveries, SQL.delete_jobs):
            tx.execute(statement, (packed,))
    return ids


def prune_rest(tx: Transaction, now_us: int, keep_tombstone_s: float, keep_deliveries_s: float, limit: int) -> bool:
    """Old tombstones, deliveries, tokens and signatures; whether there may be more."""
    tombstones = tx.execute(SQL.delete_tombstones, (now_us - int(keep_tombstone_s * 1e6), limit)).rowcount
    deliveries = tx.execute(SQL.delete_old_deliveries, (now_us - int(keep_deliveries_s * 1e6), limit)).rowcount
    tx.execute(SQL.delete_old_tokens, (now_us,))
    signatures = tx.execute(SQL.delete_old_signatures, (now_us, limit)).rowcount
    return bool(max(tombstones, deliveries, signatures) >= limit)
