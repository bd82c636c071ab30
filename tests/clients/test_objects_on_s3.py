"""Object storage over S3, for real: Qiniu's own SDK uploads, lists, downloads and processes, an image is imported, and every byte
lies in an S3 server of moto's, which speaks the protocol over HTTP.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import requests
from client_rig import Sources, Thread

import milepost
from milepost.bucket import etag, etag_of_parts
from milepost.settings import Settings

qiniu = pytest.importorskip("qiniu")
moto_server = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")
datasets = pytest.importorskip("sklearn.datasets")

MIB = 1 << 20
STORE, PREFIX, REGION = "their-bucket", "milepost", "us-east-1"
KEYS = {"aws_access_key_id": "an-access-key", "aws_secret_access_key": "a-secret-key"}
BUCKET = "media"
PHOTO = Path(datasets.__file__).parent / "images" / "china.jpg"  # 640x427


class Cloud(msgspec.Struct):
    """A running server whose objects are in S3, and that S3 itself."""

    url: str
    auth: Any
    s3: Any

    def put(self, key: str, data: bytes, **policy: Any) -> Any:
        ret, info = qiniu.put_data(self.auth.upload_token(BUCKET, key, policy=policy or None), key, data)
        assert info.status_code == 200, info
        return ret

    def get(self, key: str, **headers: str) -> requests.Response:
        url = self.auth.private_download_url(f"{self.url}/objects/{BUCKET}/{key}")
        return requests.get(url, headers=headers, timeout=60)

    def stored(self) -> dict[str, str]:
        """What S3 has: its own etags by key."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=STORE)
        return {one["Key"]: one["ETag"].strip('"') for page in pages for one in page.get("Contents", ())}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("s3")
    tempdir, tempfile.tempdir = tempfile.tempdir, str(folder)  # where the SDK keeps what it learned of regions
    storage = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    storage.start()
    host, port = storage.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    s3 = boto3.client("s3", endpoint_url=endpoint, region_name=REGION, **KEYS)
    s3.create_bucket(Bucket=STORE)
    options = "&".join(f"{name}={value}" for name, value in {"endpoint": endpoint, "region": REGION, **KEYS}.items())
    settings = Settings(
        port=0, data=str(folder / "data"), auth="none", egress_private=True, objects_url=f"s3://{STORE}/{PREFIX}?{options}"
    )
    thread = Thread(settings)
    thread.start()
    _, url = thread.wait_ready()
    qiniu.set_default(default_uc_host=url, default_api_host=url)
    auth = qiniu.Auth("any", "thing")
    _, info = qiniu.BucketManager(auth).mkbucketv3(BUCKET, "z0")
    assert info.status_code == 200, info
    yield Cloud(url, auth, s3)
    thread.stop()
    storage.stop()
    tempfile.tempdir = tempdir
    assert not list((folder / "data").rglob("objects/buckets/*")), "bytes that should be in S3"


def test_a_form_upload_lies_in_s3_and_is_read_in_ranges(cloud: Cloud) -> None:
    data = hashlib.shake_256(b"s3").digest(3 * MIB)
    before = cloud.stored()
    assert cloud.put("in/a.bin", data)["hash"] == etag(data)
    (key,) = cloud.stored().keys() - before.keys()
    assert key.startswith(f"{PREFIX}/")
    assert cloud.stored()[key] == hashlib.md5(data).hexdigest()
    assert cloud.get("in/a.bin").content == data
    part = cloud.get("in/a.bin", Range=f"bytes={MIB}-{MIB + 99}")
    assert (part.status_code, part.content) == (206, data[MIB : MIB + 100])
    assert part.headers["Content-Range"] == f"bytes {MIB}-{MIB + 99}/{len(data)}"
    assert cloud.get("in/a.bin", Range="bytes=-10").content == data[-10:]
    assert cloud.get("in/a.bin", Range=f"bytes={len(data)}-").status_code == 416


