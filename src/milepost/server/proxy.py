"""A proxy in front of one cloud: an SDK points at it, requests pass as they are, and no job id is lost.

Rules
1. Requests and answers pass unchanged, with the caller's own credentials; none of these is looked at, kept or logged.
2. An answer that names a job is held until that job is recorded; only then the caller sees it.
3. A record that cannot be made does not keep the answer from its caller: what is done in the cloud is done.

`Host` becomes the cloud's own, unless the caller signed it: then it must stay what was signed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import structlog
from pyreqwest.client import ClientBuilder
from pyreqwest.exceptions import PyreqwestError

from milepost.server.http import Receive, Scope, Send
from milepost.wire.native import Problem, encode
from milepost.wire.submitted import Found, jobs_in_answer

log = structlog.get_logger("milepost.proxy")

LOOK_BYTES_MAX = 1 << 20  # an answer that names a job is not longer
WHOLE_BYTES_MAX = 8 << 20  # a longer request is passed on while it comes
CONNECT_S, READ_S = 10.0, 300.0
HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"}
)
TRACKED = b"milepost-tracked"

Record = Callable[[dict[str, Any]], Awaitable[str | None]]


class Proxy:
    """The ASGI application.  `record` makes a handle durable and returns the id that it is followed under, if it is already."""

    def __init__(self, target: str, wire: str, record: Record) -> None:
        self._target, self._wire, self._record = target.rstrip("/"), wire, record
        self._host = urlsplit(self._target).netloc
        self._client = (
            ClientBuilder()
            .no_proxy()
            .follow_redirects(False)
            .referer(False)
            .default_cookie_store(False)
            .gzip(False)
            .brotli(False)
            .zstd(False)
            .deflate(False)
            .connect_timeout(timedelta(seconds=CONNECT_S))
            .read_timeout(timedelta(seconds=READ_S))
            .build()
        )

    async def close(self) -> None:
        await self._client.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            await self._pass(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async with self._ask(scope, receive) as answer:
                headers = [
                    (name.lower().encode("latin-1"), value.encode("latin-1"))
                    for name, value in answer.headers.items()
                    if name.lower() not in HOP
                ]
                if self._may_name_a_job(scope["method"], answer.status, dict(headers)):
                    body, whole = await _read_some(answer)
                    if whole:
                        headers += await self._kept(scope, answer.status, body)
                else:
                    body, whole = b"", False
                await send({"type": "http.response.start", "status": answer.status, "headers": headers})
                started = True
                await send({"type": "http.response.body", "body": body, "more_body": not whole})
                while not whole:
                    chunk = await answer.body_reader.read_chunk()
                    whole = chunk is None
                    await send({"type": "http.response.body", "body": bytes(chunk or b""), "more_body": not whole})
        except PyreqwestError as error:
            log.warning("the cloud did not answer", target=self._host, error=type(error).__name__)
            if started:
                raise  # the connection is cut, so nobody takes half an answer for a whole one
            await _refuse(send, f"{self._host} did not answer: {type(error).__name__}")

    # --- passing on ------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _ask(self, scope: Scope, receive: Receive) -> AsyncIterator[Any]:
        path = scope.get("raw_path") or scope["path"].encode()
        query = scope["query_string"]
        url = self._target + path.partition(b"?")[0].decode("latin-1") + (f"?{query.decode('latin-1')}" if query else "")
        given = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        headers = {name: value for name, value in given if name not in HOP}
        if not _signs_host(headers):
            headers["host"] = self._host
        builder = self._client.request(scope["method"], url)
        size = headers.get("content-length")
        if size is not None and int(size) > WHOLE_BYTES_MAX:
            builder = builder.headers(headers).body_stream(_parts(receive))
        else:
            body = b"".join([part async for part in _parts(receive)])
            if size is None and not body:
                headers.pop("content-length", None)
            builder = builder.headers(headers)
            if body or size is not None:
                builder = builder.body_bytes(body)
        async with builder.streamed_read_buffer_limit(0).build_streamed() as answer:
            yield answer

    def _may_name_a_job(self, method: str, status: int, headers: Mapping[bytes, bytes]) -> bool:
        if method in ("GET", "HEAD", "OPTIONS") or not 200 <= status < 300 or b"content-encoding" in headers:
            return False
        size = headers.get(b"content-length", b"0")
        return b"json" in headers.get(b"content-type", b"json").lower() and size.isdigit() and int(size) <= LOOK_BYTES_MAX

    async def _kept(self, scope: Scope, status: int, body: bytes) -> list[tuple[bytes, bytes]]:
        """Every job of the answer is recorded; the headers that say so."""
        told = []
        asked = {name: value for name, value in scope["headers"] if name == b"x-project-id"}.get(b"x-project-id")
        for found in jobs_in_answer(self._wire, scope["method"], scope["path"], status, body):
            handle = self._handle(found, asked.decode("latin-1") if asked else None)
            try:
                tracked = await self._record(handle)
            except Exception:
                log.exception("a job could not be recorded", job_id=found.id)
                continue
            told.append((TRACKED, (tracked or "later").encode("latin-1")))
        return told

    def _handle(self, found: Found, project: str | None) -> dict[str, Any]:
        known = {"project": found.project or project, "kind": found.kind}
        handle = {"milepost": 1, "wire": self._wire, "endpoint": self._target, "id": found.id}
        return handle | {name: value for name, value in known.items() if value is not None}


def _signs_host(headers: Mapping[str, str]) -> bool:
    """Whether the caller's signature covers `Host`.  Source: huaweicloudsdkcore/signer, qiniu/python-sdk qiniu/auth.py."""
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    if scheme == "Qiniu":
        return True
    return "SignedHeaders=" in rest and "host" in rest.partition("SignedHeaders=")[2].partition(",")[0].split(";")


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the caller hung up")
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


async def _refuse(send: Send, detail: str) -> None:
    body = encode(Problem(title="Bad Gateway", status=502, detail=detail, code="unreachable"))
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 502, "headers": headers})
    await send({"type": "http.response.body", "body": body})
