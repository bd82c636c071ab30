"""How a wait ends without the end of its job: its time is over, or nobody answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from milepost.client.known import Known
from milepost.client.session import Session
from milepost.errors import MilepostError, Unreachable, WaitTimeout

QUIET_S = 300.0  # a wait without a timeout gives up on a server that has not answered for so long
GRACE_S = 1.0  # after the end of a wait, for what is under way
NAMED_MAX = 20  # jobs that a command line names; more are better read from a file


class Deadline:
    """The end of one wait."""

    def __init__(self, session: Session, timeout_s: float | None) -> None:
        self._now_s = session.clock.monotonic_s
        self.started_s = self._now_s()
        self._end_s = float("inf") if timeout_s is None else self.started_s + timeout_s

    @property
    def left_s(self) -> float:
        return max(0.0, self._end_s - self._now_s())

    @property
    def over_s(self) -> float:
        """Since the end; 0 before."""
        return max(0.0, self._now_s() - self._end_s)

    @property
    def elapsed_s(self) -> float:
        return self._now_s() - self.started_s

    @property
    def open_ended(self) -> bool:
        return self._end_s == float("inf")


def given_up(session: Session, known: Known, deadline: Deadline, quiet_s: float) -> MilepostError:
    """WaitTimeout of a job that was seen, Unreachable of one about which nothing was heard."""
    counts: dict[str, Any] = {"probes": known.stats.probes, "failures": known.stats.failures, "throttled": known.stats.throttled}
    hint = session.command("wait", known.id)
    if known.view is None or deadline.open_ended:
        return Unreachable(
            f"no usable answer about job {known.id} for {quiet_s:.0f} s: {known.stats.last_error}",
            job_id=known.id,
            elapsed_s=deadline.elapsed_s,
            hint=hint,
            request_id=known.stats.request_id,
            last_error=known.stats.last_error,
            **counts,
        )
    return WaitTimeout(
        known.id,
        state=known.state,
        waited_s=round(deadline.elapsed_s, 1),
        hint=hint,
        request_id=known.stats.request_id,
        last_error=known.stats.last_error,
        **counts,
    )


def many_given_up(session: Session, pending: Sequence[Known], deadline: Deadline) -> MilepostError:
    """As `given_up`, with the ids of all that are pending; its hint is a command that waits for them."""
    first = next((known for known in pending if known.view is not None), pending[0])
    error = given_up(session, first, deadline, deadline.elapsed_s)
    error.fields["pending"] = [known.id for known in pending]
    error.hint = resume_command(session, error.fields["pending"])
    if len(pending) > 1:
        error.message = f"{len(pending)} jobs not final after {deadline.elapsed_s:.1f} s, one of them: {error.message}"
    return error


def resume_command(session: Session, job_ids: list[str]) -> str:
    """The command that goes on with these jobs; of very many, one that reads them from a file of ids or handles."""
    if len(job_ids) <= NAMED_MAX:
        return session.command("wait", *job_ids)
    return session.command("wait", "--from", "FILE")
