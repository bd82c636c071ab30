"""Whatever a client sends, the native API answers it: never with an error of ours, and a refusal stores nothing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "unit" / "server"))
from server_house import House, open_house

TEXT = st.text(max_size=20)
ODD = st.sampled_from(
    [None, True, -1, 0, 2**63, 2**64, 1e300, -1e300, 1e-300, "", "x" * 300, "\x00", "é😀", [], {}, [[]], {"": None}]
)
VALUE = ODD | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT | st.dictionaries(TEXT, TEXT, max_size=2)
FIELDS = [
    "input",
    "queue",
    "priority",
    "labels",
    "held",
    "run_at",
    "attempts_max",
    "timeout_s",
    "deadline_s",
    "callback",
    "idempotency_key",
    "odd",
]
INSTANTS = st.datetimes().map(lambda at: at.isoformat()) | st.sampled_from(
    ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999+00:00", "2026-02-30"]
)
REQUESTS = st.fixed_dictionaries(
    {"kind": st.sampled_from(["echo", "plain"]) | VALUE},
    optional={name: INSTANTS | VALUE if name == "run_at" else VALUE for name in FIELDS},
)
PARAMETERS = [
    "state",
    "kind",
    "queue",
    "label",
    "order",
    "view",
    "limit",
    "after",
    "all_projects",
    "parent",
    "id",
    "tree",
    "x",
]
ARGUMENTS = ["ready", "1", "0", "-1", "asc", "full", "a:b", ":", "", "%00", "%FF", "a" * 300, "9" * 30]
QUERIES = st.lists(st.tuples(st.sampled_from(PARAMETERS), st.sampled_from(ARGUMENTS) | TEXT), max_size=3)
NAMES = [
    "if-none-match",
    "last-event-id",
    "x-project-id",
    "x-request-id",
    "authorization",
    "host",
    "origin",
    "accept",
    "idempotency-key",
]
HEADERS = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40) | st.sampled_from(
    ["wait=0", "*", '"x', "[", "Bearer", "9" * 40]
)
PATIENT = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Desk:
    def __init__(self, runner: asyncio.Runner, house: House) -> None:
        self._runner, self.house = runner, house

    def ask(self, *args: Any, **more: Any) -> Any:
        return self._runner.run(self.house.web.ask(*args, **more))

    def count(self) -> int:
        return len(self.ask("GET", "/jobs?limit=1000&order=desc").json["jobs"])


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    with asyncio.Runner() as runner:
        opened = open_house()
        yield Desk(runner, runner.run(opened.__aenter__()))
        runner.run(opened.__aexit__(None, None, None))


@PATIENT
@given(REQUESTS | st.lists(REQUESTS, max_size=3) | VALUE)
def test_any_submit_is_accepted_whole_or_refused_whole(desk: Desk, body: Any) -> None:
    before = desk.count()
    answer = desk.ask("POST", "/jobs", raw=msgspec.json.encode(body), headers={"content-type": "application/json"})
    assert answer.status in (200, 202, 400, 409, 413), (answer, body)
    if answer.status == 202 and before < 900:
        asked = len(body) if isinstance(body, list) else 1
        assert before < desk.count() <= before + asked
    elif answer.status >= 400:
        problem = answer.json
        assert problem["status"] == answer.status
        assert problem["detail"]
        assert desk.count() == before


@PATIENT
@given(st.binary(max_size=60), st.sampled_from(["/jobs", "/queues/x", "/jobs/x/cancel", "/v3/auth/tokens", "/v2/tasks"]))
def test_any_bytes_are_answered(desk: Desk, body: bytes, url: str) -> None:
    for method in ("POST", "PUT"):
        assert desk.ask(method, url, raw=body, headers={"content-type": "application/json"}).status < 500


@PATIENT
@given(st.sampled_from(["/jobs", "/events", "/jobs/x", "/kinds", "/queues", "/v3/projects", "/v2/tasks", "/v2/images"]), QUERIES)
def test_any_query_is_answered(desk: Desk, path: str, query: list[tuple[str, str]]) -> None:
    text = "&".join(f"{name}={value}" for name, value in query).encode("utf-8", "replace").decode("latin-1")
    exchange = desk.ask("GET", f"{path}?{''.join(one for one in text if 32 < ord(one) < 127)}")
    assert exchange.status < 500


@PATIENT
@given(st.dictionaries(st.sampled_from(NAMES), HEADERS, max_size=4))
def test_any_header_is_answered(desk: Desk, headers: dict[str, str]) -> None:
    headers["prefer"] = "wait=0"
    for url in ("/jobs", "/jobs/x", "/v3", "/v2/images"):
        assert desk.ask("GET", url, headers=headers).status < 500
    submit = {**headers, "content-type": "application/json"}
    assert desk.ask("POST", "/jobs", raw=b'{"kind":"plain","labels":{"from":"headers"},"held":true}', headers=submit).status < 500
