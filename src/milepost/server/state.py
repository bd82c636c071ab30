"""What the handlers of one server share: `request.app.state`.  Made once by `create_app`, filled by the composition root."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milepost.clock import Clock
from milepost.engine.context import Objects
from milepost.engine.kinds import Kinds
from milepost.engine.service import Service
from milepost.settings import Settings
from milepost.store import Store

if TYPE_CHECKING:
    from milepost.server.events import Hub
    from milepost.server.identity import Identities
    from milepost.server.limits import Rates, Slots
    from milepost.server.metrics import HttpStats
    from milepost.server.signatures import Repeats


class AppState:
    """`engine`, `machines` and `look` are set by the composition root once they run."""

    __slots__ = (
        "clock",
        "engine",
        "http",
        "hub",
        "identities",
        "kinds",
        "look",
        "machines",
        "objects",
        "rates",
        "repeats",
        "service",
        "settings",
        "shown",
        "slots",
        "store",
    )

    def __init__(
        self,
        *,
        service: Service,
        settings: Settings,
        clock: Clock,
        objects: Objects | None,
        identities: Identities,
        rates: Rates,
        slots: Slots,
        hub: Hub,
        http: HttpStats,
        repeats: Repeats,
    ) -> None:
        self.service: Service = service
        self.store: Store = service.store
        self.kinds: Kinds = service.kinds
        self.settings, self.clock, self.objects, self.identities = settings, clock, objects, identities
        self.rates, self.slots, self.hub, self.http = rates, slots, hub, http
        self.repeats = repeats
        self.shown: dict[bytes, bytes] = {}  # ETag -> the job's text: see `jobs`
        self.engine: Any = None
        # what a file holds, for the variables of an upload's answer; None: this server knows nothing of media
        self.look: Callable[[Path, frozenset[str], Settings], Awaitable[dict[str, Any]]] | None = None
        self.machines: Any = None  # what knows whether a server's machine really runs; None: no servers here
