"""A proxy in front of one cloud: an SDK points at it, requests pass as they are, and no job id is lost.

Rules
1. Requests and answers pass unchanged, with the caller's own credentials; none of these is looked at, kept or logged.  The one
   exception: a signature that covers the host is made again for the cloud, where its key is here (see `resigning`).
2. A request that may make a job is noted, durably, before it is sent.  An answer that names a job is held until that job is
   recorded; only then the caller sees it.
3. So a crash at any moment leaves each of them recorded, or noted with an outcome that nobody knows: the cloud may have made a
   job whose id was on its way.  More is not possible from here.
4. A record that cannot be made does not keep the answer from its caller: what is done in the cloud is done.  A note that cannot
   be made keeps the request from being sent: nothing is done yet.

`Host` becomes the cloud's own, unless the caller signed it and its key is not here: then it must stay what was signed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import structlog
from pyreqwest.exceptions import ConnectError, ConnectTimeoutError, PyreqwestError

from milepost.egress import plain_client
from milepost.errors import Unauthenticated
from milepost.server.http import Receive, Scope, Send
from milepost.server.resigning import Given, Resigner
from milepost.wire.native import Problem, encode
from milepost.wire.submitted import Found, jobs_in_answer, may_submit

log = structlog.get_logger("milepost.proxy")

LOOK_BYTES_MAX = 1 << 20  # an answer that names a job is not longer
WHOLE_BYTES_MAX = 8 << 20  # a longer request is passed on while it comes
CONNECT_S, READ_S = 10.0, 300.0
HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"}
)
TRACKED = b"milepost-tracked"
TOKENS = ("x-client-token", "idempotency-key")  # a repeat with the same one makes no second job, so they are worth to be noted
NOT_SENT = (ConnectError, ConnectTimeoutError)
REFUSING = frozenset({401, 403, 404, 421})
KEYS_HINT = (
    "its signature covers the proxy's host: start the proxy with the SDK's key pair in HUAWEICLOUD_SDK_AK and _SK (for Qiniu "
    "QINIU_ACCESS_KEY and QINIU_SECRET_KEY), or use a token"
)


class Book(Protocol):
    """Where jobs are recorded, and what may become one is noted."""

    async def note(self, facts: dict[str, Any]) -> str:
        """It is on disk that this request is about to be sent; the note's name.  Errors: OSError."""
        ...

    async def record(self, note: str, handle: dict[str, Any]) -> str | None:
        """The request made this job, durably; the id that it is followed under, if it is already."""
        ...

    async def close(self, note: str, outcome: str) -> None:
        """The request made no further job."""
        ...

    async def doubt(self, note: str, why: str) -> None:
        """Nobody knows what became of the request."""
        ...


