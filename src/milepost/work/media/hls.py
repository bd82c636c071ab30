"""HLS: the parameters of `avthumb/m3u8` as a value, and the playlist that ffmpeg wrote with its segments under their keys.  Pure.

Rules
1. Each segment is an object of its own in the playlist's bucket; the item names the playlist alone.
2. Segments are numbered from 000000.  Without a pattern their keys begin with the playlist's automatic key.
3. `noDomain/1`: the playlist names its segments relative to itself, so that a download beside it finds them, whatever the host
   and whether or not the bucket is in the path.  Otherwise by whole URLs.

Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/av/segtime.md.
"""

from __future__ import annotations

import posixpath
import re
from urllib.parse import quote

import msgspec

from milepost.work.media.commands import BadCommand
from milepost.work.media.grammar import decode_bytes, decode_text, number, one_of, shown

KEYS = frozenset({"noDomain", "domain", "segtime", "segFirstTime", "pattern", "savePattern", "hlsKey", "hlsKeyType", "hlsKeyUrl"})
COUNT = "$(count)"
MIME_SEGMENT = "video/mp2t"
SAFE = "/-_.~!$&'()*+,;=:@"  # in a URL's path
_VARIABLE = re.compile(r"\$\((count|keybase|key|fname|ext)\)")
_CONTROL = {chr(code) for code in (*range(32), 127)}


class Hls(msgspec.Struct, frozen=True, kw_only=True):
    """How the stream is cut and named."""

    segment_s: float = 10.0
    first_s: float | None = None
    relative: bool = False
    domain: str | None = None
    pattern: str | None = None
    key: bytes | None = None
    key_url: str | None = None


class HlsReader:
    """Collects the parameters one by one."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._given: dict[str, str] = {}

    def take(self, key: str, value: str) -> None:
        """It is read at the end: parameters come in any order."""
        self._given["savePattern" if key == "pattern" else key] = value

    def hls(self) -> Hls:
        """Errors: BadCommand."""
        given, name = self._given, self._command
        relative = one_of(given.get("noDomain", "0"), f"{name}: noDomain", ("0", "1")) == "1"
        if relative and "domain" in given:
            raise BadCommand(f"{name}: domain does not go with noDomain/1")
        first = given.get("segFirstTime")
        key, key_url = self._key()
        return Hls(
            segment_s=number(given.get("segtime", "10"), f"{name}: segtime", 2, 120),
            first_s=None if first is None else number(first, f"{name}: segFirstTime", 1, 120),
            relative=relative,
            domain=self._domain(),
            pattern=None if "savePattern" not in given else parse_pattern(given["savePattern"], f"{name}: savePattern"),
            key=key,
            key_url=key_url,
        )

    def _domain(self) -> str | None:
        if "domain" not in self._given:
            return None
        domain = decode_text(self._given["domain"], f"{self._command}: domain")
        bare = domain.removeprefix("http://").removeprefix("https://").rstrip("/")
        if not bare or set(bare) & (_CONTROL | set(' "/\\<>#?')):
            raise BadCommand(f"{self._command}: domain is a host, not {shown(domain)}")
        return domain.rstrip("/") if "://" in domain else f"http://{bare}"

    def _key(self) -> tuple[bytes | None, str | None]:
        given, name = self._given, self._command
        if given.get("hlsKeyType", "0") not in ("0", "0.0"):
            raise BadCommand(f"{name}: hlsKeyType must be 0; keys encrypted for the service cannot be read here")
        if "hlsKey" not in given:
            if "hlsKeyUrl" in given:
                raise BadCommand(f"{name}: hlsKeyUrl without hlsKey")
            return None, None
        key = decode_bytes(given["hlsKey"], f"{name}: hlsKey")
        if len(key) != 16:
            raise BadCommand(f"{name}: hlsKey is the base64 of 16 bytes, not of {len(key)}")
        if "hlsKeyUrl" not in given:
            raise BadCommand(f"{name}: hlsKeyUrl is missing: players ask it for the key")
        url = decode_text(given["hlsKeyUrl"], f"{name}: hlsKeyUrl")
        if not url or len(url) > 2000 or set(url) & (_CONTROL | {'"', " "}):
            raise BadCommand(f"{name}: hlsKeyUrl is a URL, not {shown(url)}")
        return key, url


def parse_pattern(value: str, what: str) -> str:
    """The base64 of a name with `$(count)`.  Errors: BadCommand."""
    pattern = decode_text(value, what)
    if COUNT not in pattern:
        raise BadCommand(f"{what} has no {COUNT}: {shown(pattern)}")
    if pattern.count(COUNT) > 1 or set(pattern) & _CONTROL or len(pattern.encode()) > 700:
        raise BadCommand(f"{what} is a short name with one {COUNT}: {shown(pattern)}")
    return pattern


def fill_pattern(pattern: str, count: int, source_key: str) -> str:
    """The name of the count-th file: six digits, and what the pattern takes of the source's key."""
    name = posixpath.basename(source_key)
    base, extension = posixpath.splitext(name)
    values = {"count": f"{count:06d}", "keybase": base, "key": source_key, "fname": name, "ext": extension}
    return _VARIABLE.sub(lambda found: values[found[1]], pattern)


def segment_keys(spec: Hls, count: int, source_key: str) -> list[str]:
    """The segments' keys, by the pattern."""
    assert spec.pattern is not None, "it is known before anything is cut"
    return [fill_pattern(spec.pattern, number, source_key) for number in range(count)]


def relative_to(playlist: str, key: str) -> str:
    """The reference that leads from one key's URL to another's."""
    # Keys may hold empty and dot segments, which URLs fold: such a one is named from the root of the bucket's own host.
    parts = [*playlist.split("/"), *key.split("/")]
    if any(part in ("", ".", "..") for part in parts):
        return "/" + quote(key, safe=SAFE)
    # The folder's way and then the name: the key may itself be called as a folder of the playlist's.
    way = posixpath.relpath(posixpath.dirname(key) or ".", posixpath.dirname(playlist) or ".")
    path = quote(posixpath.basename(key) if way == "." else f"{way}/{posixpath.basename(key)}", safe=SAFE)
    return f"./{path}" if ":" in path.split("/")[0] else path  # a colon there would be taken for a scheme


def write_playlist(text: str, references: dict[str, str]) -> str:
    """ffmpeg's playlist with other names.  Errors: ValueError for a line that is neither a tag nor one of the names."""
    lines = []
    for line in text.splitlines():
        if line.startswith("#") or not line:
            lines.append(line)
        elif line in references:
            lines.append(references[line])
        else:
            raise ValueError(f"unexpected line in the playlist: {line!r}")
    return "\n".join(lines) + "\n"


__all__ = [
    "COUNT",
    "KEYS",
    "MIME_SEGMENT",
    "Hls",
    "HlsReader",
    "fill_pattern",
    "parse_pattern",
    "relative_to",
    "segment_keys",
    "write_playlist",
]
