"""A `multipart/form-data` body, read as it comes: the fields into memory, the file into a sink.

Rules
1. The parts may come in any order.  What can be checked when the file begins is checked then: a bad token costs no upload.
2. Fields are bounded in number and in bytes, part headers by the parser; a field that comes twice is refused.
3. A body that ends before its closing boundary is broken off, never a shorter file.
Source: qiniu/python-sdk qiniu/services/storage/uploaders/form_uploader.py; RFC 7578.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from milepost.server.facades.qiniu.endpoint import Call
from milepost.server.facades.qiniu.incoming import ENVELOPE_BYTES, Received, Sink, body_chunks
from milepost.wire.qiniu import errors
from milepost.wire.qiniu.errors import Refusal

FIELDS_MAX = 1000
FIELDS_BYTES_MAX = 1 << 20
BOUNDARY_BYTES_MAX = 200
FILE = "file"


class Form(NamedTuple):
    """A whole form."""

    fields: dict[str, str]
    fname: str
    mime_type: str | None  # of the file's part
    file: Received


class _Reader:
    """The parser's callbacks: what has come so far."""

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.fname = ""
        self.mime_type: str | None = None
        self.in_file = self.has_file = self.ended = False
        self.file_data = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._header_name, self._header_value = b"", b""
        self._name, self._value, self._size, self._count = "", bytearray(), 0, 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_part_data": self._part_data,
                "on_part_end": self._end_part,
                "on_header_field": self._header_field,
                "on_header_value": self._header_data,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Errors: Refusal."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise bad_form(str(error)) from None

    def finish(self) -> None:
        """Errors: Refusal when the body ended too early, or brought no file."""
        if not self.ended:
            raise bad_form("it ends before its last boundary")
        if not self.has_file:
            raise Refusal(errors.BAD_REQUEST, "file is not specified in multipart")

    # --- called by the parser ------------------------------------------------------------------------------------------

    def _begin_part(self) -> None:
        self._headers, self._header_name, self._header_value = {}, b"", b""
        self._count += 1
        if self._count > FIELDS_MAX:
            raise bad_form(f"it has more than {FIELDS_MAX} parts")

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_data(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header_name.strip().lower()] = self._header_value.strip()
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if disposition != b"form-data" or b"name" not in options:
            raise bad_form("a part has no Content-Disposition: form-data with a name")
        self._name, self._value = _text(options[b"name"]), bytearray()
        if self._name != FILE:
            if self._name in self.fields:
                raise bad_form(f"the field {self._name[:40]!r} comes twice")
            return
        if self.has_file:
            raise bad_form("it has more than one file")
        self.in_file = self.has_file = True
        self.fname = options.get(b"filename", b"").decode("utf-8", "replace")
        self.mime_type = self._headers.get(b"content-type", b"").decode("latin-1") or None

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self.in_file:
            self.file_data += data[start:end]
            return
        self._size += end - start
        if self._size + len(self._name) > FIELDS_BYTES_MAX:
            raise Refusal(errors.TOO_LARGE, f"the fields of the form have more than {FIELDS_BYTES_MAX} bytes")
        self._value += data[start:end]

    def _end_part(self) -> None:
        if self.in_file:
            self.in_file = False
            return
        self.fields[self._name] = _text(bytes(self._value))
        self._size += len(self._name)

    def _end(self) -> None:
        self.ended = True


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise bad_form("a field is not UTF-8") from None


def bad_form(why: str) -> Refusal:
    return Refusal(errors.BAD_REQUEST, f"the form cannot be read: {why}")


def read_boundary(content_type: bytes) -> bytes:
    """Errors: Refusal when the body is no form with a file."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= BOUNDARY_BYTES_MAX:
        raise bad_form("its Content-Type is not multipart/form-data with a boundary")
    return boundary


async def read_form(call: Call, sink: Sink, begin: Callable[[dict[str, str]], Awaitable[None]]) -> Form:
    """The whole form; `begin` is awaited with the fields before it when the file begins.

    Errors: Refusal, LimitExceeded, Disconnected, OSError, and those of `begin`.
    """
    reader, begun = _Reader(read_boundary(call.headers.get(b"content-type", b""))), False
    async for chunk in body_chunks(call, limit_bytes=call.state.settings.object_bytes_max + ENVELOPE_BYTES):
        reader.feed(chunk)
        if reader.has_file and not begun:
            begun = True
            await begin(reader.fields)
        if reader.file_data:
            data, reader.file_data = reader.file_data, bytearray()
            await sink.write(data)
    reader.finish()
    return Form(reader.fields, reader.fname, reader.mime_type, await sink.finish())
