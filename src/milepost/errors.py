"""Every error Milepost raises, as one tree.  Imports nothing of ours but `job`.

MilepostError
├── CallerError                the request is wrong; the same request fails again
│   ├── InvalidInput           a field is wrong: `fields` says which and why
│   │   └── UnknownKind
│   ├── NotFound               never existed, or belongs to another project
│   ├── Expired                existed; its final state is in `state`
│   ├── Conflict               the job is in a state that does not allow it
│   │   ├── IdempotencyConflict
│   │   └── VersionConflict    somebody else changed what was read
│   ├── Unauthenticated
│   ├── Forbidden
│   └── LimitExceeded          a documented limit: `limit`, `allowed`, `seen`
├── Unavailable  (retryable)   nothing is known to be wrong with the request
│   ├── StoreUnavailable
│   ├── Unreachable            the server did not answer
│   └── Throttled              answered 429 or 503; `retry_after_s`
├── ProtocolError              the server answered something that its API does not allow
├── JobError                   about the job, not about the request
│   ├── JobFailed
│   │   └── PartialFailure     some sub-jobs succeeded; both lists are in it
│   └── JobCancelled
└── WaitTimeout                I stopped waiting; the job is still running
"""

from __future__ import annotations

from typing import Any, ClassVar

from milepost.job import JobId, State


class MilepostError(Exception):
    """Base of the tree.  `code` is stable, `hint` is the next thing to do, `fields` what was seen."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        job_id: str | None = None,
        state: str | None = None,
        elapsed_s: float | None = None,
        hint: str | None = None,
        request_id: str | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.job_id = job_id
        self.state = state
        self.elapsed_s = elapsed_s
        self.hint = hint
        self.request_id = request_id
        self.fields = fields

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class CallerError(MilepostError):
    """The request is wrong; sending it again changes nothing."""

    code = "caller_error"


class InvalidInput(CallerError):
    """A field of the request is wrong; `path` names it as `$.input.size`."""

    code = "invalid_input"

    def __init__(self, message: str, *, path: str = "$", **fields: Any) -> None:
        super().__init__(message, **fields)
        self.path = path


class UnknownKind(InvalidInput):
    """No function is registered under this kind."""

    code = "unknown_kind"


class NotFound(CallerError):
    """Nothing with this id is visible to the caller."""

    code = "not_found"


class Expired(CallerError):
    """The job existed and its record is gone; `state` is its final state."""

    code = "expired"


class Conflict(CallerError):
    """The job's state does not allow it."""

    code = "conflict"


class IdempotencyConflict(Conflict):
    """The idempotency key was used with another body."""

    code = "idempotency_conflict"


class VersionConflict(Conflict):
    """What was read has been changed by somebody else: read it again."""

    code = "version_conflict"


class Unauthenticated(CallerError):
    """No identity, or one that is not valid any more."""

    code = "unauthenticated"


class Forbidden(CallerError):
    """The identity is known and may not do this."""

    code = "forbidden"


class LimitExceeded(CallerError):
    """A documented limit: `limit` names it, `allowed` is its value, `seen` what came."""

    code = "limit_exceeded"

    def __init__(self, message: str, *, limit: str, allowed: float, seen: float | None = None, **fields: Any) -> None:
        super().__init__(message, limit=limit, allowed=allowed, seen=seen, **fields)
        self.limit, self.allowed, self.seen = limit, allowed, seen


class Unavailable(MilepostError):
    """It may work later, unchanged."""

    code = "unavailable"
    retryable = True


class StoreUnavailable(Unavailable):
    """The store did not answer or could not write; the write may or may not have happened."""

    code = "store_unavailable"


class Unreachable(Unavailable):
    """The server did not answer."""

    code = "unreachable"


class Throttled(Unavailable):
    """The server asked to slow down."""

    code = "throttled"

    def __init__(self, message: str, *, retry_after_s: float, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.retry_after_s = retry_after_s


class ProtocolError(MilepostError):
    """The server's answer is not one of its API."""

    code = "protocol_error"


class JobError(MilepostError):
    """The job ended, not well."""

    code = "job_error"


class JobFailed(JobError):
    """The job's final state is failed."""

    code = "job_failed"


class PartialFailure(JobFailed):
    """Some sub-jobs succeeded: `succeeded` and `failed` list both."""

    code = "partial_failure"

    def __init__(self, message: str, *, succeeded: list[Any], failed: list[Any], **fields: Any) -> None:
        super().__init__(message, **fields)
        self.succeeded, self.failed = succeeded, failed


class JobCancelled(JobError):
    """The job's final state is cancelled."""

    code = "job_cancelled"


class WaitTimeout(MilepostError, TimeoutError):
    """The job was not final in time; it is still running and can be waited for again."""

    code = "wait_timeout"

    def __init__(self, job_id: JobId | str, *, state: State | str, waited_s: float, **fields: Any) -> None:
        fields.setdefault("hint", f"milepost wait {job_id}")
        super().__init__(
            f"job {job_id} still {state} after {waited_s:g} s", job_id=job_id, state=state, elapsed_s=waited_s, **fields
        )
        self.waited_s = waited_s


# Raised by job functions: how an attempt ends when it does not return.


class PermanentError(Exception):
    """Raise it in a job function to fail the job at once: another attempt would not help."""

    def __init__(self, code: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details


class RetryableError(Exception):
    """Raise it in a job function to fail this attempt with a code; the job is tried again while attempts remain.

    `delay_s` replaces the backoff.
    """

    def __init__(self, code: str, message: str, details: dict[str, Any] | None = None, *, delay_s: float | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.details, self.delay_s = code, message, details, delay_s
