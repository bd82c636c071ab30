"""Content types: by content, as browsers sniff it, and by the extension of a name.

Source: WHATWG MIME Sniffing Standard, sections 6 and 7; Go net/http sniff.go.
"""

from __future__ import annotations

import mimetypes
import re

DEFAULT = "application/octet-stream"
SNIFF_BYTES = 512

_MARKUP = (
    b"<!doctype html", b"<html", b"<head", b"<script", b"<iframe", b"<h1", b"<div", b"<font", b"<table", b"<a", b"<style",
    b"<title", b"<b", b"<body", b"<br", b"<p", b"<!--",
)  # fmt: skip
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%PDF-", "application/pdf"),
    (0, b"%!PS-Adobe-", "application/postscript"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (0, b"BM", "image/bmp"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (0, b"\x00\x00\x01\x00", "image/x-icon"),
    (0, b"8BPS", "image/vnd.adobe.photoshop"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"\xff\xfb", "audio/mpeg"),
    (0, b"\xff\xf1", "audio/aac"),
    (0, b"\xff\xf9", "audio/aac"),
    (0, b"OggS\x00", "application/ogg"),
    (0, b"MThd\x00\x00\x00\x06", "audio/midi"),
    (0, b"fLaC", "audio/flac"),
    (0, b"#!AMR", "audio/amr"),
    (0, b"\x1aE\xdf\xa3", "video/webm"),
    (0, b"FLV\x01", "video/x-flv"),
    (0, b"\x00\x00\x01\xba", "video/mpeg"),
    (0, b"#EXTM3U", "application/x-mpegurl"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video/x-ms-wmv"),
    (0, b"wOFF", "font/woff"),
    (0, b"wOF2", "font/woff2"),
    (0, b"\x1f\x8b\x08", "application/x-gzip"),
    (0, b"PK\x03\x04", "application/zip"),
    (0, b"Rar!\x1a\x07", "application/x-rar-compressed"),
    (0, b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (0, b"\x00asm", "application/wasm"),
    (257, b"ustar", "application/x-tar"),
)
_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wave", b"AVI ": "video/avi"}
_BRANDS = {b"avif": "image/avif", b"heic": "image/heic", b"mif1": "image/heif", b"qt  ": "video/quicktime", b"M4A ": "audio/mp4"}
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]").search
_EXTRA = {".m3u8": "application/x-mpegurl", ".ts": "video/mp2t", ".webp": "image/webp", ".avif": "image/avif"}


def sniff(head: bytes) -> str:
    """The type of content that begins like this."""
    head = head[:SNIFF_BYTES]
    if head[:4] == b"RIFF" and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    for at, magic, found in _MAGIC:
        if head.startswith(magic, at):
            return found
    text = head.lstrip(b"\t\n\x0c\r ").lower()
    for tag in _MARKUP:
        if text.startswith(tag) and text[len(tag) : len(tag) + 1] in (b" ", b">", b""):
            return "text/html"
    if text.startswith(b"<?xml"):
        return "text/xml"
    return DEFAULT if not head or _BINARY(head) else "text/plain"


def of_name(name: str) -> str | None:
    """The type of the name's extension; None when it has none that is known."""
    dot = name.rfind(".")
    extension = name[dot:].lower() if dot > name.rfind("/") else ""
    if not extension or len(extension) > 12:
        return None
    return _EXTRA.get(extension) or _TYPES.guess_type(f"x{extension}")[0]


_TYPES = mimetypes.MimeTypes()  # Python's own table: the machine's files would make it differ from server to server


def matches(mime_type: str, limit: str) -> bool:
    """Whether a policy's mimeLimit lets this type pass: `image/*;video/mp4`, or `!image/jpeg` for all but these."""
    refuses, patterns = limit.startswith("!"), [one.strip().lower() for one in limit.removeprefix("!").split(";")]
    kind = mime_type.partition(";")[0].strip().lower()
    hit = any(one and (one in ("*", "*/*", kind) or (one.endswith("/*") and kind.startswith(one[:-1]))) for one in patterns)
    return hit != refuses


_VALID = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,100}/[A-Za-z0-9!#$&^_.+-]{1,100}(?:\s*;[\x20-\x7e]{0,100})?").fullmatch


def is_valid(mime_type: str) -> bool:
    """Whether it can be a header's value."""
    return _VALID(mime_type) is not None
