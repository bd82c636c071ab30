"""Qiniu's own Python SDK, unmodified, against a running server: uploads of every kind, management, downloads, region queries."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests
from client_rig import PASSWORD, Thread

from milepost.bucket import etag, etag_of_parts
from milepost.settings import Settings
from milepost.wiring import System

qiniu = pytest.importorskip("qiniu")

MIB = 1 << 20


class Cloud(msgspec.Struct):
    """A running server, an account, and one of its buckets."""

    url: str
    auth: Any
    system: Any
    call: Callable[[Any], Any]
    bucket: str
    open: bool  # no auth

    @property
    def buckets(self) -> Any:
        return qiniu.BucketManager(self.auth)

    def token(self, key: str | None = None, **policy: Any) -> str:
        token: str = self.auth.upload_token(self.bucket, key, policy=policy or None)
        return token

    def put(self, key: str, data: bytes, **more: Any) -> Any:
        ret, info = qiniu.put_data(self.token(key), key, data, **more)
        assert info.status_code == 200, info
        return ret

    def download_url(self, key: str) -> str:
        url: str = self.auth.private_download_url(f"{self.url}/objects/{self.bucket}/{requests.utils.quote(key, safe='/')}")
        return url


@pytest.fixture(scope="module", params=["required", "none"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, System, Thread, Any]]:
    folder = tmp_path_factory.mktemp(f"kodo-{request.param}")
    tempdir, tempfile.tempdir = tempfile.tempdir, str(folder)  # where the SDK keeps what it learned of regions
    thread = Thread(Settings(port=0, data=str(folder / "data"), auth=request.param))
    thread.start()
    system, url = thread.wait_ready()
    access, secret = thread.call(_make_key(system)) if request.param == "required" else ("any", "thing")
    # The one setting that is enough: every other host comes from the region query.
    qiniu.set_default(default_uc_host=url)
    yield url, system, thread, qiniu.Auth(access, secret)
    thread.stop()
    tempfile.tempdir = tempdir


async def _make_key(system: System) -> tuple[str, str]:
    await system.identities.create_project("demo")
    await system.identities.create_user("ann", PASSWORD)
    await system.identities.grant("ann", "demo", "member")
    key = await system.identities.create_access_key("ann", "demo")
    return key.id, key.secret


@pytest.fixture
def cloud(server: tuple[str, System, Thread, Any]) -> Cloud:
    url, system, thread, auth = server
    bucket = f"media-{uuid.uuid4().hex[:8]}"
    _, info = qiniu.BucketManager(auth).mkbucketv3(bucket, "z0")
    assert info.status_code == 200, info
    return Cloud(url, auth, system, thread.call, bucket, system.settings.auth == "none")


def test_a_form_upload_is_stored_and_described(cloud: Cloud) -> None:
    ret = cloud.put("in/a.txt", b"hello", mime_type="text/plain", metadata={"x-qn-meta-who": "ann"})
    assert ret == {"hash": "Fqr0xh3cxeii2r7eDztILNmuqUNN", "key": "in/a.txt"}
    stat, info = cloud.buckets.stat(cloud.bucket, "in/a.txt")
    assert info.status_code == 200
    assert info.req_id
    assert stat.pop("putTime") > 17_000_000_000_000_000
    assert stat == {
        "fsize": 5,
        "hash": ret["hash"],
        "mimeType": "text/plain",
        "type": 0,
        "md5": hashlib.md5(b"hello").hexdigest(),
        "x-qn-meta": {"who": "ann"},
    }


@pytest.mark.parametrize("key", ["", "中文 键.txt", "../../etc/passwd", "a//b", "x" * 750, "a+b&c=d?e#f%20g", 'q"uote\\'])
def test_any_key_makes_its_way_there_and_back(cloud: Cloud, key: str) -> None:
    cloud.put(key, key.encode() or b"empty")
    stat, info = cloud.buckets.stat(cloud.bucket, key)
    assert info.status_code == 200, info
    assert stat["hash"] == etag(key.encode() or b"empty")
    ret, _, _ = cloud.buckets.list(cloud.bucket)
    assert [item["key"] for item in ret["items"]] == [key]
    _, info = cloud.buckets.delete(cloud.bucket, key)
    assert info.status_code == 200


def test_an_answer_may_ask_what_the_upload_holds(cloud: Cloud) -> None:
    body = (
        '{"w":$(imageInfo.width),"h":$(imageInfo.height),"format":$(imageInfo.format),"ave":$(imageAve.RGB),'
        '"no":$(exif),"nor":$(avinfo.audio),"v":$(avinfo.video.codec_name),"save":$(key)}'
    )
    photo = photo_bytes("china.jpg")
    token = cloud.auth.upload_token(cloud.bucket, policy={"returnBody": body, "saveKey": "$(imageInfo.width)$(ext)"})
    ret, info = qiniu.put_data(token, None, photo, fname="china.jpg")
    assert info.status_code == 200, info
    assert ret.pop("ave").startswith("0x")
    assert ret == {
        "w": 640,
        "h": 427,
        "format": "jpeg",
        "no": None,
        "nor": None,
        "v": "mjpeg",
        "save": "640.jpg",
    }


def test_what_no_picture_holds_is_null_in_an_answer(cloud: Cloud) -> None:
    names = ("imageInfo.width", "exif", "imageAve.RGB", "avinfo.video")
    body = json.dumps({name: f"$({name})" for name in names}).replace('"$', "$").replace(')"', ")")
    for data in (b"hello", b"\x89PNG\r\n\x1a\n" + bytes(2000), b"#EXTM3U\nfile:///etc/passwd\n"):
        ret, info = qiniu.put_data(cloud.auth.upload_token(cloud.bucket, "a", policy={"returnBody": body}), "a", data)
        assert (info.status_code, ret) == (200, dict.fromkeys(names))


def photo_bytes(name: str) -> bytes:
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return (Path(spec.submodule_search_locations[0]) / "datasets" / "images" / name).read_bytes()


def test_an_upload_without_a_key_is_named_by_its_hash(cloud: Cloud) -> None:
    ret, info = qiniu.put_data(cloud.token(), None, b"hello")
    assert info.status_code == 200, info
    assert ret["key"] == ret["hash"] == etag(b"hello")


def test_a_file_without_bytes_can_be_uploaded(cloud: Cloud, tmp_path: Path) -> None:
    """The SDK refuses to send one by `put_data`; by `put_file` it does."""
    path = tmp_path / "empty"
    path.write_bytes(b"")
    files = {"file": ("empty", b"", "application/octet-stream")}
    answer = requests.post(cloud.url, data={"token": cloud.token("e"), "key": "e"}, files=files, timeout=60)
    assert answer.json()["hash"] == "Fto5o-5ea0sNMlW_75VgGJCv2AcJ"
    assert requests.get(cloud.download_url("e"), timeout=60).content == b""


def big_file(tmp_path: Path, size_bytes: int) -> tuple[Path, bytes]:
    block = hashlib.shake_256(b"milepost").digest(MIB)
    data = (block * (size_bytes // MIB + 1))[:size_bytes]
    path = tmp_path / "big.bin"
    path.write_bytes(data)
    return path, data


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_large_file_is_uploaded_in_parts(cloud: Cloud, tmp_path: Path, version: str) -> None:
    path, data = big_file(tmp_path, 13 * MIB + 5)
    seen: list[int] = []
    ret, info = qiniu.put_file(
        cloud.token("big"),
        "big",
        str(path),
        version=version,
        mime_type="video/mp4",
        progress_handler=lambda done, total: seen.append(done),
    )
    assert info.status_code == 200, info
    assert ret == {"hash": etag(data), "key": "big"}
    assert seen
    stat, _ = cloud.buckets.stat(cloud.bucket, "big")
    assert (stat["fsize"], stat["mimeType"]) == (len(data), "video/mp4")
    assert requests.get(cloud.download_url("big"), timeout=60).content == data


def test_parts_of_another_size_have_the_hash_of_their_parts(cloud: Cloud, tmp_path: Path) -> None:
    path, data = big_file(tmp_path, 11 * MIB)
    ret, info = qiniu.put_file_v2(cloud.token("odd"), "odd", str(path), part_size=5 * MIB, bucket_name=cloud.bucket)
    assert info.status_code == 200, info
    parts = [data[at : at + 5 * MIB] for at in range(0, len(data), 5 * MIB)]
    assert ret["hash"] == etag_of_parts([etag(one) for one in parts], [len(one) for one in parts])
    assert ret["hash"].startswith("n")
    assert requests.get(cloud.download_url("odd"), timeout=60).content == data


def test_put_file_v2_of_a_small_file(cloud: Cloud, tmp_path: Path) -> None:
    path = tmp_path / "small.txt"
    path.write_bytes(b"hello")
    ret, info = qiniu.put_file_v2(cloud.token("small"), "small", str(path), bucket_name=cloud.bucket)
    assert info.status_code == 200, info
    assert ret["hash"] == etag(b"hello")


def test_a_list_is_paged_to_its_end(cloud: Cloud) -> None:
    keys = [f"in/{number:02d}" for number in range(7)] + ["out/a", "top"]
    for key in keys:
        cloud.put(key, key.encode())
    seen: list[str] = []
    marker, eof, pages = None, False, 0
    while not eof:
        ret, eof, info = cloud.buckets.list(cloud.bucket, marker=marker, limit=4)
        assert info.status_code == 200, info
        seen += [item["key"] for item in ret["items"]]
        marker, pages = ret.get("marker"), pages + 1
    assert seen == keys
    assert pages == 3
    ret, eof, _ = cloud.buckets.list(cloud.bucket, delimiter="/")
    assert ret["commonPrefixes"] == ["in/", "out/"]
    assert [item["key"] for item in ret["items"]] == ["top"]
    assert eof
    ret, _, _ = cloud.buckets.list(cloud.bucket, prefix="in/0", limit=2)
    assert [item["key"] for item in ret["items"]] == keys[:2]
    ret, _, info = cloud.buckets.list(cloud.bucket, marker="rubbish")
    assert (ret, info.status_code) == (None, 640)


def test_copy_move_and_delete(cloud: Cloud) -> None:
    cloud.put("a", b"one")
    cloud.put("b", b"two")
    manager, bucket = cloud.buckets, cloud.bucket
    assert manager.copy(bucket, "a", bucket, "b")[1].status_code == 614
    assert manager.copy(bucket, "a", bucket, "b", force="true")[1].status_code == 200
    assert manager.stat(bucket, "b")[0]["hash"] == etag(b"one")
    assert manager.move(bucket, "b", bucket, "c/d")[1].status_code == 200
    assert manager.rename(bucket, "c/d", "a")[1].status_code == 614
    assert manager.delete(bucket, "a")[1].status_code == 200
    ret, info = manager.delete(bucket, "a")
    assert (ret, info.status_code) == (None, 612)
    assert "no such file or directory" in info.text_body
    assert requests.get(cloud.download_url("c/d"), timeout=60).content == b"one"


def test_what_is_known_of_an_object_can_be_changed(cloud: Cloud) -> None:
    cloud.put("a", b"one")
    manager, bucket = cloud.buckets, cloud.bucket
    assert manager.change_mime(bucket, "a", "image/png")[1].status_code == 200
    assert manager.change_type(bucket, "a", 1)[1].status_code == 200
    assert manager.change_status(bucket, "a", "1", None)[1].status_code == 200
    stat, _ = manager.stat(bucket, "a")
    assert (stat["mimeType"], stat["type"], stat["status"]) == ("image/png", 1, 1)
    assert requests.get(cloud.download_url("a"), timeout=60).status_code == 403


def test_a_batch_answers_for_each_operation(cloud: Cloud) -> None:
    cloud.put("a", b"one")
    cloud.put("b", b"two")
    bucket = cloud.bucket
    ops = qiniu.build_batch_stat(bucket, ["a", "nothing"])
    ops += qiniu.build_batch_copy(bucket, {"a": "c"}, bucket, force="true")
    ops += qiniu.build_batch_move(bucket, {"c": "d"}, bucket)
    ops += qiniu.build_batch_delete(bucket, ["b", "d", "d"])
    ret, info = cloud.buckets.batch(ops)
    assert info.status_code == 200, info
    assert [line["code"] for line in ret] == [200, 612, 200, 200, 200, 200, 612]
    assert ret[0]["data"]["hash"] == etag(b"one")
    assert ret[1]["data"]["error"] == "no such file or directory"


def test_buckets(cloud: Cloud) -> None:
    manager, bucket = cloud.buckets, cloud.bucket
    assert bucket in manager.buckets()[0]
    info = manager.bucket_info(bucket)[0]
    assert (info["region"], info["private"]) == ("z0", 0 if cloud.open else 1)
    assert manager.mkbucketv3(bucket, "z0")[1].status_code == 614
    assert manager.mkbucketv3("No", "z0")[1].status_code == 400
    (domain,) = manager.list_domains(bucket)[0]
    assert domain.startswith(f"{bucket}.objects.localhost:")
    assert manager.change_bucket_permission(bucket, "0")[1].status_code == 200
    cloud.put("a", b"one")
    assert requests.get(f"{cloud.url}/objects/{bucket}/a", timeout=60).content == b"one"
    assert requests.get(f"{cloud.url}/a", headers={"Host": domain}, timeout=60).content == b"one"
    assert manager.change_bucket_permission(bucket, "1")[1].status_code == 200
    answer = requests.get(f"{cloud.url}/objects/{bucket}/a", timeout=60)
    assert answer.status_code == 401
    assert answer.headers["X-Reqid"]


def test_a_private_download_needs_its_token(cloud: Cloud) -> None:
    cloud.put("中文/a b.txt", b"hello", mime_type="text/plain")
    assert cloud.buckets.change_bucket_permission(cloud.bucket, "1")[1].status_code == 200
    base = f"{cloud.url}/objects/{cloud.bucket}/中文/a b.txt"
    for url in (base, f"{cloud.url}/objects/{cloud.bucket}/{requests.utils.quote('中文/a b.txt')}"):
        answer = requests.get(cloud.auth.private_download_url(url), timeout=60)
        assert (answer.status_code, answer.content) == (200, b"hello"), answer.text
        assert answer.headers["ETag"] == f'"{etag(b"hello")}"'
        assert requests.get(url, timeout=60).status_code == 401
        assert requests.get(cloud.auth.private_download_url(url, expires=-5), timeout=60).status_code == 401
    if not cloud.open:
        forged = qiniu.Auth(cloud.auth.get_access_key(), "guessed").private_download_url(base)
        assert requests.get(forged, timeout=60).status_code == 401
        signed = cloud.auth.private_download_url(base)
        assert requests.get(signed.replace("a b.txt", "c.txt"), timeout=60).status_code == 401


def test_a_wrong_secret_changes_nothing(cloud: Cloud) -> None:
    if cloud.open:
        pytest.skip("every signature is accepted where there is no auth")
    cloud.put("a", b"one")
    forger = qiniu.Auth(cloud.auth.get_access_key(), "guessed")
    assert qiniu.BucketManager(forger).delete(cloud.bucket, "a")[1].status_code == 401
    with pytest.raises(RuntimeError, match="631"):  # the SDK's own error of a region query that failed
        qiniu.BucketManager(qiniu.Auth("nobody", "guessed")).stat(cloud.bucket, "a")
    _, info = qiniu.put_data(forger.upload_token(cloud.bucket, "b"), "b", b"two")
    assert info.status_code == 401
    assert cloud.buckets.stat(cloud.bucket, "b")[1].status_code == 612


def test_the_policy_decides(cloud: Cloud) -> None:
    cloud.put("a", b"one")
    put = qiniu.put_data
    assert put(cloud.token(), "a", b"two")[1].status_code == 614
    assert put(cloud.token(), "a", b"one")[1].status_code == 200
    assert put(cloud.token("a", insertOnly=1), "a", b"two")[1].status_code == 614
    assert put(cloud.token("b"), "c", b"two")[1].status_code == 403
    assert put(cloud.token("in/", isPrefixalScope=1), "in/x", b"two")[1].status_code == 200
    assert put(cloud.token("in/", isPrefixalScope=1), "out/x", b"two")[1].status_code == 403
    assert put(cloud.token(fsizeLimit=2), "d", b"two")[1].status_code == 413
    assert put(cloud.token(fsizeMin=4), "d", b"two")[1].status_code == 403
    assert put(cloud.token(mimeLimit="image/*", detectMime=1), "d", b"GIF89a....")[1].status_code == 200
    assert put(cloud.token(mimeLimit="image/*", detectMime=1), "e", b"text")[1].status_code == 403
    expired = cloud.auth.upload_token(cloud.bucket, "f", expires=-1)
    assert put(expired, "f", b"two")[1].status_code == 401
    assert put(cloud.token(saveKey="$(year)/$(etag)$(ext)"), None, b"two", fname="x.jpg")[0]["key"].endswith(
        f"/{etag(b'two')}.jpg"
    )
    assert put(cloud.token(saveKey="s", forceSaveKey=True), "mine", b"two")[0]["key"] == "s"


def test_the_answer_is_what_the_policy_says(cloud: Cloud) -> None:
    body = '{"k":$(key),"quoted":"$(key)","n":$(fsize),"m":$(mimeType),"b":$(bucket),"x":$(x:who),"none":$(imageInfo.width)}'
    ret, info = qiniu.put_data(cloud.token("k", returnBody=body), "k", b"hello", params={"x:who": 'a"b'}, mime_type="text/plain")
    assert info.status_code == 200, info
    assert ret == {"k": "k", "quoted": "k", "n": 5, "m": "text/plain", "b": cloud.bucket, "x": 'a"b', "none": None}


def test_the_crc_is_checked(cloud: Cloud) -> None:
    files = {"file": ("a", b"hello", "text/plain")}
    answer = requests.post(cloud.url, data={"token": cloud.token("a"), "key": "a", "crc32": "1"}, files=files, timeout=60)
    assert answer.status_code == 406
    assert cloud.buckets.stat(cloud.bucket, "a")[1].status_code == 612


def test_base64(cloud: Cloud) -> None:
    key = base64.urlsafe_b64encode(b"b64/key").decode()
    answer = requests.post(
        f"{cloud.url}/putb64/-1/key/{key}",
        data=base64.b64encode(b"hello world"),
        headers={"Authorization": f"UpToken {cloud.token('b64/key')}", "Content-Type": "application/octet-stream"},
        timeout=60,
    )
    assert answer.json() == {"hash": etag(b"hello world"), "key": "b64/key"}


def test_region_queries_name_this_server_for_every_role(cloud: Cloud) -> None:
    host = cloud.url.removeprefix("http://")
    asked = {"ak": cloud.auth.get_access_key(), "bucket": cloud.bucket}
    answer = requests.get(f"{cloud.url}/v4/query", params=asked, timeout=60)
    assert answer.headers["X-Reqid"]
    (region,) = answer.json()["hosts"]
    assert all(region[role]["domains"] == [host] for role in ("io", "io_src", "up", "uc", "rs", "rsf", "api"))
    assert region["ttl"] > 0
    old = requests.get(f"{cloud.url}/v2/query", params=asked, timeout=60).json()
    assert old["up"]["src"]["main"] == old["rs"]["acc"]["main"] == [host]
    unknown = requests.get(f"{cloud.url}/v4/query", params={**asked, "bucket": "nothing"}, timeout=60)
    assert (unknown.status_code, unknown.json()) == (631, {"error": "no such bucket"})
    assert unknown.headers["X-Reqid"]


def test_an_interrupted_upload_goes_on_where_it_was(cloud: Cloud, tmp_path: Path) -> None:
    """By the SDK's own record of what it has sent."""
    path, data = big_file(tmp_path, 13 * MIB)

    class Unplugged(Exception):
        pass

    def unplug(done: int, total: int) -> None:
        if done >= 8 * MIB:
            raise Unplugged

    recorder = qiniu.UploadProgressRecorder(str(tmp_path / "progress"))
    (tmp_path / "progress").mkdir()
    options = {"version": "v2", "upload_progress_recorder": recorder, "bucket_name": cloud.bucket}
    with pytest.raises(Unplugged):
        qiniu.put_file(cloud.token("big"), "big", str(path), progress_handler=unplug, **options)
    sent: list[int] = []
    ret, info = qiniu.put_file(
        cloud.token("big"), "big", str(path), progress_handler=lambda done, total: sent.append(done), **options
    )
    assert info.status_code == 200, info
    assert ret["hash"] == etag(data)
    assert json.dumps(sent)


def test_fetch_brings_what_another_server_has(cloud: Cloud) -> None:
    cloud.put("source", b"from elsewhere", mime_type="text/plain")
    url = cloud.download_url("source")
    ret, info = cloud.buckets.fetch(url, cloud.bucket, "fetched")
    if cloud.open:
        assert info.status_code == 200, info
        assert ret == {"key": "fetched", "hash": etag(b"from elsewhere"), "fsize": 14, "mimeType": "text/plain"}
    else:  # a server that others reach does not ask its own loopback for them
        assert info.status_code == 400, info