@pytest.mark.parametrize("size_mib", [11, 40])
def test_a_resumable_upload_is_one_object_of_s3(cloud: Cloud, tmp_path: Path, size_mib: int) -> None:
    """The larger one is sent to S3 in parts."""
    data = (hashlib.shake_256(b"parts").digest(MIB) * size_mib)[:-7]
    path = tmp_path / "big.bin"
    path.write_bytes(data)
    before = cloud.stored().keys()
    key = f"big-{size_mib}"
    ret, info = qiniu.put_file_v2(cloud.auth.upload_token(BUCKET, key), key, str(path), part_size=5 * MIB, bucket_name=BUCKET)
    assert info.status_code == 200, info
    parts = [data[at : at + 5 * MIB] for at in range(0, len(data), 5 * MIB)]
    assert ret["hash"] == etag_of_parts([etag(one) for one in parts], [len(one) for one in parts])
    assert len(cloud.stored().keys() - before) == 1
    assert hashlib.sha256(cloud.get(key).content).digest() == hashlib.sha256(data).digest()


def test_objects_are_listed_copied_moved_and_deleted_and_s3_with_them(cloud: Cloud) -> None:
    buckets, before = qiniu.BucketManager(cloud.auth), cloud.stored().keys()
    for number in range(3):
        cloud.put(f"list/{number}", b"%d" % number)
    ret, _, info = buckets.list(BUCKET, prefix="list/", limit=2)
    assert [one["key"] for one in ret["items"]] == ["list/0", "list/1"], info
    ret, eof, _ = buckets.list(BUCKET, prefix="list/", marker=ret["marker"])
    assert ([one["key"] for one in ret["items"]], eof) == (["list/2"], True)
    assert buckets.copy(BUCKET, "list/0", BUCKET, "list/copy")[1].status_code == 200
    assert buckets.move(BUCKET, "list/1", BUCKET, "list/moved")[1].status_code == 200
    assert cloud.get("list/copy").content == b"0"
    assert cloud.get("list/moved").content == b"1"
    for key in ("list/0", "list/2", "list/copy", "list/moved"):
        assert buckets.delete(BUCKET, key)[1].status_code == 200
    assert cloud.stored().keys() == before


def test_a_picture_is_processed_from_s3_to_s3(cloud: Cloud) -> None:
    from PIL import Image

    cloud.put("in/photo.jpg", PHOTO.read_bytes())
    small = qiniu.urlsafe_base64_encode(f"{BUCKET}:out/small.png")
    mark = qiniu.urlsafe_base64_encode(f"kodo://{BUCKET}/in/photo.jpg")
    commands = [f"imageView2/2/w/64/format/png|saveas/{small}", f"watermark/1/image/{mark}/ws/0.2", "qhash/md5"]
    started, info = qiniu.PersistentFop(cloud.auth, BUCKET).execute("in/photo.jpg", commands)
    assert started is not None, info
    with milepost.Client(cloud.url, wire="qiniu", credentials=milepost.KeyPair(access="any", secret="thing")) as client:
        items = client.wait(started["persistentId"], timeout_s=60).view.raw["items"]
    assert [item["code"] for item in items] == [0, 0, 0], items
    found = cloud.get("out/small.png")
    assert etag(found.content) == items[0]["hash"]
    assert Image.open(io.BytesIO(found.content)).size == (64, 43)
    assert Image.open(io.BytesIO(cloud.get(items[1]["key"]).content)).size == (640, 427)
    assert items[2]["result"]["hash"] == hashlib.md5(PHOTO.read_bytes()).hexdigest()


def test_an_imported_image_lies_in_s3(cloud: Cloud, sources: Sources) -> None:
    file, before = sources.files["disk.qcow2"], cloud.stored()
    with milepost.Client(cloud.url) as client:
        job = client.submit(
            "import",
            {
                "import_from": file.url,
                "import_from_format": "qcow2",
                "image_properties": {"name": "disk", "disk_format": "qcow2", "container_format": "bare"},
            },
        )
        result = client.wait(job.id, timeout_s=60).result
    answer = requests.get(f"{cloud.url}/v2/images/{result['image_id']}/file", timeout=60)
    assert hashlib.sha512(answer.content).hexdigest() == file.sha512
    assert [cloud.stored()[key] for key in cloud.stored().keys() - before.keys()] == [file.md5]
