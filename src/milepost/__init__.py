"""Durable jobs for slow cloud work, and one client for every cloud's jobs.

The public names, each loaded when it is first used: `import milepost` alone needs msgspec and pyreqwest, and a module of kinds
does not load the client, nor the client the service.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msgspec import Struct as Struct

    from milepost.client.aio import AsyncClient as AsyncClient
    from milepost.client.aio import AsyncJobHandle as AsyncJobHandle
    from milepost.client.budget import Limit as Limit
    from milepost.client.cadence import Cadence as Cadence
    from milepost.client.identity import Credentials as Credentials
    from milepost.client.many import as_completed as as_completed
    from milepost.client.many import as_completed_async as as_completed_async
    from milepost.client.many import wait_all as wait_all
    from milepost.client.many import wait_all_async as wait_all_async
    from milepost.client.many import wait_any as wait_any
    from milepost.client.many import wait_any_async as wait_any_async
    from milepost.client.signing import KeyPair as KeyPair
    from milepost.client.sync import Client as Client
    from milepost.client.sync import JobHandle as JobHandle
    from milepost.engine.admission import Admission as Admission
    from milepost.engine.admission import Admitted as Admitted
    from milepost.engine.context import Cancel as Cancel
    from milepost.engine.context import Running as Running
    from milepost.engine.context import RunningInThread as RunningInThread
    from milepost.engine.context import Snooze as Snooze
    from milepost.engine.context import SubOutcome as SubOutcome
    from milepost.engine.isolated import IsolatedRunning as IsolatedRunning
    from milepost.engine.kinds import kind as kind
    from milepost.errors import CallerError as CallerError
    from milepost.errors import Conflict as Conflict
    from milepost.errors import Expired as Expired
    from milepost.errors import Forbidden as Forbidden
    from milepost.errors import IdempotencyConflict as IdempotencyConflict
    from milepost.errors import InvalidInput as InvalidInput
    from milepost.errors import JobCancelled as JobCancelled
    from milepost.errors import JobError as JobError
    from milepost.errors import JobFailed as JobFailed
    from milepost.errors import LimitExceeded as LimitExceeded
    from milepost.errors import MilepostError as MilepostError
    from milepost.errors import NotFound as NotFound
    from milepost.errors import PartialFailure as PartialFailure
    from milepost.errors import PermanentError as PermanentError
    from milepost.errors import ProtocolError as ProtocolError
    from milepost.errors import RetryableError as RetryableError
    from milepost.errors import StoreUnavailable as StoreUnavailable
    from milepost.errors import Throttled as Throttled
    from milepost.errors import Unauthenticated as Unauthenticated
    from milepost.errors import Unavailable as Unavailable
    from milepost.errors import UnknownKind as UnknownKind
    from milepost.errors import Unreachable as Unreachable
    from milepost.errors import VersionConflict as VersionConflict
    from milepost.errors import WaitTimeout as WaitTimeout
    from milepost.job import Event as Event
    from milepost.job import Failure as Failure
    from milepost.job import Progress as Progress
    from milepost.job import State as State
    from milepost.job import SubJob as SubJob
    from milepost.process import Limits as Limits
    from milepost.store import Resource as Resource
    from milepost.store import Write as Write
    from milepost.wire import JobView as JobView
    from milepost.wire.native import Missed as Missed

    __version__: str

_HOMES: dict[str, tuple[str, ...]] = {
    "milepost.client.aio": ("AsyncClient", "AsyncJobHandle"),
    "milepost.client.budget": ("Limit",),
    "milepost.client.cadence": ("Cadence",),
    "milepost.client.identity": ("Credentials",),
    "milepost.client.many": (
        "as_completed",
        "as_completed_async",
        "wait_all",
        "wait_all_async",
        "wait_any",
        "wait_any_async",
    ),
    "milepost.client.signing": ("KeyPair",),
    "milepost.client.sync": ("Client", "JobHandle"),
    "milepost.engine.admission": ("Admission", "Admitted"),
    "milepost.engine.context": ("Cancel", "Running", "RunningInThread", "Snooze", "SubOutcome"),
    "milepost.engine.isolated": ("IsolatedRunning",),
    "milepost.engine.kinds": ("kind",),
    "milepost.errors": (
        "CallerError",
        "Conflict",
        "Expired",
        "Forbidden",
        "IdempotencyConflict",
        "InvalidInput",
        "JobCancelled",
        "JobError",
        "JobFailed",
        "LimitExceeded",
        "MilepostError",
        "NotFound",
        "PartialFailure",
        "PermanentError",
        "ProtocolError",
        "RetryableError",
        "StoreUnavailable",
        "Throttled",
        "Unauthenticated",
        "Unavailable",
        "UnknownKind",
        "Unreachable",
        "VersionConflict",
        "WaitTimeout",
    ),
    "milepost.job": ("Event", "Failure", "Progress", "State", "SubJob"),
    "milepost.process": ("Limits",),
    "milepost.store": ("Resource", "Write"),
    "milepost.wire": ("JobView",),
    "milepost.wire.native": ("Missed",),
    "msgspec": ("Struct",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("milepost")
    if name not in _HOME:
        raise AttributeError(f"module 'milepost' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "__version__"})
