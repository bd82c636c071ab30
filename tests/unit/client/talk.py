"""A client that talks with a server made of a function, and what such a server says."""

from __future__ import annotations

from typing import Any

import msgspec

from milepost.client.budget import Budgets
from milepost.client.cadence import Cadence
from milepost.client.dialects import dialect
from milepost.client.places import Places
from milepost.client.session import Session
from milepost.errors import Unreachable
from milepost.job import Progress, State
from milepost.testing.virtual import Server, Stream, VirtualDriver
from milepost.wire import Response
from milepost.wire import native as wire

URL = "http://jobs.example.test"
ID = "0197a000-0000-7000-8000-000000000001"


class Talk(VirtualDriver):
    """A client's session with `server`, 1,000 s after the clock began."""

    def __init__(self, server: Server, *, wire: str = "native", stream: Stream | None = None, **options: Any) -> None:
        super().__init__(server, stream=stream)
        self.clock.advance(1000.0)
        options.setdefault("cadence", Cadence(jitter=0.0))
        options.setdefault("endpoint", URL)
        options.setdefault("budgets", Budgets())
        options.setdefault("places", Places())
        self.session = Session(dialect(wire), options.pop("endpoint"), clock=self.clock, random=lambda: 0.5, **options)

    def came(self) -> dict[str, float]:
        """When each job was emitted last, seconds from the beginning."""
        return {one.id: at_s - 1000.0 for at_s, one in zip(self.emitted_s, self.emitted, strict=True)}

    @property
    def paths(self) -> list[str]:
        return [request.url.removeprefix(URL) for _, request in self.asked]


def native_body(state: str = "running", id: str = ID, **fields: Any) -> bytes:
    """A job as the native API shows it."""
    body = {
        "id": id,
        "kind": "echo",
        "state": state,
        "project": "default",
        "queue": "default",
        "priority": 5,
        "labels": {},
        "input": {},
        "result": None,
        "progress": Progress(),
        "attempt": 1,
        "attempts_max": 1,
        "sub_jobs": {"total": 0, "by_state": {}},
        "created_at": "2026-03-04T05:06:07.000000Z",
        "updated_at": "2026-03-04T05:06:07.000000Z",
        "run_at": "2026-03-04T05:06:07.000000Z",
        **fields,
    }
    return msgspec.json.encode(body)


def job(
    state: str = "running", id: str = ID, *, status: int = 200, headers: dict[str, str] | None = None, **fields: Any
) -> Response:
    etag = {"etag": f'"{id}-{state}"'}
    return Response(status, {**etag, **(headers or {})}, native_body(state, id, **fields))


def problem(status: int, code: str, detail: str = "no", headers: dict[str, str] | None = None, **fields: Any) -> Response:
    body = wire.Problem(title="", status=status, detail=detail, code=code, **fields)
    return Response(status, {"x-request-id": "req-1", **(headers or {})}, msgspec.json.encode(body))


def task_body(status: str = "processing", id: str = ID, **fields: Any) -> bytes:
    return msgspec.json.encode(
        {
            "id": id,
            "input": {},
            "type": "import",
            "status": status,
            "owner": "p",
            "message": "",
            "result": None,
            "created_at": "2026-03-04T05:06:07Z",
            "updated_at": "2026-03-04T05:06:07Z",
            "self": f"/v2/tasks/{id}",
            "schema": "/v2/schemas/task",
            **fields,
        }
    )


def task(status: str = "processing", id: str = ID, *, http: int = 200, **fields: Any) -> Response:
    return Response(http, {"content-type": "application/json"}, task_body(status, id, **fields))


def lost(*, sent: bool = True) -> Unreachable:
    return Unreachable("no answer from jobs.example.test: connection reset", endpoint=URL, sent=sent)


def script(*answers: Any) -> Server:
    """Answers in turn; the last one for ever."""
    left = list(answers)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]


SUCCEEDED = State.SUCCEEDED
