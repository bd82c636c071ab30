"""Requests signed with an access key: the server's side of `wire.signing`.

Rules
1. What costs least is checked first, and nothing is remembered of a request that is not accepted: form, date, key, body, HMAC,
   project, rate, and only then whether it was used before.
2. A signature is accepted within `signature_window_s` of its date, to either side.
3. One that changes something (any method but GET, HEAD and OPTIONS) is accepted once: the store keeps it until its date is
   refused anyway, so that it holds across restarts and for every server over one store, and costs this process no memory.
   The connection that brought it may bring it again for a moment: see `Repeats`.
4. A key acts in its own project and in no other, an admin's too.
5. The key, its user, its project and the user's role there are read from the store on each request, so that each of them
   being disabled or taken away counts at once.
6. The body is read for signed requests only, at most `body_bytes_max`, and whoever reads it afterwards still gets all of it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import msgspec

from milepost.errors import Forbidden, LimitExceeded, Unauthenticated
from milepost.wire.signing import huawei

if TYPE_CHECKING:
    from milepost.clock import Clock
    from milepost.server.auth import Identity
    from milepost.server.state import AppState

READS = frozenset({"GET", "HEAD", "OPTIONS"})
WRONG = "verify aksk signature fail"  # as Huawei's gateway says it

REPEAT_S = 3.0  # equal requests have one signature only within a second of their signer's clock
CHANGES_MAX = 4096  # that are remembered with their connections
FORWARDED = (b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Repeats:
    """Changes that one connection brings again, equal to the last byte: a program that asks for two equal things in a second.

    Theory: dates have whole seconds, so two equal changes of one second have one signature, as a change and its replay have.
    Over a connection answers come in order: whoever asks again on it has its first answer, or has lost the connection with it.
    So what comes over the same one is meant, and what is caught on its way and sent again comes over another.  Behind a proxy
    connections are the proxy's and tell nothing.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._first: OrderedDict[tuple[str, int, str], int] = OrderedDict()

    def note(self, scope: Mapping[str, Any], digest: str) -> None:
        """This connection brought the change first."""
        change = self._change(scope, digest)
        if change is not None:
            self._first[change] = self._clock.now_us()
            if len(self._first) > CHANGES_MAX:
                self._first.popitem(last=False)

    def is_meant(self, scope: Mapping[str, Any], digest: str) -> bool:
        """Whether the same connection brought it first, just now."""
        change = self._change(scope, digest)
        first_us = self._first.get(change) if change is not None else None
        return first_us is not None and abs(self._clock.now_us() - first_us) <= REPEAT_S * 1e6

    def _change(self, scope: Mapping[str, Any], digest: str) -> tuple[str, int, str] | None:
        client = scope.get("client")
        if not client or not client[1] or any(name in FORWARDED for name, _ in scope["headers"]):
            return None
        return str(client[0]), int(client[1]), digest


