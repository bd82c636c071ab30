"""The application over a store in memory, asked without a socket: requests are ASGI messages, time is the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, unquote

import msgspec
import pytest

from milepost.dispatch.embedded import EmbeddedDispatch
from milepost.engine.kinds import Kinds
from milepost.engine.service import Service
from milepost.job import Claimed, Failed, Failure, JobId, State, Submission, Succeeded, Suspended, WorkerId
from milepost.server.app import App, create_app
from milepost.settings import Settings
from milepost.store.sqlite import SqliteStore

DEADLINE_S = 60.0
WORKER = WorkerId("worker")
PORTS = itertools.count(50_000)  # every request comes over a connection of its own


class StillClock:
    """A wall clock that stands until the test moves it; the monotonic one is real, because sockets and waits are."""

    def __init__(self) -> None:
        self.wall_us = 1_790_000_000_000_000
        self.extra_s = 0.0

    def now_us(self) -> int:
        self.wall_us += 1
        return self.wall_us

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time() + self.extra_s

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)

    def advance(self, delay_s: float) -> None:
        self.wall_us += int(delay_s * 1e6)
        self.extra_s += delay_s


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Exchange:
    """One request under way: what it sent so far, and a way to hang up."""

    def __init__(self, app: App, scope: dict[str, Any], body: bytes | list[bytes]) -> None:
        parts = [body] if isinstance(body, bytes) else body
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for index, part in enumerate(parts):
            self._incoming.put_nowait({"type": "http.request", "body": part, "more_body": index + 1 < len(parts)})
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.ended = False
        self._news = asyncio.Event()
        self.task = asyncio.ensure_future(app(scope, self._incoming.get, self._send))

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            assert self.status == 0, "an answer has one start"
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            assert not self.ended, "an answer has one end"
            self.body += message.get("body", b"")
            self.ended = not message.get("more_body", False)
        self._news.set()

    def hang_up(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def until(self, text: bytes) -> bytes:
        """The body once it contains `text`."""
        async with asyncio.timeout(DEADLINE_S):
            while text not in self.body:
                assert not self.task.done(), f"ended without {text!r}: {self.body!r}"
                self._news.clear()
                await self._news.wait()
        return self.body

    async def end(self) -> Answer:
        async with asyncio.timeout(DEADLINE_S):
            await self.task
        assert self.ended or self.status == 0
        return Answer(self.status, self.headers, self.body)


class Web:
    """Asks the application."""

    def __init__(self, app: App, headers: dict[str, str] | None = None) -> None:
        self.app, self.headers = app, headers or {}

    def begin(
        self,
        method: str,
        url: str,
        body: Any = b"",
        headers: dict[str, str] | None = None,
        *,
        raw: bytes | list[bytes] | None = None,
    ) -> Exchange:
        path, _, query = url.partition("?")
        sent = {"host": "127.0.0.1:8080", **self.headers, **(headers or {})}
        if raw is None:
            raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
            if not isinstance(body, bytes):
                sent.setdefault("content-type", "application/json")
        scope = {
            "type": "http",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": quote(path).encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in sent.items()],
            "server": ("127.0.0.1", 8080),
            "client": ("127.0.0.1", next(PORTS)),
        }
        return Exchange(self.app, scope, raw)

    async def ask(self, method: str, url: str, body: Any = b"", headers: dict[str, str] | None = None, **more: Any) -> Answer:
        return await self.begin(method, url, body, headers, **more).end()

    async def get(self, url: str, headers: dict[str, str] | None = None) -> Answer:
        return await self.ask("GET", url, headers=headers)

    async def post(self, url: str, body: Any = b"", headers: dict[str, str] | None = None) -> Answer:
        return await self.ask("POST", url, body, headers)

    def stream(self, url: str, headers: dict[str, str] | None = None) -> Exchange:
        return self.begin("GET", url, headers={"accept": "text/event-stream", **(headers or {})})


class Spec(msgspec.Struct):
    text: str = ""
    size: int = 0


async def echo(job: Any, spec: Spec) -> Spec:
    """Returns what it got."""
    return spec


class House:
    """The application with its parts, and the worker's side of it."""

    def __init__(self, store: SqliteStore, clock: StillClock, settings: Settings) -> None:
        kinds = Kinds()
        kinds.kind("echo", queue="echoes", attempts=2)(echo)
        kinds.kind("plain")(echo)
        self.store, self.clock, self.settings = store, clock, settings
        self.service = Service(store, EmbeddedDispatch(), kinds, clock, settings)
        self.app = create_app(self.service, settings, clock)
        self.identities = self.app.state.identities
        self.web = Web(self.app)

    def web_as(self, token: str) -> Web:
        return Web(self.app, {"authorization": f"Bearer {token}"})

    async def claim(self, queue: str = "echoes") -> Claimed:
        await self.store.renew_lease(WORKER, now_us=self.clock.now_us(), lease_s=1e6)
        (claimed,) = await self.store.claim_jobs(queue, worker=WORKER, now_us=self.clock.now_us(), limit=1)
        return claimed

    async def finish(self, claimed: Claimed, *, ok: bool = True, result: bytes = b'{"text":"done"}') -> None:
        outcome = Succeeded(result) if ok else Failed(Failure("broken", "it broke"))
        now_us = self.clock.now_us()
        assert await self.store.finish_job(claimed.claim, outcome, now_us=now_us, expires_us=now_us + 60_000_000)

    async def suspend(self, claimed: Claimed, count: int) -> None:
        subs = [Submission(kind="plain", project=claimed.job.project) for _ in range(count)]
        assert await self.store.finish_job(claimed.claim, Suspended(subs), now_us=self.clock.now_us())

    async def state_of(self, job_id: str) -> State:
        job = await self.service.get(JobId(job_id))
        return job.state


@contextlib.asynccontextmanager
async def open_house(**given: Any) -> AsyncIterator[House]:
    store = SqliteStore(":memory:")
    await store.open()
    try:
        house = House(store, StillClock(), Settings(**given))
        yield house
        house.app.close()
    finally:
        await store.close()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with open_house() as opened:
        yield opened


@pytest.fixture
def web(house: House) -> Web:
    return house.web


class Crowd(msgspec.Struct):
    """A server with auth: an admin and a member of `demo`, and a member of `other`."""

    house: House
    admin: str
    member: str
    stranger: str
    demo: str
    other: str


@pytest.fixture
async def crowd(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Crowd]:
    import argon2

    from milepost.server import identity

    # The real hash with its smallest cost: what is tested is what happens around it.
    monkeypatch.setattr(identity, "SLOW", argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    async with open_house(auth="required") as house:
        make = house.identities
        demo, other = await make.create_project("demo"), await make.create_project("other")
        for user, project, role in (("ann", "demo", "admin"), ("mia", "demo", "member"), ("sam", "other", "member")):
            await make.create_user(user, f"{user}-password")
            await make.grant(user, project, role)
        keys = [
            (await make.create_api_key(user, project, "test")).secret
            for user, project in (("ann", "demo"), ("mia", "demo"), ("sam", "other"))
        ]
        yield Crowd(house, *keys, demo.id, other.id)
