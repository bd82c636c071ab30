"""Persistent processing over HTTP without the SDK: who may see what, repeats, workflows, and statuses that are kept as texts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import argon2
import msgspec
import pytest
from kodo_house import BUCKET, Kodo, open_kodo
from server_house import Answer

from milepost.errors import InvalidInput, NotFound
from milepost.job import ProjectId, Submission, Succeeded, Suspended
from milepost.server import identity
from milepost.server.facades.qiniu.workflows import (
    encode_saveas,
    list_workflows,
    put_workflow,
    remove_workflow,
    workflow_commands,
)
from milepost.store import Queue
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.qiniu.ids import persistent_id, read_persistent_id
from milepost.wire.signing.qiniu import urlsafe

DEMO = ProjectId("demo")


@pytest.fixture(autouse=True)
def quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "SLOW", argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


@pytest.fixture
async def kodo(tmp_path: Path) -> AsyncIterator[Kodo]:
    async with open_kodo(tmp_path) as opened:
        await opened.make_bucket()
        await opened.put("in.jpg")
        yield opened


async def start(kodo: Kodo, *, signer: Any = None, **form: str) -> Answer:
    asked = {"bucket": BUCKET, "key": "in.jpg", "fops": "imageInfo", **form}
    return await kodo.signed("POST", "/pfop", urlencode(asked).encode(), key=signer)


async def status(kodo: Kodo, id: str, *, key: Any = None) -> Answer:
    target = f"/status/get/prefop?id={id}"
    return await (kodo.ask("GET", target) if key is None else kodo.signed("GET", target, key=key))


async def test_without_credentials_the_id_shows_what_was_asked_for_here_and_nothing_else(tmp_path: Path) -> None:
    async with open_kodo(tmp_path, auth="required") as kodo:
        mine, other = await kodo.new_key("mine"), await kodo.new_key("other")
        await kodo.make_bucket(key=mine)
        await kodo.put("in.jpg", signer=mine)
        id = (await start(kodo, signer=mine)).json["persistentId"]
        assert (await status(kodo, id)).json["code"] == 1
        assert (await status(kodo, id, key=mine)).json["code"] == 1
        refused = await status(kodo, id, key=other)
        assert (refused.status, refused.json) == (612, {"error": "not such id in prefop"})
        assert (await start(kodo, signer=other)).status == 631
        kodo.service.kinds.kind("own")(None_)
        project = (await kodo.store.get_project("mine")).id
        native = await kodo.service.submit(Submission(kind="own", project=project))
        ours = persistent_id(native.job.id)
        assert (await status(kodo, ours)).status == 612
        assert (await status(kodo, ours, key=mine)).json["items"] == []
        unsigned = await kodo.ask("GET", f"/status/get/prefop?id={id}", headers={"Authorization": "QBox nobody:wrong"})
        assert unsigned.status == 401


async def None_(job: Any) -> None:
    """Not run here."""


async def test_prefop_open_false_asks_for_credentials(tmp_path: Path) -> None:
    async with open_kodo(tmp_path, auth="required", prefop_open=False) as kodo:
        mine = await kodo.new_key("mine")
        await kodo.make_bucket(key=mine)
        await kodo.put("in.jpg", signer=mine)
        id = (await start(kodo, signer=mine)).json["persistentId"]
        assert (await status(kodo, id)).status == 612
        assert (await status(kodo, id, key=mine)).status == 200


async def test_a_member_uses_the_pipelines_that_there_are(tmp_path: Path) -> None:
    async with open_kodo(tmp_path, auth="required") as kodo:
        mine = await kodo.new_key("mine")
        project = (await kodo.store.get_project("mine")).id
        await kodo.make_bucket(key=mine)
        await kodo.put("in.jpg", signer=mine)
        assert (await start(kodo, signer=mine, pipeline="fast")).status == 400
        await kodo.store.set_queue(Queue(f"media.{project}.fast"))
        for name in ("fast", f"{project}.fast"):
            id = (await start(kodo, signer=mine, pipeline=name)).json["persistentId"]
            assert (await status(kodo, id)).json["pipeline"] == f"{project}.fast"
        for name in ("0.default", "default.sys"):
            id = (await start(kodo, signer=mine, pipeline=name)).json["persistentId"]
            job = await kodo.service.get(read_persistent_id(id))  # type: ignore[arg-type]
            assert job.queue == "media"
        assert (await start(kodo, signer=mine, pipeline="../x")).status == 400


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({"bucket": ""}, 400),
        ({"bucket": "nothing"}, 631),
        ({"key": "nothing"}, 612),
        ({"fops": ""}, 400),
        ({"fops": "a", "workflowTemplateID": "w"}, 400),
        ({"fops": "", "workflowTemplateID": "w"}, 612),
        ({"notifyURL": "http://169.254.169.254/latest"}, 400),
        ({"notifyURL": "file:///etc/passwd"}, 400),
        ({"type": "2"}, 400),
    ],
)
async def test_what_is_wrong_is_refused_now_and_makes_no_job(kodo: Kodo, form: dict[str, str], code: int) -> None:
    answer = await start(kodo, **form)
    assert answer.status == code, answer.body
    assert set(answer.json) == {"error"}


async def test_a_repeat_with_its_key_makes_one_job(kodo: Kodo) -> None:
    body = urlencode({"bucket": BUCKET, "key": "in.jpg", "fops": "imageInfo"}).encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Idempotency-Key": "once"}
    first, second = [(await kodo.ask("POST", "/pfop", body, headers)).json for _ in range(2)]
    assert first == second
    other = await kodo.ask("POST", "/pfop/", body + b"&force=1", headers)
    assert other.status == 400


async def test_the_text_that_is_kept_is_never_older_than_the_tree(kodo: Kodo) -> None:
    id = (await start(kodo, fops="a;b")).json["persistentId"]
    store, at_us = kodo.store, kodo.clock.now_us()

    async def codes() -> list[int]:
        first, second = await status(kodo, id), await status(kodo, id)
        assert first.body == second.body
        return [first.json["code"], *(item["code"] for item in first.json["items"])]

    assert await codes() == [1, 1, 1]
    await store.renew_lease("w", now_us=at_us, lease_s=30)  # type: ignore[arg-type]
    (parent,) = await store.claim_jobs("media", worker="w", now_us=at_us, limit=1)  # type: ignore[arg-type]
    subs = [Submission(kind="fop", queue="media", input=msgspec.json.encode({"bucket": "b", "key": "k", "cmd": c})) for c in "ab"]
    assert await store.finish_job(parent.claim, Suspended(subs), now_us=at_us)
    assert await codes() == [1, 1, 1]
    first, second = await store.claim_jobs("media", worker="w", now_us=at_us, limit=2)  # type: ignore[arg-type]
    assert await codes() == [2, 2, 2]
    for one, expected in ((first, [2, 0, 2]), (second, [2, 0, 0])):
        await store.finish_job(one.claim, Succeeded(b'{"bucket":"b","key":"k","hash":"h"}'), now_us=at_us)
        assert await codes() == expected
    (parent,) = await store.claim_jobs("media", worker="w", now_us=at_us, limit=1)  # type: ignore[arg-type]
    await store.finish_job(parent.claim, Succeeded(b"{}"), now_us=at_us, expires_us=at_us + 1_000_000_000)
    assert await codes() == [0, 0, 0]


async def test_an_id_that_names_another_region_is_answered_with_it(kodo: Kodo) -> None:
    id = (await start(kodo)).json["persistentId"]
    assert (await status(kodo, "z1" + id[2:])).json["id"] == "z1" + id[2:]
    assert (await status(kodo, id)).json["id"] == id


@pytest.mark.parametrize("query", ["", "?id=", "?other=1"])
async def test_the_status_needs_an_id(kodo: Kodo, query: str) -> None:
    assert (await kodo.ask("GET", "/status/get/prefop" + query)).status == 400
    assert (await kodo.ask("DELETE", "/status/get/prefop?id=x")).status == 405


# --- workflows -------------------------------------------------------------------------------------------------------------


async def test_workflows_are_a_projects_own(kodo: Kodo) -> None:
    await put_workflow(kodo.store, DEMO, "w", "a; b ;", now_us=1)
    await put_workflow(kodo.store, DEMO, "w", "c", now_us=2)
    await put_workflow(kodo.store, ProjectId("other"), "w", "d", now_us=3)
    assert [(one.id, one.fops) for one in await list_workflows(kodo.store, DEMO)] == [("w", ["c"])]
    await remove_workflow(kodo.store, DEMO, "w")
    with pytest.raises(NotFound):
        await remove_workflow(kodo.store, DEMO, "w")
    with pytest.raises(Refusal):
        await workflow_commands(kodo.store, DEMO, "w", bucket="b", key="k")
    assert await workflow_commands(kodo.store, ProjectId("other"), "w", bucket="b", key="k") == ["d"]


async def test_a_workflows_saveas_is_filled_for_each_source(kodo: Kodo) -> None:
    await put_workflow(kodo.store, DEMO, "w", "x|saveas/$(bucket):t/$(name)-s$(ext);y|saveas/" + urlsafe(b"b:$(key)"), now_us=1)
    found = await workflow_commands(kodo.store, DEMO, "w", bucket="m", key="in/中.v1.jpg")
    assert found == [
        "x|saveas/" + urlsafe("m:t/in/中.v1-s.jpg".encode()),
        "y|saveas/" + urlsafe("b:in/中.v1.jpg".encode()),
    ]


@pytest.mark.parametrize(("id", "fops"), [("", "a"), ("a/b", "a"), ("w", " ; "), ("w", "x|saveas/***"), ("w", "a" * 70_000)])
async def test_what_is_no_workflow_is_refused(kodo: Kodo, id: str, fops: str) -> None:
    with pytest.raises(InvalidInput):
        await put_workflow(kodo.store, DEMO, id, fops, now_us=1)


def test_only_the_last_step_saves() -> None:
    assert encode_saveas("x|saveas/b:k") == "x|saveas/" + urlsafe(b"b:k")
    assert encode_saveas("watermark/1/image/saveas/b") == "watermark/1/image/saveas/b"
