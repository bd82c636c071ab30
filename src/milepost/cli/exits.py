"""What the command's exit code says, in one table."""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum

from milepost import errors
from milepost.job import State
from milepost.wire import JobView


class Exit(IntEnum):
    """Exit codes; docs/reference/exit-codes.md explains each."""

    DONE = 0  # the job succeeded, or the command did what was asked
    FAILED = 1  # the job failed
    USAGE = 2  # the command line, the input or a setting is wrong
    PARTLY_FAILED = 3  # some jobs or sub-jobs succeeded, some did not
    TIMED_OUT = 4  # stopped waiting; the job still runs
    CANCELLED = 5  # the job was cancelled
    NOT_FOUND = 6  # no such job, or its record has expired
    UNREACHABLE = 7  # no usable answer from the server
    REFUSED = 8  # not allowed: identity, rights, a limit, or the job's state
    SOME_UNKNOWN = 9  # of some jobs it cannot be known what they came to
    INTERRUPTED = 130  # Ctrl-C: stopped waiting, cancelled nothing


_BY_ERROR: tuple[tuple[type[BaseException], Exit], ...] = (
    # The first match counts: subclasses stand before their bases.
    (errors.PartialFailure, Exit.PARTLY_FAILED),
    (errors.JobFailed, Exit.FAILED),
    (errors.JobCancelled, Exit.CANCELLED),
    (errors.WaitTimeout, Exit.TIMED_OUT),
    (errors.NotFound, Exit.NOT_FOUND),
    (errors.Expired, Exit.NOT_FOUND),
    (errors.InvalidInput, Exit.USAGE),
    (errors.CallerError, Exit.REFUSED),
    (errors.Unavailable, Exit.UNREACHABLE),
    (errors.ProtocolError, Exit.UNREACHABLE),
)


def exit_of(error: BaseException) -> Exit:
    """The code of an error that ends a command."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), Exit.FAILED)


def exit_of_view(view: JobView) -> Exit:
    """The code of one job that ended."""
    if view.state is State.SUCCEEDED:
        return Exit.DONE
    if view.state is State.CANCELLED:
        return Exit.CANCELLED
    partly = view.sub_counts.get(State.SUCCEEDED, 0) or any(sub.state is State.SUCCEEDED for sub in view.sub_jobs)
    return Exit.PARTLY_FAILED if partly else Exit.FAILED


_UNKNOWN = {Exit.NOT_FOUND, Exit.UNREACHABLE, Exit.REFUSED, Exit.TIMED_OUT}


def exit_of_many(codes: Collection[Exit]) -> Exit:
    """The code of several jobs: their common one; else that some are unknown, or that some did not succeed."""
    if not codes:
        return Exit.DONE
    if len(set(codes)) == 1:
        return next(iter(codes))
    return Exit.SOME_UNKNOWN if set(codes) & _UNKNOWN else Exit.PARTLY_FAILED
