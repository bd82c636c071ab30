"""The callback of an upload: what the application gets, that Qiniu's SDK accepts its signature, and what the uploader is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from client_rig import PASSWORD, Thread

from milepost.settings import Settings
from milepost.wiring import System

qiniu = pytest.importorskip("qiniu")


class Application:
    """What the application was sent, and what it answers."""

    def __init__(self) -> None:
        self.status, self.answer = 200, b'{"taken":true}'
        self.seen: list[tuple[str, dict[str, str], str]] = []
        application = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                application.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(application.status)
                self.send_header("content-length", str(len(application.answer)))
                self.end_headers()
                self.wfile.write(application.answer)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/told?by=milepost"


@pytest.fixture
def application() -> Iterator[Application]:
    made = Application()
    thread = threading.Thread(target=made.http.serve_forever, daemon=True)
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """A server with auth that may ask this machine, and a key of it; the bucket `media` is there."""
    folder: Path = tmp_path_factory.mktemp("kodo")
    thread = Thread(Settings(port=0, data=str(folder / "data"), auth="required", egress_private=True))
    thread.start()
    system, url = thread.wait_ready()
    auth = qiniu.Auth(*thread.call(make_key(system)))
    made = requests.post(f"{url}/mkbucketv3/media", auth=qiniu.auth.QiniuMacRequestsAuth(mac(auth)), timeout=60)
    assert made.status_code == 200
    yield url, auth
    thread.stop()


def mac(auth: Any) -> Any:
    return qiniu.auth.QiniuMacAuth(auth.get_access_key(), auth.get_secret_key().decode())


async def make_key(system: System) -> tuple[str, str]:
    await system.identities.create_project("demo")
    await system.identities.create_user("ann", PASSWORD)
    await system.identities.grant("ann", "demo", "member")
    key = await system.identities.create_access_key("ann", "demo")
    return key.id, key.secret


def upload(account: tuple[str, Any], key: str, **policy: Any) -> requests.Response:
    url, auth = account
    token = auth.upload_token("media", key, policy=policy)
    files = {"file": ("photo.jpg", b"hello", "image/jpeg")}
    return requests.post(url, data={"token": token, "key": key, "x:who": "ann & ben"}, files=files, timeout=60)


def test_the_application_is_asked_and_its_answer_is_the_uploads(account: tuple[str, Any], application: Application) -> None:
    body = "key=$(key)&size=$(fsize)&who=$(x:who)&hash=$(etag)"
    answer = upload(account, "in/a b.jpg", callbackUrl=application.url, callbackBody=body)
    assert (answer.status_code, answer.json()) == (200, {"taken": True})
    ((path, headers, sent),) = application.seen
    assert (path, sent) == (
        "/told?by=milepost",
        "key=in%2Fa%20b.jpg&size=5&who=ann%20%26%20ben&hash=Fqr0xh3cxeii2r7eDztILNmuqUNN",
    )
    accepted = account[1].verify_callback(headers["authorization"], application.url, sent, headers["content-type"])
    assert accepted
    assert not account[1].verify_callback(headers["authorization"], application.url, sent + "x", headers["content-type"])


def test_a_body_of_json(account: tuple[str, Any], application: Application) -> None:
    body = '{"key":$(key),"size":$(fsize),"none":$(imageInfo.width)}'
    policy = {"callbackUrl": application.url, "callbackBody": body, "callbackBodyType": "application/json"}
    assert upload(account, "j", **policy).status_code == 200
    assert application.seen[0][2] == '{"key":"j","size":5,"none":null}'


def test_the_next_application_is_asked_when_one_fails(account: tuple[str, Any], application: Application) -> None:
    urls = f"http://127.0.0.1:9/nobody;{application.url}"
    assert upload(account, "n", callbackUrl=urls, callbackBody="a=1").json() == {"taken": True}


@pytest.mark.parametrize(("status", "answer"), [(500, b"{}"), (200, b"no json"), (302, b"{}")])
def test_a_callback_that_fails_is_579_and_the_object_stays(
    account: tuple[str, Any], application: Application, status: int, answer: bytes
) -> None:
    application.status, application.answer = status, answer
    key = f"kept-{status}-{len(answer)}"
    refused = upload(account, key, callbackUrl=application.url, callbackBody="a=1")
    assert refused.status_code == 579
    assert "stored" in refused.json()["error"]
    url, auth = account
    assert requests.get(auth.private_download_url(f"{url}/objects/media/{key}"), timeout=60).content == b"hello"


def test_an_application_that_may_not_be_asked_is_refused_before_the_upload(account: tuple[str, Any]) -> None:
    refused = upload(account, "never", callbackUrl="ftp://127.0.0.1/", callbackBody="a=1")
    assert refused.status_code == 400
    url, auth = account
    assert requests.get(auth.private_download_url(f"{url}/objects/media/never"), timeout=60).status_code == 404
