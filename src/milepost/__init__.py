"""Durable jobs for slow cloud work, and one client for every cloud's jobs.

The public names, each loaded when it is first used: `import milepost` alone needs msgspec and pyreqwest, and a module of kinds
does not load the client, nor the client the service.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milepost.client.aio import AsyncClient as AsyncClient
    from milepost.client.aio import AsyncJobHandle as AsyncJobHandle
    from milepost.client.cadence import Cadence as Cadence
    from milepost.client.identity import Credentials as Credentials
    from milepost.client.sync import Client as Client
    from milepost.client.sync import JobHandle as JobHandle
    from milepost.job import State as State
    from milepost.wire import JobView as JobView

    __version__: str

_HOME = {
    "AsyncClient": "milepost.client.aio",
    "AsyncJobHandle": "milepost.client.aio",
    "Cadence": "milepost.client.cadence",
    "Client": "milepost.client.sync",
    "Credentials": "milepost.client.identity",
    "JobHandle": "milepost.client.sync",
    "JobView": "milepost.wire",
    "State": "milepost.job",
}

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
