"""The text of `fops` as values: commands between `;`, steps between `|`, arguments between `/`.  Pure.

Rules
1. Everything is parsed before anything runs.  What is wrong is a `BadFop` with the number of the step, never another error.
2. `saveas/<entry>` is no step: it stands last and names where the output goes; entry is the URL-safe base64 of `bucket:key` or
   of `bucket` alone (the key is then the output's hash).  A `/sign/…` behind it belongs to another interface and is ignored.
3. Base64 values are URL-safe, with or without padding.
4. Characters that forms and URLs often escape (`! < > @ | ^ + % =`) may come percent-encoded once more.

Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/{pipeline,saveas}.md; SunGg12138/node-qiniu-sdk lib/resource.js.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from milepost.bucket import KEY_BYTES_MAX
from milepost.work.media.commands import COMMANDS, BadCommand, Command

COMMANDS_MAX = 100  # of one pfop
STEPS_MAX = 20  # of one pipe
FOP_CHARS_MAX = 64 << 10

_ESCAPED = re.compile(r"%(21|25|2[bB]|3[cCdDeE]|40|5[eE]|7[cC])")
_BASE64 = re.compile(r"[A-Za-z0-9_-]*={0,2}")


class BadFop(BadCommand):
    """One item's text is wrong; `index` is the number of the step, from 0."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


class SaveAs(msgspec.Struct, frozen=True):
    """Where an output goes.  `key` None: under its hash."""

    bucket: str
    key: str | None


class Step(msgspec.Struct, frozen=True):
    """One command of a pipe with its arguments, parsed."""

    command: Command
    spec: Any
    text: str


class Fop(msgspec.Struct, frozen=True):
    """One item: its steps, and where the last one's output goes (None: an automatic key)."""

    steps: tuple[Step, ...]
    save: SaveAs | None

    @property
    def text(self) -> str:
        """The steps without `saveas`: what an automatic key is made of."""
        return "|".join(step.text for step in self.steps)


def split_fops(fops: str) -> list[str]:
    """The commands of one request, as they were written; empty ones are left out.  Errors: BadCommand when they are too many."""
    commands = [command for part in fops.split(";") if (command := part.strip())]
    if len(commands) > COMMANDS_MAX:
        raise BadCommand(f"{len(commands)} commands; at most {COMMANDS_MAX} are allowed")
    return commands


def parse_fop(text: str) -> Fop:
    """One command with its pipe.  Errors: BadFop."""
    if len(text) > FOP_CHARS_MAX:
        raise BadFop(f"the command has {len(text)} characters; at most {FOP_CHARS_MAX} are allowed", 0)
    segments = [segment.strip() for segment in unescape(text).split("|")]
    if len(segments) > STEPS_MAX:
        raise BadFop(f"{len(segments)} steps; at most {STEPS_MAX} are allowed", STEPS_MAX)
    save = None
    if segments[-1].split("/")[0] == "saveas":
        index = len(segments) - 1
        save = _numbered(index, lambda: _parse_saveas(segments.pop()))
        if not segments:
            raise BadFop("saveas has nothing to save: it stands behind a command", 0)
    steps = tuple(_numbered(index, lambda segment=segment: _parse_step(segment)) for index, segment in enumerate(segments))
    for index, step in enumerate(steps[:-1]):
        if step.command.makes == "objects":
            raise BadFop(f"{step.command.name} makes several objects, which no other command takes", index)
    return Fop(steps, save)


def _numbered(index: int, parse: Any) -> Any:
    try:
        return parse()
    except BadFop:
        raise
    except BadCommand as error:
        raise BadFop(str(error), index) from None


def _parse_step(text: str) -> Step:
    name, *args = text.split("/")
    if name == "saveas":
        raise BadCommand("saveas must be the last step")
    command = COMMANDS.get(name)
    if command is None:
        raise BadCommand(f"unknown command {shown(name)}" if name else "a step is empty")
    return Step(command, command.parse(args), text)


def _parse_saveas(text: str) -> SaveAs:
    _, *args = text.split("/")
    if not args or not args[0]:
        raise BadCommand("saveas needs an encoded entry: the URL-safe base64 of bucket:key")
    if len(args) > 1 and args[1] != "sign":
        raise BadCommand(f"saveas takes one argument, got {shown('/'.join(args[1:]))} behind it")
    return decode_entry(args[0])


