"""The upload policy: what an upload token allows, and what it asks for.

Errors: Refusal, always with Qiniu's code.
Source: qiniu/python-sdk qiniu/auth.py (the fields); qiniu/developer.qiniu.com kodo put-policy.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, urlsplit

import msgspec

from milepost.wire.qiniu import errors, mime
from milepost.wire.qiniu.errors import Refusal
from milepost.wire.signing.qiniu import urlsafe

EXPIRED = "expired token"
KEYS_MAX = 20
CALLBACKS_MAX = 10  # URLs of one callbackUrl, tried one after the other
FILE_TYPES = 5  # storage classes are numbers from 0


class Policy(msgspec.Struct, rename="camel", kw_only=True):
    """The policy's fields.  What is not here is taken and has no effect."""

    scope: str
    deadline: float
    is_prefixal_scope: int = 0
    insert_only: int = 0
    end_user: str | None = None
    return_url: str | None = None
    return_body: str | None = None
    callback_url: str | None = None
    callback_host: str | None = None
    callback_body: str | None = None
    callback_body_type: str = "application/x-www-form-urlencoded"
    save_key: str | None = None
    force_save_key: bool = False
    fsize_limit: int = 0
    fsize_min: int = 0
    detect_mime: int = 0
    mime_limit: str = ""
    file_type: int = 0
    keylimit: list[str] | None = None
    persistent_ops: str = ""
    persistent_notify_url: str = ""
    persistent_pipeline: str = ""
    persistent_type: int = 0
    persistent_workflow_template_id: str = msgspec.field(default="", name="persistentWorkflowTemplateID")

    @property
    def bucket(self) -> str:
        return self.scope.partition(":")[0]

    @property
    def key(self) -> str | None:
        """The key, or its prefix, that the scope names; None when it names the bucket only."""
        _, mark, key = self.scope.partition(":")
        return key if mark else None

    @property
    def may_overwrite(self) -> bool:
        return self.key is not None and not self.insert_only


class Custom(NamedTuple):
    """What an upload brings beside its bytes: `x:` variables by their names with `x:`, metadata by their names without prefix."""

    variables: dict[str, str]
    metadata: dict[str, str]


META = "x-qn-meta-"


