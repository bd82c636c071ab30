"""The channels of this process: one for each place and caller, opened when a tracked job needs it and kept while it is used."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

import msgspec

from milepost import Credentials, KeyPair, PermanentError
from milepost.client.budget import BUDGETS, Limit
from milepost.client.dialects import dialect
from milepost.client.durations import History
from milepost.client.handle import Handle
from milepost.client.session import Session
from milepost.client.signing import QiniuKeys, Signer
from milepost.clock import SystemClock
from milepost.egress import EgressPolicy
from milepost.settings import Settings
from milepost.store.credentials import open_secret, same_place
from milepost.tracking import Credential, Secret
from milepost.vault import open_vault
from milepost.work.track.channel import Channel, cadence_of
from milepost.work.track.transport import GuardedTransport

IDLE_S = 900.0
CHANNELS_MAX = 1000
BUDGET_S = 10.0  # the stretch that a limit is spread over


class Key(msgspec.Struct, frozen=True):
    """What makes two questions go by one channel."""

    policy: EgressPolicy
    owner: str
    wire: str
    endpoint: str
    project: str | None
    sealed: str | None


class Channels:
    """Those of one event loop."""

    def __init__(self) -> None:
        self._open: dict[Key, Channel] = {}
        self._transports: dict[EgressPolicy, GuardedTransport] = {}
        self._history = History()
        self._clock = SystemClock()

    def of(self, handle: Handle, owner: str, credential: Credential | None, settings: Settings) -> Channel:
        """Errors: Conflict when the credential cannot be opened, PermanentError when it is for another place."""
        policy = EgressPolicy.from_settings(settings)
        assert handle.endpoint is not None
        key = Key(policy, owner, handle.wire, handle.endpoint, handle.project, credential.sealed if credential else None)
        channel = self._open.get(key)
        if channel is None:
            self._drop_idle()
            channel = self._open[key] = self._make(handle, owner, credential, settings, policy)
        return channel

    def _make(
        self, handle: Handle, owner: str, credential: Credential | None, settings: Settings, policy: EgressPolicy
    ) -> Channel:
        session = open_session(handle, owner, credential, settings, clock=self._clock, history=self._history)
        transport = self._transports.get(policy)
        if transport is None:
            transport = self._transports[policy] = GuardedTransport(policy)
        limit = Limit(settings.track_rate_per_s * BUDGET_S, BUDGET_S)
        assert handle.endpoint is not None
        budget = BUDGETS.of(handle.endpoint, handle.project, limit)
        return Channel(session, transport, budget, clock=self._clock)

    def _drop_idle(self) -> None:
        before_s = self._clock.monotonic_s() - IDLE_S
        for key, channel in list(self._open.items()):
            if channel.used_s < before_s or len(self._open) >= CHANNELS_MAX:
                del self._open[key]


def open_session(
    handle: Handle, owner: str, credential: Credential | None, settings: Settings, *, clock: SystemClock, history: History
) -> Session:
    """The session that asks as this credential.  Errors: as Channels.of."""
    assert handle.endpoint is not None
    secret = Secret() if credential is None else open_secret(open_vault(settings), owner, credential)
    if credential is not None and not same_place(credential.endpoint, handle.endpoint):
        raise PermanentError(
            "wrong_place", f"the credential {credential.name!r} is for {credential.endpoint}, the job is at {handle.endpoint}"
        )
    signer: Signer | None = None
    if secret.keys is not None:
        given = {name: value for name, value in secret.keys.items() if value}
        signer = msgspec.convert(given, QiniuKeys) if handle.wire == "qiniu" else msgspec.convert(given, KeyPair)
    credentials = None if secret.keystone is None else Credentials(**secret.keystone)
    return Session(
        dialect(handle.wire),
        handle.endpoint,
        clock=clock,
        token=secret.token,
        project=handle.project,
        credentials=credentials,
        signer=signer,
        request_timeout_s=settings.track_timeout_s,
        cadence=cadence_of(settings.track_first_s, settings.track_cap_s),
        history=history,
    )


_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Channels] = WeakKeyDictionary()


def channels() -> Channels:
    """Those of the running loop."""
    loop = asyncio.get_running_loop()
    found = _of_loop.get(loop)
    if found is None:
        found = _of_loop[loop] = Channels()
    return found
