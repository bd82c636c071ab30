"""The real application over an in-memory store and a clock that stands, asked in process: what the golden exchanges need."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from milepost.engine.kinds import Kinds
from milepost.engine.service import Service
from milepost.image import IMAGE, Image, encode_image
from milepost.job import Failed, Failure, Job, JobId, Progress, ProjectId, Succeeded, WorkerId
from milepost.server.app import create_app
from milepost.server.auth import digest_of
from milepost.settings import Settings
from milepost.store import Project, Resource, Token, User
from milepost.store.sqlite import SqliteStore

OWNER = "3c1e5f0d9a7b4c2d8e6f1a0b2c3d4e5f"
OTHER = "00000000000000000000000000000002"
AT_US = 1_772_600_767_123_456  # 2026-03-04T05:06:07.123456Z
KEEP_US = 172_800_000_000
HOST = "glance.example.test:9292"
SOURCE = "http://1.1.1.1/a.qcow2"  # a public address; nothing here connects to it
INPUT = {
    "import_from": SOURCE,
    "import_from_format": "qcow2",
    "image_properties": {"disk_format": "qcow2", "container_format": "bare"},
}


class ImportInput(msgspec.Struct):
    """What this file's import takes; the real one is in `milepost.work.images`."""

    import_from: str
    import_from_format: str
    image_properties: dict[str, Any]


class StandingClock:
    def __init__(self) -> None:
        self.at_us = AT_US

    def now_us(self) -> int:
        return self.at_us

    def monotonic_s(self) -> float:
        return self.at_us / 1e6

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(0)


class Silent:
    """A dispatch that tells nobody: no engine runs here."""

    def announce(self, queue: str) -> None: ...
    def reschedule(self) -> None: ...
    def announce_cancel(self) -> None: ...
    def announce_delivery(self) -> None: ...
    def announce_queues(self) -> None: ...


class Bytes:
    """Object storage in a dict."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def size_bytes(self, key: str) -> int | None:
        return len(self.kept[key]) if key in self.kept else None

    async def read(self, key: str, *, start: int = 0, length: int | None = None) -> Any:
        data = self.kept[key][start:] if length is None else self.kept[key][start : start + length]
        for offset in range(0, len(data), 3):
            yield data[offset : offset + 3]

    async def delete(self, key: str) -> bool:
        return self.kept.pop(key, None) is not None


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


class Server:
    """One server.  `admin`, `member` and `other` are tokens; `other` is an admin of nothing in another project."""

    def __init__(self, **settings: Any) -> None:
        self.clock = StandingClock()
        self.store = SqliteStore(":memory:")
        self.kinds = Kinds()

        @self.kinds.kind("import")
        async def import_image(job: Any, spec: ImportInput) -> dict[str, str]:
            raise NotImplementedError

        @self.kinds.kind("tidy")
        async def tidy(job: Any, spec: dict[str, int]) -> list[int]:
            raise NotImplementedError

        self.settings = Settings(
            **{"auth": "required", "data": "unused", "public_url": f"http://{HOST}", "egress_ports": "80,443", **settings}
        )
        service = Service(self.store, Silent(), self.kinds, self.clock, self.settings)  # type: ignore[arg-type]
        self.objects = Bytes()
        self.app = create_app(service, self.settings, self.clock, objects=self.objects)  # type: ignore[arg-type]

    async def open(self) -> Server:
        await self.store.open()
        for project, name in ((OWNER, "demo"), (OTHER, "other")):
            await self.store.add_project(Project(ProjectId(project), name, "default", "whsec_eA==", AT_US))
        for token, project, roles in (
            ("admin", OWNER, ("admin", "member")),
            ("member", OWNER, ("member",)),
            ("other", OTHER, ("member",)),
        ):
            user = {"admin": "a1b2c3"}.get(token, token)
            await self.store.add_user(User(user, token, "default", "x", AT_US))
            for role in roles:
                await self.store.set_grant(user, ProjectId(project), role)
            await self.store.add_token(
                Token(digest_of(token), user, ProjectId(project), roles, ("password",), token, AT_US, AT_US + 10**15)
            )
        return self

    async def ask(
        self, method: str, url: str, body: Any = b"", *, token: str | None = "admin", headers: dict[str, str] | None = None
    ) -> Answer:
        path, _, query = url.partition("?")
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        sent = {"host": HOST, **({"x-auth-token": token} if token else {}), **(headers or {})}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
            "server": ("127.0.0.1", 9292),
            "client": ("127.0.0.1", 1),
        }
        got: list[Any] = []
        inbox = [{"type": "http.request", "body": raw, "more_body": False}]

        async def receive() -> Any:
            return inbox.pop() if inbox else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            got.append(message)

        await self.app(scope, receive, send)
        answered = {name.decode().lower(): value.decode() for name, value in got[0]["headers"]}
        return Answer(got[0]["status"], answered, b"".join(message.get("body", b"") for message in got[1:]))

    async def create(self, **input: Any) -> str:
        """The id of a new import."""
        answer = await self.ask("POST", "/v2/tasks", {"type": "import", "input": {**INPUT, **input}})
        assert answer.status == 201, answer.text
        found: str = answer.json["id"]
        return found

    async def succeed(self, job_id: str, result: bytes) -> None:
        await self._finish(job_id, Succeeded(result))

    async def fail(self, job_id: str, message: str) -> None:
        await self._finish(job_id, Failed(Failure("x", message)))

    async def start(self, job_id: str, note: str = "") -> Any:
        worker = WorkerId("w")
        await self.store.renew_lease(worker, now_us=self.clock.at_us, lease_s=3600)
        claimed = await self.store.claim_jobs("default", worker=worker, now_us=self.clock.at_us, limit=100)
        (claim,) = [one.claim for one in claimed if one.job.id == job_id]
        if note:
            await self.store.report_progress(claim, Progress(note=note), now_us=self.clock.at_us)
        return claim

    async def _finish(self, job_id: str, outcome: Any) -> None:
        claim = await self.start(job_id)
        at_us = self.clock.at_us
        assert await self.store.finish_job(claim, outcome, now_us=at_us, expires_us=at_us + KEEP_US)

    async def job(self, job_id: str) -> Job:
        found = await self.store.get_job(JobId(job_id))
        assert isinstance(found, Job)
        return found

    async def put_image(self, image: Image, data: bytes | None = None) -> None:
        if data is not None:
            assert image.object_key is not None
            self.objects.kept[image.object_key] = data
        await self.store.put_resource(
            Resource(
                type=IMAGE,
                id=image.id,
                project=ProjectId(image.owner or OWNER),
                doc=encode_image(image),
                created_us=image.created_us,
                updated_us=image.updated_us,
                version=0,
            )
        )