def read_policy(text: bytes, *, now_us: int) -> Policy:
    """The policy of a token whose signature is right.  Errors: Refusal 400, 401 when its deadline has passed."""
    try:
        policy = msgspec.convert(msgspec.json.decode(text), Policy, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise errors.bad_token(f"bad token: the upload policy cannot be read: {error}") from None
    if not policy.bucket:
        raise Refusal(errors.BAD_REQUEST, "the upload policy has no scope")
    if policy.force_save_key and not policy.save_key:
        raise Refusal(errors.BAD_REQUEST, "the upload policy has forceSaveKey without saveKey")
    if policy.callback_url and not policy.callback_body:
        raise Refusal(errors.BAD_REQUEST, "the upload policy has callbackUrl without callbackBody")
    if policy.callback_url and not callback_urls(policy):
        raise Refusal(errors.BAD_REQUEST, "the upload policy has a callbackUrl that is none")
    if not 0 <= policy.file_type < FILE_TYPES:
        raise Refusal(errors.BAD_REQUEST, f"the upload policy's fileType takes a number from 0 to {FILE_TYPES - 1}")
    if policy.return_url:
        return_address(policy.return_url, b"")
    check_deadline(policy, now_us=now_us)
    return policy


def callback_urls(policy: Policy) -> list[str]:
    """Several URLs are separated by `;`; the next is asked when one does not answer well."""
    return [one.strip() for one in (policy.callback_url or "").split(";") if one.strip()][:CALLBACKS_MAX]


def return_address(url: str, body: bytes) -> str:
    """Where a browser is sent with the upload's answer; in ASCII.  Errors: Refusal 400 when the URL is none."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable():
        raise Refusal(errors.BAD_REQUEST, "the upload policy's returnUrl is no http(s) URL")
    address, hash_mark, fragment = url.partition("#")
    mark = "&" if parts.query else "?"
    answer = f"{address}{mark}upload_ret={urlsafe(body)}{hash_mark}{fragment}"
    return quote(answer, safe="!#$%&'()*+,/:;=?@[]~")


def check_deadline(policy: Policy, *, now_us: int) -> None:
    """Errors: Refusal 401."""
    if not policy.deadline * 1e6 > now_us:
        raise errors.bad_token(EXPIRED)


def check_client_key(policy: Policy, key: str | None) -> None:
    """What can be said of the client's key before anything was sent.  Errors: Refusal 403."""
    if policy.keylimit is not None and (key is None or key not in policy.keylimit[:KEYS_MAX]):
        raise Refusal(errors.FORBIDDEN, "the key is not one of the upload policy's keylimit")
    if key is not None and not policy.force_save_key:
        check_key(policy, key)


def check_key(policy: Policy, key: str) -> None:
    """Whether the scope allows this key.  Errors: Refusal 403."""
    allowed = policy.key
    if allowed is not None and key != allowed and not (policy.is_prefixal_scope and key.startswith(allowed)):
        raise Refusal(errors.FORBIDDEN, "key doesn't match with scope")


def check_size(policy: Policy, size_bytes: int) -> None:
    """Errors: Refusal 413, 403."""
    if policy.fsize_limit > 0 and size_bytes > policy.fsize_limit:
        raise Refusal(errors.TOO_LARGE, f"request entity too large: the upload policy allows {policy.fsize_limit} bytes")
    if size_bytes < policy.fsize_min:
        raise Refusal(errors.FORBIDDEN, f"the upload policy wants at least {policy.fsize_min} bytes")


def choose_mime(policy: Policy, *, given: str | None, fname: str, key: str | None, head: bytes) -> str:
    """The object's type.  detectMime: 1 believes the content, -1 the client, 0 the client, then the names, then the content.

    Errors: Refusal 403 when the policy forbids the type, 400 when the given one is none.
    """
    if policy.detect_mime == 1:
        found = mime.sniff(head)
    elif given:
        found = given
    elif policy.detect_mime == -1:
        found = mime.DEFAULT
    else:
        found = mime.of_name(fname) or mime.of_name(key or "") or mime.sniff(head)
    if not mime.is_valid(found):
        raise Refusal(errors.BAD_REQUEST, f"not a content type: {found[:80]!r}")
    if policy.mime_limit and not mime.matches(found, policy.mime_limit):
        raise Refusal(errors.FORBIDDEN, f"limited mimeType: this file type ({found}) is forbidden to upload")
    return found


def split_custom(fields: dict[str, str]) -> Custom:
    """The custom variables and metadata among an upload's fields.  Errors: Refusal 400."""
    variables = {name: value for name, value in fields.items() if name.startswith("x:") and len(name) > 2}
    metadata = {
        name[len(META) :].lower(): value
        for name, value in fields.items()
        if name.lower().startswith(META) and len(name) > len(META)
    }
    return Custom(variables, check_metadata(metadata))


def check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """What can be shown as headers.  Errors: Refusal 400."""
    for name, value in metadata.items():
        if not (name.isascii() and all(char.isalnum() or char in "-_" for char in name)) or not value.isprintable():
            raise Refusal(errors.BAD_REQUEST, f"{META}{name[:40]} cannot be a header")
    if sum(len(name) + len(value) for name, value in metadata.items()) > 4096:
        raise Refusal(errors.BAD_REQUEST, "the metadata has more than 4096 characters")
    return metadata


__all__ = [
    "META",
    "Custom",
    "Policy",
    "callback_urls",
    "check_client_key",
    "check_deadline",
    "check_key",
    "check_metadata",
    "check_size",
    "choose_mime",
    "read_policy",
    "return_address",
    "split_custom",
]
