"""Secrets at rest: sealed with a key that is not in the store.

The key comes from the file that `secret_file` names, or from `MILEPOST_SECRET`: 32 random bytes as base64 or hex, one a line.
The first line seals, every line opens; so a key is rotated by writing the new one above the old one.  The file is read again when
it has changed.

Theory: AES-256-GCM with a random 96-bit nonce for each text.  The text is bound to what it is about (authenticated, not stored):
whoever can write the database cannot give one project's secret to another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from milepost.errors import Conflict, InvalidInput
from milepost.settings import Settings

VERSION = "v1"
KEY_BYTES, NONCE_BYTES = 32, 12
VARIABLE = "MILEPOST_SECRET"
MAKE_ONE = "openssl rand -base64 32"


class Vault:
    """Seals and opens.  Its repr shows which keys it has, not what they are."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        assert keys
        self._keys = {key_id(key): key for key in keys}
        self.key_id = key_id(keys[0])

    def __repr__(self) -> str:
        return f"<Vault {', '.join(self._keys)}>"

    def seal(self, plain: bytes, *, about: str) -> str:
        """`v1.KEY_ID.BASE64`, which `open` with the same `about` makes plain again."""
        nonce = os.urandom(NONCE_BYTES)
        sealed = _cipher(self._keys[self.key_id]).encrypt(nonce, plain, about.encode())
        return f"{VERSION}.{self.key_id}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def open(self, text: str, *, about: str) -> bytes:
        """Errors: Conflict when the key is not one of ours, or the text is not what was sealed."""
        from cryptography.exceptions import InvalidTag

        version, _, rest = text.partition(".")
        named, _, body = rest.partition(".")
        if version != VERSION or named not in self._keys:
            raise Conflict(
                f"a secret was sealed with the key {named[:16]}, which this server does not have",
                hint=f"put that key back, below the new one, into the file of secret_file or {VARIABLE}",
                reason="key_missing",
            )
        try:
            raw = base64.urlsafe_b64decode(body)
            plain: bytes = _cipher(self._keys[named]).decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], about.encode())
        except (InvalidTag, ValueError) as error:
            raise Conflict("a secret in the store is not what was sealed", reason="secret_changed") from error
        return plain

    def is_current(self, text: str) -> bool:
        """Whether it was sealed with the first key."""
        return text.startswith(f"{VERSION}.{self.key_id}.")


def key_id(key: bytes) -> str:
    """A name for the key that tells nothing about it."""
    return hashlib.sha256(b"milepost key " + key).hexdigest()[:12]


def read_keys(text: str, *, source: str) -> list[bytes]:
    """The keys of a file or variable, the sealing one first.  Errors: InvalidInput, without the text itself."""
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        word = line.strip()
        if not word or word.startswith("#"):
            continue
        key = _decode(word)
        if key is None:
            raise InvalidInput(
                f"line {number} of {source} is no key: 32 bytes as base64 or hex", path="$.secret_file", hint=MAKE_ONE
            )
        keys.append(key)
    if not keys:
        raise InvalidInput(f"{source} has no key", path="$.secret_file", hint=MAKE_ONE)
    return keys


def _decode(word: str) -> bytes | None:
    try:
        key = bytes.fromhex(word) if len(word) == 2 * KEY_BYTES else base64.b64decode(word.translate(_URL), validate=True)
    except (ValueError, binascii.Error):
        return None
    return key if len(key) == KEY_BYTES else None


_URL = str.maketrans("-_", "+/")
_opened: dict[tuple[str, int, int], Vault] = {}


def open_vault(settings: Settings, environ: Mapping[str, str] | None = None) -> Vault:
    """The vault with this server's keys.

    Errors: Conflict when it has none, InvalidInput when what it has is no key, both with what to do.
    """
    _need_cryptography()
    environ = os.environ if environ is None else environ
    if settings.secret_file is None:
        text = environ.get(VARIABLE)
        if not text:
            raise Conflict(
                "this server has no key to keep secrets with",
                hint=f"{MAKE_ONE} > milepost.key, then serve with MILEPOST_SECRET_FILE=milepost.key",
                reason="no_key",
            )
        return Vault(read_keys(text, source=VARIABLE))
    path = Path(settings.secret_file)
    try:
        found = path.stat()
        place = (str(path), found.st_mtime_ns, found.st_size)
        if place not in _opened:
            text = path.read_text("utf-8")
            _opened.clear()
            _opened[place] = Vault(read_keys(text, source=str(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise Conflict(f"the key file cannot be read: {error}", hint="check MILEPOST_SECRET_FILE", reason="no_key") from error
    return _opened[place]


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        raise Conflict(
            "keeping secrets needs cryptography, which is not installed", hint="pip install 'milepost[server]'", reason="no_key"
        ) from None


def _cipher(key: bytes):  # type: ignore[no-untyped-def]  # the library is loaded when it is first needed
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)
