"""A real HTTP server on loopback that serves a file and lies about it in every way a test asks for."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any


class Asked:
    """One request, and the socket to answer it on."""

    def __init__(self, sock: socket.socket, path: str, headers: dict[str, str], count: int) -> None:
        self.sock, self.path, self.headers, self.count = sock, path, headers, count

    def head(self, status: str, **headers: Any) -> None:
        lines = [f"HTTP/1.1 {status}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value is not None]
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode())

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        """Break the connection as a crashed server does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    @property
    def start(self) -> int | None:
        """Where the asked range begins."""
        text = self.headers.get("range", "")
        return int(text.removeprefix("bytes=").rstrip("-")) if text else None


Answer = Callable[[Asked], None]


def file(
    data: bytes, *, etag: str | None = '"v1"', ranges: bool = True, drop_at: list[int] | None = None, **extra: Any
) -> Answer:
    """Serve the file; at each offset in `drop_at` the connection breaks, once."""
    drops = list(drop_at or ())

    def answer(asked: Asked) -> None:
        start = asked.start if ranges else None
        if start is not None and asked.headers.get("if-range") not in (None, etag):
            start = None
        if start is None:
            asked.head("200 OK", Content_Length=len(data), ETag=etag, Accept_Ranges="bytes" if ranges else None, **extra)
            start = 0
        elif start >= len(data):
            asked.head("416 Range Not Satisfiable", Content_Range=f"bytes */{len(data)}", Content_Length=0)
            return
        else:
            span = f"bytes {start}-{len(data) - 1}/{len(data)}"
            asked.head("206 Partial Content", Content_Length=len(data) - start, Content_Range=span, ETag=etag, **extra)
        if drops and drops[0] > start:
            asked.send(data[start : drops.pop(0)])
            return  # closed early
        asked.send(data[start:])

    return answer


def status(line: str, **headers: Any) -> Answer:
    return lambda asked: asked.head(line, Content_Length=0, **headers)


def in_turn(*answers: Answer) -> Answer:
    """The first request gets the first answer; the last one is repeated."""
    return lambda asked: answers[min(asked.count, len(answers) - 1)](asked)


class ImageSource:
    """Answers by path; remembers what was asked."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[Asked] = []
        self.open = threading.Event()  # set when the server stops: slow answers end
        self._listener = socket.create_server((host, 0))
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> ImageSource:
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(5)
        for thread in self._threads:
            thread.join(5)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def count(self, path: str) -> int:
        return sum(asked.path == path for asked in self.asked)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data:
                piece = sock.recv(65536)
                if not piece:
                    return
                data += piece
            lines = data.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
            path = lines[0].split(" ")[1]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            asked = Asked(sock, path, headers, self.count(path))
            self.asked.append(asked)
            self.answers.get(path, status("404 Not Found"))(asked)
