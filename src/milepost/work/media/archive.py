"""`mkzip/2` and `mkzip/4`: objects of one bucket packed into a ZIP archive; in mode 4 the source lists them.

Rules
1. Only objects of the source's bucket are packed.  Their number and their bytes together are bounded before anything is packed.
2. Empty files are refused, as at the service.  So are two entries of one name, and names that leave the folder in which somebody
   unpacks the archive: absolute ones, with `..`, a drive, a backslash or a control character.
3. The same files under the same names make the same bytes, so the archive's key, which is its hash, is the same too.

Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/_frozen/mkzip.md.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import msgspec

from milepost.work.media.av import size_of
from milepost.work.media.commands import BadCommand, Command, FopFailed, Output, Tools, register
from milepost.work.media.files import check_total, fetch_neighbour
from milepost.work.media.grammar import Arguments, decode_text, one_of, shown
from milepost.work.threads import Stop, in_thread

ARGUMENTS_CHARS_MAX = 2048  # of mode 2
INDEX_BYTES_MAX = 8 << 20
NAME_BYTES_MAX = 1024
PIECE_BYTES = 1 << 20
PACKED = frozenset(
    {
        ".7z",
        ".aac",
        ".apk",
        ".avi",
        ".avif",
        ".bz2",
        ".docx",
        ".flac",
        ".flv",
        ".gif",
        ".gz",
        ".heic",
        ".jar",
        ".jpeg",
        ".jpg",
        ".m4a",
        ".mkv",
        ".mov",
        ".mp3",
        ".mp4",
        ".ogg",
        ".png",
        ".pptx",
        ".rar",
        ".ts",
        ".webm",
        ".webp",
        ".xlsx",
        ".xz",
        ".zip",
        ".zst",
    }
)  # fmt: skip  (what deflating makes no smaller)

Encoding = Literal["utf-8", "gbk"]
_DRIVE = re.compile(r"[A-Za-z]:")


class Entry(msgspec.Struct, frozen=True):
    """One file: where it is, and its name in the archive (None: that of the URL)."""

    url: str
    alias: str | None = None

    @property
    def name(self) -> str:
        """Its name in the archive."""
        return self.alias if self.alias is not None else unquote(posixpath.basename(urlsplit(self.url).path))


class MkZip(msgspec.Struct, frozen=True, kw_only=True):
    """The whole command; in mode 4 the entries are in the source."""

    mode: Literal[2, 4]
    encoding: Encoding = "utf-8"
    entries: tuple[Entry, ...] = ()


# --- the texts -------------------------------------------------------------------------------------------------------


def parse_mkzip(args: list[str]) -> MkZip:
    """Errors: BadCommand."""
    given = Arguments("mkzip", args)
    mode = one_of(given.next("the mode"), "mkzip: mode", ("2", "4"))
    encoding: Encoding = "utf-8"
    if given.peek() == "encoding":
        given.next("encoding")
        name = decode_text(given.next("the value of encoding"), "mkzip: encoding").lower()
        encoding = "gbk" if one_of(name, "mkzip: encoding", ("utf-8", "utf8", "gbk")) == "gbk" else "utf-8"
    if mode == "4":
        if given:
            raise given.unknown(given.next("it"))
        return MkZip(mode=4, encoding=encoding)
    if sum(len(arg) + 1 for arg in args) > ARGUMENTS_CHARS_MAX:
        raise BadCommand(f"mkzip/2 takes at most {ARGUMENTS_CHARS_MAX} characters; mkzip/4 reads its list from a file")
    entries = parse_entries(given)
    if not entries:
        raise BadCommand("mkzip: url is missing")
    check_names(entries, encoding)
    return MkZip(mode=2, encoding=encoding, entries=tuple(entries))


def parse_entries(given: Arguments) -> list[Entry]:
    """`url/<b64>[/alias/<b64>]`, again and again.  Errors: BadCommand."""
    entries = []
    while given:
        if (key := given.next("url")) != "url":
            raise given.unknown(key)
        url = decode_text(given.next("the value of url"), "mkzip: url")
        alias = None
        if given.peek() == "alias":
            given.next("alias")
            alias = decode_text(given.next("the value of alias"), "mkzip: alias")
        entries.append(Entry(url, alias))
    return entries


def parse_index(text: str, files_max: int, encoding: Encoding) -> list[Entry]:
    """The lines of mode 4's source.  Errors: BadCommand with the line's number."""
    entries: list[Entry] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        if len(entries) == files_max:
            raise BadCommand(f"mkzip: more than {files_max} files")
        try:
            found = parse_entries(Arguments("mkzip", line.strip().removeprefix("/").split("/")))
            if len(found) != 1:
                raise BadCommand("mkzip: a line is /url/<base64>[/alias/<base64>]")
        except BadCommand as error:
            raise BadCommand(f"line {number} of the list: {error}") from None
        entries += found
    if not entries:
        raise BadCommand("mkzip: the list is empty")
    check_names(entries, encoding)
    return entries


def check_names(entries: list[Entry], encoding: Encoding) -> None:
    """Rule 2.  Errors: BadCommand."""
    seen: set[str] = set()
    for name in (entry.name for entry in entries):
        try:
            size = len(name.encode(encoding))
        except UnicodeEncodeError:
            raise BadCommand(f"mkzip: the name {shown(name)} cannot be written in {encoding}") from None
        parts = name.split("/")
        if not 0 < size <= NAME_BYTES_MAX or any(part in ("", ".", "..") for part in parts):
            raise BadCommand(f"mkzip: {shown(name)} is no name of a file in an archive")
        if "\\" in name or _DRIVE.match(name) or any(not char.isprintable() for char in name):
            raise BadCommand(f"mkzip: the name {shown(name)} has characters that are not safe in an archive")
        if name.casefold() in seen:
            raise BadCommand(f"mkzip: two files have the name {shown(name)}; give one of them an alias")
        seen.add(name.casefold())
    for name in seen:
        if any(parent in seen for parent in _parents(name)):
            raise BadCommand(f"mkzip: {shown(name)} lies in a file of the archive")


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


# --- the command -----------------------------------------------------------------------------------------------------


async def run_mkzip(spec: MkZip, source: Path, out: Path, tools: Tools) -> Output:
    """Errors: FopFailed."""
    limit = tools.settings.mkzip_files_max
    entries = list(spec.entries) if spec.mode == 2 else await in_thread(_read_index, source, limit, spec.encoding)
    paths = []
    for done, entry in enumerate(entries):
        paths.append(await fetch_neighbour(entry.url, tools))
        if size_of(paths[-1]) == 0:
            raise FopFailed(f"{shown(entry.url)} is empty: empty files are not packed")
        await tools.progress(done + 1, len(entries), "gathering", unit="files")
    check_total(paths, tools.settings.mkzip_bytes_max)
    stop = Stop()
    await in_thread(
        pack, [(entry.name, path) for entry, path in zip(entries, paths, strict=True)], out, spec.encoding, stop.check, stop=stop
    )
    return Output.object(out, "application/zip")


def _read_index(source: Path, files_max: int, encoding: Encoding) -> list[Entry]:
    if source.stat().st_size > INDEX_BYTES_MAX:
        raise FopFailed(f"the list of files has more than {INDEX_BYTES_MAX} bytes")
    try:
        return parse_index(source.read_text("utf-8-sig"), files_max, encoding)
    except UnicodeDecodeError:
        raise FopFailed("the list of files is no text in UTF-8") from None
    except BadCommand as error:
        raise FopFailed(str(error)) from None


class _GbkInfo(zipfile.ZipInfo):
    """An entry whose name is written in GBK, as old programs in China read it.

    The `zipfile` module knows ASCII and UTF-8 alone and asks this method for the bytes and the flags.
    """

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802
        return self.filename.encode("gbk"), self.flag_bits & ~0x800


def pack(files: list[tuple[str, Path]], out: Path, encoding: Encoding, check: Callable[[], None]) -> None:
    """The archive is at `out`.  `check` is called between pieces and may raise."""
    kind = _GbkInfo if encoding == "gbk" else zipfile.ZipInfo
    with zipfile.ZipFile(out, "x", allowZip64=True) as archive:
        for name, path in files:
            info = kind(name)  # its date is the format's first day: rule 3
            info.compress_type = zipfile.ZIP_STORED if posixpath.splitext(name)[1].lower() in PACKED else zipfile.ZIP_DEFLATED
            info.external_attr = 0o100644 << 16
            info.file_size = path.stat().st_size
            with path.open("rb") as source, archive.open(info, "w") as entry:
                while piece := source.read(PIECE_BYTES):
                    check()
                    entry.write(piece)


register(Command(name="mkzip", makes="object", parse=parse_mkzip, run=run_mkzip, named_by_hash=True))

__all__ = ["Entry", "MkZip", "check_names", "pack", "parse_index", "parse_mkzip"]