class Recorder:
    """A `receive` that can be asked for the whole body without taking it from the handler, in whatever order they ask."""

    __slots__ = ("_given", "_limit_bytes", "_limit_s", "_messages", "_receive", "_size")

    def __init__(self, receive: Receive, *, limit_bytes: int, limit_s: float) -> None:
        self._receive, self._limit_bytes, self._limit_s = receive, limit_bytes, limit_s
        self._messages: list[MutableMapping[str, Any]] = []
        self._given = self._size = 0

    async def __call__(self) -> MutableMapping[str, Any]:
        message = self._messages[self._given] if self._given < len(self._messages) else await self._next()
        self._given += 1
        return message

    async def whole(self) -> bytes:
        """The body.  Errors: LimitExceeded when it is too large or does not come in time."""
        try:
            async with asyncio.timeout(self._limit_s):
                while not self._messages or self._messages[-1].get("more_body", False):
                    await self._next()
        except TimeoutError:
            raise LimitExceeded(
                f"the body did not come within {self._limit_s:g} s", limit="body_s_max", allowed=self._limit_s
            ) from None
        return b"".join(message.get("body", b"") for message in self._messages)

    async def _next(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > self._limit_bytes:
            raise LimitExceeded(
                f"the body of a signed request has more than {self._limit_bytes} bytes",
                limit="body_bytes_max",
                allowed=self._limit_bytes,
                seen=self._size,
                hint="the server's setting body_bytes_max",
            )
        self._messages.append(message)
        return message


def recorded(scope: MutableMapping[str, Any], receive: Receive, headers: Mapping[bytes, bytes], state: AppState) -> Receive:
    """The `receive` to go on with: one that records where a signature has to be checked against the body."""
    if not huawei.is_signed(headers.get(b"authorization")) or not huawei.wants_body(_message(scope, headers)):
        return receive
    settings = state.settings
    scope["signed_body"] = recorder = Recorder(receive, limit_bytes=settings.body_bytes_max, limit_s=settings.body_s_max)
    return recorder


async def identify_signed(
    scope: MutableMapping[str, Any], headers: Mapping[bytes, bytes], *, project: str | None = None, body: bytes | None = None
) -> Identity:
    """Who signed this request; it counts as one of the project's.

    `project` is the one that the path or `X-Project-Id` names, `body` the body where the caller has read it already.
    Errors: Unauthenticated (`reason` signature), Forbidden (`reason` project), LimitExceeded, Throttled.
    """
    state: AppState = scope["app"].state
    claim = huawei.read_claim(headers[b"authorization"].decode("latin-1"))
    message = _message(scope, headers)
    _check_unique(scope, claim)
    signed_us = huawei.check_form(claim, message, host_required=state.settings.signature_host_required)
    _check_date(state, signed_us)
    secret, identity = await state.identities.read_access_key(claim.access)
    if huawei.wants_body(message):
        message = msgspec.structs.replace(message, body=await _body(scope, headers) if body is None else body)
    else:
        message = msgspec.structs.replace(message, body=None)
    if not _verify(state, claim, message, secret):
        raise huawei.refused(f"{WRONG}: it was not made for this request with the secret of {claim.access}")
    if project is not None and project != identity.project:
        raise Forbidden(f"project {project[:64]} is not the access key's", reason="project")
    state.rates.take(identity.project)
    if scope["method"] not in READS and state.settings.signature_once:
        await _use(state, scope, claim, signed_us)
    scope["signed_by"] = claim.access
    return identity


async def identify_again(scope: Mapping[str, Any], *, state: AppState) -> Identity:
    """The caller of a request that was identified before, as the key is now.  Errors: Unauthenticated."""
    _, identity = await state.identities.read_access_key(scope["signed_by"])
    return identity


def _message(scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> huawei.Message:
    """The path is the decoded one, encoded again: what is verified is what the routes were matched against."""
    return huawei.Message(scope["method"], quote(scope["path"]).encode(), scope["query_string"], headers)


def _check_unique(scope: Mapping[str, Any], claim: huawei.Claim) -> None:
    """A header that comes twice is read differently by different readers."""
    names = [name for name, _ in scope["headers"]]
    if len(names) == len(set(names)):
        return
    twice = [name for name in claim.names if names.count(name.lower().encode()) > 1]
    if twice:
        raise huawei.refused(f"the signed header {twice[0][:40]} comes more than once")


def _check_date(state: AppState, signed_us: int) -> None:
    window_s, now_us = state.settings.signature_window_s, state.clock.now_us()
    away_s = (now_us - signed_us) / 1e6
    if abs(away_s) > window_s:
        where = "before" if away_s > 0 else "after"
        raise huawei.refused(
            f"{huawei.DATE_HEADER} is {abs(away_s):.0f} s {where} this server's time, {huawei.date_text(now_us)}; at most "
            f"{window_s:g} s are allowed",
            hint="set the clock of the machine that signs",
        )


async def _body(scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> bytes:
    one = str(scope.get("http_version", "1.1")).startswith("1")
    if one and headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
        return b""
    recorder: Recorder = scope["signed_body"]
    return await recorder.whole()


def _verify(state: AppState, claim: huawei.Claim, message: huawei.Message, secret: str) -> bool:
    """With the host as it came; and, where a proxy may have put its own there, with the public one."""
    if huawei.verify(claim, message, secret):
        return True
    public = urlsplit(state.settings.public_url or "").netloc.encode()
    if not public or message.headers.get(b"host") == public:
        return False
    headers = {**message.headers, b"host": public}
    return huawei.verify(claim, msgspec.structs.replace(message, headers=headers), secret)


async def _use(state: AppState, scope: Mapping[str, Any], claim: huawei.Claim, signed_us: int) -> None:
    """Errors: Unauthenticated when it was used before, and not by this connection just now."""
    expires_us = signed_us + int((state.settings.signature_window_s + 1) * 1e6)
    digest = f"{claim.access}/{claim.signature}"
    if await state.store.use_signature(digest, expires_us=expires_us):
        state.repeats.note(scope, digest)
    elif not _is_direct(state) or not state.repeats.is_meant(scope, digest):
        raise Unauthenticated(
            "this signed request was accepted before, and a signature is good for one change: sign it again with a new "
            "X-Sdk-Date (a repeat with the same X-Client-Token is done only once; equal requests within one second need "
            "different ones, or one connection)",
            reason="signature",
            replayed=True,
        )


def _is_direct(state: AppState) -> bool:
    """Whether connections are callers' own, as far as the settings tell: one with a public URL stands behind somebody."""
    return state.settings.public_url is None
