"""A receiver of callbacks that fails, hangs and forgets as a test asks, and keeps what it was sent."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Received(NamedTuple):
    id: str
    job_id: str
    state: str
    body: bytes
    headers: dict[str, str]

    def is_signed_with(self, secret: str) -> bool:
        """As the specification has it, not as our code does."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        text = f"{self.id}.{self.headers['webhook-timestamp']}.".encode() + self.body
        return self.headers["webhook-signature"] == "v1," + base64.b64encode(hmac.digest(key, text, hashlib.sha256)).decode()


class Receiver:
    """`answer(received, n)` says what the nth call for a webhook id gets: a status, or None to hang until the end."""

    def __init__(self, answer: Callable[[Received, int], int | None] = lambda _received, _n: 204) -> None:
        self.calls: list[Received] = []
        self.accepted: Counter[str] = Counter()  # by job
        self.over = threading.Event()
        self._answer, self._lock = answer, threading.Lock()
        self._seen: Counter[str] = Counter()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver._take(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """A sender that was killed is no news."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"

    def __enter__(self) -> Receiver:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        told = json.loads(body)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        received = Received(headers["webhook-id"], told["data"]["id"], told["data"]["state"], body, headers)
        with self._lock:
            self.calls.append(received)
            self._seen[received.id] += 1
            status = self._answer(received, self._seen[received.id])
            if status is not None and 200 <= status < 300:
                self.accepted[received.job_id] += 1
        if status is None:
            self.over.wait(30)
            handler.close_connection = True
            return
        try:
            handler.send_response(status)
            handler.send_header("content-length", "0")
            handler.end_headers()
        except OSError:
            pass
