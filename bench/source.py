"""A web server on loopback with one file, as fast as the kernel sends it."""

from __future__ import annotations

import argparse
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RANGE = re.compile(r"bytes=(\d+)-$").match


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of any path are the file; `Range: bytes=N-` is its rest."""

    protocol_version = "HTTP/1.1"
    file = Path()

    def do_HEAD(self) -> None:
        self._head()

    def do_GET(self) -> None:
        start = self._head()
        with self.file.open("rb") as file:
            self.connection.sendfile(file, start)

    def _head(self) -> int:
        size = self.file.stat().st_size
        asked = RANGE(self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(size - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{size}"')
        self.end_headers()
        self.wfile.flush()
        return start

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: it would be measured too."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    Handler.file = parser.parse_args().file
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(f"ready http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
