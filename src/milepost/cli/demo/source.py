"""What the demo imports: a disk image with a real partition table, on a small web server that is as slow as it is told.

The server counts every byte that it sends and to whom it began where, so that the demo can show what was fetched twice.
"""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec

from milepost.errors import InvalidInput

MADE_BYTES = 48 << 20
SECTOR = 512
PIECE = 64 << 10
FETCHED_MAX_BYTES = 2 << 30
MAGIC = ((b"QFI\xfb", "qcow2"), (b"KDMV", "vmdk"), (b"vhdxfile", "vhdx"), (b"conectix", "vhd"))


class Source(msgspec.Struct, frozen=True):
    """An image file and what it is."""

    path: Path
    format: str
    size_bytes: int
    sha512: str
    made: str  # how it came to be, for people


def find_image(asked: str | None, folder: Path) -> Source:
    """The user's image, or one made here.  Errors: InvalidInput when it cannot be had."""
    if asked is None:
        return make_image(folder)
    if asked.startswith(("http://", "https://")):
        return _describe(_download(asked, folder / "given.img"), f"fetched from {asked}")
    path = Path(asked).expanduser()
    if not path.is_file() or path.stat().st_size == 0:
        raise InvalidInput(f"there is no image {asked}", path="--image", hint="a path, or an http or https URL")
    return _describe(path, str(path))


def make_image(folder: Path) -> Source:
    """A disk with an MBR, one bootable partition, and contents that do not compress; qcow2 where qemu-img is, else raw."""
    raw = folder / "disk.raw"
    noise = random.Random(20260304).randbytes
    with raw.open("wb") as file:
        file.write(_boot_record(MADE_BYTES // SECTOR))
        file.write(bytes((1 << 20) - SECTOR))
        while file.tell() < MADE_BYTES:
            file.write(noise(1 << 20))
    if shutil.which("qemu-img") is None:
        return _describe(raw, "made here: raw, one partition (no qemu-img)")
    qcow2 = folder / "disk.qcow2"
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(qcow2)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    raw.unlink()
    return _describe(qcow2, "made here by qemu-img: qcow2, one partition")


GREETING = "Milepost: this machine has booted from an imported image"

# cli; xor ax,ax; mov ds,ax; mov si,0x7c17; cld
# next: lodsb; test al,al; jz halt; mov dx,0x3f8; out dx,al; jmp next; halt: hlt; jmp halt
_BOOT_CODE = bytes.fromhex("fa 31c0 8ed8 be177c fc ac 84c0 7406 baf803 ee ebf5 f4 ebfd")


def _boot_record(sectors: int) -> bytes:
    """A master boot record with one Linux partition from 1 MiB to the end, whose code says a sentence on the serial port."""
    start = (1 << 20) // SECTOR
    entry = b"\x80\xfe\xff\xff\x83\xfe\xff\xff" + start.to_bytes(4, "little") + (sectors - start).to_bytes(4, "little")
    code = _BOOT_CODE + GREETING.encode() + b"\r\n\0"
    return code.ljust(440, b"\0") + b"MILE\0\0" + entry + bytes(48) + b"\x55\xaa"


def _download(url: str, target: Path) -> Path:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer, target.open("wb") as file:  # noqa: S310 - http(s) was checked
            while part := answer.read(1 << 20):
                file.write(part)
                if file.tell() > FETCHED_MAX_BYTES:
                    raise InvalidInput(f"the image is larger than {FETCHED_MAX_BYTES >> 30} GiB", path="--image")
    except OSError as error:
        raise InvalidInput(f"{url} cannot be fetched: {error}", path="--image") from error
    return target


def _describe(path: Path, made: str) -> Source:
    digest = hashlib.sha512()
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(0)
        while part := file.read(1 << 20):
            digest.update(part)
    found = next((name for magic, name in MAGIC if head.startswith(magic)), "raw")
    return Source(path, found, path.stat().st_size, digest.hexdigest(), made)


class SlowServer:
    """Serves one file with ranges and a strong ETag, at `rate` bytes a second in all (None: as fast as it goes)."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.rate: float | None = None
        self.sent: list[tuple[int, int]] = []  # of each answer: where it began, how many bytes of it were taken
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/{self.source.path.name}"

    @contextmanager
    def running(self) -> Iterator[SlowServer]:
        thread = threading.Thread(target=self._http.serve_forever, name="demo-images", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()

    def begin(self, start: int) -> int:
        """Note an answer; returns its number."""
        with self._lock:
            self.sent.append((start, 0))
            return len(self.sent) - 1

    def count(self, number: int, taken: int) -> None:
        """Note bytes of an answer."""
        with self._lock:
            start, before = self.sent[number]
            self.sent[number] = (start, before + taken)

    @property
    def sent_bytes(self) -> int:
        with self._lock:
            return sum(taken for _, taken in self.sent)


def _handler(server: SlowServer) -> type[BaseHTTPRequestHandler]:
    source = server.source

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._head()

        def do_GET(self) -> None:
            start, end = self._head()
            number = server.begin(start)
            try:
                with source.path.open("rb") as file:
                    file.seek(start)
                    self._send(file, end - start, number)
            except OSError:  # the reader went away, as it does when it is killed
                self.close_connection = True

        def _head(self) -> tuple[int, int]:
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start, end = 0, source.size_bytes
            if asked and int(asked[1]) < end:
                start, end = int(asked[1]), min(int(asked[2] or end - 1) + 1, end)
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(end - start))
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{source.sha512[:32]}"')
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{source.size_bytes}")
            self.end_headers()
            return start, end

        def _send(self, file: Any, left: int, number: int) -> None:
            while left:
                part = file.read(min(PIECE, left))
                self.wfile.write(part)
                left -= len(part)
                server.count(number, len(part))
                if server.rate is not None:
                    time.sleep(len(part) / server.rate)

        def log_message(self, *_: object) -> None:
            """Nothing: the demo tells its own story."""

    return Handler
