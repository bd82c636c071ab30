"""The application with object storage in a folder, asked as Qiniu's SDKs do: bodies come in pieces of any size."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
from server_house import Answer, Exchange, StillClock

from milepost.dispatch.embedded import EmbeddedDispatch
from milepost.engine.kinds import Kinds
from milepost.engine.service import Service
from milepost.server.app import create_app
from milepost.settings import Settings
from milepost.store.loose import LOOSE
from milepost.store.objects import ObjectStore, open_objects
from milepost.store.sqlite import SqliteStore
from milepost.wire import Request
from milepost.wire.signing import qiniu as signing

HOST, BUCKET = "127.0.0.1:8080", "media"


class Pfop(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """As the kind that ships has it."""

    bucket: str
    key: str
    fops: list[str]
    notify_url: str | None
    force: bool
    idle: bool
    pipeline: str
    workflow_id: str | None
    task_from: str | None


async def pfop(job: Any, spec: Pfop) -> None:
    """Not run here: what is tested is that it is submitted."""


class Kodo:
    """A server, and the key that signs."""

    def __init__(self, store: SqliteStore, objects: ObjectStore, settings: Settings, folder: Path) -> None:
        self.store, self.objects, self.settings, self.folder, self.clock = store, objects, settings, folder, StillClock()
        kinds = Kinds()
        kinds.kind("pfop", queue="media")(pfop)
        self.service = Service(store, EmbeddedDispatch(), kinds, self.clock, settings)
        self.app = create_app(self.service, settings, self.clock, objects=objects)
        self.state = self.app.state
        self.key = signing.Key("any", "thing")

    async def new_key(self, project: str) -> signing.Key:
        """A member's key of a new project."""
        identities = self.state.identities
        found = await identities.create_project(project)
        await identities.create_user(project, f"{project}-password")
        await identities.grant(project, found.id, "member")
        key = await identities.create_access_key(project, found.id)
        return signing.Key(key.id, key.secret)

    async def ask(
        self,
        method: str,
        target: str,
        body: bytes | list[bytes] = b"",
        headers: dict[str, str] | None = None,
        *,
        host: str = HOST,
        hang_up: bool = False,
    ) -> Answer:
        """The request as it is written here: unsigned, and the target already escaped."""
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "scheme": "http",
            "http_version": "1.1",
            "path": unquote(path),
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in {"Host": host, **(headers or {})}.items()],
            "server": ("127.0.0.1", 8080),
            "client": ("127.0.0.1", 50000),
        }
        exchange = Exchange(self.app, scope, body)
        if hang_up:
            exchange.hang_up()
        answer = await exchange.end()
        assert len(answer.headers["x-reqid"]) == 16
        return answer

    async def signed(
        self, method: str, target: str, body: bytes = b"", *, key: signing.Key | None = None, form: bool = True
    ) -> Answer:
        """By the Qiniu scheme."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
        request = Request(method, f"http://{HOST}{target}", headers, body)
        signed = signing.sign(request, key or self.key, at_us=self.clock.now_us())
        return await self.ask(method, target, body, signed.headers)

    async def form(self, fields: dict[str, str], data: bytes, *, pieces: int = 1, **part: str) -> Answer:
        body, content_type = make_form(fields, data, **part)
        step = max(1, -(-len(body) // pieces))
        parts = [body[at : at + step] for at in range(0, len(body), step)]
        return await self.ask("POST", "/", parts, {"Content-Type": content_type})

    async def put(self, key: str, data: bytes = b"hello", *, signer: signing.Key | None = None, **part: str) -> Answer:
        """An object of the bucket, by a form."""
        answer = await self.form({"token": self.token(key, signer=signer), "key": key}, data, **part)
        assert answer.status == 200, answer.body
        return answer

    def token(self, key: str | None = None, *, signer: signing.Key | None = None, bucket: str = BUCKET, **policy: Any) -> str:
        scope = bucket if key is None else f"{bucket}:{key}"
        asked = {"scope": scope, "deadline": self.clock.wall_us // 1_000_000 + 3600, **policy}
        return signing.upload_token(signer or self.key, msgspec.json.encode(asked))

    async def make_bucket(self, name: str = BUCKET, *, key: signing.Key | None = None) -> None:
        answer = await self.signed("POST", f"/mkbucketv3/{name}/region/z0", key=key)
        assert answer.status == 200, answer.body

    def files(self) -> list[Path]:
        """Every file of object storage, unfinished ones too."""
        return sorted(path for path in (self.folder / "objects").rglob("*") if path.is_file())

    async def loose(self) -> list[str]:
        return [one.id for one in await self.store.list_resources(LOOSE)]


def make_form(
    fields: dict[str, str], data: bytes, *, fname: str = "f.bin", mime_type: str = "text/plain", boundary: str = "XXmilepostXX"
) -> tuple[bytes, str]:
    """A form as the SDK builds it: the file comes last."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()
    ]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{fname}"\r\nContent-Type: {mime_type}\r\n\r\n'
    body = "".join([*parts, head]).encode() + data + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


@contextlib.asynccontextmanager
async def open_kodo(folder: Path, **given: Any) -> AsyncIterator[Kodo]:
    """A server over a store and a folder that outlive it: open it again, and it is a restart."""
    store = SqliteStore(folder / "milepost.db")
    await store.open()
    try:
        kodo = Kodo(store, open_objects(None, folder), Settings(data=str(folder), **given), folder)
        yield kodo
        kodo.app.close()
    finally:
        await store.close()