class Proxy:
    """The ASGI application."""

    def __init__(self, target: str, wire: str, book: Book, resigner: Resigner | None = None) -> None:
        self._target, self._wire, self._book = target.rstrip("/"), wire, book
        self._resigner = resigner or Resigner()
        self._host = urlsplit(self._target).netloc
        self._client = plain_client(CONNECT_S, READ_S).build()

    async def close(self) -> None:
        await self._client.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            await self._pass(_Exchange(scope, send), receive)

    async def _pass(self, exchange: _Exchange, receive: Receive) -> None:
        try:
            request = await self._read(exchange, receive)
            if may_submit(self._wire, exchange.method, exchange.path):
                exchange.note = await self._book.note(_facts(self._target, self._wire, request))
            async with self._ask(request, receive) as answer:
                await self._answer(exchange, answer)
        except Unauthenticated as error:
            await _refuse(exchange.send, 401, "unauthenticated", error.message)
        except _TooLarge as error:
            await _refuse(exchange.send, 413, "limit_exceeded", str(error))
        except PyreqwestError as error:
            log.warning("the cloud did not answer", target=self._host, error=type(error).__name__)
            if exchange.note is not None:
                if isinstance(error, NOT_SENT):
                    await self._book.close(exchange.note, "not sent")
                else:
                    await self._book.doubt(exchange.note, f"no answer: {type(error).__name__}")
            if exchange.started:
                raise  # the connection is cut, so nobody takes half an answer for a whole one
            await _refuse(exchange.send, 502, "unreachable", f"{self._host} did not answer: {type(error).__name__}")
        except _HungUp:
            if exchange.note is not None:
                await self._book.doubt(exchange.note, "the caller hung up while it was sent")
        except OSError as error:
            if exchange.note is not None or exchange.started:
                raise
            log.error("a request that may make a job cannot be noted, and is not sent", error=str(error))
            await _refuse(exchange.send, 503, "store_unavailable", f"the request was not sent: it cannot be noted ({error})")

    # --- passing on ------------------------------------------------------------------------------------------------

    async def _read(self, exchange: _Exchange, receive: Receive) -> _Asked:
        """The request to send; a long body is left where it is.  Errors: Unauthenticated, _TooLarge."""
        scope = exchange.scope
        path, query = (scope.get("raw_path") or scope["path"].encode()).partition(b"?")[0], scope["query_string"]
        url = self._target + path.decode("latin-1") + (f"?{query.decode('latin-1')}" if query else "")
        given = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        headers = {name: value for name, value in given.items() if name not in HOP}
        size = headers.get("content-length")
        long = size is not None and int(size) > WHOLE_BYTES_MAX
        body = None if long else b"".join([part async for part in _parts(receive)])
        if size is None and not body:
            headers.pop("content-length", None)
        access = self._resigner.covers_host(given)
        if access is None:
            headers["host"] = self._host
        if may_submit(self._wire, exchange.method, exchange.path) and "accept-encoding" not in _signed(given):
            headers["accept-encoding"] = "identity"  # what is packed cannot be looked into
        if self._resigner.has(access):
            if body is None:
                raise _TooLarge(f"a signed request with more than {WHOLE_BYTES_MAX} bytes cannot be signed again")
            came = Given(exchange.method, path, query, given, body)
            headers = self._resigner.resign(came, url, headers, now_us=time.time_ns() // 1000)
        elif access is not None:
            exchange.foreign = access
        return _Asked(exchange.method, url, headers, body)

    @asynccontextmanager
    async def _ask(self, asked: _Asked, receive: Receive) -> AsyncIterator[Any]:
        builder = self._client.request(asked.method, asked.url).headers(asked.headers)
        if asked.body is None:
            builder = builder.body_stream(_parts(receive))
        elif asked.body or "content-length" in asked.headers:
            builder = builder.body_bytes(asked.body)
        async with builder.streamed_read_buffer_limit(0).build_streamed() as answer:
            yield answer

    # --- the answer ------------------------------------------------------------------------------------------------

    async def _answer(self, exchange: _Exchange, answer: Any) -> None:
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in answer.headers.items()
            if name.lower() not in HOP
        ]
        body, whole = b"", False
        if exchange.note is not None:
            body, whole = await _read_some(answer)
            packed = any(name == b"content-encoding" for name, _ in headers)
            headers += await self._kept(exchange, answer.status, body if whole and not packed else None)
        if exchange.foreign is not None and answer.status in REFUSING:
            log.warning("the cloud refused a request", status=answer.status, access_key=exchange.foreign, hint=KEYS_HINT)
        await exchange.send({"type": "http.response.start", "status": answer.status, "headers": headers})
        exchange.started = True
        await exchange.send({"type": "http.response.body", "body": body, "more_body": not whole})
        while not whole:
            chunk = await answer.body_reader.read_chunk()
            whole = chunk is None
            await exchange.send({"type": "http.response.body", "body": bytes(chunk or b""), "more_body": not whole})

    async def _kept(self, exchange: _Exchange, status: int, body: bytes | None) -> list[tuple[bytes, bytes]]:
        """Every job of the answer is recorded; the headers that say so.  `body` is None when it cannot be looked into."""
        note, told, lost = exchange.note, [], False
        assert note is not None
        for found in jobs_in_answer(self._wire, exchange.method, exchange.path, status, body or b""):
            try:
                tracked = await self._book.record(note, self._handle(found, exchange.header(b"x-project-id")))
            except Exception:
                log.exception("a job could not be recorded", job_id=found.id)
                lost = True
                continue
            told.append((TRACKED, (tracked or "later").encode("latin-1")))
        if told or lost:
            return told
        try:
            if status >= 500:
                await self._book.doubt(note, f"answered {status}")
            elif 200 <= status < 300 and body is None:
                await self._book.doubt(note, f"answered {status}, which cannot be looked into")
            else:
                await self._book.close(note, f"answered {status}")
        except OSError:
            log.exception("what became of a request cannot be noted", note=note)
        return told

    def _handle(self, found: Found, project: str | None) -> dict[str, Any]:
        known = {"project": found.project or project, "kind": found.kind}
        handle = {"milepost": 1, "wire": self._wire, "endpoint": self._target, "id": found.id}
        return handle | {name: value for name, value in known.items() if value is not None}


class _HungUp(Exception):
    """The caller is gone before all of its request was here."""


class _TooLarge(Exception):
    """A body that would have to be read whole."""


class _Asked(NamedTuple):
    """The request as it is sent; `body` is None where it is passed on while it comes."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes | None


class _Exchange:
    """One request on its way."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope, self.send = scope, send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.note: str | None = None
        self.foreign: str | None = None  # the access key of a signature for this host that cannot be made again
        self.started = False

    def header(self, name: bytes) -> str | None:
        found = {one: value for one, value in self.scope["headers"] if one == name}.get(name)
        return found.decode("latin-1") if found else None


def _facts(target: str, wire: str, asked: _Asked) -> dict[str, Any]:
    """What helps to find out later what became of a request; no secret, no query, no body."""
    lower = {name.lower(): value for name, value in asked.headers.items()}
    facts: dict[str, Any] = {"endpoint": target, "wire": wire, "method": asked.method, "path": urlsplit(asked.url).path}
    if asked.body is not None:
        facts["body_sha256"] = hashlib.sha256(asked.body).hexdigest()
    token = next((lower[name] for name in TOKENS if name in lower), None)
    return facts if token is None else facts | {"token": token}


def _signed(headers: Mapping[str, str]) -> frozenset[str]:
    """The headers that a signature covers."""
    named = headers.get("authorization", "").partition("SignedHeaders=")[2].partition(",")[0]
    return frozenset(named.lower().split(";"))


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _HungUp
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body", False):
            return


async def _read_some(answer: Any) -> tuple[bytes, bool]:
    """The beginning of the body, and whether that is all of it."""
    body = bytearray()
    while len(body) <= LOOK_BYTES_MAX:
        chunk = await answer.body_reader.read_chunk()
        if chunk is None:
            return bytes(body), True
        body += memoryview(chunk)
    return bytes(body), False


async def _refuse(send: Send, status: int, code: str, detail: str) -> None:
    title = {401: "Unauthorized", 413: "Content Too Large", 502: "Bad Gateway", 503: "Service Unavailable"}[status]
    body = encode(Problem(title=title, status=status, detail=detail, code=code))
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
