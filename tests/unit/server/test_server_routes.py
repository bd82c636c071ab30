"""Kinds, queues, deliveries, health, metrics, and the document that describes the API."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_house import House, Web
from test_server_jobs import submit

from milepost import console
from milepost.engine.stats import EngineStats
from milepost.server import metrics, openapi
from milepost.server.native import ROUTES
from milepost.store import StoreStats


async def test_kinds_are_listed_with_their_schemas(web: Web) -> None:
    echo, plain = (await web.get("/kinds")).json["kinds"]
    assert (echo["name"], echo["queue"], echo["attempts"], plain["name"]) == ("echo", "echoes", 2, "plain")
    assert echo["description"] == "Returns what it got."
    assert echo["input_schema"]["$defs"]["Spec"]["properties"]["size"]["type"] == "integer"


async def test_a_queue_is_set_paused_and_resumed_while_running(house: House, web: Web) -> None:
    put = await web.ask("PUT", "/queues/echoes", {"limit": 3})
    paused = await web.post("/queues/echoes/pause")
    resumed = await web.post("/queues/echoes/resume")
    whole = await web.ask("PUT", "/queues/echoes", {"paused": True})
    assert [one.json for one in (put, paused, resumed, whole)] == [
        {"name": "echoes", "limit": 3, "paused": False, "jobs": None},
        {"name": "echoes", "limit": 3, "paused": True, "jobs": None},
        {"name": "echoes", "limit": 3, "paused": False, "jobs": None},
        {"name": "echoes", "limit": None, "paused": True, "jobs": None},
    ]
    (queue,) = await house.store.list_queues()
    assert (queue.name, queue.limit, queue.paused) == ("echoes", None, True)


@pytest.mark.parametrize("body", [{"limit": -1}, {"limit": "x"}, {"speed": 1}, []])
async def test_a_wrong_queue_setting_is_400(web: Web, body: Any) -> None:
    assert (await web.ask("PUT", "/queues/x", body)).status == 400


async def test_queue_depths_tell_what_jobs_wait_for(house: House, web: Web) -> None:
    for fields in ({}, {}, {"held": True}, {"run_at": "2099-01-01T00:00:00Z"}):
        await submit(web, **fields)
    await house.claim()
    unused, queue = (await web.get("/queues")).json["queues"]
    assert (unused["name"], unused["jobs"]["ready"]) == ("default", 0)  # a kind's queue is there before its first job
    counts = {name: queue["jobs"][name] for name in ("held", "ready", "scheduled", "running", "waiting")}
    assert counts == {"held": 1, "ready": 1, "scheduled": 1, "running": 1, "waiting": 0}


async def test_deliveries_are_shown_and_sent_again(house: House, web: Web) -> None:
    job = await submit(web, callback={"url": "https://hook.example/x"})
    await house.finish(await house.claim())
    (delivery,) = (await web.get(f"/jobs/{job['id']}/deliveries")).json["deliveries"]
    assert (delivery["state"], delivery["url"], delivery["event"]) == ("pending", "https://hook.example/x", "succeeded")

    now_us = house.clock.now_us()
    (claimed,) = await house.store.claim_deliveries(now_us=now_us, lease_s=30, limit=5)
    await house.store.finish_delivery(claimed, state="given_up", next_us=now_us, status=500, error="no", now_us=now_us)
    (given_up,) = (await web.get(f"/jobs/{job['id']}/deliveries")).json["deliveries"]
    assert (given_up["state"], given_up["last_status"], given_up["next_at"]) == ("given_up", 500, None)
    again = await web.post(f"/deliveries/{delivery['id']}/redeliver")
    assert (again.status, again.json["state"], again.json["id"]) == (202, "pending", delivery["id"])
    assert (await web.post("/deliveries/nothing/redeliver")).status == 404
    assert (await web.post(f"/deliveries/{delivery['id']}/redeliver", headers={"x-project-id": "other"})).status == 404


# --- health --------------------------------------------------------------------------------------------------------


class Engine:
    running = True

    def __init__(self) -> None:
        self.stats = EngineStats()


async def test_ready_means_that_the_store_writes_and_the_engine_runs(
    house: House, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    from milepost.errors import StoreUnavailable

    assert (await web.get("/healthz")).json == {"status": "ok"}
    early = await web.get("/readyz")
    house.app.state.engine = engine = Engine()
    ready = await web.get("/readyz")
    engine.running = False

    async def away() -> None:
        raise StoreUnavailable("secret path")

    monkeypatch.setattr(house.store, "ping", away)
    both = await web.get("/readyz")
    assert (early.status, early.json["reasons"]) == (503, ["the engine has not started"])
    assert (ready.status, ready.json) == (200, {"status": "ready"})
    assert both.json["reasons"] == ["the store does not take writes: store_unavailable", "the engine is stopping"]
    assert (await web.get("/healthz")).status == 200


# --- metrics -------------------------------------------------------------------------------------------------------


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def test_metrics_count_what_happened(house: House, web: Web) -> None:
    house.app.state.engine = engine = Engine()
    engine.stats.attempts["echo"] += 2
    engine.stats.outcomes["echo", "succeeded"] += 1
    engine.stats.rescued = 4
    for took_s in (0.0004, 0.2, 0.25, 40.0, 100_000.0):
        engine.stats.ran["echo"].add(took_s)
    engine.stats.deliveries["delivered"] += 3
    job = await submit(web)
    await web.get(f"/jobs/{job['id']}")
    await web.get("/jobs/x")
    house.clock.advance(10)
    answer = await web.get("/metrics")
    seen = samples(answer.body)

    def value(name: str, **labels: str) -> float:
        return seen[name, frozenset(labels.items())]

    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert value("milepost_queue_jobs", queue="echoes", state="ready") == 1
    assert 10 <= value("milepost_queue_oldest_ready_seconds", queue="echoes") < 11
    assert value("milepost_http_requests_total", method="GET", route="/jobs/{id}", status="200") == 1
    assert value("milepost_http_requests_total", method="GET", route="/jobs/{id}", status="404") == 1
    assert value("milepost_http_requests_total", method="POST", route="/jobs", status="202") == 1
    assert value("milepost_store_commits_total") >= 1
    assert value("milepost_store_commit_seconds_count") == value("milepost_store_commit_batch_count")
    assert value("milepost_attempts_total", kind="echo") == 2
    assert value("milepost_attempt_outcomes_total", kind="echo", outcome="succeeded") == 1
    assert value("milepost_leases_rescued_total") == 4
    assert value("milepost_delivery_attempts_total", state="delivered") == 3
    assert value("milepost_streams_open") == 0
    below = {le: value("milepost_attempt_seconds_bucket", kind="echo", le=le) for le in ("0.001", "0.1", "0.25", "60.0", "+Inf")}
    assert below == {"0.001": 1, "0.1": 1, "0.25": 3, "60.0": 4, "+Inf": 5}
    assert value("milepost_attempt_seconds_sum", kind="echo") == pytest.approx(100_040.4504)
    assert value("milepost_http_request_seconds_count", method="GET", route="/jobs/{id}") == 2
    assert value("milepost_http_request_seconds_bucket", method="POST", route="/jobs", le="+Inf") == 1


def test_every_counter_of_the_engine_is_shown() -> None:
    assert set(EngineStats.__struct_fields__) == set(metrics.ENGINE)


def test_histograms_are_cumulative_with_an_infinite_bucket() -> None:
    stats = StoreStats(commits=6, operations=40, commit_s=0.5, batch_sizes={1: 3, 16: 2, 4: 1}, commit_seconds={})
    text = metrics.generate_latest(metrics._Snapshot(list(metrics._store(stats))))
    seen = samples(text)
    got = [seen["milepost_store_commit_batch_bucket", frozenset({("le", le)})] for le in ("1.0", "4.0", "16.0", "+Inf")]
    assert got == [3, 4, 6, 6]
    assert seen["milepost_store_commit_batch_sum", frozenset()] == 40
    assert seen["milepost_store_commit_seconds_count", frozenset()] == 0


# --- the document and its page -------------------------------------------------------------------------------------


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


async def test_the_document_has_every_route_and_its_references_resolve(web: Web) -> None:
    document = (await web.get("/openapi.json")).json
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.path, route.method) for route in ROUTES}
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= known
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    assert all(one["summary"] and one["description"] and one["responses"] for one in operations)


def test_every_parameter_of_the_document_is_read_and_every_error_described() -> None:
    for route in ROUTES:
        assert set(route.errors) <= openapi.PROBLEMS.keys()
        names = re.findall(r"{(\w+)}", route.path)
        operation = openapi.build()["paths"][route.path][route.method.lower()]
        assert [one["name"] for one in operation["parameters"] if one["in"] == "path"] == names


def test_the_document_refuses_the_pages_that_the_server_refuses_and_the_page_has_a_colour_for_every_method() -> None:
    style = console.docs_page().decode()
    for methods in openapi.build()["paths"].values():
        for method, operation in methods.items():
            assert re.search(rf"\.{method}[,{{]", style)
            for one in operation["parameters"]:
                assert one["name"] != "limit" or one["schema"]["minimum"] == 1
                assert one["name"] != "after" or one["schema"].get("minLength") == 1 or one["schema"]["type"] == "integer"


async def test_a_jobs_answer_is_what_the_document_says(house: House, web: Web) -> None:
    schema = openapi.build()["components"]["schemas"]["NativeJob"]
    job = await submit(web)
    assert job.keys() == schema["properties"].keys()
    assert set(schema["required"]) <= job.keys()


async def test_the_page_needs_nothing_from_elsewhere_and_may_run_nothing_else(web: Web) -> None:
    answer = await web.get("/docs")
    page = answer.body.decode()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|\burl\(""", page)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "innerHTML" not in page
    import base64
    import hashlib

    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode() in policy
    assert console.docs_page() is console.docs_page()


def test_the_document_is_json() -> None:
    assert msgspec.json.decode(openapi.document())["openapi"] == "3.1.0"


async def test_the_document_asks_for_a_token_where_the_server_does(web: Web) -> None:
    without = msgspec.json.decode((await web.get("/openapi.json")).body)
    assert without["security"] == [{}, *openapi.build(token=True)["security"]]