def unescape(text: str) -> str:
    """Undo percent-encoding of those characters that the grammar itself uses."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text) if "%" in text else text


# --- base64 -----------------------------------------------------------------------------------------------------------


def encode_text(text: str) -> str:
    """URL-safe base64 with padding, as every SDK writes it."""
    return base64.urlsafe_b64encode(text.encode()).decode()


def decode_bytes(value: str, what: str = "the value") -> bytes:
    """URL-safe base64, with padding or without.  Errors: BadCommand."""
    bare = value.rstrip("=")
    if not _BASE64.fullmatch(value) or len(bare) % 4 == 1:
        raise BadCommand(f"{what} is not URL-safe base64: {shown(value)}")
    try:
        return base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4))
    except (binascii.Error, ValueError):
        raise BadCommand(f"{what} is not URL-safe base64: {shown(value)}") from None


def decode_text(value: str, what: str = "the value") -> str:
    """URL-safe base64 of UTF-8 text.  Errors: BadCommand."""
    try:
        return decode_bytes(value, what).decode()
    except UnicodeDecodeError:
        raise BadCommand(f"{what} is not the base64 of UTF-8 text: {shown(value)}") from None


def encode_entry(bucket: str, key: str | None) -> str:
    """The encoded entry of an object: `bucket:key`."""
    return encode_text(bucket if key is None else f"{bucket}:{key}")


def decode_entry(value: str) -> SaveAs:
    """Where an encoded entry leads.  Errors: BadCommand."""
    bucket, colon, key = decode_text(value, "the entry of saveas").partition(":")
    if not bucket:
        raise BadCommand("the entry of saveas names no bucket")
    if len(key.encode()) > KEY_BYTES_MAX:
        raise BadCommand(f"the key of saveas has more than {KEY_BYTES_MAX} bytes")
    return SaveAs(bucket, key if colon and key else None)


# --- arguments ----------------------------------------------------------------------------------------------------------


class Arguments:
    """The `key/value` pairs behind a command's name, taken one by one."""

    def __init__(self, command: str, args: list[str]) -> None:
        self.command, self._args = command, list(args)
        while self._args and not self._args[-1]:
            self._args.pop()  # users write a slash at the end

    def __bool__(self) -> bool:
        return bool(self._args)

    def next(self, what: str) -> str:
        """The next argument.  Errors: BadCommand when there is none."""
        if not self._args:
            raise BadCommand(f"{self.command}: {what} is missing")
        return self._args.pop(0)

    def peek(self) -> str | None:
        """The next argument, left where it is."""
        return self._args[0] if self._args else None

    def pairs(self, flags: frozenset[str] = frozenset()) -> Iterator[tuple[str, str]]:
        """Every key with its value, in the order written.  A flag has the value of the digits behind it, or `1`."""
        while self._args:
            key = self._args.pop(0)
            if key not in flags:
                yield key, self.next(f"the value of {shown(key)}")
            elif self._args and self._args[0].isdecimal():
                yield key, self._args.pop(0)
            else:
                yield key, "1"

    def unknown(self, key: str) -> BadCommand:
        """The error for a key that the command does not have."""
        return BadCommand(f"{self.command}: unknown parameter {shown(key)}")


_INTEGER = re.compile(r"-?[0-9]{1,12}", re.ASCII)
_NUMBER = re.compile(r"-?(?:[0-9]{1,12}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})", re.ASCII)


def integer(value: str, what: str, low: int, high: int) -> int:
    """A whole number within these limits.  Errors: BadCommand."""
    if not _INTEGER.fullmatch(value) or not low <= int(value) <= high:
        raise BadCommand(f"{what} must be a whole number from {low} to {high}, not {shown(value)}")
    return int(value)


def number(value: str, what: str, low: float, high: float) -> float:
    """A number within these limits.  Errors: BadCommand."""
    if not _NUMBER.fullmatch(value) or not low <= float(value) <= high:
        raise BadCommand(f"{what} must be a number from {low:g} to {high:g}, not {shown(value)}")
    return float(value)


def one_of(value: str, what: str, allowed: tuple[str, ...]) -> str:
    """One of these words.  Errors: BadCommand."""
    if value not in allowed:
        raise BadCommand(f"{what} must be one of {', '.join(allowed)}, not {shown(value)}")
    return value


def shown(text: str) -> str:
    """Somebody else's text as it may stand in a message: quoted and short."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


# --- automatic keys -------------------------------------------------------------------------------------------------------


def automatic_key(fop: str, source_hash: str) -> str:
    """The key of an output that nobody named: the same for the same steps over the same source.

    Shape: 28 characters of the steps' SHA-1, a slash, the source's hash.
    Source: qiniu/developer.qiniu.com docs/v6/api/reference/fop/av/pm3u8.md, whose example has this form.
    """
    digest = hashlib.sha1(fop.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()
    return f"{base64.urlsafe_b64encode(digest).decode()}/{source_hash}"


__all__ = [
    "Arguments",
    "BadFop",
    "Fop",
    "SaveAs",
    "Step",
    "automatic_key",
    "decode_bytes",
    "decode_entry",
    "decode_text",
    "encode_entry",
    "encode_text",
    "integer",
    "number",
    "one_of",
    "parse_fop",
    "shown",
    "split_fops",
    "unescape",
]
