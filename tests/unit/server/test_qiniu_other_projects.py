"""Persistent processing between projects: ids, pipelines, workflows, notifications and policies of one are nothing to another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import argon2
import pytest
from kodo_house import BUCKET, Kodo, open_kodo
from server_house import Answer, Web

from milepost.job import ProjectId
from milepost.server import identity
from milepost.server.facades.qiniu.workflows import put_workflow
from milepost.store import JobQuery, Queue
from milepost.wire.qiniu.ids import persistent_id, read_persistent_id
from milepost.wire.signing.qiniu import Key


class Town(NamedTuple):
    """A server with two projects that have a bucket, a pipeline and a workflow each."""

    kodo: Kodo
    ann: Key
    ben: Key
    anns: str  # her project's id

    async def start(self, signer: Key, *, bucket: str, **form: str) -> Answer:
        asked = {"bucket": bucket, "key": "in.jpg", "fops": "imageInfo", **form}
        return await self.kodo.signed("POST", "/pfop", urlencode(asked).encode(), key=signer)

    async def count_jobs(self) -> int:
        return len(await self.kodo.store.list_jobs(JobQuery()))


@pytest.fixture
async def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    monkeypatch.setattr(identity, "SLOW", argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    async with open_kodo(tmp_path, auth="required") as kodo:
        ann, ben = await kodo.new_key("ann"), await kodo.new_key("ben")
        await kodo.make_bucket(key=ann)
        await kodo.make_bucket("bens", key=ben)
        await kodo.put("in.jpg", signer=ann)
        answer = await kodo.form({"token": kodo.token("in.jpg", signer=ben, bucket="bens"), "key": "in.jpg"}, b"hello")
        assert answer.status == 200
        anns = (await kodo.store.get_project("ann")).id
        await kodo.store.set_queue(Queue(f"media.{anns}.fast"))
        await put_workflow(kodo.store, ProjectId(anns), "thumbs", "imageInfo", now_us=1)
        yield Town(kodo, ann, ben, anns)


async def test_a_notifying_job_of_another_project_is_shown_to_no_key_but_its_own(town: Town) -> None:
    started = await town.start(town.ann, bucket=BUCKET, notifyURL="https://app.example.com/told", pipeline="fast")
    id = started.json["persistentId"]
    for target in (f"/status/get/prefop?id={id}", f"/status/get/prefop?id=z1.{id.partition('.')[2]}"):
        refused = await town.kodo.signed("GET", target, key=town.ben)
        assert (refused.status, refused.json) == (612, {"error": "not such id in prefop"})
        posted = await town.kodo.signed("POST", "/status/get/prefop", f"id={id}".encode(), key=town.ben)
        assert posted.status == 612
    assert (await town.kodo.signed("GET", f"/status/get/prefop?id={id}", key=town.ann)).status == 200


async def test_an_id_beside_a_known_one_is_nobodys(town: Town) -> None:
    known = read_persistent_id((await town.start(town.ann, bucket=BUCKET)).json["persistentId"])
    assert known is not None
    digits = known.replace("-", "")
    for step in (1, -1, 1 << 64):
        near = f"{int(digits, 16) + step:032x}"
        answer = await town.kodo.ask("GET", f"/status/get/prefop?id=z0.{near}")
        assert answer.status == 612
    assert (await town.kodo.ask("GET", f"/status/get/prefop?id={persistent_id(known)}")).status == 200


@pytest.mark.parametrize("form", ["fast", "{anns}.fast", "media.{anns}.fast", "{anns}.fast ", "ann.fast"])
async def test_another_projects_pipeline_does_not_exist(town: Town, form: str) -> None:
    before = await town.count_jobs()
    answer = await town.start(town.ben, bucket="bens", pipeline=form.format(anns=town.anns))
    assert (answer.status, set(answer.json)) == (400, {"error"})
    assert await town.count_jobs() == before


async def test_another_projects_workflow_does_not_exist(town: Town) -> None:
    answer = await town.start(town.ben, bucket="bens", fops="", workflowTemplateID="thumbs")
    assert answer.status == 612
    assert (await town.start(town.ann, bucket=BUCKET, fops="", workflowTemplateID="thumbs")).status == 200


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ({"persistentOps": "imageInfo", "persistentPipeline": "fast"}, 400),
        ({"persistentOps": "imageInfo", "persistentPipeline": "{anns}.fast"}, 400),
        ({"persistentWorkflowTemplateID": "thumbs"}, 612),
    ],
)
async def test_an_upload_policy_reaches_nothing_of_another_project(town: Town, policy: dict[str, str], code: int) -> None:
    before = await town.count_jobs()
    given = {name: value.format(anns=town.anns) for name, value in policy.items()}
    token = town.kodo.token("new", signer=town.ben, bucket="bens", **given)
    answer = await town.kodo.form({"token": token, "key": "new"}, b"hello")
    assert answer.status == code, answer.body
    assert await town.count_jobs() == before


async def test_a_policy_for_another_projects_bucket_starts_nothing(town: Town) -> None:
    before = await town.count_jobs()
    token = town.kodo.token("new", signer=town.ben, persistentOps="imageInfo")
    assert (await town.kodo.form({"token": token, "key": "new"}, b"hello")).status == 631
    assert await town.count_jobs() == before


async def test_the_native_wire_is_no_way_around(town: Town) -> None:
    started = await town.start(town.ann, bucket=BUCKET, notifyURL="https://app.example.com/told", pipeline="fast")
    id = read_persistent_id(started.json["persistentId"])
    assert id is not None
    ben = await native(town, "ben")
    targets = [
        ("GET", f"/jobs/{id}"),
        ("POST", f"/jobs/{id}/cancel"),
        ("POST", f"/jobs/{id}/retry"),
        ("GET", f"/jobs/{id}/events"),
        ("GET", f"/callbacks?job={id}"),
    ]
    seen = {(method, target): await ben.ask(method, target) for method, target in targets}
    assert {answer.status for answer in seen.values()} == {404}, {place: answer.body for place, answer in seen.items()}
    listed = await ben.get("/jobs")
    assert listed.status == 200
    assert listed.json["jobs"] == []
    assert (await town.kodo.store.get_job(id)).state == "ready"


async def test_a_native_submit_takes_no_place_in_another_projects_pipeline(town: Town) -> None:
    ben = await native(town, "ben")
    spec = {"bucket": "bens", "key": "in.jpg", "fops": [], "notify_url": None, "force": False, "idle": False, "pipeline": "",
            "workflow_id": None, "task_from": None}  # fmt: skip
    theirs = f"media.{town.anns}.fast"
    refused = await ben.post("/jobs", {"kind": "pfop", "input": spec, "queue": theirs})
    assert (refused.status, refused.json["path"]) == (400, "$.queue")
    assert theirs not in [queue["name"] for queue in (await ben.get("/queues")).json["queues"]]
    ann = await native(town, "ann")
    assert (await ann.post("/jobs", {"kind": "pfop", "input": spec, "queue": theirs})).status == 202
    assert theirs in [queue["name"] for queue in (await ann.get("/queues")).json["queues"]]


async def native(town: Town, name: str) -> Web:
    """The native wire as this project's member."""
    key = await town.kodo.state.identities.create_api_key(name, name, "test")
    return Web(town.kodo.app, {"authorization": f"Bearer {key.secret}"})
