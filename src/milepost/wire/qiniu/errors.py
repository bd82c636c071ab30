"""Errors as Qiniu answers them: the status is the code, the body `{"error": "…"}`.

Clients decide by the code: below 500 they never try again; of those above, the Python SDK does not try 501, 509, 573, 579, 608,
612, 614, 616, 618, 630, 631, 632, 640 and 701 again, the Go SDK the same without 573.
Source: qiniu/python-sdk qiniu/http/response.py; qiniu/go-sdk internal/clientv2; qiniu/developer.qiniu.com kodo error codes.
"""

from __future__ import annotations

from typing import Any

import msgspec

BAD_REQUEST, BAD_TOKEN, FORBIDDEN, NOT_FOUND, NOT_ALLOWED, BAD_CRC, TOO_LARGE = 400, 401, 403, 404, 405, 406, 413
MIRROR_FAILED = 478
BUSY = 573
CALLBACK_FAILED = 579
SERVER_ERROR = 599
MODIFIED = 608
NO_SUCH_ENTRY = 612
ENTRY_EXISTS = 614
TOO_MANY_BUCKETS = 630
NO_SUCH_BUCKET = 631
BAD_MARKER = 640
BAD_CTX = 701

INTERNAL = "the server failed on this request; its log has the cause under this request id"


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, text: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, headers or {}


def encode_error(text: str) -> bytes:
    """The body of an error."""
    return msgspec.json.encode({"error": text})


def read_error(body: bytes) -> str | None:
    """What an error says; None when it is none of this API."""
    try:
        found = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return None
    text = found.get("error")
    return text if isinstance(text, str) and text else None


def no_such_entry() -> Refusal:
    return Refusal(NO_SUCH_ENTRY, "no such file or directory")


def no_such_bucket() -> Refusal:
    return Refusal(NO_SUCH_BUCKET, "no such bucket")


def no_such_upload() -> Refusal:
    return Refusal(NO_SUCH_ENTRY, "no such uploadId")


def bad_token(text: str = "bad token") -> Refusal:
    return Refusal(BAD_TOKEN, text)


def no_space() -> Refusal:
    return Refusal(SERVER_ERROR, "no space left on the server's disk; nothing was stored")
