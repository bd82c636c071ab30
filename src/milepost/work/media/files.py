"""`qhash` and `concat`: what concerns a file's bytes, whatever they are.

Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/{qhash,concat}.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import msgspec

from milepost.work.media.commands import BadCommand, Command, FopFailed, Output, Tools, register
from milepost.work.media.grammar import Arguments, decode_text, one_of, shown
from milepost.work.media.tools import own_object
from milepost.work.threads import Stop, in_thread

PIECE_BYTES = 4 << 20
CONCAT_MAX = 1000  # with the source
MIME_CHARS_MAX = 200

Algorithm = Literal["md5", "sha1", "sha256"]


class QHash(msgspec.Struct, frozen=True):
    """The digest of the source."""

    algorithm: Algorithm


class Concat(msgspec.Struct, frozen=True):
    """The source and other objects of its bucket, one behind the other."""

    mime_type: str
    urls: tuple[str, ...]


# --- qhash -----------------------------------------------------------------------------------------------------------


def parse_qhash(args: list[str]) -> QHash:
    """Errors: BadCommand."""
    given = Arguments("qhash", args)
    algorithm = cast(Algorithm, one_of(given.next("the algorithm"), "qhash: algorithm", ("md5", "sha1", "sha256")))
    if given:
        raise given.unknown(given.next("it"))
    return QHash(algorithm)


async def run_qhash(spec: QHash, source: Path, _out: Path, _tools: Tools) -> Output:
    """The digest in lower hex, and the size."""
    stop = Stop()
    return Output.info(await in_thread(_digest, spec.algorithm, source, stop, stop=stop))


def _digest(algorithm: Algorithm, source: Path, stop: Stop) -> dict[str, str | int]:
    digest, size_bytes = hashlib.new(algorithm, usedforsecurity=False), 0
    with source.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            stop.check()
            digest.update(piece)
            size_bytes += len(piece)
    return {"hash": digest.hexdigest(), "fsize": size_bytes}


# --- concat ----------------------------------------------------------------------------------------------------------


def parse_mime_type(value: str, what: str) -> str:
    """The base64 of a media type.  Errors: BadCommand."""
    text = decode_text(value, what).strip()
    if "/" not in text or len(text) > MIME_CHARS_MAX or not text.isascii() or not text.isprintable():
        raise BadCommand(f"{what} is a media type such as text/plain, not {shown(text)}")
    return text


def parse_concat(args: list[str]) -> Concat:
    """Errors: BadCommand."""
    given = Arguments("concat", args)
    if given.next("mimeType") != "mimeType":
        raise BadCommand("concat: mimeType comes first")
    mime_type = parse_mime_type(given.next("the value of mimeType"), "concat: mimeType")
    urls = []
    while given:
        urls.append(decode_text(given.next("a URL"), "concat: a URL"))
    if not 1 <= len(urls) < CONCAT_MAX or not all(urls):
        raise BadCommand(f"concat: from 1 to {CONCAT_MAX - 1} files follow, each as the base64 of its URL")
    return Concat(mime_type, tuple(urls))


async def run_concat(spec: Concat, source: Path, out: Path, tools: Tools) -> Output:
    """Errors: FopFailed, also for files of other buckets."""
    paths = [source, *[await fetch_neighbour(url, tools) for url in spec.urls]]
    check_total(paths, tools.settings.mkzip_bytes_max)
    stop = Stop()
    await in_thread(_join, paths, out, stop, stop=stop)
    return Output.object(out, spec.mime_type)


def _join(paths: Sequence[Path], out: Path, stop: Stop) -> None:
    with out.open("xb") as file:
        for path in paths:
            with path.open("rb") as part:
                while piece := part.read(PIECE_BYTES):
                    stop.check()
                    file.write(piece)


# --- what mkzip shares -----------------------------------------------------------------------------------------------


async def fetch_neighbour(url: str, tools: Tools) -> Path:
    """The file behind a URL of the source's own bucket.  Errors: FopFailed for all other URLs."""
    named = own_object(url, tools.settings)
    if named is None or named[0] != tools.origin.bucket:
        raise FopFailed(f"failed to GET {shown(url)}: only objects of the bucket {tools.origin.bucket} are read here")
    return await tools.fetch(url)


def check_total(paths: Sequence[Path], bytes_max: int) -> None:
    """Errors: FopFailed when the files are too much together."""
    total = sum(path.stat().st_size for path in paths)
    if total > bytes_max:
        raise FopFailed(f"the files have {total} bytes together; at most {bytes_max} are allowed")


register(Command(name="qhash", makes="info", parse=parse_qhash, run=run_qhash))
register(Command(name="concat", makes="object", parse=parse_concat, run=run_concat))

__all__ = ["Concat", "QHash", "check_total", "fetch_neighbour", "parse_concat", "parse_qhash"]
