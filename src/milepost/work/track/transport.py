"""Requests about tracked jobs, kept open: a client for each place, pinned to an address that the guard has checked.

Rules
1. Users name the URLs: each is resolved and checked by `egress` before it is asked, and again every `FRESH_S`.
2. Redirects are not followed, and no proxy of the environment is used: a token goes where it was sent.
3. An answer is read up to `ANSWER_BYTES_MAX`.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
from pyreqwest.exceptions import BuilderError, PyreqwestError

from milepost import CallerError, PermanentError, Unreachable
from milepost.client.steps import Ask
from milepost.egress import EgressPolicy, Target, Timeouts, pinned_client, redact, resolve_checked, unreachable_error
from milepost.wire import Response

if TYPE_CHECKING:
    from pyreqwest.client import Client

FRESH_S = 60.0
CONNECT_S = 10.0
ANSWER_BYTES_MAX = 8 << 20


class _Open(msgspec.Struct):
    client: Client
    target: Target
    until_s: float


class GuardedTransport:
    """Sends requests where the policy allows it."""

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = policy
        self._open: dict[str, _Open] = {}

    async def send(self, ask: Ask) -> Response:
        """Errors: Unreachable; PermanentError when the URL must not be asked."""
        request = ask.request
        opened = await self._client(request.url)
        try:
            builder = opened.client.request(request.method, request.url).headers(dict(request.headers))
            if request.body is not None:
                builder = builder.body_bytes(request.body)
            builder = builder.timeout(timedelta(seconds=ask.timeout_s))
            async with builder.streamed_read_buffer_limit(0).build_streamed() as answer:
                body = bytearray()
                while (chunk := await answer.body_reader.read_chunk()) is not None:
                    body += memoryview(chunk)
                    if len(body) > ANSWER_BYTES_MAX:
                        raise Unreachable(f"the answer of {opened.target.host} has more than {ANSWER_BYTES_MAX} bytes", sent=True)
                headers = {name.lower(): value for name, value in answer.headers.items()}
                return Response(answer.status, headers, bytes(body))
        except (BuilderError, ValueError) as error:
            raise PermanentError("invalid_url", f"the request to {redact(request.url)} cannot be built") from error
        except PyreqwestError as error:
            await self._drop(request.url)  # another address may answer
            raise unreachable_error(opened.target, error) from error

    async def _client(self, url: str) -> _Open:
        origin, now_s = _origin(url), time.monotonic()
        found = self._open.get(origin)
        if found is not None and found.until_s > now_s:
            return found
        try:
            target = await resolve_checked(url, self._policy, timeout_s=CONNECT_S)
        except Unreachable:
            raise
        except CallerError as error:
            raise PermanentError(error.code, error.message, {"hint": error.hint} if error.hint else None) from error
        timeouts = Timeouts(connect_s=CONNECT_S, read_s=CONNECT_S * 6)
        tried = 0 if found is None else target.addresses.index(found.target.addresses[0]) + 1 if _same(found, target) else 0
        address = target.addresses[tried % len(target.addresses)]
        opened = _Open(
            pinned_client(target, address, timeouts), msgspec.structs.replace(target, addresses=(address,)), now_s + FRESH_S
        )
        self._open[origin] = opened
        return opened

    async def _drop(self, url: str) -> None:
        """Ask the next address next time.  The client is not closed: others may be in the middle of an answer."""
        if (found := self._open.get(_origin(url))) is not None:
            found.until_s = 0.0

    async def close(self) -> None:
        opened, self._open = list(self._open.values()), {}
        for one in opened:
            await one.client.close()


def _same(found: _Open, target: Target) -> bool:
    return found.until_s == 0.0 and found.target.addresses[0] in target.addresses


def _origin(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"
